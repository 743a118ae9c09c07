//! What was wanted when, who wanted it, and the way back.

use std::io::Write;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use utoipa::IntoParams;

use super::Admin;
use super::author::{Author, Done, Heads, Terms};
use super::problem::Problem;
use super::proxies::Lines;
use crate::intent::Command;
use crate::store::{AuditEntry, PAGE_MAX, Revision};

/// Entries of a page when nothing else is asked for.
const PAGE: usize = 50;
/// Pieces of a backup that may wait for whoever takes it.
const BACKUP_PIECES_MAX: usize = 16;

/// Which page.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Page {
    /// Only what is older than this number.
    before: Option<u64>,
    /// At most so many; 50 by default, 1,000 at most.
    limit: Option<usize>,
}

impl Page {
    pub(super) fn bounds(page: Result<Query<Self>, QueryRejection>) -> Result<(u64, usize), Problem> {
        let Query(page) = page?;
        Ok((page.before.unwrap_or(u64::MAX), page.limit.unwrap_or(PAGE).min(PAGE_MAX)))
    }
}

#[utoipa::path(get, path = "/v1/revisions", tag = "revisions", summary = "Revisions, newest first, without their documents",
    params(Page), responses((status = 200, body = Value)))]
pub(super) async fn list(
    State(admin): State<Arc<Admin>>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let (before, limit) = Page::bounds(page)?;
    let store = &admin.state.store;
    let head = store.head().map_or(0, |head| head.number);
    let mut number = head.min(before.saturating_sub(1));
    let mut revisions = Vec::new();
    // One at a time: a document may have 32 MiB, and a page of them would not fit.
    while number > 0 && revisions.len() < limit {
        let Some(revision) = store.revision(number).await? else { break };
        revisions.push(without_document(&revision));
        number -= 1;
    }
    Ok(Json(json!(revisions)))
}

fn without_document(revision: &Revision) -> Value {
    let Revision { number, at_ms, who, what, reason, hash, document: _ } = revision;
    json!({ "revision": number, "at_ms": at_ms, "who": who, "what": what, "reason": reason, "hash": hash })
}

#[utoipa::path(get, path = "/v1/revisions/{number}", tag = "revisions", summary = "One revision with its document",
    params(("number" = u64, Path)), responses((status = 200, body = Value), (status = 404, body = Problem)))]
pub(super) async fn read(
    State(admin): State<Arc<Admin>>,
    number: Result<Path<u64>, PathRejection>,
) -> Result<Json<Value>, Problem> {
    let revision = find(&admin, number?.0).await?;
    let mut answer = without_document(&revision);
    answer["document"] = revision.document;
    Ok(Json(answer))
}

async fn find(admin: &Admin, number: u64) -> Result<Revision, Problem> {
    let revision = admin.state.store.revision(number).await?;
    revision.ok_or_else(|| {
        Problem::not_found(format!("revision {number} was never written, or is not kept any more"))
    })
}

#[utoipa::path(post, path = "/v1/revisions/{number}/restore", tag = "revisions",
    summary = "Put an earlier document in force as a new revision", params(("number" = u64, Path), Terms, Heads),
    responses((status = 200, body = Done), (status = 202, body = Done), (status = 404, body = Problem),
        (status = 409, description = "It is no sound document any more", body = Problem),
        (status = 412, body = Problem)))]
pub(super) async fn restore(
    State(admin): State<Arc<Admin>>,
    number: Result<Path<u64>, PathRejection>,
    author: Author,
) -> Result<Response, Problem> {
    let revision = find(&admin, number?.0).await?;
    author.write(&admin, Command::Restore { number: revision.number, document: revision.document }).await
}

#[utoipa::path(get, path = "/v1/audit", tag = "revisions", summary = "Who did what when and why, newest first",
    params(Page), responses((status = 200, body = Value)))]
pub(super) async fn audit(
    State(admin): State<Arc<Admin>>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<Vec<AuditEntry>>, Problem> {
    let (before, limit) = Page::bounds(page)?;
    Ok(Json(admin.state.store.audit(before, limit).await?))
}

#[utoipa::path(get, path = "/v1/backup", tag = "revisions",
    summary = "The whole store as lines of JSON, for `gilmok-control-plane --restore FILE`",
    responses((status = 200, content_type = "application/x-ndjson", body = String)))]
pub(super) async fn backup(State(admin): State<Arc<Admin>>) -> Response {
    let (pieces, waiting) = mpsc::channel(BACKUP_PIECES_MAX);
    let store = admin.state.store.clone();
    // Ends when the store was read, or when nobody takes the pieces any more.
    tokio::task::spawn_blocking(move || {
        let mut out = std::io::BufWriter::with_capacity(256 << 10, Pieces(pieces));
        if let Err(error) = store.backup(&mut out) {
            tracing::warn!("a backup broke off: {error}");
        }
    });
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    (kind, Body::new(Lines(waiting))).into_response()
}

/// Writes into a channel that whoever takes the backup empties.
struct Pieces(mpsc::Sender<Bytes>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let sent = self.0.blocking_send(Bytes::copy_from_slice(bytes));
        sent.map_err(|_| std::io::Error::from(std::io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
