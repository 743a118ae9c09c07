//! `/metrics`: what applications are told of feature flags.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use gilmok_config::flag::FlagSet;

use super::scrape::{add_family, add_histogram, line};
use crate::current::Current;

/// Adds the series of the flags in force.
pub(super) fn add(out: &mut String, current: &Current) {
    let mut evaluations = String::new();
    let none = FlagSet::default();
    let set = current.snapshot.flags().map_or(&none, |set| &**set);
    current.flag_counts.each(set, &mut |flag, variant, reason, count| {
        let (flag, variant) = (escaped(flag), escaped(variant));
        line(
            &mut evaluations,
            format_args!(
                "gilmok_flag_evaluations_total{{flag=\"{flag}\",variant=\"{variant}\",reason=\"{reason}\"}} {count}"
            ),
        );
    });
    let help = "Flags that applications were told, by header or by OFREP.";
    add_family(out, "gilmok_flag_evaluations_total", "counter", help, &evaluations);
    add_outcomes(out, current, set);
    // An app beside this proxy is of a service that may be called elsewhere as well.
    let mut services: BTreeMap<&str, u64> = BTreeMap::new();
    for upstream in current.upstreams.iter().chain(&current.apps) {
        *services.entry(upstream.name.as_str()).or_default() += upstream.shared.flags_dropped.load(Relaxed);
    }
    let mut dropped = String::new();
    for (service, count) in services.into_iter().filter(|(_, count)| *count > 0) {
        line(&mut dropped, format_args!("gilmok_flags_dropped_total{{service=\"{service}\"}} {count}"));
    }
    let help = "Flags that found no room in the header of a request.";
    add_family(out, "gilmok_flags_dropped_total", "counter", help, &dropped);
}

/// What came of the requests that guarded flags were told with.
fn add_outcomes(out: &mut String, current: &Current, set: &FlagSet) {
    let (mut requests, mut durations) = (String::new(), String::new());
    for (flag, outcomes) in current.flag_counts.outcomes(set) {
        let labels = |at: usize| {
            let variant = flag.variants().get(at).map_or("", |variant| variant.name());
            format!("flag=\"{}\",variant=\"{}\"", escaped(flag.key()), escaped(variant))
        };
        outcomes.each_request(&mut |at, code, count| {
            let labels = labels(at);
            line(
                &mut requests,
                format_args!("gilmok_flag_requests_total{{{labels},code=\"{code}\"}} {count}"),
            );
        });
        for (at, latencies) in outcomes.latencies() {
            add_histogram(&mut durations, "gilmok_flag_trial_duration_seconds", &labels(at), latencies);
        }
    }
    let help = "Requests that guarded flags were told with.";
    add_family(out, "gilmok_flag_requests_total", "counter", help, &requests);
    let help = "Until the head of the answer: of users' first requests in a day with a guarded flag.";
    add_family(out, "gilmok_flag_trial_duration_seconds", "histogram", help, &durations);
}

/// A label's value: keys of flags and names of variants may be any text.
fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(['\\', '"', '\n']) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}
