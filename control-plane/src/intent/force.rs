//! Forcing a breaker: how what operators say is written into a service's table.

use gilmok_config::forced::ForcedState;
use gilmok_config::moment::{format_moment, parse_moment};
use serde_json::{Value, json};

/// The key of a service's table.
const KEY: &str = "forced_breakers";

/// What a breaker is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Force {
    /// `None`: what its calls come to decides again.
    pub state: Option<ForcedState>,
    /// Seconds since 1970; `None` is until they say otherwise.
    pub until: Option<u64>,
    pub by: String,
    /// Empty is every one.
    pub version: String,
    pub shard: String,
    /// Now, in seconds since 1970: what is over by then is taken out of the document.
    pub at: u64,
}

impl Force {
    /// In a few words, for the audit.
    pub(super) fn what(&self) -> String {
        let mut what = self.state.map_or("auto", ForcedState::as_str).to_owned();
        for (name, value) in [("version", &self.version), ("shard", &self.shard)] {
            if !value.is_empty() {
                what.push_str(&format!(", {name} {value}"));
            }
        }
        what
    }
}

/// The table with this in it, and without what it replaces.
pub(super) fn forced(table: &Value, force: &Force) -> Value {
    let mut next = table.clone();
    let Some(fields) = next.as_object_mut() else { return next };
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    let until = |entry: &Value| parse_moment(entry["until"].as_str()?).ok();
    let stays = |entry: &&Value| {
        let same = text(entry, "version") == force.version && text(entry, "shard") == force.shard;
        !same && until(entry).is_none_or(|until| until > force.at)
    };
    let before = table[KEY].as_array();
    let mut entries: Vec<Value> = before.into_iter().flatten().filter(stays).cloned().collect();
    if let Some(state) = force.state {
        let mut entry = json!({ "state": state.as_str() });
        if let Some(until) = force.until {
            entry["until"] = json!(format_moment(until));
        }
        for (key, value) in [("by", &force.by), ("version", &force.version), ("shard", &force.shard)] {
            if !value.is_empty() {
                entry[key] = json!(value);
            }
        }
        entries.push(entry);
    }
    if entries.is_empty() {
        fields.remove(KEY);
    } else {
        fields.insert(KEY.to_owned(), json!(entries));
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    fn force(state: Option<ForcedState>, version: &str, until: Option<u64>) -> Force {
        let (version, shard) = (version.to_owned(), String::new());
        Force { state, until, by: "ann".to_owned(), version, shard, at: 1_000 }
    }

    #[test]
    fn the_same_breaker_is_said_once_and_what_is_over_goes() {
        let table = json!({ "hosts": ["a"], KEY: [
            { "state": "open", "until": "1970-01-01T00:16:39Z", "shard": "old" },
            { "state": "closed", "version": "v1" },
        ]});
        let next = forced(&table, &force(Some(ForcedState::Open), "v1", Some(1_600)));
        assert_eq!(
            next,
            json!({ "hosts": ["a"], KEY: [{ "state": "open", "until": "1970-01-01T00:26:40Z", "by": "ann", "version": "v1" }] })
        );
        assert_eq!(forced(&next, &force(None, "v1", None)), json!({ "hosts": ["a"] }));
    }
}
