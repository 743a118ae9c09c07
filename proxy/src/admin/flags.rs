//! `/metrics`: what applications are told of feature flags.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use gilmok_config::flag::FlagSet;

use super::scrape::{add_family, line};
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

/// A label's value: keys of flags and names of variants may be any text.
fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(['\\', '"', '\n']) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}
