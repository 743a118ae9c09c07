//! The process itself: alive, ready, its state at a glance, its metrics.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Admin;
use super::problem::Problem;
use super::{identity, moves, rollout};

#[utoipa::path(get, path = "/livez", tag = "process", summary = "Whether the process answers",
    responses((status = 200, body = String)))]
pub(super) async fn alive() -> &'static str {
    "alive\n"
}

#[utoipa::path(get, path = "/readyz", tag = "process",
    summary = "Whether the store and REST work; says nothing of Consul",
    responses((status = 200, body = String), (status = 500, body = Problem),
        (status = 503, description = "About to end", body = Problem)))]
pub(super) async fn ready(State(admin): State<Arc<Admin>>) -> Result<&'static str, Problem> {
    if *admin.stop.borrow() {
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "about to end"));
    }
    // One small read tells whether the store still answers.
    admin.state.store.audit(u64::MAX, 1).await?;
    Ok("ready\n")
}

#[utoipa::path(get, path = "/v1/status", tag = "process", summary = "The mesh at a glance",
    responses((status = 200, body = Value)))]
pub(super) async fn status(State(admin): State<Arc<Admin>>) -> Json<Value> {
    let state = &admin.state;
    let now = Instant::now();
    let head = state.store.head();
    let revision = head.as_ref().map_or(0, |head| head.number);
    let reports = state.publisher.acks.all();
    let live = reports.iter().filter(|report| report.is_live(now)).count();
    let refusing: Vec<_> = reports
        .iter()
        .filter(|report| report.is_live(now) && report.ack.refused.is_some())
        .map(|report| report.ack.node.as_str())
        .collect();
    let published = state.publisher.current();
    // Those of membership, and those that the document lists where membership knows none.
    let endpoints = published.map_or(0, |published| {
        published.snapshot().services().iter().map(|service| service.endpoints.len()).sum::<usize>()
    });
    let consul = admin.contacts.as_ref().map(|contacts| {
        let ages = contacts.ages();
        let oldest = ages.iter().map(|(_, age)| *age).fold(0.0, f64::max);
        json!({ "watches": ages.len(), "oldest_contact_seconds": oldest })
    });
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "store": state.store.id(),
        "revision": revision,
        "hash": head.as_ref().map(|head| head.hash.as_str()),
        "written_at_ms": head.as_ref().map(|head| head.at_ms),
        "services": state.names().borrow().len(),
        "endpoints": endpoints,
        "proxies": {
            "live": live,
            "known": reports.len(),
            "following": state.publisher.subscribers(),
            "lagging": state.publisher.acks.lagging(state.store.id(), revision),
            "refusing": refusing,
        },
        "consul": consul,
    }))
}

#[utoipa::path(get, path = "/metrics", tag = "process", summary = "Prometheus' text format",
    responses((status = 200, content_type = "text/plain", body = String)))]
pub(super) async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    let mut text = admin.metrics.render();
    let state = &admin.state;
    let revision = state.store.head().map_or(0, |head| head.number);
    text.push_str("# HELP gilmok_feed_subscribers Proxies that follow this control plane.\n");
    text.push_str("# TYPE gilmok_feed_subscribers gauge\n");
    text.push_str(&format!("gilmok_feed_subscribers {}\n", state.publisher.subscribers()));
    text.push_str("# HELP gilmok_feed_lag_revisions Revisions that a proxy is behind.\n");
    text.push_str("# TYPE gilmok_feed_lag_revisions gauge\n");
    let now = Instant::now();
    let mut lags: BTreeMap<String, u64> = BTreeMap::new();
    for report in state.publisher.acks.all().into_iter().filter(|report| report.is_live(now)) {
        let applied = report.ack.applied.as_ref().filter(|applied| applied.store == state.store.id());
        let lag = revision.saturating_sub(applied.map_or(0, |applied| applied.revision));
        // Where a node has two processes, of the one that is further behind.
        lags.entry(report.ack.node).and_modify(|most| *most = lag.max(*most)).or_insert(lag);
    }
    for (node, lag) in lags {
        // Names were checked when the ack was taken and need no escaping.
        text.push_str(&format!("gilmok_feed_lag_revisions{{proxy=\"{node}\"}} {lag}\n"));
    }
    identity::render(&admin, &mut text);
    rollout::render(&admin, &mut text);
    moves::render(&admin, &mut text);
    if let Some(contacts) = &admin.contacts {
        contacts.render(&mut text);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}
