//! Trying an endpoint whose breaker lets the call through, and another one where that is safe.

use std::sync::atomic::Ordering::Relaxed;

use gilmok_config::service::LoadBalancer;
use http::Request;
use tokio::time::Instant;

use super::choose::{Chosen, choose};
use super::deadline::Deadline;
use super::exchange::exchange;
use super::fault::Fault;
use super::record::Record;
use super::reply::heard;
use super::retry::Retries;
use super::spare::{Keep, copy_of, keeps};
use super::target::{fit_protocol, tell_map, tell_target};
use super::tried::{Answered, Failed};
use super::trying::Trying;
use crate::clock;
use crate::metrics::Outcome;
use crate::upstream::balance::note_latency;
use crate::upstream::candidates::Aim;
use crate::upstream::service::Upstream;
use crate::upstream::upload::Upload;

/// How long an endpoint that could not be connected to is left out while there are others.
const SHUN_MS: u64 = 1_000;

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
    tell_map(request, upstream.map_header.as_ref());
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
            let owner = failed.owner.filter(|_| !is_redirected);
            let (owner, request) = owner.zip(unsent.as_mut()).ok_or(Fault::Misdirected)?;
            aim = aim.at_shard(owner.shard);
            // The new owner may not have heard of it yet, and must not send it back.
            tell_map(request, owner.map.as_ref());
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
        aim = aim.again();
        // Never against an open breaker.
        chosen = match choose(upstream, aim, Some(except), clock::ms_of(began)) {
            Ok(chosen) => chosen,
            Err(_refused) => return failed.end(),
        };
        chosen.endpoint.series.retry(record.worker.index);
    }
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
        tell_target(request, &endpoint);
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
        heard(upstream, &endpoint, answered)
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
