//! What can be asked of the control plane, each in a word for the audit and one for the metrics.

use gilmok_config::name::{Name, ServiceName};
use serde_json::Value;

use super::Force;
use crate::resharding::state::{Edit, ShardMove};
use crate::rollout::state::{Rollout, Shift};

/// What an operator asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Batches of a service's keys that go to other shards one by one; what is wanted, and who is told.
    BeginMove(ServiceName, Value),
    /// What a rollout came to by itself.
    Conduct(Conduct),
    /// What a move of shards came to by itself.
    ConductMove(ConductMove),
    DeleteService(ServiceName),
    /// A word about the flag that has this key.
    Flag(String, FlagDeed),
    /// What a service's breaker is to do.
    ForceBreaker(ServiceName, Force),
    /// A word about the move of shards that has this id.
    Move(ServiceName, u64, MoveDeed),
    /// A merge patch of one service's table (RFC 7396).
    PatchService(ServiceName, Value),
    /// The whole set of flags.
    PutFlags(Value),
    PutMesh(Value),
    /// A plan that moves a service's users step by step.
    PutRollout(ServiceName, Value),
    PutService(ServiceName, Value),
    /// The traffic table of one service.
    PutTraffic(ServiceName, Value),
    /// The document of an earlier revision, as a new one.
    Restore {
        number: u64,
        document: Value,
    },
    /// Back to where everybody was before the last switch or rollout.
    RollBack(ServiceName),
    /// A word about a rollout.
    Rollout(ServiceName, Deed),
    /// Everybody to a version.
    Switch(ServiceName, Name),
}

/// A word about a flag.
#[derive(Clone, Debug, PartialEq)]
pub enum FlagDeed {
    /// The change of this id, whose time has come.
    CarryOut(u64),
    Delete,
    /// Its off variant for everybody, whatever else it says.
    Kill,
    /// A merge patch (RFC 7396).
    Patch(Value),
    Put(Value),
    /// A merge patch at a time, in milliseconds since 1970.
    Schedule {
        at_ms: u64,
        patch: Value,
    },
    /// What it says holds again.
    Unkill,
    /// Not the change of this id.
    Unschedule(u64),
}

/// A word about a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    Abort,
    /// What is kept of one that has ended goes.
    Forget,
    Pause,
    /// On to the next step, or to the last one.
    Promote {
        to_end: bool,
    },
    Resume,
}

/// What a rollout came to by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Conduct {
    pub service: ServiceName,
    /// `seq` of the record that was read.
    pub seq: u64,
    pub rollout: Box<Rollout>,
    pub shift: Option<Shift>,
}

/// A word about a move of shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveDeed {
    Pause,
    /// On, or that the batch is copied; forced, silent proxies count as gone.
    Resume,
    /// The other way.
    Reverse,
}

/// What a move of shards came to by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct ConductMove {
    pub service: ServiceName,
    /// `seq` of the record that was read.
    pub seq: u64,
    pub moving: Box<ShardMove>,
    pub edit: Edit,
}

impl Command {
    /// What the audit says was done.
    #[must_use]
    pub fn what(&self) -> String {
        match self {
            Self::BeginMove(name, _) => format!("begin move of shards of {name}"),
            Self::Conduct(Conduct { service, rollout, .. }) => {
                format!("rollout of {service}: {} % {}", rollout.percent().percent(), rollout.plan.candidate)
            }
            Self::ConductMove(ConductMove { service, moving, edit, .. }) => {
                let what = moving.batch_of_last_edit().map(|batch| batch.what.as_str()).unwrap_or_default();
                format!("move of shards of {service}: {what} {}", edit.as_str())
            }
            Self::DeleteService(name) => format!("delete service {name}"),
            Self::Flag(key, deed) => format!("{} flag {key}", deed.as_str()),
            Self::ForceBreaker(name, force) => format!("force breaker of {name}: {}", force.what()),
            Self::Move(name, _, deed) => format!("{} move of shards of {name}", deed.as_str()),
            Self::PatchService(name, _) => format!("patch service {name}"),
            Self::PutFlags(_) => "put flags".to_owned(),
            Self::PutMesh(_) => "put mesh".to_owned(),
            Self::PutRollout(name, plan) => {
                format!("begin rollout of {name}: {}", plan["candidate"].as_str().unwrap_or_default())
            }
            Self::PutService(name, _) => format!("put service {name}"),
            Self::PutTraffic(name, _) => format!("put traffic of {name}"),
            Self::Restore { number, .. } => format!("restore revision {number}"),
            Self::RollBack(name) => format!("roll back {name}"),
            Self::Rollout(name, deed) => format!("{} rollout of {name}", deed.as_str()),
            Self::Switch(name, to) => format!("switch {name} to {to}"),
        }
    }

    /// The label `kind` of `gilmok_writes_total`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::BeginMove(..) => "begin_move",
            Self::Conduct(_) => "conduct",
            Self::ConductMove(_) => "conduct_move",
            Self::DeleteService(_) => "delete_service",
            Self::Flag(_, deed) => deed.kind(),
            Self::ForceBreaker(..) => "force_breaker",
            Self::Move(..) => "move",
            Self::PatchService(..) => "patch_service",
            Self::PutFlags(_) => "put_flags",
            Self::PutMesh(_) => "put_mesh",
            Self::PutRollout(..) => "put_rollout",
            Self::PutService(..) => "put_service",
            Self::PutTraffic(..) => "put_traffic",
            Self::Restore { .. } => "restore",
            Self::RollBack(_) => "roll_back",
            Self::Rollout(..) => "rollout",
            Self::Switch(..) => "switch",
        }
    }

    /// Whether it is about which user or key is where, and looks after that by itself.
    pub(super) fn moves_by_itself(&self) -> bool {
        match self {
            Self::BeginMove(..)
            | Self::Conduct(_)
            | Self::ConductMove(_)
            | Self::Move(..)
            | Self::PutRollout(..)
            | Self::RollBack(_)
            | Self::Rollout(..)
            | Self::Switch(..) => true,
            Self::DeleteService(_)
            | Self::Flag(..)
            | Self::ForceBreaker(..)
            | Self::PatchService(..)
            | Self::PutFlags(_)
            | Self::PutMesh(_)
            | Self::PutService(..)
            | Self::PutTraffic(..)
            | Self::Restore { .. } => false,
        }
    }
}

impl Deed {
    fn as_str(self) -> &'static str {
        match self {
            Self::Abort => "abort",
            Self::Forget => "forget",
            Self::Pause => "pause",
            Self::Promote { .. } => "promote",
            Self::Resume => "resume",
        }
    }
}

impl FlagDeed {
    fn as_str(&self) -> &'static str {
        match self {
            Self::CarryOut(_) => "carry out a change of",
            Self::Delete => "delete",
            Self::Kill => "kill",
            Self::Patch(_) => "patch",
            Self::Put(_) => "put",
            Self::Schedule { .. } => "schedule a change of",
            Self::Unkill => "unkill",
            Self::Unschedule(_) => "take back a change of",
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::CarryOut(_) => "carry_out_flag",
            Self::Delete => "delete_flag",
            Self::Kill => "kill_flag",
            Self::Patch(_) => "patch_flag",
            Self::Put(_) => "put_flag",
            Self::Schedule { .. } => "schedule_flag",
            Self::Unkill => "unkill_flag",
            Self::Unschedule(_) => "unschedule_flag",
        }
    }
}

impl MoveDeed {
    fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Reverse => "reverse",
        }
    }
}
