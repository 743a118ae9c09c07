//! The brain: one pure function from a snapshot, a request's facts, liveness and dice to a decision.
//!
//! The proxy routes by it, the control plane explains by it and the CLI plans by it.

use std::borrow::Cow;
use std::net::IpAddr;

use http::{HeaderMap, Method};

use crate::assignment::place_of;
use crate::baggage::{KeyedSubject, SubjectKey};
use crate::balancing::{self, BySubject};
use crate::flag::{Asked, Context, Finding, FlagSet, Overrides, Told};
use crate::name::Name;
use crate::path::has_prefix;
use crate::route::{Route, WhenFlag};
use crate::sharding::key::Keyed;
use crate::sharding::{KeyFault, Sharded, Sharding};
use crate::snapshot::Snapshot;
use crate::subject::{Asker, Baggage, Decisive, Uid};
use crate::traffic::{Mirror, Traffic, WhenNoSubject, WhenUnhealthy};

/// What is known of a request before its body is read.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'r> {
    pub listener: Listener,
    /// Canonical, see [`crate::host::canonical`].
    pub host: &'r str,
    /// As it was sent, without the query.
    pub path: &'r str,
    /// What stands behind the path's question mark.
    pub query: Option<&'r str>,
    pub method: &'r Method,
    pub headers: &'r HeaderMap,
    /// The caller's address where it is known for certain: needed only where [`Snapshot::wants_client`].
    pub client: Option<IpAddr>,
    pub uid: Uid<'r>,
    /// The id that an edge listener would give a visitor who has none.
    pub new_uid: Option<&'r str>,
    pub baggage: Baggage<'r>,
    /// What is taken for the sharding key, for those who only ask; else it is what the request has.
    pub key: Option<&'r str>,
    /// What a tester may see instead of what flags say.
    pub overrides: Overrides<'r>,
    /// Seconds since 1970: needed only where [`Snapshot::wants_now`].
    pub now: u64,
    /// A number by chance, from 0 up to [`crate::assignment::PLACES`].
    pub dice: u32,
    /// Another one, so that who is copied does not depend on who gets which version.
    pub mirror_dice: u32,
}

/// Who of a service is alive: whether a target has an endpoint that membership and health checks call healthy.
pub type Liveness<'l> = &'l dyn Fn(Target) -> bool;

/// A version of a service, and one of its shards where one was decided on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Place in [`Snapshot::services`].
    pub service: usize,
    /// Place in [`Traffic::versions`].
    pub version: usize,
    /// Place in [`Sharding::shards`].
    pub shard: Option<usize>,
}

/// Where a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Listener {
    /// From clients outside the mesh: serves only hosts that routes name.
    Edge,
    /// From callers to the app beside the proxy.
    Inbound,
    /// From the app beside the proxy.
    Outbound,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Place in [`Snapshot::services`].
    pub service: usize,
    /// Place in [`Snapshot::routes`], where a route decided.
    pub route: Option<usize>,
    /// Which version, where the service's traffic says so.
    pub split: Option<Split>,
    /// Which shard, where the service is sharded.
    pub shard: Option<Sharded>,
    /// The hash of the subject, where the service's balancer goes by it and there is one.
    pub subject_hash: Option<u64>,
}

/// Which version a request goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// Place in [`Traffic::versions`].
    pub version: usize,
    pub why: Why,
    /// The version it would have gone to, had that been healthy: a breach of isolation.
    pub moved_from: Option<usize>,
    /// The hash of the subject that decided: tells subjects apart.
    pub subject: Option<u32>,
    /// What later hops are told of the subject, where its keyed hash decided.
    pub passed_on: Option<KeyedSubject>,
    /// The version that gets a copy whose answer nobody sees.
    pub mirror: Option<usize>,
}

/// Why a request goes to a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// By chance and weight, because it has no subject.
    Chance,
    /// It has no subject, and then the stable version is asked.
    NoSubject,
    /// By this exception, a place in [`Traffic::pins`].
    Pin(usize),
    /// By its subject's place in the table.
    Place(u32),
    /// By the place of the id that it is given now; the answer has to bring it along.
    NewVisitor(u32),
    /// Nobody else has a share.
    Whole,
}

/// Why a request goes nowhere: a decision, not a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The key says no shard of this service (its place in [`Snapshot::services`]).
    NoShard { service: usize, fault: KeyFault },
    /// No service and no route answers to this host and path.
    NoDestination,
}

impl Listener {
    /// The word of the metric label `listener`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// Decides where a request goes: to which service, which of its versions and which of its shards. The shard does not
/// depend on the version, but who of a version is alive depends on the shard.
///
/// # Errors
/// The refusal, when it goes nowhere.
pub fn decide(snapshot: &Snapshot, facts: &Facts<'_>, is_healthy: Liveness<'_>) -> Result<Decision, Refusal> {
    let (service, route) = destination(snapshot, facts)?;
    let policy = &snapshot.services()[service].policy;
    let shard = match &policy.sharding {
        None => None,
        Some(sharding) => {
            let path = path_below(facts.path, route.map(|at| &snapshot.routes()[at]));
            let shard = shard(sharding, &Facts { path, ..*facts });
            Some(shard.map_err(|fault| Refusal::NoShard { service, fault })?)
        }
    };
    let split = policy.traffic.as_deref().map(|traffic| {
        let shard = shard.and_then(Sharded::shard);
        split(traffic, facts, &|version| is_healthy(Target { service, version, shard }))
    });
    let subject_hash = policy.by_subject.as_ref().and_then(|by| subject_hash(by, facts, split));
    Ok(Decision { service, route, split, shard, subject_hash })
}

/// The hash of the subject that decides on the endpoint: the one that decides on the version, were it an id that the
/// visitor is given now.
#[must_use]
pub fn subject_hash(by: &BySubject, facts: &Facts<'_>, split: Option<Split>) -> Option<u64> {
    let asker = facts.asker();
    let is_new = split.is_some_and(|split| matches!(split.why, Why::NewVisitor(_)));
    let subject = by.inputs.decisive(&asker).or_else(|| {
        let id = facts.new_uid.filter(|_| is_new)?;
        Some(by.inputs.keyed(&asker, Cow::Borrowed(id.as_bytes())))
    });
    subject.map(|subject| balancing::subject_hash(subject.as_bytes()))
}

/// The path as the service gets it.
fn path_below<'r>(path: &'r str, route: Option<&Route>) -> &'r str {
    let prefix = route.and_then(|route| route.strip_prefix.as_deref());
    match prefix {
        Some(prefix) if has_prefix(path, prefix) => &path[prefix.len()..],
        Some(_) | None => path,
    }
}

/// Decides which shard a request goes to. The same key, the same map: the same shard, in every process.
///
/// # Errors
/// Why it goes to none.
pub fn shard(sharding: &Sharding, facts: &Facts<'_>) -> Result<Sharded, KeyFault> {
    sharding.shard(&Keyed { asker: facts.asker(), host: facts.host, path: facts.path, key: facts.key })
}

/// Which service a request goes to, and by which route.
pub(crate) fn destination(snapshot: &Snapshot, facts: &Facts<'_>) -> Result<(usize, Option<usize>), Refusal> {
    let at_host = snapshot.at_host(facts.host);
    if facts.listener == Listener::Edge && !at_host.is_routed() {
        return Err(Refusal::NoDestination);
    }
    for index in at_host.routes() {
        let route = &snapshot.routes()[index];
        if route.matches(facts.method, facts.path, facts.headers)
            && let Some(service) = snapshot.service_index(route.service.as_str())
            && route.when_flag.as_ref().is_none_or(|when| is_when(snapshot, facts, service, when))
        {
            return Ok((service, Some(index)));
        }
    }
    match at_host.service {
        // An edge listener shows outsiders what routes say and nothing else.
        Some(service) if facts.listener != Listener::Edge => Ok((service, None)),
        _ => Err(Refusal::NoDestination),
    }
}

/// Whether a flag has a variant for whoever asks, as the service sees them.
fn is_when(snapshot: &Snapshot, facts: &Facts<'_>, service: usize, when: &WhenFlag) -> bool {
    let is_it = |set: &FlagSet, asked: &Asked<'_>| {
        let found = set.evaluate(when.flag(), asked);
        found.is_ok_and(|found| found.variant().is_some_and(|variant| variant.name() == when.variant()))
    };
    with_flags(snapshot, facts, service, is_it).unwrap_or_default()
}

/// Puts the headers there that tell a service its flags. What each flag came to is `seen`.
pub fn tell_flags(
    snapshot: &Snapshot,
    facts: &Facts<'_>,
    service: usize,
    headers: &mut HeaderMap,
    seen: &mut dyn FnMut(Finding),
) -> Told {
    let Some((emission, set)) = snapshot.services()[service].emission.as_ref().zip(snapshot.flags()) else {
        return Told::default();
    };
    if !emission.is_dynamic() && facts.overrides.is_empty() {
        // Nothing of the request is looked at.
        return emission.tell(set, &Asked::of(&Context::default(), facts.now), headers, seen);
    }
    let told = with_flags(snapshot, facts, service, |_, asked| emission.tell(set, asked, headers, seen));
    told.unwrap_or_default()
}

/// Evaluates flags for a request to a service, for whom and with what that service says; `None` if there are no flags.
pub fn with_flags<T>(
    snapshot: &Snapshot,
    facts: &Facts<'_>,
    service: usize,
    evaluate: impl FnOnce(&FlagSet, &Asked<'_>) -> T,
) -> Option<T> {
    let set = snapshot.flags()?;
    let follows = |followed: &str| {
        let at = snapshot.service_index(followed)?;
        let traffic = snapshot.services()[at].policy.traffic.as_deref()?;
        Some(assigned(traffic, facts).version != traffic.stable())
    };
    let asker = facts.asker();
    Some(snapshot.flags_of(service).with_context(&asker, |context| {
        evaluate(set, &Asked { context, now: facts.now, follows: &follows, overrides: facts.overrides })
    }))
}

/// Whether a subject of which nothing else is known is on the candidate of a service; `None` where nobody can say.
/// `key` is the mesh's, for subjects that are told in baggage.
#[must_use]
pub fn is_on_candidate(
    snapshot: &Snapshot,
    service: &str,
    subject: &str,
    key: Option<&SubjectKey>,
) -> Option<bool> {
    let traffic = snapshot.services()[snapshot.service_index(service)?].policy.traffic.as_deref()?;
    let mut headers = HeaderMap::new();
    let query = traffic.subject.write(subject, &mut headers).ok()?;
    let facts = Facts {
        query: query.as_deref(),
        baggage: Baggage { trusted: false, key },
        ..Facts::of(Listener::Outbound, service, "/", &Method::GET, &headers)
    };
    Some(assigned(traffic, &facts).version != traffic.stable())
}

/// Decides which version a request goes to. Same subject, same traffic: same version, in every process.
#[must_use]
pub fn split(traffic: &Traffic, facts: &Facts<'_>, is_healthy: &dyn Fn(usize) -> bool) -> Split {
    let assigned = assigned(traffic, facts);
    let stable = traffic.stable();
    let moves = assigned.version != stable
        && traffic.when_unhealthy == WhenUnhealthy::Stable
        && !is_healthy(assigned.version)
        && is_healthy(stable);
    let split = if moves {
        Split { version: stable, moved_from: Some(assigned.version), ..assigned }
    } else {
        assigned
    };
    let mirror = traffic.mirror.as_ref().filter(|mirror| {
        // Whoever is asked needs no copy.
        mirror.at() != split.version && mirror.takes(facts.method, facts.mirror_dice)
    });
    Split { mirror: mirror.map(Mirror::at), ..split }
}

/// Which version it is while all are well.
fn assigned(traffic: &Traffic, facts: &Facts<'_>) -> Split {
    let to =
        |version, why| Split { version, why, moved_from: None, subject: None, passed_on: None, mirror: None };
    let whole = to(traffic.owner(0), Why::Whole);
    if !traffic.is_split() && traffic.pins.is_empty() && !traffic.subject.want_baggage() {
        return whole;
    }
    let asker = facts.asker();
    let subject = traffic.subject.decisive(&asker);
    let passed_on = subject.as_ref().and_then(Decisive::passed_on);
    if let Some(at) = traffic.pins.iter().position(|pin| pin.matches(&asker, subject.as_ref())) {
        return Split { passed_on, ..to(traffic.pins[at].at, Why::Pin(at)) };
    }
    if !traffic.is_split() {
        return Split { passed_on, ..whole };
    }
    let placed = |subject: &Decisive<'_>, why: fn(u32) -> Why| {
        let hash = traffic.salt.hash(subject.as_bytes());
        let place = place_of(hash);
        let split = to(traffic.owner(place), why(place));
        Split { subject: Some(hash), passed_on: subject.passed_on(), ..split }
    };
    if let Some(subject) = subject {
        return placed(&subject, Why::Place);
    }
    match (traffic.when_no_subject, facts.new_uid) {
        (WhenNoSubject::Cookie, Some(id)) if traffic.subject.want_uid() => {
            placed(&traffic.subject.keyed(&asker, Cow::Borrowed(id.as_bytes())), Why::NewVisitor)
        }
        (WhenNoSubject::Random, _) => to(traffic.owner(facts.dice), Why::Chance),
        (WhenNoSubject::Stable | WhenNoSubject::Cookie, _) => to(traffic.stable(), Why::NoSubject),
    }
}

impl<'r> Facts<'r> {
    /// A request with a head and nothing else: no query, no known visitor, and the lowest of all dice.
    #[must_use]
    pub fn of(
        listener: Listener,
        host: &'r str,
        path: &'r str,
        method: &'r Method,
        headers: &'r HeaderMap,
    ) -> Self {
        Self {
            listener,
            host,
            path,
            query: None,
            method,
            headers,
            client: None,
            uid: Uid::AsSent,
            new_uid: None,
            key: None,
            baggage: Baggage::default(),
            overrides: Overrides::default(),
            now: 0,
            dice: 0,
            mirror_dice: 0,
        }
    }

    /// The request, as far as it says who is asking.
    #[must_use]
    pub fn asker(&self) -> Asker<'r> {
        let Self { headers, query, client, uid, baggage, .. } = *self;
        Asker { headers, query, client, uid, baggage }
    }
}

impl Split {
    /// The decision as it is explained, with everything that it followed from.
    #[must_use]
    pub fn told(&self, traffic: &Traffic) -> serde_json::Value {
        let version = |at: usize| traffic.versions().get(at).map(Name::as_str);
        let why = match self.why {
            Why::Chance => "no subject: by chance and weight, each request anew".to_owned(),
            Why::NoSubject => "no subject: the stable version".to_owned(),
            Why::Pin(at) => format!("pins[{at}]"),
            Why::Place(_) => "the subject's place in the table".to_owned(),
            Why::NewVisitor(_) => "the place of the id that the visitor is given".to_owned(),
            Why::Whole => "no other version has a share".to_owned(),
        };
        let place = match self.why {
            Why::Place(place) | Why::NewVisitor(place) => Some(place),
            Why::Chance | Why::NoSubject | Why::Pin(_) | Why::Whole => None,
        };
        let table = traffic.table.ranges().iter();
        serde_json::json!({
            "version": version(self.version),
            "why": why,
            "place": place,
            "salt": traffic.salt.as_str(),
            "stable": traffic.stable_name(),
            "table": table.map(|range| serde_json::json!([range.version, range.start, range.end])).collect::<Vec<_>>(),
            "moved_from": self.moved_from.and_then(version),
        })
    }
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Chance => f.write_str("chance"),
            Self::NoSubject => f.write_str("no_subject"),
            Self::Pin(at) => write!(f, "pin:{at}"),
            Self::Place(place) => write!(f, "place:{place}"),
            Self::NewVisitor(place) => write!(f, "new_visitor:{place}"),
            Self::Whole => f.write_str("whole"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;
    use crate::snapshot::Membership;

    fn snapshot(more: &str) -> Snapshot {
        let text =
            format!("[services.shop.traffic]\nstable = \"v1\"\nweights = {{ v1 = 50, v2 = 50 }}\n{more}\n");
        Snapshot::join(&Document::parse_toml(&text).unwrap(), &Membership::new())
    }

    fn facts<'r>(headers: &'r HeaderMap) -> Facts<'r> {
        Facts::of(Listener::Outbound, "shop", "/", &Method::GET, headers)
    }

    fn user(id: &str) -> HeaderMap {
        [("x-user-id".parse().unwrap(), id.parse().unwrap())].into_iter().collect::<HeaderMap>()
    }

    fn split_of(snapshot: &Snapshot, facts: &Facts<'_>, healthy: &[usize]) -> Split {
        decide(snapshot, facts, &|target| healthy.contains(&target.version)).unwrap().split.unwrap()
    }

    #[test]
    fn the_same_subject_gets_the_same_version() {
        let snapshot = snapshot("");
        // The places of the salt `shop`, as mmh3 and cbor2 have them.
        for (id, place, version) in [("user-1", 806_316, 0), ("user-2", 978_688, 0), ("user-4", 427_659, 1)] {
            let headers = user(id);
            let once = split_of(&snapshot, &facts(&headers), &[0, 1]);
            assert_eq!(once, split_of(&snapshot, &facts(&headers), &[0, 1]));
            assert_eq!((once.why, once.version), (Why::Place(place), version), "{id}");
        }
    }

    #[test]
    fn without_a_subject_the_traffic_says_what_happens() {
        let nobody = HeaderMap::new();
        let plain = snapshot("");
        assert_eq!(split_of(&plain, &facts(&nobody), &[0, 1]).why, Why::NoSubject);
        let random = snapshot("when_no_subject = \"random\"");
        let of = |dice| split_of(&random, &Facts { dice, ..facts(&nobody) }, &[0, 1]);
        assert_eq!((of(0).version, of(999_999).version, of(0).why), (1, 0, Why::Chance));
        let cookie = snapshot("when_no_subject = \"cookie\"");
        assert_eq!(split_of(&cookie, &facts(&nobody), &[0, 1]).why, Why::NoSubject, "no edge, no cookie");
        let visitor = Facts { new_uid: Some("user-1"), ..facts(&nobody) };
        let known = split_of(&plain, &facts(&user("user-1")), &[0, 1]);
        let given = split_of(&cookie, &visitor, &[0, 1]);
        let Why::Place(place) = known.why else { panic!("{known:?}") };
        assert_eq!((given.version, given.why), (known.version, Why::NewVisitor(place)));
    }

    #[test]
    fn a_version_without_a_healthy_endpoint_is_stood_in_for_or_fails() {
        let headers = user("user-2");
        let to_v2 = snapshot("pins = [{ subject = \"user-2\", version = \"v2\" }]");
        let moved = split_of(&to_v2, &facts(&headers), &[0]);
        assert_eq!((moved.version, moved.moved_from, moved.why), (0, Some(1), Why::Pin(0)));
        let nobody = split_of(&to_v2, &facts(&headers), &[]);
        assert_eq!((nobody.version, nobody.moved_from), (1, None), "the stable version is no better");
        let fails =
            snapshot("when_unhealthy = \"fail\"\npins = [{ subject = \"user-2\", version = \"v2\" }]");
        let stays = split_of(&fails, &facts(&headers), &[0]);
        assert_eq!((stays.version, stays.moved_from), (1, None));
    }

    #[test]
    fn a_share_of_safe_requests_is_copied_to_a_version_that_is_not_asked_anyway() {
        let snapshot = snapshot("mirror = { version = \"v3\", percent = 5 }");
        let headers = user("user-1");
        let of = |method, mirror_dice| {
            let facts = Facts { method, mirror_dice, ..facts(&headers) };
            split_of(&snapshot, &facts, &[0, 1, 2]).mirror
        };
        assert_eq!((of(&Method::GET, 49_999), of(&Method::GET, 50_000)), (Some(2), None));
        assert_eq!((of(&Method::HEAD, 0), of(&Method::POST, 0)), (Some(2), None));
        let own = self::snapshot("mirror = { version = \"v1\", percent = 100, methods = [\"POST\"] }");
        let facts = Facts { method: &Method::POST, ..facts(&headers) };
        assert_eq!(split_of(&own, &facts, &[0, 1]).mirror, None, "user-1 is on v1");
        // Whoever is moved there is there.
        let other = user("user-4");
        assert_eq!(split_of(&own, &Facts { headers: &other, ..facts }, &[0, 1]).mirror, Some(0));
        assert_eq!(split_of(&own, &Facts { headers: &other, ..facts }, &[0]).mirror, None);
    }

    #[test]
    fn an_endpoint_is_chosen_by_the_subject_only_where_the_balancer_says_so() {
        let user = user("user-1");
        let hash = |more: &str, headers: &HeaderMap, new_uid| {
            let text = format!("[services.shop]\n{more}");
            let snapshot = Snapshot::join(&Document::parse_toml(&text).unwrap(), &Membership::new());
            let facts = Facts { new_uid, ..facts(headers) };
            decide(&snapshot, &facts, &|_| true).unwrap().subject_hash
        };
        let expected = Some(balancing::subject_hash(b"user-1"));
        assert_eq!(hash("", &user, None), None);
        assert_eq!(hash("load_balancer = \"random\"", &user, None), None);
        let nobody = HeaderMap::new();
        for balancer in ["load_balancer = \"ring_hash\"", "load_balancer = \"maglev\""] {
            assert_eq!(hash(balancer, &user, None), expected);
            assert_eq!(hash(balancer, &nobody, None), None);
            // As its traffic says who is asking, and what a visitor is called from now on.
            let traffic = |more: &str| {
                format!(
                    "{balancer}\n[services.shop.traffic]\nstable = \"v1\"\nweights = {{ v1 = 50, v2 = 50 }}\n{more}"
                )
            };
            let other = "x-account".parse::<http::HeaderName>().unwrap();
            let account: HeaderMap = [(other, "user-1".parse().unwrap())].into_iter().collect();
            let by_account = traffic("subject = [\"header:x-account\"]");
            assert_eq!(hash(&by_account, &account, None), expected);
            assert_eq!(hash(&by_account, &user, None), None);
            let by_cookie = traffic("when_no_subject = \"cookie\"");
            assert_eq!(hash(&by_cookie, &nobody, Some("user-1")), expected);
            assert_eq!(hash(&traffic(""), &nobody, Some("user-1")), None, "nobody is given an id");
        }
    }

    #[test]
    fn testers_get_what_they_ask_for() {
        let snapshot = snapshot(
            "pins = [{ header = \"x-version\", equals = \"v3\", version = \"v3\" }, { query = \"v\", equals = \"2\", version = \"v2\" }]",
        );
        let mut headers = user("user-1");
        headers.insert("x-version", "v3".parse().unwrap());
        let split = split_of(&snapshot, &facts(&headers), &[0, 1, 2]);
        assert_eq!((split.version, split.why), (2, Why::Pin(0)));
        let plain = user("user-1");
        let split = split_of(&snapshot, &Facts { query: Some("a=1&v=2"), ..facts(&plain) }, &[0, 1, 2]);
        assert_eq!((split.version, split.why), (1, Why::Pin(1)));
    }
}
