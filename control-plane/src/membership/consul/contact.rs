//! How long ago each watch heard from Consul, and what keeps it from it: for metrics, logs and the watchdog.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The name of the metric.
pub const LAST_CONTACT: &str = "gilmok_consul_last_contact_seconds";

/// The watches that exist and when they last heard from Consul.
#[derive(Clone, Debug, Default)]
pub struct Contacts {
    // A std mutex: held for one look-up, never across an await.
    watches: Arc<Mutex<BTreeMap<String, Contact>>>,
}

#[derive(Debug)]
struct Contact {
    /// The last answer, or the watch's beginning.
    answered: Instant,
    /// The last sign of life of the watch itself.
    turned: Instant,
    /// The kind of error that its last try failed with.
    fault: Option<&'static str>,
}

impl Contacts {
    /// Seconds since each watch last had an answer (or began), by watch.
    #[must_use]
    pub fn ages(&self) -> Vec<(String, f64)> {
        let now = Instant::now();
        let age = |at: Instant| now.saturating_duration_since(at).as_secs_f64();
        self.lock().iter().map(|(watch, contact)| (watch.clone(), age(contact.answered))).collect()
    }

    /// Writes the metric in Prometheus' text format. Watches that ended have no series.
    pub fn render(&self, out: &mut String) {
        let ages = self.ages();
        if ages.is_empty() {
            return;
        }
        out.push_str(&format!(
            "# HELP {LAST_CONTACT} Seconds since a watch last had an answer from Consul.
"
        ));
        out.push_str(&format!(
            "# TYPE {LAST_CONTACT} gauge
"
        ));
        for (watch, age) in ages {
            // The names are those of services and need no escaping.
            out.push_str(&format!(
                "{LAST_CONTACT}{{watch=\"{watch}\"}} {age:.3}
"
            ));
        }
    }

    pub(super) fn begin(&self, watch: &str) {
        let now = Instant::now();
        self.lock().entry(watch.to_owned()).and_modify(|contact| contact.turned = now).or_insert(Contact {
            answered: now,
            turned: now,
            fault: None,
        });
    }

    pub(super) fn end(&self, watch: &str) {
        self.lock().remove(watch);
    }

    /// Notes that a watch goes on, whatever came of its last step.
    pub(super) fn turned(&self, watch: &str) {
        if let Some(contact) = self.lock().get_mut(watch) {
            contact.turned = Instant::now();
        }
    }

    /// Notes an answer; says whether the watch had failed before and no other fails now.
    pub(super) fn answered(&self, watch: &str) -> bool {
        let mut watches = self.lock();
        let Some(contact) = watches.get_mut(watch) else { return false };
        contact.answered = Instant::now();
        contact.turned = contact.answered;
        contact.fault.take().is_some() && watches.values().all(|contact| contact.fault.is_none())
    }

    /// Notes an error; says whether its kind is news, i.e. neither this watch nor another fails with the same.
    pub(super) fn failed(&self, watch: &str, kind: &'static str) -> bool {
        let mut watches = self.lock();
        let news = watches.values().all(|contact| contact.fault != Some(kind));
        if let Some(contact) = watches.get_mut(watch) {
            contact.turned = Instant::now();
            contact.fault = Some(kind);
        }
        news
    }

    /// The watches that have given no sign of life for longer than `limit`.
    pub(super) fn stuck(&self, limit: Duration) -> Vec<String> {
        let now = Instant::now();
        let stuck = |contact: &Contact| now.saturating_duration_since(contact.turned) > limit;
        self.lock().iter().filter(|(_, contact)| stuck(contact)).map(|(watch, _)| watch.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Contact>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ages_grow_until_an_answer_and_end_with_the_watch() {
        let contacts = Contacts::default();
        contacts.begin("health/ads");
        tokio::time::advance(Duration::from_secs(3)).await;
        assert!(contacts.failed("health/ads", "reset"), "the first fault is news");
        let mut text = String::new();
        contacts.render(&mut text);
        assert!(text.ends_with("gilmok_consul_last_contact_seconds{watch=\"health/ads\"} 3.000\n"), "{text}");
        assert!(contacts.answered("health/ads"), "all is well again");
        assert_eq!(contacts.ages(), [("health/ads".to_owned(), 0.0)]);
        contacts.end("health/ads");
        assert!(contacts.ages().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn many_watches_with_one_fault_are_told_once() {
        let contacts = Contacts::default();
        contacts.begin("a");
        contacts.begin("b");
        assert!(contacts.failed("a", "reset"));
        assert!(!contacts.failed("b", "reset") && !contacts.failed("a", "reset"));
        assert!(contacts.failed("b", "forbidden"));
        assert!(!contacts.answered("a") && contacts.answered("b"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_without_a_sign_of_life_is_stuck() {
        let contacts = Contacts::default();
        contacts.begin("a");
        contacts.begin("b");
        tokio::time::advance(Duration::from_secs(5)).await;
        contacts.turned("b");
        assert_eq!(contacts.stuck(Duration::from_secs(4)), ["a"]);
    }
}
