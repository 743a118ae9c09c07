//! Whether the target of a batch can be written to: it has one primary, of each version that its source has.

use std::collections::BTreeSet;

use gilmok_config::endpoint::{Endpoint, Role};
use gilmok_config::name::Name;

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

#[cfg(test)]
mod tests {
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
}
