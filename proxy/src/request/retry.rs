//! Whether a failed try is followed by another one, when, and how many may be under way at once.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use gilmok_config::retry::RetryPolicy;
use http::header::RETRY_AFTER;
use http::{HeaderMap, Method};
use tokio::time::{Instant, sleep, timeout_at};

use super::deadline::Deadline;
use super::fault::Fault;
use super::tried::Failed;
use super::trying::has_answer;
use crate::upstream::service::{Shared, Upstream};

/// A retry of what was not sent, that finds the budget used up, waits this long, with jitter, and asks so many times.
const BUDGET_WAIT: Duration = Duration::from_millis(5);
const BUDGET_WAITS_MAX: u32 = 20;
/// The longest pause before the first try of what was sent; doubled before each further one. A pause is anything from
/// nothing to this, so that callers who failed together do not come again together (AWS, "Exponential backoff and
/// jitter": full jitter).
const PAUSE: Duration = Duration::from_millis(25);
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// Tries of one request beyond the first.
#[derive(Debug)]
pub(super) struct Retries<'u> {
    policy: &'u RetryPolicy,
    shared: &'u Shared,
    made: u32,
    permit: Option<Permit<'u>>,
}

impl<'u> Retries<'u> {
    pub(super) fn of(upstream: &'u Upstream) -> Self {
        Self { policy: &upstream.policy.retry, shared: &upstream.shared, made: 0, permit: None }
    }

    /// Whether what failed may be tried once more at all.
    pub(super) fn may_follow(&self, failed: &Failed, method: &Method) -> bool {
        // Tries again stay with the version, and an owner that was waited for is not waited for once more.
        !matches!(failed.fault, Fault::Drained | Fault::Held)
            && self.made < self.policy.attempts
            && (!failed.sent || (method.is_idempotent() && self.is_listed(failed)))
    }

    fn is_listed(&self, failed: &Failed) -> bool {
        match &failed.answered {
            Some(answered) => {
                has_answer(&self.policy.on, answered.response.status(), answered.response.headers())
            }
            None => failed.fault.failure().is_some_and(|failure| self.policy.on.has(failure)),
        }
    }

    /// Waits until the next try may begin; false when there is none: no budget, or no time left.
    pub(super) async fn wait(&mut self, failed: &Failed, deadline: &Deadline) -> bool {
        if self.permit.is_none() {
            // What never reached anyone is worth a moment; what failed is answered at once when the budget is used up.
            let waits = if failed.sent { 1 } else { BUDGET_WAITS_MAX };
            self.permit = Permit::wait(self.policy, self.shared, deadline, waits).await;
        }
        if self.permit.is_none() {
            return false;
        }
        let pause = self.pause(failed);
        let at = deadline.at();
        if Instant::now() + pause >= at {
            return false;
        }
        if !pause.is_zero() {
            sleep(pause).await;
        }
        self.made += 1;
        true
    }

    /// What was never sent goes elsewhere at once.
    fn pause(&self, failed: &Failed) -> Duration {
        let asked = failed.answered.as_ref().and_then(|answered| retry_after(answered.response.headers()));
        let most = PAUSE.saturating_mul(1 << self.made.min(8)).min(PAUSE_MAX);
        let jittered = if failed.sent { most.mul_f64(fastrand::f64()) } else { Duration::ZERO };
        asked.map_or(jittered, |asked| asked + jittered)
    }
}

/// How long the application wants to be left alone (RFC 9110, 10.2.3): seconds, or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let told = headers.get(RETRY_AFTER)?.to_str().ok()?;
    if let Ok(seconds) = told.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(told).ok()?;
    Some(at.duration_since(SystemTime::now()).unwrap_or_default())
}

/// One of the tries beyond the first that may be in flight.
#[derive(Debug)]
struct Permit<'s>(&'s Shared);

impl<'s> Permit<'s> {
    /// Asks so many times.
    async fn wait(policy: &RetryPolicy, shared: &'s Shared, deadline: &Deadline, times: u32) -> Option<Self> {
        for time in 1..=times {
            let share = u64::from(shared.in_flight.load(Relaxed)) * u64::from(policy.budget_percent) / 100;
            let most = share.max(u64::from(policy.budget_min));
            if u64::from(shared.retries_in_flight.fetch_add(1, Relaxed)) < most {
                return Some(Self(shared));
            }
            shared.retries_in_flight.fetch_sub(1, Relaxed);
            if most == 0 || time == times {
                break;
            }
            let pause = BUDGET_WAIT.mul_f64(0.5 + fastrand::f64());
            timeout_at(deadline.at(), sleep(pause)).await.ok()?;
        }
        None
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.retries_in_flight.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_application_asks_for_is_read() {
        let told = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(told("3"), Some(Duration::from_secs(3)));
        assert_eq!(told("Fri, 31 Dec 1999 23:59:59 GMT"), Some(Duration::ZERO));
        assert_eq!(told("soon"), None);
    }
}
