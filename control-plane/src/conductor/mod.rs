//! Conducts rollouts: hears each second what proxies counted, lets each rollout go on, writes what it came to, tells others.
//!
//! What decides is pure and lives in [`crate::rollout`]; that nobody acts twice is the store's compare-and-set. Moves of shards
//! are conducted beside them (`shards`), flags that change at a time (`timetable`), and those that are watched (`guardian`).

mod drain;

mod guardian;

mod notify;

mod shards;

mod timetable;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gilmok_config::name::ServiceName;
use gilmok_config::wire::Ack;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::intent::{Command, Conduct, drain_timeout, versions_alive};
use crate::publish::ProxyReport;
use crate::record::{Record, Release};
use crate::rollout::state::{Event, Hand, Rollout, Seen, Shift};
use crate::rollout::tally::Both;
use crate::state::{Author, State, WriteError};
use crate::store::now_ms;
use crate::webhook::Owed;

pub use drain::{Drain, Waiting, drain};
pub use guardian::Guardian;
use notify::{Answer, Notice, Teller};
pub use shards::Mover;
pub use timetable::keep_time;

/// How often rollouts are looked at: as often as proxies report.
const TICK: Duration = Duration::from_millis(gilmok_config::wire::ACK_MS);
/// Longest time that one tick counts for: a process that was stopped has watched nothing.
const TICK_MAX: Duration = Duration::from_secs(3);
/// How often what was counted is kept, beside every time that something happened. It is the time by which a step is held
/// longer when the process is killed; nothing that was counted is lost.
const KEEP_EVERY: Duration = Duration::from_secs(5);
/// How long after its start a control plane may not have heard of every endpoint: what registers itself does so again within
/// this time.
const SETTLED_AFTER: Duration = Duration::from_secs(15);

/// Who conducts the rollouts of one control plane.
#[derive(Debug)]
pub struct Conductor {
    state: Arc<State>,
    started: Instant,
    /// Holds what messages are signed with; without it nobody can be told.
    secret_file: Option<PathBuf>,
    /// Rollouts as of the last tick, ahead of what is kept. A std mutex: nothing is awaited under it.
    live: Mutex<BTreeMap<ServiceName, Live>>,
}

/// A rollout as of the last tick.
#[derive(Clone, Debug)]
struct Live {
    /// [`Record::seq`] of what it went on from.
    seq: u64,
    rollout: Box<Rollout>,
    kept: Instant,
}

impl Conductor {
    #[must_use]
    pub fn new(state: Arc<State>, secret_file: Option<PathBuf>) -> Arc<Self> {
        Arc::new(Self { state, started: Instant::now(), secret_file, live: Mutex::default() })
    }

    /// Whether messages can be signed.
    #[must_use]
    pub fn can_tell(&self) -> bool {
        self.secret_file.is_some()
    }

    /// A service's rollout, with what was counted up to the last tick.
    #[must_use]
    pub fn rollout(&self, service: &ServiceName) -> Option<Box<Rollout>> {
        let record = self.state.store.records().get(service)?.clone();
        self.current(service, &record).map(|live| live.rollout)
    }

    /// Keeps what was counted of a service, so that an operator's word is judged by all of it.
    pub async fn keep(&self, service: &ServiceName) {
        let records = self.state.store.records();
        let Some(record) = records.get(service) else { return };
        let Some(live) = self.current(service, record).filter(|live| live.rollout.is_running()) else {
            return;
        };
        let record = Record { rollout: Some(live.rollout), ..record.clone() };
        // Should somebody else write first, the word is judged by what they have left.
        if let Err(error) = self.state.store.keep_records(vec![(service.clone(), record)]).await {
            tracing::warn!("the rollout of {service} is not kept: {error}");
        }
    }

    /// Conducts until it is dropped.
    pub async fn conduct(self: Arc<Self>) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut teller = Teller::new(self.secret_file.clone());
        let mut drained = BTreeMap::new();
        let mut last = Instant::now();
        loop {
            let answer = tokio::select! {
                _ = ticks.tick() => None,
                answer = teller.heard() => Some(answer),
            };
            let now = Instant::now();
            let elapsed = now.saturating_duration_since(last).min(TICK_MAX);
            last = now;
            self.tick(elapsed, answer.as_ref()).await;
            self.tell(&mut teller);
            self.note_drained(&mut drained);
        }
    }

    /// Lets every rollout go on.
    async fn tick(&self, elapsed: Duration, answer: Option<&Answer>) {
        let records = self.state.store.records();
        self.lock().retain(|service, _| records.contains_key(service));
        let concerned: Vec<&ServiceName> = records
            .iter()
            .filter(|(_, record)| {
                record
                    .rollout
                    .as_ref()
                    .is_some_and(|rollout| rollout.is_running() || !rollout.owed.is_empty())
            })
            .map(|(service, _)| service)
            .collect();
        if concerned.is_empty() {
            return;
        }
        let acks = self.state.publisher.acks.heard();
        let acks: Vec<&Ack> = acks.iter().collect();
        for service in concerned {
            let answer = answer.filter(|answer| answer.service == *service);
            self.go_on(service, &acks, elapsed, answer).await;
        }
    }

    /// Lets one rollout go on, and writes what it came to.
    async fn go_on(&self, service: &ServiceName, acks: &[&Ack], elapsed: Duration, answer: Option<&Answer>) {
        let records = self.state.store.records();
        let Some(record) = records.get(service) else { return };
        let Some(before) = self.current(service, record) else { return };
        let Some(published) = self.state.publisher.current() else { return };
        let mut rollout = before.rollout.clone();
        let (stable, candidate) = (rollout.stable.clone(), rollout.plan.candidate.clone());
        let alive = versions_alive(published.intent(), &self.state.view().endpoints, service);
        let alive = alive.get(&candidate).copied().unwrap_or_default();
        let (now_ms, revision) = (now_ms(), published.revision + 1);
        if let Some(answer) = answer.filter(|answer| answer.id == rollout.id) {
            let hand = Hand { by: "webhook", why: "", now_ms, revision, alive };
            rollout.answered(&answer.owed, answer.answer.clone().map(drop), &hand);
        }
        let said = acks.iter().map(|ack| (*ack, Both::of_versions(ack, service, &stable, &candidate)));
        let news = rollout.tally.hear(said);
        let settled = self.started.elapsed() >= SETTLED_AFTER;
        let shift = rollout.tick(&Seen { now_ms, elapsed, alive, settled, news: &news }, revision);
        let events = rollout.happened - before.rollout.happened;
        let happened = events > 0 || rollout.owed != before.rollout.owed;
        let kept = match shift {
            Some(shift) => self.carry_out(service, record.seq, &rollout, shift, published.revision).await,
            None if happened || before.kept.elapsed() >= KEEP_EVERY => {
                let record = Record { rollout: Some(rollout.clone()), ..record.clone() };
                self.state.store.keep_records(vec![(service.clone(), record)]).await.unwrap_or_else(|error| {
                    tracing::error!("the rollout of {service} is not kept: {error}");
                    false
                })
            }
            None => {
                self.lock().insert(service.clone(), Live { rollout, ..before });
                return;
            }
        };
        // What was not kept is decided anew by the next tick, with the same news.
        if kept {
            let known = rollout.history.len().saturating_sub(events);
            tell_of(service, &rollout.history[known..]);
            self.lock().insert(service.clone(), Live { seq: record.seq + 1, rollout, kept: Instant::now() });
        }
    }

    /// Writes what becomes of the traffic; whether that was done.
    async fn carry_out(
        &self,
        service: &ServiceName,
        seq: u64,
        rollout: &Rollout,
        shift: Shift,
        number: u64,
    ) -> bool {
        let conduct =
            Conduct { service: service.clone(), seq, rollout: Box::new(rollout.clone()), shift: Some(shift) };
        let author = Author {
            who: "rollout".to_owned(),
            reason: rollout.why.clone(),
            expected: Some(number),
            ..Author::default()
        };
        match self.state.write(&Command::Conduct(conduct), &author).await {
            Ok(_) => true,
            // Somebody else wrote meanwhile.
            Err(WriteError::Behind { .. } | WriteError::Contended) => false,
            Err(WriteError::Refused(refusal)) => {
                tracing::warn!("the rollout of {service} cannot go on: {refusal:?}");
                false
            }
            Err(WriteError::Store(error)) => {
                tracing::error!("the rollout of {service} is not written: {error}");
                false
            }
        }
    }

    /// The rollout of a record, with what was counted since it was kept.
    fn current(&self, service: &ServiceName, record: &Record) -> Option<Live> {
        let mut rollout = record.rollout.clone()?;
        let (seq, mut kept) = (record.seq, Instant::now());
        if let Some(live) = self.lock().get(service).filter(|live| live.rollout.id == rollout.id) {
            if live.seq == record.seq {
                return Some(live.clone());
            }
            // Somebody else has written: it stands where they say, and what was counted is known better here.
            rollout.take_counts_of(&live.rollout);
            kept = live.kept;
        }
        Some(Live { seq, rollout, kept })
    }

    /// Sends to whoever is owed a word and is not being told.
    fn tell(&self, teller: &mut Teller) {
        for (service, record) in self.state.store.records().iter() {
            let Some(rollout) = &record.rollout else { continue };
            for owed in &rollout.owed {
                teller.tell(service, &rollout.id, owed, || notice(service, rollout, owed));
            }
        }
    }

    /// Says once of each release that the old version may go.
    fn note_drained(&self, drained: &mut BTreeMap<ServiceName, u64>) {
        let records = self.state.store.records();
        drained.retain(|service, _| records.contains_key(service));
        let releases =
            records.iter().filter_map(|(service, record)| Some((service, record.release.as_ref()?)));
        let waiting: Vec<_> =
            releases.filter(|(service, release)| drained.get(*service) != Some(&release.revision)).collect();
        if waiting.is_empty() {
            return;
        }
        // Read once for all: after a start every release that is remembered is looked at.
        let reports = self.state.publisher.acks.all();
        for (service, release) in waiting {
            let Some(drain) = self.drain_of(service, release, &reports).filter(|drain| drain.drainable)
            else {
                continue;
            };
            tracing::info!("{service}: {} is drainable: {}", drain.version, drain.why);
            drained.insert(service.clone(), release.revision);
        }
    }

    /// What the version that lost its users last still waits for.
    #[must_use]
    pub fn drain(&self, service: &ServiceName) -> Option<Drain> {
        let records = self.state.store.records();
        let release = records.get(service)?.release.as_ref()?;
        self.drain_of(service, release, &self.state.publisher.acks.all())
    }

    fn drain_of(&self, service: &ServiceName, release: &Release, reports: &[ProxyReport]) -> Option<Drain> {
        let published = self.state.publisher.current()?;
        let timeout = drain_timeout(published.intent(), service);
        Some(drain(service, release, timeout, reports, self.state.store.id(), now_ms()))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ServiceName, Live>> {
        // Whoever panicked left whole entries: each is replaced in one step.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is said of a rollout to whoever is to hear of it.
fn notice(service: &ServiceName, rollout: &Rollout, owed: &Owed) -> Notice {
    let now_ms = now_ms();
    let body = json!({
        "event": owed.occasion.as_str(),
        "service": service,
        "rollout": rollout.id,
        "candidate": rollout.plan.candidate,
        "stable": rollout.stable,
        "state": rollout.state(),
        "step": owed.step,
        "steps": rollout.plan.steps.len(),
        "percent": rollout.percent().percent(),
        "next_percent": rollout.plan.share_at(owed.step).map(|share| share.percent.percent()),
        "why": owed.why,
        "at_ms": now_ms,
        "evidence": rollout.evidence().map_or(Value::Null, |evidence| json!(evidence)),
    });
    Notice::new(
        format!("{}-{}", rollout.id, owed.number),
        now_ms,
        &body,
        &rollout.plan.webhooks,
        owed.occasion,
    )
}

/// Says what has happened, in the log and in the metrics.
fn tell_of(service: &ServiceName, events: &[Event]) {
    for event in events {
        let what = event.what.as_str();
        tracing::info!("rollout of {service}: {what} at {} %: {}", event.percent, event.why);
        let labels = [("service", service.to_string()), ("decision", what.to_owned())];
        metrics::counter!("gilmok_rollout_decisions_total", &labels).increment(1);
    }
}

#[cfg(test)]
mod tests;
