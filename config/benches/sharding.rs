//! What sharding costs and how even it is: nanoseconds per look-up, balance, what another shard moves, and memory.
//!
//! `cargo bench -p gilmok-config --bench sharding`
#![expect(clippy::print_stdout, reason = "a benchmark tells what it measured")]

use std::hint::black_box;
use std::time::Instant;

use gilmok_config::document::Document;
use gilmok_config::sharding::Sharding;

const KEYS: usize = 1_000_000;
const SHARDS: usize = 1_024;
/// Keys that are looked up again and again for the time: those of requests are in the processor's cache as well.
const WARM_KEYS: usize = 1_024;
/// How often each of them, in nine rounds of which the median counts.
const TIMES: usize = 200;
const ROUNDS: usize = 9;
/// What rules fill to find out what one takes: far more than what reading one leaves behind.
const FILLED_BYTES: usize = 64 << 20;
const STRATEGIES: [&str; 8] =
    ["slots", "modulo", "range", "directory", "ring", "maglev", "jump", "rendezvous"];

fn main() {
    let keys: Vec<String> = (0..KEYS).map(|_| format!("user-{:x}", fastrand::u64(..))).collect();
    println!("{SHARDS} shards, {KEYS} random keys\n");
    println!(
        "{:<12} {:>9} {:>9} {:>17} {:>12}",
        "strategy", "ns", "max/mean", "moved by one more", "fair share"
    );
    for strategy in STRATEGIES {
        let sharding = rule(strategy, SHARDS);
        let ns = nanoseconds(&sharding, &keys[..WARM_KEYS]);
        let mut counts = vec![0_u32; SHARDS];
        for key in &keys {
            counts[place(&sharding, key)] += 1;
        }
        let mean = KEYS as f64 / SHARDS as f64;
        let max = f64::from(counts.iter().copied().max().unwrap_or_default()) / mean;
        let fewer = rule(strategy, SHARDS - 1);
        let moved = keys.iter().filter(|key| place(&sharding, key) != place(&fewer, key)).count();
        let moved = moved as f64 / KEYS as f64 * 100.0;
        // What a map moves is what somebody wrote into it.
        let is_mapped = matches!(strategy, "slots" | "range" | "directory");
        let moved = if is_mapped { "-".to_owned() } else { format!("{moved:.3}%") };
        println!("{strategy:<12} {ns:>9.1} {max:>9.3} {moved:>17} {:>11.3}%", 100.0 / SHARDS as f64);
    }
    println!("\nmemory of a rule with {SHARDS} shards, by how many fill 64 MiB:");
    // Kept to the end, so that none lies where another was.
    let mut all = Vec::new();
    for strategy in STRATEGIES {
        let Some(before) = resident() else { continue };
        let (mut kept, mut grown) = (0, 0);
        while grown < FILLED_BYTES {
            all.push(rule(strategy, SHARDS));
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
        for _ in 0..TIMES {
            for key in keys {
                black_box(place(sharding, key));
            }
        }
        begin.elapsed().as_secs_f64() * 1e9 / (keys.len() * TIMES) as f64
    };
    let mut rounds: Vec<f64> = (0..ROUNDS).map(round).collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

fn place(sharding: &Sharding, key: &str) -> usize {
    black_box(sharding.locate(black_box(key.as_bytes()))).map_or(0, |spot| spot.shard)
}

/// A rule of so many shards.
fn rule(strategy: &str, many: usize) -> Sharding {
    let entries = |value: &dyn Fn(usize) -> String| {
        let entries: Vec<_> = (0..many).map(|at| format!("s{at} = \"{}\"", value(at))).collect();
        format!("map = {{ {} }}", entries.join(", "))
    };
    let rest = match strategy {
        "slots" => entries(&|at| format!("{}-{}", at * 16_384 / many, (at + 1) * 16_384 / many - 1)),
        "range" => {
            entries(&|at| if at == 0 { String::new() } else { format!("user-{:03x}", at * 4_096 / many) })
        }
        "directory" => format!("{}\ndefault = \"s0\"", entries(&|at| format!("s{at}"))),
        _ => {
            let names: Vec<_> = (0..many).map(|at| format!("\"s{at}\"")).collect();
            format!("shards = [{}]", names.join(", "))
        }
    };
    let text = format!("[services.a.sharding]\nkey = \"host\"\nstrategy = \"{strategy}\"\n{rest}\n");
    let document = Document::parse_toml(&text).unwrap_or_else(|problems| panic!("{problems}"));
    let sharding = document.services["a"].sharding.as_deref();
    sharding.expect("the service has a rule").clone()
}
