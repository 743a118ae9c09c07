//! What is made of a key: the ways to divide keys among shards, each with what its look-up needs.

use super::directory::Directory;
use super::jump::jump;
use super::maglev::Maglev;
use super::modulo::Modulo;
use super::range::Ranges;
use super::rendezvous::Rendezvous;
use super::ring::Ring;
use super::slots::Slots;
use crate::hash::{KeyHash, mixed};
use crate::name::Name;

/// Where a key belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    /// Place in [`super::Sharding::shards`].
    pub shard: usize,
    /// The slot, where the strategy has slots.
    pub slot: Option<u32>,
    /// Whether it is of the batch that moves: of a request with several keys, whether any of them is.
    pub moves: bool,
}

/// Why a key belongs nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unplaceable {
    NoNumber,
    NotListed,
}

/// A way to divide keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Strategy {
    Directory(Directory),
    Hashed(Hashed, By),
    Range(Ranges),
}

/// What is hashed of a key, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hashed {
    pub(super) hash: KeyHash,
    /// Whether only what stands in `{…}` is hashed.
    pub(super) tags: bool,
}

/// Whose a hash is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum By {
    Jump,
    Maglev(Maglev),
    Modulo(Modulo),
    Rendezvous(Rendezvous),
    Ring(Ring),
    Slots(Slots),
}

impl Strategy {
    /// Where a key belongs among so many shards.
    pub(super) fn spot(&self, key: &[u8], shards: usize) -> Result<Spot, Unplaceable> {
        let at = |shard| Spot { shard, slot: None, moves: false };
        match self {
            Self::Directory(directory) => directory.shard(key).map(at).ok_or(Unplaceable::NotListed),
            Self::Range(ranges) => ranges.shard(key).map(at).ok_or(Unplaceable::NoNumber),
            Self::Hashed(hashed, by) => {
                let hash = hashed.of(key).ok_or(Unplaceable::NoNumber)?;
                Ok(by.spot(hash, shards))
            }
        }
    }

    /// The word that a document uses.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Directory(_) => "directory",
            Self::Range(_) => "range",
            Self::Hashed(_, by) => match by {
                By::Jump => "jump",
                By::Maglev(_) => "maglev",
                By::Modulo(_) => "modulo",
                By::Rendezvous(_) => "rendezvous",
                By::Ring(_) => "ring",
                By::Slots(_) => "slots",
            },
        }
    }

    pub(super) fn hash(&self) -> Option<KeyHash> {
        match self {
            Self::Hashed(hashed, _) => Some(hashed.hash),
            Self::Directory(_) | Self::Range(_) => None,
        }
    }

    /// How many slots there are, where there are slots.
    pub(super) fn slots(&self) -> Option<usize> {
        match self {
            Self::Hashed(_, By::Slots(slots)) => Some(slots.count()),
            Self::Hashed(..) | Self::Directory(_) | Self::Range(_) => None,
        }
    }

    /// What the map says of a shard, in words; `None` where a shard has what the hash gives it.
    pub(super) fn holds(&self, shard: usize) -> Option<String> {
        match self {
            Self::Directory(directory) => Some(directory.holds(shard)),
            Self::Range(ranges) => Some(ranges.holds(shard)),
            Self::Hashed(_, By::Modulo(modulo)) => Some(modulo.holds(shard)),
            Self::Hashed(_, By::Slots(slots)) => Some(slots.holds(shard)),
            Self::Hashed(..) => None,
        }
    }

    /// Writes everything on which the shard of a key depends, and nothing else.
    pub(super) fn write(&self, shards: &[Name], out: &mut Vec<u8>) {
        write_part(out, self.as_str().as_bytes());
        match self {
            Self::Directory(directory) => directory.write(shards, out),
            Self::Range(ranges) => ranges.write(shards, out),
            Self::Hashed(hashed, by) => {
                write_part(out, hashed.hash.as_str().as_bytes());
                out.push(u8::from(hashed.tags));
                match by {
                    By::Slots(slots) => slots.write(shards, out),
                    By::Modulo(modulo) => modulo.write(shards, out),
                    By::Jump | By::Maglev(_) | By::Rendezvous(_) | By::Ring(_) => {
                        shards.iter().for_each(|shard| write_part(out, shard.as_str().as_bytes()));
                    }
                }
            }
        }
    }
}

impl Hashed {
    fn of(self, key: &[u8]) -> Option<u64> {
        self.hash.of(if self.tags { tagged(key) } else { key })
    }

    /// The hash of a shard's name, or of one of its places; names are never numbers to be taken for themselves.
    pub(super) fn of_name(self, name: &str) -> u64 {
        mixed(self.hash.of(name.as_bytes()).unwrap_or_default())
    }
}

impl By {
    fn spot(&self, hash: u64, shards: usize) -> Spot {
        let (shard, slot) = match self {
            Self::Jump => (jump(hash, shards), None),
            Self::Maglev(maglev) => (maglev.shard(mixed(hash)), None),
            Self::Modulo(modulo) => (modulo.shard(hash), None),
            Self::Rendezvous(rendezvous) => (rendezvous.shard(hash), None),
            Self::Ring(ring) => (ring.shard(mixed(hash)), None),
            Self::Slots(slots) => {
                let (slot, shard) = slots.slot_and_shard(hash);
                (shard, Some(slot))
            }
        };
        Spot { shard, slot, moves: false }
    }
}

/// Writes bytes with their number before them, so that no two lists of parts look alike.
pub(super) fn write_part(out: &mut Vec<u8>, part: &[u8]) {
    out.extend_from_slice(&(part.len() as u64).to_le_bytes());
    out.extend_from_slice(part);
}

/// A number below `many`, which is not 0.
pub(super) fn remainder(hash: u64, many: usize) -> usize {
    let rest = hash % many as u64;
    // What is smaller than a `usize` fits into one.
    usize::try_from(rest).unwrap_or_default()
}

/// What of a key is hashed where tags are: what stands between the first `{` and the next `}`, unless that is nothing.
/// As Redis Cluster has it.
fn tagged(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|byte| *byte == b'{') else { return key };
    let inside = &key[open + 1..];
    match inside.iter().position(|byte| *byte == b'}') {
        None | Some(0) => key,
        Some(close) => &inside[..close],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_what_stands_between_the_first_braces() {
        for (key, tag) in [
            ("{user1}.following", "user1"),
            ("foo{}{bar}", "foo{}{bar}"),
            ("foo{{bar}}zap", "{bar"),
            ("foo{bar}{zap}", "bar"),
            ("foo{bar", "foo{bar"),
            ("foo}bar{", "foo}bar{"),
            ("", ""),
        ] {
            assert_eq!(tagged(key.as_bytes()), tag.as_bytes(), "{key}");
        }
    }
}
