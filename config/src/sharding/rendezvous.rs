//! Rendezvous, or highest random weight (Thaler and Ravishankar, 1998): every shard bids for a key, and the highest bid has it.

use super::strategy::Hashed;
use crate::hash::mixed;
use crate::name::Name;

/// The hashes of the shards' names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rendezvous(Box<[u64]>);

impl Rendezvous {
    pub(super) fn of(shards: &[Name], hashed: Hashed) -> Self {
        Self(shards.iter().map(|shard| hashed.of_name(shard.as_str())).collect())
    }

    /// A bid is the mixture of both hashes. Of equal bids the first one has it.
    pub(super) fn shard(&self, hash: u64) -> usize {
        let bids = self.0.iter().map(|name| mixed(hash ^ name)).enumerate();
        let highest = bids.reduce(|best, bid| if bid.1 > best.1 { bid } else { best });
        highest.map_or(0, |(at, _)| at)
    }
}
