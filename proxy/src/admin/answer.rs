//! Answers of the admin listener, and the one place where its errors become HTTP (RFC 9457).

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use serde_json::Value;

/// Why a question is not answered.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    detail: String,
    allow: Option<String>,
    paths: Vec<String>,
}

impl Problem {
    fn new(status: StatusCode, detail: String) -> Self {
        Self { status, detail, allow: None, paths: Vec::new() }
    }

    pub(super) fn bad_request(detail: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    pub(super) fn unauthorized() -> Self {
        let detail = "callers need `Authorization: Bearer` with the token of [admin] token_file";
        Self::new(StatusCode::UNAUTHORIZED, detail.to_owned())
    }

    pub(super) fn forbidden(detail: String) -> Self {
        Self::new(StatusCode::FORBIDDEN, detail)
    }

    pub(super) fn conflict(detail: String) -> Self {
        Self::new(StatusCode::CONFLICT, detail)
    }

    pub(super) fn too_large(most: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body broke off or has more than {most} bytes"))
    }

    pub(super) fn unavailable(detail: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail.to_owned())
    }

    /// Nothing is there; says what is.
    pub(super) fn no_such_path(path: &str, known: &[(&str, &str)]) -> Self {
        let shown = &path[..path.floor_char_boundary(100)];
        let mut problem = Self::new(StatusCode::NOT_FOUND, format!("there is no {shown} here"));
        problem.paths = known.iter().map(|(method, path)| format!("{method} {path}")).collect();
        problem
    }

    /// Something is there, but not for this method; says for which.
    pub(super) fn no_such_method(method: &Method, path: &str, known: &[(&str, &str)]) -> Self {
        let allowed: Vec<_> =
            known.iter().filter(|(_, at)| *at == path).map(|(allowed, _)| *allowed).collect();
        let allowed = allowed.join(", ");
        let detail = format!("{path} is asked by {allowed}, not by {method}");
        let mut problem = Self::new(StatusCode::METHOD_NOT_ALLOWED, detail);
        problem.allow = Some(allowed);
        problem
    }

    pub(super) fn into_response(self) -> Response<Full<Bytes>> {
        let mut body = serde_json::json!({
            "type": "about:blank",
            "title": self.status.canonical_reason().unwrap_or_default(),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if !self.paths.is_empty() {
            body["paths"] = Value::from(self.paths);
        }
        let mut response = respond(self.status, "application/problem+json", format!("{body}\n"));
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(allow) = self.allow.and_then(|allow| HeaderValue::try_from(allow).ok()) {
            response.headers_mut().insert(ALLOW, allow);
        }
        response
    }
}

pub(super) fn json(value: &Value) -> Response<Full<Bytes>> {
    respond(StatusCode::OK, "application/json", format!("{value:#}\n"))
}

pub(super) fn text(text: &'static str) -> Response<Full<Bytes>> {
    respond(StatusCode::OK, "text/plain; charset=utf-8", text.to_owned())
}

pub(super) fn respond(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// One text of a JSON body.
pub(super) fn field(body: &[u8], name: &str) -> Result<String, Problem> {
    let hint = || Problem::bad_request(format!("the body is JSON with `{name}`: {{\"{name}\": \"…\"}}"));
    let body: Value = serde_json::from_slice(body).map_err(|_| hint())?;
    body.get(name).and_then(Value::as_str).map(str::to_owned).ok_or_else(hint)
}

/// The first value of a query's parameter, decoded.
pub(super) fn parameter(query: &str, name: &str) -> Option<String> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then(|| decoded(value))
    })
}

/// Undoes percent-encoding; what is not encoded right stays as it is.
fn decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let value = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (byte, value) {
            (b'%', Some(value)) => {
                out.push(value);
                rest = &after[2..];
                continue;
            }
            (b'+', _) => out.push(b' '),
            _ => out.push(*byte),
        }
        rest = after;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded() {
        let query = "service=ads&path=%2Fa%20b&x=1+2&odd=%zz%4&flag";
        for (name, expected) in [
            ("service", Some("ads")),
            ("path", Some("/a b")),
            ("x", Some("1 2")),
            ("odd", Some("%zz%4")),
            ("flag", Some("")),
            ("none", None),
        ] {
            assert_eq!(parameter(query, name).as_deref(), expected, "{name}");
        }
    }
}
