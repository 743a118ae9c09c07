//! Rollouts: plans that move users step by step, and the operators' hand on them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use gilmok_config::name::ServiceName;
use gilmok_config::problem::{Problem as Fault, Problems};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::Admin;
use super::author::{Author, Done, Heads, Terms};
use super::named::Named;
use super::problem::Problem;
use super::told::Told;
use crate::intent::{Command, Deed};
use crate::rollout::plan::{Plan, Step};
use crate::rollout::state::Rollout;

/// How far it is promoted.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Promotion {
    /// To everybody, past all steps between.
    #[serde(default)]
    to_end: bool,
}

#[utoipa::path(get, path = "/v1/rollouts", tag = "rollouts", summary = "Every rollout that is remembered",
    responses((status = 200, body = Value)))]
pub(super) async fn list(State(admin): State<Arc<Admin>>) -> Json<Value> {
    let records = admin.state.store.records();
    let all = records.keys().filter_map(|service| Some((service, admin.conductor.rollout(service)?)));
    let told = all.map(|(service, rollout)| {
        json!({
            "service": service,
            "candidate": rollout.plan.candidate,
            "stable": rollout.stable,
            "state": rollout.state(),
            "step": rollout.step,
            "steps": rollout.plan.steps.len(),
            "percent": rollout.percent().percent(),
            "since_ms": rollout.since_ms,
            "why": rollout.why,
        })
    });
    Json(json!(told.collect::<Vec<_>>()))
}

#[utoipa::path(get, path = "/v1/services/{service}/rollout", tag = "rollouts",
    summary = "Where a rollout stands, what was counted, and why it decided what it did",
    params(("service" = String, Path)), responses((status = 200, body = Value), (status = 404, body = Problem)))]
pub(super) async fn read(State(admin): State<Arc<Admin>>, service: Named) -> Result<Json<Value>, Problem> {
    let rollout = admin.conductor.rollout(&service.0);
    let rollout =
        rollout.ok_or_else(|| Problem::not_found(format!("there is no rollout of `{}`", service.0)))?;
    Ok(Json(told(&service.0, &rollout)))
}

/// Everything that is known of a rollout, for people and programs.
fn told(service: &ServiceName, rollout: &Rollout) -> Value {
    let steps = rollout.plan.steps.iter().enumerate().map(|(at, step)| {
        let state = match at.cmp(&rollout.step) {
            std::cmp::Ordering::Less => "done",
            std::cmp::Ordering::Equal if rollout.state() == "done" => "done",
            std::cmp::Ordering::Equal => "current",
            std::cmp::Ordering::Greater => "ahead",
        };
        let mut told = json!(step);
        told["state"] = json!(state);
        told
    });
    let hold_ms = match rollout.plan.steps.get(rollout.step) {
        Some(Step::Share(share)) => u64::try_from(share.hold.as_millis()).ok(),
        Some(Step::Gate { gate }) => gate.timeout.and_then(|timeout| u64::try_from(timeout.as_millis()).ok()),
        None => None,
    };
    json!({
        "service": service,
        "id": rollout.id,
        "candidate": rollout.plan.candidate,
        "stable": rollout.stable,
        "plan": rollout.plan,
        "state": rollout.state(),
        "step": rollout.step,
        "steps": steps.collect::<Vec<_>>(),
        "percent": rollout.percent().percent(),
        "started_ms": rollout.started_ms,
        "since_ms": rollout.since_ms,
        "ended_ms": rollout.ended_ms,
        "held_ms": rollout.held_ms,
        "hold_ms": hold_ms,
        "extended": rollout.is_extended(),
        "by": rollout.by,
        "why": rollout.why,
        "counts": rollout.tally.step,
        "evidence": rollout.evidence(),
        "history": rollout.history,
    })
}

#[utoipa::path(put, path = "/v1/services/{service}/rollout", tag = "rollouts", summary = "Begin a rollout",
    params(("service" = String, Path), Terms, Heads), request_body = Value,
    responses((status = 201, body = Done), (status = 404, body = Problem),
        (status = 409, description = "One runs already, or a third version has a share", body = Problem),
        (status = 412, body = Problem), (status = 422, description = "Every fault of the plan", body = Problem)))]
pub(super) async fn put(
    State(admin): State<Arc<Admin>>,
    service: Named,
    author: Author,
    Told(plan): Told<Value>,
) -> Result<Response, Problem> {
    let tells = plan.get("webhooks").and_then(Value::as_array).is_some_and(|webhooks| !webhooks.is_empty());
    // What else is wrong with the plan is told first, all at once.
    if tells && !admin.conductor.can_tell() && Plan::parse(&plan, 1).is_ok() {
        let fault = Fault {
            path: "webhooks".to_owned(),
            line: None,
            what: "there is nothing to sign messages with".to_owned(),
            hint: Some("set webhook_secret_file in control-plane.toml".to_owned()),
        };
        return Err(Problem::faulty(
            Problems(vec![fault]),
            "the plan cannot be carried out; nothing was changed",
        ));
    }
    author.write(&admin, Command::PutRollout(service.0, plan)).await
}

#[utoipa::path(delete, path = "/v1/services/{service}/rollout", tag = "rollouts",
    summary = "Forget a rollout that has ended", params(("service" = String, Path), Terms, Heads),
    responses((status = 200, body = Done), (status = 404, body = Problem),
        (status = 409, description = "It runs", body = Problem), (status = 412, body = Problem)))]
pub(super) async fn forget(
    State(admin): State<Arc<Admin>>,
    service: Named,
    author: Author,
) -> Result<Response, Problem> {
    say(&admin, service.0, Deed::Forget, author).await
}

#[utoipa::path(post, path = "/v1/services/{service}/rollout/pause", tag = "rollouts",
    summary = "Stay where it is; what is counted goes on to be judged",
    params(("service" = String, Path), Terms, Heads),
    responses((status = 200, body = Done), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn pause(
    State(admin): State<Arc<Admin>>,
    service: Named,
    author: Author,
) -> Result<Response, Problem> {
    say(&admin, service.0, Deed::Pause, author).await
}

#[utoipa::path(post, path = "/v1/services/{service}/rollout/resume", tag = "rollouts", summary = "Go on",
    params(("service" = String, Path), Terms, Heads),
    responses((status = 200, body = Done), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn resume(
    State(admin): State<Arc<Admin>>,
    service: Named,
    author: Author,
) -> Result<Response, Problem> {
    say(&admin, service.0, Deed::Resume, author).await
}

#[utoipa::path(post, path = "/v1/services/{service}/rollout/promote", tag = "rollouts",
    summary = "Open a gate, or do not wait for the rest of a step; with force not for the evidence either",
    params(("service" = String, Path), Terms, Heads), request_body(content = Option<Promotion>),
    responses((status = 200, body = Done), (status = 404, body = Problem),
        (status = 409, description = "The evidence does not say yet that it is as good", body = Problem)))]
pub(super) async fn promote(
    State(admin): State<Arc<Admin>>,
    service: Named,
    author: Author,
    body: Bytes,
) -> Result<Response, Problem> {
    let promotion = if body.is_empty() {
        Promotion::default()
    } else {
        serde_json::from_slice(&body)
            .map_err(|error| Problem::bad_request(format!("the body is not understood: {error}")))?
    };
    say(&admin, service.0, Deed::Promote { to_end: promotion.to_end }, author).await
}

#[utoipa::path(post, path = "/v1/services/{service}/rollout/abort", tag = "rollouts",
    summary = "Everybody back to where they were before the rollout",
    params(("service" = String, Path), Terms, Heads),
    responses((status = 200, body = Done), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn abort(
    State(admin): State<Arc<Admin>>,
    service: Named,
    author: Author,
) -> Result<Response, Problem> {
    say(&admin, service.0, Deed::Abort, author).await
}

async fn say(admin: &Admin, service: ServiceName, deed: Deed, author: Author) -> Result<Response, Problem> {
    // The word is judged by all that was counted, not by what was kept some seconds ago.
    admin.conductor.keep(&service).await;
    author.write(admin, Command::Rollout(service, deed)).await
}

/// The series of rollouts that run.
pub(super) fn render(admin: &Admin, text: &mut String) {
    let records = admin.state.store.records();
    let running = records.keys().filter_map(|service| Some((service, admin.conductor.rollout(service)?)));
    let running: Vec<_> = running.filter(|(_, rollout)| rollout.is_running()).collect();
    text.push_str("# HELP gilmok_rollout_state Rollouts that run, by where they stand.\n");
    text.push_str("# TYPE gilmok_rollout_state gauge\n");
    for (service, rollout) in &running {
        text.push_str(&format!(
            "gilmok_rollout_state{{service=\"{service}\",state=\"{}\"}} 1\n",
            rollout.state()
        ));
    }
    text.push_str("# HELP gilmok_rollout_percent Percentage of the subjects that have the candidate.\n");
    text.push_str("# TYPE gilmok_rollout_percent gauge\n");
    for (service, rollout) in &running {
        let percent = rollout.percent().percent();
        text.push_str(&format!("gilmok_rollout_percent{{service=\"{service}\"}} {percent}\n"));
    }
    text.push_str(
        "# HELP gilmok_rollout_e_value How strongly what was counted speaks against the candidate.\n",
    );
    text.push_str("# TYPE gilmok_rollout_e_value gauge\n");
    for (service, rollout) in &running {
        let Some(evidence) = rollout.evidence() else { continue };
        let slow = evidence.latency.iter().map(|latency| latency.comparison.e_value).fold(0.0, f64::max);
        for (metric, value) in [("failures", evidence.failures.e_value), ("latency", slow)] {
            text.push_str(&format!(
                "gilmok_rollout_e_value{{service=\"{service}\",metric=\"{metric}\"}} {value}\n"
            ));
        }
    }
}
