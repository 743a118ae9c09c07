//! Which shard a key is at: what may not be changed in passing, and what a restored document leaves as it is.

use gilmok_config::document::Document;
use gilmok_config::name::ServiceName;
use gilmok_config::sharding::Sharding;
use serde_json::{Map, Value};

use super::{Command, Context, Refusal, service, shares, with_service};
use crate::resharding::table::{NEXT, touched, with_marks_of, with_other_map};

/// The key of a service's rule.
pub(super) const KEY: &str = "sharding";

/// What becomes of the rules in a document that somebody has written.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// With the marks of moves as they have to be; none where it says them already.
    pub(super) document: Option<Value>,
    /// Whose moves are at an end, because another map is in force.
    pub(super) overruled: Vec<ServiceName>,
}

/// Refuses what would look for keys in other shards than those that hold them, and what speaks of a move in other words than
/// the move. What leaves a map as it is leaves the marks of its move as they are.
///
/// # Errors
/// The first service of which that is true.
pub(super) fn written(
    current: &Value,
    before: &Document,
    (document, after): (&Value, &Document),
    command: &Command,
    context: &Context<'_>,
) -> Result<Written, Refusal> {
    let mut written = Written::default();
    let mut put = |name: &ServiceName, table: Value| {
        let document = written.document.as_ref().unwrap_or(document);
        written.document = Some(with_table(document, name, table));
    };
    for name in after.services.keys().filter(|name| rule(before, name).is_none()) {
        let table = table(document, name);
        if let Some(Value::Object(fields)) = table.filter(|table| table.get(NEXT).is_some()) {
            if !context.force {
                return Err(marked(name, NEXT));
            }
            // Nobody would ever bring it to an end.
            let mut fields = fields.clone();
            fields.remove(NEXT);
            put(name, Value::Object(fields));
        }
    }
    for name in before.services.keys() {
        let Some(old) = rule(before, name) else { continue };
        let moves = context.records.get(name).is_some_and(|record| record.running_move().is_some());
        let (now, said) = (table(current, name).unwrap_or(&Value::Null), table(document, name));
        if said == Some(now) {
            continue;
        }
        let stays = rule(after, name).is_some_and(|new| new.divides_as(old));
        if !stays && !context.force && (moves || is_live(before, context, name)) {
            return Err(looked_for_elsewhere(name, moves));
        }
        if let (false, Some(mark)) =
            (context.force, said.and_then(|said| mark_touched(name, said, now, command)))
        {
            return Err(marked(name, mark));
        }
        match said {
            // By force a batch that no move speaks of is forgotten.
            Some(said) if stays && (moves || !context.force || now.get(NEXT).is_none()) => {
                let kept = with_marks_of(said, now);
                if kept != *said {
                    put(name, kept);
                }
            }
            Some(said) => {
                put(name, with_other_map(said, now));
                written.overruled.extend(moves.then(|| name.clone()));
            }
            None => written.overruled.extend(moves.then(|| name.clone())),
        }
    }
    Ok(written)
}

/// The first mark of a move that is said to be another one than it is.
fn mark_touched(name: &ServiceName, said: &Value, now: &Value, command: &Command) -> Option<&'static str> {
    let patched = match command {
        // What a patch takes away is not in the document that it makes.
        Command::PatchService(service, patch) if service == name => touched(&patch[KEY], now),
        _ => None,
    };
    patched.or_else(|| touched(said, now))
}

fn looked_for_elsewhere(name: &ServiceName, moves: bool) -> Refusal {
    let ends = if moves { ", which ends the move that runs" } else { "" };
    Refusal::Conflict(format!(
        "services.{name}.sharding: keys would be looked for in other shards than those that hold them; move them (gilmok shards move {name}, POST /v1/services/{name}/sharding/moves), leave the rule as it is, or use ?force=true{ends}"
    ))
}

fn marked(name: &ServiceName, mark: &str) -> Refusal {
    Refusal::Conflict(format!(
        "services.{name}.sharding.{mark}: only moves of shards write it; leave it out, or as it is, and move shards with gilmok shards move {name} (POST /v1/services/{name}/sharding/moves)"
    ))
}

/// A document that is put back, with the maps of live services as they are now: data does not move back with it. Moves do
/// not either: their marks are not put back at all.
pub(super) fn kept(mut next: Value, current: &Value, parsed: &Document, context: &Context<'_>) -> Value {
    // What is no sound document any more is refused as a whole.
    let Ok(then) = Document::parse_json(&next) else { return next };
    for name in parsed.services.keys() {
        let (Some(old), Some(Value::Object(_))) = (rule(parsed, name), service(&next, name)) else {
            continue;
        };
        let now = table(current, name).cloned().unwrap_or_default();
        let moves = context.records.get(name).is_some_and(|record| record.running_move().is_some());
        let stays = rule(&then, name).is_some_and(|new| new.divides_as(old));
        if !stays && !context.force && (moves || is_live(parsed, context, name)) {
            next = with_table(&next, name, now);
        } else if let Some(said) = table(&next, name) {
            let said = if stays { with_marks_of(said, &now) } else { with_marks_of(said, &Value::Null) };
            next = with_table(&next, name, said);
        }
    }
    for name in then.services.keys().filter(|name| rule(parsed, name).is_none()) {
        if let Some(Value::Object(mut fields)) = table(&next, name).cloned() {
            fields.remove(NEXT);
            next = with_table(&next, name, Value::Object(fields));
        }
    }
    next
}

/// A service's table of shards as the operators wrote it.
fn table<'d>(document: &'d Value, name: &ServiceName) -> Option<&'d Value> {
    service(document, name)?.get(KEY)
}

/// The document with this table of shards of a service.
pub(super) fn with_table(document: &Value, name: &ServiceName, table: Value) -> Value {
    let mut fields = match service(document, name) {
        Some(Value::Object(fields)) => fields.clone(),
        _ => Map::new(),
    };
    fields.insert(KEY.to_owned(), table);
    with_service(document, name, Some(Value::Object(fields)))
}

/// A service's rule as it is understood.
pub(super) fn rule<'d>(document: &'d Document, name: &ServiceName) -> Option<&'d Sharding> {
    document.services.get(name)?.sharding.as_deref()
}

/// Whether its keys may be somewhere: somebody serves it, or some of them have moved. Who is away for a moment has data all the
/// same.
fn is_live(parsed: &Document, context: &Context<'_>, name: &ServiceName) -> bool {
    let has_moved = rule(parsed, name).is_some_and(|rule| rule.epoch() > 0);
    has_moved || !shares::endpoints(parsed, context.alive, name).is_empty()
}
