//! Ranges: each shard has the keys from its lower bounds up to the next one, by their bytes or as numbers.

use std::collections::BTreeSet;

use serde_json::Value as Json;

use super::strategy::write_part;
use crate::grammar::Value;
use crate::name::Name;
use crate::problem::shown;

/// Most lower bounds of one map.
const BOUNDS_MAX: usize = 16_384;

/// The lower bounds in their order, the lowest of all left out: whatever is below the first bound is the first shard's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ranges {
    bounds: Bounds,
    /// One more than bounds: who has what is below each, and who has the rest.
    owners: Box<[u16]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Bounds {
    Bytes(Box<[Box<[u8]>]>),
    Numbers(Box<[i64]>),
}

impl Ranges {
    /// Reads `{ "0" = ["", "t"], "1" = "m" }`: the empty bound is the lowest of all, and has to be there.
    pub(super) fn read(value: &Value<'_>, numeric: bool, shards: &[Name]) -> Option<Self> {
        let mut owned = Vec::new();
        for (key, entry) in value.entries()? {
            let Some(at) = shards.iter().position(|shard| shard.as_str() == key) else { continue };
            let shard = u16::try_from(at).ok()?;
            let bounds = if entry.is_list() { entry.items()? } else { vec![entry] };
            owned.extend(bounds.into_iter().map(|bound| (shard, bound)));
        }
        if owned.len() > BOUNDS_MAX {
            value.fault(format!("{} lower bounds", owned.len()), format!("at most {BOUNDS_MAX}"));
            return None;
        }
        if numeric {
            let read = |entry: &Value<'_>| -> Option<Option<i64>> {
                if !entry.is_text() {
                    return entry.integer(i64::MIN, i64::MAX).map(Some);
                }
                let text = entry.text()?;
                let number = if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) };
                if number.is_none() {
                    entry.fault(format!("\"{}\" is no number", shown(text)), "e.g. \"1000\"");
                }
                number
            };
            let (bounds, owners) = sorted(value, &owned, shards, read)?;
            Some(Self { bounds: Bounds::Numbers(bounds), owners })
        } else {
            let read = |entry: &Value<'_>| -> Option<Option<Box<[u8]>>> {
                let text = entry.text()?;
                Some((!text.is_empty()).then(|| text.as_bytes().into()))
            };
            let (bounds, owners) = sorted(value, &owned, shards, read)?;
            Some(Self { bounds: Bounds::Bytes(bounds), owners })
        }
    }

    /// Whose a key is; `None` where it has to be a number and is none.
    pub(super) fn shard(&self, key: &[u8]) -> Option<usize> {
        let at = match &self.bounds {
            Bounds::Bytes(bounds) => bounds.partition_point(|bound| **bound <= *key),
            Bounds::Numbers(bounds) => {
                let number = number(key)?;
                bounds.partition_point(|bound| *bound <= number)
            }
        };
        Some(usize::from(self.owners[at]))
    }

    /// What the bounds of both rules divide keys into, in order: the lower bound as a document says it, and whose the keys are
    /// by this rule and by the other one. Both are by bytes, or both by numbers.
    pub(super) fn cut(&self, other: &Self) -> Vec<(Json, u16, u16)> {
        let owners = (&*self.owners, &*other.owners);
        match (&self.bounds, &other.bounds) {
            (Bounds::Bytes(own), Bounds::Bytes(others)) => {
                cut((own, others), owners, |bound| Json::from(String::from_utf8_lossy(bound)))
            }
            (Bounds::Numbers(own), Bounds::Numbers(others)) => {
                cut((own, others), owners, |bound| Json::from(*bound))
            }
            (Bounds::Bytes(_), Bounds::Numbers(_)) | (Bounds::Numbers(_), Bounds::Bytes(_)) => Vec::new(),
        }
    }

    pub(super) fn holds(&self, shard: usize) -> String {
        let own = (0..self.owners.len()).filter(|at| usize::from(self.owners[*at]) == shard);
        let ranges: Vec<String> = own.map(|at| self.range(at)).collect();
        if ranges.is_empty() { "nothing".to_owned() } else { ranges.join(", ") }
    }

    fn range(&self, at: usize) -> String {
        match (at.checked_sub(1).and_then(|below| self.bound(below)), self.bound(at)) {
            (None, None) => "all".to_owned(),
            (None, Some(end)) => format!("below {end}"),
            (Some(first), None) => format!("from {first}"),
            (Some(first), Some(end)) => format!("from {first} to below {end}"),
        }
    }

    fn bound(&self, at: usize) -> Option<String> {
        match &self.bounds {
            Bounds::Bytes(bounds) => {
                bounds.get(at).map(|bound| format!("\"{}\"", shown(&String::from_utf8_lossy(bound))))
            }
            Bounds::Numbers(bounds) => bounds.get(at).map(i64::to_string),
        }
    }

    pub(super) fn write(&self, shards: &[Name], out: &mut Vec<u8>) {
        match &self.bounds {
            Bounds::Bytes(bounds) => bounds.iter().for_each(|bound| write_part(out, bound)),
            Bounds::Numbers(bounds) => {
                write_part(out, b"numeric");
                bounds.iter().for_each(|bound| write_part(out, &bound.to_le_bytes()));
            }
        }
        for owner in &self.owners {
            write_part(out, shards[usize::from(*owner)].as_str().as_bytes());
        }
    }
}

fn cut<B: Ord>(
    (own, others): (&[B], &[B]),
    owners: (&[u16], &[u16]),
    said: impl Fn(&B) -> Json,
) -> Vec<(Json, u16, u16)> {
    let all: BTreeSet<&B> = own.iter().chain(others).collect();
    let at = |bounds: &[B], bound: Option<&B>| bounds.partition_point(|other| Some(other) <= bound);
    let bounds = std::iter::once(None).chain(all.into_iter().map(Some));
    let cell = |bound: Option<&B>| {
        let first = bound.map_or_else(|| Json::from(""), &said);
        (first, owners.0[at(own, bound)], owners.1[at(others, bound)])
    };
    bounds.map(cell).collect()
}

/// The bounds above the lowest one, and the owners of what lies between.
type Sorted<B> = (Box<[B]>, Box<[u16]>);

fn sorted<B: Ord>(
    value: &Value<'_>,
    owned: &[(u16, Value<'_>)],
    shards: &[Name],
    read: impl Fn(&Value<'_>) -> Option<Option<B>>,
) -> Option<Sorted<B>> {
    let mut bounds: Vec<(Option<B>, u16, &Value<'_>)> = Vec::with_capacity(owned.len());
    for (shard, entry) in owned {
        bounds.push((read(entry)?, *shard, entry));
    }
    // No bound is below every other one. The sort is stable: of equal bounds the one that came first is first.
    bounds.sort_by(|a, b| a.0.cmp(&b.0));
    let mut is_sound = true;
    for pair in bounds.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
        let other = &shards[usize::from(pair[0].1)];
        pair[1].2.fault(format!("`{other}` has the same lower bound"), "each range begins at another key");
        is_sound = false;
    }
    if bounds.first().is_some_and(|(bound, ..)| bound.is_some()) {
        value.fault("nobody has the keys below the first bound", "the lowest bound is empty: \"\"");
        is_sound = false;
    }
    if !is_sound {
        return None;
    }
    // A bound between two ranges of one shard divides nothing.
    bounds.dedup_by_key(|(_, shard, _)| *shard);
    let owners = bounds.iter().map(|(_, shard, _)| *shard).collect();
    Some((bounds.into_iter().filter_map(|(bound, ..)| bound).collect(), owners))
}

/// A whole number in decimal digits, with a minus where it is below 0.
fn number(key: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(key).ok()?;
    if text.starts_with('+') { None } else { text.parse().ok() }
}
