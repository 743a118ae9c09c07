//! How what was seen becomes findings: who may be wrong how often, and what counts as shown.

use super::counts::Tally;
use super::criteria::Criteria;
use super::evidence::{Comparison, Counted, Evidence, Finding, LatencyComparison, Verdict};
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

/// What the counts say, and why.
pub(super) fn evidence(failures: &Stream, latency: &Latency, criteria: &Criteria) -> Evidence {
    let questions = Questions::by(criteria);
    let latency = latency.at_percentiles().filter(|_| questions.latency);
    Evidence {
        failures: questions.of_failures.ask(failures),
        latency: latency
            .map(|at| LatencyComparison {
                percentile: at.percentile,
                stable_us: at.stable_us,
                candidate_us: at.candidate_us,
                limit_us: at.limit_us,
                allowed_us: at.allowed_us,
                comparison: questions.of_latency(at.percentile).ask(at.stream),
            })
            .collect(),
    }
}

/// What the counts say, for whoever asks each second and not why: no bound is sought.
pub(super) fn verdict(failures: &Stream, latency: &Latency, criteria: &Criteria) -> Verdict {
    let questions = Questions::by(criteria);
    let latency = latency.streams().filter(|_| questions.latency);
    Verdict::of(
        questions.of_failures.finding(failures),
        latency.map(|(percentile, stream)| (percentile, questions.of_latency(percentile).finding(stream))),
    )
}

/// What is asked of all streams.
struct Questions {
    of_failures: Question,
    latency: bool,
}

impl Questions {
    fn by(criteria: &Criteria) -> Self {
        let criteria = criteria.within_ranges();
        let metrics = if criteria.latency { METRICS } else { 1.0 };
        let of_failures = Question {
            floor: criteria.floor,
            max_ratio: criteria.max_ratio,
            needed_worse: metrics / criteria.alpha,
            needed_bound: ROADS / criteria.alpha,
        };
        Self { of_failures, latency: criteria.latency }
    }

    fn of_latency(&self, percentile: u8) -> Question {
        Question {
            floor: latency::share_beyond(percentile),
            needed_worse: self.of_failures.needed_worse * PERCENTILES.len() as f64,
            ..self.of_failures
        }
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
    fn finding(&self, stream: &Stream) -> Finding {
        let (ln_e, ln_needed_worse) = (stream.ln_e_worse(), self.needed_worse.ln());
        let is_minded = stream.suspect().share() > self.floor;
        if is_minded && ln_e >= ln_needed_worse {
            Finding::Worse
        } else if is_minded && ln_e >= ln_needed_worse / 2.0 {
            // Half the way to a rollback is no time to go on, whatever the bounds of the long good time before say.
            Finding::Unsure
        } else if self.is_bounded(stream) {
            Finding::NotWorse
        } else {
            Finding::Unsure
        }
    }

    fn is_bounded(&self, stream: &Stream) -> bool {
        let ln_needed = self.needed_bound.ln();
        let share_allowed = (self.max_ratio * self.floor).min(SHARE_MAX);
        share::ln_e_below(stream.candidate(), share_allowed) >= ln_needed
            || stream.ratio_at_most(ln_needed).is_some_and(|ratio| ratio <= self.max_ratio)
    }

    fn ask(&self, stream: &Stream) -> Comparison {
        let ln_needed = self.needed_bound.ln();
        Comparison {
            finding: self.finding(stream),
            stable: counted(stream.stable()),
            candidate: counted(stream.candidate()),
            suspect_percent: percent(stream.suspect().share()),
            floor_percent: percent(self.floor),
            e_value: stream.ln_e_worse().exp().min(E_VALUE_MAX),
            e_value_needed: self.needed_worse,
            ratio_at_least: stream.ratio_at_least(ln_needed),
            ratio_at_most: stream.ratio_at_most(ln_needed),
            percent_at_most: share::at_most(stream.candidate(), ln_needed).map(percent),
        }
    }
}

fn counted(seen: Tally) -> Counted {
    Counted { trials: seen.trials(), events: seen.events(), percent: percent(seen.share()) }
}

fn percent(share: f64) -> f64 {
    share * 100.0
}
