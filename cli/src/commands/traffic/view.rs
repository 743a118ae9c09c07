//! Traffic for people: versions and shares, what a drain still waits for, who would move. From JSON to lines, nothing else.

use serde_json::Value as Json;

use super::super::share::shares;
use crate::table::{ago, indented, lasting, or_dash, percent, table};

/// A service in the list of all.
pub(super) fn row(service: &str, traffic: &Json, rollouts: &Json) -> [String; 4] {
    let mut running = rollouts.as_array().into_iter().flatten();
    let rollout = running.find(|rollout| rollout["service"] == service);
    [
        service.to_owned(),
        text(&traffic["stable"]),
        shares(&traffic["weights"]),
        rollout.map_or_else(|| "-".to_owned(), in_a_word),
    ]
}

/// One service's traffic with everything that is known of it.
pub(crate) fn shown(answer: &Json, now_ms: u64) -> String {
    let traffic = &answer["traffic"];
    let mut rows = Vec::new();
    if traffic.is_null() {
        rows.push(("traffic", "no table: all versions are one pool".to_owned()));
    } else {
        rows.push(("stable", text(&traffic["stable"])));
        rows.push(("shares", shares(&traffic["weights"])));
        for key in ["subject", "salt", "group", "when_no_subject", "when_unhealthy", "drain_timeout"] {
            if !traffic[key].is_null() {
                rows.push((key, words(&traffic[key])));
            }
        }
        for (key, what) in [("pins", "exceptions"), ("table", "ranges")] {
            if let Some(items) = traffic[key].as_array() {
                rows.push((key, format!("{} {what}", items.len())));
            }
        }
    }
    if !answer["rollout"].is_null() {
        rows.push(("rollout", in_a_word(&answer["rollout"])));
    }
    rows.extend(release(answer, now_ms).map(|told| ("last", told)));
    rows.extend(drain(&answer["release"]["drain"], now_ms).map(|told| ("drain", told)));
    let rows: Vec<_> = rows.into_iter().map(|(name, told)| vec![name.to_owned(), told]).collect();
    let versions = answer["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    if versions.is_empty() {
        return indented(&rows);
    }
    let head = ["version", "share", "endpoints", "in flight", "requests", "trials", "failures"];
    format!("{}\n\n{}", indented(&rows), table(head, versions.iter().map(version)))
}

fn version(version: &Json) -> [String; 7] {
    let count = |key: &str| version[key].as_u64().map_or_else(|| "-".to_owned(), |count| count.to_string());
    let share = version["weight_percent"].as_f64().map_or_else(|| "-".to_owned(), percent);
    let counts = ["endpoints", "in_flight", "requests", "trials", "failures"].map(count);
    let [endpoints, in_flight, requests, trials, failures] = counts;
    [text(&version["version"]), share, endpoints, in_flight, requests, trials, failures]
}

/// A rollout in a few words.
fn in_a_word(rollout: &Json) -> String {
    let state = text(&rollout["state"]).replace('_', " ");
    let share = rollout["percent"].as_f64().map(|value| format!(" at {}", percent(value)));
    format!("{}: {state}{}", text(&rollout["candidate"]), share.unwrap_or_default())
}

/// What was done last, and what a rollback would bring back.
fn release(answer: &Json, now_ms: u64) -> Option<String> {
    let release = &answer["release"];
    let kind = release["kind"].as_str()?;
    let mut told = format!("{kind} from {} to {}", text(&release["from"]), text(&release["to"]));
    if let Some(at) = release["at_ms"].as_u64() {
        told.push_str(&format!(", {}", ago(now_ms.saturating_sub(at))));
    }
    if let Some(by) = release["by"].as_str().filter(|by| !by.is_empty()) {
        told.push_str(&format!(", by {by}"));
    }
    told.push_str(&format!(", revision {}", release["revision"]));
    let before = &release["before"][answer["service"].as_str()?]["weights"];
    if before.is_object() {
        let before = shares(before);
        told.push_str(&format!("; `gilmok traffic rollback` brings back {before}"));
    }
    Some(told)
}

/// Whether the old version may go, and who is waited for if it may not.
pub(super) fn drain(drain: &Json, now_ms: u64) -> Option<String> {
    let version = drain["version"].as_str()?;
    let because = drain["why"].as_str().filter(|why| !why.is_empty());
    if drain["drainable"].as_bool() == Some(true) {
        let because = because.map(|why| format!(": {why}")).unwrap_or_default();
        return Some(format!("{version} may be stopped{because}"));
    }
    let waiting = drain["waiting_for"].as_array().into_iter().flatten();
    let waiting: Vec<_> =
        waiting.map(|one| format!("{} ({})", text(&one["proxy"]), text(&one["why"]))).collect();
    let mut told = format!("{version} may not be stopped yet");
    match because {
        _ if !waiting.is_empty() => told.push_str(&format!(", it waits for {}", waiting.join(", "))),
        Some(why) => told.push_str(&format!(": {why}")),
        None => {}
    }
    let left = drain["deadline_ms"].as_u64().map(|deadline| deadline.saturating_sub(now_ms));
    if let Some(left) = left.filter(|left| *left > 0) {
        told.push_str(&format!("; {} more at most", lasting(left)));
    }
    Some(told)
}

/// Who would move, if this were written.
pub(super) fn planned(service: &str, plan: &Json) -> String {
    let moves = plan["moves"].as_array().map(Vec::as_slice).unwrap_or_default();
    let all = percent(plan["moves_percent"].as_f64().unwrap_or_default());
    let mut told = if moves.is_empty() {
        format!("nobody who uses {service} would move")
    } else {
        let rows = moves.iter().map(|one| {
            let share = percent(one["percent"].as_f64().unwrap_or_default());
            [text(&one["from"]), text(&one["to"]), share]
        });
        let moves = table(["from", "to", "share of subjects"], rows);
        format!("{all} of the subjects of {service} would move, everybody else stays\n\n{moves}")
    };
    for warning in plan["warnings"].as_array().into_iter().flatten().filter_map(Json::as_str) {
        told.push_str(&format!("\nwarning: {warning}"));
    }
    told
}

fn text(value: &Json) -> String {
    or_dash(value.as_str().unwrap_or_default())
}

/// A word, or several.
fn words(value: &Json) -> String {
    match value.as_array() {
        Some(items) => items.iter().map(text).collect::<Vec<_>>().join(", "),
        None => text(value),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn switched() -> Json {
        json!({
            "service": "checkout", "revision": 12,
            "traffic": { "stable": "green", "weights": { "blue": 0, "green": 100 }, "subject": ["header:x-user-id", "cookie:uid"] },
            "versions": [
                { "version": "blue", "weight_percent": 0, "endpoints": 2, "in_flight": 3, "requests": 100, "trials": 10, "failures": 1 },
                { "version": "green", "weight_percent": 100, "endpoints": 2, "in_flight": 5, "requests": 50, "trials": 5, "failures": 0 },
            ],
            "release": {
                "kind": "switch", "revision": 12, "at_ms": 1_000, "by": "ann", "from": "blue", "to": "green",
                "before": { "checkout": { "stable": "blue", "weights": { "blue": 90, "green": 10 } } },
                "drain": {
                    "version": "blue", "drainable": false, "why": "", "deadline_ms": 31_000,
                    "waiting_for": [{ "proxy": "web-1", "why": "3 in flight" }, { "proxy": "web-2", "why": "has not acknowledged" }],
                },
            },
            "rollout": null,
        })
    }

    #[test]
    fn a_switch_is_shown_with_what_its_drain_waits_for() {
        let told = shown(&switched(), 6_000);
        let expected = "  stable   green
  shares   green 100 %
  subject  header:x-user-id, cookie:uid
  last     switch from blue to green, 5 s ago, by ann, revision 12; `gilmok traffic rollback` brings back blue 90 %, green 10 %
  drain    blue may not be stopped yet, it waits for web-1 (3 in flight), web-2 (has not acknowledged); 25s more at most

VERSION  SHARE  ENDPOINTS  IN FLIGHT  REQUESTS  TRIALS  FAILURES
blue     0 %    2          3          100       10      1
green    100 %  2          5          50        5       0";
        assert_eq!(told, expected);
    }

    #[test]
    fn a_version_that_is_drained_may_be_stopped() {
        let told = drain(&json!({ "version": "blue", "drainable": true, "why": "nothing is in flight" }), 0);
        assert_eq!(told.unwrap(), "blue may be stopped: nothing is in flight");
        assert_eq!(drain(&Json::Null, 0), None);
    }

    #[test]
    fn a_service_without_a_table_says_so() {
        let told = shown(&json!({ "traffic": null, "versions": [], "release": null, "rollout": null }), 0);
        assert_eq!(told, "  traffic  no table: all versions are one pool");
    }

    #[test]
    fn a_plan_names_who_moves() {
        let plan = json!({ "moves_percent": 9.0, "moves": [{ "from": "v1", "to": "v2", "percent": 9.0 }], "warnings": ["v2 has one endpoint"] });
        assert_eq!(
            planned("checkout", &plan),
            "9 % of the subjects of checkout would move, everybody else stays\n\n\
             FROM  TO  SHARE OF SUBJECTS\nv1    v2  9 %\nwarning: v2 has one endpoint"
        );
        let same = json!({ "moves_percent": 0.0, "moves": [] });
        assert_eq!(planned("checkout", &same), "nobody who uses checkout would move");
    }

    #[test]
    fn a_running_rollout_stands_in_the_list() {
        let traffic = json!({ "stable": "v1", "weights": { "v1": 99, "v2": 1 } });
        let rollouts =
            json!([{ "service": "checkout", "candidate": "v2", "state": "rolled_back", "percent": 0 }]);
        assert_eq!(
            row("checkout", &traffic, &rollouts),
            ["checkout", "v1", "v1 99 %, v2 1 %", "v2: rolled back at 0 %"]
        );
        assert_eq!(row("ads", &traffic, &rollouts)[3], "-");
    }
}
