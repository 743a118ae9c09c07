//! What a judgement rests on, in numbers for people, and the verdict that follows from them.

use serde::{Deserialize, Serialize};

use super::latency::PERCENTILE_OF_PROMOTION;

/// What is thought of a candidate now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It has been shown to be no worse than what is allowed.
    NotWorse,
    /// Neither has been shown.
    Unsure,
    /// It has been shown to be worse than what is tolerated.
    Worse(Metric),
}

/// In what a candidate is worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    Failures,
    Latency,
}

/// Everything that the verdict follows from. Kept with each decision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    pub failures: Comparison,
    /// By ascending percentile; empty where latency is not looked at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub latency: Vec<LatencyComparison>,
}

/// Both versions' answers beyond one quantile of the stable version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatencyComparison {
    /// 50, 95 or 99.
    pub percentile: u8,
    /// The stable version's own quantile, in microseconds; `None` while it has none, and beyond what is measured.
    pub stable_us: Option<u64>,
    /// The candidate's own quantile, as `stable_us`.
    pub candidate_us: Option<u64>,
    /// What takes the stable version longer is one of its events, in microseconds; `None` while too little is known.
    pub limit_us: Option<u64>,
    /// What takes the candidate longer is one of its events, as `limit_us`: somewhat slower counts as no slower.
    pub allowed_us: Option<u64>,
    #[serde(flatten)]
    pub comparison: Comparison,
}

/// One kind of event in both versions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    pub finding: Finding,
    pub stable: Counted,
    pub candidate: Counted,
    /// The candidate's share of events since there is a suspicion, in per cent. At most `floor_percent` is no reason to
    /// roll back.
    pub suspect_percent: f64,
    /// The share that nobody minds, in per cent.
    pub floor_percent: f64,
    /// How many times a bet against "no worse than tolerated" has multiplied; at most 10¹².
    pub e_value: f64,
    /// From where on the candidate is worse.
    pub e_value_needed: f64,
    /// The ratio of the odds has been shown to be larger; `None` while nothing has.
    pub ratio_at_least: Option<f64>,
    /// The ratio of the odds has been shown to be smaller; `None` while it is unbounded.
    pub ratio_at_most: Option<f64>,
    /// The candidate's true share has been shown to be smaller, in per cent; `None` while it is unbounded.
    pub percent_at_most: Option<f64>,
}

/// What one version came to since the analysis began.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Counted {
    pub trials: u64,
    /// Trials that failed, or took long.
    pub events: u64,
    /// Events in a hundred trials.
    pub percent: f64,
}

/// What one comparison says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    NotWorse,
    Unsure,
    Worse,
}

impl Evidence {
    /// The verdict that follows.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let latency = self.latency.iter().map(|one| (one.percentile, one.comparison.finding));
        Verdict::of(self.failures.finding, latency)
    }
}

impl Verdict {
    /// Worse in one thing is worse. Not worse takes failures and, where latency is looked at, the percentile of promotion.
    pub(super) fn of(failures: Finding, latency: impl Iterator<Item = (u8, Finding)>) -> Self {
        let (mut is_slower, mut is_no_slower) = (false, true);
        for (percentile, finding) in latency {
            is_slower |= finding == Finding::Worse;
            is_no_slower &= percentile != PERCENTILE_OF_PROMOTION || finding == Finding::NotWorse;
        }
        match failures {
            Finding::Worse => Self::Worse(Metric::Failures),
            Finding::NotWorse | Finding::Unsure if is_slower => Self::Worse(Metric::Latency),
            Finding::NotWorse if is_no_slower => Self::NotWorse,
            Finding::NotWorse | Finding::Unsure => Self::Unsure,
        }
    }
}
