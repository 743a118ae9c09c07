//! What a document says of calls that fail, in a few lines for people: breaker, fallbacks, what operators force.

use std::time::SystemTime;

use gilmok_config::breaker::BreakerPolicy;
use gilmok_config::fallback::{Action, Fallback};
use gilmok_config::forced::{ForcedBreaker, Left};
use gilmok_config::moment::format_moment;
use gilmok_config::service::ServicePolicy;
use gilmok_config::unit::format_duration;

/// A row for each, its name first.
pub(super) fn told(policy: &ServicePolicy, now: SystemTime) -> Vec<Vec<String>> {
    let row = |name: &str, what: String| vec![name.to_owned(), what];
    let mut rows = vec![row("breaker", policy.circuit_breaker.as_ref().map_or("none".to_owned(), breaker))];
    rows.extend(policy.forced_breakers.iter().map(|one| row("forced", forced(one, now))));
    let chain: Vec<_> = policy.fallback.iter().map(fallback).collect();
    rows.push(row("fallback", if chain.is_empty() { "none".to_owned() } else { chain.join(", then ") }));
    rows
}

fn breaker(policy: &BreakerPolicy) -> String {
    format!(
        "one for each {}; judges from {} calls in {}, stays open for {} to {}",
        policy.scope.as_str(),
        policy.min_requests,
        format_duration(policy.window),
        format_duration(policy.open_for),
        format_duration(policy.open_for_max)
    )
}

fn forced(forced: &ForcedBreaker, now: SystemTime) -> String {
    let mut told = forced.state.as_str().to_owned();
    for (name, value) in [("version", &forced.version), ("shard", &forced.shard)] {
        if !value.is_empty() {
            told.push_str(&format!(", {name} {value}"));
        }
    }
    if !forced.by.is_empty() {
        told.push_str(&format!(", by {}", forced.by));
    }
    let until = forced.until.map(format_moment).unwrap_or_default();
    match forced.left(now) {
        Some(Left::Always) => told.push_str(", until something else is said"),
        Some(Left::For(_)) => told.push_str(&format!(", until {until}")),
        None => told.push_str(&format!(", over since {until}")),
    }
    told
}

fn fallback(link: &Fallback) -> String {
    match &link.action {
        Action::LastGood(last_good) => {
            format!("the last good answer of up to {} ago", format_duration(last_good.max_age))
        }
        Action::Respond(prepared) => {
            format!("a prepared {} of {} bytes", prepared.status.as_u16(), prepared.body.len())
        }
        Action::Service(name) => format!("the service {name}"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gilmok_config::document::Document;

    use super::*;

    #[test]
    fn what_happens_when_calls_fail_is_told_in_a_few_lines() {
        let text = "[services.ads]\ncircuit_breaker = {}\n\
            forced_breakers = [{ state = \"open\", until = \"1970-01-01T00:16:40Z\", by = \"ann\", version = \"v2\" }]\n\
            fallback = [{ last_good = {} }, { respond = { body = \"house\" } }]\n[services.b]\n";
        let document = Document::parse_toml(text).unwrap();
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let rows: Vec<_> =
            told(&document.services["ads"], at(900)).into_iter().map(|row| row.join(": ")).collect();
        assert_eq!(
            rows,
            [
                "breaker: one for each target; judges from 20 calls in 10s, stays open for 5s to 1m",
                "forced: open, version v2, by ann, until 1970-01-01T00:16:40Z",
                "fallback: the last good answer of up to 5m ago, then a prepared 200 of 5 bytes",
            ]
        );
        let over = &told(&document.services["ads"], at(1_001))[1][1];
        assert_eq!(over, "open, version v2, by ann, over since 1970-01-01T00:16:40Z");
        assert_eq!(told(&document.services["b"], at(0)), [["breaker", "none"], ["fallback", "none"]]);
    }
}
