//! The admin listener: what operators and machines ask of one proxy. Plain HTTP/1.1, JSON, bounded everywhere.

mod answer;

mod breakers;

mod config;

mod explain;

mod flags;

mod scrape;

mod shards;

mod tls;

mod versions;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST, ORIGIN};
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio::sync::watch;

use self::answer::{Problem, json, text};
use crate::aside::{self, Allows};
use crate::current::InForce;
use crate::drain::{Drain, Phase};
use crate::enrolment;
use crate::settings::{LEVELS, Settings};
use crate::source::{Identity, Sources};
use crate::telemetry::{Logs, Metrics};
use crate::token;
use crate::worker::Shared;

/// Operators and scrapers are few.
const ALLOWS: Allows = Allows { connections: 64, header_timeout: Duration::from_secs(10) };
/// Body of a request, in bytes.
const BODY_BYTES_MAX: usize = 64 << 10;
/// For the body of a request.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// What the answers are made of.
#[derive(Debug)]
pub(crate) struct Admin {
    pub(crate) settings: Settings,
    pub(crate) identity: Identity,
    /// At what addresses this process listens.
    pub(crate) listeners: serde_json::Value,
    pub(crate) in_force: Arc<InForce>,
    pub(crate) sources: Arc<Sources>,
    /// Present where a control plane gives the identity.
    pub(crate) enrolment: Option<Arc<enrolment::Status>>,
    pub(crate) drain: Drain,
    pub(crate) shared: Arc<Shared>,
    pub(crate) logs: Logs,
    pub(crate) metrics: Metrics,
    /// By place of the app in the settings.
    pub(crate) apps_healthy: Vec<watch::Receiver<bool>>,
}

/// What a listener answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The admin listener: everything, for callers on this machine or with the token.
    Everything,
    /// The metrics listener: metrics and probes, for everyone who reaches it.
    Watching,
}

/// Everything there is to ask, for those who asked for something else.
const PATHS: [(&str, &str); 13] = [
    ("GET", "/livez"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/config"),
    ("GET", "/endpoints"),
    ("GET", "/breakers"),
    ("GET", "/explain"),
    ("POST", "/explain"),
    ("GET", "/log"),
    ("PUT", "/log"),
    ("POST", "/drain"),
    ("POST", "/reload"),
    ("POST", "/accept-store"),
];
/// How many of them the metrics listener answers.
const WATCHING: usize = 3;

/// Serves until dropped.
pub(crate) async fn serve(listener: TcpListener, admin: Arc<Admin>, scope: Scope) {
    aside::serve(listener, ALLOWS, move |peer, request| {
        let admin = Arc::clone(&admin);
        async move { answer(&admin, scope, peer, request).await }
    })
    .await;
}

async fn answer(
    admin: &Admin,
    scope: Scope,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(route(admin, scope, peer, request).await.unwrap_or_else(Problem::into_response))
}

async fn route(
    admin: &Admin,
    scope: Scope,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Problem> {
    if scope == Scope::Everything {
        admit(admin.settings.admin_token_file.as_deref(), peer.ip(), request.headers())?;
    }
    let known = match scope {
        Scope::Everything => &PATHS[..],
        Scope::Watching => &PATHS[..WATCHING],
    };
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    // HEAD asks what GET would answer.
    let method = if head.method == Method::HEAD { Method::GET } else { head.method };
    if !known.iter().any(|(_, at)| *at == path) {
        return Err(Problem::no_such_path(path, known));
    }
    if !known.contains(&(method.as_str(), path)) {
        return Err(Problem::no_such_method(&method, path, known));
    }
    let query = head.uri.query().unwrap_or_default();
    match (method.as_str(), path) {
        ("GET", "/livez") => Ok(text("alive\n")),
        ("GET", "/readyz") => ready(admin),
        ("GET", "/metrics") => Ok(scrape::metrics(admin)),
        ("GET", "/config") => Ok(json(&config::config(admin))),
        ("GET", "/endpoints") => {
            Ok(json(&config::endpoints(admin, answer::parameter(query, "service").as_deref())))
        }
        ("GET", "/breakers") => {
            Ok(json(&breakers::breakers(admin, answer::parameter(query, "service").as_deref())))
        }
        ("GET", "/explain") => explain::explain_query(admin, query).map(|told| json(&told)),
        ("POST", "/explain") => explain::explain_body(admin, &read(body).await?).map(|told| json(&told)),
        ("GET", "/log") => Ok(log_level(admin)),
        ("PUT", "/log") => set_log_level(admin, &read(body).await?),
        ("POST", "/drain") => {
            admin.drain.begin();
            Ok(json(&serde_json::json!({ "state": config::state(admin) })))
        }
        ("POST", "/reload") => {
            admin.sources.reload();
            Ok(json(&serde_json::json!({})))
        }
        ("POST", "/accept-store") => accept_store(admin, &read(body).await?),
        _ => Err(Problem::no_such_path(path, known)),
    }
}

/// Admits callers on this machine, and from elsewhere those who show the token. Pages in a browser on this machine are
/// neither: they are told by their `Origin`, or by a `Host` that is a name of somebody else's.
fn admit(token_file: Option<&Path>, caller: IpAddr, headers: &HeaderMap) -> Result<(), Problem> {
    let caller = caller.to_canonical();
    let shown = headers.get(AUTHORIZATION).and_then(token::bearer);
    if let (Some(file), true) = (token_file, shown.is_some() || !caller.is_loopback()) {
        return match token::is_shown(file, shown) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Problem::unauthorized()),
            Err(error) => {
                tracing::error!("cannot read the token file {}: {error}", file.display());
                Err(Problem::unavailable("the token file cannot be read"))
            }
        };
    }
    if !caller.is_loopback() {
        return Err(Problem::forbidden(format!(
            "{caller} may not use the admin listener; callers from elsewhere need the token of [admin] token_file"
        )));
    }
    if headers.contains_key(ORIGIN) {
        return Err(Problem::forbidden("web pages may not use the admin listener".to_owned()));
    }
    // One that is there and no text is no name that is known.
    let host = headers.get(HOST).map_or("localhost", |host| host.to_str().unwrap_or_default());
    let host = gilmok_config::host::canonical(host).unwrap_or_default();
    let is_address = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    // A name with a dot may have been pointed here by a page (DNS rebinding); a plain one cannot.
    if is_address || (!host.is_empty() && !host.contains('.')) {
        return Ok(());
    }
    let other = if host.is_empty() { "another name" } else { &*host };
    Err(Problem::forbidden(format!(
        "the admin listener is called by its address or by localhost, not by {other}"
    )))
}

async fn read(body: Incoming) -> Result<Bytes, Problem> {
    let reading = Limited::new(body, BODY_BYTES_MAX).collect();
    match tokio::time::timeout(BODY_TIMEOUT, reading).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(_)) => Err(Problem::too_large(BODY_BYTES_MAX)),
        Err(_elapsed) => Err(Problem::bad_request("the body did not come in time".to_owned())),
    }
}

fn ready(admin: &Admin) -> Result<Response<Full<Bytes>>, Problem> {
    match admin.drain.phase() {
        Phase::Serving if admin.in_force.load().generation > 0 => Ok(text("ready\n")),
        Phase::Serving if admin.enrolment.as_ref().is_some_and(|status| !status.has_identity()) => {
            Err(Problem::unavailable("no control plane has given an identity yet"))
        }
        Phase::Serving => Err(Problem::unavailable("there is no snapshot in force yet")),
        Phase::Announcing | Phase::Closing | Phase::Ending | Phase::Over => {
            Err(Problem::unavailable("draining"))
        }
    }
}

fn log_level(admin: &Admin) -> Response<Full<Bytes>> {
    json(&serde_json::json!({ "level": config::word_of(admin.logs.level()) }))
}

fn set_log_level(admin: &Admin, body: &[u8]) -> Result<Response<Full<Bytes>>, Problem> {
    let wanted = answer::field(body, "level")?;
    match LEVELS.iter().find(|(word, _)| *word == wanted) {
        Some((word, level)) => {
            admin.logs.set_level(*level);
            tracing::info!("log level {word}");
            Ok(log_level(admin))
        }
        None => {
            let words = LEVELS.map(|(word, _)| word).join(", ");
            Err(Problem::bad_request(format!("there is no such level; one of: {words}")))
        }
    }
}

fn accept_store(admin: &Admin, body: &[u8]) -> Result<Response<Full<Bytes>>, Problem> {
    let store = answer::field(body, "store")?;
    admin.sources.accept_store(&store).map_err(Problem::conflict)?;
    Ok(json(&serde_json::json!({ "store": store })))
}

#[cfg(test)]
mod tests;
