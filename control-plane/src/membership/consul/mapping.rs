//! From a service instance in Consul's words to an endpoint in ours.
//!
//! An instance is never lost for a value that we cannot read: the value is left out, and a note says so.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use gilmok_config::address::Address;
use gilmok_config::endpoint::{Endpoint, PRIORITY_MAX, Role, WEIGHT_MAX};
use gilmok_config::name::Name;

use super::answer::{Check, Service, ServiceEntry, Weights};
use super::settle::{Stand, Standing};
use crate::membership::Status;

/// What tells instances of one service apart: the node, and the id that is unique on that node only.
pub(super) type Key = (String, String);

/// A service instance as Consul has it, decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Instance {
    pub(super) endpoint: Endpoint,
    pub(super) status: Status,
    /// Why it is in maintenance, and what of it could not be read; empty when there is nothing to say.
    pub(super) note: String,
}

impl Standing for Instance {
    fn standing(&self) -> Stand {
        match self.status {
            Status::Passing | Status::Warning => Stand::In,
            Status::Critical => Stand::Unwell,
            Status::Maintenance => Stand::Out,
        }
    }
}

/// Every instance that can be dialled, by its key, and what is wrong with the others.
pub(super) fn instances(entries: &[ServiceEntry]) -> (BTreeMap<Key, Instance>, Vec<String>) {
    let mut faults = Vec::new();
    let mut found = BTreeMap::new();
    for entry in entries {
        match instance(entry) {
            Ok(instance) => {
                found.insert((entry.node.node.clone(), entry.service.id.clone()), instance);
            }
            Err(fault) => faults.push(format!("`{}` on `{}`: {fault}", entry.service.id, entry.node.node)),
        }
    }
    (found, faults)
}

fn instance(entry: &ServiceEntry) -> Result<Instance, String> {
    let mut notes = Vec::new();
    let (status, reason) = status(&entry.checks);
    notes.extend(reason);
    let mut endpoint = Endpoint::at(address(entry)?);
    let said = Said { service: &entry.service };
    let mut name = |key| said.read(key, Name::parse, &mut notes).unwrap_or_default();
    (endpoint.version, endpoint.shard, endpoint.zone) = (name("version"), name("shard"), name("zone"));
    endpoint.role = said.read("role", role, &mut notes).unwrap_or_default();
    endpoint.priority = said.read("priority", priority, &mut notes).unwrap_or_default();
    let is_true = |key| entry.service.meta.get(key).is_some_and(|value| value == "true");
    (endpoint.inbound, endpoint.mtls) = (is_true("gilmok-inbound"), is_true("gilmok-mtls"));
    endpoint.weight = weight(entry.service.weights.unwrap_or_default(), status);
    Ok(Instance { endpoint, status, note: notes.join("; ") })
}

/// The worst of the checks, those of the node among them, since Consul takes every instance of a node with a critical
/// check out; and the reason of a maintenance.
fn status(checks: &[Check]) -> (Status, Option<String>) {
    let mut worst = Status::Passing;
    let mut reason = None;
    for check in checks {
        let maintenance =
            check.check_id == "_node_maintenance" || check.check_id.starts_with("_service_maintenance:");
        let status = match check.status.as_str() {
            "passing" => Status::Passing,
            "warning" => Status::Warning,
            // What a later Consul may say and we do not know is not passing.
            _ if maintenance => Status::Maintenance,
            _ => Status::Critical,
        };
        if status == Status::Maintenance && reason.is_none() && !check.notes.is_empty() {
            reason = Some(format!("maintenance: {}", check.notes));
        }
        if rank(status) > rank(worst) {
            worst = status;
        }
    }
    (worst, reason)
}

/// Consul's own order: maintenance hides critical, which hides warning.
fn rank(status: Status) -> u8 {
    match status {
        Status::Passing => 0,
        Status::Warning => 1,
        Status::Critical => 2,
        Status::Maintenance => 3,
    }
}

fn address(entry: &ServiceEntry) -> Result<Address, String> {
    let service = &entry.service;
    let host = if service.address.is_empty() { &entry.node.address } else { &service.address };
    if host.starts_with("unix://") {
        return host.parse().map_err(|hint| format!("address \"{host}\" is not understood ({hint})"));
    }
    let port = match u16::try_from(service.port) {
        Ok(port) if port > 0 => port,
        _ => return Err(format!("port {} cannot be dialled", service.port)),
    };
    match host.parse::<IpAddr>() {
        Ok(ip) => Ok(Address::Socket(SocketAddr::new(ip, port))),
        Err(_) => {
            format!("{host}:{port}").parse().map_err(|hint| format!("\"{host}\" is not understood ({hint})"))
        }
    }
}

fn weight(weights: Weights, status: Status) -> u32 {
    let weight = match status {
        Status::Warning => weights.warning,
        Status::Passing | Status::Critical | Status::Maintenance => weights.passing,
    };
    u32::try_from(weight).unwrap_or(0).min(WEIGHT_MAX)
}

fn role(text: &str) -> Result<Role, &'static str> {
    Role::parse(text).ok_or("primary or replica")
}

fn priority(text: &str) -> Result<u32, &'static str> {
    text.parse().ok().filter(|priority| *priority <= PRIORITY_MAX).ok_or("0 to 127")
}

/// What an instance says of itself: in its meta, or in tags like `version=v2`. The meta wins.
struct Said<'e> {
    service: &'e Service,
}

impl Said<'_> {
    fn text(&self, key: &str) -> Option<&str> {
        let tagged = || self.service.tags.iter().find_map(|tag| tag.strip_prefix(key)?.strip_prefix('='));
        let meta = self.service.meta.get(key).map(String::as_str);
        meta.filter(|value| !value.is_empty()).or_else(tagged)
    }

    fn read<T>(
        &self,
        key: &str,
        parse: fn(&str) -> Result<T, &'static str>,
        notes: &mut Vec<String>,
    ) -> Option<T> {
        const SHOWN_CHARS_MAX: usize = 60;
        let text = self.text(key)?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(hint) => {
                let shown: String = text.chars().take(SHOWN_CHARS_MAX).flat_map(char::escape_debug).collect();
                notes.push(format!("{key} \"{shown}\" is not used: {hint}"));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::consul::answer::decode;

    fn one(json: &str) -> Result<Instance, String> {
        let entries: Vec<ServiceEntry> = decode(format!("[{json}]").as_bytes()).unwrap();
        let (found, faults) = instances(&entries);
        match (found.into_values().next(), faults.into_iter().next()) {
            (Some(instance), None) => Ok(instance),
            (None, Some(fault)) => Err(fault),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_instance_says_everything_in_its_meta() {
        let instance = one(
            r#"{"Node":{"Node":"n1","Address":"10.0.0.9"},"Service":{"ID":"ads-1","Address":"10.0.0.1",
            "Port":80,"Weights":{"Passing":7,"Warning":2},"Meta":{"version":"v2","shard":"3","role":"replica",
            "zone":"eu-1a","priority":"1","gilmok-inbound":"true","gilmok-mtls":"true"}},"Checks":[{"CheckID":"c","Status":"passing"}]}"#,
        );
        let expected = Endpoint {
            version: Name::parse("v2").unwrap(),
            shard: Name::parse("3").unwrap(),
            role: Role::Replica,
            zone: Name::parse("eu-1a").unwrap(),
            weight: 7,
            priority: 1,
            inbound: true,
            mtls: true,
            ..Endpoint::at("10.0.0.1:80".parse().unwrap())
        };
        let expected = Instance { endpoint: expected, status: Status::Passing, note: String::new() };
        assert_eq!(instance, Ok(expected));
    }

    #[test]
    fn tags_speak_where_the_meta_is_silent() {
        let service = r#"{"Node":{"Address":"::1"},"Service":{"Port":80,"Tags":["x","version=v1","shard=","role=replica"],
            "Meta":{"version":"v2","role":""}}}"#;
        let endpoint = one(service).unwrap().endpoint;
        assert_eq!(endpoint.version.as_str(), "v2", "the meta wins");
        assert_eq!(endpoint.role, Role::Replica);
        assert!(endpoint.shard.is_empty());
        assert_eq!(endpoint.address.to_string(), "[::1]:80", "an empty address is the node's");
        assert_eq!((endpoint.weight, endpoint.inbound), (1, false));
    }

    #[test]
    fn a_value_that_cannot_be_read_loses_no_instance() {
        let service = r#"{"Node":{"Address":"db.internal"},"Service":{"Port":80,"Meta":{"version":"v 2","role":"leader",
            "priority":"-1","zone":"a","gilmok-inbound":"yes"},"Weights":{"Passing":-3,"Warning":1}}}"#;
        let Instance { endpoint, status, note } = one(service).unwrap();
        assert_eq!(endpoint.address.to_string(), "db.internal:80");
        assert!(endpoint.version.is_empty() && !endpoint.inbound);
        assert_eq!((endpoint.role, endpoint.priority, endpoint.weight), (Role::Primary, 0, 0));
        assert_eq!((endpoint.zone.as_str(), status), ("a", Status::Passing));
        for part in ["version \"v 2\" is not used", "role \"leader\"", "priority \"-1\""] {
            assert!(note.contains(part), "{note}");
        }
    }

    #[test]
    fn what_cannot_be_dialled_is_told() {
        for (service, told) in [
            (r#"{"Node":{"Node":"n","Address":"10.0.0.1"},"Service":{"ID":"a"}}"#, "`a` on `n`: port 0"),
            (r#"{"Node":{"Address":""},"Service":{"Port":80}}"#, "not understood"),
            (r#"{"Node":{"Address":"a b"},"Service":{"Port":80}}"#, "\"a b\" is not understood"),
        ] {
            let fault = one(service).unwrap_err();
            assert!(fault.contains(told), "{fault}");
        }
        let unix = r#"{"Service":{"Address":"unix:///run/app.sock"}}"#;
        assert_eq!(one(unix).unwrap().endpoint.address.to_string(), "unix:///run/app.sock");
    }

    #[test]
    fn the_worst_check_counts_whoever_it_belongs_to() {
        let check =
            |id: &str, status: &str| format!(r#"{{"CheckID":"{id}","Status":"{status}","Notes":"disk"}}"#);
        let with = |checks: &[String]| {
            let checks = checks.join(",");
            let instance = one(&format!(
                r#"{{"Node":{{"Address":"10.0.0.1"}},"Service":{{"Port":80,"Weights":{{"Passing":8,"Warning":3}}}},
                "Checks":[{checks}]}}"#
            ));
            let instance = instance.unwrap();
            (instance.status, instance.endpoint.weight, instance.note)
        };
        let ok = check("service:a", "passing");
        assert_eq!(with(std::slice::from_ref(&ok)), (Status::Passing, 8, String::new()));
        assert_eq!(with(&[]), (Status::Passing, 8, String::new()));
        assert_eq!(with(&[ok.clone(), check("mem", "warning")]), (Status::Warning, 3, String::new()));
        assert_eq!(with(&[check("serfHealth", "critical"), ok.clone()]).0, Status::Critical);
        assert_eq!(with(&[ok.clone(), check("x", "who knows")]).0, Status::Critical);
        let maintained = (Status::Maintenance, 8, "maintenance: disk".to_owned());
        assert_eq!(with(&[check("_node_maintenance", "critical"), ok.clone()]), maintained);
        assert_eq!(
            with(&[check("_service_maintenance:a", "critical"), check("c", "critical"), ok]),
            maintained
        );
    }

    #[test]
    fn the_same_id_on_two_nodes_is_two_instances() {
        let json = br#"[{"Node":{"Node":"a","Address":"10.0.0.1"},"Service":{"ID":"s","Port":1}},
            {"Node":{"Node":"b","Address":"10.0.0.2"},"Service":{"ID":"s","Port":1}}]"#;
        let (found, faults) = instances(&decode::<Vec<ServiceEntry>>(json).unwrap());
        assert_eq!((found.len(), faults.len()), (2, 0));
    }
}
