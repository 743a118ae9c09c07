//! Why Consul gave no usable answer, by kind, so that a watch knows what to do next.

use std::time::Duration;

use http::StatusCode;
use http::header::RETRY_AFTER;

use crate::http_client::{self, Response};

/// Most characters of Consul's own words in an error.
const SAID_CHARS_MAX: usize = 200;
/// Longest `Retry-After` that is honoured.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// A failed call. None of these says anything about who is alive: the last known good stays.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// An answer that is not what the API promises; the path leads to the value.
    #[error("cannot read consul's answer at `{path}`: {reason}")]
    Decode { path: String, reason: String },
    #[error("consul refuses the token (403: {said}); it needs service:read and node:read")]
    Forbidden { said: String },
    #[error("consul has no leader")]
    NoLeader,
    #[error("consul does not know this path (404)")]
    NotFound,
    #[error("consul asks to come back later")]
    RateLimited { after: Option<Duration> },
    /// Any other status, 500 first of all.
    #[error("consul failed with {status}: {said}")]
    Refused { status: u16, said: String },
    #[error("consul's answer is longer than {bytes_max} bytes")]
    TooLarge { bytes_max: usize },
    /// No connection, or none that lasted to the end of an answer.
    #[error("{0}")]
    Unreachable(http_client::Error),
}

impl Error {
    /// What is the same for errors with the same cause, whichever agent and watch they come from.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Decode { .. } => "decode",
            Self::Forbidden { .. } => "forbidden",
            Self::NoLeader => "no_leader",
            Self::NotFound => "not_found",
            Self::RateLimited { .. } => "rate_limited",
            Self::Refused { .. } => "refused",
            Self::TooLarge { .. } => "too_large",
            Self::Unreachable(_) => "unreachable",
        }
    }
}

impl From<http_client::Error> for Error {
    fn from(error: http_client::Error) -> Self {
        match error {
            http_client::Error::TooLarge { bytes_max, .. } => Self::TooLarge { bytes_max },
            http_client::Error::Malformed { .. }
            | http_client::Error::Request(_)
            | http_client::Error::Settings(_)
            | http_client::Error::TimedOut { .. }
            | http_client::Error::Unreachable { .. } => Self::Unreachable(error),
        }
    }
}

/// `response` if it is a success.
pub(super) fn checked(response: Response) -> Result<Response, Error> {
    if response.status.is_success() {
        return Ok(response);
    }
    let said = String::from_utf8_lossy(&response.body);
    let said: String = said.trim().chars().take(SAID_CHARS_MAX).flat_map(char::escape_debug).collect();
    let after = || {
        let seconds = response.headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
        Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
    };
    Err(match response.status {
        StatusCode::FORBIDDEN => Error::Forbidden { said },
        StatusCode::NOT_FOUND => Error::NotFound,
        StatusCode::TOO_MANY_REQUESTS => Error::RateLimited { after: after() },
        StatusCode::SERVICE_UNAVAILABLE if after().is_some() => Error::RateLimited { after: after() },
        status if status.is_server_error() && said.contains("No cluster leader") => Error::NoLeader,
        status => Error::Refused { status: status.as_u16(), said },
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue};

    use super::*;

    #[test]
    fn errors_are_told_apart_by_what_can_be_done() {
        let ask = |status: u16, body: &'static str, retry_after: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            if let Some(value) = retry_after {
                headers.insert(RETRY_AFTER, HeaderValue::from_static(value));
            }
            let status = StatusCode::from_u16(status).unwrap();
            checked(Response { status, headers, body: Bytes::from_static(body.as_bytes()) }).map(|_| ())
        };
        assert!(ask(200, "", None).is_ok());
        assert!(matches!(ask(500, "No cluster leader", None), Err(Error::NoLeader)));
        assert!(matches!(ask(500, "rpc error", None), Err(Error::Refused { status: 500, .. })));
        assert!(matches!(ask(403, "Permission denied", None), Err(Error::Forbidden { .. })));
        assert!(matches!(ask(404, "", None), Err(Error::NotFound)));
        let after = |result| match result {
            Err(Error::RateLimited { after }) => after,
            other => panic!("{other:?}"),
        };
        assert_eq!(after(ask(429, "", Some("7"))), Some(Duration::from_secs(7)));
        assert_eq!(after(ask(429, "", None)), None);
        assert_eq!(after(ask(503, "", Some("9999"))), Some(RETRY_AFTER_MAX));
        assert!(matches!(ask(503, "", None), Err(Error::Refused { status: 503, .. })));
    }

    #[test]
    fn what_consul_says_is_bounded_and_stays_on_one_line() {
        let body = Bytes::from(format!("a\nb{}", "x".repeat(9_000)));
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        let error = checked(Response { status, headers: HeaderMap::new(), body }).unwrap_err().to_string();
        assert!(error.len() < 300 && !error.contains('\n'), "{error}");
    }
}
