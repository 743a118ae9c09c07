//! The document: whole, and one service at a time.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::Admin;
use super::author::{Author, Done, Heads, Terms, etag};
use super::named::Named;
use super::problem::Problem;
use super::told::Told;
use crate::intent::{self, Command};

/// The document as operators wrote it, and its revision.
pub(super) fn current(admin: &Admin) -> (Value, u64) {
    match admin.state.store.head() {
        Some(head) => (head.document.clone(), head.number),
        None => (json!({}), 0),
    }
}

/// An answer that clients may keep as long as its revision is the newest.
pub(super) fn revised(headers: &HeaderMap, revision: u64, body: Value) -> Response {
    let tag = etag(revision);
    if headers.get(header::IF_NONE_MATCH).is_some_and(|known| *known == tag) {
        return (StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response();
    }
    ([(header::ETAG, tag)], Json(body)).into_response()
}

#[utoipa::path(get, path = "/v1/mesh", tag = "mesh", summary = "The whole document",
    responses((status = 200, description = "As operators wrote it; ETag is its revision", body = Value)))]
pub(super) async fn read_mesh(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> Response {
    let (document, revision) = current(&admin);
    revised(&headers, revision, document)
}

#[utoipa::path(put, path = "/v1/mesh", tag = "mesh", summary = "Replace the whole document", params(Terms, Heads),
    request_body = Value,
    responses((status = 200, body = Done), (status = 201, description = "The first one", body = Done),
        (status = 202, description = "Written, but some proxies lag", body = Done),
        (status = 409, description = "It would move users of a rollout, or keys of live shards", body = Problem),
        (status = 412, body = Problem), (status = 422, description = "Every fault with its path", body = Problem)))]
pub(super) async fn put_mesh(
    State(admin): State<Arc<Admin>>,
    author: Author,
    Told(body): Told<Value>,
) -> Result<Response, Problem> {
    author.write(&admin, Command::PutMesh(body)).await
}

#[utoipa::path(get, path = "/v1/services", tag = "services", summary = "Every service's table",
    responses((status = 200, description = "By name; ETag is the revision", body = Value)))]
pub(super) async fn list_services(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> Response {
    let (document, revision) = current(&admin);
    let services = document.get("services").cloned().unwrap_or_else(|| json!({}));
    revised(&headers, revision, services)
}

#[utoipa::path(get, path = "/v1/services/{service}", tag = "services", summary = "One service's table",
    params(("service" = String, Path)), responses((status = 200, body = Value), (status = 404, body = Problem)))]
pub(super) async fn read_service(
    State(admin): State<Arc<Admin>>,
    service: Named,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let name = service.0;
    let (document, revision) = current(&admin);
    match intent::service(&document, &name) {
        Some(table) => Ok(revised(&headers, revision, table.clone())),
        None => Err(Problem::not_found(format!("there is no service `{name}`"))),
    }
}

#[utoipa::path(put, path = "/v1/services/{service}", tag = "services", summary = "Put one service's table",
    params(("service" = String, Path), Terms, Heads), request_body = Value,
    responses((status = 200, body = Done), (status = 201, body = Done), (status = 202, body = Done),
        (status = 409, description = "It would move users of a rollout, or keys of live shards", body = Problem),
        (status = 412, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn put_service(
    State(admin): State<Arc<Admin>>,
    service: Named,
    author: Author,
    Told(body): Told<Value>,
) -> Result<Response, Problem> {
    author.write(&admin, Command::PutService(service.0, body)).await
}

#[utoipa::path(patch, path = "/v1/services/{service}", tag = "services",
    summary = "Change parts of one service's table (RFC 7396)",
    params(("service" = String, Path), Terms, Heads), request_body(content = Value, content_type = "application/merge-patch+json"),
    responses((status = 200, body = Done), (status = 202, body = Done), (status = 404, body = Problem),
        (status = 409, description = "It would move users of a rollout, or keys of live shards", body = Problem),
        (status = 412, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn patch_service(
    State(admin): State<Arc<Admin>>,
    service: Named,
    author: Author,
    Told(patch): Told<Value>,
) -> Result<Response, Problem> {
    author.write(&admin, Command::PatchService(service.0, patch)).await
}

#[utoipa::path(delete, path = "/v1/services/{service}", tag = "services", summary = "Delete one service",
    params(("service" = String, Path), Terms, Heads),
    responses((status = 200, body = Done), (status = 202, body = Done), (status = 404, body = Problem),
        (status = 409, description = "A route needs it, or its shards are live", body = Problem), (status = 412, body = Problem)))]
pub(super) async fn delete_service(
    State(admin): State<Arc<Admin>>,
    service: Named,
    author: Author,
) -> Result<Response, Problem> {
    author.write(&admin, Command::DeleteService(service.0)).await
}
