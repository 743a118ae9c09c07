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
