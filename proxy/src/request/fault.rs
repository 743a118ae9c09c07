//! Every reason for which the proxy answers itself: the status, the words of RFC 9209, and gRPC's code.

use gilmok_config::failure::Failure;
use http::StatusCode;

use crate::rate_limit::Limited;
use crate::upstream::candidates::Unwritable;

/// Why a request gets the proxy's own answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The request is malformed; the words say how.
    BadRequest(&'static str),
    /// Its sharding key says no shard; the words say why.
    BadKey(&'static str),
    BodyTooLarge,
    /// The breaker is open; seconds until it may be worth asking again.
    BreakerOpen(u32),
    /// The time that the caller gave was up.
    CallerTimeout,
    /// Longer than the connect timeout for a connection.
    ConnectTimeout,
    /// The request may not be made here; the words say why.
    Denied(&'static str),
    /// The version that was asked has been left, and its time is over.
    Drained,
    /// The key is that of another shard than the app's beside this proxy, by its place in the rule.
    Elsewhere(usize),
    /// An expectation other than 100-continue.
    Expectation,
    /// The key is on its way to another shard, and nothing said in time where it is; here or at the endpoint's sidecar.
    Held,
    /// An owner says that the key is another shard's, and the request cannot follow it there.
    Misdirected,
    NoDestination,
    NoEndpoint,
    /// Nobody knows who of the shard may be written to; the words say why.
    NoPrimary(&'static str),
    /// Over `max_concurrent` of the service, or over the proxy's own limit; here or at the endpoint's sidecar.
    Overflow(&'static str),
    /// Over the service's rate limit.
    RateLimited(Limited),
    /// The endpoint refused the connection.
    Refused,
    /// The connection ended before an answer came, or what came is no HTTP.
    Reset,
    /// No answer in time.
    Timeout,
    /// The endpoint does not agree upon TLS.
    Tls,
    /// No way to the endpoint.
    Unreachable,
    /// The endpoint is not who it should be, or cannot prove it.
    Untrusted,
    /// The caller stopped sending.
    UploadStalled,
    /// The endpoint stopped taking what the caller sends.
    UploadUntaken,
    UriTooLong,
}

/// How [`Fault::Held`] is told from other reasons for which nobody is available.
const MOVING: &str = "shard=moving";

/// How a fault is told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    pub(crate) status: StatusCode,
    /// The error type of RFC 9209.
    pub(crate) error: &'static str,
    /// gRPC's status code.
    pub(crate) grpc: u8,
    pub(crate) details: &'static str,
    /// `Retry-After`, in seconds, where it is sent with it.
    pub(crate) retry_after: Option<u32>,
}

impl Fault {
    pub(crate) fn told(self) -> Told {
        let told = |status, error, grpc, details| Told { status, error, grpc, details, retry_after: None };
        let late = |details| told(StatusCode::GATEWAY_TIMEOUT, "http_response_timeout", 4, details);
        let later = |told: Told| Told { retry_after: Some(1), ..told };
        let unavailable =
            |details| told(StatusCode::SERVICE_UNAVAILABLE, "destination_unavailable", 14, details);
        let bad_gateway = |error, details| told(StatusCode::BAD_GATEWAY, error, 14, details);
        match self {
            Self::BadRequest(what) | Self::BadKey(what) => {
                told(StatusCode::BAD_REQUEST, "http_request_error", 3, what)
            }
            Self::BodyTooLarge => told(
                StatusCode::PAYLOAD_TOO_LARGE,
                "http_request_error",
                8,
                "the body is larger than limits.body_bytes",
            ),
            Self::BreakerOpen(seconds) => Told { retry_after: Some(seconds), ..unavailable("breaker=open") },
            Self::CallerTimeout => late("no answer in the time that the caller gave"),
            Self::ConnectTimeout => told(
                StatusCode::GATEWAY_TIMEOUT,
                "connection_timeout",
                14,
                "no connection within connect_timeout",
            ),
            Self::Denied(why) => told(StatusCode::FORBIDDEN, "http_request_denied", 7, why),
            Self::Drained => later(unavailable("no answer within drain_timeout of the version")),
            Self::Elsewhere(_) => {
                told(StatusCode::MISDIRECTED_REQUEST, "http_request_error", 14, "shard=elsewhere")
            }
            Self::Expectation => told(
                StatusCode::EXPECTATION_FAILED,
                "http_request_error",
                3,
                "only 100-continue can be expected",
            ),
            Self::NoDestination => told(
                StatusCode::NOT_FOUND,
                "destination_not_found",
                12,
                "no service and no route answers to this host and path",
            ),
            Self::Held => later(unavailable(MOVING)),
            Self::Misdirected => later(unavailable("the key has moved to another shard")),
            Self::NoEndpoint => later(unavailable("no endpoint of the service is available")),
            Self::NoPrimary(why) => later(unavailable(why)),
            Self::Overflow(which) => {
                later(told(StatusCode::SERVICE_UNAVAILABLE, "connection_limit_reached", 14, which))
            }
            Self::RateLimited(limited) => Told {
                retry_after: Some(limited.seconds),
                ..told(
                    StatusCode::TOO_MANY_REQUESTS,
                    "http_request_denied",
                    8,
                    "the rate limit of the service is reached",
                )
            },
            Self::Refused => bad_gateway("connection_refused", "the endpoint refused the connection"),
            Self::Reset => bad_gateway("connection_terminated", "the connection ended before an answer came"),
            Self::Timeout => late("no answer within request_timeout"),
            Self::Tls => told(
                StatusCode::BAD_GATEWAY,
                "tls_protocol_error",
                14,
                "the endpoint does not agree upon TLS",
            ),
            Self::Untrusted => bad_gateway(
                "tls_certificate_error",
                "the endpoint's certificate is not the service's, or is not believed",
            ),
            Self::Unreachable => bad_gateway("destination_ip_unroutable", "no way to the endpoint"),
            Self::UploadStalled => told(
                StatusCode::REQUEST_TIMEOUT,
                "http_request_error",
                4,
                "the upload stopped for idle_timeout",
            ),
            Self::UploadUntaken => late("the endpoint took nothing of the upload for idle_timeout"),
            Self::UriTooLong => told(
                StatusCode::URI_TOO_LONG,
                "http_request_error",
                3,
                "the path is longer than limits.uri_bytes",
            ),
        }
    }

    /// What a sidecar said of itself in `Proxy-Status: gilmok; error=…`; `None` when that is the application's answer.
    pub(crate) fn of_sidecar(proxy_status: &str) -> Option<Self> {
        let (_, rest) = proxy_status.strip_prefix("gilmok")?.split_once("error=")?;
        let error = rest.split(';').next().unwrap_or_default().trim();
        match error {
            "connection_limit_reached" => Some(Self::Overflow("the endpoint's own proxy is full")),
            "connection_refused" => Some(Self::Refused),
            "connection_terminated" => Some(Self::Reset),
            "connection_timeout" => Some(Self::ConnectTimeout),
            "destination_unavailable" if rest.contains(MOVING) => Some(Self::Held),
            "destination_unavailable" => Some(Self::NoEndpoint),
            "destination_ip_unroutable" => Some(Self::Unreachable),
            "http_response_timeout" => Some(Self::Timeout),
            _ => None,
        }
    }

    /// Nobody of a shard may be written to.
    pub(crate) fn unwritable(why: Unwritable) -> Self {
        Self::NoPrimary(match why {
            Unwritable::NoPrimary => "the shard has no primary",
            Unwritable::Primaries => "more than one endpoint of the shard says that it is the primary",
        })
    }

    /// An open breaker that may let a call through in so many milliseconds.
    pub(crate) fn open(retry_after_ms: u64) -> Self {
        Self::BreakerOpen(u32::try_from(retry_after_ms.div_ceil(1_000)).unwrap_or(u32::MAX).max(1))
    }

    /// What it is to breakers, retries and fallbacks; `None` where the caller is to blame or nobody was asked.
    pub(crate) fn failure(self) -> Option<Failure> {
        Some(match self {
            Self::BreakerOpen(_) => Failure::Open,
            Self::CallerTimeout => Failure::Cancelled,
            Self::ConnectTimeout | Self::Tls | Self::Unreachable | Self::Untrusted => Failure::Connect,
            Self::NoEndpoint | Self::NoPrimary(_) => Failure::NoEndpoint,
            Self::Overflow(_) => Failure::Overflow,
            Self::Refused => Failure::Refused,
            Self::Reset => Failure::Reset,
            Self::Timeout | Self::UploadUntaken => Failure::Timeout,
            Self::BadRequest(_)
            | Self::BadKey(_)
            | Self::BodyTooLarge
            | Self::Denied(_)
            | Self::Drained
            | Self::Elsewhere(_)
            | Self::Expectation
            | Self::Held
            | Self::Misdirected
            | Self::NoDestination
            | Self::RateLimited(_)
            | Self::UploadStalled
            | Self::UriTooLong => return None,
        })
    }

    /// Whether the application has certainly seen nothing of the request.
    pub(crate) fn is_unsent(self) -> bool {
        match self {
            Self::ConnectTimeout
            | Self::Held
            | Self::NoEndpoint
            | Self::NoPrimary(_)
            | Self::Overflow(_)
            | Self::Refused
            | Self::Tls
            | Self::Unreachable
            | Self::Untrusted => true,
            Self::BadRequest(_)
            | Self::BadKey(_)
            | Self::BodyTooLarge
            | Self::BreakerOpen(_)
            | Self::CallerTimeout
            | Self::Denied(_)
            | Self::Drained
            | Self::Elsewhere(_)
            | Self::Expectation
            | Self::Misdirected
            | Self::NoDestination
            | Self::RateLimited(_)
            | Self::Reset
            | Self::Timeout
            | Self::UploadStalled
            | Self::UploadUntaken
            | Self::UriTooLong => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sidecars_own_error_is_told_from_the_applications() {
        for (text, expected) in [
            ("gilmok; error=connection_refused; details=\"x\"", Some(Fault::Refused)),
            ("gilmok; error=http_response_timeout", Some(Fault::Timeout)),
            ("gilmok; error=destination_unavailable; details=\"breaker=open\"", Some(Fault::NoEndpoint)),
            ("gilmok; error=destination_unavailable; details=\"shard=moving\"", Some(Fault::Held)),
            ("gilmok; error=http_request_denied", None),
            ("gilmok; received-status=502", None),
            ("other; error=connection_refused", None),
            ("", None),
        ] {
            assert_eq!(Fault::of_sidecar(text), expected, "{text}");
        }
    }
}
