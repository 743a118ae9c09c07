//! What is meant: a sound document joined with who is alive, indexed for deciding, immutable.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::access::{Access, AccessMode, DefaultAccess};
use crate::document::{Document, own_hosts};
use crate::endpoint::Endpoint;
use crate::flag::{Emission, FlagSet, ServiceFlags};
use crate::name::ServiceName;
use crate::route::Route;
use crate::service::ServicePolicy;
use crate::subject::Inputs;

/// Who is alive, by service. A service that is not in it is unknown to membership, which is not the same as empty.
pub type Membership = BTreeMap<ServiceName, Arc<[Endpoint]>>;

/// A document joined with its endpoints. One request acts on one snapshot.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// In the order of their names; decisions name them by their place in this list.
    services: Vec<Service>,
    routes: Vec<Route>,
    by_host: HashMap<Box<str>, Host>,
    /// The routes that match every host. Kept once and merged while deciding: in the list of each host
    /// they would take hosts × routes.
    anywhere: Vec<usize>,
    default_access: DefaultAccess,
    access_mode: AccessMode,
    flags: Option<Arc<FlagSet>>,
    /// Of services that say nothing of flags.
    usual_flags: ServiceFlags,
    wants_client: bool,
    wants_uid: bool,
    wants_now: bool,
}

/// A service of a snapshot.
#[derive(Clone, Debug)]
pub struct Service {
    pub name: ServiceName,
    pub policy: Arc<ServicePolicy>,
    pub endpoints: Arc<[Endpoint]>,
    /// What it is told of the flags.
    pub emission: Option<Arc<Emission>>,
    /// The document does not name it, membership does.
    pub implied: bool,
}

impl Service {
    /// Whether anybody serves this version, by its place in [`crate::traffic::Traffic::versions`], and this shard, by its
    /// place in [`crate::sharding::Sharding::shards`], if one was decided on.
    #[must_use]
    pub fn has_endpoint(&self, version: usize, shard: Option<usize>) -> bool {
        let version = self.policy.traffic.as_ref().and_then(|traffic| traffic.versions().get(version));
        let shard = shard.zip(self.policy.sharding.as_ref()).map(|(at, sharding)| &sharding.shards()[at]);
        version.is_some_and(|version| {
            self.endpoints.iter().any(|endpoint| {
                endpoint.version == *version && shard.is_none_or(|shard| endpoint.shard == *shard)
            })
        })
    }
}

/// What a host leads to.
#[derive(Debug, Default)]
struct Host {
    /// Routes that name this host, in the document's order.
    routes: Vec<usize>,
    /// The service that answers to this name by itself.
    service: Option<usize>,
}

impl Snapshot {
    /// Joins a document with who is alive. Membership's endpoints win where it has any;
    /// otherwise those that the document lists serve. A service that only membership knows is
    /// there as if the document had an empty table for it.
    #[must_use]
    pub fn join(document: &Document, membership: &Membership) -> Self {
        let told = document.services.iter().map(|(name, policy)| {
            let alive = membership.get(name).filter(|endpoints| !endpoints.is_empty());
            let endpoints = alive.cloned().unwrap_or_else(|| policy.endpoints.as_slice().into());
            let emission = document.emissions.get(name).cloned();
            Service {
                name: name.clone(),
                policy: Arc::new(policy.clone()),
                endpoints,
                emission,
                implied: false,
            }
        });
        let untold = membership.iter().filter(|(name, _)| !document.services.contains_key(*name));
        let default = Arc::new(ServicePolicy::default());
        let implied = untold.map(|(name, endpoints)| Service {
            name: name.clone(),
            policy: Arc::clone(&default),
            endpoints: Arc::clone(endpoints),
            emission: None,
            implied: true,
        });
        let mut services: Vec<Service> = told.chain(implied).collect();
        services.sort_by(|a, b| a.name.cmp(&b.name));
        let (default_access, access_mode) = (document.default_access, document.access_mode);
        let (routes, flags) = (document.routes.clone(), document.flags.clone());
        let wants_now = flags.as_ref().is_some_and(|set| set.reads_time());
        let mut snapshot =
            Self { services, routes, flags, wants_now, default_access, access_mode, ..Self::default() };
        snapshot.index_hosts();
        let wants = |wanted: fn(&Inputs) -> bool| {
            snapshot.services.iter().any(|service| {
                let key = service.policy.sharding.as_ref().and_then(|sharding| sharding.key().inputs());
                let traffic = service.policy.traffic.as_deref();
                let pins = traffic.into_iter().flat_map(|traffic| &traffic.pins);
                let inputs = service.policy.subject().into_iter().chain(key);
                let flags = service.policy.flags.iter().flat_map(|flags| flags.inputs());
                inputs.chain(pins.filter_map(|pin| pin.input())).chain(flags).any(wanted)
            })
        };
        // Flags of a route whose service says nothing of them are evaluated for the default subject.
        let by_flag = snapshot.routes.iter().any(|route| route.when_flag.is_some());
        (snapshot.wants_client, snapshot.wants_uid) =
            (wants(Inputs::want_client), by_flag || wants(Inputs::want_uid));
        snapshot
    }

    fn index_hosts(&mut self) {
        // What operators named first: a name that only membership knows takes no host away from them.
        let (implied, told): (Vec<_>, Vec<_>) =
            self.services.iter().enumerate().partition(|(_, service)| service.implied);
        for (index, service) in told.into_iter().chain(implied) {
            for host in own_hosts(&service.name).into_iter().chain(service.policy.hosts.iter().cloned()) {
                self.by_host.entry(host.into()).or_default().service.get_or_insert(index);
            }
        }
        for (index, route) in self.routes.iter().enumerate() {
            if route.hosts.is_empty() {
                self.anywhere.push(index);
            }
            for name in &route.hosts {
                let host = self.by_host.entry(name.as_str().into()).or_default();
                if host.routes.last() != Some(&index) {
                    host.routes.push(index);
                }
            }
        }
    }

    #[must_use]
    pub fn services(&self) -> &[Service] {
        &self.services
    }

    #[must_use]
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The place of a service by its name.
    #[must_use]
    pub fn service_index(&self, name: &str) -> Option<usize> {
        self.services.binary_search_by(|service| service.name.as_str().cmp(name)).ok()
    }

    /// Who may call a service, whether anybody knows it or not.
    #[must_use]
    pub fn access_of(&self, service: &str) -> Access {
        let policy = self.service_index(service).map(|at| &self.services[at].policy);
        Access {
            allow: policy.and_then(|policy| policy.allow.clone()),
            default: self.default_access,
            mode: policy.and_then(|policy| policy.access_mode).unwrap_or(self.access_mode),
        }
    }

    /// The feature flags, if the document has any.
    #[must_use]
    pub fn flags(&self) -> Option<&Arc<FlagSet>> {
        self.flags.as_ref()
    }

    /// For whom a service's flags are evaluated.
    pub(crate) fn flags_of(&self, service: usize) -> &ServiceFlags {
        self.services[service].policy.flags.as_deref().unwrap_or(&self.usual_flags)
    }

    /// Whether any flag may depend on [`crate::decide::Facts::now`].
    #[must_use]
    pub fn wants_now(&self) -> bool {
        self.wants_now
    }

    /// Whether any decision may depend on [`crate::decide::Facts::client`].
    #[must_use]
    pub fn wants_client(&self) -> bool {
        self.wants_client
    }

    /// Whether any decision may depend on [`crate::decide::Facts::uid`].
    #[must_use]
    pub fn wants_uid(&self) -> bool {
        self.wants_uid
    }

    /// What a canonical host leads to.
    pub(crate) fn at_host(&self, host: &str) -> AtHost<'_> {
        let found = self.by_host.get(host);
        AtHost {
            named: found.map_or(&[], |host| &host.routes),
            anywhere: &self.anywhere,
            service: found.and_then(|host| host.service),
        }
    }
}

/// What a host leads to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AtHost<'s> {
    named: &'s [usize],
    anywhere: &'s [usize],
    /// The service that answers to this name by itself.
    pub(crate) service: Option<usize>,
}

impl AtHost<'_> {
    /// Whether a route names this host, which is what edge listeners ask.
    pub(crate) fn is_routed(&self) -> bool {
        !self.named.is_empty()
    }

    /// The places of the routes that may match, in the document's order.
    pub(crate) fn routes(self) -> impl Iterator<Item = usize> {
        let (mut named, mut anywhere) =
            (self.named.iter().copied().peekable(), self.anywhere.iter().copied().peekable());
        std::iter::from_fn(move || match (named.peek(), anywhere.peek()) {
            (Some(of_host), Some(of_all)) if of_host > of_all => anywhere.next(),
            (Some(_), _) => named.next(),
            (None, _) => anywhere.next(),
        })
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};

    use super::*;
    use crate::decide::{Facts, Listener, decide};

    #[test]
    fn a_service_that_only_membership_knows_answers_but_takes_no_host_away() {
        let document =
            Document::parse_toml("[services.shop]\nhosts = [\"ads\"]\n").expect("a sound document");
        let name = |text| ServiceName::parse(text).expect("a sound name");
        let none: Arc<[Endpoint]> = [].into();
        let membership = Membership::from([(name("ads"), Arc::clone(&none)), (name("new"), none)]);
        let snapshot = Snapshot::join(&document, &membership);
        let to = |host| {
            let headers = HeaderMap::new();
            let facts = Facts::of(Listener::Outbound, host, "/", &Method::GET, &headers);
            decide(&snapshot, &facts, &|_| true)
                .ok()
                .map(|decision| snapshot.services()[decision.service].name.to_string())
        };
        assert_eq!(to("ads").as_deref(), Some("shop"));
        assert_eq!(to("ads.mesh").as_deref(), Some("ads"));
        assert_eq!(to("new").as_deref(), Some("new"));
        assert_eq!(to("other"), None);
    }
}
