//! The brain: one pure function from a snapshot and a request's facts to a decision.
//!
//! The proxy routes by it, the control plane explains by it and the CLI plans by it.

use http::{HeaderMap, Method};

use crate::snapshot::Snapshot;

/// What is known of a request before its body is read.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'r> {
    pub listener: Listener,
    /// Canonical, see [`crate::host::canonical`].
    pub host: &'r str,
    /// As it was sent, without the query.
    pub path: &'r str,
    pub method: &'r Method,
    pub headers: &'r HeaderMap,
}

/// Where a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Listener {
    /// From clients outside the mesh: serves only hosts that routes name.
    Edge,
    /// From callers to the app beside the proxy.
    Inbound,
    /// From the app beside the proxy.
    Outbound,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Place in [`Snapshot::services`].
    pub service: usize,
    /// Place in [`Snapshot::routes`], where a route decided.
    pub route: Option<usize>,
}

/// Why a request goes nowhere: a decision, not a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No service and no route answers to this host and path.
    NoDestination,
}

impl Listener {
    /// The word of the metric label `listener`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// Decides where a request goes.
///
/// # Errors
/// The refusal, when it goes nowhere.
pub fn decide(snapshot: &Snapshot, facts: &Facts<'_>) -> Result<Decision, Refusal> {
    let at_host = snapshot.at_host(facts.host);
    if facts.listener == Listener::Edge && !at_host.is_routed() {
        return Err(Refusal::NoDestination);
    }
    for index in at_host.routes() {
        let route = &snapshot.routes()[index];
        if route.matches(facts.method, facts.path, facts.headers)
            && let Some(service) = snapshot.service_index(route.service.as_str())
        {
            return Ok(Decision { service, route: Some(index) });
        }
    }
    match at_host.service {
        // An edge listener shows outsiders what routes say and nothing else.
        Some(service) if facts.listener != Listener::Edge => Ok(Decision { service, route: None }),
        _ => Err(Refusal::NoDestination),
    }
}
