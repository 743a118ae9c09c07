//! The series of versions at `/metrics`: who was moved to another one, what copies of requests came to, and what was ended.

use gilmok_config::name::ServiceName;

use super::scrape::{add_family, add_histogram, line};
use crate::current::Current;
use crate::upstream::latencies::Latencies;
use crate::upstream::version::VersionState;

pub(super) fn add(out: &mut String, current: &Current) {
    add_breaches(out, current);
    add_mirrored(out, current);
    add_cuts(out, current);
}

fn add_breaches(out: &mut String, current: &Current) {
    let mut lines = String::new();
    for upstream in &current.upstreams {
        for trials in upstream.trials.versions().iter().filter(|trials| trials.moved() > 0) {
            let (service, version, moved) = (&upstream.name, &trials.version, trials.moved());
            line(
                &mut lines,
                format_args!(
                    "gilmok_isolation_breaches_total{{service=\"{service}\",version=\"{version}\"}} {moved}"
                ),
            );
        }
    }
    let help = "Requests of a version that the stable one took, because it had no healthy endpoint.";
    add_family(out, "gilmok_isolation_breaches_total", "counter", help, &lines);
}

fn add_mirrored(out: &mut String, current: &Current) {
    let (mut requests, mut durations) = (String::new(), String::new());
    for upstream in &current.upstreams {
        let service = &upstream.name;
        for state in upstream.versions.known() {
            let Some(mirrored) = state.mirrored() else { continue };
            let version = &state.name;
            for (outcome, count) in mirrored.outcomes().filter(|(_, count)| *count > 0) {
                line(
                    &mut requests,
                    format_args!(
                        "gilmok_mirrored_requests_total{{service=\"{service}\",version=\"{version}\",outcome=\"{outcome}\"}} {count}"
                    ),
                );
            }
            add_durations(&mut durations, service, state, "copy", &mirrored.copies);
            add_durations(&mut durations, service, state, "real", &mirrored.answers);
        }
    }
    let help = "Requests that were to be copied to a version, by what became of the copies.";
    add_family(out, "gilmok_mirrored_requests_total", "counter", help, &requests);
    let help =
        "Until the head of the answer: of copies, and of the real answers that they were compared with.";
    add_family(out, "gilmok_mirrored_duration_seconds", "histogram", help, &durations);
}

fn add_durations(
    out: &mut String,
    service: &ServiceName,
    state: &VersionState,
    of: &str,
    latencies: &Latencies,
) {
    let labels = format!("service=\"{service}\",version=\"{}\",of=\"{of}\"", state.name);
    add_histogram(out, "gilmok_mirrored_duration_seconds", &labels, latencies);
}

fn add_cuts(out: &mut String, current: &Current) {
    let mut lines = String::new();
    for upstream in &current.upstreams {
        let (service, versions) = (&upstream.name, &upstream.versions);
        let all = versions.known().iter().cloned().chain(versions.gone());
        for state in all.filter(|state| state.cuts() > 0) {
            let (version, cuts) = (&state.name, state.cuts());
            line(
                &mut lines,
                format_args!(
                    "gilmok_version_drain_cut_total{{service=\"{service}\",version=\"{version}\"}} {cuts}"
                ),
            );
        }
    }
    let help =
        "Requests, streams and tunnels that were ended drain_timeout after no request went to their version.";
    add_family(out, "gilmok_version_drain_cut_total", "counter", help, &lines);
}
