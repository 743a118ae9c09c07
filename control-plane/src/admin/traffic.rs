//! Who gets which version: a service's traffic table, everybody to another version, and back.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use gilmok_config::document::Document;
use gilmok_config::name::{Name, ServiceName};
use gilmok_config::unit::Ppm;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;
use utoipa::ToSchema;

use super::Admin;
use super::author::{Author, Done, Heads, Terms, etag};
use super::named::Named;
use super::problem::Problem;
use super::told::Told;
use crate::intent::{self, Command};
use crate::rollout::tally::Counted;

/// Where everybody is to go.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Destination {
    /// The version.
    to: String,
}

#[utoipa::path(get, path = "/v1/services/{service}/traffic", tag = "traffic",
    summary = "How a service's users spread over its versions, and what that comes to",
    params(("service" = String, Path)), responses((status = 200, body = Value), (status = 404, body = Problem)))]
pub(super) async fn read(State(admin): State<Arc<Admin>>, service: Named) -> Result<Response, Problem> {
    let name = service.0;
    let head = admin.state.store.head();
    let known = head.as_ref().filter(|head| intent::service(&head.document, &name).is_some());
    let Some(head) = known else { return Err(Problem::not_found(format!("there is no service `{name}`"))) };
    let table = intent::traffic_table(&head.document, &name).cloned().unwrap_or(Value::Null);
    let records = admin.state.store.records();
    let record = records.get(&name);
    let release = record.and_then(|record| record.release.as_ref()).map(|release| {
        let mut told = json!(release);
        told["drain"] = json!(admin.conductor.drain(&name));
        told
    });
    let rollout = admin.conductor.rollout(&name).map(|rollout| {
        json!({
            "candidate": rollout.plan.candidate,
            "state": rollout.state(),
            "step": rollout.step,
            "percent": rollout.percent().percent(),
        })
    });
    let published = admin.state.publisher.current();
    let body = json!({
        "service": name,
        "revision": head.number,
        "traffic": table,
        "versions": published.map(|published| versions(&admin, published.intent(), &name)),
        "release": release,
        "rollout": rollout,
    });
    Ok(([(header::ETAG, etag(head.number))], Json(body)).into_response())
}

/// Every version that has a share or an endpoint, with what live proxies counted of it.
fn versions(admin: &Admin, document: &Document, name: &ServiceName) -> Vec<Value> {
    let traffic = document.services.get(name).and_then(|policy| policy.traffic.as_deref());
    let alive = intent::versions_alive(document, &admin.state.view().endpoints, name);
    let mut counted: BTreeMap<&Name, (Counted, u64)> = BTreeMap::new();
    let named = traffic.into_iter().flat_map(|traffic| traffic.weights.keys());
    for version in alive.keys().filter(|version| !version.is_empty()).chain(named) {
        counted.entry(version).or_default();
    }
    let now = Instant::now();
    let reports = admin.state.publisher.acks.all();
    for report in reports.iter().filter(|report| report.is_live(now)) {
        let counts = report.ack.counts.iter().filter(|counts| counts.service == *name);
        for version in counts.flat_map(|counts| &counts.versions) {
            let (sum, in_flight) = counted.entry(&version.version).or_default();
            sum.requests = sum.requests.saturating_add(version.requests);
            sum.trials = sum.trials.saturating_add(version.trials);
            sum.failures = sum.failures.saturating_add(version.failures);
            *in_flight = in_flight.saturating_add(version.in_flight);
        }
    }
    let weight = |version: &Name| traffic.and_then(|traffic| traffic.weights.get(version)).copied();
    counted
        .into_iter()
        .map(|(version, (sum, in_flight))| {
            json!({
                "version": version,
                "weight_percent": weight(version).map(Ppm::percent),
                "endpoints": alive.get(version).copied().unwrap_or_default(),
                "in_flight": in_flight,
                "requests": sum.requests,
                "trials": sum.trials,
                "failures": sum.failures,
            })
        })
        .collect()
}

#[utoipa::path(put, path = "/v1/services/{service}/traffic", tag = "traffic",
    summary = "Put a service's traffic table, or ask which users that would move",
    params(("service" = String, Path), Terms, Heads), request_body = Value,
    responses((status = 200, body = Done), (status = 201, body = Done), (status = 202, body = Done),
        (status = 404, body = Problem),
        (status = 409, description = "A rollout moves them, or all would be dealt anew", body = Problem),
        (status = 412, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn put(
    State(admin): State<Arc<Admin>>,
    service: Named,
    author: Author,
    Told(table): Told<Value>,
) -> Result<Response, Problem> {
    let command = Command::PutTraffic(service.0.clone(), table);
    if !author.is_dry_run() {
        return author.write(&admin, command).await;
    }
    let mut foreseen = author.foresee(&admin, &command)?;
    let moves = foreseen.services.remove(&service.0).unwrap_or_default();
    let mut told = json!(moves);
    told["revision"] = json!(foreseen.revision);
    told["changed"] = json!(foreseen.changed);
    Ok(Json(told).into_response())
}

#[utoipa::path(post, path = "/v1/services/{service}/switch", tag = "traffic",
    summary = "Everybody to another version, in one revision",
    params(("service" = String, Path), Terms, Heads), request_body = Destination,
    responses((status = 200, body = Done), (status = 202, description = "Written, but some proxies lag", body = Done),
        (status = 404, body = Problem),
        (status = 409, description = "No endpoint of it is alive, or a rollout runs", body = Problem),
        (status = 412, body = Problem), (status = 422, description = "An unknown version", body = Problem)))]
pub(super) async fn switch(
    State(admin): State<Arc<Admin>>,
    service: Named,
    author: Author,
    Told(destination): Told<Destination>,
) -> Result<Response, Problem> {
    let to = Name::parse_given(&destination.to);
    let to = to.map_err(|hint| Problem::bad_request(format!("to, the name of a version: {hint}")))?;
    author.write(&admin, Command::Switch(service.0, to)).await
}

#[utoipa::path(post, path = "/v1/services/{service}/rollback", tag = "traffic",
    summary = "Everybody back to where they were before the last switch or rollout; ends a rollout that runs",
    params(("service" = String, Path), Terms, Heads),
    responses((status = 200, body = Done), (status = 202, body = Done), (status = 404, body = Problem),
        (status = 409, description = "There is nothing to roll back, or no endpoint of where everybody was is alive", body = Problem), (status = 412, body = Problem)))]
pub(super) async fn roll_back(
    State(admin): State<Arc<Admin>>,
    service: Named,
    author: Author,
) -> Result<Response, Problem> {
    author.write(&admin, Command::RollBack(service.0)).await
}
