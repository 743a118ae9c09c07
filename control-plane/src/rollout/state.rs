//! Where a rollout stands: what is kept of it, what a tick brings, and what it comes to.

use std::collections::BTreeMap;
use std::time::Duration;

use gilmok_config::name::{Name, ServiceName};
use gilmok_config::unit::Ppm;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::analysis::{Analysis, Evidence};
use super::plan::Plan;
use super::tally::{Both, Tally};
use crate::webhook::{Occasion, Owed};

/// The traffic tables of the services that move together, as they are in the document.
pub type Tables = BTreeMap<ServiceName, Json>;

/// A rollout: its plan, where it stands, and how it came there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    pub id: String,
    pub plan: Plan,
    pub stable: Name,
    pub by: String,
    pub phase: Phase,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halted: Option<Halt>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
    /// Place of the current step.
    pub step: usize,
    /// What the candidate has now.
    pub share: u32,
    /// The traffic tables as they were, of this service and of those that move with it.
    pub before: Tables,
    /// In milliseconds since 1970.
    pub started_ms: u64,
    /// When the current phase began.
    pub since_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
    /// How long the phase has lasted while a control plane was running and it was not halted.
    pub held_ms: u64,
    /// What it waits for, or why it ended.
    pub why: String,
    /// What was agreed to for the step that comes next.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub agreed: Vec<Occasion>,
    /// Who is still to be told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub owed: Vec<Owed>,
    /// How many were to be told so far.
    #[serde(default)]
    pub messages: u64,
    #[serde(default)]
    pub terms: Terms,
    pub analysis: Analysis,
    pub tally: Tally,
    #[serde(default)]
    pub alarms: Alarms,
    pub history: Vec<Event>,
    /// How much has happened, that which the history does not have any more included.
    #[serde(default)]
    pub happened: usize,
}

/// What the rollout is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The gate is shut.
    Gated,
    /// The step is taken and lasts.
    Holding,
    /// The step is not taken yet: endpoints or an answer are missing.
    Waiting,
}

/// Why a rollout does not go on by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Halt {
    /// The candidate is worse, and nothing is taken back by itself.
    Frozen,
    Paused,
}

/// How a rollout ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// An operator took it back.
    Aborted,
    /// The candidate is the stable version.
    Done,
    /// It took itself back.
    RolledBack,
}

/// What an operator said of the current step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Its time and counts are as good as over.
    pub cut_short: bool,
    /// What the evidence says is not waited for, and ends nothing, from here on.
    pub unjudged: bool,
}

/// Hard stops under way: for how long, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarms {
    pub(super) unreachable_ms: u64,
    pub(super) deserted_ms: u64,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub at_ms: u64,
    pub what: What,
    pub step: usize,
    pub percent: f64,
    pub by: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// The revision that it made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// What was known when it was decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Box<Evidence>>,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    Aborted,
    Approved,
    Done,
    Frozen,
    Gate,
    Paused,
    Promoted,
    Resumed,
    RolledBack,
    Started,
    Step,
    Webhook,
}

impl What {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Aborted => "aborted",
            Self::Approved => "approved",
            Self::Done => "done",
            Self::Frozen => "frozen",
            Self::Gate => "gate",
            Self::Paused => "paused",
            Self::Promoted => "promoted",
            Self::Resumed => "resumed",
            Self::RolledBack => "rolled_back",
            Self::Started => "started",
            Self::Step => "step",
            Self::Webhook => "webhook",
        }
    }
}

/// What a tick brings.
#[derive(Clone, Debug)]
pub struct Seen<'a> {
    pub now_ms: u64,
    /// Since the tick before, while this process was running.
    pub elapsed: Duration,
    /// Endpoints of the candidate that are alive.
    pub alive: u64,
    /// Whether who is alive is known for certain: a process that has just started may not have heard of all.
    pub settled: bool,
    pub news: &'a Both,
}

/// Who does something, when, and which revision it will be.
#[derive(Clone, Copy, Debug)]
pub struct Hand<'a> {
    pub by: &'a str,
    pub why: &'a str,
    pub now_ms: u64,
    pub revision: u64,
    /// Endpoints of the candidate that are alive.
    pub alive: u64,
}

/// What becomes of the service's traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shift {
    /// As it was before the rollout.
    Back,
    /// The candidate is the stable version, and has everybody.
    Finish,
    /// The candidate has this share.
    To(Ppm),
}
