//! Moves of shards explored: every order of steps of a small world, with the move, the fence, the table and the verdicts as they
//! are in the program. No acknowledged write is ever anywhere but at the owner of its key, and from everywhere a way leads on or
//! back. Protocols that leave something out are found out.
//!
//! `cargo nextest run -p gilmok-control-plane --test shard_move_exploration --no-capture` prints how many states were explored.

mod pieces;

mod world;

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use gilmok_control_plane::resharding::state::End;

use pieces::{Fault, Heard, Pieces, Verdict, WORDS, Way, Word};
use world::{Model, Said, State, Step};

/// Most states of one exploration: beyond it a bound is wrong.
const STATES_MAX: usize = 5_000_000;

/// What came of an exploration.
enum Found {
    /// So many states, none of them wrong, and the steps between them.
    Nothing(usize, Vec<&'static str>),
    /// What is wrong, and the way to it.
    Violation(&'static str, Vec<Step>),
}

/// Hashes what is a hash already.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only numbers are hashed");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// Goes through every state, the nearest first.
fn explore(model: &Model) -> Found {
    let (mut pieces, (moving, announced)) = Pieces::new(model);
    let announced = announced.expect("in the table");
    let mut first = State::first(model, moving, 0, announced, &pieces);
    let mut met: HashSet<u64, BuildHasherDefault<AsItIs>> = HashSet::default();
    met.insert(first.fingerprint(model, &pieces));
    let mut ways: Vec<(usize, Step)> = vec![(0, Step("begin", 0))];
    let mut ahead = VecDeque::from([(0, first)]);
    let mut leads = Leads::default();
    let (mut next, mut taken) = (Vec::new(), Vec::<&str>::new());
    while let Some((at, state)) = ahead.pop_front() {
        let wrong = state.violation(model, &pieces);
        if let Some(wrong) = wrong.or_else(|| leads.dead_end(&state, model, &mut pieces)) {
            return Found::Violation(wrong, way(&ways, at));
        }
        state.next(model, &mut pieces, &mut next);
        for (step, mut next) in next.drain(..) {
            // Each step has one text, so its place is enough.
            if !taken.iter().any(|known| std::ptr::eq(*known, step.0)) {
                taken.push(step.0);
            }
            if met.insert(next.fingerprint(model, &pieces)) {
                assert!(ways.len() < STATES_MAX, "more states than it should be: {model:?}");
                ahead.push_back((ways.len(), next));
                ways.push((at, step));
            }
        }
    }
    Found::Nothing(ways.len(), taken)
}

fn way(ways: &[(usize, Step)], mut at: usize) -> Vec<Step> {
    let mut way = Vec::new();
    while at > 0 {
        let (before, step) = ways[at];
        way.push(step);
        at = before;
    }
    way.reverse();
    way
}

/// Whether something leads on or back from a point of the move: asked once for each, since all else can follow what the control
/// plane says.
#[derive(Default)]
struct Leads(HashMap<(u8, u8), Option<&'static str>>);

impl Leads {
    fn dead_end(&mut self, state: &State, model: &Model, pieces: &mut Pieces) -> Option<&'static str> {
        let key = (state.moving, state.newest());
        if let Some(known) = self.0.get(&key) {
            return *known;
        }
        let found = back(key, state.head, pieces).or_else(|| on(key, state.head, model, pieces));
        self.0.insert(key, found);
        found
    }
}

/// With nobody heard of, the source is open before long.
fn back((mut moving, mut table): (u8, u8), mut head: u8, pieces: &mut Pieces) -> Option<&'static str> {
    for _ in 0..10 {
        if pieces.table_at(table).closed == 0 {
            return None;
        }
        let [_, late] = pieces.ticks(moving, table, Heard::all(Said::default()), head + 1);
        let Some((next, written)) = late else { break };
        moving = next;
        if let Some(written) = written {
            (table, head) = (written, head + 1);
        }
    }
    Some("a batch is closed and nobody opens it")
}

/// With all links whole and everybody up to date, the move comes to an end, and one owner serves the key.
fn on(
    (mut moving, mut table): (u8, u8),
    mut head: u8,
    model: &Model,
    pieces: &mut Pieces,
) -> Option<&'static str> {
    for _ in 0..20 {
        if pieces.moving(moving).state.end.is_some() {
            break;
        }
        let closed = pieces.table_at(table).closed;
        let heard = Heard::all(Said { closed, busy: false, persisted: closed > 0, knows: true });
        let [tick, _] = pieces.ticks(moving, table, heard, head + 1);
        let words = pieces.words(moving, table, head + 1).into_iter().zip(WORDS);
        let said =
            words.filter(|(_, word)| matches!(word, Word::Copied | Word::Resume)).find_map(|(done, _)| done);
        let Some((next, written)) = tick.or(said) else { return Some("nothing leads on") };
        moving = next;
        if let Some(written) = written {
            (table, head) = (written, head + 1);
        }
    }
    let (end, table_at) = (pieces.moving(moving).state.end, pieces.table_at(table));
    let serves = |owner: u8| pieces.verdict(table, owner, table_at.epoch) == Verdict::Serve;
    let is_well = matches!(end, Some(End::Done | End::Reversed))
        && !table_at.has_next()
        && !table_at.is_held
        && (model.way == Way::Direct || (serves(table_at.holder) && !serves(1 - table_at.holder)));
    if is_well { None } else { Some("the move comes to no end") }
}

fn model(way: Way, callers: u8, revisions: u8) -> Model {
    Model {
        way,
        fault: Fault::None,
        callers,
        revisions,
        reverses: false,
        pauses: true,
        fronts: false,
        is_target_late: false,
    }
}

fn shown(way: &[Step]) -> String {
    way.iter().map(|Step(what, who)| format!("  {what} ({who})")).collect::<Vec<_>>().join("\n")
}

/// Explores, and finds nothing wrong, though all of these steps were taken.
#[track_caller]
#[expect(clippy::print_stdout, reason = "what is said of an exploration is for people")]
fn nothing(what: &str, model: &Model, steps: &[&str]) {
    match explore(model) {
        Found::Nothing(states, taken) => {
            let missing: Vec<_> = steps.iter().filter(|step| !taken.contains(*step)).collect();
            assert!(missing.is_empty(), "{what}: {missing:?} never happened");
            println!("{what}: {states} states explored, none of them wrong");
        }
        Found::Violation(wrong, way) => panic!("{what}: {wrong}:\n{}", shown(&way)),
    }
}

/// Explores what is not right, and finds that out.
#[track_caller]
#[expect(clippy::print_stdout, reason = "what is said of an exploration is for people")]
fn something(model: &Model, faults: &[Fault]) {
    for fault in faults {
        let model = Model { fault: *fault, ..*model };
        match explore(&model) {
            Found::Nothing(states, _) => panic!("{fault:?} is not found in {states} states"),
            Found::Violation(wrong, way) => {
                println!("{fault:?} ({:?}): {wrong}, after {} steps:\n{}", model.way, way.len(), shown(&way));
            }
        }
    }
}

const ALWAYS: [&str; 10] = [
    "tick",
    "tick, two seconds later",
    "resume",
    "the copy job says yes",
    "the copy job says no",
    "the control plane starts anew",
    "starts anew from its disk",
    "is heard",
    "is applied",
    "is acknowledged",
];

#[test]
fn through_sidecars_nothing_is_lost_however_often_it_is_tried() {
    nothing(
        "sidecars, three callers, again",
        &model(Way::Sidecars, 3, 4),
        &[&ALWAYS[..], &["is sent on", "pause"]].concat(),
    );
}

#[test]
fn through_sidecars_nothing_is_lost_there_and_back() {
    let back = Model { reverses: true, ..model(Way::Sidecars, 2, 5) };
    nothing(
        "sidecars, two callers, there and back",
        &back,
        &[&ALWAYS[..], &["is sent on", "is sent on twice", "reverse"]].concat(),
    );
}

#[test]
fn where_apps_are_called_themselves_nothing_is_lost_however_often_it_is_tried() {
    nothing("apps themselves, three callers, once", &model(Way::Direct, 3, 2), &ALWAYS[..1]);
    nothing("apps themselves, two callers, again", &model(Way::Direct, 2, 4), &ALWAYS);
}

#[test]
fn where_apps_are_called_themselves_nothing_is_lost_there_and_back() {
    let back = Model { reverses: true, pauses: false, ..model(Way::Direct, 2, 5) };
    nothing("apps themselves, two callers, there and back", &back, &[&ALWAYS[..], &["reverse"]].concat());
}

#[test]
fn nothing_is_closed_for_a_target_that_has_not_heard_of_it() {
    let late = Model { is_target_late: true, ..model(Way::Sidecars, 2, 4) };
    nothing("sidecars, two callers, a late target", &late, &[&ALWAYS[..], &["is sent on", "pause"]].concat());
    something(&late, &[Fault::DeafTarget]);
}

#[test]
fn apps_that_were_called_themselves_may_get_sidecars_meanwhile() {
    let fronts = Model { fronts: true, ..model(Way::Direct, 2, 2) };
    nothing("apps themselves, two callers, then sidecars", &fronts, &["tick", "sidecars appear"]);
    something(&fronts, &[Fault::DirectForgotten]);
}

#[test]
fn a_protocol_that_leaves_something_out_is_found_out() {
    let faults = [
        Fault::NotPersisted,
        Fault::OwnerReopens,
        Fault::InFlightIgnored,
        Fault::OlderWord,
        Fault::NoFence,
        Fault::NoLastCopy,
        Fault::DiskGoesBack,
    ];
    something(&model(Way::Sidecars, 2, 4), &faults);
    let faults = [
        Fault::NotPersisted,
        Fault::InFlightIgnored,
        Fault::NoFence,
        Fault::NoLastCopy,
        Fault::RosterForgotten,
        Fault::DiskGoesBack,
    ];
    something(&model(Way::Direct, 2, 2), &faults);
}
