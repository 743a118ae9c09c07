//! A service's `[sharding]` table while batches move: the rule in it, what follows, and the marks that only moves write.

use serde_json::{Map, Value as Json, json};

use super::state::Edit;

/// The keys that say whose a key is, of those that a move changes.
const RULE: [&str; 3] = ["map", "shards", "default"];
/// How many batches have moved.
pub const EPOCH: &str = "epoch";
/// The rule that follows.
pub const NEXT: &str = "next";
/// In `next`: the revision that closed the batch.
const CLOSED: &str = "closed";

/// The rule of a table, or of what follows it: those of its keys that say whose a key is.
#[must_use]
pub fn rule(table: &Json) -> Json {
    RULE.iter().filter_map(|key| Some(((*key).to_owned(), table.get(key)?.clone()))).collect()
}

/// The rule that a table's `next` makes of its rule: what is not named stays as it is.
#[must_use]
pub fn followed(rule: &Json, next: &Json) -> Json {
    let mut fields = fields(rule);
    fields.extend(self::fields(&self::rule(next)));
    Json::Object(fields)
}

/// How many batches have moved.
#[must_use]
pub fn epoch(table: &Json) -> u64 {
    table.get(EPOCH).and_then(Json::as_u64).unwrap_or_default()
}

/// The table with an edit of a move in it. `next` is the rule that the move wants to follow, and `revision` the one that this
/// makes. A table in which there is no `next` where there should be one stays as it is.
#[must_use]
pub fn edited(table: &Json, edit: Edit, next: &Json, revision: u64) -> Json {
    let mut edited = fields(table);
    match edit {
        Edit::Announce => drop(edited.insert(NEXT.to_owned(), next.clone())),
        Edit::Close => {
            if let Some(Json::Object(next)) = edited.get_mut(NEXT) {
                next.insert(CLOSED.to_owned(), json!(revision));
            }
        }
        Edit::Reopen => {
            if let Some(Json::Object(next)) = edited.get_mut(NEXT) {
                next.remove(CLOSED);
            }
        }
        Edit::Advance => {
            if let Some(next) = edited.remove(NEXT) {
                edited.extend(fields(&rule(&next)));
                edited.insert(EPOCH.to_owned(), json!(epoch(table).saturating_add(1)));
            }
        }
        Edit::GiveUp => drop(edited.remove(NEXT)),
    }
    Json::Object(edited)
}

/// A table that somebody has written, with the marks as they are now.
#[must_use]
pub fn with_marks_of(written: &Json, now: &Json) -> Json {
    let mut fields = fields(written);
    for key in [EPOCH, NEXT] {
        match now.get(key) {
            Some(mark) => fields.insert(key.to_owned(), mark.clone()),
            None => fields.remove(key),
        };
    }
    Json::Object(fields)
}

/// A table whose map is another one than the one before it, whoever has written it: no batch of the old one moves any more.
#[must_use]
pub fn with_other_map(written: &Json, before: &Json) -> Json {
    let mut fields = fields(written);
    fields.remove(NEXT);
    fields.insert(EPOCH.to_owned(), json!(epoch(before).saturating_add(1)));
    Json::Object(fields)
}

/// The first mark that would be another one than it is now. A patch says null where a mark is to go.
#[must_use]
pub fn touched(written: &Json, now: &Json) -> Option<&'static str> {
    [EPOCH, NEXT].into_iter().find(|key| {
        let said = written.get(key);
        // Not to speak of a mark is to leave it as it is.
        said.is_some_and(|said| {
            Some(said) != now.get(key) && !(*key == EPOCH && said.as_u64() == Some(epoch(now)))
        })
    })
}

fn fields(table: &Json) -> Map<String, Json> {
    table.as_object().cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_goes_through_the_table_and_leaves_only_its_rule_and_an_epoch() {
        let table = json!({"key": "host", "strategy": "slots", "map": {"0": "0-16383"}, "epoch": 7});
        let next = json!({"map": {"0": "0-8191", "1": "8192-16383"}});
        let open = edited(&table, Edit::Announce, &next, 40);
        assert_eq!(open["next"], next);
        let closed = edited(&open, Edit::Close, &next, 41);
        assert_eq!((&closed["next"]["closed"], &closed["map"]), (&json!(41), &table["map"]));
        assert_eq!(edited(&closed, Edit::Reopen, &next, 42), open);
        assert_eq!(edited(&closed, Edit::GiveUp, &next, 42), table);
        let moved = edited(&closed, Edit::Advance, &next, 42);
        let expected = json!({"key": "host", "strategy": "slots", "map": next["map"], "epoch": 8});
        assert_eq!(moved, expected);
        assert_eq!(edited(&table, Edit::Advance, &next, 42), table, "without `next` nothing advances");
    }

    #[test]
    fn what_a_rule_that_follows_does_not_name_stays() {
        let rule = rule(&json!({"key": "host", "map": {"a": "0"}, "default": "1", "epoch": 3}));
        assert_eq!(rule, json!({"map": {"a": "0"}, "default": "1"}));
        let then = followed(&rule, &json!({"map": {"a": "2"}, "closed": 4}));
        assert_eq!(then, json!({"map": {"a": "2"}, "default": "1"}));
    }

    #[test]
    fn marks_are_touched_by_who_speaks_of_others() {
        let now = json!({"map": {}, "epoch": 7, "next": {"map": {}}});
        for (written, mark) in [
            (json!({"map": {}}), None),
            (now.clone(), None),
            (json!({"epoch": 8}), Some("epoch")),
            (json!({"epoch": null}), Some("epoch")),
            (json!({"next": {"map": {}, "closed": 4}}), Some("next")),
            (json!({"next": null}), Some("next")),
        ] {
            assert_eq!(touched(&written, &now), mark, "{written}");
        }
        assert_eq!(touched(&json!({"epoch": 0}), &json!({"map": {}})), None, "what it is by default");
        assert_eq!(
            with_marks_of(&json!({"reads": "any"}), &now),
            json!({"reads": "any", "epoch": 7, "next": {"map": {}}})
        );
        assert_eq!(with_other_map(&now, &now), json!({"map": {}, "epoch": 8}));
    }
}
