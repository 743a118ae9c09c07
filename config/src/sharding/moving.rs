//! A batch of keys that is moved to another shard: which keys are of it, and what is done meanwhile with a request for one of
//! them, by its caller and by the owner of the shard.

use std::time::Duration;

use super::strategy::{By, Spot, Strategy};
use super::{Sharded, Sharding};

/// How long a request waits for a newer snapshot, at its caller and at its owner.
pub const HOLD_MAX: Duration = Duration::from_secs(2);
/// Most requests that wait in one proxy, over all of its workers.
pub const HELD_MAX: usize = 1_000;

/// `[services.s.sharding.next]`: the rule that follows once the batch has moved. A key is of the batch if its shard by this
/// rule is not its shard by the rule itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Next {
    pub(super) strategy: Strategy,
    pub(super) closed: Option<u64>,
    pub(super) map_hash: u64,
}

impl Next {
    /// The revision that closed the batch for unsafe methods; `None` while it is open.
    #[must_use]
    pub fn closed(&self) -> Option<u64> {
        self.closed
    }

    /// What [`Sharding::map_hash`] will be.
    #[must_use]
    pub fn map_hash(&self) -> u64 {
        self.map_hash
    }

    /// The spot with whether its key leaves it, which what the rule that follows places nowhere does. Not inlined: looking up
    /// while nothing moves stays short.
    #[inline(never)]
    pub(super) fn marked(&self, key: &[u8], spot: Spot) -> Spot {
        let moves = match (&self.strategy, spot.slot) {
            // A slot stays the key's: no need to hash it again.
            (Strategy::Hashed(_, By::Slots(slots)), Some(slot)) => slots.shard(slot) != Some(spot.shard),
            // No strategy that has a `next` asks how many shards there are.
            (strategy, _) => strategy.spot(key, 0).map(|next| next.shard) != Ok(spot.shard),
        };
        Spot { moves, ..spot }
    }
}

/// What the owner of a shard does with a request that reached it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtOwner {
    /// The key is this other shard's, by its place in [`Sharding::shards`]: answered with 421.
    Elsewhere(usize),
    Serve,
    /// It waits for a newer snapshot, at most [`HOLD_MAX`], and is then decided anew.
    Wait,
}

impl Sharding {
    /// The rule that follows, while a batch moves.
    #[must_use]
    pub fn next(&self) -> Option<&Next> {
        self.next.as_deref()
    }

    /// Whether the batch is closed for unsafe methods.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.next().is_some_and(|next| next.closed.is_some())
    }

    /// Whether the caller holds a request until a newer snapshot is there.
    #[must_use]
    pub fn is_held(&self, sharded: Sharded, is_safe: bool) -> bool {
        !is_safe && sharded.moves() && self.is_closed()
    }

    /// What an owner does with a request that reached it. `own_shard` is the shard of the app, empty where it has none;
    /// `caller_epoch` is what a trusted caller said of its map. Keys of several shards are none of these: whoever has them all on
    /// one may have lost one of them since, so that fault is one at an owner as well.
    #[must_use]
    pub fn at_owner(
        &self,
        own_shard: &str,
        sharded: Sharded,
        is_safe: bool,
        caller_epoch: Option<u64>,
    ) -> AtOwner {
        let Some(shard) = sharded.shard().filter(|_| !own_shard.is_empty()) else { return AtOwner::Serve };
        if self.shards[shard].as_str() == own_shard {
            return if self.is_held(sharded, is_safe) { AtOwner::Wait } else { AtOwner::Serve };
        }
        // A caller that knows a later map may be right.
        if caller_epoch.is_some_and(|epoch| epoch > self.epoch) {
            AtOwner::Wait
        } else {
            AtOwner::Elsewhere(shard)
        }
    }

    /// Whether the other rule stands at the same point of a move: the same epoch, and the same batch as open or as closed.
    /// [`Sharding::divides_as`] does not see that.
    #[must_use]
    pub fn stands_as(&self, other: &Self) -> bool {
        let batch = |rule: &Self| rule.next().map(|next| (next.map_hash, next.closed));
        self.epoch == other.epoch && batch(self) == batch(other)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{read, sound, sound_json};
    use super::{AtOwner, Sharded, Sharding};

    const QUARTERS: &str = "strategy = \"slots\"\nslots = 8\nhash = \"identity\"\nmap = { \"0\" = \"0-3\", \"1\" = \"4-7\" }\nepoch = 7\n";

    /// A rule of two shards of four slots each, of which the first gives the slots 2 and 3 to a third one.
    fn moving(closed: &str) -> Sharding {
        sound(&format!(
            "{QUARTERS}[next]\n{closed}\nmap = {{ \"0\" = \"0-1\", \"1\" = \"4-7\", \"2\" = \"2-3\" }}"
        ))
    }

    fn at(sharding: &Sharding, key: &str) -> Sharded {
        Sharded::At(sharding.locate(key.as_bytes()).unwrap())
    }

    #[test]
    fn a_key_is_of_the_batch_if_the_next_rule_has_it_elsewhere() {
        let rule = moving("");
        let names: Vec<_> = rule.shards().iter().map(|shard| shard.as_str()).collect();
        assert_eq!(names, ["0", "1", "2"], "the shards of both rules");
        assert_eq!((rule.own_shards(), sound(QUARTERS).own_shards()), (2, 2));
        for (key, shard, moves) in
            [("0", 0, false), ("1", 0, false), ("2", 0, true), ("11", 0, true), ("4", 1, false)]
        {
            let spot = rule.locate(key.as_bytes()).unwrap();
            assert_eq!((spot.shard, spot.moves), (shard, moves), "{key}");
        }
        assert!(!sound(QUARTERS).locate(b"2").unwrap().moves);
        let told = rule.told();
        assert_eq!(
            (&told["epoch"], &told["next"]["closed"]),
            (&serde_json::json!(7), &serde_json::json!(null))
        );
        assert_eq!(
            (&told["shards"][2]["holds"], &told["shards"][2]["holds_next"]),
            (&"".into(), &"2-3".into())
        );
        assert_eq!(rule.told_of(at(&rule, "2"))["moving"], serde_json::json!(true));
    }

    #[test]
    fn a_caller_holds_what_is_unsafe_and_of_a_closed_batch() {
        let (open, closed) = (moving(""), moving("closed = 41"));
        assert_eq!((open.next().unwrap().closed(), closed.next().unwrap().closed()), (None, Some(41)));
        for (rule, key, is_safe, held) in [
            (&open, "2", false, false),
            (&closed, "2", false, true),
            (&closed, "2", true, false),
            (&closed, "1", false, false),
            (&closed, "4", false, false),
        ] {
            assert_eq!(rule.is_held(at(rule, key), is_safe), held, "{key} {is_safe}");
        }
        assert!(!closed.is_held(Sharded::Anywhere(crate::sharding::Keyless::Missing), false));
    }

    #[test]
    fn an_owner_serves_waits_or_sends_on() {
        use AtOwner::{Elsewhere, Serve, Wait};
        let (open, closed) = (moving(""), moving("closed = 41"));
        for (rule, own, key, is_safe, caller, expected) in [
            (&open, "0", "2", false, None, Serve),
            (&closed, "0", "2", false, None, Wait),
            (&closed, "0", "2", false, Some(6), Wait),
            (&closed, "0", "2", true, None, Serve),
            (&closed, "0", "1", false, None, Serve),
            // The target has not got it yet, whoever believes so.
            (&closed, "2", "2", false, None, Elsewhere(0)),
            (&closed, "2", "2", true, Some(7), Elsewhere(0)),
            (&closed, "2", "2", true, Some(8), Wait),
            (&closed, "1", "0", false, Some(8), Wait),
            (&closed, "1", "0", false, Some(7), Elsewhere(0)),
            (&closed, "", "2", false, Some(8), Serve),
            (&open, "9", "4", false, None, Elsewhere(1)),
        ] {
            let found = rule.at_owner(own, at(rule, key), is_safe, caller);
            assert_eq!(found, expected, "{own} {key} {is_safe} {caller:?}");
        }
        let anywhere = Sharded::Anywhere(crate::sharding::Keyless::Missing);
        assert_eq!(closed.at_owner("0", anywhere, false, Some(8)), Serve);
    }

    #[test]
    fn rules_at_other_points_of_a_move_divide_alike() {
        let (open, closed) = (moving(""), moving("closed = 41"));
        let other =
            sound(&format!("{QUARTERS}[next]\nmap = {{ \"0\" = \"0-2\", \"1\" = \"4-7\", \"2\" = \"3\" }}"));
        let later = sound(&QUARTERS.replace("epoch = 7", "epoch = 8"));
        for rule in [&closed, &other, &later, &sound(QUARTERS)] {
            assert!(open.divides_as(rule));
            assert!(!open.stands_as(rule));
        }
        assert!(open.stands_as(&moving("")));
        assert_eq!(open.map_tag().to_string(), format!("7-{:016x}", open.map_hash()));
        let then = sound(
            "strategy = \"slots\"\nslots = 8\nhash = \"identity\"\nmap = { \"0\" = \"0-1\", \"1\" = \"4-7\", \"2\" = \"2-3\" }",
        );
        assert_eq!(open.next().unwrap().map_hash(), then.map_hash());
    }

    #[test]
    fn what_next_does_not_name_is_as_above() {
        let rule = sound(
            "strategy = \"directory\"\nmap = { a = \"0\", b = \"0\" }\ndefault = \"1\"\n[next]\nmap = { a = \"2\" }\n",
        );
        let moves = |key: &str| rule.locate(key.as_bytes()).unwrap().moves;
        assert_eq!([moves("a"), moves("b"), moves("c")], [true, true, false]);
        let rule = sound(
            "strategy = \"modulo\"\nhash = \"identity\"\nshards = [\"a\", \"b\"]\nnext = { shards = [\"a\", \"b\", \"a\", \"c\"] }",
        );
        let moves = |key: &str| rule.locate(key.as_bytes()).unwrap().moves;
        assert_eq!(["0", "1", "2", "3", "7"].map(moves), [false, false, false, true, true]);
        let listed = "shards = [\"0\"]\nstrategy = \"slots\"\nslots = 2\nmap = { \"0\" = \"0-1\" }\n[next]\nmap = { \"0\" = \"0\", \"1\" = \"1\" }\n";
        assert!(sound(&format!("{listed}shards = [\"0\", \"1\"]")).locate(b"a").is_ok());
        let told = read(&format!("key = \"host\"\n{listed}")).unwrap_err();
        assert!(told.contains("next.map.1: the shard `1` is not one of `shards`"), "{told}");
    }

    /// A rule by slots whose numbers are the keys, given by the owner of each slot.
    fn rule(epoch: u64, owners: &[usize], next: Option<(&[usize], Option<u64>)>) -> Sharding {
        let map = |owners: &[usize]| {
            let mut map: std::collections::BTreeMap<String, String> = std::collections::BTreeMap::new();
            for (slot, owner) in owners.iter().enumerate() {
                *map.entry(format!("s{owner}")).or_default() += &format!("{slot},");
            }
            serde_json::json!(map)
        };
        let mut table = serde_json::json!({
            "key": "host", "strategy": "slots", "hash": "identity", "slots": owners.len(), "map": map(owners), "epoch": epoch,
        });
        if let Some((owners, closed)) = next {
            table["next"] = serde_json::json!({ "map": map(owners) });
            if let Some(closed) = closed {
                table["next"]["closed"] = closed.into();
            }
        }
        sound_json(&table)
    }

    fn owners() -> impl Strategy<Value = Vec<usize>> {
        proptest::collection::vec(0_usize..5, 16)
    }

    proptest! {
        #[test]
        fn one_owner_serves_a_key_and_all_others_name_it(
            before in owners(), after in owners(), closed in proptest::option::of(1_u64..99), is_safe in any::<bool>(),
            epoch in 0_u64..9, caller in proptest::option::of(0_u64..9),
        ) {
            let sharding = rule(epoch, &before, Some((&after, closed)));
            let is_behind = caller.is_some_and(|caller| caller > epoch);
            for (slot, owner) in before.iter().enumerate() {
                let sharded = at(&sharding, &slot.to_string());
                let is_shut = closed.is_some() && !is_safe && *owner != after[slot];
                prop_assert_eq!(sharding.is_held(sharded, is_safe), is_shut);
                for own in 0..6 {
                    let found = sharding.at_owner(&format!("s{own}"), sharded, is_safe, caller);
                    let expected = match (own == *owner, is_shut, is_behind) {
                        (true, false, _) => AtOwner::Serve,
                        (true, true, _) | (false, _, true) => AtOwner::Wait,
                        (false, _, false) => AtOwner::Elsewhere(sharding.place_of(&format!("s{owner}")).unwrap()),
                    };
                    prop_assert_eq!(found, expected);
                }
            }
        }

        #[test]
        fn from_the_fence_on_no_two_owners_serve_what_is_unsafe(
            before in owners(), after in owners(), epoch in 0_u64..9, caller in proptest::option::of(0_u64..11),
        ) {
            let closed = rule(epoch, &before, Some((&after, Some(41))));
            let moved = rule(epoch + 1, &after, None);
            prop_assert_eq!(closed.next().unwrap().map_hash(), moved.map_hash());
            // The source has taken the fence; all others may know of any of the three.
            let open = rule(epoch, &before, Some((&after, None)));
            for slot in 0..before.len() {
                let key = slot.to_string();
                let serves = |rule: &Sharding, own: usize| {
                    rule.at_owner(&format!("s{own}"), at(rule, &key), false, caller) == AtOwner::Serve
                };
                let (source, target) = (before[slot], after[slot]);
                for at_source in [&closed, &moved] {
                    for others in [&open, &closed, &moved] {
                        let serving = (0..6).filter(|own| serves(if *own == source { at_source } else { others }, *own));
                        let serving: Vec<usize> = serving.collect();
                        prop_assert!(serving.len() <= 1, "{serving:?} serve {slot}");
                        prop_assert!(source == target || !serving.contains(&source));
                    }
                }
            }
        }
    }
}
