//! What somebody wants of a rule: other shards, or another map; whether that can be planned, and the rule that it means.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::strategy::{By, Strategy};
use super::super::{SHARDS_MAX, Sharding};
use super::cells::Cells;
use super::even;
use super::table::{rule_of, with_list};
use crate::name::Name;
use crate::problem::{Problem, Problems};

/// What somebody wants: the shards of `slots` or `modulo`, or the map of `slots`, `range` or `directory`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wanted {
    /// All shards that there shall be; of `modulo` the list of places.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shards: Option<Vec<Name>>,
    /// The whole map, as a document has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub map: Option<Value>,
    /// Of a directory, where it is said at all: what it is already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<Name>,
    /// Most slots of one batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_slots: Option<u32>,
}

impl Wanted {
    /// Whether it says what its strategy can be told, and nothing else.
    pub(super) fn check(&self, now: &Sharding) -> Result<(), Problems> {
        let strategy = now.strategy.as_str();
        let mut problems = Vec::new();
        let mut refuse = |path: &str, what: &str, hint: &str| problems.push(Problem::at(path, what, hint));
        let (by_shards, by_map) = match strategy {
            "slots" => (true, true),
            "range" | "directory" => (false, true),
            _ => (true, false),
        };
        if self.shards.is_some() && !by_shards {
            refuse("shards", "where the keys of a new shard come from is yours to say", "the whole `map`");
        }
        if self.map.is_some() && !by_map {
            refuse("map", &format!("`map` means nothing to the strategy `{strategy}`"), "the list `shards`");
        }
        match (&self.shards, &self.map) {
            (Some(_), Some(_)) if by_shards && by_map => {
                refuse("", "`shards` and `map` are two wishes", "one of them");
            }
            (None, None) => refuse("", "nothing is wanted", if by_shards { "`shards`" } else { "`map`" }),
            _ => {}
        }
        if let Some(default) = &self.default {
            let is_it = matches!(&now.strategy, Strategy::Directory(directory)
                if directory.default_shard().is_some_and(|at| now.shards()[usize::from(at)] == *default));
            if strategy != "directory" {
                refuse("default", &format!("`default` means nothing to the strategy `{strategy}`"), "");
            } else if !is_it {
                refuse(
                    "default",
                    "keys that are not listed cannot be moved: nobody knows which there are",
                    "list those that shall move in `map`, and leave `default` as it is",
                );
            }
        }
        if self.batch_slots == Some(0) {
            refuse("batch_slots", "0 is out of range", "1 or more");
        } else if self.batch_slots.is_some() && strategy != "slots" {
            refuse("batch_slots", &format!("`{strategy}` has no slots"), "");
        }
        if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
    }

    /// The rule that follows once all has moved, as a table `next`.
    pub(super) fn next(&self, table: &Value, now: &Sharding) -> Result<Value, Problems> {
        let slots = match &now.strategy {
            Strategy::Hashed(_, By::Slots(slots)) => Some(slots.owners()),
            Strategy::Directory(_) | Strategy::Hashed(..) | Strategy::Range(_) => None,
        };
        match (&self.shards, &self.map, slots) {
            (Some(shards), _, Some(owners)) => {
                check_shards(shards, owners.len())?;
                let mut names = now.shards().to_vec();
                names.extend(shards.iter().filter(|shard| !now.shards().contains(shard)).cloned());
                let wanted: Vec<usize> =
                    shards.iter().filter_map(|shard| names.iter().position(|name| name == shard)).collect();
                let owners = even::evened(owners, &wanted);
                let mut next = rule_of(table, &Cells::Slots(owners.len()), &owners, &names);
                if table.get("shards").is_some() {
                    next["shards"] = json!(shards);
                }
                Ok(next)
            }
            (Some(shards), _, None) => Ok(json!({ "shards": shards })),
            (None, map, _) => Ok(with_list(table, json!({ "map": map }), &names_in(map.as_ref(), now))),
        }
    }
}

/// Whether so many slots can be divided among these shards.
fn check_shards(shards: &[Name], slots: usize) -> Result<(), Problems> {
    let most = slots.min(SHARDS_MAX);
    if shards.is_empty() || shards.len() > most {
        return Err(Problem::at("shards", format!("{} shards", shards.len()), format!("1 to {most}")).into());
    }
    let (mut seen, mut problems) = (HashSet::new(), Vec::new());
    for (at, shard) in shards.iter().enumerate() {
        let path = format!("shards[{at}]");
        if shard.is_empty() {
            problems.push(Problem::at(&path, "a shard without a name", "a name"));
        } else if !seen.insert(shard) {
            problems.push(Problem::at(&path, format!("the shard `{shard}` is listed twice"), "each once"));
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
}

/// The shards that a map names in the way of its strategy. Whatever is no name is told when the map is read.
fn names_in(map: Option<&Value>, now: &Sharding) -> Vec<Name> {
    let entries = map.and_then(Value::as_object).into_iter().flatten();
    let is_directory = matches!(now.strategy, Strategy::Directory(_));
    let names =
        entries.filter_map(|(key, value)| if is_directory { value.as_str() } else { Some(key.as_str()) });
    names.filter_map(|name| Name::parse_given(name).ok()).collect()
}

/// Faults of the wanted rule by the keys of whoever wants it.
pub(super) fn as_wanted(problems: Problems) -> Problems {
    let one = |problem: Problem| {
        let path = problem.path.strip_prefix("next").map(|path| path.trim_start_matches('.').to_owned());
        Problem { path: path.unwrap_or(problem.path), ..problem }
    };
    Problems(problems.0.into_iter().map(one).collect())
}
