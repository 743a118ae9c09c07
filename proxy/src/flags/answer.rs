//! Answers of the OFREP listener, and the one place where what it refuses becomes HTTP.
//!
//! Every error has `errorCode` and `errorDetails` and, where it is about a flag, `key`: clients fail without them.

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Method, Response, StatusCode};
use http_body_util::{Either, Full};
use serde_json::{Value as Json, json};

use super::events::Events;

/// When to ask again, in whole seconds: the other forms are misread by clients.
const RETRY_AFTER_SECONDS: &str = "1";

/// A text, or a stream of change events.
pub(super) type Answer = Either<Full<Bytes>, Events>;

/// Why a question is not answered.
#[derive(Debug)]
pub(super) struct Refused {
    status: StatusCode,
    /// The flag that was asked for.
    key: Option<String>,
    /// OFREP's word. Always there: a client fails without it.
    code: &'static str,
    details: String,
    allow: Option<HeaderValue>,
}

impl Refused {
    pub(super) fn new(status: StatusCode, code: &'static str, details: impl Into<String>) -> Self {
        Self { status, key: None, code, details: details.into(), allow: None }
    }

    fn plain(status: StatusCode, details: impl Into<String>) -> Self {
        Self::new(status, "GENERAL", details)
    }

    /// Says which flag it is about.
    pub(super) fn about(self, key: Option<&str>) -> Self {
        Self { key: key.map(str::to_owned), ..self }
    }

    pub(super) fn invalid_context(details: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "INVALID_CONTEXT", details)
    }

    pub(super) fn too_large(most: usize) -> Self {
        let details = format!("the body broke off or has more than {most} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "INVALID_CONTEXT", details)
    }

    pub(super) fn forbidden(details: &str) -> Self {
        Self::plain(StatusCode::FORBIDDEN, details)
    }

    pub(super) fn unauthorized() -> Self {
        let details =
            "callers need `Authorization: Bearer` or `X-API-Key` with the token of [ofrep] token_file";
        Self::plain(StatusCode::UNAUTHORIZED, details)
    }

    pub(super) fn internal(details: &str) -> Self {
        Self::plain(StatusCode::INTERNAL_SERVER_ERROR, details)
    }

    pub(super) fn not_ready() -> Self {
        Self::plain(StatusCode::SERVICE_UNAVAILABLE, "there is no snapshot in force yet")
    }

    pub(super) fn too_many_streams() -> Self {
        Self::plain(StatusCode::SERVICE_UNAVAILABLE, "too many listen to changes already")
    }

    pub(super) fn no_such_path() -> Self {
        let known = "POST /ofrep/v1/evaluate/flags, POST /ofrep/v1/evaluate/flags/KEY, GET /ofrep/v1/sse";
        Self::plain(StatusCode::NOT_FOUND, format!("there is only {known}"))
    }

    pub(super) fn no_such_method(allowed: &Method) -> Self {
        let refused = Self::plain(StatusCode::METHOD_NOT_ALLOWED, format!("this is asked by {allowed}"));
        Self { allow: HeaderValue::from_str(allowed.as_str()).ok(), ..refused }
    }

    pub(super) fn into_response(self) -> Response<Answer> {
        let mut body = json!({ "errorCode": self.code, "errorDetails": self.details });
        if let Some(key) = self.key {
            body["key"] = Json::from(key);
        }
        let mut response = json(self.status, &body);
        let headers = response.headers_mut();
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, allow);
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
        }
        response
    }
}

pub(super) fn json(status: StatusCode, value: &Json) -> Response<Answer> {
    text(status, value.to_string())
}

/// JSON that is written already.
pub(super) fn text(status: StatusCode, json: String) -> Response<Answer> {
    let mut response = Response::new(Either::Left(Full::new(Bytes::from(json))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

pub(super) fn empty(status: StatusCode) -> Response<Answer> {
    let mut response = Response::new(Either::Left(Full::default()));
    *response.status_mut() = status;
    response
}

pub(super) fn stream(events: Events) -> Response<Answer> {
    let mut response = Response::new(Either::Right(events));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
