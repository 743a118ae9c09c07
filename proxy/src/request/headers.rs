//! What is taken off and put on between two hops. Strip first, then add: nothing a caller sends removes what we set.

use http::header::{self, Entry, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Version};

use super::head::{Seen, tokens};
use crate::caller::Downstream;
use crate::claims;
use gilmok_config::baggage;
use gilmok_config::flag::FlagSet;
use gilmok_config::sharding::tag::MapTag;

pub(crate) const GILMOK_TIMEOUT: HeaderName = HeaderName::from_static("gilmok-timeout");
pub(crate) const GILMOK_VERSION: HeaderName = HeaderName::from_static("gilmok-version");
pub(crate) const GILMOK_SHARD: HeaderName = HeaderName::from_static("gilmok-shard");
pub(crate) const GILMOK_SHARD_MAP: HeaderName = HeaderName::from_static("gilmok-shard-map");
pub(crate) const GILMOK_MIRROR: HeaderName = HeaderName::from_static("gilmok-mirror");
pub(crate) const GILMOK_DECISION: HeaderName = HeaderName::from_static("gilmok-decision");
pub(crate) const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
pub(crate) const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Fields that concern one hop only, beside those that `Connection` names (RFC 9110, 7.6.1).
const HOP_FIELDS: [HeaderName; 6] = [
    header::TE,
    header::UPGRADE,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
];

/// Most fields that are put on: forwarding, identity, what the mesh tells.
const ADDED_MAX: usize = 11;

/// Makes a caller's headers those of the next hop. `host` is what the caller named, `flags` have headers too.
pub(crate) fn prepare_request(
    headers: &mut HeaderMap,
    seen: &Seen,
    from: Downstream<'_>,
    host: Option<HeaderValue>,
    flags: Option<&FlagSet>,
) {
    let upgrade = if seen.upgrade { headers.get(header::UPGRADE).cloned() } else { None };
    if seen.connection {
        strip_named(headers);
    }
    if seen.hop_fields {
        for name in HOP_FIELDS {
            headers.remove(name);
        }
    }
    // Framing is made anew from the body.
    if seen.content_length {
        headers.remove(header::CONTENT_LENGTH);
    }
    if seen.transfer_encoding {
        headers.remove(header::TRANSFER_ENCODING);
    }
    if seen.expect {
        headers.remove(header::EXPECT);
    }
    if seen.mesh_fields && !from.speaks_for_mesh() {
        claims::strip(headers, claims::is_mesh);
    }
    if let Some(set) = flags {
        claims::strip_flags(headers, set, from.speaks_for_mesh());
    }
    if seen.claims {
        let believed = from.trusted;
        claims::strip(headers, |name| {
            claims::is_look_alike(name) || (!believed && claims::is_forwarding(name))
        });
    }
    if seen.baggage && !from.trusted {
        baggage::strip(headers);
    }
    if seen.cookies > 1 {
        join_cookies(headers);
    }
    // From here on only we add. Room is made once.
    headers.reserve(ADDED_MAX);
    if seen.te_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
    }
    if let Some(protocol) = upgrade {
        headers.insert(header::UPGRADE, protocol);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    forwarded(headers, seen, from, host);
    identify(headers, seen, from);
}

/// Makes an endpoint's headers those of the answer to the caller.
/// `length` is that of the decoded body, where it is known.
pub(crate) fn prepare_answer(
    headers: &mut HeaderMap,
    status: StatusCode,
    method: &Method,
    length: Option<u64>,
) {
    let (mut connection, mut hop_fields, mut transfer_encoding) = (false, false, false);
    let mut lengths: (usize, Option<u64>) = (0, None);
    for (name, value) in &*headers {
        match name.as_str() {
            "connection" => connection = true,
            "te"
            | "upgrade"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization" => hop_fields = true,
            "content-length" => {
                lengths = (lengths.0 + 1, value.to_str().ok().and_then(|told| told.parse().ok()))
            }
            "transfer-encoding" => transfer_encoding = true,
            _ => {}
        }
    }
    if connection {
        strip_named(headers);
    }
    if hop_fields {
        for name in HOP_FIELDS {
            headers.remove(name);
        }
    }
    if transfer_encoding {
        headers.remove(header::TRANSFER_ENCODING);
    }
    if lengths.0 > 0 {
        // The length of a body that is not sent is news that only the endpoint has.
        let is_news = *method == Method::HEAD || status == StatusCode::NOT_MODIFIED;
        // What hyper would write anew from the body may stay.
        let is_same = lengths.0 == 1 && length.is_some() && length == lengths.1;
        if !is_news && !is_same {
            headers.remove(header::CONTENT_LENGTH);
        }
    }
}

/// Takes off `Connection` and what it names, except what routing needs and what we set: a caller cannot name that away.
fn strip_named(headers: &mut HeaderMap) {
    let Entry::Occupied(lines) = headers.entry(header::CONNECTION) else { return };
    let (_, mut lines) = lines.remove_entry_mult();
    // Nearly always it is this one word, which names no field.
    let (first, second) = (lines.next(), lines.next());
    let is_word = |line: &HeaderValue| {
        line.as_bytes().eq_ignore_ascii_case(b"keep-alive") || line.as_bytes().eq_ignore_ascii_case(b"close")
    };
    if second.is_none() && first.as_ref().is_some_and(is_word) {
        return;
    }
    let lines: Vec<HeaderValue> = first.into_iter().chain(second).chain(lines).collect();
    for name in lines.iter().flat_map(tokens) {
        if let Ok(name) = HeaderName::from_bytes(name.as_bytes())
            && name != header::HOST
            && !is_ours(&name)
        {
            headers.remove(name);
        }
    }
}

/// Whether a field is set or overwritten here.
fn is_ours(name: &HeaderName) -> bool {
    claims::is_mesh(name.as_str())
        || [X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO, X_REQUEST_ID, TRACEPARENT].contains(name)
}

/// One `Cookie` line, as HTTP/1 wants it (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let joined: Vec<u8> = headers
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect::<Vec<_>>()
        .join(&b"; "[..]);
    if let Ok(line) = HeaderValue::from_bytes(&joined) {
        headers.insert(header::COOKIE, line);
    }
}

/// Says for whom the request is made. What an untrusted caller says of it is overwritten.
fn forwarded(headers: &mut HeaderMap, seen: &Seen, from: Downstream<'_>, host: Option<HeaderValue>) {
    let believed = from.trusted;
    if seen.forwarded_for && believed {
        let lines: Vec<&[u8]> = headers
            .get_all(X_FORWARDED_FOR)
            .iter()
            .map(HeaderValue::as_bytes)
            .chain([from.forwarded_for.as_bytes()])
            .collect();
        if let Ok(line) = HeaderValue::from_bytes(&lines.join(&b", "[..])) {
            headers.insert(X_FORWARDED_FOR, line);
        }
    } else {
        headers.insert(X_FORWARDED_FOR, from.forwarded_for.clone());
    }
    if !(seen.forwarded_proto && believed) {
        let scheme = if from.secure { "https" } else { "http" };
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
    }
    if !(seen.forwarded_host && believed) {
        match host {
            Some(host) => headers.insert(X_FORWARDED_HOST, host),
            None => headers.remove(X_FORWARDED_HOST),
        };
    }
    // Whoever has shown who it is says nothing else of it.
    if let Some(shown) = from.client_cert {
        headers.insert(X_FORWARDED_CLIENT_CERT, shown.clone());
    }
}

/// Gives the request an id and a trace where it has none.
fn identify(headers: &mut HeaderMap, seen: &Seen, from: Downstream<'_>) {
    if !(seen.request_id && from.trusted) {
        let mut id = [0; 32];
        hex(fastrand::u128(..), &mut id);
        if let Ok(id) = HeaderValue::from_bytes(&id) {
            headers.insert(X_REQUEST_ID, id);
        }
    }
    if !seen.traceparent {
        // W3C trace context: version, trace, parent, flags; not sampled, since nobody here decides that.
        let mut trace = *b"00-00000000000000000000000000000000-0000000000000000-00";
        hex(fastrand::u128(1..), &mut trace[3..35]);
        hex(u128::from(fastrand::u64(1..)), &mut trace[36..52]);
        if let Ok(trace) = HeaderValue::from_bytes(&trace) {
            headers.insert(TRACEPARENT, trace);
        }
    }
}

/// Writes the lower digits of a number, as many as there is room for.
fn hex(mut number: u128, digits: &mut [u8]) {
    // Eight digits at a time, the lowest first.
    for group in digits.rchunks_mut(8) {
        let eight = hex_of((number & 0xFFFF_FFFF) as u64).to_be_bytes();
        group.copy_from_slice(&eight[8 - group.len()..]);
        number >>= 32;
    }
}

/// The eight digits of the lower 32 bits, as bytes from the highest: each half-byte is moved into a byte of its own and
/// all become letters at once.
fn hex_of(mut bits: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    bits = (bits | bits << 16) & 0x0000_FFFF_0000_FFFF;
    bits = (bits | bits << 8) & 0x00FF_00FF_00FF_00FF;
    bits = (bits | bits << 4) & 0x0F0F_0F0F_0F0F_0F0F;
    // 1 where the digit is a letter: adding 6 carries ten and more into the upper half.
    let letters = (bits + 6 * ONES) >> 4 & ONES;
    bits + u64::from(b'0') * ONES + u64::from(b'a' - b'0' - 10) * letters
}

/// What `Gilmok-Shard-Map` says; `None` where that is nothing.
pub(crate) fn map_told(value: &HeaderValue) -> Option<MapTag> {
    value.to_str().ok().and_then(MapTag::parse)
}

/// Whether an HTTP/1 caller can be told to close; HTTP/2 has GOAWAY for it.
pub(crate) fn can_close(version: Version) -> bool {
    version < Version::HTTP_2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn what_connection_names_goes_and_what_the_mesh_owns_stays() {
        let mut map = headers(&[
            ("connection", "close, X-Private, Feature-Flags, gilmok-shard, host"),
            ("x-private", "1"),
            ("feature-flags", "a"),
            ("gilmok-shard", "3"),
            ("host", "ads"),
        ]);
        strip_named(&mut map);
        let mut left: Vec<_> = map.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["feature-flags", "gilmok-shard", "host"]);
    }

    #[test]
    fn answers_lose_what_concerns_one_hop() {
        let mut map = headers(&[
            ("connection", "keep-alive, x-hop"),
            ("keep-alive", "timeout=5"),
            ("x-hop", "1"),
            ("content-length", "5"),
            ("trailer", "x-sum"),
        ]);
        prepare_answer(&mut map, StatusCode::OK, &Method::GET, None);
        assert_eq!(map.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["trailer"]);
        let mut map = headers(&[("content-length", "5")]);
        prepare_answer(&mut map, StatusCode::OK, &Method::HEAD, Some(0));
        assert_eq!(map[header::CONTENT_LENGTH], "5");
    }

    #[test]
    fn split_cookies_become_one_line() {
        let mut map = headers(&[("cookie", "a=1"), ("cookie", "b=2")]);
        join_cookies(&mut map);
        assert_eq!(map.get_all(header::COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }

    #[test]
    fn numbers_are_written_in_hexadecimal() {
        let mut digits = [0; 4];
        hex(0xAB, &mut digits);
        assert_eq!(&digits, b"00ab");
        let mut digits = [0; 32];
        let number = 0x0123_4567_89AB_CDEF_FEDC_BA98_7654_3210;
        hex(number, &mut digits);
        assert_eq!(digits, format!("{number:032x}").as_bytes());
    }
}
