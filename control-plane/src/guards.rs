//! What the variants of guarded flags come to, and whether one is bad enough for its flag to be turned off. Pure: what
//! proxies say is an argument.
//!
//! Each variant is compared with the one that is served when the flag is killed, by the analysis of rollouts.

use std::collections::BTreeMap;

use gilmok_config::flag::{Flag, FlagSet, Guard, Metric, Variant};
use gilmok_config::hash::content_hash;
use gilmok_config::problem::shown;
use gilmok_config::wire::{Ack, GuardedCounts};
use serde::Serialize;

use crate::rollout::analysis::{Analysis, Criteria, Evidence, Finding, Verdict};
use crate::rollout::tally::{Both, Counted, Tally};
use crate::rollout::words::why_worse;

/// Trials of a variant before it is taken for worse.
const TRIALS_MIN: u64 = 30;

/// The guarded flags that are on, by key.
#[derive(Clone, Debug, Default)]
pub struct Guards(BTreeMap<String, Watch>);

/// One guarded flag.
#[derive(Clone, Debug)]
struct Watch {
    /// Changes with everything that makes what was counted before say nothing of what comes.
    mark: String,
    /// The revision with which it began: what proxies that run an older one count says nothing of it.
    since: u64,
    guard: Guard,
    baseline: String,
    others: Vec<Other>,
    failed: Option<String>,
}

/// A variant that is compared with the baseline.
#[derive(Clone, Debug)]
struct Other {
    variant: String,
    tally: Tally,
    analysis: Analysis,
}

/// A flag whose guard says no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub flag: String,
    /// In figures, for people.
    pub why: String,
    /// Whether it is to be killed; else that is only told, once.
    pub kills: bool,
}

/// What is known of a guarded flag, for people.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Guarded {
    pub baseline: String,
    pub on_fail: &'static str,
    /// Why it has failed, where that is only told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    pub variants: Vec<Compared>,
}

/// A variant beside the baseline.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compared {
    pub variant: String,
    pub evidence: Evidence,
}

impl Guards {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes in which flags there are as of a revision. What is killed or off is not watched; what is on again begins anew.
    pub fn know(&mut self, set: Option<&FlagSet>, revision: u64) {
        let mut before = std::mem::take(&mut self.0);
        for flag in set.into_iter().flat_map(FlagSet::flags) {
            let Some(watch) = Watch::of(flag, revision) else { continue };
            let kept = before.remove(flag.key()).filter(|kept| kept.mark == watch.mark);
            self.0.insert(flag.key().to_owned(), kept.unwrap_or(watch));
        }
    }

    /// Takes in what the proxies say now, each with what it counted since its process began; answers which flags fail. One
    /// that is to be killed is answered until it is.
    pub fn hear(&mut self, acks: &[&Ack]) -> Vec<Fault> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let said: Vec<BTreeMap<&str, &GuardedCounts>> = acks
            .iter()
            .map(|ack| ack.guarded.iter().map(|counts| (counts.flag.as_str(), counts)).collect())
            .collect();
        let mut faults = Vec::new();
        for (key, watch) in &mut self.0 {
            let of = said.iter().map(|said| said.get(key.as_str()).copied());
            let said = acks.iter().copied().zip(of).filter(|(ack, _)| watch.is_run_by(ack));
            let said: Vec<(&Ack, Option<&GuardedCounts>)> = said.collect();
            watch.hear(&said);
            let is_known = watch.failed.is_some();
            let Some(why) = watch.why() else { continue };
            watch.failed = Some(why.clone());
            if watch.guard.kills || !is_known {
                faults.push(Fault { flag: key.clone(), why, kills: watch.guard.kills });
            }
        }
        faults
    }

    /// Knows nothing of a flag any more.
    pub fn forget(&mut self, key: &str) {
        self.0.remove(key);
    }

    /// What is known of a flag, where it is watched.
    #[must_use]
    pub fn of(&self, key: &str) -> Option<Guarded> {
        let watch = self.0.get(key)?;
        let criteria = watch.criteria();
        let compared = |other: &Other| Compared {
            variant: other.variant.clone(),
            evidence: other.analysis.evidence(&criteria),
        };
        Some(Guarded {
            baseline: watch.baseline.clone(),
            on_fail: if watch.guard.kills { "kill" } else { "tell" },
            failed: watch.failed.clone(),
            variants: watch.others.iter().map(compared).collect(),
        })
    }
}

impl Other {
    fn new(variant: &str) -> Self {
        Self { variant: variant.to_owned(), tally: Tally::default(), analysis: Analysis::default() }
    }
}

impl Watch {
    fn of(flag: &Flag, since: u64) -> Option<Self> {
        let mark = content_hash(flag.judged()?.as_bytes());
        let guard = flag.guard()?.clone();
        let baseline = flag.off_variant()?.name().to_owned();
        let others = flag.variants().iter().map(Variant::name).filter(|name| **name != *baseline);
        let others: Vec<_> = others.map(Other::new).collect();
        Some(Self { mark, since, guard, baseline, others, failed: None })
    }

    fn is_run_by(&self, ack: &Ack) -> bool {
        ack.applied.as_ref().is_some_and(|applied| applied.revision >= self.since)
    }

    fn hear(&mut self, said: &[(&Ack, Option<&GuardedCounts>)]) {
        for other in &mut self.others {
            let both = said.iter().map(|(ack, counts)| {
                let of = |name: &str| {
                    let variants = counts.iter().flat_map(|counts| &counts.variants);
                    Counted::of_variant(variants.into_iter().find(|variant| variant.variant == name))
                };
                (*ack, Both { stable: of(&self.baseline), candidate: of(&other.variant) })
            });
            let news = other.tally.hear(both);
            other.analysis.add(&news.stable.came(), &news.candidate.came());
        }
    }

    /// What a healthy flag is killed by one time in a hundred, whatever it has of variants.
    fn criteria(&self) -> Criteria {
        let default = Criteria::default();
        Criteria {
            alpha: default.alpha / self.others.len().max(1) as f64,
            latency: self.guard.metrics.contains(&Metric::Latency),
            ..default
        }
    }

    /// Why it fails, if it does.
    fn why(&self) -> Option<String> {
        let criteria = self.criteria();
        self.others.iter().find_map(|other| {
            if !matches!(other.analysis.verdict(&criteria), Verdict::Worse(_)) {
                return None;
            }
            let mut evidence = other.analysis.evidence(&criteria);
            if evidence.failures.candidate.trials < TRIALS_MIN {
                return None;
            }
            if !self.guard.metrics.contains(&Metric::Errors) {
                evidence.failures.finding = Finding::Unsure;
            }
            why_worse(&evidence, &shown(&other.variant), &shown(&self.baseline))
        })
    }
}

#[cfg(test)]
mod tests {
    use gilmok_config::wire::{Applied, VariantCounts, WIRE_LEVEL};
    use serde_json::json;

    use super::*;

    fn set(flag: &serde_json::Value) -> FlagSet {
        FlagSet::parse(json!({ "flags": { "a": flag } }).to_string().as_bytes()).unwrap()
    }

    fn flag(on_fail: &str, metrics: &[&str]) -> serde_json::Value {
        json!({ "state": "ENABLED", "variants": { "on": 1, "off": 0, "half": 2 }, "defaultVariant": "on",
            "x-gilmok": { "guard": { "metrics": metrics, "onFail": on_fail } } })
    }

    fn guards(on_fail: &str, metrics: &[&str]) -> Guards {
        let mut guards = Guards::default();
        guards.know(Some(&set(&flag(on_fail, metrics))), 1);
        guards
    }

    fn applied(revision: u64) -> Applied {
        Applied { store: "s".to_owned(), revision, hash: String::new(), last_known_good: false }
    }

    /// A proxy that has counted this of each variant: trials, failures, and a bucket of latency for all of them.
    fn ack(instance: &str, variants: &[(&str, u64, u64, u16)]) -> Ack {
        let variants = variants.iter().map(|(variant, trials, failures, bucket)| VariantCounts {
            variant: (*variant).to_owned(),
            trials: *trials,
            failures: *failures,
            latency: vec![(*bucket, *trials)],
        });
        let guarded = vec![GuardedCounts { flag: "a".to_owned(), variants: variants.collect() }];
        Ack {
            node: "web-1".to_owned(),
            instance: instance.to_owned(),
            wire: WIRE_LEVEL,
            version: String::new(),
            applied: Some(applied(1)),
            refused: None,
            state: Default::default(),
            counts: Vec::new(),
            apps: Vec::new(),
            fences: Vec::new(),
            flags: Vec::new(),
            guarded,
            identity: None,
        }
    }

    /// Which tick finds a fault, when a variant fails so often and the others never, with a hundred trials a tick of each.
    fn found_after(guards: &mut Guards, failing: &str, failures: u64, ticks: u64) -> Option<(u64, Fault)> {
        (0..ticks).find_map(|tick| {
            let of = |variant: &'static str| {
                let failures = if variant == failing { failures * tick } else { 0 };
                (variant, 100 * tick, failures, 40)
            };
            let ack = ack("1", &[of("on"), of("off"), of("half")]);
            Some((tick, guards.hear(&[&ack]).pop()?))
        })
    }

    #[test]
    fn a_variant_that_fails_is_found_within_seconds_and_named() {
        for (failures, within) in [(100, 3), (20, 4), (5, 10)] {
            let (tick, fault) = found_after(&mut guards("kill", &["errors"]), "half", failures, 100).unwrap();
            assert!(tick <= within, "{failures} %: {tick}");
            assert!(fault.kills && fault.flag == "a", "{fault:?}");
            let begin = format!("half fails in {failures}.00 % of {} subjects, off in 0.00 %", tick * 100);
            assert!(fault.why.starts_with(&begin), "{fault:?}");
        }
    }

    #[test]
    fn what_is_served_when_the_flag_is_killed_is_never_what_it_is_killed_for() {
        assert_eq!(found_after(&mut guards("kill", &["errors"]), "off", 50, 100), None);
    }

    #[test]
    fn a_flag_that_is_to_be_told_is_told_once_and_one_that_is_to_be_killed_until_it_is() {
        let bad = |tick: u64| ack("1", &[("on", 100 * tick, 100 * tick, 40), ("off", 100 * tick, 0, 40)]);
        for (on_fail, expected) in [("tell", 1), ("kill", 9)] {
            let mut guards = guards(on_fail, &["errors"]);
            let told: usize = (0..11).map(|tick| guards.hear(&[&bad(tick)]).len()).sum();
            assert_eq!(told, expected, "{on_fail}");
            assert!(guards.of("a").unwrap().failed.unwrap().starts_with("on fails in 100.00 %"));
        }
    }

    #[test]
    fn only_what_the_guard_names_is_looked_at() {
        let hear = |metrics: &[&str], failures: u64, bucket: u16| {
            let mut guards = guards("kill", metrics);
            (0..60).find_map(|tick: u64| {
                let n = 100 * tick;
                let ack = ack("1", &[("on", n, failures * tick, bucket), ("off", n, 0, 40)]);
                guards.hear(&[&ack]).pop()
            })
        };
        assert_eq!(hear(&["latency"], 50, 40), None);
        assert_eq!(hear(&["errors"], 0, 60), None);
        assert!(hear(&["latency"], 0, 60).unwrap().why.contains("slower than the p50 of off"));
        assert!(hear(&["errors", "latency"], 50, 40).unwrap().why.contains("on fails in 50.00 %"));
    }

    #[test]
    fn evidence_goes_on_over_a_ramp_and_begins_anew_with_another_variant_or_after_a_kill() {
        let mut guards = guards("kill", &["errors"]);
        found_after(&mut guards, "", 0, 5);
        let trials =
            |guards: &Guards| guards.of("a").map(|of| of.variants[0].evidence.failures.candidate.trials);
        assert_eq!(trials(&guards), Some(400));
        let mut ramped = flag("kill", &["errors"]);
        ramped["targeting"] = json!({ "fractional": [["on", 10], ["off", 90]] });
        guards.know(Some(&set(&ramped)), 1);
        assert_eq!(trials(&guards), Some(400));
        let mut killed = ramped.clone();
        killed["x-gilmok"]["kill"] = json!({ "active": true });
        guards.know(Some(&set(&killed)), 1);
        assert_eq!(trials(&guards), None);
        guards.know(Some(&set(&ramped)), 1);
        assert_eq!(trials(&guards), Some(0));
        guards.hear(&[&ack("1", &[("on", 500, 500, 40), ("half", 500, 500, 40)])]);
        assert_eq!(trials(&guards), Some(0), "what was counted before is no news");
        ramped["variants"]["on"] = json!(7);
        guards.know(Some(&set(&ramped)), 1);
        guards.know(None, 1);
        assert_eq!(trials(&guards), None);
    }

    #[test]
    fn a_proxy_that_was_cut_off_brings_no_old_evidence() {
        let mut guards = Guards::default();
        guards.know(Some(&set(&flag("kill", &["errors"]))), 5);
        // It served the bad variant all the while, and comes back to what was mended.
        let bad = |tick: u64| ack("1", &[("on", 100 * tick, 100 * tick, 40), ("off", 100 * tick, 0, 40)]);
        for tick in 0..20 {
            assert_eq!(guards.hear(&[&bad(tick)]), [], "it runs revision 1");
        }
        for _ in 0..3 {
            let back = Ack { applied: Some(applied(5)), ..bad(30) };
            assert_eq!(guards.hear(&[&back]), [], "what it counted until now is where it begins");
        }
        let still = (31..40).any(|tick| {
            let still = Ack { applied: Some(applied(6)), ..bad(tick) };
            !guards.hear(&[&still]).is_empty()
        });
        assert!(still, "what it counts from then on is evidence");
    }

    /// A generator of our own: the same ticks on every machine.
    struct Dice(u64);

    impl Dice {
        /// How many of so many trials have an event of this chance.
        fn events(&mut self, trials: u64, chance: f64) -> u64 {
            let mut one = || {
                self.0 =
                    self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (self.0 >> 11) as f64 / (1_u64 << 53) as f64
            };
            (0..trials).filter(|_| one() < chance).count() as u64
        }
    }

    /// Which second finds the flag bad, of so many, with these trials a second: of the baseline and of each of two others.
    fn simulated(dice: &mut Dice, seconds: u64, trials: (u64, u64), chances: (f64, f64)) -> Option<u64> {
        let mut guards = guards("kill", &["errors"]);
        let mut sums = [("off", 0, 0, 40), ("on", 0, 0, 40), ("half", 0, 0, 40)];
        (0..seconds).find(|_| {
            let found = !guards.hear(&[&ack("1", &sums)]).is_empty();
            for (place, (variant, all, failed, _)) in sums.iter_mut().enumerate() {
                let many = if place == 0 { trials.0 } else { trials.1 };
                let chance = if *variant == "on" { chances.1 } else { chances.0 };
                *all += many;
                *failed += dice.events(many, chance);
            }
            found
        })
    }

    #[test]
    fn healthy_flags_are_hardly_ever_killed() {
        let (mut dice, runs) = (Dice(7), 100);
        let cases = [((90, 10), 0.02), ((20, 20), 0.1), ((50, 2), 0.005)];
        let mut killed = 0;
        for (trials, chance) in cases {
            let is_killed = |_: &u32| simulated(&mut dice, 200, trials, (chance, chance)).is_some();
            killed += (0..runs).filter(is_killed).count();
        }
        assert!(killed <= cases.len(), "{killed} of {} runs", cases.len() * runs as usize);
    }

    #[test]
    fn bad_variants_are_found_in_time() {
        let mut dice = Dice(11);
        for (trials, chances, within) in
            [((90, 10), (0.01, 0.5), 8), ((90, 10), (0.01, 0.1), 45), ((20, 20), (0.001, 0.05), 40)]
        {
            let mut delays: Vec<u64> =
                (0..60).map(|_| simulated(&mut dice, 600, trials, chances).expect("it is found")).collect();
            delays.sort_unstable();
            assert!(delays[54] <= within, "{trials:?}, {chances:?}: {delays:?}");
        }
    }
}
