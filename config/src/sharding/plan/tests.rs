//! Tests of plans: the least moves, every rule on the way is sound, and at its end stands what was wanted.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::Sharding;
use super::{Batch, Plan, Wanted, plan, read, with};
use crate::name::Name;

fn name(at: usize) -> Name {
    Name::parse(&format!("s{at}")).unwrap()
}

/// The shards s0 and so on.
fn names(many: usize) -> Vec<Name> {
    (0..many).map(name).collect()
}

fn by_shards(shards: Vec<Name>) -> Wanted {
    Wanted { shards: Some(shards), ..Wanted::default() }
}

fn by_map(map: Value) -> Wanted {
    Wanted { map: Some(map), ..Wanted::default() }
}

/// A table by slots in which the number is the key, so that all can be asked for.
fn slots(owners: &[usize]) -> Value {
    let mut map: BTreeMap<String, String> = BTreeMap::new();
    for (slot, owner) in owners.iter().enumerate() {
        let own = map.entry(name(*owner).to_string()).or_default();
        *own += &format!("{slot},");
    }
    json!({ "key": "host", "strategy": "slots", "hash": "identity", "slots": owners.len(), "map": map })
}

/// Shards that have the same number of slots, or one more.
fn even(slots_many: usize, shards: usize) -> Vec<usize> {
    (0..slots_many).map(|slot| slot * shards / slots_many).collect()
}

/// What a control plane makes of a table once its batch has moved.
fn advanced(table: &Value, next: &Value) -> Value {
    let entries = next.as_object().unwrap().iter();
    let entries: Vec<(&str, Value)> = entries.map(|(key, value)| (key.as_str(), value.clone())).collect();
    with(table, &entries)
}

/// Goes through all batches of a plan and holds each against what it says; answers with the table at the end.
fn replayed(table: &Value, plan: &Plan, keys: &[String]) -> Value {
    let mut table = table.clone();
    for batch in &plan.batches {
        let rule = read(&with(&table, &[("next", batch.next.clone())]))
            .unwrap_or_else(|faults| panic!("{batch:?}: {faults}"));
        let mut moved = 0_usize;
        for key in keys {
            let Ok(spot) = rule.locate(key.as_bytes()) else { continue };
            let then = rule.next().unwrap().strategy.spot(key.as_bytes(), 0).unwrap();
            assert_eq!(spot.moves, spot.shard != then.shard);
            if spot.moves {
                let at = |shard: usize| &rule.shards()[shard];
                assert_eq!((at(spot.shard), at(then.shard)), (&batch.from, &batch.to), "{key} in {batch:?}");
                moved += 1;
            }
        }
        assert!(moved > 0, "a batch of nothing: {batch:?}");
        table = advanced(&table, &batch.next);
    }
    table
}

fn numbers(many: usize) -> Vec<String> {
    (0..many).map(|number| number.to_string()).collect()
}

fn owner(rule: &Sharding, key: usize) -> &Name {
    &rule.shards()[rule.locate(key.to_string().as_bytes()).unwrap().shard]
}

fn whats(plan: &Plan) -> Vec<String> {
    plan.batches.iter().map(|Batch { from, to, what, .. }| format!("{from} -> {to}: {what}")).collect()
}

/// Slots of each shard.
fn sizes(table: &Value, many: usize) -> BTreeMap<Name, usize> {
    let rule = read(table).unwrap();
    let mut sizes = BTreeMap::new();
    (0..many).for_each(|slot| *sizes.entry(owner(&rule, slot).clone()).or_default() += 1);
    sizes
}

fn spread(sizes: &BTreeMap<Name, usize>) -> usize {
    sizes.values().max().unwrap() - sizes.values().min().unwrap()
}

fn moved_slots(plan: &Plan) -> usize {
    let runs = plan.batches.iter().flat_map(|batch| batch.detail["slots"].as_array().unwrap());
    let length = |run: &Value| run[1].as_u64().unwrap() - run[0].as_u64().unwrap() + 1;
    usize::try_from(runs.map(length).sum::<u64>()).unwrap()
}

#[test]
fn doubling_splits_each_shard_in_two() {
    let table = json!({ "key": "host", "strategy": "slots",
        "map": { "s0": "0-4095", "s1": "4096-8191", "s2": "8192-12287", "s3": "12288-16383" } });
    let plan = plan(&table, &by_shards(names(8))).unwrap();
    assert_eq!(
        whats(&plan),
        [
            "s0 -> s4: slots 2048-4095",
            "s1 -> s5: slots 6144-8191",
            "s2 -> s6: slots 10240-12287",
            "s3 -> s7: slots 14336-16383",
        ]
    );
    assert_eq!((plan.moved_ppm, plan.least_ppm), (Some(500_000), Some(500_000)));
    assert_eq!(plan.batches[0].ppm, Some(125_000));
    assert_eq!(plan.batches[0].detail, json!({ "slots": [[2_048, 4_095]] }));
    let first = json!({ "s0": "0-2047", "s1": "4096-8191", "s2": "8192-12287", "s3": "12288-16383", "s4": "2048-4095" });
    assert_eq!(plan.batches[0].next, json!({ "map": first }));
    assert_eq!(
        plan.notes,
        ["each shard gives to one other shard only: a key stays where it is, or goes there"]
    );
    // And back the same way.
    let grown = advanced(&table, &plan.batches[3].next);
    let back = super::plan(&grown, &by_shards(names(4))).unwrap();
    assert_eq!(whats(&back)[3], "s7 -> s3: slots 14336-16383");
    assert_eq!(advanced(&grown, &back.batches[3].next)["map"], table["map"]);
}

#[test]
fn one_more_takes_its_share_from_all() {
    let table =
        json!({ "key": "host", "strategy": "slots", "slots": 16, "map": { "s0": "0-7", "s1": "8-15" } });
    let plan = plan(&table, &by_shards(names(3))).unwrap();
    assert_eq!(whats(&plan), ["s0 -> s2: slots 5-7", "s1 -> s2: slots 14-15"]);
    let small = Wanted { batch_slots: Some(2), ..by_shards(names(3)) };
    let small = super::plan(&table, &small).unwrap();
    assert_eq!(whats(&small), ["s0 -> s2: slots 5-6", "s0 -> s2: slot 7", "s1 -> s2: slots 14-15"]);
    let same = super::plan(&table, &by_shards(names(2))).unwrap();
    assert_eq!((same.batches.len(), same.moved_ppm), (0, Some(0)));
    assert_eq!(same.notes, ["nothing moves: every key is where it shall be"]);
}

#[test]
fn shards_that_stay_are_made_even() {
    let table =
        json!({ "key": "host", "strategy": "slots", "slots": 16, "map": { "s0": "0-12", "s1": "13-15" } });
    let plan = plan(&table, &by_shards(names(2))).unwrap();
    assert_eq!(whats(&plan), ["s0 -> s1: slots 8-12"]);
    assert_eq!(plan.moved_ppm, plan.least_ppm);
}

#[test]
fn a_map_is_moved_to_exactly() {
    let table = json!({ "key": "host", "strategy": "slots", "slots": 8, "shards": ["s0", "s1"], "map": { "s0": "0-3", "s1": "4-7" } });
    let map = json!({ "s0": "4-7", "s1": "1-3", "s9": "0" });
    let plan = plan(&table, &by_map(map.clone())).unwrap();
    assert_eq!(whats(&plan), ["s0 -> s9: slot 0", "s0 -> s1: slots 1-3", "s1 -> s0: slots 4-7"]);
    assert_eq!(plan.batches[2].next, json!({ "map": map, "shards": ["s0", "s1", "s9"] }));
    assert_eq!((plan.moved_ppm, plan.least_ppm), (Some(1_000_000), Some(125_000)));
    assert_eq!(plan.notes, ["100 % of the keys move; for shards of the same sizes 12.5 % would be enough"]);
}

#[test]
fn a_list_of_places_is_doubled_and_halved() {
    let list = |many: usize| json!({ "key": "host", "strategy": "modulo", "hash": "identity", "shards": names(many) });
    let doubling = plan(&list(4), &by_shards(names(8))).unwrap();
    assert_eq!(whats(&doubling)[1], "s1 -> s5: place 5 of 8");
    assert_eq!(
        doubling.batches[1].next,
        json!({ "shards": ["s0", "s1", "s2", "s3", "s4", "s5", "s2", "s3"] })
    );
    assert_eq!((doubling.moved_ppm, doubling.least_ppm), (Some(500_000), Some(500_000)));
    let end = replayed(&list(4), &doubling, &numbers(64));
    assert!(read(&end).unwrap().divides_as(&read(&list(8)).unwrap()));
    let halving = plan(&list(8), &by_shards(names(4))).unwrap();
    assert_eq!(whats(&halving)[3], "s7 -> s3: place 7 of 8");
    assert_eq!(replayed(&list(8), &halving, &numbers(64))["shards"], list(4)["shards"]);
    // One shard in the place of another.
    let other = plan(&list(2), &by_shards(vec![name(0), name(7)])).unwrap();
    assert_eq!(whats(&other), ["s1 -> s7: place 1 of 2"]);
    let refused = plan(&list(4), &by_shards(names(5))).unwrap_err().to_string();
    assert!(
        refused.starts_with(
            "shards: 4 -> 5 places: the remainder by 5 has another shard than that by 4 for 80 % of all keys"
        ),
        "{refused}"
    );
    assert!(refused.contains("4 -> 8 places move 50 %") && refused.contains("4 -> 2 places"), "{refused}");
}

#[test]
fn ranges_move_between_their_bounds() {
    let table = json!({ "key": "host", "strategy": "range", "map": { "s0": "", "s1": "m" } });
    let plan = plan(&table, &by_map(json!({ "s0": ["", "t"], "s1": "m", "s2": "d" }))).unwrap();
    assert_eq!(whats(&plan), ["s0 -> s2: keys from \"d\" to below \"m\"", "s1 -> s0: keys from \"t\""]);
    assert_eq!(plan.batches[0].next, json!({ "map": { "s0": "", "s1": "m", "s2": "d" } }));
    assert_eq!(plan.batches[0].detail, json!({ "ranges": [["d", "m"]] }));
    assert_eq!(plan.batches[1].detail, json!({ "ranges": [["t", null]] }));
    assert_eq!((plan.moved_ppm, plan.batches[0].ppm), (None, None));
    let numeric = json!({ "key": "host", "strategy": "range", "numeric": true, "map": { "s0": "" } });
    let plan = super::plan(&numeric, &by_map(json!({ "s0": "", "s1": ["1000", 5] }))).unwrap();
    assert_eq!(whats(&plan), ["s0 -> s1: keys from 5"]);
}

#[test]
fn keys_of_a_directory_move_one_by_one() {
    let table = json!({ "key": "host", "strategy": "directory", "default": "s0", "map": { "a": "s1", "b": "s1", "c": "s2" } });
    let map = json!({ "a": "s2", "c": "s2", "d": "s2", "e": "s0" });
    let wanted = Wanted { default: Some(name(0)), ..by_map(map.clone()) };
    let plan = plan(&table, &wanted).unwrap();
    assert_eq!(whats(&plan), ["s1 -> s2: 1 key", "s1 -> s0: 1 key", "s0 -> s2: 1 key"]);
    assert_eq!(plan.batches[1].detail, json!({ "keys": ["b"] }));
    assert_eq!(plan.batches[2].next, json!({ "map": map }));
    let strict = json!({ "key": "host", "strategy": "directory", "map": { "a": "s1", "b": "s1" } });
    let lost = super::plan(&strict, &by_map(json!({ "a": "s1" }))).unwrap_err().to_string();
    assert_eq!(lost, "map: nobody would have the key \"b\" (a shard for it)");
    let plan = super::plan(&strict, &by_map(json!({ "a": "s2", "b": "s1", "new": "s3" }))).unwrap();
    assert_eq!(whats(&plan), ["s1 -> s2: 1 key"]);
    assert_eq!(plan.notes, ["keys that nobody has yet: 1; they are listed with the first batch"]);
    let plan = super::plan(&strict, &by_map(json!({ "a": "s1", "b": "s1", "new": "s3" }))).unwrap();
    assert!(plan.batches.is_empty() && plan.notes[0].contains("by force"), "{:?}", plan.notes);
}

#[test]
fn what_hashes_move_is_told_and_nothing_is_moved() {
    for (strategy, before, after, least, most) in [
        ("jump", 4, 5, 195_000, 205_000),
        ("rendezvous", 3, 4, 240_000, 260_000),
        ("ring", 3, 4, 200_000, 350_000),
        ("maglev", 3, 4, 240_000, 400_000),
        ("jump", 8, 4, 490_000, 510_000),
    ] {
        let table = json!({ "key": "host", "strategy": strategy, "shards": names(before) });
        let plan = plan(&table, &by_shards(names(after))).unwrap();
        assert!(plan.batches.is_empty());
        let moved = plan.moved_ppm.unwrap();
        assert!((least..=most).contains(&moved), "{strategy} {before} {after}: {moved}");
        assert!(plan.notes[0].contains(strategy), "{:?}", plan.notes);
    }
    let jump = json!({ "key": "host", "strategy": "jump", "shards": names(4) });
    assert_eq!(plan(&jump, &by_shards(names(5))).unwrap().least_ppm, Some(200_000));
    assert_eq!(plan(&jump, &by_shards(names(3))).unwrap().least_ppm, Some(250_000));
}

#[test]
fn what_cannot_be_is_refused_where_it_was_said() {
    let slots = json!({ "key": "host", "strategy": "slots", "slots": 8, "map": { "s0": "0-7" } });
    let range = json!({ "key": "host", "strategy": "range", "map": { "s0": "" } });
    let directory = json!({ "key": "host", "strategy": "directory", "map": { "a": "s0" }, "default": "s0" });
    let jump = json!({ "key": "host", "strategy": "jump", "shards": ["s0"] });
    let moving = with(&slots, &[("next", json!({ "map": { "s1": "0-7" } }))]);
    let default = Wanted { default: Some(name(1)), ..by_map(json!({ "a": "s1" })) };
    for (table, wanted, told) in [
        (&slots, Wanted::default(), "nothing is wanted (`shards`)"),
        (
            &slots,
            Wanted { map: Some(json!({})), ..by_shards(names(2)) },
            "`shards` and `map` are two wishes (one of them)",
        ),
        (&slots, by_shards(Vec::new()), "shards: 0 shards (1 to 8)"),
        (&slots, by_shards(names(9)), "shards: 9 shards (1 to 8)"),
        (&slots, by_shards(vec![name(0), name(0)]), "shards[1]: the shard `s0` is listed twice (each once)"),
        (&slots, by_shards(vec![name(0), Name::default()]), "shards[1]: a shard without a name (a name)"),
        (
            &slots,
            by_map(json!({ "s0": "0-3", "s1": "5-7" })),
            "map: nobody has the slots 4 (every slot is one shard's)",
        ),
        (
            &slots,
            by_map(json!({ "s 0": "0-7" })),
            "map.\"s 0\": not a shard's name (at most 63 of a-z, A-Z, 0-9, '-', '_', '.')",
        ),
        (&slots, by_map(json!(5)), "map: expected a table, found 5"),
        (
            &slots,
            Wanted { batch_slots: Some(0), ..by_shards(names(2)) },
            "batch_slots: 0 is out of range (1 or more)",
        ),
        (
            &range,
            Wanted { batch_slots: Some(2), ..by_map(json!({ "s0": "" })) },
            "batch_slots: `range` has no slots",
        ),
        (
            &range,
            by_map(json!({ "s0": "a" })),
            "map: nobody has the keys below the first bound (the lowest bound is empty: \"\")",
        ),
        (
            &range,
            by_shards(names(2)),
            "shards: where the keys of a new shard come from is yours to say (the whole `map`)",
        ),
        (
            &directory,
            default,
            "default: keys that are not listed cannot be moved: nobody knows which there are (list those that shall move in `map`, and leave `default` as it is)",
        ),
        (&jump, by_map(json!({})), "map: `map` means nothing to the strategy `jump` (the list `shards`)"),
        (&jump, by_shards(vec![name(0), name(0)]), "shards[1]: the shard `s0` is listed twice (each once)"),
        (
            &moving,
            by_shards(names(2)),
            "next: a batch of keys is moving (a plan once it has moved or was given up)",
        ),
        (&json!({ "key": "host" }), by_shards(names(2)), "`strategy` is missing"),
    ] {
        assert_eq!(plan(table, &wanted).unwrap_err().to_string(), told, "{table} {wanted:?}");
    }
}

#[test]
fn a_plan_takes_up_a_bounded_amount() {
    // Every one of eight shards gives something to every other, and each time the whole map is told.
    let map = |owner: &dyn Fn(usize) -> usize| -> Value {
        (0..1_600).map(|at| (format!("{at:0300}"), json!(name(owner(at) % 8)))).collect()
    };
    let table = json!({ "key": "host", "strategy": "directory", "map": map(&|at| at) });
    let refused = plan(&table, &by_map(map(&|at| at / 8))).unwrap_err().to_string();
    assert_eq!(refused, "56 batches, whose rules are more than 16 MiB (less at once, or larger batches)");
    // The most shards that there may be, each of which is split.
    let full = slots(&even(1 << 14, 512));
    assert_eq!(plan(&full, &by_shards(names(1_024))).unwrap().batches.len(), 512);
}

/// Owners of 64 slots, in which every shard from 0 on may or may not have something.
fn owners() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(0_usize..6, 64)
}

proptest! {
    #[test]
    fn one_more_shard_moves_no_more_than_its_share(many in 1_usize..24, slots_many in 33_usize..256, shuffle in any::<u64>()) {
        let slots_many = slots_many.next_power_of_two();
        let mut owners = even(slots_many, many);
        fastrand::Rng::with_seed(shuffle).shuffle(&mut owners);
        let table = slots(&owners);
        let plan = plan(&table, &by_shards(names(many + 1))).unwrap();
        let moved = moved_slots(&plan);
        prop_assert!(moved <= slots_many.div_ceil(many + 1), "{} of {}", moved, slots_many);
        prop_assert_eq!(plan.moved_ppm, plan.least_ppm);
        prop_assert!(plan.batches.iter().all(|batch| batch.to == name(many)));
        let end = replayed(&table, &plan, &numbers(slots_many));
        prop_assert!(spread(&sizes(&end, slots_many)) <= 1);
        // One less again moves what the one had, and leaves the others alike.
        let back = super::plan(&end, &by_shards(names(many))).unwrap();
        prop_assert_eq!(moved_slots(&back), moved);
        let end = replayed(&end, &back, &numbers(slots_many));
        prop_assert!(spread(&sizes(&end, slots_many)) <= 1);
    }

    #[test]
    fn one_more_shard_takes_no_more_than_its_share_of_any_map(owners in owners()) {
        let table = slots(&owners);
        let held = sizes(&table, 64);
        let mut wanted: Vec<Name> = held.keys().cloned().collect();
        wanted.push(name(9));
        let plan = plan(&table, &by_shards(wanted.clone())).unwrap();
        prop_assert!(moved_slots(&plan) <= 64_usize.div_ceil(wanted.len()));
        prop_assert!(plan.batches.iter().all(|batch| batch.to == name(9)));
    }

    #[test]
    fn twice_as_many_split_each_in_two(owners in owners()) {
        let table = slots(&owners);
        let held = sizes(&table, 64);
        prop_assume!(held.values().all(|many| *many > 1));
        let old: Vec<Name> = held.keys().cloned().collect();
        let new: Vec<Name> = (0..old.len()).map(|at| name(at + 10)).collect();
        let plan = plan(&table, &by_shards(old.iter().chain(&new).cloned().collect())).unwrap();
        let pairs: Vec<_> = plan.batches.iter().map(|batch| (batch.from.clone(), batch.to.clone())).collect();
        prop_assert_eq!(pairs.len(), old.len());
        prop_assert!(old.into_iter().zip(new).all(|pair| pairs.contains(&pair)));
        let end = sizes(&replayed(&table, &plan, &numbers(64)), 64);
        for (from, to) in pairs {
            prop_assert_eq!((end[&from], end[&to]), (held[&from].div_ceil(2), held[&from] / 2));
        }
    }

    #[test]
    fn any_shards_may_follow_any_others(
        owners in owners(), wanted in proptest::collection::btree_set(0_usize..12, 1..8), is_listed in any::<bool>(),
    ) {
        let table = slots(&owners);
        let table = if is_listed { with(&table, &[("shards", json!(names(6)))]) } else { table };
        let wanted: Vec<Name> = wanted.into_iter().map(name).collect();
        let plan = plan(&table, &by_shards(wanted.clone())).unwrap();
        prop_assert_eq!(plan.moved_ppm, plan.least_ppm, "no more than the new sizes need");
        let end = replayed(&table, &plan, &numbers(64));
        if is_listed && !plan.batches.is_empty() {
            prop_assert_eq!(&end["shards"], &json!(wanted));
        }
        let held: Vec<Name> = sizes(&end, 64).into_keys().collect();
        let mut wanted = wanted;
        wanted.sort_unstable();
        prop_assert_eq!(held, wanted);
    }

    #[test]
    fn slots_come_to_any_map(
        before in owners(), after in owners(), batch_slots in 1_u32..64, is_listed in any::<bool>(),
    ) {
        let (table, goal) = (slots(&before), slots(&after));
        // Beside a map stand all shards, or none.
        let table = if is_listed { with(&table, &[("shards", json!(sizes(&table, 64).keys().collect::<Vec<_>>()))]) } else { table };
        let wanted = Wanted { batch_slots: Some(batch_slots), ..by_map(goal["map"].clone()) };
        let plan = plan(&table, &wanted).unwrap();
        let end = replayed(&table, &plan, &numbers(64));
        prop_assert!(read(&end).unwrap().divides_as(&read(&goal).unwrap()));
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        prop_assert_eq!(moved_slots(&plan), moved, "what is where it shall be stays there");
        for batch in plan.batches {
            let many = moved_slots(&Plan { batches: vec![batch.clone()], ..Plan::default() });
            prop_assert!((1..=batch_slots as usize).contains(&many));
            prop_assert_eq!(batch.ppm, Some(u32::try_from(many).unwrap() * 15_625));
        }
    }

    #[test]
    fn places_come_to_any_list_that_fits(before in proptest::collection::vec(0_usize..4, 1..5), times in 1_usize..4, seed in any::<u64>(), is_back in any::<bool>()) {
        let mut random = fastrand::Rng::with_seed(seed);
        let after: Vec<usize> = (0..before.len() * times).map(|_| random.usize(..6)).collect();
        let (before, after) = if is_back { (after, before) } else { (before, after) };
        let list = |places: &[usize]| -> Vec<Name> { places.iter().map(|at| name(*at)).collect() };
        let table = |places: &[usize]| json!({ "key": "host", "strategy": "modulo", "hash": "identity", "shards": list(places) });
        // A list that repeats itself is shorter than it is written, and may not fit any more.
        let Ok(plan) = plan(&table(&before), &by_shards(list(&after))) else { return Ok(()) };
        let end = replayed(&table(&before), &plan, &numbers(64));
        prop_assert!(read(&end).unwrap().divides_as(&read(&table(&after)).unwrap()));
    }

    #[test]
    fn ranges_come_to_any_map(before in ranges(), after in ranges(), is_numeric in any::<bool>()) {
        let table = |map: &BTreeMap<u8, usize>| {
            let mut said: BTreeMap<String, Vec<Value>> = BTreeMap::from([("s0".to_owned(), vec![json!("")])]);
            for (bound, owner) in map {
                let bound = if is_numeric { json!(bound) } else { json!(format!("{bound:03}")) };
                said.entry(format!("s{owner}")).or_default().push(bound);
            }
            json!({ "key": "host", "strategy": "range", "numeric": is_numeric, "map": said })
        };
        let (table, goal) = (table(&before), table(&after));
        let plan = plan(&table, &by_map(goal["map"].clone())).unwrap();
        let keys: Vec<String> = (0..=255).map(|key| if is_numeric { format!("{key}") } else { format!("{key:03}") }).collect();
        let end = replayed(&table, &plan, &keys);
        prop_assert!(read(&end).unwrap().divides_as(&read(&goal).unwrap()));
    }

    #[test]
    fn directories_come_to_any_map(before in listed(), after in listed(), has_default in any::<bool>()) {
        let table = |map: &BTreeMap<String, String>| {
            let table = json!({ "key": "host", "strategy": "directory", "map": map });
            if has_default { with(&table, &[("default", json!("s0"))]) } else { table }
        };
        let after = if has_default { after } else { before.keys().map(|key| (key.clone(), "s1".to_owned())).chain(after).collect() };
        let (table, goal) = (table(&before), table(&after));
        let plan = plan(&table, &by_map(goal["map"].clone())).unwrap();
        let keys: Vec<String> = ('a'..='h').map(String::from).collect();
        let end = replayed(&table, &plan, &keys);
        if !plan.batches.is_empty() {
            prop_assert_eq!(&end["map"], &goal["map"]);
        }
    }
}

/// Lower bounds and whose they are.
fn ranges() -> impl Strategy<Value = BTreeMap<u8, usize>> {
    proptest::collection::btree_map(any::<u8>(), 0_usize..4, 0..8)
}

/// Keys and whose they are.
fn listed() -> impl Strategy<Value = BTreeMap<String, String>> {
    proptest::collection::btree_map("[a-h]", "s[0-3]", 1..6)
}
