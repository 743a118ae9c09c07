//! A small HTTP/1.1 client for control traffic: one server, one kept connection, every wait and every body bounded.
//!
//! It speaks to Consul and, from the command line tool, to the control plane. It is not the data plane's way
//! upstream: no pool, no balancing, whole bodies (or whole lines) only.

use std::error::Error as StdError;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{HOST, HeaderName, HeaderValue, USER_AGENT};
use http::{HeaderMap, Method, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

mod dial;
mod origin;

pub use dial::TlsSettings;
pub use origin::Origin;

/// Default of [`Settings::connect_timeout`].
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Default of [`Settings::body_bytes_max`]: 10,000 instances of one service in Consul's words.
pub const BODY_BYTES_MAX: usize = 32 << 20;
/// Default of [`Request::timeout`].
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of an answer's head.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Most header lines of an answer.
const HEADERS_MAX: usize = 100;

/// Which server, and how patient.
#[derive(Clone, Debug)]
pub struct Settings {
    pub origin: Origin,
    /// Used by `https` origins.
    pub tls: TlsSettings,
    /// From the name's resolution to the end of the TLS handshake.
    pub connect_timeout: Duration,
    /// Longest body of an answer, and longest line in [`Lines`], in bytes.
    pub body_bytes_max: usize,
}

impl Settings {
    /// The defaults for an origin.
    #[must_use]
    pub fn new(origin: Origin) -> Self {
        Self {
            origin,
            tls: TlsSettings::default(),
            connect_timeout: CONNECT_TIMEOUT,
            body_bytes_max: BODY_BYTES_MAX,
        }
    }
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: Method,
    /// Path and query, percent-encoded.
    pub target: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// From the call to the last byte of the answer, connecting included.
    pub timeout: Duration,
    /// Whether an idempotent request is sent once more, over a new connection, when the kept one turns out to be
    /// closed. Off for who must know that the server may be another one now.
    pub redial: bool,
}

impl Request {
    /// A request without headers and body.
    #[must_use]
    pub fn new(method: Method, target: impl Into<String>) -> Self {
        Self {
            method,
            target: target.into(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            timeout: REQUEST_TIMEOUT,
            redial: true,
        }
    }

    /// A `GET`.
    #[must_use]
    pub fn get(target: impl Into<String>) -> Self {
        Self::new(Method::GET, target)
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Sets the body; its length is told, its type is not.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Sets the time for the whole.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

/// What was answered, whole. Any status is an answer; what it means is the caller's business.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("{origin} does not answer in HTTP/1.1: {reason}")]
    Malformed { origin: Origin, reason: String },
    /// A request that cannot be sent: the target or a header is not HTTP.
    #[error("not a request: {0}")]
    Request(String),
    #[error("cannot use TLS: {0}")]
    Settings(String),
    #[error("{origin} did not answer within {} ms", .after.as_millis())]
    TimedOut { origin: Origin, after: Duration },
    #[error("the answer of {origin} is longer than {bytes_max} bytes")]
    TooLarge { origin: Origin, bytes_max: usize },
    /// Refused, reset, closed early, not resolved, or not trusted.
    #[error("cannot reach {origin}: {reason}")]
    Unreachable { origin: Origin, reason: String },
}

type Sender = http1::SendRequest<Full<Bytes>>;

/// A client of one server. It keeps one connection between requests; requests at the same time each have their own.
#[derive(Debug)]
pub struct Client {
    settings: Settings,
    /// A std mutex: held to take or put, never across an await.
    kept: Mutex<Option<Sender>>,
}

impl Client {
    /// A client that has not connected yet.
    ///
    /// # Errors
    /// TLS files that cannot be used, so that a start tells them and not the first request.
    pub fn new(settings: Settings) -> Result<Self, Error> {
        if settings.origin.is_tls() {
            settings.tls.load()?;
        }
        Ok(Self { settings, kept: Mutex::new(None) })
    }

    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.settings.origin
    }

    /// Whether a connection of an earlier request is kept and, as far as is known, open.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.as_ref().is_some_and(|sender| !sender.is_closed())
    }

    /// Closes the kept connection.
    pub fn disconnect(&self) {
        drop(self.take_kept());
    }

    /// Sends a request and reads the whole answer.
    ///
    /// Dropping the future closes the connection; the server may have acted on the request all the same.
    ///
    /// # Errors
    /// [`Error`]; an HTTP status is none.
    pub async fn send(&self, request: &Request) -> Result<Response, Error> {
        let exchange = async {
            let (sender, response) = self.exchange(request).await?;
            let (head, body) = response.into_parts();
            let bytes_max = self.settings.body_bytes_max;
            let body = Limited::new(body, bytes_max).collect().await.map_err(|error| {
                if error.is::<LengthLimitError>() {
                    return Error::TooLarge { origin: self.origin().clone(), bytes_max };
                }
                self.unreachable(&*error)
            })?;
            *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
            Ok(Response { status: head.status, headers: head.headers, body: body.to_bytes() })
        };
        self.within(request.timeout, exchange).await
    }

    /// Sends a request whose answer is read line by line; the request's timeout is for the head of the answer,
    /// `idle_timeout` for each line. The connection ends with the lines.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn lines(&self, request: &Request, idle_timeout: Duration) -> Result<Lines, Error> {
        let (sender, response) = self.within(request.timeout, self.exchange(request)).await?;
        let (head, body) = response.into_parts();
        Ok(Lines {
            status: head.status,
            headers: head.headers,
            body,
            read: BytesMut::new(),
            searched: 0,
            idle_timeout,
            settings: self.settings.clone(),
            _sender: sender,
        })
    }

    async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let late = || Error::TimedOut { origin: self.origin().clone(), after: limit };
        tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(late()))
    }

    /// Sends over the kept connection, or a new one, and reads the head of the answer.
    async fn exchange(&self, request: &Request) -> Result<(Sender, http::Response<Incoming>), Error> {
        if let Some(mut sender) = self.take_kept() {
            let answer = match sender.ready().await {
                Ok(()) => sender.send_request(self.message(request)?).await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(response) => return Ok((sender, response)),
                // The server closed it while it was idle: that says nothing about the server now.
                Err(_) if request.redial && request.method.is_idempotent() => {}
                Err(error) => return Err(self.told(&error)),
            }
        }
        let message = self.message(request)?;
        let mut sender = self.connect().await?;
        let response = sender.send_request(message).await.map_err(|error| self.told(&error))?;
        Ok((sender, response))
    }

    async fn connect(&self) -> Result<Sender, Error> {
        let connecting = dial::dial(&self.settings.origin, &self.settings.tls);
        let stream = self.within(self.settings.connect_timeout, connecting).await?;
        let (sender, connection) = http1::Builder::new()
            .max_headers(HEADERS_MAX)
            .max_header_size(HEAD_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.told(&error))?;
        // Ends with its sender, or when the server closes. Its error reaches the request in flight, or,
        // when there is none, is the next request's to find.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }

    fn take_kept(&self) -> Option<Sender> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn message(&self, request: &Request) -> Result<http::Request<Full<Bytes>>, Error> {
        let unsound = |error: http::Error| Error::Request(error.to_string());
        let mut message = http::Request::builder()
            .method(&request.method)
            .uri(&request.target)
            .header(HOST, self.origin().authority())
            .header(USER_AGENT, concat!("gilmok/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(request.body.clone()))
            .map_err(unsound)?;
        message.headers_mut().extend(request.headers.clone());
        Ok(message)
    }

    fn told(&self, error: &hyper::Error) -> Error {
        if error.is_parse() {
            return Error::Malformed { origin: self.origin().clone(), reason: chain(error) };
        }
        self.unreachable(error)
    }

    fn unreachable(&self, error: &(dyn StdError + 'static)) -> Error {
        Error::Unreachable { origin: self.origin().clone(), reason: chain(error) }
    }
}

/// An answer that is read line by line.
#[derive(Debug)]
pub struct Lines {
    pub status: StatusCode,
    pub headers: HeaderMap,
    body: Incoming,
    /// What has been read and not yet given out.
    read: BytesMut,
    /// How much of `read` is known to have no line feed.
    searched: usize,
    idle_timeout: Duration,
    settings: Settings,
    /// Keeps the connection open.
    _sender: Sender,
}

impl Lines {
    /// The next line without its line feed, or nothing at the end of the answer; what follows the last line feed
    /// is a line if it is not empty.
    ///
    /// May be dropped and called again: nothing is lost.
    ///
    /// # Errors
    /// The connection ended early, was silent for too long, or the line is too long.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(end) = self.read[self.searched..].iter().position(|byte| *byte == b'\n') {
                let mut line = self.read.split_to(self.searched + end + 1);
                line.truncate(line.len() - 1);
                self.searched = 0;
                return Ok(Some(line.freeze()));
            }
            self.searched = self.read.len();
            let origin = || self.settings.origin.clone();
            let bytes_max = self.settings.body_bytes_max;
            if self.read.len() > bytes_max {
                return Err(Error::TooLarge { origin: origin(), bytes_max });
            }
            let frame = tokio::time::timeout(self.idle_timeout, self.body.frame())
                .await
                .map_err(|_| Error::TimedOut { origin: origin(), after: self.idle_timeout })?;
            match frame {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.read.extend_from_slice(data);
                    }
                }
                Some(Err(error)) => {
                    return Err(Error::Unreachable { origin: origin(), reason: chain(&error) });
                }
                None if self.read.is_empty() => return Ok(None),
                None => {
                    self.searched = 0;
                    return Ok(Some(self.read.split().freeze()));
                }
            }
        }
    }
}

/// An error with its causes, in one line.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
