//! How what was seen becomes findings: who may be wrong how often, and what counts as shown.

use super::counts::Tally;
use super::criteria::Criteria;
use super::evidence::{Comparison, Counted, Evidence, Finding, LatencyComparison};
use super::latency::{self, Latency, PERCENTILES};
use super::share;
use super::stream::Stream;

/// Among how many `alpha` is divided before a candidate is rolled back: failures and latency get a half each, and latency
/// divides its own by its percentiles.
const METRICS: f64 = 2.0;
/// Among how many `alpha` is divided before one goes on: by the ratio of odds, or by the candidate's own share.
const ROADS: f64 = 2.0;
/// Largest share below which a candidate may be shown to be instead of by the ratio, whatever the criteria.
const SHARE_MAX: f64 = 0.5;
/// Largest e-value that is told. Beyond, only its logarithm would mean anything, and JSON has no infinity.
const E_VALUE_MAX: f64 = 1e12;

pub(super) fn evidence(failures: &Stream, latency: &Latency, criteria: &Criteria) -> Evidence {
    let criteria = criteria.within_ranges();
    let metrics = if criteria.latency { METRICS } else { 1.0 };
    let of_failures = Question {
        floor: criteria.floor,
        max_ratio: criteria.max_ratio,
        needed_worse: metrics / criteria.alpha,
        needed_bound: ROADS / criteria.alpha,
    };
    let of_latency = |percentile| Question {
        floor: latency::share_beyond(percentile),
        needed_worse: metrics * PERCENTILES.len() as f64 / criteria.alpha,
        ..of_failures
    };
    let latency = latency.at_percentiles().filter(|_| criteria.latency);
    Evidence {
        failures: of_failures.ask(failures),
        latency: latency
            .map(|at| LatencyComparison {
                percentile: at.percentile,
                stable_us: at.stable_us,
                candidate_us: at.candidate_us,
                limit_us: at.limit_us,
                allowed_us: at.allowed_us,
                comparison: of_latency(at.percentile).ask(at.stream),
            })
            .collect(),
    }
}

/// What is asked of one stream.
#[derive(Clone, Copy)]
struct Question {
    floor: f64,
    max_ratio: f64,
    needed_worse: f64,
    needed_bound: f64,
}

impl Question {
    fn ask(&self, stream: &Stream) -> Comparison {
        let (ln_e, ln_needed) = (stream.ln_e_worse(), self.needed_bound.ln());
        let ratio_at_most = stream.ratio_at_most(ln_needed);
        let share_at_most = share::at_most(stream.candidate(), ln_needed);
        let share_allowed = (self.max_ratio * self.floor).min(SHARE_MAX);
        let is_minded = stream.suspect().share() > self.floor;
        let is_bounded = ratio_at_most.is_some_and(|ratio| ratio <= self.max_ratio)
            || share_at_most.is_some_and(|share| share < share_allowed);
        let finding = if is_minded && ln_e >= self.needed_worse.ln() {
            Finding::Worse
        } else if is_minded && ln_e >= self.needed_worse.ln() / 2.0 {
            // Half the way to a rollback is no time to go on, whatever the bounds of the long good time before say.
            Finding::Unsure
        } else if is_bounded {
            Finding::NotWorse
        } else {
            Finding::Unsure
        };
        Comparison {
            finding,
            stable: counted(stream.stable()),
            candidate: counted(stream.candidate()),
            suspect_percent: percent(stream.suspect().share()),
            floor_percent: percent(self.floor),
            e_value: ln_e.exp().min(E_VALUE_MAX),
            e_value_needed: self.needed_worse,
            ratio_at_least: stream.ratio_at_least(ln_needed),
            ratio_at_most,
            percent_at_most: share_at_most.map(percent),
        }
    }
}

fn counted(seen: Tally) -> Counted {
    Counted { trials: seen.trials(), events: seen.events(), percent: percent(seen.share()) }
}

fn percent(share: f64) -> f64 {
    share * 100.0
}
