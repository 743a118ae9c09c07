//! What the proxies counted of a rollout's two versions, or of two variants of a flag, added up from numbers that only grow while a process lives.

use std::collections::BTreeMap;

use gilmok_config::name::Name;
use gilmok_config::name::ServiceName;
use gilmok_config::wire::{Ack, VariantCounts, VersionCounts};
use serde::{Deserialize, Serialize};

use super::analysis::Came;

/// Hearings in a row, one a second, after which a process that is not heard of is forgotten: as long as proxies are
/// remembered at all.
const ABSENT_MAX: u16 = 3_600;

/// What was counted of one version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    pub requests: u64,
    /// Tries at its endpoints.
    pub attempts: u64,
    /// Tries that met nobody.
    pub unreachable: u64,
    /// Subjects' first requests: in ten minutes of a split, in a day of a guarded flag.
    pub trials: u64,
    pub failures: u64,
    /// Trials by bucket of their latency.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub latency: BTreeMap<u16, u64>,
}

/// What was counted of both versions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Both {
    pub stable: Counted,
    pub candidate: Counted,
}

/// Where counting stands. The first word of a process is where its counting begins: what it counted before is no news.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// By node and start: what it had counted when it was last heard. Whoever is silent is remembered for a while: a control
    /// plane that has just started has heard of nobody, and what was counted meanwhile is news.
    heard: BTreeMap<String, Heard>,
    /// Since the current step began, without latencies.
    pub step: Both,
}

/// What one process had counted when it was last heard.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Heard {
    counted: Both,
    /// For how many hearings it has been silent.
    #[serde(default, skip_serializing_if = "is_zero")]
    absent: u16,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's form")]
fn is_zero(number: &u16) -> bool {
    *number == 0
}

impl Counted {
    fn of_version(counts: Option<&VersionCounts>) -> Self {
        let Some(counts) = counts else { return Self::default() };
        Self {
            requests: counts.requests,
            attempts: counts.attempts,
            unreachable: counts.unreachable,
            trials: counts.trials,
            failures: counts.failures,
            latency: counts.latency.iter().copied().collect(),
        }
    }

    /// Of a flag's variant: only its trials are counted.
    pub(crate) fn of_variant(counts: Option<&VariantCounts>) -> Self {
        let Some(counts) = counts else { return Self::default() };
        Self {
            trials: counts.trials,
            failures: counts.failures,
            latency: counts.latency.iter().copied().collect(),
            ..Self::default()
        }
    }

    /// What was counted since. A number that fell was begun anew.
    fn since(&self, before: &Self) -> Self {
        let more = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        let latency = self.latency.iter().map(|(bucket, count)| {
            let before = before.latency.get(bucket).copied().unwrap_or_default();
            (*bucket, more(*count, before))
        });
        Self {
            requests: more(self.requests, before.requests),
            attempts: more(self.attempts, before.attempts),
            unreachable: more(self.unreachable, before.unreachable),
            trials: more(self.trials, before.trials),
            failures: more(self.failures, before.failures),
            latency: latency.filter(|(_, count)| *count > 0).collect(),
        }
    }

    fn add(&mut self, other: &Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.attempts = self.attempts.saturating_add(other.attempts);
        self.unreachable = self.unreachable.saturating_add(other.unreachable);
        self.trials = self.trials.saturating_add(other.trials);
        self.failures = self.failures.saturating_add(other.failures);
        for (bucket, count) in &other.latency {
            let sum = self.latency.entry(*bucket).or_default();
            *sum = sum.saturating_add(*count);
        }
    }

    /// As the analysis takes it.
    #[must_use]
    pub fn came(&self) -> Came {
        Came {
            trials: self.trials,
            failures: self.failures,
            latency: self.latency.iter().map(|(bucket, count)| (*bucket, *count)).collect(),
        }
    }

    fn without_latency(&self) -> Self {
        Self { latency: BTreeMap::new(), ..self.clone() }
    }
}

impl Both {
    /// What a proxy says of a service's two versions.
    #[must_use]
    pub fn of_versions(ack: &Ack, service: &ServiceName, stable: &Name, candidate: &Name) -> Self {
        let counts = ack.counts.iter().find(|counts| counts.service == *service);
        let of = |version: &Name| {
            let mut versions = counts.iter().flat_map(|counts| &counts.versions);
            Counted::of_version(versions.find(|of| of.version == *version))
        };
        Self { stable: of(stable), candidate: of(candidate) }
    }
}

impl Tally {
    /// Takes what the proxies say now, each with what it counted since its process began; answers what is new.
    pub fn hear<'a>(&mut self, said: impl IntoIterator<Item = (&'a Ack, Both)>) -> Both {
        let mut news = Both::default();
        for heard in self.heard.values_mut() {
            heard.absent = heard.absent.saturating_add(1);
        }
        for (ack, now) in said {
            let key = format!("{} {}", ack.node, ack.instance);
            if let Some(Heard { counted: before, .. }) = self.heard.get(&key) {
                news.stable.add(&now.stable.since(&before.stable));
                news.candidate.add(&now.candidate.since(&before.candidate));
            }
            self.heard.insert(key, Heard { counted: now, absent: 0 });
        }
        self.heard.retain(|_, heard| heard.absent < ABSENT_MAX);
        self.step.stable.add(&news.stable.without_latency());
        self.step.candidate.add(&news.candidate.without_latency());
        news
    }

    /// Another step has begun.
    pub fn next_step(&mut self) {
        self.step = Both::default();
    }
}

#[cfg(test)]
mod tests {
    use gilmok_config::wire::{ServiceCounts, WIRE_LEVEL};

    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    fn ack(node: &str, instance: &str, trials: u64) -> Ack {
        let of = |version: &str| VersionCounts {
            version: name(version),
            trials,
            failures: trials / 2,
            latency: vec![(7, trials)],
            ..VersionCounts::default()
        };
        Ack {
            node: node.to_owned(),
            instance: instance.to_owned(),
            wire: WIRE_LEVEL,
            version: String::new(),
            applied: None,
            refused: None,
            state: Default::default(),
            counts: vec![ServiceCounts {
                service: ServiceName::parse("shop").unwrap(),
                versions: vec![of("v1"), of("v2")],
            }],
            apps: Vec::new(),
            fences: Vec::new(),
            flags: Vec::new(),
            guarded: Vec::new(),
            identity: None,
        }
    }

    fn hear(tally: &mut Tally, acks: &[Ack]) -> (u64, u64) {
        let shop = ServiceName::parse("shop").unwrap();
        let of = |ack| (ack, Both::of_versions(ack, &shop, &name("v1"), &name("v2")));
        let news = tally.hear(acks.iter().map(of));
        assert_eq!(news.candidate.latency.get(&7).copied().unwrap_or_default(), news.candidate.trials);
        (news.candidate.trials, news.candidate.failures)
    }

    #[test]
    fn only_what_is_new_is_counted_and_each_start_by_itself() {
        let mut tally = Tally::default();
        assert_eq!(hear(&mut tally, &[ack("a", "1", 1_000)]), (0, 0), "what was before is no news");
        assert_eq!(hear(&mut tally, &[ack("a", "1", 1_010), ack("b", "1", 50)]), (10, 5));
        assert_eq!(hear(&mut tally, &[ack("a", "1", 1_010), ack("b", "1", 60)]), (10, 5));
        assert_eq!(hear(&mut tally, &[ack("a", "2", 4), ack("b", "1", 60)]), (0, 0), "another start");
        assert_eq!(hear(&mut tally, &[ack("a", "2", 8), ack("b", "1", 60)]), (4, 2));
        assert_eq!(tally.step.candidate.trials, 24);
        let kept: Tally = serde_json::from_value(serde_json::to_value(&tally).unwrap()).unwrap();
        assert_eq!(kept, tally);
        tally.next_step();
        assert_eq!(tally.step, Both::default());
        assert_eq!(hear(&mut tally, &[ack("a", "2", 8)]), (0, 0));
    }

    #[test]
    fn what_a_silent_process_counts_meanwhile_is_news_when_it_speaks_again() {
        let mut tally = Tally::default();
        hear(&mut tally, &[ack("a", "1", 100)]);
        let mut next: Tally = serde_json::from_value(serde_json::to_value(&tally).unwrap()).unwrap();
        assert_eq!(hear(&mut next, &[]), (0, 0), "a control plane that has just started has heard of nobody");
        assert_eq!(hear(&mut next, &[ack("a", "1", 140)]), (40, 20));
        for _ in 0..ABSENT_MAX {
            hear(&mut next, &[]);
        }
        assert!(next.heard.is_empty(), "nobody is remembered for ever");
    }
}
