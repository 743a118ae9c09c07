//! Who is told of what a rollout or a move of shards comes to, and when: pure; sending is the conductor's.

use std::time::Duration;

use gilmok_config::grammar::Value;
use gilmok_config::unit::{format_duration, parse_duration};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Most webhooks of a plan.
const WEBHOOKS_MAX: usize = 10;
/// Longest address, in bytes.
const URL_BYTES_MAX: usize = 2_000;
/// Most tries beyond the first one.
const RETRIES_MAX: u32 = 10;
const RETRIES: u32 = 3;
const TIMEOUT: Duration = Duration::from_secs(5);
const TIMEOUT_MAX: Duration = Duration::from_mins(1);

/// Somebody who is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Webhook {
    pub url: String,
    pub on: Vec<Occasion>,
    /// For one try.
    #[serde(serialize_with = "write_duration", deserialize_with = "read_duration")]
    pub timeout: Duration,
    /// Beyond the first try.
    pub retries: u32,
}

/// When somebody is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Occasion {
    /// A rollout ended well.
    After,
    /// Before a rollout's first step. Whoever does not agree with 2xx keeps it from beginning.
    Before,
    /// The keys of a batch are to be copied. Whoever agrees with 2xx has done so, but for 202: then somebody says it later.
    Copy,
    /// A move has moved all its batches.
    Done,
    /// Nothing is written to a batch any more. Whoever agrees with 2xx has copied what was written last.
    Fenced,
    /// A rollout waits at a gate.
    Gate,
    /// A batch has moved.
    Moved,
    /// A move does not go on by itself.
    Paused,
    /// A move was taken back, or overruled.
    Reversed,
    /// A rollout was taken back or is frozen.
    Rollback,
    /// Before each step of a rollout. Whoever does not agree with 2xx keeps it from being taken.
    Step,
}

/// The occasions of rollouts.
pub const OF_ROLLOUTS: [(&str, Occasion); 5] = [
    ("before", Occasion::Before),
    ("step", Occasion::Step),
    ("gate", Occasion::Gate),
    ("after", Occasion::After),
    ("rollback", Occasion::Rollback),
];

/// The occasions of moves of shards.
pub const OF_MOVES: [(&str, Occasion); 6] = [
    ("copy", Occasion::Copy),
    ("fenced", Occasion::Fenced),
    ("moved", Occasion::Moved),
    ("done", Occasion::Done),
    ("paused", Occasion::Paused),
    ("reversed", Occasion::Reversed),
];

/// Somebody who is to be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owed {
    /// Tells it apart from others of the same rollout or move: the same again is the same message.
    pub number: u64,
    pub occasion: Occasion,
    /// Place of the step or batch that it is about.
    pub step: usize,
    /// Whether that batch went back: a move may have turned before somebody is told.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub back: bool,
    pub why: String,
}

/// What whoever was asked has agreed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// It is done.
    Done,
    /// 202: it is begun, and somebody will say when it is done.
    Later,
}

impl Occasion {
    /// Whether what comes next waits for an answer.
    #[must_use]
    pub fn is_asked(self) -> bool {
        matches!(self, Self::Before | Self::Copy | Self::Fenced | Self::Step)
    }

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::After => "after",
            Self::Before => "before",
            Self::Copy => "copy",
            Self::Done => "done",
            Self::Fenced => "fenced",
            Self::Gate => "gate",
            Self::Moved => "moved",
            Self::Paused => "paused",
            Self::Reversed => "reversed",
            Self::Rollback => "rollback",
            Self::Step => "step",
        }
    }
}

/// Reads a list of webhooks that may be told on these occasions.
pub(crate) fn read_webhooks(value: &Value<'_>, known: &[(&str, Occasion)]) -> Vec<Webhook> {
    let Some(items) = value.items() else { return Vec::new() };
    if items.len() > WEBHOOKS_MAX {
        value.fault(format!("{} webhooks", items.len()), format!("at most {WEBHOOKS_MAX}"));
        return Vec::new();
    }
    items.iter().filter_map(|item| read_webhook(item, known)).collect()
}

fn read_webhook(value: &Value<'_>, known: &[(&str, Occasion)]) -> Option<Webhook> {
    let mut table = value.table()?;
    let url = table.required("url").and_then(|v| read_url(&v));
    let on = table.required("on").and_then(|v| v.list(|item| item.choice(known)));
    let timeout = table
        .optional("timeout")
        .map_or(Some(TIMEOUT), |v| v.duration(Duration::from_millis(1), TIMEOUT_MAX));
    let retries = table.optional("retries").map_or(Some(RETRIES), |v| v.integer(0, RETRIES_MAX));
    table.finish();
    Some(Webhook { url: url?, on: on?, timeout: timeout?, retries: retries? })
}

fn read_url(value: &Value<'_>) -> Option<String> {
    let text = value.text()?;
    let has_host = ["http://", "https://"].iter().any(|scheme| {
        text.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
    });
    let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic());
    // What stands before an @ is a password, and would be shown to whoever reads the plan.
    let has_no_user = !text.contains('@');
    if has_host && is_plain && has_no_user && text.len() <= URL_BYTES_MAX {
        return Some(text.to_owned());
    }
    value.fault("not the address of a webhook", "http://HOST/PATH or https://HOST/PATH, without a user");
    None
}

pub(crate) fn write_duration<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format_duration(*duration))
}

fn read_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parse_duration(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}
