//! The state machine of one watch: what to ask next, and what an answer or an error means.
//!
//! Pure: time and dice are arguments, [`super::follow`] does what it says. The rules that it keeps, and the tests
//! that hold them, are listed in `docs/consul-rules.md`.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::answer::Meta;
use super::error::Error;
use super::pace::{BackOff, Pace};
use super::settle::{Evidence, Listing, Settled, Standing};

/// Longest that a blocking query is told to wait. Short, because an index from a previous life of the agent hangs
/// until the wait ends.
pub(super) const WAIT: Duration = Duration::from_secs(45);
/// What a blocking query may take beyond its wait and the 1/16 that Consul adds.
const WAIT_SLACK: Duration = Duration::from_secs(5);
/// What a query that does not block may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How often everything is read anew, whatever the index says; ± 20 %.
const RELIST_EVERY: Duration = Duration::from_secs(300);
/// How often a watch asks that has no connection of its own.
const POLL_EVERY: Duration = Duration::from_secs(2);
/// How often a loss is looked at again where no index can be blocked on.
const CONFIRM_EVERY: Duration = Duration::from_millis(250);
/// The shortest wait that is worth a blocking query.
const WAIT_MIN: Duration = Duration::from_millis(50);
/// A server that has not heard of the leader for so long is not believed when it says that something is gone.
const LAST_CONTACT_MAX: Duration = Duration::from_secs(5);

/// How a read may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// By the leader, after it has asked a quorum whether it still is.
    Consistent,
    /// By who believes to be the leader.
    Default,
    /// By any server.
    Stale,
}

/// One question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Block until the index is higher than this; 0 does not block.
    pub index: u64,
    /// Block at most so long.
    pub wait: Duration,
    pub consistency: Consistency,
    /// The agent may answer from its cache, which it keeps fresh in the background.
    pub cached: bool,
}

impl Ask {
    /// Now, from the leader.
    #[must_use]
    pub fn now() -> Self {
        Self { index: 0, wait: WAIT, consistency: Consistency::Default, cached: false }
    }

    /// How long the whole answer may take: Consul adds up to 1/16 to the wait.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        if self.index == 0 { ANSWER_TIMEOUT } else { self.wait + self.wait / 16 + WAIT_SLACK }
    }
}

/// How long a watch may go without an answer or an error before something must be wrong with itself.
pub(super) const WATCHDOG: Duration =
    Duration::from_millis(WAIT.as_secs() * 1_100 + Duration::from_secs(10).as_secs() * 1_000);

/// How a watch learns of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// By blocking queries over a connection of its own.
    Blocking,
    /// By asking the agent's cache again and again over a shared connection.
    Polling,
}

/// What there is to know about an answer beside its list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard<'a> {
    pub(super) ask: &'a Ask,
    pub(super) meta: &'a Meta,
    pub(super) took: Duration,
    /// Whether Consul hides what no rule names, as far as the agent has said; the answer's own word goes first.
    pub(super) default_deny: bool,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Ask(Ask),
    Pause(Instant),
}

/// What the next question is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// A loss is to be confirmed, after so long at the latest.
    Confirm(Duration),
    Follow,
    /// There is no leader: see what any server knows.
    Stale,
}

/// One watch.
#[derive(Debug)]
pub(super) struct Watch<K, V> {
    style: Style,
    /// The index to block on; 0 when there is none to be trusted.
    index: u64,
    next: Next,
    /// Nothing is asked before.
    due: Instant,
    relist_at: Instant,
    pace: Pace,
    back_off: BackOff,
    listing: Listing<K, V>,
}

impl<K: Ord + Clone, V: Standing> Watch<K, V> {
    pub(super) fn new(style: Style, last_known: BTreeMap<K, V>, now: Instant) -> Self {
        Self {
            style,
            index: 0,
            next: Next::Follow,
            due: now,
            relist_at: now + RELIST_EVERY,
            pace: Pace::new(now),
            back_off: BackOff::default(),
            listing: Listing::new(last_known),
        }
    }

    /// The list that is acted upon.
    pub(super) fn current(&self) -> &BTreeMap<K, V> {
        self.listing.current()
    }

    /// What to do now. `continued` says whether the connection and the token are those of the last answer: behind a
    /// new connection may be an agent that counts anew, and another token sees another list. `dice` is from 0 to 1.
    pub(super) fn step(&mut self, now: Instant, continued: bool, dice: f64) -> Step {
        if now < self.due {
            return Step::Pause(self.due);
        }
        // A confirmation has a pace of its own, and must not wait for the others' tokens.
        if !matches!(self.next, Next::Confirm(_))
            && let Err(until) = self.pace.take(now)
        {
            return Step::Pause(until);
        }
        if now >= self.relist_at {
            self.index = 0;
            self.relist_at = now + RELIST_EVERY.mul_f64(0.8 + 0.4 * dice);
        }
        if !continued {
            self.index = 0;
        }
        Step::Ask(match self.next {
            Next::Confirm(rest) => {
                let index = if rest < WAIT_MIN { 0 } else { self.index };
                Ask { index, wait: rest.min(WAIT), consistency: Consistency::Consistent, cached: false }
            }
            Next::Follow => Ask { index: self.index, cached: self.style == Style::Polling, ..Ask::now() },
            Next::Stale => Ask { consistency: Consistency::Stale, ..Ask::now() },
        })
    }

    /// Takes an answer in; the list that came with it is `fresh`.
    pub(super) fn answered(
        &mut self,
        now: Instant,
        heard: &Heard<'_>,
        fresh: BTreeMap<K, V>,
        dice: f64,
    ) -> Settled {
        let Heard { ask, meta, took, default_deny } = *heard;
        let stale = ask.consistency == Consistency::Stale;
        let in_touch = meta.known_leader && meta.last_contact <= LAST_CONTACT_MAX && meta.age.is_zero();
        let evidence = Evidence {
            believed: !stale && in_touch && !meta.filtered,
            may_empty: !meta.default_deny.unwrap_or(default_deny),
        };
        let settled = self.listing.settle(now, fresh, evidence);
        self.pace.answered(settled.changed || settled.confirm_in.is_some(), took);
        if stale {
            // Still no leader. The index of a stale answer means nothing to another server: it is never used.
            self.next = Next::Follow;
            self.due = now + self.back_off.next(dice);
            return settled;
        }
        self.back_off.reset();
        self.index = match (self.style, meta.index) {
            (Style::Polling, _) | (_, None) => 0,
            // An index that went back belongs to another count: begin anew. 0 would not block, 1 always may.
            (Style::Blocking, Some(index)) if index.max(1) < self.index => 0,
            (Style::Blocking, Some(index)) => index.max(1),
        };
        self.next = settled.confirm_in.map_or(Next::Follow, Next::Confirm);
        self.due = match self.next {
            Next::Confirm(rest) if rest >= WAIT_MIN && self.index == 0 => now + rest.min(CONFIRM_EVERY),
            Next::Follow if self.style == Style::Polling || meta.index.is_none() => now + POLL_EVERY,
            Next::Confirm(_) | Next::Follow | Next::Stale => now,
        };
        settled
    }

    /// Takes an error in: the list stays, the index does not.
    pub(super) fn failed(&mut self, now: Instant, ask: &Ask, error: &Error, dice: f64) {
        self.index = 0;
        if matches!(error, Error::NoLeader) && ask.consistency != Consistency::Stale {
            self.next = Next::Stale;
            self.due = now;
            return;
        }
        self.next = Next::Follow;
        let pause = self.back_off.next(dice);
        let told =
            if let Error::RateLimited { after: Some(after) } = error { *after } else { Duration::ZERO };
        self.due = now + pause.max(told);
    }
}
