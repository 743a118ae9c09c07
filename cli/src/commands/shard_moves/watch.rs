//! Watching a move of shards until it ends: one line for each change.

use std::time::{Duration, Instant};

use serde_json::Value as Json;

use super::{path_of, view};
use crate::client::Remote;
use crate::trouble::{Trouble, say};

/// How often it is asked how it goes.
const EVERY: Duration = Duration::from_millis(500);
/// How long a control plane may be away, e.g. for a new start, before this ends.
const AWAY_MAX: Duration = Duration::from_mins(2);

/// Tells of a move until it ends.
///
/// # Errors
/// When it ends in any other way than with every batch moved, when it pauses, and when nobody tells any more how it goes.
pub(super) fn run(remote: &Remote, service: &str, id: u64) -> Result<(), Trouble> {
    let mut last = String::new();
    let mut heard = Instant::now();
    loop {
        match remote.get(&path_of(service, id)) {
            Ok(moving) => {
                heard = Instant::now();
                let (key, line) = view::line(&moving);
                if last != key {
                    let hint = view::hint(&moving).map(|hint| format!("\n{hint}")).unwrap_or_default();
                    say(&if remote.json { moving.to_string() } else { format!("{line}{hint}") });
                    last = key;
                }
                if let Some(end) = end(service, &moving) {
                    return end;
                }
            }
            // It was there a moment ago: it goes on by itself after a new start.
            Err(Trouble::Failed(_)) if heard.elapsed() < AWAY_MAX => {}
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

/// What it came to, once it goes no further by itself.
fn end(service: &str, moving: &Json) -> Option<Result<(), Trouble>> {
    let state = moving["state"].as_str()?;
    let why = moving["why"].as_str().unwrap_or_default();
    match state {
        "done" => Some(Ok(())),
        "paused" | "reversed" | "overruled" => {
            Some(Err(Trouble::Refused(format!("the move of the shards of {service} is {state}: {why}"))))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_one_end_is_good() {
        let of = |state: &str| end("profile", &json!({ "state": state, "why": "because" }));
        for state in ["prepare", "copying", "handover"] {
            assert!(of(state).is_none(), "{state}");
        }
        assert!(of("done").unwrap().is_ok());
        for state in ["paused", "reversed", "overruled"] {
            let Err(Trouble::Refused(told)) = of(state).unwrap() else { panic!("{state}") };
            assert_eq!(told, format!("the move of the shards of profile is {state}: because"));
        }
    }
}
