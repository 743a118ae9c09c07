//! A downstream socket: plays back what was read to find out the protocol, notes activity, and closes politely.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use crate::caller::Activity;
use crate::tls::Stream;

/// The preface that begins HTTP/2 with prior knowledge (RFC 9113, 3.4).
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long and how much is read on after our last byte. Closing with unread bytes in the kernel's
/// buffer resets the connection, and the reset can overtake the answer.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 1 << 20;

/// A downstream socket.
#[derive(Debug)]
pub(super) struct Socket {
    stream: Stream<TcpStream>,
    /// What was read already and not played back yet.
    head: [u8; PREFACE.len()],
    head_length: usize,
    head_at: usize,
    activity: Arc<Activity>,
    /// Whether bytes between requests are the beginning of a head, as in HTTP/1.
    times_heads: bool,
    lingering: Option<Lingering>,
}

#[derive(Debug)]
struct Lingering {
    until: Pin<Box<Sleep>>,
    bytes: usize,
}

impl Socket {
    pub(super) fn new(
        stream: Stream<TcpStream>,
        head: &[u8],
        activity: Arc<Activity>,
        times_heads: bool,
    ) -> Self {
        let mut played = [0; PREFACE.len()];
        played[..head.len()].copy_from_slice(head);
        let head_length = head.len();
        Self { stream, head: played, head_length, head_at: 0, activity, times_heads, lingering: None }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.head_at < this.head_length {
            let head = &this.head[this.head_at..this.head_length];
            let taken = head.len().min(buf.remaining());
            buf.put_slice(&head[..taken]);
            this.head_at += taken;
            // What follows goes into the same buffer: a buffer that holds only these few bytes would be grown
            // for the rest, and each idle connection would keep the larger one.
            if this.head_at == this.head_length && buf.remaining() > 0 {
                // A failure shows again with the next read, after what was read is taken.
                drop(this.poll_stream(cx, buf));
            }
            return Poll::Ready(Ok(()));
        }
        this.poll_stream(cx, buf)
    }
}

impl Socket {
    fn poll_stream(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        if self.times_heads && buf.filled().len() > before {
            self.activity.received();
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, data);
        this.activity.writing(written.is_pending());
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, data);
        this.activity.writing(written.is_pending());
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    /// Half-closes, then reads on for a moment.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.lingering.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
        }
        let lingering =
            this.lingering.get_or_insert_with(|| Lingering { until: Box::pin(sleep(LINGER)), bytes: 0 });
        let mut scrap = [0_u8; 4096];
        loop {
            let mut buf = ReadBuf::new(&mut scrap);
            match Pin::new(&mut this.stream).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    lingering.bytes += buf.filled().len();
                    if lingering.bytes > LINGER_BYTES_MAX {
                        return Poll::Ready(Ok(()));
                    }
                }
                // The other side has closed as well, or is gone.
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return lingering.until.as_mut().poll(cx).map(Ok),
            }
        }
    }
}
