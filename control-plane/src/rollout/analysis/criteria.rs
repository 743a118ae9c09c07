//! How sure one must be, and of what, before a candidate is rolled back or goes on.

use serde::{Deserialize, Serialize};

/// What a candidate is judged by. Whatever lies outside a range counts as its nearer end, and what is no number as the
/// default.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Criteria {
    /// The chance that a good candidate is ever called worse, and the chance that a bad one is ever called not worse;
    /// 0.000001 to 0.5. Default 0.01: one rollback in a hundred is for nothing.
    pub alpha: f64,
    /// A candidate goes on when its failures have been shown to be fewer than this many times the stable version's; 1 to 30.
    /// Default 2.
    pub max_ratio: f64,
    /// The share of failures that nobody minds: one minus the service's objective; 0 to 0.5. No candidate is rolled back
    /// while at most this share of its latest thousand or two trials fails, and one goes on if it is shown to stay below
    /// `max_ratio` times it, however few failures the stable version has. Default 0.005.
    pub floor: f64,
    /// Whether latency is looked at, too. Default yes.
    pub latency: bool,
}

impl Default for Criteria {
    fn default() -> Self {
        Self { alpha: 0.01, max_ratio: 2.0, floor: 0.005, latency: true }
    }
}

impl Criteria {
    pub(super) fn within_ranges(&self) -> Self {
        let default = Self::default();
        let within = |value: f64, least, most, default| {
            if value.is_nan() { default } else { value.clamp(least, most) }
        };
        Self {
            alpha: within(self.alpha, 0.000_001, 0.5, default.alpha),
            max_ratio: within(self.max_ratio, 1.0, 30.0, default.max_ratio),
            floor: within(self.floor, 0.0, 0.5, default.floor),
            latency: self.latency,
        }
    }
}
