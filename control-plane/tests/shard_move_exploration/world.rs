//! The world of the exploration: two owners, callers with a write each, one control plane, and everything that can come next.
//!
//! What may be late may be late for ever, so some things need no steps of their own: a write that its caller or its owner holds
//! is one that is not sent or has not arrived yet; a snapshot that is skipped is one that was there for no time; an ack that is
//! lost is one that is never heard; and a proxy that is cut off is one that gets no snapshot.

use gilmok_config::hash::short_hash;

use crate::pieces::{ANNOUNCED, EPOCHS, Fault, Heard, Moving, Pieces, Verdict, WORDS, Way, Word};

/// Most proxies that report: two sidecars, or three callers.
pub(crate) const PROXIES: usize = 3;
/// Most writes: one of each caller.
const WRITES: usize = 3;
/// Most revisions.
const REVISIONS: usize = 16;

/// What a proxy says of the batch that is closed in the snapshot it runs; `closed` is zero where none is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Said {
    pub(crate) closed: u8,
    pub(crate) busy: bool,
    pub(crate) persisted: bool,
    /// Whether it runs what announces the batch: asked of the target, where that may not have heard of it.
    pub(crate) knows: bool,
}

/// Where a write is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    #[default]
    Unsent,
    /// On its way to an owner.
    Sent,
    /// Let through to the app, which has not done it yet.
    AtApp,
    Applied,
    Acknowledged,
    /// Whoever sent it knows nothing, or that nothing was done.
    Failed,
}

/// One write of the key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Write {
    phase: Phase,
    /// The owner that it is on its way to, or at.
    to: u8,
    /// What its caller knew.
    epoch: u8,
    redirected: bool,
    /// Which owners have it.
    stored: [bool; 2],
}

/// A proxy with a snapshot: a sidecar, or a caller where callers report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Proxy {
    /// The revision that it runs.
    seen: u8,
    /// The one on its disk.
    disk: u8,
    /// The ack on the wire, which may arrive at any time, more than once, or never.
    sent: Said,
    /// What the control plane has heard last.
    heard: Said,
}

/// One state of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    /// The table of each revision, as far as a proxy that reports may still come to run it.
    tables: [u8; REVISIONS],
    pub(crate) head: u8,
    pub(crate) moving: u8,
    /// What callers who are cut off may still go by: a bit for each epoch and holder.
    past: u16,
    /// Whether what was written last is copied, for whoever asks now.
    copied: bool,
    /// Whether the control plane knows every proxy.
    knows: bool,
    /// Whether a sidecar stands before each app by now.
    fronted: bool,
    proxies: [Proxy; PROXIES],
    writes: [Write; WRITES],
}

/// What happened and to whom, for whoever follows the way to a violation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step(pub(crate) &'static str, pub(crate) u8);

/// The bounds of one exploration. Restarts and acks have none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Model {
    pub(crate) way: Way,
    pub(crate) fault: Fault,
    pub(crate) callers: u8,
    /// Revisions after the one that announces the batch.
    pub(crate) revisions: u8,
    /// Whether operators reverse the move.
    pub(crate) reverses: bool,
    /// Whether they pause it.
    pub(crate) pauses: bool,
    /// Whether apps that are called themselves get a sidecar.
    pub(crate) fronts: bool,
    /// Whether the target's sidecar has yet to hear of the batch when it begins.
    pub(crate) is_target_late: bool,
}

/// The place of the target's sidecar, where the move is not reversed.
const TARGET: usize = 1;

impl Model {
    fn reporting(&self) -> u8 {
        if self.way == Way::Sidecars { 2 } else { self.callers }
    }
}

impl State {
    /// The batch is announced, and everybody knows.
    pub(crate) fn first(model: &Model, moving: u8, before: u8, announced: u8, pieces: &Pieces) -> Self {
        let mut tables = [0; REVISIONS];
        (tables[0], tables[1]) = (before, announced);
        let proxy = Proxy { seen: ANNOUNCED, disk: ANNOUNCED, ..Proxy::default() };
        let mut state = Self {
            tables,
            head: 1,
            moving,
            past: 0,
            copied: false,
            knows: true,
            fronted: false,
            proxies: [proxy; PROXIES],
            writes: Default::default(),
        };
        if model.is_target_late {
            state.proxies[TARGET] = Proxy::default();
        }
        for write in &mut state.writes[usize::from(model.callers)..] {
            write.phase = Phase::Failed;
        }
        state.remember(pieces);
        state
    }

    fn table(&self, revision: u8) -> u8 {
        self.tables[usize::from(revision)]
    }

    pub(crate) fn newest(&self) -> u8 {
        self.table(self.head)
    }

    fn heard(&self) -> Heard {
        Heard { said: self.proxies.map(|proxy| proxy.heard), knows: self.knows, fronted: self.fronted }
    }

    /// Whoever does not report may go by the newest revision from now on, for ever.
    fn remember(&mut self, pieces: &Pieces) {
        let table = pieces.table_at(self.newest());
        if !table.is_held {
            self.past |= 1 << (2 * table.epoch + table.holder);
        }
    }

    /// The same for every state that differs in nothing that matters.
    pub(crate) fn fingerprint(&mut self, model: &Model, pieces: &Pieces) -> u64 {
        self.forget(model, pieces);
        let mut bytes = [0_u8; REVISIONS + 6 + 6 * PROXIES + 4 * WRITES];
        let (tables, rest) = bytes.split_at_mut(REVISIONS);
        tables.copy_from_slice(&self.tables);
        let [past, past_too] = self.past.to_le_bytes();
        let mut at = 0;
        let mut put = |byte: u8| {
            rest[at] = byte;
            at += 1;
        };
        put(self.head);
        put(self.moving);
        put(past);
        put(past_too);
        put(u8::from(self.fronted) << 2 | u8::from(self.copied) << 1 | u8::from(self.knows));
        for proxy in &self.proxies {
            put(proxy.seen);
            put(proxy.disk);
            for said in [proxy.sent, proxy.heard] {
                put(said.closed);
                put(u8::from(said.knows) << 2 | u8::from(said.busy) << 1 | u8::from(said.persisted));
            }
        }
        for write in &self.writes {
            put(write.phase as u8);
            put(write.to);
            put(write.epoch);
            put(u8::from(write.stored[0]) << 2 | u8::from(write.stored[1]) << 1 | u8::from(write.redirected));
        }
        short_hash(&bytes)
    }

    /// Leaves out what nothing that follows depends on, and names callers in one order.
    fn forget(&mut self, model: &Model, pieces: &Pieces) {
        for write in &mut self.writes {
            match write.phase {
                Phase::Sent if model.way == Way::Direct => write.epoch = 0,
                Phase::Sent => {}
                Phase::AtApp | Phase::Applied => (write.epoch, write.redirected) = (0, false),
                Phase::Acknowledged => (write.to, write.epoch, write.redirected) = (0, 0, false),
                // Nobody was told that it is there.
                Phase::Unsent | Phase::Failed => *write = Write { phase: write.phase, ..Write::default() },
            }
        }
        let closed = pieces.table_at(self.newest()).closed;
        for proxy in &mut self.proxies {
            for said in [&mut proxy.sent, &mut proxy.heard] {
                // Nobody asks for words about an earlier closing, unless that is the fault.
                if said.closed != closed && model.fault != Fault::OlderWord {
                    *said = Said { knows: said.knows, ..Said::default() };
                }
            }
        }
        match model.way {
            Way::Sidecars => {
                self.proxies[2] = Proxy::default();
                self.writes.sort_unstable();
            }
            Way::Direct => {
                let callers = usize::from(model.callers);
                self.proxies[callers..].fill(Proxy::default());
                let mut both: [_; PROXIES] = std::array::from_fn(|at| (self.proxies[at], self.writes[at]));
                both[..callers].sort_unstable();
                self.proxies = both.map(|(proxy, _)| proxy);
                self.writes = both.map(|(_, write)| write);
                self.past = 0;
            }
        }
        let reporting = &self.proxies[..usize::from(model.reporting())];
        let oldest = reporting.iter().map(|proxy| proxy.seen.min(proxy.disk)).min().unwrap_or_default();
        self.tables[..usize::from(oldest)].fill(0);
    }

    /// What is wrong in this state, if anything is.
    pub(crate) fn violation(&self, model: &Model, pieces: &Pieces) -> Option<&'static str> {
        let holder = usize::from(pieces.table_at(self.newest()).holder);
        if self.writes.iter().any(|write| write.phase == Phase::Acknowledged && !write.stored[holder]) {
            return Some("a write that was acknowledged is not at the owner of its key");
        }
        let serves = |owner: u8| {
            let runs = self.table(self.proxies[usize::from(owner)].seen);
            pieces.verdict(runs, owner, 0) == Verdict::Serve
        };
        if model.way == Way::Sidecars && serves(0) && serves(1) {
            return Some("two owners serve writes of one key");
        }
        let is_closed = pieces.table_at(self.newest()).closed > 0;
        if model.is_target_late && is_closed && !self.proxies[TARGET].sent.knows {
            return Some("a batch is closed for a target that has never said that it knows of it");
        }
        None
    }

    /// Everything that can come next.
    pub(crate) fn next(&self, model: &Model, pieces: &mut Pieces, next: &mut Vec<(Step, Self)>) {
        self.plane(model, pieces, next);
        for at in 0..model.reporting() {
            self.proxy(at, model, pieces, next);
        }
        for at in 0..model.callers {
            self.write(at, model, pieces, next);
        }
    }

    /// What the control plane, its operators and their copy jobs may do.
    fn plane(&self, model: &Model, pieces: &mut Pieces, next: &mut Vec<(Step, Self)>) {
        let (moving, newest, revision) = (self.moving, self.newest(), self.head + 1);
        let ticks = pieces.ticks(moving, newest, self.heard(), revision);
        for (done, step) in ticks.into_iter().zip(["tick", "tick, two seconds later"]) {
            let done = done.and_then(|done| self.written(done, model, pieces));
            next.extend(done.map(|state| (Step(step, 0), state)));
        }
        let words = pieces.words(moving, newest, revision);
        for (done, word) in words.into_iter().zip(WORDS) {
            let (step, may) = match word {
                Word::Copied => ("the copy job says yes", self.copied),
                Word::NotCopied => ("the copy job says no", true),
                Word::Pause => ("pause", model.pauses),
                Word::Resume => ("resume", true),
                Word::Reverse => ("reverse", model.reverses),
            };
            let done = done.filter(|_| may).and_then(|done| self.written(done, model, pieces));
            next.extend(done.map(|state| (Step(step, 0), state)));
        }
        let Moving { leg, is_fenced_asked, .. } = pieces.moving(moving);
        if let Some((source, target)) = leg.filter(|_| *is_fenced_asked && !self.copied) {
            let mut state = Self { copied: true, ..*self };
            for write in &mut state.writes {
                write.stored[usize::from(target)] = write.stored[usize::from(source)];
            }
            next.push((Step("what was written last is copied", 0), state));
        }
        if model.fronts && !self.fronted {
            // Callers go on as they knew: whoever goes through it is no worse off than through any sidecar.
            next.push((Step("sidecars appear", 0), Self { fronted: true, ..*self }));
        }
        if self.knows != pieces.remembers() || self.proxies.iter().any(|proxy| proxy.heard.closed > 0) {
            let mut state = Self { knows: pieces.remembers(), ..*self };
            // What a proxy runs is remembered, what it has closed is not.
            for proxy in &mut state.proxies {
                proxy.heard = Said { knows: proxy.heard.knows, ..Said::default() };
            }
            next.push((Step("the control plane starts anew", 0), state));
        }
    }

    /// After a write of the control plane. Nothing where it may not write any more.
    fn written(&self, (moving, table): (u8, Option<u8>), model: &Model, pieces: &Pieces) -> Option<Self> {
        let mut state = Self { moving, ..*self };
        if let Some(table) = table {
            state.head += 1;
            if state.head > 1 + model.revisions {
                return None;
            }
            state.tables[usize::from(state.head)] = table;
            state.remember(pieces);
        }
        state.copied &= pieces.moving(moving).is_fenced_asked;
        Some(state)
    }

    /// What a proxy that reports may do.
    fn proxy(&self, at: u8, model: &Model, pieces: &Pieces, next: &mut Vec<(Step, Self)>) {
        let place = usize::from(at);
        let proxy = self.proxies[place];
        let mut push = |step: &'static str, changed: Proxy| {
            let mut state = *self;
            state.proxies[place] = changed;
            next.push((Step(step, at), state));
        };
        if proxy.seen < self.head {
            push("gets a snapshot", Proxy { seen: proxy.seen + 1, ..proxy });
        }
        if proxy.disk != proxy.seen {
            push("writes its disk", Proxy { disk: proxy.seen, ..proxy });
        }
        // The target's sidecar is not asked what it has closed.
        let is_asked = model.way == Way::Direct
            || pieces.moving(self.moving).leg.is_some_and(|(source, _)| source == at);
        let says = self.says(place, model, pieces);
        let is_news = |said: Said| said.closed > 0 || said.knows;
        if (is_asked || says.knows) && says != proxy.sent && is_news(says) {
            push("sends an ack", Proxy { sent: says, ..proxy });
        }
        if proxy.sent != proxy.heard && is_news(proxy.sent) {
            push("is heard", Proxy { heard: proxy.sent, ..proxy });
        }
        let back = u8::from(model.fault == Fault::DiskGoesBack && proxy.disk > 1);
        let disk = proxy.disk - back;
        let mut state = *self;
        state.proxies[place] = Proxy { seen: disk, disk, ..proxy };
        if state.drop_writes_of(place, model) || disk != proxy.seen {
            next.push((Step("starts anew from its disk", at), state));
        }
    }

    /// What is under way through a proxy that ends is never acknowledged; whether there was anything.
    fn drop_writes_of(&mut self, place: usize, model: &Model) -> bool {
        let mut any = false;
        for (at, write) in self.writes.iter_mut().enumerate() {
            let is_here = match model.way {
                Way::Direct => {
                    at == place && matches!(write.phase, Phase::Sent | Phase::AtApp | Phase::Applied)
                }
                Way::Sidecars => {
                    usize::from(write.to) == place && matches!(write.phase, Phase::AtApp | Phase::Applied)
                }
            };
            if is_here {
                write.phase = Phase::Failed;
                any = true;
            }
        }
        any
    }

    /// What a proxy would say now.
    fn says(&self, place: usize, model: &Model, pieces: &Pieces) -> Said {
        let proxy = self.proxies[place];
        if model.is_target_late && place == TARGET {
            return Said { knows: proxy.seen >= ANNOUNCED, ..Said::default() };
        }
        let closed = pieces.table_at(self.table(proxy.seen)).closed;
        if closed == 0 {
            return Said::default();
        }
        let busy = self.writes.iter().enumerate().any(|(at, write)| match model.way {
            Way::Sidecars => {
                usize::from(write.to) == place && matches!(write.phase, Phase::AtApp | Phase::Applied)
            }
            Way::Direct => at == place && matches!(write.phase, Phase::Sent | Phase::AtApp | Phase::Applied),
        });
        let persisted = pieces.table_at(self.table(proxy.disk)).closed == closed;
        Said { closed, busy, persisted, knows: false }
    }

    /// What may become of a write.
    fn write(&self, at: u8, model: &Model, pieces: &Pieces, next: &mut Vec<(Step, Self)>) {
        let write = self.writes[usize::from(at)];
        let mut push = |step: &'static str, changed: Write| {
            let mut state = *self;
            state.writes[usize::from(at)] = changed;
            next.push((Step(step, at), state));
        };
        match write.phase {
            Phase::Unsent if model.way == Way::Direct => {
                let table = pieces.table_at(self.table(self.proxies[usize::from(at)].seen));
                if !table.is_held {
                    push("sends its write", Write { phase: Phase::Sent, to: table.holder, ..write });
                }
            }
            Phase::Unsent => {
                // A caller that does not report may be cut off for as long as it likes, and go by anything.
                for bit in (0..2 * EPOCHS).filter(|bit| self.past >> bit & 1 == 1) {
                    let (epoch, to) = (bit / 2, bit % 2);
                    push("sends its write", Write { phase: Phase::Sent, to, epoch, ..write });
                }
            }
            Phase::Sent if model.way == Way::Direct => {
                push("reaches the app", Write { phase: Phase::AtApp, ..write })
            }
            Phase::Sent => {
                let seen = self.proxies[usize::from(write.to)].seen;
                match pieces.verdict(self.table(seen), write.to, write.epoch) {
                    Verdict::Serve => push("is let through", Write { phase: Phase::AtApp, ..write }),
                    Verdict::Wait => {}
                    Verdict::Elsewhere(_) if write.redirected => {
                        push("is sent on twice", Write { phase: Phase::Failed, ..write });
                    }
                    Verdict::Elsewhere(to) => push("is sent on", Write { to, redirected: true, ..write }),
                }
            }
            Phase::AtApp => {
                let mut applied = Write { phase: Phase::Applied, ..write };
                applied.stored[usize::from(write.to)] = true;
                push("is applied", applied);
            }
            Phase::Applied => push("is acknowledged", Write { phase: Phase::Acknowledged, ..write }),
            Phase::Acknowledged | Phase::Failed => {}
        }
    }
}
