//! The embedded registry: endpoints that say of themselves that they are alive, again and again.
//!
//! A heartbeat is neither a revision nor a disk write. After a start nothing expires for one time to live:
//! whoever was there gets the chance to say so again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gilmok_config::name::ServiceName;
use gilmok_config::service::ENDPOINTS_MAX;
use gilmok_config::unit::{format_duration, parse_duration};
use gilmok_config::wire::Registration;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use super::{Member, Source, Status, View};

/// How long an endpoint is believed when it does not say.
pub const TTL_DEFAULT: Duration = Duration::from_secs(10);
const TTL_MIN: Duration = Duration::from_millis(500);
const TTL_MAX: Duration = Duration::from_hours(1);
/// Longest id of an endpoint, in bytes.
const ID_BYTES_MAX: usize = 200;
/// Most services that may be registered.
const SERVICES_MAX: usize = gilmok_config::document::SERVICES_MAX;
/// How long an expired endpoint is shown to people.
const SHOWN_AFTER_DEATH: Duration = Duration::from_mins(5);

/// The embedded registry.
#[derive(Debug)]
pub struct Registry {
    /// A mutex: held for a look-up or a rebuild of the view, never across an await.
    entries: Mutex<Entries>,
    view: watch::Sender<Arc<View>>,
    /// Wakes the task that expires when an earlier deadline came in.
    earlier: Notify,
}

type Entries = BTreeMap<ServiceName, BTreeMap<String, Entry>>;

#[derive(Clone, Debug)]
struct Entry {
    registration: Registration,
    ttl: Duration,
    /// When it expires, or when it is forgotten once it has.
    deadline: Instant,
    expired: bool,
}

/// An entry as it is kept for the next start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeptEntry {
    pub service: ServiceName,
    pub id: String,
    pub registration: Registration,
}

/// Why an endpoint is not registered; the text says what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryRefusal {
    #[error("an id has 1 to {ID_BYTES_MAX} of a-z, A-Z, 0-9, '-', '_', '.', ':'")]
    Id,
    #[error("{0}")]
    Ttl(String),
    #[error("there are {0} already")]
    TooMany(String),
}

/// What a registration changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registered {
    /// It was not there before.
    Created,
    /// It was there with something else.
    Changed,
    /// It was there and is as it was.
    Renewed,
}

impl Registry {
    /// Starts with what was there when the process before this one ended; all of it has one time to live to come back.
    #[must_use]
    pub fn new(kept: Vec<KeptEntry>) -> Self {
        let mut entries = Entries::new();
        for KeptEntry { service, id, registration } in kept {
            let Ok(ttl) = ttl_of(&registration) else { continue };
            let entry = Entry { registration, ttl, deadline: Instant::now() + ttl, expired: false };
            entries.entry(service).or_default().insert(id, entry);
        }
        let view = watch::Sender::new(Arc::new(view_of(&entries)));
        Self { entries: Mutex::new(entries), view, earlier: Notify::new() }
    }

    /// Follows who is registered.
    #[must_use]
    pub fn views(&self) -> watch::Receiver<Arc<View>> {
        self.view.subscribe()
    }

    /// Registers an endpoint, or says that it is still there.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn put(
        &self,
        service: ServiceName,
        id: &str,
        registration: Registration,
    ) -> Result<Registered, RegistryRefusal> {
        let is_safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
        if id.is_empty() || id.len() > ID_BYTES_MAX || !id.bytes().all(is_safe) {
            return Err(RegistryRefusal::Id);
        }
        let ttl = ttl_of(&registration)?;
        let mut entries = self.lock();
        if entries.len() >= SERVICES_MAX && !entries.contains_key(&service) {
            return Err(RegistryRefusal::TooMany(format!("{SERVICES_MAX} services")));
        }
        let of_service = entries.entry(service).or_default();
        if of_service.len() >= ENDPOINTS_MAX && !of_service.contains_key(id) {
            return Err(RegistryRefusal::TooMany(format!("{ENDPOINTS_MAX} endpoints of this service")));
        }
        let deadline = Instant::now() + ttl;
        let registered = match of_service.get(id).filter(|entry| !entry.expired) {
            None => Registered::Created,
            Some(entry) if entry.registration.endpoint == registration.endpoint => Registered::Renewed,
            Some(_) => Registered::Changed,
        };
        of_service.insert(id.to_owned(), Entry { registration, ttl, deadline, expired: false });
        if registered != Registered::Renewed {
            self.publish(&entries);
        }
        drop(entries);
        self.earlier.notify_one();
        Ok(registered)
    }

    /// Takes an endpoint out; answers whether it was there.
    pub fn delete(&self, service: &ServiceName, id: &str) -> bool {
        let mut entries = self.lock();
        let Some(of_service) = entries.get_mut(service) else { return false };
        let removed = of_service.remove(id).is_some();
        if of_service.is_empty() {
            entries.remove(service);
        }
        if removed {
            self.publish(&entries);
        }
        removed
    }

    /// Expires what was not heard of. Runs until it is dropped.
    pub async fn expire(&self) {
        loop {
            let next = self.expire_now(Instant::now());
            match next {
                Some(next) => tokio::select! {
                    () = sleep_until(next) => {}
                    () = self.earlier.notified() => {}
                },
                None => self.earlier.notified().await,
            }
        }
    }

    /// What is to be kept for the next start.
    #[must_use]
    pub fn kept(&self) -> Vec<KeptEntry> {
        let entries = self.lock();
        let alive = entries.iter().flat_map(|(service, entries)| {
            let alive = entries.iter().filter(|(_, entry)| !entry.expired);
            alive.map(|(id, entry)| KeptEntry {
                service: service.clone(),
                id: id.clone(),
                registration: entry.registration.clone(),
            })
        });
        alive.collect()
    }

    /// Expires and forgets what is overdue; answers when something will be next.
    fn expire_now(&self, now: Instant) -> Option<Instant> {
        let mut entries = self.lock();
        let mut changed = false;
        for of_service in entries.values_mut() {
            for entry in of_service.values_mut().filter(|entry| entry.deadline <= now && !entry.expired) {
                entry.expired = true;
                entry.deadline = now + SHOWN_AFTER_DEATH;
                changed = true;
            }
            let before = of_service.len();
            of_service.retain(|_, entry| entry.deadline > now);
            changed |= of_service.len() != before;
        }
        entries.retain(|_, of_service| !of_service.is_empty());
        if changed {
            self.publish(&entries);
        }
        entries.values().flat_map(BTreeMap::values).map(|entry| entry.deadline).min()
    }

    fn publish(&self, entries: &Entries) {
        self.view.send_replace(Arc::new(view_of(entries)));
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        // Whoever panicked left whole entries: each is replaced in one step.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ttl_of(registration: &Registration) -> Result<Duration, RegistryRefusal> {
    let Some(text) = &registration.ttl else { return Ok(TTL_DEFAULT) };
    let ttl = parse_duration(text).map_err(|hint| RegistryRefusal::Ttl(format!("ttl: {hint}")))?;
    if (TTL_MIN..=TTL_MAX).contains(&ttl) {
        return Ok(ttl);
    }
    let (least, most) = (format_duration(TTL_MIN), format_duration(TTL_MAX));
    Err(RegistryRefusal::Ttl(format!("ttl: {least} to {most}")))
}

fn view_of(entries: &Entries) -> View {
    let mut view = View::default();
    for (service, of_service) in entries {
        let alive = of_service.values().filter(|entry| !entry.expired);
        view.endpoints
            .insert(service.clone(), alive.map(|entry| entry.registration.endpoint.clone()).collect());
        let members = of_service.iter().map(|(id, entry)| Member {
            id: id.clone(),
            endpoint: entry.registration.endpoint.clone(),
            status: if entry.expired { Status::Critical } else { Status::Passing },
            node: String::new(),
            note: if entry.expired {
                format!("not heard of for {}", format_duration(entry.ttl))
            } else {
                String::new()
            },
            source: Source::Registry,
        });
        view.members.insert(service.clone(), members.collect());
    }
    view
}

#[cfg(test)]
mod tests {
    use gilmok_config::endpoint::Endpoint;

    use super::*;

    fn registration(port: u16, ttl: &str) -> Registration {
        let endpoint = Endpoint::at(format!("10.0.0.1:{port}").parse().unwrap());
        Registration { endpoint, ttl: Some(ttl.to_owned()) }
    }

    fn ads() -> ServiceName {
        ServiceName::parse("ads").unwrap()
    }

    fn alive(registry: &Registry) -> usize {
        registry.views().borrow().endpoints.get("ads").map_or(0, |endpoints| endpoints.len())
    }

    async fn pass(registry: &Registry, duration: Duration) {
        tokio::select! {
            () = registry.expire() => {}
            () = tokio::time::sleep(duration) => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_lives_as_long_as_it_says_so() {
        let registry = Registry::new(Vec::new());
        assert_eq!(registry.put(ads(), "a", registration(1, "10s")), Ok(Registered::Created));
        pass(&registry, Duration::from_secs(9)).await;
        assert_eq!(registry.put(ads(), "a", registration(1, "10s")), Ok(Registered::Renewed));
        pass(&registry, Duration::from_secs(9)).await;
        assert_eq!(alive(&registry), 1);
        pass(&registry, Duration::from_secs(2)).await;
        assert_eq!(alive(&registry), 0);
        let view = registry.views().borrow().clone();
        assert_eq!(view.members["ads"][0].status, Status::Critical, "people still see it");
        pass(&registry, SHOWN_AFTER_DEATH).await;
        assert!(registry.views().borrow().members.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_publishes_nothing() {
        let registry = Registry::new(Vec::new());
        registry.put(ads(), "a", registration(1, "10s")).unwrap();
        let mut views = registry.views();
        views.mark_unchanged();
        registry.put(ads(), "a", registration(1, "10s")).unwrap();
        assert!(!views.has_changed().unwrap());
        assert_eq!(registry.put(ads(), "a", registration(2, "10s")), Ok(Registered::Changed));
        assert!(views.has_changed().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_start_nothing_expires_for_one_time_to_live() {
        let registry = Registry::new(Vec::new());
        registry.put(ads(), "a", registration(1, "10s")).unwrap();
        let again = Registry::new(registry.kept());
        pass(&again, Duration::from_secs(9)).await;
        assert_eq!(alive(&again), 1);
        pass(&again, Duration::from_secs(2)).await;
        assert_eq!(alive(&again), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_life_that_comes_later_ends_first() {
        let registry = Arc::new(Registry::new(Vec::new()));
        registry.put(ads(), "long", registration(1, "1h")).unwrap();
        let expiring = tokio::spawn({
            let registry = Arc::clone(&registry);
            async move { registry.expire().await }
        });
        tokio::task::yield_now().await;
        registry.put(ads(), "short", registration(2, "1s")).unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(alive(&registry), 1);
        expiring.abort();
    }

    #[test]
    fn nonsense_is_refused() {
        let registry = Registry::new(Vec::new());
        for id in ["", "a/b", "a b", "ä", &"x".repeat(201)] {
            assert_eq!(registry.put(ads(), id, registration(1, "10s")), Err(RegistryRefusal::Id), "{id}");
        }
        for ttl in ["", "10", "1ms", "2h", "soon"] {
            let refused = registry.put(ads(), "a", registration(1, ttl));
            assert!(matches!(refused, Err(RegistryRefusal::Ttl(_))), "{ttl}");
        }
        assert!(!registry.delete(&ads(), "a"));
    }
}
