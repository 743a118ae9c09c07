//! Who may ask: this machine without a token, others only with one.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Admin;
use super::problem::Problem;

/// Longest token that is read from the file, in bytes.
const TOKEN_BYTES_MAX: u64 = 4096;

/// What is asked of callers.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Read again at each such request, so that it can be changed without a restart.
    pub token_file: Option<PathBuf>,
    /// Whether writes must say why.
    pub reason_required: bool,
}

impl Access {
    fn allows(&self, bearer: &str) -> Result<bool, Problem> {
        let Some(path) = self.token_file.as_ref().filter(|_| !bearer.is_empty()) else { return Ok(false) };
        let read = || -> std::io::Result<Vec<u8>> {
            let mut token = Vec::new();
            std::io::Read::read_to_end(
                &mut std::io::Read::take(std::fs::File::open(path)?, TOKEN_BYTES_MAX),
                &mut token,
            )?;
            Ok(token)
        };
        let token = read().map_err(|error| {
            tracing::error!("cannot read the token file {}: {error}", path.display());
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the token file cannot be read")
        })?;
        let token = token.trim_ascii();
        Ok(!token.is_empty() && same(token, bearer.as_bytes()))
    }
}

/// Compares in a time that does not tell where the first difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}

/// Lets a request through or not.
pub(super) async fn check(State(admin): State<Arc<Admin>>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip().to_canonical());
    // Health is asked by whoever starts this process, wherever it sits, and tells nothing.
    let is_open = matches!(request.uri().path(), "/livez" | "/readyz");
    if is_open {
        return next.run(request).await;
    }
    let bearer = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = bearer.and_then(token_of).unwrap_or_default();
    match admin.access.allows(bearer) {
        Ok(true) => next.run(request).await,
        Ok(false) | Err(_) if peer.is_some_and(|ip| ip.is_loopback()) => {
            match refuse_pages(request.headers()) {
                Ok(()) => next.run(request).await,
                Err(problem) => problem.into_response(),
            }
        }
        Ok(false) => Problem::new(
            StatusCode::UNAUTHORIZED,
            "callers from other machines need `Authorization: Bearer` with the token of token_file",
        )
        .into_response(),
        Err(problem) => problem.into_response(),
    }
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
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
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
        for (token, given, expected) in
            [("abc", "abc", true), ("abc", "ab", false), ("abc", "abd", false), ("", "", true)]
        {
            assert_eq!(same(token.as_bytes(), given.as_bytes()), expected);
        }
        for (credentials, token) in
            [("Bearer abc", Some("abc")), ("bearer  abc ", Some("abc")), ("Basic abc", None), ("abc", None)]
        {
            assert_eq!(token_of(credentials), token, "{credentials}");
        }
        assert!(!Access::default().allows("").unwrap_or(true), "no token file lets nobody in");
    }

    #[test]
    fn pages_in_a_browser_on_this_machine_do_not_write() {
        let with = |name: header::HeaderName, value: &'static str| {
            HeaderMap::from_iter([(name, header::HeaderValue::from_static(value))])
        };
        assert!(refuse_pages(&with(header::ORIGIN, "http://evil.example")).is_err());
        for host in ["evil.example:7070", "evil.example", "a b", ""] {
            assert!(refuse_pages(&with(header::HOST, host)).is_err(), "{host}");
        }
        for host in ["localhost:7070", "127.0.0.1:7070", "[::1]:7070", "control-plane"] {
            assert!(refuse_pages(&with(header::HOST, host)).is_ok(), "{host}");
        }
    }
}
