//! What a split's versions came to, counted in trials: a subject's first request in ten minutes of one split.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use gilmok_config::decide::{Split, Why};
use gilmok_config::name::Name;
use gilmok_config::traffic::Traffic;

use super::outcomes::{Outcomes, Trial, epoch};

/// Subjects of one version that are told apart at a time: 256 KiB while a split is on.
const SUBJECTS_MAX: usize = 1 << 15;

/// After how many times ten minutes a subject's next request is a trial again.
const AGAIN_AFTER: u32 = 1;

/// What a service's versions came to, by place in its traffic's versions.
#[derive(Debug, Default)]
pub(crate) struct Trials {
    versions: Vec<Arc<VersionTrials>>,
    /// Counts up with every other split, modulo 4096: each begins with new trials.
    step: u16,
    is_split: bool,
}

/// What one version came to since the process started.
#[derive(Debug)]
pub(crate) struct VersionTrials {
    pub(crate) version: Name,
    pub(crate) outcomes: Arc<Outcomes>,
    /// Shared by the workers and relaxed: a number of its own.
    moved: AtomicU64,
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
        match (split.why, split.subject) {
            (Why::Chance, None) => Some(of.outcomes.begin()),
            (Why::Place(_) | Why::NewVisitor(_), Some(subject)) => {
                of.outcomes.begin_first(subject, epoch(self.step, now_ms), now_ms)
            }
            _ => None,
        }
    }

    pub(crate) fn versions(&self) -> &[Arc<VersionTrials>] {
        &self.versions
    }
}

impl VersionTrials {
    fn new(version: Name) -> Self {
        Self {
            version,
            outcomes: Arc::new(Outcomes::new(SUBJECTS_MAX, AGAIN_AFTER)),
            moved: AtomicU64::new(0),
        }
    }

    pub(crate) fn moved(&self) -> u64 {
        self.moved.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gilmok_config::document::Document;
    use gilmok_config::wire::latency_bucket;

    use super::super::outcomes::EVERY_MS;
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
        assert_eq!(trials.versions()[1].moved(), 1);
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
        let counts = trials.versions()[1].outcomes.counts();
        assert_eq!((counts.trials, counts.failures), (2, 1));
        assert_eq!(counts.latency, [(0, 1), (latency_bucket(100), 1)]);
    }
}
