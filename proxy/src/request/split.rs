//! What deciding on a version and a shard has to know of a request: who is asking, from where, and who comes for the first time.

use gilmok_config::assignment::PLACES;
use gilmok_config::decide::{Facts, Listener, shard, split, subject_hash};
use gilmok_config::flag::Overrides;
use gilmok_config::host::canonical;
use gilmok_config::sharding::{Sharded, Sharding};
use gilmok_config::subject::{Baggage, Uid};
use http::header::HOST;
use http::uri::Authority;
use http::{HeaderMap, Request};
use hyper::body::Incoming;

use super::record::Record;
use crate::caller::Caller;
use crate::client::named_client;
use crate::clock;
use crate::upstream::candidates::Aim;
use crate::upstream::service::Upstream;
use crate::upstream::upload::Upload;
use crate::visitor::{NewVisitor, VisitorKeys};
use crate::worker::{View, Worker};

/// What an edge listener knows of the browser that calls.
#[derive(Debug, Default)]
pub(super) enum Visitor {
    /// Nothing depends on it here, or whoever set its cookie is believed.
    #[default]
    Unasked,
    /// Its cookie's signature is right.
    Known(String),
    /// It has no cookie, or a forged one. The cookie it would be given.
    New(Box<NewVisitor>),
}

impl Visitor {
    pub(super) fn of(caller: &Caller, view: &View, request: &Request<Incoming>) -> Self {
        if caller.listener != Listener::Edge || !view.snapshot.wants_uid() {
            return Self::Unasked;
        }
        let Some(keys) = view.keys.as_deref() else { return Self::Unasked };
        match keys.known(request.headers()) {
            Some(id) => Self::Known(id.to_owned()),
            None => keys.greet().map_or(Self::Unasked, |new| Self::New(Box::new(new))),
        }
    }

    fn uid(&self) -> Uid<'_> {
        match self {
            Self::Unasked => Uid::AsSent,
            Self::Known(id) => Uid::Checked(id),
            Self::New(_) => Uid::Absent,
        }
    }

    fn new_uid(&self) -> Option<&str> {
        match self {
            Self::New(new) => Some(&new.id),
            Self::Unasked | Self::Known(_) => None,
        }
    }
}

/// What is known of a request before its body is read.
pub(super) fn facts<'r>(
    worker: &Worker,
    caller: &Caller,
    view: &'r View,
    request: &'r Request<Incoming>,
    visitor: &'r Visitor,
    host: &'r str,
) -> Facts<'r> {
    let (uri, headers) = (request.uri(), request.headers());
    let client = view.snapshot.wants_client().then(|| client_of(worker, caller, headers)).flatten();
    Facts {
        query: uri.query(),
        client,
        uid: visitor.uid(),
        new_uid: visitor.new_uid(),
        baggage: baggage(caller, view),
        overrides: overrides(view, headers),
        now: now(view),
        dice: fastrand::u32(..PLACES),
        mirror_dice: fastrand::u32(..PLACES),
        ..Facts::of(caller.listener, host, uri.path(), request.method(), headers)
    }
}

/// The version and the shard of another service that a request is sent on to; `None` where its key says no shard, or is
/// closed there to what may change something.
pub(super) fn again(record: &mut Record, upstream: &Upstream, request: &Request<Upload>) -> Option<Aim> {
    let (traffic, sharding) = (upstream.policy.traffic.as_deref(), upstream.policy.sharding.as_deref());
    let by_subject = upstream.policy.by_subject.as_ref();
    if traffic.is_none() && sharding.is_none() && by_subject.is_none() {
        return Some(Aim::default());
    }
    let (uri, headers) = (request.uri(), request.headers());
    let named = uri.authority().map(Authority::as_str).or_else(|| headers.get(HOST)?.to_str().ok());
    let host = named.and_then(canonical).unwrap_or_default();
    let facts = facts_again(record, request, &host);
    let sharded = match sharding {
        None => None,
        Some(sharding) => Some(shard(sharding, &facts).ok()?),
    };
    let now_ms = clock::ms_of(record.decided());
    let at = sharded.and_then(Sharded::shard);
    let split =
        traffic.map(|traffic| split(traffic, &facts, &|version| upstream.has_healthy(version, at, now_ms)));
    let hash = by_subject.and_then(|by| subject_hash(by, &facts, split));
    if let Some((rule, sharded)) = sharding.zip(sharded)
        && !request.method().is_safe()
    {
        if rule.is_held(sharded, false) || !is_newest(record, upstream, rule) {
            return None;
        }
        record.passes(upstream, sharded.moves());
    }
    Some(Aim::new(split, sharded, request.method()).of_subject(hash))
}

/// What is known of a request that is sent on to another service.
pub(super) fn facts_again<'r>(record: &'r Record, request: &'r Request<Upload>, host: &'r str) -> Facts<'r> {
    let (uri, headers) = (request.uri(), request.headers());
    let view = record.view();
    // The visitor's cookie is on its way with the request by now.
    Facts {
        query: uri.query(),
        client: client(record, headers),
        // What an earlier hop said and may not be believed was taken off.
        baggage: Baggage { trusted: true, ..baggage(record.caller(), view) },
        overrides: overrides(view, headers),
        now: now(view),
        dice: fastrand::u32(..PLACES),
        ..Facts::of(record.caller().listener, host, uri.path(), request.method(), headers)
    }
}

/// What a tester may see instead of what flags say. Whoever says so has to have signed it: nobody is believed for where they are.
fn overrides<'r>(view: &View, headers: &'r HeaderMap) -> Overrides<'r> {
    if view.snapshot.flags().is_none() {
        return Overrides::default();
    }
    let keys = view.keys.as_deref().map(VisitorKeys::override_keys).unwrap_or_default();
    Overrides::read(headers, keys, clock::unix_seconds).unwrap_or_default()
}

fn now(view: &View) -> u64 {
    if view.snapshot.wants_now() { clock::unix_seconds() } else { 0 }
}

/// Whether the rule of a service is what the newest snapshot says as well. That this worker runs that one may have been told
/// by now: by an older one nothing that may change something begins any more.
fn is_newest(record: &Record, upstream: &Upstream, rule: &Sharding) -> bool {
    let newest = record.worker.view();
    let at = newest.snapshot.service_index(upstream.name.as_str());
    let now = at.and_then(|at| newest.snapshot.services()[at].policy.sharding.as_deref());
    now.is_some_and(|now| now.divides_as(rule) && now.stands_as(rule))
}

/// What subjects are hashed with where their hash is passed on, and whether it may come with the request.
fn baggage<'r>(caller: &Caller, view: &'r View) -> Baggage<'r> {
    Baggage { trusted: caller.trusted, key: view.keys.as_deref().map(|keys| keys.subject_key()) }
}

/// The address for which a request under way is made, where that is certain.
pub(super) fn client(record: &Record, headers: &HeaderMap) -> Option<std::net::IpAddr> {
    client_of(&record.worker, record.caller(), headers)
}

/// The address for which a request is made, where that is certain: a peer outside, or what those who are trusted say.
fn client_of(worker: &Worker, caller: &Caller, headers: &HeaderMap) -> Option<std::net::IpAddr> {
    let peer = caller.peer.ip().to_canonical();
    if caller.listener == Listener::Edge {
        return Some(peer);
    }
    if !caller.trusted {
        return None;
    }
    Some(named_client(peer, &worker.shared.trusted, headers)).filter(|client| *client != peer)
}
