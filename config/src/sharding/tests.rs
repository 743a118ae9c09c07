//! Tests of sharding: what others compute is what we compute, every key has one shard, little moves, and faults have places.

use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;

use super::*;
use crate::document::Document;
use crate::grammar::{Faults, Value as Said};
use crate::hash::KEY_HASHES;
use crate::node::Node;
use crate::subject::{Asker, Baggage, Uid};

const BY_LIST: [&str; 5] = ["modulo", "jump", "ring", "maglev", "rendezvous"];

pub(super) fn read(text: &str) -> Result<Sharding, String> {
    let node = Node::parse_toml(text).unwrap();
    let faults = Faults::new();
    let sharding = Sharding::read(&Said::root(&node, &faults), None);
    faults.into_result(()).map_err(|problems| problems.to_string())?;
    Ok(sharding.expect("without a fault there is a rule"))
}

pub(super) fn sound(more: &str) -> Sharding {
    read(&format!("key = \"path_segment:2\"\n{more}")).unwrap()
}

pub(super) fn sound_json(table: &serde_json::Value) -> Sharding {
    let node = Node::from(table);
    let faults = Faults::new();
    let sharding = Sharding::read(&Said::root(&node, &faults), None);
    faults.into_result(sharding).unwrap_or_else(|faults| panic!("{table}: {faults}")).unwrap()
}

/// `many` shards, s0 and so on.
fn listed(strategy: &str, hash: &str, many: usize) -> Sharding {
    let shards: Vec<_> = (0..many).map(|at| format!("\"s{at}\"")).collect();
    let shards = shards.join(", ");
    sound(&format!("strategy = \"{strategy}\"\nhash = \"{hash}\"\nshards = [{shards}]"))
}

fn shard_of<'s>(sharding: &'s Sharding, key: &str) -> &'s str {
    sharding.shards()[sharding.locate(key.as_bytes()).unwrap().shard].as_str()
}

fn lines(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(' ').collect())
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(digits).collect()
}

#[test]
fn hashes_are_the_ones_that_others_compute() {
    let mut seen = 0;
    for line in lines(include_str!("../../tests/golden/sharding/hashes.txt")) {
        let (_, hash) = KEY_HASHES.iter().find(|(name, _)| *name == line[0]).unwrap();
        assert_eq!(hash.of(&bytes(line[2])).unwrap().to_string(), line[1], "{line:?}");
        seen += 1;
    }
    assert!(seen > 1_000, "{seen}");
}

#[test]
fn slots_are_redis_clusters() {
    let sharding =
        sound("strategy = \"slots\"\nmap = { \"0\" = \"0-8191\", \"1\" = \"8192-12287,12288-16383\" }");
    let mut seen = 0;
    for line in lines(include_str!("../../tests/golden/sharding/slots.txt")) {
        let spot = sharding.locate(&bytes(line[1])).unwrap();
        let slot = spot.slot.unwrap();
        assert_eq!(slot.to_string(), line[0], "{line:?}");
        assert_eq!(spot.shard, usize::from(slot > 8_191));
        seen += 1;
    }
    assert!(seen > 200, "{seen}");
}

#[test]
fn remainders_are_the_ones_that_applications_compute() {
    for line in lines(include_str!("../../tests/golden/sharding/modulo.txt")) {
        let sharding = listed("modulo", line[0], line[1].parse().unwrap());
        assert_eq!(sharding.locate(&bytes(line[3])).unwrap().shard.to_string(), line[2], "{line:?}");
    }
    let by_number = listed("modulo", "identity", 4);
    for id in [0_u64, 1, 5, 42, u64::MAX] {
        assert_eq!(by_number.locate(id.to_string().as_bytes()).unwrap().shard as u64, id % 4);
    }
    assert!(matches!(by_number.locate(b"42a"), Err(KeyFault::Malformed(_))));
}

#[test]
fn rings_maglevs_jumps_and_rendezvous_are_where_the_papers_have_them() {
    let (mut seen, mut made) = (0, (String::new(), None));
    for line in lines(include_str!("../../tests/golden/sharding/shards.txt")) {
        let rule = line[..3].join(" ");
        if made.0 != rule {
            made = (rule, Some(listed(line[0], line[1], line[2].parse().unwrap())));
        }
        let sharding = made.1.as_ref().unwrap();
        assert_eq!(sharding.locate(&bytes(line[4])).unwrap().shard.to_string(), line[3], "{line:?}");
        seen += 1;
    }
    assert!(seen > 1_500, "{seen}");
}

#[test]
fn a_range_begins_at_its_bound() {
    let names = sound("strategy = \"range\"\nmap = { \"0\" = \"\", \"1\" = \"m\", \"2\" = \"ma\" }");
    for (key, shard) in
        [("a", "0"), ("M", "0"), ("lzzz", "0"), ("m", "1"), ("m9", "1"), ("ma", "2"), ("é", "2")]
    {
        assert_eq!(shard_of(&names, key), shard, "{key}");
    }
    let numbers =
        sound("strategy = \"range\"\nnumeric = true\nmap = { a = \"\", b = \"0\", c = 1000, d = \"-10\" }");
    for (key, shard) in
        [("-11", "a"), ("-10", "d"), ("-1", "d"), ("0", "b"), ("999", "b"), ("0999", "b"), ("1000", "c")]
    {
        assert_eq!(shard_of(&numbers, key), shard, "{key}");
    }
    for key in ["", "x", "+5", "1.5", "9223372036854775808"] {
        assert!(numbers.locate(key.as_bytes()).is_err(), "{key}");
    }
    let held = |at: usize| numbers.told()["shards"][at]["holds"].as_str().unwrap().to_owned();
    assert_eq!([held(0), held(2), held(3)], ["below -10", "from 1000", "from -10 to below 0"]);
}

#[test]
fn a_directory_has_what_it_lists_and_a_shard_for_the_rest() {
    let directory =
        sound("strategy = \"directory\"\nmap = { acme = \"big\", \"é x\" = \"1\" }\ndefault = \"0\"");
    for (key, shard) in [("acme", "big"), ("é x", "1"), ("Acme", "0"), ("anybody", "0")] {
        assert_eq!(shard_of(&directory, key), shard, "{key}");
    }
    let strict = sound("strategy = \"directory\"\nmap = { acme = \"big\" }\nwhen_no_key = \"any\"");
    assert_eq!(strict.locate(b"anybody"), Err(KeyFault::NotListed));
    let (headers, host) = (HeaderMap::new(), "x");
    assert_eq!(
        strict.shard(&request(&headers, host, "/a/anybody", "")),
        Err(KeyFault::NotListed),
        "never any"
    );
}

fn request<'r>(headers: &'r HeaderMap, host: &'r str, path: &'r str, query: &'r str) -> Keyed<'r> {
    let query = Some(query);
    let asker = Asker { headers, query, client: None, uid: Uid::AsSent, baggage: Baggage::default() };
    Keyed { asker, host, path, key: None }
}

/// Whose key stands where, by a directory that says it back: shards are named as their keys.
fn found(key: &str, more: &str, path: &str, query: &str) -> Result<String, KeyFault> {
    let text = format!(
        "key = \"{key}\"\n{more}\nstrategy = \"directory\"\nmap = {{ a = \"a\", \"a b\" = \"a-b\", \"a/b\" = \"a.b\", shop = \"shop\", \"7\" = \"7\" }}\ndefault = \"other\""
    );
    let sharding = read(&text).unwrap();
    let mut headers = HeaderMap::new();
    for (name, value) in
        [("x-user-id", "7"), ("x-list", "a, a"), ("x-twice", "a"), ("x-twice", "7"), ("x-empty", "")]
    {
        headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    headers.append("cookie", HeaderValue::from_static("uid=a; theme=dark; gilmok_uid=a.signature"));
    let sharded = sharding.shard(&request(&headers, "shop", path, query))?;
    Ok(sharded.shard().map_or("any".to_owned(), |at| sharding.shards()[at].to_string()))
}

#[test]
fn a_key_is_found_where_the_rule_says() {
    let ok = |name: &str| Ok(name.to_owned());
    for (key, more, path, query, expected) in [
        ("path_segment:1", "", "/a", "", ok("a")),
        ("path_segment:2", "", "/users/a/posts", "", ok("a")),
        ("path_segment:2", "", "/users/a%2Fb", "", ok("a.b")),
        ("path_segment:2", "", "/users/a+b", "", ok("other")),
        ("path_segment:2", "", "/users/a%20b", "", ok("a-b")),
        ("path_segment:2", "", "/users", "", Err(KeyFault::Missing)),
        ("path_segment:2", "", "/users//a", "", Err(KeyFault::Missing)),
        ("path_segment:1", "", "*", "", Err(KeyFault::Missing)),
        ("path_segment:2", "when_no_key = \"any\"", "/users", "", ok("any")),
        ("path_segment:2", "when_no_key = \"any\"", "/users/%zz", "", ok("any")),
        ("query:id", "", "/", "x=1&id=a+b", ok("a-b")),
        ("query:id", "", "/", "%69d=a", ok("a")),
        ("query:id", "", "/", "id=&id", Err(KeyFault::Missing)),
        ("header:X-User-Id", "", "/", "", ok("7")),
        ("header:x-empty", "", "/", "", Err(KeyFault::Missing)),
        ("cookie:uid", "", "/", "", ok("a")),
        ("cookie:gilmok_uid", "", "/", "", ok("a")),
        ("host", "", "/", "", ok("shop")),
        ("subject", "", "/", "", ok("7")),
        ("header:x-list", "key_separator = \",\"", "/", "", ok("a")),
        ("query:id", "key_separator = \",\"", "/", "id=a,a%2Ca,,&id=a", ok("a")),
        ("query:id", "key_separator = \",\"", "/", "id=,", Err(KeyFault::Missing)),
    ] {
        assert_eq!(found(key, more, path, query), expected, "{key} {more} {path} {query}");
    }
    for (path, query) in [("/users/%", ""), ("/users/%4", ""), ("/users/%zz", "")] {
        let found = found("path_segment:2", "", path, query);
        assert!(matches!(found, Err(KeyFault::Malformed(_))), "{path}: {found:?}");
    }
}

#[test]
fn keys_of_several_shards_are_refused_with_their_list() {
    let several = |key, more, query| match found(key, more, "/", query) {
        Err(KeyFault::SeveralShards(keys)) => {
            keys.into_iter().map(|(key, shard)| format!("{key} {shard}")).collect::<Vec<_>>().join(", ")
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(several("query:id", "key_separator = \",\"", "id=a,7,a"), "a a, 7 7, a a");
    // Whoever says two things would be understood otherwise by another server.
    assert_eq!(several("query:id", "", "id=a&id=7"), "a a, 7 7");
    assert_eq!(several("header:x-twice", "", ""), "a a, 7 7");
    // Nobody may have them in silence.
    assert_eq!(several("header:x-twice", "when_no_key = \"any\"", ""), "a a, 7 7");
    let many = vec!["a"; KEYS_MAX + 1].join(",");
    let found = found("query:id", "key_separator = \",\"", "/", &format!("id={many}"));
    assert_eq!(found, Err(KeyFault::TooManyKeys));
}

#[test]
fn a_request_moves_if_any_of_its_keys_does() {
    let rule = "key = \"host\"\nkey_separator = \",\"\nstrategy = \"slots\"\nhash = \"identity\"\nslots = 4\nmap = { a = \"0-2\", b = \"3\" }\n[next]\nclosed = 9\nmap = { a = \"0-1\", b = \"2-3\" }";
    let sharding = read(rule).unwrap();
    let headers = HeaderMap::new();
    for (host, moves) in [("0,1", false), ("2", true), ("0,2,1", true), ("2,0", true), ("3", false)] {
        let sharded = sharding.shard(&request(&headers, host, "/", "")).unwrap();
        assert_eq!(sharded.moves(), moves, "{host}");
        assert_eq!(sharding.is_held(sharded, false), moves, "{host}");
    }
    assert!(matches!(sharding.shard(&request(&headers, "2,3", "/", "")), Err(KeyFault::SeveralShards(_))));
}

#[test]
fn what_is_told_names_the_key_and_the_shards() {
    let sharding = sound("strategy = \"slots\"\nslots = 4\nmap = { \"0\" = \"0-1\", \"1\" = \"2,3\" }");
    let several = KeyFault::SeveralShards(vec![("7".to_owned(), Name::parse("1").unwrap())]);
    assert_eq!(sharding.tell(&several), "the sharding keys (path_segment:2) are on several shards: 7 on 1");
    let told = sharding.told();
    assert_eq!(
        (&told["hash"], &told["slots"], &told["reads"]),
        (&json!("crc16"), &json!(4), &json!("primary"))
    );
    assert_eq!(told["shards"], json!([{ "shard": "0", "holds": "0-1" }, { "shard": "1", "holds": "2-3" }]));
    let spot = sharding.locate(b"7").unwrap();
    let told = sharding.told_of(Sharded::At(spot));
    assert_eq!((&told["slot"], &told["why"]), (&json!(spot.slot), &json!("slots by path_segment:2")));
    assert_eq!(Sharded::At(spot).to_string(), format!("slot:{}", spot.slot.unwrap()));
}

#[test]
fn the_hash_of_a_map_stays_what_it_is() {
    let mut seen = 0;
    for line in include_str!("../../tests/golden/sharding/maps.txt").lines().skip(1) {
        let (hash, table) = line.split_once(' ').unwrap();
        let node = Node::parse_json(table.as_bytes()).unwrap();
        let faults = Faults::new();
        let sharding = Sharding::read(&Said::root(&node, &faults), None).unwrap();
        assert_eq!(format!("{:016x}", sharding.map_hash()), hash, "{table}");
        assert_eq!(sharding.map_tag().to_string(), format!("0-{hash}"));
        seen += 1;
    }
    assert!(seen > 5, "{seen}");
}

#[test]
fn a_shard_may_have_several_places_and_several_bounds() {
    let by_places =
        |places: &str| sound(&format!("strategy = \"modulo\"\nhash = \"identity\"\nshards = [{places}]"));
    let four = by_places("\"a\", \"b\", \"a\", \"c\"");
    for (key, shard) in [("0", "a"), ("1", "b"), ("2", "a"), ("3", "c"), ("7", "c"), ("9", "b")] {
        assert_eq!(shard_of(&four, key), shard, "{key}");
    }
    assert_eq!(four.shards().len(), 3);
    assert_eq!(four.told()["shards"][0]["holds"], json!("places 0, 2 of 4"));
    assert_eq!(four.told()["shards"][2]["holds"], json!("place 3 of 4"));
    // A doubled list means what it meant.
    let two = by_places("\"a\", \"b\"");
    assert!(two.divides_as(&by_places("\"a\", \"b\", \"a\", \"b\"")));
    assert!(!two.divides_as(&by_places("\"a\", \"b\", \"b\", \"a\"")));
    let ranges = sound("strategy = \"range\"\nmap = { \"0\" = [\"\", \"t\"], \"1\" = \"m\", \"2\" = [] }");
    for (key, shard) in [("a", "0"), ("m", "1"), ("s", "1"), ("t", "0"), ("z", "0")] {
        assert_eq!(shard_of(&ranges, key), shard, "{key}");
    }
    let held = |at: usize| ranges.told()["shards"][at]["holds"].clone();
    assert_eq!([held(0), held(2)], [json!("below \"m\", from \"t\""), json!("nothing")]);
    let same = sound("strategy = \"range\"\nmap = { \"0\" = [\"\", \"c\", \"t\"], \"1\" = [\"m\", \"p\"] }");
    assert!(ranges.divides_as(&same), "a bound between two ranges of one shard divides nothing");
}

#[test]
fn maps_are_told_from_each_other_by_what_they_mean() {
    let map = |text: &str| sound(&format!("strategy = \"slots\"\nslots = 4\nmap = {text}")).map_hash();
    let first = map("{ \"0\" = \"0-1\", \"1\" = \"2,3\" }");
    assert_eq!(first, map("{ \"0\" = \"1,0\", \"1\" = \"2-3\" }"), "the same in other words");
    assert_eq!(first, map("{ \"0\" = \"0-1\", \"1\" = \"2-3\", \"2\" = \"\" }"), "nothing is elsewhere");
    assert_ne!(first, map("{ \"0\" = \"0-2\", \"1\" = \"3\" }"));
    assert_ne!(first, map("{ \"0\" = \"0-1\", \"2\" = \"2-3\" }"));
    assert_ne!(listed("ring", "crc32", 3).map_hash(), listed("ring", "xxh3_64", 3).map_hash());
    assert_ne!(listed("ring", "crc32", 3).map_hash(), listed("ring", "crc32", 4).map_hash());
}

#[test]
fn a_fault_of_a_map_has_its_place() {
    let slots = |map: &str| format!("key = \"host\"\nstrategy = \"slots\"\nslots = 8\nmap = {map}");
    for (text, fault) in [
        ("strategy = \"jump\"\nshards = [\"a\"]".to_owned(), "`key` is missing"),
        ("key = \"host\"\nshards = [\"a\"]".to_owned(), "`strategy` is missing"),
        ("key = \"path_segment:0\"\nstrategy = \"jump\"\nshards = [\"a\"]".to_owned(), "key: \"path_segment:0\" is not understood"),
        ("key = \"host\"\nstrategy = \"jump\"".to_owned(), "`shards` is missing"),
        ("key = \"host\"\nstrategy = \"jump\"\nshards = []".to_owned(), "shards: an empty list"),
        ("key = \"host\"\nstrategy = \"jump\"\nshards = [\"a\", \"a\"]".to_owned(), "shards[1]: the shard `a` is listed twice"),
        ("key = \"host\"\nstrategy = \"jump\"\nshards = [\"\"]".to_owned(), "shards[0]: \"\" is not understood"),
        ("key = \"host\"\nstrategy = \"ring\"\nhash = \"crc16\"\nshards = [\"a\"]".to_owned(), "hash: `crc16` does not fit the strategy `ring`"),
        ("key = \"host\"\nstrategy = \"maglev\"\nhash = \"identity\"\nshards = [\"a\"]".to_owned(), "hash: `identity` does not fit"),
        ("key = \"host\"\nstrategy = \"range\"\nhash = \"crc32\"\nmap = { a = \"\" }".to_owned(), "hash: `hash` means nothing to the strategy `range`"),
        ("key = \"host\"\nstrategy = \"modulo\"\nshards = [\"a\"]\nmap = { a = \"\" }".to_owned(), "map: `map` means nothing to the strategy `modulo`"),
        ("key = \"host\"\nstrategy = \"slots\"".to_owned(), "`map` is missing"),
        (slots("{}"), "map: an empty map"),
        (slots("{ a = \"0-3\", b = \"5-7\" }"), "map: nobody has the slots 4"),
        (slots("{ a = \"1-3\", b = \"5\" }"), "map: nobody has the slots 0, 4, 6-7"),
        (slots("{ a = \"0-4\", b = \"4-7\" }"), "map.b: slot 4 is `a`'s already"),
        (slots("{ a = \"0-4,2\", b = \"5-7\" }"), "map.a: slot 2 is `a`'s already"),
        (slots("{ a = \"0-8\" }"), "map.a: slot 8 is out of range (slots from 0 to 7"),
        (slots("{ a = \"7-0\" }"), "map.a: the range 7-0 ends before it begins"),
        (slots("{ a = \"0-x\" }"), "map.a: \"0-x\" is no range of slots"),
        (slots("{ a = 5 }"), "map.a: expected a text, found 5"),
        (slots("{ \"a b\" = \"0-7\" }"), "map.\"a b\": not a shard's name"),
        (slots("{ a = \"0-7\", b = \"\" }\nshards = [\"a\"]"), "map.b: the shard `b` is not one of `shards`"),
        ("key = \"host\"\nstrategy = \"slots\"\nslots = 1000\nmap = { a = \"0-999\" }".to_owned(), "slots: 1000 is no power of two (e.g. 512 or 1024)"),
        ("key = \"host\"\nstrategy = \"slots\"\nslots = 0\nmap = { a = \"0\" }".to_owned(), "slots: 0 is out of range"),
        ("key = \"host\"\nstrategy = \"range\"\nmap = { a = \"b\", c = \"d\" }".to_owned(), "map: nobody has the keys below the first bound"),
        ("key = \"host\"\nstrategy = \"range\"\nmap = { a = \"\", b = \"m\", c = \"m\" }".to_owned(), "map.c: `b` has the same lower bound"),
        ("key = \"host\"\nstrategy = \"range\"\nnumeric = true\nmap = { a = \"\", b = \"07\", c = 7 }".to_owned(), "map.c: `b` has the same lower bound"),
        ("key = \"host\"\nstrategy = \"range\"\nnumeric = true\nmap = { a = \"\", b = \"m\" }".to_owned(), "map.b: \"m\" is no number"),
        ("key = \"host\"\nstrategy = \"directory\"\nmap = { x = \"a\" }\ndefault = \"c\"\nshards = [\"a\"]".to_owned(), "default: the shard `c` is not one of `shards`"),
        ("key = \"host\"\nstrategy = \"directory\"\nmap = { x = \"b\" }\nshards = [\"a\"]".to_owned(), "map.x: the shard `b` is not one of `shards`"),
        (
            "key = \"host\"\nstrategy = \"directory\"\nmap = { x = \"b\" }\ndefault = \"\"".to_owned(),
            "default: \"\" is not understood",
        ),
        (
            "key = \"host\"\nstrategy = \"directory\"\nmap = { x = \"\" }".to_owned(),
            "map.x: \"\" is not understood",
        ),
        ("key = \"host\"\nstrategy = \"range\"\nmap = { a = [\"\", \"m\"], b = [\"m\", 5] }".to_owned(), "map.b[1]: expected a text, found 5"),
        ("key = \"host\"\nstrategy = \"range\"\nmap = { a = [\"\", \"m\"], b = \"m\" }".to_owned(), "map.b: `a` has the same lower bound"),
        ("key = \"host\"\nstrategy = \"jump\"\nshards = [\"a\"]\nnext = { shards = [\"b\"] }".to_owned(), "next: `next` means nothing to the strategy `jump`"),
        ("key = \"host\"\nstrategy = \"modulo\"\nshards = [\"a\"]\nnext = { map = { a = \"\" }, shards = [\"a\"] }".to_owned(), "next.map: `map` means nothing to the strategy `modulo`"),
        ("key = \"host\"\nstrategy = \"modulo\"\nshards = [\"a\"]\nnext = {}".to_owned(), "next: `shards` is missing"),
        ("key = \"host\"\nstrategy = \"modulo\"\nshards = [\"a\"]\nnext = { shards = [] }".to_owned(), "next.shards: an empty list"),
        ("key = \"host\"\nstrategy = \"modulo\"\nshards = [\"a\"]\nnext = { shards = [\"b\"], closed = 0 }".to_owned(), "next.closed: 0 is out of range"),
        ("key = \"host\"\nstrategy = \"modulo\"\nshards = [\"a\"]\nnext = { shards = [\"b\"], close = 1 }".to_owned(), "next.close: unknown key"),
        ("key = \"host\"\nstrategy = \"modulo\"\nshards = [\"a\"]\nepoch = -1".to_owned(), "epoch: -1 is out of range"),
        (slots("{ a = \"0-7\" }\nnext = { map = { a = \"0-3\", b = \"5-7\" } }"), "next.map: nobody has the slots 4"),
        (slots("{ a = \"0-7\" }\nnext = { map = { a = \"0-4\", b = \"4-7\" } }"), "next.map.b: slot 4 is `a`'s already"),
        (slots("{ a = \"0-7\" }\nnext = { shards = [\"a\"] }"), "next: `map` is missing"),
        (slots("{ a = \"0-7\" }\nnext = { map = { a = \"0-7\" }, default = \"a\" }"), "next.default: `default` means nothing to the strategy `slots`"),
        (slots("{ a = \"0-7\" }\nnext = 5"), "next: expected a table, found 5"),
        ("key = \"host\"\nstrategy = \"range\"\nmap = { a = \"\" }\nnext = { map = { a = \"b\" } }".to_owned(), "next.map: nobody has the keys below the first bound"),
        // What both rules have in common is faulty once.
        ("key = \"host\"\nstrategy = \"range\"\nnumeric = 5\nmap = { a = \"\" }\nnext = { map = { b = \"\" } }".to_owned(), "numeric: expected true or false"),
        ("key = \"host\"\nstrategy = \"directory\"\nmap = { x = \"a\" }\ndefault = \"\"\nnext = { map = { x = \"b\" } }".to_owned(), "default: \"\" is not understood"),
        ("key = \"host\"\nkey_separator = \"\"\nstrategy = \"jump\"\nshards = [\"a\"]".to_owned(), "key_separator: 0 bytes"),
        ("key = \"host\"\nstrategies = 1\nstrategy = \"jump\"\nshards = [\"a\"]".to_owned(), "strategies: unknown key"),
    ] {
        let told = read(&text).expect_err(&text);
        assert!(told.contains(fault), "{text}\n-> {told}\nnot {fault}");
        assert_eq!(told.lines().count(), 1, "one fault is told once: {told}");
    }
}

#[test]
fn what_rules_hold_in_memory_is_bounded() {
    let one = |at: usize| {
        format!("[services.s{at}.sharding]\nkey = \"host\"\nstrategy = \"jump\"\nshards = [\"0\"]\n")
    };
    let fault = |many: usize| {
        Document::parse_toml(&(0..many).map(one).collect::<String>())
            .err()
            .map(|problems| problems.to_string())
    };
    assert_eq!(fault(1_000), None);
    assert!(fault(1_001).unwrap().contains("too many shards"));
}

#[test]
fn a_listed_shard_may_hold_nothing_yet() {
    let sharding = sound("strategy = \"slots\"\nslots = 2\nmap = { a = \"0-1\" }\nshards = [\"a\", \"b\"]");
    assert_eq!(sharding.told()["shards"][1], json!({ "shard": "b", "holds": "" }));
}

#[test]
fn shards_that_nobody_serves_and_endpoints_that_nobody_asks_are_warned_of() {
    let rule = "[services.a.sharding]\nkey = \"host\"\nstrategy = \"jump\"\nshards = [\"0\", \"1\", \"2\"]\n";
    let warnings = |more: &str| Document::parse_toml(&format!("{rule}{more}")).unwrap().warnings();
    assert_eq!(warnings(""), [""; 0], "membership may know them");
    let one = |shard: &str| format!("[[services.a.endpoints]]\naddress = \"a:1\"\nshard = \"{shard}\"\n");
    assert_eq!(
        warnings(&(one("1") + &one(""))),
        [
            "services.a.sharding: no endpoint has the shards `0`, `2`, so their keys are answered with 503",
            "services.a.endpoints: the rule has no shards ``, so nobody asks their endpoints"
        ]
    );
}

/// The share of keys that are elsewhere, and whether one of them went to a shard that was there before.
fn moved(before: &Sharding, after: &Sharding) -> (f64, bool) {
    const KEYS: u32 = 20_000;
    let (mut moved, mut between_old) = (0_u32, false);
    for key in 0..KEYS {
        let key = format!("user-{key}");
        let spot = |sharding: &Sharding| sharding.locate(key.as_bytes()).unwrap().shard;
        if spot(before) != spot(after) {
            moved += 1;
            between_old |= spot(after) < before.shards().len();
        }
    }
    (f64::from(moved) / f64::from(KEYS), between_old)
}

#[test]
fn another_shard_moves_little() {
    for hash in ["xxh3_64", "crc32", "murmur3_32", "fnv1a_32", "fnv1a_64"] {
        for many in [1_u32, 3, 4, 9, 31] {
            let fair = 1.0 / f64::from(many + 1);
            for strategy in ["jump", "ring", "rendezvous", "maglev"] {
                let with = |many: u32| listed(strategy, hash, many as usize);
                let (share, between_old) = moved(&with(many), &with(many + 1));
                // The table of maglev is filled anew, which moves some keys between those that were there.
                let (most, may_between) = match strategy {
                    "maglev" => (fair * 1.6 + 0.02, true),
                    "ring" => (fair * 1.4 + 0.01, false),
                    _ => (fair * 1.1 + 0.01, false),
                };
                assert!(share <= most, "{strategy} {hash} {many}: {share} moved, {fair} would be fair");
                assert!(share >= fair * 0.6, "{strategy} {hash} {many}: only {share} moved");
                assert!(may_between || !between_old, "{strategy} {hash} {many}");
            }
        }
    }
}

proptest! {
    #[test]
    fn every_key_has_one_shard(
        key in proptest::collection::vec(any::<u8>(), 0..40), many in 1_usize..40, at in 0_usize..BY_LIST.len(),
    ) {
        let sharding = listed(BY_LIST[at], "xxh3_64", many);
        let spot = sharding.locate(&key).unwrap();
        prop_assert!(spot.shard < many);
        prop_assert_eq!(sharding.locate(&key), Ok(spot));
    }

    #[test]
    fn a_map_in_any_pieces_gives_each_slot_to_its_owner(owners in proptest::collection::vec(0_usize..4, 64)) {
        let of = |shard| (0..64).filter(|slot| owners[*slot] == shard).map(|slot| slot.to_string()).collect::<Vec<_>>();
        let entries: Vec<_> = (0..4).map(|shard| format!("s{shard} = \"{}\"", of(shard).join(","))).collect();
        let sharding = sound(&format!(
            "strategy = \"slots\"\nslots = 64\nhash = \"identity\"\nmap = {{ {} }}", entries.join(", ")
        ));
        for (slot, owner) in owners.iter().enumerate() {
            let spot = sharding.locate(slot.to_string().as_bytes()).unwrap();
            prop_assert_eq!((spot.shard, spot.slot), (*owner, u32::try_from(slot).ok()));
        }
        // What is told of a map is that map.
        let told = sharding.told();
        let again: Vec<_> = (0..4)
            .map(|at| format!("s{at} = {}", told["shards"][at]["holds"]))
            .collect();
        let again = sound(&format!(
            "strategy = \"slots\"\nslots = 64\nhash = \"identity\"\nmap = {{ {} }}", again.join(", ")
        ));
        prop_assert_eq!(again.map_hash(), sharding.map_hash());
    }

    #[test]
    fn ranges_are_looked_up_as_they_are_written(
        mut bounds in proptest::collection::btree_set(-50_i64..50, 1..10), key in -60_i64..60,
    ) {
        let first = bounds.pop_first().unwrap();
        let entries: Vec<_> = bounds.iter().map(|bound| format!("\"s{bound}\" = {bound}")).collect();
        let sharding = sound(&format!(
            "strategy = \"range\"\nnumeric = true\nmap = {{ lowest = \"\"{}{} }}",
            if entries.is_empty() { "" } else { ", " }, entries.join(", ")
        ));
        prop_assert!(first < 50);
        let expected = bounds.range(..=key).next_back().map_or("lowest".to_owned(), |bound| format!("s{bound}"));
        prop_assert_eq!(shard_of(&sharding, &key.to_string()), expected);
    }
}
