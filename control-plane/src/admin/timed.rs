//! Changes of a flag at a time: said, listed, taken back.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use gilmok_config::moment::{format_moment, parse_moment};
use gilmok_config::problem::Problem as Fault;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::Admin;
use super::author::{Author, Done, Heads, Terms};
use super::named::{NamedChange, NamedFlag};
use super::problem::Problem;
use super::told::Told;
use crate::intent::{self, Command, FlagDeed};

/// What is to be done when.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Timed {
    /// A moment to come as RFC 3339 has it, e.g. `2027-01-31T08:00:00Z`.
    at: String,
    /// A merge patch of the flag (RFC 7396).
    #[schema(value_type = Object)]
    patch: Value,
}

#[utoipa::path(get, path = "/v1/flags/{key}/schedule", tag = "flags",
    summary = "The changes of a flag that wait for their time, and those that could not be made",
    params(("key" = String, Path)), responses((status = 200, body = Value), (status = 404, body = Problem)))]
pub(super) async fn list(State(admin): State<Arc<Admin>>, key: NamedFlag) -> Result<Json<Value>, Problem> {
    let head = admin.state.store.head();
    if head.as_ref().is_none_or(|head| intent::flag(&head.document, &key.0).is_none()) {
        return Err(Problem::not_found(format!("there is no flag `{}`", key.0)));
    }
    let schedule = admin.state.store.schedule();
    let told = schedule.iter().filter(|one| one.flag == key.0).map(|one| {
        let mut told = json!(one);
        told["at"] = json!(format_moment(one.at_ms / 1_000));
        told
    });
    Ok(Json(json!(told.collect::<Vec<_>>())))
}

#[utoipa::path(post, path = "/v1/flags/{key}/schedule", tag = "flags",
    summary = "Change a flag at a time: once, also after a restart; the revision in the answer is its id",
    params(("key" = String, Path), Terms, Heads), request_body = Timed,
    responses((status = 201, body = Done), (status = 404, body = Problem),
        (status = 409, description = "It needs force, or too many wait", body = Problem), (status = 412, body = Problem),
        (status = 422, description = "It could not be made now either, or its time has passed", body = Problem)))]
pub(super) async fn put(
    State(admin): State<Arc<Admin>>,
    key: NamedFlag,
    author: Author,
    Told(timed): Told<Timed>,
) -> Result<Response, Problem> {
    let at = parse_moment(&timed.at).map_err(|hint| {
        Problem::faulty(
            Fault::at("at", "no moment", hint).into(),
            "the body is not understood; nothing was changed",
        )
    })?;
    let deed = FlagDeed::Schedule { at_ms: at.saturating_mul(1_000), patch: timed.patch };
    author.write(&admin, Command::Flag(key.0, deed)).await
}

#[utoipa::path(delete, path = "/v1/flags/{key}/schedule/{id}", tag = "flags", summary = "Take a change back",
    params(("key" = String, Path), ("id" = u64, Path), Terms, Heads),
    responses((status = 200, body = Done), (status = 404, body = Problem), (status = 412, body = Problem)))]
pub(super) async fn delete(
    State(admin): State<Arc<Admin>>,
    NamedChange(key, id): NamedChange,
    author: Author,
) -> Result<Response, Problem> {
    author.write(&admin, Command::Flag(key, FlagDeed::Unschedule(id))).await
}
