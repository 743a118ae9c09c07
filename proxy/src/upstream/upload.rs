//! The bodies on their way to an endpoint: they stream, are bounded in idle time and size, and say how far they are.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

/// A request's body as it goes to an endpoint.
#[derive(Debug)]
pub(crate) enum Upload {
    Empty,
    Stream(Box<UploadStream>),
}

/// A body that comes from the caller and goes to an endpoint.
#[derive(Debug)]
pub(crate) struct UploadStream {
    incoming: Incoming,
    progress: Rc<Progress>,
    idle: IdleTimer,
    left: Option<u64>,
}

/// How far an upload is; shared by the body, which the connection owns, and the request that waits for its answer.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    ended: Cell<Option<Instant>>,
    fault: Cell<Option<UploadFault>>,
    bytes: Cell<u64>,
}

/// Why an upload broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UploadFault {
    /// The caller left.
    CallerLeft,
    /// Nothing came from the caller for the idle timeout.
    Stalled,
    /// It is longer than the proxy takes.
    TooLarge,
}

/// An upload that broke off, as hyper is told; the request looks at [`Progress`].
#[derive(Debug, thiserror::Error)]
#[error("the upload broke off")]
pub(crate) struct UploadBroken;

impl Progress {
    /// When the last byte of the request was handed on; `None` while it is on its way.
    pub(crate) fn ended(&self) -> Option<Instant> {
        self.ended.get()
    }

    pub(crate) fn fault(&self) -> Option<UploadFault> {
        self.fault.get()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    fn end(&self) {
        if self.ended.get().is_none() {
            self.ended.set(Some(Instant::now()));
        }
    }
}

impl Upload {
    /// The body of a request; `None` of the progress means that there is none.
    pub(crate) fn new(incoming: Incoming, idle: Duration, most: Option<u64>) -> (Self, Option<Rc<Progress>>) {
        if incoming.is_end_stream() {
            return (Self::Empty, None);
        }
        let progress = Rc::new(Progress::default());
        let stream =
            UploadStream { incoming, progress: Rc::clone(&progress), idle: IdleTimer::new(idle), left: most };
        (Self::Stream(Box::new(stream)), Some(progress))
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = UploadBroken;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadBroken>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Stream(stream) => stream.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Stream(stream) => stream.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Stream(stream) => stream.incoming.size_hint(),
        }
    }
}

impl UploadStream {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadBroken>>> {
        let fault = match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Pending => {
                ready!(self.idle.poll_expired(cx));
                UploadFault::Stalled
            }
            Poll::Ready(None) => {
                self.progress.end();
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Ok(frame))) => {
                self.idle.moved();
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                self.progress.bytes.set(self.progress.bytes.get() + length);
                if self.incoming.is_end_stream() {
                    self.progress.end();
                }
                match &mut self.left {
                    Some(left) if *left < length => UploadFault::TooLarge,
                    Some(left) => {
                        *left -= length;
                        return Poll::Ready(Some(Ok(frame)));
                    }
                    None => return Poll::Ready(Some(Ok(frame))),
                }
            }
            Poll::Ready(Some(Err(_broken))) => UploadFault::CallerLeft,
        };
        self.progress.fault.set(Some(fault));
        Poll::Ready(Some(Err(UploadBroken)))
    }
}

/// Ends a body in which nothing moves. Costs nothing while frames are ready: the timer is made at the first wait.
#[derive(Debug)]
pub(crate) struct IdleTimer {
    limit: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
    moved_at: Option<Instant>,
}

impl IdleTimer {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, sleep: None, moved_at: None }
    }

    pub(crate) fn moved(&mut self) {
        if self.sleep.is_some() {
            self.moved_at = Some(Instant::now());
        }
    }

    pub(crate) fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.sleep.get_or_insert_with(|| Box::pin(sleep(self.limit)));
        loop {
            ready!(timer.as_mut().poll(cx));
            // Moving does not touch the timer; it is set on when it rings.
            match self.moved_at.take() {
                Some(moved_at) => timer.as_mut().reset(moved_at + self.limit),
                None => return Poll::Ready(()),
            }
        }
    }
}
