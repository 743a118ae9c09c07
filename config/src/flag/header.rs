//! How a flag stands in a header: a member of one RFC 9651 dictionary for all, or a plain value of its own.

use std::cmp::Ordering;

use http::{HeaderName, HeaderValue};
use serde_json::{Number, Value as Json};
use sfv::{Decimal, DictSerializer, Integer, KeyRef, RefBareItem, StringRef, TokenRef};

use super::{FlagType, Variant};

/// Tells an application its flags: `new-ui;v=on, page-size=25;v=big`.
pub const FEATURE_FLAGS: HeaderName = HeaderName::from_static("feature-flags");
/// Longest key in it, in bytes: what every parser must take.
pub(super) const KEY_BYTES_MAX: usize = 64;
/// Longest text in it, in characters: what every parser must take.
const TEXT_CHARS_MAX: usize = 1_024;
/// Longest value of a flag's own header, in bytes.
const SINGLE_BYTES_MAX: usize = 1_024;
/// The parameter that tells the variant.
const VARIANT: &KeyRef = KeyRef::constant("v");

/// Headers that mean something else, so that no flag may have them.
const OTHERS: [&str; 30] = [
    "accept",
    "authorization",
    "baggage",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "expect",
    "feature-flags",
    "forwarded",
    "grpc-timeout",
    "host",
    "http2-settings",
    "keep-alive",
    "origin",
    "proxy-connection",
    "range",
    "set-cookie",
    "te",
    "traceparent",
    "tracestate",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
    "x-request-id",
];
const OTHERS_BEGIN: [&str; 6] = ["access-control-", "gilmok-", "if-", "proxy-", "sec-", "x-forwarded-"];

/// Whether a header is somebody else's.
pub(super) fn is_others(name: &HeaderName) -> bool {
    OTHERS.contains(&name.as_str()) || OTHERS_BEGIN.iter().any(|begin| name.as_str().starts_with(begin))
}

/// The order of names in which `_` is `-`.
pub(super) fn likeness(one: &str, other: &str) -> Ordering {
    let plain = |byte: u8| if byte == b'_' { b'-' } else { byte };
    one.bytes().map(plain).cmp(other.bytes().map(plain))
}

/// Whether a flag's key can stand in the header as it is.
pub(super) fn is_key(key: &str) -> bool {
    key.len() <= KEY_BYTES_MAX && KeyRef::from_str(key).is_ok()
}

/// The member that tells a variant; `None` for what a header cannot hold.
pub(super) fn member(key: &str, variant: &Variant, kind: Option<FlagType>) -> Option<String> {
    let key = KeyRef::from_str(key).ok()?;
    let written;
    let value = match &variant.value {
        Json::Bool(value) => RefBareItem::Boolean(*value),
        Json::Number(number) => match number_item(number, kind) {
            Some(item) => item,
            None => {
                written = number.to_string();
                RefBareItem::String(StringRef::from_str(&written).ok()?)
            }
        },
        Json::String(text) => text_item(text)?,
        // Too much for a header: only which it is.
        Json::Object(_) => name_item(&variant.name)?,
        Json::Array(_) | Json::Null => return None,
    };
    let mut dictionary = DictSerializer::new();
    let written = dictionary.bare_item(key, value).parameter(VARIANT, name_item(&variant.name)?).finish();
    debug_assert!(!written.is_empty(), "a member was written");
    dictionary.finish()
}

/// As whole as the flag's other values are, if three decimals are enough for it.
fn number_item(number: &Number, kind: Option<FlagType>) -> Option<RefBareItem<'static>> {
    let real = number.as_f64()?;
    let is_whole = real.fract() == 0.0 && kind != Some(FlagType::Number { whole: false });
    if is_whole {
        #[expect(clippy::cast_possible_truncation, reason = "fifteen digits at most, else it is refused")]
        let whole = number.as_i64().or_else(|| (real.abs() < 1e15).then_some(real as i64))?;
        return Integer::try_from(whole).ok().map(RefBareItem::Integer);
    }
    let decimal = Decimal::try_from(real).ok()?;
    (f64::from(decimal).to_bits() == real.to_bits()).then_some(RefBareItem::Decimal(decimal))
}

fn text_item(text: &str) -> Option<RefBareItem<'_>> {
    if text.chars().nth(TEXT_CHARS_MAX).is_some() {
        return None;
    }
    Some(StringRef::from_str(text).map_or(RefBareItem::DisplayString(text), RefBareItem::String))
}

/// A variant's name: as a token, where it is one.
fn name_item(name: &str) -> Option<RefBareItem<'_>> {
    TokenRef::from_str(name).map(RefBareItem::Token).ok().or_else(|| text_item(name))
}

/// A variant in a header of its own: texts as they are where a header can hold them, else percent-encoded; of objects
/// the variant's name.
pub(super) fn single(variant: &Variant) -> Option<HeaderValue> {
    let text = match &variant.value {
        Json::Bool(value) => value.to_string(),
        Json::Number(number) => number.to_string(),
        Json::String(text) => encoded(text),
        Json::Object(_) => encoded(&variant.name),
        Json::Array(_) | Json::Null => return None,
    };
    if text.len() > SINGLE_BYTES_MAX {
        return None;
    }
    HeaderValue::try_from(text).ok()
}

fn encoded(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_graphic() || byte == b' ';
    // What begins or ends with a space loses it on the way.
    if text.trim() == text && text.bytes().all(is_plain) {
        return text.to_owned();
    }
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
