//! What is remembered of a request: the key that its answer is kept by, and what `Vary` may yet ask for.

use std::fmt;
use std::sync::Arc;

use gilmok_config::fallback::LastGood;
use gilmok_config::name::{Name, ServiceName};
use http::Method;
use http::header::{CACHE_CONTROL, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use ring::{hmac, rand::SystemRandom};

use super::answer::has_word;

/// A request as the endpoint is about to see it.
///
/// `version` and `shard` are what the request was *decided* for, `None` where nothing decides: without
/// `traffic` several versions are one pool, so that any of them might have answered this very request, and
/// the newest answer of any is given. Where something decides, only the same version and shard count: an
/// answer of `v2` is never given to a caller who belongs to `v1`, not even with no endpoint of `v1` left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) service: &'a ServiceName,
    pub(crate) version: Option<&'a Name>,
    pub(crate) shard: Option<&'a Name>,
    /// What the endpoint sees as `Host` or `:authority`.
    pub(crate) host: &'a [u8],
    pub(crate) path_and_query: &'a str,
    pub(crate) method: &'a Method,
    /// As they are sent, `Authorization` and `Cookie` included.
    pub(crate) headers: &'a HeaderMap,
    /// Whether anything follows the head; HTTP/2 needs no header to say so.
    pub(crate) has_body: bool,
    /// Every other input of this request that says who is asking: what was found of the service's subject, its
    /// key and its flag context, always in the same order. Not empty makes a request as personal as a cookie.
    pub(crate) personal: &'a [&'a [u8]],
}

/// What is remembered of a request until its answer is there. Clones are cheap.
#[derive(Clone, Debug)]
pub(crate) struct Question(Arc<Remembered>);

struct Remembered {
    policy: LastGood,
    method: Method,
    /// Whether the caller lets its answer be kept.
    may_be_kept: bool,
    version: Option<Name>,
    shard: Option<Name>,
    /// Every part with its length before it, so that no two questions write the same bytes.
    key: Vec<u8>,
    /// What `Vary` may name. Nothing secret: credentials are in the key, as a digest.
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// Makes digests of credentials that cannot be undone.
///
/// HMAC-SHA-256 with a key of this process: two credentials with the same digest have never been found for
/// SHA-256, seen together or sought for, so 2^64 callers would be needed for a chance of it; and who reads the
/// memory cannot try out guesses without the key. A fast hash such as xxh3 has known collisions, and a caller
/// chooses its cookie: not here.
#[derive(Debug)]
pub(super) struct Seal(Option<hmac::Key>);

/// What a header of a request is to its question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Says who is asking.
    Credential,
    /// Is a part of what is asked, whatever `Vary` says.
    Part,
    /// Counts when `Vary` names it.
    Detail,
}

impl Role {
    /// Applications forget `Vary` for more than `Cookie`, so what customarily says who is asking is known by name.
    pub(super) fn of(name: &HeaderName) -> Self {
        match name.as_str() {
            "authorization"
            | "cookie"
            | "cookie2"
            | "proxy-authorization"
            | "remote-user"
            | "x-access-token"
            | "x-amz-security-token"
            | "x-api-key"
            | "x-auth-token"
            | "x-forwarded-access-token"
            | "x-forwarded-client-cert"
            | "x-forwarded-email"
            | "x-forwarded-user"
            | "x-remote-user" => Self::Credential,
            // Flags emitted to the application, what a tester sees further on, and what changes the URL or the method behind our back.
            "feature-flags"
            | "feature-flags-override"
            | "host"
            | "x-forwarded-host"
            | "x-forwarded-prefix"
            | "x-forwarded-proto"
            | "x-http-method"
            | "x-http-method-override"
            | "x-method-override"
            | "x-original-url"
            | "x-rewrite-url" => Self::Part,
            _ => Self::Detail,
        }
    }
}

impl Question {
    /// `None` for personal requests, for methods other than GET and HEAD, with a body, and for upgrades.
    pub(super) fn of(policy: &LastGood, asked: &Asked<'_>, seal: &Seal) -> Option<Self> {
        let is_read = asked.method == Method::GET || asked.method == Method::HEAD;
        if !is_read || asked.has_body || asked.headers.contains_key(UPGRADE) {
            return None;
        }
        let mut headers = Vec::with_capacity(asked.headers.len());
        let (mut credentials, mut parts) = (Vec::new(), Vec::new());
        for (name, value) in asked.headers {
            match Role::of(name) {
                Role::Credential => credentials.push((name.as_str(), value.as_bytes())),
                Role::Part => parts.push((name.as_str(), value.as_bytes())),
                Role::Detail => headers.push((name.clone(), value.clone())),
            }
        }
        let is_personal = !credentials.is_empty() || !asked.personal.is_empty();
        let digest = match (is_personal, policy.per_credentials) {
            (false, _) => None,
            (true, false) => return None,
            (true, true) => Some(seal.digest(credentials, asked.personal)?),
        };
        let may_be_kept =
            *asked.method == Method::GET && !has_word(asked.headers, &CACHE_CONTROL, &["no-store"]);
        Some(Self(Arc::new(Remembered {
            policy: *policy,
            method: asked.method.clone(),
            may_be_kept,
            version: asked.version.cloned(),
            shard: asked.shard.cloned(),
            key: key(asked, digest.as_ref().map(hmac::Tag::as_ref), parts),
            headers,
        })))
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.0.key
    }

    pub(super) fn policy(&self) -> &LastGood {
        &self.0.policy
    }

    pub(super) fn method(&self) -> &Method {
        &self.0.method
    }

    pub(super) fn may_be_kept(&self) -> bool {
        self.0.may_be_kept
    }

    /// Whether an endpoint of this version and shard is one that the request was decided for.
    pub(super) fn was_answered_by(&self, version: &Name, shard: &Name) -> bool {
        self.0.version.as_ref().is_none_or(|decided| decided == version)
            && self.0.shard.as_ref().is_none_or(|decided| decided == shard)
    }

    /// The values of the fields that `Vary` names, every line with its length and every field with its lines.
    pub(super) fn values_of(&self, names: &[HeaderName]) -> Vec<u8> {
        let mut written = Vec::new();
        for name in names {
            let lines = || self.0.headers.iter().filter(|(of, _)| of == name).map(|(_, line)| line);
            // A field that is not there is not a field that is empty.
            write_length(&mut written, lines().count());
            for line in lines() {
                write_part(&mut written, line.as_bytes());
            }
        }
        written
    }
}

// Neither the address asked for nor values of headers belong into a log.
impl fmt::Debug for Remembered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remembered").field("method", &self.method).finish_non_exhaustive()
    }
}

impl Seal {
    pub(super) fn new() -> Self {
        // Without randomness there is no key, and requests with credentials are personal whatever the policy.
        Self(hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).ok())
    }

    fn digest(&self, mut credentials: Vec<(&str, &[u8])>, personal: &[&[u8]]) -> Option<hmac::Tag> {
        let mut digest = hmac::Context::with_key(self.0.as_ref()?);
        let mut part = |bytes: &[u8]| {
            digest.update(&(bytes.len() as u64).to_le_bytes());
            digest.update(bytes);
        };
        // The order of different fields means nothing, that of the lines of one field may. The sort is stable.
        credentials.sort_by_key(|(name, _)| *name);
        for (name, value) in credentials {
            part(name.as_bytes());
            part(value);
        }
        // No field has an empty name: what follows cannot be taken for one.
        part(b"");
        for input in personal {
            part(input);
        }
        Some(digest.sign())
    }
}

fn key(asked: &Asked<'_>, digest: Option<&[u8]>, mut parts: Vec<(&str, &[u8])>) -> Vec<u8> {
    /// What lengths and short parts take.
    const BYTES_AROUND: usize = 192;
    let mut key = Vec::with_capacity(BYTES_AROUND + asked.host.len() + asked.path_and_query.len());
    write_part(&mut key, asked.service.as_str().as_bytes());
    for decided in [asked.version.map(Name::as_str), asked.shard.map(Name::as_str)] {
        write_optional(&mut key, decided.map(str::as_bytes));
    }
    write_optional(&mut key, digest);
    write_part(&mut key, asked.host);
    let host_at = key.len() - asked.host.len();
    key[host_at..].make_ascii_lowercase();
    write_part(&mut key, asked.path_and_query.as_bytes());
    parts.sort_by_key(|(name, _)| *name);
    for (name, value) in parts.into_iter().filter(|(name, _)| *name != "host") {
        write_part(&mut key, name.as_bytes());
        write_part(&mut key, value);
    }
    key
}

fn write_optional(written: &mut Vec<u8>, part: Option<&[u8]>) {
    written.push(u8::from(part.is_some()));
    if let Some(part) = part {
        write_part(written, part);
    }
}

fn write_part(written: &mut Vec<u8>, part: &[u8]) {
    write_length(written, part.len());
    written.extend_from_slice(part);
}

fn write_length(written: &mut Vec<u8>, length: usize) {
    written.extend_from_slice(&(length as u64).to_le_bytes());
}
