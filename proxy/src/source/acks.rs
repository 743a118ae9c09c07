//! What this proxy tells every control plane: the revision that all its workers run, or why it refused one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gilmok_config::wire::{ACK_MS, Ack, ProxyState, WIRE_LEVEL};
use http::Method;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::feed::{Feed, Identity};
use super::http::{Client, HttpError, TokenHeader};
use super::last_known_good::Keeper;
use super::status::Status;
use crate::current::InForce;
use crate::drain::Phase;
use crate::settings::Server;

/// From one ack to the next while nothing changes.
const EVERY: Duration = Duration::from_millis(ACK_MS);
/// The pause after a control plane took no ack; doubles from [`EVERY`] up to this.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// What changes within this time is written down as one.
const WRITE_EVERY: Duration = Duration::from_secs(1);

/// What is needed to report.
#[derive(Debug)]
pub(crate) struct Reporter {
    pub(crate) servers: Vec<Server>,
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) identity: Identity,
    pub(crate) in_force: Arc<InForce>,
    pub(crate) status: Arc<Status>,
    pub(crate) phases: watch::Receiver<Phase>,
    /// Told whenever all workers run something new.
    pub(crate) confirmed: Arc<Notify>,
}

impl Reporter {
    /// Reports until the process ends.
    pub(crate) async fn report(mut self) {
        let news = watch::Sender::new(Ack {
            node: self.identity.node.clone(),
            instance: self.identity.instance.clone(),
            wire: WIRE_LEVEL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            applied: None,
            refused: None,
            state: ProxyState::Waiting,
        });
        // One task for each, so that a stuck control plane delays no other; they end with this set.
        let mut tellers = JoinSet::new();
        for server in &self.servers {
            let client = Client::new(server.clone(), self.token_file.clone(), TokenHeader::Bearer);
            tellers.spawn(tell(client, news.subscribe()));
        }
        let mut generations = self.in_force.generations();
        let mut refusals = self.status.refusals();
        let mut confirmed = 0;
        loop {
            let current = self.in_force.load();
            let behind = current.generation > confirmed;
            tokio::select! {
                () = self.in_force.taken_by_all(current.generation), if behind => {
                    confirmed = current.generation;
                    news.send_modify(|ack| ack.applied.clone_from(&current.applied));
                    self.confirmed.notify_one();
                }
                changed = generations.changed() => if changed.is_err() { return },
                changed = refusals.changed() => if changed.is_err() { return },
                changed = self.phases.changed() => if changed.is_err() { return },
            }
            let refused = refusals.borrow_and_update().clone();
            let state = match *self.phases.borrow_and_update() {
                Phase::Serving if confirmed > 0 => ProxyState::Ready,
                Phase::Serving => ProxyState::Waiting,
                Phase::Announcing | Phase::Closing | Phase::Over => ProxyState::Draining,
            };
            news.send_if_modified(|ack| {
                let changed = ack.refused != refused || ack.state != state;
                ack.refused = refused;
                ack.state = state;
                changed
            });
        }
    }
}

/// Tells one control plane on every change and each [`EVERY`].
async fn tell(mut client: Client, mut news: watch::Receiver<Ack>) {
    let mut pause = EVERY;
    loop {
        let ack = news.borrow_and_update().clone();
        match send(&mut client, &ack).await {
            Ok(()) => {
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

async fn send(client: &mut Client, ack: &Ack) -> Result<(), HttpError> {
    let body = serde_json::to_vec(ack).unwrap_or_default();
    client.send(Method::POST, "/v1/feed/acks", Some(Bytes::from(body))).await.map(drop)
}

/// Writes down what all workers run, after the acks have gone out and off every runtime's thread.
pub(crate) async fn remember(
    feed: Arc<Feed>,
    in_force: Arc<InForce>,
    keeper: Arc<Keeper>,
    confirmed: Arc<Notify>,
) {
    let mut failing = false;
    loop {
        confirmed.notified().await;
        sleep(WRITE_EVERY).await;
        let Some((remembered, generation)) = feed.remember() else { continue };
        in_force.taken_by_all(generation).await;
        let keeper = Arc::clone(&keeper);
        match tokio::task::spawn_blocking(move || keeper.save(&remembered)).await {
            Ok(Ok(())) => failing = false,
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
