//! Feature flags: the whole set, one flag at a time, the kill switch, why a flag is what it is, and which could go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use gilmok_config::baggage::SubjectKey;
use gilmok_config::decide::is_on_candidate;
use gilmok_config::flag::{Asked, Context, Flag, FlagType, Purpose, TARGETING_KEY, Variant};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::{IntoParams, ToSchema};

use super::Admin;
use super::author::{Author, Done, Heads, Terms};
use super::mesh::{current, revised};
use super::named::NamedFlag;
use super::problem::Problem;
use super::told::Told;
use crate::exposure::Exposure;
use crate::intent::{self, Command, FlagDeed};
use crate::store::now_ms;

/// After how many days without use, or with one variant for everybody, a flag is told to be stale.
const STALE_DAYS: u32 = 30;

/// What is told of the set.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct View {
    /// A row for each flag with what was observed of it, in place of the set.
    #[serde(default)]
    #[param(value_type = Option<bool>)]
    overview: bool,
    /// After how many days without use, or with one variant for everybody, the overview calls a flag stale; 30 by default.
    days: Option<u32>,
}

/// For whom a flag is explained.
#[derive(Debug, Default, Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Asker {
    /// The targeting key.
    subject: Option<String>,
    /// Further attributes.
    #[serde(default)]
    #[param(ignore)]
    #[schema(value_type = Object)]
    context: Map<String, Value>,
}

#[utoipa::path(get, path = "/v1/flags", tag = "flags", summary = "The whole set of flags in flagd's format, or a row for each flag",
    params(View), responses((status = 200, description = "As operators wrote it; ETag is the revision", body = Value),
        (status = 400, body = Problem)))]
pub(super) async fn read_all(
    State(admin): State<Arc<Admin>>,
    headers: HeaderMap,
    view: Result<Query<View>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(view) = view?;
    let (document, revision) = current(&admin);
    if view.overview {
        let days = Duration::from_hours(24 * u64::from(view.days.unwrap_or(STALE_DAYS)));
        // What was observed changes without a revision: nobody may keep it.
        return Ok(revised(&HeaderMap::new(), revision, overview(&admin, revision, days)));
    }
    let set = intent::flag_set(&document).cloned();
    Ok(revised(&headers, revision, set.unwrap_or_else(|| json!({ "flags": {} }))))
}

fn overview(admin: &Admin, revision: u64, after: Duration) -> Value {
    let published = admin.state.publisher.current();
    let set = published.as_ref().and_then(|published| published.intent().flags.as_deref());
    let (now_ms, after_ms) = (now_ms(), u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
    let exposure = admin.state.exposure();
    let flags = set.into_iter().flat_map(|set| set.flags());
    let mut flags: Vec<_> = flags.map(|flag| row(flag, &exposure, now_ms, after_ms)).collect();
    let schedule = admin.state.store.schedule();
    let mut waiting: BTreeMap<&str, usize> = BTreeMap::new();
    for change in schedule.iter() {
        *waiting.entry(change.flag.as_str()).or_default() += 1;
    }
    // Taken one after the other: whoever watches flags waits for nobody who reads.
    drop(exposure);
    for row in &mut flags {
        row["guard"] = json!(row["flag"].as_str().and_then(|key| admin.guardian.of(key)));
        row["scheduled"] = json!(row["flag"].as_str().and_then(|key| waiting.get(key)).unwrap_or(&0));
    }
    json!({ "revision": revision, "flags": flags, "warnings": set.map(|set| set.warnings()) })
}

fn row(flag: &Flag, exposure: &Exposure, now_ms: u64, after_ms: u64) -> Value {
    json!({
        "flag": flag.key(),
        "state": if flag.is_enabled() { "ENABLED" } else { "DISABLED" },
        "type": flag.kind().map(FlagType::as_str),
        "variants": flag.variants().iter().map(Variant::name).collect::<Vec<_>>(),
        "default_variant": flag.default_variant().map(Variant::name),
        "killed": flag.is_killed(),
        "killed_by": flag.killed_by().map(|(by, why)| json!({ "by": by, "why": why })),
        "static": flag.is_static(),
        "purpose": flag.purpose().map(Purpose::as_str),
        "expires": flag.expires(),
        "follows": flag.follows(),
        "evaluated_ms": exposure.last_ms(flag.key()),
        "seen": exposure.variants(flag.key()),
        "stale": exposure.stale(flag, now_ms, after_ms),
    })
}

#[utoipa::path(put, path = "/v1/flags", tag = "flags", summary = "Replace the whole set, flagd's JSON", params(Terms, Heads),
    request_body = Value,
    responses((status = 200, body = Done), (status = 201, description = "The first one", body = Done),
        (status = 202, description = "Written, but some proxies lag", body = Done),
        (status = 409, description = "A flag would have another type, or one that is in use would go", body = Problem),
        (status = 412, body = Problem),
        (status = 422, description = "Every fault with its path; or what flagd would warn of", body = Problem)))]
pub(super) async fn put_all(
    State(admin): State<Arc<Admin>>,
    author: Author,
    Told(set): Told<Value>,
) -> Result<Response, Problem> {
    author.write(&admin, Command::PutFlags(set)).await
}

#[utoipa::path(get, path = "/v1/flags/{key}", tag = "flags", summary = "One flag",
    params(("key" = String, Path)), responses((status = 200, body = Value), (status = 404, body = Problem)))]
pub(super) async fn read(
    State(admin): State<Arc<Admin>>,
    key: NamedFlag,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (document, revision) = current(&admin);
    let flag = intent::flag(&document, &key.0).ok_or_else(|| none_of(&key.0))?;
    Ok(revised(&headers, revision, flag.clone()))
}

fn none_of(key: &str) -> Problem {
    Problem::not_found(format!("there is no flag `{key}`"))
}

#[utoipa::path(put, path = "/v1/flags/{key}", tag = "flags", summary = "Put one flag",
    params(("key" = String, Path), Terms, Heads), request_body = Value,
    responses((status = 200, body = Done), (status = 201, body = Done), (status = 202, body = Done),
        (status = 409, description = "It would have another type", body = Problem),
        (status = 412, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn put(
    State(admin): State<Arc<Admin>>,
    key: NamedFlag,
    author: Author,
    Told(flag): Told<Value>,
) -> Result<Response, Problem> {
    author.write(&admin, Command::Flag(key.0, FlagDeed::Put(flag))).await
}

#[utoipa::path(patch, path = "/v1/flags/{key}", tag = "flags", summary = "Change parts of one flag (RFC 7396)",
    params(("key" = String, Path), Terms, Heads), request_body(content = Value, content_type = "application/merge-patch+json"),
    responses((status = 200, body = Done), (status = 202, body = Done), (status = 404, body = Problem),
        (status = 409, description = "It would have another type", body = Problem),
        (status = 412, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn patch(
    State(admin): State<Arc<Admin>>,
    key: NamedFlag,
    author: Author,
    Told(patch): Told<Value>,
) -> Result<Response, Problem> {
    author.write(&admin, Command::Flag(key.0, FlagDeed::Patch(patch))).await
}

#[utoipa::path(delete, path = "/v1/flags/{key}", tag = "flags", summary = "Delete one flag",
    params(("key" = String, Path), Terms, Heads),
    responses((status = 200, body = Done), (status = 202, body = Done), (status = 404, body = Problem),
        (status = 409, description = "It was evaluated within a day, or something needs it", body = Problem),
        (status = 412, body = Problem)))]
pub(super) async fn delete(
    State(admin): State<Arc<Admin>>,
    key: NamedFlag,
    author: Author,
) -> Result<Response, Problem> {
    author.write(&admin, Command::Flag(key.0, FlagDeed::Delete)).await
}

#[utoipa::path(post, path = "/v1/flags/{key}/kill", tag = "flags",
    summary = "Its off variant for everybody, whatever else it says", params(("key" = String, Path), Terms, Heads),
    responses((status = 200, body = Done), (status = 202, body = Done), (status = 404, body = Problem),
        (status = 412, body = Problem)))]
pub(super) async fn kill(
    State(admin): State<Arc<Admin>>,
    key: NamedFlag,
    author: Author,
) -> Result<Response, Problem> {
    author.write(&admin, Command::Flag(key.0, FlagDeed::Kill)).await
}

#[utoipa::path(post, path = "/v1/flags/{key}/unkill", tag = "flags", summary = "What it says holds again",
    params(("key" = String, Path), Terms, Heads),
    responses((status = 200, body = Done), (status = 202, body = Done), (status = 404, body = Problem),
        (status = 412, body = Problem)))]
pub(super) async fn unkill(
    State(admin): State<Arc<Admin>>,
    key: NamedFlag,
    author: Author,
) -> Result<Response, Problem> {
    author.write(&admin, Command::Flag(key.0, FlagDeed::Unkill)).await
}

#[utoipa::path(get, path = "/v1/flags/{key}/explain", tag = "flags",
    summary = "What a flag is for somebody, and everything that this follows from",
    params(("key" = String, Path), Asker),
    responses((status = 200, body = Value), (status = 400, body = Problem), (status = 404, body = Problem)))]
pub(super) async fn explain_by_query(
    State(admin): State<Arc<Admin>>,
    key: NamedFlag,
    asker: Result<Query<Asker>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    explain(&admin, &key.0, asker?.0)
}

#[utoipa::path(post, path = "/v1/flags/{key}/explain", tag = "flags", summary = "The same, with further attributes",
    params(("key" = String, Path)), request_body = Asker,
    responses((status = 200, body = Value), (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 422, body = Problem)))]
pub(super) async fn explain_by_body(
    State(admin): State<Arc<Admin>>,
    key: NamedFlag,
    Told(asker): Told<Asker>,
) -> Result<Json<Value>, Problem> {
    explain(&admin, &key.0, asker)
}

fn explain(admin: &Admin, key: &str, asker: Asker) -> Result<Json<Value>, Problem> {
    let Asker { subject, mut context } = asker;
    if let Some(subject) = subject {
        context.insert(TARGETING_KEY.to_owned(), Value::from(subject));
    }
    let published = admin.state.publisher.current().ok_or_else(|| none_of(key))?;
    let snapshot = published.snapshot();
    // As proxies that have no keys of their own: the first one decides.
    let keys = &admin.state.store.identity().visitor_keys;
    let subject_key = keys.lines().next().map(|key| SubjectKey::new(key.as_bytes()));
    let context = Context::of_json(&context);
    let follows =
        |service: &str| is_on_candidate(snapshot, service, context.targeting_key()?, subject_key.as_ref());
    let asked = Asked { follows: &follows, ..Asked::of(&context, now_ms() / 1_000) };
    let explained = snapshot.flags().and_then(|set| set.explain(key, &asked));
    let mut explained = explained.ok_or_else(|| none_of(key))?;
    explained["revision"] = json!(published.revision);
    explained["guard"] = json!(admin.guardian.of(key));
    Ok(Json(explained))
}
