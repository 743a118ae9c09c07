//! The policy of tries beyond the first one.

use std::time::Duration;

use crate::failure::{Failure, FailureSet, WIRE};
use crate::grammar::Value;

/// Most tries beyond the first one that a document may ask for.
const ATTEMPTS_MAX: u32 = 10;

/// `[services.s.retry]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Tries beyond the first one.
    pub attempts: u32,
    /// What is tried again although it was sent, if the request is idempotent.
    /// What was not sent may always be tried again.
    pub on: FailureSet,
    pub per_try_timeout: Option<Duration>,
    /// Tries beyond the first in flight, in percent of the requests in flight.
    pub budget_percent: u32,
    /// How many of them there may always be.
    pub budget_min: u32,
}

impl Default for RetryPolicy {
    /// Without the table: one more try, only when nothing of the request was sent.
    fn default() -> Self {
        Self {
            attempts: 1,
            on: FailureSet::default(),
            per_try_timeout: None,
            budget_percent: 20,
            budget_min: 3,
        }
    }
}

impl RetryPolicy {
    pub(crate) fn read(value: &Value<'_>) -> Option<Self> {
        let mut table = value.table()?;
        let default = Self::default();
        let on = table.optional("on").map(|v| FailureSet::read(&v, &WIRE));
        let policy = Self {
            attempts: table
                .optional("attempts")
                .and_then(|v| v.integer(0, ATTEMPTS_MAX))
                .unwrap_or(default.attempts),
            on: match on {
                Some(on) => on.unwrap_or_default(),
                None => FailureSet::of(&[Failure::Connect, Failure::Refused, Failure::Reset]),
            },
            per_try_timeout: table
                .optional("per_try_timeout")
                .and_then(|v| v.duration_or_none(Duration::from_millis(1), Duration::from_hours(24)))
                .flatten(),
            budget_percent: table
                .optional("budget_percent")
                .and_then(|v| v.integer(0, 100))
                .unwrap_or(default.budget_percent),
            budget_min: table
                .optional("budget_min")
                .and_then(|v| v.integer(0, 1_000))
                .unwrap_or(default.budget_min),
        };
        table.finish();
        Some(policy)
    }
}
