//! What the control plane is made of, and how a write goes through it: read, decide, append, publish, be told.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gilmok_config::name::ServiceName;
use gilmok_config::snapshot::Membership;
use gilmok_config::wire::Ack;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::compile::compile;
use crate::exposure::Exposure;
use crate::intent::{self, Command, Context, FlagDeed, Refusal};
use crate::membership::View;
use crate::membership::registry::{KeptEntry, Registry};
use crate::publish::{Foreign, Publisher};
use crate::store::{Draft, Revision, Store, StoreError, now_ms};
use crate::tokens::Caller;

/// How often a write that lost the race reads again and decides anew, before it is given up.
const RACES_MAX: usize = 50;
/// How long changes of the registry are gathered before they are kept for the next start.
const KEEP_AFTER: Duration = Duration::from_secs(1);
/// How often it is kept which flags are in use. What a process that is killed forgets is no longer ago.
const KEEP_EXPOSURE_EVERY: Duration = Duration::from_mins(1);
/// The store's key for the registry's entries.
const KEPT_REGISTRY: &str = "registry";
/// The store's key for the proxies that are known.
const KEPT_PROXIES: &str = "proxies";
/// The store's key for which flags are in use.
const KEPT_EXPOSURE: &str = "exposure";
/// The store's key for Consul's last membership.
const KEPT_CONSUL: &str = "consul";

/// The parts of a control plane. Shared by every request.
#[derive(Debug)]
pub struct State {
    pub store: Store,
    pub registry: Registry,
    pub publisher: Publisher,
    /// What the Consul mirror says; what was kept from the last start until it has spoken.
    consul: watch::Sender<Arc<View>>,
    /// The services that the document names, for the mirror.
    names: watch::Sender<BTreeSet<ServiceName>>,
    /// Which flags are in use. A std mutex: taken for a look-up per flag that an ack speaks of, and nothing is awaited under it.
    exposure: Mutex<Exposure>,
}

/// Who writes, and on what terms.
#[derive(Clone, Debug, Default)]
pub struct Author {
    pub who: String,
    pub reason: String,
    /// `If-Match`: the revision that must be the newest one.
    pub expected: Option<u64>,
    /// Whether what needs another command is done all the same.
    pub force: bool,
    /// Whether flags may be what flagd would warn of.
    pub accept_warnings: bool,
}

/// A write that was done, or had nothing to do.
#[derive(Clone, Debug)]
pub struct Written {
    pub revision: u64,
    /// False when the document was as asked for already: then there is no new revision.
    pub changed: bool,
    /// Whether the service that was put is new.
    pub created: bool,
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The newest revision is not the one that `If-Match` names.
    #[error("the newest revision is {head}")]
    Behind { head: u64 },
    /// Others were faster again and again.
    #[error("too many writers at once")]
    Contended,
    #[error("refused")]
    Refused(Refusal),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl State {
    /// Puts the parts together and publishes what was true when the process before this one ended.
    /// Without a mirror, what Consul said last is not believed for ever but dropped.
    ///
    /// # Errors
    /// When what was kept cannot be read.
    pub fn new(store: Store, with_mirror: bool) -> Result<Arc<Self>, StoreError> {
        let kept: Vec<KeptEntry> = store.kept(KEPT_REGISTRY)?.unwrap_or_default();
        let endpoints =
            if with_mirror { store.kept(KEPT_CONSUL)?.unwrap_or_default() } else { Membership::new() };
        let consul = View { endpoints, ..View::default() };
        let exposure: Exposure = store.kept(KEPT_EXPOSURE)?.unwrap_or_default();
        let known: Vec<Ack> = store.kept(KEPT_PROXIES)?.unwrap_or_default();
        let state = Self {
            store,
            registry: Registry::new(kept),
            publisher: Publisher::default(),
            consul: watch::Sender::new(Arc::new(consul)),
            names: watch::Sender::default(),
            exposure: Mutex::new(exposure),
        };
        state.publisher.acks.remember(known);
        state.publish();
        Ok(Arc::new(state))
    }

    /// Applies a command. When this answers, the revision is on disk and published.
    ///
    /// # Errors
    /// Why nothing was written.
    pub async fn write(&self, command: &Command, author: &Author) -> Result<Written, WriteError> {
        for _ in 0..RACES_MAX {
            let head = self.store.head();
            let number = head.as_ref().map_or(0, |head| head.number);
            if author.expected.is_some_and(|expected| expected != number) {
                return Err(WriteError::Behind { head: number });
            }
            let empty = json!({});
            let current = head.as_ref().map_or(&empty, |head| &head.document);
            let outcome = self.decide(current, number, command, author).map_err(WriteError::Refused)?;
            let intent::Outcome { intent, records, schedule } = outcome;
            let created = match command {
                Command::PutService(name, _) => intent::service(current, name).is_none(),
                Command::PutTraffic(name, _) => intent::traffic_table(current, name).is_none(),
                Command::PutMesh(_) => head.is_none(),
                Command::Flag(key, FlagDeed::Put(_)) => intent::flag(current, key).is_none(),
                Command::PutFlags(_) => intent::flag_set(current).is_none(),
                Command::BeginMove(..)
                | Command::Flag(_, FlagDeed::Schedule { .. })
                | Command::PutRollout(..) => true,
                Command::Conduct(_)
                | Command::ConductMove(_)
                | Command::DeleteService(_)
                | Command::Flag(..)
                | Command::ForceBreaker(..)
                | Command::Move(..)
                | Command::PatchService(..)
                | Command::Restore { .. }
                | Command::RollBack(_)
                | Command::Rollout(..)
                | Command::Switch(..) => false,
            };
            if records.is_empty()
                && schedule.is_none()
                && head.as_ref().is_some_and(|head| head.hash == intent.hash)
            {
                return Ok(Written { revision: number, changed: false, created });
            }
            let forced = if author.force { " (forced)" } else { "" };
            let flags = intent::flag_changes(current, &intent.json);
            let draft = Draft {
                who: author.who.clone(),
                what: format!("{}{forced}", command.what()),
                reason: author.reason.clone(),
                intent,
                records,
                flags,
                schedule,
            };
            match self.store.append(number, draft).await {
                Ok(revision) => {
                    self.publish();
                    return Ok(Written { revision: revision.number, changed: true, created });
                }
                // Somebody else wrote first: what was decided may not hold any more.
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(WriteError::Contended)
    }

    /// What a command would make of what is there. Writes nothing.
    ///
    /// # Errors
    /// Why it would change nothing.
    pub fn decide(
        &self,
        current: &Value,
        number: u64,
        command: &Command,
        author: &Author,
    ) -> Result<intent::Outcome, Refusal> {
        let (records, view) = (self.store.records(), self.view());
        let (exposure, schedule) = (self.exposure(), self.store.schedule());
        let context = Context {
            number,
            records: &records,
            alive: &view.endpoints,
            exposure: &exposure,
            schedule: &schedule,
            by: &author.who,
            why: &author.reason,
            now_ms: now_ms(),
            force: author.force,
            accept_warnings: author.accept_warnings,
            dice: fastrand::u64(..),
        };
        intent::apply(current, command, &context)
    }

    /// Takes in what a proxy says.
    ///
    /// # Errors
    /// When whoever sends it may not speak for it.
    pub fn hear(&self, caller: &Caller, mut ack: Ack) -> Result<(), Foreign> {
        let counts = std::mem::take(&mut ack.flags);
        self.publisher.acks.note_of(caller, ack)?;
        if !counts.is_empty()
            && let Some(published) = self.publisher.current()
            && let Some(set) = &published.intent().flags
        {
            self.exposure().hear(&counts, set, now_ms());
        }
        Ok(())
    }

    /// Which flags are in use. Whoever reads keeps proxies waiting that have something to say of flags.
    pub fn exposure(&self) -> MutexGuard<'_, Exposure> {
        // Whoever panicked left whole entries: each is replaced in one step.
        self.exposure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who is alive, as all providers say together.
    #[must_use]
    pub fn view(&self) -> View {
        self.consul.borrow().joined(&self.registry.views().borrow())
    }

    /// What Consul said last, where the mirror starts from.
    #[must_use]
    pub fn last_consul(&self) -> Arc<View> {
        self.consul.borrow().clone()
    }

    /// Follows the services that the document names: what is asked of Consul. Names never come from requests.
    #[must_use]
    pub fn names(&self) -> watch::Receiver<BTreeSet<ServiceName>> {
        self.names.subscribe()
    }

    fn service_names(revision: Option<&Revision>) -> BTreeSet<ServiceName> {
        let services = revision.and_then(|revision| revision.document.get("services")?.as_object());
        let names = services.into_iter().flat_map(|services| services.keys());
        names.filter_map(|name| ServiceName::parse(name).ok()).collect()
    }

    /// Publishes anew whenever membership changes. Runs until it is dropped.
    pub async fn follow_membership(&self, mut mirror: Option<watch::Receiver<Arc<View>>>) {
        let mut registry = self.registry.views();
        loop {
            tokio::select! {
                changed = registry.changed() => if changed.is_err() { return },
                view = next(&mut mirror) => { self.consul.send_replace(view); }
            }
            self.publish();
        }
    }

    /// Keeps membership and who the proxies are for the next start, a moment after they changed. Runs until it is dropped.
    pub async fn keep_for_next_start(&self) {
        let mut registry = self.registry.views();
        let mut consul = self.consul.subscribe();
        let mut roster = self.publisher.acks.roster();
        let mut minutes = interval(KEEP_EXPOSURE_EVERY);
        minutes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                changed = registry.changed() => if changed.is_err() { return },
                changed = consul.changed() => if changed.is_err() { return },
                changed = roster.changed() => if changed.is_err() { return },
                _ = minutes.tick() => {
                    self.keep_exposure().await;
                    continue;
                }
            }
            sleep(KEEP_AFTER).await;
            registry.mark_unchanged();
            consul.mark_unchanged();
            roster.mark_unchanged();
            self.keep_now().await;
        }
    }

    /// Keeps who the proxies are, now.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub async fn keep_proxies(&self) -> Result<(), StoreError> {
        self.store.keep(KEPT_PROXIES, json!(self.publisher.acks.known())).await
    }

    /// Keeps membership and who the proxies are now, e.g. before the process ends.
    pub async fn keep_now(&self) {
        let registry = json!(self.registry.kept());
        let consul = json!(self.consul.borrow().endpoints);
        for (key, value) in [(KEPT_REGISTRY, registry), (KEPT_CONSUL, consul)] {
            if let Err(error) = self.store.keep(key, value).await {
                tracing::warn!("the last membership is not kept for the next start: {error}");
            }
        }
        self.keep_exposure().await;
        if let Err(error) = self.keep_proxies().await {
            tracing::warn!("who the proxies are is not kept for the next start: {error}");
        }
    }

    async fn keep_exposure(&self) {
        let published = self.publisher.current();
        let exposure = {
            let mut exposure = self.exposure();
            exposure
                .know(published.as_ref().and_then(|published| published.intent().flags.as_deref()), now_ms());
            json!(*exposure)
        };
        if let Err(error) = self.store.keep(KEPT_EXPOSURE, exposure).await {
            tracing::warn!("which flags are in use is not kept for the next start: {error}");
        }
    }

    fn publish(&self) {
        // One at a time, and always with the newest of both.
        self.publisher.publish_with(|before| {
            let head = self.store.head()?;
            let names = Self::service_names(Some(&head));
            self.names.send_if_modified(|known| {
                *known != names && {
                    *known = names;
                    true
                }
            });
            Some(Arc::new(compile(self.store.identity(), &head, &self.view(), before)))
        });
    }
}

/// The next view of a provider; never, where there is none or it has ended.
async fn next(provider: &mut Option<watch::Receiver<Arc<View>>>) -> Arc<View> {
    if let Some(views) = provider
        && views.changed().await.is_ok()
    {
        return Arc::clone(&views.borrow_and_update());
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(name: &str, table: serde_json::Value) -> Command {
        Command::PutService(ServiceName::parse(name).unwrap(), table)
    }

    struct Temporary(std::path::PathBuf);

    impl Temporary {
        fn state(name: &str) -> (Self, Arc<State>) {
            let path = std::env::temp_dir().join(format!("gilmok-state-{name}-{}", std::process::id()));
            drop(std::fs::remove_dir_all(&path));
            let state = State::new(Store::open(&path, 100).unwrap(), false).unwrap();
            (Self(path), state)
        }
    }

    impl Drop for Temporary {
        fn drop(&mut self) {
            drop(std::fs::remove_dir_all(&self.0));
        }
    }

    #[tokio::test]
    async fn the_same_again_makes_no_revision() {
        let (_folder, state) = Temporary::state("idempotent");
        let author = Author::default();
        let first = state.write(&put("ads", json!({})), &author).await.unwrap();
        assert_eq!((first.revision, first.changed, first.created), (1, true, true));
        let again = state.write(&put("ads", json!({})), &author).await.unwrap();
        assert_eq!((again.revision, again.changed, again.created), (1, false, false));
    }

    #[tokio::test]
    async fn whoever_is_behind_is_told_so() {
        let (_folder, state) = Temporary::state("behind");
        let author = Author { expected: Some(0), ..Author::default() };
        state.write(&put("ads", json!({})), &author).await.unwrap();
        let behind = state.write(&put("ads", json!({"max_concurrent": 1})), &author).await;
        assert!(matches!(behind, Err(WriteError::Behind { head: 1 })));
    }

    #[tokio::test]
    async fn a_write_is_published_when_it_is_acknowledged() {
        let (_folder, state) = Temporary::state("published");
        assert!(state.publisher.current().is_none());
        state.write(&put("ads", json!({})), &Author::default()).await.unwrap();
        assert_eq!(state.publisher.current().unwrap().revision, 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn racing_authors_all_get_their_way_and_the_last_revision_is_published() {
        let (_folder, state) = Temporary::state("authors");
        let authors: Vec<_> = (0..10)
            .map(|author| {
                let state = Arc::clone(&state);
                tokio::spawn(async move {
                    state.write(&put(&format!("s{author}"), json!({})), &Author::default()).await
                })
            })
            .collect();
        for author in authors {
            author.await.unwrap().unwrap();
        }
        assert_eq!(state.publisher.current().unwrap().revision, 10);
        assert_eq!(state.names().borrow().len(), 10);
    }
}
