//! Who may ask: this machine without a token, others only with one.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Admin;
use super::problem::Problem;

/// Longest token that is read from the file, in bytes.
const TOKEN_BYTES_MAX: u64 = 4096;

/// The token that callers from other machines need.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Read again at each such request, so that it can be changed without a restart.
    pub token_file: Option<PathBuf>,
}

impl Access {
    fn allows(&self, bearer: &str) -> Result<bool, Problem> {
        let Some(path) = &self.token_file else { return Ok(false) };
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
    if is_open || peer.is_some_and(|ip| ip.is_loopback()) {
        return next.run(request).await;
    }
    let bearer = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = bearer.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default().trim();
    match admin.access.allows(bearer) {
        Ok(true) => next.run(request).await,
        Ok(false) => Problem::new(
            StatusCode::UNAUTHORIZED,
            "callers from other machines need `Authorization: Bearer` with the token of token_file",
        )
        .into_response(),
        Err(problem) => problem.into_response(),
    }
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
        assert!(!Access::default().allows("").unwrap_or(true), "no token file lets nobody in");
    }
}
