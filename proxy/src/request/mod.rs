//! The life of one request, told in order.

pub(crate) mod record;

pub(crate) mod body;

mod head;

mod headers;

mod fault;

mod deadline;

mod split;

mod owner;

mod flags;

mod hold;

mod trying;

mod tried;

mod retry;

mod choose;

mod target;

mod spare;

mod reply;

mod exchange;

mod attempt;

mod mirror;

mod fallback;

mod pass;

mod tunnel;

mod respond;

#[cfg(any(test, fuzzing))]
pub mod fuzzing;

use std::borrow::Cow;
use std::convert::Infallible;
use std::future::ready;
use std::pin::Pin;
use std::rc::Rc;

use gilmok_config::access;
use gilmok_config::baggage;
use gilmok_config::decide::{Decision, Listener, Refusal, Split, Target, decide};
use gilmok_config::path::has_prefix;
use gilmok_config::sharding::Sharded;
use gilmok_config::sharding::moving::{AtOwner, HOLD_MAX};
use http::header::{HOST, HeaderValue};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Response, Uri};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

use crate::caller::Caller;
use crate::clock;
use crate::drain::Phase;
use crate::last_good::Question;
use crate::rate_limit::Asking;
use crate::settings::UnknownHosts;
use crate::upstream::candidates::Aim;
use crate::upstream::service::Upstream;
use crate::upstream::upload::Upload;
use crate::worker::{View, Worker};
use body::Answer;
use deadline::Deadline;
use fault::Fault;
use head::Seen;
use hold::Held;
use record::{Place, Record};
use respond::{Outcome, Terms};
use split::Visitor;

/// A request's answer on its way.
pub(crate) type Answering = Pin<Box<dyn Future<Output = Result<Response<Answer>, Infallible>>>>;

/// Answers one request. Dropped when the caller leaves, which ends the call to the endpoint as well.
///
/// Everything that waits for nobody is done before there is a future, so that each holds only what it needs
/// while it waits: with many requests in flight, their size is what the processor's caches are used up by.
pub(crate) fn handle(worker: &Rc<Worker>, caller: &Rc<Caller>, request: Request<Incoming>) -> Answering {
    // One snapshot decides the whole request.
    let view = worker.view();
    let mut record = Record::begin(worker, &view, caller, &request);
    let terms = Terms::of(&request, worker.phase.get() >= Phase::Closing);
    let way = route(worker, caller, &view, &mut record, request);
    go(worker, caller, view, record, terms, way)
}

/// Goes the way that was decided on, and answers.
#[inline]
fn go(
    worker: &Rc<Worker>,
    caller: &Rc<Caller>,
    view: Rc<View>,
    mut record: Box<Record>,
    mut terms: Terms,
    way: Result<Way, Fault>,
) -> Answering {
    match way {
        Ok(Way::Endpoint(mut call)) => Box::pin(async move {
            let outcome = fallback::ask(&mut record, &view, &mut call, 1).await;
            Ok(respond::respond(outcome, &terms, record))
        }),
        Ok(Way::Outside(request, seen)) => {
            let (worker, caller) = (Rc::clone(worker), Rc::clone(caller));
            Box::pin(async move {
                let outcome = pass::pass(&worker, &caller, &mut record, request, &seen).await;
                Ok(respond::respond(outcome.unwrap_or_else(Outcome::Own), &terms, record))
            })
        }
        Ok(Way::Held(held)) => hold::hold(worker, caller, record, terms, held),
        Ok(Way::Elsewhere(shard, body)) => Box::pin(async move {
            if owner::is_in_hand(&record, body).await {
                terms.read();
            }
            Ok(respond::respond(Outcome::Own(Fault::Elsewhere(shard)), &terms, record))
        }),
        Err(fault) => Box::pin(ready(Ok(respond::respond(Outcome::Own(fault), &terms, record)))),
    }
}

/// Which way a request goes.
enum Way {
    /// Back to its caller: the key is this shard's, and not the app's beside this proxy.
    Elsewhere(usize, Incoming),
    /// Nowhere before there is a newer snapshot.
    Held(Held),
    /// To an endpoint of the mesh, or to an app beside this proxy.
    Endpoint(Call),
    /// To what the mesh does not know, or through a tunnel.
    Outside(Request<Incoming>, Seen),
}

/// What is to be asked of a service's endpoints.
#[derive(Debug)]
struct Call {
    place: Place,
    /// The version and the shard that were decided on.
    aim: Aim,
    method: Method,
    unsent: Option<Request<Upload>>,
    upgrade: Option<OnUpgrade>,
    deadline: Deadline,
    /// What the last good answer would be known by.
    question: Option<Question>,
}

/// From the head to the request as an endpoint gets it, or the reason why it gets none.
fn route(
    worker: &Worker,
    caller: &Caller,
    view: &View,
    record: &mut Record,
    mut request: Request<Incoming>,
) -> Result<Way, Fault> {
    let seen = Seen::read(&request, &worker.shared.limits)?;
    record.speaks(&seen);
    if request.method() == Method::CONNECT {
        return Ok(Way::Outside(request, seen));
    }
    let visitor = Visitor::of(caller, view, &request);
    let Some(destination) = destination(worker, caller, view, record, &request, &visitor)? else {
        // Whoever may call what the mesh does not know is passed on as it is.
        return Ok(Way::Outside(request, seen));
    };
    let Destination { place, split, shard, subject_hash, key, flags, strip_prefix, timeout } = destination;
    record.placed(place);
    let patience = if caller.trusted { seen.patience } else { seen.patience.of_untrusted() };
    // What it has waited for so far is off the time that it has.
    let (timeout, patience) = (timeout.saturating_sub(record.waited()), patience.after(record.waited()));
    match key.at_owner {
        AtOwner::Serve => {}
        AtOwner::Wait => {
            let longest = HOLD_MAX.min(timeout).min(patience.least().unwrap_or(HOLD_MAX));
            return Ok(Way::Held(Held { request, until: record.decided() + longest }));
        }
        AtOwner::Elsewhere(shard) => return Ok(Way::Elsewhere(shard, request.into_body())),
    }
    let passed_on = split.and_then(|split| split.passed_on);
    let aim = Aim::new(split, shard, request.method()).of_subject(subject_hash);
    if let Some(split) = split {
        record.split(split, visitor);
    }
    if let Some(shard) = shard {
        record.sharded(shard);
    }
    record.balanced(subject_hash.is_some());
    let upgrade = seen.upgrade.then(|| hyper::upgrade::on(&mut request));
    let upstream = place.of(view);
    if !request.method().is_safe() {
        record.passes(upstream, key.moves);
    }
    let host = named_host(&request);
    let (mut head, body) = request.into_parts();
    let set = view.snapshot.flags();
    headers::prepare_request(
        &mut head.headers,
        &seen,
        caller.downstream(),
        host.clone(),
        set.map(AsRef::as_ref),
    );
    if let Some(told) = flags {
        flags::put(&mut head.headers, told.headers);
        record.watch(told.watched);
    }
    if let Some(visitor) = record.new_visitor() {
        visitor.tell_endpoint(&mut head.headers);
    }
    if let Some(subject) = &passed_on {
        baggage::tell(&mut head.headers, subject);
    }
    record.identified(&head.headers, host.as_ref());
    if let Some(limiter) = &upstream.limiter {
        let asking = Asking {
            peer: caller.peer.ip(),
            trusted: caller.trusted,
            networks: &worker.shared.trusted,
            headers: &head.headers,
            query: head.uri.query(),
        };
        limiter.admit(&asking, clock::ns_of(record.decided())).map_err(Fault::RateLimited)?;
    }
    head.uri = next_target(&head.uri, strip_prefix.as_deref(), host, &mut head.headers, upstream)?;
    let (upload, progress) = Upload::new(body, upstream.policy.idle_timeout, worker.shared.limits.body_bytes);
    let upload = upload.claims_no_flags(set.cloned());
    record.uploads(progress.as_ref());
    let deadline = Deadline::new(record.decided(), timeout, patience, progress);
    let method = head.method.clone();
    let request = Request::from_parts(head, upload);
    if let Some(at) = split.and_then(|split| split.mirror) {
        mirror::copy(record, upstream, aim.at_version(at), &request, upgrade.is_some());
    }
    let question = fallback::question(record, upstream, &request, aim);
    Ok(Way::Endpoint(Call { place, aim, method, unsent: Some(request), upgrade, deadline, question }))
}

/// Where a request goes.
struct Destination {
    place: Place,
    split: Option<Split>,
    shard: Option<Sharded>,
    subject_hash: Option<u64>,
    key: Key,
    /// What it is told of its flags.
    flags: Option<Box<flags::Told>>,
    strip_prefix: Option<String>,
    timeout: std::time::Duration,
}

/// What is known of the key of a request where keys may be on their way to another shard.
#[derive(Clone, Copy, Debug)]
struct Key {
    at_owner: AtOwner,
    /// Whether it is on its way.
    moves: bool,
}

impl Key {
    /// It has none, or nobody minds whose it is.
    const ANYBODYS: Self = Self { at_owner: AtOwner::Serve, moves: false };
}

impl Destination {
    /// The app at this place beside this proxy.
    fn app(at: usize, app: &Upstream, key: Key, flags: Option<Box<flags::Told>>) -> Self {
        let (place, timeout) = (Place::App(at), app.policy.request_timeout);
        Self { place, split: None, shard: None, subject_hash: None, key, flags, strip_prefix: None, timeout }
    }
}

/// Decides where a request goes; `None` is a host that the mesh does not know and that is passed on.
fn destination(
    worker: &Worker,
    caller: &Caller,
    view: &View,
    record: &mut Record,
    request: &Request<Incoming>,
    visitor: &Visitor,
) -> Result<Option<Destination>, Fault> {
    let host = head::authority(request, caller.listener)?;
    let app = caller.app.filter(|_| caller.listener == Listener::Inbound);
    // Before there is anything in force nobody knows what may be asked of it.
    let app = app.map(|at| view.apps.get(at).map(|app| (at, app)).ok_or(Fault::NoEndpoint)).transpose()?;
    if let Some((at, _)) = app {
        record.placed(Place::App(at));
        allowed(caller, view, record, request, at)?;
    }
    if let Some((at, app)) = app.filter(|(_, app)| app.owned.is_none()) {
        let flags = flags::told_to_app(worker, caller, view, app, request);
        return Ok(Some(Destination::app(at, app, Key::ANYBODYS, flags)));
    }
    let host = host.unwrap_or(Cow::Borrowed(""));
    let facts = split::facts(worker, caller, view, request, visitor, &host);
    if let Some((at, app)) = app {
        let key = owner::decide(caller, record, app, &facts)?;
        let goes = matches!(key.at_owner, AtOwner::Serve);
        let flags = goes.then(|| flags::told_to_app(worker, caller, view, app, request)).flatten();
        return Ok(Some(Destination::app(at, app, key, flags)));
    }
    let now_ms = clock::ms_of(record.decided());
    let is_healthy =
        |target: Target| view.upstreams[target.service].has_healthy(target.version, target.shard, now_ms);
    match decide(&view.snapshot, &facts, &is_healthy) {
        Ok(Decision { service, route, split, shard, subject_hash }) => {
            let place = Place::Service(service);
            let route = route.map(|at| &view.snapshot.routes()[at]);
            let timeout = route
                .and_then(|route| route.request_timeout)
                .unwrap_or_else(|| place.of(view).policy.request_timeout);
            let strip_prefix = route.and_then(|route| route.strip_prefix.clone());
            let key = key_of(place.of(view), shard, request.method());
            // What waits is told when it goes.
            let goes = matches!(key.at_owner, AtOwner::Serve);
            let flags =
                goes.then(|| flags::told(worker, view, service, &facts, split, place.of(view))).flatten();
            Ok(Some(Destination { place, split, shard, subject_hash, key, flags, strip_prefix, timeout }))
        }
        Err(Refusal::NoDestination) => Ok(None),
        Err(Refusal::NoShard { service, fault }) => {
            record.placed(Place::Service(service));
            let sharding = view.snapshot.services()[service].policy.sharding.as_deref();
            record.say(sharding.map(|sharding| sharding.tell(&fault)));
            Err(Fault::BadKey(fault.as_str()))
        }
    }
}

/// Whether a caller may ask this of the app at this place beside the proxy.
fn allowed(
    caller: &Caller,
    view: &View,
    record: &Record,
    request: &Request<Incoming>,
    at: usize,
) -> Result<(), Fault> {
    let asking = access::Asking {
        caller: caller.identity.as_ref().map(|identity| &identity.service),
        method: request.method(),
        // The same that is sent on.
        path: request.uri().path_and_query().map_or("/", PathAndQuery::path),
    };
    let allowed = view.access[at].ask(&asking, clock::ms_of(record.decided()));
    allowed.map_err(|denial| Fault::Denied(denial.told()))
}

/// What a caller knows of a key.
fn key_of(upstream: &Upstream, shard: Option<Sharded>, method: &Method) -> Key {
    let rule = upstream.policy.sharding.as_deref();
    let is_held = rule.zip(shard).is_some_and(|(rule, shard)| rule.is_held(shard, method.is_safe()));
    let at_owner = if is_held { AtOwner::Wait } else { AtOwner::Serve };
    Key { at_owner, moves: shard.is_some_and(Sharded::moves) }
}

/// What the caller named as the host, for `Host` and `X-Forwarded-Host` of the next hop.
fn named_host(request: &Request<Incoming>) -> Option<HeaderValue> {
    match request.uri().authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => request.headers().get(HOST).cloned(),
    }
}

/// The target of the next hop: origin form for HTTP/1, with scheme and authority for HTTP/2.
fn next_target(
    uri: &Uri,
    strip_prefix: Option<&str>,
    host: Option<HeaderValue>,
    headers: &mut HeaderMap,
    upstream: &Upstream,
) -> Result<Uri, Fault> {
    const NO_PATH: Fault = Fault::BadRequest("the request's target is no path");
    let whole = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let path = match strip_prefix {
        Some(prefix) if has_prefix(whole.path(), prefix) => {
            let rest = &whole.as_str()[prefix.len()..];
            let slash = if rest.starts_with('/') { "" } else { "/" };
            PathAndQuery::try_from(format!("{slash}{rest}")).map_err(|_| NO_PATH)?
        }
        Some(_) | None => whole,
    };
    let mut parts = http::uri::Parts::default();
    parts.path_and_query = Some(path);
    let host = host.or_else(|| HeaderValue::from_str(upstream.name.as_str()).ok());
    match upstream.policy.protocol {
        // Already there when it came in `Host`.
        gilmok_config::service::Protocol::Http1 => {
            if let Some(host) = host.filter(|_| uri.authority().is_some() || !headers.contains_key(HOST)) {
                headers.insert(HOST, host);
            }
        }
        gilmok_config::service::Protocol::H2 => {
            headers.remove(HOST);
            let is_tls = upstream.policy.tls.is_some();
            parts.scheme = Some(if is_tls { http::uri::Scheme::HTTPS } else { http::uri::Scheme::HTTP });
            let authority = host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or_default();
            parts.authority = Some(authority.parse().map_err(|_| Fault::BadRequest("Host is no host"))?);
        }
    }
    Uri::from_parts(parts).map_err(|_| NO_PATH)
}

/// Whether hosts that the mesh does not know are passed on for this caller.
fn may_pass(worker: &Worker, caller: &Caller) -> bool {
    worker.shared.unknown_hosts == UnknownHosts::Pass
        && caller.listener == Listener::Outbound
        && caller.peer.ip().to_canonical().is_loopback()
}
