//! What an operator asks for: which shards or map there shall be, in which batches, and who is told.

use gilmok_config::grammar::{Faults, Value};
use gilmok_config::node::Node;
use gilmok_config::problem::{Problem, Problems};
use gilmok_config::sharding::plan::{Plan, Wanted};
use serde_json::{Map, Value as Json};

use super::state::Batch;
use super::table::{followed, rule};
use crate::merge_patch;
use crate::webhook::{OF_MOVES, Occasion, Webhook, read_webhooks};

/// The key of those who are told.
const WEBHOOKS: &str = "webhooks";
/// The key of who copies what was written last.
const LAST_COPY: &str = "last_copy";

/// What an operator asks for.
#[derive(Debug)]
pub struct Asked {
    pub wanted: Wanted,
    pub webhooks: Vec<Webhook>,
    /// Whether nobody has to copy what is written between the copy and the hand-over: the data follow by themselves, or nothing
    /// is written.
    pub follows: bool,
}

impl Asked {
    /// Why a move of this would lose what is written between the copy and the hand-over, if it would.
    #[must_use]
    pub fn loses(&self) -> Option<Problems> {
        let is_copied = self.webhooks.iter().any(|webhook| webhook.on.contains(&Occasion::Fenced));
        (!is_copied && !self.follows).then(|| {
            Problems(vec![Problem {
                path: WEBHOOKS.to_owned(),
                line: None,
                what: "nobody is told of `fenced`, so what is written between the copy and the hand-over would be lost".to_owned(),
                hint: Some("a webhook on `fenced` copies it; or say \"last_copy\": \"none\" where the data follow by themselves or nothing is written".to_owned()),
            }])
        })
    }
}

/// Reads what is wanted and who is told of it.
///
/// # Errors
/// Every fault, with its path.
pub fn read(body: &Json) -> Result<Asked, Problems> {
    let Json::Object(fields) = body else {
        return Err(Problems::whole("a table is expected, e.g. { \"shards\": [\"0\", \"1\"] }"));
    };
    let mut fields = fields.clone();
    let said: Map<String, Json> = fields.remove_entry(WEBHOOKS).into_iter().collect();
    let webhooks = webhooks(&Json::Object(said));
    let follows = match fields.remove(LAST_COPY) {
        None => Ok(false),
        Some(Json::String(word)) if word == "none" => Ok(true),
        Some(_) => Err(Problems(vec![Problem {
            path: LAST_COPY.to_owned(),
            line: None,
            what: "not a word that is known here".to_owned(),
            hint: Some("\"none\": the data follow by themselves, or nothing is written".to_owned()),
        }])),
    };
    let wanted = serde_path_to_error::deserialize(Json::Object(fields)).map_err(|error| {
        let path = error.path().to_string();
        let path = if path == "." { String::new() } else { path };
        Problems(vec![Problem { path, line: None, what: error.into_inner().to_string(), hint: None }])
    });
    match (wanted, webhooks, follows) {
        (Ok(wanted), Ok(webhooks), Ok(follows)) => Ok(Asked { wanted, webhooks, follows }),
        (wanted, webhooks, follows) => {
            let faults = [wanted.err(), webhooks.err(), follows.err()];
            Err(Problems(faults.into_iter().flatten().flat_map(|problems| problems.0).collect()))
        }
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
        let asked =
            read(&json!({"shards": ["0", "1"], "webhooks": [{"url": "http://a/", "on": ["copy"]}]})).unwrap();
        assert_eq!((asked.wanted.shards.as_ref().unwrap().len(), asked.webhooks.len()), (2, 1));
        assert!(asked.loses().unwrap().to_string().contains("would be lost"));
        let of = |more: Json| read(&merge_patch::merge(&json!({"shards": ["0", "1"]}), &more)).unwrap();
        assert!(of(json!({"last_copy": "none"})).loses().is_none());
        assert!(of(json!({"webhooks": [{"url": "http://a/", "on": ["fenced"]}]})).loses().is_none());
        let told = |body: Json| read(&body).unwrap_err().to_string();
        assert!(told(json!([])).contains("a table is expected"));
        assert!(told(json!({"last_copy": true})).contains("last_copy"));
        let both = told(json!({"shard": ["0"], "webhooks": [{"url": "http://a/", "on": ["gate"]}]}));
        assert!(both.contains("unknown field `shard`") && both.contains("webhooks[0].on[0]"), "{both}");
    }

    #[test]
    fn batches_are_kept_by_what_they_change_and_end_in_what_was_wanted() {
        let table = json!({"key": "host", "strategy": "slots", "slots": 8, "map": {"a": "0-3", "b": "4-7"}});
        let wanted = read(&json!({"shards": ["a", "b", "c", "d"]})).unwrap().wanted;
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
