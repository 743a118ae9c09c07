//! An endpoint: one address that answers for a service, with its version, shard, role, zone, weight and priority.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::address::Address;
use crate::grammar::Value;
use crate::name::Name;

/// Largest weight of an endpoint; Consul's own limit is the same.
pub const WEIGHT_MAX: u32 = 65_535;
/// Largest priority, i.e. the last resort.
pub const PRIORITY_MAX: u32 = 127;

/// One address that answers for a service. The same address may stand for several versions or shards.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    pub address: Address,
    #[serde(default, skip_serializing_if = "Name::is_empty")]
    pub version: Name,
    #[serde(default, skip_serializing_if = "Name::is_empty")]
    pub shard: Name,
    #[serde(default, skip_serializing_if = "Role::is_primary")]
    pub role: Role,
    #[serde(default, skip_serializing_if = "Name::is_empty")]
    pub zone: Name,
    /// 0 to [`WEIGHT_MAX`], relative to the others; 0 takes no new requests.
    #[serde(default = "one", skip_serializing_if = "is_one", deserialize_with = "weight")]
    pub weight: u32,
    /// 0 to [`PRIORITY_MAX`]; 1 is used when no healthy endpoint of 0 is left, and so on.
    #[serde(default, skip_serializing_if = "is_zero", deserialize_with = "priority")]
    pub priority: u32,
    /// True for the address of a sidecar's inbound listener: what answers there with
    /// `Proxy-Status: gilmok; error=…` is the sidecar, not the application.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inbound: bool,
    /// True where that sidecar speaks mutual TLS, and so where callers with an identity do.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mtls: bool,
}

/// Who may be written to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    #[default]
    Primary,
    Replica,
}

impl Role {
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "primary" => Some(Self::Primary),
            "replica" => Some(Self::Replica),
            _ => None,
        }
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_primary(&self) -> bool {
        *self == Self::Primary
    }
}

impl Endpoint {
    /// An endpoint that says nothing but its address.
    #[must_use]
    pub fn at(address: Address) -> Self {
        Self {
            address,
            version: Name::default(),
            shard: Name::default(),
            role: Role::Primary,
            zone: Name::default(),
            weight: 1,
            priority: 0,
            inbound: false,
            mtls: false,
        }
    }

    pub(crate) fn read(value: &Value<'_>) -> Option<Self> {
        let mut table = value.table()?;
        let address = table.required("address").and_then(|v| v.parsed::<Address>());
        let mut name = |key| table.optional(key).and_then(|v| v.named(Name::parse)).unwrap_or_default();
        let (version, shard, zone) = (name("version"), name("shard"), name("zone"));
        let role = table
            .optional("role")
            .and_then(|v| v.choice(&[("primary", Role::Primary), ("replica", Role::Replica)]));
        let weight = table.optional("weight").and_then(|v| v.integer(0, WEIGHT_MAX)).unwrap_or(1);
        let priority = table.optional("priority").and_then(|v| v.integer(0, PRIORITY_MAX)).unwrap_or(0);
        let inbound = table.optional("inbound").and_then(|v| v.boolean()).unwrap_or(false);
        let mtls = table.optional("mtls");
        if let (Some(value), false) = (&mtls, inbound) {
            value.fault("only a sidecar speaks mutual TLS", "inbound = true beside it");
        }
        let mtls = mtls.and_then(|v| v.boolean()).unwrap_or(false);
        table.finish();
        let role = role.unwrap_or_default();
        Some(Self { address: address?, version, shard, role, zone, weight, priority, inbound, mtls })
    }
}

fn weight<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    bounded(deserializer, "weight", WEIGHT_MAX)
}

fn priority<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    bounded(deserializer, "priority", PRIORITY_MAX)
}

/// What comes over the wire keeps to the same ranges as what stands in a document: sums are made of it.
fn bounded<'de, D: Deserializer<'de>>(deserializer: D, what: &str, most: u32) -> Result<u32, D::Error> {
    let value = u32::deserialize(deserializer)?;
    if value > most {
        return Err(D::Error::custom(format_args!("{value} is no {what}, which is 0 to {most}")));
    }
    Ok(value)
}

fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(weight: &u32) -> bool {
    *weight == 1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(priority: &u32) -> bool {
    *priority == 0
}
