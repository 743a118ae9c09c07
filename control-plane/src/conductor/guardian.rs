//! Watches guarded flags: hears each second what proxies counted of their variants, and kills those that fail.
//!
//! What decides is pure and lives in [`crate::guards`]; that a flag is killed once is the store's compare-and-set.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::{MissedTickBehavior, interval};

use super::TICK;
use crate::guards::{Fault, Guarded, Guards};
use crate::intent::{Command, FlagDeed};
use crate::state::{Author, State, WriteError};

/// Who kills, in the audit.
const WHO: &str = "guard";

/// Who watches the guarded flags of one control plane.
#[derive(Debug)]
pub struct Guardian {
    state: Arc<State>,
    /// As of the last tick; after a start what was known before begins anew. A std mutex: nothing is awaited under it.
    guards: Mutex<Guards>,
}

impl Guardian {
    #[must_use]
    pub fn new(state: Arc<State>) -> Arc<Self> {
        Arc::new(Self { state, guards: Mutex::default() })
    }

    /// Watches until it is dropped.
    pub async fn watch(self: Arc<Self>) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let Some(published) = self.state.publisher.current() else { continue };
            for fault in self.hear(published.intent().flags.as_deref(), published.revision) {
                self.act(&fault, published.revision).await;
            }
        }
    }

    /// What is known of a flag, where it is watched.
    #[must_use]
    pub fn of(&self, key: &str) -> Option<Guarded> {
        self.lock().of(key)
    }

    fn hear(&self, set: Option<&gilmok_config::flag::FlagSet>, revision: u64) -> Vec<Fault> {
        let mut guards = self.lock();
        guards.know(set, revision);
        if guards.is_empty() {
            return Vec::new();
        }
        let acks = self.state.publisher.acks.heard();
        guards.hear(&acks.iter().collect::<Vec<_>>())
    }

    /// Kills the flag, or only tells. What was not written is decided anew by the next tick.
    async fn act(&self, fault: &Fault, number: u64) {
        let Fault { flag, why, kills } = fault;
        let decision = if *kills { "kill" } else { "tell" };
        if *kills {
            let author = Author {
                who: WHO.to_owned(),
                reason: why.clone(),
                expected: Some(number),
                // What it is killed with is nothing that anybody said now.
                accept_warnings: true,
                ..Author::default()
            };
            match self.state.write(&Command::Flag(flag.clone(), FlagDeed::Kill), &author).await {
                // Turned on again before anybody looks, it begins anew all the same.
                Ok(_) => self.lock().forget(flag),
                // Somebody else wrote meanwhile.
                Err(WriteError::Behind { .. } | WriteError::Contended) => return,
                Err(error) => {
                    tracing::error!("the flag {flag:?} fails and cannot be killed: {error}; {why}");
                    return;
                }
            }
        }
        tracing::warn!("guard of flag {flag:?}: {decision}: {why}");
        metrics::counter!("gilmok_flag_guard_decisions_total", "decision" => decision).increment(1);
    }

    fn lock(&self) -> MutexGuard<'_, Guards> {
        // Whoever panicked left whole entries: each is replaced in one step.
        self.guards.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
