//! A move of shards as text: what would move, where it stands, whom it waits for, what has happened.

use serde_json::Value as Json;

use crate::table::{ago, bar, indented, or_dash, percent, table};

/// Cells of the bar.
const CELLS: usize = 40;

fn text(value: &Json) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn list_of<'j>(value: &'j Json, key: &str) -> &'j [Json] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A share of the keys; a dash where nobody knows.
fn share(value: &Json) -> String {
    value.as_f64().map_or_else(|| "-".to_owned(), percent)
}

pub(super) fn none(service: &str) -> String {
    format!(
        "no move of the shards of {service} is remembered; `gilmok shards move {service} --shards NAMES` begins one"
    )
}

/// What would have to move.
pub(super) fn plan(service: &str, plan: &Json) -> String {
    let batches = list_of(plan, "batches");
    let mut lines = Vec::new();
    let moves = plan["moves_percent"].as_f64();
    lines.push(match (moves, batches.len()) {
        (Some(moves), 0) => format!("{service}: {} of the keys would have another shard", percent(moves)),
        (None, 0) => format!("{service}: nothing moves"),
        (moves, many) => {
            let what =
                moves.map_or_else(|| "keys".to_owned(), |moves| format!("{} of the keys", percent(moves)));
            let how = if many == 1 { "1 batch".to_owned() } else { format!("{many} batches") };
            format!("{service}: {what} would move, in {how}")
        }
    });
    if !batches.is_empty() {
        let rows = batches.iter().map(|batch| {
            let place = batch["place"].as_u64().unwrap_or_default() + 1;
            [
                place.to_string(),
                text(&batch["from"]),
                text(&batch["to"]),
                text(&batch["what"]),
                share(&batch["percent"]),
            ]
        });
        lines.push(String::new());
        lines.push(table(["batch", "from", "to", "keys", "share"], rows));
    }
    let notes = list_of(plan, "notes");
    if !notes.is_empty() {
        lines.push(String::new());
        lines.extend(notes.iter().map(|note| format!("note: {}", text(note))));
    }
    lines.join("\n")
}

/// The moves that are remembered.
pub(super) fn list(service: &str, moves: &Json, now_ms: u64) -> String {
    let moves = moves.as_array().map(Vec::as_slice).unwrap_or_default();
    if moves.is_empty() {
        return none(service);
    }
    let rows = moves.iter().map(|moving| {
        let started = moving["started_ms"].as_u64().unwrap_or_default();
        let of = format!("{} of {}", moving["moved"], moving["batches"]);
        let way = text(&moving["direction"]);
        [
            text(&moving["id"]),
            text(&moving["state"]),
            way,
            of,
            ago(now_ms.saturating_sub(started)),
            text(&moving["by"]),
            text(&moving["why"]),
        ]
    });
    table(["move", "state", "way", "moved", "begun", "by", "why"], rows)
}

/// One move with its batches.
pub(super) fn one(moving: &Json, now_ms: u64) -> String {
    let batches = list_of(moving, "batches");
    let moved = moving["moved"].as_u64().unwrap_or_default();
    let started = moving["started_ms"].as_u64().unwrap_or_default();
    let back = if moving["direction"] == "back" { ", on the way back" } else { "" };
    #[expect(clippy::cast_precision_loss, reason = "a share of a few batches")]
    let share_moved = moved as f64 / batches.len().max(1) as f64;
    let mut lines = vec![
        format!(
            "{}: move {}, {}{back}; begun {} by {}",
            text(&moving["service"]),
            moving["id"],
            text(&moving["state"]),
            ago(now_ms.saturating_sub(started)),
            or_dash(text(&moving["by"])),
        ),
        format!("  {}  {moved} of {} batches", bar(share_moved, CELLS), batches.len()),
        format!("  {}", text(&moving["why"])),
    ];
    let waits = list_of(moving, "waiting_for").iter();
    let waits: Vec<_> = waits.map(|waiting| vec![text(&waiting["who"]), text(&waiting["why"])]).collect();
    if !waits.is_empty() {
        lines.extend([String::new(), "waiting for".to_owned(), indented(&waits)]);
    }
    let rows = batches.iter().map(|batch| {
        let place = batch["place"].as_u64().unwrap_or_default() + 1;
        let mark = match batch["state"].as_str() {
            Some("moved") => "✓",
            Some("current") => "▸",
            _ => "·",
        };
        [
            format!("{mark} {place}"),
            text(&batch["from"]),
            text(&batch["to"]),
            text(&batch["what"]),
            share(&batch["percent"]),
            text(&batch["state"]).replace('_', " "),
        ]
    });
    lines.extend([String::new(), table(["batch", "from", "to", "keys", "share", "state"], rows)]);
    lines.extend(hint(moving).map(|hint| format!("\n{hint}")));
    lines.join("\n")
}

/// What a human may type now.
pub(super) fn hint(moving: &Json) -> Option<String> {
    let service = text(&moving["service"]);
    let asks =
        list_of(moving, "webhooks").iter().flat_map(|webhook| list_of(webhook, "on")).any(|on| on == "copy");
    match moving["state"].as_str()? {
        "paused" => Some(format!(
            "`gilmok shards resume {service}` goes on, `gilmok shards reverse {service}` goes back"
        )),
        "copying" if !asks && moving["copied"] != true => {
            Some(format!("`gilmok shards resume {service}` says that the batch is copied"))
        }
        _ => None,
    }
}

/// Everything that happened.
pub(super) fn history(moving: &Json, now_ms: u64) -> String {
    let rows = list_of(moving, "history").iter().map(|event| {
        let at = event["at_ms"].as_u64().unwrap_or_default();
        let batch = event["batch"].as_u64().map(|batch| (batch + 1).to_string());
        let revision = event["revision"].as_u64().map(|revision| revision.to_string());
        [
            ago(now_ms.saturating_sub(at)),
            text(&event["what"]),
            or_dash(batch.unwrap_or_default()),
            or_dash(text(&event["by"])),
            or_dash(revision.unwrap_or_default()),
            event["why"].as_str().map(or_dash).unwrap_or_else(|| "-".to_owned()),
        ]
    });
    table(["when", "what", "batch", "by", "revision", "why"], rows)
}

/// Where it stands in one line, and what of it makes another line when it changes.
pub(super) fn line(moving: &Json) -> (String, String) {
    let (state, moved) = (text(&moving["state"]), &moving["moved"]);
    let of = list_of(moving, "batches").len();
    let current = moving["batch"].as_u64().and_then(|at| usize::try_from(at).ok());
    let what = current.and_then(|at| list_of(moving, "batches").get(at)).map(|batch| text(&batch["what"]));
    let what = what.map(|what| format!(", {what}")).unwrap_or_default();
    // Whom it waits for changes with each ack; only those who read it whole want that.
    let key = format!("{state} {moved} {what}");
    (key, format!("{state}{what}, {moved} of {of} batches moved: {}", text(&moving["why"])))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn moving() -> Json {
        json!({
            "service": "profile", "id": 41, "state": "handover", "direction": "forward", "by": "ann", "moved": 1,
            "started_ms": 60_000, "why": "waiting for web-7 (has not closed it yet)", "batch": 1, "copied": true,
            "waiting_for": [{ "who": "web-7", "why": "has not closed it yet" }],
            "batches": [
                { "place": 0, "from": "0", "to": "2", "what": "slots 4096-8191", "percent": 25.0, "state": "moved" },
                { "place": 1, "from": "1", "to": "3", "what": "slots 12288-16383", "percent": 25.0, "state": "current" },
            ],
            "webhooks": [],
            "history": [
                { "at_ms": 60_000, "what": "started", "batch": 0, "by": "ann", "why": "it begins" },
                { "at_ms": 61_000, "what": "announced", "batch": 0, "by": "move", "why": "", "revision": 42 },
            ],
        })
    }

    #[test]
    fn a_plan_is_told_with_what_moves_and_what_is_to_be_known() {
        let batch = |place: u64| json!({ "place": place, "from": "0", "to": "2", "what": "slots 4096-8191", "percent": 25.0 });
        let told = plan(
            "profile",
            &json!({ "moves_percent": 50.0, "batches": [batch(0), batch(1)], "notes": ["a note"] }),
        );
        let expected = "profile: 50 % of the keys would move, in 2 batches

BATCH  FROM  TO  KEYS             SHARE
1      0     2   slots 4096-8191  25 %
2      0     2   slots 4096-8191  25 %

note: a note";
        assert_eq!(told, expected);
        assert_eq!(
            plan("tenants", &json!({ "moves_percent": null, "batches": [batch(0)], "notes": [] }))
                .lines()
                .next(),
            Some("tenants: keys would move, in 1 batch")
        );
        assert_eq!(
            plan("cache", &json!({ "moves_percent": 20.0, "batches": [], "notes": [] })),
            "cache: 20 % of the keys would have another shard"
        );
    }

    #[test]
    fn a_move_is_drawn_with_its_batches_and_whom_it_waits_for() {
        let expected = "profile: move 41, handover; begun 10 s ago by ann
  ████████████████████░░░░░░░░░░░░░░░░░░░░  1 of 2 batches
  waiting for web-7 (has not closed it yet)

waiting for
  web-7  has not closed it yet

BATCH  FROM  TO  KEYS               SHARE  STATE
✓ 1    0     2   slots 4096-8191    25 %   moved
▸ 2    1     3   slots 12288-16383  25 %   current";
        assert_eq!(one(&moving(), 70_000), expected);
        let (key, line) = line(&moving());
        assert_eq!(
            line,
            "handover, slots 12288-16383, 1 of 2 batches moved: waiting for web-7 (has not closed it yet)"
        );
        let mut later = moving();
        later["why"] = json!("waiting for nobody");
        assert_eq!(super::line(&later).0, key);
        assert!(history(&moving(), 70_000).ends_with("9 s ago   announced  1      move  42        -"));
    }

    #[test]
    fn moves_are_listed_and_a_human_is_told_what_to_type() {
        let listed = json!([{ "id": 41, "state": "done", "direction": "forward", "moved": 2, "batches": 2, "by": "ann",
            "started_ms": 60_000, "why": "every batch has moved" }]);
        let expected = "MOVE  STATE  WAY      MOVED   BEGUN     BY   WHY
41    done   forward  2 of 2  10 s ago  ann  every batch has moved";
        assert_eq!(list("profile", &listed, 70_000), expected);
        assert!(list("profile", &json!([]), 0).contains("gilmok shards move profile"));
        let of = |state: &str, copied: bool| {
            hint(&json!({ "service": "profile", "state": state, "copied": copied }))
        };
        assert!(of("paused", false).unwrap().contains("gilmok shards resume profile` goes on"));
        assert!(of("copying", false).unwrap().contains("says that the batch is copied"));
        assert_eq!(of("copying", true).or(of("done", false)), None);
    }
}
