//! What operators and those who are told may say of a rollout, and what follows at once.

use super::state::{End, Halt, Hand, Phase, Rollout, Shift, What};
use crate::webhook::{Occasion, Owed};

/// Why an operator's word changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("the rollout has ended; PUT another one")]
    Ended,
    #[error("it is paused already")]
    Paused,
    #[error("it is not paused")]
    NotPaused,
    #[error("it is frozen: {0}; abort it, or promote it with force")]
    Frozen(String),
    #[error("it waits: {0}; resume it, or promote it with force to go on all the same")]
    Halted(String),
    #[error(
        "the evidence does not say yet that the candidate is as good: {0}; with force it is promoted all the same"
    )]
    Unproven(String),
    #[error("the step cannot be taken yet: {0}")]
    Waiting(String),
}

impl Rollout {
    /// Stays where it is. What is counted goes on to be judged.
    ///
    /// # Errors
    /// When it does not go on anyway.
    pub fn told_to_pause(&mut self, hand: &Hand<'_>) -> Result<(), Unfit> {
        match (self.end, self.halted) {
            (Some(_), _) => Err(Unfit::Ended),
            (None, Some(Halt::Paused)) => Err(Unfit::Paused),
            (None, Some(Halt::Frozen)) => Err(Unfit::Frozen(self.why.clone())),
            (None, None) => {
                self.pause("an operator paused it".to_owned(), hand);
                Ok(())
            }
        }
    }

    /// Goes on.
    ///
    /// # Errors
    /// When it is not paused.
    pub fn told_to_resume(&mut self, hand: &Hand<'_>) -> Result<Option<Shift>, Unfit> {
        match (self.end, self.halted) {
            (Some(_), _) => Err(Unfit::Ended),
            (None, Some(Halt::Frozen)) => Err(Unfit::Frozen(self.why.clone())),
            (None, None) => Err(Unfit::NotPaused),
            (None, Some(Halt::Paused)) => {
                self.halted = None;
                // What did not agree is asked again.
                self.agreed.clear();
                "an operator resumed it".clone_into(&mut self.why);
                self.note(What::Resumed, hand, None);
                if self.phase == Phase::Gated {
                    // Its time-out begins anew; else it would be over at once.
                    self.enter(Phase::Gated, hand.now_ms);
                }
                Ok(self.go_on(hand))
            }
        }
    }

    /// Opens a gate, or does not wait for the step's time and counts. With `force` not for the evidence either, from
    /// here on; `to_end` leaves out all steps but the last.
    ///
    /// # Errors
    /// When it cannot go on.
    pub fn told_to_promote(
        &mut self,
        force: bool,
        to_end: bool,
        hand: &Hand<'_>,
    ) -> Result<Option<Shift>, Unfit> {
        match (self.end, self.halted) {
            (Some(_), _) => return Err(Unfit::Ended),
            (None, Some(Halt::Frozen)) if !force => return Err(Unfit::Frozen(self.why.clone())),
            (None, Some(Halt::Paused)) if !force => return Err(Unfit::Halted(self.why.clone())),
            (None, _) => {}
        }
        let is_judged = self.phase != Phase::Waiting && self.share > 0;
        if !force
            && (to_end || self.phase == Phase::Holding)
            && is_judged
            && let Some(unproven) = self.unproven()
        {
            return Err(Unfit::Unproven(unproven));
        }
        if !force && !to_end && self.phase == Phase::Waiting {
            return Err(Unfit::Waiting(self.why.clone()));
        }
        self.halted = None;
        self.terms.unjudged |= force;
        let last = self.plan.steps.len() - 1;
        let what = if self.phase == Phase::Gated { What::Approved } else { What::Promoted };
        let how = if force { ", whatever the evidence says" } else { "" };
        self.why = format!("an operator promoted it{how}");
        self.note(what, hand, None);
        match self.phase {
            _ if to_end && self.step < last => {
                self.step = last;
                self.enter(Phase::Waiting, hand.now_ms);
            }
            Phase::Gated => self.advance(hand.now_ms),
            Phase::Holding => self.terms.cut_short = true,
            Phase::Waiting => {}
        }
        if force && self.phase == Phase::Waiting {
            // Whoever forces it needs nobody's agreement.
            self.agreed = vec![Occasion::Before, Occasion::Step];
            self.owed.retain(|owed| !owed.occasion.is_asked());
        }
        Ok(self.go_on(hand))
    }

    /// Brings back what was before.
    ///
    /// # Errors
    /// When it has ended.
    pub fn told_to_abort(&mut self, hand: &Hand<'_>) -> Result<Shift, Unfit> {
        if self.end.is_some() {
            return Err(Unfit::Ended);
        }
        self.leave(hand);
        self.note(What::Aborted, hand, Some(hand.revision));
        self.share = 0;
        self.owe(Occasion::Rollback);
        Ok(Shift::Back)
    }

    /// Ends where it is: somebody else decides about the traffic now.
    pub fn overruled(&mut self, hand: &Hand<'_>) {
        self.leave(hand);
        self.note(What::Aborted, hand, Some(hand.revision));
        self.owe(Occasion::Rollback);
    }

    fn leave(&mut self, hand: &Hand<'_>) {
        self.end(End::Aborted, hand.now_ms);
        self.why =
            if hand.why.is_empty() { "an operator aborted it".to_owned() } else { hand.why.to_owned() };
    }

    /// Somebody was told, or could not be.
    pub fn answered(&mut self, owed: &Owed, answer: Result<(), String>, hand: &Hand<'_>) {
        let before = self.owed.len();
        self.owed.retain(|other| other.number != owed.number);
        if self.owed.len() == before {
            return;
        }
        match answer {
            Ok(()) if owed.occasion.is_asked() => self.agreed.push(owed.occasion),
            Ok(()) => {}
            Err(why) => {
                let why = format!("the webhook `{}` did not agree: {why}", owed.occasion.as_str());
                if owed.occasion.is_asked() && self.is_running() {
                    self.pause(why, hand);
                } else {
                    self.note(What::Webhook, &Hand { why: &why, ..*hand }, None);
                }
            }
        }
    }
}
