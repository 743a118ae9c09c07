//! What strategies without a map would move if their list of shards changed: their hash says it, all at once and to wherever it
//! likes, so it is told and not moved.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::super::Sharding;
use super::table::{read, with};
use super::{Plan, Wanted, percent, ppm};
use crate::name::Name;
use crate::problem::Problems;

/// Keys that are looked up by both rules: the share is told within half a percent.
const SAMPLE: u32 = 16_384;

pub(super) fn plan(table: &Value, now: &Sharding, wanted: &Wanted) -> Result<Plan, Problems> {
    let then = read(&with(table, &[("shards", json!(wanted.shards))]))?;
    let moves = |key: &u32| {
        let key = key.to_string();
        let shard =
            |rule: &Sharding| rule.locate(key.as_bytes()).ok().map(|spot| rule.shards()[spot.shard].clone());
        shard(now) != shard(&then)
    };
    let moved = ppm((0..SAMPLE).filter(moves).count(), SAMPLE as usize);
    let least = least(now.shards(), then.shards());
    let note = format!(
        "`{}` would move about {} of the keys, all at once and to wherever its hash says ({} would be the least): nobody can move them batch by batch. Where nothing is lost by that, as with caches, change `shards` in the document by force; else divide by `slots`",
        now.strategy.as_str(),
        percent(moved),
        percent(least),
    );
    Ok(Plan { batches: Vec::new(), moved_ppm: Some(moved), least_ppm: Some(least), notes: vec![note] })
}

/// The least share that has to move between shards of equal sizes: what each has more than before.
fn least(now: &[Name], then: &[Name]) -> u32 {
    let old: BTreeSet<&Name> = now.iter().collect();
    // In parts of a whole that both numbers divide.
    let (whole, after, before) = (now.len() * then.len(), now.len(), then.len());
    let gain = |shard: &Name| if old.contains(shard) { after.saturating_sub(before) } else { after };
    ppm(then.iter().map(gain).sum(), whole)
}
