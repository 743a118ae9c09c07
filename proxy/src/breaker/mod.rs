//! Circuit breakers: what is failing is left alone for a while, then asked by a few probes whether it is well again.
//!
//! A state machine with the time and the dice as arguments, shared by all workers. Its state is one word (which state it
//! is in, how many probes are in flight, how often it has changed), moved by compare-and-set, so two workers never both
//! make the same transition and a half-open breaker never has more probes than it may. Everything else is counted beside
//! it and may be a call late.

mod row;

mod window;

use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};
use std::time::Duration;

use gilmok_config::breaker::BreakerPolicy;

pub(crate) use row::Row;
pub(crate) use window::Counts;
use window::Window;

/// Openings vary by so much, so that proxies which opened together do not probe together.
const JITTER: f64 = 0.1;
/// After it closed, the share of calls that go through grows to all of them in `open_for`, but at most in so long.
const RAMP_MAX: Duration = Duration::from_secs(1);
/// The share at the begin of that time.
const RAMP_SHARE: f64 = 0.1;
/// A probe that has said nothing for so long does not keep others from being sent.
const PROBE_SILENT_MAX: Duration = Duration::from_mins(1);
/// When a half-open breaker is full, callers are told to come again then.
const PROBE_WAIT: Duration = Duration::from_secs(1);

/// What a breaker does with calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Calls flow.
    Closed = 0,
    /// A few probes are let through.
    HalfOpen = 1,
    /// All are refused.
    Open = 2,
}

impl State {
    /// As operators read it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// What a call came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Failure,
    /// Says nothing of the target: the caller left, a pooled connection turned out to be closed.
    Neutral,
    Success,
}

/// What operators said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forced {
    /// [`State::Open`] or [`State::Closed`].
    pub(crate) state: State,
    /// Milliseconds of [`crate::clock`]; `None` is until they say otherwise.
    pub(crate) until_ms: Option<u64>,
}

/// One call that was let through; to be reported exactly once. A pass that is dropped instead keeps a probe's place for
/// [`PROBE_SILENT_MAX`].
#[derive(Debug)]
#[must_use]
pub(crate) struct Pass {
    epoch: u32,
    /// Counted as a slow call already.
    slow: bool,
}

/// A call that was not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// When the next one may be.
    pub(crate) retry_after_ms: u64,
}

/// How often each state was entered.
#[derive(Debug, Default)]
pub(crate) struct Transitions {
    entered: [AtomicU64; 3],
}

impl Transitions {
    pub(crate) fn to(&self, state: State) -> u64 {
        self.entered[state as usize].load(Relaxed)
    }
}

/// A circuit breaker.
#[derive(Debug)]
pub(crate) struct Breaker {
    policy: BreakerPolicy,
    /// [`Word`]. Acquire and release: who sees a state sees what was written before it was entered.
    word: AtomicU64,
    /// Open until then; written before the word says so.
    open_until_ms: AtomicU64,
    /// After closing: not all calls are let through before then; written before the word says so.
    ramp_until_ms: AtomicU64,
    /// When the last probe was let through.
    probed_at_ms: AtomicU64,
    /// Openings since it was closed for the length of a window, which make the next one longer.
    openings: AtomicU32,
    /// Failures in a row.
    row: Row,
    window: Window,
    /// 0, or [`Forced`] in one word: the time above two bits of the state.
    forced: AtomicU64,
    transitions: Transitions,
}

/// The word of a breaker, unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Word {
    state: State,
    /// Probes in flight.
    probes: u32,
    /// Changes with every transition, so that outcomes of calls before it are told apart.
    epoch: u32,
}

const PROBE_BITS: u32 = 30;

impl Word {
    fn of(word: u64) -> Self {
        let state = match word & 3 {
            0 => State::Closed,
            1 => State::HalfOpen,
            _ => State::Open,
        };
        #[expect(clippy::cast_possible_truncation, reason = "each is cut out of the word by its bits")]
        Self { state, probes: (word >> 2) as u32 & ((1 << PROBE_BITS) - 1), epoch: (word >> 32) as u32 }
    }

    fn pack(self) -> u64 {
        u64::from(self.epoch) << 32 | u64::from(self.probes) << 2 | self.state as u64
    }

    fn next(self, state: State) -> Self {
        Self { state, probes: 0, epoch: self.epoch.wrapping_add(1) }
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Breaker {
    pub(crate) fn new(policy: BreakerPolicy) -> Self {
        Self {
            window: Window::new(ms(policy.window)),
            policy,
            word: AtomicU64::new(0),
            open_until_ms: AtomicU64::new(0),
            ramp_until_ms: AtomicU64::new(0),
            probed_at_ms: AtomicU64::new(0),
            openings: AtomicU32::new(0),
            row: Row::default(),
            forced: AtomicU64::new(0),
            transitions: Transitions::default(),
        }
    }

    pub(crate) fn policy(&self) -> &BreakerPolicy {
        &self.policy
    }

    /// Lets a call through, or not. `dice` is between 0 and 1.
    pub(crate) fn admit(&self, now_ms: u64, dice: f64) -> Result<Pass, Refused> {
        if let Some(forced) = self.forced(now_ms) {
            let left = forced.until_ms.map_or(ms(self.policy.open_for), |until| until.saturating_sub(now_ms));
            return match forced.state {
                State::Open => Err(Refused { retry_after_ms: left }),
                State::Closed | State::HalfOpen => Ok(self.pass(self.load())),
            };
        }
        loop {
            let word = self.load();
            match word.state {
                State::Closed => return self.admit_closed(word, now_ms, dice),
                State::Open => {
                    let left = self.open_until_ms.load(Relaxed).saturating_sub(now_ms);
                    if left > 0 {
                        return Err(Refused { retry_after_ms: left });
                    }
                    self.enter(word, State::HalfOpen);
                }
                State::HalfOpen if word.probes < self.policy.half_open_requests => {
                    let more = Word { probes: word.probes + 1, ..word };
                    if self.swap(word, more) {
                        self.probed_at_ms.store(now_ms, Relaxed);
                        return Ok(self.pass(more));
                    }
                }
                State::HalfOpen => {
                    let silent = now_ms.saturating_sub(self.probed_at_ms.load(Relaxed));
                    if silent < ms(PROBE_SILENT_MAX) {
                        return Err(Refused { retry_after_ms: ms(PROBE_WAIT) });
                    }
                    // Whoever had these probes will not be heard any more.
                    self.enter(word, State::HalfOpen);
                }
            }
        }
    }

    fn admit_closed(&self, word: Word, now_ms: u64, dice: f64) -> Result<Pass, Refused> {
        let left = self.ramp_until_ms.load(Relaxed).saturating_sub(now_ms);
        if left > 0 {
            let grown = 1.0 - left as f64 / self.ramp_ms() as f64;
            if dice > grown.max(RAMP_SHARE) {
                return Err(Refused { retry_after_ms: left });
            }
        }
        Ok(self.pass(word))
    }

    fn ramp_ms(&self) -> u64 {
        ms(self.policy.open_for.min(RAMP_MAX)).max(1)
    }

    /// Takes the outcome of a call. One that began before the last transition says nothing any more.
    #[expect(clippy::needless_pass_by_value, reason = "a pass is used up by its report")]
    pub(crate) fn report(&self, pass: Pass, verdict: Verdict, now_ms: u64, dice: f64) {
        let word = self.load();
        if word.epoch != pass.epoch {
            return;
        }
        match word.state {
            State::Closed => self.note(&pass, verdict, now_ms, dice),
            State::HalfOpen => match verdict {
                Verdict::Success => self.close(word, now_ms),
                Verdict::Failure => self.open(word, now_ms, dice),
                Verdict::Neutral => self.give_back(pass.epoch),
            },
            // Nobody has a pass of an open breaker.
            State::Open => {}
        }
    }

    fn note(&self, pass: &Pass, verdict: Verdict, now_ms: u64, dice: f64) {
        if verdict == Verdict::Neutral {
            return;
        }
        if !pass.slow {
            self.window.call(now_ms);
        }
        if verdict == Verdict::Failure {
            self.window.failure(now_ms);
            self.row.fail();
        } else {
            self.row.good_head();
            // On good days nothing is added up.
            if !self.window.may_be_bad(now_ms) {
                return;
            }
        }
        self.judge(now_ms, dice);
    }

    /// An answer whose head was good has broken off in its body, or is told to be a failure behind it.
    pub(crate) fn failed_late(&self, now_ms: u64, dice: f64) {
        if self.load().state == State::Closed {
            self.window.failure(now_ms);
            self.row.fail_late();
            self.judge(now_ms, dice);
        }
    }

    /// An answer with a good head is whole.
    pub(crate) fn whole(&self) {
        self.row.whole();
    }

    /// The call has lasted `slow_call` and is not finished: it counts as slow from now on, so that what hangs is noticed
    /// before it times out.
    pub(crate) fn slow(&self, pass: &mut Pass, now_ms: u64, dice: f64) {
        let word = self.load();
        if pass.slow || word.epoch != pass.epoch {
            return;
        }
        pass.slow = true;
        match word.state {
            State::Closed => {
                self.window.call(now_ms);
                self.window.slow(now_ms);
                self.judge(now_ms, dice);
            }
            State::HalfOpen => self.open(word, now_ms, dice),
            State::Open => {}
        }
    }

    /// Opens if what the window holds is bad enough.
    fn judge(&self, now_ms: u64, dice: f64) {
        let policy = &self.policy;
        let in_a_row = policy.consecutive_failures > 0 && self.row.length() >= policy.consecutive_failures;
        if !in_a_row {
            let counts = self.window.counts(now_ms);
            let is_slow =
                policy.slow_call.is_some() && policy.slow_share.is_reached(counts.slow, counts.calls);
            let is_failing = policy.failure_share.is_reached(counts.failures, counts.calls);
            if counts.calls < u64::from(policy.min_requests) || !(is_failing || is_slow) {
                return;
            }
        }
        let word = self.load();
        if word.state == State::Closed && self.forced(now_ms).is_none() {
            self.open(word, now_ms, dice);
        }
    }

    fn open(&self, word: Word, now_ms: u64, dice: f64) {
        // Openings double while probes fail; a breaker that was closed for long begins anew.
        let openings = if word.state == State::HalfOpen { self.openings.load(Relaxed) } else { 0 };
        let longer = ms(self.policy.open_for).saturating_mul(1 << openings.min(32));
        let longer = longer.min(ms(self.policy.open_for_max)) as f64 * (1.0 + JITTER * (2.0 * dice - 1.0));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a float cast saturates"
        )]
        self.open_until_ms.store(now_ms.saturating_add(longer as u64), Relaxed);
        if self.enter(word, State::Open) {
            self.openings.store(openings + 1, Relaxed);
        }
    }

    fn close(&self, word: Word, now_ms: u64) {
        self.ramp_until_ms.store(now_ms + self.ramp_ms(), Relaxed);
        self.enter(word, State::Closed);
    }

    fn enter(&self, word: Word, state: State) -> bool {
        // Before the transition: what is counted after it stays.
        if state == State::Closed {
            self.window.clear();
            self.row.set(0);
        }
        let entered = self.swap(word, word.next(state));
        if entered {
            self.transitions.entered[state as usize].fetch_add(1, Relaxed);
        }
        entered
    }

    fn give_back(&self, epoch: u32) {
        loop {
            let word = self.load();
            let less = Word { probes: word.probes.saturating_sub(1), ..word };
            if word.epoch != epoch || word.state != State::HalfOpen || self.swap(word, less) {
                return;
            }
        }
    }

    fn load(&self) -> Word {
        Word::of(self.word.load(Acquire))
    }

    fn swap(&self, from: Word, to: Word) -> bool {
        self.word.compare_exchange(from.pack(), to.pack(), AcqRel, Relaxed).is_ok()
    }

    fn pass(&self, word: Word) -> Pass {
        Pass { epoch: word.epoch, slow: false }
    }

    /// What it does now.
    pub(crate) fn state(&self, now_ms: u64) -> State {
        let word = self.load();
        match (self.forced(now_ms), word.state) {
            (Some(forced), _) => forced.state,
            (None, State::Open) if self.open_until_ms.load(Relaxed) <= now_ms => State::HalfOpen,
            (None, state) => state,
        }
    }

    /// Whether it refuses calls by itself: what is under way to its target can be given up.
    pub(crate) fn is_open(&self) -> bool {
        self.load().state == State::Open
    }

    /// How long it stays open by itself; 0 where it is not.
    pub(crate) fn open_for_ms(&self, now_ms: u64) -> u64 {
        match self.load().state {
            State::Open => self.open_until_ms.load(Relaxed).saturating_sub(now_ms),
            State::Closed | State::HalfOpen => 0,
        }
    }

    /// What operators say of it now.
    pub(crate) fn forced(&self, now_ms: u64) -> Option<Forced> {
        let word = self.forced.load(Acquire);
        let until_ms = word >> 2;
        if word == 0 || until_ms <= now_ms {
            return None;
        }
        let state = if word & 3 == 1 { State::Closed } else { State::Open };
        Some(Forced { state, until_ms: Some(until_ms).filter(|until| *until < u64::MAX >> 2) })
    }

    /// Does what operators say until then; `None` is what the window says. What is said anew begins and ends with an
    /// empty window; what is only said again, or was over already, leaves everything as it is.
    pub(crate) fn force(&self, forced: Option<Forced>, now_ms: u64) {
        let word = forced.map_or(0, |forced| {
            let until_ms = forced.until_ms.unwrap_or(u64::MAX >> 2).min(u64::MAX >> 2);
            until_ms << 2 | if forced.state == State::Open { 2 } else { 1 }
        });
        let shown = self.state(now_ms);
        let before = self.forced(now_ms).map(|before| before.state);
        self.forced.store(word, Release);
        if before == forced.map(|forced| forced.state) {
            return;
        }
        self.window.clear();
        self.row.set(0);
        loop {
            let word = self.load();
            if self.swap(word, word.next(State::Closed)) {
                break;
            }
        }
        let shows = self.state(now_ms);
        if shows != shown {
            self.transitions.entered[shows as usize].fetch_add(1, Relaxed);
        }
    }

    /// What its window holds.
    pub(crate) fn counts(&self, now_ms: u64) -> Counts {
        self.window.counts(now_ms)
    }

    pub(crate) fn transitions(&self) -> &Transitions {
        &self.transitions
    }
}

#[cfg(test)]
mod tests;
