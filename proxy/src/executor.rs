//! Where hyper's HTTP/2 puts its own tasks: on the worker's thread, like everything a worker does.

use crate::untaken;

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

/// The same for the streams of callers, each of which ends when its caller takes nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamExecutor;

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future + 'static,
{
    fn execute(&self, future: F) {
        // Ends with its stream or connection.
        tokio::task::spawn_local(untaken::watch(future));
    }
}
