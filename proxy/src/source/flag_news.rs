//! What one control plane has not been told yet of flags that were evaluated.

use std::collections::HashMap;
use std::time::Duration;

use gilmok_config::wire::{FLAG_COUNTS_MAX, FlagCounts};
use tokio::time::Instant;

use crate::current::Current;

/// From one round to the next: in a round every count that has grown is told once, in as many acks as it takes.
const EVERY: Duration = Duration::from_secs(5);

/// What one control plane was told, by flag, variant and reason.
#[derive(Debug, Default)]
pub(super) struct FlagNews {
    told: HashMap<Box<str>, Told>,
    /// What the last ack had, until it is known to have arrived.
    underway: Vec<(Box<str>, u64)>,
    /// Where this round goes on: so many counts were looked at before.
    next: usize,
    /// Where it goes on once the last ack has arrived.
    then: usize,
    /// When the next round may begin.
    again: Option<Instant>,
    /// Counts up with the rounds: what was not met in one is gone.
    round: u64,
}

#[derive(Clone, Copy, Debug)]
struct Told {
    count: u64,
    round: u64,
}

impl FlagNews {
    /// What the next ack tells. It counts as told when [`FlagNews::arrived`] says so, and is told again if nobody does.
    pub(super) fn next(&mut self, current: &Current, now: Instant) -> Vec<FlagCounts> {
        self.underway.clear();
        self.then = self.next;
        let Some(set) = current.snapshot.flags() else { return Vec::new() };
        if self.next == 0 && self.again.is_some_and(|again| now < again) {
            return Vec::new();
        }
        let mut news = Vec::new();
        let (mut seen, mut key) = (0, String::new());
        let mut is_whole = true;
        current.flag_counts.each_of(set, &mut |flag, variant, reason, count| {
            seen += 1;
            if seen <= self.next || !is_whole {
                return;
            }
            if news.len() == FLAG_COUNTS_MAX {
                is_whole = false;
                self.then = seen - 1;
                return;
            }
            key.clear();
            // No reason has a line feed, so no two are alike.
            key.extend([reason, "\n", variant, "\n", flag]);
            let told = self.told.get_mut(key.as_str()).map(|told| {
                told.round = self.round;
                told.count
            });
            // A count that fell was begun anew.
            let new = told.map_or(count, |told| count.checked_sub(told).unwrap_or(count));
            if new > 0 {
                self.underway.push((key.as_str().into(), count));
                news.push(FlagCounts {
                    flag: flag.to_owned(),
                    variant: variant.to_owned(),
                    reason: reason.to_owned(),
                    count: new,
                });
            }
        });
        if is_whole {
            self.then = 0;
        }
        news
    }

    /// The control plane has taken the ack.
    pub(super) fn arrived(&mut self, now: Instant) {
        for (key, count) in self.underway.drain(..) {
            self.told.insert(key, Told { count, round: self.round });
        }
        if self.then == 0 && self.again.is_none_or(|again| now >= again) {
            let round = self.round;
            self.told.retain(|_, told| told.round == round);
            self.round += 1;
            self.again = Some(now + EVERY);
        }
        self.next = self.then;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use gilmok_config::document::Document;
    use gilmok_config::flag::{Finding, Reason};
    use gilmok_config::name::Name;
    use gilmok_config::snapshot::{Membership, Snapshot};
    use serde_json::json;

    use super::*;
    use crate::current::InForce;

    fn in_force(flags: usize) -> InForce {
        let in_force = InForce::new(1, Name::default(), Vec::new());
        put(&in_force, flags);
        in_force
    }

    fn put(in_force: &InForce, flags: usize) {
        let flag = json!({ "state": "ENABLED", "variants": { "on": true, "off": false } });
        let flags: serde_json::Map<_, _> = (0..flags).map(|at| (format!("f{at:05}"), flag.clone())).collect();
        let document = json!({ "flags": { "set": { "flags": flags } } });
        in_force.put(Snapshot::join(&Document::parse_json(&document).unwrap(), &Membership::new()), None);
    }

    fn evaluate(current: &Current, flag: usize, times: usize) {
        let finding = Finding { flag, variant: Some(1), reason: Some(Reason::Split) };
        (0..times).for_each(|_| current.flag_counts.note(0, finding));
    }

    fn told(news: &[FlagCounts]) -> Vec<(&str, u64)> {
        news.iter().map(|one| (one.flag.as_str(), one.count)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_grown_is_told_once_and_again_until_it_has_arrived() {
        let in_force = in_force(2);
        let current = in_force.load();
        let (mut news, start) = (FlagNews::default(), Instant::now());
        assert_eq!(news.next(&current, start), []);
        evaluate(&current, 0, 3);
        for _ in 0..2 {
            assert_eq!(told(&news.next(&current, start)), [("f00000", 3)]);
        }
        news.arrived(start);
        evaluate(&current, 0, 4);
        assert_eq!(news.next(&current, start), [], "not yet");
        news.arrived(start);
        evaluate(&current, 1, 1);
        let later = start + EVERY;
        assert_eq!(told(&news.next(&current, later)), [("f00000", 4), ("f00001", 1)]);
        news.arrived(later);
        assert_eq!(news.next(&current, later + EVERY), [], "nothing has grown");
        news.arrived(later + EVERY);
        put(&in_force, 1);
        evaluate(&in_force.load(), 0, 1);
        assert_eq!(told(&news.next(&in_force.load(), later + 2 * EVERY)), [("f00000", 1)]);
        news.arrived(later + 2 * EVERY);
        assert_eq!(news.told.len(), 1, "flags that are gone are forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn more_than_one_ack_holds_is_told_in_turns() {
        let many = FLAG_COUNTS_MAX * 2 + 7;
        let in_force = in_force(many);
        let current: Arc<Current> = in_force.load();
        (0..many).for_each(|flag| evaluate(&current, flag, 1));
        let (mut news, now) = (FlagNews::default(), Instant::now());
        let mut lengths = Vec::new();
        let mut flags = std::collections::BTreeSet::new();
        for _ in 0..4 {
            let next = news.next(&current, now);
            lengths.push(next.len());
            flags.extend(next.into_iter().map(|one| one.flag));
            news.arrived(now);
        }
        assert_eq!((lengths, flags.len()), (vec![FLAG_COUNTS_MAX, FLAG_COUNTS_MAX, 7, 0], many));
        assert_eq!(news.told.len(), many);
    }
}
