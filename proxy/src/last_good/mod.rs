//! The last good answers, to be given again when a call brings nothing; never one caller's answer to another.
//!
//! In reading order: what is remembered of a request before it is sent ([`Question`]), which answers may be
//! kept and in what form (`answer`), how a body is taken along while it passes ([`Recorder`]), and where it
//! all stands, least recently used first to go (`shelf`).
//!
//! Rules, in the order in which they are asked:
//! - A question is a GET or HEAD without a body and without `Upgrade`. With anything that says who is asking
//!   it is no question, unless `per_credentials` makes a digest of that a part of the key.
//! - An answer is kept when it is good (2xx, but neither a part nor a difference), came from the application
//!   itself, marks nobody (`Set-Cookie`), may be kept (`Cache-Control`, `Vary`), and is there to its last byte.
//! - A good answer that says that it must not be kept takes those with it that were kept of the same question:
//!   what was public is so no longer.

mod question;

mod answer;

mod recorder;

mod shelf;

#[cfg(test)]
mod tests;

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gilmok_config::fallback::LastGood;
use http::Method;

use answer::Verdict;
use question::Seal;
use shelf::Shelf;

pub(crate) use answer::{Answered, Kept};
pub(crate) use question::{Asked, Question};
pub(crate) use recorder::Recorder;

/// The share of the limit that answers under way may take: one in so many bytes.
/// Apart from what is kept, so that many slow answers do not push out all that is there for a bad hour.
const RECORDING_ONE_IN: usize = 4;

/// What is kept for the whole proxy, shared by all workers.
#[derive(Debug)]
pub(crate) struct LastGoodStore {
    /// One lock and not one a shard of keys, because one limit and one order of eviction hold for all services.
    /// It is taken once an answer and once a fallback, only for services with `last_good`, for a few hundred
    /// nanoseconds: bytes are copied before it and freed after it, and nothing awaits inside.
    shelf: Mutex<Shelf>,
    /// Bytes that answers under way may fill now. An atomic, because every frame asks.
    recording: AtomicUsize,
    recording_bytes_max: usize,
    seal: Seal,
}

impl LastGoodStore {
    /// A store that never holds more than this many bytes, keys, headers and what is under way included.
    pub(crate) fn new(bytes_max: usize) -> Self {
        let recording_bytes_max = bytes_max / RECORDING_ONE_IN;
        Self {
            shelf: Mutex::new(Shelf::new(bytes_max - recording_bytes_max)),
            recording: AtomicUsize::new(0),
            recording_bytes_max,
            seal: Seal::new(),
        }
    }

    /// What is remembered of a request before it is sent. `None`: nothing is kept of its answer, nor given for it.
    pub(crate) fn question(&self, policy: &LastGood, asked: &Asked<'_>) -> Option<Question> {
        Question::of(policy, asked, &self.seal)
    }

    /// Looks at the head of an answer. `None`: it may not be kept.
    pub(crate) fn record(
        self: &Arc<Self>,
        question: &Question,
        answered: &Answered<'_>,
        now_ms: u64,
    ) -> Option<Box<Recorder>> {
        if !question.was_answered_by(answered.version, answered.shard) {
            return None;
        }
        match answer::judge(answered.status, answered.headers) {
            Verdict::Keep(vary) if question.may_be_kept() => {
                Recorder::begin(self, question, answered, vary, now_ms)
            }
            Verdict::Keep(_) | Verdict::Leave => None,
            Verdict::Forget => {
                let forgotten = self.shelf().forget(question.key());
                drop(forgotten);
                None
            }
        }
    }

    /// The last good answer to a question, if there is one that is young enough.
    pub(crate) fn give(&self, question: &Question, now_ms: u64) -> Option<Kept> {
        let packed = self.shelf().give(question, now_ms)?;
        Some(packed.unpack(now_ms, question.method() == Method::HEAD))
    }

    /// Bytes that are kept or under way.
    pub(crate) fn bytes(&self) -> usize {
        self.shelf().bytes() + self.recording.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        // Whoever panicked while holding it is told of elsewhere; the shelf is sound after every step.
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
