//! Changes of flags whose time was said before: what waits for its time, and what could not be done. Pure.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Most changes that wait, those that failed included.
pub const SCHEDULED_MAX: usize = 1_000;
/// Longest patch, in bytes of JSON.
pub const PATCH_BYTES_MAX: usize = 16 << 10;

/// Everything that waits, in the order in which it was said.
pub type Schedule = Vec<Scheduled>;

/// A change of a flag at a time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scheduled {
    /// The revision that said it.
    pub id: u64,
    /// The flag's key.
    pub flag: String,
    /// In milliseconds since 1970.
    pub at_ms: u64,
    /// A merge patch (RFC 7396).
    pub patch: Value,
    pub by: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// On which terms it was said: it is judged by them when its time comes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accept_warnings: bool,
    /// Why it could not be done when its time came; it stays until somebody takes it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// The change whose time came first, if any has come.
#[must_use]
pub fn due(schedule: &[Scheduled], now_ms: u64) -> Option<&Scheduled> {
    let waiting = schedule.iter().filter(|one| one.failed.is_none() && one.at_ms <= now_ms);
    waiting.min_by_key(|one| (one.at_ms, one.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_comes_in_the_order_of_its_time() {
        let at = |id, at_ms, failed: Option<&str>| Scheduled {
            id,
            flag: "a".to_owned(),
            at_ms,
            patch: Value::Null,
            by: String::new(),
            why: String::new(),
            force: false,
            accept_warnings: false,
            failed: failed.map(str::to_owned),
        };
        let schedule = [at(1, 30, None), at(2, 20, None), at(3, 20, None), at(4, 10, Some("gone"))];
        assert_eq!(due(&schedule, 19), None);
        assert_eq!(due(&schedule, 30).map(|one| one.id), Some(2));
        assert_eq!(due(&schedule[..1], 30).map(|one| one.id), Some(1));
    }
}
