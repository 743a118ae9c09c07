//! Choosing one endpoint among equals: weights, zones, priorities, slow start, and the ways to balance.

use std::cell::LazyCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use gilmok_config::name::Name;
use gilmok_config::service::LoadBalancer;

use super::by_subject::{Bound, BySubject, Seated, Table};
use super::ejection::RETURN_RAMP;
use super::endpoint::{EndpointState, Health};

/// Who may be chosen: the endpoints of the best priority that has a healthy one, near ones if enough are healthy.
#[derive(Debug, Default)]
pub(crate) struct Eligible {
    endpoints: Vec<Arc<EndpointState>>,
    /// Running sums of the weights; empty where all weights are equal.
    cumulative: Vec<u64>,
    /// Where they stand in the table of a balancer that goes by the subject.
    seated: Option<Seated>,
}

/// How a choice is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice<'a> {
    pub(crate) balancer: LoadBalancer,
    pub(crate) slow_start: Duration,
    /// Where round robin stands.
    pub(crate) turn: &'a AtomicU32,
    /// The endpoint that was tried before, to be left out while there are others.
    pub(crate) except: Option<u64>,
    /// What the balancers that go by the subject go by; absent where there is none.
    pub(crate) subject: Option<BySubject>,
    pub(crate) now_ms: u64,
}

/// The share of an endpoint's weight at the beginning of its slow start.
const SLOW_START_SHARE: f64 = 0.1;
/// How often a draw is repeated because it met an endpoint that is shunned, excluded or starting slowly.
const DRAWS_MAX: usize = 4;
/// Most endpoints of a subject's order that are asked before any of those that may be chosen is good enough.
const ASKED_MAX: usize = 16;
/// The time in which the expected latency of peak EWMA halves towards what it sees; Finagle's default.
const EWMA_DECAY_MS: f64 = 10_000.0;

impl Eligible {
    /// Works out who may be chosen. With `fail_open`, what checks say is not believed.
    pub(crate) fn of(all: &[Arc<EndpointState>], zone: &Name, fail_open: bool) -> Self {
        Self::chosen(&all.iter().collect::<Vec<_>>(), zone, fail_open, false)
    }

    /// Works out who of a version or a shard may be chosen. How many endpoints are left out is counted for the whole
    /// service, so all of these may be: then they are asked all the same, because nobody else may stand in for them.
    pub(crate) fn even_ejected(own: &[&Arc<EndpointState>], zone: &Name, fail_open: bool) -> Self {
        let eligible = Self::chosen(own, zone, fail_open, false);
        if eligible.endpoints.is_empty() { Self::chosen(own, zone, fail_open, true) } else { eligible }
    }

    fn chosen(all: &[&Arc<EndpointState>], zone: &Name, fail_open: bool, with_ejected: bool) -> Self {
        let all = || all.iter().copied();
        let usable = |state: &&Arc<EndpointState>| state.endpoint.weight > 0;
        // Those who decide about ejection see to it that somebody is left.
        let healthy = |state: &&Arc<EndpointState>| {
            (fail_open || state.health() != Health::Unhealthy)
                && (with_ejected || !state.ejection.is_ejected())
        };
        let Some(priority) = all().filter(usable).filter(healthy).map(|state| state.endpoint.priority).min()
        else {
            return Self::default();
        };
        let tier = || all().filter(usable).filter(move |state| state.endpoint.priority == priority);
        let mut chosen: Vec<_> = tier().filter(healthy).cloned().collect();
        // Near endpoints are preferred while at least half of their weight is healthy, so that a zone
        // that loses most of its endpoints spills over instead of overloading the last one.
        let near = |state: &&Arc<EndpointState>| !zone.is_empty() && state.endpoint.zone == *zone;
        let weight = |states: &mut dyn Iterator<Item = &Arc<EndpointState>>| -> u64 {
            states.map(|state| u64::from(state.endpoint.weight)).sum()
        };
        let near_healthy = weight(&mut chosen.iter().filter(near));
        if near_healthy > 0 && near_healthy * 2 >= weight(&mut tier().filter(near)) {
            chosen.retain(|state| near(&state));
        }
        let equal = chosen.windows(2).all(|pair| pair[0].endpoint.weight == pair[1].endpoint.weight);
        let cumulative = if equal {
            Vec::new()
        } else {
            let sums = chosen.iter().scan(0_u64, |sum, state| {
                *sum += u64::from(state.endpoint.weight);
                Some(*sum)
            });
            sums.collect()
        };
        Self { endpoints: chosen, cumulative, seated: None }
    }

    /// Notes where they stand.
    pub(super) fn seat(&mut self, table: &Table) {
        self.seated = Some(table.seated(&self.endpoints));
    }

    pub(crate) fn endpoints(&self) -> &[Arc<EndpointState>] {
        &self.endpoints
    }

    /// Chooses one endpoint; `None` when none is eligible.
    pub(crate) fn pick(&self, choice: &Choice<'_>) -> Option<&Arc<EndpointState>> {
        match self.endpoints.as_slice() {
            [] => None,
            [only] => Some(only),
            _ => Some(match choice.balancer {
                LoadBalancer::LeastRequest => self.better_of_two(choice, load_by_requests),
                LoadBalancer::PeakEwma => self.better_of_two(choice, load_by_latency),
                LoadBalancer::Random => self.draw(choice),
                LoadBalancer::RoundRobin => self.next_in_turn(choice),
                LoadBalancer::Maglev | LoadBalancer::RingHash => match (&choice.subject, &self.seated) {
                    (Some(by), Some(seated)) => self.of_subject(by, seated, choice),
                    (Some(_), None) | (None, _) => self.better_of_two(choice, load_by_requests),
                },
            }),
        }
    }

    fn better_of_two(
        &self,
        choice: &Choice<'_>,
        load: fn(&EndpointState, u64) -> f64,
    ) -> &Arc<EndpointState> {
        let first = self.draw(choice);
        let mut second = self.draw(choice);
        if Arc::ptr_eq(first, second) {
            second = self.draw(choice);
        }
        // Weights are in the draw already; equal load is decided by chance: the draw's order.
        if load(second, choice.now_ms) < load(first, choice.now_ms) { second } else { first }
    }

    /// One endpoint by chance and weight, drawn again where there is a reason not to take it.
    fn draw(&self, choice: &Choice<'_>) -> &Arc<EndpointState> {
        let mut drawn = self.at_random();
        for _ in 0..DRAWS_MAX {
            if is_welcome(drawn, choice) {
                return drawn;
            }
            drawn = self.at_random();
        }
        // Unlucky draws: any that is not excluded, else whatever was drawn last.
        let start = fastrand::usize(..self.endpoints.len());
        let (before, after) = self.endpoints.split_at(start);
        let ring = || after.iter().chain(before);
        let shunned = |state: &&Arc<EndpointState>| state.shunned_until_ms.load(Relaxed) > choice.now_ms;
        let excluded = |state: &&Arc<EndpointState>| choice.except == Some(state.id);
        ring()
            .find(|state| !excluded(state) && !shunned(state))
            .or_else(|| ring().find(|state| !excluded(state)))
            .unwrap_or(drawn)
    }

    fn at_random(&self) -> &Arc<EndpointState> {
        match self.cumulative.last() {
            None => &self.endpoints[fastrand::usize(..self.endpoints.len())],
            Some(total) => self.at_weight(fastrand::u64(..*total)),
        }
    }

    fn next_in_turn(&self, choice: &Choice<'_>) -> &Arc<EndpointState> {
        let mut chosen = &self.endpoints[0];
        for _ in 0..=self.endpoints.len().min(DRAWS_MAX * 4) {
            let turn = choice.turn.fetch_add(1, Relaxed);
            chosen = match self.cumulative.last() {
                None => &self.endpoints[turn as usize % self.endpoints.len()],
                // Steps of the golden ratio walk through the weights evenly instead of in runs.
                Some(total) => {
                    let step = u64::from(turn.wrapping_mul(0x9E37_79B9));
                    self.at_weight((step * *total) >> 32)
                }
            };
            if is_welcome(chosen, choice) {
                break;
            }
        }
        chosen
    }

    /// The first one in the subject's order that nothing speaks against. Each further try begins one later in that order.
    fn of_subject(&self, by: &BySubject, seated: &Seated, choice: &Choice<'_>) -> &Arc<EndpointState> {
        let may_be_asked = |state: &&Arc<EndpointState>| {
            choice.except != Some(state.id) && state.shunned_until_ms.load(Relaxed) <= choice.now_ms
        };
        // Over those who may be asked, so that one of them has room. Whoever is idle has it whatever the others do.
        let bound = LazyCell::new(|| {
            by.factor.and_then(|factor| Bound::over(factor, self.endpoints.iter().filter(may_be_asked)))
        });
        let has_room = |state: &EndpointState| {
            by.factor.is_none()
                || state.in_flight.load(Relaxed) == 0
                || bound.as_ref().is_none_or(|bound| bound.has_room(state))
        };
        let (mut asked, mut many, mut slow) = ([usize::MAX; ASKED_MAX], 0, None);
        let most = ASKED_MAX.min(seated.len());
        let later = by.tries % most.max(1);
        for at in seated.order(by) {
            if asked[..many].contains(&at) {
                continue;
            }
            let state = &self.endpoints[at];
            if many >= later && may_be_asked(&state) && has_room(state) {
                // While it starts slowly, it has a part of its subjects that grows: always the same ones.
                if slow_share(state, choice).is_none_or(|share| by.dice() < share) {
                    return state;
                }
                slow = slow.or(Some(state));
            }
            asked[many] = at;
            many += 1;
            if many == most {
                break;
            }
        }
        let (before, after) = self.endpoints.split_at(by.start(self.endpoints.len()));
        let all = || after.iter().chain(before);
        let others = |state: &&Arc<EndpointState>| choice.except != Some(state.id);
        slow.or_else(|| all().filter(may_be_asked).find(|state| has_room(state)))
            .or_else(|| all().find(others))
            .unwrap_or(&self.endpoints[0])
    }

    fn at_weight(&self, point: u64) -> &Arc<EndpointState> {
        let at = self.cumulative.partition_point(|sum| *sum <= point);
        &self.endpoints[at.min(self.endpoints.len() - 1)]
    }
}

fn is_welcome(state: &EndpointState, choice: &Choice<'_>) -> bool {
    if choice.except == Some(state.id) || state.shunned_until_ms.load(Relaxed) > choice.now_ms {
        return false;
    }
    slow_share(state, choice).is_none_or(|share| fastrand::f64() < share)
}

/// The share of its weight that an endpoint has while it starts slowly.
fn slow_share(state: &EndpointState, choice: &Choice<'_>) -> Option<f64> {
    let returned = state.ejection.returned_at_ms();
    let slow_start = if returned == 0 { choice.slow_start } else { choice.slow_start.max(RETURN_RAMP) };
    if slow_start.is_zero() {
        return None;
    }
    let since = state.since_ms.load(Relaxed).max(returned);
    let age = Duration::from_millis(choice.now_ms.saturating_sub(since));
    let grown = (age.as_secs_f64() / slow_start.as_secs_f64()).min(1.0);
    (grown < 1.0).then_some(grown.max(SLOW_START_SHARE))
}

fn load_by_requests(state: &EndpointState, _now_ms: u64) -> f64 {
    f64::from(state.in_flight.load(Relaxed))
}

/// Expected wait: latency times what is in front, as Finagle's and linkerd's peak EWMA do.
fn load_by_latency(state: &EndpointState, now_ms: u64) -> f64 {
    let age = now_ms.saturating_sub(state.ewma_at_ms.load(Relaxed));
    let faded = state.ewma_ns.load(Relaxed) as f64 * (-(age as f64) / EWMA_DECAY_MS).exp();
    (faded + 1.0) * (f64::from(state.in_flight.load(Relaxed)) + 1.0)
}

/// Notes how long an answer took: a peak is believed at once, better news slowly.
pub(crate) fn note_latency(state: &EndpointState, took: Duration, now_ms: u64) {
    let took_ns = took.as_nanos() as f64;
    let age = now_ms.saturating_sub(state.ewma_at_ms.load(Relaxed)) as f64;
    let known = state.ewma_ns.load(Relaxed) as f64;
    let value = if took_ns > known {
        took_ns
    } else {
        let keep = (-age.max(1.0) / EWMA_DECAY_MS).exp();
        known.mul_add(keep, took_ns * (1.0 - keep))
    };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float cast saturates")]
    state.ewma_ns.store(value as u64, Relaxed);
    state.ewma_at_ms.store(now_ms, Relaxed);
}

#[cfg(test)]
mod tests {
    use gilmok_config::endpoint::Endpoint;
    use proptest::prelude::*;

    use super::*;
    use crate::metrics::TargetSeries;
    use crate::upstream::endpoint::Peer;

    fn endpoint(id: u64, change: impl FnOnce(&mut Endpoint)) -> Arc<EndpointState> {
        let mut endpoint = Endpoint::at(format!("10.0.0.1:{}", id + 1).parse().unwrap());
        change(&mut endpoint);
        let peer = Peer::Tcp(([10, 0, 0, 1], 80).into());
        let series = Arc::new(TargetSeries::new(Name::default(), Name::default(), 1));
        Arc::new(EndpointState::new(id, endpoint, peer, Arc::default(), series, 0))
    }

    fn choice(balancer: LoadBalancer, turn: &AtomicU32) -> Choice<'_> {
        Choice { balancer, slow_start: Duration::ZERO, turn, except: None, subject: None, now_ms: 1_000_000 }
    }

    fn shares(eligible: &Eligible, choice: &Choice<'_>, picks: u32) -> Vec<f64> {
        let mut counts = vec![0_u32; eligible.endpoints().len()];
        for _ in 0..picks {
            let picked = eligible.pick(choice).unwrap();
            let at = eligible.endpoints().iter().position(|state| Arc::ptr_eq(state, picked)).unwrap();
            counts[at] += 1;
        }
        counts.into_iter().map(|count| f64::from(count) / f64::from(picks)).collect()
    }

    fn ids(eligible: &Eligible) -> Vec<u64> {
        eligible.endpoints().iter().map(|state| state.id).collect()
    }

    #[test]
    fn the_best_priority_with_a_healthy_endpoint_is_used() {
        let all = [endpoint(1, |_| ()), endpoint(2, |e| e.priority = 1), endpoint(3, |e| e.priority = 1)];
        assert_eq!(ids(&Eligible::of(&all, &Name::default(), false)), [1]);
        all[0].note_health(Health::Unhealthy);
        all[1].note_health(Health::Unhealthy);
        assert_eq!(ids(&Eligible::of(&all, &Name::default(), false)), [3]);
        // Whoever does not believe checks uses the first priority.
        assert_eq!(ids(&Eligible::of(&all, &Name::default(), true)), [1]);
    }

    #[test]
    fn near_endpoints_are_preferred_while_half_of_them_is_healthy() {
        let here = Name::parse("a").unwrap();
        let all: Vec<_> = (1..=4)
            .map(|id| endpoint(id, |e| e.zone = Name::parse(if id <= 3 { "a" } else { "b" }).unwrap()))
            .collect();
        assert_eq!(ids(&Eligible::of(&all, &here, false)), [1, 2, 3]);
        all[0].note_health(Health::Unhealthy);
        assert_eq!(ids(&Eligible::of(&all, &here, false)), [2, 3]);
        all[1].note_health(Health::Unhealthy);
        assert_eq!(ids(&Eligible::of(&all, &here, false)), [3, 4]);
        assert_eq!(ids(&Eligible::of(&all, &Name::parse("c").unwrap(), false)), [3, 4]);
    }

    #[test]
    fn an_endpoint_of_weight_zero_takes_nothing() {
        let all = [endpoint(1, |e| e.weight = 0)];
        let turn = AtomicU32::new(0);
        assert!(
            Eligible::of(&all, &Name::default(), true).pick(&choice(LoadBalancer::Random, &turn)).is_none()
        );
    }

    #[test]
    fn weights_are_kept_by_every_balancer() {
        let all = [endpoint(1, |e| e.weight = 1), endpoint(2, |e| e.weight = 3)];
        let eligible = Eligible::of(&all, &Name::default(), false);
        let turn = AtomicU32::new(0);
        for balancer in [LoadBalancer::Random, LoadBalancer::RoundRobin] {
            let shares = shares(&eligible, &choice(balancer, &turn), 40_000);
            assert!((shares[1] - 0.75).abs() < 0.02, "{balancer:?}: {shares:?}");
        }
    }

    #[test]
    fn round_robin_takes_turns() {
        let all = [endpoint(1, |_| ()), endpoint(2, |_| ()), endpoint(3, |_| ())];
        let eligible = Eligible::of(&all, &Name::default(), false);
        let turn = AtomicU32::new(0);
        let picked: Vec<_> =
            (0..6).map(|_| eligible.pick(&choice(LoadBalancer::RoundRobin, &turn)).unwrap().id).collect();
        assert_eq!(picked, [1, 2, 3, 1, 2, 3]);
    }

    #[test]
    fn the_less_loaded_of_two_is_taken_and_equal_load_is_decided_by_chance() {
        let all = [endpoint(1, |_| ()), endpoint(2, |_| ())];
        let eligible = Eligible::of(&all, &Name::default(), false);
        let turn = AtomicU32::new(0);
        let even = shares(&eligible, &choice(LoadBalancer::LeastRequest, &turn), 20_000);
        assert!((even[0] - 0.5).abs() < 0.02, "{even:?}");
        all[0].in_flight.store(9, Relaxed);
        // Two draws that both meet the loaded one still take it: a quarter, less what a third draw saves.
        let uneven = shares(&eligible, &choice(LoadBalancer::LeastRequest, &turn), 20_000);
        assert!(uneven[0] < 0.15, "{uneven:?}");
    }

    #[test]
    fn a_slow_endpoint_is_avoided_by_its_latency_until_that_fades() {
        let all = [endpoint(1, |_| ()), endpoint(2, |_| ())];
        note_latency(&all[0], Duration::from_millis(500), 1_000_000);
        note_latency(&all[1], Duration::from_millis(5), 1_000_000);
        let eligible = Eligible::of(&all, &Name::default(), false);
        let turn = AtomicU32::new(0);
        let shares = shares(&eligible, &choice(LoadBalancer::PeakEwma, &turn), 20_000);
        assert!(shares[0] < 0.15, "{shares:?}");
        let later = load_by_latency(&all[0], 1_000_000 + 200_000);
        assert!(
            later < load_by_latency(&all[1], 1_000_000),
            "a peak of long ago must not be held against it"
        );
    }

    #[test]
    fn a_new_endpoint_starts_slowly() {
        let all = [endpoint(1, |_| ()), endpoint(2, |_| ())];
        all[1].since_ms.store(1_000_000, Relaxed);
        let eligible = Eligible::of(&all, &Name::default(), false);
        let turn = AtomicU32::new(0);
        let slow = Choice { slow_start: Duration::from_secs(10), ..choice(LoadBalancer::Random, &turn) };
        let begin = shares(&eligible, &slow, 20_000);
        assert!(begin[1] > 0.05 && begin[1] < 0.15, "{begin:?}");
        let grown = shares(&eligible, &Choice { now_ms: 1_010_000, ..slow }, 20_000);
        assert!((grown[1] - 0.5).abs() < 0.02, "{grown:?}");
    }

    #[test]
    fn whoever_could_not_be_connected_to_is_left_out_while_there_are_others() {
        let all = [endpoint(1, |_| ()), endpoint(2, |_| ())];
        all[0].shunned_until_ms.store(2_000_000, Relaxed);
        let eligible = Eligible::of(&all, &Name::default(), false);
        let turn = AtomicU32::new(0);
        for balancer in [
            LoadBalancer::LeastRequest,
            LoadBalancer::Maglev,
            LoadBalancer::PeakEwma,
            LoadBalancer::Random,
            LoadBalancer::RoundRobin,
        ] {
            let shares = shares(&eligible, &choice(balancer, &turn), 1_000);
            assert!((shares[1] - 1.0).abs() < f64::EPSILON, "{balancer:?}: {shares:?}");
        }
        all[1].shunned_until_ms.store(2_000_000, Relaxed);
        assert!(eligible.pick(&choice(LoadBalancer::Random, &turn)).is_some(), "somebody must be asked");
    }

    proptest! {
        #[test]
        fn a_pick_is_one_of_the_eligible_and_a_retry_goes_elsewhere(
            weights in proptest::collection::vec(0_u32..10, 1..20),
            sick in proptest::collection::vec(any::<bool>(), 20),
            seed in any::<u64>(),
            balancer in prop_oneof![
                Just(LoadBalancer::LeastRequest), Just(LoadBalancer::PeakEwma),
                Just(LoadBalancer::Random), Just(LoadBalancer::RoundRobin),
            ],
        ) {
            fastrand::seed(seed);
            let all: Vec<_> = weights
                .iter()
                .zip(&sick)
                .zip(1..)
                .map(|((weight, sick), id)| {
                    let state = endpoint(id, |e| e.weight = *weight);
                    if *sick { state.note_health(Health::Unhealthy); }
                    state
                })
                .collect();
            let able = all.iter().filter(|s| s.endpoint.weight > 0 && s.health() != Health::Unhealthy).count();
            let eligible = Eligible::of(&all, &Name::default(), false);
            prop_assert_eq!(eligible.endpoints().len(), able);
            let turn = AtomicU32::new(0);
            match eligible.pick(&choice(balancer, &turn)) {
                None => prop_assert_eq!(able, 0),
                Some(first) => {
                    prop_assert!(first.endpoint.weight > 0 && first.health() != Health::Unhealthy);
                    let again = Choice { except: Some(first.id), ..choice(balancer, &turn) };
                    let second = eligible.pick(&again).map(|state| state.id);
                    prop_assert!(able == 1 || balancer == LoadBalancer::RoundRobin || second != Some(first.id));
                }
            }
        }
    }
}
