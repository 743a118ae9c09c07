//! What a flag is for somebody: kill switch, state, a tester's override, prerequisites, targeting, share, default, in this order.

use std::fmt;

use serde_json::{Map, Value as Json};

use super::context::Context;
use super::extension::{Buckets, Share};
use super::overrides::Overrides;
use super::rule::value::{Stopped, Value};
use super::rule::{Machine, Outcome, Rule};
use super::{Flag, FlagSet, FlagType, Targeting, Variant};

/// Who asks, when, and what traffic would do with them.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    pub context: &'a Context<'a>,
    /// Seconds since 1970.
    pub now: u64,
    /// Whether whoever asks is on the candidate of a service; `None` where nobody can say.
    pub follows: &'a dyn Fn(&str) -> Option<bool>,
    /// What a tester may see instead.
    pub overrides: Overrides<'a>,
}

/// What a flag is for somebody.
#[derive(Clone, Copy, Debug)]
pub struct Evaluation<'s> {
    set: &'s FlagSet,
    flag: &'s Flag,
    /// Place in the flag's variants; without one, applications keep the default that they have in their code.
    variant: Option<usize>,
    pub reason: Reason,
    pub detail: Option<Detail<'s>>,
}

/// What an evaluation came to, by places: what is counted of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Place in [`FlagSet::flags`].
    pub flag: usize,
    /// Place in [`Flag::variants`].
    pub variant: Option<usize>,
    /// `None`: it failed.
    pub reason: Option<Reason>,
}

/// Why, in OpenFeature's words. An evaluation that failed is a [`Failure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Targeting said nothing, or there is no default.
    Default,
    /// It is disabled, or killed; the latter with a value.
    Disabled,
    /// A share decided.
    Split,
    /// Everybody gets this.
    Static,
    /// Targeting decided.
    TargetingMatch,
}

/// Why, where OpenFeature has no word for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail<'s> {
    KillSwitch,
    /// A tester's header says so.
    Override,
    /// This flag has another variant than is required.
    Prerequisite(&'s str),
}

/// Why there is no evaluation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: ErrorCode,
    /// In words for a person.
    pub what: String,
}

/// What kind of failure, in OpenFeature's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    FlagNotFound,
    /// The rule gave a variant that there is none of, or took too long.
    General,
    /// The rule cannot be evaluated.
    ParseError,
    TypeMismatch,
}

/// What an application asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Boolean,
    Float,
    Integer,
    Object,
    String,
}

impl fmt::Debug for Asked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked").field("context", self.context).field("now", &self.now).finish_non_exhaustive()
    }
}

/// Nobody follows anything: for those who ask without a mesh.
fn nobody_follows(_: &str) -> Option<bool> {
    None
}

impl<'a> Asked<'a> {
    /// Of somebody whom no service's traffic is known of.
    #[must_use]
    pub fn of(context: &'a Context<'a>, now: u64) -> Self {
        Self { context, now, follows: &nobody_follows, overrides: Overrides::default() }
    }
}

impl FlagSet {
    /// What a flag is for somebody.
    ///
    /// # Errors
    /// There is no such flag, or its rule cannot be evaluated.
    pub fn evaluate(&self, key: &str, asked: &Asked<'_>) -> Result<Evaluation<'_>, Failure> {
        match self.get(key) {
            Some(flag) => self.evaluate_flag(flag, asked),
            None => Err(Failure { code: ErrorCode::FlagNotFound, what: "there is no such flag".to_owned() }),
        }
    }

    /// The same for an application that wants a value of one type.
    ///
    /// # Errors
    /// As [`FlagSet::evaluate`], or the value is of another type.
    pub fn evaluate_as(
        &self,
        key: &str,
        expected: Expected,
        asked: &Asked<'_>,
    ) -> Result<Evaluation<'_>, Failure> {
        let evaluation = self.evaluate(key, asked)?;
        match evaluation.value() {
            Some(value) if !expected.is_type_of(value) => {
                let found = FlagType::of(value).map_or("something else", FlagType::as_str);
                let what = format!("the value is of type {found}, not {}", expected.as_str());
                Err(Failure { code: ErrorCode::TypeMismatch, what })
            }
            Some(_) | None => Ok(evaluation),
        }
    }

    /// What one of this set's flags is for somebody.
    ///
    /// # Errors
    /// Its rule cannot be evaluated.
    pub fn evaluate_flag<'s>(&'s self, flag: &'s Flag, asked: &Asked<'_>) -> Result<Evaluation<'s>, Failure> {
        let served = |variant: Option<usize>, reason: Reason| Evaluation {
            set: self,
            flag,
            variant,
            reason,
            detail: None,
        };
        let off = flag.extension.as_ref().and_then(|extension| extension.off);
        if flag.is_killed() {
            return Ok(Evaluation { detail: Some(Detail::KillSwitch), ..served(off, Reason::Disabled) });
        }
        if !flag.is_enabled {
            return Ok(served(None, Reason::Disabled));
        }
        if let Some(variant) = asked.overrides.of(flag) {
            let detail = Some(Detail::Override);
            return Ok(Evaluation { detail, ..served(Some(variant), Reason::TargetingMatch) });
        }
        for required in flag.extension.iter().flat_map(|extension| &extension.prerequisites) {
            // Circles and long ways were refused when the set was read.
            let other = &self.flags[required.flag];
            if !self.evaluate_flag(other, asked).is_ok_and(|found| found.variant == Some(required.variant)) {
                let detail = Some(Detail::Prerequisite(&other.key));
                return Ok(Evaluation { detail, ..served(off, Reason::Default) });
            }
        }
        match &flag.targeting {
            Targeting::None => {}
            Targeting::Broken(what) => {
                return Err(Failure { code: ErrorCode::ParseError, what: what.clone().into_string() });
            }
            Targeting::Rule(rule) => {
                let outcome = self.machine(flag, asked).run(rule);
                let is_split = flag.tells_splits && outcome.split.is_some();
                if let Some(variant) = chosen(flag, outcome)? {
                    let reason = if is_split { Reason::Split } else { Reason::TargetingMatch };
                    return Ok(served(Some(variant), reason));
                }
            }
        }
        let share = flag.extension.as_ref().and_then(|extension| extension.share.as_ref());
        let variant = match share {
            None => None,
            Some(Share::Buckets(buckets)) => buckets.place(asked).map(|place| Some(buckets.at(place))),
            Some(Share::Follow(follow)) => (asked.follows)(follow.service.as_str())
                .map(|is_on_candidate| if is_on_candidate { Some(follow.variant) } else { flag.default }),
        };
        if let Some(Some(variant)) = variant {
            return Ok(served(Some(variant), Reason::Split));
        }
        let is_static = matches!(flag.targeting, Targeting::None) && share.is_none();
        let reason = if is_static && flag.default.is_some() { Reason::Static } else { Reason::Default };
        Ok(served(flag.default, reason))
    }

    pub(super) fn machine<'a>(&self, flag: &'a Flag, asked: &Asked<'a>) -> Machine<'a> {
        Machine::new(asked.context, &flag.key, asked.now, self.hashing)
    }
}

/// The variant that a rule chose; `None` if it left the choice to others.
fn chosen(flag: &Flag, outcome: Outcome<'_>) -> Result<Option<usize>, Failure> {
    let failed = |what: String| Failure { code: ErrorCode::General, what };
    let name = match outcome.value {
        Err(Stopped::Steps) => return Err(failed("the rule takes too many steps".to_owned())),
        Err(Stopped::Depth) => return Err(failed("the rule makes lists that nest too deeply".to_owned())),
        Ok(Value::Null) => return Ok(None),
        Ok(Value::Boolean(value)) => flag.place_of(if value { "true" } else { "false" }),
        Ok(Value::Number(number)) => flag.place_of(&number.text()),
        Ok(Value::Text(text)) => flag.place_of(text.as_str()),
        Ok(Value::List(_) | Value::Object(_) | Value::Whole) => None,
    };
    name.map(Some).ok_or_else(|| failed("the rule gave a variant that the flag does not have".to_owned()))
}

impl Buckets {
    /// The place of whoever asks, if there is something that tells them apart.
    pub(super) fn place(&self, asked: &Asked<'_>) -> Option<u32> {
        let unit = asked.context.get(&self.unit)?;
        let unit = unit.as_text().filter(|unit| !unit.is_empty())?;
        Some(self.salt.place(unit.as_bytes()))
    }
}

impl<'s> Evaluation<'s> {
    #[must_use]
    pub fn flag(&self) -> &'s Flag {
        self.flag
    }

    #[must_use]
    pub fn variant(&self) -> Option<&'s Variant> {
        self.variant.map(|at| &self.flag.variants[at])
    }

    /// The variant's place in [`Flag::variants`].
    #[must_use]
    pub fn place(&self) -> Option<usize> {
        self.variant
    }

    /// Without one, applications keep the default that they have in their code.
    #[must_use]
    pub fn value(&self) -> Option<&'s Json> {
        self.variant().map(Variant::value)
    }

    /// What set and flag say of themselves, and [`Evaluation::detail`] as `gilmok.reason`.
    #[must_use]
    pub fn metadata(&self) -> Map<String, Json> {
        let mut metadata = self.set.metadata.clone();
        for (key, value) in self.flag.metadata.iter().flat_map(|metadata| metadata.iter()) {
            metadata.insert(key.clone(), value.clone());
        }
        if let Some(detail) = self.detail {
            metadata.insert("gilmok.reason".to_owned(), Json::from(detail.to_string()));
        }
        metadata
    }
}

impl Finding {
    /// Of the flag at this place.
    #[must_use]
    pub fn of(flag: usize, evaluation: Option<&Evaluation<'_>>) -> Self {
        let variant = evaluation.and_then(Evaluation::place);
        Self { flag, variant, reason: evaluation.map(|evaluation| evaluation.reason) }
    }
}

impl Reason {
    /// OpenFeature's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Default => "DEFAULT",
            Self::Disabled => "DISABLED",
            Self::Split => "SPLIT",
            Self::Static => "STATIC",
            Self::TargetingMatch => "TARGETING_MATCH",
        }
    }
}

impl ErrorCode {
    /// OpenFeature's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FlagNotFound => "FLAG_NOT_FOUND",
            Self::General => "GENERAL",
            Self::ParseError => "PARSE_ERROR",
            Self::TypeMismatch => "TYPE_MISMATCH",
        }
    }
}

impl Expected {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Boolean => "boolean",
            Self::Float => "float",
            Self::Integer => "integer",
            Self::Object => "object",
            Self::String => "string",
        }
    }

    /// Whether a value can be given to whoever asks for this. A whole number is a float too.
    fn is_type_of(self, value: &Json) -> bool {
        match self {
            Self::Boolean => value.is_boolean(),
            Self::Float => value.is_number(),
            Self::Integer => value.as_f64().is_some_and(|number| number.fract() == 0.0),
            Self::Object => value.is_object(),
            Self::String => value.is_string(),
        }
    }
}

impl fmt::Display for Detail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillSwitch => f.write_str("kill-switch"),
            Self::Override => f.write_str("override"),
            Self::Prerequisite(flag) => write!(f, "prerequisite:{flag}"),
        }
    }
}

impl Flag {
    /// The rule that decides, if it has one that can.
    pub(super) fn rule(&self) -> Option<&Rule> {
        match &self.targeting {
            Targeting::Rule(rule) => Some(rule),
            Targeting::Broken(_) | Targeting::None => None,
        }
    }
}
