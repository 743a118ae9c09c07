//! Choosing one endpoint among equals: weights, zones, priorities, slow start, and four ways to balance.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use gilmok_config::name::Name;
use gilmok_config::service::LoadBalancer;

use super::endpoint::{EndpointState, Health};

/// Who may be chosen: the endpoints of the best priority that has a healthy one, near ones if enough are healthy.
#[derive(Debug, Default)]
pub(crate) struct Eligible {
    endpoints: Vec<Arc<EndpointState>>,
    /// Running sums of the weights; empty where all weights are equal.
    cumulative: Vec<u64>,
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
    pub(crate) now_ms: u64,
}

/// The share of an endpoint's weight at the beginning of its slow start.
const SLOW_START_SHARE: f64 = 0.1;
/// How often a draw is repeated because it met an endpoint that is shunned, excluded or starting slowly.
const DRAWS_MAX: usize = 4;
/// The time in which the expected latency of peak EWMA halves towards what it sees; Finagle's default.
const EWMA_DECAY_MS: f64 = 10_000.0;

impl Eligible {
    /// Works out who may be chosen. With `fail_open`, what checks say is not believed.
    pub(crate) fn of(all: &[Arc<EndpointState>], zone: &Name, fail_open: bool) -> Self {
        let usable = |state: &&Arc<EndpointState>| state.endpoint.weight > 0;
        let healthy = |state: &&Arc<EndpointState>| fail_open || state.health() != Health::Unhealthy;
        let Some(priority) =
            all.iter().filter(usable).filter(healthy).map(|state| state.endpoint.priority).min()
        else {
            return Self::default();
        };
        let tier = || all.iter().filter(usable).filter(move |state| state.endpoint.priority == priority);
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
        Self { endpoints: chosen, cumulative }
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

    fn at_weight(&self, point: u64) -> &Arc<EndpointState> {
        let at = self.cumulative.partition_point(|sum| *sum <= point);
        &self.endpoints[at.min(self.endpoints.len() - 1)]
    }
}

fn is_welcome(state: &EndpointState, choice: &Choice<'_>) -> bool {
    if choice.except == Some(state.id) || state.shunned_until_ms.load(Relaxed) > choice.now_ms {
        return false;
    }
    if choice.slow_start.is_zero() {
        return true;
    }
    let age = Duration::from_millis(choice.now_ms.saturating_sub(state.since_ms.load(Relaxed)));
    let grown = (age.as_secs_f64() / choice.slow_start.as_secs_f64()).min(1.0);
    grown >= 1.0 || fastrand::f64() < grown.max(SLOW_START_SHARE)
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
