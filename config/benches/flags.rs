//! What flags cost: nanoseconds per evaluation and per request that is told of them, and memory per set.
//!
//! `cargo bench -p gilmok-config --bench flags`
#![expect(clippy::print_stdout, reason = "a benchmark tells what it measured")]

use std::hint::black_box;

use gilmok_config::decide::{Facts, Listener, tell_flags};
use gilmok_config::document::Document;
use gilmok_config::flag::{Asked, Context, FlagSet};
use gilmok_config::snapshot::{Membership, Snapshot};
use http::{HeaderMap, HeaderValue, Method};
use serde_json::{Map, Value, json};

const NOW: u64 = 1_700_000_000;
/// How often each is done in one of the rounds, of which the median counts.
const TIMES: usize = 200_000;
const ROUNDS: usize = 9;
const MANY: usize = 10_000;
const SETS: usize = 8;

fn main() {
    let set = read(&json!({
        "static": switch(&json!({})),
        "shorthand": switch(&json!({ "fractional": [["on", 10], ["off", 90]] })),
        "targeted": switch(&targeting()),
        "v2": switch(&json!({ "fractional": [{ "var": "email" }, ["on", 10], ["off", 90]] })),
    }));
    println!("{:<44} {:>10}", "what", "ns");
    let context = attributes("user-42");
    let context = Context::of_json(&context);
    let asked = Asked::of(&context, NOW);
    for (what, key) in [
        ("a static flag", "static"),
        ("a share (fractional shorthand)", "shorthand"),
        ("a share behind targeting", "targeted"),
    ] {
        tell(what, nanoseconds(TIMES, || set.evaluate(key, &asked).ok().and_then(|found| found.place())));
    }
    let hundred = read(&Value::Object(
        (0..100)
            .map(|at| (format!("flag-{at}"), switch(&if at % 5 == 0 { json!({}) } else { targeting() })))
            .collect(),
    ));
    let all = nanoseconds(TIMES / 100, || {
        hundred.flags().iter().filter(|flag| hundred.evaluate_flag(flag, &asked).is_ok()).count()
    });
    tell("bulk of 100 flags, 80 behind targeting", all);
    requests();
    memory();
}

/// Ten flags on a request, of which two are evaluated for it.
fn requests() {
    let flag = |at: usize, rule: &str| {
        format!(
            "[flags.set.flags.flag-{at}]\nstate = \"ENABLED\"\nvariants = {{ on = true, off = false }}\ndefaultVariant = \"off\"\n{rule}\n"
        )
    };
    let of = |dynamic: usize| {
        let rule = r#"targeting = { fractional = [["on", 10], ["off", 90]] }"#;
        let flags: String = (0..10).map(|at| flag(at, if at < dynamic { rule } else { "" })).collect();
        let document = Document::parse_toml(&format!("[services.s.flags]\nemit = [\"*\"]\n{flags}"));
        Snapshot::join(&document.unwrap_or_else(|problems| panic!("{problems}")), &Membership::new())
    };
    let mut request = HeaderMap::new();
    request.insert("x-user-id", HeaderValue::from_static("user-42"));
    for dynamic in [0, 2, 10] {
        let snapshot = of(dynamic);
        let facts = Facts::of(Listener::Outbound, "s", "/", &Method::GET, &request);
        let mut told = HeaderMap::with_capacity(8);
        let ns = nanoseconds(TIMES, || tell_flags(&snapshot, &facts, 0, &mut told, &mut |_| {}));
        tell(&format!("telling 10 flags, {dynamic} of them dynamic"), ns);
    }
}

/// What a large set takes, read as a document's is.
fn memory() {
    let flags: Map<String, Value> =
        (0..MANY).map(|at| (format!("team-{}.feature-{at}", at % 50), switch(&targeting()))).collect();
    let text = json!({ "flags": flags }).to_string();
    drop(flags);
    let parse = || FlagSet::parse(text.as_bytes()).unwrap_or_else(|problems| panic!("{problems}"));
    // What reading takes for a while is there after the first one, and used again by the others.
    let first = parse();
    let (before, begin) = (resident(), cpu_ns());
    let sets: Vec<FlagSet> = (0..SETS).map(|_| parse()).collect();
    println!(
        "\n{} flags of {} KiB of JSON: read in {} ms, {:.1} MiB each of {} more sets",
        first.flags().len(),
        text.len() >> 10,
        (cpu_ns() - begin) / 1_000_000 / sets.len() as u64,
        resident().saturating_sub(before) as f64 / 1024.0 / sets.len() as f64,
        sets.len(),
    );
}

/// Time that this thread has had a processor, in nanoseconds: others may be busy on the machine.
fn cpu_ns() -> u64 {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    told.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or_default()
}

/// Resident memory in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().split(' ').next()?.parse().ok()).unwrap_or_default()
}

fn targeting() -> Value {
    json!({ "if": [
        { "in": ["@example.com", { "var": "email" }] }, "on",
        { "and": [{ "==": [{ "var": "tier" }, "gold"] }, { "sem_ver": [{ "var": "version" }, ">=", "1.2.0"] }] },
        { "fractional": [{ "cat": [{ "var": "$flagd.flagKey" }, { "var": "targetingKey" }] }, ["on", 10], ["off", 90]] },
        null,
    ] })
}

fn switch(targeting: &Value) -> Value {
    json!({ "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": "off", "targeting": targeting })
}

fn attributes(user: &str) -> Map<String, Value> {
    let all = json!({ "targetingKey": user, "email": "ann@example.org", "tier": "gold", "version": "1.4.2", "country": "de" });
    all.as_object().cloned().unwrap_or_default()
}

fn read(flags: &Value) -> FlagSet {
    FlagSet::parse(json!({ "flags": flags }).to_string().as_bytes())
        .unwrap_or_else(|problems| panic!("{problems}"))
}

fn tell(what: &str, ns: f64) {
    println!("{what:<44} {ns:>10.1}");
}

fn nanoseconds<T>(times: usize, mut once: impl FnMut() -> T) -> f64 {
    let mut round = || {
        let begin = cpu_ns();
        for _ in 0..times {
            black_box(once());
        }
        (cpu_ns() - begin) as f64 / times as f64
    };
    let mut rounds: Vec<f64> = (0..ROUNDS).map(|_| round()).collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}
