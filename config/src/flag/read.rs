//! Reading flagd's document: what flagd refuses is a fault, what it only warns of is a warning.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value as Json};

use super::extension::{Extension, Prerequisite, Requirement};
use super::rule::{Compiler, Evaluators, Hashing};
use super::{
    FLAGS_MAX, Flag, FlagSet, FlagType, GUARDED_MAX, KEY_BYTES_MAX, Targeting, VARIANTS_MAX, Variant, header,
};
use crate::grammar::{Faults, Value};
use crate::hash::content_hash;
use crate::node::{Kind, Node};
use crate::problem::{PROBLEMS_MAX, Problem, Problems, shown};

/// Most entries of one metadata.
const METADATA_MAX: usize = 100;
/// Most `$evaluators`.
const EVALUATORS_MAX: usize = 10_000;
/// Most flags that have to be evaluated for one, itself included.
const EVALUATIONS_MAX: usize = 64;
/// What JavaScript can count to: beyond it, clients get another number.
const WHOLE_MAX: f64 = 9_007_199_254_740_991.0;

impl FlagSet {
    /// Reads flagd's JSON. What flagd would only warn of is kept as [`FlagSet::warnings`].
    ///
    /// # Errors
    /// Every fault, with its path.
    pub fn parse(text: &[u8]) -> Result<Self, Problems> {
        let node = Node::parse_json(text)?;
        let faults = Faults::new();
        let set = Self::read(&Value::root(&node, &faults));
        faults.into_result(set).map(Option::unwrap_or_default)
    }

    pub(crate) fn read(value: &Value<'_>) -> Option<Self> {
        let mut reader = Reader::default();
        // Other keys are allowed, as in flagd: `$schema`, and what other tools write there.
        let mut table = value.table()?;
        let (metadata, evaluators) = (table.optional("metadata"), table.optional("$evaluators"));
        let flags = table.required("flags");
        reader.set_metadata(metadata.as_ref());
        reader.evaluators(evaluators.as_ref());
        let flags = flags?;
        let mut read = Vec::new();
        let mut requirements = Vec::new();
        for (key, value) in entries(&flags)? {
            let Some((flag, required)) = reader.flag(key, &value) else { continue };
            requirements.extend(required.into_iter().map(|required| (read.len(), required)));
            read.push(flag);
        }
        let fingerprint = content_hash(value.node().to_json().to_string().as_bytes()).into();
        let set = reader.into_set(read, &requirements, &flags)?;
        Some(Self { fingerprint, ..set })
    }
}

/// The flags, in the order of their keys: an object, or a list of objects that say their key.
fn entries<'d>(flags: &Value<'d>) -> Option<BTreeMap<&'d str, Value<'d>>> {
    let mut entries = BTreeMap::new();
    if flags.is_list() {
        for item in flags.items()? {
            let key = item.table().and_then(|mut table| table.required("key")).and_then(|key| key.text());
            let Some(key) = key else { continue };
            if entries.contains_key(key) {
                item.fault(format!("the key `{}` stands twice", shown(key)), "one flag of a key in a set");
                continue;
            }
            entries.insert(key, item);
        }
    } else {
        entries.extend(flags.entries()?);
    }
    if entries.len() > FLAGS_MAX {
        flags.fault(format!("{} flags", entries.len()), format!("at most {FLAGS_MAX}"));
        return None;
    }
    Some(entries)
}

/// What is known while a document is read.
#[derive(Default)]
struct Reader {
    metadata: Map<String, Json>,
    hashing: Hashing,
    tells_splits: bool,
    evaluators: Evaluators,
    warnings: Vec<Problem>,
}

impl Reader {
    fn warn(&mut self, value: &Value<'_>, below: &str, what: impl Into<String>) {
        if self.warnings.len() < PROBLEMS_MAX {
            let path = format!("{}{below}", value.path());
            self.warnings.push(Problem { path, line: value.line(), what: what.into(), hint: None });
        }
    }

    fn set_metadata(&mut self, value: Option<&Value<'_>>) {
        let Some(value) = value else { return };
        self.metadata = self.metadata(value).unwrap_or_default();
        let version = match self.metadata.get("hashVersion") {
            None => Some(Hashing::default()),
            Some(Json::Number(number)) => hashing(&number.to_string()),
            Some(Json::String(text)) => hashing(text),
            Some(_) => None,
        };
        match version {
            Some(version) => self.hashing = version,
            None => value.fault(
                "`hashVersion` says how `fractional` hashes, and is none that can be done",
                "3, or 2 for sets that were made for flagd core 0.15 and 0.16; 1 moved users with their weights",
            ),
        }
        self.tells_splits = self.metadata.get("reasons").is_some_and(|reasons| reasons == "openfeature");
    }

    /// Texts, numbers and booleans; what else stands there is left out.
    fn metadata(&mut self, value: &Value<'_>) -> Option<Map<String, Json>> {
        let entries = value.entries()?;
        if entries.len() > METADATA_MAX {
            value.fault(format!("{} entries", entries.len()), format!("at most {METADATA_MAX}"));
            return None;
        }
        let mut metadata = Map::new();
        for (key, entry) in entries {
            let json = entry.node().to_json();
            if key.is_empty() || matches!(json, Json::Array(_) | Json::Null | Json::Object(_)) {
                self.warn(&entry, "", "metadata are texts, numbers and booleans; this is left out");
            } else {
                metadata.insert(key.to_owned(), json);
            }
        }
        Some(metadata)
    }

    fn evaluators(&mut self, value: Option<&Value<'_>>) {
        let Some(value) = value else { return };
        let Some(entries) = value.entries() else { return };
        if entries.len() > EVALUATORS_MAX {
            value.fault(format!("{} evaluators", entries.len()), format!("at most {EVALUATORS_MAX}"));
            return;
        }
        // They do not see each other, as in flagd.
        let nobody = Evaluators::new();
        let mut evaluators = Evaluators::new();
        for (name, entry) in entries {
            match Compiler::new(&nobody).compile(entry.node()) {
                Err(hint) => entry.fault("the rule is too large", hint),
                Ok(compiled) => {
                    for (place, what) in &compiled.warnings {
                        self.warn(&entry, place, what);
                    }
                    evaluators.insert(name.to_owned(), compiled.into_evaluator());
                }
            }
        }
        self.evaluators = evaluators;
    }

    fn flag<'d>(&mut self, key: &str, value: &Value<'d>) -> Option<(Flag, Vec<Requirement<'d>>)> {
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            value.fault(format!("a key of {} bytes", key.len()), format!("1 to {KEY_BYTES_MAX}"));
            return None;
        }
        let mut table = value.table()?;
        let state = table.required("state").and_then(|v| v.choice(&[("ENABLED", true), ("DISABLED", false)]));
        let variants = table.required("variants");
        let default = table.optional("defaultVariant");
        let targeting = table.optional("targeting");
        let metadata = table.optional("metadata").and_then(|v| self.metadata(&v));
        let extension = table.optional("x-gilmok");
        let (mut variants, kind) = self.variants(&variants?)?;
        let default = match default {
            Some(value) => read_default(&value, &variants)?,
            None => None,
        };
        let (targeting_rule, reads_time, shares) = match &targeting {
            Some(value) => self.targeting(value, &variants)?,
            None => (Targeting::None, false, 0),
        };
        let (extension, requirements) = match &extension {
            Some(value) => {
                let (extension, requirements) = Extension::read(value, key, &variants, default, shares)?;
                (Some(Box::new(extension)), requirements)
            }
            None => (None, Vec::new()),
        };
        let named = extension.as_ref().and_then(|extension| extension.header_name.as_deref());
        if let Some(name) = named.or_else(|| header::is_key(key).then_some(key)) {
            for variant in &mut variants {
                variant.member = header::member(name, variant, kind).map(String::into_boxed_str);
            }
        }
        let flag = Flag {
            key: key.into(),
            is_enabled: state?,
            kind,
            variants: variants.into(),
            default,
            targeting: targeting_rule,
            reads_time,
            tells_splits: self.tells_splits || extension.is_some(),
            metadata: metadata.filter(|metadata| !metadata.is_empty()).map(Box::new),
            extension,
        };
        Some((flag, requirements))
    }

    fn variants(&mut self, value: &Value<'_>) -> Option<(Vec<Variant>, Option<FlagType>)> {
        let entries = value.entries()?;
        if entries.is_empty() || entries.len() > VARIANTS_MAX {
            value.fault(format!("{} variants", entries.len()), format!("1 to {VARIANTS_MAX}"));
            return None;
        }
        let mut variants = Vec::with_capacity(entries.len());
        let mut kinds = Vec::with_capacity(entries.len());
        for (name, entry) in &entries {
            if name.is_empty() || name.len() > KEY_BYTES_MAX {
                entry.fault(format!("a name of {} bytes", name.len()), format!("1 to {KEY_BYTES_MAX}"));
                return None;
            }
            match entry.node().kind {
                Kind::Float(number) if !number.is_finite() => {
                    entry.fault(format!("{number} is no value"), "a number that JSON has");
                    return None;
                }
                Kind::Float(number) if number.fract() == 0.0 && number.abs() > WHOLE_MAX => {
                    self.warn(
                        entry,
                        "",
                        "a whole number beyond 9007199254740991, of which clients get another one",
                    );
                }
                #[expect(clippy::cast_precision_loss, reason = "compared with a bound far from what is lost")]
                Kind::Integer(number) if (number as f64).abs() > WHOLE_MAX => {
                    self.warn(
                        entry,
                        "",
                        "a whole number beyond 9007199254740991, of which clients get another one",
                    );
                }
                _ => {}
            }
            let json = entry.node().to_json();
            let kind = FlagType::of(&json);
            if kind.is_none() {
                self.warn(entry, "", "a variant is a boolean, a text, a number or an object");
            }
            kinds.push(kind);
            variants.push(Variant { name: (*name).into(), value: json, member: None });
        }
        let kind = kinds.iter().copied().reduce(|a, b| a.zip(b).and_then(|(a, b)| a.and(b))).flatten();
        if kind.is_none() && kinds.iter().all(Option::is_some) {
            self.warn(value, "", "the variants are of several types");
        }
        Some((variants, kind))
    }

    /// The rule, whether it may read the clock, and how many shares it has.
    fn targeting(&mut self, value: &Value<'_>, variants: &[Variant]) -> Option<(Targeting, bool, usize)> {
        match &value.node().kind {
            Kind::Null => return Some((Targeting::None, false, 0)),
            Kind::Table(entries) if entries.is_empty() => return Some((Targeting::None, false, 0)),
            Kind::Table(_) => {}
            _ => self.warn(value, "", "a rule is an object"),
        }
        let compiled = match Compiler::new(&self.evaluators).compile(value.node()) {
            Ok(compiled) => compiled,
            Err(hint) => {
                value.fault("the rule is too large", hint);
                return None;
            }
        };
        for (place, what) in &compiled.warnings {
            self.warn(value, place, what);
        }
        let targeting = match compiled.rule {
            Err(what) => Targeting::Broken(what.into()),
            Ok(rule) => {
                let mut unknown = Vec::new();
                rule.each_result(&mut |name| {
                    let is_known = variants.binary_search_by(|variant| (*variant.name).cmp(name)).is_ok();
                    if !is_known && !unknown.iter().any(|other| other == name) && unknown.len() < VARIANTS_MAX
                    {
                        unknown.push(name.to_owned());
                    }
                });
                // A rule that asks a question has answers that nobody may have thought of.
                for name in unknown.iter().filter(|name| !["true", "false"].contains(&name.as_str())) {
                    self.warn(value, "", format!("there is no variant `{}`", shown(name)));
                }
                Targeting::Rule(rule)
            }
        };
        Some((targeting, compiled.reads_time, compiled.shares))
    }

    /// The set, once what flags say of each other is checked.
    fn into_set(
        self,
        mut flags: Vec<Flag>,
        requirements: &[(usize, Requirement<'_>)],
        value: &Value<'_>,
    ) -> Option<FlagSet> {
        let by_key: HashMap<Box<str>, usize> =
            flags.iter().enumerate().map(|(at, flag)| (flag.key.clone(), at)).collect();
        for (of, required) in requirements {
            let Some(flag) = by_key.get(required.flag).copied() else {
                required
                    .at
                    .fault(format!("there is no flag `{}`", shown(required.flag)), "a flag of this set");
                continue;
            };
            let Some(variant) = flags[flag].place_of(required.variant) else {
                let what = format!("`{}` has no variant `{}`", shown(required.flag), shown(required.variant));
                required.at.fault(what, "a variant of that flag");
                continue;
            };
            if let Some(extension) = &mut flags[*of].extension {
                extension.prerequisites.push(Prerequisite { flag, variant });
            }
        }
        check_prerequisites(&flags, requirements);
        check_guards(&flags, value);
        let single_headers = check_headers(&flags, value)?;
        Some(FlagSet {
            flags: flags.into(),
            by_key,
            metadata: self.metadata,
            hashing: self.hashing,
            single_headers,
            fingerprint: Box::default(),
            warnings: self.warnings,
        })
    }
}

fn hashing(version: &str) -> Option<Hashing> {
    [Hashing::V2, Hashing::V3].into_iter().find(|hashing| hashing.number().to_string() == version)
}

/// Absent, null and empty say none.
#[expect(clippy::option_option, reason = "faulty, none and one are three")]
fn read_default(value: &Value<'_>, variants: &[Variant]) -> Option<Option<usize>> {
    if let Kind::Null = value.node().kind {
        return Some(None);
    }
    if value.text()?.is_empty() {
        return Some(None);
    }
    super::extension::read_variant(value, variants).map(Some)
}

/// Prerequisites must not come back to a flag, and must not take too long.
fn check_prerequisites(flags: &[Flag], requirements: &[(usize, Requirement<'_>)]) {
    let mut costs: Vec<Option<Cost>> = flags.iter().map(|_| None).collect();
    for (of, required) in requirements {
        match cost(*of, flags, &mut costs) {
            Cost::Endless => {
                required.at.fault(
                    format!(
                        "the prerequisites of `{}` lead back to it, or into a circle",
                        shown(&flags[*of].key)
                    ),
                    "a flag that does not require this one",
                );
            }
            Cost::Evaluations(many) if many > EVALUATIONS_MAX => {
                required.at.fault(
                    format!(
                        "more than {EVALUATIONS_MAX} flags are evaluated for `{}`",
                        shown(&flags[*of].key)
                    ),
                    "fewer prerequisites",
                );
            }
            Cost::Evaluations(_) => {}
        }
    }
}

/// How many evaluations one takes.
#[derive(Clone, Copy)]
enum Cost {
    Endless,
    Evaluations(usize),
}

/// Walks prerequisites with a stack of its own: chains may be as long as the set.
fn cost(of: usize, flags: &[Flag], costs: &mut [Option<Cost>]) -> Cost {
    let required = |flag: usize| flags[flag].extension.iter().flat_map(|extension| &extension.prerequisites);
    let mut open = vec![of];
    while let Some(flag) = open.last().copied() {
        if let Some(Cost::Evaluations(_)) = costs[flag] {
            open.pop();
            continue;
        }
        let unknown: Vec<usize> =
            required(flag).map(|other| other.flag).filter(|other| costs[*other].is_none()).collect();
        if unknown.is_empty() {
            let each = required(flag).map(|other| match costs[other.flag] {
                Some(Cost::Evaluations(many)) => Some(many),
                Some(Cost::Endless) | None => None,
            });
            // Capped, since sums of sums double with each flag.
            let sum = each.sum::<Option<usize>>().map(|sum| (sum + 1).min(EVALUATIONS_MAX + 1));
            costs[flag] = Some(sum.map_or(Cost::Endless, Cost::Evaluations));
            open.pop();
        } else {
            // Visited for the second time while open: it waits for itself.
            costs[flag] = Some(Cost::Endless);
            open.extend(unknown);
        }
    }
    costs[of].unwrap_or(Cost::Endless)
}

/// Of each guarded flag it is remembered who got what.
fn check_guards(flags: &[Flag], value: &Value<'_>) {
    let guarded = flags.iter().filter(|flag| flag.guard().is_some()).count();
    if guarded > GUARDED_MAX {
        value.fault(format!("{guarded} flags with a guard"), format!("at most {GUARDED_MAX}"));
    }
}

/// Two flags with one name would overwrite each other. The headers that single flags have.
fn check_headers(flags: &[Flag], value: &Value<'_>) -> Option<Vec<http::HeaderName>> {
    let mut names: HashMap<&str, &str> = HashMap::new();
    // Applications that do not tell `_` from `-` could not tell these apart.
    let mut singles: BTreeMap<String, (&http::HeaderName, &str)> = BTreeMap::new();
    let mut is_sound = true;
    for flag in flags {
        let extension = flag.extension.as_deref();
        let named = extension.and_then(|extension| extension.header_name.as_deref()).unwrap_or(&flag.key);
        if let Some(other) = names.insert(named, &flag.key) {
            let (a, b) = (shown(other), shown(&flag.key));
            value.fault(
                format!("`{a}` and `{b}` are both told as `{}`", shown(named)),
                "another `header.name`",
            );
            is_sound = false;
        }
        let Some(single) = extension.and_then(|extension| extension.single.as_ref()) else { continue };
        let likeness = single.name.as_str().replace('_', "-");
        if let Some((_, other)) = singles.insert(likeness, (&single.name, &flag.key)) {
            let (a, b) = (shown(other), shown(&flag.key));
            value.fault(
                format!("`{a}` and `{b}` both have the header `{}`", single.name),
                "another `header.single`",
            );
            is_sound = false;
        }
    }
    is_sound.then(|| singles.into_values().map(|(name, _)| name.clone()).collect())
}
