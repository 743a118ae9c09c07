//! What is remembered of one request until it has ended; then it is counted and logged, once.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use gilmok_config::decide::{Listener, Split, Why};
use gilmok_config::name::Name;
use gilmok_config::sharding::Sharded;
use http::header::{HeaderMap, HeaderValue};
use http::{Request, Response};
use hyper::body::{Body, Incoming};
use tokio::time::Instant;

use super::fallback::Reason;
use super::fault::Fault;
use super::head::Seen;
use super::headers::X_REQUEST_ID;
use super::mirror::Comparison;
use super::split::Visitor;
use super::trying::is_grpc_failure;
use crate::access_log::Entry;
use crate::caller::Caller;
use crate::clock;
use crate::flag_outcomes::Watched;
use crate::last_good::{Answered, Question, Recorder};
use crate::metrics::{Code, Kind, TargetSeries};
use crate::upstream::endpoint::EndpointState;
use crate::upstream::outcomes::Trial;
use crate::upstream::passages::Passage;
use crate::upstream::service::Upstream;
use crate::upstream::upload::Progress;
use crate::upstream::version::Over;
use crate::visitor::NewVisitor;
use crate::worker::{View, Worker};

/// Where a request was sent: a service of the mesh, or an app beside this proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    App(usize),
    Service(usize),
}

/// The record of one request. Counts and logs when it is dropped, which is when its answer has ended:
/// whole, broken off, or because the caller left.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) worker: Rc<Worker>,
    view: Rc<View>,
    caller: Rc<Caller>,
    started: Instant,
    /// How long it had to wait until it was decided on, and when that was.
    waited: Duration,
    decided: Instant,
    place: Option<Place>,
    /// The service in whose requests in flight it counts.
    admitted: Option<Arc<Upstream>>,
    /// The endpoint that was tried last; the request counts in its requests in flight.
    endpoint: Option<Arc<EndpointState>>,
    code: Code,
    fallback: Option<(Kind, Reason)>,
    grpc: bool,
    explain: bool,
    upload: Option<Rc<Progress>>,
    /// Whether the end of the answer told that the call had failed.
    failed_late: bool,
    /// Which version was decided on, and why.
    split: Option<Split>,
    /// Which shard was decided on, and why.
    sharded: Option<Sharded>,
    /// Whether its subject decides on the endpoint.
    by_subject: bool,
    /// Its place among the unsafe requests under way to a sharded service.
    passage: Option<Passage>,
    /// What an answer of our own says more of its reason.
    said: Option<String>,
    /// Whether what becomes of it counts for its version.
    trial: Option<Trial>,
    /// The guarded flags that are told with it.
    watched: Option<Box<[Watched]>>,
    /// What the answer is compared with, where a copy of the request goes to another version.
    pub(super) comparison: Option<Rc<Comparison>>,
    /// The cookie that the caller is to get.
    visitor: Option<Box<NewVisitor>>,
    /// What only the access log wants to know; kept only when there is one.
    log: Option<Box<Entry>>,
}

impl Place {
    /// The live state of what is at this place.
    pub(crate) fn of(self, view: &View) -> &Arc<Upstream> {
        match self {
            Self::App(at) => &view.apps[at],
            Self::Service(at) => &view.upstreams[at],
        }
    }
}

impl Record {
    pub(crate) fn begin(
        worker: &Rc<Worker>,
        view: &Rc<View>,
        caller: &Rc<Caller>,
        request: &Request<Incoming>,
    ) -> Box<Self> {
        caller.activity.request_began();
        worker.requests.set(worker.requests.get() + 1);
        let now = Instant::now();
        let log = worker.shared.access_log.is_some().then(|| Box::new(first_words(request, caller)));
        Box::new(Self {
            worker: Rc::clone(worker),
            view: Rc::clone(view),
            caller: Rc::clone(caller),
            started: now,
            waited: Duration::ZERO,
            decided: now,
            place: None,
            admitted: None,
            endpoint: None,
            code: Code::Refused,
            fallback: None,
            grpc: false,
            explain: false,
            upload: None,
            failed_late: false,
            split: None,
            sharded: None,
            by_subject: false,
            passage: None,
            said: None,
            trial: None,
            watched: None,
            comparison: None,
            visitor: None,
            log,
        })
    }

    /// When it was decided on, which is mostly when it came.
    pub(crate) fn decided(&self) -> Instant {
        self.decided
    }

    /// How long it had to wait for that.
    pub(super) fn waited(&self) -> Duration {
        self.waited
    }

    /// It has waited, and is decided anew by this.
    pub(super) fn anew(&mut self, view: &Rc<View>) {
        self.view = Rc::clone(view);
        self.decided = Instant::now();
        self.waited = self.decided - self.started;
        self.place = None;
    }

    /// What decides about it.
    pub(super) fn view(&self) -> &View {
        &self.view
    }

    pub(super) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// A version was decided on.
    pub(super) fn split(&mut self, split: Split, visitor: Visitor) {
        if let Some(upstream) = self.upstream() {
            self.trial = upstream.trials.begin(&split, clock::ms_of(self.decided));
        }
        if let (Why::NewVisitor(_), Visitor::New(new)) = (split.why, visitor) {
            self.visitor = Some(new);
        }
        self.split = Some(split);
    }

    /// These guarded flags are told with it.
    pub(super) fn watch(&mut self, watched: Option<Box<[Watched]>>) {
        self.watched = watched;
    }

    /// A shard was decided on.
    pub(super) fn sharded(&mut self, sharded: Sharded) {
        self.sharded = Some(sharded);
    }

    /// Whether its subject decides on the endpoint.
    pub(super) fn balanced(&mut self, by_subject: bool) {
        self.by_subject = by_subject;
    }

    /// It goes to this sharded service, and may change something there; `moves` says whether its key is on its way to
    /// another shard. To be said in the turn of the worker's loop in which it was decided on.
    pub(super) fn passes(&mut self, upstream: &Upstream, moves: bool) {
        self.passage = upstream.passages.as_ref().map(|passages| passages.begin(moves));
    }

    /// Counts a copy of it as it is counted.
    pub(super) fn passes_twice(&self) -> Option<Passage> {
        self.passage.as_ref().map(Passage::twin)
    }

    /// Says more of the reason for which the proxy answers itself.
    pub(super) fn say(&mut self, more: Option<String>) {
        self.said = more;
    }

    /// What there is to be said of it.
    pub(super) fn said(&self) -> Option<&str> {
        self.said.as_deref()
    }

    /// The visitor who comes for the first time, if it is one.
    pub(super) fn new_visitor(&self) -> Option<&NewVisitor> {
        self.visitor.as_deref()
    }

    /// The service or app that the request is for, once that is decided.
    pub(crate) fn upstream(&self) -> Option<&Arc<Upstream>> {
        self.place.map(|place| place.of(&self.view))
    }

    /// What the caller speaks and asks.
    pub(crate) fn speaks(&mut self, seen: &Seen) {
        self.grpc = seen.grpc;
        self.explain = seen.explain && self.caller.listener == Listener::Outbound;
    }

    /// Whether the caller must be answered in gRPC's words.
    pub(crate) fn is_grpc(&self) -> bool {
        self.grpc
    }

    /// How it was decided, for callers that ask.
    pub(crate) fn decision(&self) -> Option<String> {
        if !self.explain {
            return None;
        }
        let service = self.upstream().map_or("", |upstream| upstream.name.as_str());
        let mut decision = match (&self.endpoint, self.shard()) {
            (None, None) => format!("service={service}"),
            (None, Some(shard)) => format!("service={service} shard={shard}"),
            (Some(state), _) => {
                let (version, shard) = (&state.endpoint.version, &state.endpoint.shard);
                format!("service={service} version={version} shard={shard} endpoint={}", state.peer)
            }
        };
        if let Some(split) = &self.split {
            decision.push_str(&format!(" split={}", split.why));
            if split.moved_from.is_some() {
                decision.push_str(" moved=unhealthy");
            }
        }
        if let Some(sharded) = &self.sharded {
            decision.push_str(&format!(" shard_by={sharded}"));
        }
        if self.upstream().is_some_and(|upstream| upstream.policy.by_subject.is_some()) {
            decision.push_str(if self.by_subject { " endpoint_by=subject" } else { " endpoint_by=load" });
        }
        Some(decision)
    }

    /// The shard that was decided on, if it is one.
    fn shard(&self) -> Option<&Name> {
        let at = self.sharded.and_then(Sharded::shard)?;
        self.upstream()?.policy.sharding.as_deref().map(|sharding| &sharding.shards()[at])
    }

    /// Decided where it goes.
    pub(crate) fn placed(&mut self, place: Place) {
        self.place = Some(place);
    }

    /// Takes one of a service's `max_concurrent` places, given back when the record ends or takes another one.
    ///
    /// # Errors
    /// When all are taken, of the service or of the proxy.
    pub(crate) fn admit(&mut self, upstream: &Arc<Upstream>) -> Result<(), Fault> {
        self.leave_service();
        if self.worker.requests.get() > self.worker.requests_max {
            return Err(Fault::Overflow("limits.requests_in_flight of this proxy is reached"));
        }
        let most = upstream.policy.max_concurrent;
        let in_flight = &upstream.shared.in_flight;
        // Counted first and taken back if it was one too many: two requests never share the last place.
        if in_flight.fetch_add(1, Relaxed) >= most {
            in_flight.fetch_sub(1, Relaxed);
            return Err(Fault::Overflow("max_concurrent of the service is reached"));
        }
        self.admitted = Some(Arc::clone(upstream));
        Ok(())
    }

    /// Tries an endpoint: the request is in flight there until it tries another or ends.
    pub(crate) fn try_at(&mut self, endpoint: &Arc<EndpointState>) {
        self.leave_endpoint();
        endpoint.in_flight.fetch_add(1, Relaxed);
        endpoint.series.begin(self.worker.index);
        self.endpoint = Some(Arc::clone(endpoint));
        if let Some(entry) = &mut self.log {
            entry.attempts += 1;
        }
    }

    /// An endpoint answered with this status.
    pub(crate) fn answered(&mut self, status: http::StatusCode) {
        self.tried(status.is_server_error());
        // Another service's answer is no success of this one.
        if self.code != Code::Fallback {
            self.code = Code::Hundred(u8::try_from(status.as_u16() / 100).unwrap_or(5));
        }
        if let Some(entry) = &mut self.log {
            entry.status = status.as_u16();
        }
    }

    /// A fallback is given.
    pub(super) fn fell_back(&mut self, kind: Kind, reason: Reason) {
        self.code = Code::Fallback;
        self.fallback = Some((kind, reason));
        if reason.is_versions_fault() {
            self.tried(true);
        }
        if let Some(upstream) = self.upstream() {
            upstream.unplaced.fallback(self.worker.index, kind, reason.as_str());
        }
    }

    /// The fallback that is given, and why.
    pub(super) fn fallback(&self) -> Option<(Kind, Reason)> {
        self.fallback
    }

    /// Takes an answer along while it passes, if it may be kept as the last good one.
    pub(super) fn recorder(
        &self,
        question: &Question,
        response: &Response<Incoming>,
    ) -> Option<Box<Recorder>> {
        let endpoint = &self.endpoint.as_ref()?.endpoint;
        let answered = Answered {
            version: &endpoint.version,
            shard: &endpoint.shard,
            status: response.status(),
            headers: response.headers(),
            length: response.body().size_hint().exact(),
        };
        self.worker.shared.last_good.record(question, &answered, clock::now_ms())
    }

    /// The proxy answers for this reason.
    pub(super) fn refused(&mut self, fault: Fault) {
        if fault == Fault::Drained {
            self.drained();
        }
        if let (Fault::Elsewhere(_), Some(app)) = (fault, self.upstream()) {
            app.shared.misdirected.fetch_add(1, Relaxed);
        }
        if Reason::Fault(fault).is_versions_fault() {
            self.tried(true);
        }
    }

    /// What became of the version's trial, and of those of flags; the first word counts.
    fn tried(&mut self, failed: bool) {
        let took = self.decided.elapsed();
        for watched in self.watched.iter_mut().flatten() {
            watched.came_to(failed, took);
        }
        if let Some(trial) = &mut self.trial {
            trial.came_to(failed, took);
        }
    }

    /// The proxy answers, or says something of the answer.
    pub(crate) fn told(&mut self, status: http::StatusCode, proxy_status: Option<HeaderValue>) {
        if let Some(entry) = &mut self.log {
            entry.status = status.as_u16();
            entry.proxy_status = proxy_status;
        }
    }

    /// The upload whose bytes are counted with the request.
    pub(crate) fn uploads(&mut self, upload: Option<&Rc<Progress>>) {
        if self.log.is_some() {
            self.upload = upload.cloned();
        }
    }

    /// The headers as they go to the endpoint: they have the id by which the request is found again.
    pub(crate) fn identified(&mut self, headers: &HeaderMap, host: Option<&HeaderValue>) {
        if let Some(entry) = &mut self.log {
            entry.request_id = headers.get(X_REQUEST_ID).cloned();
            entry.host = host.and_then(|host| host.to_str().ok()).unwrap_or_default().to_owned();
        }
    }

    /// Bytes of the answer's body went on their way.
    pub(crate) fn sent(&mut self, bytes: u64) {
        if let Some(entry) = &mut self.log {
            entry.bytes_sent += bytes;
        }
    }

    /// The answer is on its way whole.
    pub(crate) fn whole(&mut self) {
        if let Some(entry) = &mut self.log {
            entry.complete = true;
        }
    }

    /// The answer broke off on the endpoint's side.
    pub(crate) fn broke_off(&mut self) {
        if let Some(entry) = &mut self.log {
            entry.complete = false;
        }
        if let (Some(upstream), Some(endpoint)) = (self.admitted.as_ref(), &self.endpoint) {
            upstream.answer_broke_off(endpoint);
        }
    }

    /// What stands behind the body: gRPC tells there what became of a call that had brought messages.
    pub(crate) fn trailed(&mut self, trailers: &HeaderMap) {
        let (Some(upstream), Some(endpoint)) = (self.admitted.as_ref(), &self.endpoint) else { return };
        if is_grpc_failure(upstream.failures(), trailers) {
            upstream.answer_failed(endpoint);
            self.failed_late = true;
        }
    }

    /// The endpoint's answer has come to its end.
    pub(crate) fn ended(&mut self) {
        self.whole();
        let is_good = !self.failed_late && matches!(self.code, Code::Hundred(..5) | Code::Fallback);
        if let (true, Some(upstream), Some(endpoint)) = (is_good, &self.admitted, &self.endpoint) {
            upstream.answer_was_whole(endpoint);
        }
    }

    /// The end of the time that the version has at which it is, waited for.
    pub(crate) fn over(&self) -> Option<Over> {
        self.endpoint.as_ref().map(|endpoint| endpoint.version.over())
    }

    /// Whether that time is over.
    pub(crate) fn is_over(&self) -> bool {
        self.endpoint.as_ref().is_some_and(|endpoint| endpoint.version.is_over())
    }

    /// It is ended for that.
    pub(crate) fn drained(&self) {
        if let Some(endpoint) = &self.endpoint {
            endpoint.version.cut();
        }
    }

    /// The proxy's own answer went out.
    pub(crate) fn end(&mut self, bytes: u64) {
        self.sent(bytes);
        self.whole();
    }

    fn leave_service(&mut self) {
        if let Some(upstream) = self.admitted.take() {
            upstream.shared.in_flight.fetch_sub(1, Relaxed);
        }
    }

    fn leave_endpoint(&mut self) {
        if let Some(endpoint) = self.endpoint.take() {
            endpoint.in_flight.fetch_sub(1, Relaxed);
            endpoint.series.end(self.worker.index);
        }
    }

    fn series(&self) -> &TargetSeries {
        match (&self.endpoint, self.upstream()) {
            (Some(endpoint), _) if matches!(self.code, Code::Hundred(_)) => &endpoint.series,
            (_, Some(upstream)) => &upstream.unplaced,
            (_, None) => &self.worker.shared.nowhere,
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        self.series().request(self.worker.index, self.caller.listener, self.code, took);
        self.caller.activity.request_ended(self.started + took);
        self.worker.requests.set(self.worker.requests.get() - 1);
        if let (Some(mut entry), Some(access_log)) = (self.log.take(), &self.worker.shared.access_log) {
            self.complete(&mut entry, took);
            access_log.record(entry);
        }
        if let Some(trial) = self.trial.take() {
            trial.end(took);
        }
        for watched in self.watched.take().into_iter().flatten() {
            watched.end(self.worker.index, self.code, took);
        }
        self.leave_service();
        self.leave_endpoint();
    }
}

impl Record {
    fn complete(&self, entry: &mut Entry, took: Duration) {
        entry.bytes_received = self.upload.as_ref().map_or(0, |upload| upload.bytes());
        entry.duration_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        entry.service = self.upstream().map(|upstream| upstream.name.clone());
        if let Some(endpoint) = &self.endpoint {
            entry.version = endpoint.endpoint.version.clone();
            entry.shard = endpoint.endpoint.shard.clone();
            entry.endpoint = Some(endpoint.peer.clone());
        } else if let Some(shard) = self.shard() {
            entry.shard = shard.clone();
        }
    }
}

/// What is known of a request before anything is decided.
fn first_words(request: &Request<Incoming>, caller: &Caller) -> Entry {
    let mut entry = Entry::default();
    entry.listener = caller.listener.as_str();
    entry.peer = Some(caller.peer.ip());
    entry.caller = caller.identity.as_ref().map(|identity| identity.service.clone());
    entry.protocol = request.version();
    entry.method = request.method().clone();
    entry.uri = request.uri().clone();
    entry
}
