//! Where hyper's HTTP/2 puts its own tasks: on the worker's thread, like everything a worker does.

/// Runs what hyper's HTTP/2 spawns on the worker's own thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future + 'static,
{
    fn execute(&self, future: F) {
        // Ends with its stream or connection.
        tokio::task::spawn_local(async move { drop(future.await) });
    }
}
