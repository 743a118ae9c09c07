//! What would become of a request: decided here by the same function that decides in the proxy.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use gilmok_config::baggage::SubjectKey;
use gilmok_config::decide::Target;
use gilmok_config::explain::{Described, Question, refused};
use gilmok_config::flag::OverrideKey;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};

use super::Admin;
use super::problem::Problem;
use super::told::Told;

/// A request that is asked about.
#[derive(Debug, Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    /// Instead of a host.
    service: Option<String>,
    host: Option<String>,
    /// `/` by default.
    path: Option<String>,
    /// `GET` by default.
    method: Option<String>,
    /// `outbound` (the default) or `edge`.
    listener: Option<String>,
    /// Who is asking, put where the service looks for it.
    subject: Option<String>,
    /// What it is sharded by, as if it stood where the service looks for it.
    key: Option<String>,
    #[serde(default)]
    #[param(ignore)]
    headers: BTreeMap<String, String>,
}

#[utoipa::path(get, path = "/v1/explain", tag = "explain", summary = "Where would this request go, and why", params(Asked),
    responses((status = 200, body = Value), (status = 400, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn by_query(
    State(admin): State<Arc<Admin>>,
    question: Result<Query<Asked>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    explain(&admin, &question?.0)
}

#[utoipa::path(post, path = "/v1/explain", tag = "explain", summary = "The same, with headers", request_body = Asked,
    responses((status = 200, body = Value), (status = 400, body = Problem), (status = 422, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn by_body(
    State(admin): State<Arc<Admin>>,
    Told(question): Told<Asked>,
) -> Result<Json<Value>, Problem> {
    explain(&admin, &question)
}

fn explain(admin: &Admin, question: &Asked) -> Result<Json<Value>, Problem> {
    let host = question.host.as_deref().or(question.service.as_deref());
    let described = Described {
        host: host.ok_or_else(|| Problem::bad_request("say which host or service is asked about"))?,
        path: question.path.as_deref(),
        method: question.method.as_deref(),
        listener: question.listener.as_deref(),
        subject: question.subject.as_deref(),
        key: question.key.as_deref(),
        now: crate::store::now_ms() / 1_000,
    };
    let headers = question.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let question = Question::new(&described, headers).map_err(Problem::bad_request)?;
    let published = admin.state.publisher.current().ok_or_else(|| {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the store was never written; write a mesh document first",
        )
    })?;
    let snapshot = published.snapshot();
    let is_healthy =
        |target: Target| snapshot.services()[target.service].has_endpoint(target.version, target.shard);
    // As proxies that have no keys of their own: the first one decides.
    let keys = &admin.state.store.identity().visitor_keys;
    let key = keys.lines().next().map(|key| SubjectKey::new(key.as_bytes()));
    let override_keys: Vec<_> = keys.lines().map(|key| OverrideKey::new(key.as_bytes())).collect();
    let explained = question.explain(snapshot, key.as_ref(), &override_keys, &is_healthy);
    let explained = explained.map_err(|why| Problem::bad_request(format!("subject: {why}")))?;
    let decision = match explained.decision {
        Err(refusal) => {
            let mut told = refused(snapshot, &refusal);
            told["refused"] = told["error"].take();
            told
        }
        Ok((decision, mut told)) => {
            let service = &snapshot.services()[decision.service];
            told["protocol"] = json!(service.policy.protocol.as_str());
            told["load_balancer"] = json!(service.policy.load_balancer.as_str());
            told["endpoints"] = json!(service.endpoints);
            told
        }
    };
    Ok(Json(json!({ "request": explained.request, "revision": published.revision, "decision": decision })))
}
