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
/// So is one that another process of its node has followed, if it is silent for so long: one that runs beside that one, whose
/// words were not taken for a while, has spoken again by then.
const REPLACED: Duration = Duration::from_secs(10);
/// Most proxies that are remembered; beyond it those make room that another one has followed or that take leave, and after
/// them nobody: the one that was silent for longest may be the one that is waited for.
const PROXIES_MAX: usize = 20_000;

/// A process: its node, and which start of it this is. Two processes may have one node, by mistake or while one takes over from
/// the other, and each has calls of its own under way.
type Process = (String, String);

/// The newest word of every proxy.
#[derive(Debug)]
pub struct Acks {
    /// A mutex: taken for a look-up per ack, one a second from each proxy.
    proxies: Mutex<BTreeMap<Process, ProxyReport>>,
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
    #[error("{PROXIES_MAX} proxies are known to this control plane already, and none of them has left")]
    Full,
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
    /// Whether another process of its node was heard of for the first time since, or since it has left: it has probably ended.
    pub is_replaced: bool,
    /// Whether it was said that it runs beside another process of its node.
    is_twin: bool,
    /// Whom it speaks for, as was shown by whoever sent it; empty where that was not limited.
    pub speaks_for: Vec<ServiceName>,
}

impl ProxyReport {
    pub(crate) fn new(ack: Ack, heard: Instant, is_heard: bool) -> Self {
        Self { ack, heard, is_heard, is_replaced: false, is_twin: false, speaks_for: Vec::new() }
    }

    /// Whether it was heard of recently.
    #[must_use]
    pub fn is_live(&self, now: Instant) -> bool {
        self.is_heard && !self.is_replaced && self.silent(now) <= LIVE
    }

    fn silent(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.heard)
    }

    /// Whether its apps are on the machine on which those of the other one are. Ports differ from start to start.
    fn is_where(&self, other: &Self) -> bool {
        fn hosts(report: &ProxyReport) -> impl Iterator<Item = &str> {
            let addresses = report.ack.apps.iter().filter_map(|app| app.address.as_deref());
            addresses.map(|address| address.rsplit_once(':').map_or(address, |(host, _)| host))
        }
        hosts(other).all(|host| hosts(self).any(|own| own == host))
    }

    fn is_forgotten(&self, now: Instant) -> bool {
        self.silent(now) > if self.is_replaced { REPLACED } else { FORGOTTEN }
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
        // A proxy too many is not known then; only tests have no caller.
        drop(self.put(self.lock(), ack, Vec::new()));
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
        self.put(proxies, ack, caller.speaks_for())
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
        mut proxies: MutexGuard<'_, BTreeMap<Process, ProxyReport>>,
        ack: Ack,
        speaks_for: Vec<ServiceName>,
    ) -> Result<(), Foreign> {
        let now = Instant::now();
        let process = (ack.node.clone(), ack.instance.clone());
        if proxies.len() >= PROXIES_MAX && !proxies.contains_key(&process) {
            make_room(&mut proxies, now)?;
        }
        let known = proxies.get(&process);
        let is_as_known =
            known.is_some_and(|known| known.ack.state == ack.state && known.ack.apps == ack.apps);
        let is_first = known.is_none_or(|known| !known.is_heard);
        let mut report = ProxyReport { speaks_for, ..ProxyReport::new(ack, now, true) };
        report.is_twin = known.is_some_and(|known| known.is_twin);
        let others = of_node(&mut proxies, &process.0).filter(|other| other.ack.instance != process.1);
        for other in others {
            // Whoever still runs says so again. One that took leave beside its successor is followed by it, too.
            let has_left = other.ack.state == ProxyState::Draining && other.silent(now) > LIVE;
            // On another machine it says nothing of whoever was here: that one may only be cut off.
            other.is_replaced |= is_first && report.is_where(other) || has_left;
            let both_serve = [&*other, &report].iter().all(|one| one.ack.state != ProxyState::Draining);
            if !other.is_replaced && both_serve && other.is_live(now) {
                let is_told = other.is_twin && report.is_twin;
                (other.is_twin, report.is_twin) = (true, true);
                if !is_told {
                    tracing::warn!(
                        "two proxies say that they are {:?}; give each a `node` of its own, else nobody can tell them apart",
                        process.0
                    );
                }
            }
        }
        proxies.insert(process, report);
        drop(proxies);
        if !is_as_known {
            self.roster.send_replace(());
        }
        self.news.send_replace(());
        Ok(())
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
            guarded: Vec::new(),
            ..report.ack.clone()
        })
    }

    /// Those whom the process before this one knew: not heard of yet.
    pub fn remember(&self, known: Vec<Ack>) {
        let now = Instant::now();
        let mut proxies = self.lock();
        for ack in known.into_iter().take(PROXIES_MAX) {
            let process = (ack.node.clone(), ack.instance.clone());
            proxies.entry(process).or_insert(ProxyReport::new(ack, now, false));
        }
    }

    /// What is made of the newest word of every proxy that is remembered, by name, and of how long ago it was said. Nothing is
    /// copied, so whoever has news waits meanwhile.
    pub fn ask<T>(&self, mut make: impl FnMut(&ProxyReport, Duration) -> T) -> Vec<T> {
        let now = Instant::now();
        let mut proxies = self.lock();
        proxies.retain(|_, report| !report.is_forgotten(now));
        proxies.values().map(|report| make(report, report.silent(now))).collect()
    }

    /// Every proxy that is remembered, by name.
    #[must_use]
    pub fn all(&self) -> Vec<ProxyReport> {
        self.ask(|report, _| report.clone())
    }

    /// The newest words of those that this process has heard of. What the process before it knew has no counts: taken for a
    /// beginning, everything that a proxy has ever counted would be news.
    #[must_use]
    pub fn heard(&self) -> Vec<Ack> {
        self.ask(|report, _| report.is_heard.then(|| report.ack.clone())).into_iter().flatten().collect()
    }

    /// Live proxies that do not run a revision, by name. One that leaves is not waited for.
    #[must_use]
    pub fn lagging(&self, store: &str, revision: u64) -> Vec<String> {
        let now = Instant::now();
        let proxies = self.lock();
        let lagging = proxies.values().filter(|report| {
            report.is_live(now) && report.ack.state != ProxyState::Draining && !report.runs(store, revision)
        });
        let mut lagging: Vec<String> = lagging.map(|report| report.ack.node.clone()).collect();
        lagging.dedup();
        lagging
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

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Process, ProxyReport>> {
        // Whoever panicked left whole reports: each is replaced in one step.
        self.proxies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets who is to be forgotten, or else one that has been followed or takes leave, the longest silent first.
fn make_room(proxies: &mut BTreeMap<Process, ProxyReport>, now: Instant) -> Result<(), Foreign> {
    let before = proxies.len();
    proxies.retain(|_, report| !report.is_forgotten(now));
    if proxies.len() < before {
        return Ok(());
    }
    let leaving =
        proxies.iter().filter(|(_, report)| report.is_replaced || report.ack.state == ProxyState::Draining);
    let first = leaving.min_by_key(|(_, report)| (!report.is_replaced, report.heard));
    let first = first.map(|(process, _)| process.clone()).ok_or(Foreign::Full)?;
    proxies.remove(&first);
    Ok(())
}

/// The processes of one node.
fn of_node<'p>(
    proxies: &'p mut BTreeMap<Process, ProxyReport>,
    node: &'p str,
) -> impl Iterator<Item = &'p mut ProxyReport> {
    let from = (node.to_owned(), String::new());
    proxies.range_mut(from..).take_while(move |((other, _), _)| other == node).map(|(_, report)| report)
}

/// Whoever speaks for some services only is no proxy of which any process speaks, or has spoken, for another one.
fn may_speak(proxies: &BTreeMap<Process, ProxyReport>, caller: &Caller, node: &str) -> Result<(), Foreign> {
    let from = (node.to_owned(), String::new());
    let mut processes = proxies.range(from..).take_while(|((other, _), _)| other == node);
    let is_own = processes.all(|(_, known)| {
        let apps = known.ack.apps.iter().map(|app| &app.service);
        apps.chain(&known.speaks_for).all(|service| caller.covers(service))
    });
    if is_own { Ok(()) } else { Err(Foreign::Proxy(node.to_owned())) }
}

#[cfg(test)]
mod tests {
    use gilmok_config::name::Name;
    use gilmok_config::wire::{Applied, InboundApp, WIRE_LEVEL};
    use serde_json::json;

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
            guarded: Vec::new(),
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
    async fn one_too_many_takes_the_place_of_one_that_leaves_and_of_no_other() {
        let acks = Acks::default();
        let caller = Caller::Operator;
        acks.note(ack("silent", 1));
        tokio::time::advance(LIVE * 2).await;
        acks.note(Ack { state: ProxyState::Draining, ..ack("leaving", 1) });
        // Followed by another process of its node.
        acks.note(ack("new", 1));
        acks.note(Ack { instance: "2".to_owned(), ..ack("new", 1) });
        for number in acks.all().len()..PROXIES_MAX {
            acks.note(ack(&format!("p{number}"), 1));
        }
        let is_known = |node: &str, instance: &str| {
            acks.all().iter().any(|report| report.ack.node == node && report.ack.instance == instance)
        };
        assert!(is_known("new", "1") && is_known("leaving", "1"));
        acks.note_of(&caller, ack("x", 1)).unwrap();
        assert!(!is_known("new", "1") && is_known("leaving", "1"));
        acks.note_of(&caller, ack("y", 1)).unwrap();
        assert!(!is_known("leaving", "1"));
        assert_eq!(acks.note_of(&caller, ack("z", 1)), Err(Foreign::Full));
        assert_eq!(acks.note_of(&caller, ack("x", 2)), Ok(()), "who is known goes on");
        assert!(is_known("silent", "1"), "it may be waited for");
        tokio::time::advance(FORGOTTEN).await;
        assert_eq!(acks.note_of(&caller, ack("z", 1)), Ok(()), "it is forgotten by now");
        assert!(!is_known("silent", "1"));
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
        let heard: Vec<_> = acks.heard().into_iter().map(|ack| ack.node).collect();
        assert_eq!(heard, ["b"], "what is known of the other begins when it speaks");
        let silent = acks.ask(|_, silent| silent);
        assert_eq!(silent, [Duration::ZERO; 2], "nobody can tell how long it has been silent");
        tokio::time::advance(FORGOTTEN + LIVE).await;
        acks.note(ack("b", 2));
        assert_eq!(acks.all().len(), 1, "nor for ever");
    }

    fn process(node: &str, instance: &str) -> Ack {
        Ack { instance: instance.to_owned(), ..ack(node, 1) }
    }

    fn known(acks: &Acks) -> Vec<(String, bool)> {
        acks.ask(|report, _| (report.ack.instance.clone(), report.is_live(Instant::now())))
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_another_one_has_followed_is_remembered_for_a_moment() {
        let acks = Acks::default();
        acks.note(process("a", "1"));
        acks.note(process("ab", "1"));
        acks.note(process("a", "2"));
        assert_eq!(known(&acks), [("1".into(), false), ("2".into(), true), ("1".into(), true)]);
        assert_eq!(acks.lagging("s", 2), ["a", "ab"]);
        tokio::time::advance(REPLACED).await;
        acks.note(process("a", "2"));
        assert_eq!(known(&acks).len(), 3);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(known(&acks), [("2".into(), true), ("1".into(), true)], "it was silent, so it has ended");
        // The next control plane hears of the newest one first.
        let next = Acks::default();
        next.remember(vec![process("a", "1"), process("a", "2")]);
        next.note(process("a", "2"));
        tokio::time::advance(REPLACED + Duration::from_secs(1)).await;
        assert_eq!(known(&next), [("2".into(), true)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_on_another_machine_follows_nobody() {
        let at = |instance: &str, address: &str| {
            let app = json!({ "service": "profile", "address": address });
            Ack { apps: vec![serde_json::from_value(app).unwrap()], ..process("a", instance) }
        };
        let acks = Acks::default();
        acks.note(at("1", "10.0.0.1:15006"));
        acks.note(at("2", "10.0.0.2:15006"));
        tokio::time::advance(REPLACED * 3).await;
        acks.note(at("2", "10.0.0.2:15006"));
        assert_eq!(known(&acks), [("1".into(), false), ("2".into(), true)], "the first may only be cut off");
        acks.note(at("3", "10.0.0.1:15007"));
        tokio::time::advance(REPLACED + Duration::from_secs(1)).await;
        acks.note(at("2", "10.0.0.2:15006"));
        let who: Vec<_> = known(&acks).into_iter().map(|(instance, _)| instance).collect();
        assert_eq!(who, ["2", "3"], "started again where it was");
    }

    #[tokio::test(start_paused = true)]
    async fn two_proxies_of_one_node_are_two() {
        let acks = Acks::default();
        acks.note(process("a", "1"));
        for _ in 0..30 {
            acks.note(process("a", "2"));
            acks.note(Ack { fences: Vec::new(), ..process("a", "1") });
            assert_eq!(known(&acks), [("1".into(), true), ("2".into(), true)]);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(acks.lagging("s", 2), ["a"]);
        assert!(acks.all().iter().any(|report| report.is_twin));
        // While one takes over from the other nothing is wrong.
        let acks = Acks::default();
        for instance in ["1", "2", "1", "2"] {
            let state = if instance == "1" { ProxyState::Draining } else { ProxyState::Ready };
            acks.note(Ack { state, ..process("b", instance) });
        }
        assert_eq!(known(&acks), [("1".into(), true), ("2".into(), true)]);
        assert!(!acks.all().iter().any(|report| report.is_twin));
        tokio::time::advance(LIVE + Duration::from_secs(1)).await;
        acks.note(process("b", "2"));
        assert_eq!(known(&acks), [("2".into(), true)], "it has left");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_silent_for_long_is_forgotten() {
        let acks = Acks::default();
        acks.note(ack("a", 1));
        tokio::time::advance(FORGOTTEN + Duration::from_secs(1)).await;
        assert!(acks.all().is_empty());
    }
}
