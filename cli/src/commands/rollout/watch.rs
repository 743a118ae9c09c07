//! Watching a rollout until it ends: drawn in place on a terminal, and one line for each change elsewhere.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use super::super::status::now_ms;
use super::view::{Size, change, frame};
use super::{path, text};
use crate::client::Remote;
use crate::trouble::{Trouble, say};

/// How often it is asked how it goes: as often as proxies send their counters.
const EVERY: Duration = Duration::from_secs(1);
/// How long a control plane may be away, e.g. for a new start, before this ends.
const AWAY_MAX: Duration = Duration::from_mins(2);

/// Shows a rollout until it ends.
///
/// # Errors
/// When it ends in any other way than with everybody on the new version, and when nobody tells any more how it goes.
pub(super) fn run(remote: &Remote, service: &str) -> Result<(), Trouble> {
    let mut screen = Screen::new(remote.json);
    let mut heard = None;
    loop {
        match remote.get(&path(service)) {
            Ok(rollout) => {
                heard = Some(Instant::now());
                screen.show(&rollout);
                if let Some(end) = end(service, &rollout) {
                    return end;
                }
            }
            // It was there a moment ago: it goes on by itself after a new start.
            Err(Trouble::Failed(_)) if heard.is_some_and(|heard| heard.elapsed() < AWAY_MAX) => screen.wait(),
            Err(trouble) => return Err(trouble),
        }
        pause();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "this program has one thread and no worker that it could hold up"
)]
fn pause() {
    std::thread::sleep(EVERY);
}

/// What it came to, once it has ended.
fn end(service: &str, rollout: &Json) -> Option<Result<(), Trouble>> {
    let state = rollout["state"].as_str()?;
    let hint = match state {
        "done" => return Some(Ok(())),
        "rolled_back" | "aborted" => "everybody is back where they were before it",
        "frozen" => {
            "traffic stays as it is; `gilmok rollout abort` goes back, `promote --force` goes on all the same"
        }
        _ => return None,
    };
    let (state, candidate) = (state.replace('_', " "), text(&rollout["candidate"]));
    let why = rollout["why"].as_str().filter(|why| !why.is_empty());
    let why = why.map(|why| format!(": {why}")).unwrap_or_default();
    Some(Err(Trouble::Refused(format!("the rollout of {service} to {candidate} was {state}{why}\n{hint}"))))
}

/// Where it is shown.
enum Screen {
    /// In place of the lines of before, of which there are so many.
    Terminal { drawn: usize },
    /// What was said last, so that only changes are said.
    Lines { last: String, json: bool },
}

impl Screen {
    fn new(json: bool) -> Self {
        if !json && std::io::stdout().is_terminal() {
            Self::Terminal { drawn: 0 }
        } else {
            Self::Lines { last: String::new(), json }
        }
    }

    fn show(&mut self, rollout: &Json) {
        match self {
            Self::Terminal { drawn } => {
                let lines = frame(rollout, now_ms(), size());
                draw(*drawn, &lines);
                *drawn = lines.len();
            }
            Self::Lines { last, json } => {
                let (key, line) = change(rollout);
                if *last != key {
                    say(&if *json { rollout.to_string() } else { line });
                    *last = key;
                }
            }
        }
    }

    /// Nobody answers for the moment.
    fn wait(&mut self) {
        const AWAY: &str = "the control plane does not answer; asked again each second";
        match self {
            Self::Terminal { drawn } => {
                draw(*drawn, &[AWAY.to_owned()]);
                *drawn = 1;
            }
            Self::Lines { json: true, .. } => {}
            Self::Lines { last, json: false } if last == AWAY => {}
            Self::Lines { last, json: false } => {
                say(AWAY);
                AWAY.clone_into(last);
            }
        }
    }
}

/// Goes up to where the last drawing began, clears what is below and draws.
fn draw(before: usize, lines: &[String]) {
    let up = if before == 0 { String::new() } else { format!("\x1b[{before}A") };
    let mut out = std::io::stdout().lock();
    // A reader who has left is no trouble.
    drop(write!(out, "{up}\r\x1b[J{}\n", lines.join("\n")).and_then(|()| out.flush()));
}

/// How large the terminal is; it may be made smaller at any time.
fn size() -> Size {
    match rustix::termios::tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
            Size { columns: usize::from(size.ws_col), rows: usize::from(size.ws_row) }
        }
        _ => Size { columns: 80, rows: 24 },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_one_end_is_good() {
        let of =
            |state: &str| end("checkout", &json!({ "state": state, "candidate": "v2", "why": "because" }));
        for state in ["waiting", "holding", "gated", "paused"] {
            assert!(of(state).is_none(), "{state}");
        }
        assert!(of("done").unwrap().is_ok());
        for state in ["rolled_back", "aborted", "frozen"] {
            let Err(Trouble::Refused(told)) = of(state).unwrap() else { panic!("{state}") };
            let first = format!("the rollout of checkout to v2 was {}: because\n", state.replace('_', " "));
            assert!(told.starts_with(&first), "{told}");
        }
    }
}
