//! A small HTTP/1.1 client for what the proxy itself says: to control planes and to a Consul agent.
//!
//! One server, one kept connection, every wait and every body bounded.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use gilmok_config::address::Address;
use gilmok_config::wire::LINE_BYTES_MAX;
use http::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue, USER_AGENT};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::settings::Server;
use crate::tls::{Mesh, Tls, connect_server};

/// From the name's resolution to the open connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// From the request to the end of its answer, connecting included; for a stream, to the answer's head.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer that is not a stream, in bytes: problems of a registration, nothing larger.
const ANSWER_BYTES_MAX: usize = 256 << 10;
/// Longest token file, in bytes.
const TOKEN_BYTES_MAX: usize = 8 << 10;
/// How much of a refusal is repeated in a message, in bytes.
const SAID_BYTES_MAX: usize = 300;

/// Why there is no answer.
#[derive(Debug, Error)]
pub(crate) enum HttpError {
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    #[error("the connection broke: {0}")]
    Broken(#[from] hyper::Error),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    #[error("answered {status}{}{said}", if .said.is_empty() { "" } else { ": " })]
    Status { status: StatusCode, said: String },
    #[error("no TLS: {0}")]
    Tls(String),
    #[error("the token file {}: {why}", .file.display())]
    Token { file: PathBuf, why: String },
    #[error("cannot be asked: {0}")]
    Request(#[from] http::Error),
}

/// How a server wants to be told the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenHeader {
    Bearer,
    Consul,
}

/// A client of one server.
#[derive(Debug)]
pub(crate) struct Client {
    server: Server,
    /// Read again for each request, so that a new token needs no restart.
    token_file: Option<PathBuf>,
    token_header: TokenHeader,
    /// Whose identity is shown over TLS.
    shown: Option<Arc<Tls>>,
    kept: Option<Connection>,
}

/// An open connection; its task ends with it.
#[derive(Debug)]
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    task: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Client {
    pub(crate) fn new(server: Server, token_file: Option<PathBuf>, token_header: TokenHeader) -> Self {
        Self { server, token_file, token_header, shown: None, kept: None }
    }

    /// Shows the identity of this process, where it has one and the server is called over TLS.
    pub(crate) fn showing(self, tls: &Arc<Tls>) -> Self {
        Self { shown: Some(Arc::clone(tls)), ..self }
    }

    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    /// Sends a request and reads its answer; anything but 2xx is an error.
    /// Every request of ours can be repeated, so one whose kept connection was closed is sent once more.
    ///
    /// Dropped half-way, the connection is closed with it.
    ///
    /// # Errors
    /// Why there is no answer, or what was answered instead of 2xx.
    pub(crate) async fn send(
        &mut self,
        method: Method,
        target: &str,
        body: Option<Bytes>,
    ) -> Result<Bytes, HttpError> {
        let answered = timeout(ANSWER_TIMEOUT, self.send_untimed(method, target, body)).await;
        answered.unwrap_or(Err(HttpError::Timeout(ANSWER_TIMEOUT)))
    }

    async fn send_untimed(
        &mut self,
        method: Method,
        target: &str,
        body: Option<Bytes>,
    ) -> Result<Bytes, HttpError> {
        if let Some(mut kept) = self.kept.take().filter(|kept| !kept.sender.is_closed()) {
            let request = self.request(&method, target, body.clone())?;
            if let Ok(answer) = exchange(&mut kept, request).await {
                return self.finish(kept, answer);
            }
        }
        let identity = self.identity();
        // Boxed: the future of whoever asks would be long, and connections are few.
        let shown = Box::pin(self.ask_anew(identity.clone(), &method, target, body.clone()));
        let bare = Box::pin(self.ask_anew(None, &method, target, body));
        let (fresh, answer) = self.shown_or_bare(identity.is_some(), shown, bare).await?;
        self.finish(fresh, answer)
    }

    /// Keeps the connection unless the answer was a refusal: what was shown on it may be why, and there may be something better
    /// to show by the next time.
    fn finish(
        &mut self,
        connection: Connection,
        (status, body): (StatusCode, Bytes),
    ) -> Result<Bytes, HttpError> {
        if !status.is_success() {
            return Err(HttpError::Status { status, said: shown(&body) });
        }
        self.kept = Some(connection);
        Ok(body)
    }

    /// Asks over a connection of its own.
    async fn ask_anew(
        &self,
        identity: Option<Arc<Mesh>>,
        method: &Method,
        target: &str,
        body: Option<Bytes>,
    ) -> Result<(Connection, (StatusCode, Bytes)), HttpError> {
        let mut fresh = self.connect(identity).await?;
        let answer = exchange(&mut fresh, self.request(method, target, body)?).await?;
        Ok((fresh, answer))
    }

    /// The identity that is shown to the server.
    fn identity(&self) -> Option<Arc<Mesh>> {
        self.server.tls.as_ref().and(self.shown.as_ref()).and_then(|tls| tls.identity())
    }

    /// What came of asking with an identity; where it is one and there is no answer, of asking without it. A server that does
    /// not take a certificate ends the connection, although a token might have been enough; with TLS 1.3 it does so only
    /// after the handshake has ended for the client.
    async fn shown_or_bare<T>(
        &self,
        is_shown: bool,
        shown: impl Future<Output = Result<T, HttpError>>,
        bare: impl Future<Output = Result<T, HttpError>>,
    ) -> Result<T, HttpError> {
        let error = match shown.await {
            Err(error @ (HttpError::Tls(_) | HttpError::Broken(_))) if is_shown => error,
            answered => return answered,
        };
        let again = bare.await;
        if !matches!(again, Ok(_) | Err(HttpError::Status { .. })) {
            return Err(error);
        }
        let server = &self.server;
        tracing::warn!(
            "{server} does not take the certificate of this proxy, and was asked without it: {error}"
        );
        again
    }

    /// Opens a stream of lines on a connection of its own.
    ///
    /// # Errors
    /// Why there is none, or what was answered instead of 200.
    pub(crate) async fn open(&self, target: &str) -> Result<Lines, HttpError> {
        let identity = self.identity();
        let shown = Box::pin(self.open_as(identity.clone(), target));
        let bare = Box::pin(self.open_as(None, target));
        let opening = self.shown_or_bare(identity.is_some(), shown, bare);
        timeout(ANSWER_TIMEOUT, opening).await.unwrap_or(Err(HttpError::Timeout(ANSWER_TIMEOUT)))
    }

    async fn open_as(&self, identity: Option<Arc<Mesh>>, target: &str) -> Result<Lines, HttpError> {
        let mut connection = self.connect(identity).await?;
        let request = self.request(&Method::GET, target, None)?;
        let response = connection.sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body();
        if status == StatusCode::OK {
            return Ok(Lines { body, pending: BytesMut::new(), searched: 0, _connection: connection });
        }
        let said = read_whole(body).await.unwrap_or_default();
        Err(HttpError::Status { status, said: shown(&said) })
    }

    fn request(
        &self,
        method: &Method,
        target: &str,
        body: Option<Bytes>,
    ) -> Result<Request<Full<Bytes>>, HttpError> {
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .header(HOST, self.server.authority.as_str())
            .header(USER_AGENT, concat!("gilmok-proxy/", env!("CARGO_PKG_VERSION")));
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some((name, value)) = self.token()? {
            request = request.header(name, value);
        }
        Ok(request.body(Full::new(body.unwrap_or_default()))?)
    }

    fn token(&self) -> Result<Option<(HeaderName, HeaderValue)>, HttpError> {
        let Some(file) = &self.token_file else { return Ok(None) };
        let fault = |why: String| HttpError::Token { file: file.clone(), why };
        let text = std::fs::read_to_string(file).map_err(|error| fault(error.to_string()))?;
        let token = text.trim();
        if token.is_empty() || token.len() > TOKEN_BYTES_MAX {
            return Err(fault(format!("holds no token of 1 to {TOKEN_BYTES_MAX} bytes")));
        }
        let (name, text) = match self.token_header {
            TokenHeader::Bearer => (http::header::AUTHORIZATION, format!("Bearer {token}")),
            TokenHeader::Consul => (HeaderName::from_static("x-consul-token"), token.to_owned()),
        };
        let mut value = HeaderValue::try_from(text).map_err(|_| fault("holds no token".to_owned()))?;
        value.set_sensitive(true);
        Ok(Some((name, value)))
    }

    async fn connect(&self, identity: Option<Arc<Mesh>>) -> Result<Connection, HttpError> {
        let connecting = async {
            match &self.server.address {
                Address::Name { host, port } => {
                    let stream = TcpStream::connect((&**host, *port)).await.map_err(HttpError::Connect)?;
                    self.over(host, identity, stream).await
                }
                Address::Socket(socket) => {
                    let stream = TcpStream::connect(socket).await.map_err(HttpError::Connect)?;
                    self.over(&socket.ip().to_string(), identity, stream).await
                }
                Address::Unix(path) => {
                    handshake(UnixStream::connect(path).await.map_err(HttpError::Connect)?).await
                }
            }
        };
        timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or(Err(HttpError::Timeout(CONNECT_TIMEOUT)))
    }

    /// Over TLS or in the clear, as the server says.
    async fn over(
        &self,
        host: &str,
        identity: Option<Arc<Mesh>>,
        stream: TcpStream,
    ) -> Result<Connection, HttpError> {
        let Some(tls) = &self.server.tls else { return handshake(stream).await };
        let stream = connect_server(host, tls.ca_file.as_deref(), identity.as_deref(), stream).await;
        handshake(stream.map_err(HttpError::Tls)?).await
    }
}

async fn handshake<S>(socket: S) -> Result<Connection, HttpError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
    // Aborted when the `Connection` is dropped; what went wrong is told to the sender.
    let task = tokio::spawn(async move { drop(connection.await) });
    Ok(Connection { sender, task: task.abort_handle() })
}

async fn exchange(
    connection: &mut Connection,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), HttpError> {
    connection.sender.ready().await?;
    let response = connection.sender.send_request(request).await?;
    let status = response.status();
    Ok((status, read_whole(response.into_body()).await?))
}

async fn read_whole(body: Incoming) -> Result<Bytes, HttpError> {
    match Limited::new(body, ANSWER_BYTES_MAX).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) => match error.downcast::<hyper::Error>() {
            Ok(error) => Err(HttpError::Broken(*error)),
            Err(_too_long) => Err(HttpError::TooLong(ANSWER_BYTES_MAX)),
        },
    }
}

/// What of somebody else's words may stand in a message: bounded, one line.
pub(super) fn shown(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(SAID_BYTES_MAX)]);
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A stream of lines.
#[derive(Debug)]
pub(crate) struct Lines {
    body: Incoming,
    pending: BytesMut,
    /// Bytes of `pending` that hold no line feed; a long line is searched once, not once for each chunk.
    searched: usize,
    _connection: Connection,
}

impl Lines {
    /// A line that has come already, without its line feed.
    pub(crate) fn ready(&mut self) -> Option<Bytes> {
        match self.pending[self.searched..].iter().position(|byte| *byte == b'\n') {
            Some(at) => {
                let mut line = self.pending.split_to(self.searched + at + 1);
                self.searched = 0;
                line.truncate(line.len() - 1);
                Some(line.freeze())
            }
            None => {
                self.searched = self.pending.len();
                None
            }
        }
    }

    /// The next line without its line feed; `None` at the end. A last line without a line feed is not told:
    /// it was cut off. Nothing is lost when this is dropped half-way.
    ///
    /// # Errors
    /// When the stream breaks, or a line is longer than the wire allows.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, HttpError> {
        loop {
            if let Some(line) = self.ready() {
                return Ok(Some(line));
            }
            if self.pending.len() > LINE_BYTES_MAX {
                return Err(HttpError::TooLong(LINE_BYTES_MAX));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.pending.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that reads one head at a time and answers with the next of these texts; then it closes.
    async fn scripted(answers: &'static [&'static str]) -> (Client, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server: Server = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let task = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut heads = Vec::new();
            for answer in answers {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(socket.read_u8().await.unwrap());
                }
                heads.push(String::from_utf8(head).unwrap());
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
            heads
        });
        (Client::new(server, None, TokenHeader::Bearer), task)
    }

    #[tokio::test]
    async fn a_connection_is_kept_and_a_refusal_is_told() {
        let (mut client, server) = scripted(&[
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            "HTTP/1.1 409 Conflict\r\ncontent-length: 9\r\n\r\nnot\n now\n",
        ])
        .await;
        assert_eq!(&client.send(Method::GET, "/a", None).await.unwrap()[..], b"ok");
        let error = client.send(Method::DELETE, "/b", None).await.unwrap_err();
        assert_eq!(error.to_string(), "answered 409 Conflict: not  now");
        let heads = server.await.unwrap();
        assert!(heads[0].starts_with("GET /a HTTP/1.1\r\n") && heads[1].starts_with("DELETE /b"));
    }

    #[tokio::test]
    async fn lines_come_one_by_one_and_a_cut_one_is_not_told() {
        let (client, _server) = scripted(&[
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\none\n\r\n6\r\ntwo\nth\r\n3\r\nree\r\n0\r\n\r\n",
        ])
        .await;
        let mut lines = client.open("/feed").await.unwrap();
        assert_eq!(lines.next().await.unwrap().unwrap(), "one");
        assert_eq!(lines.next().await.unwrap().unwrap(), "two");
        assert_eq!(lines.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_token_is_read_anew_for_each_request_and_never_shown() {
        let dir = crate::testing::Folder::new("token");
        let file = dir.join("token");
        let client =
            Client::new("http://127.0.0.1:1".parse().unwrap(), Some(file.clone()), TokenHeader::Consul);
        assert!(matches!(client.token(), Err(HttpError::Token { .. })));
        std::fs::write(&file, "secret\n").unwrap();
        let (name, value) = client.token().unwrap().unwrap();
        assert_eq!((name.as_str(), value.to_str().unwrap()), ("x-consul-token", "secret"));
        assert!(!format!("{value:?}").contains("secret"));
    }
}
