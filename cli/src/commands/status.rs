//! `gilmok status`: the mesh at a glance.

use clap::Args;
use serde_json::Value as Json;

use crate::client::Remote;
use crate::table::{ago, indented};
use crate::trouble::{Trouble, say};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    remote: Remote,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Trouble> {
    let status = arguments.remote.get("/v1/status")?;
    if arguments.remote.json {
        say(&format!("{status:#}"));
    } else {
        say(&shown(&status, now_ms()));
    }
    Ok(())
}

/// The wall clock in milliseconds of the Unix epoch, as stores tell times.
pub(super) fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

fn shown(status: &Json, now_ms: u64) -> String {
    let names = |list: &Json| {
        let names = list.as_array().map(Vec::as_slice).unwrap_or_default().iter().filter_map(Json::as_str);
        names.collect::<Vec<_>>().join(", ")
    };
    let text = |value: &Json| value.as_str().unwrap_or_default().to_owned();
    let written = match status["written_at_ms"].as_u64() {
        Some(at) => format!("{}, written {}", status["revision"], ago(now_ms.saturating_sub(at))),
        None => "none: nothing was written yet; `gilmok apply FILE` writes the first one".to_owned(),
    };
    let proxies = &status["proxies"];
    let mut told = format!("{} live, {} following", proxies["live"], proxies["following"]);
    for (list, word) in [(&proxies["lagging"], "behind"), (&proxies["refusing"], "refusing")] {
        let names = names(list);
        if !names.is_empty() {
            told.push_str(&format!("; {word}: {names}"));
        }
    }
    let consul = match status["consul"]["watches"].as_u64() {
        None => "not used".to_owned(),
        Some(watches) => {
            let oldest = status["consul"]["oldest_contact_seconds"].as_f64().unwrap_or_default();
            format!("{watches} watches, the longest silence {oldest:.1} s")
        }
    };
    let rows = [
        ("control plane", text(&status["version"])),
        ("store", text(&status["store"])),
        ("revision", written),
        ("services", status["services"].to_string()),
        ("endpoints", status["endpoints"].to_string()),
        ("proxies", told),
        ("consul", consul),
    ];
    indented(&rows.map(|(name, value)| vec![name.to_owned(), value]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_lags_and_who_refuses_is_named() {
        let status = json!({
            "version": "1", "store": "s", "revision": 3, "written_at_ms": 1_000, "services": 2, "endpoints": 5,
            "proxies": { "live": 2, "following": 2, "lagging": ["web-1"], "refusing": ["web-2"] },
            "consul": { "watches": 2, "oldest_contact_seconds": 0.25 },
        });
        let told = shown(&status, 6_000);
        assert!(told.contains("3, written 5 s ago"), "{told}");
        assert!(told.contains("2 live, 2 following; behind: web-1; refusing: web-2"), "{told}");
        let told = shown(&json!({ "revision": 0, "proxies": {} }), 0);
        assert!(told.contains("gilmok apply FILE") && told.contains("not used"), "{told}");
    }
}
