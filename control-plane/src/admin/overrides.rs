//! Signing what a tester may see: a header for some flags, until some time. No revision is made; the log says who signed what.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use gilmok_config::flag::{FlagSet, OVERRIDE_TTL_MAX, OverrideKey, Variant};
use gilmok_config::moment::format_moment;
use gilmok_config::problem::{Problem as Fault, Problems, shown};
use gilmok_config::unit::parse_duration;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Admin;
use super::author::{Author, Heads};
use super::problem::Problem;
use super::told::Told;
use crate::store::now_ms;

/// How long an override holds when nothing is said.
const TTL: Duration = Duration::from_hours(1);
/// The header, as people write it.
const NAME: &str = "Feature-Flags-Override";

/// What a tester is to see.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Wish {
    /// Flags, and the variant of each; at most 32.
    flags: BTreeMap<String, String>,
    /// For how long, e.g. `8h`; 1 hour by default, 30 days at most.
    ttl: Option<String>,
}

/// A header that a tester sends.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Signed {
    /// `Feature-Flags-Override`.
    name: &'static str,
    value: String,
    /// Seconds of Unix time.
    expires: u64,
}

#[utoipa::path(post, path = "/v1/flag-overrides", tag = "flags", summary = "Sign a header with which a tester sees other variants",
    params(Heads), request_body = Wish,
    responses((status = 200, body = Signed),
        (status = 400, description = "It must be said why", body = Problem), (status = 422, body = Problem)))]
pub(super) async fn sign(
    State(admin): State<Arc<Admin>>,
    author: Author,
    Told(wish): Told<Wish>,
) -> Result<Json<Signed>, Problem> {
    const NOT_SIGNED: &str = "nothing was signed";
    let by = author.deed(&admin)?;
    let mut faults = Vec::new();
    let mut fault = |path: String, what: String, hint: Option<&str>| {
        faults.push(Fault { path, line: None, what, hint: hint.map(str::to_owned) });
    };
    let ttl = match wish.ttl.as_deref().map_or(Ok(TTL), parse_duration) {
        Ok(ttl) if ttl >= Duration::from_secs(1) && ttl <= OVERRIDE_TTL_MAX => ttl,
        Ok(_) => {
            fault("ttl".to_owned(), "out of range".to_owned(), Some("from 1 second to 30 days"));
            TTL
        }
        Err(hint) => {
            fault("ttl".to_owned(), "not understood".to_owned(), Some(hint));
            TTL
        }
    };
    let published = admin.state.publisher.current();
    let set = published.as_ref().and_then(|published| published.snapshot().flags());
    for (flag, variant) in &wish.flags {
        if let Err((what, hint)) = check(set.map(Arc::as_ref), flag, variant) {
            fault(format!("flags.{}", shown(flag)), what, Some(&hint));
        }
    }
    if !faults.is_empty() {
        return Err(Problem::faulty(Problems(faults), NOT_SIGNED));
    }
    // As proxies that have no keys of their own: the first one signs.
    let keys = &admin.state.store.identity().visitor_keys;
    let key = keys.lines().next().map(|key| OverrideKey::new(key.as_bytes()));
    let key =
        key.ok_or_else(|| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the store has no keys yet"))?;
    let expires = now_ms() / 1_000 + ttl.as_secs();
    let choices = wish.flags.iter().map(|(flag, variant)| (flag.as_str(), variant.as_str()));
    let value = key.sign(choices, expires).map_err(|what| {
        let fault = Fault { path: "flags".to_owned(), line: None, what: what.to_owned(), hint: None };
        Problem::faulty(Problems(vec![fault]), NOT_SIGNED)
    })?;
    // Never the value: whoever reads the log could show it.
    let (who, reason, end) = (by.who, by.reason, format_moment(expires));
    tracing::info!("an override of {:?} until {end} was signed, by {who:?}, because {reason:?}", wish.flags);
    Ok(Json(Signed { name: NAME, value, expires }))
}

/// Whether a flag can be made this variant; else what is wrong, and what could be said.
fn check(set: Option<&FlagSet>, flag: &str, variant: &str) -> Result<(), (String, String)> {
    const SHOWN_MAX: usize = 10;
    let Some(flag) = set.and_then(|set| set.get(flag)) else {
        return Err((format!("there is no flag `{}`", shown(flag)), "a flag of the set".to_owned()));
    };
    if flag.place_of(variant).is_some() {
        return Ok(());
    }
    let names: Vec<_> = flag.variants().iter().map(Variant::name).take(SHOWN_MAX).map(shown).collect();
    Err((format!("there is no variant `{}`", shown(variant)), format!("one of: {}", names.join(", "))))
}
