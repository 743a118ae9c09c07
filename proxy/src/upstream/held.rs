//! Requests for keys on their way to another shard: how many wait for a newer snapshot, and what became of those that did.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// What became of a request that had to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Released {
    /// No newer snapshot let it through in time.
    Expired,
    /// Another map has its key.
    Moved,
    /// Too many waited already.
    Overflow,
    /// It goes on by the map by which it had to wait.
    Reopened,
}

const WORDS: [(Released, &str); 4] = [
    (Released::Expired, "expired"),
    (Released::Moved, "moved"),
    (Released::Overflow, "overflow"),
    (Released::Reopened, "reopened"),
];

/// The requests of one service that had to wait. Atomics shared by all workers: only what waits pays for them. Relaxed:
/// nothing else is concluded from them.
#[derive(Debug, Default)]
pub(crate) struct Held {
    now: AtomicU32,
    released: [AtomicU64; WORDS.len()],
}

impl Held {
    /// How many wait now.
    pub(crate) fn now(&self) -> u32 {
        self.now.load(Relaxed)
    }

    /// One more waits.
    pub(crate) fn begin(&self) {
        self.now.fetch_add(1, Relaxed);
    }

    /// One no longer does.
    pub(crate) fn end(&self) {
        self.now.fetch_sub(1, Relaxed);
    }

    /// Counts what became of one.
    pub(crate) fn released(&self, what: Released) {
        self.released[what as usize].fetch_add(1, Relaxed);
    }

    /// What became of all of them, in the words of the metric.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
        WORDS.iter().map(|(what, word)| (*word, self.released[*what as usize].load(Relaxed)))
    }
}
