//! Ejection: an endpoint whose calls fail in a row is left out for a while, within a share of its service's endpoints.
//!
//! The time and the dice are arguments. What is noted of every call is in atomics; what is decided, which is rare, is
//! decided under one lock for each service, so that two workers together never leave out more than may be.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gilmok_config::outlier::OutlierDetection;

use crate::breaker::{Row, Verdict};

/// Ejections vary by so much, so that endpoints which went together do not come back together.
const JITTER: f64 = 0.1;
/// Whoever comes back begins with a small share, also where `slow_start` is `0s`.
pub(crate) const RETURN_RAMP: Duration = Duration::from_secs(5);
/// When one was refused, others are not looked at for so long: looking at many endpoints costs, and when all of them
/// fail there is nothing to win.
const FULL_PAUSE_MS: u64 = 100;

/// What is noted of one endpoint. Relaxed atomics, each a number of its own; all but `row` and `succeeded_at_ms` are
/// written by those who decide.
#[derive(Debug, Default)]
pub(crate) struct Ejection {
    /// Failures in a row. It goes on over an ejection: whoever comes back and fails at once goes again.
    row: Row,
    /// Left out until then; 0 is not left out.
    until_ms: AtomicU64,
    /// Ejections in a row, as far as they are not forgotten.
    times: AtomicU32,
    /// When it came back; 0 is never.
    returned_at_ms: AtomicU64,
    /// When a call last succeeded: of two bad endpoints, the one that did so later is the better one.
    succeeded_at_ms: AtomicU64,
}

/// What is noted of a service over snapshots.
#[derive(Debug, Default)]
pub(crate) struct Ejections {
    /// A mutex: held for one look at the endpoints, when a row is full or somebody's time is over.
    deciding: Mutex<()>,
    /// Counts up whenever somebody is left out or comes back, so that every snapshot of the service hears of it.
    changes: AtomicU32,
    /// Until then whoever would go stays unseen, because there was no place a moment ago.
    full_until_ms: AtomicU64,
    total: AtomicU64,
    refused: AtomicU64,
}

/// The right to decide for a service.
#[derive(Debug)]
pub(crate) struct Deciding<'e> {
    ejections: &'e Ejections,
    _lock: MutexGuard<'e, ()>,
}

/// How many of so many endpoints may be left out at once: the share, rounded down, but one where there are several
/// and the share is not nothing; so never all of them unless the share is 100 %.
pub(crate) fn most(policy: &OutlierDetection, endpoints: usize) -> usize {
    let least = usize::from(endpoints > 1 && policy.max_ejected.get() > 0);
    policy.max_ejected.of(endpoints).max(least)
}

/// What becomes of an endpoint whose row is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    Eject,
    /// It goes and the ejected one of this place comes back, which is better.
    Swap(usize),
    Refuse,
}

/// `succeeded_at_ms` is of the one that would go, `ejected` of those that are left out.
fn decide(succeeded_at_ms: u64, ejected: &[u64], most: usize) -> Decision {
    if ejected.len() < most {
        return Decision::Eject;
    }
    match ejected.iter().enumerate().max_by_key(|(_, at)| **at) {
        Some((best, at)) if *at > succeeded_at_ms => Decision::Swap(best),
        Some(_) | None => Decision::Refuse,
    }
}

/// How long an ejection lasts that is the `times`th in a row.
fn length_ms(policy: &OutlierDetection, times: u32, dice: f64) -> u64 {
    let length = policy.base_ejection.saturating_mul(times).min(policy.max_ejection);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float cast saturates")]
    let length_ms = (length.as_secs_f64() * 1_000.0 * (1.0 + JITTER * (2.0 * dice - 1.0))) as u64;
    length_ms.max(1)
}

/// Which ejection in a row the next one is: every `base_ejection` without one forgets one.
fn next_times(policy: &OutlierDetection, times: u32, since_return_ms: u64) -> u32 {
    let base_ms = ms(policy.base_ejection).max(1);
    let forgotten = u32::try_from(since_return_ms / base_ms).unwrap_or(u32::MAX);
    // Beyond `max_ejection` there is nothing to remember.
    let longest = u32::try_from(ms(policy.max_ejection).div_ceil(base_ms)).unwrap_or(u32::MAX);
    times.saturating_sub(forgotten).saturating_add(1).min(longest.max(1))
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Ejection {
    /// Until when it is left out; `None` when it is not.
    pub(crate) fn until_ms(&self) -> Option<u64> {
        Some(self.until_ms.load(Relaxed)).filter(|until| *until > 0)
    }

    pub(crate) fn is_ejected(&self) -> bool {
        self.until_ms().is_some()
    }

    /// When it came back from its last ejection; 0 is never.
    pub(crate) fn returned_at_ms(&self) -> u64 {
        self.returned_at_ms.load(Relaxed)
    }

    /// Takes what one call came to; whether the row is full.
    pub(crate) fn note(&self, verdict: Verdict, policy: &OutlierDetection, now_ms: u64) -> bool {
        match verdict {
            Verdict::Neutral => false,
            Verdict::Success => {
                // Read first: a line that is only read is not taken from the other workers.
                if self.succeeded_at_ms.load(Relaxed) != now_ms {
                    self.succeeded_at_ms.store(now_ms, Relaxed);
                }
                self.row.good_head();
                false
            }
            // What was under way when it was left out says nothing new.
            Verdict::Failure => !self.is_ejected() && self.row.fail() >= policy.consecutive_failures,
        }
    }

    /// Takes a failure that was told behind a good head; whether the row is full.
    pub(crate) fn note_late(&self, policy: &OutlierDetection) -> bool {
        !self.is_ejected() && self.row.fail_late() >= policy.consecutive_failures
    }

    /// An answer with a good head is whole.
    pub(crate) fn whole(&self) {
        self.row.whole();
    }

    /// Goes on as what was there before.
    pub(crate) fn follow(&self, before: &Self) {
        self.row.set(before.row.length());
        self.times.store(before.times.load(Relaxed), Relaxed);
        for (new, old) in [
            (&self.until_ms, &before.until_ms),
            (&self.returned_at_ms, &before.returned_at_ms),
            (&self.succeeded_at_ms, &before.succeeded_at_ms),
        ] {
            new.store(old.load(Relaxed), Relaxed);
        }
    }

    fn leave(&self, policy: &OutlierDetection, now_ms: u64, dice: f64) {
        let since_return = now_ms.saturating_sub(self.returned_at_ms.load(Relaxed));
        let times = next_times(policy, self.times.load(Relaxed), since_return);
        self.times.store(times, Relaxed);
        self.row.set(policy.consecutive_failures - 1);
        self.until_ms.store(now_ms.saturating_add(length_ms(policy, times, dice)), Relaxed);
    }

    fn come_back(&self, now_ms: u64) {
        self.returned_at_ms.store(now_ms, Relaxed);
        self.until_ms.store(0, Relaxed);
    }

    /// Comes back before its time, which makes the next ejection no longer than this one.
    fn come_back_early(&self, now_ms: u64) {
        self.times.store(self.times.load(Relaxed).saturating_sub(1), Relaxed);
        self.row.set(0);
        self.come_back(now_ms);
    }
}

impl Ejections {
    /// Endpoints that were left out.
    pub(crate) fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }

    /// Endpoints that stayed, or came back early, because more than the share would have been left out.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    /// Changes with everything that is decided.
    pub(crate) fn changes(&self) -> u32 {
        self.changes.load(Relaxed)
    }

    /// Refuses at once where there was no place a moment ago.
    pub(crate) fn is_full(&self, endpoint: &Ejection, now_ms: u64) -> bool {
        let is_full = now_ms < self.full_until_ms.load(Relaxed);
        if is_full {
            self.refuse(endpoint);
        }
        is_full
    }

    fn refuse(&self, endpoint: &Ejection) {
        endpoint.row.set(0);
        self.refused.fetch_add(1, Relaxed);
    }

    pub(crate) fn decide(&self) -> Deciding<'_> {
        // Nothing is half done under it that a panic could leave.
        let lock = self.deciding.lock().unwrap_or_else(PoisonError::into_inner);
        Deciding { ejections: self, _lock: lock }
    }
}

impl Deciding<'_> {
    /// Leaves `endpoint` out, or refuses to; for how many milliseconds. `candidates` are the endpoints of its service
    /// that would be called if nobody were left out.
    pub(crate) fn judge(
        &self,
        policy: &OutlierDetection,
        endpoint: &Ejection,
        candidates: &[&Ejection],
        now_ms: u64,
        dice: f64,
    ) -> Option<u64> {
        // Another worker may have decided meanwhile, or a success come between.
        let is_full = endpoint.row.length() >= policy.consecutive_failures;
        if !is_full || endpoint.is_ejected() || !candidates.iter().any(|it| std::ptr::eq(*it, endpoint)) {
            return None;
        }
        let ejected: Vec<&Ejection> = candidates.iter().filter(|it| it.is_ejected()).copied().collect();
        let succeeded: Vec<u64> = ejected.iter().map(|it| it.succeeded_at_ms.load(Relaxed)).collect();
        let most = most(policy, candidates.len());
        match decide(endpoint.succeeded_at_ms.load(Relaxed), &succeeded, most) {
            Decision::Eject => {}
            Decision::Swap(best) => {
                self.ejections.refused.fetch_add(1, Relaxed);
                ejected[best].come_back_early(now_ms);
            }
            Decision::Refuse => {
                self.ejections.full_until_ms.store(now_ms.saturating_add(FULL_PAUSE_MS), Relaxed);
                self.ejections.refuse(endpoint);
                return None;
            }
        }
        endpoint.leave(policy, now_ms, dice);
        self.ejections.total.fetch_add(1, Relaxed);
        self.ejections.changes.fetch_add(1, Relaxed);
        endpoint.until_ms().map(|until| until.saturating_sub(now_ms))
    }

    /// Lets those back whose time is over and, where fewer may be left out than before, the best of the others.
    /// `policy` is `None` where nobody is left out any more.
    pub(crate) fn settle(&self, policy: Option<&OutlierDetection>, candidates: &[&Ejection], now_ms: u64) {
        let mut ejected: Vec<&Ejection> = candidates.iter().filter(|it| it.is_ejected()).copied().collect();
        let before = ejected.len();
        let is_over = |it: &Ejection| it.until_ms().is_some_and(|until| until <= now_ms);
        ejected.retain(|it| {
            let stays = policy.is_some() && !is_over(it);
            if !stays {
                it.come_back(now_ms);
            }
            stays
        });
        let most = policy.map_or(0, |policy| most(policy, candidates.len()));
        if ejected.len() > most {
            ejected.sort_by_key(|it| it.succeeded_at_ms.load(Relaxed));
            for better in ejected.drain(most..) {
                better.come_back_early(now_ms);
                self.ejections.refused.fetch_add(1, Relaxed);
            }
        }
        if ejected.len() < before {
            self.ejections.full_until_ms.store(0, Relaxed);
            self.ejections.changes.fetch_add(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
