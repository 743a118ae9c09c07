//! Slots: the hash modulo a fixed number of slots, each of which a map gives to a shard. Growing moves slots, never single keys.

use super::strategy::{remainder, write_part};
use crate::grammar::Value;
use crate::name::Name;

/// Most slots: what sixteen bits can tell apart.
pub(super) const SLOTS_MAX: u32 = 65_536;
/// Most holes that are told of one map.
const HOLES_MAX: usize = 10;
/// The owner of a slot that has none yet; there are fewer shards than that.
const NOBODY: u16 = u16::MAX;

/// Whose each slot is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slots(Box<[u16]>);

/// Slots of one owner, the last one included.
type Run = (usize, usize);

impl Slots {
    /// Reads `{ "0" = "0-8191", "1" = "8192-12287,12288-16383" }`, in which every slot has to be once.
    pub(super) fn read(value: &Value<'_>, count: u32, shards: &[Name]) -> Option<Self> {
        let count = usize::try_from(count).ok()?;
        let mut owners = vec![NOBODY; count].into_boxed_slice();
        let mut is_sound = true;
        for (key, entry) in value.entries()? {
            let Some(at) = shards.iter().position(|shard| shard.as_str() == key) else { continue };
            let Ok(shard) = u16::try_from(at) else { continue };
            let Some(text) = entry.text() else {
                is_sound = false;
                continue;
            };
            for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
                match run_of(part, count) {
                    Ok(run) => is_sound &= give(&mut owners, run, shard, shards, &entry),
                    Err(what) => {
                        entry.fault(what, format!("slots from 0 to {}, e.g. \"0-4095,8192\"", count - 1));
                        is_sound = false;
                    }
                }
            }
        }
        let holes: Vec<String> = runs(&owners, NOBODY).take(HOLES_MAX).map(told).collect();
        // What is faulty otherwise has holes for that.
        if is_sound && !holes.is_empty() {
            value.fault(format!("nobody has the slots {}", holes.join(", ")), "every slot is one shard's");
            is_sound = false;
        }
        is_sound.then_some(Self(owners))
    }

    /// The owner of each slot.
    pub(super) fn owners(&self) -> &[u16] {
        &self.0
    }

    /// The owner of a slot, if there is such a slot.
    pub(super) fn shard(&self, slot: u32) -> Option<usize> {
        self.0.get(usize::try_from(slot).ok()?).map(|owner| usize::from(*owner))
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    pub(super) fn slot_and_shard(&self, hash: u64) -> (u32, usize) {
        let slot = remainder(hash, self.0.len());
        (u32::try_from(slot).unwrap_or_default(), usize::from(self.0[slot]))
    }

    pub(super) fn holds(&self, shard: usize) -> String {
        let Ok(shard) = u16::try_from(shard) else { return String::new() };
        runs(&self.0, shard).map(told).collect::<Vec<_>>().join(",")
    }

    pub(super) fn write(&self, shards: &[Name], out: &mut Vec<u8>) {
        for run in self.0.chunk_by(|a, b| a == b) {
            out.extend_from_slice(&(run.len() as u64).to_le_bytes());
            write_part(out, shards[usize::from(run[0])].as_str().as_bytes());
        }
    }
}

/// Reads `5` or `0-8191`.
fn run_of(text: &str, count: usize) -> Result<Run, String> {
    let number = |text: &str| -> Option<usize> {
        let text = text.trim();
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        if is_number { text.parse().ok() } else { None }
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (Some(first), Some(last)) = (number(first), number(last)) else {
        return Err(format!("\"{}\" is no range of slots", crate::problem::shown(text)));
    };
    if first > last {
        return Err(format!("the range {first}-{last} ends before it begins"));
    }
    if last >= count {
        return Err(format!("slot {last} is out of range"));
    }
    Ok((first, last))
}

/// Gives a run to a shard, unless another has a part of it.
fn give(owners: &mut [u16], run: Run, shard: u16, shards: &[Name], entry: &Value<'_>) -> bool {
    let (first, last) = run;
    let taken = owners[first..=last].iter().position(|owner| *owner != NOBODY).map(|at| first + at);
    if let Some(slot) = taken {
        let other = &shards[usize::from(owners[slot])];
        entry.fault(format!("slot {slot} is `{other}`'s already"), "every slot is one shard's");
        return false;
    }
    owners[first..=last].fill(shard);
    true
}

/// The runs of one owner.
fn runs(owners: &[u16], owner: u16) -> impl Iterator<Item = Run> {
    let mut next = 0;
    std::iter::from_fn(move || {
        let first = next + owners[next..].iter().position(|of| *of == owner)?;
        let length = owners[first..].iter().position(|of| *of != owner).unwrap_or(owners.len() - first);
        next = first + length;
        Some((first, next - 1))
    })
}

fn told((first, last): Run) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}
