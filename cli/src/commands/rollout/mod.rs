//! `gilmok rollout`: plans that change traffic step by step; begun, watched and steered from here.

mod plan;

mod view;

mod watch;

use clap::{Args, Subcommand};
use gilmok_control_plane::http_client::Request;
use hyper::Method;
use serde_json::{Value as Json, json};

use super::apply::{Terms, told};
use super::status::now_ms;
use crate::client::{Remote, encoded, writing};
use crate::table::{or_dash, table};
use crate::trouble::{Trouble, say};
use plan::Wanted;

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  gilmok rollout\n  gilmok rollout start checkout --to v2 --preset Canary10Percent5Minutes --watch\n  gilmok rollout start checkout --to v2 --steps 1%:5m,10%:10m,gate,50%:10m,100%\n  gilmok rollout watch checkout                    ends when it ends: 0 when everybody is on v2\n  gilmok rollout promote checkout                  through the gate, or past the rest of a hold\n  gilmok rollout abort checkout --reason \"wrong prices\""
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Begin to bring everybody to another version
    Start {
        service: String,
        #[command(flatten)]
        wanted: Wanted,
        /// Although no endpoint of that version is known yet
        #[arg(long)]
        force: bool,
        /// Stay, and show how it goes until it ends
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        terms: Terms,
        #[command(flatten)]
        remote: Remote,
    },
    /// The last rollout of a service: steps, counts, and the evidence for and against the version
    Show {
        service: String,
        /// Everything that was decided, with who and why
        #[arg(long)]
        history: bool,
        #[command(flatten)]
        remote: Remote,
    },
    /// Show how it goes until it ends; 0 only when everybody is on the new version
    Watch {
        service: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Hold the current share until somebody resumes; failures are still acted on
    Pause(Told),
    /// Go on after a pause
    Resume(Told),
    /// Approve a gate, or end the current hold now; what the analysis still asks for is waited for
    Promote {
        /// Everybody at once, without the steps in between
        #[arg(long)]
        to_end: bool,
        /// Although the analysis does not say yes
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        told: Told,
    },
    /// End it, and bring everybody back to where they were before it
    Abort(Told),
    /// Forget a rollout that has ended
    Forget(Told),
}

/// A word to a rollout.
#[derive(Debug, Args)]
struct Told {
    service: String,
    #[command(flatten)]
    terms: Terms,
    #[command(flatten)]
    remote: Remote,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Trouble> {
    match &arguments.task {
        None => list(&arguments.remote),
        Some(Task::Start { service, wanted, force, watch, terms, remote }) => {
            start(remote, service, wanted, *force, terms)?;
            if *watch { watch::run(remote, service) } else { Ok(()) }
        }
        Some(Task::Show { service, history, remote }) => show(remote, service, *history),
        Some(Task::Watch { service, remote }) => watch::run(remote, service),
        Some(Task::Pause(told)) => told.say("pause", &json!({}), None, "holds its share until it is resumed"),
        Some(Task::Resume(told)) => told.say("resume", &json!({}), None, "goes on"),
        Some(Task::Promote { to_end, force, told }) => {
            let body = if *to_end { json!({ "to_end": true }) } else { json!({}) };
            told.say("promote", &body, force.then_some("force=true"), "goes further")
        }
        Some(Task::Abort(told)) => told.say("abort", &json!({}), None, "is aborted: everybody is back"),
        Some(Task::Forget(told)) => told.forget(),
    }
}

fn path(service: &str) -> String {
    format!("/v1/services/{}/rollout", encoded(service))
}

impl Told {
    fn say(&self, word: &str, body: &Json, more: Option<&str>, what: &str) -> Result<(), Trouble> {
        let target = format!("{}/{word}{}", path(&self.service), self.terms.query(more));
        let answer = self.remote.call(self.terms.of(writing(Method::POST, target, body)))?;
        told(&self.remote, &answer, &format!("the rollout of {} {what}", self.service))
    }

    fn forget(&self) -> Result<(), Trouble> {
        let target = format!("{}{}", path(&self.service), self.terms.query(None));
        let answer = self.remote.call(self.terms.of(Request::new(Method::DELETE, target)))?;
        told(&self.remote, &answer, &format!("the rollout of {} is forgotten", self.service))
    }
}

fn start(remote: &Remote, service: &str, wanted: &Wanted, force: bool, terms: &Terms) -> Result<(), Trouble> {
    let plan = wanted.plan()?;
    let candidate = plan["candidate"].as_str().unwrap_or("another version");
    let target = format!("{}{}", path(service), terms.query(force.then_some("force=true")));
    let answer = remote.call(terms.of(writing(Method::PUT, target, &plan)))?;
    told(remote, &answer, &format!("the rollout of {service} to {candidate} has begun"))
}

fn list(remote: &Remote) -> Result<(), Trouble> {
    let rollouts = remote.get("/v1/rollouts")?;
    if remote.json {
        say(&format!("{rollouts:#}"));
        return Ok(());
    }
    let rollouts = rollouts.as_array().map(Vec::as_slice).unwrap_or_default();
    if rollouts.is_empty() {
        say(
            "no rollouts; `gilmok rollout start SERVICE --to VERSION --preset Canary10Percent5Minutes` begins one",
        );
        return Ok(());
    }
    let now_ms = now_ms();
    let head = ["service", "to", "state", "step", "share", "since"];
    say(&table(head, rollouts.iter().map(|rollout| view::row(rollout, now_ms))));
    Ok(())
}

fn show(remote: &Remote, service: &str, history: bool) -> Result<(), Trouble> {
    let rollout = remote.get(&path(service))?;
    if remote.json {
        say(&format!("{rollout:#}"));
        return Ok(());
    }
    let now_ms = now_ms();
    say(&view::frame(&rollout, now_ms, view::Size::default()).join("\n"));
    if history {
        let entries = rollout["history"].as_array().map(Vec::as_slice).unwrap_or_default();
        let rows = entries.iter().map(|entry| view::entry(entry, now_ms));
        say(&format!("\n{}", table(["when", "what", "step", "share", "by", "revision", "why"], rows)));
    }
    Ok(())
}

/// A text, or the dash that stands where there is none.
fn text(value: &Json) -> String {
    or_dash(value.as_str().unwrap_or_default())
}
