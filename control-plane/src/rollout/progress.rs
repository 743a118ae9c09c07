//! How a rollout goes on: a state machine of steps, gates and ends, with time, counts and answers as arguments.

use std::time::Duration;

use gilmok_config::name::Name;
use gilmok_config::unit::Ppm;

use super::analysis::{Analysis, Evidence, Verdict};
use super::plan::{OnFail, OnTimeout, Plan, Share, Step};
use super::state::{Alarms, End, Event, Halt, Hand, Phase, Rollout, Seen, Shift, Tables, Terms, What};
use super::tally::Tally;
use super::words;
use crate::webhook::{Occasion, Owed};

/// Entries of a rollout's history; what came first is kept, and what came last.
const HISTORY_MAX: usize = 300;
/// How long connecting fails before it is a hard stop, in milliseconds.
const UNREACHABLE_MS: u64 = 2_000;
/// Tries in a tick below which nobody judges by them.
const UNREACHABLE_ATTEMPTS_MIN: u64 = 5;
/// How long the candidate has no endpoint before it is a hard stop, in milliseconds: less may be a restart.
const DESERTED_MS: u64 = 3_000;

impl Rollout {
    /// A rollout that has not taken its first step.
    #[must_use]
    pub fn new(id: String, plan: Plan, stable: Name, before: Tables, hand: &Hand<'_>) -> Self {
        let mut rollout = Self {
            id,
            plan,
            stable,
            by: hand.by.to_owned(),
            phase: Phase::Waiting,
            halted: None,
            end: None,
            step: 0,
            share: 0,
            before,
            started_ms: hand.now_ms,
            since_ms: hand.now_ms,
            ended_ms: None,
            held_ms: 0,
            why: "it begins".to_owned(),
            agreed: Vec::new(),
            owed: Vec::new(),
            messages: 0,
            terms: Terms::default(),
            analysis: Analysis::default(),
            tally: Tally::default(),
            alarms: Alarms::default(),
            history: Vec::new(),
            happened: 0,
        };
        rollout.note(What::Started, hand, None);
        rollout
    }

    #[must_use]
    pub fn is_running(&self) -> bool {
        self.end.is_none()
    }

    /// What was counted and judged is as this one has it: the same rollout, some ticks later.
    pub fn take_counts_of(&mut self, later: &Self) {
        self.analysis = later.analysis.clone();
        self.alarms = later.alarms;
        let is_same_step =
            (self.step, self.phase, self.since_ms) == (later.step, later.phase, later.since_ms);
        let step = std::mem::take(&mut self.tally.step);
        self.tally = later.tally.clone();
        if is_same_step {
            self.held_ms = later.held_ms;
        } else {
            self.tally.step = step;
        }
    }

    /// One word for where it stands.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match (self.end, self.halted, self.phase) {
            (Some(End::Aborted), ..) => "aborted",
            (Some(End::Done), ..) => "done",
            (Some(End::RolledBack), ..) => "rolled_back",
            (None, Some(Halt::Frozen), _) => "frozen",
            (None, Some(Halt::Paused), _) => "paused",
            (None, None, Phase::Gated) => "gated",
            (None, None, Phase::Holding) => "holding",
            (None, None, Phase::Waiting) => "waiting",
        }
    }

    /// What the candidate has now.
    #[must_use]
    pub fn percent(&self) -> Ppm {
        Ppm::new(self.share).unwrap_or(Ppm::WHOLE)
    }

    /// Whether the step's time is over and only the evidence is missing.
    #[must_use]
    pub fn is_extended(&self) -> bool {
        self.is_running()
            && self.phase == Phase::Holding
            && self.missing().is_none()
            && self.unproven().is_some()
    }

    /// What is known of the candidate, when it is judged.
    #[must_use]
    pub fn evidence(&self) -> Option<Evidence> {
        let judging = self.plan.analysis.as_ref()?;
        Some(self.analysis.evidence(&judging.criteria()))
    }

    /// Takes what a tick brings; says what becomes of the traffic, if anything does. `revision` is that of the write
    /// which carries it out.
    pub fn tick(&mut self, seen: &Seen<'_>, revision: u64) -> Option<Shift> {
        if !self.is_running() {
            return None;
        }
        let hand = Hand { by: "rollout", why: "", now_ms: seen.now_ms, revision, alive: seen.alive };
        self.analysis.add(&seen.news.stable.came(), &seen.news.candidate.came());
        self.note_alarms(seen);
        if let Some(fault) =
            self.fault().filter(|_| self.halted != Some(Halt::Frozen) && !self.terms.unjudged)
        {
            return self.fail(fault, &hand);
        }
        if self.halted.is_some() {
            return None;
        }
        self.held_ms = self.held_ms.saturating_add(millis(seen.elapsed));
        self.go_on(&hand)
    }

    /// As far as it goes now.
    pub(super) fn go_on(&mut self, hand: &Hand<'_>) -> Option<Shift> {
        loop {
            match (self.phase, self.plan.steps.get(self.step).cloned()) {
                (Phase::Waiting, Some(Step::Gate { .. })) => {
                    self.enter(Phase::Gated, hand.now_ms);
                    "somebody has to promote it".clone_into(&mut self.why);
                    self.note(What::Gate, hand, None);
                    self.owe(Occasion::Gate);
                    return None;
                }
                (Phase::Waiting, Some(Step::Share(share))) => return self.take(&share, hand),
                (Phase::Gated, Some(Step::Gate { gate })) => {
                    let is_over = gate.timeout.is_some_and(|timeout| self.held_ms >= millis(timeout));
                    if !is_over {
                        return None;
                    }
                    match gate.on_timeout {
                        OnTimeout::Promote => self.advance(hand.now_ms),
                        OnTimeout::Rollback => {
                            let fault = "nobody opened the gate in time".to_owned();
                            return Some(self.roll_back(fault, hand));
                        }
                        OnTimeout::Pause => {
                            self.pause("nobody opened the gate in time".to_owned(), hand);
                            return None;
                        }
                    }
                }
                (Phase::Holding, Some(Step::Share(share))) => {
                    if let Some(missing) = self.missing() {
                        self.why = missing;
                        return None;
                    }
                    if share.percent == Ppm::WHOLE {
                        return Some(self.finish(hand));
                    }
                    if let Some(unproven) = self.unproven() {
                        self.why = unproven;
                        return None;
                    }
                    self.advance(hand.now_ms);
                }
                // A step that is none of its kind, or behind the last one: nothing that a plan can say.
                (Phase::Gated | Phase::Holding, _) | (Phase::Waiting, None) => return None,
            }
        }
    }

    /// Takes a step, when nothing is missing for it.
    fn take(&mut self, share: &Share, hand: &Hand<'_>) -> Option<Shift> {
        if hand.alive < share.min_endpoints {
            self.why = format!(
                "{} has {} of the {} endpoints that the step asks for",
                self.plan.candidate, hand.alive, share.min_endpoints
            );
            return None;
        }
        let asked = [Occasion::Before, Occasion::Step]
            .into_iter()
            .filter(|occasion| (*occasion != Occasion::Before || self.share == 0) && self.tells(*occasion));
        let missing = asked.into_iter().find(|occasion| !self.agreed.contains(occasion));
        if let Some(occasion) = missing {
            if !self.owed.iter().any(|owed| owed.occasion == occasion && owed.step == self.step) {
                self.owe(occasion);
            }
            self.why = format!("the webhook `{}` has not agreed yet", occasion.as_str());
            return None;
        }
        self.share = share.percent.get();
        self.agreed.clear();
        self.tally.next_step();
        self.enter(Phase::Holding, hand.now_ms);
        self.why = format!("{} % go to {}", share.percent.percent(), self.plan.candidate);
        self.note(What::Step, hand, Some(hand.revision));
        if share.percent == Ppm::WHOLE && share.hold.is_zero() {
            return Some(self.finish(hand));
        }
        Some(Shift::To(share.percent))
    }

    fn finish(&mut self, hand: &Hand<'_>) -> Shift {
        self.end(End::Done, hand.now_ms);
        self.share = Ppm::WHOLE.get();
        self.why = format!("{} is the stable version", self.plan.candidate);
        self.note(What::Done, hand, Some(hand.revision));
        self.owe(Occasion::After);
        Shift::Finish
    }

    /// What is still missing of the current step's time and counts.
    fn missing(&self) -> Option<String> {
        let share = self.plan.share_at(self.step)?;
        if self.terms.cut_short {
            return None;
        }
        let candidate = &self.tally.step.candidate;
        let hold = millis(share.hold);
        if self.held_ms < hold {
            let left = Duration::from_secs((hold - self.held_ms).div_ceil(1_000));
            return Some(format!("it is held for another {}", gilmok_config::unit::format_duration(left)));
        }
        for (what, has, wants) in [
            ("requests", candidate.requests, share.min_requests),
            ("subjects", candidate.trials, share.min_subjects),
        ] {
            if has < wants {
                return Some(format!("{} has had {has} of {wants} {what}", self.plan.candidate));
            }
        }
        None
    }

    /// What keeps the evidence from saying that the candidate is as good.
    pub(super) fn unproven(&self) -> Option<String> {
        let judging = self.plan.analysis.as_ref().filter(|_| !self.terms.unjudged)?;
        let evidence = self.evidence()?;
        match evidence.verdict() {
            Verdict::NotWorse => None,
            Verdict::Worse(_) => {
                words::why_worse(&evidence, self.plan.candidate.as_str(), self.stable.as_str())
            }
            Verdict::Unsure => Some(words::what_is_missing(&evidence, judging, self.plan.candidate.as_str())),
        }
    }

    fn note_alarms(&mut self, seen: &Seen<'_>) {
        let candidate = &seen.news.candidate;
        let judging = self.plan.analysis.clone().unwrap_or_default();
        let unreachable = candidate.attempts >= UNREACHABLE_ATTEMPTS_MIN
            && judging.connect_failures.is_reached(candidate.unreachable, candidate.attempts);
        let count = |alarm_ms: u64, rings: bool| if rings { alarm_ms + millis(seen.elapsed) } else { 0 };
        let Alarms { unreachable_ms, deserted_ms } = self.alarms;
        self.alarms = Alarms {
            // Without a try nothing is known: ticks that a webhook's answer brings are short.
            unreachable_ms: if candidate.attempts == 0 {
                unreachable_ms
            } else {
                count(unreachable_ms, unreachable)
            },
            deserted_ms: count(deserted_ms, seen.settled && seen.alive == 0 && self.share > 0),
        };
    }

    /// What ends it, if anything does.
    fn fault(&self) -> Option<String> {
        let candidate = &self.plan.candidate;
        if self.share == 0 {
            return None;
        }
        if self.alarms.deserted_ms >= DESERTED_MS {
            return Some(format!("no endpoint of {candidate} is alive"));
        }
        if self.alarms.unreachable_ms >= UNREACHABLE_MS {
            return Some(format!("endpoints of {candidate} cannot be connected to"));
        }
        let judging = self.plan.analysis.as_ref()?;
        let evidence = self.evidence()?;
        if evidence.failures.candidate.trials < judging.min_trials {
            return None;
        }
        words::why_worse(&evidence, candidate.as_str(), self.stable.as_str())
    }

    fn fail(&mut self, fault: String, hand: &Hand<'_>) -> Option<Shift> {
        let is_past_return = self.percent() > self.plan.rollback_safe_until;
        if self.plan.on_fail == OnFail::Freeze || is_past_return {
            self.halted = Some(Halt::Frozen);
            self.why = if is_past_return {
                format!("{fault}; past {} % nothing is taken back", self.plan.rollback_safe_until.percent())
            } else {
                fault
            };
            self.note(What::Frozen, hand, None);
            self.owe(Occasion::Rollback);
            return None;
        }
        Some(self.roll_back(fault, hand))
    }

    fn roll_back(&mut self, fault: String, hand: &Hand<'_>) -> Shift {
        self.end(End::RolledBack, hand.now_ms);
        self.why = fault;
        self.note(What::RolledBack, hand, Some(hand.revision));
        self.share = 0;
        self.owe(Occasion::Rollback);
        Shift::Back
    }

    pub(super) fn advance(&mut self, now_ms: u64) {
        self.step += 1;
        self.terms.cut_short = false;
        self.agreed.clear();
        self.enter(Phase::Waiting, now_ms);
    }

    pub(super) fn enter(&mut self, phase: Phase, now_ms: u64) {
        self.phase = phase;
        self.since_ms = now_ms;
        self.held_ms = 0;
    }

    pub(super) fn end(&mut self, end: End, now_ms: u64) {
        self.end = Some(end);
        self.halted = None;
        self.ended_ms = Some(now_ms);
        // What was only asked needs no answer any more.
        self.owed.retain(|owed| !owed.occasion.is_asked());
    }

    pub(super) fn pause(&mut self, why: String, hand: &Hand<'_>) {
        self.halted = Some(Halt::Paused);
        self.why = why;
        self.note(What::Paused, hand, None);
    }

    pub(super) fn note(&mut self, what: What, hand: &Hand<'_>, revision: Option<u64>) {
        if self.history.len() >= HISTORY_MAX {
            self.history.remove(HISTORY_MAX / 2);
        }
        self.happened += 1;
        let why = if hand.why.is_empty() { self.why.clone() } else { hand.why.to_owned() };
        self.history.push(Event {
            at_ms: hand.now_ms,
            what,
            step: self.step,
            percent: self.percent().percent(),
            by: hand.by.to_owned(),
            why,
            revision,
            evidence: self.evidence().map(Box::new),
        });
    }

    fn tells(&self, occasion: Occasion) -> bool {
        self.plan.webhooks.iter().any(|webhook| webhook.on.contains(&occasion))
    }

    pub(super) fn owe(&mut self, occasion: Occasion) {
        if !self.tells(occasion) {
            return;
        }
        self.messages += 1;
        let (number, step, why) = (self.messages, self.step, self.why.clone());
        self.owed.push(Owed { number, occasion, step, back: false, why });
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
