//! The breakers of one service: one for the service, or for each version, shard or target of it.

use std::sync::Arc;

use gilmok_config::breaker::{BreakerPolicy, Scope};
use gilmok_config::endpoint::Endpoint;
use gilmok_config::name::Name;

use crate::breaker::Breaker;

/// What guards the targets of a service.
#[derive(Debug)]
pub(crate) struct Breakers {
    scope: Scope,
    guarded: Vec<Guarded>,
}

/// A breaker and what it guards; a name is empty where the scope does not ask for it.
#[derive(Debug)]
pub(crate) struct Guarded {
    pub(crate) version: Name,
    pub(crate) shard: Name,
    pub(crate) breaker: Arc<Breaker>,
}

impl Breakers {
    /// The breakers that these endpoints need. What was there with the same policy goes on as it is.
    pub(crate) fn build(policy: &BreakerPolicy, endpoints: &[Endpoint], before: Option<&Self>) -> Self {
        let mut breakers = Self { scope: policy.scope, guarded: Vec::new() };
        if policy.scope == Scope::Service {
            breakers.guard("", "", policy, before);
        }
        for endpoint in endpoints {
            let (version, shard) = key(policy.scope, endpoint);
            breakers.guard(version, shard, policy, before);
        }
        breakers
    }

    fn guard(&mut self, version: &str, shard: &str, policy: &BreakerPolicy, before: Option<&Self>) {
        if self.find(version, shard).is_some() {
            return;
        }
        let kept = before.and_then(|before| before.find(version, shard));
        let breaker = kept.map(|kept| Arc::clone(&kept.breaker)).filter(|kept| kept.policy() == policy);
        let breaker = breaker.unwrap_or_else(|| Arc::new(Breaker::new(*policy)));
        // Names of endpoints are sound.
        let [version, shard] = [version, shard].map(|name| Name::parse(name).unwrap_or_default());
        self.guarded.push(Guarded { version, shard, breaker });
    }

    fn find(&self, version: &str, shard: &str) -> Option<&Guarded> {
        self.guarded.iter().find(|it| it.version.as_str() == version && it.shard.as_str() == shard)
    }

    /// What guards this endpoint. Services have few targets: a list is looked through faster than a map.
    pub(crate) fn of(&self, endpoint: &Endpoint) -> Option<&Arc<Breaker>> {
        if let [only] = self.guarded.as_slice() {
            return Some(&only.breaker);
        }
        let (version, shard) = key(self.scope, endpoint);
        self.find(version, shard).map(|guarded| &guarded.breaker)
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
