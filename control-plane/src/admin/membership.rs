//! Who is alive, and the embedded registry's two verbs.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use gilmok_config::endpoint::{Endpoint, PRIORITY_MAX, WEIGHT_MAX};
use gilmok_config::problem::{Problem as Fault, Problems};
use gilmok_config::wire::Registration;
use serde_json::{Value, json};

use super::Admin;
use super::named::{Named, NamedEndpoint};
use super::problem::Problem;
use super::told::Told;
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
    Named(name): Named,
) -> Result<Json<Value>, Problem> {
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
    NamedEndpoint(name, id): NamedEndpoint,
    Told(registration): Told<Registration>,
) -> Result<Response, Problem> {
    check(&registration.endpoint)?;
    let registered = admin.state.registry.put(name, &id, registration)?;
    let status = if registered == Registered::Created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(json!({ "id": id }))).into_response())
}

/// The bounds that a document's grammar sets for its endpoints.
fn check(endpoint: &Endpoint) -> Result<(), Problem> {
    let bounded = [("weight", endpoint.weight, WEIGHT_MAX), ("priority", endpoint.priority, PRIORITY_MAX)];
    let faults =
        bounded.into_iter().filter(|(_, value, most)| value > most).map(|(path, value, most)| Fault {
            path: path.to_owned(),
            line: None,
            what: format!("{value} is out of range"),
            hint: Some(format!("0 to {most}")),
        });
    let faults: Vec<Fault> = faults.collect();
    if faults.is_empty() {
        Ok(())
    } else {
        Err(Problem::faulty(Problems(faults), "the endpoint is not sound"))
    }
}

#[utoipa::path(delete, path = "/v1/membership/{service}/{id}", tag = "membership", summary = "Take an endpoint out",
    params(("service" = String, Path), ("id" = String, Path)),
    responses((status = 204), (status = 404, body = Problem)))]
pub(super) async fn deregister(
    State(admin): State<Arc<Admin>>,
    NamedEndpoint(name, id): NamedEndpoint,
) -> Result<StatusCode, Problem> {
    if admin.state.registry.delete(&name, &id) {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Problem::not_found(format!("`{name}` has no such endpoint")))
    }
}
