//! An HTTP/2 client with prior knowledge, and the bytes of single frames for clients that misbehave.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::eventually::soon;

/// One HTTP/2 connection of a client.
#[derive(Debug)]
pub struct H2Caller {
    sender: SendRequest<Bytes>,
    driving: JoinHandle<Result<(), h2::Error>>,
}

/// A whole answer over HTTP/2.
#[derive(Clone, Debug, Default)]
pub struct H2Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: HeaderMap,
}

impl H2Answer {
    /// The first value of a header or, as gRPC's trailers-only answers have it, of a trailer.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.headers.get(name).or_else(|| self.trailers.get(name)).and_then(|value| value.to_str().ok())
    }
}

impl H2Caller {
    /// Connects and speaks HTTP/2 at once.
    ///
    /// # Errors
    /// When nobody listens there or the handshake fails.
    pub async fn connect(address: SocketAddr) -> Result<Self> {
        let io = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
        io.set_nodelay(true)?;
        let (sender, connection) = soon("the HTTP/2 handshake", h2::client::handshake(io)).await?;
        // Ends with its connection, at the latest when this caller is dropped.
        let driving = tokio::spawn(connection);
        Ok(Self { sender, driving })
    }

    /// The handle for requests that a test sends frame by frame.
    ///
    /// # Errors
    /// When the connection is over.
    pub async fn sender(&self) -> Result<SendRequest<Bytes>> {
        Ok(soon("room for a stream", self.sender.clone().ready()).await?)
    }

    /// Sends a whole request and reads the whole answer.
    ///
    /// # Errors
    /// When the stream or the connection ends before.
    pub async fn ask(
        &self,
        request: Request<()>,
        body: &[u8],
        trailers: Option<HeaderMap>,
    ) -> Result<H2Answer> {
        let mut sender = self.sender().await?;
        let is_empty = body.is_empty() && trailers.is_none();
        let (answer, mut sending) = sender.send_request(request, is_empty)?;
        if !is_empty {
            sending.send_data(Bytes::copy_from_slice(body), trailers.is_none())?;
            if let Some(trailers) = trailers {
                sending.send_trailers(trailers)?;
            }
        }
        soon("an answer over HTTP/2", read(answer)).await
    }

    /// A GET of `path` for `host`.
    ///
    /// # Errors
    /// When the stream or the connection ends before.
    pub async fn get(&self, host: &str, path: &str) -> Result<H2Answer> {
        self.ask(Request::get(format!("http://{host}{path}")).body(())?, b"", None).await
    }

    /// Waits for the end of the connection.
    ///
    /// # Errors
    /// How it ended, when not cleanly.
    pub async fn ended(self) -> Result<()> {
        drop(self.sender);
        Ok(soon("the end of the connection", self.driving).await??)
    }
}

/// Reads an answer to its end.
///
/// # Errors
/// When the stream ends before.
pub async fn read(answer: h2::client::ResponseFuture) -> Result<H2Answer> {
    let (head, mut stream) = answer.await?.into_parts();
    let mut body = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    let trailers = stream.trailers().await?.unwrap_or_default();
    Ok(H2Answer { status: head.status.as_u16(), headers: head.headers, body, trailers })
}

/// What begins HTTP/2 with prior knowledge.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Kinds of frames (RFC 9113, section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    Data = 0x0,
    Headers = 0x1,
    Priority = 0x2,
    RstStream = 0x3,
    Settings = 0x4,
    Ping = 0x6,
    GoAway = 0x7,
    WindowUpdate = 0x8,
    Continuation = 0x9,
}

/// `END_STREAM` on DATA and HEADERS, `ACK` on SETTINGS and PING.
pub const END_STREAM: u8 = 0x1;
/// `END_HEADERS` on HEADERS and CONTINUATION.
pub const END_HEADERS: u8 = 0x4;

/// The bytes of one frame.
///
/// # Panics
/// When the payload is longer than a frame can be.
#[must_use]
pub fn frame(kind: Frame, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a payload of less than 16 MiB").to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind as u8, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header block of a GET of `path` for `host`, without compression.
#[must_use]
pub fn get_block(host: &str, path: &str) -> Vec<u8> {
    // Indexed fields of the static table: `:method: GET` is 2, `:scheme: http` is 6.
    let mut block = vec![0x82, 0x86];
    block.extend(literal(0x01, host));
    block.extend(literal(0x04, path));
    block
}

/// A literal without indexing whose name is in the static table.
///
/// # Panics
/// When the value is longer than 126 bytes.
#[must_use]
pub fn literal(index: u8, value: &str) -> Vec<u8> {
    let length = u8::try_from(value.len()).ok().filter(|length| *length < 127);
    let mut bytes = vec![index, length.expect("a short value")];
    bytes.extend(value.as_bytes());
    bytes
}
