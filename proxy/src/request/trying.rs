//! One try at one endpoint, watched from its begin to its end: it is counted, and its breaker and its endpoint's ejection hear of it, once.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use gilmok_config::failure::{Failure, FailureSet};
use http::{HeaderMap, Response, StatusCode};
use tokio::time::Instant;

use super::deadline::{Deadline, Expired};
use crate::breaker::{Breaker, Pass, Verdict};
use crate::clock;
use crate::metrics::Outcome;
use crate::upstream::endpoint::EndpointState;
use crate::upstream::service::Upstream;
use crate::upstream::version::{LASTING, Over};

/// A try under way. Dropped, it was cancelled; whatever becomes of it is reported exactly once.
#[derive(Debug)]
pub(super) struct Trying<'t> {
    upstream: &'t Upstream,
    pub(super) endpoint: &'t Arc<EndpointState>,
    worker: usize,
    began: Instant,
    guard: Option<Guard>,
    /// What is still to be watched for.
    per_try_timeout: Option<Duration>,
    slow_call: Option<Duration>,
    /// How often it was looked at since it may be slow.
    looks: u32,
    /// The end of its version's time, once it has lasted long enough to listen for it.
    over: Option<Over>,
    /// Whether it may be given up for a fallback: it is safe, and there is one.
    has_stand_in: bool,
    outcome: Outcome,
    verdict: Verdict,
    /// When it ended, where that is known: one reading of the clock less.
    ended: Option<Instant>,
}

/// The breaker that let a call through.
#[derive(Debug)]
pub(super) struct Guard {
    pub(super) breaker: Arc<Breaker>,
    pub(super) pass: Pass,
}

impl<'t> Trying<'t> {
    pub(super) fn new(
        upstream: &'t Upstream,
        endpoint: &'t Arc<EndpointState>,
        worker: usize,
        began: Instant,
        guard: Option<Guard>,
        is_safe: bool,
    ) -> Self {
        let slow_call = guard.as_ref().and_then(|guard| guard.breaker.policy().slow_call);
        let gone = upstream.failures().has(Failure::Cancelled);
        Self {
            upstream,
            endpoint,
            worker,
            began,
            guard,
            per_try_timeout: upstream.policy.retry.per_try_timeout,
            slow_call,
            looks: 0,
            over: None,
            has_stand_in: is_safe && !upstream.policy.fallback.is_empty(),
            outcome: Outcome::Cancelled,
            verdict: if gone { Verdict::Failure } else { Verdict::Neutral },
            ended: None,
        }
    }

    /// When it has to be looked at next.
    pub(super) fn next_alarm(&self, deadline: &Deadline) -> Instant {
        let timeout = self.per_try_timeout.map(|timeout| deadline.since(self.began) + timeout);
        let slow = self.slow_call.map(|slow| deadline.slow_since(self.began) + slow * (self.looks + 1));
        let lasting = if self.over.is_none() { Some(self.began + LASTING) } else { None };
        timeout.into_iter().chain(slow).chain(lasting).fold(deadline.next_look(), Instant::min)
    }

    /// Looks at it: whether its time is up, and whether it is slow by now.
    pub(super) fn ring(&mut self, deadline: &Deadline, now: Instant) -> Result<(), Expired> {
        if self.over.is_none() && self.began + LASTING <= now {
            self.over = Some(self.endpoint.version.over());
        }
        if self.note_slow(deadline, now) {
            return Err(Expired::Service);
        }
        if let Some(expired) = deadline.expired(now) {
            return Err(expired);
        }
        let is_over = |limit| deadline.since(self.began) + limit <= now;
        if self.per_try_timeout.is_some_and(is_over) { Err(Expired::Service) } else { Ok(()) }
    }

    /// Ready when its version's time is over.
    pub(super) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.over.as_mut().map_or(Poll::Pending, |over| Pin::new(over).poll(cx))
    }

    /// Looks whether it is slow by now, and tells the breaker once. Whether that ends it: where something stands in,
    /// nobody waits for a slow call to what others are refused.
    fn note_slow(&mut self, deadline: &Deadline, now: Instant) -> bool {
        let (Some(slow_call), Some(guard)) = (self.slow_call, &mut self.guard) else { return false };
        if deadline.slow_since(self.began) + slow_call * (self.looks + 1) > now {
            return false;
        }
        self.looks += 1;
        if self.looks == 1 {
            guard.breaker.slow(&mut guard.pass, clock::ms_of(now), fastrand::f64());
        }
        if !self.has_stand_in {
            self.slow_call = None;
        }
        self.has_stand_in && guard.breaker.is_open()
    }

    /// The head of an answer is there.
    pub(super) fn answered<B>(&mut self, response: &Response<B>, deadline: &Deadline) {
        if self.slow_call.is_some() && self.looks == 0 {
            // It may have become slow in the moment in which it was answered.
            let now = Instant::now();
            let _it_is_answered = self.note_slow(deadline, now);
            self.ended = Some(now);
        }
        let is_failure = has_answer(self.upstream.failures(), response.status(), response.headers());
        self.outcome = Outcome::Answered;
        self.verdict = if is_failure { Verdict::Failure } else { Verdict::Success };
    }

    /// A pooled connection turned out to be closed; the try goes on, on another one.
    pub(super) fn connection_was_stale(&self) {
        self.endpoint.series.attempt(self.worker, Outcome::StaleConnection);
    }

    /// It brought nothing.
    pub(super) fn failed(&mut self, outcome: Outcome, failure: Option<Failure>) {
        self.outcome = outcome;
        // Between two requests the endpoint may close a connection at any time.
        let is_stale = outcome == Outcome::StaleConnection;
        let counts = !is_stale && failure.is_some_and(|failure| self.upstream.failures().has(failure));
        self.verdict = if counts { Verdict::Failure } else { Verdict::Neutral };
    }
}

impl Drop for Trying<'_> {
    fn drop(&mut self) {
        self.endpoint.series.attempt(self.worker, self.outcome);
        if self.guard.is_none() && self.upstream.policy.outlier_detection.is_none() {
            return;
        }
        let now_ms = clock::ms_of(self.ended.unwrap_or_else(Instant::now));
        self.upstream.endpoint_outcome(self.endpoint, self.verdict, now_ms, fastrand::f64());
        if let Some(Guard { breaker, pass }) = self.guard.take() {
            breaker.report(pass, self.verdict, now_ms, fastrand::f64());
        }
    }
}

/// Whether an answer of the application is one of these failures.
pub(super) fn has_answer(set: &FailureSet, status: StatusCode, headers: &HeaderMap) -> bool {
    if set.has_status(status.as_u16()) {
        return true;
    }
    // gRPC tells a failure that has no message in the head: "Trailers-Only".
    is_grpc_failure(set, headers)
}

/// Whether a head or trailers tell one of gRPC's codes that are failures.
pub(super) fn is_grpc_failure(set: &FailureSet, headers: &HeaderMap) -> bool {
    set.asks_grpc() && grpc_status(headers).is_some_and(|code| set.has_grpc(code))
}

fn grpc_status(headers: &HeaderMap) -> Option<u8> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}
