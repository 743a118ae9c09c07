//! Tests of balancing by hash: what a second implementation computes is what we compute, shares are kept, and little moves.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const KINDS: [Kind; 2] = [Kind::Maglev, Kind::Ring];
const SUBJECTS: u32 = 20_000;

fn address(at: usize) -> String {
    format!("10.0.{}.{}:80", at / 256, at % 256)
}

fn table(kind: Kind, weights: &[u32]) -> Table {
    let member = |(at, weight): (usize, &u32)| (address(at), *weight);
    Table::of(kind, Members::of(weights.iter().enumerate().map(member)))
}

fn hash_of(subject: u32) -> u64 {
    subject_hash(format!("user-{subject}").as_bytes())
}

/// The address of a member; members are in the order of their bytes.
fn address_of(table: &Table, owner: u16) -> &str {
    &table.members().0[usize::from(owner)].0
}

/// The first one in a subject's order that may be chosen.
fn chosen(table: &Table, hash: u64, may: impl Fn(&str) -> bool) -> String {
    let mut order = table.order(hash).map(|owner| address_of(table, owner));
    order.find(|address| may(address)).expect("somebody may be chosen").to_owned()
}

/// How many times its fair share each address has.
fn shares(table: &Table, may: impl Fn(&str) -> bool + Copy) -> BTreeMap<String, f64> {
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for subject in 0..SUBJECTS {
        *counts.entry(chosen(table, hash_of(subject), may)).or_default() += 1;
    }
    let members = table.members().0.iter().filter(|(address, _)| may(address));
    let weights: f64 = members.clone().map(|(_, weight)| f64::from(*weight)).sum();
    let fair = |weight: u32| f64::from(SUBJECTS) * f64::from(weight) / weights;
    members
        .map(|(address, weight)| {
            let count = counts.get(&**address).copied().unwrap_or_default();
            (address.to_string(), f64::from(count) / fair(*weight))
        })
        .collect()
}

fn lines(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(' ').collect())
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    if hex == "-" { Vec::new() } else { (0..hex.len()).step_by(2).map(digits).collect() }
}

#[test]
fn subjects_go_where_a_second_implementation_sends_them() {
    for line in lines(include_str!("../../tests/golden/balancing/subjects.txt")) {
        let subject = bytes(line.get(1).filter(|hex| !hex.is_empty()).unwrap_or(&"-"));
        assert_eq!(subject_hash(&subject).to_string(), line[0], "{line:?}");
    }
    let mut sets: BTreeMap<&str, Vec<(String, u32)>> = BTreeMap::new();
    for line in lines(include_str!("../../tests/golden/balancing/members.txt")) {
        sets.entry(line[0]).or_default().push((line[2].to_owned(), line[1].parse().unwrap()));
    }
    let mut tables = Vec::new();
    for (name, members) in &sets {
        // In whichever order they are told.
        let members = || Members::of(members.iter().rev().cloned());
        tables.push(("ring", *name, Table::of(Kind::Ring, members())));
        tables.push(("maglev", *name, Table::of(Kind::Maglev, members())));
        tables.push(("maglev_of_shard", *name, Table::of_shard(Kind::Maglev, members())));
    }
    let mut seen = 0;
    for line in lines(include_str!("../../tests/golden/balancing/orders.txt")) {
        let (_, _, table) =
            tables.iter().find(|(word, name, _)| (*word, *name) == (line[0], line[1])).unwrap();
        let mut order: Vec<&str> = Vec::new();
        for owner in table.order(subject_hash(&bytes(line[2]))) {
            let address = address_of(table, owner);
            if !order.contains(&address) {
                order.push(address);
            }
            if order.len() == line.len() - 3 {
                break;
            }
        }
        assert_eq!(order, line[3..], "{line:?}");
        seen += 1;
    }
    assert!(seen > 900, "{seen}");
}

#[test]
fn an_address_is_one_member_whoever_names_it_how_often() {
    let members = [("b:1", 2), ("a:1", 1), ("b:1", 5), ("c:1", 0)];
    let members = Members::of(members.map(|(address, weight)| (address.to_owned(), weight)));
    assert_eq!(members.0.to_vec(), [("a:1".into(), 1), ("b:1".into(), 5)]);
    assert_eq!(["a:1", "b:1", "c:1"].map(|address| members.owner(address)), [Some(0), Some(1), None]);
}

#[test]
fn shares_are_even() {
    for many in [2_usize, 3, 10, 50] {
        for kind in KINDS {
            let shares = shares(&table(kind, &vec![1; many]), |_| true);
            let most = shares.values().copied().fold(0.0, f64::max);
            // By chance alone the fullest of 50 has 1.12 times its share of so many subjects.
            let limit = if kind == Kind::Ring { 1.3 } else { 1.15 };
            assert!(shares.len() == many && most < limit, "{kind:?} {many}: {most}");
        }
    }
}

#[test]
fn shares_are_as_weights_are() {
    for kind in KINDS {
        for (address, share) in shares(&table(kind, &[100, 50, 25, 200]), |_| true) {
            assert!((0.7..1.3).contains(&share), "{kind:?} {address}: {share}");
        }
        // Whoever is very light has something all the same, on a ring one place of 161.
        let light = shares(&table(kind, &[1_000, 1]), |_| true)[&address(1)];
        let limit = if kind == Kind::Ring { 20.0 } else { 2.0 };
        assert!(light > 0.0 && light < limit, "{kind:?}: {light}");
    }
}

#[test]
fn shares_of_some_are_as_even_as_those_of_all() {
    let third =
        |address: &str| address.ends_with("0:80") || address.ends_with("5:80") || address.ends_with("7:80");
    for kind in KINDS {
        let shares = shares(&table(kind, &[1; 30]), third);
        let most = shares.values().copied().fold(0.0, f64::max);
        let limit = if kind == Kind::Ring { 1.3 } else { 1.1 };
        assert!(shares.len() == 9 && most < limit, "{kind:?}: {most}");
    }
}

#[test]
fn when_one_goes_only_its_own_subjects_move_and_come_back() {
    for kind in KINDS {
        let all = table(kind, &[1; 10]);
        let fewer = Table::of(kind, Members::of((0..9).map(|at| (address(at), 1))));
        let gone = address(9);
        let (mut own, mut others) = (0_u32, 0_u32);
        for subject in 0..SUBJECTS {
            let hash = hash_of(subject);
            let before = chosen(&all, hash, |_| true);
            // While it is known and not well.
            let without = chosen(&all, hash, |address| address != gone);
            assert!(without == before || before == gone, "{kind:?}");
            // When nobody knows it any more.
            let after = chosen(&fewer, hash, |_| true);
            own += u32::from(before == gone);
            others += u32::from(before != gone && after != before);
        }
        let share = |count: u32| f64::from(count) / f64::from(SUBJECTS);
        assert!((0.07..0.13).contains(&share(own)), "{kind:?}: {}", share(own));
        // The table of maglev is filled anew, which moves a few of the others.
        let limit = if kind == Kind::Ring { 0.0 } else { 0.06 };
        assert!(share(others) <= limit, "{kind:?}: {}", share(others));
    }
}

#[test]
fn the_subjects_of_one_shard_are_spread_like_all_others() {
    use crate::document::Document;
    let rule = "[services.a.sharding]\nkey = \"subject\"\nstrategy = \"ring\"\nshards = [\"0\", \"1\", \"2\", \"3\"]\n";
    let document = Document::parse_toml(rule).unwrap();
    let sharding = document.services["a"].sharding.as_deref().unwrap();
    let is_first = |subject: &u32| sharding.locate(format!("user-{subject}").as_bytes()).unwrap().shard == 0;
    let subjects: Vec<u32> = (0..SUBJECTS).filter(is_first).collect();
    for kind in KINDS {
        let table = table(kind, &[1; 4]);
        let of = |at: usize| {
            let its = |subject: &&u32| chosen(&table, hash_of(**subject), |_| true) == address(at);
            subjects.iter().filter(its).count() as f64 / subjects.len() as f64
        };
        for share in (0..4).map(of) {
            assert!((0.2..0.3).contains(&share), "{kind:?}: {share}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn everybody_comes_in_turn(many in 1_usize..40, subject in any::<u32>(), is_ring in any::<bool>()) {
        let kind = if is_ring { Kind::Ring } else { Kind::Maglev };
        let table = table(kind, &vec![1; many]);
        let mut seen: Vec<u16> = table.order(hash_of(subject)).collect();
        prop_assert!(seen.len() <= STEPS_MAX);
        seen.sort_unstable();
        seen.dedup();
        prop_assert_eq!(seen.len(), many);
    }
}

proptest! {
    #[test]
    fn there_is_room_somewhere_and_never_much_above_the_mean(
        loads in proptest::collection::vec((0_u64..1_000, 1_u32..1_000), 1..50),
        factor in FACTOR_MIN..=FACTOR_MAX,
    ) {
        let (total, weights) = loads.iter().fold((0, 0), |(total, weights), (load, weight)| {
            (total + load, weights + u64::from(*weight))
        });
        let most = |weight| in_flight_max(factor, total, weight, weights);
        prop_assert!(loads.iter().any(|(load, weight)| *load < most(*weight)));
        for (_, weight) in loads {
            let mean = (total + 1) as f64 * f64::from(weight) / weights as f64;
            let exact = mean * f64::from(factor) / 100.0;
            prop_assert!(most(weight) as f64 >= exact - 1e-6 && (most(weight) as f64) < exact + 1.0 + 1e-6);
        }
    }
}
