//! Flags of the document's set: what an operator's word makes of one, and what applications that were told of it rely on.

use std::collections::BTreeSet;

use gilmok_config::document::Document;
use gilmok_config::flag::{FlagSet, FlagType, WHY_BYTES_MAX};
use gilmok_config::problem::{Problem, Problems};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::command::FlagDeed;
use super::{Changed, Command, Context, Refusal, timed};
use crate::merge_patch::merge;

/// How long ago a flag must have been evaluated last to be deleted without force, in milliseconds: a day.
const UNUSED_AFTER_MS: u64 = 24 * 60 * 60 * 1_000;
/// Most flags whose change the audit tells one by one.
pub const CHANGES_MAX: usize = 20;
/// Longest flag that it tells, in bytes of JSON; of a longer one it tells the length.
const CHANGE_BYTES_MAX: usize = 16 << 10;

/// What a write made of one flag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlagChange {
    pub flag: String,
    /// Null where there was none.
    pub before: Value,
    /// Null where there is none any more.
    pub after: Value,
}

/// The set as operators wrote it, if there is one.
#[must_use]
pub fn set(document: &Value) -> Option<&Value> {
    document.get("flags")?.get("set")
}

/// One flag as operators wrote it.
#[must_use]
pub fn flag<'d>(document: &'d Value, key: &str) -> Option<&'d Value> {
    set(document)?.get("flags")?.get(key)
}

/// The document with another set.
pub(super) fn with_set(document: &Value, set: Value) -> Value {
    let mut next = document.as_object().cloned().unwrap_or_default();
    next.insert("flags".to_owned(), Value::Object(Map::from_iter([("set".to_owned(), set)])));
    Value::Object(next)
}

/// The document after a word about one flag.
///
/// # Errors
/// There is no such flag, or what is said of its schedule cannot be.
pub(super) fn told(
    current: &Value,
    key: &str,
    deed: &FlagDeed,
    context: &Context<'_>,
) -> Result<Changed, Refusal> {
    let known = || flag(current, key).ok_or_else(|| Refusal::NoFlag(key.to_owned()));
    let next = match deed {
        FlagDeed::Put(table) => Some(table.clone()),
        FlagDeed::Patch(patch) => Some(merge(known()?, patch)),
        FlagDeed::Delete => known().map(|_| None)?,
        // Once is enough: who did it first and why stays.
        FlagDeed::Kill if known()?.pointer("/x-gilmok/kill/active") == Some(&Value::Bool(true)) => {
            return Ok(Changed::nothing(current));
        }
        FlagDeed::Kill => Some(merge(known()?, &kill(true, context))),
        // A flag that has no switch is not killed; it gets none by being brought back.
        FlagDeed::Unkill if known()?.pointer("/x-gilmok/kill").is_none() => {
            return Ok(Changed::nothing(current));
        }
        FlagDeed::Unkill => Some(merge(known()?, &kill(false, context))),
        FlagDeed::Schedule { at_ms, patch } => return timed::said(current, key, *at_ms, patch, context),
        FlagDeed::Unschedule(id) => return timed::taken_back(current, key, *id, context),
        FlagDeed::CarryOut(id) => return timed::carried_out(current, key, *id, context),
    };
    let mut set = set(current).and_then(Value::as_object).cloned().unwrap_or_default();
    let flags = set.entry("flags").or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(flags) = flags {
        match next {
            Some(table) => flags.insert(key.to_owned(), table),
            None => flags.remove(key),
        };
    }
    Ok(Changed::document(with_set(current, Value::Object(set))))
}

/// A switch that is pulled says who did it and why, so that whoever wonders need not look for it.
fn kill(active: bool, context: &Context<'_>) -> Value {
    let told = |text: &str| {
        let text = &text[..text.floor_char_boundary(WHY_BYTES_MAX)];
        Some(Value::from(text)).filter(|_| active && !text.is_empty()).unwrap_or_default()
    };
    json!({ "x-gilmok": { "kill": { "active": active, "by": told(context.by), "why": told(context.why) } } })
}

/// The document with its flags by key, where they stood in a list: the form in which single ones are found. A list that is
/// not sound stays, so that its faults are told where they are.
pub(super) fn by_key(mut document: Value) -> Value {
    let Some(flags) = document.pointer_mut("/flags/set/flags") else { return document };
    let Value::Array(items) = flags else { return document };
    let mut keyed = Map::new();
    for item in items.iter() {
        let Some(table) = item.as_object() else { return document };
        let mut table = table.clone();
        let Some(Value::String(key)) = table.remove("key") else { return document };
        if keyed.insert(key, Value::Object(table)).is_some() {
            return document;
        }
    }
    *flags = Value::Object(keyed);
    document
}

/// Looks at what a write would do to applications that evaluate flags.
///
/// # Errors
/// What needs force, or that warnings are accepted.
pub(super) fn check(
    before: &Document,
    after: &Document,
    command: &Command,
    context: &Context<'_>,
) -> Result<(), Refusal> {
    // What was in force once was accepted then, and whoever goes back has no time for questions.
    if matches!(command, Command::Restore { .. }) {
        return Ok(());
    }
    let none = FlagSet::default();
    let (before, after) = (before.flags.as_deref().unwrap_or(&none), after.flags.as_deref().unwrap_or(&none));
    if !context.force {
        promised(before, after, context)?;
    }
    if !context.accept_warnings {
        let known: BTreeSet<(&str, &str)> =
            before.warnings().iter().map(|known| (known.path.as_str(), known.what.as_str())).collect();
        let is_new = |warning: &&Problem| !known.contains(&(warning.path.as_str(), warning.what.as_str()));
        let new: Vec<Problem> = after.warnings().iter().filter(is_new).cloned().collect();
        if !new.is_empty() {
            return Err(Refusal::Warned(Problems(new)));
        }
    }
    Ok(())
}

/// Applications have compiled in what type a flag has, and ask for those that they know.
fn promised(before: &FlagSet, after: &FlagSet, context: &Context<'_>) -> Result<(), Refusal> {
    for old in before.flags() {
        let key = old.key();
        let Some(new) = after.get(key) else {
            let ago_ms = context.exposure.last_ms(key).map(|last| context.now_ms.saturating_sub(last));
            if let Some(ago_ms) = ago_ms.filter(|ago| *ago < UNUSED_AFTER_MS) {
                return Err(Refusal::Conflict(format!(
                    "the flag `{key}` was evaluated {} min ago: whoever asks for it would get an error; wait until nobody has for a day, or use ?force=true",
                    ago_ms / 60_000
                )));
            }
            continue;
        };
        let types = (old.kind().map(FlagType::as_str), new.kind().map(FlagType::as_str));
        if let (Some(was), Some(is)) = types
            && was != is
        {
            return Err(Refusal::Conflict(format!(
                "the flag `{key}` is of type {was}: applications that ask for that would get an error from one of type {is}; give it another key, or use ?force=true"
            )));
        }
    }
    Ok(())
}

/// What is different between the flags of two documents: at most [`CHANGES_MAX`], in the order of their keys.
#[must_use]
pub fn changes(before: &Value, after: &Value) -> Vec<FlagChange> {
    let none = Map::new();
    let of = |document| set(document).and_then(|set| set.get("flags")?.as_object());
    let (old, new) = (of(before).unwrap_or(&none), of(after).unwrap_or(&none));
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let different = keys.into_iter().filter(|key| old.get(*key) != new.get(*key));
    let change = |key: &String| FlagChange {
        flag: key.clone(),
        before: old.get(key).map(bounded).unwrap_or_default(),
        after: new.get(key).map(bounded).unwrap_or_default(),
    };
    different.take(CHANGES_MAX).map(change).collect()
}

fn bounded(flag: &Value) -> Value {
    let bytes = flag.to_string().len();
    if bytes > CHANGE_BYTES_MAX { json!({ "bytes": bytes }) } else { flag.clone() }
}
