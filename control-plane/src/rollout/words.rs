//! What evidence says, in a sentence for people.

use super::analysis::{Comparison, Evidence, Finding, LatencyComparison};
use super::plan::Judging;

/// Why the candidate is worse, if it is.
pub(crate) fn why_worse(evidence: &Evidence, candidate: &str, stable: &str) -> Option<String> {
    if evidence.failures.finding == Finding::Worse {
        let Comparison { stable: base, candidate: new, e_value, e_value_needed, .. } = &evidence.failures;
        return Some(format!(
            "{candidate} fails in {:.2} % of {} subjects, {stable} in {:.2} % of {} (e-value {e_value:.0}, {e_value_needed:.0} is enough)",
            new.percent, new.trials, base.percent, base.trials,
        ));
    }
    let slow = evidence.latency.iter().find(|latency| latency.comparison.finding == Finding::Worse)?;
    let LatencyComparison { percentile, stable_us, comparison, .. } = slow;
    Some(format!(
        "{candidate} answers {:.1} % of {} subjects slower than the p{percentile} of {stable}{} (e-value {:.0}, {:.0} is enough)",
        comparison.candidate.percent,
        comparison.candidate.trials,
        stable_us.map_or_else(String::new, |us| format!(", {} ms", us.div_ceil(1_000))),
        comparison.e_value,
        comparison.e_value_needed,
    ))
}

/// What is still missing before the candidate is known to be as good.
pub(super) fn what_is_missing(evidence: &Evidence, judging: &Judging, candidate: &str) -> String {
    let slow = evidence.latency.iter().find(|latency| latency.comparison.finding != Finding::NotWorse);
    if evidence.failures.finding == Finding::NotWorse
        && let Some(LatencyComparison { percentile, comparison, .. }) = slow
    {
        let bound = comparison.percent_at_most.map_or_else(
            || "nothing is shown yet".to_owned(),
            |bound| format!("it is shown to be slower than the p{percentile} in less than {bound:.1} %"),
        );
        let trials = comparison.candidate.trials;
        return format!("{candidate} is not known to be as fast after {trials} subjects: {bound}");
    }
    let Comparison { stable: base, candidate: new, floor_percent, percent_at_most, .. } = &evidence.failures;
    let bound = percent_at_most.map_or_else(
        || "nothing is shown yet".to_owned(),
        |bound| format!("it is shown to fail in less than {bound:.2} %"),
    );
    format!(
        "{candidate} has failed {} of {} subjects: {bound}, and {:.2} % has to be shown",
        new.events,
        new.trials,
        judging.max_ratio * base.percent.max(*floor_percent),
    )
}
