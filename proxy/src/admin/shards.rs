//! Sharded services as they live now: who serves each shard, which shard nobody serves, and how many requests were sent on.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;

use gilmok_config::endpoint::Role;
use gilmok_config::name::Name;
use serde_json::{Value, json};

use super::scrape::{add_family, line};
use crate::current::Current;
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
}

/// The rule of a service and who serves its shards; null where it is not sharded.
pub(super) fn of(upstream: &Upstream) -> Value {
    let Some(sharding) = upstream.policy.sharding.as_deref() else { return Value::Null };
    let mut told = sharding.told();
    for (at, (_, served)) in served(upstream).into_iter().enumerate() {
        told["shards"][at]["endpoints"] = json!(served.endpoints);
        told["shards"][at]["primaries"] = json!(served.primaries);
    }
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
