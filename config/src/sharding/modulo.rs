//! Modulo: a list of places, of which the remainder of the hash is one. A shard may have several, so that a list that was
//! doubled gives its places away one by one.

use super::grammar::read_shard;
use super::strategy::{remainder, write_part};
use crate::grammar::Value;
use crate::name::Name;

/// Most places of a list.
pub(super) const PLACES_MAX: usize = 4_096;

/// Whose each place is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Modulo(Box<[u16]>);

impl Modulo {
    /// Reads `["0", "1", "0", "2"]`. A list that repeats itself as a whole means what its first part does, and is that.
    pub(super) fn read(value: &Value<'_>, shards: &[Name]) -> Option<Self> {
        let place = |item: &Value<'_>| -> Option<u16> {
            let name = read_shard(item)?;
            u16::try_from(shards.iter().position(|shard| *shard == name)?).ok()
        };
        let places: Vec<u16> = value.items()?.iter().map(place).collect::<Option<_>>()?;
        let repeats = |length: &usize| {
            places.len().is_multiple_of(*length)
                && places.chunks(*length).all(|part| part == &places[..*length])
        };
        let length = (1..=places.len()).find(repeats)?;
        Some(Self(places[..length].into()))
    }

    /// The owner of each place.
    pub(super) fn places(&self) -> &[u16] {
        &self.0
    }

    pub(super) fn shard(&self, hash: u64) -> usize {
        usize::from(self.0[remainder(hash, self.0.len())])
    }

    pub(super) fn holds(&self, shard: usize) -> String {
        let places = self.0.iter().zip(0..).filter(|(owner, _)| usize::from(**owner) == shard);
        let places: Vec<String> = places.map(|(_, place): (_, usize)| place.to_string()).collect();
        let word = if places.len() == 1 { "place" } else { "places" };
        if places.is_empty() {
            "nothing".to_owned()
        } else {
            format!("{word} {} of {}", places.join(", "), self.0.len())
        }
    }

    pub(super) fn write(&self, shards: &[Name], out: &mut Vec<u8>) {
        self.0.iter().for_each(|owner| write_part(out, shards[usize::from(*owner)].as_str().as_bytes()));
    }
}
