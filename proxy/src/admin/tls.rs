//! What operators are told of who may come in: until when certificates last, what handshakes came to, and who was denied.

use std::collections::BTreeMap;

use gilmok_config::access::{AccessMode, DefaultAccess};
use gilmok_config::decide::Listener;
use gilmok_config::moment::format_moment;
use serde_json::{Value, json};

use super::Admin;
use super::scrape::{add_family, line};
use crate::access::Admission;
use crate::current::Current;

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
