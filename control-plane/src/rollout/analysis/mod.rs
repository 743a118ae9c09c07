//! Whether a candidate version is worse than the stable one, not worse, or not known yet: pure statistics of counts.

mod counts;
mod criteria;
mod evidence;
mod judge;
mod latency;
mod logarithm;
mod odds;
mod share;
mod stream;

use serde::{Deserialize, Serialize};

pub use counts::Came;
pub use criteria::Criteria;
pub use evidence::{Comparison, Counted, Evidence, Finding, LatencyComparison, Metric, Verdict};

use counts::Tally;
use latency::Latency;
use stream::Stream;

/// All that is remembered of a rollout's ticks. Of bounded size, so that it can be kept in a store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Analysis {
    failures: Stream,
    latency: Latency,
}

impl Analysis {
    /// Takes what both versions came to in one tick.
    pub fn add(&mut self, stable: &Came, candidate: &Came) {
        let tally = |came: &Came| Tally::new(came.trials, came.failures);
        self.failures.add(tally(stable), tally(candidate));
        self.latency.add(stable, candidate);
    }

    /// What is known so far, by these criteria.
    #[must_use]
    pub fn evidence(&self, criteria: &Criteria) -> Evidence {
        judge::evidence(&self.failures, &self.latency, criteria)
    }

    /// What is thought of the candidate so far, by these criteria.
    #[must_use]
    pub fn verdict(&self, criteria: &Criteria) -> Verdict {
        self.evidence(criteria).verdict()
    }
}
