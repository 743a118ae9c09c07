//! Identities: certificates for proxies, the roots they trust, and the steps by which a root changes.

use std::sync::{Arc, LazyLock};

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use gilmok_config::moment::format_moment;
use gilmok_config::name::ServiceName;
use gilmok_config::unit::format_duration;
use gilmok_config::wire::ProxyState;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;
use utoipa::ToSchema;

use super::Admin;
use super::author::{Author, Heads};
use super::problem::Problem;
use super::told::Told;
use crate::authority::{Authority, IssueError, Phase, StepError};
use crate::publish::ProxyReport;
use crate::store::now_ms;
use crate::tokens::Caller;

/// Paces are kept by a clock that nobody sets.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Who wants a certificate.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Wish {
    /// A certificate signing request in PEM; only its key is read of it.
    csr: String,
    #[schema(value_type = String)]
    service: ServiceName,
}

/// A certificate.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Certificate {
    /// It and those between it and the root, in PEM.
    chain: String,
    /// What its owner is to trust, in PEM.
    roots: String,
    /// Its last second, of Unix time.
    expires: u64,
}

/// What proxies are to trust.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Roots {
    /// In PEM.
    roots: String,
}

/// A step of the root's change.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Step {
    /// `announced`: a new root is trusted beside the old; `signing`: it signs; `settled`: the old one is gone, or, from
    /// `announced`, the new one.
    #[schema(value_type = String)]
    to: Phase,
    /// Whether it is done although proxies are behind, or certificates of the old root have not ended.
    #[serde(default)]
    force: bool,
}

#[utoipa::path(post, path = "/v1/identity/certificates", tag = "identity",
    summary = "A certificate of a service's identity, for a key that the caller keeps",
    request_body = Wish,
    responses((status = 200, body = Certificate),
        (status = 403, description = "The caller may not be that service", body = Problem),
        (status = 404, description = "No [identity] here", body = Problem),
        (status = 422, description = "The request is not sound, or its key is of a kind that is not taken", body = Problem),
        (status = 429, description = "The service asks too often; Retry-After says when", body = Problem)))]
pub(super) async fn certificate(
    State(admin): State<Arc<Admin>>,
    Extension(caller): Extension<Caller>,
    Told(wish): Told<Wish>,
) -> Result<Response, Problem> {
    let authority = authority(&admin)?;
    let service = wish.service;
    // A certificate of another domain that is believed here renews nothing of this one.
    let is_of_domain = match &caller {
        Caller::Identity(identity) => *identity.domain == *authority.trust_domain(),
        Caller::Loopback | Caller::Operator | Caller::Token(_) => true,
    };
    if !is_of_domain || !caller.may_join(&service) {
        count("denied");
        let who = caller.told().unwrap_or_default();
        tracing::warn!("no certificate of {service} for {who}: it may not be that service");
        let detail = format!(
            "this needs a token with the scope `join` for the service `{service}`, or that service's certificate"
        );
        return Err(Problem::new(StatusCode::FORBIDDEN, detail));
    }
    let monotonic = u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX);
    match authority.issue(&service, &wish.csr, now_ms() / 1_000, monotonic) {
        Ok(issued) => {
            count("issued");
            let (serial, identity) = (&issued.leaf.serial, &issued.identity);
            let who = caller.told().unwrap_or_else(|| "a caller on this machine".to_owned());
            let until = format_moment(issued.leaf.not_after);
            tracing::info!("certificate {serial} of {identity}, until {until}, for {who}");
            let told = Certificate {
                chain: issued.leaf.chain,
                roots: issued.roots.pem,
                expires: issued.leaf.not_after,
            };
            Ok(([(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], Json(told)).into_response())
        }
        Err(error) => Err(of_issue(&error)),
    }
}

fn of_issue(error: &IssueError) -> Problem {
    match error {
        IssueError::Request(_) => {
            count("unsound");
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
        }
        IssueError::Pace(wait) => {
            count("limited");
            let seconds = wait.as_secs().saturating_add(1);
            Problem::new(StatusCode::TOO_MANY_REQUESTS, error.to_string())
                .later(u16::try_from(seconds).unwrap_or(u16::MAX))
        }
        IssueError::Authority(why) => {
            count("failed");
            tracing::error!("no certificate can be made: {why}");
            let detail = "no certificate can be made; the control plane's log says why";
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail)
        }
    }
}

fn count(result: &'static str) {
    metrics::counter!("gilmok_identity_certificates_total", "result" => result).increment(1);
}

#[utoipa::path(get, path = "/v1/identity/roots", tag = "identity", summary = "The roots that proxies are to trust",
    responses((status = 200, body = Roots), (status = 404, description = "No [identity] here", body = Problem)))]
pub(super) async fn roots(State(admin): State<Arc<Admin>>) -> Result<Json<Roots>, Problem> {
    Ok(Json(Roots { roots: authority(&admin)?.roots().pem }))
}

#[utoipa::path(get, path = "/v1/identity", tag = "identity",
    summary = "The authority, its roots, which proxies have them and until when their certificates last",
    responses((status = 200, body = Value), (status = 404, description = "No [identity] here", body = Problem)))]
pub(super) async fn read(State(admin): State<Arc<Admin>>) -> Result<Json<Value>, Problem> {
    let authority = authority(&admin)?;
    let phase = authority.phase();
    let digest = authority.roots().digest;
    let now = Instant::now();
    let proxies = admin.state.publisher.acks.all().into_iter().filter_map(|report| {
        let identity = report.ack.identity.as_ref()?;
        Some(json!({
            "node": report.ack.node,
            "live": report.is_live(now),
            "ends": format_moment(identity.ends),
            "has_roots": identity.roots == digest,
        }))
    });
    let roots = authority
        .standing()
        .into_iter()
        .map(|root| json!({ "name": root.name, "signs": root.signs, "ends": format_moment(root.ends) }));
    Ok(Json(json!({
        "trust_domain": authority.trust_domain(),
        "leaf_ttl": format_duration(authority.leaf_ttl()),
        "given": authority.is_given(),
        "phase": phase,
        "next": next(phase),
        "roots": roots.collect::<Vec<_>>(),
        "signs_until": format_moment(authority.signs_until()),
        "may_sign_from": authority.signs_from().map(format_moment),
        "old_certificates_end": authority.leaves_end().map(format_moment),
        "proxies": proxies.collect::<Vec<_>>(),
        "lagging": lagging(&admin, authority),
    })))
}

/// The next step of a change of the root.
fn next(phase: Phase) -> Phase {
    match phase {
        Phase::Settled => Phase::Announced,
        Phase::Announced => Phase::Signing,
        Phase::Signing => Phase::Settled,
    }
}

#[utoipa::path(post, path = "/v1/identity/roots/rotate", tag = "identity",
    summary = "A step of the root's change, once proxies have taken the one before",
    params(Heads), request_body = Step,
    responses((status = 200, body = Value), (status = 404, description = "No [identity] here", body = Problem),
        (status = 409, description = "Not from here, or not yet: the answer says what is waited for", body = Problem)))]
pub(super) async fn rotate(
    State(admin): State<Arc<Admin>>,
    author: Author,
    Told(step): Told<Step>,
) -> Result<Json<Value>, Problem> {
    let by = author.deed(&admin)?;
    let authority = Arc::clone(authority(&admin)?);
    let found = authority.phase();
    let conflict = |detail: String| Problem::new(StatusCode::CONFLICT, detail);
    if !step.force
        && let Some(why) = waits_for(&admin, &authority, found, step.to)
    {
        return Err(conflict(format!("{why}; `force` does it all the same")));
    }
    let to = step.to;
    let writing = tokio::task::spawn_blocking(move || authority.step(found, to, now_ms() / 1_000));
    let ended = |_| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the control plane is about to end");
    match writing.await.map_err(ended)? {
        Ok(()) => {
            let forced = if step.force { ", forced" } else { "" };
            tracing::info!("the root's change is {to}, by {:?}{forced}: {}", by.who, by.reason);
            Ok(Json(json!({ "phase": to, "next": next(to) })))
        }
        Err(error @ (StepError::Given | StepError::Order { .. })) => Err(conflict(error.to_string())),
        Err(StepError::Failed(why)) => {
            tracing::error!("the root's change: {why}");
            let detail = "nothing was changed; the control plane's log says why";
            Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail))
        }
    }
}

/// What must have happened before a step harms nobody; `None` where it may be done.
fn waits_for(admin: &Admin, authority: &Authority, from: Phase, to: Phase) -> Option<String> {
    if !matches!((from, to), (Phase::Announced, Phase::Signing) | (Phase::Signing, Phase::Settled)) {
        return None;
    }
    let lagging = lagging(admin, authority);
    if !lagging.is_empty() {
        return Some(format!("these proxies have not taken the roots yet: {}", lagging.join(", ")));
    }
    let now = now_ms() / 1_000;
    if let Some(from) = authority.signs_from().filter(|from| *from > now) {
        let from = format_moment(from);
        return Some(format!("certificates of proxies that are silent may be valid until {from}"));
    }
    let end = authority.leaves_end().filter(|end| *end >= now)?;
    Some(format!("certificates of the old root are valid until {}", format_moment(end)))
}

/// The proxies that do not trust the roots of now, as far as is known. One that is silent still serves while its certificate
/// lasts, unless it has said that it leaves; also one that only the process before this one has heard of.
fn lagging(admin: &Admin, authority: &Authority) -> Vec<String> {
    let digest = authority.roots().digest;
    let (now, unix_now) = (Instant::now(), now_ms() / 1_000);
    let is_behind = |report: &ProxyReport| {
        let has_left = report.ack.state == ProxyState::Draining && !report.is_live(now);
        let identity = report.ack.identity.as_ref().filter(|_| !has_left);
        identity.is_some_and(|identity| identity.ends >= unix_now && identity.roots != digest)
    };
    let all = admin.state.publisher.acks.all();
    all.into_iter().filter(is_behind).map(|report| report.ack.node).collect()
}

fn authority(admin: &Admin) -> Result<&Arc<Authority>, Problem> {
    admin.authority.as_ref().ok_or_else(|| {
        Problem::not_found(
            "this control plane makes no certificates; [identity] in control-plane.toml makes it",
        )
    })
}

/// What is told of it at `/metrics`.
pub(super) fn render(admin: &Admin, out: &mut String) {
    let Some(authority) = &admin.authority else { return };
    let mut add = |name: &str, help: &str, lines: String| {
        out.push_str(&format!("# HELP {name} {help}\n# TYPE {name} gauge\n{lines}"));
    };
    let roots = authority.standing().into_iter().enumerate().map(|(place, root)| {
        let signs = root.signs;
        format!("gilmok_identity_root_end_seconds{{root=\"{place}\",signs=\"{signs}\"}} {}\n", root.ends)
    });
    add("gilmok_identity_root_end_seconds", "When a root ends, in Unix time.", roots.collect());
    let until = authority.signs_until();
    let line = format!("gilmok_identity_signs_until_seconds {until}\n");
    add("gilmok_identity_signs_until_seconds", "Until when certificates can be made, in Unix time.", line);
    let step = authority.phase() as u8;
    let line = format!("gilmok_identity_root_change {step}\n");
    add("gilmok_identity_root_change", "A root's change: 0 none, 1 announced, 2 the new one signs.", line);
    let lagging = lagging(admin, authority).len();
    let line = format!("gilmok_identity_roots_lagging {lagging}\n");
    add("gilmok_identity_roots_lagging", "Proxies that do not trust the roots of now.", line);
    let now = Instant::now();
    let ends = admin.state.publisher.acks.all().into_iter().filter(|report| report.is_live(now));
    let ends = ends.filter_map(|report| {
        let end = report.ack.identity.as_ref()?.ends;
        // Names were checked when the ack was taken and need no escaping.
        Some(format!("gilmok_identity_end_seconds{{proxy=\"{}\"}} {end}\n", report.ack.node))
    });
    let help = "When the certificate of a live proxy ends, in Unix time.";
    add("gilmok_identity_end_seconds", help, ends.collect());
}
