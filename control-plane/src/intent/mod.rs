//! Intent: what operators asked for, and how a command changes it. Pure: documents in, documents out.
//!
//! Beside the document there is what is kept of single services: a rollout under way, the last switch. A command may
//! change both; both are written in one step.

mod command;

mod force;

mod flags;

mod timed;

mod guard;

mod moves;

mod release;

mod resharding;

mod rollouts;

mod shards;

mod shares;

pub use command::{Command, Conduct, ConductMove, Deed, FlagDeed, MoveDeed};
pub use flags::{CHANGES_MAX, FlagChange, changes as flag_changes, flag, set as flag_set};
pub use force::Force;
pub use moves::{Move, Moves, drain_timeout, moves, versions_alive};
pub use resharding::planned;
pub(crate) use shares::{endpoints as endpoints_of, table as traffic_table};

use gilmok_config::document::Document;
use gilmok_config::hash::content_hash;
use gilmok_config::name::{Name, ServiceName};
use gilmok_config::node::Node;
use gilmok_config::problem::Problems;
use gilmok_config::snapshot::Membership;
use serde_json::{Map, Value};

use crate::exposure::Exposure;
use crate::record::{Record, Records};
use crate::rollout::state::Hand;
use crate::schedule::Schedule;

/// What a command is decided by, beside the document.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The newest revision: what is written will be the next one.
    pub number: u64,
    pub records: &'a Records,
    pub alive: &'a Membership,
    /// Which flags are in use.
    pub exposure: &'a Exposure,
    /// Changes of flags that wait for their time.
    pub schedule: &'a Schedule,
    pub by: &'a str,
    pub why: &'a str,
    /// In milliseconds since 1970.
    pub now_ms: u64,
    /// Whether what needs another command is done all the same.
    pub force: bool,
    /// Whether flags may be what flagd would warn of.
    pub accept_warnings: bool,
    /// A number by chance.
    pub dice: u64,
}

/// What a command makes of document and records.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub intent: Intent,
    /// What is kept of these services from now on; `None` is nothing.
    pub records: Vec<(ServiceName, Option<Record>)>,
    /// The changes of flags that wait from now on, where these are others.
    pub schedule: Option<Schedule>,
}

/// A document that is not checked yet, and the records that go with it.
#[derive(Clone, Debug)]
struct Changed {
    document: Value,
    records: Vec<(ServiceName, Option<Record>)>,
    schedule: Option<Schedule>,
    /// Whether tables that nobody wrote are to stay unwritten: this is what was before, to the last user.
    exact: bool,
}

/// Why a command changes nothing: a decision, not a failure.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// What is there stands against it; the text says which command would do.
    Conflict(String),
    /// The result would be no sound document.
    Faulty(Problems),
    /// There is no flag of this key.
    NoFlag(String),
    /// No change of this flag with this id waits.
    NotScheduled(String, u64),
    /// There is no move of this service's shards that has this id.
    NoMove(ServiceName, u64),
    /// There is no rollout of this service.
    NoRollout(ServiceName),
    /// It speaks of a service that is not there.
    NoService(ServiceName),
    /// What flagd would only warn of, and nobody has accepted.
    Warned(Problems),
}

impl Changed {
    fn document(document: Value) -> Self {
        Self { document, records: Vec::new(), schedule: None, exact: false }
    }

    fn nothing(document: &Value) -> Self {
        Self { exact: true, ..Self::document(document.clone()) }
    }
}

impl Context<'_> {
    fn hand(&self, alive: u64) -> Hand<'_> {
        Hand { by: self.by, why: self.why, now_ms: self.now_ms, revision: self.number + 1, alive }
    }
}

/// A sound document in the one form in which it is kept: keys in order, no defaults filled in.
#[derive(Clone, Debug)]
pub struct Intent {
    /// As JSON.
    pub json: Value,
    /// The same as compact text, which is what is hashed and sent.
    pub text: String,
    /// [`content_hash`] of the text.
    pub hash: String,
    /// What it says.
    pub document: Document,
}

impl Intent {
    /// Checks a document and brings it into its form.
    ///
    /// # Errors
    /// Every fault with its path.
    pub fn parse(json: &Value) -> Result<Self, Problems> {
        let node = Node::from(json);
        let document = Document::read(&node)?;
        let json = node.to_json();
        let text = json.to_string();
        let hash = content_hash(text.as_bytes());
        Ok(Self { json, text, hash, document })
    }

    /// Nothing asked for yet.
    #[must_use]
    pub fn empty() -> Self {
        Self::parse(&Value::Object(Map::new())).expect("invariant: an empty document is sound")
    }
}

/// Applies a command to the document in force and to what is kept of services.
///
/// # Errors
/// Why it changes nothing.
pub fn apply(current: &Value, command: &Command, context: &Context<'_>) -> Result<Outcome, Refusal> {
    // What was sound when it was written is judged by this version; what it finds fault with says nothing here.
    let before = Intent::parse(current).unwrap_or_else(|_| Intent::empty()).document;
    let changed = changed(current, &before, command, context)?;
    let document = flags::by_key(changed.document);
    let mut intent = Intent::parse(&document).map_err(Refusal::Faulty)?;
    flags::check(&before, &intent.document, command, context)?;
    let mut records = changed.records;
    if !command.moves_by_itself() {
        let overruled = guard::check(&before, &intent.document, context.records, context.force)?;
        for service in overruled {
            rollouts::overrule(record_of(&mut records, &service, context), context, &command.what());
        }
        let written = shards::written(current, &before, (&intent.json, &intent.document), command, context)?;
        for service in written.overruled {
            resharding::overrule(record_of(&mut records, &service, context), context, &command.what());
        }
        if let Some(document) = written.document {
            intent = Intent::parse(&document).map_err(Refusal::Faulty)?;
        }
    }
    if !changed.exact
        && let Some(next) = shares::with_least_moves(&intent.json, &before, &intent.document)
    {
        intent = Intent::parse(&next).map_err(Refusal::Faulty)?;
    }
    let gone = before.services.keys().filter(|name| !intent.document.services.contains_key(*name));
    for name in gone.filter(|name| context.records.contains_key(*name)) {
        // What was overruled a moment ago goes with the service.
        records.retain(|(service, _)| service != name);
        records.push((name.clone(), None));
    }
    let schedule = timed::kept(changed.schedule, &intent.document, context);
    Ok(Outcome { intent, records, schedule })
}

/// What is to be kept of a service, as it is so far.
fn record_of<'r>(
    records: &'r mut Vec<(ServiceName, Option<Record>)>,
    service: &ServiceName,
    context: &Context<'_>,
) -> &'r mut Record {
    let at = records.iter().position(|(name, _)| name == service).unwrap_or_else(|| {
        records.push((service.clone(), context.records.get(service).cloned()));
        records.len() - 1
    });
    records[at].1.get_or_insert_default()
}

fn changed(
    current: &Value,
    parsed: &Document,
    command: &Command,
    context: &Context<'_>,
) -> Result<Changed, Refusal> {
    let known = |name: &ServiceName| service(current, name).ok_or_else(|| Refusal::NoService(name.clone()));
    let with =
        |name: &ServiceName, table: Option<Value>| Changed::document(with_service(current, name, table));
    Ok(match command {
        Command::BeginMove(name, body) => resharding::begun(current, name, body, context)?,
        Command::Move(name, id, deed) => resharding::told(current, parsed, name, *id, *deed, context)?,
        Command::ConductMove(conduct) => resharding::conducted(current, conduct, context)?,
        Command::Conduct(conduct) => {
            Changed { exact: true, ..rollouts::conducted(current, parsed, conduct, context)? }
        }
        Command::Flag(key, deed) => Changed { exact: true, ..flags::told(current, key, deed, context)? },
        Command::PutFlags(set) => {
            Changed { exact: true, ..Changed::document(flags::with_set(current, set.clone())) }
        }
        Command::PutMesh(document) => Changed::document(document.clone()),
        Command::Restore { number, document } => Changed {
            exact: true,
            ..Changed::document(restored(current, parsed, document, *number, context))
        },
        Command::PutService(name, table) => with(name, Some(table.clone())),
        Command::PatchService(name, patch) => {
            with(name, Some(crate::merge_patch::merge(known(name)?, patch)))
        }
        Command::ForceBreaker(name, force) => with(name, Some(force::forced(known(name)?, force))),
        Command::DeleteService(name) => {
            known(name)?;
            with(name, None)
        }
        Command::PutTraffic(name, table) => {
            known(name)?;
            put_traffic(current, parsed, name, table, context)?
        }
        Command::Switch(name, to) => {
            known(name)?;
            release::switched(current, parsed, name, to, context)?
        }
        Command::RollBack(name) => {
            known(name)?;
            Changed { exact: true, ..release::rolled_back(current, parsed, name, context)? }
        }
        Command::PutRollout(name, plan) => rollouts::begun(current, parsed, name, plan, context)?,
        Command::Rollout(name, deed) => {
            Changed { exact: true, ..rollouts::told(current, parsed, name, deed, context)? }
        }
    })
}

fn put_traffic(
    current: &Value,
    parsed: &Document,
    name: &ServiceName,
    table: &Value,
    context: &Context<'_>,
) -> Result<Changed, Refusal> {
    let next = shares::with_table(current, name, Some(table.clone()));
    let alive = shares::alive(parsed, context.alive, name);
    let shared = table["weights"].as_object().into_iter().flatten();
    let mut unknown = shared.filter(|(version, share)| {
        // Without any endpoint nobody can tell yet; what is no number is told as a fault of the document.
        let has_share = share.as_f64().is_some_and(|share| share > 0.0);
        has_share && !alive.is_empty() && !alive.keys().any(|known| known.as_str() == version.as_str())
    });
    match unknown.next().and_then(|(version, _)| Name::parse(version).ok()) {
        Some(version) if !context.force => {
            let path = format!("services.{name}.traffic.weights.{version}");
            Err(release::unknown_version(&path, name, &version, alive.keys()))
        }
        Some(_) | None => Ok(Changed::document(next)),
    }
}

/// An earlier document, with users and data where they are now wherever they have moved on since.
fn restored(
    current: &Value,
    parsed: &Document,
    document: &Value,
    number: u64,
    context: &Context<'_>,
) -> Value {
    let mut next = document.clone();
    for (name, record) in context.records {
        let has_moved =
            record.running().is_some() || record.release.as_ref().is_some_and(|last| last.revision > number);
        if !has_moved {
            continue;
        }
        for name in shares::together(parsed, name) {
            if service(&next, &name).is_some() {
                next = shares::with_table(&next, &name, shares::table(current, &name).cloned());
            }
        }
    }
    shards::kept(next, current, parsed, context)
}

/// One service's table as the operators wrote it.
#[must_use]
pub fn service<'d>(document: &'d Value, name: &ServiceName) -> Option<&'d Value> {
    document.get("services")?.get(name.as_str())
}

fn with_service(document: &Value, name: &ServiceName, table: Option<Value>) -> Value {
    let mut next = match document {
        Value::Object(root) => root.clone(),
        _ => Map::new(),
    };
    let services = next.entry("services").or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(services) = services {
        match table {
            Some(table) => services.insert(name.to_string(), table),
            None => services.remove(name.as_str()),
        };
    }
    Value::Object(next)
}

#[cfg(test)]
mod tests;
