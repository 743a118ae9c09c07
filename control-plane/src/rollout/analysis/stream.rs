//! One kind of event, followed in both versions: what it came to, and how much that says about their odds.

use serde::{Deserialize, Serialize};

use super::counts::Tally;
use super::logarithm::{ln_add, ln_mean_exp};
use super::odds::{self, RATIO_COUNT, RATIOS};

/// The place in [`RATIOS`] of the ratio that is never a reason to roll back. Two groups of subjects differ a little however
/// alike their versions are, and with enough traffic every difference is certain.
const TOLERATED: usize = 4;
/// How many ratios lie above it: what is bet on, a stake each.
const STAKE_COUNT: usize = RATIO_COUNT - TOLERATED - 1;
/// The part of the stakes that is kept back at first and comes in with the events. Without it a long good time would have
/// lost all stakes, and what goes wrong late would be seen late.
const RESERVE: f64 = 0.25;
/// Most that one tick multiplies a stake by: no single tick can roll back, however bad. A restart, or a network that
/// stumbles, fails many subjects at once, who then are no independent trials.
const FACTOR_MAX: f64 = 20.0;

/// An e-value up to which there is no suspicion: chance alone passes it half the time.
const SUSPICION: f64 = 2.0;
/// Most trials under suspicion that are remembered; then the older half is forgotten. Else one that has been under suspicion
/// for days would have to fail for hours.
const SUSPECT_TRIALS_MAX: u64 = 2_000;

/// What was seen of one kind of event, and the bets on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Stream {
    stable: Tally,
    candidate: Tally,
    /// The candidate's since the e-value was last without suspicion, of about the last [`SUSPECT_TRIALS_MAX`] trials.
    suspect: Tally,
    /// Of all ticks, at each of [`RATIOS`].
    ln_likelihoods: [f64; RATIO_COUNT],
    /// What the stakes have become.
    ln_stakes: [f64; STAKE_COUNT],
}

impl Default for Stream {
    fn default() -> Self {
        Self {
            stable: Tally::default(),
            candidate: Tally::default(),
            suspect: Tally::default(),
            ln_likelihoods: [0.0; RATIO_COUNT],
            ln_stakes: [(1.0 - RESERVE).ln(); STAKE_COUNT],
        }
    }
}

impl Stream {
    pub(super) fn stable(&self) -> Tally {
        self.stable
    }

    pub(super) fn candidate(&self) -> Tally {
        self.candidate
    }

    pub(super) fn suspect(&self) -> Tally {
        self.suspect
    }

    /// Takes one tick.
    pub(super) fn add(&mut self, stable: Tally, candidate: Tally) {
        if self.ln_e_worse() <= SUSPICION.ln() {
            self.suspect = Tally::default();
        }
        self.suspect = self.suspect.plus(candidate);
        if self.suspect.trials() > SUSPECT_TRIALS_MAX {
            self.suspect = self.suspect.halved();
        }
        let kept_back = self.reserve();
        self.stable = self.stable.plus(stable);
        self.candidate = self.candidate.plus(candidate);
        let released = kept_back - self.reserve();
        if released > 0.0 {
            self.ln_stakes = self.ln_stakes.map(|ln_stake| ln_add(ln_stake, released.ln()));
        }
        if let Some(told) = odds::ln_likelihoods(stable, candidate) {
            self.take(&told);
        }
    }

    fn take(&mut self, told: &[f64; RATIO_COUNT]) {
        for (sum, ln_likelihood) in self.ln_likelihoods.iter_mut().zip(told) {
            *sum += ln_likelihood;
        }
        for (ln_stake, ln_likelihood) in self.ln_stakes.iter_mut().zip(&told[TOLERATED + 1..]) {
            *ln_stake += (ln_likelihood - told[TOLERATED]).min(FACTOR_MAX.ln());
        }
    }

    /// What is still kept back. It shrinks so slowly that events late in a long rollout bring in something, too.
    fn reserve(&self) -> f64 {
        let events = self.stable.events() as f64 + self.candidate.events() as f64;
        RESERVE / (1.0 + events.ln_1p())
    }

    /// The logarithm of the e-value against "the candidate's odds were never more than what is tolerated".
    pub(super) fn ln_e_worse(&self) -> f64 {
        ln_add(ln_mean_exp(&self.ln_stakes), self.reserve().ln())
    }

    /// The largest ratio that the odds have been shown to exceed, at this e-value.
    pub(super) fn ratio_at_least(&self, ln_needed: f64) -> Option<f64> {
        let is_shown = |place: &usize| self.ln_e(*place, &self.ln_likelihoods[place + 1..]) >= ln_needed;
        // In a row from the end: then the bound is wrong only if the one step at the truth is.
        (0..RATIO_COUNT - 1).take_while(is_shown).last().map(|place| RATIOS[place])
    }

    /// The smallest ratio that the odds have been shown to be below, at this e-value.
    pub(super) fn ratio_at_most(&self, ln_needed: f64) -> Option<f64> {
        let is_shown = |place: &usize| self.ln_e(*place, &self.ln_likelihoods[..*place]) >= ln_needed;
        (1..RATIO_COUNT).rev().take_while(is_shown).last().map(|place| RATIOS[place])
    }

    /// The logarithm of the mean likelihood of others against that of the ratio at this place.
    fn ln_e(&self, place: usize, others: &[f64]) -> f64 {
        ln_mean_exp(others) - self.ln_likelihoods[place]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STABLE: u64 = 6;
    const CANDIDATE: u64 = 2;

    fn binomial(trials: u64, chance: f64) -> Vec<f64> {
        let mut ways = 1.0;
        let mut all = Vec::new();
        for events in 0..=trials {
            all.push(ways * chance.powf(events as f64) * (1.0 - chance).powf((trials - events) as f64));
            ways *= (trials - events) as f64 / (events + 1) as f64;
        }
        all
    }

    /// Everything that can happen in a tick, with its chance, when the candidate's odds are so many times the stable ones.
    fn ticks(stable: f64, ratio: f64) -> Vec<(f64, Tally, Tally)> {
        let odds = ratio * stable / (1.0 - stable);
        let (stable, candidate) = (binomial(STABLE, stable), binomial(CANDIDATE, odds / (1.0 + odds)));
        let mut all = Vec::new();
        for (e_b, p_b) in (0..).zip(&stable) {
            for (e_c, p_c) in (0..).zip(&candidate) {
                all.push((p_b * p_c, Tally::new(STABLE, e_b), Tally::new(CANDIDATE, e_c)));
            }
        }
        all
    }

    /// The mean of some e-value after two ticks, of which the second may have another failure rate.
    fn mean_after_two(ratio: f64, e_value: impl Fn(&Stream) -> f64) -> f64 {
        let mut mean = 0.0;
        for (chance, stable, candidate) in ticks(0.1, ratio) {
            let mut first = Stream::default();
            first.add(stable, candidate);
            for (next, stable, candidate) in ticks(0.3, ratio) {
                let mut second = first.clone();
                second.add(stable, candidate);
                mean += chance * next * e_value(&second);
            }
        }
        mean
    }

    #[test]
    fn no_bet_against_a_tolerated_candidate_wins_in_the_mean() {
        let e_value = |stream: &Stream| stream.ln_e_worse().exp();
        for ratio in [0.3, 1.0, RATIOS[TOLERATED]] {
            let mean = mean_after_two(ratio, e_value);
            assert!(mean <= 1.0 + 1e-12, "{ratio}: {mean}");
        }
        // Two trials never meet the limit of a tick: at the border it is exactly a fair game.
        assert!((mean_after_two(RATIOS[TOLERATED], e_value) - 1.0).abs() < 1e-9);
        assert!(mean_after_two(3.0, e_value) > 1.0);
    }

    #[test]
    fn bounds_are_shown_by_fair_games_too() {
        for place in 1..RATIO_COUNT - 1 {
            let above = |stream: &Stream| stream.ln_e(place, &stream.ln_likelihoods[place + 1..]).exp();
            let below = |stream: &Stream| stream.ln_e(place, &stream.ln_likelihoods[..place]).exp();
            for e_value in [&above as &dyn Fn(&Stream) -> f64, &below] {
                assert!((mean_after_two(RATIOS[place], e_value) - 1.0).abs() < 1e-9);
            }
            assert!(mean_after_two(RATIOS[place - 1], above) < 1.0);
            assert!(mean_after_two(RATIOS[place + 1], below) < 1.0);
        }
    }

    fn after(ticks: u32, stable: (u64, u64), candidate: (u64, u64)) -> Stream {
        let mut stream = Stream::default();
        (0..ticks)
            .for_each(|_| stream.add(Tally::new(stable.0, stable.1), Tally::new(candidate.0, candidate.1)));
        stream
    }

    #[test]
    fn bounds_close_in_on_the_truth() {
        let threefold = after(200, (1_000, 10), (100, 3));
        assert_eq!(threefold.ratio_at_least(100_f64.ln()), Some(2.0));
        assert_eq!(threefold.ratio_at_most(100_f64.ln()), Some(5.0));
        let same = after(200, (1_000, 10), (100, 1));
        assert_eq!(same.ratio_at_least(100_f64.ln()), Some(0.5));
        assert_eq!(same.ratio_at_most(100_f64.ln()), Some(1.5));
        assert_eq!(Stream::default().ratio_at_least(100_f64.ln()), None);
        assert_eq!(Stream::default().ratio_at_most(100_f64.ln()), None);
    }

    #[test]
    fn no_single_tick_is_enough() {
        let terrible = after(1, (10_000, 0), (1_000, 1_000));
        assert!(terrible.ln_e_worse().exp() <= FACTOR_MAX);
        assert!(after(2, (10_000, 0), (1_000, 1_000)).ln_e_worse().exp() > 200.0);
    }

    #[test]
    fn what_goes_wrong_after_a_day_is_found_within_minutes() {
        // A day of one failure in a thousand each, then the candidate has one in fifty.
        let mut stream = after(86_400, (1_000, 1), (10, 0));
        for _ in 0..864 {
            stream.add(Tally::new(1_000, 1), Tally::new(10, 1));
        }
        let mut seconds = 0;
        while stream.ln_e_worse() < 200_f64.ln() {
            seconds += 5;
            (0..4).for_each(|_| stream.add(Tally::new(1_000, 1), Tally::new(10, 0)));
            stream.add(Tally::new(1_000, 1), Tally::new(10, 1));
        }
        assert!(seconds < 180, "{seconds}");
    }

    #[test]
    fn suspicion_forgets_what_is_long_ago() {
        let mut stream = after(1, (1_000, 0), (10, 1));
        for _ in 0..100_000 {
            stream.add(Tally::new(1_000, 0), Tally::new(10, 0));
        }
        assert!(stream.suspect().trials() <= SUSPECT_TRIALS_MAX);
        assert_eq!(stream.suspect().events(), 0);
    }
}
