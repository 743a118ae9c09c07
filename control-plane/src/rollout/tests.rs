//! Rollouts as they go on: time, counts and words in, shares and states out.

use std::time::Duration;

use gilmok_config::name::Name;
use serde_json::{Value, json};

use super::deed::Unfit;
use super::plan::Plan;
use super::state::{Hand, Rollout, Seen, Shift, Tables, What};
use super::tally::Both;
use crate::webhook::Occasion;

/// A rollout and the world around it, one second after the other.
struct World {
    rollout: Rollout,
    now_ms: u64,
    alive: u64,
    news: Both,
    shifts: Vec<Shift>,
}

fn hand(now_ms: u64) -> Hand<'static> {
    Hand { by: "ann", why: "", now_ms, revision: 2, alive: 1 }
}

impl World {
    fn new(plan: &Value) -> Self {
        let mut plan = plan.clone();
        plan["candidate"] = json!("v2");
        let plan = Plan::parse(&plan, 1).unwrap();
        let rollout = Rollout::new("1".to_owned(), plan, Name::parse("v1").unwrap(), Tables::new(), &hand(0));
        Self { rollout, now_ms: 0, alive: 1, news: Both::default(), shifts: Vec::new() }
    }

    /// Each second from now on both versions have so many subjects, and the candidate so many failures.
    fn comes(&mut self, stable: u64, candidate: u64, failures: u64) {
        let latency = |trials| [(20, trials)].into();
        self.news.stable.trials = stable;
        self.news.stable.latency = latency(stable);
        self.news.candidate.trials = candidate;
        self.news.candidate.requests = candidate * 2;
        self.news.candidate.attempts = candidate * 2;
        self.news.candidate.failures = failures;
        self.news.candidate.latency = latency(candidate);
    }

    fn seconds(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now_ms += 1_000;
            // As hearing it from proxies does.
            self.rollout.tally.step.candidate.requests += self.news.candidate.requests;
            self.rollout.tally.step.candidate.trials += self.news.candidate.trials;
            let seen = Seen {
                now_ms: self.now_ms,
                elapsed: Duration::from_secs(1),
                alive: self.alive,
                settled: true,
                news: &self.news,
            };
            self.shifts.extend(self.rollout.tick(&seen, 2));
        }
    }

    /// Lets it go on until something else is so; the seconds that took.
    fn until(&mut self, state: &str, step: usize) -> u64 {
        for second in 0..10_000 {
            if self.rollout.state() == state && self.rollout.step == step {
                return second;
            }
            self.seconds(1);
        }
        panic!("{} at step {}: {}", self.rollout.state(), self.rollout.step, self.rollout.why);
    }

    fn percents(&self) -> Vec<f64> {
        let percent = |shift: &Shift| match shift {
            Shift::To(share) => share.percent(),
            Shift::Finish => 100.0,
            Shift::Back => 0.0,
        };
        self.shifts.iter().map(percent).collect()
    }

    fn history(&self) -> Vec<What> {
        self.rollout.history.iter().map(|event| event.what).collect()
    }
}

fn steps(more: &Value) -> Value {
    let mut plan =
        json!({"steps": [{"percent": 1, "hold": "10s"}, {"percent": 50, "hold": "10s"}, {"percent": 100}]});
    plan.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    plan
}

#[test]
fn a_healthy_candidate_goes_all_the_way_and_is_the_stable_version_then() {
    let mut world = World::new(&steps(&json!({})));
    world.comes(9_000, 1_000, 0);
    world.until("done", 2);
    assert_eq!(world.percents(), [1.0, 50.0, 100.0]);
    assert_eq!(world.history(), [What::Started, What::Step, What::Step, What::Step, What::Done]);
    assert!(world.now_ms >= 20_000, "each step was held: {}", world.now_ms);
    let evidence = world.rollout.history.last().unwrap().evidence.as_ref().unwrap();
    assert!(evidence.failures.candidate.trials > 0, "decisions are kept with what they rest on");
    world.seconds(5);
    assert_eq!(world.percents().len(), 3, "what has ended does nothing");
}

#[test]
fn a_worse_candidate_is_taken_back_and_the_reason_is_told() {
    let mut world = World::new(&steps(&json!({})));
    world.comes(990, 10, 0);
    world.seconds(5);
    world.comes(990, 10, 1);
    world.until("rolled_back", 0);
    assert_eq!(world.percents(), [1.0, 0.0]);
    assert!(world.rollout.why.starts_with("v2 fails in"), "{}", world.rollout.why);
    assert_eq!(world.rollout.percent().get(), 0);
}

#[test]
fn few_subjects_say_nothing_and_the_step_is_extended() {
    let mut world = World::new(&steps(&json!({})));
    world.comes(99, 0, 0);
    world.seconds(3_600);
    assert_eq!(
        (world.rollout.state(), world.rollout.step, world.rollout.is_extended()),
        ("holding", 0, true)
    );
    assert!(world.rollout.why.contains("has to be shown"), "{}", world.rollout.why);
}

#[test]
fn a_step_asks_for_time_requests_subjects_and_endpoints() {
    let plan = json!({"analysis": "off", "steps": [
        {"percent": 10, "hold": "5s", "min_requests": 100, "min_subjects": 100},
        {"percent": 20, "min_endpoints": 3}, {"percent": 100}]});
    let mut world = World::new(&plan);
    world.comes(0, 5, 0);
    world.seconds(7);
    assert_eq!(world.rollout.why, "v2 has had 60 of 100 requests", "the first second took the step");
    world.seconds(6);
    assert_eq!(world.rollout.why, "v2 has had 60 of 100 subjects");
    world.seconds(20);
    assert_eq!(
        (world.rollout.state(), world.rollout.why.as_str()),
        ("waiting", "v2 has 1 of the 3 endpoints that the step asks for")
    );
    assert_eq!(world.percents(), [10.0], "the share stays while it waits");
    world.alive = 3;
    world.until("done", 2);
}

#[test]
fn a_gate_waits_for_a_word_and_is_judged_meanwhile() {
    let gated = |gate: Value| json!({"steps": [{"percent": 10}, {"gate": gate}, {"percent": 100}]});
    let mut world = World::new(&gated(json!(true)));
    world.comes(900, 100, 0);
    world.until("gated", 1);
    world.seconds(100);
    assert_eq!(world.rollout.state(), "gated");
    assert_eq!(world.rollout.told_to_promote(false, false, &hand(1)), Ok(Some(Shift::Finish)));
    assert!(world.history().contains(&What::Approved));

    let mut world = World::new(&gated(json!({"timeout": "1h", "on_timeout": "promote"})));
    world.comes(900, 100, 0);
    world.until("gated", 1);
    world.comes(900, 100, 30);
    world.until("rolled_back", 1);

    for (on_timeout, state) in [("promote", "done"), ("rollback", "rolled_back"), ("pause", "paused")] {
        let mut world = World::new(&gated(json!({"timeout": "30s", "on_timeout": on_timeout})));
        world.comes(900, 100, 0);
        world.until("gated", 1);
        world.seconds(31);
        assert_eq!(world.rollout.state(), state, "{on_timeout}");
    }
}

#[test]
fn past_the_point_of_no_return_it_freezes_and_only_a_word_goes_on() {
    let plan = json!({"rollback_safe_until": 20, "steps": [{"percent": 10}, {"percent": 50, "hold": "1h"}, {"percent": 100}]});
    for (plan, on_fail) in [(plan, "no return"), (steps(&json!({"on_fail": "freeze"})), "freeze")] {
        let mut world = World::new(&plan);
        world.comes(900, 100, 0);
        world.until("holding", usize::from(on_fail == "no return"));
        let share = world.rollout.percent();
        world.comes(900, 100, 40);
        world.seconds(60);
        assert_eq!((world.rollout.state(), world.rollout.percent()), ("frozen", share), "{on_fail}");
        assert!(matches!(world.rollout.told_to_resume(&hand(1)), Err(Unfit::Frozen(_))));
        assert!(matches!(world.rollout.told_to_promote(false, false, &hand(1)), Err(Unfit::Frozen(_))));
        let mut forced = world.rollout.clone();
        assert_eq!(forced.told_to_promote(true, true, &hand(1)), Ok(Some(Shift::Finish)));
        assert_eq!(world.rollout.told_to_abort(&hand(1)), Ok(Shift::Back));
        assert_eq!(world.rollout.state(), "aborted");
    }
}

#[test]
fn hard_stops_wait_for_no_statistics() {
    let mut world = World::new(&steps(&json!({"analysis": {"connect_failures_percent": 50}})));
    world.comes(99, 1, 0);
    world.seconds(1);
    world.alive = 0;
    world.seconds(2);
    world.alive = 1;
    world.seconds(1);
    assert_eq!(world.rollout.state(), "holding", "a restart is no failure");
    world.alive = 0;
    world.seconds(3);
    assert_eq!(
        (world.rollout.state(), world.rollout.why.as_str()),
        ("rolled_back", "no endpoint of v2 is alive")
    );

    let mut world = World::new(&steps(&json!({})));
    world.seconds(1);
    world.alive = 0;
    for _ in 0..10 {
        let (now_ms, news) = (world.now_ms, Both::default());
        let seen = Seen { now_ms, elapsed: Duration::from_secs(1), alive: 0, settled: false, news: &news };
        assert_eq!(world.rollout.tick(&seen, 2), None, "who has just started may not have heard of all");
    }

    let mut world = World::new(&steps(&json!({})));
    world.comes(99, 1, 0);
    world.seconds(1);
    (world.news.candidate.attempts, world.news.candidate.unreachable) = (10, 6);
    world.seconds(1);
    assert_eq!(world.rollout.state(), "holding", "once is not twice");
    world.seconds(1);
    assert_eq!(world.rollout.why, "endpoints of v2 cannot be connected to");
}

#[test]
fn a_paused_rollout_holds_no_time_and_is_judged_all_the_same() {
    let mut world = World::new(&steps(&json!({"analysis": "off"})));
    world.seconds(5);
    world.rollout.told_to_pause(&hand(1)).unwrap();
    assert_eq!(world.rollout.told_to_pause(&hand(1)), Err(Unfit::Paused));
    world.seconds(1_000);
    assert_eq!(world.percents(), [1.0]);
    world.rollout.told_to_resume(&hand(1)).unwrap();
    assert_eq!(world.rollout.told_to_resume(&hand(1)), Err(Unfit::NotPaused));
    world.seconds(3);
    assert_eq!(world.rollout.step, 0);
    world.seconds(4);
    assert_eq!(world.rollout.step, 1);

    let mut world = World::new(&steps(&json!({})));
    world.comes(900, 100, 0);
    world.seconds(3);
    world.rollout.told_to_pause(&hand(1)).unwrap();
    world.comes(900, 100, 50);
    world.seconds(30);
    assert_eq!(world.rollout.state(), "rolled_back");
}

#[test]
fn promoting_cuts_time_short_but_not_the_evidence() {
    let mut world = World::new(
        &json!({"steps": [{"percent": 1, "hold": "1h"}, {"percent": 50, "hold": "1h"}, {"percent": 100}]}),
    );
    world.comes(99, 1, 0);
    world.seconds(20);
    assert!(matches!(world.rollout.told_to_promote(false, false, &hand(1)), Err(Unfit::Unproven(_))));
    world.comes(9_000, 1_000, 0);
    world.seconds(30);
    let shift = world.rollout.told_to_promote(false, false, &hand(1)).unwrap();
    assert!(matches!(shift, Some(Shift::To(share)) if share.percent() == 50.0));
    let mut forced = World::new(&json!({"steps": [{"percent": 1, "hold": "1h"}, {"percent": 100}]}));
    forced.seconds(2);
    assert_eq!(forced.rollout.told_to_promote(true, false, &hand(1)), Ok(Some(Shift::Finish)));
}

#[test]
fn webhooks_keep_steps_from_being_taken_until_they_agree() {
    let hooks = json!({"analysis": "off", "webhooks": [{"url": "http://127.0.0.1:1/", "on": ["before", "step", "after"]}]});
    let mut world = World::new(&steps(&hooks));
    let owed = |world: &World| world.rollout.owed.clone();
    world.seconds(3);
    assert_eq!(
        (world.rollout.state(), world.rollout.why.as_str()),
        ("waiting", "the webhook `before` has not agreed yet")
    );
    let first = owed(&world);
    assert_eq!((first.len(), first[0].occasion), (1, Occasion::Before));
    world.rollout.answered(&first[0], Ok(()), &hand(1));
    world.rollout.answered(&first[0], Err("late".to_owned()), &hand(1));
    world.seconds(1);
    let second = owed(&world);
    assert_eq!((second.len(), second[0].occasion), (1, Occasion::Step));
    assert_ne!(second[0].number, first[0].number);
    world.rollout.answered(&second[0], Ok(()), &hand(1));
    world.seconds(1);
    assert_eq!(world.percents(), [1.0]);
    world.seconds(11);
    let third = owed(&world);
    assert_eq!((third[0].occasion, third[0].step), (Occasion::Step, 1));
    world.rollout.answered(&third[0], Err("answered 403".to_owned()), &hand(1));
    world.seconds(1);
    assert_eq!(world.rollout.state(), "paused");
    assert!(world.rollout.why.contains("`step` did not agree: answered 403"), "{}", world.rollout.why);
    world.rollout.told_to_resume(&hand(1)).unwrap();
    assert_eq!(owed(&world).len(), 1, "it is asked again");
    world.rollout.told_to_promote(true, true, &hand(1)).unwrap();
    let last = owed(&world);
    assert_eq!((world.rollout.state(), last.len(), last[0].occasion), ("done", 1, Occasion::After));
    world.rollout.answered(&last[0], Err("refused".to_owned()), &hand(1));
    assert_eq!(
        (world.rollout.state(), owed(&world).len()),
        ("done", 0),
        "who is only told keeps nothing from ending"
    );
}

#[test]
fn a_kept_rollout_goes_on_where_it_was() {
    let mut world = World::new(&steps(&json!({})));
    world.comes(900, 100, 0);
    world.seconds(8);
    let kept = serde_json::to_string(&world.rollout).unwrap();
    world.rollout = serde_json::from_str(&kept).unwrap();
    world.until("done", 2);
    assert_eq!(world.percents(), [1.0, 50.0, 100.0]);
}

#[test]
fn the_history_is_bounded() {
    let mut world = World::new(&steps(&json!({"analysis": "off"})));
    world.seconds(1);
    for _ in 0..1_000 {
        world.rollout.told_to_pause(&hand(1)).unwrap();
        world.rollout.told_to_resume(&hand(1)).unwrap();
    }
    assert_eq!(world.rollout.history.len(), 300);
    assert_eq!(world.rollout.history[0].what, What::Started);
}
