//! A directory: keys that are listed one by one, and one shard for all others. The one huge customer has a shard of its own.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::grammar::read_shard;
use super::strategy::write_part;
use crate::grammar::Value;
use crate::name::Name;

/// Most keys that are listed.
const LISTED_MAX: usize = 100_000;

/// Whose each listed key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Directory {
    listed: HashMap<Box<[u8]>, u16>,
    default: Option<u16>,
}

impl Directory {
    /// The shards that a directory names.
    pub(super) fn shards(value: &Value<'_>, default: Option<&Name>) -> Option<Vec<Name>> {
        let entries = value.entries()?;
        let mut shards: Vec<Name> = entries.iter().filter_map(|(_, entry)| read_shard(entry)).collect();
        if shards.len() < entries.len() {
            return None;
        }
        shards.extend(default.cloned());
        shards.sort_unstable();
        shards.dedup();
        Some(shards)
    }

    /// Reads `{ "acme" = "1" }`: a key and its shard, which is one of `shards`.
    pub(super) fn read(value: &Value<'_>, default: Option<&Name>, shards: &[Name]) -> Option<Self> {
        let entries = value.entries()?;
        if entries.len() > LISTED_MAX {
            value.fault(format!("{} keys", entries.len()), format!("at most {LISTED_MAX}"));
            return None;
        }
        let places: HashMap<&Name, u16> = shards.iter().zip(0..).collect();
        let mut listed = HashMap::with_capacity(entries.len());
        for (key, entry) in entries {
            if key.is_empty() {
                entry.fault("an empty key is no key", "");
                continue;
            }
            let name = read_shard(&entry)?;
            listed.insert(key.as_bytes().into(), *places.get(&name)?);
        }
        let default = default.and_then(|name| places.get(name).copied());
        Some(Self { listed, default })
    }

    pub(super) fn shard(&self, key: &[u8]) -> Option<usize> {
        self.listed.get(key).copied().or(self.default).map(usize::from)
    }

    /// Whose the keys are that are not listed.
    pub(super) fn default_shard(&self) -> Option<u16> {
        self.default
    }

    /// Every key that this one or the other one lists, in their order, with its owner by this one.
    pub(super) fn listed_in_either(&self, other: &Self) -> Vec<(String, Option<u16>)> {
        let keys: BTreeSet<&[u8]> =
            self.listed.keys().chain(other.listed.keys()).map(AsRef::as_ref).collect();
        let owner = |key: &[u8]| self.listed.get(key).copied().or(self.default);
        keys.into_iter().map(|key| (String::from_utf8_lossy(key).into_owned(), owner(key))).collect()
    }

    pub(super) fn holds(&self, shard: usize) -> String {
        let is_its = |owner: &u16| usize::from(*owner) == shard;
        let keys = self.listed.values().filter(|owner| is_its(owner)).count();
        let keys = if keys == 1 { "1 key".to_owned() } else { format!("{keys} keys") };
        if self.default.as_ref().is_some_and(is_its) {
            format!("{keys} and what is not listed")
        } else {
            keys
        }
    }

    pub(super) fn write(&self, shards: &[Name], out: &mut Vec<u8>) {
        let name = |owner: u16| shards[usize::from(owner)].as_str().as_bytes();
        let in_order: BTreeMap<_, _> = self.listed.iter().collect();
        for (key, owner) in in_order {
            write_part(out, key);
            write_part(out, name(*owner));
        }
        // No key is empty, so this is none.
        write_part(out, b"");
        write_part(out, self.default.map_or(b"", name));
    }
}
