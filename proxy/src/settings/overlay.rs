//! Settings that flags and the environment say instead of the file.
//!
//! One table names them all: a flag `--drain-deadline` and a variable `GILMOK_DRAIN_DEADLINE` for `drain.deadline`.

use std::collections::BTreeMap;
use std::ffi::OsString;

use gilmok_config::node::{Kind, Node};

/// A setting that a flag or the environment may say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Overridable {
    /// Where it stands in proxy.toml.
    pub(super) path: &'static str,
    /// The same with `-`: clap wants it at compile time.
    pub(super) flag: &'static str,
    pub(super) form: Form,
    pub(super) help: &'static str,
}

/// How the text of a flag becomes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Boolean,
    /// Comma-separated.
    List,
    Number,
    /// A path, relative to the working directory.
    Path,
    Text,
}

const fn row(path: &'static str, flag: &'static str, form: Form, help: &'static str) -> Overridable {
    Overridable { path, flag, form, help }
}

pub(super) const OVERRIDABLE: [Overridable; 55] = [
    row("node", "node", Form::Text, "Name of this proxy, stable over restarts"),
    row("zone", "zone", Form::Text, "Zone of this proxy, for zone preference"),
    row("log", "log", Form::Text, "error, warn, info, debug or trace"),
    row("port_file", "port-file", Form::Path, "File to write the addresses of the listeners to, as JSON"),
    row("listen.outbound", "listen-outbound", Form::Text, "Address for the app's calls"),
    row("listen.admin", "listen-admin", Form::Text, "Address for operators"),
    row("listen.edge", "listen-edge", Form::Text, "Address for clients outside the mesh"),
    row("listen.metrics", "listen-metrics", Form::Text, "Address for /metrics, /livez and /readyz only"),
    row("listen.ofrep", "listen-ofrep", Form::Text, "Address for OpenFeature's SDKs (OFREP)"),
    row("listen.trusted", "listen-trusted", Form::List, "Address ranges whose headers are believed"),
    row("listen.inbound_tls", "listen-inbound-tls", Form::Text, "permissive or strict; needs an identity"),
    row("listen.edge_tls", "listen-edge-tls", Form::Text, "strict or permissive; needs certificates"),
    row(
        "identity.issuer",
        "identity-issuer",
        Form::Text,
        "Who gives this proxy's identity: files or control_plane",
    ),
    row(
        "identity.service",
        "identity-service",
        Form::Text,
        "The service that this proxy is; default: its first app's",
    ),
    row(
        "identity.join_token_file",
        "identity-join-token-file",
        Form::Path,
        "The token by which it may be that service",
    ),
    row("identity.cert_file", "identity-cert-file", Form::Path, "Certificate of this proxy's identity"),
    row("identity.key_file", "identity-key-file", Form::Path, "Its private key"),
    row(
        "identity.ca_file",
        "identity-ca-file",
        Form::Path,
        "Roots that other identities are checked against",
    ),
    row("outbound.unknown_hosts", "outbound-unknown-hosts", Form::Text, "reject or pass"),
    row("outbound.tls", "outbound-tls", Form::Text, "permissive or strict; needs an identity"),
    row(
        "edge.uid_key_file",
        "edge-uid-key-file",
        Form::Path,
        "File with the keys that sign visitors' cookies",
    ),
    row(
        "admin.token_file",
        "admin-token-file",
        Form::Path,
        "File with the token that callers of the admin listener from other machines need",
    ),
    row(
        "ofrep.allowed_origins",
        "ofrep-allowed-origins",
        Form::List,
        "Web pages that may ask for flags, e.g. https://shop.example.com",
    ),
    row(
        "ofrep.token_file",
        "ofrep-token-file",
        Form::Path,
        "File with the token that callers of the OFREP listener need",
    ),
    row(
        "ofrep.stale_after",
        "ofrep-stale-after",
        Form::Text,
        "How long without a word of the source until flags are called stale",
    ),
    row("source.mesh_file", "source-mesh-file", Form::Path, "The mesh document as a file"),
    row(
        "source.control_plane",
        "source-control-plane",
        Form::List,
        "Control planes, e.g. http://127.0.0.1:7070",
    ),
    row(
        "source.ca_file",
        "source-ca-file",
        Form::Path,
        "Authorities to believe for control planes by https://",
    ),
    row("source.token_file", "source-token-file", Form::Path, "File with the token for the control planes"),
    row("registration.enabled", "registration-enabled", Form::Boolean, "Whether the apps are registered"),
    row(
        "registration.consul",
        "registration-consul",
        Form::Text,
        "Consul agent at which the apps are registered",
    ),
    row(
        "registration.token_file",
        "registration-token-file",
        Form::Path,
        "File with the token for that agent",
    ),
    row(
        "registration.ttl",
        "registration-ttl",
        Form::Text,
        "How long a registration is believed without another word",
    ),
    row("state.dir", "state-dir", Form::Path, "Folder for the last known good state"),
    row("workers.count", "workers-count", Form::Number, "Worker threads; 0 = CPUs"),
    row("drain.announce", "drain-announce", Form::Text, "How long a leaving proxy still accepts"),
    row("drain.deadline", "drain-deadline", Form::Text, "When a leaving proxy stops whatever is left"),
    row("limits.connections", "limits-connections", Form::Number, "Connections from downstream"),
    row(
        "limits.connections_per_ip",
        "limits-connections-per-ip",
        Form::Number,
        "Connections from one address; none = no limit",
    ),
    row("limits.header_bytes", "limits-header-bytes", Form::Text, "Head of a request"),
    row("limits.uri_bytes", "limits-uri-bytes", Form::Text, "Path and query of a request"),
    row("limits.body_bytes", "limits-body-bytes", Form::Text, "Body of a request; none = no limit"),
    row("limits.requests_in_flight", "limits-requests-in-flight", Form::Number, "Requests in flight"),
    row(
        "limits.buffered_bytes",
        "limits-buffered-bytes",
        Form::Text,
        "Memory for bodies that may have to be sent once more",
    ),
    row("limits.h2_streams", "limits-h2-streams", Form::Number, "Streams of one HTTP/2 connection"),
    row("limits.handshakes", "limits-handshakes", Form::Number, "TLS handshakes under way at once"),
    row("limits.handshake_timeout", "limits-handshake-timeout", Form::Text, "Until a TLS handshake is over"),
    row("limits.header_timeout", "limits-header-timeout", Form::Text, "Until a request's head is complete"),
    row(
        "limits.upstream_idle_timeout",
        "limits-upstream-idle-timeout",
        Form::Text,
        "How long an unused connection is kept",
    ),
    row(
        "limits.upstream_idle_connections",
        "limits-upstream-idle-connections",
        Form::Number,
        "Unused connections kept per endpoint and worker",
    ),
    row("limits.last_good_bytes", "limits-last-good-bytes", Form::Text, "Memory for all last good answers"),
    row(
        "limits.upstream_max_age",
        "limits-upstream-max-age",
        Form::Text,
        "After which a connection takes no new request",
    ),
    row("access_log.path", "access-log-path", Form::Path, "stdout, stderr or a file"),
    row("access_log.queue", "access-log-queue", Form::Number, "Lines that may wait to be written"),
    row("access_log.query", "access-log-query", Form::Boolean, "Whether queries are logged"),
];

impl Overridable {
    pub(super) fn variable(&self) -> String {
        format!("GILMOK_{}", self.path.replace('.', "_").to_uppercase())
    }

    fn value(&self, said: &OsString) -> Kind {
        let text = said.to_string_lossy().into_owned();
        match self.form {
            Form::Boolean => text.parse().map_or(Kind::Text(text), Kind::Boolean),
            Form::List => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Kind::List(items.map(|item| Node { kind: Kind::Text(item.to_owned()), line: None }).collect())
            }
            Form::Number => text.parse().map_or(Kind::Text(text), Kind::Integer),
            Form::Path if matches!(text.as_str(), "stdout" | "stderr") => Kind::Text(text),
            Form::Path => match std::path::absolute(&text) {
                Ok(path) => Kind::Text(path.to_string_lossy().into_owned()),
                Err(_) => Kind::Text(text),
            },
            Form::Text => Kind::Text(text),
        }
    }
}

/// Something said outside the file: which setting, by what name it was said, and the text.
#[derive(Clone, Debug)]
pub(super) struct Said {
    pub(super) setting: &'static Overridable,
    pub(super) origin: String,
    pub(super) text: OsString,
}

/// Puts what was said into the file's tree.
pub(super) fn lay_over(tree: &mut Node, said: &[Said]) {
    for Said { setting, text, .. } in said {
        let (table, key) = setting.path.split_once('.').unwrap_or(("", setting.path));
        let Kind::Table(root) = &mut tree.kind else { return };
        let entries = if table.is_empty() {
            root
        } else {
            let node = root.entry(table.to_owned()).or_insert_with(|| absent_table(table));
            let Kind::Table(entries) = &mut node.kind else { continue };
            entries
        };
        // The two sources exclude each other, and what is said last and closest wins.
        match setting.path {
            "source.mesh_file" => drop(entries.remove("control_plane")),
            "source.control_plane" => drop(entries.remove("mesh_file")),
            _ => {}
        }
        entries.insert(key.to_owned(), Node { kind: setting.value(text), line: None });
    }
}

/// A flag that opens one more listener leaves the two open that are open without a table.
fn absent_table(name: &str) -> Node {
    let mut entries = BTreeMap::new();
    if name == "listen" {
        for (key, address) in [("outbound", super::OUTBOUND_DEFAULT), ("admin", super::ADMIN_DEFAULT)] {
            entries.insert(key.to_owned(), Node { kind: Kind::Text(address.to_owned()), line: None });
        }
    }
    Node { kind: Kind::Table(entries), line: None }
}
