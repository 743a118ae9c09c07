//! Calls to other services of the mesh, through the proxy beside this app.

use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::HeaderName;
use hyper::http::response::Parts;
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// How long the whole of one call may take: an app that waits for ever hangs with the one it calls.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// Most of an answer that is read.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// What ties the calls of one request together, and says for whom they are made.
const PASSED_ON: [HeaderName; 3] = [
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("x-user-id"),
];
/// In which a proxy says that an answer is its own.
const PROXY_STATUS: &str = "proxy-status";

/// What came of one call.
#[derive(Clone, Debug)]
pub(crate) struct Called {
    pub(crate) result: Result<Value, Failed>,
    pub(crate) took: Duration,
}

/// Why a call gave nothing to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    /// An answer that is no success; with what the proxy said of it, if it was its own.
    Answered {
        status: StatusCode,
        proxy: Option<String>,
    },
    Broken(String),
    Timeout,
}

impl std::error::Error for Failed {}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered { status, proxy: None } => write!(f, "answered {status}"),
            Self::Answered { status, proxy: Some(said) } => write!(f, "the proxy answered {status}: {said}"),
            Self::Broken(reason) => write!(f, "no answer: {reason}"),
            Self::Timeout => write!(f, "no answer within {} s", CALL_TIMEOUT.as_secs()),
        }
    }
}

/// Calls `GET path` of a service through the proxy at `mesh`, on behalf of a request with these headers.
pub(crate) async fn call(mesh: &str, service: &str, path: &str, behalf: &HeaderMap) -> Called {
    let began = Instant::now();
    let exchange = tokio::time::timeout(CALL_TIMEOUT, exchange(mesh, service, path, behalf)).await;
    Called { result: exchange.unwrap_or(Err(Failed::Timeout)), took: began.elapsed() }
}

async fn exchange(mesh: &str, service: &str, path: &str, behalf: &HeaderMap) -> Result<Value, Failed> {
    let mut request = Request::get(path).header("host", service).header("accept", "application/json");
    for name in &PASSED_ON {
        for value in behalf.get_all(name) {
            request = request.header(name, value);
        }
    }
    let request = request.body(Full::default()).map_err(|error| Failed::Broken(error.to_string()))?;
    let (head, body) = send(mesh, request).await?;
    if !head.status.is_success() {
        let proxy = head.headers.get(PROXY_STATUS).and_then(|value| value.to_str().ok());
        return Err(Failed::Answered { status: head.status, proxy: proxy.map(str::to_owned) });
    }
    let text = || Value::String(String::from_utf8_lossy(&body).into_owned());
    Ok(serde_json::from_slice(&body).unwrap_or_else(|_| text()))
}

/// Sends a request to an address, and reads the whole answer.
///
/// # Errors
/// When none comes.
pub(crate) async fn send(address: &str, request: Request<Full<Bytes>>) -> Result<(Parts, Bytes), Failed> {
    let broken = |error: &dyn fmt::Display| Failed::Broken(error.to_string());
    // A connection for each call: on loopback it costs little, and a stale one cannot be met.
    let stream = TcpStream::connect(address).await.map_err(|error| broken(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        Ok((head, body.map_err(|error| broken(&error))?.to_bytes()))
    };
    // The connection moves only while it is polled, and ends with this call.
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        // What it read before it ended is still there to be taken.
        _ = connection => answer.await,
    }
}
