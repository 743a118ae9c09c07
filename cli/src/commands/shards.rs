//! `gilmok shards`: which shard holds what and who serves it, where a key is, and moves of keys to other shards.

use clap::{Args, Subcommand};
use serde_json::Value as Json;

use super::shard_map::Picture;
use super::shard_moves as moves;
use crate::client::{Remote, encoded};
use crate::table::{columns, indented, or_dash, table};
use crate::trouble::{Trouble, say};

/// Longest list of slots that is shown whole, in bytes.
const HOLDS_BYTES_MAX: usize = 60;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  gilmok shards show profile         a picture of who holds what, and who serves it\n  gilmok shards locate profile 42    where this key is\n  gilmok shards plan profile --shards 0,1,2,3,4,5,6,7    what would have to move; changes nothing\n  gilmok shards move profile --shards 0,1,2,3,4,5,6,7 --wait\n  gilmok shards resume profile          the batch is copied, or: go on after a pause\n  gilmok shards reverse profile         back, batch by batch"
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// A service's rule, what each of its shards holds and who serves it
    Show {
        service: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// The shard of a key, and why
    Locate {
        service: String,
        /// The key itself, not percent-encoded
        key: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// What would have to move so that the service has these shards, or this map; changes nothing
    Plan(moves::Plan),
    /// Move keys to other shards, batch by batch, while traffic flows
    Move(Box<moves::Move>),
    /// The moves that are remembered, newest first, or one of them with its batches
    Moves(moves::Moves),
    /// Do not go on; a batch that is closed is open at its source again
    Pause(moves::Word),
    /// Go on after a pause; where nothing is paused, say that the batch is copied
    Resume(moves::Resume),
    /// Give up the current batch, and move back what has moved; also when it has ended
    Reverse(moves::Word),
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Trouble> {
    let (remote, answer, shown) = match &arguments.task {
        Task::Show { service, remote } => {
            let answer = remote.get(&format!("/v1/services/{}/sharding", encoded(service)))?;
            let shown = rule(&answer, columns());
            (remote, answer, shown)
        }
        Task::Locate { service, key, remote } => {
            let target = format!("/v1/explain?service={}&key={}", encoded(service), encoded(key));
            let answer = remote.get(&target)?;
            let shown = located(&answer["decision"]);
            (remote, answer, shown)
        }
        Task::Plan(plan) => return plan.run(),
        Task::Move(begin) => return begin.run(),
        Task::Moves(list) => return list.run(),
        Task::Pause(word) => return word.say("pause", None, "is paused"),
        Task::Resume(resume) => return resume.run(),
        Task::Reverse(word) => return word.say("reverse", None, "goes the other way"),
    };
    say(&if remote.json { format!("{answer:#}") } else { shown });
    Ok(())
}

fn text(value: &Json) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn rule(answer: &Json, columns: usize) -> String {
    let rule = &answer["rule"];
    let Some(shards) = rule["shards"].as_array() else {
        return format!("{} is not sharded: its endpoints are one pool", text(&answer["service"]));
    };
    let hash = rule["hash"].as_str().map(|hash| format!(" of {hash}")).unwrap_or_default();
    let head = format!(
        "{}: {}{hash} by {}, reads {}, map {}",
        text(&answer["service"]),
        text(&rule["strategy"]),
        text(&rule["key"]),
        text(&rule["reads"]),
        text(&rule["map"]),
    );
    let picture = Picture::of(rule, columns);
    let drawn: String = picture.lines.iter().map(|line| format!("{line}\n")).collect();
    let drawn = if drawn.is_empty() { drawn } else { format!("\n{drawn}\n") };
    let rows = shards.iter().zip(picture.marks.iter().zip(picture.shares));
    let rows = rows.map(|(shard, (mark, share))| row(shard, *mark, share));
    format!("{head}\n{drawn}{}", table(["", "shard", "share", "holds", "endpoints", "writes"], rows))
}

fn row(shard: &Json, mark: char, share: String) -> [String; 6] {
    let holds = shard["holds"].as_str().unwrap_or_default();
    let holds = match holds.get(..HOLDS_BYTES_MAX) {
        Some(begin) if holds.len() > HOLDS_BYTES_MAX => format!("{begin}…"),
        _ => holds.to_owned(),
    };
    let endpoints = shard["endpoints"].as_array().map(Vec::as_slice).unwrap_or_default();
    let endpoint = |endpoint: &Json| format!("{} ({})", text(&endpoint["address"]), text(&endpoint["role"]));
    let listed = endpoints.iter().map(endpoint).collect::<Vec<_>>().join(", ");
    let listed = if listed.is_empty() { "NONE".to_owned() } else { listed };
    let writes = match shard["primaries"].as_u64() {
        Some(1) => "yes",
        Some(0) | None => "NO PRIMARY",
        Some(_) => "SEVERAL PRIMARIES",
    };
    [mark.to_string(), text(&shard["shard"]), share, or_dash(holds), listed, writes.to_owned()]
}

fn located(decision: &Json) -> String {
    if let Some(refused) = decision["refused"].as_str() {
        return indented(&rows([("refused", refused.to_owned()), ("because", text(&decision["why"]))]));
    }
    let shard = &decision["shard"];
    if shard.is_null() {
        return format!("{} is not sharded: its endpoints are one pool", text(&decision["service"]));
    }
    let own = |endpoint: &&Json| endpoint["shard"] == shard["shard"];
    let endpoints = decision["endpoints"].as_array().into_iter().flatten().filter(own);
    let endpoints = endpoints.map(|endpoint| text(&endpoint["address"])).collect::<Vec<_>>().join(", ");
    let slot = shard["slot"].as_u64().map(|slot| ("slot", slot.to_string()));
    let told = [("shard", text(&shard["shard"]))].into_iter().chain(slot).chain([
        ("because", text(&shard["why"])),
        ("map", text(&shard["map"])),
        ("endpoints", if endpoints.is_empty() { "NONE".to_owned() } else { endpoints }),
    ]);
    indented(&rows(told))
}

fn rows(told: impl IntoIterator<Item = (&'static str, String)>) -> Vec<Vec<String>> {
    told.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_rule_is_shown_with_who_serves_each_shard() {
        let primary = json!({ "address": "10.0.0.1:80", "role": "primary" });
        let answer = json!({
            "service": "profile",
            "rule": {
                "key": "path_segment:2", "strategy": "slots", "hash": "crc16", "slots": 16_384, "reads": "primary", "map": "00ff",
                "shards": [
                    { "shard": "0", "holds": "0-8191", "endpoints": [primary], "primaries": 1 },
                    { "shard": "1", "holds": "8192-16383", "endpoints": [], "primaries": 0 },
                ],
            },
        });
        let expected = "profile: slots of crc16 by path_segment:2, reads primary, map 00ff

0000000000000000000011111111111111111111
0                   8192
each cell is about 409 slots of 16384

   SHARD  SHARE  HOLDS       ENDPOINTS              WRITES
0  0      50 %   0-8191      10.0.0.1:80 (primary)  yes
1  1      50 %   8192-16383  NONE                   NO PRIMARY";
        assert_eq!(rule(&answer, 40), expected);
        assert!(rule(&json!({ "service": "ads", "rule": null }), 40).contains("ads is not sharded"));
    }

    #[test]
    fn a_key_is_located_with_its_reason() {
        let decision = json!({
            "service": "profile",
            "shard": { "shard": "0", "slot": 8_000, "why": "slots by path_segment:2", "map": "00ff" },
            "endpoints": [{ "address": "a:1", "shard": "0" }, { "address": "b:1", "shard": "1" }],
        });
        let expected = "  shard      0
  slot       8000
  because    slots by path_segment:2
  map        00ff
  endpoints  a:1";
        assert_eq!(located(&decision), expected);
        let refused = json!({ "refused": "http_request_error", "why": "it has to be a number" });
        assert!(located(&refused).contains("because  it has to be a number"));
        assert!(located(&json!({ "service": "ads", "shard": null })).contains("not sharded"));
    }
}
