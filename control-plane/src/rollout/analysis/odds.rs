//! How likely one tick is at each ratio of odds, exactly, once it is known how many events both versions had together.

use super::counts::Tally;

/// The ratios of the candidate's odds to the stable version's that are weighed against each other, ascending.
pub(super) const RATIOS: [f64; RATIO_COUNT] = [0.25, 0.5, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0];
/// How many there are.
pub(super) const RATIO_COUNT: usize = 11;

/// Most events of one tick that are taken as they are. It bounds the steps of [`Split::ln_likelihood`]; a tick with more
/// counts as one with this many in the same proportions, which is less evidence, never more.
const EVENTS_MAX: u64 = 100_000;
/// What is left out of a sum, as a share of it: less than what its additions round off.
const LEFT_OUT_MAX: f64 = 1e-16;
/// Sums that grow beyond this are scaled down by it, so that they never overflow.
const SCALE: f64 = 1e200;

/// The logarithm of the likelihood of this tick at each of [`RATIOS`]: Fisher's noncentral hypergeometric distribution.
/// `None` where the tick could not have been otherwise and so says nothing.
pub(super) fn ln_likelihoods(stable: Tally, candidate: Tally) -> Option<[f64; RATIO_COUNT]> {
    let split = Split::of(stable, candidate);
    split.could_be_otherwise().then(|| RATIOS.map(|ratio| split.ln_likelihood(ratio)))
}

/// How a tick's events fell on the two versions. Whole numbers, as floats because their products are large.
struct Split {
    candidate_trials: f64,
    stable_trials: f64,
    events: f64,
    candidate_events: f64,
}

impl Split {
    fn of(stable: Tally, candidate: Tally) -> Self {
        let events = u128::from(stable.events()) + u128::from(candidate.events());
        let most = u128::from(EVENTS_MAX);
        let scaled = |count: u64| {
            let count = u128::from(count);
            // Rounding down keeps what is at most as much as another at most as much.
            (if events > most { count * most / events } else { count }) as f64
        };
        let candidate_events = scaled(candidate.events());
        Self {
            candidate_trials: scaled(candidate.trials()),
            stable_trials: scaled(stable.trials()),
            events: candidate_events + scaled(stable.events()),
            candidate_events,
        }
    }

    /// Fewest events that the candidate can have had.
    fn least(&self) -> f64 {
        (self.events - self.stable_trials).max(0.0)
    }

    /// Most events that the candidate can have had.
    fn most(&self) -> f64 {
        self.events.min(self.candidate_trials)
    }

    fn could_be_otherwise(&self) -> bool {
        self.least() < self.most()
    }

    /// All ways of splitting the events are summed in units of the one that was seen: no factorial is ever taken, and
    /// neighbours differ by a factor of four numbers.
    fn ln_likelihood(&self, ratio: f64) -> f64 {
        let seen = self.candidate_events;
        let steps = || (0..EVENTS_MAX).map(|step| step as f64);
        let above = steps().map(|step| seen + step).take_while(|k| *k < self.most());
        let below = steps().map(|step| seen - 1.0 - step).take_while(|k| *k >= self.least());
        let more = ln_sum_of_products(above.map(|k| ratio * self.factor_up_from(k)));
        let fewer = ln_sum_of_products(below.map(|k| (ratio * self.factor_up_from(k)).recip()));
        // Both sums hold the split that was seen.
        let (high, low) = (more.max(fewer), more.min(fewer));
        -(high + ((low - high).exp() - (-high).exp()).ln_1p())
    }

    /// How many times as many ways there are for the candidate to have `k + 1` of the events as to have `k`.
    fn factor_up_from(&self, k: f64) -> f64 {
        let taken = (self.candidate_trials - k) * (self.events - k);
        taken / ((k + 1.0) * (self.stable_trials - self.events + k + 1.0))
    }
}

/// The logarithm of `1 + f₁ + f₁f₂ + …` for factors that do not grow: once the rest, at most a geometric series, is too
/// small to be seen, it is left out.
fn ln_sum_of_products(factors: impl Iterator<Item = f64>) -> f64 {
    let (mut product, mut sum, mut ln_scale) = (1.0_f64, 1.0_f64, 0.0_f64);
    for factor in factors {
        product *= factor;
        sum += product;
        if sum > SCALE {
            product /= SCALE;
            sum /= SCALE;
            ln_scale += SCALE.ln();
        }
        if product * factor <= LEFT_OUT_MAX * (1.0 - factor) * sum {
            break;
        }
    }
    ln_scale + sum.ln()
}
