//! What a split's versions came to, counted in trials: a subject's first request in ten minutes of one split.
//!
//! Counted by subject, because one broken client would else speak for all. Who was seen is kept in a table of a fixed
//! size for each version. With millions of users it would be full in seconds, and nothing would be known of either
//! version for the rest of ten minutes: so some begin at once, and the others are spread over that time.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use gilmok_config::decide::{Split, Why};
use gilmok_config::name::Name;
use gilmok_config::traffic::Traffic;

use super::latencies::Latencies;

/// Subjects of one version that are told apart at a time: 256 KiB while a split is on.
const SUBJECTS_MAX: usize = 1 << 15;
/// Places in which a subject is looked for.
const WAYS: usize = 8;
/// Trials of one version that may begin at once, and those that are spread over the ten minutes: together they leave a
/// quarter of the table free, so that a subject finds a place.
const AT_ONCE: u64 = SUBJECTS_MAX as u64 / 4;
const SPREAD: u64 = SUBJECTS_MAX as u64 / 2;
/// A subject's next request after so long is a trial again.
const EVERY_MS: u64 = 10 * 60 * 1_000;

/// What a service's versions came to, by place in its traffic's versions.
#[derive(Debug, Default)]
pub(crate) struct Trials {
    versions: Vec<Arc<VersionTrials>>,
    /// Counts up with every other split, modulo 4096: each begins with new trials.
    step: u16,
    is_split: bool,
}

/// What one version came to since the process started.
///
/// Its atomics are shared by the workers and relaxed: each is a number of its own, and a subject writes once in ten
/// minutes.
#[derive(Debug)]
pub(crate) struct VersionTrials {
    pub(crate) version: Name,
    /// Who was seen and when: a subject's hash above, split and ten minutes below. Made with the first trial.
    seen: OnceLock<Box<[AtomicU64]>>,
    /// How many trials began in an epoch: the epoch above, the number below.
    begun: AtomicU64,
    trials: AtomicU64,
    failures: AtomicU64,
    latency: Latencies,
    moved: AtomicU64,
}

/// A trial under way: a request whose outcome counts.
#[derive(Debug)]
pub(crate) struct Trial {
    of: Arc<VersionTrials>,
    /// Whether it failed and how long its answer took; not known yet.
    came_to: Option<(bool, Duration)>,
}

/// What one version came to, read at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) trials: u64,
    pub(crate) failures: u64,
    /// Bucket and count, where there are any.
    pub(crate) latency: Vec<(u16, u64)>,
    pub(crate) moved: u64,
}

impl Trials {
    /// The trials of a traffic; what was counted of its versions before goes on.
    pub(crate) fn of(traffic: Option<&Traffic>, before: Option<(&Self, Option<&Traffic>)>) -> Self {
        let Some(traffic) = traffic else { return Self::default() };
        let kept = before.map(|(trials, _)| trials);
        let same = before.and_then(|(_, before)| before).is_some_and(|before| {
            before.table == traffic.table && before.salt == traffic.salt && before.subject == traffic.subject
        });
        let step = kept.map_or(0, |kept| kept.step);
        let versions = traffic.versions().iter().map(|version| {
            let known = kept.and_then(|kept| kept.versions.iter().find(|known| known.version == *version));
            known.map_or_else(|| Arc::new(VersionTrials::new(version.clone())), Arc::clone)
        });
        Self {
            versions: versions.collect(),
            step: if same { step } else { (step + 1) % (1 << 12) },
            is_split: traffic.is_split(),
        }
    }

    /// Takes note of a decision. It begins a trial, if two versions have a share, the subject was not seen lately, and
    /// nobody made an exception for it.
    pub(crate) fn begin(&self, split: &Split, now_ms: u64) -> Option<Trial> {
        if let Some(from) = split.moved_from {
            self.versions.get(from)?.moved.fetch_add(1, Relaxed);
            return None;
        }
        if !self.is_split {
            return None;
        }
        let of = self.versions.get(split.version)?;
        let is_trial = match (split.why, split.subject) {
            (Why::Chance, None) => true,
            (Why::Place(_) | Why::NewVisitor(_), Some(subject)) => {
                of.is_first(subject, self.epoch(now_ms), now_ms)
            }
            _ => false,
        };
        is_trial.then(|| Trial { of: Arc::clone(of), came_to: None })
    }

    /// Never 0, so that no subject is taken for an empty place.
    fn epoch(&self, now_ms: u64) -> u32 {
        let ten_minutes = u32::try_from(now_ms / EVERY_MS % (1 << 19)).unwrap_or_default();
        1 << 31 | u32::from(self.step) << 19 | ten_minutes
    }

    pub(crate) fn versions(&self) -> &[Arc<VersionTrials>] {
        &self.versions
    }
}

impl VersionTrials {
    fn new(version: Name) -> Self {
        Self {
            version,
            seen: OnceLock::new(),
            begun: AtomicU64::new(0),
            trials: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            latency: Latencies::default(),
            moved: AtomicU64::new(0),
        }
    }

    /// Whether this subject was not seen in this epoch, and may be looked at; it was seen from now on.
    fn is_first(&self, subject: u32, epoch: u32, now_ms: u64) -> bool {
        let seen = self.seen.get_or_init(|| (0..SUBJECTS_MAX).map(|_| AtomicU64::new(0)).collect());
        let mark = u64::from(subject) << 32 | u64::from(epoch);
        // Whose place it is was decided by the hash's upper half: its lower half is as good as chance.
        let set = subject as usize % (SUBJECTS_MAX / WAYS) * WAYS;
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
                        self.begin(epoch);
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
        let allowed = AT_ONCE + SPREAD * (now_ms % EVERY_MS) / EVERY_MS;
        self.begun_in(epoch) < allowed
    }

    fn begun_in(&self, epoch: u32) -> u64 {
        let begun = self.begun.load(Relaxed);
        if begun >> 32 == u64::from(epoch) { begun & u64::from(u32::MAX) } else { 0 }
    }

    fn begin(&self, epoch: u32) {
        let first = u64::from(epoch) << 32;
        let next = |begun: u64| if begun >> 32 == u64::from(epoch) { begun + 1 } else { first + 1 };
        let mut begun = self.begun.load(Relaxed);
        while let Err(other) = self.begun.compare_exchange_weak(begun, next(begun), Relaxed, Relaxed) {
            begun = other;
        }
    }

    /// What it came to so far.
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            trials: self.trials.load(Relaxed),
            failures: self.failures.load(Relaxed),
            latency: self.latency.counts(),
            moved: self.moved.load(Relaxed),
        }
    }

    pub(crate) fn moved(&self) -> u64 {
        self.moved.load(Relaxed)
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
    use gilmok_config::document::Document;
    use gilmok_config::wire::latency_bucket;

    use super::*;

    fn traffic(percent: u32) -> Arc<Traffic> {
        let text = format!(
            "[services.a.traffic]\nstable = \"v1\"\nweights = {{ v1 = {}, v2 = {percent} }}",
            100 - percent
        );
        let document = Document::parse_toml(&text).unwrap();
        document.services["a"].traffic.clone().unwrap()
    }

    fn split(version: usize, subject: u32) -> Split {
        let (why, subject) = (Why::Place(1), Some(subject));
        Split { version, why, moved_from: None, subject, passed_on: None, mirror: None }
    }

    fn begins(trials: &Trials, split: &Split, now_ms: u64) -> bool {
        trials.begin(split, now_ms).is_some()
    }

    #[test]
    fn a_subject_is_a_trial_once_in_ten_minutes_of_a_split() {
        let first = traffic(1);
        let trials = Trials::of(Some(&first), None);
        assert!(begins(&trials, &split(1, 7), 5));
        assert!(!begins(&trials, &split(1, 7), EVERY_MS - 1));
        assert!(begins(&trials, &split(1, 7), EVERY_MS));
        assert!(begins(&trials, &split(1, 8), EVERY_MS));
        let same = Trials::of(Some(&first), Some((&trials, Some(&first))));
        assert!(!begins(&same, &split(1, 7), EVERY_MS), "a reload is no other split");
        let next = Trials::of(Some(&traffic(10)), Some((&trials, Some(&first))));
        assert!(begins(&next, &split(1, 7), EVERY_MS));
        assert!(Arc::ptr_eq(&next.versions()[1], &trials.versions()[1]), "counters go on");
    }

    #[test]
    fn exceptions_and_whole_shares_are_no_trials() {
        let trials = Trials::of(Some(&traffic(1)), None);
        for why in [Why::Pin(0), Why::NoSubject, Why::Whole] {
            assert!(!begins(&trials, &Split { why, subject: None, ..split(1, 7) }, 5), "{why}");
        }
        assert!(begins(&trials, &Split { why: Why::Chance, subject: None, ..split(1, 7) }, 5));
        assert!(!begins(&trials, &Split { moved_from: Some(1), ..split(0, 9) }, 5));
        assert_eq!(trials.versions()[1].counts().moved, 1);
        let whole = Trials::of(Some(&traffic(100)), None);
        assert!(!begins(&whole, &split(1, 7), 5));
    }

    #[test]
    fn what_it_came_to_is_counted_once() {
        let trials = Trials::of(Some(&traffic(1)), None);
        let mut failed = trials.begin(&split(1, 1), 5).unwrap();
        failed.came_to(true, Duration::from_micros(100));
        failed.end(Duration::from_secs(9));
        trials.begin(&split(1, 2), 5).unwrap().end(Duration::from_micros(10));
        let counts = trials.versions()[1].counts();
        assert_eq!((counts.trials, counts.failures), (2, 1));
        assert_eq!(counts.latency, [(0, 1), (latency_bucket(100), 1)]);
    }

    #[test]
    fn however_many_subjects_come_some_are_looked_at_all_the_time() {
        let trials = Trials::of(Some(&traffic(1)), None);
        let mut next = 0_u32;
        let mut come = |now_ms: u64, many: u32| {
            let from = next;
            next += many;
            let spread = |subject: u32| subject.wrapping_mul(0x9E37_79B9);
            (from..next).filter(|subject| begins(&trials, &split(1, spread(*subject)), now_ms)).count() as u64
        };
        assert_eq!(come(0, 100_000), AT_ONCE);
        let each_minute: Vec<u64> = (1..10).map(|minute| come(minute * 60_000, 20_000)).collect();
        assert!(each_minute.iter().all(|begun| begun.abs_diff(SPREAD / 10) <= 1), "{each_minute:?}");
        assert_eq!(come(EVERY_MS, 100_000), AT_ONCE, "the next ten minutes");
    }
}
