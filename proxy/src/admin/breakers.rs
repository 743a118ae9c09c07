//! `/breakers`: what guards the services' targets, and what it does now.

use std::sync::Arc;

use gilmok_config::moment::format_moment;
use serde_json::{Value, json};

use super::Admin;
use crate::breaker::{Forced, State};
use crate::clock;
use crate::upstream::breakers::Guarded;
use crate::upstream::service::Upstream;

/// Every breaker, or those of one service.
pub(super) fn breakers(admin: &Admin, only: Option<&str>) -> Value {
    let current = admin.in_force.load();
    let wanted = |upstream: &&Arc<Upstream>| only.is_none_or(|name| upstream.name.as_str() == name);
    let told: Vec<_> = current.upstreams.iter().filter(wanted).flat_map(|upstream| of(upstream)).collect();
    json!({ "breakers": told })
}

/// Those of one service.
pub(super) fn of(upstream: &Upstream) -> Vec<Value> {
    let now_ms = clock::now_ms();
    let guarded = upstream.breakers.iter().flat_map(|breakers| breakers.all());
    guarded.map(|guarded| breaker(upstream, guarded, now_ms)).collect()
}

fn breaker(upstream: &Upstream, guarded: &Guarded, now_ms: u64) -> Value {
    let Guarded { version, shard, breaker, forced_by, forced_until } = guarded;
    let counts = breaker.counts(now_ms);
    let transitions = breaker.transitions();
    json!({
        "service": upstream.name,
        "version": version,
        "shard": shard,
        "state": breaker.state(now_ms).as_str(),
        "open_for_ms": breaker.open_for_ms(now_ms),
        "forced": breaker.forced(now_ms).map(|forced| self::forced(forced, forced_by, *forced_until, now_ms)),
        "window": { "calls": counts.calls, "failures": counts.failures, "slow": counts.slow },
        "opened": transitions.to(State::Open),
        "closed": transitions.to(State::Closed),
    })
}

fn forced(forced: Forced, by: &str, until: Option<u64>, now_ms: u64) -> Value {
    json!({
        "state": forced.state.as_str(),
        "by": by,
        "until": until.map(format_moment),
        "for_ms": forced.until_ms.map(|until| until.saturating_sub(now_ms)),
    })
}
