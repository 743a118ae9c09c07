//! Whether the target of a batch can be written to: it has one primary, of each version that its source has, and their sidecars
//! follow the document.

use std::collections::BTreeSet;
use std::time::Duration;

use gilmok_config::endpoint::{Endpoint, Role};
use gilmok_config::name::Name;

use super::fence::Report;
use super::words;

/// What the target lacks, if anything. `by_version` is whether each version of the service has primaries of its own, as
/// `traffic` makes it; else all of them are one pool.
#[must_use]
pub fn lack(source: &Name, target: &Name, endpoints: &[Endpoint], by_version: bool) -> Option<String> {
    let of = |shard: &Name, version: Option<&Name>| -> Vec<&Endpoint> {
        // Endpoints of weight 0 take nothing and count as none.
        let taking = endpoints.iter().filter(|endpoint| endpoint.shard == *shard && endpoint.weight > 0);
        taking.filter(|endpoint| version.is_none_or(|version| endpoint.version == *version)).collect()
    };
    let primaries = |version: Option<&Name>| {
        let primaries = of(target, version).into_iter().filter(|endpoint| endpoint.role == Role::Primary);
        let addresses: BTreeSet<_> = primaries.map(|endpoint| &endpoint.address).collect();
        words::primaries(target, version, addresses.len())
    };
    let versions: BTreeSet<&Name> = of(source, None).into_iter().map(|endpoint| &endpoint.version).collect();
    if by_version && !versions.is_empty() {
        versions.into_iter().find_map(|version| primaries(Some(version)))
    } else {
        primaries(None)
    }
}

/// A sidecar of one of the target's primaries that does not run the revision which announced the batch, as far as was heard
/// lately: it would send back or keep waiting what is asked of it. Where callers reach the app itself there is none.
#[must_use]
pub fn unheard(
    target: &Name,
    endpoints: &[Endpoint],
    reports: &[Report],
    announced: u64,
    silent_max: Duration,
) -> Option<String> {
    let mut primaries = endpoints.iter().filter(|endpoint| {
        endpoint.shard == *target && endpoint.role == Role::Primary && endpoint.weight > 0 && endpoint.inbound
    });
    let unheard = primaries.find(|endpoint| {
        !reports.iter().any(|report| {
            report.silent <= silent_max && report.runs >= Some(announced) && report.is_at(&endpoint.address)
        })
    });
    unheard.map(|endpoint| words::unheard(target, &endpoint.address))
}

#[cfg(test)]
mod tests {
    use gilmok_config::name::ServiceName;
    use gilmok_config::wire::InboundApp;

    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    fn endpoint(address: &str, shard: &str, version: &str) -> Endpoint {
        Endpoint { shard: name(shard), version: name(version), ..Endpoint::at(address.parse().unwrap()) }
    }

    #[test]
    fn a_target_has_one_primary_of_each_version_of_its_source() {
        let old = endpoint("10.0.0.1:80", "0", "v1");
        let new = endpoint("10.0.0.2:80", "4", "v1");
        let replica = Endpoint { role: Role::Replica, ..endpoint("10.0.0.3:80", "4", "v1") };
        let leaving = Endpoint { weight: 0, ..endpoint("10.0.0.4:80", "4", "v1") };
        let second = endpoint("10.0.0.5:80", "4", "v2");
        let lack = |endpoints: &[&Endpoint], by_version| {
            let endpoints: Vec<Endpoint> = endpoints.iter().copied().cloned().collect();
            super::lack(&name("0"), &name("4"), &endpoints, by_version)
        };
        assert_eq!(lack(&[&old, &new, &replica, &leaving], false), None);
        assert_eq!(lack(&[&old, &replica, &leaving], false).unwrap(), "shard 4 has no primary");
        assert_eq!(lack(&[&old, &new, &new], false), None, "one address that is told twice");
        assert!(lack(&[&old, &new, &second], false).unwrap().starts_with("shard 4 has 2 primaries, so"));
        assert_eq!(lack(&[&old, &new, &second], true), None);
        assert_eq!(lack(&[&old, &second], true).unwrap(), "shard 4 has no primary of version v1");
        assert_eq!(lack(&[&new], true), None, "nobody of the source is left to compare with");
    }

    #[test]
    fn the_sidecar_of_a_target_runs_what_names_the_batch() {
        let app = InboundApp {
            service: ServiceName::parse("s").unwrap(),
            shard: name("4"),
            address: Some("10.0.0.2:80".to_owned()),
        };
        let heard = Report {
            node: "n".to_owned(),
            silent: Duration::from_secs(2),
            is_leaving: false,
            is_replaced: false,
            runs: Some(41),
            apps: vec![app],
            fence: None,
        };
        let primary = Endpoint { inbound: true, ..endpoint("10.0.0.2:80", "4", "") };
        let lack = |endpoint: &Endpoint, report: &Report| {
            let (endpoints, reports) = ([endpoint.clone()], [report.clone()]);
            unheard(&name("4"), &endpoints, &reports, 41, Duration::from_secs(15))
        };
        let why = "the sidecar of shard 4 at 10.0.0.2:80 has not said that it knows of the batch";
        assert_eq!(lack(&primary, &heard), None);
        for (endpoint, report) in [
            (primary.clone(), Report { runs: Some(40), ..heard.clone() }),
            (primary.clone(), Report { runs: None, ..heard.clone() }),
            (primary.clone(), Report { silent: Duration::from_secs(16), ..heard.clone() }),
            (primary.clone(), Report { apps: Vec::new(), ..heard.clone() }),
        ] {
            assert_eq!(lack(&endpoint, &report).as_deref(), Some(why), "{report:?}");
        }
        let nobody = Report { apps: Vec::new(), ..heard };
        for endpoint in [
            Endpoint { inbound: false, ..primary.clone() },
            Endpoint { role: Role::Replica, ..primary.clone() },
            Endpoint { weight: 0, ..primary.clone() },
            Endpoint { shard: name("0"), ..primary },
        ] {
            assert_eq!(lack(&endpoint, &nobody), None, "{endpoint:?}");
        }
    }
}
