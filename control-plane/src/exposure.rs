//! Which flags are in use: when proxies last said that they evaluated one, and to which variants. Pure: times are arguments.

use std::collections::BTreeMap;

use gilmok_config::flag::{Flag, FlagSet, Purpose};
use gilmok_config::wire::{FLAG_COUNTS_MAX, FlagCounts};
use serde::{Deserialize, Serialize};

/// How long ago proxies must have said anything of any flag for their silence about one to mean something, in milliseconds.
const HEARD_WITHIN_MS: u64 = 24 * 60 * 60 * 1_000;

/// What is counted apart: others are no reasons.
const REASONS: [&str; 6] = ["DEFAULT", "DISABLED", "ERROR", "SPLIT", "STATIC", "TARGETING_MATCH"];

/// What is known of the use of a set's flags. All times are in milliseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Exposure {
    /// When a proxy spoke of any flag last; 0 where none did.
    heard_ms: u64,
    /// By key; never more than the set has.
    flags: BTreeMap<String, FlagExposure>,
}

/// Of one flag.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct FlagExposure {
    /// Since when it is known here.
    since_ms: u64,
    /// By name, those that it has; the empty one is the default in the application's code.
    #[serde(default)]
    variants: BTreeMap<String, VariantExposure>,
}

/// Of one variant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VariantExposure {
    pub first_ms: u64,
    pub last_ms: u64,
    /// How often it was come to, by reason in OpenFeature's words.
    #[serde(default)]
    pub evaluations: BTreeMap<String, u64>,
}

/// Why a flag could go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "why")]
pub enum Stale {
    /// It is past the day by which it should be gone, in seconds since 1970.
    Expired { expires: u64 },
    /// Everybody has got the same for long.
    OneVariant { variant: String, since_ms: u64 },
    /// Nobody has asked for it for long.
    Unused { since_ms: u64 },
}

impl Exposure {
    /// Takes in which flags there are: those that are gone are forgotten, new ones are known from now on.
    pub fn know(&mut self, set: Option<&FlagSet>, now_ms: u64) {
        self.flags.retain(|key, _| set.is_some_and(|set| set.get(key).is_some()));
        for flag in set.into_iter().flat_map(FlagSet::flags) {
            if !self.flags.contains_key(flag.key()) {
                let new = FlagExposure { since_ms: now_ms, ..FlagExposure::default() };
                self.flags.insert(flag.key().to_owned(), new);
            }
        }
    }

    /// Takes in what a proxy says. What is no flag or variant of the set is left out.
    pub fn hear(&mut self, counts: &[FlagCounts], set: &FlagSet, now_ms: u64) {
        for counted in counts.iter().take(FLAG_COUNTS_MAX).filter(|counted| counted.count > 0) {
            let Some(flag) = set.get(&counted.flag) else { continue };
            if !counted.variant.is_empty() && flag.place_of(&counted.variant).is_none() {
                continue;
            }
            self.heard_ms = now_ms;
            let known = self
                .flags
                .entry(counted.flag.clone())
                .or_insert_with(|| FlagExposure { since_ms: now_ms, ..FlagExposure::default() });
            let first = || VariantExposure { first_ms: now_ms, ..VariantExposure::default() };
            let variant = known.variants.entry(counted.variant.clone()).or_insert_with(first);
            variant.last_ms = now_ms;
            if let Some(reason) = REASONS.iter().find(|reason| **reason == counted.reason) {
                let sum = variant.evaluations.entry((*reason).to_owned()).or_default();
                *sum = sum.saturating_add(counted.count);
            }
        }
    }

    /// When a flag was evaluated last, as far as is known.
    #[must_use]
    pub fn last_ms(&self, key: &str) -> Option<u64> {
        self.variants(key)?.values().map(|variant| variant.last_ms).max()
    }

    /// Which variants of a flag somebody got, and when.
    #[must_use]
    pub fn variants(&self, key: &str) -> Option<&BTreeMap<String, VariantExposure>> {
        self.flags.get(key).map(|known| &known.variants)
    }

    /// Why a flag could go, if it could: by what was observed for `after_ms`, or by its own word. Switches and permissions
    /// are meant to stay.
    #[must_use]
    pub fn stale(&self, flag: &Flag, now_ms: u64, after_ms: u64) -> Vec<Stale> {
        if matches!(flag.purpose(), Some(Purpose::KillSwitch | Purpose::Permission)) {
            return Vec::new();
        }
        let expired = flag.expires().filter(|expires| *expires <= now_ms / 1_000);
        let expired = expired.map(|expires| Stale::Expired { expires });
        expired.into_iter().chain(self.unneeded(flag.key(), now_ms, after_ms)).collect()
    }

    fn unneeded(&self, key: &str, now_ms: u64, after_ms: u64) -> Option<Stale> {
        let known = self.flags.get(key)?;
        let is_long = |since_ms: u64| now_ms.saturating_sub(since_ms) >= after_ms;
        let Some(last_ms) = self.last_ms(key) else {
            let hears = self.heard_ms > 0 && now_ms.saturating_sub(self.heard_ms) <= HEARD_WITHIN_MS;
            return (hears && is_long(known.since_ms)).then_some(Stale::Unused { since_ms: known.since_ms });
        };
        if is_long(last_ms) {
            let hears = now_ms.saturating_sub(self.heard_ms) <= HEARD_WITHIN_MS;
            return hears.then_some(Stale::Unused { since_ms: last_ms });
        }
        let mut lately = known.variants.iter().filter(|(_, variant)| !is_long(variant.last_ms));
        let (name, variant) = lately.next().filter(|_| lately.next().is_none())?;
        // Since when it has been the only one.
        let others = known.variants.iter().filter(|(other, _)| *other != name);
        let since_ms = others.map(|(_, other)| other.last_ms).max().unwrap_or_default().max(variant.first_ms);
        is_long(since_ms).then(|| Stale::OneVariant { variant: name.clone(), since_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = HEARD_WITHIN_MS;

    fn set(extension: &str) -> FlagSet {
        let flag = |more: &str| {
            format!(
                r#"{{"state": "ENABLED", "variants": {{"on": true, "off": false}}, "defaultVariant": "off"{more}}}"#
            )
        };
        let text = format!(
            r#"{{"flags": {{"a": {}, "b": {}}}}}"#,
            flag(&format!(r#", "x-gilmok": {extension}"#)),
            flag("")
        );
        FlagSet::parse(text.as_bytes()).unwrap()
    }

    fn counted(flag: &str, variant: &str) -> FlagCounts {
        FlagCounts {
            flag: flag.to_owned(),
            variant: variant.to_owned(),
            reason: "STATIC".to_owned(),
            count: 1,
        }
    }

    #[test]
    fn a_flag_that_nobody_asks_for_is_stale_once_that_is_known() {
        let (set, mut exposure) = (set("{}"), Exposure::default());
        let stale = |exposure: &Exposure, now| exposure.stale(set.get("a").unwrap(), now, 7 * DAY);
        exposure.know(Some(&set), 1);
        assert_eq!(stale(&exposure, 30 * DAY), [], "no proxy has said anything at all");
        exposure.hear(&[counted("b", "on")], &set, 30 * DAY);
        assert_eq!(stale(&exposure, 30 * DAY), [Stale::Unused { since_ms: 1 }]);
        exposure.hear(&[counted("a", "on")], &set, 31 * DAY);
        assert_eq!((stale(&exposure, 31 * DAY), exposure.last_ms("a")), (vec![], Some(31 * DAY)));
        assert_eq!(stale(&exposure, 40 * DAY), [], "proxies are silent about every flag");
        exposure.hear(&[counted("b", "on")], &set, 40 * DAY);
        assert_eq!(stale(&exposure, 40 * DAY), [Stale::Unused { since_ms: 31 * DAY }]);
    }

    #[test]
    fn a_flag_that_is_the_same_for_everybody_is_stale_after_a_while() {
        let (set, mut exposure) = (set("{}"), Exposure::default());
        let flag = set.get("a").unwrap();
        for day in 1..=20 {
            exposure.hear(&[counted("a", "on")], &set, day * DAY);
            if day <= 5 {
                exposure.hear(&[counted("a", "off")], &set, day * DAY);
            }
            let is_stale = !exposure.stale(flag, day * DAY, 7 * DAY).is_empty();
            assert_eq!(is_stale, day >= 12, "day {day}");
        }
        let expected = Stale::OneVariant { variant: "on".to_owned(), since_ms: 5 * DAY };
        assert_eq!(exposure.stale(flag, 20 * DAY, 7 * DAY), [expected]);
    }

    #[test]
    fn switches_stay_and_what_says_its_day_goes_by_it() {
        let exposure = Exposure::default();
        let expires = |kind: &str| format!(r#"{{"type": "{kind}", "expires": "1970-01-02"}}"#);
        for (kind, is_stale) in [("release", true), ("kill-switch", false), ("permission", false)] {
            let set = set(&expires(kind));
            let stale = exposure.stale(set.get("a").unwrap(), 2 * DAY, DAY);
            assert_eq!(!stale.is_empty(), is_stale, "{kind}: {stale:?}");
        }
    }

    #[test]
    fn what_is_no_flag_of_the_set_is_neither_heard_nor_kept() {
        let (set, mut exposure) = (set("{}"), Exposure::default());
        exposure.hear(&[counted("z", "on"), counted("a", "blue")], &set, DAY);
        assert_eq!(exposure, Exposure::default());
        let odd = FlagCounts { reason: "BECAUSE".to_owned(), ..counted("a", "on") };
        exposure.hear(&[counted("a", ""), counted("a", "on"), odd], &set, DAY);
        exposure.hear(&[FlagCounts { count: 4, ..counted("a", "on") }], &set, DAY);
        let variants = exposure.variants("a").unwrap();
        let evaluations = BTreeMap::from([("STATIC".to_owned(), 5)]);
        assert_eq!((variants.len(), &variants["on"].evaluations), (2, &evaluations));
        exposure.know(None, DAY);
        assert_eq!(exposure.last_ms("a"), None);
    }
}
