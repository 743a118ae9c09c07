//! `/config` and `/endpoints`: what is in force, where it comes from, what was refused, and who is called.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use gilmok_config::fallback::{Action, Fallback};
use gilmok_config::unit::format_duration;
use serde_json::{Value, json};
use tracing::level_filters::LevelFilter;

use super::{Admin, shards, tls};
use crate::clock;
use crate::drain::Phase;
use crate::settings::{App, LEVELS, LogTarget, Registration, Settings, Source, UnknownHosts};
use crate::tls::{IdentitySettings, Mode};
use crate::upstream::endpoint::{EndpointState, Health};
use crate::upstream::service::Upstream;

pub(super) fn config(admin: &Admin) -> Value {
    let current = admin.in_force.load();
    let status = &admin.sources.status;
    let applied = current.applied.as_ref();
    json!({
        "node": admin.identity.node,
        "instance": admin.identity.instance,
        "version": env!("CARGO_PKG_VERSION"),
        "state": state(admin),
        "source": status.source(),
        "store": applied.map(|applied| applied.store.clone()).or_else(|| admin.sources.store()),
        "revision": applied.map(|applied| applied.revision),
        "hash": applied.map(|applied| applied.hash.clone()).or_else(|| status.hash()),
        "last_known_good": applied.is_some_and(|applied| applied.last_known_good),
        "generation": current.generation,
        "age_seconds": status.age_seconds(),
        "services": current.snapshot.services().len(),
        "routes": current.snapshot.routes().len(),
        "shards_without_endpoints": shards::unserved(&current),
        "keys_on_their_way": shards::moving(&current),
        "refused": status.rejection(),
        "rejected_total": status.rejected_total(),
        "foreign_store": status.foreign_store(),
        "listeners": admin.listeners,
        "certificates": tls::standings(admin),
        "identity": tls::enrolment(admin),
        "settings": settings(&admin.settings, admin),
    })
}

/// What the process is up to, in a word.
pub(super) fn state(admin: &Admin) -> &'static str {
    match admin.drain.phase() {
        Phase::Serving if admin.in_force.load().generation > 0 => "ready",
        Phase::Serving => "waiting",
        Phase::Announcing | Phase::Closing | Phase::Ending | Phase::Over => "draining",
    }
}

pub(super) fn word_of(level: LevelFilter) -> &'static str {
    LEVELS.iter().find(|(_, known)| *known == level).map_or("off", |(word, _)| *word)
}

/// The settings without what is secret: of tokens only the file's name.
fn settings(settings: &Settings, admin: &Admin) -> Value {
    let limits = &settings.limits;
    let current = admin.in_force.load();
    let apps = settings.apps.iter().zip(&admin.apps_healthy).enumerate().map(|(at, (app, healthy))| {
        let mut told = self::app(app);
        told["access"] = json!(current.access.get(at).map(|admission| tls::access(admission)));
        told["healthy"] = json!(*healthy.borrow());
        told
    });
    json!({
        "node": settings.node,
        "zone": settings.zone,
        "log": word_of(admin.logs.level()),
        "apps": apps.collect::<Vec<_>>(),
        "admin_token_file": settings.admin_token_file,
        "trusted": settings.listen.trusted.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "tls": {
            "outbound": settings.tls.identity.is_some().then(|| mode(settings.tls.outbound_mode)),
            "inbound": settings.tls.identity.is_some().then(|| mode(settings.tls.inbound_mode)),
            "edge": (!settings.tls.edge.is_empty()).then(|| mode(settings.tls.edge_mode)),
        },
        "identity": settings.tls.identity.as_ref().map(identity),
        "outbound": { "unknown_hosts": match settings.outbound.unknown_hosts {
            UnknownHosts::Pass => "pass",
            UnknownHosts::Reject => "reject",
        }},
        "source": source(&settings.source),
        "registration": registration(&settings.registration),
        "state": { "dir": settings.state_dir },
        "workers": { "count": settings.workers },
        "drain": {
            "announce": format_duration(settings.drain.announce),
            "deadline": format_duration(settings.drain.deadline),
        },
        "limits": {
            "connections": limits.connections,
            "connections_per_ip": limits.connections_per_ip,
            "header_bytes": limits.header_bytes,
            "uri_bytes": limits.uri_bytes,
            "body_bytes": limits.body_bytes,
            "requests_in_flight": limits.requests_in_flight,
            "buffered_bytes": limits.buffered_bytes,
            "h2_streams": limits.h2_streams,
            "handshakes": limits.handshakes,
            "handshake_timeout": format_duration(limits.handshake_timeout),
            "header_timeout": format_duration(limits.header_timeout),
            "upstream_idle_timeout": format_duration(limits.upstream_idle_timeout),
            "upstream_idle_connections": limits.upstream_idle_connections,
            "last_good_bytes": limits.last_good_bytes,
            "upstream_max_age": format_duration(limits.upstream_max_age),
        },
        "access_log": settings.access_log.as_ref().map(|log| json!({
            "path": match &log.target {
                LogTarget::File(path) => path.display().to_string(),
                LogTarget::Stderr => "stderr".to_owned(),
                LogTarget::Stdout => "stdout".to_owned(),
            },
            "queue": log.queue,
            "query": log.query,
        })),
    })
}

fn identity(identity: &IdentitySettings) -> Value {
    match identity {
        IdentitySettings::Files(files) => json!({
            "issuer": "files",
            "cert_file": files.pair.cert_file,
            "key_file": files.pair.key_file,
            "ca_file": files.ca_file,
        }),
        IdentitySettings::Issued(issued) => json!({
            "issuer": "control_plane",
            "service": issued.service,
            "join_token_file": issued.join_token_file,
        }),
    }
}

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Permissive => "permissive",
        Mode::Strict => "strict",
    }
}

fn app(app: &App) -> Value {
    json!({
        "service": app.service,
        "version": app.version,
        "shard": app.shard,
        "role": app.role,
        "address": app.address,
        "inbound": app.inbound.to_string(),
        "advertise": app.advertise,
        "checked": app.health_check.is_some(),
    })
}

fn source(source: &Source) -> Value {
    match source {
        Source::MeshFile(file) => json!({ "mesh_file": file }),
        Source::ControlPlanes { servers, token_file } => json!({
            "control_plane": servers.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "token_file": token_file,
            "ca_file": servers.iter().find_map(|server| server.tls.as_ref()?.ca_file.as_ref()),
        }),
    }
}

fn registration(registration: &Registration) -> Value {
    match registration {
        Registration::Consul { agent, token_file, ttl } => json!({
            "consul": agent.to_string(),
            "token_file": token_file,
            "ttl": format_duration(*ttl),
        }),
        Registration::ControlPlanes { ttl } => json!({ "ttl": format_duration(*ttl) }),
        Registration::Nowhere => json!({ "enabled": false }),
    }
}

/// Every service with its endpoints, or one of them.
pub(super) fn endpoints(admin: &Admin, only: Option<&str>) -> Value {
    let current = admin.in_force.load();
    let wanted = |upstream: &&Arc<Upstream>| only.is_none_or(|name| upstream.name.as_str() == name);
    let services: Vec<_> =
        current.upstreams.iter().filter(wanted).map(|upstream| service(upstream)).collect();
    json!({ "services": services })
}

/// One service as it lives now.
pub(super) fn service(upstream: &Upstream) -> Value {
    let eligible = upstream.eligible(clock::now_ms());
    let may: HashSet<u64> = eligible.all.endpoints().iter().map(|state| state.id).collect();
    let told = upstream.endpoints.iter().map(|state| endpoint(state, may.contains(&state.id)));
    json!({
        "service": upstream.name,
        "protocol": upstream.policy.protocol.as_str(),
        "load_balancer": upstream.policy.load_balancer.as_str(),
        "hash_balance_factor": upstream.policy.by_subject.as_ref().and_then(|by| by.factor),
        "in_flight": upstream.shared.in_flight.load(Relaxed),
        "max_concurrent": upstream.policy.max_concurrent,
        "fail_open": upstream.shared.fail_open.load(Relaxed),
        "ejections": upstream.shared.ejections.total(),
        "ejections_refused": upstream.shared.ejections.refused(),
        "breakers": super::breakers::of(upstream),
        "sharding": shards::of(upstream),
        "fallback": upstream.policy.fallback.iter().map(fallback).collect::<Vec<_>>(),
        "endpoints": told.collect::<Vec<_>>(),
    })
}

/// What a link of the chain is.
fn fallback(link: &Fallback) -> Value {
    match &link.action {
        Action::LastGood(_) => json!({ "kind": "last_good" }),
        Action::Respond(prepared) => json!({ "kind": "respond", "status": prepared.status.as_u16() }),
        Action::Service(name) => json!({ "kind": "service", "service": name }),
    }
}

fn endpoint(state: &EndpointState, eligible: bool) -> Value {
    let mut told = json!(state.endpoint);
    // On the wire what is empty is left out; here it is told.
    told["version"] = json!(state.endpoint.version);
    told["shard"] = json!(state.endpoint.shard);
    told["zone"] = json!(state.endpoint.zone);
    told["peer"] = json!(state.peer.to_string());
    told["health"] = json!(match state.health() {
        Health::Healthy => "healthy",
        Health::Unhealthy => "unhealthy",
        Health::Unknown => "unchecked",
    });
    told["eligible"] = json!(eligible);
    let until_ms = state.ejection.until_ms();
    told["ejected"] = json!(until_ms.is_some());
    if let Some(until_ms) = until_ms {
        let left = Duration::from_millis(until_ms.saturating_sub(clock::now_ms()));
        told["ejected_for_seconds"] = json!(left.as_secs_f64());
    }
    told["in_flight"] = json!(state.in_flight.load(Relaxed));
    told
}
