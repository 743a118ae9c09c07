//! The breakers of one service: one for the service, or for each version, shard or target of it.

use std::sync::Arc;
use std::time::SystemTime;

use gilmok_config::breaker::{BreakerPolicy, Scope};
use gilmok_config::endpoint::Endpoint;
use gilmok_config::forced::{ForcedBreaker, ForcedState, Left};
use gilmok_config::name::Name;
use gilmok_config::service::ServicePolicy;

use crate::breaker::{Breaker, Forced, State};
use crate::clock;

/// What guards the targets of a service.
#[derive(Debug)]
pub(crate) struct Breakers {
    scope: Scope,
    /// By version and shard.
    guarded: Vec<Guarded>,
}

/// A breaker and what it guards; a name is empty where the scope does not ask for it.
#[derive(Debug)]
pub(crate) struct Guarded {
    pub(crate) version: Name,
    pub(crate) shard: Name,
    pub(crate) breaker: Arc<Breaker>,
    /// Who forced it; empty where nobody did.
    pub(crate) forced_by: String,
    /// Until when, in seconds since 1970; `None` where nobody did, or until they say otherwise.
    pub(crate) forced_until: Option<u64>,
}

impl Breakers {
    /// The breakers that these endpoints need; `None` where the service has none. What was there with the same policy
    /// goes on as it is.
    pub(crate) fn build(
        service: &ServicePolicy,
        endpoints: &[Endpoint],
        before: Option<&Self>,
    ) -> Option<Self> {
        let never = BreakerPolicy { min_requests: u32::MAX, ..BreakerPolicy::default() };
        let policy = match &service.circuit_breaker {
            Some(policy) => policy,
            // Every service can be practised with: its breakers do what operators say, and nothing by themselves.
            None if !service.forced_breakers.is_empty() => &never,
            None => return None,
        };
        let mut breakers = Self { scope: policy.scope, guarded: Vec::new() };
        if policy.scope == Scope::Service {
            breakers.guard("", "", policy, before);
        }
        for endpoint in endpoints {
            let (version, shard) = key(policy.scope, endpoint);
            breakers.guard(version, shard, policy, before);
        }
        breakers.force(&service.forced_breakers);
        Some(breakers)
    }

    /// Lets operators have their way; with nothing said of a breaker its own window decides.
    fn force(&mut self, all: &[ForcedBreaker]) {
        let (now, now_ms) = (SystemTime::now(), clock::now_ms());
        for guarded in &mut self.guarded {
            // What names more of the target goes before what names less.
            let said = all
                .iter()
                .filter(|forced| forced.is_for(guarded.version.as_str(), guarded.shard.as_str()))
                .filter_map(|forced| forced.left(now).map(|left| (forced, left)))
                .max_by_key(|(forced, _)| {
                    usize::from(!forced.version.is_empty()) + usize::from(!forced.shard.is_empty())
                });
            guarded.forced_by = said.map(|(forced, _)| forced.by.clone()).unwrap_or_default();
            guarded.forced_until = said.and_then(|(forced, _)| forced.until);
            let forced = said.map(|(forced, left)| Forced {
                state: match forced.state {
                    ForcedState::Closed => State::Closed,
                    ForcedState::Open => State::Open,
                },
                until_ms: match left {
                    Left::Always => None,
                    Left::For(left) => {
                        Some(now_ms + u64::try_from(left.as_millis()).unwrap_or(u64::MAX >> 3))
                    }
                },
            });
            guarded.breaker.force(forced, now_ms);
        }
    }

    fn guard(&mut self, version: &str, shard: &str, policy: &BreakerPolicy, before: Option<&Self>) {
        let Err(place) = self.place(version, shard) else { return };
        let kept =
            before.and_then(|before| before.place(version, shard).ok().map(|at| &before.guarded[at].breaker));
        let breaker = kept.filter(|kept| kept.policy() == policy).cloned();
        let breaker = breaker.unwrap_or_else(|| Arc::new(Breaker::new(*policy)));
        // Names of endpoints are sound.
        let [version, shard] = [version, shard].map(|name| Name::parse(name).unwrap_or_default());
        let (forced_by, forced_until) = (String::new(), None);
        self.guarded.insert(place, Guarded { version, shard, breaker, forced_by, forced_until });
    }

    /// Where this one stands, or would.
    fn place(&self, version: &str, shard: &str) -> Result<usize, usize> {
        self.guarded.binary_search_by(|it| (it.version.as_str(), it.shard.as_str()).cmp(&(version, shard)))
    }

    /// What guards this endpoint.
    pub(crate) fn of(&self, endpoint: &Endpoint) -> Option<&Arc<Breaker>> {
        if let [only] = self.guarded.as_slice() {
            return Some(&only.breaker);
        }
        let (version, shard) = key(self.scope, endpoint);
        self.place(version, shard).ok().map(|at| &self.guarded[at].breaker)
    }

    pub(crate) fn all(&self) -> &[Guarded] {
        &self.guarded
    }
}

/// What of an endpoint a breaker of this scope is for.
fn key(scope: Scope, endpoint: &Endpoint) -> (&str, &str) {
    let version =
        if matches!(scope, Scope::Version | Scope::Target) { endpoint.version.as_str() } else { "" };
    let shard = if matches!(scope, Scope::Shard | Scope::Target) { endpoint.shard.as_str() } else { "" };
    (version, shard)
}
