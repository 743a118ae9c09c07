//! The listener of the API: bounded connections, heads, bodies and waits, and an end that is polite for a while.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::Request;
use gilmok_config::identity::Identity;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::patience::{Patient, Timely};
use crate::publish::SUBSCRIBERS_MAX;
use crate::tls::{Received, Refused, Tls};

/// Connections at a time: a feed and the acks of every proxy, and some for operators. More wait to be accepted.
const CONNECTIONS_MAX: usize = SUBSCRIBERS_MAX * 2 + 1_000;
/// Head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// How long accepting pauses when there is no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long requests in flight may take when the process ends.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);

/// How long is waited for callers.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the head of a request, and between requests.
    pub head: Duration,
    /// For a whole body.
    pub body: Duration,
    /// For a caller who takes nothing of the answer.
    pub stall: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { head: Duration::from_secs(30), body: Duration::from_secs(60), stall: Duration::from_secs(30) }
    }
}

/// Serves until `stop` is true, then for as long as requests in flight take, but not for ever.
pub async fn serve(
    listener: TcpListener,
    app: Router,
    tls: Option<Arc<Tls>>,
    patience: Patience,
    mut stop: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Ends the connections with it.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        tokio::select! {
            accepted = accept(&listener, &places) => {
                if let Some((stream, peer, place)) = accepted {
                    let served = Served { peer, app: app.clone(), patience, stop: stop.clone() };
                    connections.spawn(receive(stream, tls.clone(), served, place));
                }
            }
            () = told_to_stop(&mut stop) => break,
        }
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    if timeout(LEAVE_WITHIN, all).await.is_err() {
        tracing::warn!("requests are in flight after {LEAVE_WITHIN:?}; ending them");
    }
}

/// The next connection, once there is a place for it.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => Some((stream, peer, place)),
        Err(error) => {
            tracing::warn!("cannot accept a connection: {error}");
            sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

/// What a connection is served with.
struct Served {
    peer: SocketAddr,
    app: Router,
    patience: Patience,
    stop: watch::Receiver<bool>,
}

async fn receive(stream: TcpStream, tls: Option<Arc<Tls>>, served: Served, _place: OwnedSemaphorePermit) {
    // Without it the lines of a feed wait up to 40 ms for an acknowledgement. Not worth the connection.
    drop(stream.set_nodelay(true));
    let Some(tls) = tls else { return served.connection(stream, None).await };
    match tls.receive(stream).await {
        Ok(Received::Plain(stream)) => served.connection(stream, None).await,
        Ok(Received::Tls(stream, None)) => served.connection(stream, None).await,
        Ok(Received::Tls(stream, Some(mut shown))) => {
            let identity = shown.identity.clone();
            tokio::select! {
                () = served.connection(stream, Some(identity)) => {}
                // A feed has no end of its own: whoever follows shows itself anew.
                () = shown.ended() => {}
            }
        }
        Err(Refused(why)) => tracing::debug!("no TLS with {}: {why}", served.peer),
    }
}

impl Served {
    async fn connection<S>(self, stream: S, identity: Option<Identity>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self { peer, app, patience, mut stop } = self;
        let app = TowerToHyperService::new(app);
        let service = service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(|body| Body::new(Timely::new(body, patience.body)));
            request.extensions_mut().insert(ConnectInfo(peer));
            if let Some(identity) = &identity {
                request.extensions_mut().insert(identity.clone());
            }
            app.call(request)
        });
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(patience.head)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(Patient::new(stream, patience.stall)), service);
        let mut serving = pin!(serving);
        // What goes wrong on the way concerns the caller, who sees it.
        tokio::select! {
            served = serving.as_mut() => return drop(served),
            () = told_to_stop(&mut stop) => serving.as_mut().graceful_shutdown(),
        }
        drop(serving.await);
    }
}

async fn told_to_stop(stop: &mut watch::Receiver<bool>) {
    // Whoever could say so being gone is the same.
    drop(stop.wait_for(|stop| *stop).await);
}
