//! Who is asking: the inputs of a request that name its subject, first one present.

use std::borrow::Cow;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use http::header::{AUTHORIZATION, COOKIE, HeaderMap, HeaderName, HeaderValue};

use crate::baggage::{KeyedSubject, SubjectKey, keyed_subject};
use crate::grammar::Value;

/// Most inputs of one subject.
const INPUTS_MAX: usize = 8;
/// Longest name of a cookie or a parameter, in bytes.
const NAME_BYTES_MAX: usize = 100;
/// Longest payload of a token whose claim is read, in bytes of base64.
const TOKEN_BYTES_MAX: usize = 16 << 10;
/// The cookie by which edge listeners know visitors again. Its value is an id and, behind a dot, a signature.
pub const UID_COOKIE: &str = "gilmok_uid";

/// One place of a request where its subject may stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// `baggage`: the keyed hash of an earlier hop's subject; see [`crate::baggage`]. Where it is listed, the hash of
    /// what the other inputs find stands for it.
    Baggage,
    /// `bearer:CLAIM`: a claim of the JWT in `Authorization`. It is not verified: it sorts users, it lets nobody in.
    Bearer(Box<str>),
    /// `client_ip`
    ClientIp,
    /// `cookie:NAME`
    Cookie(Box<str>),
    /// `header:NAME`
    Header(HeaderName),
    /// `query:NAME`
    Query(Box<str>),
}

/// A request, as far as it says who is asking.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'r> {
    pub headers: &'r HeaderMap,
    pub query: Option<&'r str>,
    /// The caller's address, where it is known for certain; see [`Inputs::want_client`].
    pub client: Option<IpAddr>,
    pub uid: Uid<'r>,
    pub baggage: Baggage<'r>,
}

/// What is known of subjects that earlier hops have hashed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Baggage<'r> {
    /// Whether the caller is believed.
    pub trusted: bool,
    /// The mesh's key; without one the bare subject is used.
    pub key: Option<&'r SubjectKey>,
}

/// What is known of the visitor's cookie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Uid<'r> {
    /// Whoever set it is believed: it is read from the request.
    #[default]
    AsSent,
    /// Its signature was checked: this is the id.
    Checked(&'r str),
    /// There is none, or its signature is wrong.
    Absent,
}

/// A subject as it is hashed for a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decisive<'r> {
    Bare(Cow<'r, [u8]>),
    /// Later hops are told of it.
    Keyed(KeyedSubject),
}

impl Decisive<'_> {
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Bare(subject) => subject,
            Self::Keyed(subject) => subject,
        }
    }

    /// What later hops are told.
    #[must_use]
    pub fn passed_on(&self) -> Option<KeyedSubject> {
        match self {
            Self::Bare(_) => None,
            Self::Keyed(subject) => Some(*subject),
        }
    }

    /// Whether it is this one, whose name is bare.
    #[must_use]
    pub fn is(&self, name: &[u8], key: Option<&SubjectKey>) -> bool {
        match self {
            Self::Bare(subject) => **subject == *name,
            Self::Keyed(subject) => key.is_some_and(|key| key.hash(name) == *subject),
        }
    }
}

/// Where a subject is looked for, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inputs(Vec<Input>);

impl Default for Inputs {
    fn default() -> Self {
        Self(vec![Input::Header(HeaderName::from_static("x-user-id")), Input::Cookie(UID_COOKIE.into())])
    }
}

impl Input {
    /// Reads `header:x-user-id`, `cookie:gilmok_uid` or `query:user`.
    ///
    /// # Errors
    /// What would be right.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const HINT: &str = "where a subject stands: \"header:x-user-id\", \"cookie:gilmok_uid\", \"query:user\", \"bearer:sub\", \"client_ip\" or \"baggage\"";
        match text {
            "baggage" => return Ok(Self::Baggage),
            "client_ip" => return Ok(Self::ClientIp),
            _ => {}
        }
        let (kind, name) = text.split_once(':').ok_or(HINT)?;
        let is_sound = !name.is_empty()
            && name.len() <= NAME_BYTES_MAX
            && name.bytes().all(|byte| byte.is_ascii_graphic() && !b"=;,&\"".contains(&byte));
        match kind {
            "header" => name.parse().map(Self::Header).map_err(|_| HINT),
            "cookie" if is_sound => Ok(Self::Cookie(name.into())),
            "query" if is_sound => Ok(Self::Query(name.into())),
            "bearer" if !name.is_empty() && name.len() <= NAME_BYTES_MAX => Ok(Self::Bearer(name.into())),
            _ => Err(HINT),
        }
    }

    /// What stands there; what is empty is absent.
    fn find<'r>(&self, asker: &Asker<'r>) -> Option<Cow<'r, [u8]>> {
        let found = match self {
            // Found before the others are asked.
            Self::Baggage => None,
            Self::Header(name) => asker.headers.get(name).map(|value| Cow::Borrowed(value.as_bytes())),
            Self::Cookie(name) if **name == *UID_COOKIE => match asker.uid {
                Uid::AsSent => cookie(asker.headers, UID_COOKIE).map(|value| Cow::Borrowed(uid_of(value))),
                Uid::Checked(id) => Some(Cow::Borrowed(id.as_bytes())),
                Uid::Absent => None,
            },
            Self::Cookie(name) => cookie(asker.headers, name).map(Cow::Borrowed),
            Self::Query(name) => asker.query?.split('&').find_map(|pair| {
                let (key, value) = pair.split_once('=')?;
                (decoded(key.as_bytes()) == name.as_bytes()).then(|| decoded(value.as_bytes()))
            }),
            Self::Bearer(claim) => claim_of(asker.headers, claim).map(|value| Cow::Owned(value.into_bytes())),
            Self::ClientIp => {
                asker.client.map(|client| Cow::Owned(client.to_canonical().to_string().into_bytes()))
            }
        };
        found.filter(|value| !value.is_empty())
    }
}

/// A cookie's value, of the first one of this name.
#[must_use]
pub fn cookie<'r>(headers: &'r HeaderMap, name: &str) -> Option<&'r [u8]> {
    cookies(headers, name).next()
}

/// The values of every cookie of this name.
pub(crate) fn cookies<'r>(headers: &'r HeaderMap, name: &str) -> impl Iterator<Item = &'r [u8]> {
    let pairs = headers.get_all(COOKIE).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    pairs.filter_map(move |pair| pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

/// The id in a visitor's cookie: what stands before its signature.
fn uid_of(value: &[u8]) -> &[u8] {
    let end = value.iter().rposition(|byte| *byte == b'.').unwrap_or(value.len());
    &value[..end]
}

/// A claim that is a text or a number, of the JWT that the caller shows (RFC 7519, 7515).
fn claim_of(headers: &HeaderMap, claim: &str) -> Option<String> {
    let shown = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = shown.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let mut parts = token.trim().split('.');
    let (_header, payload, _signature) = (parts.next()?, parts.next()?, parts.next()?);
    if payload.len() > TOKEN_BYTES_MAX {
        return None;
    }
    let payload = URL_SAFE_NO_PAD.decode(payload).or_else(|_| URL_SAFE.decode(payload)).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&payload).ok()?;
    match claims.get(claim)? {
        serde_json::Value::String(text) => Some(text.clone()),
        serde_json::Value::Number(number) => Some(number.to_string()),
        _ => None,
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

    /// A list of inputs, or one of them by itself.
    pub(crate) fn read_some(value: &Value<'_>) -> Option<Self> {
        if value.is_list() { Self::read(value) } else { value.named(Input::parse).map(Self::one) }
    }

    /// The subject of a request: the bare value, wherever it stands.
    #[must_use]
    pub fn find<'r>(&self, asker: &Asker<'r>) -> Option<Cow<'r, [u8]>> {
        self.0.iter().find_map(|input| input.find(asker))
    }

    /// What stands in each of the places, in their order; empty where nothing does. The first one decides, but an answer
    /// may have been made for any of them.
    #[must_use]
    pub fn each<'r>(&self, asker: &Asker<'r>) -> Vec<Cow<'r, [u8]>> {
        let found = |input: &Input| match input {
            Input::Baggage => keyed_subject(asker.headers).map(|keyed| Cow::Owned(keyed.to_vec())),
            _ => input.find(asker),
        };
        self.0.iter().map(|input| found(input).unwrap_or_default()).collect()
    }

    /// Who decides on a version: the bare subject, or its keyed hash where `baggage` is listed.
    #[must_use]
    pub fn decisive<'r>(&self, asker: &Asker<'r>) -> Option<Decisive<'r>> {
        if self.want_baggage()
            && let Some(keyed) = keyed_subject(asker.headers).filter(|_| asker.baggage.trusted)
        {
            return Some(Decisive::Keyed(keyed));
        }
        self.find(asker).map(|bare| self.keyed(asker, bare))
    }

    /// What a bare subject is hashed as.
    #[must_use]
    pub fn keyed<'r>(&self, asker: &Asker<'_>, bare: Cow<'r, [u8]>) -> Decisive<'r> {
        match asker.baggage.key.filter(|_| self.want_baggage()) {
            Some(key) => Decisive::Keyed(key.hash(&bare)),
            None => Decisive::Bare(bare),
        }
    }

    /// Writes a subject where a request would have it, for those who ask what would become of one: into the headers, or
    /// into the query that is answered. The caller's address is neither.
    ///
    /// # Errors
    /// Why it cannot be written there.
    pub fn write(&self, subject: &str, headers: &mut HeaderMap) -> Result<Option<String>, &'static str> {
        const NO_VALUE: &str = "a subject in a header has only visible characters";
        let written = |text: &str| HeaderValue::from_str(text).map_err(|_| NO_VALUE);
        match self.0.iter().find(|input| **input != Input::Baggage) {
            Some(Input::Header(name)) => drop(headers.insert(name, written(subject)?)),
            Some(Input::Cookie(name)) if **name == *UID_COOKIE => {
                // What stands behind the last dot would be taken for the signature.
                headers.append(COOKIE, written(&format!("{name}={subject}."))?);
            }
            Some(Input::Cookie(name)) => drop(headers.append(COOKIE, written(&format!("{name}={subject}"))?)),
            Some(Input::Query(name)) => {
                let byte = |byte: u8| match byte {
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                        char::from(byte).to_string()
                    }
                    _ => format!("%{byte:02X}"),
                };
                let encoded = |text: &str| text.bytes().map(byte).collect::<String>();
                return Ok(Some(format!("{}={}", encoded(name), encoded(subject))));
            }
            Some(Input::Bearer(claim)) => {
                let claims = serde_json::json!({ &**claim: subject }).to_string();
                let token = format!("Bearer e30.{}.", URL_SAFE_NO_PAD.encode(claims));
                headers.insert(AUTHORIZATION, written(&token)?);
            }
            Some(Input::Baggage | Input::ClientIp) | None => {
                return Err("no input is part of the request itself");
            }
        }
        Ok(None)
    }

    /// Only this input.
    #[must_use]
    pub fn one(input: Input) -> Self {
        Self(vec![input])
    }

    #[must_use]
    pub fn as_slice(&self) -> &[Input] {
        &self.0
    }

    /// Whether the keyed hash decides.
    #[must_use]
    pub fn want_baggage(&self) -> bool {
        self.0.contains(&Input::Baggage)
    }

    /// Whether the caller's address may be the subject.
    #[must_use]
    pub fn want_client(&self) -> bool {
        self.0.contains(&Input::ClientIp)
    }

    /// Whether the visitor's cookie may be the subject.
    #[must_use]
    pub fn want_uid(&self) -> bool {
        self.0.iter().any(|input| matches!(input, Input::Cookie(name) if **name == *UID_COOKIE))
    }
}

impl std::fmt::Display for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Baggage => f.write_str("baggage"),
            Self::Bearer(claim) => write!(f, "bearer:{claim}"),
            Self::ClientIp => f.write_str("client_ip"),
            Self::Cookie(name) => write!(f, "cookie:{name}"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Query(name) => write!(f, "query:{name}"),
        }
    }
}

/// Undoes percent-encoding and `+`; what is not encoded right stays as it is.
pub(crate) fn decoded(text: &[u8]) -> Cow<'_, [u8]> {
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
    use super::*;

    fn asker<'r>(headers: &'r HeaderMap, query: &'r str) -> Asker<'r> {
        Asker {
            headers,
            query: Some(query),
            client: Some([10, 0, 0, 7].into()),
            uid: Uid::AsSent,
            baggage: Baggage::default(),
        }
    }

    fn found(inputs: &[&str], cookie: &'static str, query: &str) -> Option<String> {
        let inputs = Inputs(inputs.iter().map(|text| Input::parse(text).unwrap()).collect());
        let mut headers = HeaderMap::new();
        headers.insert("x-user-id", HeaderValue::from_static("42"));
        headers.insert("x-empty", HeaderValue::from_static(""));
        headers.append(COOKIE, HeaderValue::from_static("a=1"));
        headers.append(COOKIE, HeaderValue::from_static(cookie));
        inputs.find(&asker(&headers, query)).map(|value| String::from_utf8_lossy(&value).into_owned())
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
            (&["client_ip"], "", "", Some("10.0.0.7")),
            (&["cookie:gilmok_uid"], "gilmok_uid=abc.sig", "", Some("abc")),
        ] {
            assert_eq!(found(inputs, cookie, query).as_deref(), expected, "{inputs:?} {cookie} {query}");
        }
    }

    #[test]
    fn every_input_is_found_in_its_place_and_an_earlier_hops_hash_too() {
        let inputs = ["baggage", "header:x-empty", "header:x-user-id", "cookie:uid"];
        let inputs = Inputs(inputs.iter().map(|text| Input::parse(text).unwrap()).collect());
        let mut headers = HeaderMap::new();
        headers.insert("x-user-id", HeaderValue::from_static("42"));
        headers.insert("x-empty", HeaderValue::from_static(""));
        headers.insert("baggage", HeaderValue::from_static("gilmok.k=9f2c4e01a7d85b36"));
        let found = inputs.each(&asker(&headers, ""));
        assert_eq!(found, [&b"9f2c4e01a7d85b36"[..], b"", b"42", b""]);
    }

    #[test]
    fn a_claim_of_a_token_is_a_subject_and_garbage_is_none() {
        let inputs = Inputs(vec![Input::parse("bearer:sub").unwrap()]);
        let token = |claims: &str| format!("Bearer e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
        for (shown, expected) in [
            (token("{\"sub\":\"ann\"}"), Some("ann")),
            (token("{\"sub\":42}"), Some("42")),
            (token("{\"sub\":[1]}"), None),
            (token("{\"sub\":\"\"}"), None),
            (token("nonsense"), None),
            ("Bearer a.b".to_owned(), None),
            ("Basic YTpi".to_owned(), None),
            (format!("Bearer e30.{}.s", "A".repeat(TOKEN_BYTES_MAX + 1)), None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, HeaderValue::try_from(&shown).unwrap());
            let subject = inputs.find(&asker(&headers, ""));
            assert_eq!(subject.as_deref(), expected.map(str::as_bytes), "{shown}");
        }
    }

    #[test]
    fn a_visitor_whose_cookie_was_checked_is_not_asked_again() {
        let inputs = Inputs::default();
        let mut headers = HeaderMap::new();
        headers.insert(COOKIE, HeaderValue::from_static("gilmok_uid=forged.sig"));
        let with = |uid| inputs.find(&Asker { uid, ..asker(&headers, "") }).map(Cow::into_owned);
        assert_eq!(with(Uid::Checked("me")).as_deref(), Some(&b"me"[..]));
        assert_eq!(with(Uid::Absent), None);
        assert_eq!(with(Uid::AsSent).as_deref(), Some(&b"forged"[..]));
    }

    #[test]
    fn a_subject_is_found_where_it_was_written() {
        for text in ["header:x-user-id", "cookie:uid", "cookie:gilmok_uid", "query:user", "bearer:sub"] {
            let inputs = Inputs::one(Input::parse(text).unwrap());
            let mut headers = HeaderMap::new();
            let query = inputs.write("user.4 2+", &mut headers).unwrap();
            let asker = Asker { client: None, query: query.as_deref(), ..asker(&headers, "") };
            assert_eq!(inputs.find(&asker).as_deref(), Some(&b"user.4 2+"[..]), "{text}");
        }
        assert!(Inputs::one(Input::ClientIp).write("10.0.0.1", &mut HeaderMap::new()).is_err());
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
