//! Who is asking: the inputs of a request that name its subject, first one present.

use std::borrow::Cow;

use http::header::{COOKIE, HeaderMap, HeaderName};

use crate::grammar::Value;

/// Most inputs of one subject.
const INPUTS_MAX: usize = 8;
/// Longest name of a cookie or a parameter, in bytes.
const NAME_BYTES_MAX: usize = 100;

/// One place of a request where its subject may stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// `cookie:NAME`
    Cookie(Box<str>),
    /// `header:NAME`
    Header(HeaderName),
    /// `query:NAME`
    Query(Box<str>),
}

/// Where a subject is looked for, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inputs(Vec<Input>);

impl Default for Inputs {
    fn default() -> Self {
        Self(vec![Input::Header(HeaderName::from_static("x-user-id")), Input::Cookie("gilmok_uid".into())])
    }
}

impl Input {
    /// Reads `header:x-user-id`, `cookie:gilmok_uid` or `query:user`.
    ///
    /// # Errors
    /// What would be right.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const HINT: &str =
            "where a subject stands: \"header:x-user-id\", \"cookie:gilmok_uid\" or \"query:user\"";
        let (kind, name) = text.split_once(':').ok_or(HINT)?;
        let is_sound = !name.is_empty()
            && name.len() <= NAME_BYTES_MAX
            && name.bytes().all(|byte| byte.is_ascii_graphic() && !b"=;,&\"".contains(&byte));
        match kind {
            "header" => name.parse().map(Self::Header).map_err(|_| HINT),
            "cookie" if is_sound => Ok(Self::Cookie(name.into())),
            "query" if is_sound => Ok(Self::Query(name.into())),
            _ => Err(HINT),
        }
    }

    /// What stands there; what is empty is absent.
    fn find<'r>(&self, headers: &'r HeaderMap, query: Option<&'r str>) -> Option<Cow<'r, [u8]>> {
        let found = match self {
            Self::Header(name) => headers.get(name).map(|value| Cow::Borrowed(value.as_bytes())),
            Self::Cookie(name) => headers
                .get_all(COOKIE)
                .iter()
                .flat_map(|line| line.as_bytes().split(|byte| *byte == b';'))
                .find_map(|pair| {
                    pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"=").map(Cow::Borrowed)
                }),
            Self::Query(name) => query?.split('&').find_map(|pair| {
                let (key, value) = pair.split_once('=')?;
                (decoded(key.as_bytes()) == name.as_bytes()).then(|| decoded(value.as_bytes()))
            }),
        };
        found.filter(|value| !value.is_empty())
    }
}

impl Inputs {
    pub(crate) fn read(value: &Value<'_>) -> Option<Self> {
        let inputs = value.items()?;
        if inputs.is_empty() || inputs.len() > INPUTS_MAX {
            value.fault(format!("{} inputs", inputs.len()), format!("1 to {INPUTS_MAX}"));
            return None;
        }
        Some(Self(inputs.iter().filter_map(|input| input.named(Input::parse)).collect()))
    }

    /// The subject of a request: the bare value, wherever it stands.
    #[must_use]
    pub fn find<'r>(&self, headers: &'r HeaderMap, query: Option<&'r str>) -> Option<Cow<'r, [u8]>> {
        self.0.iter().find_map(|input| input.find(headers, query))
    }
}

/// Undoes percent-encoding and `+`; what is not encoded right stays as it is.
fn decoded(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.iter().any(|byte| matches!(byte, b'%' | b'+')) {
        return Cow::Borrowed(text);
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        match (byte, after) {
            (b'+', _) => out.push(b' '),
            (b'%', [high, low, after @ ..]) if let (Some(high), Some(low)) = (digit(*high), digit(*low)) => {
                out.push(high << 4 | low);
                rest = after;
            }
            _ => out.push(*byte),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn found(inputs: &[&str], cookie: &'static str, query: &str) -> Option<String> {
        let inputs = Inputs(inputs.iter().map(|text| Input::parse(text).unwrap()).collect());
        let mut headers = HeaderMap::new();
        headers.insert("x-user-id", HeaderValue::from_static("42"));
        headers.insert("x-empty", HeaderValue::from_static(""));
        headers.append(COOKIE, HeaderValue::from_static("a=1"));
        headers.append(COOKIE, HeaderValue::from_static(cookie));
        inputs.find(&headers, Some(query)).map(|value| String::from_utf8_lossy(&value).into_owned())
    }

    #[test]
    fn the_first_one_present_is_the_subject() {
        for (inputs, cookie, query, expected) in [
            (&["header:X-User-Id", "cookie:uid"][..], "uid=7", "", Some("42")),
            (&["header:x-empty", "cookie:uid"], "theme=dark; uid=7; uid=8", "", Some("7")),
            (&["cookie:uid"], "xuid=7; uid2=8", "", None),
            (&["cookie:uid"], "uid=", "", None),
            (&["query:user"], "", "a=b&user=%34+2%zz%4&user=5", Some("4 2%zz%4")),
            (&["query:user"], "", "us%65r=9", Some("9")),
            (&["query:user"], "", "user", None),
        ] {
            assert_eq!(found(inputs, cookie, query).as_deref(), expected, "{inputs:?} {cookie} {query}");
        }
    }

    #[test]
    fn what_is_no_input_is_refused() {
        for text in
            ["", "x-user-id", "header:", "header:a b", "cookie:", "cookie:a=b", "session:x", "query:a&b"]
        {
            assert!(Input::parse(text).is_err(), "{text}");
        }
    }
}
