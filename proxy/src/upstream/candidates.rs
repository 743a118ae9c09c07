//! Who of a service may be chosen for a request: those of the version and the shard that were decided on, nobody else.
//!
//! A shard has one primary, which membership alone names by endpoints' `role` (an endpoint that says none is a primary).
//! What may change something goes there and nowhere else: without a primary, or with two of them, nobody knows who holds the
//! truth, so it is refused while reads go on. Endpoints of weight 0 take nothing, so they are no primaries either.

use std::collections::HashMap;
use std::sync::Arc;

use gilmok_config::address::Address;
use gilmok_config::decide::Split;
use gilmok_config::endpoint::Role;
use gilmok_config::name::Name;
use gilmok_config::service::ServicePolicy;
use gilmok_config::sharding::{Reads, Sharded, Sharding};
use http::Method;

use super::balance::Eligible;
use super::by_subject::Seats;
use super::endpoint::EndpointState;

/// What a request is aimed at among the endpoints of its service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Aim {
    /// Place in the traffic's versions, where one was decided on.
    pub(crate) version: Option<usize>,
    /// Where the service is sharded.
    pub(crate) part: Option<Part>,
    /// The hash of the subject, where the balancer goes by it and there is one.
    pub(crate) subject_hash: Option<u64>,
    /// How often it was tried before: a subject's next try goes to the next endpoint.
    pub(crate) tries: usize,
}

/// A part of a sharded service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Place in the sharding's shards; `None` is any of them.
    pub(crate) shard: Option<usize>,
    /// Whether it may change something.
    pub(crate) writes: bool,
}

/// Why nobody of a shard may be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unwritable {
    NoPrimary,
    /// More than one says that it is the primary.
    Primaries,
}

/// Who may be chosen of a service: of any version, of each one that its traffic names, and of each shard of these.
#[derive(Debug, Default)]
pub(crate) struct Candidates {
    pub(crate) all: Eligible,
    /// By place in the traffic's versions.
    versions: Vec<Eligible>,
    shards: Option<Shards>,
}

/// Who may be chosen of a sharded service.
#[derive(Debug)]
struct Shards {
    /// How many shards there are.
    many: usize,
    /// Those of any version, then those of each version: one for each shard, and one for any shard.
    parts: Vec<Candidate>,
}

/// Who may be chosen of one shard, or of any.
#[derive(Debug)]
struct Candidate {
    reads: Eligible,
    writes: Result<Eligible, Unwritable>,
}

/// Who of a shard serves what, whether they are well or not.
struct Members<'s> {
    reads: Vec<&'s Arc<EndpointState>>,
    /// Who serves reads when none of those can.
    rest: Vec<&'s Arc<EndpointState>>,
    writes: Result<Vec<&'s Arc<EndpointState>>, Unwritable>,
}

impl Aim {
    /// What a request with this method is aimed at.
    pub(crate) fn new(split: Option<Split>, sharded: Option<Sharded>, method: &Method) -> Self {
        let part = sharded.map(|sharded| Part { shard: sharded.shard(), writes: !method.is_safe() });
        Self { version: split.map(|split| split.version), part, ..Self::default() }
    }

    /// The same for the subject of this hash.
    pub(crate) fn of_subject(self, subject_hash: Option<u64>) -> Self {
        Self { subject_hash, ..self }
    }

    /// The same once more.
    pub(crate) fn again(self) -> Self {
        Self { tries: self.tries + 1, ..self }
    }

    /// The same at another version.
    pub(crate) fn at_version(self, version: usize) -> Self {
        Self { version: Some(version), ..self }
    }

    /// The same at another shard.
    pub(crate) fn at_shard(self, shard: usize) -> Self {
        Self { part: self.part.map(|part| Part { shard: Some(shard), ..part }), ..self }
    }

    /// The name of the shard, if it is one.
    pub(crate) fn shard(self, policy: &ServicePolicy) -> Option<&Name> {
        let (sharding, part) = policy.sharding.as_deref().zip(self.part)?;
        part.shard.map(|at| &sharding.shards()[at])
    }
}

impl Candidates {
    /// Works out who may be chosen. With `fail_open`, what checks say is not believed.
    pub(crate) fn of(
        all: &[Arc<EndpointState>],
        policy: &ServicePolicy,
        zone: &Name,
        fail_open: bool,
    ) -> Self {
        let versions = policy.traffic.as_deref().map(|traffic| traffic.versions()).unwrap_or_default();
        let of_version = |version: &Name| {
            let own: Vec<_> = all.iter().filter(|state| state.endpoint.version == *version).collect();
            Eligible::even_ejected(&own, zone, fail_open)
        };
        let sharding = policy.sharding.as_deref();
        Self {
            all: Eligible::of(all, zone, fail_open),
            versions: versions.iter().map(of_version).collect(),
            shards: sharding.map(|sharding| Shards::of(all, sharding, versions, zone, fail_open)),
        }
    }

    /// The same with what choosing by the subject needs.
    pub(crate) fn seated(mut self, seats: &Seats, sharding: Option<&Sharding>) -> Self {
        for eligible in std::iter::once(&mut self.all).chain(&mut self.versions) {
            eligible.seat(seats.all());
        }
        let names = sharding.map(Sharding::shards).unwrap_or_default();
        // One for each shard, and one for any shard; of any version, and of each.
        let tables = names.iter().map(|name| seats.shard(name)).chain(std::iter::once(seats.all()));
        let parts = self.shards.iter_mut().flat_map(|shards| &mut shards.parts);
        for (part, table) in parts.zip(tables.cycle()) {
            part.reads.seat(table);
            if let Ok(writes) = &mut part.writes {
                writes.seat(table);
            }
        }
        self
    }

    /// One endpoint that is all there is.
    pub(crate) fn only(endpoints: &[Arc<EndpointState>]) -> Self {
        Self { all: Eligible::of(endpoints, &Name::default(), true), ..Self::default() }
    }

    /// Who may be chosen.
    ///
    /// # Errors
    /// Why nobody may be.
    pub(crate) fn at(&self, aim: Aim) -> Result<&Eligible, Unwritable> {
        let Some((shards, part)) = self.shards.as_ref().zip(aim.part) else {
            let version = aim.version.and_then(|at| self.versions.get(at));
            return Ok(version.unwrap_or(&self.all));
        };
        let candidate = shards.at(aim.version, part.shard);
        if part.writes { candidate.writes.as_ref().map_err(|why| *why) } else { Ok(&candidate.reads) }
    }

    /// Whether anybody may be chosen for anything.
    pub(crate) fn has_any(&self, version: usize, shard: Option<usize>) -> bool {
        let is_there = |eligible: &Eligible| !eligible.endpoints().is_empty();
        match &self.shards {
            Some(shards) => {
                let candidate = shards.at(Some(version), shard);
                is_there(&candidate.reads) || candidate.writes.as_ref().is_ok_and(is_there)
            }
            None => self.versions.get(version).is_some_and(is_there),
        }
    }
}

impl Shards {
    fn of(
        all: &[Arc<EndpointState>],
        sharding: &Sharding,
        versions: &[Name],
        zone: &Name,
        fail_open: bool,
    ) -> Self {
        let many = sharding.shards().len();
        let places: HashMap<&Name, usize> = sharding.shards().iter().zip(0..).collect();
        let mut parts = Vec::with_capacity((versions.len() + 1) * (many + 1));
        for version in std::iter::once(None).chain(versions.iter().map(Some)) {
            let mut of_shard: Vec<Vec<&Arc<EndpointState>>> = vec![Vec::new(); many];
            for state in all.iter().filter(|state| version.is_none_or(|of| state.endpoint.version == *of)) {
                if let Some(at) = places.get(&state.endpoint.shard) {
                    of_shard[*at].push(state);
                }
            }
            let members: Vec<_> = of_shard.iter().map(|own| Members::of(own, sharding.reads)).collect();
            parts.extend(members.iter().map(|members| members.candidate(zone, fail_open)));
            // Those that only a rule which follows names have no part in this one.
            let own = members.get(..sharding.own_shards()).unwrap_or(&members);
            parts.push(Members::together(own).candidate(zone, fail_open));
        }
        Self { many, parts }
    }

    fn at(&self, version: Option<usize>, shard: Option<usize>) -> &Candidate {
        let first = version.map_or(0, |version| version + 1) * (self.many + 1);
        &self.parts[first + shard.unwrap_or(self.many)]
    }
}

impl<'s> Members<'s> {
    fn of(own: &[&'s Arc<EndpointState>], reads: Reads) -> Self {
        let usable = own.iter().copied().filter(|state| state.endpoint.weight > 0);
        let (primaries, replicas): (Vec<_>, Vec<_>) =
            usable.partition(|state| state.endpoint.role == Role::Primary);
        // One address may stand for several versions, and a name for several addresses.
        let mut addresses: Vec<&Address> = primaries.iter().map(|state| &state.endpoint.address).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let writes = match addresses.len() {
            0 => Err(Unwritable::NoPrimary),
            1 => Ok(primaries.clone()),
            _ => Err(Unwritable::Primaries),
        };
        let (reads, rest) = match reads {
            Reads::Any => (own.to_vec(), Vec::new()),
            Reads::Primary if primaries.is_empty() => (replicas, Vec::new()),
            Reads::Primary => (primaries, Vec::new()),
            Reads::Replica => (replicas, primaries),
        };
        Self { reads, rest, writes }
    }

    /// Those of all shards, as if they were one.
    fn together(shards: &[Self]) -> Self {
        let writable: Vec<_> = shards.iter().filter_map(|shard| shard.writes.as_ref().ok()).collect();
        // Any shard will do, so it is one that knows its primary.
        let refused = shards.iter().find_map(|shard| shard.writes.as_ref().err()).copied();
        let writes = match refused {
            Some(why) if writable.is_empty() => Err(why),
            Some(_) | None => Ok(writable.into_iter().flatten().copied().collect()),
        };
        Self {
            reads: shards.iter().flat_map(|shard| &shard.reads).copied().collect(),
            rest: shards.iter().flat_map(|shard| &shard.rest).copied().collect(),
            writes,
        }
    }

    fn candidate(&self, zone: &Name, fail_open: bool) -> Candidate {
        let reads = Eligible::even_ejected(&self.reads, zone, fail_open);
        let reads = if reads.endpoints().is_empty() {
            Eligible::even_ejected(&self.rest, zone, fail_open)
        } else {
            reads
        };
        let writes = self.writes.as_ref().map(|own| Eligible::even_ejected(own, zone, fail_open));
        Candidate { reads, writes: writes.map_err(|why| *why) }
    }
}

#[cfg(test)]
mod tests {
    use gilmok_config::document::Document;
    use gilmok_config::endpoint::Endpoint;

    use super::*;
    use crate::metrics::TargetSeries;
    use crate::upstream::endpoint::{Health, Peer};

    fn policy(more: &str) -> ServicePolicy {
        let text = format!(
            "[services.profile.sharding]\nkey = \"host\"\nstrategy = \"modulo\"\nshards = [\"0\", \"1\"]\n{more}"
        );
        Document::parse_toml(&text).unwrap().services["profile"].clone()
    }

    /// `SHARD ROLE VERSION`, with ids from 1.
    fn endpoints(said: &[&str]) -> Vec<Arc<EndpointState>> {
        let one = |(id, said): (u64, &&str)| {
            let mut words = said.split(' ');
            let mut endpoint = Endpoint::at(format!("10.0.0.1:{id}").parse().unwrap());
            endpoint.shard = Name::parse(words.next().unwrap()).unwrap();
            endpoint.role = words.next().and_then(Role::parse).unwrap_or_default();
            endpoint.version = Name::parse(words.next().unwrap_or_default()).unwrap();
            let peer = Peer::Tcp(([10, 0, 0, 1], 80).into());
            let series = Arc::new(TargetSeries::new(Name::default(), Name::default(), 1));
            Arc::new(EndpointState::new(id, endpoint, peer, Arc::default(), series, 0))
        };
        (1..).zip(said).map(one).collect()
    }

    fn ids(candidates: &Candidates, aim: Aim) -> Result<Vec<u64>, Unwritable> {
        candidates.at(aim).map(|eligible| eligible.endpoints().iter().map(|state| state.id).collect())
    }

    fn aim(shard: Option<usize>, writes: bool) -> Aim {
        Aim { part: Some(Part { shard, writes }), ..Aim::default() }
    }

    fn of(all: &[Arc<EndpointState>], policy: &ServicePolicy) -> Candidates {
        Candidates::of(all, policy, &Name::default(), false)
    }

    #[test]
    fn who_serves_a_shard_depends_on_what_is_asked_and_on_roles() {
        let all = endpoints(&["0 primary", "0 replica", "0 replica", "1", "2 primary", ""]);
        for (reads, of_0, of_any) in [
            ("", vec![1], vec![1, 4]),
            ("reads = \"replica\"", vec![2, 3], vec![2, 3]),
            ("reads = \"any\"", vec![1, 2, 3], vec![1, 2, 3, 4]),
        ] {
            let candidates = of(&all, &policy(reads));
            assert_eq!(ids(&candidates, aim(Some(0), false)), Ok(of_0), "{reads}");
            assert_eq!(ids(&candidates, aim(Some(1), false)), Ok(vec![4]), "{reads}: one without a role");
            assert_eq!(ids(&candidates, aim(None, false)), Ok(of_any), "{reads}");
            assert_eq!(ids(&candidates, aim(Some(0), true)), Ok(vec![1]));
            assert_eq!(ids(&candidates, aim(Some(1), true)), Ok(vec![4]));
            assert_eq!(ids(&candidates, aim(None, true)), Ok(vec![1, 4]));
        }
    }

    #[test]
    fn what_has_no_key_goes_to_no_shard_that_only_the_rule_which_follows_names() {
        let all = endpoints(&["0", "2", "1"]);
        let next = "[services.profile.sharding.next]\nshards = [\"0\", \"2\"]\n";
        for more in ["", next] {
            let candidates = of(&all, &policy(more));
            for writes in [false, true] {
                assert_eq!(ids(&candidates, aim(None, writes)), Ok(vec![1, 3]), "{more}");
            }
        }
        assert_eq!(ids(&of(&all, &policy(next)), aim(Some(2), true)), Ok(vec![2]));
    }

    #[test]
    fn without_a_primary_or_with_two_reads_go_on_and_writes_do_not() {
        for (said, reads, why) in [
            (&["0 replica", "0 replica"][..], vec![1, 2], Unwritable::NoPrimary),
            (&["0 primary", "0 primary", "0 replica"], vec![1, 2], Unwritable::Primaries),
            (&["0", "0"], vec![1, 2], Unwritable::Primaries),
            (&["1"], vec![], Unwritable::NoPrimary),
        ] {
            let candidates = of(&endpoints(said), &policy(""));
            assert_eq!(ids(&candidates, aim(Some(0), false)), Ok(reads), "{said:?}");
            assert_eq!(ids(&candidates, aim(Some(0), true)), Err(why), "{said:?}");
        }
        // Any shard will do, so it is one that can be written to.
        let candidates = of(&endpoints(&["0 replica", "1 primary"]), &policy(""));
        assert_eq!(ids(&candidates, aim(None, true)), Ok(vec![2]));
    }

    #[test]
    fn checks_and_ejections_make_nobody_the_primary() {
        let all = endpoints(&["0 primary", "0 replica"]);
        all[0].note_health(Health::Unhealthy);
        let candidates = of(&all, &policy(""));
        assert_eq!(ids(&candidates, aim(Some(0), true)), Ok(vec![]));
        assert_eq!(ids(&candidates, aim(Some(0), false)), Ok(vec![]));
        let replicas = of(&all, &policy("reads = \"replica\""));
        assert_eq!(ids(&replicas, aim(Some(0), false)), Ok(vec![2]));
        all[0].note_health(Health::Healthy);
        all[1].note_health(Health::Unhealthy);
        let replicas = of(&all, &policy("reads = \"replica\""));
        assert_eq!(ids(&replicas, aim(Some(0), false)), Ok(vec![1]), "the primary when there is none");
    }

    #[test]
    fn a_version_has_shards_of_its_own() {
        let all = endpoints(&["0 primary v1", "0 primary v2", "1 primary v1"]);
        let policy = policy("[services.profile.traffic]\nstable = \"v1\"\nweights = { v1 = 50, v2 = 50 }");
        let candidates = of(&all, &policy);
        let at = |version: usize, shard| aim(Some(shard), true).at_version(version);
        assert_eq!(ids(&candidates, at(0, 0)), Ok(vec![1]));
        assert_eq!(ids(&candidates, at(1, 0)), Ok(vec![2]));
        assert_eq!(ids(&candidates, at(1, 1)), Err(Unwritable::NoPrimary), "never another version");
        assert!(candidates.has_any(1, Some(0)) && !candidates.has_any(1, Some(1)));
        assert!(candidates.has_any(1, None));
        assert_eq!(ids(&candidates, at(1, 1).at_shard(0)), Ok(vec![2]));
    }
}
