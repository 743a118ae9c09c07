//! Waiting for a newer snapshot with a request whose key is on its way to another shard, and deciding it anew on each one.

use std::future::ready;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use gilmok_config::sharding::Sharding;
use gilmok_config::sharding::moving::{HELD_MAX, Next};
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::time::{Instant, sleep_until};

use super::body::Answer;
use super::fault::Fault;
use super::record::Record;
use super::respond::{self, Outcome, Terms};
use super::{Answering, Way, go, route};
use crate::caller::Caller;
use crate::upstream::held::Released;
use crate::upstream::service::Upstream;
use crate::worker::Worker;

/// A request that is to wait.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) request: Request<Incoming>,
    /// For so long.
    pub(super) until: Instant,
}

/// One of those that may wait in this proxy, given back when it is dropped: the wait is over, or the caller has left.
#[derive(Debug)]
struct Place {
    worker: Rc<Worker>,
    upstream: Arc<Upstream>,
}

/// Waits until a newer snapshot lets the request go its way, and answers it then. Nothing stands in for what must wait.
///
/// Dropped when the caller leaves. One that speaks HTTP/1 and is in the middle of a long body is seen to leave only when
/// that is read.
pub(super) fn hold(
    worker: &Rc<Worker>,
    caller: &Rc<Caller>,
    mut record: Box<Record>,
    terms: Terms,
    held: Held,
) -> Answering {
    let Some(place) = record.upstream().and_then(|upstream| Place::take(worker, upstream)) else {
        let why = format!("{HELD_MAX} requests for keys on their way to another shard wait already");
        return Box::pin(ready(Ok(refuse(&terms, record, why))));
    };
    let (worker, caller) = (Rc::clone(worker), Rc::clone(caller));
    Box::pin(async move {
        let Held { mut request, until } = held;
        let mut over = pin!(sleep_until(until));
        loop {
            tokio::select! {
                biased;
                () = worker.newer_than(record.view().generation) => {}
                () = &mut over => {
                    place.release(Released::Expired);
                    let why = why(&record);
                    return Ok(refuse(&terms, record, why));
                }
            }
            let view = worker.view();
            record.anew(&view);
            match route(&worker, &caller, &view, &mut record, request) {
                Ok(Way::Held(again)) => request = again.request,
                way => {
                    place.release_to(record.upstream().map(AsRef::as_ref));
                    return go(&worker, &caller, view, record, terms, way).await;
                }
            }
        }
    })
}

/// What was waited for and did not come.
fn why(record: &Record) -> String {
    let next = record.upstream().and_then(|upstream| upstream.rule()).and_then(|rule| rule.next());
    match next.and_then(Next::closed) {
        Some(revision) => format!("the key is on its way to another shard, closed by revision {revision}"),
        None => "the caller knows a later map of the shards than this proxy".to_owned(),
    }
}

fn refuse(terms: &Terms, mut record: Box<Record>, why: String) -> Response<Answer> {
    record.say(Some(why));
    respond::respond(Outcome::Own(Fault::Held), terms, record)
}

impl Place {
    fn take(worker: &Rc<Worker>, upstream: &Arc<Upstream>) -> Option<Self> {
        // Counted first and taken back if it was one too many: two requests never share the last place.
        if worker.shared.held.fetch_add(1, Relaxed) >= HELD_MAX {
            worker.shared.held.fetch_sub(1, Relaxed);
            upstream.shared.held.released(Released::Overflow);
            return None;
        }
        upstream.shared.held.begin();
        Some(Self { worker: Rc::clone(worker), upstream: Arc::clone(upstream) })
    }

    fn release(self, what: Released) {
        self.upstream.shared.held.released(what);
    }

    /// It goes to this service: by the same map, or by another one.
    fn release_to(self, now: Option<&Upstream>) {
        let map = |upstream: &Upstream| upstream.rule().map(|rule| Sharding::map_tag(rule));
        let is_same = now.and_then(map) == map(&self.upstream);
        self.release(if is_same { Released::Reopened } else { Released::Moved });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.upstream.shared.held.end();
        self.worker.shared.held.fetch_sub(1, Relaxed);
    }
}
