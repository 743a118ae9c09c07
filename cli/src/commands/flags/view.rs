//! Flags for people: the list, one of them, why it is what it is, which could go. From JSON to lines, nothing else.

use gilmok_config::moment::format_moment;
use serde_json::Value as Json;

use crate::table::{ago, indented, or_dash, table};

/// Every flag, and what flagd would warn of.
pub(super) fn listed(overview: &Json, now_ms: u64) -> String {
    let rows = rows(overview);
    if rows.is_empty() {
        return "there are no flags; `gilmok flags set flags.json` puts some".to_owned();
    }
    let head = ["flag", "state", "type", "default", "for whom", "evaluated", "stale"];
    let listed = rows.iter().map(|row| {
        let for_whom = match row["follows"].as_str() {
            Some(service) => format!("follows {service}"),
            None if row["static"] == true => "everybody".to_owned(),
            None => "by rule".to_owned(),
        };
        [
            text(&row["flag"]),
            state(row),
            text(&row["type"]),
            text(&row["default_variant"]),
            for_whom,
            evaluated(row, now_ms),
            if reasons(row).is_empty() { "-".to_owned() } else { "yes".to_owned() },
        ]
    });
    let mut lines = vec![table(head, listed)];
    for warning in overview["warnings"].as_array().into_iter().flatten() {
        lines.push(format!("warning: {}: {}", text(&warning["path"]), text(&warning["what"])));
    }
    lines.join("\n")
}

/// One flag.
pub(super) fn shown(row: &Json, flag: &Json, now_ms: u64) -> String {
    let mut rows = vec![
        ("flag", text(&row["flag"])),
        ("state", state(row)),
        ("type", text(&row["type"])),
        ("variants", names(&row["variants"])),
        ("default", text(&row["default_variant"])),
        ("evaluated", evaluated(row, now_ms)),
        ("scheduled", row["scheduled"].to_string()),
    ];
    for (variant, seen) in row["seen"].as_object().into_iter().flatten() {
        let name = if variant.is_empty() { "the code's default" } else { variant };
        let last = ago(now_ms.saturating_sub(seen["last_ms"].as_u64().unwrap_or_default()));
        let by_reason = seen["evaluations"].as_object().into_iter().flatten();
        let by_reason: Vec<_> =
            by_reason.map(|(reason, count)| format!("{count} by {}", reason.to_lowercase())).collect();
        rows.push(("seen", [vec![name.to_owned(), last], by_reason].concat().join(", ")));
    }
    if let Some(expires) = row["expires"].as_u64() {
        rows.push(("expires", format_moment(expires)));
    }
    if row["killed_by"].is_object() {
        rows.push(("killed by", said_by(&row["killed_by"])));
    }
    rows.extend(guard(&row["guard"]).into_iter().map(|line| ("guard", line)));
    rows.extend(reasons(row).iter().map(|why| ("stale", reason(why, now_ms))));
    let rows: Vec<_> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    format!("{}\n\n{flag:#}", indented(&rows))
}

/// Who did it, and why.
fn said_by(said: &Json) -> String {
    let (by, why) = (text(&said["by"]), said["why"].as_str().unwrap_or_default());
    if why.is_empty() { by } else { format!("{by}: {why}") }
}

/// What a guard has seen, a line for each variant that it compares.
fn guard(guard: &Json) -> Vec<String> {
    let share = |counted: &Json| {
        let percent = counted["percent"].as_f64().unwrap_or_default();
        format!("{percent:.2} % of {} users", counted["trials"])
    };
    let slow = |variant: &Json| {
        let latencies = variant["evidence"]["latency"].as_array().into_iter().flatten();
        let worse = latencies
            .filter(|latency| latency["finding"] == "worse")
            .map(|latency| format!(", slower than its p{}", latency["percentile"]));
        worse.collect::<String>()
    };
    let compared = guard["variants"].as_array().into_iter().flatten().map(|variant| {
        let failures = &variant["evidence"]["failures"];
        format!(
            "{} fails for {}, {} for {}{} (e-value {:.1} of {:.0})",
            text(&variant["variant"]),
            share(&failures["candidate"]),
            text(&guard["baseline"]),
            share(&failures["stable"]),
            slow(variant),
            failures["e_value"].as_f64().unwrap_or_default(),
            failures["e_value_needed"].as_f64().unwrap_or_default(),
        )
    });
    let failed = guard["failed"].as_str().map(|why| format!("FAILED: {why}"));
    failed.into_iter().chain(compared).collect()
}

/// Those that could go, with why.
pub(super) fn stale(overview: &Json, now_ms: u64) -> String {
    let rows = rows(overview);
    if rows.is_empty() {
        return "no flag is stale, as far as proxies have told".to_owned();
    }
    let rows = rows.iter().map(|row| {
        let why: Vec<_> = reasons(row).iter().map(|why| reason(why, now_ms)).collect();
        [text(&row["flag"]), text(&row["purpose"]), evaluated(row, now_ms), why.join("; ")]
    });
    table(["flag", "purpose", "evaluated", "why"], rows)
}

/// What waits for its time.
pub(super) fn scheduled(waiting: &Json) -> String {
    let waiting = waiting.as_array().map(Vec::as_slice).unwrap_or_default();
    if waiting.is_empty() {
        return "no change waits".to_owned();
    }
    let rows = waiting.iter().map(|one| {
        let state = one["failed"].as_str().map_or_else(|| "waits".to_owned(), |why| format!("FAILED: {why}"));
        [one["id"].to_string(), text(&one["at"]), text(&one["by"]), one["patch"].to_string(), state]
    });
    table(["id", "at", "by", "patch", "state"], rows)
}

fn reason(why: &Json, now_ms: u64) -> String {
    let days = |since: &Json| now_ms.saturating_sub(since.as_u64().unwrap_or_default()) / 86_400_000;
    match why["why"].as_str().unwrap_or_default() {
        "expired" => format!("past {}", format_moment(why["expires"].as_u64().unwrap_or_default())),
        "one_variant" => {
            format!("`{}` for everybody for {} days", text(&why["variant"]), days(&why["since_ms"]))
        }
        "unused" => format!("not evaluated for {} days", days(&why["since_ms"])),
        other => other.to_owned(),
    }
}

/// What a flag is for somebody, and how that came about.
pub(super) fn explained(answer: &Json) -> String {
    let mut rows = vec![
        ("flag".to_owned(), format!("{}, {}", text(&answer["flag"]), text(&answer["type"]))),
        ("subject".to_owned(), text(&answer["targeting_key"])),
    ];
    match &answer["error"] {
        Json::Null => {
            let variant = match answer["variant"].as_str() {
                Some(variant) => format!("{variant} = {}", answer["value"]),
                None => "none: the application keeps the default in its code".to_owned(),
            };
            rows.push(("variant".to_owned(), variant));
            let detail = answer["metadata"]["gilmok.reason"].as_str();
            let detail = detail.map(|detail| format!(", {detail}")).unwrap_or_default();
            rows.push(("reason".to_owned(), format!("{}{detail}", text(&answer["reason"]))));
        }
        error => {
            rows.push(("error".to_owned(), format!("{}: {}", text(&error["code"]), text(&error["what"]))))
        }
    }
    let steps = answer["steps"].as_array().into_iter().flatten();
    rows.extend(steps.flat_map(step));
    rows.extend(guard(&answer["guard"]).into_iter().map(|line| ("guard".to_owned(), line)));
    rows.push(("revision".to_owned(), answer["revision"].to_string()));
    let rows: Vec<_> = rows.into_iter().map(|(name, value)| vec![name, value]).collect();
    indented(&rows)
}

/// One thing that was looked at, in as many lines as it takes.
fn step(step: &Json) -> Vec<(String, String)> {
    let name = text(&step["step"]);
    let variant = text(&step["variant"]);
    let line = match name.as_str() {
        "kill" if step["active"] == true && step["by"].is_string() => {
            format!("pulled: `{variant}` for everybody, by {}", said_by(step))
        }
        "kill" if step["active"] == true => format!("pulled: `{variant}` for everybody"),
        "kill" => "not pulled".to_owned(),
        "state" if step["enabled"] == true => "ENABLED".to_owned(),
        "state" => "DISABLED".to_owned(),
        "prerequisite" => format!(
            "{}:{} is {variant}, {}",
            text(&step["flag"]),
            text(&step["required"]),
            if step["met"] == true { "met" } else { "not met" }
        ),
        "buckets" => match step["place"].as_u64() {
            Some(place) => format!(
                "place {place} by the salt `{}` and `{}`: {variant}",
                text(&step["salt"]),
                text(&step["unit"])
            ),
            None => format!("nobody is told apart by `{}`", text(&step["unit"])),
        },
        "follow" => {
            let on = match step["on_candidate"].as_bool() {
                Some(true) => "on the candidate",
                Some(false) => "on the stable version",
                None => "nobody can say",
            };
            format!("{}: {on}", text(&step["service"]))
        }
        "targeting" => return targeting(step),
        _ => variant,
    };
    vec![(name, line)]
}

fn targeting(step: &Json) -> Vec<(String, String)> {
    if let Some(error) = step["error"].as_str() {
        return vec![("targeting".to_owned(), format!("cannot be evaluated: {error}"))];
    }
    let told = |value: &Json| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let result = match &step["result"] {
        Json::Null => "null: it says nothing of this one".to_owned(),
        result => told(result),
    };
    let mut rows = vec![("targeting".to_owned(), result)];
    for line in step["path"].as_array().into_iter().flatten() {
        let depth = usize::try_from(line["depth"].as_u64().unwrap_or_default()).unwrap_or_default();
        let result = line.get("result").map(|result| format!(" → {}", told(result))).unwrap_or_default();
        rows.push((String::new(), format!("{}{}{result}", "  ".repeat(depth), text(&line["rule"]))));
    }
    let share = &step["fractional"];
    if share.is_object() {
        rows.push((
            "bucket".to_owned(),
            format!(
                "{} of {}, hash {} by version {}",
                share["bucket"],
                share["of"],
                text(&share["hash"]),
                share["hash_version"]
            ),
        ));
    }
    rows
}

fn rows(overview: &Json) -> &[Json] {
    overview["flags"].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn reasons(row: &Json) -> &[Json] {
    row["stale"].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// What is out of the ordinary stands in capitals.
fn state(row: &Json) -> String {
    if row["killed"] == true { "KILLED".to_owned() } else { text(&row["state"]).to_lowercase() }
}

fn evaluated(row: &Json, now_ms: u64) -> String {
    row["evaluated_ms"].as_u64().map_or_else(|| "-".to_owned(), |at| ago(now_ms.saturating_sub(at)))
}

fn names(list: &Json) -> String {
    list.as_array().into_iter().flatten().filter_map(Json::as_str).collect::<Vec<_>>().join(", ")
}

fn text(value: &Json) -> String {
    or_dash(value.as_str().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_list_shows_what_is_killed_and_what_could_go() {
        let overview = json!({ "flags": [
            { "flag": "new-ui", "state": "ENABLED", "type": "boolean", "default_variant": "off", "killed": true, "static": true,
              "evaluated_ms": 1_000, "stale": [] },
            { "flag": "size", "state": "ENABLED", "type": "number", "default_variant": null, "static": false,
              "evaluated_ms": null, "stale": [{ "why": "unused", "since_ms": 0 }] } ],
            "warnings": [{ "path": "flags.set", "what": "odd" }] });
        let told = listed(&overview, 6_000);
        let expected = "\
FLAG    STATE    TYPE     DEFAULT  FOR WHOM   EVALUATED  STALE
new-ui  KILLED   boolean  off      everybody  5 s ago    -
size    enabled  number   -        by rule    -          yes
warning: flags.set: odd";
        assert_eq!(told, expected);
        assert!(listed(&json!({}), 0).starts_with("there are no flags"));
    }

    #[test]
    fn what_was_observed_of_a_flag_is_told_by_variant() {
        let seen = json!({ "on": { "last_ms": 1_000, "evaluations": { "SPLIT": 7, "TARGETING_MATCH": 2 } },
            "": { "last_ms": 4_000, "evaluations": { "ERROR": 1 } } });
        let told = shown(&json!({ "flag": "a", "seen": seen }), &json!({}), 6_000);
        assert!(told.contains("on, 5 s ago, 7 by split, 2 by targeting_match\n"), "{told}");
        assert!(told.contains("the code's default, 2 s ago, 1 by error\n"), "{told}");
    }

    #[test]
    fn what_a_guard_has_seen_and_done_is_told() {
        let counted =
            |trials: u64, percent: f64| json!({ "trials": trials, "events": 0, "percent": percent });
        let failures = json!({ "finding": "worse", "candidate": counted(50, 40.0), "stable": counted(900, 0.5),
            "e_value": 431.25, "e_value_needed": 200.0 });
        let latency =
            json!([{ "percentile": 95, "finding": "worse" }, { "percentile": 99, "finding": "unsure" }]);
        let guard = json!({ "baseline": "off", "on_fail": "tell", "failed": "on is bad",
            "variants": [{ "variant": "on", "evidence": { "failures": failures, "latency": latency } }] });
        let row = json!({ "flag": "a", "guard": guard, "killed_by": { "by": "ann", "why": "it hurts" } });
        let told = shown(&row, &json!({}), 0);
        for line in [
            "killed by  ann: it hurts\n",
            "guard      FAILED: on is bad\n",
            "guard      on fails for 40.00 % of 50 users, off for 0.50 % of 900 users, slower than its p95 (e-value 431.2 of 200)\n",
        ] {
            assert!(told.contains(line), "{told}");
        }
        let killed =
            json!({ "step": "kill", "active": true, "variant": "off", "by": "guard", "why": "on is bad" });
        assert_eq!(step(&killed)[0].1, "pulled: `off` for everybody, by guard: on is bad");
    }

    #[test]
    fn why_a_flag_could_go_is_told_in_words() {
        let day = 86_400_000;
        let overview = json!({ "flags": [{ "flag": "a", "purpose": "release", "stale": [
            { "why": "expired", "expires": 0 }, { "why": "one_variant", "variant": "on", "since_ms": day } ] }] });
        let told = stale(&overview, 11 * day);
        assert!(told.contains("past 1970-01-01T00:00:00Z; `on` for everybody for 10 days"), "{told}");
    }

    #[test]
    fn the_way_through_a_rule_is_told() {
        let answer = json!({ "flag": "new-ui", "type": "boolean", "targeting_key": "user-42", "variant": "on", "value": true,
            "reason": "TARGETING_MATCH", "metadata": {}, "revision": 3, "steps": [
            { "step": "kill", "active": false, "variant": "off" },
            { "step": "state", "enabled": true },
            { "step": "prerequisite", "flag": "up", "required": "on", "variant": "on", "met": true },
            { "step": "targeting", "result": "on", "path": [
                { "depth": 1, "rule": "if", "result": "on" }, { "depth": 2, "rule": "==", "result": false } ],
              "fractional": { "hash_version": 3, "hash": "00c0ffee", "bucket": 7, "of": 100 } } ] });
        let expected = "  flag          new-ui, boolean
  subject       user-42
  variant       on = true
  reason        TARGETING_MATCH
  kill          not pulled
  state         ENABLED
  prerequisite  up:on is on, met
  targeting     on
                  if → on
                    == → false
  bucket        7 of 100, hash 00c0ffee by version 3
  revision      3";
        assert_eq!(explained(&answer), expected);
    }
}
