//! `gilmok proxies`: who runs which revision, and telling one that another store is the right one now.

use clap::{Args, Subcommand};
use gilmok_control_plane::http_client::Origin;
use hyper::Method;
use serde_json::{Value as Json, json};

use crate::client::{Remote, writing};
use crate::table::{ago, or_dash, table};
use crate::trouble::{Trouble, say};

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  gilmok proxies\n  gilmok proxies accept-store --proxy http://127.0.0.1:15000"
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Let one proxy follow this control plane's store, which it refuses because it followed another one before
    AcceptStore {
        /// The admin listener of the proxy
        #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:15000")]
        proxy: Origin,
        /// The store to accept; default: that of the control plane
        #[arg(long, value_name = "ID")]
        store: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Trouble> {
    match &arguments.task {
        None => list(&arguments.remote),
        Some(Task::AcceptStore { proxy, store, remote }) => accept(remote, proxy, store.as_deref()),
    }
}

fn list(remote: &Remote) -> Result<(), Trouble> {
    let proxies = remote.get("/v1/proxies")?;
    if remote.json {
        say(&format!("{proxies:#}"));
        return Ok(());
    }
    let proxies = proxies.as_array().map(Vec::as_slice).unwrap_or_default();
    if proxies.is_empty() {
        say("no proxy has told what it runs; [source] control_plane in proxy.toml makes one follow");
        return Ok(());
    }
    say(&table(["proxy", "state", "heard of", "revision", "behind", "version"], proxies.iter().map(row)));
    for proxy in proxies {
        let refused = &proxy["refused"];
        for problem in refused["problems"].as_array().into_iter().flatten() {
            let problem = serde_json::from_value::<gilmok_config::problem::Problem>(problem.clone());
            let what = problem.map_or_else(|_| "something unknown".to_owned(), |problem| problem.to_string());
            let node = proxy["node"].as_str().unwrap_or_default();
            say(&format!("{node} refused revision {}: {what}", refused["revision"]));
        }
    }
    Ok(())
}

fn row(proxy: &Json) -> [String; 6] {
    let text = |value: &Json| or_dash(value.as_str().unwrap_or_default());
    let live = proxy["live"].as_bool().unwrap_or(false);
    let is_replaced = proxy["replaced"].as_bool().unwrap_or(false);
    let state = match (live, is_replaced) {
        (true, _) => text(&proxy["state"]),
        (false, true) => "replaced".to_owned(),
        (false, false) => "SILENT".to_owned(),
    };
    let applied = &proxy["applied"];
    let mut revision =
        applied["revision"].as_u64().map_or_else(|| "-".to_owned(), |number| number.to_string());
    if applied["last_known_good"].as_bool() == Some(true) {
        revision.push_str(" (from its disk)");
    }
    let behind = match (proxy["behind"].as_u64(), applied.is_null()) {
        (Some(behind), _) => behind.to_string(),
        (None, true) => "-".to_owned(),
        (None, false) => "another store".to_owned(),
    };
    let heard = proxy["heard_ms_ago"].as_u64().map_or_else(String::new, ago);
    [text(&proxy["node"]), state, heard, revision, behind, text(&proxy["version"])]
}

fn accept(remote: &Remote, proxy: &Origin, store: Option<&str>) -> Result<(), Trouble> {
    let store = match store {
        Some(store) => store.to_owned(),
        None => remote.get("/v1/status")?["store"].as_str().unwrap_or_default().to_owned(),
    };
    let request = writing(Method::POST, "/accept-store", &json!({ "store": store }));
    let answer = remote.call_at(proxy, "proxy", request)?;
    if remote.json {
        say(&format!("{:#}", answer.json));
    } else {
        say(&format!("the proxy at {proxy} follows store {store} from now on"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_silent_or_follows_another_store_stands_out() {
        let proxy = json!({ "node": "web-1", "state": "ready", "live": false, "heard_ms_ago": 60_000,
            "applied": { "store": "s", "revision": 3, "last_known_good": true }, "behind": null, "version": "1" });
        assert_eq!(row(&proxy), ["web-1", "SILENT", "60 s ago", "3 (from its disk)", "another store", "1"]);
    }
}
