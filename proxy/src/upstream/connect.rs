//! Opening connections to endpoints: TCP or unix socket, within the connect timeout.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::endpoint::Peer;
use crate::gather;

/// An open connection to an endpoint.
#[derive(Debug)]
pub(crate) enum Socket {
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
    /// No way there.
    Unreachable,
}

/// Opens a connection.
///
/// # Errors
/// Why there is none. Safe to drop at any time: the socket closes with the future.
pub(crate) async fn connect(peer: &Peer, within: Duration) -> Result<Socket, ConnectError> {
    match timeout(within, open(peer)).await {
        Err(_elapsed) => Err(ConnectError::Timeout),
        Ok(Ok(socket)) => Ok(socket),
        Ok(Err(error)) => Err(match error.kind() {
            // A unix socket that is not there is refused like a port that nobody listens on.
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => ConnectError::Refused,
            io::ErrorKind::TimedOut => ConnectError::Timeout,
            _ => ConnectError::Unreachable,
        }),
    }
}

async fn open(peer: &Peer) -> io::Result<Socket> {
    match peer {
        Peer::Tcp(address) => {
            let socket = TcpStream::connect(address).await?;
            // Without it streamed frames wait up to 40 ms for an acknowledgement.
            socket.set_nodelay(true)?;
            Ok(Socket::Tcp(socket))
        }
        Peer::Unix(path) => Ok(Socket::Unix(UnixStream::connect(path).await?)),
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Unix(socket) => Pin::new(socket).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_write(cx, data),
            Self::Unix(socket) => Pin::new(socket).poll_write(cx, data),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(socket) => gather::poll_write(Pin::new(socket), cx, data),
            Self::Unix(socket) => gather::poll_write(Pin::new(socket), cx, data),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_flush(cx),
            Self::Unix(socket) => Pin::new(socket).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
        }
    }
}
