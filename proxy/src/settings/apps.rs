//! The apps beside a proxy, and where they are registered.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gilmok_config::address::Address;
use gilmok_config::endpoint::Role;
use gilmok_config::grammar::Value;
use gilmok_config::health::HealthCheckPolicy;
use gilmok_config::name::{Name, ServiceName};
use gilmok_config::wire::APPS_MAX;

use super::server::Server;

/// One `[[apps]]` table: an app that callers reach through this proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct App {
    pub service: ServiceName,
    pub version: Name,
    pub shard: Name,
    pub role: Role,
    /// Where the app itself listens.
    pub address: Address,
    /// Where callers reach it through this proxy. Port 0 takes any free one.
    pub inbound: SocketAddr,
    /// What membership is told instead of the address that `inbound` was bound to.
    pub advertise: Option<Address>,
    /// Without one the app counts as healthy while this process is ready.
    pub health_check: Option<HealthCheckPolicy>,
}

/// Where the apps are registered, so that callers find them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Registration {
    /// At the Consul agent beside this proxy.
    Consul {
        agent: Server,
        token_file: Option<PathBuf>,
        ttl: Duration,
    },
    /// At every control plane of `[source]`.
    ControlPlanes {
        ttl: Duration,
    },
    Nowhere,
}

/// How long a registration is believed without another word.
const TTL_DEFAULT: Duration = Duration::from_secs(10);

impl App {
    pub(super) fn read_all(value: &Value<'_>) -> Vec<Self> {
        let Some(items) = value.items() else { return Vec::new() };
        if items.len() > APPS_MAX {
            value.fault(format!("{} apps", items.len()), format!("at most {APPS_MAX}"));
            return Vec::new();
        }
        items.iter().filter_map(Self::read).collect()
    }

    fn read(value: &Value<'_>) -> Option<Self> {
        let mut table = value.table()?;
        let service = table.required("service").and_then(|v| v.named(ServiceName::parse));
        let mut name = |key| table.optional(key).and_then(|v| v.named(Name::parse)).unwrap_or_default();
        let (version, shard) = (name("version"), name("shard"));
        let role = table
            .optional("role")
            .and_then(|v| v.choice(&[("primary", Role::Primary), ("replica", Role::Replica)]))
            .unwrap_or_default();
        let address = table.required("address").and_then(|v| v.parsed::<Address>());
        let inbound = table.required("inbound").and_then(|v| super::read_socket(&v));
        let advertise = table.optional("advertise").and_then(|v| v.parsed::<Address>());
        let health_check = table.optional("health_check").and_then(|v| HealthCheckPolicy::read(&v));
        table.finish();
        Some(Self {
            service: service?,
            version,
            shard,
            role,
            address: address?,
            inbound: inbound?,
            advertise,
            health_check,
        })
    }
}

impl Registration {
    /// Reads `[registration]`; without it `absent` holds.
    pub(super) fn read(value: Option<&Value<'_>>, has_control_planes: bool, base: &Path) -> Self {
        let absent = |ttl| if has_control_planes { Self::ControlPlanes { ttl } } else { Self::Nowhere };
        let Some(mut table) = value.and_then(Value::table) else { return absent(TTL_DEFAULT) };
        let enabled = table.optional("enabled").and_then(|v| v.boolean()).unwrap_or(true);
        let consul = table.optional("consul");
        let agent = consul.as_ref().and_then(Value::parsed::<Server>);
        if let (Some(value), Some(Server { tls: Some(_), .. })) = (&consul, &agent) {
            value.fault(
                "an agent is called in the clear",
                "\"http://host:port\" or \"unix:///path\", on this machine",
            );
        }
        let token_file = table.optional("token_file").and_then(|v| super::read_path(&v, base));
        let ttl = table
            .optional("ttl")
            .and_then(|v| v.duration(Duration::from_secs(1), Duration::from_hours(1)))
            .unwrap_or(TTL_DEFAULT);
        if enabled && consul.is_none() && !has_control_planes {
            table.value().fault(
                "there is nowhere to register at: no `consul`, and [source] has no control_plane",
                "consul = \"http://127.0.0.1:8500\", or enabled = false",
            );
        }
        table.finish();
        match agent {
            _ if !enabled => Self::Nowhere,
            Some(agent) => Self::Consul { agent, token_file, ttl },
            None => absent(ttl),
        }
    }
}
