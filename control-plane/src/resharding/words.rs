//! What is said of a move of shards: whom it waits for, and why it stands still.

use std::time::Duration;

use gilmok_config::address::Address;
use gilmok_config::name::Name;
use gilmok_config::sharding::moving::HOLD_MAX;
use gilmok_config::unit::format_duration;
use gilmok_config::wire::InboundApp;

use super::fence::Waiting;
use super::state::Leg;

/// Most of those who are waited for that are named.
const NAMED_MAX: usize = 5;

/// Its workers do not all run a snapshot in which the batch is closed by this revision.
pub(super) const OPEN: &str = "has not closed it yet";
pub(super) const NOT_KEPT: &str = "would not find it closed after a restart";

pub(super) fn silent(silent: Duration) -> String {
    format!("not heard of for {}", format_duration(Duration::from_secs(silent.as_secs())))
}

pub(super) fn replaced(silent: Duration) -> String {
    let silent = format_duration(Duration::from_secs(silent.as_secs()));
    format!("an earlier process of it may still run, silent for {silent}")
}

pub(super) fn underway(requests: u64) -> String {
    match requests {
        1 => "1 request of it, or from before it was known, is under way".to_owned(),
        _ => format!("{requests} requests of it, or from before it was known, are under way"),
    }
}

pub(super) fn nobody(shard: &Name) -> Waiting {
    Waiting { who: format!("shard {shard}"), why: "has no endpoint, so nobody could close it".to_owned() }
}

pub(super) fn unknown(address: &Address) -> Waiting {
    Waiting { who: format!("the sidecar at {address}"), why: "no proxy says that it is there".to_owned() }
}

pub(super) fn other_shard(node: &str, app: &InboundApp, shard: &Name) -> Waiting {
    let address = app.address.as_deref().unwrap_or_default();
    let says = if app.shard.is_empty() { "no shard".to_owned() } else { format!("shard {}", app.shard) };
    let why = format!(
        "its app at {address} says {says}, so it cannot close one; set `shard = \"{shard}\"` in its settings"
    );
    Waiting { who: node.to_owned(), why }
}

/// Those who are waited for, in one sentence.
pub(super) fn named(waits: &[Waiting]) -> String {
    let mut named: Vec<String> =
        waits.iter().take(NAMED_MAX).map(|waiting| format!("{} ({})", waiting.who, waiting.why)).collect();
    let more = waits.len().saturating_sub(NAMED_MAX);
    named.extend((more > 0).then(|| format!("{more} more")));
    named.join(", ")
}

/// What is wrong with the primaries of a target, of one version or of all; nothing where there is one.
pub(super) fn primaries(target: &Name, version: Option<&Name>, primaries: usize) -> Option<String> {
    let of = version.map(|version| format!(" of version {version}")).unwrap_or_default();
    match primaries {
        0 => Some(format!("shard {target} has no primary{of}")),
        1 => None,
        many => {
            Some(format!("shard {target} has {many} primaries{of}, so nobody knows who is to be written to"))
        }
    }
}

/// Why a sidecar of the target would not serve what moves.
pub(super) fn unheard(target: &Name, address: &Address) -> String {
    format!("the sidecar of shard {target} at {address} has not said that it knows of the batch")
}

/// What a batch that is copied waits for.
pub(super) fn copying(leg: &Leg<'_>, copies: bool, is_asked: bool) -> String {
    let Leg { source, target, .. } = leg;
    if is_asked {
        return format!("the webhook `copy` has not agreed yet; shard {source} serves the batch");
    }
    let begun = if copies { "the webhook `copy` has begun" } else { "copy the batch" };
    format!("{begun} from shard {source} to shard {target}; whoever has done it says so with `resume`")
}

/// Why a batch was opened again.
pub(super) fn not_fenced(waits: &[Waiting]) -> String {
    format!("it was not fenced within {} s: {}", HOLD_MAX.as_secs(), named(waits))
}

/// Why a batch was opened again although it was fenced.
pub(super) fn not_agreed() -> String {
    format!("the webhook `fenced` did not agree within {} s", HOLD_MAX.as_secs())
}

/// Why a move does not go on although nobody is waited for.
pub(super) fn refused(why: &str) -> String {
    format!("the document would not be sound: {why}")
}
