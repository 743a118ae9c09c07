//! The state machine of a watch, step by step, in a time that only moves when told to.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::membership::consul::answer::Meta;
use crate::membership::consul::error::Error;
use crate::membership::consul::follow::Carries;
use crate::membership::consul::settle::Settled;
use crate::membership::consul::watch::{Ask, Consistency, Heard, Step, Style, WAIT, WATCHDOG, Watch};

const S: Duration = Duration::from_secs(1);

/// A watch, its clock, and a connection that is kept unless said otherwise.
struct Scene {
    watch: Watch<char, Carries>,
    now: Instant,
    continued: bool,
    default_deny: bool,
}

fn meta(index: u64) -> Meta {
    Meta {
        index: Some(index),
        known_leader: true,
        last_contact: Duration::ZERO,
        age: Duration::ZERO,
        default_deny: None,
        filtered: false,
    }
}

impl Scene {
    fn new(style: Style) -> Self {
        let now = Instant::now();
        Self { watch: Watch::new(style, BTreeMap::new(), now), now, continued: true, default_deny: false }
    }

    /// A blocking watch that has had its first answer.
    fn following(index: u64, list: &str) -> Self {
        let mut scene = Self::new(Style::Blocking);
        let ask = scene.ask();
        assert_eq!((ask.index, ask.consistency, ask.cached), (0, Consistency::Default, false));
        assert!(scene.answer(&ask, index, list).changed);
        scene
    }

    /// The next question, after any pauses.
    fn ask(&mut self) -> Ask {
        loop {
            match self.watch.step(self.now, self.continued, 0.5) {
                Step::Ask(ask) => return ask,
                Step::Pause(until) => {
                    assert!(until > self.now, "a pause that does not end");
                    self.now = until;
                }
            }
        }
    }

    /// The next question, and how long it was paused for.
    fn ask_after(&mut self) -> (Ask, Duration) {
        let before = self.now;
        let ask = self.ask();
        (ask, self.now - before)
    }

    fn hear(&mut self, ask: &Ask, meta: &Meta, list: &str) -> Settled {
        let heard = Heard { ask, meta, took: Duration::ZERO, default_deny: self.default_deny };
        let list = list.chars().map(|letter| (letter, Carries)).collect();
        self.watch.answered(self.now, &heard, list, 0.5)
    }

    fn answer(&mut self, ask: &Ask, index: u64, list: &str) -> Settled {
        self.hear(ask, &meta(index), list)
    }

    fn fail(&mut self, ask: &Ask, error: &Error) {
        self.watch.failed(self.now, ask, error, 0.5);
    }

    fn holds(&self) -> String {
        self.watch.current().keys().collect()
    }
}

fn unreachable() -> Error {
    Error::Refused { status: 502, said: String::new() }
}

#[test]
fn the_index_of_the_header_is_handed_back() {
    let mut scene = Scene::following(19, "ab");
    let ask = scene.ask();
    assert_eq!((ask.index, ask.wait, ask.consistency), (19, WAIT, Consistency::Default));
}

#[test]
fn a_blocking_query_outlasts_the_jitter_that_consul_adds() {
    let mut scene = Scene::following(19, "ab");
    let ask = scene.ask();
    assert!((30..=60).contains(&ask.wait.as_secs()));
    assert!(ask.timeout() > ask.wait + ask.wait / 16 + S);
    assert!(WATCHDOG > ask.timeout() && WATCHDOG == ask.wait.mul_f64(1.1) + 10 * S);
}

#[test]
fn a_return_without_a_change_publishes_nothing() {
    let mut scene = Scene::following(19, "ab");
    let ask = scene.ask();
    assert!(!scene.answer(&ask, 25, "ab").changed);
    assert_eq!(scene.ask().index, 25);
}

#[test]
fn an_index_that_went_back_begins_anew_and_0_is_taken_as_1() {
    let mut scene = Scene::following(1_000, "ab");
    let ask = scene.ask();
    scene.answer(&ask, 13, "ab");
    let ask = scene.ask();
    assert_eq!(ask.index, 0);
    scene.answer(&ask, 13, "ab");
    assert_eq!(scene.ask().index, 13);
    let mut scene = Scene::following(0, "ab");
    assert_eq!(scene.ask().index, 1);
}

#[test]
fn an_answer_without_an_index_is_polled_for() {
    let mut scene = Scene::new(Style::Blocking);
    let ask = scene.ask();
    scene.hear(&ask, &Meta { index: None, ..meta(0) }, "ab");
    let (ask, pause) = scene.ask_after();
    assert_eq!((ask.index, pause), (0, 2 * S));
}

#[test]
fn a_hot_loop_is_slowed_and_a_busy_one_is_not() {
    let mut scene = Scene::following(1, "ab");
    let begin = scene.now;
    let mut asked = 0;
    // Agents behind a balancer that disagree: every answer comes at once and brings nothing.
    while scene.now < begin + 60 * S {
        let ask = scene.ask();
        scene.answer(&ask, if asked % 2 == 0 { 700 } else { 600 }, "ab");
        asked += 1;
    }
    assert!(asked < 120, "{asked}");
    let mut scene = Scene::following(1, "");
    let begin = scene.now;
    for (turn, last) in (2..).zip('\u{100}'..='\u{1c7}') {
        let ask = scene.ask();
        let list: String = ('\u{100}'..=last).collect();
        scene.answer(&ask, turn, &list);
    }
    assert!(scene.now - begin < 6 * S, "changes are followed at 20 a second after the burst");
}

#[test]
fn an_error_drops_the_index_and_keeps_the_list() {
    let errors = [
        unreachable(),
        Error::Forbidden { said: String::new() },
        Error::NotFound,
        Error::Decode { path: "[0]".to_owned(), reason: String::new() },
        Error::TooLarge { bytes_max: 1 },
        Error::RateLimited { after: None },
        Error::NoLeader,
    ];
    for error in errors {
        let mut scene = Scene::following(19, "ab");
        let ask = scene.ask();
        scene.fail(&ask, &error);
        assert_eq!(scene.ask().index, 0, "{error}");
        assert_eq!(scene.holds(), "ab");
    }
}

#[test]
fn an_index_never_goes_to_another_connection_or_with_another_token() {
    let mut scene = Scene::following(19, "ab");
    scene.continued = false;
    assert_eq!(scene.ask().index, 0);
}

#[test]
fn errors_are_backed_off_from_until_an_answer() {
    let mut scene = Scene::following(19, "ab");
    let mut pauses = Vec::new();
    for _ in 0..9 {
        let (ask, pause) = scene.ask_after();
        pauses.push(pause.as_millis());
        scene.fail(&ask, &unreachable());
    }
    assert_eq!(pauses, [0, 187, 375, 750, 1_500, 3_000, 6_000, 6_000, 6_000]);
    let ask = scene.ask();
    scene.answer(&ask, 20, "ab");
    let ask = scene.ask();
    scene.fail(&ask, &unreachable());
    assert_eq!(scene.ask_after().1.as_millis(), 187);
}

#[test]
fn retry_after_is_honoured() {
    let mut scene = Scene::following(19, "ab");
    let ask = scene.ask();
    scene.fail(&ask, &Error::RateLimited { after: Some(7 * S) });
    assert_eq!(scene.ask_after().1, 7 * S);
}

#[test]
fn everything_is_read_anew_every_few_minutes() {
    let mut scene = Scene::following(19, "ab");
    let mut relists = 0;
    let begin = scene.now;
    while scene.now < begin + Duration::from_secs(3_600) {
        let ask = scene.ask();
        relists += u32::from(ask.index == 0);
        if ask.index > 0 {
            scene.now += WAIT;
        }
        scene.answer(&ask, 19, "ab");
    }
    assert!((9..=15).contains(&relists), "{relists}");
}

#[test]
fn stale_is_asked_only_without_a_leader_and_its_index_is_never_used() {
    let mut scene = Scene::following(19, "ab");
    let ask = scene.ask();
    scene.fail(&ask, &Error::NoLeader);
    let (ask, pause) = scene.ask_after();
    assert_eq!((ask.consistency, ask.index, pause), (Consistency::Stale, 0, Duration::ZERO));
    // A gain is believed, a loss is not.
    assert!(scene.answer(&ask, 1_672_207_871, "bc").changed);
    assert_eq!(scene.holds(), "abc");
    let (ask, pause) = scene.ask_after();
    assert_eq!((ask.consistency, ask.index), (Consistency::Default, 0));
    assert!(pause > Duration::ZERO);
    // Still none: again one stale read, and a longer pause.
    scene.fail(&ask, &Error::NoLeader);
    let ask = scene.ask();
    assert_eq!(ask.consistency, Consistency::Stale);
    scene.answer(&ask, 1_672_198_845, "bc");
    let (ask, longer) = scene.ask_after();
    assert!(longer > pause);
    // A leader: its word counts.
    assert!(scene.answer(&ask, 20, "bc").changed);
    assert_eq!(scene.holds(), "bc");
    assert_eq!(scene.ask().index, 20);
}

#[test]
fn a_stale_read_that_fails_too_is_backed_off_from() {
    let mut scene = Scene::following(19, "ab");
    for _ in 0..3 {
        let ask = scene.ask();
        scene.fail(&ask, &Error::NoLeader);
        let ask = scene.ask();
        assert_eq!(ask.consistency, Consistency::Stale);
        scene.fail(&ask, &Error::NoLeader);
        assert!(scene.ask_after().1 > Duration::ZERO);
    }
}

#[test]
fn a_deregistration_is_confirmed_by_one_immediate_consistent_read() {
    let mut scene = Scene::following(19, "abc");
    let ask = scene.ask();
    assert!(!scene.answer(&ask, 20, "ab").changed);
    let (ask, pause) = scene.ask_after();
    assert_eq!((ask.consistency, ask.index, ask.cached), (Consistency::Consistent, 0, false));
    assert_eq!(pause, Duration::ZERO);
    assert!(scene.answer(&ask, 20, "ab").changed);
    assert_eq!(scene.holds(), "ab");
    let ask = scene.ask();
    assert_eq!((ask.consistency, ask.index), (Consistency::Default, 20));
}

#[test]
fn an_emptied_list_is_watched_for_two_seconds_by_consistent_reads() {
    let mut scene = Scene::following(19, "abc");
    let begin = scene.now;
    let ask = scene.ask();
    scene.answer(&ask, 20, "");
    let ask = scene.ask();
    scene.answer(&ask, 20, "");
    // The rest of the two seconds is one blocking read, which sees at once what comes back.
    let ask = scene.ask();
    assert_eq!((ask.consistency, ask.index, ask.wait), (Consistency::Consistent, 20, 2 * S));
    scene.now += Duration::from_millis(700);
    assert!(scene.answer(&ask, 21, "d").changed, "a newcomer is let in meanwhile");
    assert_eq!(scene.holds(), "abcd");
    let ask = scene.ask();
    assert_eq!(ask.consistency, Consistency::Consistent);
    scene.now = begin + 2 * S;
    scene.answer(&ask, 21, "d");
    assert_eq!(scene.holds(), "d");
}

#[test]
fn without_an_index_a_loss_is_looked_at_again_and_again() {
    let mut scene = Scene::new(Style::Polling);
    let ask = scene.ask();
    scene.answer(&ask, 19, "abc");
    let ask = scene.ask();
    scene.answer(&ask, 20, "");
    let begin = scene.now;
    let mut reads = 0;
    while !scene.holds().is_empty() {
        let ask = scene.ask();
        assert_eq!((ask.consistency, ask.index), (Consistency::Consistent, 0));
        scene.answer(&ask, 20, "");
        reads += 1;
    }
    assert_eq!(scene.now - begin, 2 * S);
    assert!((8..=10).contains(&reads), "{reads}");
}

#[test]
fn a_server_out_of_touch_with_the_leader_takes_nothing_out() {
    let lost = Meta { known_leader: false, ..meta(20) };
    let late = Meta { last_contact: 6 * S, ..meta(20) };
    let aged = Meta { age: S, ..meta(20) };
    let filtered = Meta { filtered: true, ..meta(20) };
    for meta in [lost, late, aged, filtered] {
        let mut scene = Scene::following(19, "abc");
        for _ in 0..20 {
            let ask = scene.ask();
            scene.hear(&ask, &meta, "ab");
            scene.now += S;
        }
        assert_eq!(scene.holds(), "abc", "{meta:?}");
        let ask = scene.ask();
        scene.answer(&ask, 20, "ab");
        assert_eq!(scene.holds(), "ab");
    }
}

#[test]
fn empty_under_default_deny_is_no_removal_whoever_says_so() {
    for (probed, header, removed) in
        [(true, None, false), (false, Some(true), false), (true, Some(false), true), (false, None, true)]
    {
        let mut scene = Scene::following(19, "ab");
        scene.default_deny = probed;
        for _ in 0..10 {
            let ask = scene.ask();
            scene.hear(&ask, &Meta { default_deny: header, ..meta(20) }, "");
            scene.now += S;
        }
        assert_eq!(scene.holds().is_empty(), removed, "{probed} {header:?}");
    }
}

#[test]
fn a_watch_without_a_connection_of_its_own_polls_the_cache() {
    let mut scene = Scene::new(Style::Polling);
    let ask = scene.ask();
    assert_eq!((ask.index, ask.cached), (0, true));
    scene.answer(&ask, 19, "ab");
    for _ in 0..200 {
        let (ask, pause) = scene.ask_after();
        assert_eq!((ask.index, ask.cached, pause), (0, true, 2 * S));
        scene.answer(&ask, 19, "ab");
    }
    let ask = scene.ask();
    scene.answer(&ask, 20, "a");
    let ask = scene.ask();
    assert_eq!(
        (ask.consistency, ask.cached),
        (Consistency::Consistent, false),
        "never cached and consistent"
    );
}
