//! Rules as the tables of a document: read, changed and written.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::super::Sharding;
use super::cells::Cells;
use crate::grammar::{Faults, Value as Said};
use crate::name::Name;
use crate::node::Node;
use crate::problem::Problems;

/// # Errors
/// What is wrong with it, by the keys of the table.
pub(super) fn read(table: &Value) -> Result<Sharding, Problems> {
    let node = Node::from(table);
    let faults = Faults::new();
    let sharding = Sharding::read(&Said::root(&node, &faults), None);
    let sharding = faults.into_result(sharding)?;
    sharding.ok_or_else(|| Problems::whole("there is no rule"))
}

/// The table with other values.
pub(super) fn with(table: &Value, entries: &[(&str, Value)]) -> Value {
    let mut table = table.clone();
    for (key, value) in entries {
        table[*key] = value.clone();
    }
    table
}

/// The table `next` in which these are the owners of the cells.
pub(super) fn rule_of(table: &Value, cells: &Cells, owners: &[u16], names: &[Name]) -> Value {
    let said = cells.said(owners, names);
    match cells {
        Cells::Places(_) => json!({ "shards": said }),
        Cells::Keys(_) | Cells::Ranges(_) | Cells::Slots(_) => {
            let mut is_used = vec![false; names.len()];
            owners.iter().for_each(|owner| is_used[usize::from(*owner)] = true);
            let used = names.iter().zip(is_used).filter(|(_, is_used)| *is_used);
            let used: Vec<Name> = used.map(|(name, _)| name.clone()).collect();
            with_list(table, json!({ "map": said }), &used)
        }
    }
}

/// A table lists all shards beside its map, or none: where it does, those that are new are added.
pub(super) fn with_list(table: &Value, mut next: Value, names: &[Name]) -> Value {
    if let Some(listed) = table.get("shards").and_then(Value::as_array) {
        let mut all = listed.clone();
        let known: HashSet<&str> = listed.iter().filter_map(Value::as_str).collect();
        let mut new: Vec<&Name> = names.iter().filter(|name| !known.contains(name.as_str())).collect();
        new.sort_unstable();
        new.dedup();
        all.extend(new.into_iter().map(|name| json!(name)));
        if all.len() > listed.len() {
            next["shards"] = Value::Array(all);
        }
    }
    next
}
