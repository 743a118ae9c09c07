//! Tokens over REST: made, listed, revoked. The text of one is shown once, to whoever made it.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use gilmok_config::moment::format_moment;
use gilmok_config::name::ServiceName;
use gilmok_config::problem::{Problem as Fault, Problems};
use gilmok_config::unit::parse_duration;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;
use zeroize::Zeroizing;

use super::Admin;
use super::author::{Author, Heads};
use super::problem::Problem;
use super::revisions::Page;
use super::told::Told;
use crate::store::{TokenDeed, now_ms};
use crate::tokens::{Made, RANDOM_BYTES, Scope, TOKENS_MAX, Token, TokenId, Wanted};

/// What a token is wanted for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Wish {
    /// What it is for, in people's words; at most 100 characters.
    name: String,
    /// `read`, `flags`, `traffic`, `admin`, `proxy`, `join`.
    scopes: Vec<String>,
    /// The only services it is for, at most 100; all of them when nothing is said.
    #[serde(default)]
    services: Option<Vec<String>>,
    /// How long it lasts, e.g. `720h`, from 1 s to ten years; until it is revoked when nothing is said.
    #[serde(default)]
    ttl: Option<String>,
}

/// A token, as it is told.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Shown {
    id: String,
    name: String,
    scopes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    services: Option<Vec<String>>,
    created: String,
    created_by: String,
    /// Absent: it does not end by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
    expired: bool,
}

/// A token that was just made.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Created {
    /// Its text: `Authorization: Bearer` with it. It is shown now and never again.
    #[schema(value_type = String)]
    token: Secret,
    #[serde(flatten)]
    shown: Shown,
}

/// Shown in the answer and nowhere else.
struct Secret(Zeroizing<String>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl Shown {
    fn of(token: &Token, now_ms: u64) -> Self {
        let services = token.services.as_ref();
        Self {
            id: token.id.to_string(),
            name: token.name.clone(),
            scopes: Scope::ALL
                .into_iter()
                .filter(|scope| token.scopes.name(*scope))
                .map(|scope| scope.to_string())
                .collect(),
            services: services.map(|services| services.iter().map(ToString::to_string).collect()),
            created: format_moment(token.created_ms / 1_000),
            created_by: token.created_by.clone(),
            expires: token.expires_ms.map(|end| format_moment(end / 1_000)),
            expired: !token.is_valid_at(now_ms),
        }
    }
}

impl Wish {
    /// # Errors
    /// Every word that is not understood.
    fn read(self) -> Result<Wanted, Problems> {
        let mut faults = Vec::new();
        let scopes = self.scopes.iter().enumerate().filter_map(|(place, text)| {
            let fault = |hint| Fault::at(&format!("scopes[{place}]"), format!("`{text}` is no scope"), hint);
            text.parse::<Scope>().map_err(|hint| faults.push(fault(hint))).ok()
        });
        let scopes = scopes.collect();
        let services = self.services.map(|services| {
            let named = services.iter().enumerate().filter_map(|(place, text)| {
                let fault = |hint| Fault::at(&format!("services[{place}]"), "not a service's name", hint);
                ServiceName::parse(text).map_err(|hint| faults.push(fault(hint))).ok()
            });
            named.collect::<BTreeSet<_>>()
        });
        let ttl = self.ttl.and_then(|text| {
            parse_duration(&text).map_err(|hint| faults.push(Fault::at("ttl", "not a duration", hint))).ok()
        });
        if faults.is_empty() {
            Ok(Wanted { name: self.name.trim().to_owned(), scopes, services, ttl })
        } else {
            Err(Problems(faults))
        }
    }
}

#[utoipa::path(get, path = "/v1/tokens", tag = "tokens", summary = "Every token, without its text, oldest first",
    responses((status = 200, body = Vec<Shown>)))]
pub(super) async fn list(State(admin): State<Arc<Admin>>) -> Json<Vec<Shown>> {
    let (tokens, now) = (admin.state.store.tokens(), now_ms());
    let mut tokens: Vec<_> = tokens.iter().collect();
    tokens.sort_by_key(|token| (token.created_ms, &token.id));
    Json(tokens.into_iter().map(|token| Shown::of(token, now)).collect())
}

#[utoipa::path(post, path = "/v1/tokens", tag = "tokens", summary = "Make a token; its text is in the answer, and never told again",
    params(Heads), request_body = Wish,
    responses((status = 201, body = Created), (status = 422, body = Problem),
        (status = 507, description = "There are too many", body = Problem)))]
pub(super) async fn create(
    State(admin): State<Arc<Admin>>,
    author: Author,
    Told(wish): Told<Wish>,
) -> Result<Response, Problem> {
    let by = author.deed(&admin)?;
    let unsound = |faults| Problem::faulty(faults, "there cannot be such a token; none was made");
    let wanted = wish.read().map_err(unsound)?;
    let mut random = [0; RANDOM_BYTES];
    SystemRandom::new().fill(&mut random).map_err(|_| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "this machine has no random numbers to make it of")
    })?;
    let now = now_ms();
    let Made { token, text } = Token::make(wanted, now, &by.who, &random).map_err(unsound)?;
    let shown = Shown::of(&token, now);
    if !admin.state.store.add_token(token, by.clone()).await? {
        let detail = format!("there are {TOKENS_MAX} tokens; revoke those that have ended");
        return Err(Problem::new(StatusCode::INSUFFICIENT_STORAGE, detail));
    }
    tracing::info!("token {} ({:?}) was made, by {:?}", shown.id, shown.name, by.who);
    let created = Created { token: Secret(text), shown };
    let keep_out = [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    Ok((StatusCode::CREATED, keep_out, Json(created)).into_response())
}

#[utoipa::path(delete, path = "/v1/tokens/{id}", tag = "tokens", summary = "Revoke a token, at once",
    params(("id" = String, Path), Heads),
    responses((status = 204), (status = 404, body = Problem)))]
pub(super) async fn revoke(
    State(admin): State<Arc<Admin>>,
    Path(id): Path<String>,
    author: Author,
) -> Result<StatusCode, Problem> {
    let by = author.deed(&admin)?;
    // Whoever shows the whole text of a token by mistake is not told it again.
    let Some(id) = TokenId::parse(&id) else {
        return Err(Problem::bad_request(
            "the id of a token has 16 hexadecimal digits; /v1/tokens lists them",
        ));
    };
    let who = by.who.clone();
    if !admin.state.store.revoke_token(id.clone(), by).await? {
        return Err(Problem::not_found(format!("there is no token {id}")));
    }
    tracing::info!("token {id} was revoked, by {who:?}");
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(get, path = "/v1/tokens/audit", tag = "tokens", summary = "Who made and revoked which token when and why, newest first",
    params(Page), responses((status = 200, body = Vec<Object>)))]
pub(super) async fn audit(
    State(admin): State<Arc<Admin>>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<Vec<TokenDeed>>, Problem> {
    let (before, limit) = Page::bounds(page)?;
    Ok(Json(admin.state.store.token_audit(before, limit).await?))
}
