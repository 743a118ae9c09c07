//! What proxies say they run.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gilmok_config::name::ServiceName;
use gilmok_config::wire::{Ack, ProxyState};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::tokens::Caller;

/// A proxy that was heard of so recently is live.
pub const LIVE: Duration = Duration::from_secs(15);
/// A proxy that was not heard of for so long is forgotten.
const FORGOTTEN: Duration = Duration::from_hours(1);
/// Most proxies that are remembered; beyond it, the one that was heard of longest ago makes room.
const PROXIES_MAX: usize = 20_000;

/// The newest word of every proxy.
#[derive(Debug)]
pub struct Acks {
    /// A mutex: taken for a look-up per ack, one a second from each proxy.
    proxies: Mutex<BTreeMap<String, ProxyReport>>,
    news: watch::Sender<()>,
    /// Changes with who is known and what is beside whom: what the next start wants to know. A watch, as `news` is: whoever
    /// follows wants the newest state, and waits for nobody.
    roster: watch::Sender<()>,
}

/// Why an ack is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Foreign {
    #[error("it speaks for the service `{0}`, and who sends it does not")]
    App(ServiceName),
    #[error("the proxy `{0}` is one of other services")]
    Proxy(String),
}

/// What is known of one proxy.
#[derive(Clone, Debug)]
pub struct ProxyReport {
    pub ack: Ack,
    /// When it was heard of; of one that only the process before this one has heard of, when this one began.
    pub heard: Instant,
    /// Whether this process has heard of it. Until then it is not live; how long it is silent nobody can tell, so its silence
    /// begins with this process.
    pub is_heard: bool,
    /// Whom it speaks for, as was shown by whoever sent it; empty where that was not limited.
    pub speaks_for: Vec<ServiceName>,
}

impl ProxyReport {
    /// Whether it was heard of recently.
    #[must_use]
    pub fn is_live(&self, now: Instant) -> bool {
        self.is_heard && now.saturating_duration_since(self.heard) <= LIVE
    }

    /// Whether it runs this revision of this store, or a later one.
    #[must_use]
    pub fn runs(&self, store: &str, revision: u64) -> bool {
        self.ack
            .applied
            .as_ref()
            .is_some_and(|applied| applied.store == store && applied.revision >= revision)
    }
}

impl Default for Acks {
    fn default() -> Self {
        Self { proxies: Mutex::default(), news: watch::Sender::new(()), roster: watch::Sender::new(()) }
    }
}

impl Acks {
    /// Notes what a proxy says that may say everything.
    pub fn note(&self, ack: Ack) {
        self.put(self.lock(), ack, Vec::new());
    }

    /// Notes what a proxy says, if whoever sends it may speak for it.
    ///
    /// # Errors
    /// For whom it may not.
    pub fn note_of(&self, caller: &Caller, ack: Ack) -> Result<(), Foreign> {
        if let Some(app) = ack.apps.iter().find(|app| !caller.covers(&app.service)) {
            return Err(Foreign::App(app.service.clone()));
        }
        let proxies = self.lock();
        may_speak(&proxies, caller, &ack.node)?;
        self.put(proxies, ack, caller.speaks_for());
        Ok(())
    }

    /// Whether a caller may be this proxy.
    ///
    /// # Errors
    /// When the proxy is known as one of others.
    pub fn may_speak(&self, caller: &Caller, node: &str) -> Result<(), Foreign> {
        may_speak(&self.lock(), caller, node)
    }

    fn put(
        &self,
        mut proxies: MutexGuard<'_, BTreeMap<String, ProxyReport>>,
        ack: Ack,
        speaks_for: Vec<ServiceName>,
    ) {
        let now = Instant::now();
        if proxies.len() >= PROXIES_MAX && !proxies.contains_key(&ack.node) {
            let oldest = proxies.iter().min_by_key(|(_, report)| report.heard).map(|(node, _)| node.clone());
            oldest.and_then(|node| proxies.remove(&node));
        }
        let is_as_known = proxies.get(&ack.node).is_some_and(|known| {
            known.ack.instance == ack.instance && known.ack.state == ack.state && known.ack.apps == ack.apps
        });
        proxies.insert(ack.node.clone(), ProxyReport { ack, heard: now, is_heard: true, speaks_for });
        drop(proxies);
        if !is_as_known {
            self.roster.send_replace(());
        }
        self.news.send_replace(());
    }

    /// Follows that proxies say something.
    #[must_use]
    pub fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    /// Follows who is known.
    #[must_use]
    pub fn roster(&self) -> watch::Receiver<()> {
        self.roster.subscribe()
    }

    /// Who is known, for the next start: a control plane that has just started must not take a proxy that is cut off for one
    /// that was never there.
    #[must_use]
    pub fn known(&self) -> Vec<Ack> {
        self.ask(|report, _| Ack {
            counts: Vec::new(),
            fences: Vec::new(),
            flags: Vec::new(),
            ..report.ack.clone()
        })
    }

    /// Those whom the process before this one knew: not heard of yet.
    pub fn remember(&self, known: Vec<Ack>) {
        let now = Instant::now();
        let mut proxies = self.lock();
        for ack in known.into_iter().take(PROXIES_MAX) {
            proxies.entry(ack.node.clone()).or_insert(ProxyReport {
                ack,
                heard: now,
                is_heard: false,
                speaks_for: Vec::new(),
            });
        }
    }

    /// What is made of the newest word of every proxy that is remembered, by name, and of how long ago it was said. Nothing is
    /// copied, so whoever has news waits meanwhile.
    pub fn ask<T>(&self, mut make: impl FnMut(&ProxyReport, Duration) -> T) -> Vec<T> {
        let now = Instant::now();
        let mut proxies = self.lock();
        proxies.retain(|_, report| now.saturating_duration_since(report.heard) <= FORGOTTEN);
        proxies.values().map(|report| make(report, now.saturating_duration_since(report.heard))).collect()
    }

    /// Every proxy that is remembered, by name.
    #[must_use]
    pub fn all(&self) -> Vec<ProxyReport> {
        self.ask(|report, _| report.clone())
    }

    /// Live proxies that do not run a revision, by name. One that leaves is not waited for.
    #[must_use]
    pub fn lagging(&self, store: &str, revision: u64) -> Vec<String> {
        let now = Instant::now();
        let proxies = self.lock();
        let lagging = proxies.values().filter(|report| {
            report.is_live(now) && report.ack.state != ProxyState::Draining && !report.runs(store, revision)
        });
        lagging.map(|report| report.ack.node.clone()).collect()
    }

    /// Waits until every live proxy runs a revision; answers who does not when the time is up.
    pub async fn converged(&self, store: &str, revision: u64, within: Duration) -> Vec<String> {
        let mut news = self.news.subscribe();
        let all_run =
            async { while !self.lagging(store, revision).is_empty() && news.changed().await.is_ok() {} };
        match timeout(within, all_run).await {
            Ok(()) => Vec::new(),
            Err(_) => self.lagging(store, revision),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, ProxyReport>> {
        // Whoever panicked left whole reports: each is replaced in one step.
        self.proxies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever speaks for some services only is no proxy that speaks, or has spoken, for another one.
fn may_speak(proxies: &BTreeMap<String, ProxyReport>, caller: &Caller, node: &str) -> Result<(), Foreign> {
    let Some(known) = proxies.get(node) else { return Ok(()) };
    let apps = known.ack.apps.iter().map(|app| &app.service);
    let is_own = apps.chain(&known.speaks_for).all(|service| caller.covers(service));
    if is_own { Ok(()) } else { Err(Foreign::Proxy(node.to_owned())) }
}

#[cfg(test)]
mod tests {
    use gilmok_config::name::Name;
    use gilmok_config::wire::{Applied, InboundApp, WIRE_LEVEL};

    use super::*;

    fn ack(node: &str, revision: u64) -> Ack {
        let applied =
            Applied { store: "s".to_owned(), revision, hash: String::new(), last_known_good: false };
        Ack {
            node: node.to_owned(),
            instance: "1".to_owned(),
            wire: WIRE_LEVEL,
            version: String::new(),
            applied: Some(applied),
            refused: None,
            state: ProxyState::Ready,
            counts: Vec::new(),
            apps: Vec::new(),
            fences: Vec::new(),
            flags: Vec::new(),
            identity: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_revision_has_converged_when_every_live_proxy_runs_it() {
        let acks = Acks::default();
        acks.note(ack("gone", 1));
        tokio::time::advance(LIVE + Duration::from_secs(1)).await;
        acks.note(ack("a", 2));
        acks.note(ack("b", 1));
        assert_eq!(acks.lagging("s", 2), ["b"]);
        assert_eq!(acks.converged("s", 2, Duration::from_secs(3)).await, ["b"]);
        let converged = acks.converged("s", 2, Duration::from_secs(3));
        let late = async { acks.note(ack("b", 2)) };
        let (lagging, ()) = tokio::join!(converged, late);
        assert!(lagging.is_empty());
        assert_eq!(acks.lagging("other", 1), ["a", "b"], "another store's numbers mean nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_speaks_for_a_proxy_of_another_service() {
        let acks = Acks::default();
        let caller = |name: &str| Caller::Identity(format!("spiffe://mesh/service/{name}").parse().unwrap());
        let app = |name: &str| InboundApp {
            service: ServiceName::parse(name).unwrap(),
            shard: Name::default(),
            address: None,
        };
        let (shop, thief) = (caller("shop"), caller("ads"));
        let of = |node: &str, apps: Vec<InboundApp>| Ack { apps, ..ack(node, 1) };
        // One with an app, one that only calls, and one that came without an identity.
        acks.note_of(&shop, of("web-1", vec![app("shop")])).unwrap();
        acks.note_of(&shop, of("web-2", Vec::new())).unwrap();
        acks.note(of("web-3", vec![app("shop")]));
        acks.note(of("web-4", Vec::new()));
        assert_eq!(
            acks.note_of(&thief, of("own", vec![app("shop")])),
            Err(Foreign::App(app("shop").service))
        );
        for node in ["web-1", "web-2", "web-3"] {
            let refused = Err(Foreign::Proxy(node.to_owned()));
            for apps in [Vec::new(), vec![app("ads")]] {
                assert_eq!(acks.note_of(&thief, of(node, apps)), refused);
            }
            assert_eq!(acks.may_speak(&thief, node), refused);
            assert_eq!(acks.may_speak(&shop, node), Ok(()));
            assert_eq!(acks.note_of(&Caller::Operator, of(node, vec![app("shop")])), Ok(()));
        }
        assert_eq!(acks.note_of(&thief, of("own", vec![app("ads")])), Ok(()));
        assert_eq!(acks.may_speak(&thief, "web-4"), Ok(()), "of whom nothing is known");
    }

    #[tokio::test(start_paused = true)]
    async fn a_proxy_that_leaves_is_not_waited_for() {
        let acks = Acks::default();
        acks.note(Ack { state: ProxyState::Draining, ..ack("a", 1) });
        assert!(acks.lagging("s", 2).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn whom_the_process_before_knew_is_known_but_not_live() {
        let before = Acks::default();
        let mut roster = before.roster();
        roster.mark_unchanged();
        before.note(ack("a", 1));
        assert!(roster.has_changed().unwrap());
        roster.mark_unchanged();
        before.note(ack("a", 2));
        assert!(!roster.has_changed().unwrap(), "what it runs is told again soon");
        tokio::time::advance(LIVE * 2).await;
        let acks = Acks::default();
        acks.note(ack("b", 2));
        acks.remember(before.known());
        let live = acks.ask(|report, _| (report.ack.node.clone(), report.is_live(Instant::now())));
        assert_eq!(live, [("a".to_owned(), false), ("b".to_owned(), true)]);
        let silent = acks.ask(|_, silent| silent);
        assert_eq!(silent, [Duration::ZERO; 2], "nobody can tell how long it has been silent");
        tokio::time::advance(FORGOTTEN + LIVE).await;
        acks.note(ack("b", 2));
        assert_eq!(acks.all().len(), 1, "nor for ever");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_silent_for_long_is_forgotten() {
        let acks = Acks::default();
        acks.note(ack("a", 1));
        tokio::time::advance(FORGOTTEN + Duration::from_secs(1)).await;
        assert!(acks.all().is_empty());
    }
}
