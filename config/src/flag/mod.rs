//! Feature flags in flagd's format: which variant of a flag somebody gets, why, and how an application is told.
//!
//! A set is read and compiled once ([`FlagSet::parse`]) and then only looked at: [`FlagSet::evaluate`] is pure, with
//! the time and everything else that is not in the set as arguments. `docs/flags.md` tells the format.

mod context;
mod emit;
mod evaluate;
mod explain;
mod extension;
mod guard;
mod header;
mod overrides;
mod read;
mod rule;

#[cfg(test)]
mod tests;

pub use context::{Context, TARGETING_KEY};
pub use emit::{Emission, Emit, HEADER_BYTES_MAX, ServiceFlags, Told};
pub use evaluate::{Asked, Detail, ErrorCode, Evaluation, Expected, Failure, Finding, Reason};
pub use extension::{Purpose, WHY_BYTES_MAX};
pub use guard::{GUARDED_VARIANTS_MAX, Guard, Metric};
pub use header::FEATURE_FLAGS;
pub use overrides::{
    FEATURE_FLAGS_OVERRIDE, OVERRIDE_TTL_MAX, OVERRIDES_MAX, OverrideFault, OverrideKey, Overrides,
};
pub use rule::Hashing;

use std::collections::HashMap;

use http::HeaderName;
use serde_json::{Map, Value as Json};

use crate::problem::Problem;
use extension::{Extension, Share};
use rule::Rule;

/// Longest text of a set, in bytes.
pub const SET_BYTES_MAX: usize = 16 << 20;
/// Most flags of one set.
pub const FLAGS_MAX: usize = 20_000;
/// Most variants of one flag.
pub const VARIANTS_MAX: usize = 1_000;
/// Longest key of a flag and longest name of a variant, in bytes.
pub const KEY_BYTES_MAX: usize = 256;
/// Most guarded flags of one set.
pub const GUARDED_MAX: usize = 256;
/// The metadata that says to which set a flag belongs.
const FLAG_SET_ID: &str = "flagSetId";

/// A set of flags, checked and compiled.
#[derive(Debug, Default)]
pub struct FlagSet {
    /// In the order of their keys.
    flags: Box<[Flag]>,
    by_key: HashMap<Box<str>, usize>,
    metadata: Map<String, Json>,
    hashing: Hashing,
    /// In the order of `header::likeness`.
    single_headers: Vec<HeaderName>,
    fingerprint: Box<str>,
    warnings: Vec<Problem>,
}

/// One flag.
#[derive(Debug)]
pub struct Flag {
    key: Box<str>,
    is_enabled: bool,
    kind: Option<FlagType>,
    /// In the order of their names.
    variants: Box<[Variant]>,
    /// Place in `variants`.
    default: Option<usize>,
    targeting: Targeting,
    reads_time: bool,
    /// Whether `fractional` is told as a split, which flagd does not do.
    tells_splits: bool,
    // Boxed, because most flags have none.
    metadata: Option<Box<Map<String, Json>>>,
    extension: Option<Box<Extension>>,
}

/// One of the values that a flag may have.
#[derive(Debug)]
pub struct Variant {
    name: Box<str>,
    value: Json,
    /// The member of [`FEATURE_FLAGS`] that tells it, if the flag can be told there.
    member: Option<Box<str>>,
}

/// The type of all of a flag's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlagType {
    Boolean,
    /// Whether all are whole.
    Number {
        whole: bool,
    },
    Object,
    String,
}

/// What a flag says of those who are not like the others.
#[derive(Debug)]
enum Targeting {
    /// It cannot be evaluated, and this is why.
    Broken(Box<str>),
    None,
    Rule(Rule),
}

impl FlagSet {
    /// The flags, in the order of their keys.
    #[must_use]
    pub fn flags(&self) -> &[Flag] {
        &self.flags
    }

    /// A flag by its key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Flag> {
        self.place_of(key).map(|at| &self.flags[at])
    }

    /// A flag's place in [`FlagSet::flags`].
    #[must_use]
    pub fn place_of(&self, key: &str) -> Option<usize> {
        self.by_key.get(key).copied()
    }

    /// What is said of the set as a whole; what a flag says itself comes before it.
    #[must_use]
    pub fn metadata(&self) -> &Map<String, Json> {
        &self.metadata
    }

    /// How `fractional` hashes.
    #[must_use]
    pub fn hashing(&self) -> Hashing {
        self.hashing
    }

    /// The headers that single flags have for themselves: what nobody outside may say.
    #[must_use]
    pub fn single_headers(&self) -> &[HeaderName] {
        &self.single_headers
    }

    /// Whether a field is one of [`FlagSet::single_headers`].
    #[must_use]
    pub fn is_single_header(&self, name: &str) -> bool {
        self.like(name).is_some_and(|header| header.as_str() == name)
    }

    /// Whether applications that do not tell `_` from `-` would take a field for one of [`FlagSet::single_headers`].
    #[must_use]
    pub fn is_like_single_header(&self, name: &str) -> bool {
        self.like(name).is_some()
    }

    fn like(&self, name: &str) -> Option<&HeaderName> {
        let headers = &self.single_headers;
        let at = headers.binary_search_by(|header| header::likeness(header.as_str(), name)).ok()?;
        Some(&headers[at])
    }

    /// A hash of everything that the set says: the same text, the same answers.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The services that any flag follows.
    pub fn followed(&self) -> impl Iterator<Item = &str> {
        self.flags.iter().filter_map(Flag::follows)
    }

    /// To which set a flag belongs, by its own metadata or the set's `flagSetId`.
    #[must_use]
    pub fn id_of<'f>(&'f self, flag: &'f Flag) -> &'f str {
        let own = flag.metadata.as_ref().and_then(|metadata| metadata.get(FLAG_SET_ID));
        own.or_else(|| self.metadata.get(FLAG_SET_ID)).and_then(Json::as_str).unwrap_or_default()
    }

    /// What flagd would only warn of, with its place.
    #[must_use]
    pub fn warnings(&self) -> &[Problem] {
        &self.warnings
    }

    /// Whether any flag's value may change with nothing but the time.
    #[must_use]
    pub fn reads_time(&self) -> bool {
        self.flags.iter().any(|flag| flag.reads_time)
    }
}

impl Flag {
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The type of its values; `None` where they are of several.
    #[must_use]
    pub fn kind(&self) -> Option<FlagType> {
        self.kind
    }

    /// Its variants, in the order of their names.
    #[must_use]
    pub fn variants(&self) -> &[Variant] {
        &self.variants
    }

    /// A variant's place in [`Flag::variants`].
    #[must_use]
    pub fn place_of(&self, variant: &str) -> Option<usize> {
        self.variants.binary_search_by(|other| (*other.name).cmp(variant)).ok()
    }

    /// What it is served to those whom nothing else decides for.
    #[must_use]
    pub fn default_variant(&self) -> Option<&Variant> {
        self.default.map(|at| &self.variants[at])
    }

    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.is_enabled
    }

    /// Whether somebody pulled its kill switch.
    #[must_use]
    pub fn is_killed(&self) -> bool {
        self.extension.as_ref().is_some_and(|extension| extension.is_killed())
    }

    /// Whether it is guarded, and there is something to compare: not everybody gets the same.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.guard().is_some() && !self.is_static()
    }

    /// What it is served to everybody while it is killed.
    #[must_use]
    pub fn off_variant(&self) -> Option<&Variant> {
        let off = self.extension.as_ref().map_or(self.default, |extension| extension.off);
        off.map(|at| &self.variants[at])
    }

    /// Who pulled its kill switch and why, where it was pulled and that was said.
    #[must_use]
    pub fn killed_by(&self) -> Option<(&str, &str)> {
        let kill = self.extension.as_ref().filter(|extension| extension.is_killed())?.kill.as_ref()?;
        let (by, why) = (kill.by.as_deref().unwrap_or_default(), kill.why.as_deref().unwrap_or_default());
        (!by.is_empty() || !why.is_empty()).then_some((by, why))
    }

    /// Whether everybody gets the same, as long as the set does not change.
    #[must_use]
    pub fn is_static(&self) -> bool {
        let is_plain =
            |extension: &Extension| extension.prerequisites.is_empty() && extension.share.is_none();
        self.is_killed()
            || !self.is_enabled
            || (matches!(self.targeting, Targeting::None) && self.extension.as_deref().is_none_or(is_plain))
    }

    /// Whether its value may change with nothing but the time, that of its prerequisites left aside.
    #[must_use]
    pub fn reads_time(&self) -> bool {
        self.reads_time
    }

    /// What it is there for, where it says so.
    #[must_use]
    pub fn purpose(&self) -> Option<Purpose> {
        self.extension.as_ref()?.purpose
    }

    /// When it should be gone, in seconds since 1970.
    #[must_use]
    pub fn expires(&self) -> Option<u64> {
        self.extension.as_ref()?.expires
    }

    /// By what it is judged while it is in use.
    #[must_use]
    pub fn guard(&self) -> Option<&Guard> {
        self.extension.as_ref()?.guard.as_ref()
    }

    /// What its guard judges, where it does, in words that change with everything that makes what was counted before say
    /// nothing of what comes: guard, variants and what is gone back to. Shares are none of it. `None` while it is off.
    #[must_use]
    pub fn judged(&self) -> Option<String> {
        let (guard, off) = (self.guard()?, self.off_variant()?.name());
        let variants = self.variants.iter().map(|variant| (variant.name(), variant.value()));
        let variants: Vec<_> = variants.collect();
        (self.is_enabled && !self.is_killed()).then(|| format!("{guard:?} {off:?} {variants:?}"))
    }

    /// The service whose candidate's users get it on.
    #[must_use]
    pub fn follows(&self) -> Option<&str> {
        match &self.extension.as_ref()?.share {
            Some(Share::Follow(follow)) => Some(follow.service.as_str()),
            Some(Share::Buckets(_)) | None => None,
        }
    }

    fn variant_name(&self, at: usize) -> &str {
        &self.variants[at].name
    }
}

impl Variant {
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn value(&self) -> &Json {
        &self.value
    }
}

impl FlagType {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Boolean => "boolean",
            Self::Number { .. } => "number",
            Self::Object => "object",
            Self::String => "string",
        }
    }

    /// The type of one value; `None` for what is no value of a flag.
    fn of(value: &Json) -> Option<Self> {
        Some(match value {
            Json::Bool(_) => Self::Boolean,
            Json::Number(number) => {
                Self::Number { whole: !number.is_f64() || number.as_f64().is_some_and(|n| n.fract() == 0.0) }
            }
            Json::Object(_) => Self::Object,
            Json::String(_) => Self::String,
            Json::Array(_) | Json::Null => return None,
        })
    }

    /// The type of both, if there is one.
    fn and(self, other: Self) -> Option<Self> {
        match (self, other) {
            (Self::Number { whole: a }, Self::Number { whole: b }) => Some(Self::Number { whole: a && b }),
            (a, b) => (a == b).then_some(a),
        }
    }
}
