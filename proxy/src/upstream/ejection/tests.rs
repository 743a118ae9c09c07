//! Random outcomes and times against a service with several endpoints: the share, the pick, the counters.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use gilmok_config::document::Document;
use gilmok_config::name::Name;
use gilmok_config::service::LoadBalancer;
use gilmok_config::snapshot::{Membership, Snapshot};
use proptest::prelude::*;

use super::*;
use crate::upstream::balance::Choice;
use crate::upstream::endpoint::Health;
use crate::upstream::service::{Surroundings, Upstream};

fn policy(table: &str) -> OutlierDetection {
    let text = format!("[services.ads.outlier_detection]\n{table}\n");
    Document::parse_toml(&text).unwrap().services["ads"].outlier_detection.unwrap()
}

fn upstream(endpoints: usize, table: &str, before: Option<&Upstream>, now_ms: u64) -> Upstream {
    let mut text = format!("[services.ads]\n[services.ads.outlier_detection]\n{table}\n");
    for port in 1..=endpoints {
        text.push_str(&format!("[[services.ads.endpoints]]\naddress = \"127.0.0.1:{port}\"\n"));
    }
    let snapshot = Snapshot::join(&Document::parse_toml(&text).unwrap(), &Membership::new());
    let (resolved, zone, next_id) = (HashMap::new(), Name::default(), AtomicU64::new(1));
    let around = Surroundings {
        resolved: &resolved,
        zone: &zone,
        identity: None,
        workers: 1,
        now_ms,
        next_id: &next_id,
        emptied: &Arc::default(),
    };
    let service = &snapshot.services()[0];
    Upstream::build(&service.name, &service.policy, &service.endpoints, before, &around)
}

/// Both dice in the middle: no jitter.
const EVEN: f64 = 0.5;

fn fail(upstream: &Upstream, at: usize, times: usize, now_ms: u64) {
    for _ in 0..times {
        upstream.endpoint_outcome(&upstream.endpoints[at], Verdict::Failure, now_ms, EVEN);
    }
}

fn succeed(upstream: &Upstream, at: usize, now_ms: u64) {
    upstream.endpoint_outcome(&upstream.endpoints[at], Verdict::Success, now_ms, EVEN);
}

fn ejected(upstream: &Upstream) -> Vec<usize> {
    let endpoints = upstream.endpoints.iter().enumerate();
    endpoints.filter(|(_, state)| state.ejection.is_ejected()).map(|(at, _)| at).collect()
}

fn eligible(upstream: &Upstream, now_ms: u64) -> Vec<usize> {
    let eligible = upstream.eligible(now_ms);
    let is_there = |at: &usize| {
        eligible.all.endpoints().iter().any(|state| Arc::ptr_eq(state, &upstream.endpoints[*at]))
    };
    (0..upstream.endpoints.len()).filter(is_there).collect()
}

/// The ports of both, which stay the same over snapshots.
fn pick(upstream: &Upstream, now_ms: u64) -> Option<String> {
    let choice = Choice {
        balancer: LoadBalancer::Random,
        slow_start: Duration::ZERO,
        turn: &upstream.shared.turn,
        except: None,
        subject: None,
        now_ms,
    };
    upstream.eligible(now_ms).all.pick(&choice).map(|state| state.peer.to_string())
}

#[test]
fn the_share_is_rounded_down_but_one_of_several_may_always_go() {
    for (percent, endpoints, expected) in [
        (50, 0, 0),
        (50, 1, 0),
        (50, 2, 1),
        (50, 3, 1),
        (50, 4, 2),
        (10, 2, 1),
        (10, 30, 3),
        (0, 10, 0),
        (100, 1, 1),
        (100, 3, 3),
        (99, 100, 99),
    ] {
        let policy = policy(&format!("max_ejected_percent = {percent}"));
        assert_eq!(most(&policy, endpoints), expected, "{percent} % of {endpoints}");
    }
}

#[test]
fn ejections_in_a_row_grow_up_to_the_longest_and_are_forgotten() {
    let policy = policy("base_ejection = \"30s\"\nmax_ejection = \"5m\"");
    for (times, seconds) in [(1, 30), (2, 60), (10, 300), (11, 300), (u32::MAX, 300)] {
        assert_eq!(length_ms(&policy, times, EVEN), seconds * 1_000, "{times}");
    }
    assert_eq!((length_ms(&policy, 1, 0.0), length_ms(&policy, 1, 1.0)), (27_000, 33_000));
    for (times, since_return_s, next) in
        [(0, 0, 1), (1, 0, 2), (1, 29, 2), (1, 30, 1), (9, 60, 8), (10, 0, 10)]
    {
        assert_eq!(next_times(&policy, times, since_return_s * 1_000), next, "{times} {since_return_s}");
    }
}

#[test]
fn failures_in_a_row_eject_and_a_success_between_does_not() {
    let upstream = upstream(3, "consecutive_failures = 5", None, 1);
    fail(&upstream, 0, 4, 10);
    succeed(&upstream, 0, 11);
    fail(&upstream, 0, 4, 12);
    upstream.endpoint_outcome(&upstream.endpoints[0], Verdict::Neutral, 13, EVEN);
    assert_eq!(eligible(&upstream, 14), [0, 1, 2]);
    fail(&upstream, 0, 1, 15);
    assert_eq!(eligible(&upstream, 16), [1, 2]);
    assert_eq!(upstream.shared.ejections.total(), 1);
    assert_eq!(eligible(&upstream, 30_014), [1, 2]);
    assert_eq!(eligible(&upstream, 30_015), [0, 1, 2], "back when its time is over, without a timer");
}

#[test]
fn whoever_comes_back_begins_with_a_small_share_and_goes_again_at_its_first_failure() {
    let upstream = upstream(2, "", None, 1);
    fail(&upstream, 0, 5, 10);
    let back_ms = 30_010;
    assert_eq!(eligible(&upstream, back_ms), [0, 1]);
    let first = upstream.endpoints[0].peer.to_string();
    let share = |now_ms| (0..4_000).filter(|_| pick(&upstream, now_ms).unwrap() == first).count();
    let (begin, later) = (share(back_ms), share(back_ms + 5_000));
    assert!((200..600).contains(&begin) && (1_800..2_200).contains(&later), "{begin} {later}");
    fail(&upstream, 0, 1, back_ms + 1);
    assert_eq!(upstream.endpoints[0].ejection.until_ms(), Some(back_ms + 1 + 60_000));
    // Two ejections in a row; one of them is forgotten after 30 s.
    let back_ms = back_ms + 1 + 60_000;
    assert_eq!(eligible(&upstream, back_ms), [0, 1]);
    succeed(&upstream, 0, back_ms);
    fail(&upstream, 0, 5, back_ms + 30_000);
    assert_eq!(upstream.endpoints[0].ejection.until_ms(), Some(back_ms + 30_000 + 60_000));
}

#[test]
fn the_best_of_the_bad_stay_and_that_is_counted() {
    let upstream = upstream(3, "consecutive_failures = 2", None, 1);
    for (at, succeeded_ms) in [(0, 100), (1, 300), (2, 200)] {
        succeed(&upstream, at, succeeded_ms);
    }
    fail(&upstream, 2, 2, 400);
    assert_eq!(ejected(&upstream), [2]);
    fail(&upstream, 1, 2, 500);
    assert_eq!(ejected(&upstream), [2], "1 is better than 2");
    fail(&upstream, 0, 2, 700);
    assert_eq!(ejected(&upstream), [0], "2 is better than 0");
    assert_eq!(eligible(&upstream, 700), [1, 2]);
    let ejections = &upstream.shared.ejections;
    assert_eq!((ejections.total(), ejections.refused()), (2, 2));
    // Refused in the pause as well, without a look.
    fail(&upstream, 1, 2, 900);
    fail(&upstream, 2, 2, 901);
    assert_eq!((ejections.total(), ejections.refused()), (2, 4));
}

#[test]
fn an_only_endpoint_stays() {
    let upstream = upstream(1, "consecutive_failures = 1", None, 1);
    fail(&upstream, 0, 3, 10);
    assert_eq!(eligible(&upstream, 11), [0]);
    assert_eq!((upstream.shared.ejections.total(), upstream.shared.ejections.refused()), (0, 3));
}

#[test]
fn when_checks_take_the_others_out_the_ejected_come_back() {
    let upstream = upstream(4, "consecutive_failures = 1", None, 1);
    fail(&upstream, 0, 1, 10);
    fail(&upstream, 1, 1, 11);
    assert_eq!(eligible(&upstream, 12), [2, 3]);
    for at in [2, 3] {
        upstream.endpoints[at].note_health(Health::Unhealthy);
    }
    upstream.refresh(20);
    // Of the two that checks believe in, one may be left out.
    assert_eq!(eligible(&upstream, 20).len(), 1);
    assert_eq!(upstream.shared.ejections.refused(), 1);
}

#[test]
fn a_new_snapshot_goes_on_where_the_old_one_was_and_hears_of_its_last_calls() {
    let table = "consecutive_failures = 1";
    let old = upstream(4, table, None, 1);
    fail(&old, 0, 1, 10);
    let new = upstream(5, table, Some(&old), 20);
    assert_eq!(eligible(&new, 21), [1, 2, 3, 4]);
    // A request that began on the old snapshot.
    fail(&old, 1, 1, 30);
    assert_eq!(eligible(&new, 31), [2, 3, 4]);
    assert_eq!(eligible(&old, 31), [2, 3]);
    let fewer = upstream(2, table, Some(&new), 40);
    assert_eq!(eligible(&fewer, 41).len(), 1, "of two only one may be left out");
    let mut text = "[services.ads]\n".to_owned();
    for port in 1..=2 {
        text.push_str(&format!("[[services.ads.endpoints]]\naddress = \"127.0.0.1:{port}\"\n"));
    }
    let off = Document::parse_toml(&text).unwrap();
    let snapshot = Snapshot::join(&off, &Membership::new());
    let (resolved, zone, next_id) = (HashMap::new(), Name::default(), AtomicU64::new(1));
    let around = Surroundings {
        resolved: &resolved,
        zone: &zone,
        identity: None,
        workers: 1,
        now_ms: 50,
        next_id: &next_id,
        emptied: &Arc::default(),
    };
    let service = &snapshot.services()[0];
    let off = Upstream::build(&service.name, &service.policy, &service.endpoints, Some(&fewer), &around);
    assert_eq!(eligible(&off, 51), [0, 1], "without the table nobody is left out");
}

/// What must hold whatever was told.
fn check(upstream: &Upstream, now_ms: u64) {
    let policy = upstream.policy.outlier_detection.unwrap();
    let candidates: Vec<_> =
        upstream.endpoints.iter().filter(|state| state.health() != Health::Unhealthy).collect();
    let out = || candidates.iter().filter(|state| state.ejection.is_ejected()).count();
    let most = most(&policy, candidates.len());
    assert!(out() <= most, "{} of {} are left out, {most} may be", out(), candidates.len());
    let eligible = upstream.eligible(now_ms).all.endpoints().len();
    assert_eq!(eligible, candidates.len() - out());
    if policy.max_ejected.get() < 1_000_000 {
        assert_eq!(pick(upstream, now_ms).is_some(), !candidates.is_empty());
    }
}

proptest! {
    #[test]
    fn never_more_than_the_share_is_left_out_and_somebody_is_always_asked(
        endpoints in 1_usize..12,
        percent in prop_oneof![Just(0_u32), 1_u32..100, Just(100)],
        in_a_row in 1_u32..4,
        steps in proptest::collection::vec((0_usize..12, 0_u8..20, 0_u64..400, 0.0..1.0), 1..300),
    ) {
        let table = format!(
            "consecutive_failures = {in_a_row}\nmax_ejected_percent = {percent}\n\
             base_ejection = \"1s\"\nmax_ejection = \"4s\""
        );
        let upstream = upstream(endpoints, &table, None, 1);
        let mut now_ms = 1;
        let (mut went, mut came_back) = (0, 0);
        for (at, what, passed_ms, dice) in steps {
            now_ms += passed_ms;
            let state = &upstream.endpoints[at % endpoints];
            let before = ejected(&upstream);
            match what {
                0 => { state.note_health(Health::Unhealthy); upstream.refresh(now_ms); }
                1 => { state.note_health(Health::Healthy); upstream.refresh(now_ms); }
                2 => upstream.endpoint_outcome(state, Verdict::Neutral, now_ms, dice),
                3..=7 => upstream.endpoint_outcome(state, Verdict::Success, now_ms, dice),
                _ => upstream.endpoint_outcome(state, Verdict::Failure, now_ms, dice),
            }
            let after = ejected(&upstream);
            // Within one step nobody goes and comes back.
            went += after.iter().filter(|at| !before.contains(at)).count();
            came_back += before.iter().filter(|at| !after.contains(at)).count();
            // Those whose time is over come back at the next call, within the longest time.
            let between = after.len();
            check(&upstream, now_ms);
            let later = ejected(&upstream);
            came_back += between - later.len();
            for at in later {
                let state = &upstream.endpoints[at];
                if state.health() != Health::Unhealthy {
                    let left = state.ejection.until_ms().unwrap() - now_ms;
                    prop_assert!((1..=4_400).contains(&left), "{left} ms");
                }
            }
        }
        prop_assert_eq!(upstream.shared.ejections.total(), went as u64);
        prop_assert_eq!(went - came_back, ejected(&upstream).len());
        if percent == 0 {
            prop_assert_eq!(went, 0);
        }
        // Long after the last failure all are back.
        for state in &upstream.endpoints {
            state.note_health(Health::Healthy);
        }
        upstream.refresh(now_ms + 10_000);
        prop_assert_eq!(ejected(&upstream), Vec::<usize>::new());
    }
}

#[test]
fn several_workers_together_leave_out_no_more_than_may_be() {
    let table = "consecutive_failures = 2\nbase_ejection = \"100ms\"\nmax_ejection = \"200ms\"";
    let upstream = upstream(7, table, None, 1);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut looks = 0_u64;
            while !stop.load(Relaxed) || looks == 0 {
                let deciding = upstream.shared.ejections.decide();
                let out = ejected(&upstream).len();
                assert!(out <= 3, "{out} of 7 are left out");
                drop(deciding);
                assert!(pick(&upstream, 1).is_some());
                looks += 1;
            }
        });
        let workers: Vec<_> = (0..4_u64)
            .map(|worker| {
                let upstream = &upstream;
                scope.spawn(move || {
                    let mut dice = fastrand::Rng::with_seed(worker);
                    for step in 0..20_000_u64 {
                        let now_ms = 1 + step / 20;
                        let state = &upstream.endpoints[dice.usize(..7)];
                        let verdict = if dice.u8(..) < 40 { Verdict::Success } else { Verdict::Failure };
                        upstream.endpoint_outcome(state, verdict, now_ms, dice.f64());
                        assert!(pick(upstream, now_ms).is_some());
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
        stop.store(true, Relaxed);
        watching.join().unwrap();
    });
    check(&upstream, 1_001);
    let ejections = &upstream.shared.ejections;
    assert!(ejections.total() > 3 && ejections.refused() > 0);
    assert!(ejected(&upstream).len() as u64 <= ejections.total());
    assert_eq!(eligible(&upstream, 10_000).len(), 7, "all are back");
}
