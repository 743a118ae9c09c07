//! What is kept of a service beside its table: its rollout, what moved its users last, and moves of its shards.

use std::collections::BTreeMap;

use gilmok_config::name::{Name, ServiceName};
use serde::{Deserialize, Serialize};

use crate::resharding::state::ShardMove;
use crate::rollout::state::{Rollout, Tables};

/// Moves of shards that are remembered, beside the last one.
const MOVED_MAX: usize = 5;

/// What is kept, by service.
pub type Records = BTreeMap<ServiceName, Record>;

/// What is kept of one service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Counts up with each write: whoever writes says which one was read.
    pub seq: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Release>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Box<Rollout>>,
    /// The move of shards that runs, or ran last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<Box<ShardMove>>,
    /// Those before it without their maps, newest first; at most [`MOVED_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moved: Vec<ShardMove>,
}

/// A deed that moved everybody from one version to another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Release {
    pub kind: ReleaseKind,
    /// The revision that did it.
    pub revision: u64,
    /// In milliseconds since 1970.
    pub at_ms: u64,
    pub by: String,
    /// Whose users were moved: the version that is drained.
    pub from: Name,
    pub to: Name,
    /// What a rollback brings back; empty when there is nothing to go back to.
    #[serde(default, skip_serializing_if = "Tables::is_empty")]
    pub before: Tables,
}

/// What kind of deed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseKind {
    Rollback,
    Rollout,
    Switch,
}

impl Record {
    /// The rollout that goes on, if there is one.
    #[must_use]
    pub fn running(&self) -> Option<&Rollout> {
        self.rollout.as_deref().filter(|rollout| rollout.is_running())
    }

    /// The move of shards that goes on, if there is one.
    #[must_use]
    pub fn running_move(&self) -> Option<&ShardMove> {
        self.moving.as_deref().filter(|moving| moving.is_running())
    }

    /// Begins another move of shards.
    pub fn begin_move(&mut self, moving: ShardMove) {
        if let Some(before) = self.moving.replace(Box::new(moving)) {
            self.moved.insert(0, before.without_maps());
            self.moved.truncate(MOVED_MAX);
        }
    }
}
