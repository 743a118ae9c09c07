//! Where a move of shards stands: what is kept of it, what a tick brings, and what becomes of the document.

use std::collections::BTreeSet;
use std::time::Duration;

use gilmok_config::endpoint::Endpoint;
use gilmok_config::name::Name;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::fence::Fence;
use crate::webhook::{Occasion, Owed, Webhook};

/// A move: its batches, where it stands, and how it came there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardMove {
    /// The revision that began it.
    pub id: u64,
    pub by: String,
    /// In the order in which they move.
    pub batches: Vec<Batch>,
    /// The rule before the first batch: those keys of the service's table that say whose a key is. Null where it is not kept
    /// any more.
    pub before: Json,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub webhooks: Vec<Webhook>,
    /// How many of the batches have moved: always the first ones.
    pub moved: usize,
    pub direction: Direction,
    pub stage: Stage,
    pub paused: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
    /// What it waits for, or why it paused or ended.
    pub why: String,
    /// In milliseconds since 1970.
    pub started_ms: u64,
    /// When the current stage began.
    pub since_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
    /// The revision that announced the batch; zero before that.
    #[serde(default)]
    pub announced: u64,
    /// Whether somebody has said that the batch is copied.
    #[serde(default)]
    pub copied: bool,
    /// Who was fenced when `fenced` was asked for, and whether what was written last is copied since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fenced: Option<Fenced>,
    /// Shards of which callers have reached an app itself since the move began: some may still, whoever is beside it by now.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub direct: BTreeSet<Name>,
    /// Whether proxies that are not heard of count as gone: an operator has said so of this batch.
    #[serde(default)]
    pub forced: bool,
    /// Who is still to be told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub owed: Vec<Owed>,
    /// How many were to be told so far.
    #[serde(default)]
    pub messages: u64,
    pub history: Vec<Event>,
    /// How much has happened, that which the history does not have any more included.
    #[serde(default)]
    pub happened: usize,
}

/// Keys that go from one shard to another together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    pub from: Name,
    pub to: Name,
    /// In words: `slots 8192-12287`.
    pub what: String,
    /// The same for programs.
    pub detail: Json,
    /// Share of all keys, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ppm: Option<u32>,
    /// What makes the rule after it of the one before it: a merge patch. Null where it is not kept any more.
    pub change: Json,
}

/// Which way batches go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Batches that have moved are moved back, the last one first.
    Back,
    Forward,
}

/// What is done with the current batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The target is looked for; the document says nothing of the batch yet.
    Prepare,
    /// The document names the batch, the source serves it, and somebody copies it.
    Copying,
    /// This revision has closed the batch for unsafe methods.
    Handover { closed: u64 },
}

/// How a move ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// Every batch has moved.
    Done,
    /// Somebody has changed the map by force.
    Overruled,
    /// Every batch is where it was.
    Reversed,
}

/// The webhook `fenced`: asked when the fence was complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fenced {
    /// [`Fence::Complete`] of then: should others have to close the batch since, what was written last may be later.
    pub by: String,
    pub agreed: bool,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub at_ms: u64,
    pub what: What,
    /// Place of the batch, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<usize>,
    pub by: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// The revision that it made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The document names a batch.
    Announced,
    /// A batch is closed for unsafe methods.
    Closed,
    /// Somebody has said that a batch is copied.
    Copied,
    Done,
    /// What was written last is copied.
    Fenced,
    /// A batch has another owner.
    Moved,
    Overruled,
    Paused,
    /// A closed batch is open at its source again.
    Reopened,
    Resumed,
    /// All is back where it was.
    Reversed,
    Started,
    /// It goes the other way from here on.
    Turned,
    /// Somebody could not be told.
    Webhook,
}

/// What becomes of the service's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edit {
    /// The batch has its new owner: the rule is what `next` says, and the epoch counts up.
    Advance,
    /// `next` is there, open.
    Announce,
    /// The batch is closed by the revision that this makes.
    Close,
    /// `next` goes.
    GiveUp,
    /// The batch is open at its source again.
    Reopen,
}

/// What a tick brings.
#[derive(Clone, Debug)]
pub struct Seen<'a> {
    pub now_ms: u64,
    /// Since the batch was closed; zero while it is not.
    pub closed_for: Duration,
    /// What the batch's target lacks to be written to.
    pub lack: Option<String>,
    /// Of the closed batch; of no meaning while it is not closed.
    pub fence: &'a Fence,
}

/// Who does something, when, and which revision it will be.
#[derive(Clone, Copy, Debug)]
pub struct Hand<'a> {
    pub by: &'a str,
    pub why: &'a str,
    pub now_ms: u64,
    pub revision: u64,
}

/// The current batch as it goes now: what was the target is the source on the way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leg<'m> {
    /// Place of the batch.
    pub at: usize,
    pub source: &'m Name,
    pub target: &'m Name,
}

impl ShardMove {
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.end.is_none()
    }

    /// Takes in who serves the shards at this moment.
    pub fn saw(&mut self, endpoints: &[Endpoint]) {
        for endpoint in endpoints.iter().filter(|endpoint| !endpoint.inbound) {
            if !self.direct.contains(&endpoint.shard) {
                self.direct.insert(endpoint.shard.clone());
            }
        }
    }

    /// The batch that is moved now; none where all is done.
    #[must_use]
    pub fn leg(&self) -> Option<Leg<'_>> {
        let (at, is_back) = match self.direction {
            Direction::Forward => (self.moved, false),
            Direction::Back => (self.moved.checked_sub(1)?, true),
        };
        let Batch { from, to, .. } = self.batches.get(at).filter(|_| self.is_running())?;
        let (source, target) = if is_back { (to, from) } else { (from, to) };
        Some(Leg { at, source, target })
    }

    /// The rule once so many batches have moved.
    #[must_use]
    pub fn rule_after(&self, moved: usize) -> Json {
        let changes = self.batches.iter().take(moved).map(|batch| &batch.change);
        changes.fold(self.before.clone(), |rule, change| crate::merge_patch::merge(&rule, change))
    }

    /// The rule that follows once the current batch has moved.
    #[must_use]
    pub fn next_rule(&self) -> Json {
        self.rule_after(match self.direction {
            Direction::Forward => self.moved + 1,
            Direction::Back => self.moved.saturating_sub(1),
        })
    }

    /// One word for where it stands.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match (self.end, self.paused, self.stage) {
            (Some(End::Done), ..) => "done",
            (Some(End::Overruled), ..) => "overruled",
            (Some(End::Reversed), ..) => "reversed",
            (None, true, _) => "paused",
            (None, false, Stage::Prepare) => "prepare",
            (None, false, Stage::Copying) => "copying",
            (None, false, Stage::Handover { .. }) => "handover",
        }
    }

    /// The revision that has closed the current batch.
    #[must_use]
    pub fn closed(&self) -> Option<u64> {
        match self.stage {
            Stage::Handover { closed } => Some(closed),
            Stage::Prepare | Stage::Copying => None,
        }
    }

    /// Batches that are still to be moved, the way it goes now.
    #[must_use]
    pub fn batches_left(&self) -> usize {
        match (self.is_running(), self.direction) {
            (false, _) => 0,
            (true, Direction::Forward) => self.batches.len() - self.moved,
            (true, Direction::Back) => self.moved,
        }
    }

    /// The batch that the document was changed for last.
    #[must_use]
    pub fn batch_of_last_edit(&self) -> Option<&Batch> {
        let edits = self.history.iter().rev().filter(|event| event.revision.is_some());
        edits.filter_map(|event| event.batch).find_map(|at| self.batches.get(at))
    }

    /// What is kept of one that lies behind: what it did, without what it would take to do it again.
    #[must_use]
    pub fn without_maps(mut self) -> Self {
        self.before = Json::Null;
        for batch in &mut self.batches {
            batch.change = Json::Null;
            batch.detail = Json::Null;
        }
        self
    }

    /// Whether anybody is told on an occasion.
    pub(super) fn tells(&self, occasion: Occasion) -> bool {
        self.webhooks.iter().any(|webhook| webhook.on.contains(&occasion))
    }

    pub(super) fn is_owed(&self, occasion: Occasion) -> bool {
        self.owed.iter().any(|owed| owed.occasion == occasion)
    }
}

impl Stage {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Copying => "copying",
            Self::Handover { .. } => "handover",
        }
    }
}

impl Edit {
    /// What becomes of the batch.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Advance => "moved",
            Self::Announce => "announced",
            Self::Close => "closed",
            Self::GiveUp => "given up",
            Self::Reopen => "reopened",
        }
    }
}

impl Direction {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Back => "back",
            Self::Forward => "forward",
        }
    }
}

impl What {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Announced => "announced",
            Self::Closed => "closed",
            Self::Copied => "copied",
            Self::Done => "done",
            Self::Fenced => "fenced",
            Self::Moved => "moved",
            Self::Overruled => "overruled",
            Self::Paused => "paused",
            Self::Reopened => "reopened",
            Self::Resumed => "resumed",
            Self::Reversed => "reversed",
            Self::Started => "started",
            Self::Turned => "turned",
            Self::Webhook => "webhook",
        }
    }
}
