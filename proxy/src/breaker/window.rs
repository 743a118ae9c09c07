//! What calls came to in a sliding window of time: fixed buckets that all workers count into without locks.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Buckets of one window: an outcome counts for the window's length, give or take a tenth.
pub(super) const BUCKETS: u64 = 10;
const PLACES: usize = 10;

const COUNT_BITS: u32 = 24;
const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;

/// Outcomes of the last `BUCKETS` × `bucket_ms` milliseconds.
#[derive(Debug)]
pub(super) struct Window {
    bucket_ms: u64,
    buckets: [Bucket; PLACES],
    /// When something bad was counted last. Relaxed: it may be seen a call late, as the buckets may.
    bad_at_ms: AtomicU64,
}

#[derive(Debug, Default)]
struct Bucket {
    calls: Tally,
    failures: Tally,
    slow: Tally,
}

/// A count and the bucket of time that it is for, in one word, so that no outcome is lost when the time moves on while
/// another worker counts. Relaxed: the word guards nothing beside itself.
#[derive(Debug, Default)]
struct Tally(AtomicU64);

/// What a window holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) calls: u64,
    pub(crate) failures: u64,
    pub(crate) slow: u64,
}

impl Tally {
    /// Counts one in this tick. A tick that another worker has seen to be over already takes it in its successor.
    fn add(&self, tick: u64) {
        // The closure always gives a value.
        let _always = self.0.fetch_update(Relaxed, Relaxed, |word| {
            let count = word & COUNT_MAX;
            Some(if word >> COUNT_BITS < tick {
                tick << COUNT_BITS | 1
            } else {
                word & !COUNT_MAX | (count + 1).min(COUNT_MAX)
            })
        });
    }

    fn since(&self, tick: u64) -> u64 {
        let word = self.0.load(Relaxed);
        if word >> COUNT_BITS >= tick { word & COUNT_MAX } else { 0 }
    }
}

impl Window {
    pub(super) fn new(length_ms: u64) -> Self {
        Self {
            bucket_ms: (length_ms / BUCKETS).max(1),
            buckets: Default::default(),
            bad_at_ms: AtomicU64::new(0),
        }
    }

    pub(super) fn call(&self, now_ms: u64) {
        let (tick, bucket) = self.at(now_ms);
        bucket.calls.add(tick);
    }

    pub(super) fn failure(&self, now_ms: u64) {
        let (tick, bucket) = self.at(now_ms);
        bucket.failures.add(tick);
        self.bad_at_ms.fetch_max(now_ms.max(1), Relaxed);
    }

    pub(super) fn slow(&self, now_ms: u64) {
        let (tick, bucket) = self.at(now_ms);
        bucket.slow.add(tick);
        self.bad_at_ms.fetch_max(now_ms.max(1), Relaxed);
    }

    /// Whether there can be a failure or a slow call in it: one load, where adding up is thirty.
    pub(super) fn may_be_bad(&self, now_ms: u64) -> bool {
        let bad_at = self.bad_at_ms.load(Relaxed);
        bad_at != 0 && now_ms.saturating_sub(bad_at) <= self.bucket_ms * (BUCKETS + 1)
    }

    /// What the window holds now.
    pub(super) fn counts(&self, now_ms: u64) -> Counts {
        let (tick, _) = self.at(now_ms);
        let first = tick.saturating_sub(BUCKETS - 1).max(1);
        self.buckets.iter().fold(Counts::default(), |sum, bucket| Counts {
            calls: sum.calls + bucket.calls.since(first),
            failures: sum.failures + bucket.failures.since(first),
            slow: sum.slow + bucket.slow.since(first),
        })
    }

    /// Forgets everything. What is counted at this very moment may stay.
    pub(super) fn clear(&self) {
        for tally in self.buckets.iter().flat_map(|bucket| [&bucket.calls, &bucket.failures, &bucket.slow]) {
            tally.0.store(0, Relaxed);
        }
    }

    /// Ticks count from 1, so that a word of zeros is of no tick.
    fn at(&self, now_ms: u64) -> (u64, &Bucket) {
        let tick = now_ms / self.bucket_ms + 1;
        let place = usize::try_from(tick % BUCKETS).unwrap_or_default();
        (tick, &self.buckets[place])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_count_for_the_length_of_the_window() {
        let window = Window::new(1_000);
        window.call(50);
        window.failure(50);
        window.call(550);
        assert_eq!(window.counts(999), Counts { calls: 2, failures: 1, slow: 0 });
        assert_eq!(window.counts(1_000), Counts { calls: 1, failures: 0, slow: 0 });
        assert_eq!(window.counts(1_500), Counts::default());
        window.slow(90_000_000);
        assert_eq!(window.counts(90_000_000).slow, 1);
        window.clear();
        assert_eq!(window.counts(90_000_000), Counts::default());
    }

    #[test]
    fn no_outcome_is_lost_while_the_time_moves_on() {
        let window = Window::new(100);
        let (workers, calls) = (4, 20_000);
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| (0..calls).for_each(|n| window.call(n / 4_000)));
            }
        });
        assert_eq!(window.counts(5).calls, workers * calls);
    }
}
