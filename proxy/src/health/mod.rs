//! Active health checks: who is asked, how often, and what the answers come to.
//!
//! A check that never passed on any endpoint of a service takes none out: then it is the check that is wrong,
//! or the service has not started, and refusing everything would help nobody. `gilmok_health_fail_open` says so.

mod probe;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use gilmok_config::health::HealthCheckPolicy;
use gilmok_config::name::ServiceName;
use gilmok_config::service::Protocol;
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use self::probe::Probed;
use crate::clock;
use crate::current::{Current, InForce};
use crate::settings::App;
use crate::tls::Dial;
use crate::upstream::endpoint::{EndpointState, Health, Peer};
use crate::upstream::service::Upstream;

/// Checks under way at a time: each is a socket and a few kilobytes.
const CHECKS_IN_FLIGHT_MAX: usize = 256;
/// Intervals vary by so much, so that proxies that began together do not ask together.
const JITTER: f64 = 0.1;

/// Starts the checks; the tasks end with `tasks`. Answers for each app whether it is healthy.
pub(crate) fn start(
    apps: &[App],
    in_force: &Arc<InForce>,
    tasks: &mut JoinSet<()>,
) -> Vec<watch::Sender<bool>> {
    let in_flight = Arc::new(Semaphore::new(CHECKS_IN_FLIGHT_MAX));
    tasks.spawn(follow(Arc::clone(in_force), Arc::clone(&in_flight)));
    let start_app = |(place, app): (usize, &App)| {
        // What is not asked is believed.
        let healthy = watch::Sender::new(app.health_check.is_none());
        if let Some(policy) = app.health_check.clone() {
            let (in_force, in_flight) = (Arc::clone(in_force), Arc::clone(&in_flight));
            let (service, sender) = (app.service.clone(), healthy.clone());
            tasks.spawn(check_app(place, service, policy, in_force, in_flight, sender));
        }
        healthy
    };
    apps.iter().enumerate().map(start_app).collect()
}

/// Which check of which endpoint a task runs; another one when anything of it changes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Check {
    endpoint: u64,
    service: ServiceName,
    peer: Peer,
    protocol: Protocol,
    policy: HealthCheckPolicy,
}

/// Keeps one task for each endpoint that a policy wants checked.
async fn follow(in_force: Arc<InForce>, in_flight: Arc<Semaphore>) {
    // Dropping the set ends the tasks.
    let mut tasks = JoinSet::new();
    let mut running: HashMap<Check, AbortHandle> = HashMap::new();
    let mut policies: HashMap<ServiceName, HealthCheckPolicy> = HashMap::new();
    let mut generations = in_force.generations();
    loop {
        generations.mark_unchanged();
        let current = in_force.load();
        let wanted = checks_of(&current);
        running.retain(|check, task| {
            let keep = wanted.contains_key(check);
            if !keep {
                task.abort();
            }
            keep
        });
        for (check, state) in wanted {
            running.entry(check).or_insert_with_key(|check| {
                let health = Thresholds::after(state.health());
                tasks.spawn(check_endpoint(
                    check.clone(),
                    state.dial.clone(),
                    health,
                    Arc::clone(&in_force),
                    Arc::clone(&in_flight),
                ))
            });
        }
        forget(&current);
        policies = renew(&current, &policies);
        // What was noted while this snapshot was built may be missing in it.
        for upstream in current.upstreams.iter().filter(|upstream| upstream.policy.health_check.is_some()) {
            judge(upstream);
        }
        loop {
            tokio::select! {
                changed = generations.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                // Only to forget those that were aborted; checks do not end by themselves.
                Some(_) = tasks.join_next() => {}
            }
        }
    }
}

fn checks_of(current: &Current) -> HashMap<Check, Arc<EndpointState>> {
    let mut checks = HashMap::new();
    for upstream in &current.upstreams {
        let Some(policy) = &upstream.policy.health_check else { continue };
        for state in &upstream.endpoints {
            let check = Check {
                endpoint: state.id,
                service: upstream.name.clone(),
                peer: state.peer.clone(),
                protocol: upstream.policy.protocol,
                policy: policy.clone(),
            };
            checks.insert(check, Arc::clone(state));
        }
    }
    checks
}

/// A check that was changed has to pass once before it is believed: the new path may be the wrong one.
fn renew(
    current: &Current,
    before: &HashMap<ServiceName, HealthCheckPolicy>,
) -> HashMap<ServiceName, HealthCheckPolicy> {
    let mut policies = HashMap::new();
    for upstream in &current.upstreams {
        let Some(policy) = &upstream.policy.health_check else { continue };
        if before.get(&upstream.name).is_some_and(|before| before.probe != policy.probe) {
            upstream.shared.check_passed.store(false, Relaxed);
        }
        policies.insert(upstream.name.clone(), policy.clone());
    }
    policies
}

/// A service that is no longer checked has no sick endpoints.
fn forget(current: &Current) {
    for upstream in current.upstreams.iter().filter(|upstream| upstream.policy.health_check.is_none()) {
        let known = upstream.endpoints.iter().filter(|state| state.health() != Health::Unknown);
        let mut changed = upstream.shared.check_passed.swap(false, Relaxed);
        changed |= upstream.shared.fail_open.swap(false, Relaxed);
        for state in known {
            state.note_health(Health::Unknown);
            changed = true;
        }
        if changed {
            upstream.refresh(clock::now_ms());
        }
    }
}

/// Counts answers in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Thresholds {
    health: Health,
    passes: u32,
    failures: u32,
}

impl Thresholds {
    /// Goes on from what was known before.
    fn after(health: Health) -> Self {
        Self { health, passes: 0, failures: 0 }
    }

    /// Takes one answer; whether the endpoint's health has changed.
    fn take(&mut self, passed: bool, policy: &HealthCheckPolicy) -> bool {
        let before = self.health;
        if passed {
            self.passes = self.passes.saturating_add(1);
            self.failures = 0;
            // Who was never seen failing needs one pass to be known as healthy.
            if self.passes >= policy.healthy_threshold || before == Health::Unknown {
                self.health = Health::Healthy;
            }
        } else {
            self.failures = self.failures.saturating_add(1);
            self.passes = 0;
            if self.failures >= policy.unhealthy_threshold {
                self.health = Health::Unhealthy;
            }
        }
        self.health != before
    }
}

/// Checks one endpoint until it is aborted: at once, then spread, then at its interval.
async fn check_endpoint(
    check: Check,
    dial: Option<Arc<Dial>>,
    mut thresholds: Thresholds,
    in_force: Arc<InForce>,
    in_flight: Arc<Semaphore>,
) {
    let mut first = true;
    loop {
        let answer =
            ask((&check.peer, dial.as_deref()), &check.service, check.protocol, &check.policy, &in_flight)
                .await;
        let changed = thresholds.take(answer.is_ok(), &check.policy);
        note(&check, thresholds.health, changed, answer, &in_force);
        sleep(pause(check.policy.interval, first)).await;
        first = false;
    }
}

/// From one check to the next. The first pause is any part of the interval, so that endpoints that
/// appeared together are not asked together for ever.
fn pause(interval: Duration, first: bool) -> Duration {
    if first {
        interval.mul_f64(fastrand::f64())
    } else {
        interval.mul_f64(1.0 - JITTER + 2.0 * JITTER * fastrand::f64())
    }
}

async fn ask(
    (peer, dial): (&Peer, Option<&Dial>),
    service: &ServiceName,
    protocol: Protocol,
    policy: &HealthCheckPolicy,
    in_flight: &Semaphore,
) -> Probed {
    // The semaphore is never closed.
    let _permit = in_flight.acquire().await;
    probe::ask((peer, dial), service, protocol, policy).await
}

fn note(check: &Check, health: Health, changed: bool, answer: Probed, in_force: &InForce) {
    let current = in_force.load();
    let Some(upstream) =
        current.snapshot.service_index(check.service.as_str()).map(|at| &current.upstreams[at])
    else {
        return;
    };
    let passed = answer.is_ok();
    if passed {
        upstream.shared.check_passed.store(true, Relaxed);
    }
    let mut differs = false;
    for state in upstream.endpoints.iter().filter(|state| state.id == check.endpoint) {
        if state.health() != health {
            if state.health() == Health::Unhealthy {
                // Back from the dead: its share grows as if it were new.
                state.since_ms.store(clock::now_ms(), Relaxed);
            }
            state.note_health(health);
            differs = true;
        }
    }
    if changed {
        match answer {
            Ok(()) => tracing::info!("{} at {}: healthy", check.service, check.peer),
            Err(why) => tracing::warn!("{} at {}: unhealthy: {why}", check.service, check.peer),
        }
    }
    let fails_open = upstream.shared.fail_open.load(Relaxed);
    if differs || (fails_open && passed) {
        judge(upstream);
    }
}

/// Works out who may be chosen, by the fail-open rule.
fn judge(upstream: &Upstream) {
    let some_unhealthy = upstream.endpoints.iter().any(|state| state.health() == Health::Unhealthy);
    let fail_open = some_unhealthy && !upstream.shared.check_passed.load(Relaxed);
    if upstream.shared.fail_open.swap(fail_open, Relaxed) != fail_open {
        if fail_open {
            tracing::warn!(
                "{}: no check has ever passed on any endpoint; not believing it, using all of them",
                upstream.name
            );
        } else {
            tracing::info!("{}: checks are believed", upstream.name);
        }
    }
    upstream.refresh(clock::now_ms());
}

/// Checks an app beside this proxy until the process ends.
async fn check_app(
    place: usize,
    service: ServiceName,
    policy: HealthCheckPolicy,
    in_force: Arc<InForce>,
    in_flight: Arc<Semaphore>,
    healthy: watch::Sender<bool>,
) {
    let mut generations = in_force.generations();
    // Its address is known once something is in force.
    if generations.wait_for(|generation| *generation > 0).await.is_err() {
        return;
    }
    let mut thresholds = Thresholds::after(Health::Unknown);
    loop {
        let current = in_force.load();
        let app = current.apps.get(place).and_then(|app| Some((app.policy.protocol, app.endpoints.first()?)));
        let answer = match app {
            Some((protocol, state)) => {
                ask((&state.peer, None), &service, protocol, &policy, &in_flight).await
            }
            None => Err("its address has not been resolved".to_owned()),
        };
        thresholds.take(answer.is_ok(), &policy);
        let now = thresholds.health == Health::Healthy;
        let changed = healthy.send_if_modified(|before| std::mem::replace(before, now) != now);
        match answer {
            Err(why) if changed => tracing::warn!("the app {service} beside this proxy: unhealthy: {why}"),
            Ok(()) if changed => tracing::info!("the app {service} beside this proxy: healthy"),
            Ok(()) | Err(_) => {}
        }
        // Until it is up for the first time it is asked more often, so that starting costs no whole interval.
        let interval = if thresholds.health == Health::Unknown {
            policy.interval.min(STARTING_INTERVAL)
        } else {
            policy.interval
        };
        sleep(pause(interval, false)).await;
    }
}

/// How often an app that has not been seen healthy yet is asked.
const STARTING_INTERVAL: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests;
