//! The limits of one proxy process, each with its default and the reason for it.

use std::time::Duration;

use gilmok_config::grammar::{Table, Value};

/// `[limits]`: what one process takes on before it says no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections from downstream, over all listeners and workers. An idle one costs about 10 KiB;
    /// the default of 16384 keeps that below 200 MiB and leaves as many descriptors for upstreams
    /// under the usual limit of 65536. More wait in the kernel's queue until one ends.
    pub connections: u32,
    /// Connections from one IP address. No limit by default: a sidecar's callers share one address.
    /// Worth setting for an edge listener. Never applied to loopback.
    pub connections_per_ip: Option<u32>,
    /// Head of a request, in bytes; more is 431. The default of 64 KiB takes what browsers and
    /// common gateways send, and bounds what one connection may make us hold.
    pub header_bytes: usize,
    /// Path and query of a request, in bytes; more is 414. 16 KiB is what HAProxy takes at most by default.
    pub uri_bytes: usize,
    /// Body of a request, in bytes; more is 413. No limit by default: bodies stream and cost no memory.
    pub body_bytes: Option<u64>,
    /// Requests in flight, over all services; each worker takes its share and refuses more with 503. The
    /// default of 16384 lies far above `max_concurrent` of one service, so it speaks up only when many pile up.
    pub requests_in_flight: u32,
    /// Bytes of all request bodies that are kept, up to 64 KiB of each, because they may have to be sent once more;
    /// each worker has its share. A request that finds no room is sent, and not kept. The default of 32 MiB holds
    /// five hundred bodies of the longest kind.
    pub buffered_bytes: usize,
    /// Streams that one HTTP/2 connection may have open.
    pub h2_streams: u32,
    /// TLS handshakes with callers that are under way at once, over all workers; each takes its share. Where there are
    /// more, the one that has lasted longest is ended for the new one: it is the one that does not go on. An unfinished
    /// one costs about 20 KiB, so that the default of 1024 takes 20 MiB.
    pub handshakes: u32,
    /// How long a TLS handshake may take. Five seconds are enough for slow links with a lost packet or two.
    pub handshake_timeout: Duration,
    /// From the first byte of a connection, or the end of the request before, to the end of a
    /// request's head. Ten seconds serve slow links and end those who drip bytes.
    pub header_timeout: Duration,
    /// How long an unused connection to an endpoint is kept. Four seconds stay below the five
    /// after which some servers (Node.js) close it under our feet.
    pub upstream_idle_timeout: Duration,
    /// Unused connections kept per endpoint and worker; more are closed.
    pub upstream_idle_connections: usize,
    /// Bytes of all last good answers that may be given again as a fallback; the least recently used go first.
    /// Used only for services with `last_good`: the default of 32 MiB holds five hundred answers of 64 KiB.
    pub last_good_bytes: usize,
    /// After this long a connection to an endpoint takes no new request, so that load finds new
    /// machines behind one address.
    pub upstream_max_age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            connections_per_ip: None,
            header_bytes: 64 << 10,
            uri_bytes: 16 << 10,
            body_bytes: None,
            requests_in_flight: 16_384,
            buffered_bytes: 32 << 20,
            h2_streams: 200,
            handshakes: 1_024,
            handshake_timeout: Duration::from_secs(5),
            header_timeout: Duration::from_secs(10),
            upstream_idle_timeout: Duration::from_secs(4),
            upstream_idle_connections: 128,
            last_good_bytes: 32 << 20,
            upstream_max_age: Duration::from_mins(10),
        }
    }
}

impl Limits {
    pub(super) fn read(value: &Value<'_>) -> Self {
        let default = Self::default();
        let Some(mut table) = value.table() else { return default };
        let connections = count(&mut table, "connections", default.connections);
        let connections_per_ip = table
            .optional("connections_per_ip")
            .filter(|v| !is_none(v))
            .and_then(|v| v.integer(1, 10_000_000));
        let body_bytes =
            table.optional("body_bytes").filter(|v| !is_none(v)).and_then(|v| v.size(1, u64::MAX));
        let requests_in_flight = count(&mut table, "requests_in_flight", default.requests_in_flight);
        let handshakes = count(&mut table, "handshakes", default.handshakes);
        let h2_streams =
            table.optional("h2_streams").and_then(|v| v.integer(1, 10_000)).unwrap_or(default.h2_streams);
        let mut size = |key, default, least, most| {
            let bytes = table.optional(key).and_then(|v| v.size(least, most));
            bytes.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(default)
        };
        // hyper reads a head into one buffer that must hold at least 8 KiB.
        let header_bytes = size("header_bytes", default.header_bytes, 8 << 10, 1 << 20);
        let uri_bytes = size("uri_bytes", default.uri_bytes, 256, 65_534);
        let buffered_bytes = size("buffered_bytes", default.buffered_bytes, 0, 1 << 40);
        let last_good_bytes = size("last_good_bytes", default.last_good_bytes, 0, 1 << 40);
        let upstream_idle_connections = table
            .optional("upstream_idle_connections")
            .and_then(|v| v.integer(0_u32, 65_535))
            .map_or(default.upstream_idle_connections, |count| count as usize);
        let mut duration = |key, default| {
            let (least, most) = (Duration::from_millis(10), Duration::from_hours(24));
            table.optional(key).and_then(|v| v.duration(least, most)).unwrap_or(default)
        };
        let limits = Self {
            connections,
            connections_per_ip,
            header_bytes,
            uri_bytes,
            body_bytes,
            requests_in_flight,
            buffered_bytes,
            h2_streams,
            handshakes,
            handshake_timeout: duration("handshake_timeout", default.handshake_timeout),
            header_timeout: duration("header_timeout", default.header_timeout),
            upstream_idle_timeout: duration("upstream_idle_timeout", default.upstream_idle_timeout),
            upstream_idle_connections,
            last_good_bytes,
            upstream_max_age: duration("upstream_max_age", default.upstream_max_age),
        };
        table.finish();
        limits
    }
}

fn count(table: &mut Table<'_>, key: &'static str, default: u32) -> u32 {
    table.optional(key).and_then(|v| v.integer(1, 10_000_000)).unwrap_or(default)
}

/// Whether the operator wrote "none" where a limit may be switched off.
fn is_none(value: &Value<'_>) -> bool {
    value.is_text() && value.text() == Some("none")
}
