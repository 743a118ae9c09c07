//! Which shard a request goes to: where its key stands, what is made of it, and whose the result is.
//!
//! In reading order: where the key stands ([`key`]), the ways to divide keys among shards (`slots`, `modulo`, `range`,
//! `directory`, `ring`, `maglev`, `jump`, `rendezvous`, put together in [`strategy`]), the `[…sharding]` table (`grammar`), the
//! rule that they make up (here), what tells its map from others ([`tag`]), keys on their way to another shard
//! ([`moving`]), and the batches in which one rule becomes another ([`plan`]). What a look-up needs is made once, when a document is read; looking up allocates nothing. The bytes that
//! are hashed stand in docs/sharding.md.

pub mod key;

pub mod moving;

pub mod plan;

pub mod strategy;

pub mod tag;

mod directory;

mod grammar;

mod jump;

pub(crate) mod maglev;

mod modulo;

mod range;

mod rendezvous;

pub(crate) mod ring;

mod slots;

use std::fmt;

use serde_json::{Value, json};

use crate::hash::KeyHash;
use crate::name::Name;
use crate::problem::shown;
use key::{KeySource, Keyed};
use moving::Next;
use strategy::{Spot, Strategy, Unplaceable};
use tag::MapTag;

/// Most shards of one service.
pub const SHARDS_MAX: usize = 1_024;
/// Most keys of one request.
pub const KEYS_MAX: usize = 1_000;
/// Most keys that a refusal lists.
const LISTED_MAX: usize = 20;

/// `[services.s.sharding]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sharding {
    /// In the document's order where it lists them, else in the order of their names, and behind them those that only `next`
    /// names; spots name them by their place in this list.
    shards: Vec<Name>,
    /// How many of them the rule itself names: the first ones.
    own: usize,
    key: KeySource,
    /// What stands between the keys of one value.
    separator: Option<Box<str>>,
    strategy: Strategy,
    pub when_no_key: WhenNoKey,
    pub reads: Reads,
    epoch: u64,
    map_hash: u64,
    /// Boxed, because there seldom is one.
    next: Option<Box<Next>>,
}

/// What becomes of a request whose key is missing or malformed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenNoKey {
    /// Any shard serves it.
    Any,
    /// It is answered with 400.
    #[default]
    Reject,
}

/// Who of a shard serves safe methods. All others go to the primary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reads {
    Any,
    #[default]
    Primary,
    /// The primary when there is none.
    Replica,
}

pub(crate) const WHEN_NO_KEY: [(&str, WhenNoKey); 2] =
    [("reject", WhenNoKey::Reject), ("any", WhenNoKey::Any)];
pub(crate) const READS: [(&str, Reads); 3] =
    [("primary", Reads::Primary), ("replica", Reads::Replica), ("any", Reads::Any)];

/// Where among the shards of its service a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharded {
    /// To any shard, because it has no key, or none that is understood.
    Anywhere(Keyless),
    /// To the shard of its key.
    At(Spot),
}

/// Why a request that goes anywhere has no shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keyless {
    Malformed,
    Missing,
}

/// Why a request has no shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyFault {
    /// The key is not what it has to be; the words say what.
    Malformed(&'static str),
    /// There is no key where it should stand.
    Missing,
    /// The directory does not list it, and has no default.
    NotListed,
    /// Its keys are on several shards: the first of them, each with its shard.
    SeveralShards(Vec<(String, Name)>),
    /// More than [`KEYS_MAX`] keys.
    TooManyKeys,
}

impl Sharding {
    /// Every shard, also of the rule that follows; spots name them by their place.
    #[must_use]
    pub fn shards(&self) -> &[Name] {
        &self.shards
    }

    /// How many of [`Sharding::shards`] the rule itself names: the first ones. The others have no key yet.
    #[must_use]
    pub fn own_shards(&self) -> usize {
        self.own
    }

    /// The place of a shard in [`Sharding::shards`].
    #[must_use]
    pub fn place_of(&self, name: &str) -> Option<usize> {
        self.shards.iter().position(|shard| shard.as_str() == name)
    }

    /// Where the key of a request stands.
    #[must_use]
    pub fn key(&self) -> &KeySource {
        &self.key
    }

    /// How many batches have moved, as the document says.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// A hash of all that the shard of a key depends on, equal in every process.
    #[must_use]
    pub fn map_hash(&self) -> u64 {
        self.map_hash
    }

    /// What tells this map from others.
    #[must_use]
    pub fn map_tag(&self) -> MapTag {
        MapTag { epoch: self.epoch, hash: self.map_hash }
    }

    /// Whether every request has the same shard by the other rule. Neither epoch nor `next` change that.
    #[must_use]
    pub fn divides_as(&self, other: &Self) -> bool {
        self.map_hash == other.map_hash && self.key == other.key && self.separator == other.separator
    }

    /// Where a key belongs.
    ///
    /// # Errors
    /// Why it belongs nowhere.
    pub fn locate(&self, key: &[u8]) -> Result<Spot, KeyFault> {
        let found = self.strategy.spot(key, self.shards.len()).map_err(|unplaceable| match unplaceable {
            Unplaceable::NotListed => KeyFault::NotListed,
            Unplaceable::NoNumber => KeyFault::Malformed("it has to be a number"),
        });
        match &self.next {
            None => found,
            Some(next) => found.map(|spot| next.marked(key, spot)),
        }
    }

    /// The shard of a request.
    ///
    /// # Errors
    /// Why it has none, and is refused.
    pub fn shard(&self, request: &Keyed<'_>) -> Result<Sharded, KeyFault> {
        match (self.find(request), self.when_no_key) {
            (Ok(spot), _) => Ok(Sharded::At(spot)),
            (Err(KeyFault::Missing), WhenNoKey::Any) => Ok(Sharded::Anywhere(Keyless::Missing)),
            (Err(KeyFault::Malformed(_)), WhenNoKey::Any) => Ok(Sharded::Anywhere(Keyless::Malformed)),
            (Err(fault), _) => Err(fault),
        }
    }

    /// The one spot of all keys of a request.
    fn find(&self, request: &Keyed<'_>) -> Result<Spot, KeyFault> {
        let (mut found, mut keys, mut is_split): (Option<Spot>, usize, bool) = (None, 0, false);
        self.key.each(request, self.separator.as_deref(), &mut |key| {
            keys += 1;
            if keys > KEYS_MAX {
                return Err(KeyFault::TooManyKeys);
            }
            let spot = self.locate(key)?;
            let first = found.get_or_insert(spot);
            is_split |= first.shard != spot.shard;
            first.moves |= spot.moves;
            Ok(())
        })?;
        if is_split { Err(self.several(request)) } else { found.ok_or(KeyFault::Missing) }
    }

    /// Lists the keys of a request with their shards.
    fn several(&self, request: &Keyed<'_>) -> KeyFault {
        let mut listed = Vec::new();
        let walked = self.key.each(request, self.separator.as_deref(), &mut |key| {
            if listed.len() < LISTED_MAX {
                let shard = self.shards[self.locate(key)?.shard].clone();
                listed.push((shown(&String::from_utf8_lossy(key)), shard));
            }
            Ok(())
        });
        walked.map_or_else(|fault| fault, |()| KeyFault::SeveralShards(listed))
    }

    /// Why a request is refused, for whoever sent it.
    #[must_use]
    pub fn tell(&self, fault: &KeyFault) -> String {
        let key = &self.key;
        match fault {
            KeyFault::Malformed(why) => format!("the sharding key ({key}) is malformed: {why}"),
            KeyFault::Missing => format!("the request has no sharding key ({key})"),
            KeyFault::NotListed => format!("the sharding key ({key}) is of no shard"),
            KeyFault::SeveralShards(keys) => {
                let keys: Vec<_> = keys.iter().map(|(key, shard)| format!("{key} on {shard}")).collect();
                format!("the sharding keys ({key}) are on several shards: {}", keys.join(", "))
            }
            KeyFault::TooManyKeys => format!("more than {KEYS_MAX} sharding keys ({key})"),
        }
    }

    /// The rule and its map, for those who look.
    #[must_use]
    pub fn told(&self) -> Value {
        let shards = self.shards.iter().enumerate().map(|(at, shard)| {
            let mut told = json!({ "shard": shard, "holds": self.strategy.holds(at) });
            if let Some(next) = self.next() {
                told["holds_next"] = json!(next.strategy.holds(at));
            }
            told
        });
        let next = self.next().map(|next| {
            let map = MapTag { epoch: self.epoch.saturating_add(1), hash: next.map_hash() };
            json!({ "map": map.to_string(), "closed": next.closed() })
        });
        json!({
            "key": self.key.to_string(),
            "key_separator": self.separator,
            "strategy": self.strategy.as_str(),
            "hash": self.strategy.hash().map(KeyHash::as_str),
            "slots": self.strategy.slots(),
            "when_no_key": word(&WHEN_NO_KEY, self.when_no_key),
            "reads": word(&READS, self.reads),
            "epoch": self.epoch,
            "map": self.map_tag().to_string(),
            "next": next,
            "shards": shards.collect::<Vec<_>>(),
        })
    }

    /// A decision as it is explained.
    #[must_use]
    pub fn told_of(&self, sharded: Sharded) -> Value {
        let why = match sharded {
            Sharded::Anywhere(Keyless::Malformed) => "the key is malformed: any shard".to_owned(),
            Sharded::Anywhere(Keyless::Missing) => "no key: any shard".to_owned(),
            Sharded::At(_) => format!("{} by {}", self.strategy.as_str(), self.key),
        };
        json!({
            "shard": sharded.shard().map(|at| &self.shards[at]),
            "slot": sharded.slot(),
            "why": why,
            "map": self.map_tag().to_string(),
            "moving": sharded.moves(),
        })
    }
}

fn word<T: PartialEq + Copy>(words: &[(&'static str, T)], value: T) -> &'static str {
    words.iter().find(|(_, known)| *known == value).map_or("", |(word, _)| *word)
}

impl Sharded {
    /// The place of the one shard, if it is one.
    #[must_use]
    pub fn shard(self) -> Option<usize> {
        match self {
            Self::Anywhere(_) => None,
            Self::At(spot) => Some(spot.shard),
        }
    }

    /// Whether it is of the batch that moves.
    #[must_use]
    pub fn moves(self) -> bool {
        match self {
            Self::Anywhere(_) => false,
            Self::At(spot) => spot.moves,
        }
    }

    /// The slot, where the strategy has slots.
    #[must_use]
    pub fn slot(self) -> Option<u32> {
        match self {
            Self::Anywhere(_) => None,
            Self::At(spot) => spot.slot,
        }
    }
}

/// In one word, for `Gilmok-Decision`.
impl fmt::Display for Sharded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anywhere(Keyless::Malformed) => f.write_str("malformed_key"),
            Self::Anywhere(Keyless::Missing) => f.write_str("no_key"),
            Self::At(Spot { slot: Some(slot), .. }) => write!(f, "slot:{slot}"),
            Self::At(Spot { slot: None, .. }) => f.write_str("key"),
        }
    }
}

impl KeyFault {
    /// In words that name nothing of the request.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "the sharding key is malformed",
            Self::Missing => "the request has no sharding key",
            Self::NotListed => "the sharding key is of no shard",
            Self::SeveralShards(_) => "the sharding keys are on several shards",
            Self::TooManyKeys => "too many sharding keys",
        }
    }
}

#[cfg(test)]
mod tests;
