//! `x-gilmok`: what a flag may say that flagd does not know. Every key of it is ours, so what is unknown is a fault.

use std::collections::HashSet;

use http::{HeaderName, HeaderValue};
use sfv::KeyRef;

use super::context::TARGETING_KEY;
use super::guard::{self, Guard};
use super::{Variant, header};
use crate::assignment::{PLACES, RANGES_MAX, Salt};
use crate::grammar::Value;
use crate::moment::parse_moment;
use crate::name::ServiceName;
use crate::problem::shown;

/// Most prerequisites of one flag.
const PREREQUISITES_MAX: usize = 16;
/// Longest salt and longest name of an attribute, in bytes.
const TEXT_BYTES_MAX: usize = 256;
/// Longest word of who pulled a kill switch and why, in bytes.
pub const WHY_BYTES_MAX: usize = 1_000;
/// What a flag says of itself beyond flagd's format.
#[derive(Debug, Default)]
pub(super) struct Extension {
    pub(super) purpose: Option<Purpose>,
    pub(super) expires: Option<u64>,
    pub(super) kill: Option<Kill>,
    /// Served when the flag is killed, or a prerequisite is not met; place in the variants.
    pub(super) off: Option<usize>,
    pub(super) prerequisites: Vec<Prerequisite>,
    pub(super) share: Option<Share>,
    pub(super) header_name: Option<Box<str>>,
    pub(super) single: Option<Single>,
    pub(super) guard: Option<Guard>,
}

/// What a flag is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Experiment,
    /// A brake that is meant to stay.
    KillSwitch,
    Ops,
    Permission,
    Release,
}

#[derive(Debug)]
pub(super) struct Kill {
    active: bool,
    /// Who pulled it, where that is told.
    pub(super) by: Option<Box<str>>,
    /// And why.
    pub(super) why: Option<Box<str>>,
}

/// Another flag that has to have a variant.
#[derive(Debug)]
pub(super) struct Prerequisite {
    /// Place in the set.
    pub(super) flag: usize,
    /// Place in that flag's variants.
    pub(super) variant: usize,
}

/// Who gets what where targeting says nothing.
#[derive(Debug)]
pub(super) enum Share {
    Buckets(Buckets),
    Follow(Follow),
}

/// Ranges of places, as traffic's tables have them.
#[derive(Debug)]
pub(super) struct Buckets {
    /// The attribute that tells users apart.
    pub(super) unit: Box<str>,
    pub(super) salt: Salt,
    /// Where each range ends, and whose it is.
    ranges: Vec<(u32, usize)>,
}

/// On for whom a service's traffic sends to its candidate.
#[derive(Debug)]
pub(super) struct Follow {
    pub(super) service: ServiceName,
    /// What they get; the others get the default.
    pub(super) variant: usize,
}

/// A header of its own.
#[derive(Debug)]
pub(super) struct Single {
    pub(super) name: HeaderName,
    /// By variant; what no header can hold is not sent.
    pub(super) values: Box<[Option<HeaderValue>]>,
}

/// What is read once every flag is known.
#[derive(Debug)]
pub(super) struct Requirement<'d> {
    pub(super) at: Value<'d>,
    pub(super) flag: &'d str,
    pub(super) variant: &'d str,
}

const PURPOSES: [(&str, Purpose); 5] = [
    ("release", Purpose::Release),
    ("experiment", Purpose::Experiment),
    ("ops", Purpose::Ops),
    ("kill-switch", Purpose::KillSwitch),
    ("permission", Purpose::Permission),
];

impl Purpose {
    /// The word of a document.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        PURPOSES.iter().find(|(_, purpose)| *purpose == self).map_or("", |(word, _)| *word)
    }
}

impl Extension {
    pub(super) fn is_killed(&self) -> bool {
        self.kill.as_ref().is_some_and(|kill| kill.active)
    }

    /// Reads the table of a flag with this key, these variants, this default, and so many shares in its targeting.
    pub(super) fn read<'d>(
        value: &Value<'d>,
        key: &str,
        variants: &[Variant],
        default: Option<usize>,
        shares: usize,
    ) -> Option<(Self, Vec<Requirement<'d>>)> {
        let mut table = value.table()?;
        let purpose = table.optional("type").and_then(|v| v.choice(&PURPOSES));
        let expires = table.optional("expires").and_then(|v| read_expires(&v));
        let kill = table.optional("kill").and_then(|v| read_kill(&v, variants));
        let prerequisites = table.optional("prerequisites").and_then(|v| read_prerequisites(&v, key));
        let buckets = table.optional("buckets");
        let follow = table.optional("follow");
        if let (Some(_), Some(follow)) = (&buckets, &follow) {
            follow.fault("a flag that follows a service has no buckets of its own", "one of both");
        }
        let buckets = buckets.and_then(|v| Buckets::read(&v, key, variants)).map(Share::Buckets);
        let follow = follow.and_then(|v| Follow::read(&v, variants)).map(Share::Follow);
        let (header_name, single) =
            table.optional("header").map(|v| read_header(&v, variants)).unwrap_or_default();
        let guarded = table.optional("guard");
        let guard = guarded.as_ref().and_then(Guard::read);
        table.finish();
        let (kill, killed_to) = kill.unzip();
        let named_off = variants.binary_search_by(|variant| (*variant.name).cmp("off")).ok();
        let off = killed_to.flatten().or(named_off).or(default);
        if let Some(value) = guarded {
            guard::check_follow(&value, follow.is_some());
            guard::check(&value, variants, off, shares + usize::from(buckets.is_some()));
        }
        let extension = Self {
            purpose,
            expires,
            kill,
            off,
            prerequisites: Vec::new(),
            share: buckets.or(follow),
            header_name,
            single,
            guard,
        };
        Some((extension, prerequisites.unwrap_or_default()))
    }
}

impl Buckets {
    fn read(value: &Value<'_>, key: &str, variants: &[Variant]) -> Option<Self> {
        let mut table = value.table()?;
        let unit = table.optional("unit").map_or(Some(TARGETING_KEY), |v| read_text(&v));
        let salt = table.optional("salt").map_or(Some(key), |v| read_text(&v));
        let ranges = table.required("table").and_then(|v| read_ranges(&v, variants));
        table.finish();
        Some(Self { unit: unit?.into(), salt: Salt::new(salt?), ranges: ranges? })
    }

    /// Whose a place is.
    pub(super) fn at(&self, place: u32) -> usize {
        let at = self.ranges.partition_point(|(end, _)| *end <= place);
        self.ranges[at.min(self.ranges.len() - 1)].1
    }
}

impl Follow {
    fn read(value: &Value<'_>, variants: &[Variant]) -> Option<Self> {
        if value.is_text() {
            let service = value.named(ServiceName::parse)?;
            let variant = variant_of(value, "on", variants)?;
            return Some(Self { service, variant });
        }
        let mut table = value.table()?;
        let service = table.required("service").and_then(|v| v.named(ServiceName::parse));
        let variant = table.required("variant").and_then(|v| read_variant(&v, variants));
        table.finish();
        Some(Self { service: service?, variant: variant? })
    }
}

fn variant_of(value: &Value<'_>, name: &str, variants: &[Variant]) -> Option<usize> {
    let found = variants.binary_search_by(|variant| (*variant.name).cmp(name)).ok();
    if found.is_none() {
        let names: Vec<&str> = variants.iter().take(10).map(|variant| &*variant.name).collect();
        value
            .fault(format!("there is no variant `{}`", shown(name)), format!("one of: {}", names.join(", ")));
    }
    found
}

pub(super) fn read_variant(value: &Value<'_>, variants: &[Variant]) -> Option<usize> {
    variant_of(value, value.text()?, variants)
}

fn read_text<'d>(value: &Value<'d>) -> Option<&'d str> {
    let text = value.text()?;
    if text.is_empty() || text.len() > TEXT_BYTES_MAX {
        value.fault(format!("{} bytes", text.len()), format!("1 to {TEXT_BYTES_MAX}"));
        return None;
    }
    Some(text)
}

fn read_expires(value: &Value<'_>) -> Option<u64> {
    let text = value.text()?;
    let moment = parse_moment(text).or_else(|_| parse_moment(&format!("{text}T00:00:00Z")));
    if moment.is_err() {
        value.fault("not a day", "\"2027-01-31\", or a moment as RFC 3339 has it");
    }
    moment.ok()
}

/// The switch, and what is served while it is pulled.
fn read_kill(value: &Value<'_>, variants: &[Variant]) -> Option<(Kill, Option<usize>)> {
    let mut table = value.table()?;
    let active = table.required("active").and_then(|v| v.boolean());
    let variant = table.optional("variant").map(|v| read_variant(&v, variants));
    let [by, why] = ["by", "why"].map(|key| table.optional(key).and_then(|v| read_why(&v)));
    table.finish();
    Some((Kill { active: active?, by, why }, variant.flatten()))
}

fn read_why(value: &Value<'_>) -> Option<Box<str>> {
    let text = value.text()?;
    if text.len() > WHY_BYTES_MAX {
        value.fault(format!("{} bytes", text.len()), format!("at most {WHY_BYTES_MAX}"));
        return None;
    }
    Some(text.into())
}

fn read_prerequisites<'d>(value: &Value<'d>, key: &str) -> Option<Vec<Requirement<'d>>> {
    let items = value.items()?;
    if items.len() > PREREQUISITES_MAX {
        value.fault(format!("{} prerequisites", items.len()), format!("at most {PREREQUISITES_MAX}"));
        return None;
    }
    let mut seen = HashSet::new();
    let mut requirements = Vec::with_capacity(items.len());
    for item in items {
        let Some(mut table) = item.table() else { continue };
        let flag = table.required("flag").and_then(|v| v.text());
        let variant = table.required("variant").and_then(|v| v.text());
        table.finish();
        let (Some(flag), Some(variant)) = (flag, variant) else { continue };
        if flag == key {
            item.fault("a flag that requires itself", "another flag");
        } else if !seen.insert(flag) {
            item.fault(format!("`{}` is required twice", shown(flag)), "one variant of a flag");
        } else {
            requirements.push(Requirement { at: item, flag, variant });
        }
    }
    Some(requirements)
}

fn read_ranges(value: &Value<'_>, variants: &[Variant]) -> Option<Vec<(u32, usize)>> {
    const SHAPE: &str = "[[\"on\", 0, 10000], [\"off\", 10000, 1000000]]";
    let items = value.items()?;
    if items.is_empty() || items.len() > RANGES_MAX {
        value.fault(format!("{} ranges", items.len()), format!("1 to {RANGES_MAX}, e.g. {SHAPE}"));
        return None;
    }
    let mut ranges = Vec::with_capacity(items.len());
    let mut next = 0;
    for item in &items {
        let parts = item.items()?;
        let [variant, start, end] = parts.as_slice() else {
            item.fault(
                format!("{} values", parts.len()),
                format!("a variant, its first place and its end: {SHAPE}"),
            );
            return None;
        };
        let variant = read_variant(variant, variants)?;
        let (start, end) = (start.integer(0, PLACES)?, end.integer(0, PLACES)?);
        if start != next || end <= start {
            item.fault(
                "the range is empty, or leaves a hole or an overlap",
                format!("it begins at {next} and ends behind that, at most at {PLACES}"),
            );
            return None;
        }
        next = end;
        ranges.push((end, variant));
    }
    if next != PLACES {
        value.fault(format!("the table ends at {next}"), format!("it ends at {PLACES}, e.g. {SHAPE}"));
        return None;
    }
    Some(ranges)
}

fn read_header(value: &Value<'_>, variants: &[Variant]) -> (Option<Box<str>>, Option<Single>) {
    let Some(mut table) = value.table() else { return (None, None) };
    let name = table.optional("name").and_then(|v| {
        let text = v.text()?;
        let is_key = KeyRef::from_str(text).is_ok() && text.len() <= header::KEY_BYTES_MAX;
        if !is_key {
            v.fault(
                "not a key of the header",
                format!("a to z or * first, then also 0 to 9, _, - and .; at most {}", header::KEY_BYTES_MAX),
            );
        }
        is_key.then(|| Box::from(text))
    });
    let single = table.optional("single").and_then(|v| {
        let name = HeaderName::from_bytes(v.text()?.as_bytes()).ok().filter(|name| !header::is_others(name));
        if name.is_none() {
            v.fault(
                "not the name of a header for a flag",
                "e.g. \"Feature-New-Ui\"; none that means something else",
            );
        }
        let values = variants.iter().map(header::single).collect();
        Some(Single { name: name?, values })
    });
    table.finish();
    (name, single)
}
