//! What a map divides among shards, one by one: slots, places of a list, ranges or single keys; whose each is by two rules, and
//! how that is said.

use serde_json::{Map, Value, json};

use super::super::Sharding;
use super::super::strategy::{By, Strategy};
use super::{percent, ppm};
use crate::name::Name;
use crate::problem::{Problem, Problems, shown};

/// Most parts that are told in words of one batch.
const PARTS_TOLD_MAX: usize = 5;

/// The smallest things that can be moved by themselves.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cells {
    /// Of a directory: the keys that either rule lists.
    Keys(Vec<String>),
    /// Of a list that both lists fit into.
    Places(usize),
    /// By the lower bounds of both rules, the lowest one, `""`, first.
    Ranges(Vec<Value>),
    Slots(usize),
}

/// Whose each cell is by a rule, and by its `next`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Division {
    pub(super) cells: Cells,
    /// Nobody has a key that a directory without a default does not list.
    now: Vec<Option<u16>>,
    then: Vec<u16>,
    shards: usize,
}

impl Division {
    /// Divides by a rule that has a `next`.
    ///
    /// # Errors
    /// Why nobody should move that.
    pub(super) fn of(rule: &Sharding) -> Result<Self, Problems> {
        let then = rule.next().map_or(&rule.strategy, |next| &next.strategy);
        let (cells, pairs): (Cells, Vec<(Option<u16>, u16)>) = match (&rule.strategy, then) {
            (Strategy::Hashed(_, By::Slots(now)), Strategy::Hashed(_, By::Slots(then))) => {
                let (now, then) = (now.owners(), then.owners());
                (
                    Cells::Slots(now.len()),
                    now.iter().map(|owner| Some(*owner)).zip(then.iter().copied()).collect(),
                )
            }
            (Strategy::Hashed(_, By::Modulo(now)), Strategy::Hashed(_, By::Modulo(then))) => {
                let (now, then) = (now.places(), then.places());
                let many = now.len().max(then.len());
                if !many.is_multiple_of(now.len()) || !many.is_multiple_of(then.len()) {
                    return Err(remainders(now, then));
                }
                let pair = |at: usize| (Some(now[at % now.len()]), then[at % then.len()]);
                (Cells::Places(many), (0..many).map(pair).collect())
            }
            (Strategy::Range(now), Strategy::Range(then)) => {
                let cut = now.cut(then);
                let bounds = cut.iter().map(|(bound, ..)| bound.clone()).collect();
                (Cells::Ranges(bounds), cut.into_iter().map(|(_, now, then)| (Some(now), then)).collect())
            }
            (Strategy::Directory(now), Strategy::Directory(then)) => {
                let both = now.listed_in_either(then);
                let owner = |key: &str| then.shard(key.as_bytes()).and_then(|at| u16::try_from(at).ok());
                let lost = both.iter().find(|(key, _)| owner(key).is_none());
                if let Some((key, _)) = lost {
                    return Err(Problem::at(
                        "map",
                        format!("nobody would have the key \"{}\"", shown(key)),
                        "a shard for it",
                    )
                    .into());
                }
                let pairs = both.iter().filter_map(|(key, now)| Some((*now, owner(key)?))).collect();
                (Cells::Keys(both.into_iter().map(|(key, _)| key).collect()), pairs)
            }
            // A rule and its `next` have one strategy.
            (Strategy::Directory(_) | Strategy::Hashed(..) | Strategy::Range(_), _) => {
                (Cells::Slots(0), Vec::new())
            }
        };
        let (now, then) = pairs.into_iter().unzip();
        Ok(Self { cells, now, then, shards: rule.shards().len() })
    }

    /// Cells that have another owner by the second rule: cell, owner by the first, owner by the second.
    pub(super) fn moves(&self) -> impl Iterator<Item = (usize, u16, u16)> {
        let both = self.now.iter().zip(&self.then).enumerate();
        both.filter_map(|(cell, (now, then))| now.filter(|now| now != then).map(|now| (cell, now, *then)))
    }

    /// Whose each cell is before the first batch. What nobody had needs no move: it is its owner's from then on.
    pub(super) fn owners_before(&self) -> Vec<u16> {
        self.now.iter().zip(&self.then).map(|(now, then)| now.unwrap_or(*then)).collect()
    }

    /// How many cells would have to move at least for shards of the same sizes: what each has more than before.
    pub(super) fn least(&self) -> usize {
        let mut sizes = vec![(0_usize, 0_usize); self.shards];
        self.now.iter().flatten().for_each(|owner| sizes[usize::from(*owner)].0 += 1);
        self.then.iter().for_each(|owner| sizes[usize::from(*owner)].1 += 1);
        sizes.iter().map(|(now, then)| then.saturating_sub(*now)).sum()
    }

    /// What is worth to be known of the plan.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let homes = self.homes();
        if homes.iter().all(|homes| homes.len() <= 1)
            && homes.iter().filter(|homes| homes.len() == 1).count() > 1
        {
            notes.push(
                "each shard gives to one other shard only: a key stays where it is, or goes there".to_owned(),
            );
        }
        let nobodys = self.now.iter().filter(|now| now.is_none()).count();
        if nobodys > 0 {
            let how = if self.moves().next().is_some() {
                "they are listed with the first batch"
            } else {
                "nothing else moves, so list them in the document, by force"
            };
            notes.push(format!("keys that nobody has yet: {nobodys}; {how}"));
        }
        notes
    }

    /// To which others each shard gives something.
    fn homes(&self) -> Vec<Vec<u16>> {
        let mut homes: Vec<Vec<u16>> = vec![Vec::new(); self.shards];
        for (_, from, to) in self.moves() {
            let of = &mut homes[usize::from(from)];
            if !of.contains(&to) {
                of.push(to);
            }
        }
        homes
    }
}

/// Why a list cannot become one of such another length.
fn remainders(now: &[u16], then: &[u16]) -> Problems {
    let (before, after) = (now.len(), then.len());
    let common = before / divisor(before, after) * after;
    let moved = (0..common).filter(|hash| now[hash % before] != then[hash % after]).count();
    let moved = percent(ppm(moved, common));
    let what = format!(
        "{before} -> {after} places: the remainder by {after} has another shard than that by {before} for {moved} of all keys, which would go from every shard to every other"
    );
    let double = format!(
        "{before} -> {} places move 50 %, each key to the one place {before} further that can be its new home: the list as it is, and behind it the shards that take half of the one at their place",
        before * 2
    );
    let half = format!("; {before} -> {} places move 50 % back in the same way", before / 2);
    let hint = if before.is_multiple_of(2) { double + &half } else { double };
    Problem::at("shards", what, hint).into()
}

/// The greatest number that divides both.
fn divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { divisor(b, a % b) }
}

impl Cells {
    /// How many there are of all that can be asked for; `None` where nobody knows what is in them.
    pub(super) fn total(&self) -> Option<usize> {
        match self {
            Self::Places(many) | Self::Slots(many) => Some(*many),
            Self::Keys(_) | Self::Ranges(_) => None,
        }
    }

    /// The value of `map`, or of `shards` where they are places, that gives each cell to its owner.
    pub(super) fn said(&self, owners: &[u16], names: &[Name]) -> Value {
        let name = |owner: u16| names[usize::from(owner)].to_string();
        let pairs = owners.iter().enumerate();
        match self {
            Self::Keys(keys) => pairs.map(|(at, owner)| (keys[at].clone(), json!(name(*owner)))).collect(),
            Self::Places(_) => owners.iter().map(|owner| json!(name(*owner))).collect(),
            Self::Ranges(bounds) => {
                let mut map: Map<String, Value> = Map::new();
                let mut before = None;
                for (at, owner) in pairs {
                    if before.replace(*owner) != Some(*owner) {
                        map.entry(name(*owner))
                            .and_modify(|own| add(own, &bounds[at]))
                            .or_insert_with(|| bounds[at].clone());
                    }
                }
                Value::Object(map)
            }
            Self::Slots(_) => {
                let mut own: Vec<Vec<usize>> = vec![Vec::new(); names.len()];
                pairs.for_each(|(at, owner)| own[usize::from(*owner)].push(at));
                let held = own.iter().zip(names).filter(|(own, _)| !own.is_empty());
                held.map(|(own, name)| (name.to_string(), json!(told(&runs(own))))).collect()
            }
        }
    }

    /// Some of them in words.
    pub(super) fn what(&self, cells: &[usize]) -> String {
        let runs = runs(cells);
        match self {
            Self::Keys(_) if cells.len() == 1 => "1 key".to_owned(),
            Self::Keys(_) => format!("{} keys", cells.len()),
            Self::Places(many) => {
                let word = if cells.len() == 1 { "place" } else { "places" };
                format!("{word} {} of {many}", few(cells, usize::to_string))
            }
            Self::Ranges(bounds) => {
                let shown = |at: usize| match &bounds[at] {
                    Value::String(text) => format!("\"{}\"", shown(text)),
                    number => number.to_string(),
                };
                let range = |(first, last): &(usize, usize)| match (*first, last + 1) {
                    (0, end) if end == bounds.len() => "all keys".to_owned(),
                    (0, end) => format!("keys below {}", shown(end)),
                    (first, end) if end == bounds.len() => format!("keys from {}", shown(first)),
                    (first, end) => format!("keys from {} to below {}", shown(first), shown(end)),
                };
                few(&runs, range)
            }
            Self::Slots(_) if cells.len() == 1 => format!("slot {}", cells[0]),
            Self::Slots(_) => format!("slots {}", few(&runs, |run| told(&[*run]))),
        }
    }

    /// Some of them for programs.
    pub(super) fn detail(&self, cells: &[usize]) -> Value {
        match self {
            Self::Keys(keys) => json!({ "keys": cells.iter().map(|at| &keys[*at]).collect::<Vec<_>>() }),
            Self::Places(many) => json!({ "places": cells, "of": many }),
            Self::Ranges(bounds) => {
                let range = |(first, last): (usize, usize)| {
                    let first = bounds.get(first).filter(|_| first > 0);
                    json!([first, bounds.get(last + 1)])
                };
                json!({ "ranges": runs(cells).into_iter().map(range).collect::<Vec<_>>() })
            }
            Self::Slots(_) => json!({ "slots": runs(cells) }),
        }
    }
}

/// One more lower bound of a shard: one is said as it is, several are a list.
fn add(own: &mut Value, bound: &Value) {
    match own {
        Value::Array(bounds) => bounds.push(bound.clone()),
        one => *one = json!([one, bound]),
    }
}

/// Cells in a row, first and last.
fn runs(cells: &[usize]) -> Vec<(usize, usize)> {
    let rows = cells.chunk_by(|a, b| a + 1 == *b);
    rows.map(|row| (row[0], row[row.len() - 1])).collect()
}

/// Runs as a map says them.
fn told(runs: &[(usize, usize)]) -> String {
    let one = |(first, last): &(usize, usize)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    runs.iter().map(one).collect::<Vec<_>>().join(",")
}

/// The first few in words, and how many more there are.
fn few<T>(all: &[T], said: impl Fn(&T) -> String) -> String {
    let told = all.iter().take(PARTS_TOLD_MAX).map(said).collect::<Vec<_>>().join(", ");
    match all.len().checked_sub(PARTS_TOLD_MAX) {
        None | Some(0) => told,
        Some(more) => format!("{told} and {more} more"),
    }
}
