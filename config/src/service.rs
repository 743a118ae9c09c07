//! What a document says of one service, with the defaults filled in.

use std::sync::Arc;
use std::time::Duration;

use crate::access::{self, AccessMode, Rule};
use crate::balancing::{BySubject, FACTOR_MAX, FACTOR_MIN, Kind};
use crate::breaker::BreakerPolicy;
use crate::endpoint::Endpoint;
use crate::fallback::{Fallback, read_chain};
use crate::flag::ServiceFlags;
use crate::forced::{ForcedBreaker, read_forced};
use crate::grammar::Value;
use crate::health::HealthCheckPolicy;
use crate::host;
use crate::name::ServiceName;
use crate::outlier::OutlierDetection;
use crate::rate_limit::RateLimit;
use crate::retry::RetryPolicy;
use crate::sharding::Sharding;
use crate::subject::Inputs;
use crate::tls::UpstreamTls;
use crate::traffic::Traffic;

/// Most endpoints of one service.
pub const ENDPOINTS_MAX: usize = 10_000;
/// Most hosts of one service beside its own names, and of one route.
pub const HOSTS_MAX: usize = 100;

/// One `[services.NAME]` table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePolicy {
    /// Hosts it answers to beside its own names; canonical.
    pub hosts: Vec<String>,
    pub protocol: Protocol,
    pub load_balancer: LoadBalancer,
    /// Where the balancer goes by the subject.
    pub by_subject: Option<BySubject>,
    /// How long an endpoint's share grows from a tenth to its whole weight after it (re)appeared.
    pub slow_start: Duration,
    pub connect_timeout: Duration,
    /// From the end of the request to the head of the answer, retries included.
    pub request_timeout: Duration,
    /// Uploads, bodies, streams, tunnels: how long nothing may move.
    pub idle_timeout: Duration,
    /// Requests in flight, over all workers of a proxy; more are refused at once.
    pub max_concurrent: u32,
    pub rate_limit: Option<RateLimit>,
    pub health_check: Option<HealthCheckPolicy>,
    /// How endpoints are called that speak TLS themselves; without it in the clear.
    pub tls: Option<UpstreamTls>,
    pub retry: RetryPolicy,
    pub outlier_detection: Option<OutlierDetection>,
    pub circuit_breaker: Option<BreakerPolicy>,
    /// What operators say that its breakers do.
    pub forced_breakers: Vec<ForcedBreaker>,
    /// Tried in order when a call brings nothing.
    pub fallback: Vec<Fallback>,
    /// How its requests spread over its versions; without it they are one pool.
    pub traffic: Option<Arc<Traffic>>,
    /// Which of its shards a request goes to; without it they are one pool.
    pub sharding: Option<Arc<Sharding>>,
    /// Who may call it, as far as it says so itself; see [`crate::snapshot::Snapshot::access_of`].
    pub allow: Option<Vec<Rule>>,
    pub access_mode: Option<AccessMode>,
    /// Which feature flags it is told, and for whom they are evaluated; without it none and for the default subject.
    pub flags: Option<Arc<ServiceFlags>>,
    /// Used while membership knows no endpoint of this service.
    pub endpoints: Vec<Endpoint>,
}

/// What is spoken to the endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/2 with prior knowledge; what gRPC needs.
    H2,
    #[default]
    Http1,
}

/// How an endpoint is chosen among equals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LoadBalancer {
    /// The better of two chosen at random, by requests in flight (power of two choices).
    #[default]
    LeastRequest,
    /// By the subject, from a table that is filled in turns; without a subject as [`LoadBalancer::LeastRequest`].
    Maglev,
    /// The better of two chosen at random, by expected latency times requests in flight.
    PeakEwma,
    Random,
    /// By the subject, from a ring; without a subject as [`LoadBalancer::LeastRequest`].
    RingHash,
    RoundRobin,
}

const PROTOCOLS: [(&str, Protocol); 2] = [("http1", Protocol::Http1), ("h2", Protocol::H2)];
const LOAD_BALANCERS: [(&str, LoadBalancer); 6] = [
    ("least_request", LoadBalancer::LeastRequest),
    ("peak_ewma", LoadBalancer::PeakEwma),
    ("round_robin", LoadBalancer::RoundRobin),
    ("random", LoadBalancer::Random),
    ("ring_hash", LoadBalancer::RingHash),
    ("maglev", LoadBalancer::Maglev),
];

impl Protocol {
    /// The word that a document uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::H2 => "h2",
            Self::Http1 => "http1",
        }
    }
}

impl LoadBalancer {
    /// The word that a document uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LeastRequest => "least_request",
            Self::Maglev => "maglev",
            Self::PeakEwma => "peak_ewma",
            Self::Random => "random",
            Self::RingHash => "ring_hash",
            Self::RoundRobin => "round_robin",
        }
    }

    /// The table of those that go by the subject.
    #[must_use]
    pub fn table(self) -> Option<Kind> {
        match self {
            Self::Maglev => Some(Kind::Maglev),
            Self::RingHash => Some(Kind::Ring),
            Self::LeastRequest | Self::PeakEwma | Self::Random | Self::RoundRobin => None,
        }
    }
}

impl Default for ServicePolicy {
    fn default() -> Self {
        Self {
            hosts: Vec::new(),
            protocol: Protocol::default(),
            load_balancer: LoadBalancer::default(),
            by_subject: None,
            slow_start: Duration::ZERO,
            connect_timeout: Duration::from_secs(1),
            request_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_mins(5),
            max_concurrent: 1024,
            rate_limit: None,
            health_check: None,
            tls: None,
            retry: RetryPolicy::default(),
            outlier_detection: None,
            circuit_breaker: None,
            forced_breakers: Vec::new(),
            fallback: Vec::new(),
            traffic: None,
            sharding: None,
            allow: None,
            access_mode: None,
            flags: None,
            endpoints: Vec::new(),
        }
    }
}

impl ServicePolicy {
    pub(crate) fn read(value: &Value<'_>, name: &ServiceName) -> Option<Self> {
        let mut table = value.table()?;
        let default = Self::default();
        let hosts = table.optional("hosts").and_then(|v| read_hosts(&v)).unwrap_or_default();
        let protocol = table.optional("protocol").and_then(|v| read_protocol(&v)).unwrap_or_default();
        let load_balancer = table.optional("load_balancer").map(|v| v.choice(&LOAD_BALANCERS));
        let factor = table.optional("hash_balance_factor").and_then(|v| read_factor(&v, load_balancer));
        let load_balancer = load_balancer.flatten().unwrap_or_default();
        let circuit_breaker = table.optional("circuit_breaker").and_then(|v| BreakerPolicy::read(&v));
        let forced =
            table.optional("forced_breakers").and_then(|v| read_forced(&v, circuit_breaker.as_ref()));
        let mut duration = |key, default, least| {
            let most = Duration::from_hours(24);
            table.optional(key).and_then(|v| v.duration(least, most)).unwrap_or(default)
        };
        let some = Duration::from_millis(1);
        let policy = Self {
            hosts,
            protocol,
            load_balancer,
            by_subject: None,
            slow_start: duration("slow_start", default.slow_start, Duration::ZERO),
            connect_timeout: duration("connect_timeout", default.connect_timeout, some),
            request_timeout: duration("request_timeout", default.request_timeout, some),
            idle_timeout: duration("idle_timeout", default.idle_timeout, some),
            max_concurrent: table
                .optional("max_concurrent")
                .and_then(|v| v.integer(1, 10_000_000))
                .unwrap_or(default.max_concurrent),
            rate_limit: table.optional("rate_limit").and_then(|v| RateLimit::read(&v)),
            health_check: table.optional("health_check").and_then(|v| HealthCheckPolicy::read(&v)),
            tls: table.optional("tls").and_then(|v| UpstreamTls::read(&v)),
            retry: table.optional("retry").and_then(|v| RetryPolicy::read(&v)).unwrap_or_default(),
            outlier_detection: table.optional("outlier_detection").and_then(|v| OutlierDetection::read(&v)),
            circuit_breaker,
            forced_breakers: forced.unwrap_or_default(),
            fallback: table.optional("fallback").and_then(|v| read_chain(&v)).unwrap_or_default(),
            traffic: None,
            sharding: None,
            allow: None,
            access_mode: table.optional("access_mode").and_then(|v| access::read_mode(&v)),
            flags: table.optional("flags").and_then(|v| ServiceFlags::read(&v)).map(Arc::new),
            endpoints: table.optional("endpoints").and_then(|v| read_endpoints(&v)).unwrap_or_default(),
        };
        let (spread, rule) = (table.optional("traffic"), table.optional("sharding"));
        // What is no list allows nobody: silence would allow everybody.
        let allow = table.optional("allow").map(|v| access::read_rules(&v).unwrap_or_default());
        table.finish();
        let traffic = spread.as_ref().and_then(|v| Traffic::read(v, name));
        if let (Some(value), Some(traffic)) = (&spread, &traffic) {
            check_versions(value, traffic, &policy.endpoints);
        }
        let subject = traffic.as_ref().map(|traffic| &traffic.subject);
        let sharding = rule.as_ref().and_then(|v| Sharding::read(v, subject));
        let by_subject = load_balancer.table().map(|kind| {
            let inputs = subject.cloned().unwrap_or_default();
            BySubject { kind, inputs, factor }
        });
        Some(Self {
            by_subject,
            traffic: traffic.map(Arc::new),
            sharding: sharding.map(Arc::new),
            allow,
            ..policy
        })
    }

    /// Where a request says who is asking, where that counts for its version or its endpoint.
    #[must_use]
    pub fn subject(&self) -> Option<&Inputs> {
        let of_traffic = self.traffic.as_deref().map(|traffic| &traffic.subject);
        of_traffic.or_else(|| self.by_subject.as_ref().map(|by| &by.inputs))
    }
}

/// The hosts of a service or a route.
pub(crate) fn read_hosts(value: &Value<'_>) -> Option<Vec<String>> {
    let items = value.items()?;
    if items.len() > HOSTS_MAX {
        value.fault(format!("{} hosts", items.len()), format!("at most {HOSTS_MAX}"));
        return None;
    }
    let mut hosts: Vec<String> = Vec::with_capacity(items.len());
    for item in &items {
        let Some(host) = read_host(item) else { continue };
        if hosts.contains(&host) {
            item.fault(format!("the host `{host}` is listed twice"), "");
        }
        hosts.push(host);
    }
    Some(hosts)
}

fn read_host(value: &Value<'_>) -> Option<String> {
    let text = value.text()?;
    let host = host::canonical(text);
    if host.is_none() {
        value.fault("not a host name", "letters, digits, '-', '_' and '.', e.g. \"shop.example.com\"");
    }
    host.map(|host| host.into_owned())
}

fn read_protocol(value: &Value<'_>) -> Option<Protocol> {
    if matches!(value.is_text().then(|| value.text()), Some(Some("tcp"))) {
        value.fault(
            "\"tcp\" is not routed: Gilmok decides per HTTP request",
            "let plain TCP services be called at their own address; \"http1\" or \"h2\" here",
        );
        return None;
    }
    value.choice(&PROTOCOLS)
}

/// `balancer` is absent where none was named, and has no value where its name is faulty.
#[expect(clippy::option_option, reason = "absent, faulty and sound are three")]
fn read_factor(value: &Value<'_>, balancer: Option<Option<LoadBalancer>>) -> Option<u32> {
    let balancer = balancer.unwrap_or(Some(LoadBalancer::default()))?;
    if balancer.table().is_none() {
        value.fault(
            format!("`hash_balance_factor` means nothing to `{}`", balancer.as_str()),
            "it belongs to \"ring_hash\" and \"maglev\"",
        );
        return None;
    }
    value.integer(FACTOR_MIN, FACTOR_MAX)
}

/// A version with a share must be one that an endpoint has, as far as the document lists endpoints.
fn check_versions(value: &Value<'_>, traffic: &Traffic, endpoints: &[Endpoint]) {
    if endpoints.is_empty() {
        return;
    }
    let Some(weights) = value.table().and_then(|mut table| table.optional("weights")) else { return };
    for (key, weight) in weights.entries().unwrap_or_default() {
        let has_share =
            traffic.weights.iter().any(|(version, share)| version.as_str() == key && share.get() > 0);
        if has_share && endpoints.iter().all(|endpoint| endpoint.version.as_str() != key) {
            weight.fault(
                format!("no endpoint has the version `{key}`"),
                "a version that an endpoint has, or 0",
            );
        }
    }
}

fn read_endpoints(value: &Value<'_>) -> Option<Vec<Endpoint>> {
    let items = value.items()?;
    if items.len() > ENDPOINTS_MAX {
        value.fault(format!("{} endpoints", items.len()), format!("at most {ENDPOINTS_MAX}"));
        return None;
    }
    let mut endpoints: Vec<Endpoint> = Vec::with_capacity(items.len());
    let mut seen = std::collections::HashSet::new();
    for item in &items {
        let Some(endpoint) = Endpoint::read(item) else { continue };
        if !seen.insert((endpoint.address.clone(), endpoint.version.clone(), endpoint.shard.clone())) {
            item.fault(
                format!("{} is listed twice for the same version and shard", endpoint.address),
                "give it a weight instead",
            );
        }
        endpoints.push(endpoint);
    }
    Some(endpoints)
}
