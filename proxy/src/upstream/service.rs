//! One service as it lives now: its endpoints, who of them is eligible, and how much is in flight.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use gilmok_config::breaker::BreakerPolicy;
use gilmok_config::endpoint::Endpoint;
use gilmok_config::failure::{Failure, FailureSet};
use gilmok_config::fallback::Action;
use gilmok_config::name::{Name, ServiceName};
use gilmok_config::outlier::OutlierDetection;
use gilmok_config::service::ServicePolicy;
use gilmok_config::sharding::Sharding;
use gilmok_config::wire::{COUNTED_VERSIONS_MAX, ServiceCounts, VersionCounts};
use http::HeaderValue;
use tokio::sync::Notify;

use super::breakers::Breakers;
use super::by_subject::{BySubject, Seats};
use super::candidates::{Aim, Candidates};
use super::ejection::{Deciding, Ejection, Ejections};
use super::endpoint::{EndpointState, Health, Peer};
use super::held::Held;
use super::mirrored::Mirrored;
use super::passages::Passages;
use super::trials::Trials;
use super::version::{VersionState, Versions};
use crate::breaker::{Breaker, Verdict};
use crate::clock;
use crate::metrics::TargetSeries;
use crate::rate_limit::Limiter;
use crate::tls::{Dial, Dialing, Mesh};

/// The live state of one service in one snapshot. What is unchanged is taken over from the one before.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) name: ServiceName,
    pub(crate) policy: Arc<ServicePolicy>,
    /// Every endpoint with every address its name stands for.
    pub(crate) endpoints: Vec<Arc<EndpointState>>,
    /// Requests that reach no endpoint are counted here: version and shard are empty.
    pub(crate) unplaced: Arc<TargetSeries>,
    pub(crate) targets: Vec<Arc<TargetSeries>>,
    pub(crate) versions: Versions,
    /// `request_timeout` as `Gilmok-Timeout` tells it, made once.
    pub(crate) timeout_header: HeaderValue,
    /// What tells its shard map from others, as `Gilmok-Shard-Map` tells it, made once; absent where it is not sharded.
    pub(crate) map_header: Option<HeaderValue>,
    /// What it holds, where it is an app beside this proxy that says its shard, and its service is sharded.
    pub(crate) owned: Option<Owned>,
    /// Its unsafe requests under way, where it is sharded.
    pub(crate) passages: Option<Passages>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) breakers: Option<Breakers>,
    pub(crate) limiter: Option<Arc<Limiter>>,
    /// How its endpoints are called over TLS, where they are.
    dialing: Dialing,
    /// What its versions come to while they share.
    pub(crate) trials: Trials,
    /// What may make a request be sent once more, here or to another service.
    pub(crate) repeats: FailureSet,
    /// What counts against an endpoint and its breaker.
    failures: FailureSet,
    /// Who may be chosen. Replaced when health changes; a swap, because picking must not wait.
    eligible: ArcSwap<Candidates>,
    /// Where each endpoint stands in the tables of a balancer that goes by the subject.
    seats: Option<Seats>,
    /// When it has to be worked out again at the latest: an ejected endpoint comes back. `u64::MAX` is never.
    next_return_ms: AtomicU64,
    /// What of [`Ejections::changes`] it knows of: requests on another snapshot of this service decide as well.
    seen_changes: AtomicU32,
    zone: Name,
}

/// The name of what is outside the mesh; it is not told to anyone.
static OUTSIDE: std::sync::LazyLock<ServiceName> =
    std::sync::LazyLock::new(|| ServiceName::parse("outside").expect("invariant: a sound name"));

/// What an app beside this proxy holds of a sharded service.
#[derive(Debug)]
pub(crate) struct Owned {
    pub(crate) rule: Arc<Sharding>,
    pub(crate) shard: Name,
}

/// What a service keeps over snapshots.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Shared {
    /// Requests in flight over all workers, for `max_concurrent`.
    pub(crate) in_flight: AtomicU32,
    /// Retries in flight over all workers, for the retry budget.
    pub(crate) retries_in_flight: AtomicU32,
    /// Where round robin stands.
    pub(crate) turn: AtomicU32,
    /// When it was last called, in milliseconds of [`crate::clock`]; 0 is never.
    pub(crate) called_at_ms: AtomicU64,
    /// Whether checks fail on every endpoint and none has ever passed, so that all are used.
    pub(crate) fail_open: AtomicBool,
    /// Whether a check has ever passed on any endpoint.
    pub(crate) check_passed: AtomicBool,
    /// Requests that an owner sent on to another shard.
    pub(crate) redirects: AtomicU64,
    /// Requests that this proxy sent on for its app, which does not hold their keys.
    pub(crate) misdirected: AtomicU64,
    /// Requests that wait for a newer snapshot.
    pub(crate) held: Held,
    /// Flags that found no room in the header of a request. Shared, since only what is too long comes here.
    pub(crate) flags_dropped: AtomicU64,
    pub(crate) ejections: Ejections,
}

/// What the building of an [`Upstream`] needs to know beside the service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Surroundings<'a> {
    /// The addresses that a name stood for when it was last resolved.
    pub(crate) resolved: &'a HashMap<(Arc<str>, u16), Arc<[std::net::SocketAddr]>>,
    pub(crate) zone: &'a Name,
    /// Who this proxy is in the mesh.
    pub(crate) identity: Option<&'a Arc<Mesh>>,
    pub(crate) workers: usize,
    pub(crate) now_ms: u64,
    pub(crate) next_id: &'a AtomicU64,
    /// Told whenever a closed batch of keys may have become quiet.
    pub(crate) emptied: &'a Arc<Notify>,
}

impl Upstream {
    /// Builds the state of a service, taking over from `before` what is unchanged.
    pub(crate) fn build(
        name: &ServiceName,
        policy: &Arc<ServicePolicy>,
        endpoints: &[Endpoint],
        before: Option<&Self>,
        around: &Surroundings<'_>,
    ) -> Self {
        // A change of protocol makes other connections of the same addresses.
        let same_protocol = before.filter(|before| before.policy.protocol == policy.protocol);
        let kept: HashMap<_, _> = same_protocol
            .iter()
            .flat_map(|before| &before.endpoints)
            .map(|state| ((&state.peer, &state.endpoint.version, &state.endpoint.shard), state))
            .collect();
        let dialing = before.map(|before| &before.dialing);
        let dialing = Dialing::build(name, policy, endpoints, around.identity, dialing);
        let mut versions = Versions::following(before.map(|before| &before.versions));
        for version in policy.traffic.iter().flat_map(|traffic| traffic.versions()) {
            versions.take_up(version);
        }
        let mut targets: Vec<Arc<TargetSeries>> = Vec::new();
        let mut states = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            let version = versions.take_up(&endpoint.version);
            let series = version.target(&endpoint.shard, around.workers);
            if !targets.iter().any(|target| Arc::ptr_eq(target, &series)) {
                targets.push(Arc::clone(&series));
            }
            for peer in peers_of(endpoint, around) {
                let kept = kept.get(&(&peer, &endpoint.version, &endpoint.shard)).copied();
                let dial = kept.and_then(|kept| kept.dial.as_ref());
                let dial = dialing.of(name, endpoint, peer.ip(), dial);
                let state = match kept {
                    Some(state) if state.endpoint == *endpoint && state.is_called_by(dial.as_ref()) => {
                        Arc::clone(state)
                    }
                    kept => {
                        let of = (&version, &series);
                        Arc::new(EndpointState::following(kept, endpoint, (peer, dial), of, around))
                    }
                };
                states.push(state);
            }
        }
        let seats_before = before.and_then(|before| before.seats.as_ref());
        let seats = policy
            .by_subject
            .as_ref()
            .map(|by| Seats::of(by.kind, &states, policy.sharding.as_deref(), seats_before));
        let shared = before.map(|before| Arc::clone(&before.shared)).unwrap_or_default();
        let unplaced = match before {
            Some(before) => Arc::clone(&before.unplaced),
            None => Arc::new(TargetSeries::new(Name::default(), Name::default(), around.workers)),
        };
        let kept = before.and_then(|before| before.breakers.as_ref());
        let breakers = Breakers::build(policy, endpoints, kept);
        let timeout_ms = u64::try_from(policy.request_timeout.as_millis()).unwrap_or(u64::MAX);
        let upstream = Self {
            name: name.clone(),
            policy: Arc::clone(policy),
            endpoints: states,
            unplaced,
            targets,
            versions,
            timeout_header: HeaderValue::from(timeout_ms),
            map_header: policy.sharding.as_deref().and_then(map_header),
            owned: None,
            passages: policy.sharding.as_ref().map(|rule| passages(rule, before, around)),
            shared,
            breakers,
            limiter: limiter(policy, before),
            dialing,
            trials: Trials::of(
                policy.traffic.as_deref(),
                before.map(|before| (&before.trials, before.policy.traffic.as_deref())),
            ),
            repeats: repeats(policy),
            failures: failures(policy),
            eligible: ArcSwap::default(),
            seats,
            next_return_ms: AtomicU64::new(u64::MAX),
            seen_changes: AtomicU32::new(0),
            zone: around.zone.clone(),
        };
        upstream.versions.settle(name, policy.traffic.as_deref());
        upstream.refresh(around.now_ms);
        upstream
    }

    /// An app beside this proxy whose callers look for its shard by this rule.
    pub(crate) fn owning(
        self,
        rule: &Arc<Sharding>,
        shard: &Name,
        before: Option<&Self>,
        around: &Surroundings<'_>,
    ) -> Self {
        let map_header = map_header(rule);
        if shard.is_empty() {
            return Self { map_header, ..self };
        }
        let owned = Some(Owned { rule: Arc::clone(rule), shard: shard.clone() });
        Self { map_header, owned, passages: Some(passages(rule, before, around)), ..self }
    }

    /// A host outside the mesh, for one request.
    pub(crate) fn outside(policy: ServicePolicy, endpoint: &Arc<EndpointState>) -> Self {
        let timeout_ms = u64::try_from(policy.request_timeout.as_millis()).unwrap_or(u64::MAX);
        let endpoints = vec![Arc::clone(endpoint)];
        Self {
            name: OUTSIDE.clone(),
            policy: Arc::new(policy),
            eligible: ArcSwap::from_pointee(Candidates::only(&endpoints)),
            seats: None,
            endpoints,
            unplaced: Arc::clone(&endpoint.series),
            targets: Vec::new(),
            versions: Versions::default(),
            timeout_header: HeaderValue::from(timeout_ms),
            map_header: None,
            owned: None,
            passages: None,
            shared: Arc::default(),
            breakers: None,
            limiter: None,
            dialing: Dialing::default(),
            trials: Trials::default(),
            repeats: FailureSet::default(),
            failures: FailureSet::default(),
            next_return_ms: AtomicU64::new(u64::MAX),
            seen_changes: AtomicU32::new(0),
            zone: Name::default(),
        }
    }

    /// By what rule it is divided into shards.
    pub(crate) fn rule(&self) -> Option<&Arc<Sharding>> {
        self.policy.sharding.as_ref().or_else(|| self.owned.as_ref().map(|owned| &owned.rule))
    }

    /// What counts against an endpoint and its breaker.
    pub(crate) fn failures(&self) -> &FailureSet {
        &self.failures
    }

    /// Who may be chosen now.
    pub(crate) fn eligible(&self, now_ms: u64) -> arc_swap::Guard<Arc<Candidates>> {
        let is_due = now_ms >= self.next_return_ms.load(Relaxed);
        if is_due || self.seen_changes.load(Relaxed) != self.shared.ejections.changes() {
            self.refresh(now_ms);
        }
        self.eligible.load()
    }

    /// What choosing by the subject goes by, where that is what the balancer does and there is a subject.
    pub(crate) fn by_subject(&self, aim: Aim) -> Option<BySubject> {
        let (policy, hash) = self.policy.by_subject.as_ref().zip(aim.subject_hash)?;
        Some(BySubject { hash, factor: policy.factor, tries: aim.tries })
    }

    /// Whether a version, by its place in the traffic's versions, has an endpoint that membership and health checks call
    /// healthy; one of this shard, where one was decided on. What calls to it come to is another matter: a breaker moves
    /// nobody.
    pub(crate) fn has_healthy(&self, version: usize, shard: Option<usize>, now_ms: u64) -> bool {
        self.eligible(now_ms).has_any(version, shard)
    }

    /// What was counted of its versions, where its traffic names any: of those, of what endpoints have beside them, and
    /// of what nobody names any more while requests are in flight to it.
    pub(crate) fn counts(&self) -> Option<ServiceCounts> {
        if self.trials.versions().is_empty() {
            return None;
        }
        let known = self.versions.known().iter().map(|version| self.counts_of(version));
        let gone = self.versions.gone().map(|version| self.counts_of(&version));
        let counted = known.chain(gone.filter(|counts| counts.in_flight > 0)).take(COUNTED_VERSIONS_MAX);
        Some(ServiceCounts { service: self.name.clone(), versions: counted.collect() })
    }

    fn counts_of(&self, version: &VersionState) -> VersionCounts {
        let named = self.trials.versions().iter().find(|trials| trials.version == version.name);
        let counts = named.map(|trials| trials.outcomes.counts()).unwrap_or_default();
        let sums = version.sums();
        VersionCounts {
            version: version.name.clone(),
            in_flight: sums.in_flight,
            requests: sums.requests,
            attempts: sums.attempts,
            unreachable: sums.unreachable,
            trials: counts.trials,
            failures: counts.failures,
            latency: counts.latency,
            moved: named.map_or(0, |trials| trials.moved()),
            mirror: version.mirrored().map(Mirrored::counts),
        }
    }

    /// Works out anew who may be chosen. Called when the health of an endpoint changed.
    pub(crate) fn refresh(&self, now_ms: u64) {
        self.refresh_with(&self.shared.ejections.decide(), now_ms);
    }

    /// An answer whose head was good has broken off in its body: a reset that came late.
    pub(crate) fn answer_broke_off(&self, endpoint: &EndpointState) {
        if self.failures.has(Failure::Reset) {
            self.answer_failed(endpoint);
        }
    }

    /// An answer whose head was good turned out to be a failure.
    pub(crate) fn answer_failed(&self, endpoint: &EndpointState) {
        let (now_ms, dice) = (clock::now_ms(), fastrand::f64());
        if let Some(policy) = &self.policy.outlier_detection
            && endpoint.ejection.note_late(policy)
        {
            self.leave_out(endpoint, policy, now_ms, dice);
        }
        if let Some(breaker) = self.breaker_of(endpoint) {
            breaker.failed_late(now_ms, dice);
        }
    }

    /// An answer whose head was good is whole: it ends the rows of those that broke off.
    pub(crate) fn answer_was_whole(&self, endpoint: &EndpointState) {
        if self.policy.outlier_detection.is_some() {
            endpoint.ejection.whole();
        }
        if let Some(breaker) = self.breaker_of(endpoint) {
            breaker.whole();
        }
    }

    fn breaker_of(&self, endpoint: &EndpointState) -> Option<&Arc<Breaker>> {
        self.breakers.as_ref().and_then(|breakers| breakers.of(&endpoint.endpoint))
    }

    /// Takes what one try at an endpoint came to; leaves the endpoint out if that is one failure in a row too many.
    /// To be called once for each try; the caller says what is a failure. `dice` is between 0 and 1.
    pub(crate) fn endpoint_outcome(
        &self,
        endpoint: &EndpointState,
        verdict: Verdict,
        now_ms: u64,
        dice: f64,
    ) {
        if let Some(policy) = &self.policy.outlier_detection
            && endpoint.ejection.note(verdict, policy, now_ms)
        {
            self.leave_out(endpoint, policy, now_ms, dice);
        }
    }

    /// Leaves an endpoint out whose row is full, if one more may be.
    fn leave_out(&self, endpoint: &EndpointState, policy: &OutlierDetection, now_ms: u64, dice: f64) {
        let ejections = &self.shared.ejections;
        if ejections.is_full(&endpoint.ejection, now_ms) {
            return;
        }
        let deciding = ejections.decide();
        let candidates = self.candidates();
        if let Some(ms) = deciding.judge(policy, &endpoint.ejection, &candidates, now_ms, dice) {
            self.refresh_with(&deciding, now_ms);
            tracing::warn!(
                "{} at {}: {} failures in a row; left out for {:.1} s",
                self.name,
                endpoint.peer,
                policy.consecutive_failures,
                Duration::from_millis(ms).as_secs_f64()
            );
        }
    }

    /// The endpoints that may be called as far as weights and checks say.
    fn candidates(&self) -> Vec<&Ejection> {
        let fail_open = self.shared.fail_open.load(Relaxed);
        let may_be_called = |state: &&Arc<EndpointState>| {
            state.endpoint.weight > 0 && (fail_open || state.health() != Health::Unhealthy)
        };
        self.endpoints.iter().filter(may_be_called).map(|state| &state.ejection).collect()
    }

    fn refresh_with(&self, deciding: &Deciding<'_>, now_ms: u64) {
        let candidates = self.candidates();
        deciding.settle(self.policy.outlier_detection.as_ref(), &candidates, now_ms);
        let next = candidates.iter().filter_map(|ejection| ejection.until_ms()).min();
        self.next_return_ms.store(next.unwrap_or(u64::MAX), Relaxed);
        self.seen_changes.store(self.shared.ejections.changes(), Relaxed);
        let fail_open = self.shared.fail_open.load(Relaxed);
        let candidates = Candidates::of(&self.endpoints, &self.policy, &self.zone, fail_open);
        let candidates = match &self.seats {
            Some(seats) => candidates.seated(seats, self.policy.sharding.as_deref()),
            None => candidates,
        };
        self.eligible.store(Arc::new(candidates));
    }
}

impl EndpointState {
    /// Whether this is how it is called.
    fn is_called_by(&self, dial: Option<&Arc<Dial>>) -> bool {
        match (&self.dial, dial) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, Some(_)) | (Some(_), None) => false,
        }
    }

    /// A new state for an endpoint that was there with another weight, zone, role or priority (or was not there).
    fn following(
        before: Option<&Arc<Self>>,
        endpoint: &Endpoint,
        (peer, dial): (Peer, Option<Arc<Dial>>),
        (version, series): (&Arc<VersionState>, &Arc<TargetSeries>),
        around: &Surroundings<'_>,
    ) -> Self {
        // The same id keeps the workers' pools; in flight begins at 0 and what is under way ends on the old state.
        // Connections that were made with another certificate, or were checked by other roots, serve no new request.
        let kept = before.filter(|before| before.is_called_by(dial.as_ref()));
        let id = kept.map_or_else(|| around.next_id.fetch_add(1, Relaxed), |kept| kept.id);
        let (version, series) = (Arc::clone(version), Arc::clone(series));
        let mut state = Self::new(id, endpoint.clone(), peer, version, series, around.now_ms);
        state.dial = dial;
        if let Some(before) = before {
            state.note_health(before.health());
            state.ejection.follow(&before.ejection);
            for (new, old) in [
                (&state.ewma_ns, &before.ewma_ns),
                (&state.ewma_at_ms, &before.ewma_at_ms),
                (&state.since_ms, &before.since_ms),
            ] {
                new.store(old.load(Relaxed), Relaxed);
            }
        }
        state
    }
}

fn map_header(rule: &Sharding) -> Option<HeaderValue> {
    HeaderValue::from_str(&rule.map_tag().to_string()).ok()
}

fn passages(rule: &Arc<Sharding>, before: Option<&Upstream>, around: &Surroundings<'_>) -> Passages {
    let before = before.and_then(|before| before.passages.as_ref());
    Passages::following(before, rule, around.emptied)
}

/// A limit goes on as it is while what is said of it stays the same.
fn limiter(policy: &ServicePolicy, before: Option<&Upstream>) -> Option<Arc<Limiter>> {
    let policy = policy.rate_limit.as_ref()?;
    let kept = before.and_then(|before| before.limiter.as_ref()).filter(|kept| kept.policy() == policy);
    Some(kept.map_or_else(|| Arc::new(Limiter::new(policy)), Arc::clone))
}

fn failures(policy: &ServicePolicy) -> FailureSet {
    policy
        .circuit_breaker
        .as_ref()
        .map_or_else(|| BreakerPolicy::default().failures, |breaker| breaker.failures)
}

fn repeats(policy: &ServicePolicy) -> FailureSet {
    let retried = if policy.retry.attempts > 0 { policy.retry.on } else { FailureSet::default() };
    let elsewhere = policy.fallback.iter().filter(|link| matches!(link.action, Action::Service(_)));
    elsewhere.fold(retried, |set, link| set.or(link.on))
}

fn peers_of(endpoint: &Endpoint, around: &Surroundings<'_>) -> Vec<Peer> {
    use gilmok_config::address::Address;
    match &endpoint.address {
        Address::Socket(socket) => vec![Peer::Tcp(*socket)],
        Address::Unix(path) => vec![Peer::Unix(path.clone())],
        Address::Name { host, port } => around
            .resolved
            .get(&(Arc::clone(host), *port))
            .map(|addresses| addresses.iter().copied().map(Peer::Tcp).collect())
            .unwrap_or_default(),
    }
}
