//! Opening connections to endpoints: TCP or unix socket, encrypted where that is so, within the connect timeout.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::endpoint::Peer;
use super::unanswered::Unanswered;
use crate::tls::{Dial, DialError, Stream};

/// An open connection to an endpoint.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: Stream<Raw>,
    /// Whether everything that the endpoint sent was read.
    is_read: bool,
    /// What is to be kept of requests; only on connections that serve one after the other.
    unanswered: Option<Arc<Unanswered>>,
    /// Told once, when the endpoint first says something or closes.
    heard: Option<Arc<Notify>>,
}

#[derive(Debug)]
enum Raw {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Why there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectError {
    /// Somebody is there and says no (or nobody listens).
    Refused,
    /// Nobody answered in time.
    Timeout,
    /// Somebody is there and does not agree upon TLS.
    Tls,
    /// No way there.
    Unreachable,
    /// Somebody is there who is not who it should be, or cannot prove it.
    Untrusted,
}

/// Opens a connection.
///
/// # Errors
/// Why there is none. Safe to drop at any time: the socket closes with the future.
pub(crate) async fn connect(
    peer: &Peer,
    dial: Option<&Dial>,
    within: Duration,
) -> Result<Socket, ConnectError> {
    let stream = timeout(within, open(peer, dial)).await.map_err(|_elapsed| ConnectError::Timeout)??;
    Ok(Socket { stream, is_read: false, unanswered: None, heard: None })
}

async fn open(peer: &Peer, dial: Option<&Dial>) -> Result<Stream<Raw>, ConnectError> {
    let raw = open_raw(peer).await.map_err(|error| match error.kind() {
        // A unix socket that is not there is refused like a port that nobody listens on.
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => ConnectError::Refused,
        io::ErrorKind::TimedOut => ConnectError::Timeout,
        _ => ConnectError::Unreachable,
    })?;
    let Some(dial) = dial else { return Ok(Stream::Plain(raw)) };
    let encrypted = dial.connect(peer, raw).await.map_err(|error| match error {
        DialError::Certificate => ConnectError::Untrusted,
        DialError::Closed | DialError::Protocol => ConnectError::Tls,
    })?;
    Ok(Stream::Tls(encrypted))
}

async fn open_raw(peer: &Peer) -> io::Result<Raw> {
    match peer {
        Peer::Tcp(address) => {
            let socket = TcpStream::connect(address).await?;
            // Without it streamed frames wait up to 40 ms for an acknowledgement.
            socket.set_nodelay(true)?;
            Ok(Raw::Tcp(socket))
        }
        Peer::Unix(path) => Ok(Raw::Unix(UnixStream::connect(path).await?)),
    }
}

impl Socket {
    /// Keeps requests for as long as nothing comes back.
    pub(super) fn keep_unanswered(&mut self) -> Arc<Unanswered> {
        Arc::clone(self.unanswered.get_or_insert_default())
    }

    /// Tells when the endpoint first says something or closes.
    pub(super) fn tell_when_heard(&mut self) -> Arc<Notify> {
        Arc::clone(self.heard.get_or_insert_default())
    }

    fn wrote(&self, parts: &[io::IoSlice<'_>], written: &Poll<io::Result<usize>>) {
        if let (Some(unanswered), Poll::Ready(Ok(length))) = (&self.unanswered, written) {
            unanswered.wrote(parts, *length);
        }
    }

    /// An endpoint that takes no more may have answered before: hyper would end the connection at the error and never
    /// read that answer. So what cannot be written any more is thrown away, until reading has told how the connection
    /// ended: with what the endpoint said last, then with its end.
    fn read_on(&self, written: io::Result<usize>, length: impl FnOnce() -> usize) -> io::Result<usize> {
        match written {
            Err(error) if !self.is_read && is_cut(&error) => Ok(length()),
            written => written,
        }
    }
}

fn is_cut(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buf);
        if polled.is_ready() {
            this.is_read |= buf.filled().len() == before;
            if let Some(heard) = this.heard.take() {
                heard.notify_one();
            }
            if let Some(unanswered) = this.unanswered.as_ref().filter(|_| !this.is_read) {
                unanswered.answered();
            }
        }
        polled
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, data);
        let written = written.map(|written| this.read_on(written, || data.len()));
        this.wrote(&[io::IoSlice::new(data)], &written);
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, data);
        let length = || data.iter().map(|part| part.len()).sum();
        let written = written.map(|written| this.read_on(written, length));
        this.wrote(data, &written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

impl AsyncRead for Raw {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Raw {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, data),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, data),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, data),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, data),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
