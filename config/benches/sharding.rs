//! What sharding costs and how even it is: nanoseconds per look-up, balance, what more shards move, and memory.
//!
//! `cargo bench -p gilmok-config --bench sharding`
#![expect(clippy::print_stdout, reason = "a benchmark tells what it measured")]

use std::hint::black_box;
use std::time::Instant;

use gilmok_config::document::Document;
use gilmok_config::name::Name;
use gilmok_config::sharding::Sharding;
use gilmok_config::sharding::plan::{Wanted, plan};
use serde_json::{Map, Value, json};

const KEYS: usize = 1_000_000;
const SHARDS: usize = 1_024;
/// Keys that are looked up again and again for the time: those of requests are in the processor's cache as well.
const WARM_KEYS: usize = 1_024;
/// How often all of them, of which the fastest round counts: whatever else a machine does makes rounds slower, never faster.
const ROUNDS: usize = 2_000;
/// What rules fill to find out what one takes: far more than what reading one leaves behind.
const FILLED_BYTES: usize = 64 << 20;
const STRATEGIES: [&str; 8] =
    ["slots", "modulo", "range", "directory", "ring", "maglev", "jump", "rendezvous"];

fn main() {
    let keys: Vec<String> = (0..KEYS).map(|_| format!("user-{:x}", fastrand::u64(..))).collect();
    println!("{SHARDS} shards, {KEYS} random keys\n");
    println!(
        "{:<12} {:>9} {:>12} {:>9} {:>22} {:>22}",
        "strategy", "ns", "ns in a move", "max/mean", "moved by one (fair)", "by twice as many"
    );
    for strategy in STRATEGIES {
        let sharding = rule(&table(strategy, SHARDS));
        let ns = nanoseconds(&sharding, &keys[..WARM_KEYS]);
        let in_a_move = moving(strategy).map(|table| nanoseconds(&rule(&table), &keys[..WARM_KEYS]));
        let mut counts = vec![0_u32; SHARDS];
        for key in &keys {
            counts[place(&sharding, key)] += 1;
        }
        let mean = KEYS as f64 / SHARDS as f64;
        let max = f64::from(counts.iter().copied().max().unwrap_or_default()) / mean;
        println!(
            "{strategy:<12} {ns:>9.1} {:>12} {max:>9.3} {:>22} {:>22}",
            in_a_move.map_or_else(|| "-".to_owned(), |ns| format!("{ns:.1}")),
            moved(strategy, SHARDS - 1, &keys),
            moved(strategy, SHARDS / 2, &keys),
        );
    }
    println!("\nmemory of a rule with {SHARDS} shards, by how many fill 64 MiB:");
    // Kept to the end, so that none lies where another was.
    let mut all = Vec::new();
    for strategy in STRATEGIES {
        let Some(before) = resident() else { continue };
        let (mut kept, mut grown) = (0, 0);
        while grown < FILLED_BYTES {
            all.push(rule(&table(strategy, SHARDS)));
            kept += 1;
            grown = resident().unwrap_or(usize::MAX).saturating_sub(before);
        }
        println!("{strategy:<12} {:>5} KiB", grown / kept / 1_024);
    }
    black_box(all);
}

/// The memory of this process in bytes, where the system tells it.
fn resident() -> Option<usize> {
    const PAGE_BYTES: usize = 4_096;
    let told = std::fs::read_to_string("/proc/self/statm").ok()?;
    told.split(' ').nth(1)?.parse::<usize>().ok().map(|pages| pages * PAGE_BYTES)
}

fn nanoseconds(sharding: &Sharding, keys: &[String]) -> f64 {
    let round = |_| {
        let begin = Instant::now();
        for key in keys {
            black_box(place(sharding, key));
        }
        begin.elapsed().as_secs_f64() * 1e9 / keys.len() as f64
    };
    (0..ROUNDS).map(round).fold(f64::INFINITY, f64::min)
}

fn place(sharding: &Sharding, key: &str) -> usize {
    black_box(sharding.locate(black_box(key.as_bytes()))).map_or(0, |spot| spot.shard)
}

/// The share of keys that are elsewhere once so many shards have become [`SHARDS`], beside the least that could be. What
/// ranges and directories move is what somebody writes into them.
fn moved(strategy: &str, before: usize, keys: &[String]) -> String {
    if matches!(strategy, "range" | "directory") {
        return "-".to_owned();
    }
    let old = table(strategy, before);
    let new = if strategy == "slots" { grown(&old) } else { table(strategy, SHARDS) };
    let (old, new) = (rule(&old), rule(&new));
    let name = |sharding: &Sharding, key: &String| sharding.shards()[place(sharding, key)].clone();
    let moved = keys.iter().filter(|key| name(&old, key) != name(&new, key)).count();
    let fair = (SHARDS - before) as f64 / SHARDS as f64 * 100.0;
    format!("{:.3}% ({fair:.3}%)", moved as f64 / keys.len() as f64 * 100.0)
}

/// A table by slots once everything that a plan moves has moved.
fn grown(before: &Value) -> Value {
    let wanted = Wanted { shards: Some((0..SHARDS).map(name).collect()), ..Wanted::default() };
    let plan = plan(before, &wanted).unwrap_or_else(|problems| panic!("{problems}"));
    with(before, "map", &plan.batches.last().expect("something moves").next["map"])
}

/// A table of which a batch is closed, where its strategy has such.
fn moving(strategy: &str) -> Option<Value> {
    let now = table(strategy, SHARDS);
    let mut next = match strategy {
        "slots" | "range" | "directory" => json!({ "map": now["map"] }),
        "modulo" => json!({ "shards": now["shards"] }),
        _ => return None,
    };
    match strategy {
        // What the second shard has is the first one's.
        "slots" => (next["map"]["s0"], next["map"]["s1"]) = (json!("0-31"), json!("")),
        "range" => next["map"]["s1"] = json!([]),
        "directory" => next["map"]["s1"] = json!("s0"),
        _ => next["shards"][1] = json!("s0"),
    }
    next["closed"] = json!(1);
    Some(with(&now, "next", &next))
}

fn name(at: usize) -> Name {
    Name::parse(&format!("s{at}")).expect("a name")
}

fn with(table: &Value, key: &str, value: &Value) -> Value {
    let mut table = table.clone();
    table[key] = value.clone();
    table
}

/// A table of so many shards.
fn table(strategy: &str, many: usize) -> Value {
    let entries = |value: &dyn Fn(usize) -> String| -> Value {
        (0..many).map(|at| (name(at).to_string(), json!(value(at)))).collect::<Map<_, _>>().into()
    };
    let (key, rule) = match strategy {
        "slots" => ("map", entries(&|at| format!("{}-{}", at * 16_384 / many, (at + 1) * 16_384 / many - 1))),
        "range" => (
            "map",
            entries(&|at| if at == 0 { String::new() } else { format!("user-{:03x}", at * 4_096 / many) }),
        ),
        "directory" => ("map", entries(&|at| name(at).to_string())),
        _ => ("shards", (0..many).map(|at| json!(name(at))).collect()),
    };
    let table = with(&json!({ "key": "host", "strategy": strategy }), key, &rule);
    if strategy == "directory" { with(&table, "default", &json!("s0")) } else { table }
}

fn rule(table: &Value) -> Sharding {
    let document = json!({ "services": { "a": { "sharding": table } } });
    let document = Document::parse_json(&document).unwrap_or_else(|problems| panic!("{problems}"));
    let sharding = document.services["a"].sharding.as_deref();
    sharding.expect("the service has a rule").clone()
}
