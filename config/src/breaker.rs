//! The policy of circuit breakers: what they guard, when they open, and how they find out that all is well again.

use std::time::Duration;

use crate::failure::{Failure, FailureSet, WIRE};
use crate::grammar::Value;
use crate::unit::Ppm;

/// `[services.s.circuit_breaker]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerPolicy {
    pub scope: Scope,
    /// How far back outcomes count.
    pub window: Duration,
    /// Calls in the window below which no percentage opens it.
    pub min_requests: u32,
    /// Share of failures in the window at which it opens.
    pub failure_share: Ppm,
    /// A call counts as slow once it has lasted that long, finished or not.
    pub slow_call: Option<Duration>,
    /// Share of slow calls in the window at which it opens.
    pub slow_share: Ppm,
    /// Failures in a row that open it, whatever the window says; 0 is off.
    pub consecutive_failures: u32,
    /// How long it stays open; doubles while probes fail, up to `open_for_max`.
    pub open_for: Duration,
    pub open_for_max: Duration,
    /// Most probes in flight while it is half-open.
    pub half_open_requests: u32,
    /// What counts as a failure. 4xx never does.
    pub failures: FailureSet,
}

/// What one breaker guards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Scope {
    Service,
    Shard,
    /// A version's part on one shard.
    #[default]
    Target,
    Version,
}

impl Scope {
    /// The word that a document uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        SCOPES.iter().find(|(_, scope)| *scope == self).map_or("", |(word, _)| word)
    }
}

const SCOPES: [(&str, Scope); 4] = [
    ("service", Scope::Service),
    ("version", Scope::Version),
    ("shard", Scope::Shard),
    ("target", Scope::Target),
];

/// Shorter windows and openings would be decided by single calls, longer ones never end.
const DURATION_MIN: Duration = Duration::from_millis(100);
const DURATION_MAX: Duration = Duration::from_hours(24);

impl Default for BreakerPolicy {
    /// The values of a table that is there and empty.
    fn default() -> Self {
        Self {
            scope: Scope::Target,
            window: Duration::from_secs(10),
            min_requests: 20,
            failure_share: Ppm::HALF,
            slow_call: None,
            slow_share: Ppm::WHOLE,
            consecutive_failures: 0,
            open_for: Duration::from_secs(5),
            open_for_max: Duration::from_mins(1),
            half_open_requests: 1,
            failures: FailureSet::of(&WIRE).with_5xx(),
        }
    }
}

impl BreakerPolicy {
    pub(crate) fn read(value: &Value<'_>) -> Option<Self> {
        let mut table = value.table()?;
        let default = Self::default();
        let scope = table.optional("scope").and_then(|v| v.choice(&SCOPES)).unwrap_or_default();
        let mut duration = |key, default| {
            table.optional(key).and_then(|v| v.duration(DURATION_MIN, DURATION_MAX)).unwrap_or(default)
        };
        let window = duration("window", default.window);
        let open_for = duration("open_for", default.open_for);
        let open_for_max = duration("open_for_max", default.open_for_max.max(open_for));
        let slow_call = table
            .optional("slow_call")
            .and_then(|v| v.duration_or_none(Duration::from_millis(1), DURATION_MAX))
            .flatten();
        let mut percent = |key, default| {
            let Some(value) = table.optional(key) else { return default };
            let share = value.percent().unwrap_or(default);
            if share == Ppm::NONE {
                value.fault("0 % opens the breaker at once", "more than 0, at most 100");
            }
            share
        };
        let failure_share = percent("failure_percent", default.failure_share);
        let slow_share = percent("slow_percent", default.slow_share);
        let mut integer = |key, default, least| {
            table.optional(key).and_then(|v| v.integer(least, 1_000_000)).unwrap_or(default)
        };
        let policy = Self {
            scope,
            window,
            min_requests: integer("min_requests", default.min_requests, 1),
            failure_share,
            slow_call,
            slow_share,
            consecutive_failures: integer("consecutive_failures", default.consecutive_failures, 0),
            open_for,
            open_for_max,
            half_open_requests: integer("half_open_requests", default.half_open_requests, 1),
            failures: table
                .optional("failures")
                .and_then(|v| {
                    let known = [&WIRE[..], &[Failure::Cancelled]].concat();
                    FailureSet::read(&v, &known)
                })
                .unwrap_or(default.failures),
        };
        if open_for_max < open_for {
            table.value().fault("`open_for_max` is shorter than `open_for`", "at least as long");
        }
        table.finish();
        Some(policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;

    fn read(table: &str) -> Result<BreakerPolicy, String> {
        let text = format!("[services.ads.circuit_breaker]\n{table}\n");
        let document = Document::parse_toml(&text).map_err(|told| told.to_string())?;
        Ok(document.services["ads"].circuit_breaker.expect("the table is there"))
    }

    #[test]
    fn an_empty_table_has_the_defaults() {
        assert_eq!(read("").unwrap(), BreakerPolicy::default());
        let policy = read(
            "scope = \"shard\"\nslow_call = \"1s\"\nopen_for = \"2m\"\nfailures = [\"cancelled\", \"502\"]",
        )
        .unwrap();
        assert_eq!((policy.scope, policy.slow_call), (Scope::Shard, Some(Duration::from_secs(1))));
        assert_eq!(policy.open_for_max, Duration::from_mins(2));
        assert!(policy.failures.has(Failure::Cancelled) && policy.failures.has_status(502));
        assert!(!policy.failures.has_status(500));
    }

    #[test]
    fn nonsense_is_refused_with_its_line() {
        for (table, what) in [
            (
                "failure_percent = 130",
                "line 2: services.ads.circuit_breaker.failure_percent: 130 is no percentage",
            ),
            ("failure_percent = 0", "line 2: services.ads.circuit_breaker.failure_percent: 0 % opens"),
            ("open_for = \"0s\"", "line 2: services.ads.circuit_breaker.open_for: 0s is out of range"),
            ("open_for_max = \"1s\"", "line 1: services.ads.circuit_breaker: `open_for_max` is shorter"),
            (
                "failures = [\"404\"]",
                "line 2: services.ads.circuit_breaker.failures[0]: \"404\" is no failure",
            ),
            ("half_open_requests = 0", "line 2: services.ads.circuit_breaker.half_open_requests: 0 is out"),
            (
                "windows = \"1s\"",
                "line 2: services.ads.circuit_breaker.windows: unknown key (did you mean `window`?)",
            ),
        ] {
            let told = read(table).unwrap_err();
            assert!(told.starts_with(what), "{table}: {told}");
        }
    }
}
