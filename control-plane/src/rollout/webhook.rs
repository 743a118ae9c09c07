//! Who is told what of a rollout, and what they are told: pure; sending is the conductor's.

use std::time::Duration;

use gilmok_config::grammar::Value;
use serde::{Deserialize, Serialize};

use super::plan::write_duration;

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
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Webhook {
    pub url: String,
    pub on: Vec<Occasion>,
    /// For one try.
    #[serde(serialize_with = "write_duration")]
    pub timeout: Duration,
    /// Beyond the first try.
    pub retries: u32,
}

/// When somebody is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Occasion {
    /// It ended well.
    After,
    /// Before its first step. Whoever does not agree with 2xx keeps it from beginning.
    Before,
    /// It waits at a gate.
    Gate,
    /// It was rolled back, aborted, or frozen.
    Rollback,
    /// Before each step. Whoever does not agree with 2xx keeps it from being taken.
    Step,
}

const OCCASIONS: [(&str, Occasion); 5] = [
    ("before", Occasion::Before),
    ("step", Occasion::Step),
    ("gate", Occasion::Gate),
    ("after", Occasion::After),
    ("rollback", Occasion::Rollback),
];

impl Occasion {
    /// Whether what comes next waits for an answer.
    #[must_use]
    pub fn is_asked(self) -> bool {
        matches!(self, Self::Before | Self::Step)
    }

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::After => "after",
            Self::Before => "before",
            Self::Gate => "gate",
            Self::Rollback => "rollback",
            Self::Step => "step",
        }
    }
}

pub(super) fn read_webhooks(value: &Value<'_>) -> Vec<Webhook> {
    let Some(items) = value.items() else { return Vec::new() };
    if items.len() > WEBHOOKS_MAX {
        value.fault(format!("{} webhooks", items.len()), format!("at most {WEBHOOKS_MAX}"));
        return Vec::new();
    }
    items.iter().filter_map(read_webhook).collect()
}

fn read_webhook(value: &Value<'_>) -> Option<Webhook> {
    let mut table = value.table()?;
    let url = table.required("url").and_then(|v| read_url(&v));
    let on = table.required("on").and_then(|v| v.list(|item| item.choice(&OCCASIONS)));
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
