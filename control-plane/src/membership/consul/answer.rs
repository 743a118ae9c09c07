//! What Consul answers: its headers, and the JSON of the few endpoints that are read.
//!
//! Every field tolerates `null` and absence (Consul sends both), unknown fields are ignored, and what cannot be
//! read is told with its path.

use std::collections::BTreeMap;
use std::time::Duration;

use http::HeaderMap;
use http::header::AGE;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use super::error::Error;

/// An answer with what its headers say about it.
#[derive(Clone, Debug)]
pub struct Answer<T> {
    pub meta: Meta,
    pub value: T,
}

/// What the headers of an answer say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// `X-Consul-Index`: what the next blocking query hands back. Absent where a path cannot block.
    pub index: Option<u64>,
    /// `X-Consul-KnownLeader`: whether the server that answered knows who leads. True where nothing is said.
    pub known_leader: bool,
    /// `X-Consul-LastContact`: how long ago that server heard of the leader.
    pub last_contact: Duration,
    /// `Age` of an answer from the agent's cache: more than 0 says that the agent has lost its servers.
    pub age: Duration,
    /// `X-Consul-Default-ACL-Policy`, from Consul 1.9 on: whether what no rule names is denied.
    pub default_deny: Option<bool>,
    /// `X-Consul-Results-Filtered-By-ACLs`, in newer versions: whether the token hid something.
    pub filtered: bool,
}

impl Meta {
    pub(super) fn read(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
        let number = |name: &str| text(name).and_then(|text| text.parse::<u64>().ok());
        Self {
            index: number("x-consul-index"),
            known_leader: text("x-consul-knownleader") != Some("false"),
            last_contact: Duration::from_millis(number("x-consul-lastcontact").unwrap_or(0)),
            age: Duration::from_secs(number(AGE.as_str()).unwrap_or(0)),
            default_deny: text("x-consul-default-acl-policy").map(|policy| policy == "deny"),
            filtered: text("x-consul-results-filtered-by-acls") == Some("true"),
        }
    }
}

/// Reads a body; `null` as a whole is empty.
pub(super) fn decode<T: DeserializeOwned + Default>(body: &[u8]) -> Result<T, Error> {
    let told = |path: String, error: &serde_json::Error| Error::Decode { path, reason: error.to_string() };
    let mut json = serde_json::Deserializer::from_slice(body);
    let value: Option<T> = serde_path_to_error::deserialize(&mut json)
        .map_err(|error| told(error.path().to_string(), error.inner()))?;
    json.end().map_err(|error| told(".".to_owned(), &error))?;
    Ok(value.unwrap_or_default())
}

fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(json: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(json)?.unwrap_or_default())
}

/// One element of `/v1/health/service/{name}`: a service instance, the node it is on, the checks of both.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ServiceEntry {
    #[serde(deserialize_with = "nullable")]
    pub node: Node,
    #[serde(deserialize_with = "nullable")]
    pub service: Service,
    #[serde(deserialize_with = "nullable")]
    pub checks: Vec<Check>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Node {
    #[serde(deserialize_with = "nullable")]
    pub node: String,
    #[serde(deserialize_with = "nullable")]
    pub address: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Service {
    /// Unique on its node only.
    #[serde(rename = "ID", deserialize_with = "nullable")]
    pub id: String,
    /// Empty where the node's address is meant.
    #[serde(deserialize_with = "nullable")]
    pub address: String,
    #[serde(deserialize_with = "nullable")]
    pub port: i64,
    #[serde(deserialize_with = "nullable")]
    pub tags: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub meta: BTreeMap<String, String>,
    pub weights: Option<Weights>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Weights {
    pub passing: i64,
    pub warning: i64,
}

impl Default for Weights {
    fn default() -> Self {
        Self { passing: 1, warning: 1 }
    }
}

/// A check of an instance, or, without a `service_id`, of its node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Check {
    #[serde(rename = "CheckID", deserialize_with = "nullable")]
    pub check_id: String,
    #[serde(deserialize_with = "nullable")]
    pub status: String,
    /// For maintenance: the reason that the operator gave.
    #[serde(deserialize_with = "nullable")]
    pub notes: String,
}

/// What is read of `/v1/agent/self`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct AgentSelf {
    #[serde(deserialize_with = "nullable")]
    pub config: AgentConfig,
    #[serde(deserialize_with = "nullable")]
    pub debug_config: AgentDebugConfig,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct AgentConfig {
    #[serde(deserialize_with = "nullable")]
    pub node_name: String,
    #[serde(deserialize_with = "nullable")]
    pub version: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct AgentDebugConfig {
    #[serde(rename = "ACLsEnabled")]
    pub acls_enabled: Option<bool>,
    #[serde(rename = "ACLDefaultPolicy", deserialize_with = "nullable")]
    pub acl_default_policy: String,
}

impl AgentSelf {
    /// Whether what no rule names is denied; nothing when the agent does not say.
    #[must_use]
    pub fn default_deny(&self) -> Option<bool> {
        let enabled = self.debug_config.acls_enabled?;
        Some(enabled && self.debug_config.acl_default_policy != "allow")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_and_absent_are_the_same_as_empty() {
        let body = br#"[{"Node":null,"Service":{"ID":"a","Tags":null,"Meta":null,"Weights":null},"Checks":null},{}]"#;
        let entries: Vec<ServiceEntry> = decode(body).unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].service.id, "a");
        assert!(entries[0].service.weights.is_none() && entries[0].checks.is_empty());
        assert!(decode::<Vec<ServiceEntry>>(b"null").unwrap().is_empty());
    }

    #[test]
    fn unknown_fields_are_ignored_whatever_they_hold() {
        let body = br#"[{"Service":{"ID":"a","Port":1,"Proxy":{"LocalServicePort":9001}},
            "Checks":[{"CheckID":"c","Status":"passing","Definition":{"Interval":"30s"}}]}]"#;
        let entries: Vec<ServiceEntry> = decode(body).unwrap();
        assert_eq!(entries[0].checks[0].status, "passing");
    }

    #[test]
    fn what_cannot_be_read_is_told_with_its_path() {
        let path = |body: &[u8]| match decode::<Vec<ServiceEntry>>(body) {
            Err(Error::Decode { path, .. }) => path,
            other => panic!("{other:?}"),
        };
        assert_eq!(path(br#"[{"Service":{"Port":"80"}}]"#), "[0].Service.Port");
        assert_eq!(path(b"[] []"), ".");
        assert!(matches!(decode::<Vec<ServiceEntry>>(b"[{"), Err(Error::Decode { .. })));
    }

    #[test]
    fn headers_are_read_and_their_absence_is_harmless() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-consul-index", "19"),
            ("x-consul-knownleader", "false"),
            ("x-consul-lastcontact", "250"),
            ("age", "3"),
            ("x-consul-default-acl-policy", "deny"),
            ("x-consul-results-filtered-by-acls", "true"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        let expected = Meta {
            index: Some(19),
            known_leader: false,
            last_contact: Duration::from_millis(250),
            age: Duration::from_secs(3),
            default_deny: Some(true),
            filtered: true,
        };
        assert_eq!(Meta::read(&headers), expected);
        let silent = Meta::read(&HeaderMap::new());
        assert!(silent.index.is_none() && silent.known_leader && silent.default_deny.is_none());
    }

    #[test]
    fn the_agent_says_whether_it_denies_by_default() {
        let deny = |text: &str| decode::<AgentSelf>(text.as_bytes()).unwrap().default_deny();
        assert_eq!(deny(r#"{"DebugConfig":{"ACLsEnabled":false,"ACLDefaultPolicy":"allow"}}"#), Some(false));
        assert_eq!(deny(r#"{"DebugConfig":{"ACLsEnabled":true,"ACLDefaultPolicy":"deny"}}"#), Some(true));
        assert_eq!(deny(r#"{"DebugConfig":{"ACLsEnabled":true,"ACLDefaultPolicy":"allow"}}"#), Some(false));
        assert_eq!(deny("{}"), None);
    }
}
