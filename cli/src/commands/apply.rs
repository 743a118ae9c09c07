//! `gilmok apply`: putting a mesh document in force, or seeing first what would change.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use gilmok_config::unit::{format_duration, parse_duration};
use gilmok_control_plane::http_client::Request;
use hyper::header::{HeaderName, HeaderValue, IF_MATCH};
use hyper::{Method, StatusCode};
use serde_json::Value as Json;

use super::check::read;
use crate::client::{Answer, Remote, encoded, writing};
use crate::trouble::{Trouble, say};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  gilmok apply mesh.toml --dry-run\n  gilmok apply mesh.toml --wait 30s --reason \"ads gets a second\"\n  gilmok apply mesh.toml --revision 12     only if 12 is still the newest"
)]
pub(crate) struct Arguments {
    /// The document, TOML or JSON; - is standard input
    file: PathBuf,
    /// Say what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Although flagd would warn of its flags
    #[arg(long)]
    accept_warnings: bool,
    #[command(flatten)]
    terms: Terms,
    #[command(flatten)]
    remote: Remote,
}

/// Over what and why something is written.
#[derive(Clone, Debug, Args)]
pub(super) struct Grounds {
    /// Write only if this is still the newest revision
    #[arg(long, value_name = "NUMBER")]
    revision: Option<u64>,
    /// Why, for whoever reads `gilmok revisions`
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// On what terms something is written.
#[derive(Clone, Debug, Args)]
pub(super) struct Terms {
    #[command(flatten)]
    grounds: Grounds,
    /// Wait until every live proxy runs it, at most so long, e.g. 30s
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    wait: Option<Duration>,
}

impl Grounds {
    /// What of the grounds goes into the target, and behind it what the command says itself.
    pub(super) fn query(&self, more: impl IntoIterator<Item = String>) -> String {
        let reason = self.reason.as_deref().map(|reason| format!("reason={}", encoded(reason)));
        let query: Vec<_> = reason.into_iter().chain(more).collect();
        if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) }
    }

    /// What of the grounds goes into the head.
    pub(super) fn of(&self, mut request: Request) -> Request {
        let tag = self.revision.map(|revision| HeaderValue::from_str(&format!("\"{revision}\"")));
        if let Some(Ok(tag)) = tag {
            request = request.header(IF_MATCH, tag);
        }
        by_user(request)
    }
}

/// Says who is at the command line, for the audit.
pub(super) fn by_user(request: Request) -> Request {
    let who = std::env::var("USER").ok().and_then(|user| HeaderValue::from_str(&user).ok());
    match who {
        Some(who) => request.header(HeaderName::from_static("gilmok-who"), who),
        None => request,
    }
}

impl Terms {
    /// What of the terms goes into the target, and behind it what the command says itself.
    pub(super) fn query(&self, more: Option<&str>) -> String {
        let wait = self.wait.map(|wait| format!("wait={}", format_duration(wait)));
        self.grounds.query(wait.into_iter().chain(more.map(str::to_owned)))
    }

    /// The same terms, on which it is written only over this revision unless they name one already.
    pub(super) fn over(&self, revision: u64) -> Self {
        let mut terms = self.clone();
        terms.grounds.revision = terms.grounds.revision.or(Some(revision));
        terms
    }

    /// Whether proxies are waited for.
    pub(super) fn waits(&self) -> bool {
        self.wait.is_some()
    }

    /// What of the terms goes into the head.
    pub(super) fn of(&self, request: Request) -> Request {
        let request = self.grounds.of(request);
        let timeout = request.timeout + self.wait.unwrap_or_default();
        request.timeout(timeout)
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Trouble> {
    let Arguments { file, dry_run, accept_warnings, terms, remote } = arguments;
    // Faults are told with the lines of the file, which the control plane does not see.
    let document = read(file)?.json;
    if *dry_run {
        let before = remote.get("/v1/mesh")?;
        let changes = changes(&before, &document);
        if remote.json {
            say(&format!("{:#}", Json::from(changes)));
        } else if changes.is_empty() {
            say("nothing would change");
        } else {
            say(&changes.join("\n"));
        }
        return Ok(());
    }
    let target = format!("/v1/mesh{}", terms.query(accept_warnings.then_some("accept_warnings=true")));
    let answer = remote.call(terms.of(writing(Method::PUT, target, &document)))?;
    told(remote, &answer, &format!("{} is in force", file.display()))
}

/// Says what became of a write.
pub(super) fn told(remote: &Remote, answer: &Answer, what: &str) -> Result<(), Trouble> {
    let done = &answer.json;
    if remote.json {
        say(&format!("{done:#}"));
    }
    if answer.status == StatusCode::ACCEPTED {
        let names = done["lagging"].as_array().into_iter().flatten().filter_map(Json::as_str);
        return Err(Trouble::Refused(format!(
            "written as revision {}, but not every proxy runs it yet: {}\n`gilmok proxies` says why",
            done["revision"],
            names.collect::<Vec<_>>().join(", ")
        )));
    }
    if !remote.json {
        let everywhere =
            if done["converged"].as_bool() == Some(true) { ", and every live proxy runs it" } else { "" };
        say(&format!("{what}: revision {}{everywhere}", done["revision"]));
    }
    Ok(())
}

/// What is different, one line for each table.
fn changes(before: &Json, after: &Json) -> Vec<String> {
    let mut changes = Vec::new();
    let (old, new) = (&before["services"], &after["services"]);
    let names = |json: &Json| -> BTreeSet<String> {
        json.as_object().into_iter().flat_map(|table| table.keys().cloned()).collect()
    };
    let all: BTreeSet<String> = &names(old) | &names(new);
    for name in all {
        match (&old[&name], &new[&name]) {
            (Json::Null, _) => changes.push(format!("+ services.{name}")),
            (_, Json::Null) => changes.push(format!("- services.{name}")),
            (old, new) => {
                let keys: BTreeSet<String> = &names(old) | &names(new);
                let different = keys.into_iter().filter(|key| old[key] != new[key]);
                changes.extend(different.map(|key| match (&old[&key], &new[&key]) {
                    (Json::Null, new) => format!("+ services.{name}.{key} = {new}"),
                    (old, Json::Null) => format!("- services.{name}.{key} = {old}"),
                    (old, new) => format!("~ services.{name}.{key}: {old} -> {new}"),
                }));
            }
        }
    }
    let rest: BTreeSet<String> = &names(before) | &names(after);
    for key in rest.into_iter().filter(|key| key != "services" && before[key] != after[key]) {
        changes.push(format!("~ {key}"));
    }
    changes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn changes_are_told_by_table() {
        let before = json!({ "services": { "a": { "x": 1, "y": 2 }, "b": {} }, "routes": [] });
        let after = json!({ "services": { "a": { "x": 3, "z": 4 }, "c": {} }, "routes": [] });
        assert_eq!(
            changes(&before, &after),
            [
                "~ services.a.x: 1 -> 3",
                "- services.a.y = 2",
                "+ services.a.z = 4",
                "- services.b",
                "+ services.c"
            ]
        );
        assert!(changes(&after, &after).is_empty());
        assert_eq!(changes(&json!({}), &json!({ "routes": [1] })), ["~ routes"]);
    }
}
