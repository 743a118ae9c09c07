//! What is remembered of one request until it has ended; then it is counted and logged, once.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use gilmok_config::decide::Listener;
use tokio::time::Instant;

use crate::metrics::{Code, TargetSeries};
use crate::upstream::endpoint::EndpointState;
use crate::upstream::service::Upstream;
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
    pub(crate) view: Rc<View>,
    pub(crate) listener: Listener,
    started: Instant,
    place: Option<Place>,
    /// Whether it counts in its service's requests in flight.
    admitted: bool,
    /// The endpoint that was tried last; the request counts in its requests in flight.
    endpoint: Option<Arc<EndpointState>>,
    code: Code,
    log: Option<Box<Details>>,
}

/// What only the access log wants to know; kept only when there is one.
#[derive(Debug, Default)]
pub(crate) struct Details {
    pub(crate) entry: crate::access_log::Entry,
}

impl Record {
    pub(crate) fn begin(worker: &Rc<Worker>, view: &Rc<View>, listener: Listener) -> Box<Self> {
        let log = worker.shared.access_log.is_some().then(Box::default);
        Box::new(Self {
            worker: Rc::clone(worker),
            view: Rc::clone(view),
            listener,
            started: Instant::now(),
            place: None,
            admitted: false,
            endpoint: None,
            code: Code::Refused,
            log,
        })
    }

    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// The service or app that the request is for, once that is decided.
    pub(crate) fn upstream(&self) -> Option<&Arc<Upstream>> {
        match self.place? {
            Place::App(at) => self.view.apps.get(at),
            Place::Service(at) => self.view.upstreams.get(at),
        }
    }

    /// What the access log wants to know, when there is one.
    pub(crate) fn log(&mut self) -> Option<&mut crate::access_log::Entry> {
        self.log.as_mut().map(|details| &mut details.entry)
    }

    /// Decided where it goes.
    pub(crate) fn placed(&mut self, place: Place) {
        self.place = Some(place);
    }

    /// Takes one of the service's `max_concurrent` places, given back when the record ends.
    pub(crate) fn admit(&mut self) -> bool {
        let Some(upstream) = self.upstream() else { return false };
        let most = upstream.policy.max_concurrent;
        let in_flight = &upstream.shared.in_flight;
        // Counted first and taken back if it was one too many: two requests never share the last place.
        if in_flight.fetch_add(1, Relaxed) >= most {
            in_flight.fetch_sub(1, Relaxed);
            return false;
        }
        self.admitted = true;
        true
    }

    /// Tries an endpoint: the request is in flight there until it tries another or ends.
    pub(crate) fn try_at(&mut self, endpoint: Arc<EndpointState>) {
        self.leave_endpoint();
        endpoint.in_flight.fetch_add(1, Relaxed);
        self.endpoint = Some(endpoint);
    }

    pub(crate) fn endpoint(&self) -> Option<&Arc<EndpointState>> {
        self.endpoint.as_ref()
    }

    /// An endpoint answered with this status.
    pub(crate) fn answered(&mut self, status: http::StatusCode) {
        self.code = Code::Hundred(u8::try_from(status.as_u16() / 100).unwrap_or(5));
        if let Some(entry) = self.log() {
            entry.status = status.as_u16();
        }
    }

    /// Bytes of the answer's body went on their way.
    pub(crate) fn sent(&mut self, bytes: u64) {
        if let Some(entry) = self.log() {
            entry.bytes_sent += bytes;
        }
    }

    /// The answer is on its way whole.
    pub(crate) fn whole(&mut self) {
        if let Some(entry) = self.log() {
            entry.complete = true;
        }
    }

    /// The answer broke off on the endpoint's side.
    pub(crate) fn broke_off(&mut self) {
        if let Some(entry) = self.log() {
            entry.complete = false;
        }
    }

    /// The proxy's own answer went out.
    pub(crate) fn end(mut self: Box<Self>, bytes: u64) {
        self.sent(bytes);
        self.whole();
    }

    fn leave_endpoint(&mut self) {
        if let Some(endpoint) = self.endpoint.take() {
            endpoint.in_flight.fetch_sub(1, Relaxed);
        }
    }

    fn series(&self) -> &TargetSeries {
        match (&self.endpoint, self.upstream()) {
            (Some(endpoint), _) if self.code != Code::Refused => &endpoint.series,
            (_, Some(upstream)) => &upstream.unplaced,
            (_, None) => &self.worker.shared.nowhere,
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        self.series().request(self.worker.index, self.listener, self.code, took);
        if let (Some(mut details), Some(access_log)) = (self.log.take(), &self.worker.shared.access_log) {
            self.complete_entry(&mut details.entry, took);
            access_log.record(details.entry);
        }
        if self.admitted
            && let Some(upstream) = self.upstream()
        {
            upstream.shared.in_flight.fetch_sub(1, Relaxed);
        }
        self.leave_endpoint();
    }
}

impl Record {
    fn complete_entry(&self, entry: &mut crate::access_log::Entry, took: std::time::Duration) {
        entry.listener = self.listener.as_str();
        entry.duration_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        entry.service = self.upstream().map(|upstream| upstream.name.clone());
        if let Some(endpoint) = &self.endpoint {
            entry.version = endpoint.endpoint.version.clone();
            entry.shard = endpoint.endpoint.shard.clone();
            entry.endpoint = Some(endpoint.peer.clone());
        }
    }
}
