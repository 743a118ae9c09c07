//! What balancing by the subject costs and how even it is: nanoseconds per choice, making a table, balance, and what moves.
//!
//! `cargo bench -p gilmok-config --bench balancing`
#![expect(clippy::print_stdout, reason = "a benchmark tells what it measured")]

use std::hint::black_box;
use std::time::Instant;

use gilmok_config::balancing::{Kind, Members, Table, subject_hash};

const SUBJECTS: u32 = 1_000_000;
/// Subjects that are looked up again and again for the time, and how often; the median of nine rounds counts.
const WARM: u32 = 1_024;
const TIMES: usize = 50;
const ROUNDS: usize = 9;

fn main() {
    println!(
        "{:<10} {:>6} {:>10} {:>7} {:>9} {:>9} {:>14} {:>11}",
        "table", "of", "made in", "ns", "max/mean", "of a third", "others, gone", "others, sick"
    );
    for kind in [Kind::Ring, Kind::Maglev] {
        for many in [10, 100, 1_000, 10_000] {
            row(kind, many);
        }
    }
    println!("\nns of a choice where one in so many of 3,000 may be chosen:");
    for kind in [Kind::Ring, Kind::Maglev] {
        let table = table(kind, 3_000);
        for apart in [1, 3, 10, 100] {
            let ns = nanoseconds(&table, &|owner| owner % apart == 0);
            println!("{:<10} {apart:>6} {ns:>9.0}", name(kind));
        }
    }
}

fn row(kind: Kind, many: usize) {
    let begin = Instant::now();
    let all = table(kind, many);
    let made_ms = begin.elapsed().as_secs_f64() * 1e3;
    let ns = nanoseconds(&all, &|_| true);
    let fullest = |may: &dyn Fn(u16) -> bool| {
        let mut counts = vec![0_u32; many];
        (0..SUBJECTS).for_each(|subject| counts[usize::from(chosen(&all, hash(subject), may))] += 1);
        let those = counts.iter().filter(|count| **count > 0).count();
        f64::from(counts.iter().copied().max().unwrap_or_default()) * those as f64 / f64::from(SUBJECTS)
    };
    let (whole, third) = (fullest(&|_| true), fullest(&|owner| owner % 3 == 0));
    // Without the last one in the order of addresses, the others keep their numbers.
    let last = u16::try_from(many - 1).unwrap_or_default();
    let fewer = Table::of(
        kind,
        Members::of(members(many).filter(|(address, _)| all.members().owner(address) != Some(last))),
    );
    let (mut gone, mut sick) = (0_u32, 0_u32);
    for subject in 0..SUBJECTS {
        let before = chosen(&all, hash(subject), &|_| true);
        let is_other = |after: u16| u32::from(before != last && after != before);
        gone += is_other(chosen(&fewer, hash(subject), &|_| true));
        sick += is_other(chosen(&all, hash(subject), &|owner| owner != last));
    }
    let percent = |moved: u32| format!("{:.2} %", f64::from(moved) / f64::from(SUBJECTS) * 100.0);
    println!(
        "{:<10} {many:>6} {made_ms:>7.2} ms {ns:>7.1} {whole:>9.3} {third:>9.3} {:>14} {:>11}",
        name(kind),
        percent(gone),
        percent(sick)
    );
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Maglev => "maglev",
        Kind::Ring => "ring_hash",
    }
}

fn members(many: usize) -> impl Iterator<Item = (String, u32)> {
    (0..many).map(|at| (format!("10.{}.{}.{}:8080", at >> 16, at >> 8 & 255, at & 255), 1))
}

fn table(kind: Kind, many: usize) -> Table {
    Table::of(kind, Members::of(members(many)))
}

fn hash(subject: u32) -> u64 {
    subject_hash(format!("user-{subject}").as_bytes())
}

fn chosen(table: &Table, hash: u64, may: &dyn Fn(u16) -> bool) -> u16 {
    table.order(hash).find(|owner| may(*owner)).unwrap_or_default()
}

fn nanoseconds(table: &Table, may: &dyn Fn(u16) -> bool) -> f64 {
    let hashes: Vec<u64> = (0..WARM).map(hash).collect();
    let round = |_| {
        let begin = Instant::now();
        for _ in 0..TIMES {
            for hash in &hashes {
                black_box(chosen(table, black_box(*hash), may));
            }
        }
        begin.elapsed().as_secs_f64() * 1e9 / (hashes.len() * TIMES) as f64
    };
    let mut rounds: Vec<f64> = (0..ROUNDS).map(round).collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}
