//! What subjects' first requests came to: who was seen lately, and how many of the trials failed or took how long.
//!
//! Counted by subject, because one broken client would else speak for all. Who was seen is kept in a table of a fixed
//! size. With millions of users it would be full in seconds, and nothing would be known for the rest of ten minutes: so
//! some begin at once, and the others are spread over that time.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::latencies::Latencies;

/// Places in which a subject is looked for.
const WAYS: usize = 8;
/// A subject's next request after so long is a trial again.
pub(crate) const EVERY_MS: u64 = 10 * 60 * 1_000;

/// What trials of one kind came to since the process started.
///
/// Its atomics are shared by the workers and relaxed: each is a number of its own, and a subject writes once in ten
/// minutes.
#[derive(Debug)]
pub(crate) struct Outcomes {
    /// Subjects that are told apart at a time, eight bytes each.
    subjects_max: usize,
    /// Who was seen and when: a subject's hash above, split and ten minutes below. Made with the first trial.
    seen: OnceLock<Box<[AtomicU64]>>,
    /// How many trials began in an epoch: the epoch above, the number below.
    begun: AtomicU64,
    trials: AtomicU64,
    failures: AtomicU64,
    latency: Latencies,
}

/// A trial under way: a request whose outcome counts.
#[derive(Debug)]
pub(crate) struct Trial {
    of: Arc<Outcomes>,
    /// Whether it failed and how long its answer took; not known yet.
    came_to: Option<(bool, Duration)>,
}

/// What trials came to, read at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) trials: u64,
    pub(crate) failures: u64,
    /// Bucket and count, where there are any.
    pub(crate) latency: Vec<(u16, u64)>,
}

/// The ten minutes of the `step`-th split. Never 0, so that no subject is taken for an empty place.
pub(crate) fn epoch(step: u16, now_ms: u64) -> u32 {
    let ten_minutes = u32::try_from(now_ms / EVERY_MS % (1 << 19)).unwrap_or_default();
    1 << 31 | u32::from(step) << 19 | ten_minutes
}

impl Outcomes {
    /// Tells so many subjects apart at a time; a multiple of [`WAYS`].
    pub(crate) fn new(subjects_max: usize) -> Self {
        Self {
            subjects_max,
            seen: OnceLock::new(),
            begun: AtomicU64::new(0),
            trials: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            latency: Latencies::default(),
        }
    }

    /// A trial begins.
    pub(crate) fn begin(self: &Arc<Self>) -> Trial {
        Trial { of: Arc::clone(self), came_to: None }
    }

    /// A trial begins, if this subject was not seen in this epoch and may be looked at; it was seen from now on.
    pub(crate) fn begin_first(self: &Arc<Self>, subject: u32, epoch: u32, now_ms: u64) -> Option<Trial> {
        self.is_first(subject, epoch, now_ms).then(|| self.begin())
    }

    fn is_first(&self, subject: u32, epoch: u32, now_ms: u64) -> bool {
        let seen = self.seen.get_or_init(|| (0..self.subjects_max).map(|_| AtomicU64::new(0)).collect());
        let mark = u64::from(subject) << 32 | u64::from(epoch);
        // Whose place it is was decided by the hash's upper half: its lower half is as good as chance.
        let set = subject as usize % (self.subjects_max / WAYS) * WAYS;
        for place in &seen[set..set + WAYS] {
            let mut found = place.load(Relaxed);
            loop {
                if found == mark {
                    return false;
                }
                if found & u64::from(u32::MAX) == u64::from(epoch) {
                    break;
                }
                if !self.may_begin(epoch, now_ms) {
                    return false;
                }
                match place.compare_exchange_weak(found, mark, Relaxed, Relaxed) {
                    Ok(_) => {
                        self.count_in(epoch);
                        return true;
                    }
                    Err(other) => found = other,
                }
            }
        }
        false
    }

    /// Whether another trial may begin now. Workers that ask at the same moment may begin one each: there is room.
    fn may_begin(&self, epoch: u32, now_ms: u64) -> bool {
        // Together they leave a quarter of the table free, so that a subject finds a place.
        let (at_once, spread) = (self.subjects_max as u64 / 4, self.subjects_max as u64 / 2);
        let allowed = at_once + spread * (now_ms % EVERY_MS) / EVERY_MS;
        self.begun_in(epoch) < allowed
    }

    fn begun_in(&self, epoch: u32) -> u64 {
        let begun = self.begun.load(Relaxed);
        if begun >> 32 == u64::from(epoch) { begun & u64::from(u32::MAX) } else { 0 }
    }

    fn count_in(&self, epoch: u32) {
        let first = u64::from(epoch) << 32;
        let next = |begun: u64| if begun >> 32 == u64::from(epoch) { begun + 1 } else { first + 1 };
        let mut begun = self.begun.load(Relaxed);
        while let Err(other) = self.begun.compare_exchange_weak(begun, next(begun), Relaxed, Relaxed) {
            begun = other;
        }
    }

    /// What they came to so far.
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            trials: self.trials.load(Relaxed),
            failures: self.failures.load(Relaxed),
            latency: self.latency.counts(),
        }
    }

    /// How long their answers took.
    pub(crate) fn latency(&self) -> &Latencies {
        &self.latency
    }
}

impl Trial {
    /// What it came to, when that is known: the head of an answer, or none.
    pub(crate) fn came_to(&mut self, failed: bool, took: Duration) {
        self.came_to.get_or_insert((failed, took));
    }

    /// Counts it. Where the caller left before an answer came, it took at least so long and failed nobody.
    pub(crate) fn end(self, took: Duration) {
        let (failed, took) = self.came_to.unwrap_or((false, took));
        self.of.latency.note(took);
        if failed {
            self.of.failures.fetch_add(1, Relaxed);
        }
        // Last, so that whoever reads sees no more failures than trials a moment later.
        self.of.trials.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_many_subjects_come_some_are_looked_at_all_the_time() {
        const SUBJECTS_MAX: usize = 1 << 15;
        let outcomes = Arc::new(Outcomes::new(SUBJECTS_MAX));
        let (at_once, spread) = (SUBJECTS_MAX as u64 / 4, SUBJECTS_MAX as u64 / 2);
        let mut next = 0_u32;
        let mut come = |now_ms: u64, many: u32| {
            let from = next;
            next += many;
            let spread = |subject: u32| subject.wrapping_mul(0x9E37_79B9);
            let begins =
                |subject: &u32| outcomes.begin_first(spread(*subject), epoch(0, now_ms), now_ms).is_some();
            (from..next).filter(begins).count() as u64
        };
        assert_eq!(come(0, 100_000), at_once);
        let each_minute: Vec<u64> = (1..10).map(|minute| come(minute * 60_000, 20_000)).collect();
        assert!(each_minute.iter().all(|begun| begun.abs_diff(spread / 10) <= 1), "{each_minute:?}");
        assert_eq!(come(EVERY_MS, 100_000), at_once, "the next ten minutes");
    }
}
