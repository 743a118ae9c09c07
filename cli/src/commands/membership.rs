//! `gilmok membership`: who is alive.

use clap::Args;
use serde_json::Value as Json;

use super::services::is_alive;
use crate::client::Remote;
use crate::table::{or_dash, table};
use crate::trouble::{Trouble, say};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  gilmok membership\n  gilmok membership ads")]
pub(crate) struct Arguments {
    /// Only this service's instances
    service: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

const HEAD: [&str; 8] = ["service", "instance", "address", "version", "shard", "status", "node", "note"];

pub(super) fn run(arguments: &Arguments) -> Result<(), Trouble> {
    let all = arguments.remote.get("/v1/membership")?;
    let told = match &arguments.service {
        None => all.clone(),
        Some(service) if all[service].is_array() => all[service].clone(),
        Some(service) => {
            let hint = "`gilmok membership` lists those that it knows";
            return Err(Trouble::Refused(format!("membership knows no service `{service}`; {hint}")));
        }
    };
    if arguments.remote.json {
        say(&format!("{told:#}"));
        return Ok(());
    }
    let services = all.as_object().into_iter().flatten();
    let wanted = services.filter(|(name, _)| arguments.service.as_ref().is_none_or(|only| only == *name));
    let rows: Vec<_> = wanted
        .flat_map(|(name, members)| members.as_array().into_iter().flatten().map(|member| row(name, member)))
        .collect();
    if rows.is_empty() {
        say("nobody is registered; proxies register the apps beside them, or Consul is mirrored");
    } else {
        say(&table(HEAD, rows));
    }
    Ok(())
}

/// The instances of one service.
pub(super) fn shown(service: &str, members: &[Json]) -> String {
    table(HEAD, members.iter().map(|member| row(service, member)))
}

fn row(service: &str, member: &Json) -> [String; 8] {
    let endpoint = &member["endpoint"];
    let text = |value: &Json| or_dash(value.as_str().unwrap_or_default());
    let mut status = text(&member["status"]);
    if !is_alive(member) {
        status = status.to_uppercase();
    }
    [
        service.to_owned(),
        text(&member["id"]),
        text(&endpoint["address"]),
        text(&endpoint["version"]),
        text(&endpoint["shard"]),
        status,
        text(&member["node"]),
        text(&member["note"]),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_alive_stands_out() {
        let member = json!({ "id": "ads-1", "endpoint": { "address": "10.0.0.1:80", "version": "v1" },
            "status": "critical", "node": "web-1", "note": "", "source": "consul" });
        let told = shown("ads", &[member]);
        assert!(
            told.ends_with("ads      ads-1     10.0.0.1:80  v1       -      CRITICAL  web-1  -"),
            "{told}"
        );
    }
}
