//! A rollout as people see it: from JSON, a time and a size to lines, nothing else.

use serde_json::Value as Json;

use super::text;
use crate::table::{ago, bar, indented, lasting, percent, table};

/// Cells of the bar that shows how many are on the new version.
const SHARE_CELLS: usize = 40;
/// Cells of the small bars in tables.
const SMALL_CELLS: usize = 8;
/// Most steps that are drawn, the current one among them. Presets that go host by host have many.
const STEPS_SHOWN_MAX: usize = 12;
/// How many of them stand before the current one.
const STEPS_BEFORE: usize = 3;

/// The room that there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) columns: usize,
    pub(super) rows: usize,
}

impl Default for Size {
    /// As much as it takes.
    fn default() -> Self {
        Self { columns: usize::MAX, rows: usize::MAX }
    }
}

/// A rollout in the list of all.
pub(super) fn row(rollout: &Json, now_ms: u64) -> [String; 6] {
    let step = match (rollout["step"].as_u64(), rollout["steps"].as_u64()) {
        (Some(step), Some(steps)) => format!("{} of {steps}", step + 1),
        _ => "-".to_owned(),
    };
    let since = rollout["since_ms"].as_u64().map(|at| ago(now_ms.saturating_sub(at)));
    [
        text(&rollout["service"]),
        text(&rollout["candidate"]),
        state(rollout),
        step,
        share(&rollout["percent"]),
        since.unwrap_or_default(),
    ]
}

/// One decision of a rollout's history.
pub(super) fn entry(entry: &Json, now_ms: u64) -> [String; 7] {
    let number = |value: u64| value.to_string();
    [
        entry["at_ms"].as_u64().map_or_else(String::new, |at| ago(now_ms.saturating_sub(at))),
        text(&entry["what"]).replace('_', " "),
        entry["step"].as_u64().map_or_else(|| "-".to_owned(), |step| number(step + 1)),
        share(&entry["percent"]),
        text(&entry["by"]),
        entry["revision"].as_u64().map_or_else(|| "-".to_owned(), number),
        text(&entry["why"]),
    ]
}

/// What tells one state from the next, and the line that says so.
pub(super) fn change(rollout: &Json) -> (String, String) {
    let (step, percent, extended) = (&rollout["step"], &rollout["percent"], &rollout["extended"]);
    let key = format!("{} {step} {percent} {extended}", rollout["state"]);
    let why = rollout["why"].as_str().filter(|why| !why.is_empty());
    let line = format!(
        "{}, {}{}",
        title(rollout),
        place(rollout),
        why.map(|why| format!(": {why}")).unwrap_or_default()
    );
    (key, line)
}

/// The whole view; lines that are too long end in `…`, and what is below the last row is left out.
pub(super) fn frame(rollout: &Json, now_ms: u64, size: Size) -> Vec<String> {
    let begun =
        rollout["started_ms"].as_u64().map(|at| format!("; begun {}", ago(now_ms.saturating_sub(at))));
    let by = rollout["by"].as_str().filter(|by| !by.is_empty()).map(|by| format!(" by {by}"));
    let mut lines = vec![
        format!("{}{}{}", title(rollout), begun.unwrap_or_default(), by.unwrap_or_default()),
        format!("  {}  {}", bar(number(&rollout["percent"]) / 100.0, SHARE_CELLS), place(rollout)),
    ];
    lines.extend(rollout["why"].as_str().filter(|why| !why.is_empty()).map(|why| format!("  {why}")));
    lines.extend(hint(rollout));
    for part in
        [steps(rollout), counts(rollout), evidence(rollout)].into_iter().filter(|part| !part.is_empty())
    {
        lines.push(String::new());
        lines.extend(part.lines().map(str::to_owned));
    }
    // The last row is the cursor's.
    lines.truncate(size.rows.saturating_sub(1).max(1));
    lines.into_iter().map(|line| cut(line, size.columns)).collect()
}

fn cut(line: String, columns: usize) -> String {
    if line.chars().count() <= columns {
        return line;
    }
    line.chars().take(columns.saturating_sub(1)).chain(['…']).collect()
}

fn title(rollout: &Json) -> String {
    let [service, from, to] = ["service", "stable", "candidate"].map(|key| text(&rollout[key]));
    format!("{service}: {from} -> {to}, {}", state(rollout))
}

fn state(rollout: &Json) -> String {
    text(&rollout["state"]).replace('_', " ")
}

fn place(rollout: &Json) -> String {
    let steps = rollout["steps"].as_array().map_or(0, Vec::len);
    let step = rollout["step"].as_u64().unwrap_or_default() + 1;
    format!("{}, step {step} of {steps}", share(&rollout["percent"]))
}

fn share(value: &Json) -> String {
    value.as_f64().map_or_else(|| "-".to_owned(), percent)
}

fn number(value: &Json) -> f64 {
    value.as_f64().unwrap_or_default()
}

/// What a human may do now.
fn hint(rollout: &Json) -> Option<String> {
    let service = text(&rollout["service"]);
    let word = |word: &str| format!("`gilmok rollout {word}`");
    let told = match rollout["state"].as_str()? {
        "gated" => format!("{} approves, {} goes back", word(&format!("promote {service}")), word("abort")),
        "paused" => format!("{} goes on, {} goes back", word(&format!("resume {service}")), word("abort")),
        "frozen" => {
            format!(
                "{} goes back, {} goes on all the same",
                word(&format!("abort {service}")),
                word("promote --force")
            )
        }
        "holding" if rollout["extended"].as_bool() == Some(true) => {
            "its time is over, but what was seen says neither yes nor no: it holds on".to_owned()
        }
        _ => return None,
    };
    Some(format!("  {told}"))
}

fn steps(rollout: &Json) -> String {
    let steps = rollout["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
    let current = usize::try_from(rollout["step"].as_u64().unwrap_or_default()).unwrap_or_default();
    let first = current.saturating_sub(STEPS_BEFORE).min(steps.len().saturating_sub(STEPS_SHOWN_MAX));
    let shown = steps.iter().skip(first).take(STEPS_SHOWN_MAX);
    let mut rows: Vec<Vec<String>> = shown.map(|step| step_row(rollout, step)).collect();
    let after = steps.len().saturating_sub(first + rows.len());
    if first > 0 {
        rows.insert(0, vec!["…".to_owned(), format!("{first} before")]);
    }
    if after > 0 {
        rows.push(vec!["…".to_owned(), format!("{after} after")]);
    }
    indented(&rows)
}

fn step_row(rollout: &Json, step: &Json) -> Vec<String> {
    let is_current = step["state"] == "current";
    let mark = match (step["state"].as_str(), rollout["state"].as_str()) {
        (Some("done"), _) => "✓",
        (Some("current"), Some("rolled_back" | "aborted" | "frozen")) => "✗",
        (Some("current"), _) => "▸",
        _ => "·",
    };
    let gate = &step["gate"];
    let (what, time) = if gate.is_null() {
        (share(&step["percent"]), held(rollout, &step["hold"], is_current))
    } else {
        let timeout = gate["timeout"].as_str().map(|time| format!(", at most {time}"));
        let then =
            gate["on_timeout"].as_str().filter(|_| timeout.is_some()).map(|then| format!(", then {then}"));
        (
            "gate".to_owned(),
            format!("a human's word{}{}", timeout.unwrap_or_default(), then.unwrap_or_default()),
        )
    };
    let needs = [("min_requests", "requests"), ("min_subjects", "subjects")];
    let needs = needs
        .into_iter()
        .filter_map(|(key, what)| Some(format!("{} {what}", step[key].as_u64().filter(|most| *most > 0)?)));
    let needs: Vec<_> = needs.filter(|_| is_current).collect();
    let needs = if needs.is_empty() { String::new() } else { format!("needs {}", needs.join(", ")) };
    vec![mark.to_owned(), what, time, needs]
}

/// How long a share holds, and how much of that is over: time in which a control plane was running.
fn held(rollout: &Json, hold: &Json, is_current: bool) -> String {
    let text = hold.as_str().filter(|hold| *hold != "0s").unwrap_or_default();
    let is_holding = is_current && rollout["state"] == "holding";
    match (rollout["held_ms"].as_u64(), rollout["hold_ms"].as_u64()) {
        (Some(held), Some(hold)) if is_holding && hold > 0 => {
            #[expect(clippy::cast_precision_loss, reason = "a bar of a few cells")]
            let share = held as f64 / hold as f64;
            format!("{} {} of {text}", bar(share, SMALL_CELLS), lasting(held))
        }
        _ => text.to_owned(),
    }
}

/// What was counted of both versions in this step.
fn counts(rollout: &Json) -> String {
    let counts = &rollout["counts"];
    if !counts.is_object() {
        return String::new();
    }
    let rows = ["stable", "candidate"].map(|role| {
        let of = |key: &str| counts[role][key].as_u64().unwrap_or_default();
        let (trials, failures) = (of("trials"), of("failures"));
        #[expect(clippy::cast_precision_loss, reason = "a percentage with two decimals")]
        let failed = if trials == 0 { "-".to_owned() } else { rate(failures as f64 * 100.0 / trials as f64) };
        [text(&rollout[role]), of("requests").to_string(), trials.to_string(), failures.to_string(), failed]
    });
    table(["version", "requests", "trials", "failures", "failed"], rows)
}

/// What speaks against the new version, and what for it.
fn evidence(rollout: &Json) -> String {
    let evidence = &rollout["evidence"];
    if !evidence.is_object() {
        return String::new();
    }
    let slow = evidence["latency"].as_array().into_iter().flatten().map(|slow| {
        let over = slow["stable_us"].as_f64().map(|us| format!(" over {:.0} ms", us / 1_000.0));
        evidence_row(format!("p{}{}", slow["percentile"], over.unwrap_or_default()), slow)
    });
    let rows = std::iter::once(evidence_row("failures".to_owned(), &evidence["failures"])).chain(slow);
    let ratio = match rollout["plan"]["analysis"]["max_ratio"].as_f64() {
        Some(most) => format!("ratio < {}", short(most)),
        None => "ratio".to_owned(),
    };
    table(["judged by", "finding", "e-value", &ratio, "stable", "candidate"], rows)
}

fn evidence_row(name: String, seen: &Json) -> [String; 6] {
    let needed = number(&seen["e_value_needed"]).max(2.0);
    let e_value = number(&seen["e_value"]);
    // E-values multiply, so what is drawn is their logarithm.
    let share = e_value.max(1.0).ln() / needed.ln();
    let ratio = seen["ratio_at_most"].as_f64().map_or_else(|| "unknown".to_owned(), short);
    let of = |role: &str| seen[role]["percent"].as_f64().map_or_else(|| "-".to_owned(), rate);
    [
        name,
        text(&seen["finding"]).replace('_', " "),
        format!("{} {} of {}", bar(share, SMALL_CELLS), short(e_value), short(needed)),
        ratio,
        of("stable"),
        of("candidate"),
    ]
}

/// A measured share, with two decimals at most.
fn rate(value: f64) -> String {
    percent((value * 100.0).round() / 100.0)
}

/// A number with three digits that count, more or less.
fn short(value: f64) -> String {
    match value {
        _ if value >= 1e6 => format!("{value:.0e}"),
        _ if value >= 100.0 => format!("{value:.0}"),
        _ => {
            let text = format!("{value:.2}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn holding() -> Json {
        json!({
            "service": "checkout", "candidate": "v2", "stable": "v1", "state": "holding", "step": 1, "percent": 10,
            "started_ms": 60_000, "held_ms": 120_000, "hold_ms": 600_000, "by": "ann", "extended": false,
            "why": "holds for 8m more", "plan": { "analysis": { "max_ratio": 2.0 } },
            "steps": [
                { "percent": 1.0, "hold": "5m", "min_requests": 0, "min_subjects": 0, "min_endpoints": 1, "state": "done" },
                { "percent": 10.0, "hold": "10m", "min_requests": 500, "min_subjects": 50, "min_endpoints": 1, "state": "current" },
                { "gate": { "timeout": "24h", "on_timeout": "rollback" }, "state": "ahead" },
                { "percent": 100.0, "hold": "0s", "min_requests": 0, "min_subjects": 0, "min_endpoints": 1, "state": "ahead" },
            ],
            "counts": {
                "stable": { "requests": 120_000, "attempts": 120_000, "unreachable": 0, "trials": 8_000, "failures": 8 },
                "candidate": { "requests": 1_200, "attempts": 1_200, "unreachable": 0, "trials": 80, "failures": 3 },
            },
            "evidence": {
                "failures": {
                    "finding": "unsure", "e_value": 10.0, "e_value_needed": 100.0, "ratio_at_least": null, "ratio_at_most": 5.25,
                    "stable": { "trials": 8_000, "events": 8, "percent": 0.1 }, "candidate": { "trials": 80, "events": 3, "percent": 3.75 },
                },
                "latency": [{
                    "percentile": 95, "stable_us": 250_000, "candidate_us": 251_000,
                    "finding": "not_worse", "e_value": 0.5, "e_value_needed": 100.0, "ratio_at_least": null, "ratio_at_most": null,
                    "stable": { "trials": 8_000, "events": 400, "percent": 5.0 }, "candidate": { "trials": 80, "events": 5, "percent": 6.25 },
                }],
            },
        })
    }

    #[test]
    fn a_rollout_that_holds_is_drawn_with_time_counts_and_evidence() {
        let told = frame(&holding(), 250_000, Size::default()).join("\n");
        let expected = "checkout: v1 -> v2, holding; begun 3 min ago by ann
  ████░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░  10 %, step 2 of 4
  holds for 8m more

  ✓  1 %    5m
  ▸  10 %   ██░░░░░░ 2m00s of 10m                       needs 500 requests, 50 subjects
  ·  gate   a human's word, at most 24h, then rollback
  ·  100 %

VERSION  REQUESTS  TRIALS  FAILURES  FAILED
v1       120000    8000    8         0.1 %
v2       1200      80      3         3.75 %

JUDGED BY        FINDING    E-VALUE              RATIO < 2  STABLE  CANDIDATE
failures         unsure     ████░░░░ 10 of 100   5.25       0.1 %   3.75 %
p95 over 250 ms  not worse  ░░░░░░░░ 0.5 of 100  unknown    5 %     6.25 %";
        assert_eq!(told, expected);
    }

    #[test]
    fn a_small_terminal_shows_what_matters_most() {
        let told = frame(&holding(), 250_000, Size { columns: 20, rows: 4 });
        assert_eq!(told, ["checkout: v1 -> v2,…", "  ████░░░░░░░░░░░░░…", "  holds for 8m more"]);
        assert_eq!(frame(&holding(), 0, Size { columns: 0, rows: 0 }), ["…"]);
    }

    #[test]
    fn many_steps_are_drawn_around_the_current_one() {
        let steps: Vec<_> = (1..=100)
            .map(|percent| {
                let state = match percent {
                    ..51 => "done",
                    51 => "current",
                    _ => "ahead",
                };
                json!({ "percent": percent, "state": state })
            })
            .collect();
        let rollout = json!({ "step": 50, "steps": steps, "state": "holding", "percent": 51 });
        let told = super::steps(&rollout);
        let lines: Vec<_> = told.lines().map(str::trim).collect();
        assert_eq!((lines[0], lines[1], lines[4]), ("…  47 before", "✓  48 %", "▸  51 %"));
        assert_eq!((lines.len(), lines[13]), (STEPS_SHOWN_MAX + 2, "…  41 after"));
    }

    #[test]
    fn a_human_is_told_what_to_type() {
        for (state, extended, command) in [
            ("gated", false, Some("`gilmok rollout promote checkout` approves")),
            ("paused", false, Some("`gilmok rollout resume checkout` goes on")),
            ("frozen", false, Some("`gilmok rollout abort checkout` goes back")),
            ("holding", true, Some("it holds on")),
            ("holding", false, None),
            ("done", false, None),
        ] {
            let told = hint(&json!({ "service": "checkout", "state": state, "extended": extended }));
            match command {
                Some(command) => {
                    assert!(told.as_deref().is_some_and(|told| told.contains(command)), "{state}: {told:?}")
                }
                None => assert_eq!(told, None, "{state}"),
            }
        }
    }

    #[test]
    fn a_step_at_which_it_failed_is_marked() {
        let mut rollout = holding();
        rollout["state"] = json!("rolled_back");
        let told = frame(&rollout, 250_000, Size::default());
        assert!(
            told[0].starts_with("checkout: v1 -> v2, rolled back") && told[5].starts_with("  ✗  10 %   10m "),
            "{told:#?}"
        );
    }

    #[test]
    fn only_what_changes_makes_a_line() {
        let first = change(&holding());
        assert_eq!(first.1, "checkout: v1 -> v2, holding, 10 %, step 2 of 4: holds for 8m more");
        let mut later = holding();
        later["why"] = json!("holds for 7m59s more");
        assert_eq!(change(&later).0, first.0);
        later["state"] = json!("paused");
        assert_ne!(change(&later).0, first.0);
    }

    #[test]
    fn lists_tell_steps_as_people_count_them() {
        let rollout = json!({ "service": "checkout", "candidate": "v2", "state": "gated", "step": 2, "steps": 5, "percent": 10, "since_ms": 1_000 });
        assert_eq!(row(&rollout, 6_000), ["checkout", "v2", "gated", "3 of 5", "10 %", "5 s ago"]);
        let decided = json!({ "at_ms": 1_000, "what": "rolled_back", "step": 0, "percent": 0, "by": "analysis", "why": "it fails", "revision": 7 });
        assert_eq!(
            entry(&decided, 6_000),
            ["5 s ago", "rolled back", "1", "0 %", "analysis", "7", "it fails"]
        );
    }

    #[test]
    fn numbers_are_told_as_short_as_they_can_be() {
        for (value, told) in [(0.25, "0.25"), (1.0, "1"), (12.345, "12.35"), (123.4, "123"), (2e9, "2e9")] {
            assert_eq!(short(value), told);
        }
    }
}
