//! A part of what a shard keeps, as a message about a move names it: by slots, by places of a list, by ranges, or by single keys.

use std::collections::BTreeSet;

use gilmok_config::hash::KeyHash;
use serde::{Deserialize, Serialize};

/// Slots of a rule by `slots`, unless it says otherwise.
const SLOTS: u64 = 16_384;

/// What moves together.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub(crate) enum Part {
    /// A directory lists these.
    Keys { keys: BTreeSet<String> },
    /// Remainders by `of`.
    Places { places: Vec<u64>, of: u64 },
    /// Lower bounds and ends; none where nothing bounds it.
    Ranges { ranges: Vec<(Option<Bound>, Option<Bound>)> },
    /// First and last ones.
    Slots { slots: Vec<(u64, u64)> },
}

/// A bound of a range.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Bound {
    Number(i64),
    Text(String),
}

impl Part {
    /// Whether a user is of it. Slots and places go by the hash that rules have where they name none.
    pub(crate) fn holds(&self, user: &str) -> bool {
        let remainder = |by: u64| KeyHash::Crc16.of(user.as_bytes()).and_then(|hash| hash.checked_rem(by));
        match self {
            Self::Keys { keys } => keys.contains(user),
            Self::Places { places, of } => remainder(*of).is_some_and(|place| places.contains(&place)),
            Self::Ranges { ranges } => ranges.iter().any(|(lower, end)| {
                lower.as_ref().is_none_or(|lower| lower.is_reached_by(user))
                    && end.as_ref().is_none_or(|end| !end.is_reached_by(user))
            }),
            Self::Slots { slots } => {
                let within = |slot| slots.iter().any(|(first, last)| (*first..=*last).contains(&slot));
                remainder(SLOTS).is_some_and(within)
            }
        }
    }
}

impl Bound {
    /// Whether a user is at it or above.
    fn is_reached_by(&self, user: &str) -> bool {
        match self {
            Self::Number(number) => user.parse::<i64>().is_ok_and(|user| user >= *number),
            Self::Text(text) => user >= text.as_str(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn part(said: &Value) -> Part {
        serde_json::from_value(said.clone()).unwrap()
    }

    #[test]
    fn each_rule_names_its_part_in_its_own_way() {
        // CRC-16/XMODEM of its check string.
        let (user, hash) = ("123456789", 0x31c3_u64);
        for (said, holds) in [
            (json!({"slots": [[0, 1], [hash % 16_384, hash % 16_384]]}), true),
            (json!({"slots": [[0, hash % 16_384 - 1], [hash % 16_384 + 1, 16_383]]}), false),
            (json!({"places": [0, hash % 8], "of": 8}), true),
            (json!({"places": [hash % 8], "of": 4_096}), false),
            (json!({"places": [0], "of": 0}), false),
            (json!({"ranges": [["0", "1"], ["123456789", "2"]]}), true),
            (json!({"ranges": [[null, "123456789"], ["1234567890", null]]}), false),
            (json!({"ranges": [[null, null]]}), true),
            (json!({"ranges": [[99, 123_456_790]]}), true),
            (json!({"ranges": [[null, 123_456_789]]}), false),
            (json!({"keys": ["1", "123456789"]}), true),
            (json!({"keys": ["1"]}), false),
        ] {
            assert_eq!(part(&said).holds(user), holds, "{said}");
            assert_eq!(json!(part(&said)), said, "it is told on as it was told");
        }
    }

    #[test]
    fn what_is_no_part_is_refused() {
        for said in [json!(null), json!({}), json!({"places": [1]}), json!({"slots": ["1"]})] {
            assert!(serde_json::from_value::<Part>(said.clone()).is_err(), "{said}");
        }
    }
}
