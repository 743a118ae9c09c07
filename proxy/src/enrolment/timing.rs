//! When to renew, how often to look for other roots, and how long to wait after a failure. Pure: times and dice are arguments.

use std::time::Duration;

/// How often it is asked which roots are to be trusted, so that a change of them reaches everybody within a minute. Where
/// certificates are short, a tenth of their life.
const ROOTS_EVERY: Duration = Duration::from_secs(30);
const ROOTS_EVERY_MIN: Duration = Duration::from_millis(200);
/// The part of a life after which a certificate is renewed, and by how much that differs from proxy to proxy.
const RENEW_AFTER: f64 = 0.5;
const JITTER: f64 = 0.1;
/// The pause after a first failure; doubles from there.
const PAUSE: Duration = Duration::from_millis(500);

/// The life of a certificate from the moment it was given, in milliseconds of Unix time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Life {
    pub(super) since_ms: u64,
    pub(super) ends_ms: u64,
}

impl Life {
    fn length(self) -> Duration {
        Duration::from_millis(self.ends_ms.saturating_sub(self.since_ms))
    }

    /// When it is to be renewed, in milliseconds of Unix time. `dice` is from 0 to 1.
    pub(super) fn renew_at_ms(self, dice: f64) -> u64 {
        let part = RENEW_AFTER * (1.0 + JITTER * (2.0 * dice - 1.0));
        let after = self.length().mul_f64(part).as_millis();
        self.since_ms.saturating_add(u64::try_from(after).unwrap_or(u64::MAX))
    }

    /// How much of it is left.
    pub(super) fn left(self, now_ms: u64) -> Duration {
        Duration::from_millis(self.ends_ms.saturating_sub(now_ms))
    }

    /// Whether less than a fifth of it is left.
    pub(super) fn is_near_its_end(self, now_ms: u64) -> bool {
        self.left(now_ms) < self.length() / 5
    }
}

/// From one look at the roots to the next, for a certificate of this life; `None` while there is none.
pub(super) fn roots_every(life: Option<Life>) -> Duration {
    life.map_or(ROOTS_EVERY, |life| (life.length() / 10).clamp(ROOTS_EVERY_MIN, ROOTS_EVERY))
}

/// How long is waited after so many failures in a row, at least one. `dice` is from 0 to 1.
pub(super) fn pause(failures: u32, life: Option<Life>, dice: f64) -> Duration {
    let doubled = PAUSE.saturating_mul(1_u32 << (failures.saturating_sub(1)).min(16));
    doubled.min(roots_every(life)).mul_f64(0.5 + 0.5 * dice)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Life = Life { since_ms: 1_000, ends_ms: 3_601_000 };
    const SECONDS: Life = Life { since_ms: 0, ends_ms: 4_000 };

    #[test]
    fn a_certificate_is_renewed_around_half_of_its_life() {
        for (dice, expected) in [(0.0, 1_621_000), (0.5, 1_801_000), (1.0, 1_981_000)] {
            assert_eq!(HOUR.renew_at_ms(dice), expected);
        }
        assert_eq!(SECONDS.renew_at_ms(0.5), 2_000);
        let ended = Life { since_ms: 10, ends_ms: 5 };
        assert_eq!((ended.renew_at_ms(0.3), ended.left(20)), (10, Duration::ZERO));
    }

    #[test]
    fn its_end_is_near_when_a_fifth_is_left() {
        assert!(!HOUR.is_near_its_end(2_880_000) && HOUR.is_near_its_end(2_882_000));
        assert!(HOUR.is_near_its_end(9_999_999));
    }

    #[test]
    fn roots_and_failures_are_looked_at_as_often_as_a_life_asks_for() {
        assert_eq!(roots_every(None), Duration::from_secs(30));
        assert_eq!(roots_every(Some(HOUR)), Duration::from_secs(30));
        assert_eq!(roots_every(Some(SECONDS)), Duration::from_millis(400));
        for (failures, life, dice, expected_ms) in [
            (1, Some(HOUR), 1.0, 500),
            (1, Some(HOUR), 0.0, 250),
            (3, Some(HOUR), 1.0, 2_000),
            (60, None, 1.0, 30_000),
            (60, Some(HOUR), 0.0, 15_000),
            (9, Some(SECONDS), 1.0, 400),
        ] {
            assert_eq!(pause(failures, life, dice), Duration::from_millis(expected_ms), "{failures}");
        }
    }
}
