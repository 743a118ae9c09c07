//! What operators and those who are told may say of a move of shards, and what follows at once.

use super::state::{Direction, Edit, End, Hand, ShardMove, Stage, What};
use crate::webhook::{Agreement, Occasion, Owed};

/// Why a word changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("the move has ended; begin another one")]
    Ended,
    #[error("it is paused already")]
    Paused,
    #[error("it is not paused, and waits for no word: {0}")]
    NotPaused(String),
    #[error(
        "the webhook `copy` is being asked; when it answers 202, resume says later that the batch is copied"
    )]
    Asked,
    #[error("the map was changed by force since; plan another move")]
    Overruled,
}

impl ShardMove {
    /// Does not go on. A closed batch is open at its source again.
    ///
    /// # Errors
    /// When it does not go on anyway.
    pub fn told_to_pause(&mut self, hand: &Hand<'_>) -> Result<Option<Edit>, Unfit> {
        if self.end.is_some() {
            return Err(Unfit::Ended);
        }
        if self.paused {
            return Err(Unfit::Paused);
        }
        self.pause("an operator paused it".to_owned(), hand);
        Ok(self.closed().map(|_| self.reopen(hand)))
    }

    /// Goes on; where nothing is paused, says that the batch is copied. With `force`, proxies that are not heard of count as
    /// gone until the batch has moved.
    ///
    /// # Errors
    /// When it waits for no word.
    pub fn told_to_resume(&mut self, force: bool, hand: &Hand<'_>) -> Result<Option<Edit>, Unfit> {
        if self.end.is_some() {
            return Err(Unfit::Ended);
        }
        let how = if force { "; proxies that are not heard of count as gone" } else { "" };
        if self.paused {
            self.paused = false;
            self.forced = force;
            self.why = format!("an operator resumed it{how}");
            self.note(What::Resumed, hand, None);
            if self.stage == Stage::Copying && self.tells(Occasion::Copy) && !self.is_owed(Occasion::Copy) {
                // The source has been written to since.
                self.copied = false;
                self.owe(Occasion::Copy);
            }
            return Ok(None);
        }
        match self.stage {
            Stage::Copying if self.is_owed(Occasion::Copy) => Err(Unfit::Asked),
            Stage::Copying if !self.copied => {
                self.forced = force;
                self.copied = true;
                self.why = format!("the batch is copied, says an operator{how}");
                self.note(What::Copied, hand, None);
                Ok(None)
            }
            Stage::Copying | Stage::Prepare | Stage::Handover { .. } => {
                Err(Unfit::NotPaused(self.why.clone()))
            }
        }
    }

    /// Goes the other way: the current batch is given up, and what has moved moves back, or on again. Also when it has ended.
    ///
    /// # Errors
    /// When somebody else has decided about the map since.
    pub fn told_to_reverse(&mut self, hand: &Hand<'_>) -> Result<Option<Edit>, Unfit> {
        if self.end == Some(End::Overruled) {
            return Err(Unfit::Overruled);
        }
        let gives_up = self.is_running() && self.stage != Stage::Prepare;
        self.end = None;
        self.ended_ms = None;
        self.paused = false;
        self.direction = match self.direction {
            Direction::Back => Direction::Forward,
            Direction::Forward => Direction::Back,
        };
        self.why = format!("an operator reversed it: it goes {}", self.direction.as_str());
        let revision = gives_up.then_some(hand.revision);
        self.note(What::Turned, hand, revision);
        self.begin_batch(hand);
        Ok(gives_up.then_some(Edit::GiveUp))
    }

    /// Ends where it is: somebody else has decided about the map.
    pub fn overruled(&mut self, hand: &Hand<'_>) {
        self.end(
            End::Overruled,
            if hand.why.is_empty() { "the map was changed by force" } else { hand.why },
            hand.now_ms,
        );
        self.forget_batch();
        self.note(What::Overruled, hand, Some(hand.revision));
        self.owe(Occasion::Reversed);
    }

    /// Somebody was told, or could not be.
    pub fn answered(
        &mut self,
        owed: &Owed,
        answer: &Result<Agreement, String>,
        hand: &Hand<'_>,
    ) -> Option<Edit> {
        let before = self.owed.len();
        self.owed.retain(|other| other.number != owed.number);
        if self.owed.len() == before {
            return None;
        }
        match (owed.occasion, answer) {
            (Occasion::Copy, Ok(Agreement::Done)) => {
                self.copied = true;
                "the webhook `copy` has agreed".clone_into(&mut self.why);
                self.note(What::Copied, hand, None);
                None
            }
            (Occasion::Fenced, Ok(Agreement::Done)) => {
                if let Some(fenced) = &mut self.fenced {
                    fenced.agreed = true;
                }
                "the webhook `fenced` has agreed".clone_into(&mut self.why);
                self.note(What::Fenced, hand, None);
                None
            }
            (Occasion::Fenced, Ok(Agreement::Later)) => {
                self.not_agreed(owed, "answered 202 Accepted, which is too late here", hand)
            }
            (_, Ok(_)) => None,
            (_, Err(why)) => self.not_agreed(owed, why, hand),
        }
    }

    fn not_agreed(&mut self, owed: &Owed, why: &str, hand: &Hand<'_>) -> Option<Edit> {
        let why = format!("the webhook `{}` did not agree: {why}", owed.occasion.as_str());
        if !owed.occasion.is_asked() || !self.is_running() {
            self.note(What::Webhook, &Hand { why: &why, ..*hand }, None);
            return None;
        }
        if self.paused {
            // Somebody paused it while the webhook was asked: it is asked again when it goes on.
            self.note(What::Webhook, &Hand { why: &why, ..*hand }, None);
            return None;
        }
        self.pause(why, hand);
        self.closed().map(|_| self.reopen(hand))
    }
}
