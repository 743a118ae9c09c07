//! Who is alive: what the providers say, in one shape.

use std::collections::BTreeMap;

use gilmok_config::endpoint::Endpoint;
use gilmok_config::name::ServiceName;
use gilmok_config::snapshot::Membership;
use serde::Serialize;

pub mod consul;

pub mod registry;

/// Who is alive, as one provider sees it. Replaced as a whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// Only what may receive traffic.
    pub endpoints: Membership,
    /// Everything that is known, for people.
    pub members: BTreeMap<ServiceName, Vec<Member>>,
}

impl View {
    /// What two providers say together. Where both name the same address, version and shard, it is one endpoint.
    #[must_use]
    pub fn joined(&self, other: &Self) -> Self {
        let mut joined = self.clone();
        for (service, endpoints) in &other.endpoints {
            let known = joined.endpoints.entry(service.clone()).or_insert_with(|| [].into());
            let same = |a: &Endpoint, b: &Endpoint| {
                (&a.address, &a.version, &a.shard) == (&b.address, &b.version, &b.shard)
            };
            let more = endpoints.iter().filter(|more| !known.iter().any(|known| same(known, more)));
            *known = known.iter().chain(more).cloned().collect();
        }
        for (service, members) in &other.members {
            joined.members.entry(service.clone()).or_default().extend(members.iter().cloned());
        }
        joined
    }
}

/// One instance of a service, with what is said of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Member {
    pub id: String,
    pub endpoint: Endpoint,
    pub status: Status,
    pub node: String,
    pub note: String,
    pub source: Source,
}

/// How a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Passing,
    Warning,
    Critical,
    Maintenance,
}

/// Who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    Consul,
    Registry,
}
