//! A copy of a request for a version whose answer nobody sees: sent beside the request, compared with its answer, thrown away.
//!
//! A copy has connections and a limit of its own. Neither breakers nor ejections hear what becomes of it, and it counts
//! in nobody's requests in flight: whatever the mirrored version does, the callers' requests do not notice.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use gilmok_config::service::{LoadBalancer, ServicePolicy};
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::{Body, Incoming};
use tokio::time::{Instant, timeout};

use super::body::is_read_away;
use super::headers::{GILMOK_MIRROR, GILMOK_TIMEOUT};
use super::record::Record;
use super::reply::sidecars_fault;
use super::spare::copy_of;
use super::target::{fit_protocol, tell_map, tell_target};
use crate::clock;
use crate::upstream::balance::Choice;
use crate::upstream::candidates::Aim;
use crate::upstream::endpoint::EndpointState;
use crate::upstream::mirrored::Outcome;
use crate::upstream::pool::{Lease, Pool, Sent};
use crate::upstream::service::Upstream;
use crate::upstream::upload::Upload;
use crate::upstream::version::VersionState;
use crate::worker::Worker;

/// Most copies in flight on one worker; more are not made.
const COPIES_MAX: u32 = 64;
/// So much of a copy's answer is read to keep its connection; longer ones end it.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// A request and its copy, each of which says what came of it. Counted when both have let go of it.
#[derive(Debug)]
pub(super) struct Comparison {
    /// The version that the copy is for.
    version: Arc<VersionState>,
    answer: Cell<Option<Head>>,
    copy: Cell<Copied>,
}

/// The head of an answer: the hundred of its status, and how long it took.
#[derive(Clone, Copy, Debug)]
struct Head {
    hundred: u16,
    took: Duration,
}

/// What became of the copy.
#[derive(Clone, Copy, Debug)]
enum Copied {
    UnderWay,
    Failed,
    Answered(Head),
}

/// One of the copies that may be in flight on a worker.
#[derive(Debug)]
struct Place(Rc<Worker>);

/// Sends a copy of a request to the version of its service that is aimed at, if it can be copied and there is room.
pub(super) fn copy(
    record: &mut Record,
    upstream: &Arc<Upstream>,
    aim: Aim,
    request: &Request<Upload>,
    upgrades: bool,
) {
    let Some(version) = aim.version.and_then(|at| upstream.versions.known().get(at)) else { return };
    if upgrades || !request.body().is_end_stream() {
        return version.mirror().ended(Outcome::Skipped);
    }
    let Some(place) = Place::take(&record.worker) else {
        return version.mirror().ended(Outcome::Dropped);
    };
    version.mirror().sent();
    let comparison = Rc::new(Comparison {
        version: Arc::clone(version),
        answer: Cell::new(None),
        copy: Cell::new(Copied::UnderWay),
    });
    record.comparison = Some(Rc::clone(&comparison));
    let mut copy = copy_of(request);
    copy.headers_mut().insert(GILMOK_MIRROR, HeaderValue::from_static("1"));
    copy.headers_mut().insert(GILMOK_TIMEOUT, upstream.timeout_header.clone());
    let (upstream, passage) = (Arc::clone(upstream), record.passes_twice());
    // Ends within the request timeout.
    tokio::task::spawn_local(async move {
        let _passage = passage;
        let limit = upstream.policy.request_timeout;
        let sending = send(&place.0, &upstream, aim, copy, &comparison);
        if timeout(limit, sending).await.is_err() {
            comparison.copied(Copied::Failed);
        }
    });
}

/// Sends a copy and reads its answer away.
async fn send(
    worker: &Worker,
    upstream: &Upstream,
    aim: Aim,
    mut copy: Request<Upload>,
    comparison: &Comparison,
) {
    let began = Instant::now();
    let Some(endpoint) = choose(upstream, aim) else { return comparison.copied(Copied::Failed) };
    tell_target(&mut copy, &endpoint);
    tell_map(&mut copy, upstream.map_header.as_ref());
    fit_protocol(&mut copy, upstream);
    let pool = worker.copy_pools.of(&endpoint);
    let answered = exchange(&pool, &upstream.policy, copy).await;
    let answered = answered.filter(|(response, _)| sidecars_fault(&endpoint, response).is_none());
    let Some((response, lease)) = answered else { return comparison.copied(Copied::Failed) };
    comparison.copied(Copied::Answered(Head::of(response.status(), began.elapsed())));
    if is_read_away(response.into_body(), ANSWER_BYTES_MAX).await {
        lease.give_back();
    }
}

/// By chance and weight: what callers' requests are balanced by does not hear of copies.
fn choose(upstream: &Upstream, aim: Aim) -> Option<Arc<EndpointState>> {
    let now_ms = clock::now_ms();
    let choice = Choice {
        balancer: LoadBalancer::Random,
        slow_start: upstream.policy.slow_start,
        turn: &AtomicU32::new(0),
        except: None,
        subject: None,
        now_ms,
    };
    upstream.eligible(now_ms).at(aim).ok()?.pick(&choice).cloned()
}

/// Sends it once, on a pooled connection or a new one. That a pooled one was closed meanwhile is found out as for every
/// request.
async fn exchange(
    pool: &Rc<Pool>,
    policy: &ServicePolicy,
    mut copy: Request<Upload>,
) -> Option<(Response<Incoming>, Lease)> {
    if let Some(mut lease) = pool.take(policy.protocol) {
        match send_on(&mut lease, copy).await {
            Ok(response) => return Some((response, lease)),
            Err(mut error) => copy = error.take_message().or_else(|| lease.unanswered())?,
        }
    }
    let mut lease = pool.open(policy.protocol, policy.connect_timeout).await.ok()?;
    let response = send_on(&mut lease, copy).await.ok()?;
    Some((response, lease))
}

async fn send_on(lease: &mut Lease, copy: Request<Upload>) -> Sent {
    match lease {
        // The time of the whole copy is bounded.
        Lease::Http1(lease) => lease.send(copy, false).1.await,
        Lease::H2(lease) => lease.send(copy).await,
    }
}

impl Comparison {
    /// The caller gets an answer with this status, so long after its request came.
    pub(super) fn answered(&self, status: StatusCode, took: Duration) {
        self.answer.set(Some(Head::of(status, took)));
    }

    /// What became of the copy; the first word counts.
    fn copied(&self, copied: Copied) {
        if matches!(self.copy.get(), Copied::UnderWay) {
            self.copy.set(copied);
        }
    }
}

impl Drop for Comparison {
    fn drop(&mut self) {
        let mirror = self.version.mirror();
        match (self.answer.get(), self.copy.get()) {
            // The process ends before the copy does.
            (_, Copied::UnderWay) => {}
            (_, Copied::Failed) => mirror.ended(Outcome::Failed),
            (None, Copied::Answered(_)) => mirror.ended(Outcome::Skipped),
            (Some(answer), Copied::Answered(copy)) => {
                mirror.compared(answer.hundred == copy.hundred, answer.took, copy.took);
            }
        }
    }
}

impl Head {
    fn of(status: StatusCode, took: Duration) -> Self {
        Self { hundred: status.as_u16() / 100, took }
    }
}

impl Place {
    fn take(worker: &Rc<Worker>) -> Option<Self> {
        let taken = worker.copies.get();
        (taken < COPIES_MAX).then(|| {
            worker.copies.set(taken + 1);
            Self(Rc::clone(worker))
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.copies.set(self.0.copies.get() - 1);
    }
}
