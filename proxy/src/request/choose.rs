//! Which endpoint a try goes to: one of the version and the shard that were decided on, whose breaker lets the call through.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::fault::Fault;
use super::trying::Guard;
use crate::upstream::balance::Choice;
use crate::upstream::candidates::Aim;
use crate::upstream::endpoint::EndpointState;
use crate::upstream::service::Upstream;

/// An endpoint, and the pass of its breaker.
pub(super) struct Chosen {
    pub(super) endpoint: Arc<EndpointState>,
    pub(super) guard: Option<Guard>,
    /// Whether there are others.
    pub(super) others: bool,
}

/// Chooses an endpoint whose breaker lets the call through; of the version and the shard that were decided on.
pub(super) fn choose(
    upstream: &Upstream,
    aim: Aim,
    except: Option<u64>,
    now_ms: u64,
) -> Result<Chosen, Fault> {
    upstream.shared.called_at_ms.store(now_ms, Relaxed);
    let choice = Choice {
        balancer: upstream.policy.load_balancer,
        slow_start: upstream.policy.slow_start,
        turn: &upstream.shared.turn,
        except,
        subject: upstream.by_subject(aim),
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
    let many = eligible.endpoints().len();
    let start = choice.subject.map_or_else(|| fastrand::usize(..many), |by| by.start(many));
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
