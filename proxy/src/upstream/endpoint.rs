//! One endpoint as it lives now: in flight, healthy, expected latency. Shared by all workers, kept over reloads.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

use gilmok_config::endpoint::Endpoint;
use gilmok_config::name::Name;
use http::HeaderValue;

use super::ejection::Ejection;
use super::version::VersionState;
use crate::metrics::TargetSeries;
use crate::tls::Dial;

/// Where a connection goes, names resolved.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Peer {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// What active checks say of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Health {
    /// Not checked, or not yet.
    Unknown = 0,
    Healthy = 1,
    Unhealthy = 2,
}

/// The live state of one endpoint.
///
/// Its atomics are shared by the workers and read relaxed: each is a number of its own, none guards other memory.
/// Aligned to two cache lines, so that busy neighbours do not slow each other.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct EndpointState {
    /// Unique in this process; worker-local pools are keyed by it.
    pub(crate) id: u64,
    pub(crate) endpoint: Endpoint,
    pub(crate) peer: Peer,
    /// How it is called over TLS; `None` is in the clear.
    pub(crate) dial: Option<Arc<Dial>>,
    /// Its version and shard as they are told to the application, made once; absent where it has none.
    pub(crate) version_header: Option<HeaderValue>,
    pub(crate) shard_header: Option<HeaderValue>,
    pub(crate) version: Arc<VersionState>,
    pub(crate) series: Arc<TargetSeries>,
    /// Requests in flight, over all workers.
    pub(crate) in_flight: AtomicU32,
    /// Exponentially weighted answer time in nanoseconds; see `balance.rs`.
    pub(crate) ewma_ns: AtomicU64,
    /// When `ewma_ns` was written, in milliseconds of [`crate::clock`].
    pub(crate) ewma_at_ms: AtomicU64,
    /// When it (re)appeared, in milliseconds of [`crate::clock`]: where slow start begins.
    pub(crate) since_ms: AtomicU64,
    /// Until when connects are not tried while there are others, in milliseconds of [`crate::clock`].
    pub(crate) shunned_until_ms: AtomicU64,
    pub(crate) ejection: Ejection,
    health: AtomicU8,
}

impl EndpointState {
    /// The id of what is outside the mesh: its connections serve one request.
    pub(crate) const OUTSIDE: u64 = 0;

    pub(crate) fn new(
        id: u64,
        endpoint: Endpoint,
        peer: Peer,
        version: Arc<VersionState>,
        series: Arc<TargetSeries>,
        now_ms: u64,
    ) -> Self {
        let told = |name: &Name| HeaderValue::from_str(name.as_str()).ok().filter(|value| !value.is_empty());
        Self {
            id,
            version_header: told(&endpoint.version),
            shard_header: told(&endpoint.shard),
            endpoint,
            peer,
            dial: None,
            version,
            series,
            in_flight: AtomicU32::new(0),
            ewma_ns: AtomicU64::new(0),
            ewma_at_ms: AtomicU64::new(now_ms),
            since_ms: AtomicU64::new(now_ms),
            shunned_until_ms: AtomicU64::new(0),
            ejection: Ejection::default(),
            health: AtomicU8::new(Health::Unknown as u8),
        }
    }

    pub(crate) fn health(&self) -> Health {
        match self.health.load(Relaxed) {
            1 => Health::Healthy,
            2 => Health::Unhealthy,
            _ => Health::Unknown,
        }
    }

    /// Notes what active checks say. The owner calls [`super::service::Upstream::refresh`] when it changed.
    pub(crate) fn note_health(&self, health: Health) {
        self.health.store(health as u8, Relaxed);
    }
}

impl Peer {
    pub(crate) fn ip(&self) -> Option<std::net::IpAddr> {
        match self {
            Self::Tcp(address) => Some(address.ip()),
            Self::Unix(_) => None,
        }
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}
