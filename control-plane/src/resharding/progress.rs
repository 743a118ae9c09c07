//! How a move of shards goes on by itself: batch by batch, with time, acks and answers as arguments.

use std::collections::BTreeSet;

use gilmok_config::sharding::moving::HOLD_MAX;
use serde_json::Value as Json;

use super::fence::{Fence, Waiting};
use super::state::{Batch, Direction, Edit, End, Event, Fenced, Hand, Leg, Seen, ShardMove, Stage, What};
use super::words;
use crate::webhook::{Occasion, Owed, Webhook};

/// Entries of a move's history; what came first is kept, and what came last.
const HISTORY_MAX: usize = 300;

impl ShardMove {
    /// A move that has not looked at its first batch. `before` is the rule that it begins with.
    #[must_use]
    pub fn new(before: Json, batches: Vec<Batch>, webhooks: Vec<Webhook>, hand: &Hand<'_>) -> Self {
        let mut moving = Self {
            id: hand.revision,
            by: hand.by.to_owned(),
            batches,
            before,
            webhooks,
            moved: 0,
            direction: Direction::Forward,
            stage: Stage::Prepare,
            paused: false,
            end: None,
            why: "it begins".to_owned(),
            started_ms: hand.now_ms,
            since_ms: hand.now_ms,
            ended_ms: None,
            announced: 0,
            copied: false,
            fenced: None,
            direct: BTreeSet::new(),
            forced: false,
            owed: Vec::new(),
            messages: 0,
            history: Vec::new(),
            happened: 0,
        };
        moving.note(What::Started, hand, None);
        moving
    }

    /// Takes what a tick brings; says what becomes of the document, if anything does. `revision` is that of the write which
    /// carries it out.
    pub fn tick(&mut self, seen: &Seen<'_>, revision: u64) -> Option<Edit> {
        if self.paused {
            return None;
        }
        let leg = self.leg()?;
        let hand = Hand { by: "move", why: "", now_ms: seen.now_ms, revision };
        let copying = words::copying(&leg, self.tells(Occasion::Copy), self.is_owed(Occasion::Copy));
        match (self.stage, &seen.lack) {
            // Without it nobody could serve the batch.
            (Stage::Prepare | Stage::Copying, Some(lack)) if self.stage == Stage::Prepare || self.copied => {
                self.why = format!("{lack}; it is waited for");
                None
            }
            (Stage::Prepare, _) => Some(self.announce(&hand)),
            (Stage::Copying, _) if !self.copied => {
                self.why = copying;
                None
            }
            (Stage::Copying, _) => Some(self.close(&hand)),
            (Stage::Handover { .. }, _) => self.hand_over(seen, &hand),
        }
    }

    /// What keeps a closed batch from its new owner.
    fn obstacles(seen: &Seen<'_>, target: &str) -> Vec<Waiting> {
        let lack = seen.lack.iter().map(|lack| Waiting { who: format!("shard {target}"), why: lack.clone() });
        match seen.fence {
            Fence::Complete { .. } => lack.collect(),
            Fence::Waits(waits) => waits.iter().cloned().chain(lack).collect(),
        }
    }

    fn hand_over(&mut self, seen: &Seen<'_>, hand: &Hand<'_>) -> Option<Edit> {
        let target = self.leg()?.target.to_string();
        let waits = Self::obstacles(seen, &target);
        let why = match seen.fence {
            Fence::Complete { by } if waits.is_empty() => {
                if self.has_last_words(by) {
                    return Some(self.advance(hand));
                }
                words::not_agreed()
            }
            Fence::Complete { .. } | Fence::Waits(_) => {
                // Whoever has yet to close it may write until then: what was written last is copied once more.
                self.forget_fenced();
                self.why = format!("waiting for {}", words::named(&waits));
                words::not_fenced(&waits)
            }
        };
        if seen.closed_for < HOLD_MAX {
            return None;
        }
        self.pause(why, hand);
        Some(self.reopen(hand))
    }

    /// Whether what was written last is copied; asks for it where it is not.
    fn has_last_words(&mut self, by: &str) -> bool {
        if !self.tells(Occasion::Fenced) {
            return true;
        }
        if let Some(fenced) = self.fenced.as_ref().filter(|fenced| fenced.by == by) {
            return fenced.agreed;
        }
        self.forget_fenced();
        self.fenced = Some(Fenced { by: by.to_owned(), agreed: false });
        "it is fenced; the webhook `fenced` has not agreed yet".clone_into(&mut self.why);
        self.owe(Occasion::Fenced);
        false
    }

    /// What it came to would be no sound document: it does not go on. A closed batch is open at its source again.
    pub fn refused(&mut self, why: &str, hand: &Hand<'_>) -> Option<Edit> {
        self.pause(words::refused(why), hand);
        self.closed().map(|_| self.reopen(hand))
    }

    fn announce(&mut self, hand: &Hand<'_>) -> Edit {
        self.enter(Stage::Copying, hand.now_ms);
        self.announced = hand.revision;
        self.note(What::Announced, hand, Some(hand.revision));
        self.owe(Occasion::Copy);
        Edit::Announce
    }

    pub(super) fn close(&mut self, hand: &Hand<'_>) -> Edit {
        self.enter(Stage::Handover { closed: hand.revision }, hand.now_ms);
        self.fenced = None;
        "the batch is closed; its owner and its callers have to say so".clone_into(&mut self.why);
        self.note(What::Closed, hand, Some(hand.revision));
        Edit::Close
    }

    fn advance(&mut self, hand: &Hand<'_>) -> Edit {
        let words = self.leg().map(|leg| format!("shard {} has it from shard {}", leg.target, leg.source));
        self.why = words.unwrap_or_default();
        self.note(What::Moved, hand, Some(hand.revision));
        self.owe(Occasion::Moved);
        self.moved = match self.direction {
            Direction::Forward => self.moved + 1,
            Direction::Back => self.moved.saturating_sub(1),
        };
        self.begin_batch(hand);
        Edit::Advance
    }

    /// Opens a closed batch at its source. What is said of it stays as it is.
    pub(super) fn reopen(&mut self, hand: &Hand<'_>) -> Edit {
        self.enter(Stage::Copying, hand.now_ms);
        self.forget_fenced();
        self.forced = false;
        self.note(What::Reopened, hand, Some(hand.revision));
        Edit::Reopen
    }

    /// On to the next batch, if there is one.
    pub(super) fn begin_batch(&mut self, hand: &Hand<'_>) {
        self.enter(Stage::Prepare, hand.now_ms);
        self.forget_batch();
        if self.leg().is_some() {
            return;
        }
        let (end, what, occasion, why) = match self.direction {
            Direction::Forward => (End::Done, What::Done, Occasion::Done, "every batch has moved"),
            Direction::Back => {
                (End::Reversed, What::Reversed, Occasion::Reversed, "all is where it was before")
            }
        };
        self.end(end, why, hand.now_ms);
        self.note(what, hand, None);
        self.owe(occasion);
    }

    /// What was said of a batch is of no meaning any more.
    pub(super) fn forget_batch(&mut self) {
        self.announced = 0;
        self.copied = false;
        self.forced = false;
        self.fenced = None;
        // What was only asked needs no answer any more.
        self.owed.retain(|owed| !owed.occasion.is_asked());
    }

    fn forget_fenced(&mut self) {
        self.fenced = None;
        self.owed.retain(|owed| owed.occasion != Occasion::Fenced);
    }

    fn enter(&mut self, stage: Stage, now_ms: u64) {
        self.stage = stage;
        self.since_ms = now_ms;
    }

    pub(super) fn end(&mut self, end: End, why: &str, now_ms: u64) {
        self.end = Some(end);
        self.paused = false;
        self.ended_ms = Some(now_ms);
        why.clone_into(&mut self.why);
    }

    pub(super) fn pause(&mut self, why: String, hand: &Hand<'_>) {
        self.paused = true;
        self.why = why;
        self.note(What::Paused, hand, None);
        self.owe(Occasion::Paused);
    }

    pub(super) fn note(&mut self, what: What, hand: &Hand<'_>, revision: Option<u64>) {
        if self.history.len() >= HISTORY_MAX {
            self.history.remove(HISTORY_MAX / 2);
        }
        self.happened += 1;
        let why = if hand.why.is_empty() { self.why.clone() } else { hand.why.to_owned() };
        let batch = self.leg().map(|leg| leg.at);
        self.history.push(Event { at_ms: hand.now_ms, what, batch, by: hand.by.to_owned(), why, revision });
    }

    pub(super) fn owe(&mut self, occasion: Occasion) {
        if !self.tells(occasion) {
            return;
        }
        self.messages += 1;
        let step = self.leg().map_or(self.moved, |Leg { at, .. }| at);
        let back = self.direction == Direction::Back;
        self.owed.push(Owed { number: self.messages, occasion, step, back, why: self.why.clone() });
    }
}
