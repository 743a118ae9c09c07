//! Serves the listeners that are not for requests of the mesh, operators' and flags', off the workers' threads.

use std::convert::Infallible;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// How long accepting pauses when there is no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What one listener allows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allows {
    /// Connections at a time; what comes beyond waits in the kernel's queue.
    pub(crate) connections: usize,
    /// For the head of a request, and between requests.
    pub(crate) header_timeout: Duration,
}

/// Serves until dropped, and ends the connections then.
pub(crate) async fn serve<B, F>(
    listener: TcpListener,
    allows: Allows,
    answer: impl Fn(SocketAddr, Request<Incoming>) -> F + Clone + Send + Sync + 'static,
) where
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
    F: Future<Output = Result<Response<B>, Infallible>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(allows.connections));
    // Ends the connections with it.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((stream, peer)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // Only latency is lost without it.
        drop(stream.set_nodelay(true));
        let answer = answer.clone();
        connections.spawn(async move {
            let service = service_fn(|request| answer(peer, request));
            let serving = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(allows.header_timeout)
                .max_buf_size(HEAD_BYTES_MAX)
                .serve_connection(TokioIo::new(stream), service);
            // What goes wrong on the way concerns the caller, who sees it.
            drop(serving.await);
            drop(place);
        });
    }
}
