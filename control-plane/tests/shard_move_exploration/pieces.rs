//! The pieces that are explored, as they are in the program: the move, the fence, the table and the verdicts of proxies. Each
//! question is asked once and remembered, and what does not matter for what follows (times, words, history) is left out.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use gilmok_config::document::Document;
use gilmok_config::endpoint::Endpoint;
use gilmok_config::name::{Name, ServiceName};
use gilmok_config::sharding::moving::{AtOwner, HOLD_MAX};
use gilmok_config::sharding::plan::plan;
use gilmok_config::sharding::{Sharded, Sharding};
use gilmok_config::wire::{FenceReport, InboundApp};
use gilmok_control_plane::resharding::fence::{Fence, Report, Scene, fence};
use gilmok_control_plane::resharding::state::{Edit, Hand, Seen, ShardMove, Stage};
use gilmok_control_plane::resharding::table::{edited, rule};
use gilmok_control_plane::resharding::target::unheard;
use gilmok_control_plane::resharding::wanted;
use gilmok_control_plane::webhook::{Agreement, Occasion};
use serde_json::{Value, json};

use crate::world::{Model, PROXIES, Said};

/// The shards, by the places at which the model knows them.
const SHARDS: [&str; 2] = ["a", "t"];
/// The key that is written: of the batch.
const KEY: &[u8] = b"1";
/// The revision that announces the batch.
pub(crate) const ANNOUNCED: u8 = 1;
const SILENT_MAX: Duration = Duration::from_secs(15);
/// Epochs that a caller may have heard of.
pub(crate) const EPOCHS: u8 = 8;

/// What is left out or done wrong, to see whether it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing: the protocol as it is.
    None,
    /// A batch is handed over although a restart would not find it closed.
    NotPersisted,
    /// An owner that has waited for long serves again by itself.
    OwnerReopens,
    /// What is under way when the batch is closed is not waited for.
    InFlightIgnored,
    /// A word about an earlier closing counts for this one.
    OlderWord,
    /// Nobody's word is waited for.
    NoFence,
    /// What was written last is not copied before the batch is handed over.
    NoLastCopy,
    /// A control plane that starts anew does not know whom the one before it knew.
    RosterForgotten,
    /// It is not waited for until the target's sidecar says that it knows of the batch.
    DeafTarget,
    /// Once a sidecar is in front of an app, nobody remembers that the app was called itself.
    DirectForgotten,
    /// A proxy finds an older snapshot after a restart than the one that it had on its disk.
    DiskGoesBack,
}

/// How callers reach the shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Through a sidecar of each shard.
    Sidecars,
    /// The apps themselves: every caller stands for itself.
    Direct,
}

/// What an owner does, with the shard that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Serve,
    Wait,
    Elsewhere(u8),
}

/// A service's table at one revision, and what proxies make of it for the key.
#[derive(Debug)]
pub(crate) struct Table {
    json: Value,
    pub(crate) epoch: u8,
    /// Zero while no batch is closed.
    pub(crate) closed: u8,
    /// Whose the key is.
    pub(crate) holder: u8,
    /// Whether callers hold a write of it.
    pub(crate) is_held: bool,
    at_owner: [[Verdict; EPOCHS as usize]; 2],
}

/// Things that are asked again and again, by small numbers.
#[derive(Debug)]
struct Known<T> {
    things: Vec<T>,
    places: HashMap<String, u8>,
}

impl<T> Known<T> {
    fn new() -> Self {
        Self { things: Vec::new(), places: HashMap::new() }
    }

    fn place(&mut self, key: String, thing: impl FnOnce() -> T) -> u8 {
        if let Some(place) = self.places.get(&key) {
            return *place;
        }
        let place = u8::try_from(self.things.len()).expect("few of them");
        self.things.push(thing());
        self.places.insert(key, place);
        place
    }
}

/// What the control plane does: another move, and what becomes of the table.
pub(crate) type Done = (u8, Option<u8>);

/// A word to a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Word {
    Pause,
    Resume,
    Reverse,
    /// The webhook `fenced` says that what was written last is copied.
    Copied,
    /// Or that it is not.
    NotCopied,
}

pub(crate) const WORDS: [Word; 5] = [Word::Pause, Word::Resume, Word::Reverse, Word::Copied, Word::NotCopied];

/// What a tick goes by.
type TickKey = (u8, u8, Heard, u8);

/// What a control plane has heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Heard {
    pub(crate) said: [Said; PROXIES],
    /// Whether it knows every proxy.
    pub(crate) knows: bool,
    /// Whether a sidecar stands before each app that was called itself; it has closed whatever is closed.
    pub(crate) fronted: bool,
}

impl Heard {
    /// All proxies are known, and say this.
    pub(crate) fn all(said: Said) -> Self {
        Self { said: [said; PROXIES], knows: true, fronted: false }
    }
}

#[derive(Debug)]
pub(crate) struct Pieces {
    way: Way,
    fault: Fault,
    callers: usize,
    /// Whether the target's sidecar has yet to hear of the batch.
    is_target_late: bool,
    moves: Known<Moving>,
    tables: Known<Table>,
    ticks: HashMap<TickKey, [Option<Done>; 2]>,
    words: HashMap<(u8, u8, u8), [Option<Done>; WORDS.len()]>,
}

/// A move, and what is asked of it most often.
#[derive(Debug)]
pub(crate) struct Moving {
    pub(crate) state: ShardMove,
    /// From where to where the batch goes now.
    pub(crate) leg: Option<(u8, u8)>,
    /// Whether somebody is asked to copy what was written last.
    pub(crate) is_fenced_asked: bool,
}

fn name(text: &str) -> Name {
    Name::parse(text).expect("a name")
}

fn service() -> ServiceName {
    ServiceName::parse("s").expect("a name")
}

fn address(shard: usize) -> String {
    format!("10.0.0.{}:80", shard + 1)
}

/// What the sidecar of a shard says is beside it.
fn app(at: usize) -> InboundApp {
    InboundApp { service: service(), shard: name(SHARDS[at]), address: Some(address(at)) }
}

impl Pieces {
    /// A move of one batch that is announced and copied, and the table that says so.
    pub(crate) fn new(model: &Model) -> (Self, Done) {
        let mut pieces = Self {
            way: model.way,
            fault: model.fault,
            callers: usize::from(model.callers),
            is_target_late: model.is_target_late,
            moves: Known::new(),
            tables: Known::new(),
            ticks: HashMap::new(),
            words: HashMap::new(),
        };
        let table = json!({
            "key": "host", "strategy": "slots", "slots": 2, "hash": "identity", "map": {"a": "0-1"}, "shards": ["a", "t"],
        });
        let webhooks = json!([{"url": "http://127.0.0.1/", "on": ["fenced"]}]);
        let asked = wanted::read(&json!({"map": {"a": "0", "t": "1"}, "webhooks": webhooks}));
        let asked = asked.expect("it is understood");
        let batches = wanted::batches(&table, &plan(&table, &asked.wanted).expect("it can be moved"));
        assert_eq!(batches.len(), 1);
        let moving = ShardMove::new(rule(&table), batches, asked.webhooks, &hand(0));
        let first = pieces.keep(moving);
        let before = pieces.table(table);
        let [announced, _] = pieces.ticks(first, before, Heard::all(Said::default()), 1);
        let (announced, after) = announced.expect("it is announced");
        let after = after.expect("in the table");
        let copied = pieces.say(announced, after, Word::Resume, 1);
        let (copied, same) = copied.expect("somebody says that it is copied");
        assert_eq!(same, None);
        (pieces, (copied, Some(after)))
    }

    pub(crate) fn table_at(&self, place: u8) -> &Table {
        &self.tables.things[usize::from(place)]
    }

    pub(crate) fn moving(&self, place: u8) -> &Moving {
        &self.moves.things[usize::from(place)]
    }

    /// Whether a control plane that starts anew knows whom the one before it knew.
    pub(crate) fn remembers(&self) -> bool {
        self.fault != Fault::RosterForgotten
    }

    pub(crate) fn verdict(&self, table: u8, owner: u8, epoch: u8) -> Verdict {
        let verdict = self.table_at(table).at_owner[usize::from(owner)][usize::from(epoch)];
        if self.fault == Fault::OwnerReopens
            && verdict == Verdict::Wait
            && self.table_at(table).holder == owner
        {
            return Verdict::Serve;
        }
        verdict
    }

    /// A tick of whoever conducts the move, at once or when the batch has been closed for too long; nothing where it changes
    /// nothing.
    pub(crate) fn ticks(&mut self, moving: u8, table: u8, heard: Heard, revision: u8) -> [Option<Done>; 2] {
        let key = (moving, table, heard, revision);
        if let Some(done) = self.ticks.get(&key) {
            return *done;
        }
        let mut seen = self.moving(moving).state.clone();
        let endpoints = self.endpoints(heard.fronted);
        if self.fault != Fault::DirectForgotten {
            seen.saw(&endpoints);
        }
        let fence = self.fence(&seen, &endpoints, &heard);
        let lack = self.lack(&seen, &endpoints, &heard);
        let done = [Duration::ZERO, HOLD_MAX].map(|closed_for| {
            let mut next = seen.clone();
            let seen = Seen { now_ms: 0, closed_for, lack: lack.clone(), fence: &fence };
            let edit = next.tick(&seen, u64::from(revision));
            self.done(moving, next, table, edit, revision)
        });
        self.ticks.insert(key, done);
        done
    }

    /// What each word of [`WORDS`] comes to; nothing where it changes nothing.
    pub(crate) fn words(&mut self, moving: u8, table: u8, revision: u8) -> [Option<Done>; WORDS.len()] {
        let key = (moving, table, revision);
        if let Some(done) = self.words.get(&key) {
            return *done;
        }
        let done = WORDS.map(|word| self.say(moving, table, word, revision));
        self.words.insert(key, done);
        done
    }

    /// A word of an operator or a webhook.
    fn say(&mut self, moving: u8, table: u8, word: Word, revision: u8) -> Option<Done> {
        let mut next = self.moving(moving).state.clone();
        let hand = hand(revision);
        let mut answered = |answer: Result<Agreement, String>| {
            let asked = next.owed.iter().find(|owed| owed.occasion == Occasion::Fenced).cloned();
            asked.and_then(|owed| next.answered(&owed, &answer, &hand))
        };
        let said = match word {
            Word::Copied => Ok(answered(Ok(Agreement::Done))),
            Word::NotCopied => Ok(answered(Err("no".to_owned()))),
            Word::Pause => next.told_to_pause(&hand),
            Word::Resume => next.told_to_resume(false, &hand),
            Word::Reverse => next.told_to_reverse(&hand),
        };
        said.ok().and_then(|edit| self.done(moving, next, table, edit, revision))
    }

    fn done(
        &mut self,
        before: u8,
        next: ShardMove,
        table: u8,
        edit: Option<Edit>,
        revision: u8,
    ) -> Option<Done> {
        let rule = next.next_rule();
        let after = edit.map(|edit| {
            let json = edited(&self.table_at(table).json, edit, &rule, u64::from(revision));
            self.table(json)
        });
        let next = self.keep(next);
        (next != before || after.is_some()).then_some((next, after))
    }

    /// Keeps a move without what does not matter any more.
    fn keep(&mut self, mut moving: ShardMove) -> u8 {
        moving.history.clear();
        moving.happened = 0;
        moving.messages = 0;
        moving.announced = 0;
        moving.why.clear();
        (moving.since_ms, moving.started_ms, moving.ended_ms) = (0, 0, None);
        for owed in &mut moving.owed {
            owed.number = 1;
            owed.why.clear();
        }
        if moving.stage != Stage::Copying && self.fault == Fault::NoLastCopy {
            // As if the copy job had said yes without a look.
            if let Some(fenced) = &mut moving.fenced {
                fenced.agreed = true;
                moving.owed.clear();
            }
        }
        let key = serde_json::to_string(&moving).expect("it becomes JSON");
        let place = |name: &Name| u8::from(name.as_str() == SHARDS[1]);
        self.moves.place(key, || Moving {
            leg: moving.leg().map(|leg| (place(leg.source), place(leg.target))),
            is_fenced_asked: moving.owed.iter().any(|owed| owed.occasion == Occasion::Fenced),
            state: moving,
        })
    }

    fn table(&mut self, json: Value) -> u8 {
        self.tables.place(json.to_string(), || Table::new(json))
    }

    /// Who serves the shards.
    fn endpoints(&self, fronted: bool) -> Vec<Endpoint> {
        let endpoint = |(at, shard): (usize, &&str)| Endpoint {
            shard: name(shard),
            inbound: fronted || self.way == Way::Sidecars,
            ..Endpoint::at(address(at).parse().expect("an address"))
        };
        SHARDS.iter().enumerate().map(endpoint).collect()
    }

    /// What the target lacks, as far as was heard.
    fn lack(&self, moving: &ShardMove, endpoints: &[Endpoint], heard: &Heard) -> Option<String> {
        if !self.is_target_late || self.fault == Fault::DeafTarget || moving.stage == Stage::Prepare {
            return None;
        }
        let target = moving.leg()?.target;
        let reports: Vec<Report> = heard
            .said
            .iter()
            .enumerate()
            .take(SHARDS.len())
            .map(|(at, said)| self.report(at, *said, 0))
            .collect();
        unheard(target, endpoints, &reports, u64::from(ANNOUNCED), SILENT_MAX)
    }

    /// What the real fence says of what was heard.
    fn fence(&self, moving: &ShardMove, endpoints: &[Endpoint], heard: &Heard) -> Fence {
        let (Some(leg), Some(closed)) = (moving.leg(), moving.closed()) else {
            return Fence::Waits(Vec::new());
        };
        let proxies = if self.way == Way::Sidecars { SHARDS.len() } else { self.callers };
        let mut reports: Vec<Report> = heard.said[..proxies]
            .iter()
            .enumerate()
            .filter(|(_, said)| heard.knows || **said != Said::default())
            .map(|(at, said)| self.report(at, *said, closed))
            .collect();
        if heard.fronted {
            let closed = u8::try_from(closed).expect("few");
            let sidecar = |at| Report {
                apps: vec![app(at)],
                ..self.report(
                    PROXIES + at,
                    Said { closed, persisted: true, ..Said::default() },
                    u64::from(closed),
                )
            };
            reports.extend((0..SHARDS.len()).map(sidecar));
        }
        if self.fault == Fault::NoFence {
            return Fence::Complete { by: String::new() };
        }
        fence(&Scene {
            source: leg.source,
            closed,
            endpoints,
            was_direct: moving.direct.contains(leg.source),
            reports: &reports,
            silent_max: SILENT_MAX,
            forced: false,
        })
    }

    /// What a proxy said, as the control plane keeps it.
    fn report(&self, at: usize, said: Said, closed: u64) -> Report {
        let apps = if self.way == Way::Sidecars { vec![app(at)] } else { Vec::new() };
        let busy = u64::from(said.busy && self.fault != Fault::InFlightIgnored);
        let fence = (said.closed > 0).then(|| FenceReport {
            service: service(),
            closed: if self.fault == Fault::OlderWord { closed } else { u64::from(said.closed) },
            calling: if self.way == Way::Direct { busy } else { 0 },
            serving: if self.way == Way::Sidecars { busy } else { 0 },
            persisted: said.persisted || self.fault == Fault::NotPersisted,
        });
        Report {
            node: format!("proxy-{at}"),
            silent: Duration::ZERO,
            is_leaving: false,
            is_replaced: false,
            runs: said.knows.then_some(u64::from(ANNOUNCED)),
            apps,
            fence,
        }
    }
}

fn hand(revision: u8) -> Hand<'static> {
    Hand { by: "somebody", why: "", now_ms: 0, revision: u64::from(revision) }
}

impl Table {
    fn new(json: Value) -> Self {
        let document =
            Document::parse_json(&json!({"services": {"s": {"sharding": json}}})).expect("a sound table");
        let rule: &Sharding = document.services[&service()].sharding.as_deref().expect("a rule");
        let sharded = Sharded::At(rule.locate(KEY).expect("a shard"));
        let place = |at: usize| u8::from(rule.shards()[at].as_str() == SHARDS[1]);
        let verdict =
            |owner: &str, epoch: u8| match rule.at_owner(owner, sharded, false, Some(u64::from(epoch))) {
                AtOwner::Serve => Verdict::Serve,
                AtOwner::Wait => Verdict::Wait,
                AtOwner::Elsewhere(at) => Verdict::Elsewhere(place(at)),
            };
        let of_owner =
            |owner: &str| std::array::from_fn(|epoch| verdict(owner, u8::try_from(epoch).expect("few")));
        let closed = rule.next().and_then(|next| next.closed()).unwrap_or_default();
        Self {
            epoch: u8::try_from(rule.epoch()).expect("few"),
            closed: u8::try_from(closed).expect("few"),
            holder: place(sharded.shard().expect("a shard")),
            is_held: rule.is_held(sharded, false),
            at_owner: SHARDS.map(of_owner),
            json,
        }
    }

    /// Whether the document speaks of a batch.
    pub(crate) fn has_next(&self) -> bool {
        self.json.get("next").is_some()
    }
}
