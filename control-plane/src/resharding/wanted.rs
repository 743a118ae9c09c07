//! What an operator asks for: which shards or map there shall be, in which batches, and who is told.

use gilmok_config::grammar::{Faults, Value};
use gilmok_config::node::Node;
use gilmok_config::problem::{Problem, Problems};
use gilmok_config::sharding::plan::{Plan, Wanted};
use serde_json::{Map, Value as Json};

use super::state::Batch;
use super::table::{followed, rule};
use crate::merge_patch;
use crate::webhook::{OF_MOVES, Webhook, read_webhooks};

/// The key of those who are told.
const WEBHOOKS: &str = "webhooks";

/// Reads what is wanted and who is told of it.
///
/// # Errors
/// Every fault, with its path.
pub fn read(body: &Json) -> Result<(Wanted, Vec<Webhook>), Problems> {
    let Json::Object(fields) = body else {
        return Err(Problems::whole("a table is expected, e.g. { \"shards\": [\"0\", \"1\"] }"));
    };
    let mut fields = fields.clone();
    let said: Map<String, Json> = fields.remove_entry(WEBHOOKS).into_iter().collect();
    let webhooks = webhooks(&Json::Object(said));
    let wanted = serde_path_to_error::deserialize(Json::Object(fields)).map_err(|error| {
        let path = error.path().to_string();
        let path = if path == "." { String::new() } else { path };
        Problems(vec![Problem { path, line: None, what: error.into_inner().to_string(), hint: None }])
    });
    match (wanted, webhooks) {
        (Ok(wanted), Ok(webhooks)) => Ok((wanted, webhooks)),
        (Err(one), Err(other)) => Err(Problems(one.0.into_iter().chain(other.0).collect())),
        (Err(problems), _) | (_, Err(problems)) => Err(problems),
    }
}

fn webhooks(said: &Json) -> Result<Vec<Webhook>, Problems> {
    let node = Node::from(said);
    let faults = Faults::new();
    let root = Value::root(&node, &faults);
    let list = root.table().and_then(|mut table| table.optional(WEBHOOKS));
    let webhooks = list.map(|value| read_webhooks(&value, &OF_MOVES)).unwrap_or_default();
    faults.into_result(webhooks)
}

/// The batches of a plan as a move keeps them: each by what it changes.
#[must_use]
pub fn batches(table: &Json, plan: &Plan) -> Vec<Batch> {
    let mut before = rule(table);
    let batches = plan.batches.iter().map(|batch| {
        let after = followed(&before, &batch.next);
        let change = merge_patch::between(&before, &after);
        before = after;
        Batch {
            from: batch.from.clone(),
            to: batch.to.clone(),
            what: batch.what.clone(),
            detail: batch.detail.clone(),
            ppm: batch.ppm,
            change,
        }
    });
    batches.collect()
}

#[cfg(test)]
mod tests {
    use gilmok_config::sharding::plan::plan;
    use serde_json::json;

    use super::*;

    #[test]
    fn every_fault_is_told() {
        let (wanted, webhooks) =
            read(&json!({"shards": ["0", "1"], "webhooks": [{"url": "http://a/", "on": ["copy"]}]})).unwrap();
        assert_eq!((wanted.shards.unwrap().len(), webhooks.len()), (2, 1));
        let told = |body: Json| read(&body).unwrap_err().to_string();
        assert!(told(json!([])).contains("a table is expected"));
        let both = told(json!({"shard": ["0"], "webhooks": [{"url": "http://a/", "on": ["gate"]}]}));
        assert!(both.contains("unknown field `shard`") && both.contains("webhooks[0].on[0]"), "{both}");
    }

    #[test]
    fn batches_are_kept_by_what_they_change_and_end_in_what_was_wanted() {
        let table = json!({"key": "host", "strategy": "slots", "slots": 8, "map": {"a": "0-3", "b": "4-7"}});
        let (wanted, _) = read(&json!({"shards": ["a", "b", "c", "d"]})).unwrap();
        let plan = plan(&table, &wanted).unwrap();
        let batches = batches(&table, &plan);
        assert_eq!(batches.len(), 2);
        let mut now = rule(&table);
        for (batch, planned) in batches.iter().zip(&plan.batches) {
            now = merge_patch::merge(&now, &batch.change);
            assert_eq!(now["map"], planned.next["map"]);
        }
        assert_eq!(now, json!({"map": {"a": "0-1", "b": "4-5", "c": "2-3", "d": "6-7"}}));
    }
}
