//! The fuzz targets run for seconds: texts that were sound, cut, spliced and twisted, never panic.

mod targets;

use std::time::{Duration, Instant};

use fastrand::Rng;

/// How long each target runs.
const LONG: Duration = Duration::from_secs(2);
/// Longest input that grows out of others, in bytes.
const BYTES_MAX: usize = 16 << 10;

const DOCUMENTS: [&str; 4] = [
    include_str!("../golden/documents/sound.toml"),
    include_str!("../golden/documents/later_features.toml"),
    include_str!("../golden/documents/wrong_kinds.toml"),
    "{\"services\": {\"ads\": {\"endpoints\": [{\"address\": \"127.0.0.1:1\"}]}}, \"routes\": []}",
];
const WIRE: [&str; 3] = [
    include_str!("../golden/wire/feed-1.ndjson"),
    include_str!("../golden/wire/acks-1.ndjson"),
    include_str!("../golden/wire/registrations-1.ndjson"),
];
const FLAGS: [&str; 3] = [
    r#"{"flags":{"new-ui":{"state":"ENABLED","variants":{"on":true,"off":false},"defaultVariant":"off","targeting":{"if":[{"in":["@x.com",{"var":"email"}]},"on",{"fractional":[{"cat":[{"var":"$flagd.flagKey"},{"var":"tier"}]},["on",10],["off",{"-":[{"var":"$flagd.timestamp"},9]}]]}]}}},"metadata":{"hashVersion":3}}"#,
    r#"{"flags":{"a":{"state":"ENABLED","variants":{"x":1,"y":2.5},"defaultVariant":"x","x-gilmok":{"kill":{"active":false,"variant":"y"},"prerequisites":[{"flag":"b","variant":"z"}],"buckets":{"table":[["x",0,500000],["y",500000,1000000]]},"header":{"single":"Feature-A"}}},"b":{"state":"DISABLED","variants":{"z":{"a":[1]}},"x-gilmok":{"follow":{"service":"shop","variant":"z"},"expires":"2027-01-31"}}}}"#,
    r#"{"flags":[{"key":"k","state":"ENABLED","variants":{"true":"t","false":"f"},"targeting":{"$ref":"r"}}],"$evaluators":{"r":{"and":[{"sem_ver":[{"var":"v"},"^","1.2"]},{"some":[{"map":[{"var":"xs"},{"+":[{"var":""},1]}]},{"<":[1,{"var":""},3]}]},{"starts_with":[{"substr":[{"var":"s"},-3]},"a"]}]}}}"#,
];
/// What texts are twisted with.
const WORDS: [&str; 21] = [
    "\"",
    "'",
    "[",
    "]",
    "{",
    "}",
    "=",
    ",",
    ".",
    "\n",
    "-1",
    "1e999",
    "9223372036854775808",
    "null",
    "\u{0}",
    "\u{fffd}",
    "[[routes]]\n",
    "[services.a.b]\n",
    "{\"var\":\"\"}",
    "{\"reduce\":[{\"var\":\"flags\"},{\"merge\":[{\"var\":\"accumulator\"},1]},[]]}",
    "{\"fractional\":[[\"on\"]]}",
];

/// Another input: one of the corpus after a few cuts, splices and twists.
fn twisted(corpus: &[Vec<u8>], dice: &mut Rng) -> Vec<u8> {
    let mut bytes = corpus[dice.usize(..corpus.len())].clone();
    for _ in 0..dice.usize(1..6) {
        let at = dice.usize(..=bytes.len());
        let to = dice.usize(at..=bytes.len().min(at + 40));
        match dice.u8(..5) {
            0 => drop(bytes.drain(at..to)),
            1 => drop(bytes.splice(at..at, WORDS[dice.usize(..WORDS.len())].bytes())),
            2 => {
                let other = &corpus[dice.usize(..corpus.len())];
                let from = dice.usize(..=other.len());
                let piece = &other[from..other.len().min(from + 60)];
                drop(bytes.splice(at..to, piece.iter().copied()));
            }
            3 => {
                let piece = bytes[at..to].to_vec();
                drop(bytes.splice(at..at, piece));
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << dice.u8(..8);
                }
            }
        }
    }
    bytes.truncate(BYTES_MAX);
    bytes
}

fn run(corpus: &[Vec<u8>], target: fn(&[u8])) {
    let mut dice = Rng::with_seed(11);
    let until = Instant::now() + LONG;
    let mut tried = 0;
    for input in corpus {
        target(input);
    }
    while Instant::now() < until || tried < 500 {
        target(&twisted(corpus, &mut dice));
        tried += 1;
    }
}

#[test]
fn no_text_is_too_strange_for_a_document() {
    run(&DOCUMENTS.map(|text| text.as_bytes().to_vec()), targets::document);
}

#[test]
fn no_bytes_are_too_strange_for_the_wire() {
    let lines = WIRE.iter().flat_map(|text| text.lines()).map(|line| line.as_bytes().to_vec());
    run(&lines.collect::<Vec<_>>(), targets::wire);
}

#[test]
fn no_bytes_are_too_strange_for_flags() {
    run(&FLAGS.map(|text| text.as_bytes().to_vec()), targets::flags);
}
