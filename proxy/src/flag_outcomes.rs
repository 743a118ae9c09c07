//! What became of the requests that guarded flags were told with, by variant: for control planes that judge them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use gilmok_config::flag::{Finding, Reason};

use crate::metrics::Code;
use crate::upstream::latencies::Latencies;
use crate::upstream::outcomes::{Counts, Outcomes, Trial, epoch};

/// Subjects of one variant that are told apart at a time: 64 KiB once somebody got it.
const SUBJECTS_MAX: usize = 1 << 13;
/// After how many times ten minutes a subject's next request is a trial again: a day. A flag is watched for weeks, and one
/// client that always fails would come to more each time.
const AGAIN_AFTER: u32 = 24 * 6;
/// Counters of one thread are a multiple of this many, so that two threads seldom write to one line of the cache.
const LINE: usize = 8;

/// What one flag's variants came to since the process started.
#[derive(Debug)]
pub(crate) struct FlagOutcomes {
    variants: Box<[Arc<Outcomes>]>,
    /// Requests by thread, variant and code. Atomics, because another thread reads them; no two threads write the same.
    requests: Box<[AtomicU64]>,
}

/// A guarded flag that was told with a request under way.
#[derive(Debug)]
pub(crate) struct Watched {
    of: Arc<FlagOutcomes>,
    variant: usize,
    trial: Option<Trial>,
}

impl FlagOutcomes {
    /// Of a flag with so many variants, for so many threads.
    pub(crate) fn new(writers: usize, variants: usize) -> Self {
        let cells = writers * cells(variants);
        Self {
            variants: (0..variants).map(|_| Arc::new(Outcomes::new(SUBJECTS_MAX, AGAIN_AFTER))).collect(),
            requests: (0..cells).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// A request goes its way with this finding. It is a trial if a share decided, so that those who got different
    /// variants are alike in everything else, and if its subject was not seen lately. `step` is another one each time that
    /// the flag is judged anew, below 4096.
    pub(crate) fn begin(
        self: &Arc<Self>,
        finding: Finding,
        subject: Option<u32>,
        step: u16,
        now_ms: u64,
    ) -> Option<Watched> {
        let variant = finding.variant?;
        let outcomes = self.variants.get(variant)?;
        let subject = subject.filter(|_| finding.reason == Some(Reason::Split));
        let trial = subject.and_then(|subject| outcomes.begin_first(subject, epoch(step, now_ms), now_ms));
        Some(Watched { of: Arc::clone(self), variant, trial })
    }

    /// What the trials of each variant came to, by place, where there were any.
    pub(crate) fn trials(&self) -> impl Iterator<Item = (usize, Counts)> {
        let counts = self.variants.iter().map(|outcomes| outcomes.counts()).enumerate();
        counts.filter(|(_, counts)| counts.trials > 0)
    }

    /// How long the answers to trials of each variant took.
    pub(crate) fn latencies(&self) -> impl Iterator<Item = (usize, &Latencies)> {
        self.variants.iter().map(|outcomes| outcomes.latency()).enumerate()
    }

    /// Every count of requests above 0, by variant and code.
    pub(crate) fn each_request(&self, told: &mut dyn FnMut(usize, &str, u64)) {
        let cells = cells(self.variants.len());
        for cell in 0..self.variants.len() * Code::LABELS.len() {
            let count: u64 =
                self.requests.iter().skip(cell).step_by(cells).map(|counter| counter.load(Relaxed)).sum();
            if count > 0 {
                told(cell / Code::LABELS.len(), Code::LABELS[cell % Code::LABELS.len()], count);
            }
        }
    }
}

/// Counters of one thread.
fn cells(variants: usize) -> usize {
    (variants * Code::LABELS.len()).next_multiple_of(LINE)
}

impl Watched {
    /// What became of the request; the first word counts.
    pub(crate) fn came_to(&mut self, failed: bool, took: Duration) {
        if let Some(trial) = &mut self.trial {
            trial.came_to(failed, took);
        }
    }

    /// It has ended. `writer` is the thread's own number.
    pub(crate) fn end(self, writer: usize, code: Code, took: Duration) {
        let variants = self.of.variants.len();
        let cell = writer * cells(variants) + self.variant * Code::LABELS.len() + code.place();
        // A plain load and store: only one thread writes, so no locked instruction is needed.
        if let Some(counter) = self.of.requests.get(cell) {
            counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
        }
        if let Some(trial) = self.trial {
            trial.end(took);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(variant: Option<usize>, reason: Reason) -> Finding {
        Finding { flag: 0, variant, reason: Some(reason) }
    }

    #[test]
    fn every_request_is_counted_and_a_subject_is_a_trial_once() {
        let outcomes = Arc::new(FlagOutcomes::new(2, 2));
        let took = Duration::from_millis(1);
        for (writer, code, failed) in [(0, Code::Hundred(2), false), (1, Code::Hundred(5), true)] {
            let mut watched = outcomes.begin(found(Some(1), Reason::Split), Some(7), 0, 5).unwrap();
            watched.came_to(failed, took);
            watched.end(writer, code, took);
        }
        let mut watched = outcomes.begin(found(Some(0), Reason::Split), Some(8), 0, 5).unwrap();
        watched.came_to(true, took);
        watched.end(0, Code::Refused, took);
        let mut requests = Vec::new();
        outcomes.each_request(&mut |variant, code, count| requests.push((variant, code.to_owned(), count)));
        let counted = |variant, code: &str| (variant, code.to_owned(), 1);
        assert_eq!(requests, [counted(0, "refused"), counted(1, "2xx"), counted(1, "5xx")]);
        let trials: Vec<_> =
            outcomes.trials().map(|(at, counts)| (at, counts.trials, counts.failures)).collect();
        assert_eq!(trials, [(0, 1, 1), (1, 1, 0)]);
    }

    #[test]
    fn whoever_was_chosen_by_something_else_than_a_share_is_no_trial() {
        let outcomes = Arc::new(FlagOutcomes::new(1, 2));
        for (reason, subject) in
            [(Reason::TargetingMatch, Some(1)), (Reason::Default, Some(2)), (Reason::Split, None)]
        {
            let watched = outcomes.begin(found(Some(1), reason), subject, 0, 5).unwrap();
            watched.end(0, Code::Hundred(5), Duration::ZERO);
        }
        assert_eq!(outcomes.trials().count(), 0);
        assert!(outcomes.begin(found(None, Reason::Split), Some(1), 0, 5).is_none());
    }
}
