//! Which answers may be kept, and the one block of bytes that they are kept as.

use bytes::Bytes;
use gilmok_config::name::Name;
use http::StatusCode;
use http::header::{
    ACCEPT_ENCODING, ACCEPT_LANGUAGE, ACCESS_CONTROL_ALLOW_ORIGIN, AGE, CACHE_CONTROL, CONNECTION,
    CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, ORIGIN, PRAGMA,
    SET_COOKIE, VARY,
};

use super::question::Role;

/// Most fields that the answers to one question may vary by; with more nothing is ever found again.
pub(super) const VARY_NAMES_MAX: usize = 16;

const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// Fields that were made for one caller, beside `Set-Cookie`.
const MARKS: [HeaderName; 2] =
    [HeaderName::from_static("set-cookie2"), HeaderName::from_static("authentication-info")];

/// What an answer depends on though `Vary` may have been forgotten: a field of the answer, and the request's.
const IMPLIED: [(HeaderName, HeaderName); 3] = [
    (CONTENT_ENCODING, ACCEPT_ENCODING),
    (CONTENT_LANGUAGE, ACCEPT_LANGUAGE),
    (ACCESS_CONTROL_ALLOW_ORIGIN, ORIGIN),
];

/// The head of an answer, and who gave it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answered<'a> {
    /// Of the endpoint that answered.
    pub(crate) version: &'a Name,
    pub(crate) shard: &'a Name,
    pub(crate) status: StatusCode,
    pub(crate) headers: &'a HeaderMap,
    /// That of the body, in bytes, where it is known.
    pub(crate) length: Option<u64>,
}

/// A kept answer, ready to be given.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) status: StatusCode,
    /// With `Age` and `Content-Length`.
    pub(crate) headers: HeaderMap,
    /// Empty for HEAD.
    pub(crate) body: Bytes,
}

/// What is done with an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is kept, apart for different values of these fields of the request.
    Keep(Vec<HeaderName>),
    /// It is not kept.
    Leave,
    /// It is not kept, and neither is what was kept before it.
    Forget,
}

/// Says what is done with an answer, from its head.
pub(super) fn judge(status: StatusCode, headers: &HeaderMap) -> Verdict {
    let is_whole = status != StatusCode::PARTIAL_CONTENT && status != StatusCode::IM_USED;
    if !status.is_success() || !is_whole || is_fallback(headers) {
        return Verdict::Leave;
    }
    let Some(vary) = vary(headers) else { return Verdict::Forget };
    if has_word(headers, &CACHE_CONTROL, &["private", "no-store", "no-cache"])
        || has_word(headers, &PRAGMA, &["no-cache"])
    {
        return Verdict::Forget;
    }
    let is_marked = headers.contains_key(SET_COOKIE) || MARKS.iter().any(|name| headers.contains_key(name));
    if is_marked || vary.len() > VARY_NAMES_MAX { Verdict::Leave } else { Verdict::Keep(vary) }
}

/// Whether another proxy answered for the application. That is nobody's last good answer.
fn is_fallback(headers: &HeaderMap) -> bool {
    headers.get_all(PROXY_STATUS).iter().any(|line| {
        let told = line.as_bytes();
        [&b"error="[..], b"fallback="].iter().any(|word| told.windows(word.len()).any(|at| at == *word))
    })
}

/// The fields of the request that the answer depends on, in order; `None` when on anything, or on what cannot be read.
fn vary(headers: &HeaderMap) -> Option<Vec<HeaderName>> {
    let mut names: Vec<HeaderName> = Vec::new();
    for name in headers.get_all(VARY).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b',')) {
        match name.trim_ascii() {
            b"" => {}
            // `*` is a token too, so it would be a name.
            b"*" => return None,
            name => names.push(HeaderName::from_bytes(name).ok()?),
        }
    }
    for (name, by) in IMPLIED {
        if headers.get(name).is_some_and(|value| value != "*") {
            names.push(by);
        }
    }
    // The others are in the key.
    names.retain(|name| Role::of(name) == Role::Detail);
    names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
    names.dedup();
    Some(names)
}

/// Whether a field has one of these words, wherever it stands. Written loosely on purpose: `private;max-age=1`,
/// `no-cache="x"` and `" no-store "` are meant, and a word too many only keeps an answer from being kept.
pub(super) fn has_word(headers: &HeaderMap, field: &HeaderName, words: &[&str]) -> bool {
    headers
        .get_all(field)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| !byte.is_ascii_alphanumeric() && *byte != b'-'))
        .any(|told| words.iter().any(|word| told.eq_ignore_ascii_case(word.as_bytes())))
}

/// Whether a field says something of one hop, one exchange or one caller, and so nothing of the answer.
fn is_passing(name: &HeaderName) -> bool {
    let name = name.as_str();
    matches!(
        name,
        "age"
            | "connection"
            | "content-length"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authentication-info"
            | "proxy-authorization"
            | "proxy-connection"
            | "proxy-status"
            | "server-timing"
            | "te"
            | "traceparent"
            | "traceresponse"
            | "tracestate"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "x-request-id"
    ) || name.starts_with("gilmok-")
        || name.starts_with("ratelimit")
        || name.starts_with("x-ratelimit")
}

/// An answer in one block: its fields, then its body. Copied, so that what is kept holds no read buffer of a
/// connection and costs what it says.
#[derive(Clone, Debug)]
pub(super) struct Packed {
    pub(super) status: StatusCode,
    /// When its head came, in milliseconds of [`crate::clock`].
    pub(super) at_ms: u64,
    /// How old it was then, in seconds.
    pub(super) age_s: u64,
    /// Where the body begins.
    pub(super) body_at: usize,
    pub(super) block: Bytes,
}

/// Writes the fields that are kept.
pub(super) fn pack_headers(headers: &HeaderMap) -> Vec<u8> {
    let named = |name: &HeaderName| {
        headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
            .any(|told| told.trim_ascii().eq_ignore_ascii_case(name.as_str().as_bytes()))
    };
    let kept = || headers.iter().filter(|(name, _)| !is_passing(name) && !named(name));
    let bytes = kept().map(|(name, value)| name.as_str().len() + value.len() + 2 * LENGTH_BYTES).sum();
    let mut block = Vec::with_capacity(bytes);
    for (name, value) in kept() {
        for part in [name.as_str().as_bytes(), value.as_bytes()] {
            block.extend_from_slice(&(part.len() as u64).to_le_bytes());
            block.extend_from_slice(part);
        }
    }
    block
}

const LENGTH_BYTES: usize = size_of::<u64>();

/// How old an answer says that it is, in seconds.
pub(super) fn age_of(headers: &HeaderMap) -> u64 {
    headers.get(AGE).and_then(|age| age.to_str().ok()).and_then(|age| age.trim().parse().ok()).unwrap_or(0)
}

impl Packed {
    /// The answer as it is given now.
    pub(super) fn unpack(&self, now_ms: u64, head_only: bool) -> Kept {
        let mut headers = HeaderMap::new();
        let mut rest = self.block.slice(..self.body_at);
        while let Some((name, value)) = next_part(&mut rest).zip(next_part(&mut rest)) {
            if let (Ok(name), Ok(value)) =
                (HeaderName::from_bytes(&name), HeaderValue::from_maybe_shared(value))
            {
                headers.append(name, value);
            }
        }
        let age_s = self.age_s.saturating_add(now_ms.saturating_sub(self.at_ms) / 1000);
        headers.insert(AGE, HeaderValue::from(age_s));
        let body = self.block.slice(self.body_at..);
        if self.status != StatusCode::NO_CONTENT {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        Kept { status: self.status, headers, body: if head_only { Bytes::new() } else { body } }
    }
}

/// Takes what [`pack_headers`] wrote next.
fn next_part(rest: &mut Bytes) -> Option<Bytes> {
    let length = u64::from_le_bytes(*rest.first_chunk::<LENGTH_BYTES>()?);
    let mut part = rest.split_off(LENGTH_BYTES);
    *rest = part.split_off(usize::try_from(length).ok().filter(|length| *length <= part.len())?);
    Some(part)
}
