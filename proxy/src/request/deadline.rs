//! How long a request may take: what its service allows, what its caller waits for, and what one try may take of it.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request};
use tokio::time::{Instant, Sleep};

use super::head::Patience;
use super::headers::{GILMOK_TIMEOUT, GRPC_TIMEOUT};
use super::trying::Trying;
use crate::upstream::service::Upstream;
use crate::upstream::upload::{Progress, Upload, UploadFault};

/// How long a caller waits for the head of its answer, retries included.
#[derive(Debug)]
pub(crate) struct Deadline {
    begin: Instant,
    /// From the end of the request.
    limit: Duration,
    /// When the caller itself gives up, as it said.
    caller: Option<Instant>,
    /// Whether it said so in gRPC's words, which the endpoint is then told too.
    in_grpc: bool,
    upload: Option<Rc<Progress>>,
}

/// The time is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expired {
    /// The caller's own.
    Caller,
    /// That in which the endpoint has to take something of the upload.
    Idle,
    /// That of a version to which no request may go any more.
    Version,
    /// The service's, or that of one try.
    Service,
}

impl Deadline {
    pub(super) fn new(
        begin: Instant,
        limit: Duration,
        patience: Patience,
        upload: Option<Rc<Progress>>,
    ) -> Self {
        let caller = patience.least().and_then(|least| begin.checked_add(least));
        Self { begin, limit, caller, in_grpc: patience.grpc.is_some(), upload }
    }

    /// Another one for asking another service, whose own limit begins now. The caller's stays.
    pub(super) fn anew(&self, limit: Duration) -> Self {
        Self { begin: Instant::now(), limit, upload: self.upload.clone(), ..*self }
    }

    pub(super) fn begin(&self) -> Instant {
        self.begin
    }

    /// Whether the caller has sent its whole request.
    pub(super) fn upload_ended(&self) -> bool {
        self.upload.as_ref().is_none_or(|upload| upload.ended().is_some())
    }

    pub(super) fn forget_upload(&self) {
        if let Some(upload) = &self.upload {
            upload.forget();
        }
    }

    /// The copy of a request with its body, if that can be sent once more.
    pub(super) fn restore(&self, copy: Request<Upload>) -> Option<Request<Upload>> {
        match &self.upload {
            None => Some(copy),
            Some(upload) => upload.again().map(|body| copy.map(|_no_body| body)),
        }
    }

    pub(super) fn upload_fault(&self) -> Option<UploadFault> {
        self.upload.as_ref().and_then(|upload| upload.fault())
    }

    /// When the time is up if the upload ends now.
    pub(super) fn at(&self) -> Instant {
        let at = self.since(self.begin) + self.limit;
        self.caller.map_or(at, |caller| caller.min(at))
    }

    /// When it has to be looked at next: the endpoint may stop taking an upload at any time.
    pub(super) fn next_look(&self) -> Instant {
        match self.upload.as_ref().filter(|upload| upload.ended().is_none()) {
            None => self.at(),
            Some(upload) => (upload.untaken().unwrap_or_else(Instant::now) + upload.idle()).min(self.at()),
        }
    }

    /// From when on a step is waited for: not before the upload has ended.
    pub(super) fn since(&self, begin: Instant) -> Instant {
        match &self.upload {
            None => begin,
            Some(upload) => upload.ended().unwrap_or_else(Instant::now).max(begin),
        }
    }

    /// From when on the endpoint is slow: since the upload has ended, or since it takes nothing of it.
    pub(super) fn slow_since(&self, begin: Instant) -> Instant {
        let untaken = self.upload.as_ref().and_then(|upload| upload.untaken());
        untaken.map_or_else(|| self.since(begin), |untaken| untaken.max(begin))
    }

    /// What is over at this time.
    pub(super) fn expired(&self, now: Instant) -> Option<Expired> {
        if self.caller.is_some_and(|caller| caller <= now) {
            Some(Expired::Caller)
        } else if self.at() <= now {
            Some(Expired::Service)
        } else {
            let upload = self.upload.as_ref()?;
            (upload.untaken()? + upload.idle() <= now).then_some(Expired::Idle)
        }
    }

    /// Tells the endpoint how long it is waited for: each hop takes off what it has used up.
    pub(super) fn tell(&self, headers: &mut HeaderMap, upstream: &Upstream, is_first: bool) {
        if is_first && self.caller.is_none() && self.limit == upstream.policy.request_timeout {
            headers.insert(GILMOK_TIMEOUT, upstream.timeout_header.clone());
            return;
        }
        let left = self.at().saturating_duration_since(Instant::now()).as_millis();
        // A millisecond is the least: 0 would say that nobody waits.
        let left = u64::try_from(left).unwrap_or(u64::MAX).max(1);
        headers.insert(GILMOK_TIMEOUT, HeaderValue::from(left));
        if self.in_grpc {
            // At most eight digits (gRPC over HTTP/2, Timeout).
            let value = if left < 100_000_000 { format!("{left}m") } else { format!("{}S", left / 1_000) };
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(GRPC_TIMEOUT, value);
            }
        }
    }

    /// Runs a step of a try until the time is up. While the upload is on its way it is not.
    pub(super) async fn run<F: Future>(
        &self,
        trying: &mut Trying<'_>,
        mut timer: Pin<&mut Sleep>,
        mut step: Pin<&mut F>,
    ) -> Result<F::Output, Expired> {
        timer.as_mut().reset(trying.next_alarm(self));
        poll_fn(|cx| {
            if let Poll::Ready(done) = step.as_mut().poll(cx) {
                return Poll::Ready(Ok(done));
            }
            while timer.as_mut().poll(cx).is_ready() {
                if let Err(expired) = trying.ring(self, Instant::now()) {
                    return Poll::Ready(Err(expired));
                }
                timer.as_mut().reset(trying.next_alarm(self));
            }
            trying.poll_over(cx).map(|()| Err(Expired::Version))
        })
        .await
    }
}
