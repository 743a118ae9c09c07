//! How it stands with the identity that a control plane gives, as operators are told.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::clock;

/// What a control plane was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Certificate = 0,
    Roots,
}

/// The same, as the metric tells it.
pub(crate) const ASKED: [&str; 2] = ["certificate", "roots"];

/// What the enrolment notes and operators read.
#[derive(Debug, Default)]
pub(crate) struct Status(Mutex<Standing>);

/// How it stands. All times are in seconds of Unix time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    /// By [`Asked`]: how often there was an answer that could be used, and how often none.
    pub(crate) answered: [u64; ASKED.len()],
    pub(crate) failed: [u64; ASKED.len()],
    /// Which control plane answered last; empty until one has.
    pub(crate) server: String,
    /// When the certificate is to be renewed; 0 while there is none.
    pub(crate) renews_at: u64,
    /// Since when there is no answer that could be used, and why.
    pub(crate) failing: Option<(u64, String)>,
}

impl Status {
    pub(crate) fn standing(&self) -> Standing {
        self.lock().clone()
    }

    /// Whether there is an identity, if only one that has ended.
    pub(crate) fn has_identity(&self) -> bool {
        self.lock().renews_at > 0
    }

    pub(super) fn answered(&self, asked: Asked, server: String, renews_at: u64) {
        let mut standing = self.lock();
        standing.answered[asked as usize] += 1;
        standing.server = server;
        standing.renews_at = renews_at;
        standing.failing = None;
    }

    pub(super) fn failed(&self, asked: Asked, why: &str) {
        let mut standing = self.lock();
        standing.failed[asked as usize] += 1;
        let since = standing.failing.take().map_or_else(clock::unix_seconds, |(since, _)| since);
        standing.failing = Some((since, why.to_owned()));
    }

    /// What was kept from an earlier start is used.
    pub(super) fn recalled(&self, renews_at: u64) {
        self.lock().renews_at = renews_at;
    }

    fn lock(&self) -> MutexGuard<'_, Standing> {
        // Held for a few assignments, never across an await; a panic leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
