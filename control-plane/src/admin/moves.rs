//! Moves of shards: what would have to move, moves that run and ran, and the operators' hand on them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use gilmok_config::name::ServiceName;
use gilmok_config::problem::{Problem as Fault, Problems};
use gilmok_config::sharding::plan::Plan;
use serde_json::{Value, json};

use super::Admin;
use super::author::{Author, Done, Heads, Terms};
use super::named::{Named, NamedMove};
use super::problem::Problem;
use super::told::Told;
use crate::intent::{self, Command, MoveDeed};
use crate::resharding::fence::Waiting;
use crate::resharding::state::{Direction, ShardMove};

#[utoipa::path(post, path = "/v1/services/{service}/sharding/plan", tag = "sharding",
    summary = "What would have to move so that the service has these shards, or this map; changes nothing",
    params(("service" = String, Path)), request_body = Value,
    responses((status = 200, body = Value), (status = 404, body = Problem),
        (status = 409, description = "It has no shards, or a batch is moving", body = Problem),
        (status = 422, description = "What is wanted cannot be", body = Problem)))]
pub(super) async fn plan(
    State(admin): State<Arc<Admin>>,
    service: Named,
    Told(body): Told<Value>,
) -> Result<Json<Value>, Problem> {
    let (revision, plan) = planned(&admin, &service.0, &body)?;
    let mut told = told_of_plan(&plan);
    told["service"] = json!(service.0);
    told["revision"] = json!(revision);
    Ok(Json(told))
}

/// The newest revision, and what would have to move there.
fn planned(admin: &Admin, service: &ServiceName, body: &Value) -> Result<(u64, Plan), Problem> {
    let head = admin.state.store.head();
    let Some(head) = head else { return Err(Problem::not_found(format!("there is no service `{service}`"))) };
    let plan = intent::planned(&head.document, service, body);
    let command = Command::BeginMove(service.clone(), Value::Null);
    Ok((head.number, plan.map_err(|refusal| Problem::of_refusal(refusal, &command))?))
}

fn told_of_plan(plan: &Plan) -> Value {
    let batches = plan.batches.iter().enumerate().map(|(place, batch)| {
        json!({
            "place": place,
            "from": batch.from,
            "to": batch.to,
            "what": batch.what,
            "detail": batch.detail,
            "percent": percent(batch.ppm),
        })
    });
    json!({
        "moves_percent": percent(plan.moved_ppm),
        "least_percent": percent(plan.least_ppm),
        "batches": batches.collect::<Vec<_>>(),
        "rule": plan.batches.last().map(|last| &last.next),
        "notes": plan.notes,
    })
}

fn percent(ppm: Option<u32>) -> Option<f64> {
    ppm.map(|ppm| f64::from(ppm) / 10_000.0)
}

#[utoipa::path(get, path = "/v1/services/{service}/sharding/moves", tag = "sharding",
    summary = "The moves of a service's shards that are remembered, newest first",
    params(("service" = String, Path)), responses((status = 200, body = Value), (status = 404, body = Problem)))]
pub(super) async fn list(State(admin): State<Arc<Admin>>, service: Named) -> Result<Json<Value>, Problem> {
    let head = admin.state.store.head();
    if head.is_none_or(|head| intent::service(&head.document, &service.0).is_none()) {
        return Err(Problem::not_found(format!("there is no service `{}`", service.0)));
    }
    let records = admin.state.store.records();
    let past = records.get(&service.0).map(|record| record.moved.as_slice()).unwrap_or_default();
    let last = admin.mover.current(&service.0).map(|(moving, _)| briefly(&moving));
    Ok(Json(last.into_iter().chain(past.iter().map(briefly)).collect()))
}

/// A move in a list.
pub(super) fn briefly(moving: &ShardMove) -> Value {
    json!({
        "id": moving.id,
        "state": moving.state(),
        "direction": moving.direction,
        "batches": moving.batches.len(),
        "moved": moving.moved,
        "by": moving.by,
        "started_ms": moving.started_ms,
        "ended_ms": moving.ended_ms,
        "why": moving.why,
    })
}

#[utoipa::path(post, path = "/v1/services/{service}/sharding/moves", tag = "sharding",
    summary = "Begin a move; its id is the revision that this makes",
    params(("service" = String, Path), Terms, Heads), request_body = Value,
    responses((status = 201, body = Done), (status = 404, body = Problem),
        (status = 409, description = "One runs already, or there is nothing to move", body = Problem),
        (status = 412, body = Problem), (status = 422, description = "What is wanted cannot be", body = Problem)))]
pub(super) async fn begin(
    State(admin): State<Arc<Admin>>,
    service: Named,
    author: Author,
    Told(body): Told<Value>,
) -> Result<Response, Problem> {
    let tells = body.get("webhooks").and_then(Value::as_array).is_some_and(|webhooks| !webhooks.is_empty());
    let command = Command::BeginMove(service.0.clone(), body.clone());
    // What else is wrong is told first.
    if tells && !admin.conductor.can_tell() {
        author.foresee(&admin, &command)?;
        let fault = Fault {
            path: "webhooks".to_owned(),
            line: None,
            what: "there is nothing to sign messages with".to_owned(),
            hint: Some("set webhook_secret_file in control-plane.toml".to_owned()),
        };
        return Err(Problem::faulty(Problems(vec![fault]), "this cannot be moved; nothing was changed"));
    }
    if author.is_dry_run() {
        let foreseen = author.foresee(&admin, &command)?;
        let (_, plan) = planned(&admin, &service.0, &body)?;
        let told = json!({ "revision": foreseen.revision, "changed": foreseen.changed, "plan": told_of_plan(&plan) });
        return Ok(Json(told).into_response());
    }
    author.write(&admin, command).await
}

#[utoipa::path(get, path = "/v1/services/{service}/sharding/moves/{id}", tag = "sharding",
    summary = "Where a move stands, whom it waits for, and what has happened",
    params(("service" = String, Path), ("id" = u64, Path)),
    responses((status = 200, body = Value), (status = 404, body = Problem)))]
pub(super) async fn read(
    State(admin): State<Arc<Admin>>,
    NamedMove(service, id): NamedMove,
) -> Result<Json<Value>, Problem> {
    if let Some((moving, waits)) = admin.mover.current(&service).filter(|(moving, _)| moving.id == id) {
        return Ok(Json(told(&service, &moving, &waits)));
    }
    let records = admin.state.store.records();
    let past = records.get(&service).and_then(|record| record.moved.iter().find(|moved| moved.id == id));
    let past = past.ok_or_else(|| Problem::no_move(&service, id))?;
    Ok(Json(told(&service, past, &[])))
}

/// Everything that is known of a move, for people and programs.
fn told(service: &ServiceName, moving: &ShardMove, waits: &[Waiting]) -> Value {
    let current = moving.leg().map(|leg| leg.at);
    let is_back = moving.direction == Direction::Back;
    let batches = moving.batches.iter().enumerate().map(|(place, batch)| {
        let state = match place {
            _ if current == Some(place) => "current",
            _ if place < moving.moved => "moved",
            _ if is_back || !moving.is_running() => "not_moved",
            _ => "ahead",
        };
        json!({
            "place": place,
            "from": batch.from,
            "to": batch.to,
            "what": batch.what,
            "detail": batch.detail,
            "percent": percent(batch.ppm),
            "state": state,
        })
    });
    let mut told = briefly(moving);
    let more = json!({
        "service": service,
        "since_ms": moving.since_ms,
        "stage": moving.is_running().then(|| moving.stage.as_str()),
        "batch": current,
        "closed": moving.closed(),
        "copied": moving.copied,
        "forced": moving.forced,
        "waiting_for": waits,
        "batches": batches.collect::<Vec<_>>(),
        "webhooks": moving.webhooks,
        "history": moving.history,
    });
    if let (Value::Object(told), Value::Object(more)) = (&mut told, more) {
        told.extend(more);
    }
    told
}

#[utoipa::path(post, path = "/v1/services/{service}/sharding/moves/{id}/pause", tag = "sharding",
    summary = "Do not go on; a closed batch is open at its source again",
    params(("service" = String, Path), ("id" = u64, Path), Terms, Heads),
    responses((status = 200, body = Done), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn pause(
    State(admin): State<Arc<Admin>>,
    named: NamedMove,
    author: Author,
) -> Result<Response, Problem> {
    say(&admin, named, MoveDeed::Pause, author).await
}

#[utoipa::path(post, path = "/v1/services/{service}/sharding/moves/{id}/resume", tag = "sharding",
    summary = "Go on; where it is not paused, say that the batch is copied. With force, proxies silent for 15 s count as gone",
    params(("service" = String, Path), ("id" = u64, Path), Terms, Heads),
    responses((status = 200, body = Done), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn resume(
    State(admin): State<Arc<Admin>>,
    named: NamedMove,
    author: Author,
) -> Result<Response, Problem> {
    say(&admin, named, MoveDeed::Resume, author).await
}

#[utoipa::path(post, path = "/v1/services/{service}/sharding/moves/{id}/reverse", tag = "sharding",
    summary = "Give up the current batch, and move back what has moved; also after the end",
    params(("service" = String, Path), ("id" = u64, Path), Terms, Heads),
    responses((status = 200, body = Done), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn reverse(
    State(admin): State<Arc<Admin>>,
    named: NamedMove,
    author: Author,
) -> Result<Response, Problem> {
    say(&admin, named, MoveDeed::Reverse, author).await
}

async fn say(
    admin: &Admin,
    NamedMove(service, id): NamedMove,
    deed: MoveDeed,
    author: Author,
) -> Result<Response, Problem> {
    author.write(admin, Command::Move(service, id, deed)).await
}

/// The series of moves that run.
pub(super) fn render(admin: &Admin, text: &mut String) {
    text.push_str(
        "# HELP gilmok_shard_move_batches_left Batches of keys that a move of shards has still to move.\n",
    );
    text.push_str("# TYPE gilmok_shard_move_batches_left gauge\n");
    for (service, record) in admin.state.store.records().iter() {
        let Some(moving) = record.running_move() else { continue };
        let left = moving.batches_left();
        text.push_str(&format!("gilmok_shard_move_batches_left{{service=\"{service}\"}} {left}\n"));
    }
}
