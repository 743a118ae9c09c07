//! What is answered instead when a call brings nothing: a chain, tried in order.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{Method, StatusCode};

use crate::failure::{Failure, FailureSet, grpc_code};
use crate::grammar::{Table, Value};
use crate::name::ServiceName;

/// Most links of one chain.
const LINKS_MAX: usize = 8;
/// Longest body of a prepared answer, in bytes.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// Most headers of a prepared answer.
const HEADERS_MAX: usize = 64;
/// Largest body that may be kept as a last good answer, in bytes.
const LAST_GOOD_BYTES_MAX: u64 = 16 << 20;

/// One `[[services.s.fallback]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    pub action: Action,
    /// What it is for.
    pub on: FailureSet,
    /// Requests that it is for: a lost POST that is answered 200 hides an order.
    pub methods: Vec<Method>,
}

/// What a fallback does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Gives the last good answer to the same question again.
    LastGood(LastGood),
    /// Gives a prepared answer.
    Respond(Box<Prepared>),
    /// Asks another service.
    Service(ServiceName),
}

/// `last_good = { … }`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastGood {
    /// How old an answer may be.
    pub max_age: Duration,
    /// Longer bodies are not kept, in bytes.
    pub max_body: u64,
    /// Keeps an answer for each `Authorization` and `Cookie`; otherwise requests that have one get none.
    pub per_credentials: bool,
}

/// `respond = { … }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// For callers of gRPC with `grpc_status = "ok"`: one message, which the proxy puts into a frame.
    pub body: Bytes,
    /// What callers of gRPC are told instead of the status.
    pub grpc: Option<PreparedGrpc>,
}

/// What a caller of gRPC is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreparedGrpc {
    pub status: u8,
    pub message: Option<HeaderValue>,
}

/// What may be answered for.
const KNOWN: [Failure; 7] = [
    Failure::Open,
    Failure::Overflow,
    Failure::NoEndpoint,
    Failure::Connect,
    Failure::Refused,
    Failure::Reset,
    Failure::Timeout,
];

/// Reads the whole chain.
pub(crate) fn read_chain(value: &Value<'_>) -> Option<Vec<Fallback>> {
    let items = value.items()?;
    if items.len() > LINKS_MAX {
        value.fault(format!("{} fallbacks", items.len()), format!("at most {LINKS_MAX}"));
        return None;
    }
    Some(items.iter().filter_map(Fallback::read).collect())
}

impl Fallback {
    fn read(value: &Value<'_>) -> Option<Self> {
        let mut table = value.table()?;
        let action = Self::read_action(&mut table);
        let on = table.optional("on").map(|v| FailureSet::read(&v, &KNOWN));
        let methods = table.optional("methods").and_then(|v| v.list(read_method));
        table.finish();
        Some(Self {
            action: action?,
            on: on.map_or_else(|| FailureSet::of(&KNOWN), Option::unwrap_or_default),
            methods: methods.unwrap_or_else(|| vec![Method::GET, Method::HEAD]),
        })
    }

    fn read_action(table: &mut Table<'_>) -> Option<Action> {
        let last_good = table.optional("last_good");
        let respond = table.optional("respond");
        let service = table.optional("service");
        match (last_good, respond, service) {
            (Some(value), None, None) => LastGood::read(&value).map(Action::LastGood),
            (None, Some(value), None) => Prepared::read(&value).map(Box::new).map(Action::Respond),
            (None, None, Some(value)) => value.named(ServiceName::parse).map(Action::Service),
            _ => {
                table.value().fault(
                    "exactly one of `last_good`, `respond` and `service` says what is answered",
                    "respond = { status = 200, body = \"…\" }, last_good = { max_age = \"5m\" }, or service = \"other\"",
                );
                None
            }
        }
    }
}

pub(crate) fn read_method(value: &Value<'_>) -> Option<Method> {
    let text = value.text()?;
    let is_word = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_uppercase());
    let method = Method::from_bytes(text.as_bytes()).ok().filter(|_| is_word);
    if method.is_none() {
        value.fault("not a method", "in capitals, e.g. \"GET\"");
    }
    method
}

impl LastGood {
    fn read(value: &Value<'_>) -> Option<Self> {
        let mut table = value.table()?;
        let max_age = table
            .optional("max_age")
            .and_then(|v| v.duration(Duration::from_millis(1), Duration::from_hours(24 * 365)));
        let last_good = Self {
            max_age: max_age.unwrap_or(Duration::from_mins(5)),
            max_body: table
                .optional("max_body")
                .and_then(|v| v.size(0, LAST_GOOD_BYTES_MAX))
                .unwrap_or(64 << 10),
            per_credentials: table.optional("per_credentials").and_then(|v| v.boolean()).unwrap_or(false),
        };
        table.finish();
        Some(last_good)
    }
}

impl Prepared {
    fn read(value: &Value<'_>) -> Option<Self> {
        let mut table = value.table()?;
        let status = table.optional("status").and_then(|v| v.integer(200_u16, 599));
        let headers = table.optional("headers").and_then(|v| read_headers(&v)).unwrap_or_default();
        let body = Self::read_body(&mut table).unwrap_or_default();
        let grpc = PreparedGrpc::read(&mut table);
        table.finish();
        Some(Self {
            status: status.and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or(StatusCode::OK),
            headers,
            body: body.into(),
            grpc,
        })
    }

    fn read_body(table: &mut Table<'_>) -> Option<Vec<u8>> {
        let text = table.optional("body");
        let base64 = table.optional("body_base64");
        let file = table.optional("body_file");
        let (value, body) = match (text, base64, file) {
            (None, None, None) => return None,
            (Some(value), None, None) => {
                let body = value.text()?.as_bytes().to_vec();
                (value, body)
            }
            (None, Some(value), None) => {
                let Ok(body) = BASE64.decode(value.text()?) else {
                    value.fault("not base64", "RFC 4648, with padding");
                    return None;
                };
                (value, body)
            }
            (None, None, Some(file)) => {
                file.fault(
                    "a document that did not come from a file cannot name one",
                    "`body` or `body_base64`; `gilmok apply` puts the file's content there",
                );
                return None;
            }
            _ => {
                table.value().fault("only one of `body`, `body_base64` and `body_file`", "");
                return None;
            }
        };
        if body.len() > BODY_BYTES_MAX {
            value.fault(format!("{} bytes", body.len()), format!("at most {BODY_BYTES_MAX}"));
            return None;
        }
        Some(body)
    }
}

impl PreparedGrpc {
    fn read(table: &mut Table<'_>) -> Option<Self> {
        let status = table.optional("grpc_status");
        let message = table.optional("grpc_message");
        let Some(status) = status else {
            if let Some(message) = message {
                message.fault("`grpc_message` needs a `grpc_status`", "grpc_status = \"unavailable\"");
            }
            return None;
        };
        let code = if status.is_text() {
            let code = grpc_code(status.text()?);
            if code.is_none() {
                status.fault("not a code of gRPC", "its name or number: \"unavailable\", 14");
            }
            code?
        } else {
            status.integer(0_u8, 16)?
        };
        let message = message.and_then(|value| {
            // Percent-encoding keeps it a header (gRPC over HTTP/2, Status-Message).
            HeaderValue::from_str(&percent_encoded(value.text()?)).ok()
        });
        Some(Self { status: code, message })
    }
}

fn percent_encoded(text: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _infallible = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

fn read_headers(value: &Value<'_>) -> Option<HeaderMap> {
    let entries = value.entries()?;
    if entries.len() > HEADERS_MAX {
        value.fault(format!("{} headers", entries.len()), format!("at most {HEADERS_MAX}"));
        return None;
    }
    let mut headers = HeaderMap::with_capacity(entries.len());
    for (name, item) in entries {
        let Some(text) = item.text() else { continue };
        let (Ok(name), Ok(text)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(text))
        else {
            item.fault("not a header", "a name of letters and '-', and a value in one line");
            continue;
        };
        // Framing is made from the body.
        if [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING].contains(&name) {
            item.fault(format!("`{name}` is made by the proxy"), "leave it out");
        }
        headers.append(name, text);
    }
    Some(headers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;

    fn chain(text: &str) -> Result<Vec<Fallback>, String> {
        let document = Document::parse_toml(text).map_err(|told| told.to_string())?;
        Ok(document.services["ads"].fallback.clone())
    }

    #[test]
    fn a_chain_is_read_in_order() {
        let chain = chain(
            "[[services.ads.fallback]]\nlast_good = {}\n\
             [[services.ads.fallback]]\n\
             respond = { status = 200, headers = { content-type = \"image/png\" }, body_base64 = \"iVBO\", grpc_status = \"unavailable\", grpc_message = \"50 %\" }\n\
             on = [\"open\", \"5xx\"]\nmethods = [\"GET\", \"POST\"]\n\
             [[services.ads.fallback]]\nservice = \"house\"\n[services.house]\n",
        )
        .unwrap();
        let last_good =
            LastGood { max_age: Duration::from_mins(5), max_body: 65_536, per_credentials: false };
        assert_eq!(chain[0].action, Action::LastGood(last_good));
        assert!(chain[0].on.has(Failure::NoEndpoint) && !chain[0].on.has_status(500));
        let Action::Respond(prepared) = &chain[1].action else { panic!("{chain:?}") };
        assert_eq!(&prepared.body[..], [0x89, b'P', b'N']);
        let grpc = prepared.grpc.as_ref().unwrap();
        assert_eq!((grpc.status, grpc.message.as_ref().unwrap().to_str().unwrap()), (14, "50 %25"));
        assert!(chain[1].on.has_status(503) && !chain[1].on.has(Failure::Reset));
        assert_eq!(chain[1].methods, [Method::GET, Method::POST]);
        assert_eq!(chain[2].action, Action::Service(ServiceName::parse("house").unwrap()));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let told = |text: &str| chain(text).unwrap_err();
        let loops =
            "[[services.ads.fallback]]\nservice = \"a\"\n[[services.a.fallback]]\nservice = \"ads\"\n";
        assert_eq!(
            told(loops),
            "line 2: services.ads.fallback[0].service: the fallback leads from `a` back to `ads` (another service)\n\
             line 4: services.a.fallback[0].service: the fallback leads from `ads` back to `a` (another service)"
        );
        for (link, what) in [
            (
                "service = \"ads\"",
                "line 2: services.ads.fallback[0].service: the fallback leads from `ads` back",
            ),
            ("service = \"none\"", "line 2: services.ads.fallback[0].service: there is no service `none`"),
            ("respond = {}\nlast_good = {}", "line 1: services.ads.fallback[0]: exactly one of"),
            (
                "respond = { body = \"a\", body_base64 = \"YQ==\" }",
                "line 2: services.ads.fallback[0].respond: only one",
            ),
            (
                "respond = { body_base64 = \"!\" }",
                "line 2: services.ads.fallback[0].respond.body_base64: not base64",
            ),
            (
                "respond = { body_file = \"x\" }",
                "line 2: services.ads.fallback[0].respond.body_file: a document",
            ),
            ("respond = { status = 101 }", "line 2: services.ads.fallback[0].respond.status: 101 is out"),
            (
                "respond = { grpc_status = 17 }",
                "line 2: services.ads.fallback[0].respond.grpc_status: 17 is out",
            ),
            (
                "respond = { headers = { content-length = \"3\" } }",
                "line 2: services.ads.fallback[0].respond.headers.content-length: `content-length` is made",
            ),
            (
                "respond = {}\non = [\"cancelled\"]",
                "line 3: services.ads.fallback[0].on[0]: \"cancelled\" is no failure",
            ),
            (
                "respond = {}\nmethods = [\"get\"]",
                "line 3: services.ads.fallback[0].methods[0]: not a method",
            ),
        ] {
            let told = told(&format!("[[services.ads.fallback]]\n{link}\n"));
            assert!(told.starts_with(what), "{link}: {told}");
        }
    }
}
