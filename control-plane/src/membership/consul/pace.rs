//! How often a watch may ask: a token bucket for answers that come too fast, a back-off for errors.

use std::time::Duration;

use tokio::time::Instant;

/// Questions that may follow each other without a pause.
const BURST: f64 = 100.0;
/// Questions a second once the burst is used up.
const REFILL_PER_S: f64 = 20.0;
/// Questions a second at the least, once answer after answer has brought nothing new.
const REFILL_PER_S_MIN: f64 = 1.0 / 15.0;
/// An answer that took so long was waited for: the loop is not hot.
const WAITED: Duration = Duration::from_secs(1);

/// A token bucket that refills ever more slowly while answers come at once and bring no change.
///
/// A watch that Consul wakes for nothing (a wrong index, an index that every change of the catalog moves, agents
/// behind a balancer that disagree) costs little; one that brings changes is never slowed below 20 a second.
#[derive(Debug)]
pub(super) struct Pace {
    tokens: f64,
    refill_per_s: f64,
    filled: Instant,
    /// Whether the bucket was found empty since the last answer.
    ran_dry: bool,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { tokens: BURST, refill_per_s: REFILL_PER_S, filled: now, ran_dry: false }
    }

    /// Takes a token, or says when there will be one.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Instant> {
        let elapsed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + elapsed * self.refill_per_s).min(BURST);
        self.filled = now;
        // A hair below one, so that waiting for exactly one token is enough in floating point.
        if self.tokens >= 1.0 - 1e-6 {
            self.tokens -= 1.0;
            return Ok(());
        }
        self.ran_dry = true;
        Err(now + Duration::from_secs_f64((1.0 - self.tokens) / self.refill_per_s))
    }

    /// Notes what an answer brought, and how long it took.
    pub(super) fn answered(&mut self, changed: bool, took: Duration) {
        if changed || took >= WAITED {
            self.refill_per_s = REFILL_PER_S;
        } else if self.ran_dry {
            self.refill_per_s = (self.refill_per_s / 2.0).max(REFILL_PER_S_MIN);
        }
        self.ran_dry = false;
    }
}

/// The pause after the first error.
const BACK_OFF_FIRST: Duration = Duration::from_millis(250);
/// The pause after many errors.
const BACK_OFF_MAX: Duration = Duration::from_secs(8);

/// An exponential pause with jitter, so that many watches do not come back at the same moment.
#[derive(Debug, Default)]
pub(super) struct BackOff {
    failures: u32,
}

impl BackOff {
    /// The pause after one more failure; `dice` is from 0 to 1.
    pub(super) fn next(&mut self, dice: f64) -> Duration {
        let ceiling = BACK_OFF_FIRST.saturating_mul(1 << self.failures.min(16)).min(BACK_OFF_MAX);
        self.failures = self.failures.saturating_add(1);
        ceiling.mul_f64(0.5 + 0.5 * dice.clamp(0.0, 1.0))
    }

    /// All is well again.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks as often as it may for a time; every answer comes at once. Says how often it asked.
    fn asked_within(pace: &mut Pace, from: Instant, time: Duration, changed: bool) -> u32 {
        let (mut now, mut asked) = (from, 0);
        while now < from + time {
            match pace.take(now) {
                Ok(()) => {
                    asked += 1;
                    pace.answered(changed, Duration::ZERO);
                }
                Err(until) => now = until,
            }
        }
        asked
    }

    #[test]
    fn a_hot_loop_without_changes_comes_down_to_one_in_15_s() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let first = asked_within(&mut pace, start, Duration::from_secs(60), false);
        assert!((100..115).contains(&first), "{first}");
        let later = asked_within(&mut pace, start + Duration::from_secs(60), Duration::from_secs(150), false);
        assert!((9..=11).contains(&later), "{later}");
    }

    #[test]
    fn changes_are_followed_at_20_a_second() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let asked = asked_within(&mut pace, start, Duration::from_secs(60), true);
        assert!((1_290..=1_310).contains(&asked), "{asked}");
    }

    #[test]
    fn a_slowed_watch_is_quick_again_once_an_answer_was_waited_for() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        asked_within(&mut pace, start, Duration::from_secs(60), false);
        pace.answered(false, WAITED);
        let later = asked_within(&mut pace, start + Duration::from_secs(60), Duration::from_secs(1), true);
        assert!(later >= 20, "{later}");
    }

    #[test]
    fn the_back_off_grows_with_jitter_up_to_its_limit() {
        let mut back_off = BackOff::default();
        let pauses: Vec<u128> = (0..8).map(|_| back_off.next(1.0).as_millis()).collect();
        assert_eq!(pauses, [250, 500, 1_000, 2_000, 4_000, 8_000, 8_000, 8_000]);
        back_off.reset();
        assert_eq!(back_off.next(0.0).as_millis(), 125);
    }
}
