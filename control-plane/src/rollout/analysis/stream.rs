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

/// What was seen of one kind of event, and the bets on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Stream {
    stable: Tally,
    candidate: Tally,
    /// The candidate's since the e-value was last at one or below: since there is a suspicion.
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
        if self.ln_e_worse() <= 0.0 {
            self.suspect = Tally::default();
        }
        self.suspect = self.suspect.plus(candidate);
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
