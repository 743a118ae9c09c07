//! What operators are told of who may come in: until when certificates last, what handshakes came to, and who was denied.

use std::collections::BTreeMap;

use gilmok_config::access::{AccessMode, DefaultAccess};
use gilmok_config::decide::Listener;
use gilmok_config::moment::format_moment;
use serde_json::{Value, json};

use super::Admin;
use super::scrape::{add_family, line};
use crate::access::Admission;
use crate::clock;
use crate::current::Current;
use crate::enrolment::ASKED;

/// Certificates by what they are for. Of keys nothing is told but the files' names.
pub(super) fn standings(admin: &Admin) -> Value {
    let told = admin.shared.tls.standings().into_iter().map(|standing| {
        json!({
            "certificate": standing.name,
            "names": standing.names,
            "begins": format_moment(standing.not_before),
            "ends": format_moment(standing.not_after),
            "changes": standing.taken,
            "refused": standing.refused,
            "fault": standing.fault,
        })
    });
    told.collect()
}

/// How it stands with the identity that a control plane gives; `None` where none does.
pub(super) fn enrolment(admin: &Admin) -> Option<Value> {
    let standing = admin.enrolment.as_ref()?.standing();
    let is_there = standing.renews_at > 0;
    Some(json!({
        "given_by": standing.server,
        "renews_at": is_there.then(|| format_moment(standing.renews_at)),
        "failing_since": standing.failing.as_ref().map(|(since, _)| format_moment(*since)),
        "fault": standing.failing.as_ref().map(|(_, why)| why),
    }))
}

/// Who may call an app beside this proxy, in a few words.
pub(super) fn access(admission: &Admission) -> Value {
    let access = admission.access();
    json!({
        "rules": access.allow.as_ref().map(Vec::len),
        "default": match access.default {
            DefaultAccess::Allow => "allow",
            DefaultAccess::Deny => "deny",
        },
        "mode": match access.mode {
            AccessMode::DryRun => "dry_run",
            AccessMode::Enforce => "enforce",
        },
    })
}

pub(super) fn add(out: &mut String, admin: &Admin, current: &Current) {
    let tls = &admin.shared.tls;
    let (mut ends, mut reloads, mut handshakes) = (String::new(), String::new(), String::new());
    for standing in tls.standings() {
        let name = &standing.name;
        let end = standing.not_after;
        line(&mut ends, format_args!("gilmok_certificate_end_seconds{{certificate=\"{name}\"}} {end}"));
        for (result, count) in [("taken", standing.taken), ("refused", standing.refused)] {
            line(
                &mut reloads,
                format_args!(
                    "gilmok_certificate_reloads_total{{certificate=\"{name}\",result=\"{result}\"}} {count}"
                ),
            );
        }
    }
    for listener in [Listener::Edge, Listener::Inbound] {
        for (result, count) in tls.counts(listener).into_iter().flatten() {
            let listener = listener.as_str();
            line(
                &mut handshakes,
                format_args!(
                    "gilmok_tls_handshakes_total{{listener=\"{listener}\",result=\"{result}\"}} {count}"
                ),
            );
        }
    }
    add_enrolment(out, admin);
    let denials = denials(current);
    for (name, kind, help, lines) in [
        ("gilmok_access_denied_total", "counter", "Requests that no rule allows.", denials),
        ("gilmok_certificate_end_seconds", "gauge", "When a certificate ends, in Unix time.", ends),
        ("gilmok_certificate_reloads_total", "counter", "Changes of certificates' files.", reloads),
        ("gilmok_tls_handshakes_total", "counter", "TLS handshakes with callers.", handshakes),
    ] {
        add_family(out, name, kind, help, &lines);
    }
}

fn add_enrolment(out: &mut String, admin: &Admin) {
    let Some(status) = &admin.enrolment else { return };
    let standing = status.standing();
    let mut requests = String::new();
    for (at, asked) in ASKED.iter().enumerate() {
        for (result, count) in [("answered", standing.answered[at]), ("failed", standing.failed[at])] {
            line(
                &mut requests,
                format_args!(
                    "gilmok_identity_requests_total{{asked=\"{asked}\",result=\"{result}\"}} {count}"
                ),
            );
        }
    }
    let failing = standing.failing.map_or(0, |(since, _)| clock::unix_seconds().saturating_sub(since));
    let (mut failing_line, mut renews) = (String::new(), String::new());
    line(&mut failing_line, format_args!("gilmok_identity_failing_seconds {failing}"));
    line(&mut renews, format_args!("gilmok_identity_renews_at_seconds {}", standing.renews_at));
    for (name, kind, help, lines) in [
        (
            "gilmok_identity_failing_seconds",
            "gauge",
            "For how long no control plane has given what was asked of it.",
            failing_line,
        ),
        ("gilmok_identity_renews_at_seconds", "gauge", "When the identity is renewed, in Unix time.", renews),
        (
            "gilmok_identity_requests_total",
            "counter",
            "What control planes were asked for of the identity.",
            requests,
        ),
    ] {
        add_family(out, name, kind, help, &lines);
    }
}

/// Two apps beside this proxy may be of one service.
fn denials(current: &Current) -> String {
    let mut sums: BTreeMap<_, u64> = BTreeMap::new();
    for admission in &current.access {
        for (kind, count) in admission.denied() {
            *sums.entry((admission.service(), kind)).or_default() += count;
        }
    }
    let mut lines = String::new();
    for ((service, kind), count) in sums {
        let (caller, rule) = (kind.caller.as_str(), kind.denial);
        let mode = if kind.is_dry { "dry_run" } else { "enforce" };
        line(
            &mut lines,
            format_args!(
                "gilmok_access_denied_total{{service=\"{service}\",caller=\"{caller}\",rule=\"{rule}\",mode=\"{mode}\"}} {count}"
            ),
        );
    }
    lines
}
