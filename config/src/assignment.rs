//! Which version a subject belongs to: its place among a million, and the table that says whose place that is.
//!
//! A subject's place depends on the salt and itself alone. What moves is the border between versions: whoever was
//! inside a share that grows stays inside.

use std::collections::BTreeMap;

use crate::cbor::{Head, Major};
use crate::hash::Murmur3;
use crate::name::Name;
use crate::unit::Ppm;

/// Places of a table: parts per million.
pub const PLACES: u32 = 1_000_000;
/// Most ranges of a table. Many small steps between three or more versions cut it into pieces.
pub const RANGES_MAX: usize = 1_000;

/// The salt of a split, prepared for hashing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Salt {
    text: Box<str>,
    /// What stands before the subject in the CBOR array `[salt, subject]`.
    prefix: Box<[u8]>,
}

impl Salt {
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut prefix = Head::new(Major::Array, 2).as_slice().to_vec();
        prefix.extend_from_slice(Head::new(Major::Text, text.len() as u64).as_slice());
        prefix.extend_from_slice(text.as_bytes());
        Self { text: text.into(), prefix: prefix.into() }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// `murmur3_x86_32(cbor([salt, subject]))`. The subject is the bare value, hashed as a CBOR text string whatever its
    /// bytes are.
    #[must_use]
    pub fn hash(&self, subject: &[u8]) -> u32 {
        let head = Head::new(Major::Text, subject.len() as u64);
        Murmur3::default().with(&self.prefix).with(head.as_slice()).with(subject).finish()
    }

    /// A subject's place, from 0 up to [`PLACES`].
    #[must_use]
    pub fn place(&self, subject: &[u8]) -> u32 {
        place_of(self.hash(subject))
    }
}

/// The place of a hash, from 0 up to [`PLACES`]: `(hash × 1 000 000) >> 32`.
#[must_use]
pub fn place_of(hash: u32) -> u32 {
    // Less than PLACES, because the hash is less than 2^32.
    ((u64::from(hash) * u64::from(PLACES)) >> 32) as u32
}

/// Whose each of the [`PLACES`] is: ranges without holes, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    ranges: Vec<Range>,
}

/// A version and the places it has, up to but not including `end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    pub version: Name,
    pub start: u32,
    pub end: u32,
}

/// Why ranges are no table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableFault {
    /// More than [`RANGES_MAX`].
    TooMany,
    /// The range at this place of the list does not begin where the one before it ends, or is empty.
    Gap { at: usize, expected: u32 },
    /// The last range does not end at [`PLACES`].
    Short { end: u32 },
}

impl Table {
    /// A table of these ranges, in order.
    ///
    /// # Errors
    /// When they leave a hole, overlap, or are too many.
    pub fn new(ranges: impl IntoIterator<Item = (Name, u32, u32)>) -> Result<Self, TableFault> {
        let mut table = Self { ranges: Vec::new() };
        let mut next = 0;
        for (at, (version, start, end)) in ranges.into_iter().enumerate() {
            if at >= RANGES_MAX {
                return Err(TableFault::TooMany);
            }
            if start != next || end <= start || end > PLACES {
                return Err(TableFault::Gap { at, expected: next });
            }
            next = end;
            table.push(version, end);
        }
        if next == PLACES { Ok(table) } else { Err(TableFault::Short { end: next }) }
    }

    /// The table of weights that nobody wrote one for: all but the stable version by name from 0, the stable one last.
    #[must_use]
    pub fn of_weights(stable: &Name, weights: &BTreeMap<Name, Ppm>) -> Self {
        let mut table = Self { ranges: Vec::new() };
        let mut end = 0;
        for (version, weight) in weights.iter().filter(|(version, _)| *version != stable) {
            end = (end + weight.get()).min(PLACES);
            table.push(version.clone(), end);
        }
        table.push(stable.clone(), PLACES);
        table
    }

    /// Gives what lies between the last range's end and this one to a version.
    fn push(&mut self, version: Name, end: u32) {
        let start = self.ranges.last().map_or(0, |last| last.end);
        if end <= start {
            return;
        }
        match self.ranges.last_mut() {
            Some(last) if last.version == version => last.end = end,
            _ => self.ranges.push(Range { version, start, end }),
        }
    }

    #[must_use]
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// Whose a place is.
    #[must_use]
    pub fn at(&self, place: u32) -> &Name {
        let at = self.ranges.partition_point(|range| range.end <= place);
        &self.ranges[at.min(self.ranges.len() - 1)].version
    }

    /// How many places a version has.
    #[must_use]
    pub fn share(&self, version: &Name) -> u32 {
        let own = self.ranges.iter().filter(|range| range.version == *version);
        own.map(|range| range.end - range.start).sum()
    }

    /// The places that belong to another version there.
    #[must_use]
    pub fn moved(&self, other: &Self) -> u32 {
        self.moves(other).into_iter().map(|(_, _, places)| places).sum()
    }

    /// The places that belong to another version there: whose they are, whose they would be, and how many.
    #[must_use]
    pub fn moves(&self, other: &Self) -> Vec<(Name, Name, u32)> {
        let mut moves: BTreeMap<(&Name, &Name), u32> = BTreeMap::new();
        for range in &self.ranges {
            for their in &other.ranges {
                let (start, end) = (range.start.max(their.start), range.end.min(their.end));
                if start < end && range.version != their.version {
                    *moves.entry((&range.version, &their.version)).or_default() += end - start;
                }
            }
        }
        moves.into_iter().map(|((from, to), places)| (from.clone(), to.clone(), places)).collect()
    }

    /// The table with other weights, of which [`Table::share`] gets exact, that moves as few places as can be: only
    /// what a version has too much goes to those that have too little.
    ///
    /// The stable version gives from its low end and takes back at it, the others give from their high end: so two
    /// versions always share as `[candidate, stable]`, and who left a share that shrank comes back when it grows again.
    ///
    /// # Errors
    /// When it would have more than [`RANGES_MAX`] ranges; [`Table::of_weights`] has few, and moves more.
    pub fn reweighed(&self, stable: &Name, weights: &BTreeMap<Name, Ppm>) -> Result<Self, TableFault> {
        let weight = |version: &Name| weights.get(version).map_or(0, |weight| weight.get());
        let mut pieces: Vec<(Option<Name>, u32, u32)> = Vec::new();
        // What each still has to give away from its high end; of the stable version from its low end.
        let mut surplus: BTreeMap<&Name, u32> = BTreeMap::new();
        for range in &self.ranges {
            let more = self.share(&range.version).saturating_sub(weight(&range.version));
            surplus.insert(&range.version, more);
        }
        let mut from_low = surplus.get(stable).copied().unwrap_or_default();
        for range in &self.ranges {
            let given = if range.version == *stable { from_low.min(range.end - range.start) } else { 0 };
            from_low -= given.min(from_low);
            if range.version == *stable {
                pieces.push((None, range.start, range.start + given));
            }
            pieces.push((Some(range.version.clone()), range.start + given, range.end));
        }
        for at in (0..pieces.len()).rev() {
            let (Some(owner), start, end) = pieces[at].clone() else { continue };
            if owner == *stable {
                continue;
            }
            let Some(left) = surplus.get_mut(&owner) else { continue };
            let given = (*left).min(end - start);
            *left -= given;
            pieces[at].2 = end - given;
            pieces.insert(at + 1, (None, end - given, end));
        }
        let mut wanting: Vec<(Name, u32)> = weights
            .iter()
            .map(|(version, weight)| (version.clone(), weight.get().saturating_sub(self.share(version))))
            .filter(|(version, missing)| *missing > 0 && version != stable)
            .collect();
        let missing = weight(stable).saturating_sub(self.share(stable));
        // The stable one takes last, what is highest.
        wanting.push((stable.clone(), missing));
        let mut table = Self { ranges: Vec::new() };
        let mut takers = wanting.into_iter().peekable();
        for (owner, start, end) in pieces.into_iter().filter(|(_, start, end)| start < end) {
            if let Some(owner) = owner {
                table.push(owner, end);
                continue;
            }
            let mut from = start;
            while from < end {
                let Some((taker, missing)) = takers.peek_mut() else { break };
                let taken = (*missing).min(end - from);
                from += taken;
                *missing -= taken;
                table.push(taker.clone(), from);
                if *missing == 0 {
                    takers.next();
                }
            }
        }
        // Weights that sum to a whole leave nothing; others are refused before this.
        table.push(stable.clone(), PLACES);
        if table.ranges.len() > RANGES_MAX { Err(TableFault::TooMany) } else { Ok(table) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    fn weights(all: &[(&str, f64)]) -> BTreeMap<Name, Ppm> {
        all.iter().map(|(version, percent)| (name(version), Ppm::from_percent(*percent).unwrap())).collect()
    }

    fn shown(table: &Table) -> String {
        let ranges =
            table.ranges().iter().map(|range| format!("{}:{}-{}", range.version, range.start, range.end));
        ranges.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn places_are_frozen() {
        // Values of mmh3 5.3.1 and cbor2 5.9.0.
        for (salt, subject, expected) in [
            ("checkout-2026-11-22", "user-1", 944_195),
            ("checkout-2026-11-22", "user-2", 447_391),
            ("checkout-2026-11-22", "user-3", 526_674),
            ("checkout-2026-12-01", "user-1", 361_352),
        ] {
            assert_eq!(Salt::new(salt).place(subject.as_bytes()), expected, "{salt} {subject}");
        }
    }

    #[test]
    fn one_percent_of_a_million_subjects_is_one_percent() {
        let salt = Salt::new("checkout");
        let inside =
            (0..1_000_000).filter(|user| salt.place(format!("user-{user}").as_bytes()) < 10_000).count();
        assert!((9_500..=10_500).contains(&inside), "{inside}");
    }

    #[test]
    fn three_versions_move_as_little_as_can_be() {
        let before = Table::of_weights(&name("c"), &weights(&[("a", 10.0), ("b", 10.0), ("c", 80.0)]));
        let after = before.reweighed(&name("c"), &weights(&[("a", 20.0), ("b", 20.0), ("c", 60.0)])).unwrap();
        assert_eq!(before.moved(&after), 200_000);
        assert_eq!(
            shown(&after),
            "a:0-100000 b:100000-200000 a:200000-300000 b:300000-400000 c:400000-1000000"
        );
        let back = after.reweighed(&name("c"), &weights(&[("a", 10.0), ("b", 10.0), ("c", 80.0)])).unwrap();
        assert_eq!(back, before);
    }

    #[test]
    fn two_versions_always_share_in_the_same_form() {
        let stable = name("v1");
        let mut table = Table::of_weights(&stable, &weights(&[("v1", 100.0), ("v2", 0.0)]));
        for percent in [1.0, 10.0, 5.0, 50.0, 100.0, 0.0, 1.0] {
            let now = weights(&[("v1", 100.0 - percent), ("v2", percent)]);
            table = table.reweighed(&stable, &now).unwrap();
            assert_eq!(table, Table::of_weights(&stable, &now), "{percent}");
        }
    }

    #[test]
    fn holes_and_overlaps_are_no_table() {
        let of = |ranges: &[(&str, u32, u32)]| {
            Table::new(ranges.iter().map(|(version, start, end)| (name(version), *start, *end)))
        };
        assert!(of(&[("a", 0, 500_000), ("b", 500_000, PLACES)]).is_ok());
        assert_eq!(of(&[("a", 0, 5), ("b", 6, PLACES)]), Err(TableFault::Gap { at: 1, expected: 5 }));
        assert_eq!(of(&[("a", 0, 5), ("b", 4, PLACES)]), Err(TableFault::Gap { at: 1, expected: 5 }));
        assert_eq!(of(&[("a", 0, 0), ("b", 0, PLACES)]), Err(TableFault::Gap { at: 0, expected: 0 }));
        assert_eq!(of(&[("a", 0, 5)]), Err(TableFault::Short { end: 5 }));
        assert_eq!(of(&[]), Err(TableFault::Short { end: 0 }));
    }

    fn some_weights() -> impl Strategy<Value = BTreeMap<Name, Ppm>> {
        proptest::collection::vec(0_u32..=1_000_000, 3).prop_map(|mut cuts| {
            cuts.sort_unstable();
            let parts = [cuts[0], cuts[1] - cuts[0], cuts[2] - cuts[1], PLACES - cuts[2]];
            let names = ["a", "b", "c", "s"];
            let percent = |ppm: u32| Ppm::from_percent(f64::from(ppm) / 10_000.0).unwrap();
            names.iter().zip(parts).map(|(version, ppm)| (name(version), percent(ppm))).collect()
        })
    }

    proptest! {
        #[test]
        fn weights_are_exact_and_nobody_moves_without_need(all in proptest::collection::vec(some_weights(), 2..8)) {
            let stable = name("s");
            let mut table = Table::of_weights(&stable, &all[0]);
            for pair in all.windows(2) {
                let next = table.reweighed(&stable, &pair[1]).unwrap();
                for (version, weight) in &pair[1] {
                    prop_assert_eq!(next.share(version), weight.get());
                }
                let growth = |version: &Name| pair[1][version].get().saturating_sub(pair[0][version].get());
                prop_assert_eq!(table.moved(&next), pair[1].keys().map(growth).sum::<u32>());
                let again = next.ranges().iter().map(|range| (range.version.clone(), range.start, range.end));
                prop_assert_eq!(Table::new(again), Ok(next.clone()));
                table = next;
            }
        }

        #[test]
        fn text_of_any_length_has_a_head_of_its_own(short in 0_usize..70_000) {
            let head = Head::new(Major::Text, short as u64);
            let length = match head.as_slice() {
                [one] => usize::from(one & 0x1F),
                [0x78, length] => usize::from(*length),
                [0x79, length @ ..] => usize::from(u16::from_be_bytes(length.try_into().unwrap())),
                [_, length @ ..] => u32::from_be_bytes(length.try_into().unwrap()) as usize,
                [] => unreachable!("heads have a byte"),
            };
            prop_assert_eq!(length, short);
        }
    }
}
