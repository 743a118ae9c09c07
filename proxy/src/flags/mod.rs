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
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

pub(crate) use self::access::Access;
use self::answer::{Answer, Refused};
use self::events::Events;
use self::question::{Evaluator, Selector};
use crate::aside::{self, Allows};
use crate::current::InForce;
use crate::drain::Phase;
use crate::source::status::Status;

/// Change events are among the connections, each of which costs about 10 KiB; the pools of common clients keep one for less
/// than the time.
const ALLOWS: Allows = Allows { connections: 1_024, header_timeout: Duration::from_mins(2) };
/// Change events that are listened to at a time, so that questions find a connection.
const STREAMS_MAX: usize = 512;
/// Body of a request, in bytes; as flagd has it.
const BODY_BYTES_MAX: usize = 1 << 20;
/// For the body of a request.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

const BULK: &str = "/ofrep/v1/evaluate/flags";
const SINGLE: &str = "/ofrep/v1/evaluate/flags/";
const STREAM: &str = "/ofrep/v1/sse";

/// What the answers are made of.
#[derive(Debug)]
pub(crate) struct Ofrep {
    access: Access,
    freshness: Freshness,
    in_force: Arc<InForce>,
    /// One permit for each stream of change events.
    streams: Arc<Semaphore>,
}

/// Whether what is in force is what its source still says.
#[derive(Debug)]
pub(crate) struct Freshness {
    pub(crate) status: Arc<Status>,
    pub(crate) stale_after: Duration,
}

impl Freshness {
    fn is_stale(&self) -> bool {
        self.status.age_seconds().is_none_or(|age| age > self.stale_after.as_secs_f64())
    }
}

/// Serves on a thread of its own until the drain is over.
///
/// # Errors
/// When there is no thread or no runtime for it.
pub(crate) fn start(
    socket: std::net::TcpListener,
    access: Access,
    freshness: Freshness,
    in_force: Arc<InForce>,
    mut phases: watch::Receiver<Phase>,
) -> std::io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ofrep =
        Arc::new(Ofrep { access, freshness, in_force, streams: Arc::new(Semaphore::new(STREAMS_MAX)) });
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
    aside::serve(listener, ALLOWS, move |peer, request| {
        let ofrep = Arc::clone(&ofrep);
        async move { answer(&ofrep, peer, request).await }
    })
    .await;
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
    let writer = ofrep.in_force.workers();
    let evaluator = Evaluator::new(&current, &context, &selector, writer, ofrep.freshness.is_stale());
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
