//! Below which share a version's events have been shown to be, from its own trials alone.

use super::counts::Tally;
use super::logarithm::ln_mean_exp;

/// What is bet on: that the true share is this part of the one that is doubted.
const PARTS: [f64; 6] = [0.0, 0.1, 0.25, 0.5, 0.7, 0.85];
/// Halvings of the interval in which a bound is sought; the last is a millionth of a millionth wide.
const HALVINGS: u32 = 40;

/// The logarithm of the e-value against "in each trial the event had at least this chance".
///
/// A mean of likelihood ratios of smaller chances to this one. Each trial's factor is linear in its true chance, is one in
/// the mean at `share` and less above it: so chances may differ, and may depend on what came before.
pub(super) fn ln_e_below(seen: Tally, share: f64) -> f64 {
    let (events, others) = (seen.events() as f64, seen.without_event() as f64);
    let ln_bets = PARTS.map(|part| {
        let without = others * ((-part * share).ln_1p() - (-share).ln_1p());
        // An event where none was bet on loses all; no event is no reason to take the logarithm of nothing.
        if events > 0.0 { without + events * part.ln() } else { without }
    });
    ln_mean_exp(&ln_bets)
}

/// The smallest share that has been shown to be too large, at this e-value. `None` while there is none.
pub(super) fn at_most(seen: Tally, ln_needed: f64) -> Option<f64> {
    let (mut low, mut high) = (0.0, 1.0 - f64::EPSILON);
    let is_too_large = |share| ln_e_below(seen, share) >= ln_needed;
    // Each factor grows with the share, so there is one border.
    if !is_too_large(high) {
        return None;
    }
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(low, high);
        if is_too_large(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    Some(high)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the e-value comes to in the mean over all outcomes of so many trials.
    fn mean_e(trials: u64, truth: f64, doubted: f64) -> f64 {
        let mut ways = 1.0;
        let mut mean = 0.0;
        for events in 0..=trials {
            let chance = ways * truth.powf(events as f64) * (1.0 - truth).powf((trials - events) as f64);
            mean += chance * ln_e_below(Tally::new(trials, events), doubted).exp();
            ways *= (trials - events) as f64 / (events + 1) as f64;
        }
        mean
    }

    #[test]
    fn nothing_is_won_in_the_mean_by_doubting_what_is_true() {
        for trials in [1, 7, 60] {
            for doubted in [0.01, 0.1, 0.4] {
                assert!((mean_e(trials, doubted, doubted) - 1.0).abs() < 1e-9);
                assert!(mean_e(trials, doubted * 1.5, doubted) < 1.0);
                assert!(mean_e(trials, doubted / 2.0, doubted) > 1.0);
            }
        }
    }

    #[test]
    fn a_bound_is_where_doubt_is_shown_to_be_right() {
        let ln_needed = 200_f64.ln();
        for (trials, events) in [(1_000, 0), (5_000, 12), (1_000_000, 1_000), (40, 30)] {
            let seen = Tally::new(trials, events);
            let bound = at_most(seen, ln_needed).unwrap();
            assert!(bound > seen.share());
            assert!(ln_e_below(seen, bound * 1.000_001) >= ln_needed);
            assert!(ln_e_below(seen, bound * 0.999_999) < ln_needed);
        }
    }

    #[test]
    fn little_or_nothing_bounds_nothing() {
        for (trials, events) in [(0, 0), (100, 100)] {
            assert_eq!(at_most(Tally::new(trials, events), 200_f64.ln()), None);
        }
        assert!(at_most(Tally::new(u64::MAX, 0), 200_f64.ln()).unwrap() < 1e-9);
    }
}
