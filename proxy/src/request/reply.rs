//! What the head of an endpoint's answer says: that its sidecar failed, that the key is another shard's, or what the policy of
//! retries lists as a failure.

use http::{HeaderValue, Response, StatusCode};
use hyper::body::Incoming;

use super::fault::Fault;
use super::headers::{GILMOK_SHARD, GILMOK_SHARD_MAP, PROXY_STATUS, map_told};
use super::tried::{Answered, Failed, Owner};
use super::trying::has_answer;
use crate::metrics::Outcome;
use crate::upstream::endpoint::EndpointState;
use crate::upstream::service::Upstream;

/// The answer, if it is the application's and none that counts as a failed try.
pub(super) fn heard(
    upstream: &Upstream,
    endpoint: &EndpointState,
    answered: Answered,
) -> Result<Answered, Failed> {
    let answered = refuse_sidecar_error(endpoint, answered)?;
    let answered = refuse_misdirected(upstream, endpoint, answered)?;
    refuse_listed(upstream, answered)
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
                // It is busy or waits, but is not away: nobody shuns it for that.
                Fault::Held | Fault::Overflow(_) => Outcome::Answered,
                _ if fault.is_unsent() => Outcome::Refused,
                _ => Outcome::Answered,
            };
            Err(Failed { sent: !fault.is_unsent(), ..Failed::sent(fault, outcome) })
        }
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
    let shard = owner.to_str().ok().and_then(|name| sharding.place_of(name));
    // Whoever sends a key to itself would do so again.
    let shard = shard.filter(|at| sharding.shards()[*at] != endpoint.endpoint.shard);
    let map = answered.response.headers().get(GILMOK_SHARD_MAP).filter(|map| map_told(map).is_some());
    let failed = Failed::sent(Fault::Misdirected, Outcome::Answered);
    Err(Failed { owner: shard.map(|shard| Owner { shard, map: map.cloned() }), ..failed })
}

/// The shard to which an answer sends a request on.
pub(super) fn owner_told(response: &Response<Incoming>) -> Option<&HeaderValue> {
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
