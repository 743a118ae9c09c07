//! What is in force: one snapshot and the live state that belongs to it, put in place as one.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use gilmok_config::address::Address;
use gilmok_config::endpoint::Endpoint;
use gilmok_config::flag::FlagSet;
use gilmok_config::hash::content_hash;
use gilmok_config::name::{Name, ServiceName};
use gilmok_config::retry::RetryPolicy;
use gilmok_config::service::ServicePolicy;
use gilmok_config::snapshot::Snapshot;
use gilmok_config::wire::Applied;
use tokio::sync::{Notify, watch};

use crate::access::Admission;
use crate::clock;
use crate::flag_counts::FlagCounts;
use crate::tls::Mesh;
use crate::upstream::endpoint::EndpointState;
use crate::upstream::service::{Surroundings, Upstream};
use crate::visitor::VisitorKeys;

/// What is in force. One request acts on one of these, from its head to its answer.
#[derive(Debug, Default)]
pub(crate) struct Current {
    pub(crate) snapshot: Arc<Snapshot>,
    /// By place in [`Snapshot::services`].
    pub(crate) upstreams: Vec<Arc<Upstream>>,
    /// The apps beside this proxy, by place in the settings.
    pub(crate) apps: Vec<Arc<Upstream>>,
    /// Who may call them, in the same order.
    pub(crate) access: Vec<Arc<Admission>>,
    /// How often flags were evaluated, and to what they came.
    pub(crate) flag_counts: Arc<FlagCounts>,
    /// Changes with what any flag may come to, for the same question.
    pub(crate) flag_revision: Box<str>,
    /// By which visitors are known, where there are any.
    pub(crate) keys: Option<Arc<VisitorKeys>>,
    /// Which revision it is; absent in file mode.
    pub(crate) applied: Option<Applied>,
    /// Counts up with every change, so that workers can say what they have taken. 0: nothing was put in force yet.
    pub(crate) generation: u64,
}

impl Current {
    /// The live state of every endpoint, the apps' included.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = &Arc<EndpointState>> {
        self.upstreams.iter().chain(&self.apps).flat_map(|upstream| &upstream.endpoints)
    }
}

/// An app beside this proxy.
#[derive(Clone, Debug)]
pub(crate) struct LocalApp {
    pub(crate) service: ServiceName,
    pub(crate) endpoint: Endpoint,
}

/// The addresses that names stood for when they were last resolved.
pub(crate) type Resolved = HashMap<(Arc<str>, u16), Arc<[SocketAddr]>>;

/// What a snapshot is put in force with, and comes from elsewhere.
#[derive(Debug, Default)]
struct Around {
    resolved: Resolved,
    keys: Option<Arc<VisitorKeys>>,
    identity: Option<Arc<Mesh>>,
    waiting: Waiting,
}

/// Whether this proxy waits to learn who it is. Until then it would speak in the clear with whoever speaks mutual TLS.
#[derive(Debug, Default)]
enum Waiting {
    /// What is to be put in force then, if that is known already.
    ForIdentity(Option<(Arc<Snapshot>, Option<Applied>)>),
    #[default]
    ForNothing,
}

/// Holds what is in force and replaces it.
#[derive(Debug)]
pub(crate) struct InForce {
    /// A swap, so that requests take what is in force without waiting for anyone.
    current: Arc<ArcSwap<Current>>,
    /// Serialises those who replace it (a source, the resolver); held for the length of a build, never across an await.
    building: Mutex<Around>,
    /// Tells workers, health checks and acks that there is something new.
    generation: watch::Sender<u64>,
    /// The generation that each worker has taken.
    taken: Box<[AtomicU64]>,
    taken_news: watch::Sender<()>,
    apps: Vec<LocalApp>,
    zone: Name,
    next_endpoint_id: AtomicU64,
    /// Told whenever a closed batch of keys may have become quiet: acks say so at once.
    emptied: Arc<Notify>,
}

impl InForce {
    pub(crate) fn new(workers: usize, zone: Name, apps: Vec<LocalApp>) -> Self {
        Self {
            current: Arc::default(),
            building: Mutex::default(),
            generation: watch::Sender::new(0),
            taken: (0..workers).map(|_| AtomicU64::new(0)).collect(),
            taken_news: watch::Sender::new(()),
            apps,
            zone,
            next_endpoint_id: AtomicU64::new(1),
            emptied: Arc::default(),
        }
    }

    /// What is in force now. Workers use [`InForce::cell`] with a cache instead.
    pub(crate) fn load(&self) -> Arc<Current> {
        self.current.load_full()
    }

    pub(crate) fn cell(&self) -> &Arc<ArcSwap<Current>> {
        &self.current
    }

    pub(crate) fn workers(&self) -> usize {
        self.taken.len()
    }

    /// Counts up with every change; 0 until something is in force.
    pub(crate) fn generations(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Told whenever a closed batch of keys may have become quiet.
    pub(crate) fn emptied(&self) -> &Notify {
        &self.emptied
    }

    /// From now on nothing is put in force before this proxy knows who it is.
    pub(crate) fn wait_for_identity(&self) {
        self.lock().waiting = Waiting::ForIdentity(None);
    }

    /// Puts a snapshot in force and answers its generation; 0 while it waits to be. What is unchanged keeps its connections
    /// and counters.
    pub(crate) fn put(&self, snapshot: Snapshot, applied: Option<Applied>) -> u64 {
        let (mut around, snapshot) = (self.lock(), Arc::new(snapshot));
        if let Waiting::ForIdentity(held) = &mut around.waiting {
            *held = Some((snapshot, applied));
            return 0;
        }
        self.build(snapshot, applied, &around)
    }

    /// Notes what names stand for now; rebuilds what is in force if that differs.
    pub(crate) fn put_resolved(&self, news: Resolved) {
        let mut around = self.lock();
        if around.resolved != news {
            around.resolved = news;
            self.rebuild(&around);
        }
    }

    /// Notes by which keys visitors are known; rebuilds what is in force if that differs.
    pub(crate) fn put_keys(&self, news: VisitorKeys) {
        let mut around = self.lock();
        if around.keys.as_deref() != Some(&news) {
            around.keys = Some(Arc::new(news));
            self.rebuild(&around);
        }
    }

    /// Notes who this proxy is from now on; rebuilds what is in force, so that no new request goes over a connection that
    /// was made before.
    pub(crate) fn put_identity(&self, news: Arc<Mesh>) {
        let mut around = self.lock();
        around.identity = Some(news);
        match std::mem::take(&mut around.waiting) {
            Waiting::ForIdentity(Some((snapshot, applied))) => drop(self.build(snapshot, applied, &around)),
            Waiting::ForIdentity(None) | Waiting::ForNothing => self.rebuild(&around),
        }
    }

    fn rebuild(&self, around: &Around) {
        let before = self.load();
        if before.generation > 0 {
            self.build(Arc::clone(&before.snapshot), before.applied.clone(), around);
        }
    }

    /// Every name that endpoints in force are known by.
    pub(crate) fn names(&self) -> Vec<(Arc<str>, u16)> {
        let current = self.load();
        let endpoints = current.snapshot.services().iter().flat_map(|service| service.endpoints.iter());
        let mut names: Vec<_> = endpoints
            .chain(self.apps.iter().map(|app| &app.endpoint))
            .filter_map(|endpoint| match &endpoint.address {
                Address::Name { host, port } => Some((Arc::clone(host), *port)),
                Address::Socket(_) | Address::Unix(_) => None,
            })
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// A worker says which generation it runs.
    pub(crate) fn take(&self, worker: usize, generation: u64) {
        // Whoever sees this sees what the worker has counted of the generations before.
        self.taken[worker].store(generation, Release);
        self.taken_news.send_replace(());
    }

    /// Waits until every worker runs `generation` or a later one.
    pub(crate) async fn taken_by_all(&self, generation: u64) {
        let mut news = self.taken_news.subscribe();
        while self.taken.iter().any(|taken| taken.load(Acquire) < generation) {
            if news.changed().await.is_err() {
                return;
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Around> {
        // A panic while building leaves both whole: they are only ever replaced.
        self.building.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn build(&self, snapshot: Arc<Snapshot>, applied: Option<Applied>, with: &Around) -> u64 {
        let before = self.load();
        let around = Surroundings {
            resolved: &with.resolved,
            zone: &self.zone,
            identity: with.identity.as_ref(),
            workers: self.workers(),
            now_ms: clock::now_ms(),
            next_id: &self.next_endpoint_id,
            emptied: &self.emptied,
        };
        let upstreams = snapshot.services().iter().map(|service| {
            let kept = before.snapshot.service_index(service.name.as_str()).map(|at| &*before.upstreams[at]);
            Arc::new(Upstream::build(&service.name, &service.policy, &service.endpoints, kept, &around))
        });
        let upstreams: Vec<_> = upstreams.collect();
        // The apps beside this proxy are called in the clear.
        let around = Surroundings { identity: None, ..around };
        let apps = self.apps.iter().enumerate().map(|(place, app)| {
            let told = snapshot.service_index(app.service.as_str()).map(|at| &snapshot.services()[at].policy);
            // The app is checked by the proxy's settings and stands alone: its service's balancing, its division into
            // shards, and what is done when calls to it fail, are for callers.
            let policy = Arc::new(ServicePolicy {
                by_subject: None,
                health_check: None,
                tls: None,
                retry: RetryPolicy::default(),
                outlier_detection: None,
                circuit_breaker: None,
                forced_breakers: Vec::new(),
                fallback: Vec::new(),
                traffic: None,
                allow: None,
                sharding: None,
                endpoints: Vec::new(),
                ..told.map_or_else(ServicePolicy::default, |policy| ServicePolicy::clone(policy))
            });
            let kept = before.apps.get(place).map(|kept| &**kept);
            let endpoints = std::slice::from_ref(&app.endpoint);
            let upstream = Upstream::build(&app.service, &policy, endpoints, kept, &around);
            Arc::new(match told.and_then(|policy| policy.sharding.as_ref()) {
                Some(rule) => upstream.owning(rule, &app.endpoint.shard, kept, &around),
                None => upstream,
            })
        });
        let apps: Vec<_> = apps.collect();
        let access = self.apps.iter().enumerate().map(|(place, app)| {
            let (kept, access) = (before.access.get(place), snapshot.access_of(app.service.as_str()));
            Admission::following(kept, &app.service, access, with.identity.is_some())
        });
        let access = access.collect();
        let generation = before.generation + 1;
        let flag_counts = self.flag_counts(&before, &snapshot);
        let flag_revision = flag_revision(&snapshot);
        let keys = with.keys.clone();
        let current = Current {
            snapshot,
            upstreams,
            apps,
            access,
            flag_counts,
            flag_revision,
            keys,
            applied,
            generation,
        };
        self.current.store(Arc::new(current));
        self.generation.send_replace(generation);
        generation
    }

    fn flag_counts(&self, before: &Current, snapshot: &Snapshot) -> Arc<FlagCounts> {
        let (then, now) = (before.snapshot.flags(), snapshot.flags().map(|set| &**set));
        if then.map(|set| set.fingerprint()) == now.map(FlagSet::fingerprint) && before.generation > 0 {
            return Arc::clone(&before.flag_counts);
        }
        let before = then.map(|set| (&**set, &*before.flag_counts));
        // The thread of the OFREP listener comes after the workers.
        Arc::new(FlagCounts::new(now, self.workers() + 1, before))
    }
}

/// The set's fingerprint, and that of the traffic of services that flags follow: the same in every proxy and after a restart.
fn flag_revision(snapshot: &Snapshot) -> Box<str> {
    let Some(set) = snapshot.flags() else { return "none".into() };
    let mut followed: Vec<&str> = set.followed().collect();
    if followed.is_empty() {
        return set.fingerprint().into();
    }
    followed.sort_unstable();
    followed.dedup();
    let traffic = followed.into_iter().map(|name| {
        let at = snapshot.service_index(name);
        at.and_then(|at| snapshot.services()[at].policy.traffic.as_deref())
    });
    // Whatever of it changes may change whom it puts where.
    let traffic = content_hash(format!("{:?}", traffic.collect::<Vec<_>>()).as_bytes());
    format!("{}-{traffic}", set.fingerprint()).into()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use gilmok_config::document::Document;
    use gilmok_config::snapshot::Membership;

    use super::*;
    use crate::testing::Folder;
    use crate::testing::certificates::{Authority, write};
    use crate::tls::{IdentityFiles, Mode};

    fn snapshot(text: &str) -> Snapshot {
        Snapshot::join(&Document::parse_toml(text).unwrap(), &Membership::new())
    }

    fn in_force() -> InForce {
        InForce::new(2, Name::default(), Vec::new())
    }

    const ONE: &str = "[services.a]\n[[services.a.endpoints]]\naddress = \"127.0.0.1:1\"\n";

    #[test]
    fn what_is_unchanged_keeps_its_state() {
        let in_force = in_force();
        in_force.put(snapshot(ONE), None);
        let before = in_force.load();
        before.upstreams[0].shared.in_flight.store(7, Relaxed);
        let more = format!("{ONE}[[services.a.endpoints]]\naddress = \"127.0.0.1:2\"\n[services.b]\n");
        in_force.put(snapshot(&more), None);
        let after = in_force.load();
        assert!(Arc::ptr_eq(&before.upstreams[0].endpoints[0], &after.upstreams[0].endpoints[0]));
        assert_eq!(after.upstreams[0].shared.in_flight.load(Relaxed), 7);
        assert_eq!((after.upstreams.len(), after.generation), (2, 2));
    }

    #[test]
    fn another_weight_keeps_the_connections_and_another_protocol_does_not() {
        let in_force = in_force();
        in_force.put(snapshot(ONE), None);
        let id = in_force.load().upstreams[0].endpoints[0].id;
        in_force.put(snapshot(&format!("{ONE}weight = 5\n")), None);
        assert_eq!(in_force.load().upstreams[0].endpoints[0].id, id);
        let h2 = ONE.replace("[services.a]\n", "[services.a]\nprotocol = \"h2\"\n");
        in_force.put(snapshot(&h2), None);
        assert_ne!(in_force.load().upstreams[0].endpoints[0].id, id);
    }

    #[test]
    fn a_name_stands_for_all_its_addresses_once_they_are_known() {
        let in_force = in_force();
        in_force.put(snapshot(&ONE.replace("127.0.0.1", "ads.example")), None);
        assert!(in_force.load().upstreams[0].endpoints.is_empty());
        let name = in_force.names().remove(0);
        let addresses: Arc<[SocketAddr]> = [([10, 0, 0, 1], 1).into(), ([10, 0, 0, 2], 1).into()].into();
        in_force.put_resolved(Resolved::from([(name, addresses)]));
        assert_eq!(in_force.load().upstreams[0].endpoints.len(), 2);
    }

    #[test]
    fn another_identity_makes_other_connections_and_forgets_nothing_else() {
        let (dir, authority) = (Folder::new("renewed"), Authority::new("mesh"));
        let ca_file = dir.join("ca.pem");
        std::fs::write(&ca_file, authority.pem()).unwrap();
        let identity = |name: &str| {
            let pair = write(&dir, name, &authority.leaf("spiffe://mesh/service/shop"));
            let files = IdentityFiles { pair, ca_file: ca_file.clone() };
            Arc::new(Mesh::read(&files, Mode::Permissive).unwrap())
        };
        let in_force = in_force();
        let text = format!(
            "{ONE}[[services.a.endpoints]]\naddress = \"127.0.0.1:2\"\ninbound = true\nmtls = true\n"
        );
        in_force.put(snapshot(&text), None);
        let states = || in_force.load().upstreams[0].endpoints.clone();
        let ids = || states().iter().map(|state| state.id).collect::<Vec<_>>();
        let (plain, before) = (ids(), states());
        assert!(before.iter().all(|state| state.dial.is_none()));
        before[1].ewma_ns.store(7, Relaxed);
        in_force.put_identity(identity("one"));
        let encrypted = ids();
        assert_eq!(encrypted[0], plain[0], "who is called in the clear is called on");
        assert_ne!(encrypted[1], plain[1]);
        assert!(states()[1].dial.is_some() && states()[1].ewma_ns.load(Relaxed) == 7);
        in_force.put(snapshot(&format!("{text}weight = 5\n")), None);
        assert_eq!(ids(), encrypted, "another weight is no other connection");
        in_force.put_identity(identity("two"));
        assert_ne!(ids()[1], encrypted[1]);
    }

    #[test]
    fn nothing_is_in_force_before_an_identity_that_is_waited_for() {
        let (dir, authority) = (Folder::new("waiting"), Authority::new("mesh"));
        let ca_file = dir.join("ca.pem");
        std::fs::write(&ca_file, authority.pem()).unwrap();
        let pair = write(&dir, "own", &authority.leaf("spiffe://mesh/service/shop"));
        let mesh = Arc::new(Mesh::read(&IdentityFiles { pair, ca_file }, Mode::Permissive).unwrap());
        let in_force = in_force();
        in_force.wait_for_identity();
        let sidecar = format!("{ONE}inbound = true\nmtls = true\n");
        assert_eq!(in_force.put(snapshot("[services.b]\n"), None), 0);
        assert_eq!(in_force.put(snapshot(&sidecar), None), 0);
        in_force.put_resolved(Resolved::from([(("x".into(), 1), Arc::default())]));
        assert_eq!(in_force.load().generation, 0);
        in_force.put_identity(mesh);
        let current = in_force.load();
        assert_eq!((current.generation, current.upstreams.len()), (1, 1));
        assert!(current.upstreams[0].endpoints[0].dial.is_some(), "never in the clear");
        assert_eq!(in_force.put(snapshot(&sidecar), None), 2);
    }

    #[tokio::test]
    async fn a_generation_is_taken_when_every_worker_has_it() {
        let in_force = Arc::new(in_force());
        let generation = in_force.put(snapshot(ONE), None);
        in_force.take(0, generation);
        let waiting = in_force.taken_by_all(generation);
        let mut waiting = std::pin::pin!(waiting);
        assert!(
            std::future::poll_fn(|cx| std::task::Poll::Ready(waiting.as_mut().poll(cx).is_pending())).await
        );
        in_force.take(1, generation);
        waiting.await;
    }
}
