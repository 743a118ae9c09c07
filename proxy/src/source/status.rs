//! What the sources say of themselves: what was refused and why, since when what is in force is confirmed.

use std::sync::{Mutex, MutexGuard, PoisonError};

use gilmok_config::problem::Problems;
use gilmok_config::wire::Refused;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::clock;

/// What sources note and operators read.
#[derive(Debug)]
pub(crate) struct Status {
    /// Held for a few assignments, never across an await.
    inner: Mutex<Inner>,
    /// Tells acks that there is something new.
    refused: watch::Sender<Option<Refused>>,
}

#[derive(Debug)]
struct Inner {
    source: String,
    /// Of what is in force, in the source's words.
    hash: Option<String>,
    confirmed: Option<Instant>,
    rejected_total: u64,
    rejection: Option<Rejection>,
    foreign_store: Option<String>,
}

/// Something that was not taken.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Rejection {
    /// The file or the control plane that said it.
    pub(crate) from: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) revision: Option<u64>,
    pub(crate) problems: Problems,
    /// Seconds since 1970.
    pub(crate) at: u64,
}

impl Status {
    pub(crate) fn new(source: impl Into<String>) -> Self {
        let inner = Inner {
            source: source.into(),
            hash: None,
            confirmed: None,
            rejected_total: 0,
            rejection: None,
            foreign_store: None,
        };
        Self { inner: Mutex::new(inner), refused: watch::Sender::new(None) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where snapshots come from now, in words.
    pub(crate) fn source(&self) -> String {
        self.lock().source.clone()
    }

    pub(crate) fn set_source(&self, source: impl Into<String>) {
        self.lock().source = source.into();
    }

    /// Of what is in force, in the source's words; `None` before there is anything.
    pub(crate) fn hash(&self) -> Option<String> {
        self.lock().hash.clone()
    }

    /// What is in force is what the source says, as of now.
    pub(crate) fn confirm(&self) {
        self.lock().confirmed = Some(Instant::now());
    }

    /// Seconds since what is in force was confirmed last; `None` when it never was.
    pub(crate) fn age_seconds(&self) -> Option<f64> {
        self.lock().confirmed.map(|confirmed| confirmed.elapsed().as_secs_f64())
    }

    /// Notes that something was not taken. `refused` is what control planes are told of it.
    /// Answers whether it is news: what is said again and again is counted once.
    pub(crate) fn reject(
        &self,
        from: impl Into<String>,
        revision: Option<u64>,
        problems: &Problems,
        refused: Option<Refused>,
    ) -> bool {
        let from = from.into();
        let at = clock::unix_seconds();
        let mut inner = self.lock();
        let again = inner.rejection.as_ref().is_some_and(|before| {
            before.from == from && before.revision == revision && before.problems == *problems
        });
        if again {
            return false;
        }
        inner.rejected_total += 1;
        inner.rejection = Some(Rejection { from, revision, problems: problems.clone(), at });
        drop(inner);
        metrics::counter!("gilmok_config_rejected_total").increment(1);
        if refused.is_some() {
            self.refused.send_replace(refused);
        }
        true
    }

    /// What the source says is in force: what was refused before is history.
    pub(crate) fn accepted(&self, hash: Option<&str>) {
        let mut inner = self.lock();
        if inner.hash.as_deref() != hash {
            inner.hash = hash.map(str::to_owned);
        }
        inner.rejection = None;
        inner.foreign_store = None;
        inner.confirmed = Some(Instant::now());
        drop(inner);
        self.refused.send_if_modified(|refused| refused.take().is_some());
    }

    /// A control plane speaks for a store that is not ours; an operator may accept it.
    pub(crate) fn set_foreign_store(&self, store: &str) {
        self.lock().foreign_store = Some(store.to_owned());
    }

    pub(crate) fn foreign_store(&self) -> Option<String> {
        self.lock().foreign_store.clone()
    }

    pub(crate) fn rejection(&self) -> Option<Rejection> {
        self.lock().rejection.clone()
    }

    pub(crate) fn rejected_total(&self) -> u64 {
        self.lock().rejected_total
    }

    pub(crate) fn refusals(&self) -> watch::Receiver<Option<Refused>> {
        self.refused.subscribe()
    }
}
