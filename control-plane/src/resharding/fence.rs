//! Whether a closed batch is fenced: nobody lets a write of it through any more, nor would after a restart.

use std::time::Duration;

use gilmok_config::address::Address;
use gilmok_config::endpoint::Endpoint;
use gilmok_config::hash::content_hash;
use gilmok_config::name::{Name, ServiceName};
use gilmok_config::wire::{Ack, FenceReport, InboundApp, ProxyState};
use serde::Serialize;

use super::words;

/// What a proxy said last, as far as it concerns one service's batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub node: String,
    /// Since it was heard.
    pub silent: Duration,
    /// Whether it has said good-bye.
    pub is_leaving: bool,
    /// Whether another process of its node was heard of since, and it was not: it has ended, or is forgotten before long.
    pub is_replaced: bool,
    /// The revision of this store that all of its workers run.
    pub runs: Option<u64>,
    /// The service's apps that callers reach through it.
    pub apps: Vec<InboundApp>,
    /// How it stands to the batch that is closed in the snapshot it runs.
    pub fence: Option<FenceReport>,
}

/// What is known when it is asked whether a batch is fenced.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// Whose batch it is.
    pub source: &'a Name,
    /// The revision that closed it.
    pub closed: u64,
    /// Of the whole service.
    pub endpoints: &'a [Endpoint],
    /// Whether callers have reached an app of the source itself since the move began.
    pub was_direct: bool,
    /// Every proxy that is remembered.
    pub reports: &'a [Report],
    /// How long a proxy is silent before it is one that is not heard of.
    pub silent_max: Duration,
    /// Whether an operator has said that those are gone.
    pub forced: bool,
}

/// What came of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fence {
    /// A hash of who had to close the batch: another one, if others had to.
    Complete { by: String },
    /// In the order in which they were found.
    Waits(Vec<Waiting>),
}

/// Somebody who is waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Waiting {
    /// A proxy, or a sidecar by the address at which it should be.
    pub who: String,
    pub why: String,
}

impl Report {
    /// Of a process that no other one has followed.
    #[must_use]
    pub fn of(ack: &Ack, silent: Duration, service: &ServiceName, store: &str) -> Self {
        // By another store's numbers it has closed something else.
        let is_ours = ack.applied.as_ref().is_none_or(|applied| applied.store == store);
        let mut fences = ack.fences.iter().filter(|_| is_ours);
        Self {
            node: ack.node.clone(),
            silent,
            is_leaving: ack.state == ProxyState::Draining,
            is_replaced: false,
            runs: ack.applied.as_ref().filter(|_| is_ours).map(|applied| applied.revision),
            apps: ack.apps.iter().filter(|app| app.service == *service).cloned().collect(),
            fence: fences.find(|fence| fence.service == *service).cloned(),
        }
    }

    /// Whether callers reach one of the service's apps through it at this address.
    pub(super) fn is_at(&self, address: &Address) -> bool {
        self.apps.iter().any(|app| is_at(app, address))
    }
}

/// Whether callers reach an app at this address.
fn is_at(app: &InboundApp, address: &Address) -> bool {
    let said = app.address.as_deref().and_then(|text| text.parse::<Address>().ok());
    said.as_ref() == Some(address)
}

/// Asks.
///
/// Every sidecar of the source has to have closed the batch by this revision, to have nothing of it under way, and to find it
/// closed after a restart: those that say that an app of the shard is beside them, and whoever is at an address that
/// membership calls a sidecar's. Where callers reach an app of the shard itself, or have done so since the move began, every
/// proxy has to have done so as a caller.
#[must_use]
pub fn fence(scene: &Scene<'_>) -> Fence {
    let of_shard: Vec<&Endpoint> =
        scene.endpoints.iter().filter(|endpoint| endpoint.shard == *scene.source).collect();
    let mut waits = Vec::new();
    let mut by: Vec<String> = Vec::new();
    if of_shard.is_empty() && !scene.forced {
        waits.push(words::nobody(scene.source));
    }
    for (report, is_owner) in scene.bound() {
        by.push(report.node.clone());
        let why = scene.lacks(report, is_owner);
        waits.extend(why.map(|why| Waiting { who: report.node.clone(), why }));
    }
    for endpoint in of_shard.iter().filter(|endpoint| endpoint.inbound) {
        by.push(endpoint.address.to_string());
        waits.extend(scene.uncovered(&endpoint.address));
    }
    if waits.is_empty() {
        Fence::Complete { by: content_hash(by.join(" ").as_bytes()) }
    } else {
        Fence::Waits(waits)
    }
}

/// A process that another one of its node has followed and that may still run: it would not close a batch, and is gone before
/// long, so that a batch is better closed then. What is closed is of no meaning here.
#[must_use]
pub fn replaced(scene: &Scene<'_>) -> Option<Waiting> {
    let mut bound = scene.bound().map(|(report, _)| report);
    let replaced = bound.find(|report| report.is_replaced)?;
    Some(Waiting { who: replaced.node.clone(), why: words::replaced(replaced.silent) })
}

impl Scene<'_> {
    /// Whether callers reach an app of the shard itself, or may still do so by what they knew.
    fn is_barrier(&self) -> bool {
        let of_shard = self.endpoints.iter().filter(|endpoint| endpoint.shard == *self.source);
        self.was_direct || of_shard.into_iter().any(|endpoint| !endpoint.inbound)
    }

    /// Those who have to close the batch, each with whether it is an owner.
    fn bound(&self) -> impl Iterator<Item = (&Report, bool)> {
        let is_barrier = self.is_barrier();
        self.reports.iter().filter(|report| self.counts(report)).filter_map(move |report| {
            let is_owner = report.apps.iter().any(|app| app.shard == *self.source);
            (is_owner || is_barrier).then_some((report, is_owner))
        })
    }

    /// Whether a proxy may still serve or call by what it knows. One that is cut off goes on; one that has said good-bye and
    /// is silent since has ended.
    fn counts(&self, report: &Report) -> bool {
        let may_be_gone = report.is_leaving || self.forced;
        !(may_be_gone && report.silent > self.silent_max)
    }

    /// What a proxy still has to do.
    fn lacks(&self, report: &Report, is_owner: bool) -> Option<String> {
        let Some(fence) = report.fence.as_ref().filter(|fence| fence.closed == self.closed) else {
            return Some(if report.is_replaced {
                words::replaced(report.silent)
            } else if report.silent > self.silent_max {
                words::silent(report.silent)
            } else {
                words::OPEN.to_owned()
            });
        };
        let serving = if is_owner { fence.serving } else { 0 };
        let calling = if self.is_barrier() { fence.calling } else { 0 };
        match serving.saturating_add(calling) {
            0 if fence.persisted => None,
            0 => Some(words::NOT_KEPT.to_owned()),
            underway => Some(words::underway(underway)),
        }
    }

    /// Who should be at a sidecar's address, where no proxy says that it guards the shard there.
    fn uncovered(&self, address: &Address) -> Option<Waiting> {
        let at =
            |report: &&Report, app: &InboundApp| is_at(app, address) && (self.forced || self.counts(report));
        let mut known = self.reports.iter().flat_map(|report| {
            report.apps.iter().filter(move |app| at(&report, app)).map(move |app| (report, app))
        });
        let is_guarded = known.clone().any(|(_, app)| app.shard == *self.source);
        if is_guarded {
            return None;
        }
        Some(match known.next() {
            Some((report, app)) => words::other_shard(&report.node, app, self.source),
            None => words::unknown(address),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENT_MAX: Duration = Duration::from_secs(15);
    const CLOSED: u64 = 41;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    fn profile() -> ServiceName {
        ServiceName::parse("profile").unwrap()
    }

    fn endpoint(address: &str, shard: &str, inbound: bool) -> Endpoint {
        Endpoint { shard: name(shard), inbound, ..Endpoint::at(address.parse().unwrap()) }
    }

    /// A proxy that has closed the batch, with an app of this shard where callers reach it.
    fn sidecar(node: &str, shard: &str, address: &str) -> Report {
        let app = InboundApp { service: profile(), shard: name(shard), address: Some(address.to_owned()) };
        Report { apps: vec![app], ..caller(node) }
    }

    fn caller(node: &str) -> Report {
        let fence =
            FenceReport { service: profile(), closed: CLOSED, calling: 0, serving: 0, persisted: true };
        Report {
            node: node.to_owned(),
            silent: Duration::ZERO,
            is_leaving: false,
            is_replaced: false,
            runs: Some(CLOSED),
            apps: Vec::new(),
            fence: Some(fence),
        }
    }

    fn with(mut report: Report, change: impl FnOnce(&mut FenceReport)) -> Report {
        change(report.fence.as_mut().unwrap());
        report
    }

    fn told(endpoints: &[Endpoint], reports: &[Report], forced: bool) -> Vec<String> {
        let source = name("0");
        match fence(&Scene {
            source: &source,
            closed: CLOSED,
            endpoints,
            was_direct: false,
            reports,
            silent_max: SILENT_MAX,
            forced,
        }) {
            Fence::Complete { .. } => Vec::new(),
            Fence::Waits(waits) => {
                assert!(!waits.is_empty());
                waits.into_iter().map(|waiting| format!("{}: {}", waiting.who, waiting.why)).collect()
            }
        }
    }

    #[test]
    fn every_sidecar_of_the_source_closes_the_batch_and_nobody_else_has_to() {
        let endpoints = [endpoint("10.0.0.1:80", "0", true), endpoint("10.0.0.2:80", "1", true)];
        let one = sidecar("a", "0", "10.0.0.1:80");
        let other = with(sidecar("b", "1", "10.0.0.2:80"), |fence| fence.closed = 7);
        let open = Report { fence: None, ..caller("c") };
        let all = |one: &Report| [one.clone(), other.clone(), open.clone()];
        assert_eq!(told(&endpoints, &all(&one), false), [""; 0]);
        for (one, why) in [
            (Report { fence: None, ..one.clone() }, "a: has not closed it yet"),
            (with(one.clone(), |fence| fence.closed = CLOSED - 1), "a: has not closed it yet"),
            (
                with(one.clone(), |fence| fence.serving = 2),
                "a: 2 requests of it, or from before it was known, are under way",
            ),
            (
                with(one.clone(), |fence| fence.persisted = false),
                "a: would not find it closed after a restart",
            ),
            (
                Report { fence: None, silent: Duration::from_secs(20), ..one.clone() },
                "a: not heard of for 20s",
            ),
        ] {
            assert_eq!(told(&endpoints, &all(&one), false), [why]);
        }
        // What it calls is its own affair.
        assert_eq!(told(&endpoints, &all(&with(one.clone(), |fence| fence.calling = 9)), false), [""; 0]);
        // A word that stands stays true, however long ago it was said.
        let silent = Report { silent: Duration::from_secs(600), ..one };
        assert_eq!(told(&endpoints, &all(&silent), false), [""; 0]);
    }

    #[test]
    fn a_closing_by_another_stores_number_counts_for_nothing() {
        let mut ack: Ack = serde_json::from_value(serde_json::json!({
            "node": "a", "instance": "1", "wire": 1,
            "applied": { "store": "ours", "revision": 41, "hash": "h" },
            "fences": [{ "service": "profile", "closed": 41 }],
        }))
        .unwrap();
        let told = |ack: &Ack| {
            let report = Report::of(ack, Duration::ZERO, &profile(), "ours");
            (report.fence.is_some(), report.runs)
        };
        assert_eq!(told(&ack), (true, Some(41)));
        ack.applied.as_mut().unwrap().store = "theirs".to_owned();
        assert_eq!(told(&ack), (false, None));
    }

    #[test]
    fn a_sidecar_that_nobody_has_heard_of_is_waited_for() {
        let endpoints = [endpoint("10.0.0.1:80", "0", true), endpoint("10.0.0.3:80", "0", true)];
        let one = sidecar("a", "0", "10.0.0.1:80");
        assert_eq!(
            told(&endpoints, std::slice::from_ref(&one), false),
            ["the sidecar at 10.0.0.3:80: no proxy says that it is there"]
        );
        let nameless = sidecar("b", "", "10.0.0.3:80");
        assert_eq!(
            told(&endpoints, &[one.clone(), nameless], false),
            [
                "b: its app at 10.0.0.3:80 says no shard, so it cannot close one; set `shard = \"0\"` in its settings"
            ]
        );
        // Membership may not speak of an owner any more that others still call.
        let known = Report { fence: None, ..sidecar("c", "0", "10.0.0.9:80") };
        assert_eq!(told(&endpoints[..1], &[one, known], false), ["c: has not closed it yet"]);
        assert_eq!(told(&[], &[], false), ["shard 0: has no endpoint, so nobody could close it"]);
    }

    #[test]
    fn where_the_app_itself_is_called_every_proxy_ends_its_own_calls() {
        let endpoints = [endpoint("10.0.0.1:80", "0", false)];
        assert_eq!(told(&endpoints, &[caller("a"), caller("b")], false), [""; 0]);
        for (report, why) in [
            (Report { fence: None, ..caller("b") }, "b: has not closed it yet"),
            (
                with(caller("b"), |fence| fence.calling = 1),
                "b: 1 request of it, or from before it was known, is under way",
            ),
            (
                with(caller("b"), |fence| fence.persisted = false),
                "b: would not find it closed after a restart",
            ),
        ] {
            assert_eq!(told(&endpoints, &[caller("a"), report], false), [why]);
        }
        assert_eq!(told(&endpoints, &[with(caller("a"), |fence| fence.serving = 3)], false), [""; 0]);
        // Beside it a sidecar: both are asked.
        let both = [endpoints[0].clone(), endpoint("10.0.0.2:80", "0", true)];
        let busy = with(sidecar("s", "0", "10.0.0.2:80"), |fence| (fence.serving, fence.calling) = (1, 1));
        assert_eq!(
            told(&both, &[caller("a"), busy], false),
            ["s: 2 requests of it, or from before it was known, are under way"]
        );
    }

    #[test]
    fn who_has_left_is_not_waited_for_and_who_leaves_is() {
        let endpoints = [endpoint("10.0.0.1:80", "0", true)];
        let one = sidecar("a", "0", "10.0.0.1:80");
        let leaving = |seconds| Report {
            is_leaving: true,
            fence: None,
            silent: Duration::from_secs(seconds),
            ..sidecar("old", "0", "10.0.0.8:80")
        };
        assert_eq!(told(&endpoints, &[one.clone(), leaving(16)], false), [""; 0]);
        assert_eq!(told(&endpoints, &[one.clone(), leaving(1)], false), ["old: has not closed it yet"]);
        // Membership says that somebody is there, and it is not one that has left.
        let there = Report { is_leaving: true, silent: Duration::from_secs(16), ..one };
        assert_eq!(
            told(&endpoints, &[there], false),
            ["the sidecar at 10.0.0.1:80: no proxy says that it is there"]
        );
    }

    #[test]
    fn who_may_have_called_the_app_itself_is_asked_although_a_sidecar_stands_before_it_by_now() {
        let (source, endpoints) = (name("0"), [endpoint("10.0.0.1:80", "0", true)]);
        let reports = [sidecar("a", "0", "10.0.0.1:80"), with(caller("b"), |fence| fence.calling = 1)];
        let is_complete = |was_direct| {
            let scene = Scene {
                source: &source,
                closed: CLOSED,
                endpoints: &endpoints,
                was_direct,
                reports: &reports,
                silent_max: SILENT_MAX,
                forced: false,
            };
            matches!(fence(&scene), Fence::Complete { .. })
        };
        assert!(is_complete(false) && !is_complete(true));
    }

    #[test]
    fn every_process_of_a_node_closes_the_batch() {
        let endpoints = [endpoint("10.0.0.1:80", "0", false)];
        let twins = [caller("a"), with(caller("a"), |fence| fence.calling = 1)];
        assert_eq!(
            told(&endpoints, &twins, false),
            ["a: 1 request of it, or from before it was known, is under way"]
        );
        let seconds = Duration::from_secs(3);
        let before = Report { is_replaced: true, fence: None, silent: seconds, ..caller("a") };
        let why = "an earlier process of it may still run, silent for 3s";
        assert_eq!(told(&endpoints, &[before.clone(), caller("a")], false), [format!("a: {why}")]);
        let source = name("0");
        let soon = |endpoints: &[Endpoint]| {
            let reports = [before.clone(), caller("a")];
            let scene = Scene {
                source: &source,
                closed: 0,
                endpoints,
                was_direct: false,
                reports: &reports,
                silent_max: SILENT_MAX,
                forced: false,
            };
            replaced(&scene).map(|waiting| waiting.why)
        };
        assert_eq!(soon(&endpoints).as_deref(), Some(why));
        assert_eq!(soon(&[endpoint("10.0.0.1:80", "0", true)]), None, "it is no owner");
    }

    #[test]
    fn an_operator_may_say_that_the_silent_are_gone() {
        let endpoints = [endpoint("10.0.0.1:80", "0", true), endpoint("10.0.0.2:80", "0", false)];
        let one = sidecar("a", "0", "10.0.0.1:80");
        let silent = |seconds| Report { fence: None, silent: Duration::from_secs(seconds), ..caller("c") };
        assert_eq!(told(&endpoints, &[one.clone(), silent(16)], false), ["c: not heard of for 16s"]);
        assert_eq!(told(&endpoints, &[one.clone(), silent(16)], true), [""; 0]);
        assert_eq!(told(&endpoints, &[one.clone(), silent(15)], true), ["c: has not closed it yet"]);
        // The dead owner itself, known by its address.
        let dead = Report { fence: None, silent: Duration::from_secs(60), ..one };
        assert_eq!(told(&endpoints[..1], std::slice::from_ref(&dead), false), ["a: not heard of for 1m"]);
        assert_eq!(told(&endpoints[..1], &[dead], true), [""; 0]);
        assert_eq!(told(&[], &[], true), [""; 0], "whoever served it is gone");
    }

    #[test]
    fn others_who_had_to_close_it_make_it_another_fence() {
        let by = |reports: &[Report]| {
            let source = name("0");
            let endpoints = [endpoint("10.0.0.1:80", "0", true)];
            let scene = Scene {
                source: &source,
                closed: CLOSED,
                endpoints: &endpoints,
                was_direct: false,
                reports,
                silent_max: SILENT_MAX,
                forced: false,
            };
            match fence(&scene) {
                Fence::Complete { by } => by,
                Fence::Waits(waits) => panic!("{waits:?}"),
            }
        };
        let one = sidecar("a", "0", "10.0.0.1:80");
        let first = by(std::slice::from_ref(&one));
        assert_eq!(first, by(&[one.clone(), caller("x")]));
        assert_ne!(first, by(&[one, sidecar("b", "0", "10.0.0.2:80")]));
    }
}
