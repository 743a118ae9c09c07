//! Who is alive: what the providers say, in one shape.

use std::collections::BTreeMap;

use gilmok_config::endpoint::Endpoint;
use gilmok_config::name::ServiceName;
use gilmok_config::snapshot::Membership;

pub mod consul;

/// Who is alive, as one provider sees it. Replaced as a whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// Only what may receive traffic.
    pub endpoints: Membership,
    /// Everything that is known, for people.
    pub members: BTreeMap<ServiceName, Vec<Member>>,
}

/// One instance of a service, with what is said of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    pub id: String,
    pub endpoint: Endpoint,
    pub status: Status,
    pub node: String,
    pub note: String,
    pub source: Source,
}

/// How a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Passing,
    Warning,
    Critical,
    Maintenance,
}

/// Who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Consul,
}
