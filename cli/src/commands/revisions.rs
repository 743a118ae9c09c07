//! `gilmok revisions`: what was changed by whom and why, and going back.

use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Value as Json, json};

use super::apply::{Terms, told};
use super::status::now_ms;
use crate::client::{Remote, writing};
use crate::table::{ago, or_dash, table};
use crate::trouble::{Trouble, say};

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  gilmok revisions\n  gilmok revisions show 12\n  gilmok revisions restore 12 --reason \"the new timeouts were too short\""
)]
pub(crate) struct Arguments {
    /// At most so many, newest first
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// One revision with its document
    Show {
        number: u64,
        #[command(flatten)]
        remote: Remote,
    },
    /// Put the document of an earlier revision in force, as a new revision
    Restore {
        number: u64,
        #[command(flatten)]
        terms: Terms,
        #[command(flatten)]
        remote: Remote,
    },
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Trouble> {
    match &arguments.task {
        None => list(&arguments.remote, arguments.limit),
        Some(Task::Show { number, remote }) => show(remote, *number),
        Some(Task::Restore { number, terms, remote }) => {
            let target = format!("/v1/revisions/{number}/restore{}", terms.query(None));
            let answer = remote.call(terms.of(writing(Method::POST, target, &json!({}))))?;
            told(remote, &answer, &format!("revision {number} is in force again"))
        }
    }
}

fn list(remote: &Remote, limit: u16) -> Result<(), Trouble> {
    let revisions = remote.get(&format!("/v1/revisions?limit={limit}"))?;
    if remote.json {
        say(&format!("{revisions:#}"));
        return Ok(());
    }
    let revisions = revisions.as_array().map(Vec::as_slice).unwrap_or_default();
    if revisions.is_empty() {
        say("nothing was written yet; `gilmok apply FILE` writes the first revision");
        return Ok(());
    }
    let now_ms = now_ms();
    let rows = revisions.iter().map(|revision| {
        let text = |field: &str| or_dash(revision[field].as_str().unwrap_or_default());
        let at = revision["at_ms"].as_u64().unwrap_or_default();
        let number = revision["revision"].to_string();
        [number, ago(now_ms.saturating_sub(at)), text("who"), text("what"), text("reason")]
    });
    say(&table(["revision", "written", "who", "what", "reason"], rows));
    Ok(())
}

fn show(remote: &Remote, number: u64) -> Result<(), Trouble> {
    let revision: Json = remote.get(&format!("/v1/revisions/{number}"))?;
    if remote.json {
        say(&format!("{revision:#}"));
        return Ok(());
    }
    let text = |field: &str| or_dash(revision[field].as_str().unwrap_or_default());
    let at = ago(now_ms().saturating_sub(revision["at_ms"].as_u64().unwrap_or_default()));
    say(&format!(
        "revision {number}, {at}, by {}: {}; reason: {}",
        text("who"),
        text("what"),
        text("reason")
    ));
    say(&format!("{:#}", revision["document"]));
    Ok(())
}
