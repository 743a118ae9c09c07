//! `gilmok traffic`: who gets which version; changing shares, switching everybody, and back.

mod view;

use clap::{Args, Subcommand};
use gilmok_config::name::Name;
use gilmok_control_plane::http_client::Request;
use hyper::Method;
use serde_json::{Value as Json, json};

use super::apply::{Terms, told};
use super::share::{Share, shares, version_named, weights};
use super::status::now_ms;
use crate::client::{Answer, Remote, encoded, writing};
use crate::table::table;
use crate::trouble::{Trouble, say};

pub(super) use view::shown;

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  gilmok traffic\n  gilmok traffic show checkout                     shares, requests, and what a drain waits for\n  gilmok traffic plan checkout v1=90 v2=10         who would move, before anybody does\n  gilmok traffic set checkout v1=90 v2=10 --wait 30s\n  gilmok traffic switch checkout green --wait 30s  everybody, in one revision\n  gilmok traffic rollback checkout                 and back, to exactly who was where"
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// One service: its versions, their shares and requests, and what was done last
    Show {
        service: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Change the shares of versions; everything else that the service's traffic says stays
    Set {
        #[command(flatten)]
        wanted: Wanted,
        /// Although a rollout runs, or nobody serves one of the versions
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        terms: Terms,
        #[command(flatten)]
        remote: Remote,
    },
    /// Which share of the subjects would move from where to where; changes nothing
    Plan {
        #[command(flatten)]
        wanted: Wanted,
        #[command(flatten)]
        remote: Remote,
    },
    /// Move everybody to one version, in one revision
    Switch {
        service: String,
        #[arg(value_parser = version_named)]
        version: Name,
        /// Although a rollout runs (it ends), or nobody of that version is alive
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        terms: Terms,
        #[command(flatten)]
        remote: Remote,
    },
    /// Undo the last switch or rollout: everybody is where they were before it
    Rollback {
        service: String,
        #[command(flatten)]
        terms: Terms,
        #[command(flatten)]
        remote: Remote,
    },
}

/// What the shares are to be.
#[derive(Debug, Args)]
struct Wanted {
    service: String,
    /// Each version with its share of a hundred, e.g. v1=90 v2=10
    #[arg(required = true, value_name = "VERSION=PERCENT")]
    shares: Vec<Share>,
    /// The version for those who are in no other's share; needed where the service has no traffic table yet
    #[arg(long, value_name = "VERSION", value_parser = version_named)]
    stable: Option<Name>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Trouble> {
    match &arguments.task {
        None => list(&arguments.remote),
        Some(Task::Show { service, remote }) => show(remote, service),
        Some(Task::Set { wanted, force, terms, remote }) => set(remote, wanted, *force, terms),
        Some(Task::Plan { wanted, remote }) => plan(remote, wanted),
        Some(Task::Switch { service, version, force, terms, remote }) => {
            let body = json!({ "to": version });
            let query = terms.query(force.then_some("force=true"));
            let target = format!("{}/switch{query}", path(service));
            let answer = remote.call(terms.of(writing(Method::POST, target, &body)))?;
            moved(remote, service, terms, answer, &format!("{service} is served by {version} alone"))
        }
        Some(Task::Rollback { service, terms, remote }) => {
            let target = format!("{}/rollback{}", path(service), terms.query(None));
            let answer = remote.call(terms.of(writing(Method::POST, target, &json!({}))))?;
            moved(remote, service, terms, answer, &format!("{service} is back where it was"))
        }
    }
}

fn path(service: &str) -> String {
    format!("/v1/services/{}", encoded(service))
}

fn traffic_of(remote: &Remote, service: &str) -> Result<Json, Trouble> {
    remote.get(&format!("{}/traffic", path(service)))
}

fn list(remote: &Remote) -> Result<(), Trouble> {
    let services = remote.get("/v1/services")?;
    let rollouts = remote.get("/v1/rollouts")?;
    let all = services.as_object().into_iter().flatten().filter(|(_, policy)| policy["traffic"].is_object());
    if remote.json {
        let all: serde_json::Map<_, _> =
            all.map(|(name, policy)| (name.clone(), policy["traffic"].clone())).collect();
        say(&format!("{:#}", Json::from(all)));
        return Ok(());
    }
    let rows: Vec<_> = all.map(|(name, policy)| view::row(name, &policy["traffic"], &rollouts)).collect();
    if rows.is_empty() {
        say("no service has a traffic table; `gilmok traffic set SERVICE v1=100 --stable v1` gives it one");
        return Ok(());
    }
    say(&table(["service", "stable", "shares", "rollout"], rows));
    Ok(())
}

fn show(remote: &Remote, service: &str) -> Result<(), Trouble> {
    let traffic = traffic_of(remote, service)?;
    say(&if remote.json { format!("{traffic:#}") } else { shown(&traffic, now_ms()) });
    Ok(())
}

/// The traffic as it is now with the wanted shares, and the revision that it was read from.
fn changed(remote: &Remote, wanted: &Wanted) -> Result<(Json, u64), Trouble> {
    let now = traffic_of(remote, &wanted.service)?;
    let revision = now["revision"].as_u64().unwrap_or_default();
    let mut traffic = now["traffic"].clone();
    let stable = wanted.stable.as_ref().map_or_else(|| traffic["stable"].clone(), |stable| json!(stable));
    if stable.is_null() {
        let service = &wanted.service;
        return Err(Trouble::Refused(format!(
            "{service} has no traffic table yet: --stable says which version serves whoever is in no other's share"
        )));
    }
    if !traffic.is_object() {
        traffic = json!({});
    }
    traffic["stable"] = stable;
    traffic["weights"] = weights(&wanted.shares);
    // The table was that of other weights. The control plane makes one that moves as few as can be.
    if let Some(keys) = traffic.as_object_mut() {
        keys.remove("table");
    }
    Ok((traffic, revision))
}

fn set(remote: &Remote, wanted: &Wanted, force: bool, terms: &Terms) -> Result<(), Trouble> {
    let (traffic, revision) = changed(remote, wanted)?;
    let query = terms.query(force.then_some("force=true"));
    let target = format!("{}/traffic{query}", path(&wanted.service));
    let answer = remote.call(terms.over(revision).of(writing(Method::PUT, target, &traffic)))?;
    told(remote, &answer, &format!("{} goes to {}", wanted.service, shares(&traffic["weights"])))
}

fn plan(remote: &Remote, wanted: &Wanted) -> Result<(), Trouble> {
    let (traffic, _) = changed(remote, wanted)?;
    let target = format!("{}/traffic?dry_run=true", path(&wanted.service));
    let plan: Request = writing(Method::PUT, target, &traffic);
    let plan = remote.call(plan)?.json;
    say(&if remote.json { format!("{plan:#}") } else { view::planned(&wanted.service, &plan) });
    Ok(())
}

/// Says what became of a switch; whoever waited learns who acknowledged it and whether the old version may go.
fn moved(
    remote: &Remote,
    service: &str,
    terms: &Terms,
    mut answer: Answer,
    what: &str,
) -> Result<(), Trouble> {
    if !terms.waits() {
        return told(remote, &answer, what);
    }
    let live = remote.get("/v1/status")?["proxies"]["live"].as_u64().unwrap_or_default();
    let lagging = answer.json["lagging"].as_array().map_or(0, Vec::len) as u64;
    let release = traffic_of(remote, service)?["release"].take();
    answer.json["proxies"] = json!({ "live": live, "acknowledged": live.saturating_sub(lagging) });
    answer.json["drain"] = release["drain"].clone();
    let done = told(remote, &answer, what);
    if !remote.json {
        let proxies = &answer.json["proxies"];
        say(&format!("{} of {} live proxies acknowledged it", proxies["acknowledged"], proxies["live"]));
        if let Some(drain) = view::drain(&release["drain"], now_ms()) {
            say(&drain);
        }
    }
    done
}
