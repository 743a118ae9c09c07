//! The bodies on their way to the caller: answers of our own and endpoints', with what must end with them.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::record::Record;
use crate::last_good::Recorder;
use crate::untaken;
use crate::upstream::pool::Lease;
use crate::upstream::upload::{IdleTimer, Rung};
use crate::upstream::version::{LASTING, Over};

/// An answer as it goes to the caller.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The proxy's own words, with the record of the request.
    Own { body: Option<Bytes>, trailers: Option<Box<HeaderMap>>, record: Option<Box<Record>> },
    /// An endpoint's.
    Relay(Box<Relay>),
}

/// A body that comes from an endpoint and goes to the caller.
#[derive(Debug)]
pub(crate) struct Relay {
    incoming: Incoming,
    /// Goes back to its pool once the answer was read to its end; closed otherwise.
    lease: Option<Lease>,
    record: Box<Record>,
    idle: IdleTimer,
    /// The end of its version's time, once it has lasted long enough to listen for it.
    over: Option<Over>,
    /// Takes the answer along, as the last good one.
    recorder: Option<Box<Recorder>>,
}

/// An answer that broke off. hyper then breaks the caller's stream off too, so that it never ends cleanly.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AnswerBroken {
    /// HTTP/2 callers are told the reason.
    #[error("the time of its version is over")]
    Drained(#[source] h2::Error),
    #[error("nothing came from the endpoint for the idle timeout")]
    Stalled,
    #[error("the endpoint broke off: {0}")]
    Upstream(#[from] hyper::Error),
}

impl Answer {
    /// The proxy's own words.
    pub(crate) fn own(body: Bytes, trailers: Option<Box<HeaderMap>>, record: Box<Record>) -> Self {
        Self::Own { body: Some(body), trailers, record: Some(record) }
    }

    /// The head is all that there is of it here.
    pub(crate) fn none() -> Self {
        Self::Own { body: None, trailers: None, record: None }
    }

    /// An endpoint's answer.
    pub(crate) fn relay(
        incoming: Incoming,
        lease: Lease,
        record: Box<Record>,
        idle: Duration,
        recorder: Option<Box<Recorder>>,
    ) -> Self {
        let idle = IdleTimer::ringing_early(idle, LASTING);
        let mut relay = Relay { incoming, lease: Some(lease), record, idle, over: None, recorder };
        if relay.incoming.is_end_stream() {
            relay.end();
        }
        Self::Relay(Box::new(relay))
    }
}

/// Reads a body that nobody wants, of at most so many bytes; whether it came to its end.
pub(super) async fn is_read_away(mut body: Incoming, most: usize) -> bool {
    let mut left = most;
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let Ok(frame) = frame else { return false };
        let length = frame.data_ref().map_or(0, |data| data.len());
        match left.checked_sub(length) {
            Some(rest) => left = rest,
            None => return false,
        }
    }
    true
}

impl Body for Answer {
    type Data = Bytes;
    type Error = AnswerBroken;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerBroken>>> {
        match self.get_mut() {
            Self::Own { body, trailers, record } => {
                let body = body.take().filter(|body| !body.is_empty());
                if let Some(mut record) = record.take() {
                    record.end(body.as_ref().map_or(0, |body| body.len() as u64));
                }
                let rest = || trailers.take().map(|trailers| Frame::trailers(*trailers));
                Poll::Ready(body.map(Frame::data).or_else(rest).map(Ok))
            }
            Self::Relay(relay) => relay.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own { body, trailers, .. } => {
                trailers.is_none() && body.as_ref().is_none_or(Bytes::is_empty)
            }
            Self::Relay(relay) => relay.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            // With trailers HTTP/1 needs chunks.
            Self::Own { trailers: Some(_), .. } => SizeHint::default(),
            Self::Own { body, .. } => SizeHint::with_exact(body.as_ref().map_or(0, |body| body.len() as u64)),
            Self::Relay(relay) => relay.incoming.size_hint(),
        }
    }
}

impl Relay {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, AnswerBroken>>> {
        untaken::asked();
        if self.record.is_over() {
            return Poll::Ready(Some(Err(self.drained())));
        }
        match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Pending => Poll::Ready(Some(Err(ready!(self.poll_broken(cx))))),
            Poll::Ready(None) => {
                self.end();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Ok(frame))) => {
                self.idle.moved();
                untaken::given(self.idle.limit());
                self.record.sent(frame.data_ref().map_or(0, |data| data.len() as u64));
                self.take_along(&frame);
                if let Some(trailers) = frame.trailers_ref() {
                    self.record.trailed(trailers);
                }
                if self.incoming.is_end_stream() {
                    self.end();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(broken))) => {
                self.record.broke_off();
                Poll::Ready(Some(Err(broken.into())))
            }
        }
    }

    /// Waits for what ends it while nothing comes.
    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<AnswerBroken> {
        loop {
            if let Some(over) = &mut self.over
                && Pin::new(over).poll(cx).is_ready()
            {
                return Poll::Ready(self.drained());
            }
            match ready!(self.idle.poll_rung(cx)) {
                Rung::Early => self.over = self.record.over(),
                Rung::Expired => {
                    self.record.broke_off();
                    return Poll::Ready(AnswerBroken::Stalled);
                }
            }
        }
    }

    /// Not the endpoint's fault, and nobody's failure.
    fn drained(&self) -> AnswerBroken {
        self.record.drained();
        AnswerBroken::Drained(h2::Reason::CANCEL.into())
    }

    fn take_along(&mut self, frame: &Frame<Bytes>) {
        match (&mut self.recorder, frame.data_ref()) {
            (None, _) => {}
            (Some(recorder), Some(data)) => recorder.data(data),
            // An answer without its trailers would be another one.
            (Some(_), None) => self.recorder = None,
        }
    }

    /// The whole answer was read: the connection may serve the next request.
    fn end(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
            self.record.ended();
            if let Some(recorder) = self.recorder.take() {
                recorder.finish();
            }
        }
    }
}
