//! `gilmok services`: what there is, and everything about one of them.

use std::collections::BTreeSet;
use std::time::SystemTime;

use clap::{Args, Subcommand};
use gilmok_config::document::Document;
use gilmok_config::node::Node;
use serde_json::{Value as Json, json};

use super::share::shares;
use super::status::now_ms;
use crate::client::{Remote, encoded};
use crate::table::{indented, or_dash, table};
use crate::trouble::{Trouble, say};

/// Texts of a table that are shown whole, in bytes.
const TEXT_BYTES_MAX: usize = 200;

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  gilmok services\n  gilmok services show ads"
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// One service: its table in the document and its instances
    Show {
        /// The service's name
        service: String,
        #[command(flatten)]
        remote: Remote,
    },
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Trouble> {
    match &arguments.task {
        None => list(&arguments.remote),
        Some(Task::Show { service, remote }) => show(remote, service),
    }
}

fn list(remote: &Remote) -> Result<(), Trouble> {
    let services = remote.get("/v1/services")?;
    let members = remote.get("/v1/membership")?;
    let told = services.as_object().into_iter().flat_map(|services| services.keys());
    let alive = members.as_object().into_iter().flat_map(|members| members.keys());
    let names: BTreeSet<&String> = told.chain(alive).collect();
    if remote.json {
        let whole = |name: &String| json!({ "policy": services[name], "members": members[name] });
        let all: serde_json::Map<_, _> = names.iter().map(|name| ((*name).clone(), whole(name))).collect();
        say(&format!("{:#}", Json::from(all)));
        return Ok(());
    }
    if names.is_empty() {
        say("no services yet; `gilmok apply FILE` writes a document, and proxies register their apps");
        return Ok(());
    }
    let rows = names.into_iter().map(|name| row(name, &services[name], &members[name]));
    say(&table(["service", "alive", "versions", "shards", "protocol", "said by"], rows));
    Ok(())
}

fn row(name: &str, policy: &Json, members: &Json) -> [String; 6] {
    let members = members.as_array().map(Vec::as_slice).unwrap_or_default();
    let alive = members.iter().filter(|member| is_alive(member)).count();
    let of = |field: &str| {
        let values = members.iter().filter_map(|member| member["endpoint"][field].as_str());
        or_dash(values.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", "))
    };
    let weights = &policy["traffic"]["weights"];
    let versions = if weights.is_object() { shares(weights) } else { of("version") };
    let listed = policy["endpoints"].as_array().map_or(0, Vec::len);
    let alive = match (members.len(), listed) {
        (0, 0) => "0".to_owned(),
        (0, listed) => format!("{listed} listed"),
        (all, _) => format!("{alive} of {all}"),
    };
    let said_by = match (policy.is_null(), members.is_empty()) {
        (true, _) => "membership",
        (false, true) => "document",
        (false, false) => "both",
    };
    let protocol = policy["protocol"].as_str().unwrap_or("http1");
    [name.to_owned(), alive, versions, of("shard"), protocol.to_owned(), said_by.to_owned()]
}

/// Whether an instance may receive traffic, as the control plane tells it.
pub(super) fn is_alive(member: &Json) -> bool {
    matches!(member["status"].as_str(), Some("passing" | "warning"))
}

/// The same with long texts cut short: prepared answers may have bodies of a megabyte.
fn shortened(value: &Json) -> Json {
    match value {
        Json::String(text) if text.len() > TEXT_BYTES_MAX => {
            let shown = &text[..text.floor_char_boundary(TEXT_BYTES_MAX)];
            json!(format!("{shown}… ({} bytes; --json has them all)", text.len()))
        }
        Json::Array(items) => items.iter().map(shortened).collect(),
        Json::Object(fields) => fields.iter().map(|(key, item)| (key.clone(), shortened(item))).collect(),
        Json::Bool(_) | Json::Null | Json::Number(_) | Json::String(_) => value.clone(),
    }
}

fn show(remote: &Remote, service: &str) -> Result<(), Trouble> {
    let services = remote.get("/v1/services")?;
    let members = remote.get("/v1/membership")?;
    let (policy, members) = (&services[service], &members[service]);
    if policy.is_null() && members.is_null() {
        return Err(Trouble::Refused(format!(
            "there is no service `{service}`; `gilmok services` lists them"
        )));
    }
    let decision = remote.get(&format!("/v1/explain?service={}", encoded(service))).unwrap_or_default();
    // A control plane of another version may not know of traffic.
    let traffic = remote.get(&format!("/v1/services/{}/traffic", encoded(service))).unwrap_or_default();
    let whole = json!({ "service": service, "policy": policy, "members": members, "explain": decision, "traffic": traffic });
    if remote.json {
        say(&format!("{whole:#}"));
        return Ok(());
    }
    match policy {
        Json::Null => {
            say(&format!("`{service}` is known from membership only; the document does not name it"))
        }
        policy => {
            say(&format!("[services.{service}] in the document:\n{:#}", shortened(policy)));
            // A control plane of another version may know keys that this command does not.
            if let Ok(document) = Document::read(&Node::from(&json!({ "services": services })))
                && let Some(policy) = document.services.get(service)
            {
                let told = super::guards::told(policy, SystemTime::now());
                say(&format!("\nwhen calls to it fail:\n{}", indented(&told)));
            }
        }
    }
    if traffic["traffic"].is_object() {
        say(&format!("\nwho gets which version:\n{}", super::traffic::shown(&traffic, now_ms())));
    }
    let members = members.as_array().map(Vec::as_slice).unwrap_or_default();
    if members.is_empty() {
        say("\nmembership knows no instance of it");
    } else {
        say(&format!("\n{}", super::membership::shown(service, members)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_stand_in_the_list_where_there_are_any() {
        let members = json!([
            { "status": "passing", "endpoint": { "version": "v1" } }, { "status": "passing", "endpoint": { "version": "v3" } },
        ]);
        assert_eq!(row("shop", &json!({}), &members)[2], "v1, v3");
        let split = json!({ "traffic": { "stable": "v1", "weights": { "v1": 99, "v2": 1 } } });
        assert_eq!(row("shop", &split, &members)[2], "v1 99 %, v2 1 %");
    }
}
