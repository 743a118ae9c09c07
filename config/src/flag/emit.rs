//! `[services.s.flags]`: which flags a service is told with each request, for whom they are evaluated, and the headers.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::context::{Context, FLAGD, TARGETING_KEY};
use super::evaluate::{Asked, Evaluation, Finding};
use super::header::FEATURE_FLAGS;
use super::{Flag, FlagSet};
use crate::grammar::Value;
use crate::hash::short_hash;
use crate::problem::shown;
use crate::subject::{Asker, Inputs};

/// Most flags that one service is told by name.
const EMIT_MAX: usize = 1_000;
/// Most flags of one service that are evaluated for each request.
const DYNAMIC_MAX: usize = 100;
/// Longest [`FEATURE_FLAGS`], in bytes; what does not fit is left out and counted.
pub const HEADER_BYTES_MAX: usize = 2_048;
/// Most attributes of the context that requests are looked through for.
const CONTEXT_MAX: usize = 16;
/// Longest name of one, in bytes.
const NAME_BYTES_MAX: usize = 100;

/// The table of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceFlags {
    pub emit: Emit,
    /// Where the targeting key stands.
    pub subject: Inputs,
    /// Further attributes, and where each stands.
    pub context: Vec<(Box<str>, Inputs)>,
}

/// Which flags a service is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Emit {
    All,
    Named(Vec<Box<str>>),
}

/// A service's flags as they are told: what is the same for everybody is written already.
#[derive(Debug, Default)]
pub struct Emission {
    /// The members of flags that are the same for everybody.
    fixed: Box<str>,
    /// The whole header where all of them are.
    whole: Option<HeaderValue>,
    fixed_singles: Vec<(HeaderName, HeaderValue)>,
    /// Places of the others in the set.
    dynamic: Vec<usize>,
    /// Those that are the same for everybody.
    fixed_flags: Vec<usize>,
    /// What the first of them came to that are told.
    fixed_findings: Vec<Finding>,
    dropped: usize,
    /// Whether any of those that are evaluated has a guard.
    is_guarded: bool,
}

/// What became of flags that were to be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Flags that did not fit into the header.
    pub dropped: usize,
    /// A hash of the targeting key, where there is one and any of the flags is guarded.
    pub subject: Option<u64>,
}

impl Default for Emit {
    fn default() -> Self {
        Self::Named(Vec::new())
    }
}

impl ServiceFlags {
    pub(crate) fn read(value: &Value<'_>) -> Option<Self> {
        let mut table = value.table()?;
        let emit = table.optional("emit").map_or(Some(Emit::default()), |v| read_emit(&v));
        let subject = table.optional("subject");
        let subject = subject.map_or_else(|| Some(Inputs::default()), |v| read_subject(&v));
        let context = table.optional("context").map_or(Some(Vec::new()), |v| read_context(&v));
        table.finish();
        Some(Self { emit: emit?, subject: subject?, context: context? })
    }

    /// Everything that it looks at.
    pub fn inputs(&self) -> impl Iterator<Item = &Inputs> {
        std::iter::once(&self.subject).chain(self.context.iter().map(|(_, inputs)| inputs))
    }

    /// Evaluates something with what a request says of whoever asks. What is no UTF-8 is not there.
    pub fn with_context<T>(&self, asker: &Asker<'_>, evaluate: impl FnOnce(&Context<'_>) -> T) -> T {
        let key = self.subject.find(asker).and_then(text);
        let others: Vec<(&str, Cow<'_, str>)> = self
            .context
            .iter()
            .filter_map(|(name, inputs)| Some((&**name, inputs.find(asker).and_then(text)?)))
            .collect();
        evaluate(&Context::of_texts(key.as_deref(), &others))
    }
}

fn text(bytes: Cow<'_, [u8]>) -> Option<Cow<'_, str>> {
    match bytes {
        Cow::Borrowed(bytes) => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
        Cow::Owned(bytes) => String::from_utf8(bytes).ok().map(Cow::Owned),
    }
}

fn read_emit(value: &Value<'_>) -> Option<Emit> {
    let items = value.items()?;
    if items.len() > EMIT_MAX {
        value.fault(format!("{} flags", items.len()), format!("at most {EMIT_MAX}"));
        return None;
    }
    let mut names: Vec<Box<str>> = Vec::with_capacity(items.len());
    for item in &items {
        let name = item.text()?;
        if names.iter().any(|other| **other == *name) {
            item.fault(format!("`{}` is listed twice", shown(name)), "");
        }
        names.push(name.into());
    }
    match names.iter().position(|name| **name == *"*") {
        None => Some(Emit::Named(names)),
        Some(_) if names.len() == 1 => Some(Emit::All),
        Some(at) => {
            items[at].fault("`*` is every flag, and others beside it", "[\"*\"], or the flags by name");
            None
        }
    }
}

fn read_subject(value: &Value<'_>) -> Option<Inputs> {
    let inputs = Inputs::read(value)?;
    if inputs.want_baggage() {
        value.fault(
            "in baggage there are hashes, and flags ask for whom they are",
            "an input that says who it is",
        );
        return None;
    }
    Some(inputs)
}

fn read_context(value: &Value<'_>) -> Option<Vec<(Box<str>, Inputs)>> {
    let entries = value.entries()?;
    if entries.len() > CONTEXT_MAX {
        value.fault(format!("{} attributes", entries.len()), format!("at most {CONTEXT_MAX}"));
        return None;
    }
    let mut context = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains('.') {
            entry.fault("not the name of an attribute", format!("1 to {NAME_BYTES_MAX} bytes without dots"));
            continue;
        }
        if name == TARGETING_KEY || name == FLAGD {
            entry.fault(
                format!("`{name}` is no attribute that a document sets"),
                "`subject` says the targeting key",
            );
            continue;
        }
        let Some(inputs) = Inputs::read_some(&entry) else { continue };
        context.push((name.into(), inputs));
    }
    Some(context)
}

impl Emission {
    /// What a service is told of a set. Faults of the table `value` are noted: flags that are not there, or cannot be told.
    pub(crate) fn new(emit: &Emit, set: &FlagSet, value: Option<&Value<'_>>) -> Self {
        let mut places = Vec::new();
        match emit {
            Emit::All => places.extend(
                set.flags.iter().enumerate().filter(|(_, flag)| flag.can_be_told()).map(|(at, _)| at),
            ),
            Emit::Named(names) => {
                let items = value.filter(|value| value.is_list()).and_then(|value| value.items());
                for (at, name) in names.iter().enumerate() {
                    let item = items.as_ref().and_then(|items| items.get(at));
                    match set.place_of(name) {
                        Some(place) if set.flags[place].can_be_told() => places.push(place),
                        Some(_) => {
                            if let Some(item) = item {
                                let what = format!("`{}` is no key of the header", shown(name));
                                item.fault(what, "`x-gilmok.header.name` of the flag");
                            }
                        }
                        None => {
                            if let Some(item) = item {
                                item.fault(
                                    format!("there is no flag `{}`", shown(name)),
                                    "a flag of the set",
                                );
                            }
                        }
                    }
                }
            }
        }
        let (fixed_flags, dynamic): (Vec<usize>, Vec<usize>) =
            places.into_iter().partition(|at| set.flags[*at].is_static());
        if dynamic.len() > DYNAMIC_MAX
            && let Some(value) = value
        {
            let what = format!("{} flags to be evaluated for each request", dynamic.len());
            value.fault(what, format!("at most {DYNAMIC_MAX}; name those that the service asks for"));
        }
        let is_guarded = dynamic.iter().any(|at| set.flags[*at].is_watched());
        let mut emission = Self { dynamic, is_guarded, ..Self::default() };
        emission.write_fixed(set, fixed_flags);
        emission
    }

    fn write_fixed(&mut self, set: &FlagSet, flags: Vec<usize>) {
        let context = Context::default();
        // What is the same for everybody is so for nobody, whenever that is.
        let asked = Asked::of(&context, 0);
        let mut fixed = String::new();
        let mut headers = HeaderMap::new();
        for at in &flags {
            let evaluation = set.evaluate_flag(&set.flags[*at], &asked).ok();
            let is_told = evaluation.as_ref().is_some_and(|found| found.tell(&mut fixed, &mut headers));
            self.dropped += usize::from(evaluation.is_some() && !is_told);
            if is_told && self.fixed_findings.len() < EMIT_MAX {
                self.fixed_findings.push(Finding::of(*at, evaluation.as_ref()));
            }
        }
        if self.dynamic.is_empty() && !fixed.is_empty() {
            self.whole = HeaderValue::from_str(&fixed).ok();
        }
        self.fixed_singles = headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        self.fixed = fixed.into();
        self.fixed_flags = flags;
    }

    /// The places of all of its flags.
    pub(crate) fn places(&self) -> impl Iterator<Item = usize> {
        self.fixed_flags.iter().chain(&self.dynamic).copied()
    }

    /// Whether any of its flags has to be evaluated for each request.
    #[must_use]
    pub fn is_dynamic(&self) -> bool {
        !self.dynamic.is_empty()
    }

    /// Whether any flag that is evaluated for each request has a guard.
    #[must_use]
    pub fn is_guarded(&self) -> bool {
        self.is_guarded
    }

    /// Whether nothing is told.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.dynamic.is_empty() && self.fixed_flags.is_empty()
    }

    /// Puts the headers there. `set` is the one that it was made of. What each flag came to is `seen`, also of those that
    /// are the same for everybody.
    pub fn tell(
        &self,
        set: &FlagSet,
        asked: &Asked<'_>,
        headers: &mut HeaderMap,
        seen: &mut dyn FnMut(Finding),
    ) -> Told {
        if !asked.overrides.is_empty() {
            return self.tell_each(set, asked, headers, seen);
        }
        for finding in &self.fixed_findings {
            seen(*finding);
        }
        for (name, value) in &self.fixed_singles {
            headers.insert(name, value.clone());
        }
        let mut dropped = self.dropped;
        if self.dynamic.is_empty() {
            if let Some(whole) = &self.whole {
                headers.insert(FEATURE_FLAGS, whole.clone());
            }
            return Told { dropped, subject: None };
        }
        let mut text =
            String::with_capacity(HEADER_BYTES_MAX.min(self.fixed.len() + 32 * self.dynamic.len()));
        text.push_str(&self.fixed);
        dropped += evaluate_each(&self.dynamic, set, asked, &mut text, headers, seen);
        put(headers, text);
        let key = asked.context.targeting_key().filter(|key| self.is_guarded && !key.is_empty());
        Told { dropped, subject: key.map(|key| short_hash(key.as_bytes())) }
    }

    /// The same for a tester, to whom nothing is told as it is told to everybody.
    fn tell_each(
        &self,
        set: &FlagSet,
        asked: &Asked<'_>,
        headers: &mut HeaderMap,
        seen: &mut dyn FnMut(Finding),
    ) -> Told {
        let mut text = String::new();
        let dropped = [&self.fixed_flags, &self.dynamic]
            .map(|flags| evaluate_each(flags, set, asked, &mut text, headers, seen));
        put(headers, text);
        // What comes of a tester's choice says nothing of what users get.
        Told { dropped: dropped.into_iter().sum(), subject: None }
    }
}

/// Adds what flags come to; how many had no room.
fn evaluate_each(
    flags: &[usize],
    set: &FlagSet,
    asked: &Asked<'_>,
    text: &mut String,
    headers: &mut HeaderMap,
    seen: &mut dyn FnMut(Finding),
) -> usize {
    let mut dropped = 0;
    for at in flags {
        let Some(flag) = set.flags.get(*at) else { continue };
        // A flag that fails is not told: the application has a default for it.
        let evaluation = set.evaluate_flag(flag, asked).ok();
        seen(Finding::of(*at, evaluation.as_ref()));
        dropped += usize::from(evaluation.is_some_and(|found| !found.tell(text, headers)));
    }
    dropped
}

fn put(headers: &mut HeaderMap, text: String) {
    if !text.is_empty()
        && let Ok(value) = HeaderValue::try_from(text)
    {
        headers.insert(FEATURE_FLAGS, value);
    }
}

impl Evaluation<'_> {
    /// Adds it to the dictionary, and the header that it has for itself. Whether there was room for it.
    fn tell(&self, dictionary: &mut String, headers: &mut HeaderMap) -> bool {
        let Some(at) = self.place() else { return true };
        let flag = self.flag();
        let single = flag.extension.as_ref().and_then(|extension| extension.single.as_ref());
        if let Some(single) = single
            && let Some(value) = &single.values[at]
        {
            headers.insert(&single.name, value.clone());
        }
        let Some(member) = &flag.variants[at].member else { return true };
        let between = if dictionary.is_empty() { "" } else { ", " };
        if dictionary.len() + between.len() + member.len() > HEADER_BYTES_MAX {
            return false;
        }
        dictionary.push_str(between);
        dictionary.push_str(member);
        true
    }
}

impl Flag {
    /// Whether it has a key in the header, or a header of its own.
    fn can_be_told(&self) -> bool {
        super::header::is_key(&self.key)
            || self
                .extension
                .as_ref()
                .is_some_and(|extension| extension.header_name.is_some() || extension.single.is_some())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value as Json, json};
    use sfv::{Dictionary, FieldType as _, Parser};

    use super::*;
    use crate::flag::Reason;

    const NOW: u64 = 1_700_000_000;

    fn set(flags: &Json) -> FlagSet {
        FlagSet::parse(json!({ "flags": flags }).to_string().as_bytes()).unwrap()
    }

    /// A flag that is on or off, with what else it says.
    fn switch(more: &Json) -> Json {
        let mut flag =
            json!({ "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": "off" });
        for (key, value) in more.as_object().unwrap() {
            flag[key] = value.clone();
        }
        flag
    }

    /// What a service is told, and how many flags were left out.
    fn told(set: &FlagSet, emit: &[&str], key: Option<&str>) -> (HeaderMap, usize) {
        let emit = if emit == ["*"] {
            Emit::All
        } else {
            Emit::Named(emit.iter().map(|name| (*name).into()).collect())
        };
        let emission = Emission::new(&emit, set, None);
        let mut headers = HeaderMap::new();
        let context = Context::of_texts(key, &[]);
        let told = emission.tell(set, &Asked::of(&context, NOW), &mut headers, &mut |_| {});
        (headers, told.dropped)
    }

    #[test]
    fn every_type_of_value_stands_in_the_header_as_itself() {
        let of =
            |value: Json| json!({ "state": "ENABLED", "variants": { "v": value }, "defaultVariant": "v" });
        let named =
            |name: &str| json!({ "state": "ENABLED", "variants": { name: true }, "defaultVariant": name });
        let set = set(&json!({
            "true": of(json!(true)), "false": of(json!(false)), "whole": of(json!(25)), "float": of(json!(25.0)),
            "half": of(json!(-0.5)), "fine": of(json!(0.1234)), "huge": of(json!(1_000_000_000_000_000_i64)),
            "text": of(json!("dark \"x\"")), "umlaut": of(json!("grün")), "object": of(json!({ "a": 1 })),
            "digit": named("1st"), "strange": named("ä b"), "none": { "state": "ENABLED", "variants": { "a": 1 } },
            "off": { "state": "DISABLED", "variants": { "a": 1 }, "defaultVariant": "a" },
            "Upper": { "state": "ENABLED", "variants": { "a": 1, "b": 0.5 }, "defaultVariant": "a",
                "x-gilmok": { "header": { "name": "upper" } } },
        }));
        let (headers, dropped) = told(&set, &["*"], None);
        let expected = "upper=1.0;v=a, digit;v=\"1st\", false=?0;v=v, fine=\"0.1234\";v=v, float=25;v=v, half=-0.5;v=v, \
                    huge=\"1000000000000000\";v=v, object=v;v=v, strange;v=%\"%c3%a4 b\", text=\"dark \\\"x\\\"\";v=v, \
                    true;v=v, umlaut=%\"gr%c3%bcn\";v=v, whole=25;v=v";
        assert_eq!((headers["feature-flags"].to_str().unwrap(), dropped), (expected, 0));
        let dictionary: Dictionary = Parser::new(headers["feature-flags"].as_bytes()).parse().unwrap();
        assert_eq!(dictionary.serialize().as_deref(), Some(expected), "read back as it was written");
    }

    #[test]
    fn what_depends_on_the_request_is_told_behind_what_does_not() {
        let set = set(&json!({
            "a": switch(&json!({ "targeting": { "if": [{ "==": [{ "var": "targetingKey" }, "ann"] }, "on"] },
                "x-gilmok": { "header": { "single": "Feature-A" } } })),
            "b": switch(&json!({ "x-gilmok": { "header": { "single": "Feature-B" } } })),
            "broken": switch(&json!({ "targeting": { "x": 1 } })),
        }));
        let of = |key: &str| {
            let (headers, _) = told(&set, &["*"], Some(key));
            ["feature-flags", "feature-a", "feature-b"].map(|name| headers[name].to_str().unwrap().to_owned())
        };
        assert_eq!(of("ann"), ["b=?0;v=off, a;v=on", "true", "false"]);
        assert_eq!(of("bob"), ["b=?0;v=off, a=?0;v=off", "false", "false"]);
        let names: Vec<&str> = set.single_headers().iter().map(http::HeaderName::as_str).collect();
        assert_eq!(names, ["feature-a", "feature-b"]);
        assert!(told(&set, &[], Some("ann")).0.is_empty());
        let mut evaluated = Vec::new();
        let emission = Emission::new(&Emit::All, &set, None);
        let context = Context::default();
        emission.tell(&set, &Asked::of(&context, NOW), &mut HeaderMap::new(), &mut |found| {
            evaluated.push((set.flags[found.flag].key(), found.variant, found.reason.map(Reason::as_str)));
        });
        // Variants are in the order of their names: `off` is the first.
        let expected =
            [("b", Some(0), Some("STATIC")), ("a", Some(0), Some("DEFAULT")), ("broken", None, None)];
        assert_eq!(evaluated, expected);
        for (name, is_one, is_like) in [
            ("feature-a", true, true),
            ("feature_a", false, true),
            ("feature-c", false, false),
            ("feature", false, false),
        ] {
            assert_eq!(
                (set.is_single_header(name), set.is_like_single_header(name)),
                (is_one, is_like),
                "{name}"
            );
        }
    }

    #[test]
    fn who_is_told_a_guarded_flag_is_told_apart_and_nobody_else() {
        let share = json!({ "targeting": { "fractional": [["on", 1], ["off", 1]] } });
        let mut guarded = share.clone();
        guarded["x-gilmok"] = json!({ "guard": { "metrics": ["errors"] } });
        let set = set(&json!({
            "a": switch(&share), "b": switch(&guarded),
            "c": switch(&json!({ "x-gilmok": { "guard": { "metrics": ["errors"] } } })),
        }));
        let subject = |emit: &[&str], key: Option<&str>| {
            let emission =
                Emission::new(&Emit::Named(emit.iter().map(|name| (*name).into()).collect()), &set, None);
            let context = Context::of_texts(key, &[]);
            let told = emission.tell(&set, &Asked::of(&context, NOW), &mut HeaderMap::new(), &mut |_| {});
            assert_eq!(emission.is_guarded(), emit.contains(&"b"));
            told.subject
        };
        assert!(subject(&["a", "b"], Some("ann")).is_some());
        assert_eq!(subject(&["b"], Some("ann")), subject(&["b", "c"], Some("ann")));
        assert_ne!(subject(&["b"], Some("ann")), subject(&["b"], Some("bob")));
        for (emit, key) in [(&["a", "c"][..], Some("ann")), (&["b"], None), (&["b"], Some(""))] {
            assert_eq!(subject(emit, key), None, "{emit:?}, {key:?}");
        }
    }

    #[test]
    fn a_header_is_never_longer_than_it_may_be() {
        let flags: Map<String, Json> = (0..300)
            .map(|at| {
                let dynamic = json!({ "targeting": { "if": [true, "on"] } });
                (format!("flag-{at:03}"), switch(&if at % 3 == 0 { dynamic } else { json!({}) }))
            })
            .collect();
        let set = set(&Json::Object(flags));
        let (headers, dropped) = told(&set, &["*"], None);
        let text = headers["feature-flags"].to_str().unwrap();
        assert!(text.len() <= HEADER_BYTES_MAX && text.len() > HEADER_BYTES_MAX - 40, "{}", text.len());
        assert_eq!(text.split(", ").count() + dropped, 300);
        let parsed: Dictionary = Parser::new(text.as_bytes()).parse().unwrap();
        assert_eq!(parsed.len() + dropped, 300);
    }

    #[test]
    fn what_a_plain_header_cannot_hold_is_encoded() {
        let value = |value: Json| {
            let flag = json!({ "state": "ENABLED", "variants": { "v 1": value }, "defaultVariant": "v 1",
            "x-gilmok": { "header": { "single": "X-Plain" } } });
            let (headers, _) = told(&set(&json!({ "a": flag })), &["a"], None);
            headers.get("x-plain").map(|value| value.to_str().unwrap().to_owned())
        };
        for (given, expected) in [
            (json!("dark mode"), Some("dark mode")),
            (json!(" x"), Some("%20x")),
            (json!("50 %, ä\n"), Some("50%20%25,%20%C3%A4%0A")),
            (json!(0.5), Some("0.5")),
            (json!({ "a": 1 }), Some("v 1")),
            (json!(""), Some("")),
            (json!("x".repeat(2_000)), None),
        ] {
            assert_eq!(value(given.clone()).as_deref(), expected, "{given}");
        }
    }
}
