//! Rollouts simulated with the real analysis: how often a healthy candidate is rolled back, how soon a bad one, and who cannot.
//!
//! `cargo nextest run -p gilmok-control-plane --test rollout_simulation --no-capture` prints the figures of docs/benchmarks.md.

use fastrand::Rng;
use gilmok_control_plane::rollout::analysis::{Analysis, Came, Criteria, Verdict};

/// Seconds of one run.
const HOUR: u32 = 3_600;
/// Seconds between two trials of one subject.
const TRIAL_PERIOD: u32 = 600;
/// How many of the stable version's ticks are drawn: each run takes its own from among them, which is cheaper by far.
const STABLE_TICKS: usize = 4_096;
/// The bucket that the latencies lie around, of about 100 ms.
const MEDIAN: u16 = 44;

/// One version's traffic: so many trials a tick, of which this share fails.
#[derive(Clone, Copy)]
struct Traffic {
    trials: u64,
    failing: f64,
    /// Whether anybody looks at latencies.
    latency: bool,
    /// By how many buckets each trial is slower.
    slower: u16,
}

impl Traffic {
    fn tick(self, dice: &mut Rng) -> Came {
        let mut came = Came { trials: self.trials, ..Came::default() };
        for _ in 0..self.trials {
            came.failures += u64::from(dice.f64() < self.failing);
            if !self.latency {
                continue;
            }
            let bucket = latency(dice) + self.slower;
            match came.latency.iter_mut().find(|(met, _)| *met == bucket) {
                Some((_, count)) => *count += 1,
                None => came.latency.push((bucket, 1)),
            }
        }
        came
    }
}

/// An octave on both sides of the median, and one in twenty up to three octaves slower.
fn latency(dice: &mut Rng) -> u16 {
    let tail = if dice.u8(..20) == 0 { dice.u16(..12) } else { 0 };
    MEDIAN - 4 + dice.u16(..5) + dice.u16(..5) + tail
}

/// A stable version, its candidate, and what the candidate is judged by.
struct Scene {
    stable: Vec<Came>,
    candidate: Traffic,
    criteria: Criteria,
    tick_seconds: u32,
}

/// How a run ended, and after how many seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ended {
    verdict: Verdict,
    seconds: u32,
}

impl Scene {
    /// So many trials a tick of each, and the share of them that fails.
    fn new(stable: (u64, f64), candidate: (u64, f64), tick_seconds: u32, criteria: Criteria) -> Self {
        let traffic = |(trials, failing)| Traffic { trials, failing, latency: criteria.latency, slower: 0 };
        let mut dice = Rng::with_seed(1);
        let stable = (0..STABLE_TICKS).map(|_| traffic(stable).tick(&mut dice)).collect();
        Self { stable, candidate: traffic(candidate), criteria, tick_seconds }
    }

    /// As [`Scene::new`] with a tick a second and the default criteria.
    fn by_default(stable: (u64, f64), candidate: (u64, f64)) -> Self {
        Self::new(stable, candidate, 1, Criteria::default())
    }

    /// Judges after each tick until `ends` says so, or for an hour. `more` failed trials come on top at some seconds.
    fn run_with(&self, seed: u64, ends: impl Fn(Verdict) -> bool, more: impl Fn(u32) -> u64) -> Ended {
        let mut dice = Rng::with_seed(seed);
        let mut analysis = Analysis::default();
        let mut ended = Ended { verdict: Verdict::Unsure, seconds: 0 };
        while ended.seconds < HOUR {
            ended.seconds += self.tick_seconds;
            let mut candidate = self.candidate.tick(&mut dice);
            candidate.trials += more(ended.seconds);
            candidate.failures += more(ended.seconds);
            analysis.add(&self.stable[dice.usize(..STABLE_TICKS)], &candidate);
            ended.verdict = analysis.verdict(&self.criteria);
            if ends(ended.verdict) {
                break;
            }
        }
        ended
    }

    fn runs(&self, count: u64, ends: impl Fn(Verdict) -> bool) -> Vec<Ended> {
        (0..count).map(|seed| self.run_with(seed, &ends, |_| 0)).collect()
    }
}

fn is_worse(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Worse(_))
}

fn is_not_worse(verdict: Verdict) -> bool {
    verdict == Verdict::NotWorse
}

fn count(all: &[Ended], is: impl Fn(Verdict) -> bool) -> usize {
    all.iter().filter(|ended| is(ended.verdict)).count()
}

/// The median of the seconds, and what 95 in 100 stay within.
fn seconds(all: &[Ended]) -> (u32, u32) {
    let mut all: Vec<u32> = all.iter().map(|ended| ended.seconds).collect();
    all.sort_unstable();
    (all[all.len() / 2], all[all.len() * 95 / 100])
}

#[test]
fn a_healthy_candidate_is_hardly_ever_rolled_back_for_its_failures() {
    let criteria = Criteria { latency: false, ..Criteria::default() };
    let runs = Scene::new((99, 0.005), (1, 0.005), 1, criteria).runs(1_000, is_worse);
    let rolled_back = count(&runs, is_worse);
    println!(
        "healthy, 0.5 % failures at 1/s for an hour, failures alone: {rolled_back} of 1,000 rolled back"
    );
    assert!(rolled_back <= 10, "{rolled_back}");
}

#[test]
fn a_healthy_candidate_is_hardly_ever_rolled_back_for_failures_or_latency() {
    for failing in [0.005, 0.001] {
        let runs = Scene::new((990, failing), (10, failing), 10, Criteria::default()).runs(500, is_worse);
        let rolled_back = count(&runs, is_worse);
        let percent = failing * 100.0;
        println!(
            "healthy, {percent} % failures at 1/s for an hour, and latency: {rolled_back} of 500 rolled back"
        );
        assert!(rolled_back <= 5, "{rolled_back}");
    }
}

#[test]
fn alpha_is_kept_at_the_border_of_what_is_tolerated() {
    // 1.25 times the odds of 5 %.
    let criteria = Criteria { latency: false, ..Criteria::default() };
    let scene = Scene::new((180, 0.05), (20, 0.061_73), 2, criteria);
    let rolled_back = count(&scene.runs(200, is_worse), is_worse);
    println!("1.25 times the odds of 5 % failures at 10/s for an hour: {rolled_back} of 200 rolled back");
    // Two are expected at most; chance makes it more than six in one of two hundred such tests.
    assert!(rolled_back <= 6, "{rolled_back}");
}

#[test]
fn a_bad_candidate_is_found_soon() {
    for (stable, candidate, median_max) in
        [(0.001, 0.02, 25), (0.0, 0.05, 15), (0.001, 0.1, 10), (0.001, 0.01, 90), (0.005, 0.025, 90)]
    {
        let runs = Scene::by_default((990, stable), (10, candidate)).runs(200, is_worse);
        let (found, (median, most)) = (count(&runs, is_worse), seconds(&runs));
        let (stable, candidate) = (stable * 100.0, candidate * 100.0);
        println!(
            "{candidate} % failures against {stable} % at 10/s: {found} of 200 found, {median} s, 95 % in {most} s"
        );
        assert!(found == 200 && median <= median_max, "{found} {median}");
    }
}

#[test]
fn a_candidate_that_is_twice_as_slow_is_found_soon() {
    let mut scene = Scene::by_default((990, 0.001), (10, 0.001));
    scene.candidate.slower = 4;
    let runs = scene.runs(100, is_worse);
    let (found, (median, most)) = (count(&runs, is_worse), seconds(&runs));
    println!("twice as slow at 10/s: {found} of 100 found, {median} s, 95 % in {most} s");
    assert!(found == 100 && median <= 15, "{found} {median}");
}

#[test]
fn a_candidate_that_is_a_little_slower_for_all_is_never_rolled_back() {
    let mut scene = Scene::by_default((990, 0.001), (10, 0.001));
    scene.candidate.slower = 1;
    let rolled_back = count(&scene.runs(5, is_worse), is_worse);
    println!("a fifth slower at 10/s for an hour: {rolled_back} of 5 rolled back");
    assert_eq!(rolled_back, 0);
}

/// One of its trials every ten minutes, and each fails.
fn always_fails(second: u32) -> u64 {
    u64::from(second % TRIAL_PERIOD == 1)
}

#[test]
fn one_subject_that_always_fails_rolls_nothing_back() {
    for (stable, candidate) in [((99, 0.0), (1, 0.0)), ((990, 0.0), (10, 0.0)), ((99, 0.001), (1, 0.001))] {
        let scene = Scene::by_default(stable, candidate);
        let runs: Vec<Ended> = (0..10).map(|seed| scene.run_with(seed, is_worse, always_fails)).collect();
        let (rolled_back, (rate, failing)) = (count(&runs, is_worse), (candidate.0, candidate.1 * 100.0));
        println!(
            "one subject always fails, the others at {rate}/s {failing} %: {rolled_back} of 10 rolled back"
        );
        assert_eq!(rolled_back, 0);
    }
    // It is the floor that holds: the ratio alone is large, and certain.
    let criteria = Criteria { floor: 0.0, ..Criteria::default() };
    let by_ratio = Scene::new((99, 0.0), (1, 0.0), 1, criteria);
    assert!(is_worse(by_ratio.run_with(0, is_worse, always_fails).verdict));
}

#[test]
fn a_healthy_candidate_goes_on_when_there_was_enough_traffic() {
    for (rate, failing, median_max) in
        [(10, 0.0, 120), (10, 0.001, 180), (10, 0.005, 900), (10, 0.03, 300), (1, 0.001, 1_800)]
    {
        let runs = Scene::by_default((99 * rate, failing), (rate, failing))
            .runs(40, |verdict| verdict != Verdict::Unsure);
        let (goes_on, (median, most)) = (count(&runs, is_not_worse), seconds(&runs));
        let percent = failing * 100.0;
        println!(
            "healthy, {percent} % failures at {rate}/s: {goes_on} of 40 go on, {median} s, 95 % in {most} s"
        );
        assert!(goes_on >= 38 && median <= median_max, "{goes_on} {median}");
    }
}

#[test]
fn with_little_traffic_nothing_is_decided() {
    let runs = Scene::new((99, 0.001), (1, 0.001), 30, Criteria::default())
        .runs(40, |verdict| verdict != Verdict::Unsure);
    assert!(runs.iter().all(|ended| ended.verdict == Verdict::Unsure));
}
