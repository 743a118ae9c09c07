//! Ends HTTP/2 connections whose callers send more frames than requests can need: resets, pings, settings.
//!
//! h2 bounds what such floods make it keep: streams reset before they were taken up, header blocks without an end,
//! tiny DATA frames, answers that nobody reads. What it lets through costs no memory but time, for ever; that is counted
//! here, by the heads of the frames as they pass.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::socket::PREFACE;
use crate::clock;

/// Frames in a second that carry neither a head nor a body nor a window: pings, settings, priorities, unknown ones.
/// Callers that measure their bandwidth send hundreds.
const IDLE_FRAMES_MAX: u32 = 10_000;
/// Streams in a second that the caller may reset, when they are more than half of those that it opens.
const RESETS_MAX: u32 = 500;
/// In which time the frames are counted.
const WINDOW_MS: u64 = 1_000;

const FRAME_HEAD_BYTES: usize = 9;
const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const RST_STREAM: u8 = 0x3;
const WINDOW_UPDATE: u8 = 0x8;
const CONTINUATION: u8 = 0x9;

/// An HTTP/2 connection whose incoming frames are counted.
#[derive(Debug)]
pub(super) struct Calm<T> {
    io: T,
    frames: Frames,
}

/// Where in the stream of frames reading is, and what came in this window.
#[derive(Debug)]
struct Frames {
    /// Bytes up to the next frame.
    skip: usize,
    head: [u8; FRAME_HEAD_BYTES],
    head_length: usize,
    since_ms: u64,
    idle: u32,
    opened: u32,
    reset: u32,
}

/// The caller sends frames for their own sake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Flood {
    #[error("more than {IDLE_FRAMES_MAX} frames in a second that are for no request")]
    IdleFrames,
    #[error("more than {RESETS_MAX} resets in a second, of more than half of the streams")]
    Resets,
}

impl<T> Calm<T> {
    /// A connection that begins with the preface.
    pub(super) fn new(io: T) -> Self {
        Self { io, frames: Frames::new(clock::now_ms()) }
    }
}

impl Frames {
    fn new(now_ms: u64) -> Self {
        let head = [0; FRAME_HEAD_BYTES];
        Self { skip: PREFACE.len(), head, head_length: 0, since_ms: now_ms, idle: 0, opened: 0, reset: 0 }
    }

    /// Takes the next bytes of the connection. The clock is only looked at when there were many frames.
    fn take(&mut self, mut bytes: &[u8], now_ms: impl Fn() -> u64) -> Result<(), Flood> {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len());
                self.skip -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let taken = (FRAME_HEAD_BYTES - self.head_length).min(bytes.len());
            self.head[self.head_length..self.head_length + taken].copy_from_slice(&bytes[..taken]);
            self.head_length += taken;
            bytes = &bytes[taken..];
            if self.head_length == FRAME_HEAD_BYTES {
                self.head_length = 0;
                let [high, middle, low, kind, ..] = self.head;
                self.skip = u32::from_be_bytes([0, high, middle, low]) as usize;
                self.count(kind, &now_ms)?;
            }
        }
        Ok(())
    }

    fn count(&mut self, kind: u8, now_ms: impl Fn() -> u64) -> Result<(), Flood> {
        match kind {
            HEADERS => self.opened += 1,
            RST_STREAM => self.reset += 1,
            // h2 bounds those that are empty or have no end; windows move as fast as bodies do.
            DATA | CONTINUATION | WINDOW_UPDATE => {}
            _ => self.idle += 1,
        }
        if self.idle <= IDLE_FRAMES_MAX && self.reset <= RESETS_MAX {
            return Ok(());
        }
        let now_ms = now_ms();
        if now_ms.saturating_sub(self.since_ms) < WINDOW_MS {
            if self.idle > IDLE_FRAMES_MAX {
                return Err(Flood::IdleFrames);
            }
            if self.reset > self.opened / 2 {
                return Err(Flood::Resets);
            }
        }
        (self.since_ms, self.idle, self.opened, self.reset) = (now_ms, 0, 0, 0);
        Ok(())
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Calm<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        Poll::Ready(this.frames.take(&buf.filled()[before..], clock::now_ms).map_err(io::Error::other))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Calm<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: u8 = 0x6;

    fn frames(kind: u8, payload: usize, count: u32) -> Vec<u8> {
        let mut frame = vec![0, 0, u8::try_from(payload).unwrap(), kind, 0, 0, 0, 0, 1];
        frame.resize(FRAME_HEAD_BYTES + payload, 0x6);
        frame.repeat(count as usize)
    }

    fn begun() -> Frames {
        let mut frames = Frames::new(0);
        frames.take(PREFACE, || 0).unwrap();
        frames
    }

    #[test]
    fn frames_are_counted_however_they_are_cut() {
        let bytes = [frames(PING, 8, 3), frames(HEADERS, 100, 2), frames(DATA, 0, 5)].concat();
        for size in 1..40 {
            let mut frames = begun();
            for chunk in bytes.chunks(size) {
                frames.take(chunk, || 0).unwrap();
            }
            assert_eq!((frames.idle, frames.opened, frames.reset), (3, 2, 0), "chunks of {size}");
        }
    }

    #[test]
    fn a_flood_within_a_second_is_told_and_the_same_number_over_time_is_none() {
        let pings = frames(PING, 8, IDLE_FRAMES_MAX);
        let mut frames = begun();
        frames.take(&pings, || 999).unwrap();
        assert_eq!(frames.take(&pings[..17], || 999), Err(Flood::IdleFrames));
        let mut frames = begun();
        for second in 1..10 {
            frames.take(&pings, || second * WINDOW_MS).unwrap();
        }
    }

    #[test]
    fn resets_are_a_flood_when_they_are_most_of_what_comes() {
        let both = |opened, reset| [frames(HEADERS, 9, opened), frames(RST_STREAM, 4, reset)].concat();
        assert_eq!(begun().take(&both(RESETS_MAX + 1, RESETS_MAX + 1), || 0), Err(Flood::Resets));
        assert_eq!(begun().take(&both(RESETS_MAX, RESETS_MAX), || 0), Ok(()));
        assert_eq!(begun().take(&both(3 * RESETS_MAX, RESETS_MAX + 1), || 0), Ok(()));
    }
}
