//! Sharded services as they live now: who serves each shard, which shard nobody serves, which keys are on their way to another
//! one, and how many requests waited or were sent on.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering::Relaxed;

use gilmok_config::endpoint::Role;
use gilmok_config::name::Name;
use serde_json::{Value, json};

use super::scrape::{add_family, line};
use crate::current::Current;
use crate::upstream::passages::Passages;
use crate::upstream::service::Upstream;

/// The series of shards at `/metrics`.
pub(super) fn add(out: &mut String, current: &Current) {
    let (mut endpoints, mut redirects) = (String::new(), String::new());
    for upstream in &current.upstreams {
        if upstream.policy.sharding.is_none() {
            continue;
        }
        let service = &upstream.name;
        for (shard, served) in served(upstream) {
            let many = served.endpoints;
            line(
                &mut endpoints,
                format_args!("gilmok_shard_endpoints{{service=\"{service}\",shard=\"{shard}\"}} {many}"),
            );
        }
        let sent_on = upstream.shared.redirects.load(Relaxed);
        line(&mut redirects, format_args!("gilmok_shard_redirects_total{{service=\"{service}\"}} {sent_on}"));
    }
    let help = "Endpoints that serve a shard of the map; 0 where nobody does.";
    add_family(out, "gilmok_shard_endpoints", "gauge", help, &endpoints);
    let help = "Requests that the owner of a shard sent on to another one.";
    add_family(out, "gilmok_shard_redirects_total", "counter", help, &redirects);
    add_moves(out, current);
}

/// The series of keys on their way to another shard.
fn add_moves(out: &mut String, current: &Current) {
    let (mut held, mut misdirected) = (String::new(), String::new());
    for (service, here) in sharded(current) {
        let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
        for (outcome, count) in here.iter().flat_map(|upstream| upstream.shared.held.all()) {
            *sums.entry(outcome).or_default() += count;
        }
        for (outcome, sum) in sums.into_iter().filter(|(_, sum)| *sum > 0) {
            line(
                &mut held,
                format_args!("gilmok_shard_held_total{{service=\"{service}\",outcome=\"{outcome}\"}} {sum}"),
            );
        }
        let apps = || here.iter().filter(|upstream| upstream.owned.is_some());
        if apps().next().is_some() {
            let sum: u64 = apps().map(|app| app.shared.misdirected.load(Relaxed)).sum();
            line(
                &mut misdirected,
                format_args!("gilmok_shard_misdirected_total{{service=\"{service}\"}} {sum}"),
            );
        }
    }
    let help = "Requests that waited for their key to be at another shard.";
    add_family(out, "gilmok_shard_held_total", "counter", help, &held);
    let help = "Requests that an app's shard does not hold the key of.";
    add_family(out, "gilmok_shard_misdirected_total", "counter", help, &misdirected);
}

/// Every sharded service with what is called of it and the apps beside this proxy.
fn sharded(current: &Current) -> BTreeMap<&str, Vec<&Upstream>> {
    let mut services: BTreeMap<&str, Vec<&Upstream>> = BTreeMap::new();
    for upstream in current.upstreams.iter().chain(&current.apps) {
        if upstream.rule().is_some() {
            services.entry(upstream.name.as_str()).or_default().push(upstream);
        }
    }
    services
}

/// Every service that has keys on their way to another shard, and what waits for them.
pub(super) fn moving(current: &Current) -> Vec<Value> {
    let services = sharded(current).into_iter().filter_map(|(service, here)| {
        let rule = here.first()?.rule()?;
        let next = rule.next()?;
        let unquiet = |is_app: bool| -> u64 {
            let own = here.iter().filter(|upstream| upstream.owned.is_some() == is_app);
            own.filter_map(|upstream| upstream.passages.as_ref()).map(Passages::unquiet).sum()
        };
        Some(json!({
            "service": service,
            "epoch": rule.epoch(),
            "map": rule.map_tag().to_string(),
            "closed": next.closed(),
            "held": here.iter().map(|upstream| upstream.shared.held.now()).sum::<u32>(),
            "calling": unquiet(false),
            "serving": unquiet(true),
        }))
    });
    services.collect()
}

/// The rule of a service and who serves its shards; null where it is not sharded.
pub(super) fn of(upstream: &Upstream) -> Value {
    let Some(sharding) = upstream.policy.sharding.as_deref() else { return Value::Null };
    let mut told = sharding.told();
    for (at, (_, served)) in served(upstream).into_iter().enumerate() {
        told["shards"][at]["endpoints"] = json!(served.endpoints);
        told["shards"][at]["primaries"] = json!(served.primaries);
    }
    told["held"] = json!(upstream.shared.held.now());
    told
}

/// Every shard that nobody serves.
pub(super) fn unserved(current: &Current) -> Vec<Value> {
    let shards = current.upstreams.iter().flat_map(|upstream| {
        let unserved = served(upstream).into_iter().filter(|(_, served)| served.endpoints == 0);
        unserved.map(|(shard, _)| json!({ "service": upstream.name, "shard": shard }))
    });
    shards.collect()
}

/// How many endpoints take requests for a shard.
#[derive(Clone, Copy, Debug, Default)]
struct Served {
    endpoints: usize,
    primaries: usize,
}

/// Every shard of a service, in the order of its rule.
fn served(upstream: &Upstream) -> Vec<(&Name, Served)> {
    let shards = upstream.policy.sharding.iter().flat_map(|sharding| sharding.shards());
    let mut served: Vec<_> = shards.map(|shard| (shard, Served::default())).collect();
    let places: HashMap<&Name, usize> = served.iter().map(|(shard, _)| *shard).zip(0..).collect();
    for endpoint in upstream.endpoints.iter().map(|state| &state.endpoint).filter(|it| it.weight > 0) {
        if let Some(at) = places.get(&endpoint.shard) {
            served[*at].1.endpoints += 1;
            served[*at].1.primaries += usize::from(endpoint.role == Role::Primary);
        }
    }
    served
}
