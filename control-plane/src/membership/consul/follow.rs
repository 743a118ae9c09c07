//! Doing what the state machine of a watch says: ask, wait, tell.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use gilmok_config::name::ServiceName;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::Instant;

use super::answer::Answer;
use super::client::Client;
use super::contact::Contacts;
use super::error::Error;
use super::mapping::{Instance, Key, instances};
use super::settle::{Settled, Stand, Standing};
use super::watch::{Ask, Heard, Step, Style, Watch};

/// Longest sleep without a sign of life.
const NAP_MAX: Duration = Duration::from_secs(5);

/// A connection, of one watch or shared by several that poll. A tokio mutex: held for a whole question.
pub(super) type Lane = Arc<Mutex<Client>>;

/// What a watch tells when its list is another one.
#[derive(Debug)]
pub(super) enum News {
    /// The instances of a service.
    Health { service: ServiceName, watch: u64, list: BTreeMap<Key, Instance> },
    /// The services that carry the tag.
    Tagged { watch: u64, services: BTreeSet<ServiceName> },
}

/// What a watch asks Consul about.
pub(super) trait Question: Send + Sync + 'static {
    type Key: Ord + Clone + Send + Sync;
    type Value: Standing + Send + Sync;

    /// The watch's name in metrics and logs.
    fn label(&self) -> String;

    fn ask(&self, client: &Client, ask: &Ask) -> impl Future<Output = Result<Listed<Self>, Error>> + Send;

    fn news(&self, watch: u64, list: &BTreeMap<Self::Key, Self::Value>) -> News;
}

/// An answer to a question, as a list.
pub(super) type Listed<Q> = Answer<BTreeMap<<Q as Question>::Key, <Q as Question>::Value>>;

/// The instances of one service.
#[derive(Debug)]
pub(super) struct Health {
    pub(super) service: ServiceName,
    /// What was wrong with single instances last time, so that it is logged once.
    pub(super) faults: std::sync::Mutex<Vec<String>>,
}

impl Question for Health {
    type Key = Key;
    type Value = Instance;

    fn label(&self) -> String {
        health_label(&self.service)
    }

    async fn ask(&self, client: &Client, ask: &Ask) -> Result<Listed<Self>, Error> {
        let Answer { meta, value } = client.health(self.service.as_str(), ask).await?;
        let (list, faults) = instances(&value);
        let mut told = self.faults.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for fault in faults.iter().filter(|fault| !told.contains(fault)) {
            tracing::warn!("consul: instance {fault} of `{}` is left out", self.service);
        }
        *told = faults;
        Ok(Answer { meta, value: list })
    }

    fn news(&self, watch: u64, list: &BTreeMap<Key, Instance>) -> News {
        News::Health { service: self.service.clone(), watch, list: list.clone() }
    }
}

/// The services that carry a tag.
#[derive(Debug)]
pub(super) struct Tagged {
    pub(super) tag: String,
}

/// A service that carries the tag: there is nothing more to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Carries;

impl Standing for Carries {
    fn standing(&self) -> Stand {
        Stand::In
    }
}

impl Question for Tagged {
    type Key = ServiceName;
    type Value = Carries;

    fn label(&self) -> String {
        TAGGED_LABEL.to_owned()
    }

    async fn ask(&self, client: &Client, ask: &Ask) -> Result<Listed<Self>, Error> {
        let Answer { meta, value } = client.services(ask).await?;
        let carries = |tags: &Option<Vec<String>>| tags.iter().flatten().any(|tag| *tag == self.tag);
        // What is no name of ours could not be reached through a proxy either.
        let name =
            |(name, tags): (&String, _)| carries(tags).then(|| ServiceName::parse(name).ok()).flatten();
        Ok(Answer { meta, value: value.iter().filter_map(name).map(|name| (name, Carries)).collect() })
    }

    fn news(&self, watch: u64, list: &BTreeMap<ServiceName, Carries>) -> News {
        News::Tagged { watch, services: list.keys().cloned().collect() }
    }
}

/// The label of the watch of the services with the tag.
pub(super) const TAGGED_LABEL: &str = "catalog/services";

/// The label of the watch of a service.
pub(super) fn health_label(service: &ServiceName) -> String {
    format!("health/{service}")
}

/// What every watch is given.
#[derive(Debug)]
pub(super) struct Surroundings {
    /// This watch's number, so that news of one that has been replaced are told from its successor's.
    pub(super) number: u64,
    pub(super) style: Style,
    pub(super) lane: Lane,
    pub(super) contacts: Contacts,
    /// Whether Consul denies what no rule names; true until it is known.
    pub(super) default_deny: watch::Receiver<bool>,
    pub(super) news: mpsc::Sender<News>,
}

/// Watches for ever; ends when nobody listens to its news.
pub(super) async fn follow<Q: Question>(
    question: Q,
    last_known: BTreeMap<Q::Key, Q::Value>,
    around: Surroundings,
) {
    let label = question.label();
    let mut watch = Watch::new(around.style, last_known, Instant::now());
    let mut in_doubt = false;
    loop {
        around.contacts.turned(&label);
        // Waiting for a shared connection is a sign of life, too.
        let Ok(client) = tokio::time::timeout(NAP_MAX, around.lane.lock()).await else { continue };
        let ask = match watch.step(Instant::now(), client.is_continued(), fastrand::f64()) {
            Step::Pause(until) => {
                drop(client);
                tokio::time::sleep_until(until.min(Instant::now() + NAP_MAX)).await;
                continue;
            }
            Step::Ask(ask) => ask,
        };
        let began = Instant::now();
        let asked = question.ask(&client, &ask).await.map(|answer| (answer, began.elapsed()));
        drop(client);
        let (Answer { meta, value }, took) = match asked {
            Ok(answer) => answer,
            Err(error) => {
                tell_failure(&around.contacts, &label, &error);
                watch.failed(Instant::now(), &ask, &error, fastrand::f64());
                continue;
            }
        };
        if around.contacts.answered(&label) {
            tracing::info!("consul answers again");
        }
        let heard = Heard { ask: &ask, meta: &meta, took, default_deny: *around.default_deny.borrow() };
        let settled = watch.answered(Instant::now(), &heard, value, fastrand::f64());
        tell_doubt(&label, settled, &mut in_doubt);
        if settled.changed && around.news.send(question.news(around.number, watch.current())).await.is_err() {
            return;
        }
    }
}

fn tell_failure(contacts: &Contacts, label: &str, error: &Error) {
    if contacts.failed(label, error.kind()) {
        tracing::warn!("consul watch {label}: {error}; keeping what was known last");
    } else {
        tracing::debug!("consul watch {label}: {error}");
    }
}

fn tell_doubt(label: &str, settled: Settled, in_doubt: &mut bool) {
    if settled.kept_in_doubt && !*in_doubt {
        tracing::warn!(
            "consul watch {label}: the list came back empty, but the token may not be allowed to see it \
             (default policy deny); keeping what was known last"
        );
    }
    *in_doubt = settled.kept_in_doubt;
}
