//! The OFREP listener (OpenFeature Remote Evaluation Protocol, 0.3.0): what SDKs ask of flags, and how they hear of changes.
//!
//! It has a thread of its own: an application that asks for every flag with every request keeps nobody else waiting, neither
//! the workers nor the sources.

mod access;

mod answer;

mod bulk;

mod events;

mod question;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

pub(crate) use self::access::Access;
use self::answer::{Answer, Refused};
use self::events::Events;
use self::question::{Evaluator, Selector};
use crate::current::InForce;
use crate::drain::Phase;

/// Connections at a time, change events included. Each costs about 10 KiB; what comes beyond waits in the kernel's queue.
const CONNECTIONS_MAX: usize = 1_024;
/// Change events that are listened to at a time, so that questions find a connection.
const STREAMS_MAX: usize = 512;
/// For the head of a request, and between requests: longer than the pools of common clients keep a connection.
const HEADER_TIMEOUT: Duration = Duration::from_mins(2);
/// Head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Body of a request, in bytes; as flagd has it.
const BODY_BYTES_MAX: usize = 1 << 20;
/// For the body of a request.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long accepting pauses when there is no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

const BULK: &str = "/ofrep/v1/evaluate/flags";
const SINGLE: &str = "/ofrep/v1/evaluate/flags/";
const STREAM: &str = "/ofrep/v1/sse";

/// What the answers are made of.
#[derive(Debug)]
pub(crate) struct Ofrep {
    access: Access,
    in_force: Arc<InForce>,
    /// One permit for each stream of change events.
    streams: Arc<Semaphore>,
}

/// Serves on a thread of its own until the drain is over.
///
/// # Errors
/// When there is no thread or no runtime for it.
pub(crate) fn start(
    socket: std::net::TcpListener,
    access: Access,
    in_force: Arc<InForce>,
    mut phases: watch::Receiver<Phase>,
) -> std::io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ofrep = Arc::new(Ofrep { access, in_force, streams: Arc::new(Semaphore::new(STREAMS_MAX)) });
    std::thread::Builder::new().name("ofrep".to_owned()).spawn(move || {
        runtime.block_on(async move {
            let listener = match TcpListener::from_std(socket) {
                Ok(listener) => listener,
                Err(error) => return tracing::error!("the OFREP listener: {error}"),
            };
            tokio::select! {
                () = serve(listener, ofrep) => {}
                // The application may ask until it has ended; a drain that is gone is over.
                _ = phases.wait_for(|phase| *phase == Phase::Over) => {}
            }
        });
    })
}

async fn serve(listener: TcpListener, ofrep: Arc<Ofrep>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
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
        let ofrep = Arc::clone(&ofrep);
        connections.spawn(async move {
            let service = service_fn(|request| answer(&ofrep, peer, request));
            let serving = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(HEAD_BYTES_MAX)
                .serve_connection(TokioIo::new(stream), service);
            // What goes wrong on the way concerns the caller, who sees it.
            drop(serving.await);
            drop(place);
        });
    }
}

async fn answer(
    ofrep: &Ofrep,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Answer>, Infallible> {
    let origin = match ofrep.access.origin(request.headers()) {
        Ok(origin) => origin,
        Err(refused) => return Ok(refused.into_response()),
    };
    let mut response = match route(ofrep, peer, request).await {
        Ok(response) => response,
        Err(refused) => refused.into_response(),
    };
    if let Some(origin) = origin {
        access::expose(response.headers_mut(), origin);
    }
    Ok(response)
}

async fn route(
    ofrep: &Ofrep,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Answer>, Refused> {
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    let key = path.strip_prefix(SINGLE).map(question::key);
    let wanted = match (path, &key) {
        (BULK, _) | (_, Some(_)) => Method::POST,
        (STREAM, _) => Method::GET,
        (_, None) => return Err(Refused::no_such_path()),
    };
    if head.method == Method::OPTIONS {
        return Ok(access::preflight(&head.headers));
    }
    if head.method != wanted {
        return Err(Refused::no_such_method(&wanted));
    }
    if wanted == Method::GET {
        // Browsers cannot send a token here, and all there is to hear is that something has changed.
        let last = head.headers.get("last-event-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
        return Events::begin(&ofrep.in_force, &ofrep.streams, last).map(answer::stream);
    }
    ofrep.access.admit(peer.ip(), &head.headers)?;
    let selector = Selector::read(&head.headers)?;
    let context = question::context(&read(body).await?).map_err(|refused| refused.about(key.as_deref()))?;
    let current = ofrep.in_force.load();
    if current.generation == 0 {
        return Err(Refused::not_ready());
    }
    let evaluator = Evaluator::new(&current, &context, &selector, ofrep.in_force.workers());
    match key {
        Some(key) => evaluator.one(&key).map(|told| answer::json(StatusCode::OK, &told)),
        None => Ok(bulk::answer(&evaluator, &head.headers)),
    }
}

async fn read(body: Incoming) -> Result<Bytes, Refused> {
    let reading = Limited::new(body, BODY_BYTES_MAX).collect();
    match tokio::time::timeout(BODY_TIMEOUT, reading).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(_)) => Err(Refused::too_large(BODY_BYTES_MAX)),
        Err(_elapsed) => Err(Refused::invalid_context("the body did not come in time")),
    }
}
