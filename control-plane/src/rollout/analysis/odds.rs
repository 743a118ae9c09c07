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

#[cfg(test)]
mod tests {
    use super::*;

    /// Stable trials and events, candidate trials and events.
    type Tick = (u64, u64, u64, u64);

    fn told((n_b, e_b, n_c, e_c): Tick) -> [f64; RATIO_COUNT] {
        ln_likelihoods(Tally::new(n_b, e_b), Tally::new(n_c, e_c)).unwrap()
    }

    /// From exact fractions and, for the two largest, from forty digits, by another program in another language.
    #[rustfmt::skip]
    const GOLDEN: [(Tick, [f64; RATIO_COUNT]); 6] = [
        ((99, 0, 1, 1), [
            -5.983936280687191, -5.293304824724492, -4.826311734631628, -4.605170185988092, -4.384523514872469, -4.204692619390966,
            -3.9219733362813143, -3.5263605246161616, -3.034952986707272, -2.3887627892350976, -1.4586150226995165,
        ]),
        ((50, 3, 50, 9), [
            -9.650256173448312, -5.774171030712406, -3.798679944347313, -3.062954944306213, -2.4598186364620602, -2.0647160866921332,
            -1.6152879473527335, -1.3221413485587732, -1.450669342658113, -2.316339230638775, -4.698251311694129,
        ]),
        // More events than either has trials of its own.
        ((20, 19, 5, 3), [
            -1.009325597841345, -1.5892352051165806, -2.1413006952658904, -2.4423470353692043, -2.765296574036607, -3.043728471822247,
            -3.506307866064773, -4.19820395175366, -5.11954948795338, -6.42730527587424, -8.570449873762255,
        ]),
        ((3, 2, 7, 0), [
            -1.1592369104845446, -1.83258146374831, -2.405141681319138, -2.70805020110221, -3.0295296531372817, -3.3050535211092527,
            -3.7612001156935624, -4.442651256490317, -5.351858133476067, -6.647688373563329, -8.781248333236862,
        ]),
        ((100_000, 100, 1_000, 10), [
            -28.7452632036904, -22.08794956836807, -17.715905972074815, -15.70253156208917, -13.743000673430604, -12.19094747217421,
            -9.854242232617217, -6.87110551266171, -3.8719416902983452, -2.0267290203433563, -9.163760921568537,
        ]),
        ((990_000, 9_000, 10_000, 1_000), [
            -2802.410597350664, -2134.5793159415393, -1694.7865739989343, -1491.6829529990582, -1293.4774731875775, -1135.9711441317334,
            -897.556951810827, -589.2173440894352, -267.2993812932711, -18.65132908546684, -409.4257299725954,
        ]),
    ];

    #[test]
    fn likelihoods_are_those_that_others_find() {
        for (tick, expected) in GOLDEN {
            for (found, expected) in told(tick).into_iter().zip(expected) {
                let error = ((found - expected) / expected).abs();
                assert!(error < 1e-12, "{tick:?}: {found}, not {expected}");
            }
        }
    }

    #[test]
    fn all_ways_of_splitting_the_events_are_one_whole() {
        for (n_b, n_c, e) in
            [(1_u64, 1, 1_u64), (5, 3, 4), (3, 5, 6), (40, 2, 7), (2, 40, 30), (300, 300, 150)]
        {
            let possible = e.saturating_sub(n_b)..=e.min(n_c);
            let mut sums = [0.0; RATIO_COUNT];
            for e_c in possible {
                for (sum, ln) in sums.iter_mut().zip(told((n_b, e - e_c, n_c, e_c))) {
                    *sum += ln.exp();
                }
            }
            assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-12), "{n_b} {n_c} {e}: {sums:?}");
        }
    }

    #[test]
    fn a_tick_that_could_not_be_otherwise_says_nothing() {
        for (n_b, e_b, n_c, e_c) in
            [(0, 0, 0, 0), (9, 0, 9, 0), (9, 9, 9, 9), (0, 0, 9, 4), (9, 4, 0, 0), (u64::MAX, 0, u64::MAX, 0)]
        {
            assert_eq!(ln_likelihoods(Tally::new(n_b, e_b), Tally::new(n_c, e_c)), None);
        }
    }

    #[test]
    fn a_tick_beyond_all_measure_is_one_of_bounded_size() {
        let huge = told((u64::MAX, u64::MAX / 4, u64::MAX, u64::MAX / 2));
        let same = told((400_000 / 3, 100_000 / 3, 400_000 / 3, 200_000 / 3));
        for (huge, same) in huge.into_iter().zip(same) {
            assert!((huge - same).abs() < 1e-3 * same.abs(), "{huge} {same}");
        }
    }
}
