//! The bodies on their way to an endpoint: they stream, are bounded in idle time and size, and say how far they are.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use gilmok_config::flag::FlagSet;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

use crate::claims;

/// Longer bodies are not kept to be sent once more.
pub(crate) const KEPT_BYTES_MAX: usize = 64 << 10;

thread_local! {
    /// What this worker keeps now: bodies stay on the worker's thread.
    static WORKER_KEPT_BYTES: Cell<usize> = const { Cell::new(0) };
}

/// A request's body as it goes to an endpoint.
#[derive(Debug)]
pub(crate) enum Upload {
    /// One that was kept, once more.
    Again(VecDeque<Bytes>),
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
    /// Whose headers no trailer may be.
    flags: Option<Arc<FlagSet>>,
}

/// How far an upload is; shared by the body, which the connection owns, and the request that waits for its answer.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    ended: Cell<Option<Instant>>,
    fault: Cell<Option<UploadFault>>,
    bytes: Cell<u64>,
    /// How long the endpoint may take nothing of it.
    idle: Duration,
    /// Since when it has taken nothing of what is there; `None` while the caller is waited for.
    untaken: Cell<Option<Instant>>,
    kept: RefCell<Option<Kept>>,
}

/// The whole of a short body as far as it went, for as long as it may have to be sent once more.
#[derive(Debug)]
struct Kept {
    parts: VecDeque<Bytes>,
    bytes: usize,
    /// What this worker may keep of all bodies.
    worker_bytes_max: usize,
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

/// An upload that broke off, as hyper is told; the request looks at [`Progress`]. HTTP/2 endpoints are told the reason.
#[derive(Debug, thiserror::Error)]
#[error("the upload broke off")]
pub(crate) struct UploadBroken(#[source] h2::Error);

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

    /// How long the endpoint may take nothing of it.
    pub(crate) fn idle(&self) -> Duration {
        self.idle
    }

    /// Since when the endpoint has taken nothing although there is more.
    pub(crate) fn untaken(&self) -> Option<Instant> {
        self.untaken.get().filter(|_| self.ended().is_none())
    }

    /// The body once more, if it has gone out to its end and was kept.
    pub(crate) fn again(&self) -> Option<Upload> {
        let mut kept = self.kept.take().filter(|_| self.ended().is_some() && self.fault().is_none())?;
        Some(Upload::Again(std::mem::take(&mut kept.parts)))
    }

    /// It will not have to be sent once more.
    pub(crate) fn forget(&self) {
        drop(self.kept.take());
    }

    fn keep(&self, frame: &Frame<Bytes>) {
        let mut kept = self.kept.borrow_mut();
        // Trailers of requests are too rare to be kept.
        let fits = kept.as_mut().zip(frame.data_ref()).is_some_and(|(kept, data)| kept.take(data));
        if !fits {
            *kept = None;
        }
    }

    fn end(&self) {
        if self.ended.get().is_none() {
            self.ended.set(Some(Instant::now()));
        }
    }
}

impl Kept {
    fn new(worker_bytes_max: usize) -> Self {
        Self { parts: VecDeque::new(), bytes: 0, worker_bytes_max }
    }

    fn take(&mut self, data: &Bytes) -> bool {
        let fits = self.bytes + data.len() <= KEPT_BYTES_MAX
            && WORKER_KEPT_BYTES.get() + data.len() <= self.worker_bytes_max;
        if fits {
            self.bytes += data.len();
            WORKER_KEPT_BYTES.set(WORKER_KEPT_BYTES.get() + data.len());
            self.parts.push_back(data.clone());
        }
        fits
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        WORKER_KEPT_BYTES.set(WORKER_KEPT_BYTES.get() - self.bytes);
    }
}

impl Upload {
    /// Keeps a short body while it goes out, for [`Progress::again`]; whether there is anything to be kept of it.
    /// A worker keeps at most so many bytes of all bodies together.
    pub(crate) fn keep(&self, worker_bytes_max: usize) -> bool {
        match self {
            Self::Again(_) => false,
            Self::Empty => true,
            Self::Stream(stream) => {
                let is_short = stream.incoming.size_hint().lower() <= KEPT_BYTES_MAX as u64;
                *stream.progress.kept.borrow_mut() = is_short.then(|| Kept::new(worker_bytes_max));
                is_short
            }
        }
    }

    /// The body of a request; `None` of the progress means that there is none.
    pub(crate) fn new(incoming: Incoming, idle: Duration, most: Option<u64>) -> (Self, Option<Rc<Progress>>) {
        if incoming.is_end_stream() {
            return (Self::Empty, None);
        }
        let progress = Rc::new(Progress { idle, ..Progress::default() });
        let (idle, flags) = (IdleTimer::new(idle), None);
        let stream = UploadStream { incoming, progress: Rc::clone(&progress), idle, left: most, flags };
        (Self::Stream(Box::new(stream)), Some(progress))
    }

    /// Lets no trailer pass that is a header of one of these flags.
    pub(crate) fn claims_no_flags(mut self, flags: Option<Arc<FlagSet>>) -> Self {
        if let Self::Stream(stream) = &mut self {
            stream.flags = flags.filter(|set| !set.single_headers().is_empty());
        }
        self
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
            Self::Again(parts) => Poll::Ready(parts.pop_front().map(|part| Ok(Frame::data(part)))),
            Self::Empty => Poll::Ready(None),
            Self::Stream(stream) => stream.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Again(parts) => parts.is_empty(),
            Self::Empty => true,
            Self::Stream(stream) => stream.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Again(parts) => SizeHint::with_exact(parts.iter().map(|part| part.len() as u64).sum()),
            Self::Empty => SizeHint::with_exact(0),
            Self::Stream(stream) => stream.incoming.size_hint(),
        }
    }
}

impl UploadStream {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadBroken>>> {
        // It is asked for more: what it was given before is on its way.
        self.progress.untaken.set(None);
        let fault = match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Pending => {
                ready!(self.idle.poll_expired(cx));
                UploadFault::Stalled
            }
            Poll::Ready(None) => {
                self.progress.end();
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Ok(mut frame))) => {
                if let Some(trailers) = frame.trailers_mut() {
                    claims::strip_trailers(trailers);
                    if let Some(set) = &self.flags {
                        claims::strip_flags(trailers, set, false);
                    }
                }
                self.idle.moved();
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                self.progress.bytes.set(self.progress.bytes.get() + length);
                self.progress.keep(&frame);
                self.progress.untaken.set(Some(Instant::now()));
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
        Poll::Ready(Some(Err(UploadBroken(h2::Reason::CANCEL.into()))))
    }
}

/// Ends a body in which nothing moves. Costs nothing while frames are ready: the timer is made at the first wait.
#[derive(Debug)]
pub(crate) struct IdleTimer {
    limit: Duration,
    /// Rings once before, for whoever does something about what lasts.
    early: Option<Duration>,
    sleep: Option<Pin<Box<Sleep>>>,
    moved_at: Option<Instant>,
}

impl IdleTimer {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, early: None, sleep: None, moved_at: None }
    }

    /// One that rings once when it has been waited for so long, whether anything moved or not.
    pub(crate) fn ringing_early(limit: Duration, early: Duration) -> Self {
        Self { early: Some(early), ..Self::new(limit) }
    }

    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    pub(crate) fn moved(&mut self) {
        if self.sleep.is_some() {
            self.moved_at = Some(Instant::now());
        }
    }

    pub(crate) fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while ready!(self.poll_rung(cx)) == Rung::Early {}
        Poll::Ready(())
    }

    /// What it rings for. To be polled again after it rang early.
    pub(crate) fn poll_rung(&mut self, cx: &mut Context<'_>) -> Poll<Rung> {
        let first = self.early.map_or(self.limit, |early| early.min(self.limit));
        let timer = self.sleep.get_or_insert_with(|| Box::pin(sleep(first)));
        loop {
            ready!(timer.as_mut().poll(cx));
            let early = self.early.take();
            // Moving does not touch the timer; it is set on when it rings.
            let still_since = match (self.moved_at.take(), early) {
                (Some(moved_at), _) => moved_at,
                (None, Some(early)) if early < self.limit => timer.deadline() - early,
                (None, _) => return Poll::Ready(Rung::Expired),
            };
            timer.as_mut().reset(still_since + self.limit);
            if early.is_some() {
                return Poll::Ready(Rung::Early);
            }
        }
    }
}

/// Why an [`IdleTimer`] rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rung {
    Early,
    /// Nothing has moved for the limit.
    Expired,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_bounded_for_a_body_and_for_a_worker() {
        const WORKER_BYTES_MAX: usize = 3 * KEPT_BYTES_MAX;
        let part = Bytes::from(vec![b'x'; KEPT_BYTES_MAX]);
        let mut kept = Kept::new(WORKER_BYTES_MAX);
        assert!(kept.take(&part) && !kept.take(&part.slice(..1)), "one body");
        let mut others = Vec::new();
        while WORKER_KEPT_BYTES.get() < WORKER_BYTES_MAX {
            let mut other = Kept::new(WORKER_BYTES_MAX);
            assert!(other.take(&part));
            others.push(other);
        }
        assert_eq!(others.len(), 2);
        assert!(!Kept::new(WORKER_BYTES_MAX).take(&part.slice(..1)), "all bodies");
        drop((kept, others));
        assert_eq!(WORKER_KEPT_BYTES.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_that_rings_early_expires_when_it_would_have() {
        let (limit, early) = (Duration::from_secs(10), Duration::from_secs(1));
        let expectations: [(_, _, Vec<(u128, Rung)>); 4] = [
            (limit, false, vec![(1_000, Rung::Early), (10_000, Rung::Expired)]),
            (limit, true, vec![(1_000, Rung::Early), (10_500, Rung::Expired)]),
            (early / 2, false, vec![(500, Rung::Expired)]),
            (early / 4, true, vec![(250, Rung::Early), (375, Rung::Expired)]),
        ];
        for (limit, moves, expected) in expectations {
            let begin = Instant::now();
            let mut timer = IdleTimer::ringing_early(limit, early);
            let mut rung = Vec::new();
            let at = limit.min(early) / 2;
            let polled = std::future::poll_fn(|cx| Poll::Ready(timer.poll_rung(cx).is_pending()));
            assert!(polled.await);
            tokio::time::sleep(at).await;
            if moves {
                timer.moved();
            }
            while rung.last().is_none_or(|(_, last)| *last != Rung::Expired) {
                let why = std::future::poll_fn(|cx| timer.poll_rung(cx)).await;
                // Tokio's timers are right to a millisecond.
                rung.push((begin.elapsed().as_millis() / 5 * 5, why));
            }
            assert_eq!(rung, expected, "{limit:?} {moves}");
        }
    }

    #[test]
    fn a_body_goes_again_only_when_all_of_it_was_kept() {
        let frame = |text: &'static str| Frame::data(Bytes::from_static(text.as_bytes()));
        let begun = || {
            let progress = Progress::default();
            *progress.kept.borrow_mut() = Some(Kept::new(KEPT_BYTES_MAX));
            progress.keep(&frame("hel"));
            progress
        };
        assert!(begun().again().is_none(), "it has not ended");
        let progress = begun();
        progress.keep(&frame("lo"));
        progress.end();
        let again = progress.again().expect("all of it is there");
        assert_eq!(again.size_hint().exact(), Some(5));
        assert!(progress.again().is_none(), "twice");
        let progress = begun();
        progress.keep(&Frame::trailers(http::HeaderMap::new()));
        progress.end();
        assert!(progress.again().is_none(), "its trailers are missing");
        let progress = begun();
        progress.end();
        progress.forget();
        assert!(progress.again().is_none(), "it was answered");
    }
}
