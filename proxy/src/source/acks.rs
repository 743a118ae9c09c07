//! What this proxy tells every control plane: the revision that all its workers run, or why it refused one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gilmok_config::wire::{
    ACK_MS, Ack, COUNTED_SERVICES_MAX, GuardedCounts, ProxyState, ServiceCounts, VariantCounts, WIRE_LEVEL,
};
use http::Method;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::Here;
use super::feed::{Feed, Identity, ToRemember};
use super::fences::{self, Closed};
use super::flag_news::FlagNews;
use super::http::{Client, HttpError, TokenHeader};
use super::last_known_good::Keeper;
use super::status::Status;
use crate::current::{Current, InForce};
use crate::drain::Phase;
use crate::settings::Server;
use crate::upstream::outcomes::Counts;

/// From one ack to the next while nothing changes.
const EVERY: Duration = Duration::from_millis(ACK_MS);
/// The pause after a control plane took no ack; doubles from [`EVERY`] up to this.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// What changes within this time is written down as one.
const WRITE_EVERY: Duration = Duration::from_secs(1);

/// What could not be written is tried again after so long.
const REWRITE_AFTER: Duration = Duration::from_secs(5);

/// What is needed to report.
#[derive(Debug)]
pub(crate) struct Reporter {
    pub(crate) servers: Vec<Server>,
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) here: Here,
    pub(crate) in_force: Arc<InForce>,
    pub(crate) status: Arc<Status>,
    pub(crate) phases: watch::Receiver<Phase>,
    /// What a restart would find closed.
    pub(crate) on_disk: watch::Sender<Closed>,
    /// Told whenever all workers run something new.
    pub(crate) confirmed: Arc<Notify>,
}

impl Reporter {
    /// Reports until the process ends.
    pub(crate) async fn report(mut self) {
        let Identity { node, instance } = self.here.identity.clone();
        let news = watch::Sender::new(Ack {
            node,
            instance,
            wire: WIRE_LEVEL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            applied: None,
            refused: None,
            state: ProxyState::Waiting,
            counts: Vec::new(),
            apps: self.here.apps.clone(),
            fences: Vec::new(),
            flags: Vec::new(),
            guarded: Vec::new(),
            identity: None,
        });
        // One task for each, so that a stuck control plane delays no other; they end with this set.
        let mut tellers = JoinSet::new();
        for server in &self.servers {
            let client = Client::new(server.clone(), self.token_file.clone(), TokenHeader::Bearer);
            let client = client.showing(&self.here.tls);
            tellers.spawn(tell(client, news.subscribe(), Arc::clone(&self.in_force)));
        }
        let mut generations = self.in_force.generations();
        let mut refusals = self.status.refusals();
        let mut on_disk = self.on_disk.subscribe();
        let mut enrolled = self.here.enrolled.subscribe();
        // What every worker runs.
        let mut taken: Arc<Current> = Arc::default();
        loop {
            let current = self.in_force.load();
            let behind = current.generation > taken.generation;
            let has_fences = !news.borrow().fences.is_empty();
            let mut is_taken = false;
            tokio::select! {
                () = self.in_force.taken_by_all(current.generation), if behind => {
                    taken = current;
                    is_taken = true;
                    self.confirmed.notify_one();
                }
                changed = generations.changed() => if changed.is_err() { return },
                changed = refusals.changed() => if changed.is_err() { return },
                changed = self.phases.changed() => if changed.is_err() { return },
                changed = on_disk.changed() => if changed.is_err() { return },
                changed = enrolled.changed() => if changed.is_err() { return },
                () = self.in_force.emptied().notified() => {}
                // Only what becomes quiet is told at once.
                () = sleep(EVERY), if has_fences => {}
            }
            let refused = refusals.borrow_and_update().clone();
            let state = match *self.phases.borrow_and_update() {
                Phase::Serving if taken.generation > 0 => ProxyState::Ready,
                Phase::Serving => ProxyState::Waiting,
                Phase::Announcing | Phase::Closing | Phase::Ending | Phase::Over => ProxyState::Draining,
            };
            let fences = fences::reports(&taken, &on_disk.borrow_and_update());
            let identity = enrolled.borrow_and_update().clone();
            news.send_if_modified(|ack| {
                let changed = ack.refused != refused
                    || ack.state != state
                    || ack.fences != fences
                    || ack.identity != identity;
                if is_taken {
                    ack.applied.clone_from(&taken.applied);
                }
                ack.refused = refused;
                ack.state = state;
                ack.fences = fences;
                ack.identity = identity;
                changed || is_taken
            });
        }
    }
}

/// Tells one control plane on every change and each [`EVERY`].
async fn tell(mut client: Client, mut news: watch::Receiver<Ack>, in_force: Arc<InForce>) {
    let mut pause = EVERY;
    let mut flags = FlagNews::default();
    loop {
        let mut ack = news.borrow_and_update().clone();
        let current = in_force.load();
        ack.counts = counts(&current);
        ack.guarded = guarded(&current);
        ack.flags = flags.next(&current, Instant::now());
        drop(current);
        match send(&mut client, &ack).await {
            Ok(()) => {
                flags.arrived(Instant::now());
                if pause > EVERY {
                    tracing::info!("control plane {}: takes acks again", client.server());
                }
                pause = EVERY;
                // Ends early on a change; the sender lives as long as this task.
                drop(timeout(EVERY, news.changed()).await);
            }
            Err(error) => {
                if pause == EVERY {
                    tracing::warn!("control plane {}: takes no acks: {error}", client.server());
                }
                pause = (pause * 2).min(PAUSE_MAX);
                sleep(pause.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
            }
        }
    }
}

/// What was counted of the services whose traffic names versions.
fn counts(current: &Current) -> Vec<ServiceCounts> {
    let counted = current.upstreams.iter().filter_map(|upstream| upstream.counts());
    counted.take(COUNTED_SERVICES_MAX).collect()
}

/// What came of the requests that guarded flags were told with.
fn guarded(current: &Current) -> Vec<GuardedCounts> {
    let Some(set) = current.snapshot.flags() else { return Vec::new() };
    let counted = current.flag_counts.outcomes(set).map(|(flag, outcomes)| {
        let variants = outcomes.trials().filter_map(|(at, counts)| {
            let Counts { trials, failures, latency } = counts;
            let variant = flag.variants().get(at)?.name().to_owned();
            Some(VariantCounts { variant, trials, failures, latency })
        });
        GuardedCounts { flag: flag.key().to_owned(), variants: variants.collect() }
    });
    counted.filter(|counts| !counts.variants.is_empty()).collect()
}

async fn send(client: &mut Client, ack: &Ack) -> Result<(), HttpError> {
    let body = serde_json::to_vec(ack).unwrap_or_default();
    client.send(Method::POST, "/v1/feed/acks", Some(Bytes::from(body))).await.map(drop)
}

/// Writes down what all workers run, after the acks have gone out and off every runtime's thread. `on_disk` tells what is
/// closed in it then.
pub(crate) async fn remember(
    feed: Arc<Feed>,
    in_force: Arc<InForce>,
    keeper: Arc<Keeper>,
    confirmed: Arc<Notify>,
    on_disk: watch::Sender<Closed>,
) {
    let mut failing = false;
    loop {
        tokio::select! {
            () = confirmed.notified() => {}
            () = sleep(REWRITE_AFTER), if failing => {}
        }
        // What is closed waits for the disk, and requests wait for it.
        let urgent = async {
            while feed.closed().are_in(&on_disk.borrow()) {
                confirmed.notified().await;
            }
        };
        // Ends early when there is something urgent.
        drop(timeout(WRITE_EVERY, urgent).await);
        let Some(ToRemember { remembered, closed, generation }) = feed.remember() else { continue };
        in_force.taken_by_all(generation).await;
        let keeper = Arc::clone(&keeper);
        match tokio::task::spawn_blocking(move || keeper.save(&remembered)).await {
            Ok(Ok(())) => {
                failing = false;
                on_disk.send_replace(closed);
            }
            Ok(Err(error)) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!("cannot write down the last known good state: {error}");
                }
            }
            // The runtime is going down.
            Err(_cancelled) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use gilmok_config::name::{Name, ServiceName};
    use gilmok_config::problem::Problems;
    use gilmok_config::snapshot::Snapshot;
    use gilmok_config::wire::{Applied, InboundApp, Refused};
    use serde_json::{Value, json};

    use super::*;
    use crate::drain::Drain;
    use crate::testing::{Calls, eventually, recording};

    struct Reporting {
        in_force: Arc<InForce>,
        status: Arc<Status>,
        drain: Drain,
        _tasks: JoinSet<()>,
    }

    fn report(servers: Vec<Server>) -> Reporting {
        let in_force = Arc::new(InForce::new(2, Name::default(), Vec::new()));
        let (status, drain) = (Arc::new(Status::new("test")), Drain::new());
        let reporter = Reporter {
            servers,
            token_file: None,
            here: Here {
                identity: Identity { node: "web-1".to_owned(), instance: "7".to_owned() },
                apps: vec![InboundApp {
                    service: ServiceName::parse("shop").unwrap(),
                    shard: Name::parse("1").unwrap(),
                    address: Some("10.0.0.5:15006".to_owned()),
                }],
                enrolled: watch::Sender::default(),
                tls: Arc::default(),
            },
            in_force: Arc::clone(&in_force),
            status: Arc::clone(&status),
            phases: drain.phases(),
            on_disk: watch::Sender::default(),
            confirmed: Arc::new(Notify::new()),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(reporter.report());
        Reporting { in_force, status, drain, _tasks: tasks }
    }

    fn last(calls: &Calls) -> Value {
        calls.lock().unwrap().last().map(|(_, body)| body.clone()).unwrap_or_default()
    }

    #[tokio::test]
    async fn a_revision_is_acknowledged_once_every_worker_runs_it() {
        let (server, calls) = recording(|_| 200).await;
        let reporting = report(vec![server]);
        let applied =
            Applied { store: "s".to_owned(), revision: 3, hash: "h".to_owned(), last_known_good: false };
        let generation = reporting.in_force.put(Snapshot::default(), Some(applied));
        reporting.in_force.take(0, generation);
        eventually("a first ack", || last(&calls)["state"] == "waiting").await;
        assert!(last(&calls).get("applied").is_none(), "one worker is behind");
        reporting.in_force.take(1, generation);
        eventually("the ack", || last(&calls)["applied"]["revision"] == 3).await;
        let ack = last(&calls);
        assert_eq!(
            (&ack["node"], &ack["instance"], &ack["state"]),
            (&json!("web-1"), &json!("7"), &json!("ready"))
        );
        assert_eq!(ack["apps"], json!([{ "service": "shop", "shard": "1", "address": "10.0.0.5:15006" }]));
        assert_eq!(calls.lock().unwrap()[0].0, "POST /v1/feed/acks");
        let problems = Problems::whole("no");
        let refused =
            Refused { store: "s".to_owned(), revision: 4, hash: "i".to_owned(), problems: problems.clone() };
        reporting.status.reject("test", Some(4), &problems, Some(refused));
        eventually("the refusal", || last(&calls)["refused"]["revision"] == 4).await;
        reporting.status.accepted(None);
        eventually("no refusal", || last(&calls).get("refused").is_none()).await;
        reporting.drain.begin();
        eventually("draining", || last(&calls)["state"] == "draining").await;
    }

    #[tokio::test]
    async fn a_control_plane_that_takes_no_acks_delays_no_other() {
        // Accepts, and never answers.
        let stuck = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stuck_server = format!("http://{}", stuck.local_addr().unwrap()).parse().unwrap();
        let (server, calls) = recording(|call| if call == 1 { 503 } else { 200 }).await;
        let reporting = report(vec![stuck_server, server]);
        let generation = reporting.in_force.put(Snapshot::default(), None);
        (0..2).for_each(|worker| reporting.in_force.take(worker, generation));
        eventually("the ack, after a refusal", || last(&calls)["state"] == "ready").await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_proxy_is_heard_of_all_the_same() {
        let (server, calls) = recording(|_| 200).await;
        let _reporting = report(vec![server]);
        eventually("three acks of the same", || calls.lock().unwrap().len() >= 3).await;
    }
}
