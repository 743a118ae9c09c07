//! What is asked of the OFREP listener, and what a flag comes to for whoever asks.

use gilmok_config::decide::is_on_candidate;
use gilmok_config::flag::{Asked, Context, ErrorCode, Evaluation, Failure, Finding, Flag, FlagSet};
use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value as Json, json};

use super::answer::Refused;
use crate::clock;
use crate::current::Current;

/// Flags of one set out of several.
const SELECTOR: &str = "flagd-selector";
const SET_ID: &str = "flagSetId";

/// Which flags are asked for: those of this set; all without one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Selector(Option<String>);

/// Evaluates the flags in force for whoever asks.
pub(super) struct Evaluator<'c> {
    pub(super) current: &'c Current,
    pub(super) attributes: &'c Map<String, Json>,
    pub(super) selector: &'c Selector,
    context: Context<'c>,
    /// The number under which this thread counts.
    writer: usize,
    now: u64,
    /// Whether the source has not said for long that this is still so.
    pub(super) is_stale: bool,
}

/// The flag that a path asks for: what stands behind the last prefix, percent-decoded. What is not encoded right stays as
/// it is: some clients do not encode.
pub(super) fn key(path: &str) -> String {
    let mut key = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let digits = after.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok()).filter(|_| *byte == b'%');
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(value) => {
                key.push(value);
                rest = &after[2..];
            }
            None => {
                key.push(*byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&key).into_owned()
}

/// The evaluation context of a body; nobody where there is none.
pub(super) fn context(body: &[u8]) -> Result<Map<String, Json>, Refused> {
    const HINT: &str = "the body is JSON: {\"context\": {\"targetingKey\": \"user-1\"}}";
    if body.trim_ascii().is_empty() {
        return Ok(Map::new());
    }
    let body: Json = serde_json::from_slice(body).map_err(|_| Refused::invalid_context(HINT))?;
    let Json::Object(mut body) = body else { return Err(Refused::invalid_context(HINT)) };
    match body.remove("context") {
        None | Some(Json::Null) => Ok(Map::new()),
        Some(Json::Object(context)) => Ok(context),
        Some(_) => Err(Refused::invalid_context("`context` is an object")),
    }
}

impl Selector {
    pub(super) fn read(headers: &HeaderMap) -> Result<Self, Refused> {
        let Some(value) = headers.get(SELECTOR) else { return Ok(Self(None)) };
        let text = value.to_str().unwrap_or_default().trim();
        match text.split_once('=') {
            _ if text.is_empty() => Ok(Self(None)),
            Some((key, id)) if key.trim() == SET_ID => Ok(Self(Some(id.trim().to_owned()))),
            Some(_) | None => {
                let details = "Flagd-Selector is `flagSetId=NAME`: this proxy has one source of flags";
                Err(Refused::new(StatusCode::BAD_REQUEST, "GENERAL", details))
            }
        }
    }

    pub(super) fn takes(&self, set: &FlagSet, flag: &Flag) -> bool {
        self.0.as_deref().is_none_or(|id| set.id_of(flag) == id)
    }

    /// What answers depend on.
    pub(super) fn as_str(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

impl<'c> Evaluator<'c> {
    pub(super) fn new(
        current: &'c Current,
        attributes: &'c Map<String, Json>,
        selector: &'c Selector,
        writer: usize,
        is_stale: bool,
    ) -> Self {
        let context = Context::of_json(attributes);
        Self { current, attributes, selector, context, writer, now: clock::unix_seconds(), is_stale }
    }

    /// One flag by its key.
    pub(super) fn one(&self, key: &str) -> Result<Json, Refused> {
        let set = self.current.snapshot.flags();
        let flag = set.and_then(|set| {
            let place = set.place_of(key).filter(|at| self.selector.takes(set, &set.flags()[*at]))?;
            Some((set, place))
        });
        let Some((set, place)) = flag else {
            self.current.flag_counts.note_unknown(self.writer);
            let refused = Refused::new(StatusCode::NOT_FOUND, "FLAG_NOT_FOUND", "there is no such flag");
            return Err(refused.about(Some(key)));
        };
        self.evaluate(set, place).map(|evaluation| told(&evaluation, self.is_stale)).map_err(|failure| {
            let status = match failure.code {
                ErrorCode::FlagNotFound => StatusCode::NOT_FOUND,
                ErrorCode::General | ErrorCode::ParseError | ErrorCode::TypeMismatch => {
                    StatusCode::BAD_REQUEST
                }
            };
            Refused::new(status, failure.code.as_str(), failure.what).about(Some(key))
        })
    }

    /// Every flag that is asked for.
    pub(super) fn all(&self) -> Vec<Json> {
        let Some(set) = self.current.snapshot.flags() else { return Vec::new() };
        let places = (0..set.flags().len()).filter(|at| self.selector.takes(set, &set.flags()[*at]));
        let each = places.map(|at| match self.evaluate(set, at) {
            Ok(evaluation) => told(&evaluation, self.is_stale),
            Err(Failure { code, what }) => {
                json!({ "key": set.flags()[at].key(), "errorCode": code.as_str(), "errorDetails": what })
            }
        });
        each.collect()
    }

    fn evaluate<'s>(&self, set: &'s FlagSet, place: usize) -> Result<Evaluation<'s>, Failure> {
        let keys = self.current.keys.as_deref().map(|keys| keys.subject_key());
        let follows = |service: &str| {
            let subject = self.context.targeting_key()?;
            is_on_candidate(&self.current.snapshot, service, subject, keys)
        };
        let asked = Asked { follows: &follows, ..Asked::of(&self.context, self.now) };
        let evaluation = set.evaluate_flag(&set.flags()[place], &asked);
        self.current.flag_counts.note(self.writer, Finding::of(place, evaluation.as_ref().ok()));
        evaluation
    }
}

/// An evaluation in OFREP's words. There is always a `variant`: a client fails without one. What may be out of date has its
/// value still.
fn told(evaluation: &Evaluation<'_>, is_stale: bool) -> Json {
    let flag = evaluation.flag();
    let mut told = json!({
        "key": flag.key(),
        "reason": if is_stale { "STALE" } else { evaluation.reason.as_str() },
        "variant": evaluation.variant().map_or("", |variant| variant.name()),
        "metadata": evaluation.metadata(),
    });
    // Without a value the application keeps the default in its code.
    if let Some(value) = evaluation.value() {
        told["value"] = number_as_its_flag(value, flag);
    }
    told
}

/// Clients take `10` for no float and `10.0` for no integer: all numbers of a flag are written alike, with a fraction if the
/// set writes any of them so.
fn number_as_its_flag(value: &Json, flag: &Flag) -> Json {
    let is_real = || flag.variants().iter().any(|variant| variant.value().is_f64());
    match value {
        Json::Number(number) if !number.is_f64() && is_real() => {
            number.as_f64().and_then(serde_json::Number::from_f64).map_or_else(|| value.clone(), Json::Number)
        }
        _ => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_may_be_encoded_or_not() {
        for (path, expected) in [
            ("new-ui", "new-ui"),
            ("s/l.a%25sh", "s/l.a%sh"),
            ("s/l.a%sh", "s/l.a%sh"),
            ("s%2Fl.a%25sh", "s/l.a%sh"),
            ("gr%C3%BCn", "grün"),
            ("a+b", "a+b"),
            ("a%2", "a%2"),
            ("%+1", "%+1"),
            ("", ""),
        ] {
            assert_eq!(key(path), expected, "{path}");
        }
    }

    #[test]
    fn a_body_may_say_nothing_but_not_nonsense() {
        for body in ["", " ", "{}", "{\"context\":null}", "{\"context\":{}}"] {
            assert!(context(body.as_bytes()).unwrap().is_empty(), "{body}");
        }
        assert_eq!(context(b"{\"context\":{\"targetingKey\":\"a\"}}").unwrap()["targetingKey"], "a");
        let deep = format!("{{\"context\":{}1{}}}", "{\"a\":".repeat(200), "}".repeat(200));
        for body in ["[]", "1", "{", "{\"context\":[]}", "{\"context\":\"a\"}", &deep] {
            assert!(context(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn all_numbers_of_a_flag_are_written_alike() {
        let flag = |variants: &str| {
            let text = format!(
                "{{\"flags\":{{\"f\":{{\"state\":\"ENABLED\",\"variants\":{{{variants}}},\"defaultVariant\":\"a\"}}}}}}"
            );
            let set = FlagSet::parse(text.as_bytes()).unwrap();
            let nobody = Context::default();
            let found = set
                .evaluate("f", &Asked::of(&nobody, 0))
                .map(|found| told(&found, false)["value"].to_string());
            found.unwrap()
        };
        for (variants, expected) in [
            ("\"a\": 10", "10"),
            ("\"a\": 10.0", "10.0"),
            ("\"a\": 10, \"b\": 1.0", "10.0"),
            ("\"a\": 10, \"b\": 0.5", "10.0"),
            ("\"a\": -0.5", "-0.5"),
            ("\"a\": 1e20", "1e+20"),
            ("\"a\": 9007199254740991", "9007199254740991"),
            ("\"a\": \"10\"", "\"10\""),
        ] {
            assert_eq!(flag(variants), expected, "{variants}");
        }
    }
}
