//! Who asks, and whether they may: this machine without a token, others only with one, and nobody beyond what it is for.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::{ConnectInfo, FromRequestParts as _, MatchedPath, RawPathParams, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use gilmok_config::identity::Identity;
use gilmok_config::name::ServiceName;
use gilmok_config::service::ServicePolicy;
use zeroize::Zeroizing;

use super::Admin;
use super::failures::Failures;
use super::needed::needed;
use super::problem::Problem;
use crate::store::now_ms;
use crate::tokens::{Caller, Lacking, OnLoopback, Reach, Scope, Worthless, same_text};

/// What proxies add to the requests of others: what comes with one of them comes from this machine, and who asks may be
/// anybody.
const OF_PROXIES: [&str; 4] = ["forwarded", "x-forwarded-for", "x-real-ip", "via"];
/// Longest token that is read from the file, in bytes.
const TOKEN_BYTES_MAX: usize = 4096;

/// What is asked of callers.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Holds the token of administrators. Read again at each such request, so that it can be changed without a restart.
    pub token_file: Option<PathBuf>,
    pub on_loopback: OnLoopback,
    /// Who has shown tokens that were none.
    pub failures: Arc<Failures>,
    /// Whether writes must say why.
    pub reason_required: bool,
}

impl Access {
    fn is_of_operator(&self, bearer: &str) -> Result<bool, Problem> {
        let Some(path) = &self.token_file else { return Ok(false) };
        let read = || -> std::io::Result<Zeroizing<Vec<u8>>> {
            // Room is made once: a buffer that grows leaves copies behind.
            let mut token = Zeroizing::new(Vec::with_capacity(TOKEN_BYTES_MAX + 1));
            std::io::Read::read_to_end(
                &mut std::io::Read::take(std::fs::File::open(path)?, TOKEN_BYTES_MAX as u64),
                &mut token,
            )?;
            Ok(token)
        };
        let token = read().map_err(|error| {
            tracing::error!("cannot read the token file {}: {error}", path.display());
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the token file cannot be read")
        })?;
        let token = token.trim_ascii();
        Ok(!token.is_empty() && same_text(token, bearer.as_bytes()))
    }
}

/// Lets a request through or not. Whoever is let through is told of by a [`Caller`] among its extensions.
pub(super) async fn check(State(admin): State<Arc<Admin>>, request: Request, next: Next) -> Response {
    // Health is asked by whoever starts this process, wherever it sits, and tells nothing.
    let is_open = matches!(request.uri().path(), "/livez" | "/readyz");
    if is_open {
        return next.run(request).await;
    }
    let (mut parts, body) = request.into_parts();
    let path = parts.extensions.get::<MatchedPath>().cloned();
    let params = RawPathParams::from_request_parts(&mut parts, &()).await.ok();
    let mut request = Request::from_parts(parts, body);
    let let_in = caller(&admin, &request).and_then(|caller| {
        // What is nowhere is told to whoever may ask for anything.
        let needed = path.as_ref().and_then(|path| needed(request.method(), path.as_str()));
        if let Some(needed) = needed {
            // A name that is none is for the handler to refuse.
            let of = params.as_ref().and_then(|params| params.iter().find(|(key, _)| *key == "service"));
            let service = of.and_then(|(_, name)| ServiceName::parse(name).ok());
            let lacking = |lacking: Lacking| {
                count("scope");
                Problem::new(StatusCode::FORBIDDEN, lacking.to_string())
            };
            caller.may(needed, reach(needed, service.as_ref())).map_err(lacking)?;
            if let (Scope::Traffic, Some(service)) = (needed, &service) {
                moves_only_its_own(&admin, &caller, service).map_err(lacking)?;
            }
        }
        Ok(caller)
    });
    match let_in {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(problem) => problem.into_response(),
    }
}

/// What a request touches that needs this scope.
fn reach(needed: Scope, service: Option<&ServiceName>) -> Reach<'_> {
    match (needed, service) {
        (Scope::Read, _) => Reach::Any,
        (_, Some(service)) => Reach::Service(service),
        // Whom it is about stands in its body.
        (Scope::Join | Scope::Proxy, None) => Reach::Any,
        (Scope::Admin | Scope::Flags | Scope::Traffic, None) => Reach::Mesh,
    }
}

/// Services of one group move together: whoever moves one needs a token for all of them.
fn moves_only_its_own(admin: &Admin, caller: &Caller, service: &ServiceName) -> Result<(), Lacking> {
    let Some(published) = admin.state.publisher.current().filter(|_| caller.is_limited()) else {
        return Ok(());
    };
    let services = &published.intent().services;
    let group = |policy: &ServicePolicy| policy.traffic.as_deref().and_then(|traffic| traffic.group.clone());
    let Some(own) = services.get(service).and_then(group) else { return Ok(()) };
    let mut others = services.iter().filter(|(_, policy)| group(policy).as_ref() == Some(&own));
    let other = others.find(|(name, _)| !caller.covers(name));
    other.map_or(Ok(()), |(name, _)| Err(Lacking::Service(name.clone())))
}

/// Who asks. A token that is shown decides, also on this machine: it must not do more than it is for.
fn caller(admin: &Admin, request: &Request) -> Result<Caller, Problem> {
    let extensions = request.extensions();
    let peer = extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip().to_canonical());
    let identity = extensions.get::<Identity>().cloned().map(Caller::Identity);
    let credentials = request.headers().get(header::AUTHORIZATION);
    let bearer = credentials.and_then(|credentials| credentials.to_str().ok()).and_then(token_of);
    if let Some(bearer) = bearer.filter(|bearer| !bearer.is_empty()) {
        let known = known(admin, bearer);
        // Whoever has proved who it is loses nothing by an old token beside it.
        if let (Err(_), Some(identity)) = (&known, identity) {
            return Ok(identity);
        }
        return known.or_else(|worthless| operator(admin, bearer, peer, worthless));
    }
    if let Some(identity) = identity {
        return Ok(identity);
    }
    if peer.is_some_and(|ip| ip.is_loopback()) && admin.access.on_loopback == OnLoopback::Open {
        let Some(header) = OF_PROXIES.iter().find(|name| request.headers().contains_key(**name)) else {
            return refuse_pages(request.headers()).map(|()| Caller::Loopback);
        };
        count("missing");
        let detail = format!(
            "with `{header}` this came through a proxy on this machine, and who asks may be elsewhere: \
             callers need `Authorization: Bearer` with a token"
        );
        return Err(Problem::new(StatusCode::UNAUTHORIZED, detail));
    }
    count("missing");
    let detail = "callers need `Authorization: Bearer` with a token; `gilmok tokens create` makes one";
    Err(Problem::new(StatusCode::UNAUTHORIZED, detail))
}

/// Whose token it is, of those that were made here. Nobody guesses one of these.
fn known(admin: &Admin, bearer: &str) -> Result<Caller, Worthless> {
    admin.state.store.tokens().find(bearer, now_ms()).map(|token| Caller::Token(Arc::clone(token)))
}

/// Whether it is the token of `token_file`, which people may have chosen: not for whoever has failed too often.
fn operator(
    admin: &Admin,
    bearer: &str,
    peer: Option<IpAddr>,
    worthless: Worthless,
) -> Result<Caller, Problem> {
    let failures = &admin.access.failures;
    if let Some(wait) = peer.and_then(|peer| failures.barred(peer)) {
        count("barred");
        let seconds = u16::try_from(wait.as_secs()).unwrap_or(u16::MAX).saturating_add(1);
        let detail = "too many tokens from this address were none; wait before showing another one";
        return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, detail).later(seconds));
    }
    if admin.access.is_of_operator(bearer)? {
        return Ok(Caller::Operator);
    }
    let (reason, detail) = match worthless {
        Worthless::Expired(id) => ("expired", format!("the token {id} has ended")),
        Worthless::Unknown => ("unknown", "this token is not known here".to_owned()),
    };
    count(reason);
    if let Some(peer) = peer.filter(|peer| failures.note(*peer)) {
        tracing::warn!("{peer} shows a token that is none: {detail}");
    }
    Err(Problem::new(StatusCode::UNAUTHORIZED, detail))
}

fn count(reason: &'static str) {
    metrics::counter!("gilmok_authentication_failures_total", "reason" => reason).increment(1);
}

/// The token of `Bearer TOKEN`; the scheme's case means nothing.
fn token_of(credentials: &str) -> Option<&str> {
    let (scheme, token) = credentials.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Whoever is on this machine may write, but not whatever page a browser on this machine has open.
fn refuse_pages(headers: &HeaderMap) -> Result<(), Problem> {
    if headers.contains_key(header::ORIGIN) {
        return Err(Problem::new(StatusCode::FORBIDDEN, "web pages may not use this API without the token"));
    }
    // One that is there and no text is no name that is known.
    let host = headers.get(header::HOST).map_or("localhost", |host| host.to_str().unwrap_or_default());
    let host = gilmok_config::host::canonical(host).unwrap_or_default();
    let is_address = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    // A name with a dot may have been pointed here by a page (DNS rebinding); a plain one cannot.
    if is_address || (!host.is_empty() && !host.contains('.')) {
        return Ok(());
    }
    let detail = "without the token, this API is called by its address or by localhost, not by another name";
    Err(Problem::new(StatusCode::FORBIDDEN, detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_will_do() {
        for (credentials, token) in
            [("Bearer abc", Some("abc")), ("bearer  abc ", Some("abc")), ("Basic abc", None), ("abc", None)]
        {
            assert_eq!(token_of(credentials), token, "{credentials}");
        }
        assert!(!Access::default().is_of_operator("").unwrap_or(true), "no token file lets nobody in");
    }

    #[test]
    fn pages_in_a_browser_on_this_machine_do_not_write() {
        let with = |name: header::HeaderName, value: &'static str| {
            HeaderMap::from_iter([(name, header::HeaderValue::from_bytes(value.as_bytes()).unwrap())])
        };
        assert!(refuse_pages(&with(header::ORIGIN, "http://evil.example")).is_err());
        for host in ["evil.example:7070", "evil.example", "a b", "", "\u{e9}vil.example"] {
            assert!(refuse_pages(&with(header::HOST, host)).is_err(), "{host}");
        }
        for host in ["localhost:7070", "127.0.0.1:7070", "[::1]:7070", "control-plane"] {
            assert!(refuse_pages(&with(header::HOST, host)).is_ok(), "{host}");
        }
    }
}
