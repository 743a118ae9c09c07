//! The document: whole, and one service at a time.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::{BytesRejection, JsonRejection};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::Admin;
use super::author::{Author, Done, Terms, etag};
use super::named::Named;
use super::problem::Problem;
use crate::intent::{self, Command};

/// The document as operators wrote it, and its revision.
fn current(admin: &Admin) -> (Value, u64) {
    match admin.state.store.head() {
        Some(head) => (head.document.clone(), head.number),
        None => (json!({}), 0),
    }
}

/// An answer that clients may keep as long as its revision is the newest.
fn revised(headers: &HeaderMap, revision: u64, body: Value) -> Response {
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

#[utoipa::path(put, path = "/v1/mesh", tag = "mesh", summary = "Replace the whole document", params(Terms),
    request_body = Value,
    responses((status = 200, body = Done), (status = 201, description = "The first one", body = Done),
        (status = 202, description = "Written, but some proxies lag", body = Done),
        (status = 412, body = Problem), (status = 422, description = "Every fault with its path", body = Problem)))]
pub(super) async fn put_mesh(
    State(admin): State<Arc<Admin>>,
    author: Author,
    body: Result<Json<Value>, JsonRejection>,
) -> Result<Response, Problem> {
    author.write(&admin, Command::PutMesh(body?.0)).await
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
    params(("service" = String, Path), Terms), request_body = Value,
    responses((status = 200, body = Done), (status = 201, body = Done), (status = 202, body = Done),
        (status = 412, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn put_service(
    State(admin): State<Arc<Admin>>,
    service: Named,
    author: Author,
    body: Result<Json<Value>, JsonRejection>,
) -> Result<Response, Problem> {
    author.write(&admin, Command::PutService(service.0, body?.0)).await
}

#[utoipa::path(patch, path = "/v1/services/{service}", tag = "services",
    summary = "Change parts of one service's table (RFC 7396)",
    params(("service" = String, Path), Terms), request_body = Value,
    responses((status = 200, body = Done), (status = 202, body = Done), (status = 404, body = Problem),
        (status = 412, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn patch_service(
    State(admin): State<Arc<Admin>>,
    service: Named,
    author: Author,
    headers: HeaderMap,
    body: Result<bytes::Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    // axum's Json takes `application/json` and `…+json`; a patch's own type is the latter.
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    if !matches!(essence, "application/json" | "application/merge-patch+json") {
        let detail = "a patch is application/merge-patch+json or application/json";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
    }
    let patch = serde_json::from_slice(&body?)
        .map_err(|error| Problem::bad_request(format!("the body is not JSON: {error}")))?;
    author.write(&admin, Command::PatchService(service.0, patch)).await
}

#[utoipa::path(delete, path = "/v1/services/{service}", tag = "services", summary = "Delete one service",
    params(("service" = String, Path), Terms),
    responses((status = 200, body = Done), (status = 202, body = Done), (status = 404, body = Problem),
        (status = 409, description = "A route needs it", body = Problem), (status = 412, body = Problem)))]
pub(super) async fn delete_service(
    State(admin): State<Arc<Admin>>,
    service: Named,
    author: Author,
) -> Result<Response, Problem> {
    author.write(&admin, Command::DeleteService(service.0)).await
}
