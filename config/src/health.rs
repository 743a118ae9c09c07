//! The policy of active health checks: what is asked, how often, and what counts.

use std::time::Duration;

use crate::grammar::{Table, Value};

/// What is asked of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Probe {
    /// `grpc.health.v1.Health/Check` for this service; empty asks for the server as a whole.
    Grpc(String),
    /// GET of this path; 2xx and 3xx are healthy.
    Http(String),
    /// A connection is opened and closed.
    Tcp,
}

/// `[services.s.health_check]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HealthCheckPolicy {
    pub probe: Probe,
    /// From one check of an endpoint to the next, with a jitter of ± 10 %.
    pub interval: Duration,
    pub timeout: Duration,
    /// Passes in a row that bring an endpoint back.
    pub healthy_threshold: u32,
    /// Failures in a row that take an endpoint out, once a check has passed anywhere.
    pub unhealthy_threshold: u32,
}

/// Most checks in a row that a threshold may ask for.
const THRESHOLD_MAX: u32 = 100;

impl HealthCheckPolicy {
    /// Reads a `health_check` table; the proxy's settings use the same one for the apps beside it.
    #[must_use]
    pub fn read(value: &Value<'_>) -> Option<Self> {
        let mut table = value.table()?;
        let probe = Self::read_probe(&mut table);
        let mut duration = |key, default: u64, least: u64| {
            let (least, most) = (Duration::from_millis(least), Duration::from_hours(1));
            table
                .optional(key)
                .and_then(|v| v.duration(least, most))
                .unwrap_or(Duration::from_millis(default))
        };
        let interval = duration("interval", 5_000, 10);
        let timeout = duration("timeout", 1_000, 1);
        let mut threshold =
            |key, default| table.optional(key).and_then(|v| v.integer(1, THRESHOLD_MAX)).unwrap_or(default);
        let healthy_threshold = threshold("healthy_threshold", 1);
        let unhealthy_threshold = threshold("unhealthy_threshold", 3);
        table.finish();
        Some(Self { probe: probe?, interval, timeout, healthy_threshold, unhealthy_threshold })
    }

    fn read_probe(table: &mut Table<'_>) -> Option<Probe> {
        let path = table.optional("path");
        let tcp = table.optional("tcp");
        let grpc = table.optional("grpc");
        match (path, tcp, grpc) {
            (Some(path), None, None) => {
                let text = path.text()?;
                if text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic()) {
                    return Some(Probe::Http(text.to_owned()));
                }
                path.fault("not a path", "a path begins with `/` and has no spaces: \"/healthz\"");
                None
            }
            (None, Some(tcp), None) => match tcp.boolean()? {
                true => Some(Probe::Tcp),
                false => {
                    tcp.fault(
                        "`tcp = false` asks nothing",
                        "leave the health_check table out to switch it off",
                    );
                    None
                }
            },
            (None, None, Some(grpc)) => Some(Probe::Grpc(grpc.text()?.to_owned())),
            _ => {
                table.value().fault(
                    "exactly one of `path`, `tcp` and `grpc` says what is asked",
                    "path = \"/healthz\", tcp = true, or grpc = \"package.Service\"",
                );
                None
            }
        }
    }
}
