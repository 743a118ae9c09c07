//! Forcing a service's breaker: the drill that shows before the night what the fallback looks like.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::State;
use axum::response::Response;
use gilmok_config::forced::ForcedState;
use gilmok_config::unit::parse_duration;
use serde::Deserialize;
use utoipa::ToSchema;

use super::Admin;
use super::author::{Author, Done, Heads, Terms};
use super::named::Named;
use super::problem::Problem;
use super::told::Told;
use crate::intent::{Command, Force};

/// Longest time for which a breaker is forced.
const FOR_MAX: Duration = Duration::from_hours(24 * 366);

/// What a breaker is to do.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Forcing {
    force: Word,
    /// For how long, e.g. `10m`; until something else is said when it is left out.
    #[serde(rename = "for")]
    during: Option<String>,
    /// Only this version; all when it is left out.
    #[serde(default)]
    version: String,
    /// Only this shard.
    #[serde(default)]
    shard: String,
}

#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Word {
    /// What its calls come to decides again.
    Auto,
    /// Calls flow, whatever they come to.
    Closed,
    /// All calls are refused, and fallbacks are given.
    Open,
}

#[utoipa::path(put, path = "/v1/services/{service}/breaker", tag = "services",
    summary = "Force a breaker open or closed, or let its calls decide again",
    params(("service" = String, Path), Terms, Heads), request_body = Forcing,
    responses((status = 200, body = Done), (status = 202, body = Done), (status = 400, body = Problem),
        (status = 404, body = Problem), (status = 412, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn force_breaker(
    State(admin): State<Arc<Admin>>,
    service: Named,
    author: Author,
    Told(forcing): Told<Forcing>,
) -> Result<Response, Problem> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let during = match &forcing.during {
        None => None,
        Some(text) => match parse_duration(text) {
            Ok(during) if during.is_zero() || during > FOR_MAX => {
                return Err(Problem::bad_request("for: more than 0s, at most 366d".to_owned()));
            }
            Ok(during) => Some(during),
            Err(hint) => return Err(Problem::bad_request(format!("for: {hint}"))),
        },
    };
    let state = match forcing.force {
        Word::Auto => None,
        Word::Closed => Some(ForcedState::Closed),
        Word::Open => Some(ForcedState::Open),
    };
    let force = Force {
        state,
        // Rounded up: who asks for half a second gets one.
        until: during
            .map(|during| (since + during).as_millis().div_ceil(1_000))
            .and_then(|s| s.try_into().ok()),
        by: author.who().to_owned(),
        version: forcing.version,
        shard: forcing.shard,
        at: since.as_secs(),
    };
    author.write(&admin, Command::ForceBreaker(service.0, force)).await
}
