//! Balancing by hash: which endpoint of a service a subject goes to, and who comes after that one, by a table over their addresses.
//!
//! The table is of all endpoints that may take anything, whether they are well or not. Whoever may not be chosen is passed
//! over for the next one in the order of the subject, so that what happens to one endpoint moves nobody else's subjects,
//! and no table is made on the way of a request. The bytes that are hashed stand in docs/balancing.md.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::hash::{mixed, seeded_hash, short_hash};
use crate::sharding::maglev::{Maglev, ROWS};
use crate::sharding::ring::{PLACES, Ring};
use crate::subject::Inputs;

/// The least and the largest `hash_balance_factor`, in percent: below the mean there is no room for all.
pub const FACTOR_MIN: u32 = 100;
pub const FACTOR_MAX: u32 = 1_000;
/// Most addresses of one table; what is beyond has no place in it.
const OWNERS_MAX: usize = 65_535;
/// Most places of one ring, 3.5 MiB with what finds them. Of more than 1,638 addresses each has fewer than [`PLACES`].
const RING_PLACES_MAX: usize = 1 << 18;
/// Rows of the table of one shard, a prime: few endpoints share one, and there may be a thousand shards.
const SHARD_ROWS: usize = 1_021;
/// Most steps of an order: so many are enough to meet three of three thousand, but for one subject of three thousand.
const STEPS_MAX: usize = 8_192;
/// The seed of a subject's hash. Not the one of sharding, by which the subjects of one shard would be those of one endpoint.
const SUBJECT_SEED: u64 = 1;

/// What a service says of balancing by its subjects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BySubject {
    pub kind: Kind,
    /// Where the subject is looked for, as its traffic says.
    pub inputs: Inputs,
    /// How many percent of the mean an endpoint may have in flight, [`FACTOR_MIN`] to [`FACTOR_MAX`]; without it any number.
    pub factor: Option<u32>,
}

/// The tables there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Maglev,
    Ring,
}

/// Who is in a table: addresses as they are hashed, in the order of their bytes, each with its weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members(Box<[(Box<str>, u32)]>);

/// Whose turn it is for each subject.
#[derive(Clone, Debug)]
pub struct Table {
    kind: Kind,
    members: Members,
    lookup: Lookup,
}

#[derive(Clone, Debug)]
enum Lookup {
    Maglev(Maglev),
    Ring(Ring),
}

impl Members {
    /// Members in any order. One that is named several times is there once, with its largest weight; one of weight 0 is not.
    #[must_use]
    pub fn of(members: impl IntoIterator<Item = (String, u32)>) -> Self {
        let mut members: Vec<(Box<str>, u32)> = members
            .into_iter()
            .filter(|(_, weight)| *weight > 0)
            .map(|(address, weight)| (address.into(), weight))
            .collect();
        members.sort_unstable_by(|(a, more), (b, less)| a.cmp(b).then(less.cmp(more)));
        members.dedup_by(|(a, _), (b, _)| a == b);
        members.truncate(OWNERS_MAX);
        Self(members.into())
    }

    /// Which one this address is: what [`Table::order`] calls it.
    #[must_use]
    pub fn owner(&self, address: &str) -> Option<u16> {
        let found = self.0.binary_search_by(|(known, _)| (**known).cmp(address));
        found.ok().and_then(|at| u16::try_from(at).ok())
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn heaviest(&self) -> u64 {
        self.0.iter().map(|(_, weight)| u64::from(*weight)).max().unwrap_or(1)
    }
}

impl Table {
    /// The table of a whole service.
    #[must_use]
    pub fn of(kind: Kind, members: Members) -> Self {
        Self::with_rows(ROWS, kind, members)
    }

    /// The table of one of its shards.
    #[must_use]
    pub fn of_shard(kind: Kind, members: Members) -> Self {
        Self::with_rows(SHARD_ROWS, kind, members)
    }

    fn with_rows(rows: usize, kind: Kind, members: Members) -> Self {
        let lookup = match kind {
            Kind::Maglev => Lookup::Maglev(rows_of(rows, &members)),
            Kind::Ring => Lookup::Ring(ring_of(&members)),
        };
        Self { kind, members, lookup }
    }

    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    #[must_use]
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// Who is asked for a subject's hash, one after the other. Members come again and again, and one of a small weight may
    /// not come at all. It ends after some thousand steps.
    pub fn order(&self, hash: u64) -> impl Iterator<Item = u16> {
        let (rows, ring) = match &self.lookup {
            Lookup::Maglev(rows) => (Some(rows), None),
            Lookup::Ring(ring) => (None, Some(ring.owners_from(hash))),
        };
        // Rows that hashes choose, instead of those that follow, leave their shares to whoever is left.
        let row = move |rows: &Maglev, step: u64| {
            rows.owner(if step == 0 { hash } else { mixed(hash.wrapping_add(step)) })
        };
        let rows = rows.into_iter().flat_map(move |rows| (0..).map(move |step| row(rows, step)));
        ring.into_iter().flatten().chain(rows).take(STEPS_MAX)
    }
}

/// The hash of a subject.
#[must_use]
pub fn subject_hash(subject: &[u8]) -> u64 {
    mixed(seeded_hash(subject, SUBJECT_SEED))
}

/// Most requests that an endpoint of this weight may have in flight, the next one included: `factor` percent of its share of
/// all that `weights` have together (Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded loads", 2018).
/// Rounded up, so that there is room somewhere whoever has how much.
#[must_use]
pub fn in_flight_max(factor: u32, in_flight: u64, weight: u32, weights: u64) -> u64 {
    let share = in_flight.saturating_add(1).saturating_mul(u64::from(factor)).saturating_mul(weight.into());
    share.div_ceil(weights.max(1).saturating_mul(100))
}

/// A ring on which the heaviest has [`PLACES`], the others as many as their weight is less, and at least one.
fn ring_of(members: &Members) -> Ring {
    let heaviest = members.heaviest();
    let most = PLACES.min(RING_PLACES_MAX / members.len().max(1)) as u64;
    let mut points = Vec::new();
    for ((address, weight), owner) in members.0.iter().zip(0..) {
        let places = (most * u64::from(*weight) + heaviest / 2) / heaviest;
        let place = |at: u64| mixed(short_hash(format!("{address}#{at}").as_bytes()));
        points.extend((0..places.max(1)).map(|at| (place(at), owner)));
    }
    Ring::of_points(points)
}

fn rows_of(rows: usize, members: &Members) -> Maglev {
    let hashes = members.0.iter().map(|(address, _)| mixed(short_hash(address.as_bytes())));
    Maglev::filled(rows, &hashes.collect::<Vec<_>>(), turns(members))
}

/// Whose turn it is to take a row: in the time in which the heaviest has `n` turns, another has as many as its weight is
/// less. Everybody begins with one.
fn turns(members: &Members) -> impl Iterator<Item = u16> {
    let heaviest = members.heaviest();
    let weights: Vec<u64> = members.0.iter().map(|(_, weight)| u64::from(*weight)).collect();
    // The same in less time, and the most usual.
    let are_equal = weights.iter().all(|weight| *weight == heaviest);
    let equal = are_equal.then(|| (0..u16::MAX).take(weights.len()).cycle());
    // By when the next one is due, counted in turns of the heaviest.
    let mut due: BinaryHeap<Reverse<(u64, u16, u64)>> =
        (0..).zip(&weights).map(|(owner, _)| Reverse((0, owner, 0))).collect();
    let weighted = std::iter::from_fn(move || {
        let Reverse((_, owner, had)) = due.pop()?;
        let next = ((had + 1) * heaviest).div_ceil(weights[usize::from(owner)]);
        due.push(Reverse((next, owner, had + 1)));
        Some(owner)
    });
    equal.into_iter().flatten().chain(weighted)
}

#[cfg(test)]
mod tests;
