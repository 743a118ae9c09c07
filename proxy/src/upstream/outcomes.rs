//! What subjects' first requests came to: who was seen lately, and how many of the trials failed or took how long.
//!
//! Counted by subject, because one broken client would else speak for all. Who was seen is kept in a table of a fixed
//! size; whoever was seen longest ago makes room. With millions of users it would be full in seconds, and nothing would be
//! known for the rest of ten minutes: so some begin at once, and the others are spread over that time.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::latencies::Latencies;

/// Places in which a subject is looked for.
const WAYS: usize = 8;
/// Nobody who was seen within so long makes room for others.
pub(crate) const EVERY_MS: u64 = 10 * 60 * 1_000;
/// Ten minutes are told apart by so many bits: ten years.
const TEN_MINUTES_BITS: u32 = 19;

/// What trials of one kind came to since the process started.
///
/// Its atomics are shared by the workers and relaxed: each is a number of its own, and a subject writes once in ten
/// minutes at most.
#[derive(Debug)]
pub(crate) struct Outcomes {
    /// Subjects that are told apart at a time, eight bytes each.
    subjects_max: usize,
    /// After how many times ten minutes a subject's next request is a trial again.
    again_after: u32,
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
    let ten_minutes = u32::try_from(now_ms / EVERY_MS % (1 << TEN_MINUTES_BITS)).unwrap_or_default();
    1 << 31 | u32::from(step) << TEN_MINUTES_BITS | ten_minutes
}

/// How many times ten minutes ago an epoch was, where it was of the same split.
fn age(then: u32, now: u32) -> Option<u32> {
    let is_same = then >> TEN_MINUTES_BITS == now >> TEN_MINUTES_BITS;
    is_same.then_some(now.wrapping_sub(then) & ((1 << TEN_MINUTES_BITS) - 1))
}

impl Outcomes {
    /// Tells so many subjects apart at a time, a multiple of [`WAYS`]. Each is a trial again after so many times ten
    /// minutes, or sooner where others took its place.
    pub(crate) fn new(subjects_max: usize, again_after: u32) -> Self {
        Self {
            subjects_max,
            again_after,
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

    /// A trial begins, if this subject was not seen lately in this split and may be looked at; it was seen from now on.
    pub(crate) fn begin_first(self: &Arc<Self>, subject: u32, epoch: u32, now_ms: u64) -> Option<Trial> {
        self.is_first(subject, epoch, now_ms).then(|| self.begin())
    }

    fn is_first(&self, subject: u32, epoch: u32, now_ms: u64) -> bool {
        let seen = self.seen.get_or_init(|| (0..self.subjects_max).map(|_| AtomicU64::new(0)).collect());
        let mark = u64::from(subject) << 32 | u64::from(epoch);
        // Whose place it is was decided by the hash's upper half: its lower half is as good as chance.
        let set = subject as usize % (self.subjects_max / WAYS) * WAYS;
        loop {
            let mut oldest: Option<(u32, &AtomicU64, u64)> = None;
            for place in &seen[set..set + WAYS] {
                let found = place.load(Relaxed);
                #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
                let age = age(found as u32, epoch).unwrap_or(u32::MAX);
                if found >> 32 == u64::from(subject) && age < self.again_after {
                    return false;
                }
                if age > 0 && oldest.is_none_or(|(other, ..)| age > other) {
                    oldest = Some((age, place, found));
                }
            }
            let Some((_, place, found)) = oldest.filter(|_| self.may_begin(epoch, now_ms)) else {
                return false;
            };
            if place.compare_exchange(found, mark, Relaxed, Relaxed).is_ok() {
                self.count_in(epoch);
                return true;
            }
            // Another worker took the place, maybe for the same subject.
        }
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
        let outcomes = Arc::new(Outcomes::new(SUBJECTS_MAX, 1));
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

    #[test]
    fn a_subject_is_remembered_for_as_long_as_it_is_to_be_and_there_is_room() {
        const DAY: u32 = 144;
        let outcomes = Arc::new(Outcomes::new(WAYS, DAY));
        let begins = |subject: u32, step: u16, slot: u64| {
            // At the end of ten minutes, where as many may begin as ever.
            let now_ms = (slot + 1) * EVERY_MS - 1;
            outcomes.begin_first(subject, epoch(step, now_ms), now_ms).is_some()
        };
        let of_a_day = (0..u64::from(DAY) + 3).filter(|slot| begins(7, 0, *slot)).collect::<Vec<_>>();
        assert_eq!(of_a_day, [0, u64::from(DAY)], "one that always fails fails once a day");
        assert!(begins(7, 1, 147) && !begins(7, 1, 147), "another split");
        let others = (100..107).filter(|subject| begins(*subject, 1, 148 + u64::from(*subject))).count();
        assert_eq!(others, WAYS - 1);
        assert!(!begins(7, 1, 260), "there is room for all");
        assert!(begins(200, 1, 261), "who was seen longest ago makes room");
        assert!(begins(7, 1, 262), "and is forgotten");
    }

    #[test]
    fn workers_that_meet_the_same_subject_begin_one_trial() {
        const SUBJECTS: u32 = 1_000;
        let outcomes = Arc::new(Outcomes::new(1 << 13, 144));
        let come =
            || (0..SUBJECTS).filter(|subject| outcomes.begin_first(*subject, epoch(0, 5), 5).is_some());
        let begun: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(|| come().count())).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert_eq!(begun, SUBJECTS as usize);
    }
}
