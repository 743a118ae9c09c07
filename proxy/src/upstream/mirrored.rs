//! What the copies of other versions' requests came to at one version: counted, and their latencies beside the real ones.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use gilmok_config::wire::MirrorCounts;

use super::latencies::Latencies;

/// What became of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Its answer was of another hundred than the one to the caller.
    Different = 0,
    /// It was not made: too many were in flight.
    Dropped = 1,
    /// It was not answered.
    Failed = 2,
    Same = 3,
    /// It was not made, because of what the request is; or there is nothing to compare it with.
    Skipped = 4,
}

/// As the metric tells them, in the order of their numbers.
const OUTCOMES: [&str; 5] = ["different", "dropped", "failed", "same", "skipped"];

/// What was counted of the copies to one version. Atomics of the workers, relaxed: each is a number of its own.
#[derive(Debug, Default)]
pub(crate) struct Mirrored {
    sent: AtomicU64,
    outcomes: [AtomicU64; OUTCOMES.len()],
    /// Of what was compared: the copies' latencies, and those of the answers to the callers.
    pub(crate) copies: Latencies,
    pub(crate) answers: Latencies,
}

impl Mirrored {
    pub(crate) fn sent(&self) {
        self.sent.fetch_add(1, Relaxed);
    }

    pub(crate) fn ended(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].fetch_add(1, Relaxed);
    }

    /// An answer to a caller and one to its copy: both took so long until their heads, which say the same or not.
    pub(crate) fn compared(&self, is_same: bool, answer: Duration, copy: Duration) {
        self.answers.note(answer);
        self.copies.note(copy);
        self.ended(if is_same { Outcome::Same } else { Outcome::Different });
    }

    /// How many copies there were of each outcome, by its name.
    pub(crate) fn outcomes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        OUTCOMES.into_iter().zip(self.outcomes.iter().map(|count| count.load(Relaxed)))
    }

    /// As control planes are told.
    pub(crate) fn counts(&self) -> MirrorCounts {
        let of = |outcome: Outcome| self.outcomes[outcome as usize].load(Relaxed);
        MirrorCounts {
            sent: self.sent.load(Relaxed),
            same: of(Outcome::Same),
            different: of(Outcome::Different),
            failed: of(Outcome::Failed),
            dropped: of(Outcome::Dropped),
            skipped: of(Outcome::Skipped),
            latency: self.copies.counts(),
            real_latency: self.answers.counts(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compared_has_both_latencies() {
        let mirrored = Mirrored::default();
        for _ in 0..3 {
            mirrored.sent();
        }
        mirrored.compared(true, Duration::from_micros(10), Duration::from_millis(1));
        mirrored.compared(false, Duration::from_micros(10), Duration::from_micros(10));
        mirrored.ended(Outcome::Failed);
        mirrored.ended(Outcome::Dropped);
        let counts = mirrored.counts();
        assert_eq!((counts.sent, counts.same, counts.different, counts.failed), (3, 1, 1, 1));
        assert_eq!((counts.dropped, counts.skipped), (1, 0));
        assert_eq!((counts.latency.len(), counts.real_latency), (2, vec![(0, 2)]));
        let told: Vec<_> =
            mirrored.outcomes().filter(|(_, count)| *count > 0).map(|(name, _)| name).collect();
        assert_eq!(told, ["different", "dropped", "failed", "same"]);
    }
}
