//! What is counted of a version: trials, and how many of them had the event that is looked for.

use serde::{Deserialize, Serialize};

/// What one version came to in one tick.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Came {
    /// Subjects' first requests.
    pub trials: u64,
    /// Trials that failed.
    pub failures: u64,
    /// Trials by how long they took: a bucket of [`gilmok_config::wire::latency_bucket`], and how many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub latency: Vec<(u16, u64)>,
}

/// Trials, and those among them with an event: a failure, or an answer that took long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tally {
    trials: u64,
    /// Invariant: at most `trials`.
    events: u64,
}

impl Tally {
    /// More events than trials, as counters torn apart may tell, are as many as there are trials.
    pub(super) fn new(trials: u64, events: u64) -> Self {
        Self { trials, events: events.min(trials) }
    }

    pub(super) fn trials(self) -> u64 {
        self.trials
    }

    pub(super) fn events(self) -> u64 {
        self.events
    }

    /// Trials without one.
    pub(super) fn without_event(self) -> u64 {
        self.trials.saturating_sub(self.events)
    }

    /// The share of trials with an event; none of none is none.
    pub(super) fn share(self) -> f64 {
        if self.trials == 0 { 0.0 } else { self.events as f64 / self.trials as f64 }
    }

    pub(super) fn halved(self) -> Self {
        Self::new(self.trials / 2, self.events / 2)
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self::new(self.trials.saturating_add(other.trials), self.events.saturating_add(other.events))
    }
}
