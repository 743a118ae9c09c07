//! A ring (Karger et al., "Consistent hashing and random trees", 1997): each owner stands at many places of a circle of
//! numbers, and a key goes to the first place at or behind its own.

use super::strategy::Hashed;
use crate::name::Name;

/// The places of an owner, as in libketama: with so many the fullest of a few has about a fifth more than its share.
pub(crate) const PLACES: usize = 160;

/// The places in their order, and whose they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ring {
    places: Box<[u64]>,
    owners: Box<[u16]>,
    /// Where to begin to look, by the upper bits of a hash: one for each place or more, so that few steps follow.
    begins: Box<[u32]>,
    /// How far a hash is shifted to become an index of `begins`.
    shift: u32,
}

impl Ring {
    /// The places of a shard are the hashes of `NAME#0`, `NAME#1` and so on. Of two shards at the same place the one that
    /// is listed first has it.
    pub(super) fn of(shards: &[Name], hashed: Hashed) -> Self {
        let mut points: Vec<(u64, u16)> = Vec::with_capacity(shards.len() * PLACES);
        for (shard, owner) in shards.iter().zip(0..) {
            points.extend((0..PLACES).map(|at| (hashed.of_name(&format!("{shard}#{at}")), owner)));
        }
        Self::of_points(points)
    }

    /// A ring of these places and whose they are, fewer than 2^32. Of two owners of one place the lower one comes first.
    pub(crate) fn of_points(mut points: Vec<(u64, u16)>) -> Self {
        points.sort_unstable();
        let bits = points.len().next_power_of_two().trailing_zeros().max(1);
        let shift = u64::BITS - bits;
        let begin = |at: u64| points.partition_point(|(place, _)| place >> shift < at);
        let begins = (0..1_u64 << bits).map(|at| u32::try_from(begin(at)).unwrap_or(u32::MAX)).collect();
        Self {
            begins,
            shift,
            places: points.iter().map(|(place, _)| *place).collect(),
            owners: points.iter().map(|(_, owner)| *owner).collect(),
        }
    }

    pub(super) fn shard(&self, hash: u64) -> usize {
        usize::from(self.owners[self.first(hash)])
    }

    /// The owners of all places in their order, from the first one at or behind a hash: once around.
    pub(crate) fn owners_from(&self, hash: u64) -> impl Iterator<Item = u16> {
        let (before, after) = self.owners.split_at(self.first(hash));
        after.iter().chain(before).copied()
    }

    /// The first place at or behind a hash; behind the last one comes the first.
    fn first(&self, hash: u64) -> usize {
        let begin = usize::try_from(hash >> self.shift).map_or(0, |at| self.begins[at] as usize);
        let steps = self.places[begin..].iter().position(|place| *place >= hash);
        steps.map_or(0, |steps| begin + steps)
    }
}
