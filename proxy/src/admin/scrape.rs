//! `/metrics`: the process-wide series and the per-target ones in one text.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use gilmok_config::decide::Listener;
use http::{Response, StatusCode};
use http_body_util::Full;

use super::Admin;
use super::answer::respond;
use super::{flags, shards, tls, versions};
use crate::breaker::State;
use crate::clock;
use crate::current::Current;
use crate::metrics::{Rendering, TargetSeries};
use crate::upstream::endpoint::{Health, Peer};
use crate::upstream::latencies::Latencies;

/// Endpoints of a service that nobody has called for so long are not told.
const CALLED_WITHIN_MS: u64 = 10 * 60 * 1_000;

const STATES: [State; 3] = [State::Closed, State::HalfOpen, State::Open];

pub(super) fn metrics(admin: &Admin) -> Response<Full<Bytes>> {
    let current = admin.in_force.load();
    note_process(admin, &current);
    let mut out = admin.metrics.render();
    let mut rendering = Rendering::default();
    // An app beside this proxy is of a service that may have endpoints elsewhere as well.
    let mut services: BTreeMap<&str, Vec<&TargetSeries>> = BTreeMap::new();
    services.insert("", vec![&admin.shared.nowhere]);
    for upstream in current.upstreams.iter().chain(&current.apps) {
        let targets = upstream.targets.iter().chain(std::iter::once(&upstream.unplaced)).map(AsRef::as_ref);
        services.entry(upstream.name.as_str()).or_default().extend(targets);
    }
    for (service, targets) in services {
        rendering.add(service, &targets);
    }
    out.push_str(&rendering.finish());
    add_health(&mut out, &current);
    add_breakers(&mut out, &current);
    add_ejections(&mut out, &current);
    add_rate_limits(&mut out, &current);
    shards::add(&mut out, &current);
    versions::add(&mut out, &current);
    tls::add(&mut out, admin, &current);
    flags::add(&mut out, &current);
    respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", out)
}

fn note_process(admin: &Admin, current: &Current) {
    #[expect(clippy::cast_precision_loss, reason = "a revision beyond 2^52 is not reached")]
    let revision = current.applied.as_ref().map_or(0, |applied| applied.revision) as f64;
    metrics::gauge!("gilmok_config_revision").set(revision);
    if let Some(age) = admin.sources.status.age_seconds() {
        metrics::gauge!("gilmok_config_age_seconds").set(age);
    }
    for listener in [Listener::Edge, Listener::Inbound, Listener::Outbound] {
        let open = f64::from(admin.shared.open[listener as usize].load(Relaxed));
        metrics::gauge!("gilmok_connections", "listener" => listener.as_str()).set(open);
        let malformed = admin.shared.malformed[listener as usize].load(Relaxed);
        metrics::counter!("gilmok_malformed_requests_total", "listener" => listener.as_str())
            .absolute(malformed);
    }
    #[expect(clippy::cast_precision_loss, reason = "no memory is beyond 2^52 bytes")]
    metrics::gauge!("gilmok_last_good_bytes").set(admin.shared.last_good.bytes() as f64);
    if let Some(log) = &admin.shared.access_log {
        metrics::counter!("gilmok_access_log_dropped_total").absolute(log.dropped());
    }
}

fn add_health(out: &mut String, current: &Current) {
    let now = clock::now_ms();
    let called = current.upstreams.iter().filter(|upstream| {
        let at = upstream.shared.called_at_ms.load(Relaxed);
        at > 0 && now.saturating_sub(at) < CALLED_WITHIN_MS
    });
    let mut healthy = String::new();
    let mut open = String::new();
    for upstream in called {
        for state in &upstream.endpoints {
            let up = u8::from(state.health() != Health::Unhealthy);
            line(
                &mut healthy,
                format_args!(
                    "gilmok_endpoint_healthy{{service=\"{}\",endpoint=\"{}\"}} {up}",
                    upstream.name, state.peer
                ),
            );
        }
    }
    for upstream in current.upstreams.iter().filter(|upstream| upstream.policy.health_check.is_some()) {
        let fails_open = u8::from(upstream.shared.fail_open.load(Relaxed));
        line(
            &mut open,
            format_args!("gilmok_health_fail_open{{service=\"{}\"}} {fails_open}", upstream.name),
        );
    }
    for (name, help, lines) in [
        ("gilmok_endpoint_healthy", "0 where active checks took an endpoint out.", healthy),
        ("gilmok_health_fail_open", "1 where no check ever passed, so that none is believed.", open),
    ] {
        if !lines.is_empty() {
            line(out, format_args!("# HELP {name} {help}\n# TYPE {name} gauge"));
            out.push_str(&lines);
        }
    }
}

fn add_breakers(out: &mut String, current: &Current) {
    let now_ms = clock::now_ms();
    let (mut states, mut transitions) = (String::new(), String::new());
    for upstream in &current.upstreams {
        let service = &upstream.name;
        let mut sums = [0_u64; 3];
        for guarded in upstream.breakers.iter().flat_map(|breakers| breakers.all()) {
            let state = guarded.breaker.state(now_ms);
            for (sum, state) in sums.iter_mut().zip(STATES) {
                *sum += guarded.breaker.transitions().to(state);
            }
            let (version, shard) = (&guarded.version, &guarded.shard);
            line(
                &mut states,
                format_args!(
                    "gilmok_breaker_state{{service=\"{service}\",version=\"{version}\",shard=\"{shard}\"}} {}",
                    state as u8
                ),
            );
        }
        for (sum, state) in sums.iter().zip(STATES).filter(|(sum, _)| **sum > 0) {
            let to = state.as_str();
            line(
                &mut transitions,
                format_args!("gilmok_breaker_transitions_total{{service=\"{service}\",to=\"{to}\"}} {sum}"),
            );
        }
    }
    for (name, kind, help, lines) in [
        (
            "gilmok_breaker_state",
            "gauge",
            "0 closed: calls flow; 1 half-open: a few probes; 2 open: refused.",
            states,
        ),
        ("gilmok_breaker_transitions_total", "counter", "States that breakers entered.", transitions),
    ] {
        if !lines.is_empty() {
            line(out, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
            out.push_str(&lines);
        }
    }
}

fn add_ejections(out: &mut String, current: &Current) {
    let now = clock::now_ms();
    let (mut ejected, mut total, mut refused) = (String::new(), String::new(), String::new());
    for upstream in current.upstreams.iter().filter(|upstream| upstream.policy.outlier_detection.is_some()) {
        let (service, ejections) = (&upstream.name, &upstream.shared.ejections);
        let counters = [
            (&mut total, "gilmok_ejections_total", ejections.total()),
            (&mut refused, "gilmok_ejections_refused_total", ejections.refused()),
        ];
        for (lines, name, count) in counters {
            line(lines, format_args!("{name}{{service=\"{service}\"}} {count}"));
        }
        let called_at = upstream.shared.called_at_ms.load(Relaxed);
        if called_at == 0 || now.saturating_sub(called_at) >= CALLED_WITHIN_MS {
            continue;
        }
        // One address may stand for several versions and shards.
        let mut peers: BTreeMap<&Peer, bool> = BTreeMap::new();
        for state in &upstream.endpoints {
            *peers.entry(&state.peer).or_default() |= state.ejection.is_ejected();
        }
        for (peer, is_ejected) in peers {
            let is_ejected = u8::from(is_ejected);
            line(
                &mut ejected,
                format_args!(
                    "gilmok_endpoint_ejected{{service=\"{service}\",endpoint=\"{peer}\"}} {is_ejected}"
                ),
            );
        }
    }
    for (name, kind, help, lines) in [
        ("gilmok_endpoint_ejected", "gauge", "1 where an endpoint is left out for its failures.", ejected),
        ("gilmok_ejections_total", "counter", "Endpoints that were left out for their failures.", total),
        (
            "gilmok_ejections_refused_total",
            "counter",
            "Endpoints that failed and stayed, because no more may be left out.",
            refused,
        ),
    ] {
        if !lines.is_empty() {
            line(out, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
            out.push_str(&lines);
        }
    }
}

fn add_rate_limits(out: &mut String, current: &Current) {
    // An app beside this proxy is of a service that may be called elsewhere as well.
    let mut services: BTreeMap<&str, u64> = BTreeMap::new();
    for upstream in current.upstreams.iter().chain(&current.apps) {
        if let Some(limiter) = &upstream.limiter {
            *services.entry(upstream.name.as_str()).or_default() += limiter.refused();
        }
    }
    if services.is_empty() {
        return;
    }
    let name = "gilmok_rate_limited_total";
    line(out, format_args!("# HELP {name} Requests over the rate limit.\n# TYPE {name} counter"));
    for (service, refused) in services {
        line(out, format_args!("{name}{{service=\"{service}\"}} {refused}"));
    }
}

/// A family of series, if there are any.
pub(super) fn add_family(out: &mut String, name: &str, kind: &str, help: &str, lines: &str) {
    if !lines.is_empty() {
        line(out, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
        out.push_str(lines);
    }
}

/// One histogram of a family, if anything was counted.
pub(super) fn add_histogram(out: &mut String, name: &str, labels: &str, latencies: &Latencies) {
    let (count, sum) = latencies.total();
    if count == 0 {
        return;
    }
    for (bound, below) in latencies.below() {
        let le = bound.as_secs_f64();
        line(out, format_args!("{name}_bucket{{{labels},le=\"{le}\"}} {below}"));
    }
    line(out, format_args!("{name}_bucket{{{labels},le=\"+Inf\"}} {count}"));
    let sum = sum.as_secs_f64();
    line(out, format_args!("{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {count}"));
}

pub(super) fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).and_then(|()| out.write_char('\n')).expect("invariant: a String takes every text");
}
