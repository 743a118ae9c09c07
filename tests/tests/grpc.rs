//! gRPC's own client and server (the package grpcio) through our sidecars, in the clear and over TLS: every kind of call, its
//! status, its trailers.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use gilmok_tests::certificates::{Authority, Leaf, Spec};
use gilmok_tests::eventually::soon;
use gilmok_tests::process::Process;
use gilmok_tests::proxy::{Proxy, ProxySettings};
use gilmok_tests::python;
use gilmok_tests::scratch::Scratch;
use serde_json::{Value, json};
use tokio::process::Command;

/// Both peers; see there.
const PEERS: &str = include_str!("grpc_peers.py");

/// A gRPC server, and how its client is run.
struct Peers {
    python: PathBuf,
    script: PathBuf,
    server: Process,
    address: SocketAddr,
    _scratch: Scratch,
}

/// The sidecar beside the server, and the sidecar of those who call it as `echo`.
struct Scene {
    peers: Peers,
    _inbound: Proxy,
    outbound: Proxy,
}

impl Peers {
    async fn start() -> Self {
        let python = python::with("grpcio");
        let scratch = Scratch::new();
        let script = scratch.write("grpc_peers.py", PEERS);
        let ports = scratch.path().join("ports.json");
        let args = [script.as_os_str(), "server".as_ref(), ports.as_os_str()];
        let mut server = Process::start(&python, args, &scratch.path().join("server.log"));
        let listening = server.ports(&ports).await;
        let address = listening["listen"].as_str().expect("an address").parse().expect("an address");
        Self { python, script, server, address, _scratch: scratch }
    }

    /// What becomes of these calls, made one after the other on one channel.
    async fn ask(&self, to: SocketAddr, authority: &str, calls: &[&str]) -> Value {
        self.run(Command::new(&self.python).arg(&self.script).arg("client"), to, authority, calls).await
    }

    /// The same over TLS, believing this authority and showing this certificate.
    async fn ask_tls(
        &self,
        (believes, shows): (&Authority, Option<&Leaf>),
        to: SocketAddr,
        authority: &str,
        calls: &[&str],
    ) -> Value {
        let folder = Scratch::new();
        folder.write("root.pem", believes.pem());
        if let Some(leaf) = shows {
            leaf.write(folder.path(), "client");
        }
        let mut client = Command::new(&self.python);
        client.arg(&self.script).arg("tls-client").arg(folder.path());
        self.run(&mut client, to, authority, calls).await
    }

    async fn run(&self, client: &mut Command, to: SocketAddr, authority: &str, calls: &[&str]) -> Value {
        let output = client.arg(to.to_string()).arg(authority).args(calls).kill_on_drop(true).output();
        let output = soon("the end of the client", output).await.expect("Python runs");
        let said = String::from_utf8_lossy(&output.stdout);
        match serde_json::from_str(&said) {
            Ok(results) => results,
            Err(error) => panic!("{error}: {said}\n{}", String::from_utf8_lossy(&output.stderr)),
        }
    }
}

impl Scene {
    async fn start() -> Self {
        let peers = Peers::start().await;
        let service = "[services.echo]\nprotocol = \"h2\"\n";
        let inbound = Proxy::start_with(ProxySettings::of_mesh(service).app("echo", peers.address, "")).await;
        let sidecar = inbound.inbound(0);
        let endpoint = format!("[[services.echo.endpoints]]\naddress = \"{sidecar}\"\ninbound = true\n");
        let outbound = Proxy::start(format!("{service}{endpoint}")).await;
        Self { peers, _inbound: inbound, outbound }
    }

    async fn ask(&self, authority: &str, calls: &[&str]) -> Value {
        self.peers.ask(self.outbound.outbound(), authority, calls).await
    }
}

fn ok(answer: impl Into<Value>, trailers: &Value) -> Value {
    json!({ "answer": answer.into(), "code": "OK", "details": "", "trailers": trailers })
}

/// Every kind of call, and what is made of it.
fn kinds() -> [(&'static str, Value); 4] {
    [
        ("unary", ok("hello", &json!({ "x-length": "5", "x-raw-bin": "00ff" }))),
        ("server_stream", ok(499_500, &json!({ "x-sent": "1000" }))),
        ("client_stream", ok("0,1,2,3,4", &json!({}))),
        ("both", ok(json!(["A", "B", "C"]), &json!({ "x-sent": "3" }))),
    ]
}

#[tokio::test]
async fn every_kind_of_call_goes_through_with_its_status_and_trailers() {
    let scene = Scene::start().await;
    let calls = ["unary", "large", "server_stream", "client_stream", "both", "fail", "fail_later", "unknown"];
    let results = scene.ask("echo", &calls).await;
    for (call, expected) in kinds().into_iter().chain([
        ("large", ok(3 << 20, &json!({ "x-length": "3145728", "x-raw-bin": "00ff" }))),
        (
            "fail",
            json!({ "answer": null, "code": "NOT_FOUND", "details": "no such ad: café", "trailers": { "x-why": "gone" } }),
        ),
        (
            "fail_later",
            json!({ "answer": ["first"], "code": "RESOURCE_EXHAUSTED", "details": "enough", "trailers": {} }),
        ),
    ]) {
        assert_eq!(results[call], expected, "{call}");
    }
    assert_eq!(results["unknown"]["code"], "UNIMPLEMENTED", "{results}");
}

#[tokio::test]
async fn a_deadline_ends_the_call_on_both_sides() {
    let scene = Scene::start().await;
    let results = scene.ask("echo", &["deadline", "was_cancelled"]).await;
    assert_eq!(results["deadline"]["code"], "DEADLINE_EXCEEDED", "{results}");
    assert_eq!(results["was_cancelled"]["answer"], "yes", "{results}");
}

#[tokio::test]
async fn what_we_answer_ourselves_is_a_status_that_grpc_knows() {
    let mut scene = Scene::start().await;
    let results = scene.ask("nobody", &["unary"]).await;
    assert_eq!(results["unary"]["code"], "UNIMPLEMENTED", "{results}");
    scene.peers.server.kill().await;
    let results = scene.ask("echo", &["unary"]).await;
    assert_eq!(results["unary"]["code"], "UNAVAILABLE", "{results}");
}

#[tokio::test]
async fn over_mutual_tls_every_kind_of_call_comes_from_somebody_or_not_at_all() {
    let peers = Peers::start().await;
    let (authority, other, scratch) = (Authority::new("mesh"), Authority::new("mesh"), Scratch::new());
    // gRPC looks for a name, the mesh for the URI.
    let own = Spec { names: vec!["echo".into()], ..Spec::service("echo") };
    authority.sign(&own).write(scratch.path(), "own");
    scratch.write("ca.pem", authority.pem());
    let mesh = "[services.shop]\n[services.echo]\nprotocol = \"h2\"\nallow = [\"shop\"]\n";
    let settings = ProxySettings::of_mesh(mesh)
        .listen("inbound_tls = \"strict\"")
        .app("echo", peers.address, "")
        .table("[identity]\ncert_file = \"own.pem\"\nkey_file = \"own.key\"\nca_file = \"ca.pem\"");
    let proxy = Proxy::start_unready(settings, scratch).await;
    proxy.is_ready().await;
    let at = proxy.inbound(0);
    let calls = kinds().map(|(call, _)| call);
    let shop = authority.sign(&Spec::service("shop"));
    let results = peers.ask_tls((&authority, Some(&shop)), at, "echo", &calls).await;
    for (call, expected) in kinds() {
        assert_eq!(results[call], expected, "{call}");
    }
    let hour = Duration::from_secs(3_600);
    let ended = Spec { begins: (2 * hour, false), ends: (hour, false), ..Spec::service("shop") };
    for (name, believes, shows) in [
        ("no certificate", &authority, None),
        ("another authority of the same name", &authority, Some(other.sign(&Spec::service("shop")))),
        ("an ended one", &authority, Some(authority.sign(&ended))),
        (
            "somebody of another mesh",
            &authority,
            Some(authority.sign(&Spec::uri("spiffe://other/service/shop"))),
        ),
        ("it is we who are not believed", &other, Some(shop)),
    ] {
        let results = peers.ask_tls((believes, shows.as_ref()), at, "echo", &["unary"]).await;
        assert_eq!(results["unary"]["code"], "UNAVAILABLE", "{name}: {results}");
    }
    let news = authority.sign(&Spec::service("news"));
    let results = peers.ask_tls((&authority, Some(&news)), at, "echo", &calls).await;
    for call in calls {
        assert_eq!(results[call]["code"], "PERMISSION_DENIED", "{call}: {results}");
    }
}

#[tokio::test]
async fn at_the_edge_every_kind_of_call_comes_over_tls() {
    let peers = Peers::start().await;
    let (authority, other, scratch) = (Authority::new("office"), Authority::new("office"), Scratch::new());
    authority.sign(&Spec::names(&["echo.example"])).write(scratch.path(), "edge");
    let mesh = format!(
        "[services.echo]\nprotocol = \"h2\"\n[[services.echo.endpoints]]\naddress = \"{}\"\n[[routes]]\nhosts = [\"echo.example\"]\nservice = \"echo\"\n",
        peers.address
    );
    let settings = ProxySettings::of_mesh(mesh)
        .listen("edge = \"127.0.0.1:0\"")
        .table("[[edge.certificates]]\ncert_file = \"edge.pem\"\nkey_file = \"edge.key\"");
    let proxy = Proxy::start_unready(settings, scratch).await;
    proxy.is_ready().await;
    let calls = kinds().map(|(call, _)| call);
    let results = peers.ask_tls((&authority, None), proxy.edge(), "echo.example", &calls).await;
    for (call, expected) in kinds() {
        assert_eq!(results[call], expected, "{call}");
    }
    for (name, believes, asked) in
        [("another authority", &other, "echo.example"), ("another name", &authority, "other.example")]
    {
        let results = peers.ask_tls((believes, None), proxy.edge(), asked, &["unary"]).await;
        assert_eq!(results["unary"]["code"], "UNAVAILABLE", "{name}: {results}");
    }
}
