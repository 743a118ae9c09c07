//! Takes an answer along while it passes to the caller, within what all answers under way may take.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use http::StatusCode;
use http::header::HeaderName;

use super::answer::{Answered, Packed, age_of, pack_headers};
use super::question::Question;
use super::{LastGoodStore, shelf};

/// An answer under way. Dropped, it is thrown away.
pub(crate) struct Recorder {
    store: Arc<LastGoodStore>,
    question: Question,
    vary: Vec<HeaderName>,
    status: StatusCode,
    at_ms: u64,
    age_s: u64,
    /// What the body must be long, where that is known.
    length: Option<u64>,
    body_at: usize,
    /// Longest block: the fields, and a body of `max_body`.
    bytes_max: usize,
    block: Vec<u8>,
    /// What the block may take, counted in the store.
    room: usize,
    /// Whether it is too long for us, and only passes.
    given_up: bool,
}

impl Recorder {
    /// `None` when the body is known to be too long, or there is no room.
    pub(super) fn begin(
        store: &Arc<LastGoodStore>,
        question: &Question,
        answered: &Answered<'_>,
        vary: Vec<HeaderName>,
        now_ms: u64,
    ) -> Option<Box<Self>> {
        let body_max = question.policy().max_body;
        if answered.length.is_some_and(|length| length > body_max) {
            return None;
        }
        let block = pack_headers(answered.headers);
        let body_at = block.len();
        let as_bytes = |length: u64| body_at.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
        let mut recorder = Box::new(Self {
            store: Arc::clone(store),
            question: question.clone(),
            vary,
            status: answered.status,
            at_ms: now_ms,
            age_s: age_of(answered.headers),
            length: answered.length,
            body_at,
            bytes_max: as_bytes(body_max),
            block,
            room: 0,
            given_up: false,
        });
        recorder.make_room(as_bytes(answered.length.unwrap_or(0))).then_some(recorder)
    }

    /// Takes along what passes. Copied and not held: a frame is a piece of a read buffer that may be a hundred
    /// times its size, and the limit would say nothing of it.
    pub(crate) fn data(&mut self, frame: &Bytes) {
        if self.given_up {
            return;
        }
        let needed = self.block.len().saturating_add(frame.len());
        // Growing by half as much again copies each byte about twice, when the length was not told.
        let roomy = needed.saturating_add(needed / 2).min(self.bytes_max);
        let fits = needed <= self.room
            || (needed <= self.bytes_max && (self.make_room(roomy) || self.make_room(needed)));
        if fits {
            self.block.extend_from_slice(frame);
        } else {
            self.give_up();
        }
    }

    /// Keeps the answer. For a body that came to its end, without trailers: those are not kept, and an answer
    /// without them is another answer.
    pub(crate) fn finish(mut self) {
        let length = self.block.len().saturating_sub(self.body_at);
        let is_whole =
            self.length.is_none_or(|told| u64::try_from(length).is_ok_and(|length| length == told));
        if self.given_up || !is_whole {
            return;
        }
        let mut block = std::mem::take(&mut self.block);
        block.shrink_to_fit();
        let packed = Packed {
            status: self.status,
            at_ms: self.at_ms,
            age_s: self.age_s,
            body_at: self.body_at,
            block: Bytes::from(block),
        };
        let replaced: Vec<shelf::Variant> =
            self.store.shelf().keep(&self.question, std::mem::take(&mut self.vary), packed);
        // Freed here and not under the lock, which is let go of above.
        drop(replaced);
    }

    /// Reserves for a block of so many bytes.
    fn make_room(&mut self, bytes: usize) -> bool {
        let max = self.store.recording_bytes_max;
        let more = bytes.saturating_sub(self.room);
        let take = |taken: usize| taken.checked_add(more).filter(|taken| *taken <= max);
        // Relaxed: it is a count, and orders nothing else.
        let has_room = self.store.recording.fetch_update(Relaxed, Relaxed, take).is_ok();
        if has_room {
            self.room += more;
            self.block.reserve_exact(bytes.saturating_sub(self.block.len()));
        }
        has_room
    }

    fn give_up(&mut self) {
        self.given_up = true;
        self.block = Vec::new();
        self.store.recording.fetch_sub(std::mem::take(&mut self.room), Relaxed);
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.give_up();
    }
}

// Bodies of callers do not belong into a log.
impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder")
            .field("status", &self.status)
            .field("room", &self.room)
            .finish_non_exhaustive()
    }
}
