//! What the proxy beside the owner of a shard does with a request for it, by the newest map it knows, whatever its caller
//! knows: pass it on, let it wait, or say whose the key is.

use gilmok_config::decide::shard;
use gilmok_config::sharding::KeyFault;
use gilmok_config::sharding::moving::{AtOwner, HOLD_MAX};
use http::Request;
use hyper::body::{Body, Incoming};
use tokio::time::timeout;

use super::Key;
use super::body::is_read_away;
use super::fault::Fault;
use super::headers::{GILMOK_SHARD_MAP, map_told};
use super::record::Record;
use super::split::{self, Visitor};
use crate::caller::Caller;
use crate::upstream::service::Upstream;
use crate::upstream::upload::KEPT_BYTES_MAX;
use crate::worker::{View, Worker};

/// Decides what becomes of a request for an app.
///
/// # Errors
/// Its keys are on several shards by now, so that nobody has them all.
pub(super) fn decide(
    worker: &Worker,
    caller: &Caller,
    view: &View,
    record: &mut Record,
    app: &Upstream,
    request: &Request<Incoming>,
    host: Option<&str>,
) -> Result<Key, Fault> {
    // What has no key is nobody else's.
    const ANYBODYS: Key = Key { at_owner: AtOwner::Serve, moves: false };
    let Some(owned) = &app.owned else { return Ok(ANYBODYS) };
    let facts = split::facts(worker, caller, view, request, &Visitor::Unasked, host.unwrap_or_default());
    let told = request.headers().get(GILMOK_SHARD_MAP).filter(|_| caller.trusted);
    let epoch = told.and_then(map_told).map(|map| map.epoch);
    match shard(&owned.rule, &facts) {
        Ok(sharded) => {
            let is_safe = request.method().is_safe();
            let at_owner = owned.rule.at_owner(owned.shard.as_str(), sharded, is_safe, epoch);
            Ok(Key { at_owner, moves: sharded.moves() })
        }
        // Its caller had them all on one, and may know better.
        Err(KeyFault::SeveralShards(_)) if epoch > Some(owned.rule.epoch()) => {
            Ok(Key { at_owner: AtOwner::Wait, moves: false })
        }
        Err(fault @ KeyFault::SeveralShards(_)) => {
            record.say(Some(owned.rule.tell(&fault)));
            Err(Fault::BadKey(fault.as_str()))
        }
        Err(_) => Ok(ANYBODYS),
    }
}

/// Reads the body of a request that goes back to its caller, if it is so short that the caller keeps it: only what has gone
/// out whole is sent on. Whether it was read to its end.
pub(super) async fn is_in_hand(record: &Record, body: Incoming) -> bool {
    if body.size_hint().lower() > KEPT_BYTES_MAX as u64 {
        return false;
    }
    let limit = record.upstream().map_or(HOLD_MAX, |app| app.policy.idle_timeout);
    timeout(limit, is_read_away(body, KEPT_BYTES_MAX)).await.unwrap_or(false)
}
