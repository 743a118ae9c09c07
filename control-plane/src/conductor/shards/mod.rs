//! Conducts moves of shards: hears what proxies have closed, lets each move go on, writes what it came to, tells others.
//!
//! What decides is pure and lives in [`crate::resharding`]; that nobody acts twice is the store's compare-and-set.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gilmok_config::endpoint::Endpoint;
use gilmok_config::name::{Name, ServiceName};
use gilmok_config::sharding::moving::HOLD_MAX;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::notify::{Answer, Notice, Teller};
use crate::compile::Published;
use crate::intent::{Command, ConductMove, Refusal, endpoints_of};
use crate::publish::LIVE;
use crate::record::Record;
use crate::resharding::fence::{self, Fence, Report, Scene, Waiting};
use crate::resharding::state::{Direction, Edit, Event, Hand, Leg, Seen, ShardMove, Stage, What};
use crate::resharding::target;
use crate::state::{Author, State, WriteError};
use crate::store::now_ms;
use crate::webhook::{Occasion, Owed};

/// How often moves are looked at when nothing else gives cause: what could not be written is tried again.
const TICK: Duration = Duration::from_secs(1);
/// Least time until a closed batch is looked at again because its time is over: what keeps it from being opened, e.g. a full disk,
/// is not gone at once.
const OVERDUE_PAUSE: Duration = Duration::from_millis(100);

/// Who conducts the moves of one control plane.
#[derive(Debug)]
pub struct Mover {
    state: Arc<State>,
    /// Holds what messages are signed with; without it nobody can be told.
    secret_file: Option<PathBuf>,
    /// The revisions by which this process has closed batches, and when: a clock that nobody sets. A std mutex: nothing is
    /// awaited under it.
    closed: Mutex<BTreeMap<ServiceName, (u64, Instant)>>,
}

/// What a move goes by.
struct Sight {
    lack: Option<String>,
    fence: Fence,
    closed_for: Duration,
}

impl Mover {
    #[must_use]
    pub fn new(state: Arc<State>, secret_file: Option<PathBuf>) -> Arc<Self> {
        Arc::new(Self { state, secret_file, closed: Mutex::default() })
    }

    /// A service's last move, with what it waits for at this moment.
    #[must_use]
    pub fn current(&self, service: &ServiceName) -> Option<(Box<ShardMove>, Vec<Waiting>)> {
        let mut moving = self.state.store.records().get(service)?.moving.clone()?;
        let Some(sight) =
            self.state.publisher.current().and_then(|now| self.sight(service, &mut moving, &now))
        else {
            return Some((moving, Vec::new()));
        };
        let mut soon = moving.clone();
        let seen = sight.seen();
        // What it is about to write is not there yet.
        let shown = if soon.tick(&seen, u64::MAX).is_none() { soon } else { moving };
        let waits = match sight.fence {
            Fence::Waits(waits) if shown.closed().is_some() => waits,
            Fence::Waits(_) | Fence::Complete { .. } => Vec::new(),
        };
        Some((shown, waits))
    }

    /// Conducts until it is dropped.
    pub async fn conduct(self: Arc<Self>) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut teller = Teller::new(self.secret_file.clone());
        let publisher = &self.state.publisher;
        let (mut changes, mut news) = (publisher.changes(), publisher.acks.news());
        loop {
            let left = self.time_left();
            let is_closed = left.is_some();
            let answer = tokio::select! {
                _ = ticks.tick() => None,
                answer = teller.heard() => Some(answer),
                // Somebody wrote: this process a moment ago, or an operator. What is in the store but not published yet is
                // nothing to decide by.
                Ok(()) = changes.changed() => None,
                // Callers wait for a closed batch, so every word about it counts at once.
                Ok(()) = news.changed(), if is_closed => None,
                () = sleep(left.unwrap_or_default()), if is_closed => None,
            };
            self.tick(answer.as_ref()).await;
            self.tell(&mut teller);
        }
    }

    /// How long the batch that was closed first may be closed yet; nothing where none is.
    fn time_left(&self) -> Option<Duration> {
        let records = self.state.store.records();
        let running = records.iter().filter_map(|(service, record)| Some((service, record.running_move()?)));
        let closed = running.filter(|(_, moving)| moving.closed().is_some());
        let left = closed.map(|(service, moving)| HOLD_MAX.saturating_sub(self.closed_for(service, moving)));
        left.min().map(|left| left.max(OVERDUE_PAUSE))
    }

    /// For how long a move's batch has been closed.
    fn closed_for(&self, service: &ServiceName, moving: &ShardMove) -> Duration {
        let Some(revision) = moving.closed() else { return Duration::ZERO };
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        match closed.get(service).filter(|(by, _)| *by == revision) {
            Some((_, at)) => at.elapsed(),
            // Another process has closed it. A clock that was set back says nothing, so its time is over.
            None => now_ms().checked_sub(moving.since_ms).map_or(HOLD_MAX, Duration::from_millis),
        }
    }

    /// Lets every move go on.
    async fn tick(&self, answer: Option<&Answer>) {
        let records = self.state.store.records();
        for (service, record) in records.iter() {
            let Some(moving) = &record.moving else { continue };
            let answer =
                answer.filter(|answer| answer.service == *service && answer.id == moving.id.to_string());
            if moving.is_running() || answer.is_some() {
                self.go_on(service, record, moving, answer).await;
            }
        }
    }

    /// Lets one move go on, and writes what it came to.
    async fn go_on(
        &self,
        service: &ServiceName,
        record: &Record,
        before: &ShardMove,
        answer: Option<&Answer>,
    ) {
        let Some(published) = self.state.publisher.current() else { return };
        let mut moving = before.clone();
        let Some(sight) = self.sight(service, &mut moving, &published) else { return };
        let revision = published.revision + 1;
        let answered = answer.and_then(|answer| {
            let hand = Hand { by: "webhook", why: "", now_ms: now_ms(), revision };
            moving.answered(&answer.owed, &answer.answer, &hand)
        });
        let edit = answered.or_else(|| moving.tick(&sight.seen(), revision));
        let mut kept = self.keep(service, record, &moving, edit, published.revision).await;
        if let Err(why) = &kept
            && edit != Some(Edit::Reopen)
        {
            let hand = Hand { by: "move", why: "", now_ms: now_ms(), revision };
            moving = before.clone();
            let edit = moving.refused(why, &hand);
            kept = self.keep(service, record, &moving, edit, published.revision).await;
        }
        // What was not kept is decided anew by the next tick.
        if kept == Ok(true) {
            let events = moving.happened - before.happened;
            let known = moving.history.len().saturating_sub(events);
            tell_of(service, &moving, &moving.history[known..]);
        }
    }

    /// Keeps where a move stands, and writes what becomes of the document; whether that was done.
    ///
    /// # Errors
    /// Why it would be no sound document.
    async fn keep(
        &self,
        service: &ServiceName,
        record: &Record,
        moving: &ShardMove,
        edit: Option<Edit>,
        number: u64,
    ) -> Result<bool, String> {
        if let Some(edit) = edit {
            return self.carry_out(service, record.seq, moving, edit, number).await;
        }
        let before = record.moving.as_deref();
        // In which words it waits is nothing to keep.
        if before.is_some_and(|before| ShardMove { why: before.why.clone(), ..moving.clone() } == *before) {
            return Ok(false);
        }
        let record = Record { moving: Some(Box::new(moving.clone())), ..record.clone() };
        Ok(self.state.store.keep_records(vec![(service.clone(), record)]).await.unwrap_or_else(|error| {
            tracing::error!("the move of shards of {service} is not kept: {error}");
            false
        }))
    }

    /// Writes what becomes of the document; whether that was done.
    ///
    /// # Errors
    /// Why it would be no sound document.
    async fn carry_out(
        &self,
        service: &ServiceName,
        seq: u64,
        moving: &ShardMove,
        edit: Edit,
        number: u64,
    ) -> Result<bool, String> {
        if edit == Edit::Close
            && let Err(error) = self.state.keep_proxies().await
        {
            // Should this process end now, the next one would not know whom to wait for.
            tracing::error!("the move of shards of {service} waits: {error}");
            return Ok(false);
        }
        let conduct = ConductMove { service: service.clone(), seq, moving: Box::new(moving.clone()), edit };
        let author = Author {
            who: "move".to_owned(),
            reason: moving.why.clone(),
            expected: Some(number),
            ..Author::default()
        };
        match self.state.write(&Command::ConductMove(conduct), &author).await {
            Ok(written) => {
                if edit == Edit::Close {
                    let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
                    closed.insert(service.clone(), (written.revision, Instant::now()));
                }
                Ok(true)
            }
            // Somebody else wrote meanwhile.
            Err(
                WriteError::Behind { .. } | WriteError::Contended | WriteError::Refused(Refusal::Conflict(_)),
            ) => Ok(false),
            Err(WriteError::Refused(refusal)) => {
                tracing::warn!("the move of shards of {service} cannot go on: {refusal:?}");
                Err(match refusal {
                    Refusal::Faulty(problems) | Refusal::Warned(problems) => problems.to_string(),
                    other => format!("{other:?}"),
                })
            }
            Err(WriteError::Store(error)) => {
                tracing::error!("the move of shards of {service} is not written: {error}");
                Ok(false)
            }
        }
    }

    /// What a move goes by at this moment, which it takes in.
    fn sight(&self, service: &ServiceName, moving: &mut ShardMove, published: &Published) -> Option<Sight> {
        let view = self.state.view();
        let endpoints = endpoints_of(published.intent(), &view.endpoints, service);
        let by_version = published.intent().services.get(service)?.traffic.is_some();
        moving.saw(endpoints);
        let leg = moving.leg();
        let mut lack = leg.and_then(|leg| target::lack(leg.source, leg.target, endpoints, by_version));
        let mut fence = Fence::Waits(Vec::new());
        if let Some(Leg { source, target, .. }) = leg.filter(|_| moving.stage != Stage::Prepare) {
            let store = self.state.store.id();
            let acks = &self.state.publisher.acks;
            let reports = acks.ask(|known, silent| Report {
                is_replaced: known.is_replaced,
                ..Report::of(&known.ack, silent, service, store)
            });
            let closed = moving.closed();
            let scene = Scene {
                source,
                closed: closed.unwrap_or_default(),
                endpoints,
                was_direct: moving.direct.contains(source),
                reports: &reports,
                silent_max: LIVE,
                forced: moving.forced,
            };
            lack = lack.or_else(|| target::unheard(target, endpoints, &reports, moving.announced, LIVE));
            if closed.is_some() {
                fence = fence::fence(&scene);
            } else {
                let replaced = || fence::replaced(&scene).map(|Waiting { who, why }| format!("{who}: {why}"));
                lack = lack.or_else(replaced);
            }
        }
        Some(Sight { lack, fence, closed_for: self.closed_for(service, moving) })
    }

    /// Sends to whoever is owed a word and is not being told.
    fn tell(&self, teller: &mut Teller) {
        for (service, record) in self.state.store.records().iter() {
            let Some(moving) = &record.moving else { continue };
            for owed in &moving.owed {
                teller.tell(service, &moving.id.to_string(), owed, || self.notice(service, moving, owed));
            }
        }
    }

    /// What is said of a move to whoever is to hear of it.
    fn notice(&self, service: &ServiceName, moving: &ShardMove, owed: &Owed) -> Notice {
        let now_ms = now_ms();
        let view = self.state.view();
        let published = self.state.publisher.current();
        let endpoints = published
            .as_ref()
            .map_or(&[][..], |published| endpoints_of(published.intent(), &view.endpoints, service));
        let head = self.state.store.head();
        let table =
            head.as_ref().and_then(|head| head.document["services"][service.as_str()].get("sharding"));
        let body = body(service, moving, owed, endpoints, table, now_ms);
        // Within one store a number is one message; with its id it is one everywhere.
        let id = format!("{}-{}-{}", self.state.store.id(), moving.id, owed.number);
        let notice = Notice::new(id, now_ms, &body, &moving.webhooks, owed.occasion);
        if owed.occasion == Occasion::Fenced {
            return notice.within(HOLD_MAX.saturating_sub(self.closed_for(service, moving)));
        }
        notice
    }
}

impl Sight {
    fn seen(&self) -> Seen<'_> {
        Seen { now_ms: now_ms(), closed_for: self.closed_for, lack: self.lack.clone(), fence: &self.fence }
    }
}

/// A message's body: the batch, the rule that is in force and the one that follows, and where both shards are.
fn body(
    service: &ServiceName,
    moving: &ShardMove,
    owed: &Owed,
    endpoints: &[Endpoint],
    table: Option<&Value>,
    now_ms: u64,
) -> Value {
    let batch = moving.batches.get(owed.step).map(|batch| {
        let (from, to) = if owed.back { (&batch.to, &batch.from) } else { (&batch.from, &batch.to) };
        json!({ "from": from, "to": to, "what": batch.what, "detail": batch.detail, "place": owed.step })
    });
    let at = |key: &str| -> Value {
        let shard = batch.as_ref().and_then(|batch| Name::parse(batch[key].as_str()?).ok());
        let of_shard = endpoints.iter().filter(|endpoint| Some(&endpoint.shard) == shard.as_ref());
        let told = |endpoint: &Endpoint| json!({ "address": endpoint.address, "role": endpoint.role, "version": endpoint.version });
        of_shard.map(told).collect()
    };
    json!({
        "event": owed.occasion.as_str(),
        "service": service,
        "move": moving.id,
        "number": owed.number,
        "state": moving.state(),
        "direction": if owed.back { Direction::Back } else { Direction::Forward },
        "batch": batch,
        "batches": moving.batches.len(),
        "moved": moving.moved,
        "closed": moving.closed(),
        "rule": moving.rule_after(moving.moved),
        "next": moving.leg().map(|_| moving.next_rule()),
        "epoch": table.map(crate::resharding::table::epoch),
        "endpoints": { "from": at("from"), "to": at("to") },
        "why": owed.why,
        "at_ms": now_ms,
    })
}

/// Says what has happened, in the log and in the metrics.
fn tell_of(service: &ServiceName, moving: &ShardMove, events: &[Event]) {
    for event in events {
        let batch = event.batch.and_then(|at| moving.batches.get(at));
        let what = batch.map(|batch| batch.what.as_str()).unwrap_or_default();
        tracing::info!("move of shards of {service}: {what} {}: {}", event.what.as_str(), event.why);
        let result = match (event.what, moving.direction) {
            (What::Moved, Direction::Forward) => "moved",
            (What::Moved, Direction::Back) => "reversed",
            (What::Reopened, _) => "reopened",
            _ => continue,
        };
        let labels = [("service", service.to_string()), ("result", result.to_owned())];
        metrics::counter!("gilmok_shard_moves_total", &labels).increment(1);
    }
}

#[cfg(test)]
mod tests;
