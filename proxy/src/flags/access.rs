//! Who may ask for flags: applications on this machine, others by a token, and the web pages that the settings list.

use std::net::IpAddr;
use std::path::PathBuf;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use super::answer::{self, Answer, Refused};
use crate::settings::Network;
use crate::token;

/// How long browsers remember what they may ask.
const PREFLIGHT_SECONDS: &str = "600";

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const PRIVATE_NETWORK_ASKED: HeaderName = HeaderName::from_static("access-control-request-private-network");
const PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");

/// Who may ask.
#[derive(Clone, Debug, Default)]
pub(crate) struct Access {
    /// Of web pages; `*` is all.
    pub(crate) origins: Vec<String>,
    /// Read again at each request, so that it can be changed without a restart.
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) trusted: Vec<Network>,
}

impl Access {
    /// The web page that asks, if it is one and may.
    ///
    /// # Errors
    /// It may not: browsers would keep the answer from it, but not the question from us.
    pub(super) fn origin(&self, headers: &HeaderMap) -> Result<Option<HeaderValue>, Refused> {
        let Some(origin) = headers.get(header::ORIGIN) else { return Ok(None) };
        let is_listed =
            |listed: &String| listed == "*" || origin.as_bytes().eq_ignore_ascii_case(listed.as_bytes());
        if self.origins.iter().any(is_listed) {
            return Ok(Some(origin.clone()));
        }
        Err(Refused::forbidden("this web page may not ask for flags; pages stand in [ofrep] allowed_origins"))
    }

    /// Whether a caller may ask.
    ///
    /// # Errors
    /// It has not the token, or there is none and it is not on this machine.
    pub(super) fn admit(&self, caller: IpAddr, headers: &HeaderMap) -> Result<(), Refused> {
        let Some(file) = &self.token_file else {
            let caller = caller.to_canonical();
            if caller.is_loopback() || self.trusted.iter().any(|network| network.contains(caller)) {
                return Ok(());
            }
            return Err(Refused::forbidden(
                "callers from elsewhere stand in [listen] trusted, or have the token of [ofrep] token_file",
            ));
        };
        let bearer = headers.get(header::AUTHORIZATION).and_then(token::bearer);
        let given = bearer.or_else(|| headers.get(X_API_KEY).map(HeaderValue::as_bytes));
        match token::is_shown(file, given) {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) => {
                tracing::error!("cannot read the token file {}: {error}", file.display());
                return Err(Refused::internal("the token file cannot be read"));
            }
        }
        Err(Refused::unauthorized())
    }
}

/// Lets the page read the answer.
pub(super) fn expose(headers: &mut HeaderMap, origin: HeaderValue) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("ETag, Retry-After"));
    headers.insert(header::VARY, HeaderValue::from_static("Origin"));
}

/// What a browser asks before a page may ask.
pub(super) fn preflight(asked: &HeaderMap) -> Response<Answer> {
    let mut response = answer::empty(StatusCode::NO_CONTENT);
    let headers = response.headers_mut();
    for (name, value) in [
        (header::ALLOW, "GET, POST, OPTIONS"),
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, OPTIONS"),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "Content-Type, If-None-Match, Authorization, X-API-Key, Flagd-Selector, Cache-Control, Last-Event-ID",
        ),
        (header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_SECONDS),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if asked.contains_key(PRIVATE_NETWORK_ASKED) {
        headers.insert(PRIVATE_NETWORK, HeaderValue::from_static("true"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn only_listed_pages_may_ask() {
        let listing = |origins: &[&str]| Access {
            origins: origins.iter().map(|origin| (*origin).to_owned()).collect(),
            ..Access::default()
        };
        for (origins, origin, expected) in [
            (&[][..], "https://shop.example.com", false),
            (&["https://shop.example.com"], "https://shop.example.com", true),
            (&["https://shop.example.com"], "http://shop.example.com", false),
            (&["https://shop.example.com"], "https://shop.example.com:8443", false),
            (&["https://shop.example.com"], "null", false),
            (&["*"], "https://anything.example", true),
        ] {
            let may = listing(origins).origin(&headers(header::ORIGIN, origin)).is_ok();
            assert_eq!(may, expected, "{origins:?} {origin}");
        }
        assert!(listing(&[]).origin(&HeaderMap::new()).is_ok(), "no page");
    }

    #[test]
    fn without_a_token_only_this_machine_and_who_is_trusted_may_ask() {
        let access = Access { trusted: vec!["10.0.0.0/8".parse().unwrap()], ..Access::default() };
        for (caller, expected) in [
            ("127.0.0.1", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("10.1.2.3", true),
            ("192.0.2.1", false),
        ] {
            assert_eq!(
                access.admit(caller.parse().unwrap(), &HeaderMap::new()).is_ok(),
                expected,
                "{caller}"
            );
        }
    }

    #[test]
    fn with_a_token_everybody_needs_it() {
        let folder = crate::testing::Folder::new("ofrep-token");
        let file = folder.join("token");
        std::fs::write(&file, "first\n").unwrap();
        let access = Access { token_file: Some(file.clone()), ..Access::default() };
        let may = |headers: &HeaderMap| access.admit("127.0.0.1".parse().unwrap(), headers).is_ok();
        for (name, value, expected) in [
            (header::AUTHORIZATION, "Bearer first", true),
            (header::AUTHORIZATION, "bearer first", true),
            (X_API_KEY, "first", true),
            (header::AUTHORIZATION, "Bearer firs", false),
            (header::AUTHORIZATION, "first", false),
            (header::AUTHORIZATION, "Bearer ", false),
        ] {
            assert_eq!(may(&headers(name, value)), expected, "{value}");
        }
        assert!(!may(&HeaderMap::new()));
        std::fs::write(&file, "second").unwrap();
        assert!(may(&headers(X_API_KEY, "second")), "read anew");
        std::fs::write(&file, "\n").unwrap();
        assert!(!may(&headers(X_API_KEY, "")), "an empty token is none");
    }
}
