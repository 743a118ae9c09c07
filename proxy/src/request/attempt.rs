//! Trying an endpoint whose breaker lets the call through, and another one where that is safe.

use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use gilmok_config::service::{LoadBalancer, Protocol};
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::{Body, Incoming};
use tokio::time::{Instant, sleep};

use super::deadline::{Deadline, Expired};
use super::fault::Fault;
use super::headers::{GILMOK_SHARD, GILMOK_SHARD_MAP, GILMOK_VERSION, PROXY_STATUS};
use super::record::Record;
use super::retry::Retries;
use super::trying::{Guard, Trying, has_answer};
use crate::clock;
use crate::metrics::Outcome;
use crate::tls::is_refusal;
use crate::upstream::balance::{Choice, note_latency};
use crate::upstream::candidates::Aim;
use crate::upstream::connect::ConnectError;
use crate::upstream::endpoint::EndpointState;
use crate::upstream::pool::{Lease, Pool};
use crate::upstream::service::Upstream;
use crate::upstream::upload::{Upload, UploadFault};

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

/// A try that failed.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) fault: Fault,
    /// What the endpoint or its connection did; the metrics tell it.
    outcome: Outcome,
    /// Whether the application may have seen the request.
    pub(super) sent: bool,
    /// An answer that the policy of retries counts as a failure. It is given if there is no better one.
    pub(super) answered: Option<Box<Answered>>,
    /// The shard that the endpoint says the key is at.
    owner: Option<usize>,
}

impl Failed {
    /// Nothing came back of what was sent.
    fn sent(fault: Fault, outcome: Outcome) -> Self {
        Self { fault, outcome, sent: true, answered: None, owner: None }
    }

    /// The application has certainly seen nothing.
    fn unsent(fault: Fault, outcome: Outcome) -> Self {
        Self { sent: false, ..Self::sent(fault, outcome) }
    }

    fn late(expired: Expired) -> Self {
        match expired {
            // Its patience, not the endpoint's fault.
            Expired::Caller => Self::sent(Fault::CallerTimeout, Outcome::Timeout),
            Expired::Idle => Self::sent(Fault::UploadUntaken, Outcome::Timeout),
            Expired::Service => Self::sent(Fault::Timeout, Outcome::Timeout),
            Expired::Version => Self::sent(Fault::Drained, Outcome::Cancelled),
        }
    }

    /// What the caller gets of it.
    fn end(self) -> Result<Answered, Fault> {
        self.answered.map_or(Err(self.fault), |answered| Ok(*answered))
    }
}

/// Sends a request to an endpoint of a service; to another one if that is safe and the policy of retries allows it.
///
/// The request is taken out of `unsent` when it is sent, and put back where it could be sent once more. All tries are at
/// the version and the shard that were decided on; only the owner of a shard sends it on to another one, once.
pub(super) async fn attempt(
    record: &mut Record,
    upstream: &Upstream,
    unsent: &mut Option<Request<Upload>>,
    deadline: &Deadline,
    mut aim: Aim,
) -> Result<Answered, Fault> {
    let Some(request) = unsent else { return Err(Fault::NoEndpoint) };
    fit_protocol(request, upstream);
    let method = request.method().clone();
    let mut retries = Retries::of(upstream);
    // Mostly the moment the request came: near enough for choosing, and one reading of the clock less.
    let mut began = deadline.begin();
    let (mut is_first, mut is_redirected) = (true, false);
    let mut chosen = choose(upstream, aim, None, clock::ms_of(began))?;
    loop {
        let except = chosen.endpoint.id;
        if let Some(request) = unsent {
            deadline.tell(request.headers_mut(), upstream, is_first);
        }
        is_first = false;
        let failed = match try_endpoint(record, upstream, chosen, unsent, deadline, began).await {
            Ok(answered) => return Ok(answered),
            Err(failed) => failed,
        };
        if failed.fault == Fault::Misdirected {
            let owner = failed.owner.filter(|_| unsent.is_some() && !is_redirected);
            aim = aim.at_shard(owner.ok_or(Fault::Misdirected)?);
            is_redirected = true;
            upstream.shared.redirects.fetch_add(1, Relaxed);
            began = Instant::now();
            chosen = choose(upstream, aim, None, clock::ms_of(began))?;
            continue;
        }
        if unsent.is_none()
            || !retries.may_follow(&failed, &method)
            || !Box::pin(retries.wait(&failed, deadline)).await
        {
            return failed.end();
        }
        began = Instant::now();
        // Never against an open breaker.
        chosen = match choose(upstream, aim, Some(except), clock::ms_of(began)) {
            Ok(chosen) => chosen,
            Err(_refused) => return failed.end(),
        };
        chosen.endpoint.series.retry(record.worker.index);
    }
}

/// An endpoint, and the pass of its breaker.
struct Chosen {
    endpoint: Arc<EndpointState>,
    guard: Option<Guard>,
    /// Whether there are others.
    others: bool,
}

/// Chooses an endpoint whose breaker lets the call through; of the version and the shard that were decided on.
fn choose(upstream: &Upstream, aim: Aim, except: Option<u64>, now_ms: u64) -> Result<Chosen, Fault> {
    upstream.shared.called_at_ms.store(now_ms, Relaxed);
    let choice = Choice {
        balancer: upstream.policy.load_balancer,
        slow_start: upstream.policy.slow_start,
        turn: &upstream.shared.turn,
        except,
        now_ms,
    };
    let candidates = upstream.eligible(now_ms);
    let eligible = candidates.at(aim).map_err(Fault::unwritable)?;
    let picked = eligible.pick(&choice).ok_or(Fault::NoEndpoint)?;
    let others = eligible.endpoints().len() > 1;
    let chosen =
        |endpoint: &Arc<EndpointState>, guard| Chosen { endpoint: Arc::clone(endpoint), guard, others };
    let Some(breakers) = &upstream.breakers else { return Ok(chosen(picked, None)) };
    // What guards another target may let it through: a bad shard or version does not speak for the others.
    let start = fastrand::usize(..eligible.endpoints().len());
    let (before, after) = eligible.endpoints().split_at(start);
    let ring = after.iter().chain(before).filter(|state| Some(state.id) != except);
    let mut refused: Option<(*const _, u64)> = None;
    for endpoint in std::iter::once(picked).chain(ring) {
        let Some(breaker) = breakers.of(&endpoint.endpoint) else { return Ok(chosen(endpoint, None)) };
        if refused.is_some_and(|(asked, _)| asked == Arc::as_ptr(breaker)) {
            continue;
        }
        match breaker.admit(now_ms, fastrand::f64()) {
            Ok(pass) => return Ok(chosen(endpoint, Some(Guard { breaker: Arc::clone(breaker), pass }))),
            Err(no) => {
                let sooner = refused.map_or(no.retry_after_ms, |(_, ms)| ms.min(no.retry_after_ms));
                refused = Some((Arc::as_ptr(breaker), sooner));
            }
        }
    }
    Err(Fault::open(refused.map_or(0, |(_, ms)| ms)))
}

/// One try at one endpoint.
async fn try_endpoint(
    record: &mut Record,
    upstream: &Upstream,
    chosen: Chosen,
    unsent: &mut Option<Request<Upload>>,
    deadline: &Deadline,
    began: Instant,
) -> Result<Answered, Failed> {
    let Chosen { endpoint, guard, others } = chosen;
    record.try_at(&endpoint);
    let keeps = keeps(unsent.as_ref(), upstream, &endpoint, others);
    let most = record.worker.buffered_bytes_max;
    let is_copied = matches!(keeps, Keep::Copy | Keep::Owner);
    let spare = unsent.as_ref().filter(|request| is_copied && request.body().keep(most));
    let spare = spare.map(copy_of).map(Box::new);
    if let Some(request) = unsent {
        tell_target(request, upstream, &endpoint);
    }
    let is_safe = unsent.as_ref().is_some_and(|request| request.method().is_safe());
    let mut trying = Trying::new(upstream, &endpoint, record.worker.index, began, guard, is_safe);
    let pool = record.worker.pools.of(&endpoint);
    let result = exchange(&pool, upstream, unsent, deadline, &mut trying, keeps == Keep::Written).await;
    let result = result.and_then(|answered| {
        trying.answered(&answered.response, deadline);
        if upstream.policy.load_balancer == LoadBalancer::PeakEwma {
            note_latency(&endpoint, began.elapsed(), clock::now_ms());
        }
        let answered = refuse_sidecar_error(&endpoint, answered)?;
        let answered = refuse_misdirected(upstream, &endpoint, answered)?;
        refuse_listed(upstream, answered)
    });
    match result {
        Ok(answered) => {
            deadline.forget_upload();
            Ok(answered)
        }
        Err(failed) => {
            if failed.answered.is_none() {
                trying.failed(failed.outcome, failed.fault.failure());
            }
            if matches!(failed.outcome, Outcome::Connect | Outcome::Refused | Outcome::Tls) {
                endpoint.shunned_until_ms.store(clock::now_ms() + SHUN_MS, Relaxed);
            }
            let may_go_on = keeps != Keep::Owner || failed.fault == Fault::Misdirected;
            if unsent.is_none() && may_go_on {
                *unsent = spare.and_then(|spare| deadline.restore(*spare));
            }
            Err(failed)
        }
    }
}

/// How a request is kept in case it has to be sent once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keep {
    /// Only for a pooled connection that turns out to be closed.
    Stale,
    /// A copy of its head, and of a short body as it goes.
    Copy,
    /// The same, only for an owner that sends it on to another shard.
    Owner,
    /// The connection keeps what it has written.
    Written,
}

fn keeps(
    request: Option<&Request<Upload>>,
    upstream: &Upstream,
    endpoint: &EndpointState,
    others: bool,
) -> Keep {
    let Some(request) = request else { return Keep::Stale };
    // A sidecar can say that its app saw nothing; where there is another one, the request is kept. An HTTP/2 peer can
    // say that a stream was not taken up, and take it up on its next connection.
    let may_return = (others && endpoint.endpoint.inbound) || upstream.policy.protocol == Protocol::H2;
    let is_idempotent = request.method().is_idempotent();
    let may_repeat = !upstream.repeats.is_empty() && is_idempotent;
    // An owner may have lost the key, and send it on.
    let may_move = upstream.policy.sharding.is_some();
    if !may_return && !may_repeat && !may_move {
        Keep::Stale
    } else if is_idempotent && request.body().is_end_stream() && upstream.policy.protocol == Protocol::Http1 {
        Keep::Written
    } else if may_return || may_repeat {
        Keep::Copy
    } else {
        Keep::Owner
    }
}

/// An owner that has lost the key to another shard says so: 421 and whose it is now. No other 421 means that.
fn refuse_misdirected(
    upstream: &Upstream,
    endpoint: &EndpointState,
    answered: Answered,
) -> Result<Answered, Failed> {
    let (Some(sharding), Some(owner)) = (&upstream.policy.sharding, owner_told(&answered.response)) else {
        return Ok(answered);
    };
    let owner = owner.to_str().ok().and_then(|name| sharding.place_of(name));
    // Whoever sends a key to itself would do so again.
    let is_other = |at: &usize| sharding.shards()[*at] != endpoint.endpoint.shard;
    let failed = Failed::sent(Fault::Misdirected, Outcome::Answered);
    Err(Failed { owner: owner.filter(is_other), ..failed })
}

/// The shard to which an answer sends a request on.
fn owner_told(response: &Response<Incoming>) -> Option<&HeaderValue> {
    let is_misdirected = response.status() == StatusCode::MISDIRECTED_REQUEST;
    if is_misdirected { response.headers().get(GILMOK_SHARD) } else { None }
}

/// An answer that the policy of retries lists is a failed try.
fn refuse_listed(upstream: &Upstream, answered: Answered) -> Result<Answered, Failed> {
    let listed =
        has_answer(&upstream.policy.retry.on, answered.response.status(), answered.response.headers());
    if !listed {
        return Ok(answered);
    }
    let failed = Failed::sent(Fault::Reset, Outcome::Answered);
    Err(Failed { answered: Some(Box::new(answered)), ..failed })
}

/// Sends the request on a connection of the pool and waits for the head of the answer.
async fn exchange(
    pool: &Rc<Pool>,
    upstream: &Upstream,
    unsent: &mut Option<Request<Upload>>,
    deadline: &Deadline,
    trying: &mut Trying<'_>,
    keep: bool,
) -> Result<Answered, Failed> {
    let policy = &upstream.policy;
    for connection in 0..CONNECTIONS_MAX {
        let pooled = if connection == 0 { pool.take(policy.protocol) } else { None };
        let mut lease = match pooled {
            Some(lease) => lease,
            None => {
                let mut opening = Box::pin(pool.open(policy.protocol, policy.connect_timeout));
                let mut timer = Box::pin(sleep(policy.connect_timeout));
                match deadline.run(trying, timer.as_mut(), opening.as_mut()).await {
                    Ok(opened) => opened.map_err(not_connected)?,
                    Err(expired) => return Err(Failed { sent: false, ..Failed::late(expired) }),
                }
            }
        };
        let Some(request) = unsent.take() else { break };
        let sent = match &mut lease {
            Lease::Http1(lease) => {
                let (timer, sent) = lease.send(request, keep);
                deadline.run(trying, timer, pin!(sent)).await
            }
            Lease::H2(lease) => {
                let mut timer = Box::pin(sleep(policy.request_timeout));
                deadline.run(trying, timer.as_mut(), pin!(lease.send(request))).await
            }
        };
        let mut error = match sent {
            Ok(Ok(response)) => {
                let may_be_sidecars = trying.endpoint.endpoint.inbound && response.status().is_server_error();
                let is_listed = || has_answer(&upstream.repeats, response.status(), response.headers());
                if keep && (may_be_sidecars || is_listed() || owner_told(&response).is_some()) {
                    *unsent = lease.written();
                }
                return Ok(Answered { response, lease });
            }
            Ok(Err(error)) => error,
            Err(expired) => {
                *unsent = if keep { lease.written() } else { None };
                return Err(Failed::late(expired));
            }
        };
        if let Some(request) = error.take_message() {
            *unsent = Some(request);
            if !lease.reused() {
                return Err(if was_refused(error.error()) {
                    Failed::unsent(Fault::Tls, Outcome::Tls)
                } else {
                    Failed::unsent(Fault::Reset, Outcome::Reset)
                });
            }
        } else if lease.reused()
            && let Some(request) = lease.unanswered()
        {
            *unsent = Some(request);
        } else {
            *unsent = if keep { lease.written() } else { None };
            return Err(broken(&error.into_error(), lease.reused(), deadline));
        }
        // The connection was closed while it was idle; that says nothing about the endpoint. At most one more request
        // on a new connection, and no connection is found closed twice: so it needs no budget.
        trying.connection_was_stale();
    }
    Err(Failed::unsent(Fault::Reset, Outcome::StaleConnection))
}

fn not_connected(error: ConnectError) -> Failed {
    match error {
        ConnectError::Refused => Failed::unsent(Fault::Refused, Outcome::Refused),
        ConnectError::Timeout => Failed::unsent(Fault::ConnectTimeout, Outcome::Connect),
        ConnectError::Tls => Failed::unsent(Fault::Tls, Outcome::Tls),
        ConnectError::Unreachable => Failed::unsent(Fault::Unreachable, Outcome::Connect),
        ConnectError::Untrusted => Failed::unsent(Fault::Untrusted, Outcome::Tls),
    }
}

/// Whose fault it was that a request broke.
fn broken(error: &hyper::Error, reused: bool, deadline: &Deadline) -> Failed {
    let failed = Failed::sent;
    match deadline.upload_fault() {
        Some(UploadFault::CallerLeft) => {
            failed(Fault::BadRequest("the caller stopped in the middle of its request"), Outcome::Cancelled)
        }
        Some(UploadFault::Stalled) => failed(Fault::UploadStalled, Outcome::Cancelled),
        Some(UploadFault::TooLarge) => failed(Fault::BodyTooLarge, Outcome::Cancelled),
        // HTTP/2 says that the stream was not taken up; the caller's spare copy goes elsewhere.
        None if let Some(outcome) = not_taken_up(error) => Failed::unsent(Fault::Refused, outcome),
        None if !reused && was_refused(error) => Failed::unsent(Fault::Tls, Outcome::Tls),
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
            // Over TLS an end without a word is one that was not expected.
            use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
            matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
        })
}

/// Whether the endpoint did not like our certificate, and told so behind its handshake.
fn was_refused(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        let of_h2 = error.downcast_ref::<h2::Error>().and_then(h2::Error::get_io);
        if is_refusal(error) || of_h2.is_some_and(|error| is_refusal(error)) {
            return true;
        }
        source = error.source();
    }
    false
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

/// What an answer says that a sidecar gave for itself.
pub(super) fn sidecars_fault(endpoint: &EndpointState, response: &Response<Incoming>) -> Option<Fault> {
    if !endpoint.endpoint.inbound || !response.status().is_server_error() {
        return None;
    }
    response.headers().get(PROXY_STATUS)?.to_str().ok().and_then(Fault::of_sidecar)
}

/// Such an answer is that error, not the application's.
fn refuse_sidecar_error(endpoint: &EndpointState, answered: Answered) -> Result<Answered, Failed> {
    match sidecars_fault(endpoint, &answered.response) {
        None => Ok(answered),
        Some(fault) => {
            let outcome = match fault {
                Fault::Timeout => Outcome::Timeout,
                Fault::Reset => Outcome::Reset,
                // It is busy, not away: nobody shuns it for that.
                Fault::Overflow(_) => Outcome::Answered,
                _ if fault.is_unsent() => Outcome::Refused,
                _ => Outcome::Answered,
            };
            Err(Failed { sent: !fault.is_unsent(), ..Failed::sent(fault, outcome) })
        }
    }
}

/// What HTTP/1 and HTTP/2 want otherwise.
pub(super) fn fit_protocol(request: &mut Request<Upload>, upstream: &Upstream) {
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
}

/// Tells the application which version and shard it was asked as, and by which map.
pub(super) fn tell_target(request: &mut Request<Upload>, upstream: &Upstream, endpoint: &EndpointState) {
    if let Some(version) = &endpoint.version_header {
        request.headers_mut().insert(GILMOK_VERSION, version.clone());
    }
    if let Some(shard) = &endpoint.shard_header {
        request.headers_mut().insert(GILMOK_SHARD, shard.clone());
    }
    if let Some(map) = &upstream.map_header {
        request.headers_mut().insert(GILMOK_SHARD_MAP, map.clone());
    }
}

/// The same request once more, without its body.
pub(super) fn copy_of(request: &Request<Upload>) -> Request<Upload> {
    let mut copy = Request::new(Upload::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}
