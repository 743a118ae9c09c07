//! What holds of headers between two hops for every head there can be; run by a test for seconds, by fuzzers for hours.

use gilmok_config::decide::Listener;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode, Version};
use http_body_util::Empty;

use super::head::{Seen, authority};
use super::headers::{TRACEPARENT, X_REQUEST_ID, prepare_answer, prepare_request};
use crate::caller::Downstream;
use crate::claims;
use crate::settings::Limits;

/// Names and values that rules speak of; the rest is made of the bytes themselves.
const NAMES: [&str; 29] = [
    "host",
    "connection",
    "te",
    "upgrade",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "content-length",
    "transfer-encoding",
    "expect",
    "cookie",
    "trailer",
    "feature-flags",
    "gilmok-version",
    "gilmok-explain",
    "gilmok-shard",
    "gilmok-shard-map",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-request-id",
    "x-forwarded-client-cert",
    "forwarded",
    "gilmok_version",
    "x_forwarded_for",
    "traceparent",
    "content-type",
    "x-a",
    "x-b",
];
const VALUES: [&str; 16] = [
    "",
    "ads",
    "ads:80",
    "close",
    "keep-alive, x-a",
    "upgrade",
    "te, x-b, host, x-request-id, gilmok-version",
    "trailers",
    "trailers, deflate",
    "chunked",
    "gzip, chunked",
    "100-continue",
    "0",
    "5, 5",
    "application/grpc+proto",
    "websocket",
];
/// Longest list of fields that is made of one input.
const FIELDS_MAX: usize = 64;

/// Makes fields of bytes: each of a name, a length and a value, most of them from the lists above.
fn fields(mut bytes: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    while let [name, value, rest @ ..] = bytes {
        bytes = rest;
        if headers.len() == FIELDS_MAX {
            break;
        }
        let Ok(name) = HeaderName::from_bytes(NAMES[usize::from(*name) % NAMES.len()].as_bytes()) else {
            continue;
        };
        let value = match VALUES.get(usize::from(*value)) {
            Some(value) => HeaderValue::from_static(value),
            None => {
                let own = &rest[..rest.len().min(usize::from(*value) % 32)];
                bytes = &rest[own.len()..];
                match HeaderValue::from_bytes(own) {
                    Ok(own) => own,
                    Err(_) => continue,
                }
            }
        };
        headers.append(name, value);
    }
    headers
}

/// Takes a request's head through the rules and checks what must hold of it then.
///
/// # Panics
/// When a rule does not hold.
pub fn request(bytes: &[u8]) {
    let [kind, bytes @ ..] = bytes else { return };
    let version = if kind & 1 == 0 { Version::HTTP_11 } else { Version::HTTP_2 };
    let listener = [Listener::Outbound, Listener::Inbound, Listener::Edge][usize::from(kind >> 1) % 3];
    let trusted = kind & 64 != 0 && listener != Listener::Edge;
    let mut request = Request::new(Empty::<bytes::Bytes>::new());
    *request.version_mut() = version;
    *request.headers_mut() = fields(bytes);
    let Ok(seen) = Seen::read(&request, &Limits::default()) else { return };
    let host = match authority(&request, listener) {
        Ok(host) => host.and_then(|host| HeaderValue::from_str(&host).ok()),
        Err(_) => return,
    };
    let forwarded_for = HeaderValue::from_static("10.1.2.3");
    let (secure, shown) = (kind & 128 != 0, HeaderValue::from_static("URI=spiffe://mesh/service/a"));
    let client_cert = (secure && trusted).then_some(&shown);
    let before = request.headers().clone();
    let mut headers = before.clone();
    prepare_request(
        &mut headers,
        &seen,
        Downstream { listener, trusted, secure, client_cert, forwarded_for: &forwarded_for },
        host,
        None,
    );
    let keeps_mesh_fields = listener == Listener::Inbound && trusted;
    for (name, value) in &headers {
        let text = name.as_str();
        match text {
            "keep-alive"
            | "proxy-connection"
            | "proxy-authorization"
            | "expect"
            | "transfer-encoding"
            | "content-length" => panic!("{text} went on: {before:?}"),
            "te" => assert_eq!(value, "trailers", "{before:?}"),
            "connection" => assert!(value == "te" || value == "upgrade", "{before:?}"),
            "upgrade" => assert!(seen.upgrade, "{before:?}"),
            _ if text.starts_with("gilmok-") || text == "feature-flags" => {
                assert!(keeps_mesh_fields, "{text} was believed: {before:?}");
            }
            "x-forwarded-for" | "x-forwarded-proto" | "x-forwarded-host" => {}
            "x-forwarded-client-cert" if let Some(shown) = client_cert => {
                assert_eq!(value, shown, "{before:?}")
            }
            _ if claims::is_forwarding(text) => assert!(trusted, "{text} was believed: {before:?}"),
            _ if claims::is_look_alike(text) => panic!("{text} went on: {before:?}"),
            _ => {}
        }
    }
    for once in [X_REQUEST_ID, TRACEPARENT, HeaderName::from_static("x-forwarded-for")] {
        let count = headers.get_all(&once).iter().count();
        let said = before.get_all(&once).iter().count();
        assert!(
            count == 1 || (trusted || once == TRACEPARENT) && count == said,
            "{once} {count} times: {before:?}"
        );
    }
    if !trusted {
        assert_eq!(headers["x-forwarded-for"], "10.1.2.3", "{before:?}");
        let scheme = if secure { "https" } else { "http" };
        assert_eq!(headers["x-forwarded-proto"], scheme, "{before:?}");
    }
    assert!(headers.get_all(header::COOKIE).iter().count() <= 1, "{before:?}");
    // What `Connection` names away is gone, unless routing needs it or we set it.
    let named: Vec<_> = before
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    for private in ["x-a", "x-b"].into_iter().filter(|name| named.iter().any(|named| named == name)) {
        assert!(!headers.contains_key(private), "{private} went on: {before:?}");
    }
    assert_eq!(headers.get(header::HOST), before.get(header::HOST), "{before:?}");
}

/// Takes an answer's head through the rules and checks what must hold of it then.
///
/// # Panics
/// When a rule does not hold.
pub fn answer(bytes: &[u8]) {
    let [kind, bytes @ ..] = bytes else { return };
    let method = [Method::GET, Method::HEAD][usize::from(kind & 1)].clone();
    let status =
        [StatusCode::OK, StatusCode::NOT_MODIFIED, StatusCode::NO_CONTENT][usize::from(kind >> 1) % 3];
    let length = (kind & 64 != 0).then_some(5);
    let before = fields(bytes);
    let mut headers = before.clone();
    prepare_answer(&mut headers, status, &method, length);
    for name in ["connection", "te", "upgrade", "keep-alive", "proxy-connection", "transfer-encoding"] {
        assert!(!headers.contains_key(name), "{name} went on: {before:?}");
    }
    let is_news = method == Method::HEAD || status == StatusCode::NOT_MODIFIED;
    if let Some(told) = headers.get(header::CONTENT_LENGTH).filter(|_| !is_news) {
        let told = told.to_str().ok().and_then(|told| told.parse().ok());
        assert!(length.is_some() && told == length, "{before:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// Long enough to meet each rule thousands of times.
    const LONG: Duration = Duration::from_secs(1);

    fn run(check: fn(&[u8])) {
        let mut dice = fastrand::Rng::with_seed(7);
        let until = Instant::now() + LONG;
        let mut tried = 0_u64;
        while Instant::now() < until || tried < 10_000 {
            let length = dice.usize(..80);
            let bytes: Vec<u8> = (0..length)
                // Small numbers name the fields and values that rules speak of.
                .map(|_| if dice.u8(..4) > 0 { dice.u8(..24) } else { dice.u8(..) })
                .collect();
            check(&bytes);
            tried += 1;
        }
    }

    #[test]
    fn no_head_breaks_the_rules_of_requests() {
        run(request);
    }

    #[test]
    fn no_head_breaks_the_rules_of_answers() {
        run(answer);
    }
}
