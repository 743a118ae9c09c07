//! Who is alive, and the embedded registry's two verbs.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use gilmok_config::name::ServiceName;
use gilmok_config::wire::Registration;
use serde_json::{Value, json};

use super::Admin;
use super::problem::Problem;
use crate::membership::registry::Registered;

#[utoipa::path(get, path = "/v1/membership", tag = "membership", summary = "Every instance of every service",
    responses((status = 200, description = "By service: id, endpoint, status, node, note, source", body = Value)))]
pub(super) async fn list(State(admin): State<Arc<Admin>>) -> Json<Value> {
    Json(json!(admin.state.view().members))
}

#[utoipa::path(get, path = "/v1/membership/{service}", tag = "membership", summary = "Every instance of one service",
    params(("service" = String, Path)), responses((status = 200, body = Value), (status = 404, body = Problem)))]
pub(super) async fn read(
    State(admin): State<Arc<Admin>>,
    Path(service): Path<String>,
) -> Result<Json<Value>, Problem> {
    let name = ServiceName::parse(&service).map_err(Problem::bad_request)?;
    match admin.state.view().members.get(&name) {
        Some(members) => Ok(Json(json!(members))),
        None => Err(Problem::not_found(format!("nobody has said anything of a service `{name}`"))),
    }
}

#[utoipa::path(put, path = "/v1/membership/{service}/{id}", tag = "membership",
    summary = "Register an endpoint, or say that it is still there",
    params(("service" = String, Path), ("id" = String, Path)), request_body = Value,
    responses((status = 200, body = Value), (status = 201, body = Value), (status = 422, body = Problem)))]
pub(super) async fn register(
    State(admin): State<Arc<Admin>>,
    Path((service, id)): Path<(String, String)>,
    body: Result<Json<Registration>, JsonRejection>,
) -> Result<Response, Problem> {
    let name = ServiceName::parse(&service).map_err(Problem::bad_request)?;
    let registered = admin.state.registry.put(name, &id, body?.0)?;
    let status = if registered == Registered::Created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(json!({ "id": id }))).into_response())
}

#[utoipa::path(delete, path = "/v1/membership/{service}/{id}", tag = "membership", summary = "Take an endpoint out",
    params(("service" = String, Path), ("id" = String, Path)),
    responses((status = 204), (status = 404, body = Problem)))]
pub(super) async fn deregister(
    State(admin): State<Arc<Admin>>,
    Path((service, id)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let name = ServiceName::parse(&service).map_err(Problem::bad_request)?;
    if admin.state.registry.delete(&name, &id) {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Problem::not_found(format!("`{name}` has no such endpoint")))
    }
}
