//! A plan: which keys go from which shard to which other one so that a rule becomes another one, in batches that can be moved one
//! after the other. A plan changes nothing.
//!
//! In reading order: what maps divide and how that is said (`cells`), rules as tables (`table`), the slots that have to move
//! when shards come or go (`even`), what somebody wants ([`Wanted`]), what strategies without a map would move (`hashed`), and
//! the plan (here).

mod cells;

mod even;

mod hashed;

mod table;

mod wanted;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::wanted::Wanted;

use self::cells::Division;
use self::table::{read, rule_of, with};
use self::wanted::as_wanted;
use super::Sharding;
use super::strategy::{By, Strategy};
use crate::name::Name;
use crate::problem::{Problem, Problems};

/// Most bytes of the rules of all batches of a plan, as JSON.
const RULES_BYTES_MAX: usize = 16 << 20;
/// A whole in parts per million.
const WHOLE_PPM: usize = 1_000_000;

/// What has to move.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// In the order in which they move. None where nothing moves or nothing can be moved; the notes say which.
    pub batches: Vec<Batch>,
    /// The share of keys that move in parts per million; absent where nobody knows how many keys there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_ppm: Option<u32>,
    /// The least share that would have to, for shards of the same sizes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub least_ppm: Option<u32>,
    /// For whoever reads it.
    pub notes: Vec<String>,
}

/// Keys that go from one shard to another together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    pub from: Name,
    pub to: Name,
    /// In words: `slots 8192-12287`.
    pub what: String,
    /// For programs: `slots` with first and last ones, `places` and `of`, `ranges` with lower bounds and ends (null where there is
    /// none), or `keys`.
    pub detail: Value,
    /// Share of all keys in parts per million, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ppm: Option<u32>,
    /// The table `next` of this batch: the rule after it.
    pub next: Value,
}

/// Plans how the rule of `table`, which is a `[services.s.sharding]`, becomes what is wanted.
///
/// # Errors
/// What is wrong with either, by the keys of [`Wanted`], and why it cannot be.
pub fn plan(table: &Value, wanted: &Wanted) -> Result<Plan, Problems> {
    let now = read(table)?;
    if now.next().is_some() {
        return Err(Problem::at(
            "next",
            "a batch of keys is moving",
            "a plan once it has moved or was given up",
        )
        .into());
    }
    wanted.check(&now)?;
    match &now.strategy {
        Strategy::Hashed(_, By::Jump | By::Maglev(_) | By::Rendezvous(_) | By::Ring(_)) => {
            hashed::plan(table, &now, wanted)
        }
        Strategy::Directory(_) | Strategy::Range(_) | Strategy::Hashed(_, By::Modulo(_) | By::Slots(_)) => {
            in_batches(table, &now, wanted)
        }
    }
}

fn in_batches(table: &Value, now: &Sharding, wanted: &Wanted) -> Result<Plan, Problems> {
    let last = wanted.next(table, now)?;
    // What moves is told by the rule that has the wanted one as its `next`, as it is told while it moves.
    let both = read(&with(table, &[("next", last.clone())])).map_err(as_wanted)?;
    let division = Division::of(&both)?;
    let groups = grouped(&division, wanted.batch_slots);
    let names = both.shards();
    let mut owners = division.owners_before();
    let mut batches = Vec::with_capacity(groups.len());
    let mut bytes = 0;
    for (at, (from, to, cells)) in groups.iter().enumerate() {
        cells.iter().for_each(|cell| owners[*cell] = *to);
        let is_last = at + 1 == groups.len();
        let next = if is_last { last.clone() } else { rule_of(table, &division.cells, &owners, names) };
        bytes += next.to_string().len();
        if bytes > RULES_BYTES_MAX {
            let what =
                format!("{} batches, whose rules are more than {} MiB", groups.len(), RULES_BYTES_MAX >> 20);
            return Err(Problem::at("", what, "less at once, or larger batches").into());
        }
        batches.push(Batch {
            from: names[usize::from(*from)].clone(),
            to: names[usize::from(*to)].clone(),
            what: division.cells.what(cells),
            detail: division.cells.detail(cells),
            ppm: division.cells.total().map(|total| ppm(cells.len(), total)),
            next,
        });
    }
    let moved = groups.iter().map(|(_, _, cells)| cells.len()).sum();
    let total = division.cells.total();
    let (moved_ppm, least_ppm) =
        (total.map(|total| ppm(moved, total)), total.map(|total| ppm(division.least(), total)));
    let mut notes = division.notes();
    if batches.is_empty() {
        notes.push("nothing moves: every key is where it shall be".to_owned());
    } else if let Some((moved, least)) = moved_ppm.zip(least_ppm).filter(|(moved, least)| moved > least) {
        let (moved, least) = (percent(moved), percent(least));
        notes.push(format!("{moved} of the keys move; for shards of the same sizes {least} would be enough"));
    }
    Ok(Plan { batches, moved_ppm, least_ppm, notes })
}

/// Cells that go from one shard to another, in the order of the first of them.
fn grouped(division: &Division, batch_slots: Option<u32>) -> Vec<(u16, u16, Vec<usize>)> {
    let mut groups: Vec<(u16, u16, Vec<usize>)> = Vec::new();
    let mut places: HashMap<(u16, u16), usize> = HashMap::new();
    for (cell, from, to) in division.moves() {
        let at = *places.entry((from, to)).or_insert_with(|| {
            groups.push((from, to, Vec::new()));
            groups.len() - 1
        });
        groups[at].2.push(cell);
    }
    let most = batch_slots.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
    let parts = groups.into_iter().flat_map(|(from, to, cells)| {
        cells.chunks(most).map(|part| (from, to, part.to_vec())).collect::<Vec<_>>()
    });
    parts.collect()
}

/// A part of a whole in parts per million, to the nearest.
fn ppm(part: usize, whole: usize) -> u32 {
    let whole = whole.max(1);
    u32::try_from((part.saturating_mul(WHOLE_PPM) + whole / 2) / whole).unwrap_or(u32::MAX)
}

/// A share as people read it: with one decimal where it has any.
fn percent(ppm: u32) -> String {
    let tenths = (ppm + 500) / 1_000;
    if tenths.is_multiple_of(10) {
        format!("{} %", tenths / 10)
    } else {
        format!("{}.{} %", tenths / 10, tenths % 10)
    }
}

#[cfg(test)]
mod tests;
