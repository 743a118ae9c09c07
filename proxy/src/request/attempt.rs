//! Trying an endpoint, and once more another one where nothing of the request was sent.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Duration;

use gilmok_config::service::{LoadBalancer, Protocol};
use http::header::{CONNECTION, UPGRADE};
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep, timeout_at};

use super::fault::Fault;
use super::headers::{GILMOK_SHARD, GILMOK_TIMEOUT, GILMOK_VERSION, PROXY_STATUS};
use super::record::Record;
use crate::clock;
use crate::metrics::Outcome;
use crate::upstream::balance::{Choice, note_latency};
use crate::upstream::connect::ConnectError;
use crate::upstream::endpoint::EndpointState;
use crate::upstream::pool::{Lease, Pool};
use crate::upstream::service::{Shared, Upstream};
use crate::upstream::upload::{Progress, Upload, UploadFault};

/// Tries beyond the first one. More, and for other reasons, are a policy of their own.
const RETRIES: u32 = 1;
/// Retries in flight, in percent of the requests in flight, and how many there may always be.
const BUDGET_PERCENT: u32 = 20;
const BUDGET_MIN: u32 = 3;
/// A retry that finds the budget used up waits this long, with jitter, and asks again, so many times.
const BUDGET_WAIT: Duration = Duration::from_millis(5);
const BUDGET_WAITS_MAX: u32 = 20;
/// How long an endpoint that could not be connected to is left out while there are others.
const SHUN_MS: u64 = 1_000;
/// Connections tried at one endpoint for one request: pooled ones may turn out to be closed.
const CONNECTIONS_MAX: usize = 3;

/// An endpoint's answer and the connection it comes on.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) response: Response<Incoming>,
    pub(crate) lease: Lease,
}

/// How long a caller waits: from the end of its request to the head of the answer, retries included.
#[derive(Debug)]
pub(crate) struct Deadline {
    begin: Instant,
    limit: Duration,
    upload: Option<Rc<Progress>>,
}

/// The time is up.
#[derive(Debug)]
struct Expired;

/// A try that failed.
#[derive(Debug)]
struct Failed {
    fault: Fault,
    outcome: Outcome,
}

impl Failed {
    fn new(fault: Fault, outcome: Outcome) -> Self {
        Self { fault, outcome }
    }
}

impl Deadline {
    pub(crate) fn new(begin: Instant, limit: Duration, upload: Option<Rc<Progress>>) -> Self {
        Self { begin, limit, upload }
    }

    /// Whether the caller has sent its whole request.
    pub(crate) fn upload_ended(&self) -> bool {
        self.upload.as_ref().is_none_or(|upload| upload.ended().is_some())
    }

    fn forget_upload(&self) {
        if let Some(upload) = &self.upload {
            upload.forget();
        }
    }

    /// The copy of a request with its body, if that can be sent once more.
    fn restore(&self, copy: Request<Upload>) -> Option<Request<Upload>> {
        match &self.upload {
            None => Some(copy),
            Some(upload) => upload.again().map(|body| copy.map(|_no_body| body)),
        }
    }

    fn upload_fault(&self) -> Option<UploadFault> {
        self.upload.as_ref().and_then(|upload| upload.fault())
    }

    /// When the time is up if the upload ends now.
    fn at(&self) -> Instant {
        match &self.upload {
            None => self.begin + self.limit,
            Some(upload) => upload.ended().unwrap_or_else(Instant::now) + self.limit,
        }
    }

    /// Runs a step of the request until the time is up. While the upload is on its way it is not.
    async fn run<F: Future>(
        &self,
        mut timer: Pin<&mut Sleep>,
        mut step: Pin<&mut F>,
    ) -> Result<F::Output, Expired> {
        timer.as_mut().reset(self.at());
        poll_fn(|cx| {
            if let Poll::Ready(done) = step.as_mut().poll(cx) {
                return Poll::Ready(Ok(done));
            }
            while timer.as_mut().poll(cx).is_ready() {
                let at = self.at();
                if at <= Instant::now() {
                    return Poll::Ready(Err(Expired));
                }
                timer.as_mut().reset(at);
            }
            Poll::Pending
        })
        .await
    }
}

/// Sends a request to an endpoint of a service; once more to another if nothing of it was sent.
///
/// The request is taken out of `unsent` when it is sent, and put back when nothing of it reached the application.
pub(crate) async fn attempt(
    record: &mut Record,
    upstream: &Upstream,
    unsent: &mut Option<Request<Upload>>,
    deadline: &Deadline,
) -> Result<Answered, Fault> {
    if let Some(request) = unsent {
        fit_protocol(request, upstream);
    }
    // The moment the request came: near enough for choosing, and one reading of the clock less.
    let now_ms = clock::ms_of(record.started());
    let mut except = None;
    let mut retries = 0;
    let mut permit = None;
    loop {
        let (endpoint, others) = pick(upstream, except, now_ms).ok_or(Fault::NoEndpoint)?;
        let failed = match try_endpoint(record, upstream, &endpoint, unsent, deadline, others).await {
            Ok(answered) => return Ok(answered),
            Err(failed) => failed,
        };
        if unsent.is_none() || retries == RETRIES {
            return Err(failed.fault);
        }
        if permit.is_none() {
            permit = Box::pin(RetryPermit::wait(&upstream.shared, deadline)).await;
        }
        if permit.is_none() {
            return Err(failed.fault);
        }
        endpoint.series.retry(record.worker.index);
        retries += 1;
        except = Some(endpoint.id);
    }
}

/// Takes one of the retries that may be in flight.
#[derive(Debug)]
struct RetryPermit<'s>(&'s Shared);

impl<'s> RetryPermit<'s> {
    async fn wait(shared: &'s Shared, deadline: &Deadline) -> Option<Self> {
        for _ in 0..BUDGET_WAITS_MAX {
            let most = (shared.in_flight.load(Relaxed) * BUDGET_PERCENT / 100).max(BUDGET_MIN);
            if shared.retries_in_flight.fetch_add(1, Relaxed) < most {
                return Some(Self(shared));
            }
            shared.retries_in_flight.fetch_sub(1, Relaxed);
            let pause = BUDGET_WAIT.mul_f64(0.5 + fastrand::f64());
            timeout_at(deadline.at(), sleep(pause)).await.ok()?;
        }
        None
    }
}

impl Drop for RetryPermit<'_> {
    fn drop(&mut self) {
        self.0.retries_in_flight.fetch_sub(1, Relaxed);
    }
}

/// Chooses an endpoint and says whether there are others.
fn pick(upstream: &Upstream, except: Option<u64>, now_ms: u64) -> Option<(Arc<EndpointState>, bool)> {
    upstream.shared.called_at_ms.store(now_ms, Relaxed);
    let choice = Choice {
        balancer: upstream.policy.load_balancer,
        slow_start: upstream.policy.slow_start,
        turn: &upstream.shared.turn,
        except,
        now_ms,
    };
    let eligible = upstream.eligible();
    let picked = eligible.pick(&choice)?;
    Some((Arc::clone(picked), eligible.endpoints().len() > 1))
}

/// One try at one endpoint.
async fn try_endpoint(
    record: &mut Record,
    upstream: &Upstream,
    endpoint: &Arc<EndpointState>,
    unsent: &mut Option<Request<Upload>>,
    deadline: &Deadline,
    others: bool,
) -> Result<Answered, Failed> {
    record.try_at(Arc::clone(endpoint));
    // A sidecar can say that its app saw nothing; where there is another one, the request is kept. An HTTP/2 peer can
    // say that a stream was not taken up, and take it up on its next connection.
    let may_return = (others && endpoint.endpoint.inbound) || upstream.policy.protocol == Protocol::H2;
    let kept = unsent.as_ref().filter(|request| may_return && request.body().keep());
    let spare = kept.map(copy_of).map(Box::new);
    if let Some(request) = unsent {
        tell_target(request, endpoint);
    }
    let mut trying = Trying { endpoint, worker: record.worker.index, outcome: Outcome::Cancelled };
    let measures = upstream.policy.load_balancer == LoadBalancer::PeakEwma;
    let began = measures.then(Instant::now);
    let pool = record.worker.pools.of(endpoint);
    let result = exchange(&pool, upstream, unsent, deadline, &trying).await;
    match result.and_then(|answered| refuse_sidecar_error(endpoint, answered)) {
        Ok(answered) => {
            trying.outcome = Outcome::Answered;
            deadline.forget_upload();
            if let Some(began) = began {
                note_latency(endpoint, began.elapsed(), clock::now_ms());
            }
            Ok(answered)
        }
        Err(failed) => {
            trying.outcome = failed.outcome;
            if matches!(failed.outcome, Outcome::Connect | Outcome::Refused) {
                endpoint.shunned_until_ms.store(clock::now_ms() + SHUN_MS, Relaxed);
            }
            if unsent.is_none() && failed.fault.is_unsent() {
                *unsent = spare.and_then(|spare| deadline.restore(*spare));
            }
            Err(failed)
        }
    }
}

/// Counts a try by what became of it; a try that is dropped was cancelled.
struct Trying<'e> {
    endpoint: &'e EndpointState,
    worker: usize,
    outcome: Outcome,
}

impl Drop for Trying<'_> {
    fn drop(&mut self) {
        self.endpoint.series.attempt(self.worker, self.outcome);
    }
}

/// Sends the request on a connection of the pool and waits for the head of the answer.
async fn exchange(
    pool: &Rc<Pool>,
    upstream: &Upstream,
    unsent: &mut Option<Request<Upload>>,
    deadline: &Deadline,
    trying: &Trying<'_>,
) -> Result<Answered, Failed> {
    const LATE: Failed = Failed { fault: Fault::Timeout, outcome: Outcome::Timeout };
    let policy = &upstream.policy;
    for connection in 0..CONNECTIONS_MAX {
        let pooled = if connection == 0 { pool.take(policy.protocol) } else { None };
        let mut lease = match pooled {
            Some(lease) => lease,
            None => {
                let mut opening = Box::pin(pool.open(policy.protocol, policy.connect_timeout));
                let mut timer = Box::pin(sleep(policy.connect_timeout));
                let opened = deadline.run(timer.as_mut(), opening.as_mut()).await;
                opened.map_err(|Expired| LATE)?.map_err(not_connected)?
            }
        };
        let Some(request) = unsent.take() else { break };
        let sent = match &mut lease {
            Lease::Http1(lease) => {
                let (timer, sent) = lease.send(request);
                deadline.run(timer, pin!(sent)).await
            }
            Lease::H2(lease) => {
                let mut timer = Box::pin(sleep(deadline.limit));
                deadline.run(timer.as_mut(), pin!(lease.send(request))).await
            }
        };
        match sent.map_err(|Expired| LATE)? {
            Ok(response) => return Ok(Answered { response, lease }),
            Err(mut error) => match error.take_message().or_else(|| lease.unanswered()) {
                // The connection was closed while it was idle; that says nothing about the endpoint. At most one more
                // request on a new connection, and no connection is found closed twice: so it needs no budget.
                Some(request) if lease.reused() => {
                    trying.endpoint.series.attempt(trying.worker, Outcome::StaleConnection);
                    *unsent = Some(request);
                }
                Some(request) => {
                    *unsent = Some(request);
                    return Err(Failed::new(Fault::Reset, Outcome::Reset));
                }
                None => return Err(broken(&error.into_error(), lease.reused(), deadline)),
            },
        }
    }
    Err(Failed::new(Fault::Reset, Outcome::StaleConnection))
}

fn not_connected(error: ConnectError) -> Failed {
    match error {
        ConnectError::Refused => Failed::new(Fault::Refused, Outcome::Refused),
        ConnectError::Timeout => Failed::new(Fault::ConnectTimeout, Outcome::Connect),
        ConnectError::Unreachable => Failed::new(Fault::Unreachable, Outcome::Connect),
    }
}

/// Whose fault it was that a request broke.
fn broken(error: &hyper::Error, reused: bool, deadline: &Deadline) -> Failed {
    let failed = Failed::new;
    match deadline.upload_fault() {
        Some(UploadFault::CallerLeft) => {
            failed(Fault::BadRequest("the caller stopped in the middle of its request"), Outcome::Cancelled)
        }
        Some(UploadFault::Stalled) => failed(Fault::UploadStalled, Outcome::Cancelled),
        Some(UploadFault::TooLarge) => failed(Fault::BodyTooLarge, Outcome::Cancelled),
        // HTTP/2 says that the stream was not taken up; the caller's spare copy goes elsewhere.
        None if let Some(outcome) = not_taken_up(error) => failed(Fault::Refused, outcome),
        // Between two requests the endpoint may close at any time: counted apart.
        None if reused && was_cut(error) => failed(Fault::Reset, Outcome::StaleConnection),
        None => failed(Fault::Reset, Outcome::Reset),
    }
}

/// Whether the connection ended before anything came back, by a FIN or by a reset.
fn was_cut(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    error.is_incomplete_message()
        || source.is_some_and(|error| {
            matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
        })
}

/// Whether an HTTP/2 peer has said that it did nothing with a stream, and what that says about the endpoint.
fn not_taken_up(error: &hyper::Error) -> Option<Outcome> {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            // h2 ends by the peer's GOAWAY only streams above the last one that the peer took up.
            let left_out = error.is_go_away() && error.is_remote();
            let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
            return match (left_out, refused) {
                (true, _) => Some(Outcome::StaleConnection),
                (false, true) => Some(Outcome::Refused),
                (false, false) => None,
            };
        }
        source = error.source();
    }
    None
}

/// An answer that a sidecar gave for itself is that error, not the application's.
fn refuse_sidecar_error(endpoint: &EndpointState, answered: Answered) -> Result<Answered, Failed> {
    if !endpoint.endpoint.inbound || !answered.response.status().is_server_error() {
        return Ok(answered);
    }
    let told = answered.response.headers().get(PROXY_STATUS).and_then(|value| value.to_str().ok());
    match told.and_then(Fault::of_sidecar) {
        None => Ok(answered),
        Some(fault) => {
            let outcome = match fault {
                Fault::Timeout => Outcome::Timeout,
                Fault::Reset => Outcome::Reset,
                _ if fault.is_unsent() => Outcome::Refused,
                _ => Outcome::Answered,
            };
            Err(Failed::new(fault, outcome))
        }
    }
}

/// What HTTP/1 and HTTP/2 want otherwise.
fn fit_protocol(request: &mut Request<Upload>, upstream: &Upstream) {
    let headers = request.headers_mut();
    match upstream.policy.protocol {
        Protocol::Http1 => {
            *request.version_mut() = http::Version::HTTP_11;
        }
        Protocol::H2 => {
            headers.remove(CONNECTION);
            headers.remove(UPGRADE);
            *request.version_mut() = http::Version::HTTP_2;
        }
    }
    request.headers_mut().insert(GILMOK_TIMEOUT, upstream.timeout_header.clone());
}

/// Tells the application which version and shard it was asked as.
fn tell_target(request: &mut Request<Upload>, endpoint: &EndpointState) {
    if let Some(version) = &endpoint.version_header {
        request.headers_mut().insert(GILMOK_VERSION, version.clone());
    }
    if let Some(shard) = &endpoint.shard_header {
        request.headers_mut().insert(GILMOK_SHARD, shard.clone());
    }
}

/// The same request once more, without its body.
fn copy_of(request: &Request<Upload>) -> Request<Upload> {
    let mut copy = Request::new(Upload::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}
