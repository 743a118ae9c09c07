//! Where the key of a request stands, and every key that stands there.

use std::borrow::Cow;
use std::fmt;

use http::HeaderName;

use super::KeyFault;
use crate::grammar::Value;
use crate::subject::{Asker, Input, Inputs, UID_COOKIE, cookies, decoded};

/// The last segment of a path that may be a key.
const SEGMENT_MAX: usize = 32;

/// A request, as far as its key may stand in it.
#[derive(Clone, Copy, Debug)]
pub struct Keyed<'r> {
    pub asker: Asker<'r>,
    /// Canonical, see [`crate::host::canonical`].
    pub host: &'r str,
    /// As the service sees it: what a route strips is off.
    pub path: &'r str,
    /// What is taken for the key instead of what stands there, for those who only ask.
    pub key: Option<&'r str>,
}

/// Where the key stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// `cookie:NAME`
    Cookie(Box<str>),
    /// `header:NAME`
    Header(HeaderName),
    /// `host`: without the port, in small letters.
    Host,
    /// `path_segment:N`, counted from 1.
    PathSegment(usize),
    /// `query:NAME`
    Query(Box<str>),
    /// `subject`: who is asking, found in these places.
    Subject(Inputs),
    /// `cookie:gilmok_uid`: the visitor's id, whose signature edge listeners check.
    Visitor(Inputs),
}

impl KeySource {
    /// `subject` is where the service's traffic looks for it, if it says so.
    pub(super) fn read(value: &Value<'_>, subject: Option<&Inputs>) -> Option<Self> {
        value.named(Self::parse).map(|source| match (source, subject) {
            (Self::Subject(_), Some(inputs)) => Self::Subject(inputs.clone()),
            (source, _) => source,
        })
    }

    fn parse(text: &str) -> Result<Self, &'static str> {
        const HINT: &str = "where the key stands: \"path_segment:2\" (counted from 1, at most 32), \"header:x-user-id\", \"cookie:uid\", \"query:user\", \"host\" or \"subject\"";
        match text {
            "host" => return Ok(Self::Host),
            "subject" => return Ok(Self::Subject(Inputs::default())),
            _ => {}
        }
        if let Some(number) = text.strip_prefix("path_segment:") {
            let number: usize = number.parse().map_err(|_| HINT)?;
            return if (1..=SEGMENT_MAX).contains(&number) {
                Ok(Self::PathSegment(number))
            } else {
                Err(HINT)
            };
        }
        match Input::parse(text).map_err(|_| HINT)? {
            Input::Cookie(name) if *name == *UID_COOKIE => {
                Ok(Self::Visitor(Inputs::one(Input::Cookie(name))))
            }
            Input::Cookie(name) => Ok(Self::Cookie(name)),
            Input::Header(name) => Ok(Self::Header(name)),
            Input::Query(name) => Ok(Self::Query(name)),
            Input::Baggage | Input::Bearer(_) | Input::ClientIp => Err(HINT),
        }
    }

    /// Who is asking, where that is the key.
    #[must_use]
    pub fn inputs(&self) -> Option<&Inputs> {
        match self {
            Self::Subject(inputs) | Self::Visitor(inputs) => Some(inputs),
            Self::Cookie(_) | Self::Header(_) | Self::Host | Self::PathSegment(_) | Self::Query(_) => None,
        }
    }

    /// Goes through the keys of a request, every one wherever it stands: what is said twice is two keys. Empty ones are none.
    pub(super) fn each(
        &self,
        request: &Keyed<'_>,
        separator: Option<&str>,
        take: &mut dyn FnMut(&[u8]) -> Result<(), KeyFault>,
    ) -> Result<(), KeyFault> {
        let asker = &request.asker;
        let mut value = |value: &[u8]| pieces(value, separator, take);
        if let Some(key) = request.key {
            return value(key.as_bytes());
        }
        match self {
            Self::Cookie(name) => cookies(asker.headers, name).try_for_each(value),
            Self::Header(name) => {
                let mut lines = asker.headers.get_all(name).iter();
                lines.try_for_each(|line| value(line.as_bytes()))
            }
            Self::Host => value(request.host.as_bytes()),
            Self::PathSegment(number) => {
                let segment = request.path.split('/').nth(*number).unwrap_or_default();
                value(&unescaped(segment.as_bytes(), false)?)
            }
            Self::Query(name) => {
                let pairs = asker.query.into_iter().flat_map(|query| query.split('&'));
                let mut found = pairs
                    .filter_map(|pair| pair.split_once('='))
                    .filter(|(key, _)| *decoded(key.as_bytes()) == *name.as_bytes());
                found.try_for_each(|(_, found)| value(&unescaped(found.as_bytes(), true)?))
            }
            Self::Subject(inputs) | Self::Visitor(inputs) => {
                inputs.find(asker).map_or(Ok(()), |found| value(&found))
            }
        }
    }
}

/// Goes through the keys of one value. Spaces around them are theirs only where nothing separates them.
fn pieces(
    value: &[u8],
    separator: Option<&str>,
    take: &mut dyn FnMut(&[u8]) -> Result<(), KeyFault>,
) -> Result<(), KeyFault> {
    let mut one = |key: &[u8]| if key.is_empty() { Ok(()) } else { take(key) };
    let Some(separator) = separator.map(str::as_bytes) else { return one(value) };
    let mut rest = value;
    while let Some(at) = rest.windows(separator.len()).position(|window| window == separator) {
        one(rest[..at].trim_ascii())?;
        rest = &rest[at + separator.len()..];
    }
    one(rest.trim_ascii())
}

/// Undoes percent-encoding, and `+` in queries.
fn unescaped(text: &[u8], is_query: bool) -> Result<Cow<'_, [u8]>, KeyFault> {
    const BAD: KeyFault = KeyFault::Malformed("its percent-encoding is none");
    if !text.iter().any(|byte| *byte == b'%' || (is_query && *byte == b'+')) {
        return Ok(Cow::Borrowed(text));
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        match (byte, after) {
            (b'+', _) if is_query => out.push(b' '),
            (b'%', [high, low, after @ ..]) => {
                let (high, low) = digit(*high).zip(digit(*low)).ok_or(BAD)?;
                out.push(high << 4 | low);
                rest = after;
            }
            (b'%', _) => return Err(BAD),
            _ => out.push(*byte),
        }
    }
    Ok(Cow::Owned(out))
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cookie(name) => write!(f, "cookie:{name}"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Host => f.write_str("host"),
            Self::PathSegment(number) => write!(f, "path_segment:{number}"),
            Self::Query(name) => write!(f, "query:{name}"),
            Self::Subject(_) => f.write_str("subject"),
            Self::Visitor(_) => write!(f, "cookie:{UID_COOKIE}"),
        }
    }
}
