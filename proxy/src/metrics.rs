//! Counters of requests: one block for each worker and target, written without sharing, summed when read.

use std::fmt::Write as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use gilmok_config::decide::Listener;
use gilmok_config::name::Name;

/// What became of a request, as the metric label `code` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// A fallback was given: no success, whatever its status.
    Fallback,
    /// The upstream answered with this hundred.
    Hundred(u8),
    /// The proxy answered: no service, no endpoint, a limit, a failure on the way.
    Refused,
}

/// What became of one try at an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A head came back, whatever its status.
    Answered,
    /// The caller left first.
    Cancelled,
    /// No connection within the connect timeout, or no way there.
    Connect,
    /// The endpoint refused the connection.
    Refused,
    /// The connection ended before a head came back.
    Reset,
    /// A pooled connection turned out to be closed; says nothing about the endpoint.
    StaleConnection,
    /// No head in time.
    Timeout,
    /// No TLS with the endpoint, or it is not who it should be.
    Tls,
}

const OUTCOMES: [(Outcome, &str); 8] = [
    (Outcome::Answered, "answered"),
    (Outcome::Cancelled, "cancelled"),
    (Outcome::Connect, "connect"),
    (Outcome::Refused, "refused"),
    (Outcome::Reset, "reset"),
    (Outcome::StaleConnection, "stale_connection"),
    (Outcome::Timeout, "timeout"),
    (Outcome::Tls, "tls"),
];
impl Code {
    /// Every value of the label, in the order of [`Code::place`].
    pub(crate) const LABELS: [&str; 7] = ["1xx", "2xx", "3xx", "4xx", "5xx", "fallback", "refused"];

    /// Its place in [`Code::LABELS`].
    pub(crate) fn place(self) -> usize {
        match self {
            Self::Hundred(hundred) => usize::from(hundred.clamp(1, 5)) - 1,
            Self::Fallback => Self::LABELS.len() - 2,
            Self::Refused => Self::LABELS.len() - 1,
        }
    }
}

/// What a fallback is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    LastGood = 0,
    Respond = 1,
    Service = 2,
}

const KINDS: [&str; 3] = ["last_good", "respond", "service"];

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        KINDS[self as usize]
    }
}

/// Why a fallback is given: the failures that have one, and answers that are listed as failures.
const REASONS: [&str; 8] =
    ["open", "overflow", "no_endpoint", "connect", "refused", "reset", "timeout", "answer"];
const LISTENERS: [Listener; 3] = [Listener::Edge, Listener::Inbound, Listener::Outbound];

/// What a target came to since the process started, as control planes ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) in_flight: u64,
    pub(crate) requests: u64,
    pub(crate) attempts: u64,
    /// Attempts that met nobody.
    pub(crate) unreachable: u64,
}

/// What all workers know of the requests to one target. It lives as long as its target, so its series end with it.
#[derive(Debug)]
pub(crate) struct TargetSeries {
    pub(crate) version: Name,
    pub(crate) shard: Name,
    /// A block is made at a worker's first request, so that idle targets cost next to nothing.
    workers: Box<[OnceLock<Box<Block>>]>,
}

/// One worker's counters. Atomics, because another thread reads them; no two threads write them.
#[derive(Debug, Default)]
struct Block {
    listeners: [PerListener; LISTENERS.len()],
    outcomes: [AtomicU64; OUTCOMES.len()],
    /// Requests that are being tried at its endpoints now.
    in_flight: AtomicU64,
    retries: AtomicU64,
    /// By kind and reason.
    fallbacks: [[AtomicU64; REASONS.len()]; KINDS.len()],
}

#[derive(Debug, Default)]
struct PerListener {
    codes: [AtomicU64; Code::LABELS.len()],
    durations: Histogram,
}

impl std::iter::Sum for Sums {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            in_flight: sum.in_flight + one.in_flight,
            requests: sum.requests + one.requests,
            attempts: sum.attempts + one.attempts,
            unreachable: sum.unreachable + one.unreachable,
        })
    }
}

impl TargetSeries {
    pub(crate) fn new(version: Name, shard: Name, workers: usize) -> Self {
        Self { version, shard, workers: (0..workers).map(|_| OnceLock::new()).collect() }
    }

    fn block(&self, worker: usize) -> &Block {
        self.workers[worker].get_or_init(Box::default)
    }

    /// Counts a request that has ended.
    pub(crate) fn request(&self, worker: usize, listener: Listener, code: Code, took: Duration) {
        let per_listener = &self.block(worker).listeners[place(listener)];
        add(&per_listener.codes[code.place()], 1);
        per_listener.durations.note(took);
    }

    /// Counts one try at an endpoint of this target.
    pub(crate) fn attempt(&self, worker: usize, outcome: Outcome) {
        if let Some(at) = OUTCOMES.iter().position(|(known, _)| *known == outcome) {
            add(&self.block(worker).outcomes[at], 1);
        }
    }

    /// A request is tried at an endpoint of this target from now on.
    pub(crate) fn begin(&self, worker: usize) {
        add(&self.block(worker).in_flight, 1);
    }

    /// It no longer is.
    pub(crate) fn end(&self, worker: usize) {
        // Its own worker counted it: there is one.
        add(&self.block(worker).in_flight, u64::MAX);
    }

    /// What control planes ask of it.
    pub(crate) fn sums(&self) -> Sums {
        let mut sums = Sums::default();
        for block in self.blocks() {
            sums.in_flight = sums.in_flight.wrapping_add(block.in_flight.load(Relaxed));
            let codes = block.listeners.iter().flat_map(|listener| &listener.codes);
            sums.requests += codes.map(|code| code.load(Relaxed)).sum::<u64>();
            for ((outcome, _), count) in OUTCOMES.iter().zip(&block.outcomes) {
                let count = count.load(Relaxed);
                match outcome {
                    Outcome::Connect | Outcome::Refused | Outcome::Tls => sums.unreachable += count,
                    Outcome::StaleConnection => continue,
                    _ => {}
                }
                sums.attempts += count;
            }
        }
        sums
    }

    /// Counts a try that follows a failed one.
    pub(crate) fn retry(&self, worker: usize) {
        add(&self.block(worker).retries, 1);
    }

    /// Counts a fallback that was given.
    pub(crate) fn fallback(&self, worker: usize, kind: Kind, reason: &str) {
        if let Some(at) = REASONS.iter().position(|known| *known == reason) {
            add(&self.block(worker).fallbacks[kind as usize][at], 1);
        }
    }

    fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.workers.iter().filter_map(OnceLock::get).map(Box::as_ref)
    }
}

fn place(listener: Listener) -> usize {
    match listener {
        Listener::Edge => 0,
        Listener::Inbound => 1,
        Listener::Outbound => 2,
    }
}

/// A plain load and store: only one thread writes, so no locked instruction is needed.
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(n), Relaxed);
}

/// A histogram of durations in octaves of microseconds, from 64 µs to 67 s; bounded and mergeable.
#[derive(Debug, Default)]
struct Histogram {
    buckets: [AtomicU64; OCTAVES + 1],
    sum_us: AtomicU64,
}

/// Bounds of the histogram: 2^6 µs, 2^7 µs, … 2^26 µs, and what is longer.
const OCTAVES: usize = 21;
const OCTAVE_FIRST: u32 = 6;

impl Histogram {
    fn note(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        add(&self.buckets[bucket(us)], 1);
        add(&self.sum_us, us);
    }
}

/// The first bucket whose bound is not below `us`.
fn bucket(us: u64) -> usize {
    let bits = u64::BITS - us.saturating_sub(1).leading_zeros();
    (bits.saturating_sub(OCTAVE_FIRST) as usize).min(OCTAVES)
}

/// Renders the series of the services' targets as Prometheus text.
#[derive(Debug, Default)]
pub(crate) struct Rendering {
    requests: String,
    durations: String,
    attempts: String,
    retries: String,
    fallbacks: String,
}

impl Rendering {
    /// Adds one service with its targets, once for each service. Targets of the same version and shard are summed:
    /// an app beside this proxy and the endpoints elsewhere may be of one service. Durations are summed over shards.
    pub(crate) fn add(&mut self, service: &str, targets: &[&TargetSeries]) {
        let mut versions: Vec<&Name> = Vec::new();
        let mut labels: Vec<(&Name, &Name)> = Vec::new();
        let mut outcomes = [0_u64; OUTCOMES.len()];
        let mut retries = 0;
        let mut fallbacks = [[0_u64; REASONS.len()]; KINDS.len()];
        for target in targets {
            if !labels.contains(&(&target.version, &target.shard)) {
                labels.push((&target.version, &target.shard));
                self.add_requests(service, target, targets);
            }
            for block in target.blocks() {
                retries += block.retries.load(Relaxed);
                for (sum, counter) in fallbacks.iter_mut().flatten().zip(block.fallbacks.iter().flatten()) {
                    *sum += counter.load(Relaxed);
                }
                for (sum, counter) in outcomes.iter_mut().zip(&block.outcomes) {
                    *sum += counter.load(Relaxed);
                }
            }
            if !versions.contains(&&target.version) {
                versions.push(&target.version);
            }
        }
        for version in versions {
            self.add_durations(service, version, targets);
        }
        for (count, (_, outcome)) in outcomes.iter().zip(OUTCOMES).filter(|(count, _)| **count > 0) {
            line(
                &mut self.attempts,
                format_args!(
                    "gilmok_upstream_attempts_total{{service=\"{service}\",outcome=\"{outcome}\"}} {count}"
                ),
            );
        }
        self.add_fallbacks(service, &fallbacks);
        if retries > 0 {
            line(&mut self.retries, format_args!("gilmok_retries_total{{service=\"{service}\"}} {retries}"));
        }
    }

    fn add_fallbacks(&mut self, service: &str, counts: &[[u64; REASONS.len()]; KINDS.len()]) {
        for (kind, counts) in KINDS.iter().zip(counts) {
            for (reason, count) in REASONS.iter().zip(counts).filter(|(_, count)| **count > 0) {
                line(
                    &mut self.fallbacks,
                    format_args!(
                        "gilmok_fallbacks_total{{service=\"{service}\",kind=\"{kind}\",reason=\"{reason}\"}} {count}"
                    ),
                );
            }
        }
    }

    fn add_requests(&mut self, service: &str, like: &TargetSeries, targets: &[&TargetSeries]) {
        let TargetSeries { version, shard, .. } = like;
        let same = |target: &&&TargetSeries| target.version == *version && target.shard == *shard;
        for listener in LISTENERS {
            for (at, code) in Code::LABELS.iter().enumerate() {
                let count: u64 = targets
                    .iter()
                    .filter(same)
                    .flat_map(|target| target.blocks())
                    .map(|block| block.listeners[place(listener)].codes[at].load(Relaxed))
                    .sum();
                if count > 0 {
                    let listener = listener.as_str();
                    line(
                        &mut self.requests,
                        format_args!(
                            "gilmok_requests_total{{listener=\"{listener}\",service=\"{service}\",version=\"{version}\",shard=\"{shard}\",code=\"{code}\"}} {count}"
                        ),
                    );
                }
            }
        }
    }

    fn add_durations(&mut self, service: &str, version: &Name, targets: &[&TargetSeries]) {
        for listener in LISTENERS {
            let mut buckets = [0_u64; OCTAVES + 1];
            let mut sum_us = 0_u64;
            let of_version = targets.iter().filter(|target| target.version == *version);
            for block in of_version.flat_map(|target| target.blocks()) {
                let durations = &block.listeners[place(listener)].durations;
                sum_us = sum_us.wrapping_add(durations.sum_us.load(Relaxed));
                for (sum, counter) in buckets.iter_mut().zip(&durations.buckets) {
                    *sum += counter.load(Relaxed);
                }
            }
            let count: u64 = buckets.iter().sum();
            if count == 0 {
                continue;
            }
            let labels =
                format!("listener=\"{}\",service=\"{service}\",version=\"{version}\"", listener.as_str());
            let out = &mut self.durations;
            let mut below = 0;
            for (octave, in_bucket) in (OCTAVE_FIRST..).zip(&buckets[..OCTAVES]) {
                below += in_bucket;
                let le = Duration::from_micros(1 << octave).as_secs_f64();
                line(
                    out,
                    format_args!("gilmok_request_duration_seconds_bucket{{{labels},le=\"{le}\"}} {below}"),
                );
            }
            line(out, format_args!("gilmok_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} {count}"));
            let sum = Duration::from_micros(sum_us).as_secs_f64();
            line(out, format_args!("gilmok_request_duration_seconds_sum{{{labels}}} {sum}"));
            line(out, format_args!("gilmok_request_duration_seconds_count{{{labels}}} {count}"));
        }
    }

    /// The whole text.
    pub(crate) fn finish(self) -> String {
        let families = [
            ("gilmok_requests_total", "counter", "Requests by what became of them.", self.requests),
            (
                "gilmok_request_duration_seconds",
                "histogram",
                "From a request's head to the end of its answer.",
                self.durations,
            ),
            (
                "gilmok_upstream_attempts_total",
                "counter",
                "Tries at endpoints by what became of them.",
                self.attempts,
            ),
            ("gilmok_retries_total", "counter", "Tries that followed a failed one.", self.retries),
            (
                "gilmok_fallbacks_total",
                "counter",
                "Fallbacks that were given, by what they were and why.",
                self.fallbacks,
            ),
        ];
        let mut text = String::new();
        for (name, kind, help, lines) in families {
            if !lines.is_empty() {
                line(&mut text, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
                text.push_str(&lines);
            }
        }
        text
    }
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).and_then(|()| out.write_char('\n')).expect("invariant: a String takes every text");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_falls_into_the_first_bucket_that_holds_it() {
        for (us, expected) in
            [(0, 0), (64, 0), (65, 1), (128, 1), (129, 2), (1 << 26, 20), ((1 << 26) + 1, 21)]
        {
            assert_eq!(bucket(us), expected, "{us} µs");
        }
    }

    #[test]
    fn no_series_is_told_twice() {
        let target = || TargetSeries::new(Name::default(), Name::default(), 1);
        let (app, same) = (target(), target());
        app.request(0, Listener::Inbound, Code::Hundred(2), Duration::from_micros(100));
        same.request(0, Listener::Inbound, Code::Hundred(2), Duration::from_micros(100));
        let mut rendering = Rendering::default();
        rendering.add("ads", &[&app, &same]);
        let text = rendering.finish();
        let told: Vec<_> = text.lines().filter(|line| line.starts_with("gilmok_requests_total")).collect();
        assert_eq!(told.len(), 1, "{text}");
        assert!(told[0].ends_with(" 2"), "{text}");
    }

    #[test]
    fn workers_are_summed_and_silent_series_left_out() {
        let target = TargetSeries::new(Name::parse("v1").unwrap(), Name::default(), 2);
        target.request(0, Listener::Outbound, Code::Hundred(2), Duration::from_micros(100));
        target.request(1, Listener::Outbound, Code::Hundred(2), Duration::from_micros(90));
        target.attempt(1, Outcome::Reset);
        let mut rendering = Rendering::default();
        rendering.add("ads", &[&target]);
        let text = rendering.finish();
        assert!(text.contains("gilmok_requests_total{listener=\"outbound\",service=\"ads\",version=\"v1\",shard=\"\",code=\"2xx\"} 2\n"), "{text}");
        assert!(text.contains("le=\"0.000128\"} 2\n"), "{text}");
        assert!(text.contains("outcome=\"reset\"} 1\n"), "{text}");
        assert!(!text.contains("5xx") && !text.contains("inbound"), "{text}");
    }
}
