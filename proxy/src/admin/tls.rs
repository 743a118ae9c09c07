//! What operators are told of TLS: who this proxy is, until when its certificates last, and what handshakes came to.

use gilmok_config::decide::Listener;
use gilmok_config::moment::format_moment;
use serde_json::{Value, json};

use super::Admin;
use super::scrape::{add_family, line};

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

pub(super) fn add(out: &mut String, admin: &Admin) {
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
    for (name, kind, help, lines) in [
        ("gilmok_certificate_end_seconds", "gauge", "When a certificate ends, in Unix time.", ends),
        ("gilmok_certificate_reloads_total", "counter", "Changes of certificates' files.", reloads),
        ("gilmok_tls_handshakes_total", "counter", "TLS handshakes with callers.", handshakes),
    ] {
        add_family(out, name, kind, help, &lines);
    }
}
