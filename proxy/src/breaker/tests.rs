//! Each rule of the breaker by hand, and what no sequence of outcomes and times may break.

use proptest::prelude::*;

use super::*;

/// The middle: no jitter, and past any ramp.
const DICE: f64 = 0.5;

fn policy(change: impl FnOnce(&mut BreakerPolicy)) -> BreakerPolicy {
    let mut policy = BreakerPolicy { min_requests: 4, ..BreakerPolicy::default() };
    change(&mut policy);
    policy
}

fn call(breaker: &Breaker, verdict: Verdict, now_ms: u64) {
    let pass = breaker.admit(now_ms, 0.0).expect("it lets calls through");
    breaker.report(pass, verdict, now_ms, DICE);
}

fn tripped(change: impl FnOnce(&mut BreakerPolicy)) -> Breaker {
    let breaker = Breaker::new(policy(change));
    for _ in 0..4 {
        call(&breaker, Verdict::Failure, 1_000);
    }
    assert_eq!(breaker.state(1_000), State::Open);
    breaker
}

#[test]
fn it_opens_at_the_share_of_failures_and_not_below_the_least_number_of_calls() {
    let breaker = Breaker::new(policy(|_| ()));
    for verdict in [Verdict::Failure, Verdict::Failure, Verdict::Success] {
        call(&breaker, verdict, 1_000);
        assert_eq!(breaker.state(1_000), State::Closed);
    }
    // The fourth call makes it enough of them, and half of them failed.
    call(&breaker, Verdict::Success, 1_000);
    assert_eq!(breaker.state(1_000), State::Open);
    assert_eq!(breaker.admit(2_000, DICE).unwrap_err(), Refused { retry_after_ms: 4_000 });
    assert_eq!(breaker.transitions().to(State::Open), 1);
}

#[test]
fn what_is_long_ago_does_not_count() {
    let breaker = Breaker::new(policy(|_| ()));
    for _ in 0..3 {
        call(&breaker, Verdict::Failure, 1_000);
    }
    call(&breaker, Verdict::Failure, 12_000);
    assert_eq!(breaker.state(12_000), State::Closed);
    assert_eq!(breaker.counts(12_000), Counts { calls: 1, failures: 1, slow: 0 });
}

#[test]
fn failures_in_a_row_open_it_whatever_the_window_says() {
    let breaker = Breaker::new(policy(|policy| {
        policy.min_requests = 1_000;
        policy.consecutive_failures = 3;
    }));
    for verdict in [Verdict::Failure, Verdict::Failure, Verdict::Success, Verdict::Failure, Verdict::Failure]
    {
        call(&breaker, verdict, 1_000);
    }
    assert_eq!(breaker.state(1_000), State::Closed);
    call(&breaker, Verdict::Neutral, 1_000);
    call(&breaker, Verdict::Failure, 1_000);
    assert_eq!(breaker.state(1_000), State::Open);
}

#[test]
fn what_hangs_opens_it_before_it_times_out() {
    let breaker = Breaker::new(policy(|policy| policy.slow_call = Some(Duration::from_millis(300))));
    let mut passes: Vec<_> = (0..4).map(|_| breaker.admit(1_000, DICE).unwrap()).collect();
    for pass in &mut passes {
        assert_eq!(breaker.state(1_300), State::Closed);
        breaker.slow(pass, 1_300, DICE);
        breaker.slow(pass, 1_300, DICE);
    }
    assert_eq!(breaker.state(1_300), State::Open);
    // Their timeouts come later and say nothing any more.
    for pass in passes {
        breaker.report(pass, Verdict::Failure, 2_000, DICE);
    }
    assert_eq!(breaker.transitions().to(State::Open), 1);
}

#[test]
fn a_slow_call_that_ends_well_counts_once() {
    let breaker = Breaker::new(policy(|policy| {
        policy.slow_call = Some(Duration::from_millis(300));
        policy.min_requests = 10;
    }));
    let mut pass = breaker.admit(1_000, DICE).unwrap();
    breaker.slow(&mut pass, 1_300, DICE);
    breaker.report(pass, Verdict::Success, 1_400, DICE);
    assert_eq!(breaker.counts(1_400), Counts { calls: 1, failures: 0, slow: 1 });
}

#[test]
fn probes_are_counted_and_a_good_one_closes_it_with_an_empty_window() {
    let breaker = tripped(|policy| policy.half_open_requests = 2);
    assert!(breaker.admit(5_999, DICE).is_err());
    let first = breaker.admit(6_000, DICE).unwrap();
    let second = breaker.admit(6_000, DICE).unwrap();
    assert_eq!(breaker.state(6_000), State::HalfOpen);
    assert_eq!(breaker.admit(6_000, DICE).unwrap_err(), Refused { retry_after_ms: 1_000 });
    // A caller who left gives the place back.
    breaker.report(first, Verdict::Neutral, 6_100, DICE);
    let third = breaker.admit(6_100, DICE).unwrap();
    breaker.report(second, Verdict::Success, 6_200, DICE);
    assert_eq!(breaker.state(6_200), State::Closed);
    breaker.report(third, Verdict::Failure, 6_300, DICE);
    assert_eq!(breaker.counts(6_300), Counts::default());
    // No flood: a tenth at first, all of them a second later.
    assert!(breaker.admit(6_200, 0.2).is_err() && breaker.admit(6_200, 0.05).is_ok());
    assert!(breaker.admit(6_700, 0.6).is_err() && breaker.admit(6_700, 0.4).is_ok());
    assert!(breaker.admit(7_200, 1.0).is_ok());
}

#[test]
fn openings_double_up_to_the_longest_and_vary() {
    let breaker = tripped(|policy| policy.open_for_max = Duration::from_secs(15));
    let mut now_ms = 1_000;
    for open_for in [5_000, 10_000, 15_000, 15_000] {
        assert!(breaker.admit(now_ms + open_for - 1, DICE).is_err());
        now_ms += open_for;
        let probe = breaker.admit(now_ms, DICE).unwrap();
        breaker.report(probe, Verdict::Failure, now_ms, DICE);
    }
    let probe = breaker.admit(now_ms + 15_000, DICE).unwrap();
    breaker.report(probe, Verdict::Failure, now_ms, 1.0);
    assert!(breaker.admit(now_ms + 16_499, DICE).is_err() && breaker.admit(now_ms + 16_500, DICE).is_ok());
}

#[test]
fn a_probe_that_is_never_heard_of_does_not_keep_it_half_open() {
    let breaker = tripped(|_| ());
    let lost = breaker.admit(6_000, DICE).unwrap();
    assert!(breaker.admit(65_999, DICE).is_err());
    let probe = breaker.admit(66_000, DICE).unwrap();
    breaker.report(lost, Verdict::Success, 66_000, DICE);
    assert_eq!(breaker.state(66_000), State::HalfOpen, "who was given up says nothing any more");
    breaker.report(probe, Verdict::Success, 66_100, DICE);
    assert_eq!(breaker.state(66_100), State::Closed);
}

#[test]
fn operators_have_the_last_word() {
    let breaker = tripped(|_| ());
    breaker.force(Some(Forced { state: State::Closed, until_ms: None }), 2_000);
    for _ in 0..10 {
        call(&breaker, Verdict::Failure, 2_000);
    }
    assert_eq!(breaker.state(2_000), State::Closed);
    breaker.force(Some(Forced { state: State::Open, until_ms: Some(9_000) }), 3_000);
    assert_eq!(breaker.admit(3_000, DICE).unwrap_err(), Refused { retry_after_ms: 6_000 });
    assert_eq!(breaker.forced(8_999), Some(Forced { state: State::Open, until_ms: Some(9_000) }));
    assert_eq!(breaker.transitions().to(State::Open), 2, "by itself, and by operators");
    assert!(breaker.forced(9_000).is_none() && breaker.admit(9_000, 0.0).is_ok());
    breaker.force(None, 8_000);
    assert_eq!((breaker.state(8_000), breaker.counts(8_000)), (State::Closed, Counts::default()));
}

#[test]
fn what_operators_say_again_and_what_is_over_change_nothing() {
    let breaker = Breaker::new(policy(|_| ()));
    let forced = |state, until_ms| Some(Forced { state, until_ms: Some(until_ms) });
    breaker.force(forced(State::Closed, 5_000), 1_000);
    call(&breaker, Verdict::Failure, 1_000);
    let before = [State::Closed, State::Open].map(|state| breaker.transitions().to(state));
    // Every change of membership says it again, by the wall's clock a millisecond earlier or later.
    breaker.force(forced(State::Closed, 5_001), 2_000);
    breaker.force(forced(State::Closed, 4_999), 3_000);
    assert_eq!(breaker.counts(3_000).calls, 1);
    assert_eq!([State::Closed, State::Open].map(|state| breaker.transitions().to(state)), before);
    for _ in 0..3 {
        call(&breaker, Verdict::Failure, 6_000);
    }
    assert_eq!(breaker.state(6_000), State::Open, "it was over, and the calls decided");
    breaker.force(None, 6_100);
    assert_eq!(breaker.state(6_100), State::Open, "what is over cannot be taken back");
}

#[test]
fn workers_together_count_every_outcome_and_open_it_once() {
    let breaker = Breaker::new(policy(|policy| policy.min_requests = 40_000));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for n in 0..9_999_u64 {
                    call(&breaker, if n % 4 == 0 { Verdict::Failure } else { Verdict::Success }, n / 10);
                }
            });
        }
    });
    assert_eq!(breaker.counts(1_000), Counts { calls: 4 * 9_999, failures: 4 * 2_500, slow: 0 });
    let breaker = Breaker::new(policy(|policy| policy.min_requests = 1_000));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..1_000 {
                    if let Ok(pass) = breaker.admit(5, DICE) {
                        breaker.report(pass, Verdict::Failure, 5, DICE);
                    }
                }
            });
        }
    });
    assert_eq!((breaker.state(5), breaker.transitions().to(State::Open)), (State::Open, 1));
}

/// One thing that happens to a breaker.
#[derive(Clone, Copy, Debug)]
enum Event {
    Admit,
    Report(usize, Verdict),
    Slow(usize),
    Wait(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let verdict = prop_oneof![Just(Verdict::Success), Just(Verdict::Failure), Just(Verdict::Neutral)];
    prop_oneof![
        4 => Just(Event::Admit),
        4 => (any::<usize>(), verdict).prop_map(|(which, verdict)| Event::Report(which, verdict)),
        1 => any::<usize>().prop_map(Event::Slow),
        2 => (0_u64..8_000).prop_map(Event::Wait),
    ]
}

proptest! {
    #[test]
    fn no_sequence_breaks_what_must_hold(events in prop::collection::vec(event(), 1..400), most in 1_u32..4) {
        let policy = policy(|policy| {
            policy.half_open_requests = most;
            policy.slow_call = Some(Duration::from_millis(100));
        });
        let breaker = Breaker::new(policy);
        let (mut now_ms, mut flying) = (1_000_u64, Vec::<Pass>::new());
        let mut calls = 0_u64;
        for event in events {
            match event {
                Event::Admit => {
                    if let Ok(pass) = breaker.admit(now_ms, DICE) {
                        flying.push(pass);
                        calls += 1;
                    }
                }
                Event::Report(which, verdict) if !flying.is_empty() => {
                    let pass = flying.swap_remove(which % flying.len());
                    breaker.report(pass, verdict, now_ms, DICE);
                }
                Event::Slow(which) if !flying.is_empty() => {
                    let at = which % flying.len();
                    breaker.slow(&mut flying[at], now_ms, DICE);
                }
                Event::Wait(ms) => now_ms += ms,
                Event::Report(..) | Event::Slow(_) => {}
            }
            let word = breaker.load();
            prop_assert!(word.probes <= most && (word.probes == 0 || word.state == State::HalfOpen));
            let counts = breaker.counts(now_ms);
            prop_assert!(counts.calls <= calls && counts.slow <= counts.calls);
            // A call and its failure may fall into two buckets, of which one is over.
            prop_assert!(counts.failures <= calls);
        }
        // Whatever was, after the longest opening and silence a call is let through.
        now_ms += 66_000 + ms(PROBE_SILENT_MAX);
        prop_assert!(breaker.admit(now_ms, DICE).is_ok());
    }
}
