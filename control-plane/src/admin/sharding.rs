//! Which shard a key is at: a service's rule, and who serves each shard.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use gilmok_config::endpoint::{Endpoint, Role};
use gilmok_config::name::Name;
use gilmok_config::sharding::Sharding;
use serde_json::{Value, json};

use super::author::etag;
use super::named::Named;
use super::problem::Problem;
use super::{Admin, moves};
use crate::intent;

#[utoipa::path(get, path = "/v1/services/{service}/sharding", tag = "sharding",
    summary = "A service's rule of shards, what each holds and who serves it",
    params(("service" = String, Path)), responses((status = 200, body = Value), (status = 404, body = Problem)))]
pub(super) async fn read(State(admin): State<Arc<Admin>>, service: Named) -> Result<Response, Problem> {
    let name = service.0;
    let head = admin.state.store.head();
    let found = head.as_ref().and_then(|head| Some((head, intent::service(&head.document, &name)?)));
    let Some((head, table)) = found else {
        return Err(Problem::not_found(format!("there is no service `{name}`")));
    };
    let published = admin.state.publisher.current();
    let rule = published.as_ref().and_then(|published| {
        let snapshot = published.snapshot();
        let service = &snapshot.services()[snapshot.service_index(name.as_str())?];
        Some(rule(service.policy.sharding.as_deref()?, &service.endpoints))
    });
    let body = json!({
        "service": name,
        "revision": head.number,
        "sharding": table.get("sharding"),
        "rule": rule,
        "move": admin.mover.current(&name).filter(|(moving, _)| moving.is_running()).map(|(moving, _)| moves::briefly(&moving)),
    });
    Ok(([(header::ETAG, etag(head.number))], Json(body)).into_response())
}

/// The rule with the endpoints of each shard.
fn rule(sharding: &Sharding, endpoints: &[Endpoint]) -> Value {
    let mut of_shard: BTreeMap<&Name, Vec<&Endpoint>> = BTreeMap::new();
    for endpoint in endpoints.iter().filter(|endpoint| endpoint.weight > 0) {
        of_shard.entry(&endpoint.shard).or_default().push(endpoint);
    }
    let mut told = sharding.told();
    for (at, shard) in sharding.shards().iter().enumerate() {
        let own = of_shard.get(shard).map(Vec::as_slice).unwrap_or_default();
        let endpoint = |endpoint: &&Endpoint| json!({ "address": endpoint.address, "version": endpoint.version, "role": endpoint.role });
        told["shards"][at]["endpoints"] = own.iter().map(endpoint).collect();
        told["shards"][at]["primaries"] =
            json!(own.iter().filter(|endpoint| endpoint.role == Role::Primary).count());
    }
    told
}
