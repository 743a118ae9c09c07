//! Who is asked for a subject, one after the other: the tables of a service's addresses, and where each endpoint stands in them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use gilmok_config::balancing::{self, Kind, Members, in_flight_max};
use gilmok_config::hash::mixed;
use gilmok_config::name::Name;
use gilmok_config::sharding::Sharding;

use super::endpoint::EndpointState;

/// The tables of a service, and whom they call what. Made with a snapshot, from all endpoints whether they are well or not.
#[derive(Debug)]
pub(crate) struct Seats {
    all: Table,
    /// Those of each shard, where it is sharded: few among thousands would take long to find.
    shards: HashMap<Name, Table>,
}

/// A table, and what it calls an endpoint, by its id. An address that stands for several versions or shards is one.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    order: Arc<balancing::Table>,
    owners: HashMap<u64, u16>,
}

/// Those who may be chosen, by what a table calls them: each with its place among them.
#[derive(Debug)]
pub(crate) struct Seated {
    order: Arc<balancing::Table>,
    places: Box<[(u16, usize)]>,
}

/// How one choice goes by its subject.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BySubject {
    pub(crate) hash: u64,
    /// How many percent of the mean an endpoint may have in flight.
    pub(crate) factor: Option<u32>,
    /// How many of its endpoints it has had before.
    pub(crate) tries: usize,
}

/// What an endpoint may have in flight where load is bounded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    factor: u32,
    in_flight: u64,
    weights: u64,
}

impl Seats {
    /// The seats of these endpoints, of each of these shards too; the tables of before, where they are the same.
    pub(crate) fn of(
        kind: Kind,
        all: &[Arc<EndpointState>],
        sharding: Option<&Sharding>,
        before: Option<&Self>,
    ) -> Self {
        let mut of_shards: HashMap<&Name, Vec<&Arc<EndpointState>>> = HashMap::new();
        for shard in sharding.into_iter().flat_map(Sharding::shards) {
            of_shards.insert(shard, Vec::new());
        }
        for state in all {
            if let Some(own) = of_shards.get_mut(&state.endpoint.shard) {
                own.push(state);
            }
        }
        let shards = of_shards.into_iter().map(|(shard, own)| {
            let before = before.and_then(|before| before.shards.get(shard));
            let make = |members| balancing::Table::of_shard(kind, members);
            (shard.clone(), Table::of(kind, &own, before, make))
        });
        let make = |members| balancing::Table::of(kind, members);
        let every: Vec<_> = all.iter().collect();
        Self {
            all: Table::of(kind, &every, before.map(|before| &before.all), make),
            shards: shards.collect(),
        }
    }

    /// The table of the whole service.
    pub(crate) fn all(&self) -> &Table {
        &self.all
    }

    /// The table of a shard.
    pub(crate) fn shard(&self, name: &Name) -> &Table {
        self.shards.get(name).unwrap_or(&self.all)
    }
}

impl Table {
    fn of(
        kind: Kind,
        all: &[&Arc<EndpointState>],
        before: Option<&Self>,
        make: impl FnOnce(Members) -> balancing::Table,
    ) -> Self {
        let named: Vec<(u64, String)> = all.iter().map(|state| (state.id, state.peer.to_string())).collect();
        let weights = all.iter().map(|state| state.endpoint.weight);
        let members = Members::of(named.iter().map(|(_, address)| address.clone()).zip(weights));
        let kept = before.filter(|before| before.order.kind() == kind && *before.order.members() == members);
        let order = match kept {
            Some(before) => Arc::clone(&before.order),
            None => Arc::new(make(members)),
        };
        let owner = |(id, address): &(u64, String)| Some((*id, order.members().owner(address)?));
        Self { owners: named.iter().filter_map(owner).collect(), order }
    }

    /// Where these stand.
    pub(crate) fn seated(&self, eligible: &[Arc<EndpointState>]) -> Seated {
        let owner = |(at, state): (usize, &Arc<EndpointState>)| Some((*self.owners.get(&state.id)?, at));
        let mut places: Vec<_> = eligible.iter().enumerate().filter_map(owner).collect();
        places.sort_unstable();
        // The first one of an address stands for all.
        places.dedup_by_key(|(owner, _)| *owner);
        Seated { order: Arc::clone(&self.order), places: places.into() }
    }
}

impl Seated {
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// The places of those who are asked for a subject, one after the other; some of them again and again.
    pub(crate) fn order(&self, by: &BySubject) -> impl Iterator<Item = usize> {
        let order = self.order.order(by.hash).filter_map(|owner| self.place(owner));
        // Nobody is looked for where nobody is.
        order.take(if self.places.is_empty() { 0 } else { usize::MAX })
    }

    /// The place of whoever the table calls this.
    fn place(&self, owner: u16) -> Option<usize> {
        let found = self.places.binary_search_by_key(&owner, |(known, _)| *known);
        found.ok().map(|at| self.places[at].1)
    }
}

impl BySubject {
    /// A place below `many` that is always the same for this subject.
    pub(crate) fn start(&self, many: usize) -> usize {
        usize::try_from(self.hash % many.max(1) as u64).unwrap_or_default()
    }

    /// A number from 0 to 1 that is always the same for this subject, and does not follow from its place in the table.
    pub(crate) fn dice(&self) -> f64 {
        mixed(!self.hash) as f64 / u64::MAX as f64
    }
}

impl Bound {
    /// The bound over these endpoints; `None` when there are none.
    pub(crate) fn over<'a>(factor: u32, all: impl Iterator<Item = &'a Arc<EndpointState>>) -> Option<Self> {
        let (mut in_flight, mut weights) = (0, 0);
        for state in all {
            in_flight += in_flight_of(state);
            weights += u64::from(state.endpoint.weight);
        }
        (weights > 0).then_some(Self { factor, in_flight, weights })
    }

    /// Whether this endpoint may have one more.
    pub(crate) fn has_room(&self, state: &EndpointState) -> bool {
        in_flight_of(state) < in_flight_max(self.factor, self.in_flight, state.endpoint.weight, self.weights)
    }
}

fn in_flight_of(state: &EndpointState) -> u64 {
    u64::from(state.in_flight.load(Relaxed))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::AtomicU32;
    use std::time::Duration;

    use gilmok_config::balancing::{FACTOR_MAX, FACTOR_MIN, subject_hash};
    use gilmok_config::document::Document;
    use gilmok_config::endpoint::Endpoint;
    use gilmok_config::service::LoadBalancer;
    use proptest::prelude::*;

    use super::*;
    use crate::metrics::TargetSeries;
    use crate::upstream::balance::{Choice, Eligible};
    use crate::upstream::endpoint::{Health, Peer};

    const BALANCERS: [LoadBalancer; 2] = [LoadBalancer::Maglev, LoadBalancer::RingHash];
    const NOW_MS: u64 = 1_000_000;

    /// A service that balances by its subjects.
    struct Service {
        balancer: LoadBalancer,
        all: Vec<Arc<EndpointState>>,
        seats: Seats,
        turn: AtomicU32,
        slow_start: Duration,
        factor: Option<u32>,
    }

    impl Service {
        fn new(balancer: LoadBalancer, weights: &[u32]) -> Self {
            let all: Vec<_> =
                (1..).zip(weights).map(|(id, weight)| endpoint(id, &id.to_string(), *weight)).collect();
            let seats = Seats::of(balancer.table().unwrap(), &all, None, None);
            let (turn, slow_start) = (AtomicU32::new(0), Duration::ZERO);
            Self { balancer, all, seats, turn, slow_start, factor: None }
        }

        fn eligible(&self) -> Eligible {
            let mut eligible = Eligible::of(&self.all, &Name::default(), false);
            eligible.seat(self.seats.all());
            eligible
        }

        fn pick(
            &self,
            eligible: &Eligible,
            subject: u32,
            tries: usize,
            except: Option<u64>,
            now_ms: u64,
        ) -> u64 {
            let hash = subject_hash(format!("user-{subject}").as_bytes());
            let by = BySubject { hash, factor: self.factor, tries };
            let (balancer, slow_start, turn) = (self.balancer, self.slow_start, &self.turn);
            let choice = Choice { balancer, slow_start, turn, except, subject: Some(by), now_ms };
            eligible.pick(&choice).map_or(0, |state| state.id)
        }

        fn of(&self, eligible: &Eligible, subject: u32) -> u64 {
            self.pick(eligible, subject, 0, None, NOW_MS)
        }
    }

    fn endpoint(id: u64, address: &str, weight: u32) -> Arc<EndpointState> {
        let mut endpoint = Endpoint::at("10.0.0.1:80".parse().unwrap());
        endpoint.weight = weight;
        let series = Arc::new(TargetSeries::new(Name::default(), Name::default(), 1));
        let peer = Peer::Unix(address.into());
        Arc::new(EndpointState::new(id, endpoint, peer, Arc::default(), series, 0))
    }

    #[test]
    fn a_subject_keeps_its_endpoint_whatever_becomes_of_the_others() {
        for balancer in BALANCERS {
            let service = Service::new(balancer, &[1; 10]);
            let before = service.eligible();
            service.all[3].note_health(Health::Unhealthy);
            service.all[4].shunned_until_ms.store(NOW_MS + 1, Relaxed);
            let after = service.eligible();
            let (mut moved, mut is_spread) = (0, BTreeMap::new());
            for subject in 0..2_000 {
                let (first, then) = (service.of(&before, subject), service.of(&after, subject));
                assert_eq!(then, service.of(&after, subject));
                assert!(![4, 5].contains(&then));
                assert!(first == then || [4, 5].contains(&first), "{balancer:?}: {first} {then}");
                if first != then {
                    moved += 1;
                    *is_spread.entry(then).or_insert(0) += 1;
                }
            }
            // Its subjects are spread over those who are left.
            assert!((200..700).contains(&moved), "{balancer:?}: {moved}");
            assert!(is_spread.len() == 8, "{balancer:?}: {is_spread:?}");
        }
    }

    #[test]
    fn each_try_goes_to_the_next_endpoint() {
        for balancer in BALANCERS {
            for many in [2_usize, 3, 7, 40] {
                let service = Service::new(balancer, &vec![1; many]);
                let eligible = service.eligible();
                for subject in 0..100 {
                    let mut tried: Vec<u64> = Vec::new();
                    for tries in 0..many.min(10) {
                        let next = service.pick(&eligible, subject, tries, tried.last().copied(), NOW_MS);
                        assert!(!tried.contains(&next), "{balancer:?} {many}: {next} after {tried:?}");
                        tried.push(next);
                    }
                    if many < 10 {
                        // Then it begins anew.
                        let next = service.pick(&eligible, subject, many, tried.last().copied(), NOW_MS);
                        assert_eq!(next, tried[0]);
                    }
                }
            }
        }
    }

    #[test]
    fn an_endpoint_that_starts_slowly_has_a_part_of_its_subjects_that_grows() {
        for balancer in BALANCERS {
            let mut service = Service::new(balancer, &[1; 5]);
            let eligible = service.eligible();
            let own: Vec<u32> = (0..4_000).filter(|subject| service.of(&eligible, *subject) == 1).collect();
            service.slow_start = Duration::from_secs(10);
            service.all[0].since_ms.store(NOW_MS, Relaxed);
            let mut before: Vec<u32> = Vec::new();
            for (after_ms, share) in [(0, 0.1), (5_000, 0.5), (9_000, 0.9), (10_000, 1.0)] {
                let at = |subject: &u32| service.pick(&eligible, *subject, 0, None, NOW_MS + after_ms) == 1;
                let now: Vec<u32> = (0..4_000).filter(at).collect();
                let found = now.len() as f64 / own.len() as f64;
                assert!((found - share).abs() < 0.06, "{balancer:?} after {after_ms}: {found}");
                assert!(
                    before.iter().all(|subject| now.contains(subject)) && now.iter().all(|s| own.contains(s))
                );
                before = now;
            }
            // When all start at once, everybody is where it will be.
            for state in &service.all {
                state.since_ms.store(NOW_MS, Relaxed);
            }
            assert!(own.iter().all(|subject| service.of(&eligible, *subject) == 1), "{balancer:?}");
        }
    }

    #[test]
    fn a_table_is_kept_while_its_members_are_the_same() {
        let service = Service::new(LoadBalancer::Maglev, &[1, 2, 3]);
        let before = service.seats.all();
        // Another snapshot, in another order, with other ids.
        let again: Vec<_> = [(7, "3", 3), (8, "1", 1), (9, "2", 2), (10, "2", 1)]
            .map(|(id, address, weight)| endpoint(id, address, weight))
            .into();
        let seats = Seats::of(Kind::Maglev, &again, None, Some(&service.seats));
        assert!(Arc::ptr_eq(&seats.all().order, &before.order));
        assert_eq!(seats.all().owners[&8], before.owners[&1]);
        assert_eq!(seats.all().seated(&again).len(), 3, "an address is one, whatever it stands for");
        let other = Seats::of(Kind::Ring, &again, None, Some(&seats));
        assert!(other.all().order.kind() == Kind::Ring);
        let fewer = Seats::of(Kind::Maglev, &again[1..], None, Some(&seats));
        assert!(!Arc::ptr_eq(&seats.all().order, &fewer.all().order));
    }

    #[test]
    fn a_shard_has_a_table_of_its_own() {
        let rule = "[services.a.sharding]\nkey = \"host\"\nstrategy = \"jump\"\nshards = [\"0\", \"1\"]\n";
        let document = Document::parse_toml(rule).unwrap();
        let sharding = document.services["a"].sharding.as_deref();
        let of_shard = |id: u64, shard: &str| {
            let mut state = Arc::into_inner(endpoint(id, &id.to_string(), 1)).unwrap();
            state.endpoint.shard = Name::parse(shard).unwrap();
            Arc::new(state)
        };
        let all = [of_shard(1, "0"), of_shard(2, "1"), of_shard(3, "1"), of_shard(4, "")];
        for kind in [Kind::Maglev, Kind::Ring] {
            let seats = Seats::of(kind, &all, sharding, None);
            let many = |table: &Table| table.seated(&all).len();
            assert_eq!(many(seats.all()), 4);
            assert_eq!(["0", "1"].map(|shard| many(seats.shard(&Name::parse(shard).unwrap()))), [1, 2]);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn with_a_bound_nobody_has_more_than_its_share_of_it(
            weights in proptest::collection::vec(1_u32..5, 2..12),
            factor in FACTOR_MIN..=FACTOR_MAX,
            steps in proptest::collection::vec((0_u32..6, any::<bool>()), 1..300),
            is_ring in any::<bool>(), shunned in 0_usize..3,
        ) {
            let balancer = BALANCERS[usize::from(is_ring)];
            let service = Service { factor: Some(factor), ..Service::new(balancer, &weights) };
            let eligible = service.eligible();
            for state in service.all.iter().take(shunned.min(weights.len() - 1)) {
                state.shunned_until_ms.store(u64::MAX, Relaxed);
            }
            let asked = &service.all[shunned.min(weights.len() - 1)..];
            let sum: u64 = asked.iter().map(|state| u64::from(state.endpoint.weight)).sum();
            // Few subjects, so that their endpoints would be overrun.
            for (subject, ends) in steps {
                let total: u64 = asked.iter().map(|state| in_flight_of(state)).sum();
                let id = service.of(&eligible, subject);
                let picked = asked.iter().find(|state| state.id == id).expect("one that may be asked");
                let now = picked.in_flight.fetch_add(1, Relaxed) + 1;
                // So many percent of its share of the mean, rounded up.
                let most = (total + 1) as f64 * f64::from(picked.endpoint.weight) / sum as f64 * f64::from(factor) / 100.0;
                prop_assert!(f64::from(now) < most + 1.0 + 1e-6, "{} of {}", now, most);
                if ends && let Some(state) = asked.iter().find(|state| in_flight_of(state) > 0) {
                    state.in_flight.fetch_sub(1, Relaxed);
                }
            }
        }

        #[test]
        fn without_load_the_bound_changes_nothing(subject in any::<u32>(), is_ring in any::<bool>()) {
            let mut service = Service::new(BALANCERS[usize::from(is_ring)], &[1, 2, 3, 4]);
            let eligible = service.eligible();
            let free = service.of(&eligible, subject);
            service.factor = Some(FACTOR_MIN);
            prop_assert_eq!(service.of(&eligible, subject), free);
        }
    }
}
