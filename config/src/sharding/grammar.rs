//! The `[services.s.sharding]` table: what it may say with which strategy, and every fault with its place.

use std::collections::HashSet;

use super::directory::Directory;
use super::key::KeySource;
use super::maglev::Maglev;
use super::modulo::{Modulo, PLACES_MAX};
use super::moving::Next;
use super::range::Ranges;
use super::rendezvous::Rendezvous;
use super::ring::Ring;
use super::slots::{SLOTS_MAX, Slots};
use super::strategy::{By, Hashed, Strategy};
use super::{READS, SHARDS_MAX, Sharding, WHEN_NO_KEY};
use crate::grammar::{Table, Value};
use crate::hash::{KEY_HASHES, KeyHash, short_hash};
use crate::name::Name;
use crate::problem::shown;
use crate::subject::Inputs;

/// Redis Cluster's number of slots.
const SLOTS: u32 = 16_384;
/// Longest separator of keys, in bytes.
const SEPARATOR_BYTES_MAX: usize = 8;

/// The strategies by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Directory,
    Jump,
    Maglev,
    Modulo,
    Range,
    Rendezvous,
    Ring,
    Slots,
}

const KINDS: [(&str, Kind); 8] = [
    ("slots", Kind::Slots),
    ("modulo", Kind::Modulo),
    ("range", Kind::Range),
    ("directory", Kind::Directory),
    ("ring", Kind::Ring),
    ("maglev", Kind::Maglev),
    ("jump", Kind::Jump),
    ("rendezvous", Kind::Rendezvous),
];

/// What only some strategies ask for.
#[derive(Clone, Default)]
struct Options<'d> {
    hash: Option<Value<'d>>,
    slots: Option<Value<'d>>,
    map: Option<Value<'d>>,
    shards: Option<Value<'d>>,
    default: Option<Value<'d>>,
    numeric: Option<Value<'d>>,
    hash_tags: Option<Value<'d>>,
}

impl Sharding {
    /// `subject` is where the service's traffic looks for it, if it says so.
    pub(crate) fn read(value: &Value<'_>, subject: Option<&Inputs>) -> Option<Self> {
        let mut table = value.table()?;
        let key = table.required("key").and_then(|v| KeySource::read(&v, subject));
        let separator = table.optional("key_separator").map(|v| read_separator(&v));
        let kind = table.required("strategy").and_then(|v| v.choice(&KINDS));
        let when_no_key = table.optional("when_no_key").and_then(|v| v.choice(&WHEN_NO_KEY));
        let reads = table.optional("reads").and_then(|v| v.choice(&READS));
        let epoch = table.optional("epoch").and_then(|v| v.integer(0, i64::MAX));
        let options = Options::of(&mut table);
        let next = table.optional("next");
        table.finish();
        let kind = kind?;
        options.refuse_others(kind);
        let following = next.as_ref().and_then(|v| Following::read(v, kind, &options));
        let (slots, hashed) = (options.slot_count(), options.hashed(kind));
        let own = options.shards(kind, value);
        let later = following.as_ref().and_then(|next| next.options.shards(kind, &next.value));
        let shards = joined(value, own.as_deref(), later.as_deref())?;
        let (slots, hashed) = (slots?, hashed?);
        let many = own.as_ref().map_or(0, Vec::len);
        let strategy = own.and_then(|_| options.strategy(kind, slots, hashed, &shards));
        let next = following.zip(later).and_then(|(next, _)| {
            let strategy = next.options.strategy(kind, slots, hashed, &shards)?;
            let map_hash = map_hash(&strategy, &shards);
            Some(Box::new(Next { strategy, closed: next.closed, map_hash }))
        });
        let strategy = strategy?;
        let separator = match separator {
            None => None,
            Some(separator) => Some(separator?),
        };
        let map_hash = map_hash(&strategy, &shards);
        Some(Self {
            key: key?,
            separator,
            strategy,
            shards,
            own: many,
            when_no_key: when_no_key.unwrap_or_default(),
            reads: reads.unwrap_or_default(),
            epoch: epoch.and_then(|epoch| u64::try_from(epoch).ok()).unwrap_or_default(),
            map_hash,
            next,
        })
    }
}

/// The `next` table: what it names, and all else as in the table that it stands in.
struct Following<'d> {
    value: Value<'d>,
    options: Options<'d>,
    closed: Option<u64>,
}

impl<'d> Following<'d> {
    fn read(value: &Value<'d>, kind: Kind, above: &Options<'d>) -> Option<Self> {
        let mut table = value.table()?;
        if !kind.may_move() {
            value.fault(
                format!("`next` means nothing to the strategy `{}`", kind.as_str()),
                "it belongs to \"slots\", \"modulo\", \"range\" and \"directory\"",
            );
            return None;
        }
        let named = Options {
            map: table.optional("map"),
            shards: table.optional("shards"),
            default: table.optional("default"),
            ..Options::default()
        };
        let closed = table.optional("closed").and_then(|v| v.integer(1, i64::MAX));
        table.finish();
        named.refuse_others(kind);
        let (key, rule) = if kind.is_mapped() { ("map", &named.map) } else { ("shards", &named.shards) };
        if rule.is_none() {
            value.fault(format!("`{key}` is missing"), "the rule that follows");
            return None;
        }
        let options = Options {
            map: named.map.or_else(|| above.map.clone()),
            shards: named.shards.or_else(|| above.shards.clone()),
            default: named.default.or_else(|| above.default.clone()),
            ..above.clone()
        };
        let closed = closed.and_then(|revision| u64::try_from(revision).ok());
        Some(Self { value: value.clone(), options, closed })
    }
}

impl Kind {
    fn as_str(self) -> &'static str {
        KINDS.iter().find(|(_, kind)| *kind == self).map_or("", |(word, _)| *word)
    }

    /// Whether a map says whose a key is; else a list of shards does.
    fn is_mapped(self) -> bool {
        matches!(self, Self::Directory | Self::Range | Self::Slots)
    }

    /// Whether a part of the keys can be moved by itself.
    fn may_move(self) -> bool {
        self.is_mapped() || self == Self::Modulo
    }

    fn is_hashed(self) -> bool {
        !matches!(self, Self::Directory | Self::Range)
    }

    fn default_hash(self) -> KeyHash {
        if matches!(self, Self::Slots | Self::Modulo) { KeyHash::Crc16 } else { KeyHash::Xxh3 }
    }

    /// Why keys cannot be hashed like this.
    fn objects_to(self, hash: KeyHash) -> Option<&'static str> {
        match (self, hash) {
            (Self::Jump | Self::Maglev | Self::Rendezvous | Self::Ring, KeyHash::Crc16) => {
                Some("crc16 has too few values for it")
            }
            (Self::Maglev | Self::Rendezvous | Self::Ring, KeyHash::Identity) => {
                Some("shards have places by the hashes of their names, which are no numbers")
            }
            _ => None,
        }
    }
}

impl<'d> Options<'d> {
    fn of(table: &mut Table<'d>) -> Self {
        Self {
            hash: table.optional("hash"),
            slots: table.optional("slots"),
            map: table.optional("map"),
            shards: table.optional("shards"),
            default: table.optional("default"),
            numeric: table.optional("numeric"),
            hash_tags: table.optional("hash_tags"),
        }
    }

    /// What means nothing to a strategy is no part of it, or somebody meant another one.
    fn refuse_others(&self, kind: Kind) {
        let is_slots = kind == Kind::Slots;
        for (key, value, belongs, to) in [
            ("hash", &self.hash, kind.is_hashed(), "the strategies that hash"),
            ("slots", &self.slots, is_slots, "\"slots\""),
            (
                "map",
                &self.map,
                kind.is_mapped(),
                "\"slots\", \"range\" and \"directory\"; name the `shards` here",
            ),
            ("default", &self.default, kind == Kind::Directory, "\"directory\""),
            ("numeric", &self.numeric, kind == Kind::Range, "\"range\""),
            ("hash_tags", &self.hash_tags, kind.is_hashed(), "the strategies that hash"),
        ] {
            if let Some(value) = value
                && !belongs
            {
                value.fault(
                    format!("`{key}` means nothing to the strategy `{}`", kind.as_str()),
                    format!("it belongs to {to}"),
                );
            }
        }
    }

    /// Every shard: as listed, else as the map names them.
    fn shards(&self, kind: Kind, table: &Value<'_>) -> Option<Vec<Name>> {
        let listed = self.shards.as_ref().map(|list| read_list(list, kind == Kind::Modulo));
        if !kind.is_mapped() {
            if listed.is_none() {
                table.fault("`shards` is missing", "e.g. shards = [\"0\", \"1\"]; their order counts");
            }
            return listed?;
        }
        let Some(map) = &self.map else {
            table.fault("`map` is missing", "whose each key is");
            return None;
        };
        if map.entries()?.is_empty() {
            map.fault("an empty map: there is no shard", "at least one");
            return None;
        }
        let mapped = if kind == Kind::Directory {
            Directory::shards(map, self.default_shard()?.as_ref())?
        } else {
            read_keys(map)?
        };
        let Some(listed) = listed else {
            return within_limit(map, mapped.len()).then_some(mapped);
        };
        let listed = listed?;
        self.names_only(kind, map, &listed).then_some(listed)
    }

    /// Whether the map names no other shards than those that are listed.
    fn names_only(&self, kind: Kind, map: &Value<'d>, listed: &[Name]) -> bool {
        let listed: HashSet<&str> = listed.iter().map(Name::as_str).collect();
        let named = |value: &Value<'d>| Some((value.text()?, value.clone()));
        let entries = map.entries().unwrap_or_default();
        // A directory names shards in its values, all others in their keys.
        let all: Vec<_> = if kind == Kind::Directory {
            entries.iter().map(|(_, value)| value).chain(&self.default).filter_map(named).collect()
        } else {
            entries
        };
        let mut is_sound = true;
        for (name, value) in all.into_iter().filter(|(name, _)| !listed.contains(name)) {
            value.fault(
                format!("the shard `{}` is not one of `shards`", shown(name)),
                "a shard that is listed there",
            );
            is_sound = false;
        }
        is_sound
    }

    /// The shard of what a directory does not list; `None` where what is said is none.
    #[expect(clippy::option_option, reason = "absent, faulty and sound are three")]
    fn default_shard(&self) -> Option<Option<Name>> {
        match &self.default {
            Some(value) => read_shard(value).map(Some),
            None => Some(None),
        }
    }

    fn strategy(&self, kind: Kind, slots: u32, hashed: Hashed, shards: &[Name]) -> Option<Strategy> {
        let by = |by| Some(Strategy::Hashed(hashed, by));
        match kind {
            Kind::Directory => {
                let default = self.default_shard()?;
                Directory::read(self.map.as_ref()?, default.as_ref(), shards).map(Strategy::Directory)
            }
            Kind::Range => {
                let numeric = self.numeric.as_ref().and_then(Value::boolean).unwrap_or_default();
                Ranges::read(self.map.as_ref()?, numeric, shards).map(Strategy::Range)
            }
            Kind::Jump => by(By::Jump),
            Kind::Maglev => by(By::Maglev(Maglev::of(shards, hashed))),
            Kind::Modulo => by(By::Modulo(Modulo::read(self.shards.as_ref()?, shards)?)),
            Kind::Rendezvous => by(By::Rendezvous(Rendezvous::of(shards, hashed))),
            Kind::Ring => by(By::Ring(Ring::of(shards, hashed))),
            Kind::Slots => by(By::Slots(Slots::read(self.map.as_ref()?, slots, shards)?)),
        }
    }

    fn hashed(&self, kind: Kind) -> Option<Hashed> {
        let hash = match &self.hash {
            Some(value) => value.choice(&KEY_HASHES)?,
            None => kind.default_hash(),
        };
        if let (Some(value), Some(why)) = (&self.hash, kind.objects_to(hash)) {
            value.fault(format!("`{}` does not fit the strategy `{}`", hash.as_str(), kind.as_str()), why);
            return None;
        }
        let default = kind == Kind::Slots && hash == KeyHash::Crc16;
        let tags = self.hash_tags.as_ref().map_or(Some(default), Value::boolean)?;
        Some(Hashed { hash, tags })
    }

    fn slot_count(&self) -> Option<u32> {
        let Some(value) = &self.slots else { return Some(SLOTS) };
        let slots = value.integer(1, SLOTS_MAX)?;
        if !slots.is_power_of_two() {
            let above = slots.next_power_of_two();
            value.fault(format!("{slots} is no power of two"), format!("e.g. {} or {above}", above / 2));
            return None;
        }
        Some(slots)
    }
}

fn read_separator(value: &Value<'_>) -> Option<Box<str>> {
    let text = value.text()?;
    if text.is_empty() || text.len() > SEPARATOR_BYTES_MAX {
        value.fault(format!("{} bytes", text.len()), format!("1 to {SEPARATOR_BYTES_MAX}, e.g. \",\""));
        return None;
    }
    Some(text.into())
}

/// The name of a shard.
pub(super) fn read_shard(value: &Value<'_>) -> Option<Name> {
    value.named(|text| match Name::parse(text) {
        Ok(name) if !name.is_empty() => Ok(name),
        Ok(_) => Err("the name of a shard"),
        Err(hint) => Err(hint),
    })
}

fn within_limit(value: &Value<'_>, shards: usize) -> bool {
    if shards > SHARDS_MAX {
        value.fault(format!("{shards} shards"), format!("at most {SHARDS_MAX}"));
    }
    shards <= SHARDS_MAX
}

/// The shards of a list. A list of places may name one again.
fn read_list(value: &Value<'_>, are_places: bool) -> Option<Vec<Name>> {
    let items = value.items()?;
    if items.is_empty() {
        value.fault("an empty list: there is no shard", "at least one");
        return None;
    }
    if are_places && items.len() > PLACES_MAX {
        value.fault(format!("{} places", items.len()), format!("at most {PLACES_MAX}"));
        return None;
    }
    if !are_places && !within_limit(value, items.len()) {
        return None;
    }
    let mut seen = HashSet::new();
    let mut shards = Vec::with_capacity(items.len());
    for item in &items {
        let name = read_shard(item)?;
        if seen.insert(name.clone()) {
            shards.push(name);
        } else if !are_places {
            item.fault(format!("the shard `{name}` is listed twice"), "each once");
        }
    }
    within_limit(value, shards.len()).then_some(shards)
}

/// The shards of a rule, and behind them those that only the rule that follows has.
fn joined(table: &Value<'_>, own: Option<&[Name]>, later: Option<&[Name]>) -> Option<Vec<Name>> {
    let mut shards = own.or(later)?.to_vec();
    let known: HashSet<Name> = shards.iter().cloned().collect();
    shards.extend(later.unwrap_or_default().iter().filter(|shard| !known.contains(shard)).cloned());
    within_limit(table, shards.len()).then_some(shards)
}

/// The shards that are keys of a map.
fn read_keys(map: &Value<'_>) -> Option<Vec<Name>> {
    let entries = map.entries()?;
    let mut shards = Vec::with_capacity(entries.len());
    for (key, entry) in &entries {
        match Name::parse(key) {
            Ok(name) if !name.is_empty() => shards.push(name),
            Ok(_) => entry.fault("not a shard's name", "a name"),
            Err(hint) => entry.fault("not a shard's name", hint),
        }
    }
    (shards.len() == entries.len()).then_some(shards)
}

/// The hash that tells a map from others.
fn map_hash(strategy: &Strategy, shards: &[Name]) -> u64 {
    let mut written = Vec::new();
    strategy.write(shards, &mut written);
    short_hash(&written)
}
