//! What would become of a request: decided here by the same function that decides in the proxy.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use gilmok_config::decide::{Facts, Listener, Refusal, decide};
use gilmok_config::host;
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
pub(super) struct Question {
    /// Instead of a host.
    service: Option<String>,
    host: Option<String>,
    /// `/` by default.
    path: Option<String>,
    /// `GET` by default.
    method: Option<String>,
    /// `outbound` (the default) or `edge`.
    listener: Option<String>,
    #[serde(default)]
    #[param(ignore)]
    headers: BTreeMap<String, String>,
}

#[utoipa::path(get, path = "/v1/explain", tag = "explain", summary = "Where would this request go, and why", params(Question),
    responses((status = 200, body = Value), (status = 400, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn by_query(
    State(admin): State<Arc<Admin>>,
    question: Result<Query<Question>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    explain(&admin, &question?.0)
}

#[utoipa::path(post, path = "/v1/explain", tag = "explain", summary = "The same, with headers", request_body = Question,
    responses((status = 200, body = Value), (status = 400, body = Problem), (status = 422, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn by_body(
    State(admin): State<Arc<Admin>>,
    Told(question): Told<Question>,
) -> Result<Json<Value>, Problem> {
    explain(&admin, &question)
}

fn explain(admin: &Admin, question: &Question) -> Result<Json<Value>, Problem> {
    let named = question.host.as_deref().or(question.service.as_deref());
    let named = named.ok_or_else(|| Problem::bad_request("say which host or service is asked about"))?;
    let host = host::canonical(named).ok_or_else(|| Problem::bad_request("host: this is no host"))?;
    let path = question.path.as_deref().unwrap_or("/").split('?').next().unwrap_or("/");
    if !path.starts_with('/') {
        return Err(Problem::bad_request("path: a path begins with `/`"));
    }
    let method = Method::from_bytes(question.method.as_deref().unwrap_or("GET").as_bytes())
        .map_err(|_| Problem::bad_request("method: this is no method"))?;
    let listener = match question.listener.as_deref() {
        None | Some("outbound") => Listener::Outbound,
        Some("edge") => Listener::Edge,
        Some(_) => return Err(Problem::bad_request("listener: outbound or edge")),
    };
    let mut headers = HeaderMap::new();
    for (name, value) in &question.headers {
        let name = HeaderName::from_bytes(name.as_bytes());
        let name = name.map_err(|_| Problem::bad_request("headers: one name is none"))?;
        let value = HeaderValue::from_str(value);
        headers.append(name, value.map_err(|_| Problem::bad_request("headers: one value is none"))?);
    }
    let published = admin.state.publisher.current().ok_or_else(|| {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the store was never written; write a mesh document first",
        )
    })?;
    let snapshot = published.snapshot();
    let facts = Facts::of(listener, &host, path, &method, &headers);
    let decision = match decide(snapshot, &facts, &|_, _| true) {
        Err(Refusal::NoDestination) => json!({
            "refused": "destination_not_found",
            "why": "no service and no route answers to this host and path",
        }),
        Ok(decision) => {
            let service = &snapshot.services()[decision.service];
            let route =
                decision.route.map(|at| json!({ "place": at, "service": snapshot.routes()[at].service }));
            let why = match decision.route {
                Some(at) => format!("routes[{at}] is the first that matches"),
                None => format!("`{host}` is one of the service's own names"),
            };
            json!({
                "service": service.name,
                "route": route,
                "why": why,
                "protocol": service.policy.protocol.as_str(),
                "load_balancer": service.policy.load_balancer.as_str(),
                "endpoints": service.endpoints,
            })
        }
    };
    let asked =
        json!({ "listener": listener.as_str(), "method": method.as_str(), "host": host, "path": path });
    Ok(Json(json!({ "request": asked, "revision": published.revision, "decision": decision })))
}
