//! `gilmok shards plan`, `move`, `moves`, `pause`, `resume` and `reverse`: keys that go to other shards while traffic flows.

mod view;

mod watch;

use std::path::PathBuf;

use clap::Args;
use gilmok_config::name::Name;
use hyper::Method;
use serde_json::{Value as Json, json};

use super::apply::{Grounds, Terms, told};
use super::check::read_tree;
use super::status::now_ms;
use crate::client::{Remote, encoded, writing};
use crate::trouble::{Trouble, say};

/// When somebody can be told; those that wait for an answer first.
const OCCASIONS: [&str; 6] = ["copy", "fenced", "moved", "done", "paused", "reversed"];

/// What there shall be.
#[derive(Debug, Args)]
struct Wanted {
    #[command(flatten)]
    rule: Rule,
    /// Most slots of one batch; else all that go from one shard to another are one
    #[arg(long, value_name = "NUMBER")]
    batch_slots: Option<u32>,
}

/// By shards or by a map.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Rule {
    /// All shards that there shall be, e.g. 0,1,2,3; of `modulo` the list of places
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = shard_named)]
    shards: Option<Vec<Name>>,
    /// A file with the whole map as a document has it, TOML or JSON; - is standard input
    #[arg(long, value_name = "FILE")]
    map: Option<PathBuf>,
}

fn shard_named(text: &str) -> Result<Name, String> {
    Name::parse_given(text).map_err(str::to_owned)
}

impl Wanted {
    fn body(&self) -> Result<Json, Trouble> {
        let mut body = json!({});
        if let Some(shards) = &self.rule.shards {
            body["shards"] = json!(shards);
        }
        if let Some(file) = &self.rule.map {
            let map = read_tree(file)?;
            // As it stands in a document, or by itself.
            let is_wrapped = map.get("map").is_some_and(Json::is_object);
            body["map"] = if is_wrapped { map["map"].clone() } else { map };
        }
        if let Some(most) = self.batch_slots {
            body["batch_slots"] = json!(most);
        }
        Ok(body)
    }
}

#[derive(Debug, Args)]
pub(super) struct Plan {
    service: String,
    #[command(flatten)]
    wanted: Wanted,
    #[command(flatten)]
    remote: Remote,
}

impl Plan {
    pub(super) fn run(&self) -> Result<(), Trouble> {
        let body = self.wanted.body()?;
        let target = format!("/v1/services/{}/sharding/plan", encoded(&self.service));
        let plan = self.remote.call(writing(Method::POST, target, &body))?.json;
        say(&if self.remote.json { format!("{plan:#}") } else { view::plan(&self.service, &plan) });
        Ok(())
    }
}

#[derive(Debug, Args)]
#[command(
    after_help = "The keys are copied by you: by a webhook that is told `copy`, or by hand, and then `gilmok shards resume SERVICE` says so.\nThe batch is then closed at its owner for at most 2 s; whoever is told `fenced` copies what was written last. Where nobody is, --last-copy none says that nothing is lost by it.\n\nExamples:\n  gilmok shards move profile --shards 0,1,2,3,4,5,6,7 --dry-run\n  gilmok shards move profile --shards 0,1,2,3,4,5,6,7 --webhook http://copier:9000/hook --wait\n  gilmok shards move tenants --map map.toml --webhook http://copier:9000/hook --on copy,fenced"
)]
pub(super) struct Move {
    service: String,
    #[command(flatten)]
    wanted: Wanted,
    /// Who copies and is told, as docs/sharding.md says; may be given again
    #[arg(long, value_name = "URL")]
    webhook: Vec<String>,
    /// What the webhooks are told: copy, fenced, moved, done, paused, reversed; default all
    #[arg(long, value_name = "OCCASIONS", value_delimiter = ',', requires = "webhook", value_parser = OCCASIONS)]
    on: Option<Vec<String>>,
    /// Nobody copies what is written between the copy and the hand-over: the data follow by themselves, or nothing is
    /// written. Needed where no webhook is told `fenced`
    #[arg(long, value_name = "WHO", value_parser = ["none"])]
    last_copy: Option<String>,
    /// Say what would move, and move nothing
    #[arg(long)]
    dry_run: bool,
    /// Stay, and tell how it goes until it ends; 0 only when every batch has moved
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    grounds: Grounds,
    #[command(flatten)]
    remote: Remote,
}

impl Move {
    pub(super) fn run(&self) -> Result<(), Trouble> {
        let mut body = self.wanted.body()?;
        if !self.webhook.is_empty() {
            let on = self.on.clone().unwrap_or_else(|| OCCASIONS.map(str::to_owned).to_vec());
            body["webhooks"] = self.webhook.iter().map(|url| json!({ "url": url, "on": on })).collect();
        }
        if let Some(who) = &self.last_copy {
            body["last_copy"] = json!(who);
        }
        let dry_run = self.dry_run.then(|| "dry_run=true".to_owned());
        let target = format!("{}{}", path(&self.service), self.grounds.query(dry_run));
        let answer = self.remote.call(self.grounds.of(writing(Method::POST, target, &body)))?;
        if self.dry_run {
            let shown = if self.remote.json {
                format!("{:#}", answer.json)
            } else {
                view::plan(&self.service, &answer.json["plan"])
            };
            say(&shown);
            return Ok(());
        }
        let id = answer.json["revision"].as_u64().unwrap_or_default();
        if !(self.wait && self.remote.json) {
            told(
                &self.remote,
                &answer,
                &format!("the move {id} of the shards of {} has begun", self.service),
            )?;
        }
        if self.wait { watch::run(&self.remote, &self.service, id) } else { Ok(()) }
    }
}

#[derive(Debug, Args)]
pub(super) struct Moves {
    service: String,
    /// The move that is shown with its batches and whom it waits for
    id: Option<u64>,
    /// Everything that happened, with who and why; of the last move where no other is named
    #[arg(long)]
    history: bool,
    #[command(flatten)]
    remote: Remote,
}

impl Moves {
    pub(super) fn run(&self) -> Result<(), Trouble> {
        let id = match self.id {
            None if self.history => Some(last(&self.remote, &self.service)?),
            id => id,
        };
        let answer = match id {
            Some(id) => self.remote.get(&path_of(&self.service, id))?,
            None => self.remote.get(&path(&self.service))?,
        };
        let shown = if self.remote.json {
            format!("{answer:#}")
        } else if id.is_none() {
            view::list(&self.service, &answer, now_ms())
        } else if self.history {
            format!("{}\n\n{}", view::one(&answer, now_ms()), view::history(&answer, now_ms()))
        } else {
            view::one(&answer, now_ms())
        };
        say(&shown);
        Ok(())
    }
}

/// A word to the last move of a service.
#[derive(Debug, Args)]
pub(super) struct Word {
    service: String,
    #[command(flatten)]
    terms: Terms,
    #[command(flatten)]
    remote: Remote,
}

impl Word {
    pub(super) fn say(&self, word: &str, more: Option<&str>, what: &str) -> Result<(), Trouble> {
        let id = last(&self.remote, &self.service)?;
        let target = format!("{}/{word}{}", path_of(&self.service, id), self.terms.query(more));
        let answer = self.remote.call(self.terms.of(writing(Method::POST, target, &json!({}))))?;
        told(&self.remote, &answer, &format!("the move {id} of the shards of {} {what}", self.service))
    }
}

#[derive(Debug, Args)]
pub(super) struct Resume {
    /// Proxies that were silent for 15 s count as gone until the batch has moved: you say that they are
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    word: Word,
}

impl Resume {
    pub(super) fn run(&self) -> Result<(), Trouble> {
        self.word.say("resume", self.force.then_some("force=true"), "goes on")
    }
}

fn path(service: &str) -> String {
    format!("/v1/services/{}/sharding/moves", encoded(service))
}

fn path_of(service: &str, id: u64) -> String {
    format!("{}/{id}", path(service))
}

/// The id of a service's last move.
fn last(remote: &Remote, service: &str) -> Result<u64, Trouble> {
    let moves = remote.get(&path(service))?;
    moves[0]["id"].as_u64().ok_or_else(|| Trouble::Refused(view::none(service)))
}
