//! gRPC's own client and server (the package grpcio) through both sidecars: every kind of call, its status, its trailers.

use std::net::SocketAddr;
use std::path::PathBuf;

use gilmok_tests::eventually::soon;
use gilmok_tests::process::Process;
use gilmok_tests::proxy::{Proxy, ProxySettings};
use gilmok_tests::python;
use gilmok_tests::scratch::Scratch;
use serde_json::{Value, json};
use tokio::process::Command;

/// Both peers; see there.
const PEERS: &str = include_str!("grpc_peers.py");

/// A gRPC server, the sidecar beside it, and the sidecar of those who call it as `echo`.
struct Scene {
    python: PathBuf,
    script: PathBuf,
    server: Process,
    _inbound: Proxy,
    outbound: Proxy,
    _scratch: Scratch,
}

impl Scene {
    async fn start() -> Self {
        let python = python::with("grpcio");
        let scratch = Scratch::new();
        let script = scratch.write("grpc_peers.py", PEERS);
        let ports = scratch.path().join("ports.json");
        let args = [script.as_os_str(), "server".as_ref(), ports.as_os_str()];
        let mut server = Process::start(&python, args, &scratch.path().join("server.log"));
        let listening = server.ports(&ports).await;
        let address: SocketAddr =
            listening["listen"].as_str().expect("an address").parse().expect("an address");
        let service = "[services.echo]\nprotocol = \"h2\"\n";
        let inbound = Proxy::start_with(ProxySettings::of_mesh(service).app("echo", address, "")).await;
        let sidecar = inbound.inbound(0);
        let endpoint = format!("[[services.echo.endpoints]]\naddress = \"{sidecar}\"\ninbound = true\n");
        let outbound = Proxy::start(format!("{service}{endpoint}")).await;
        Self { python, script, server, _inbound: inbound, outbound, _scratch: scratch }
    }

    /// What becomes of these calls, made one after the other on one channel.
    async fn ask(&self, authority: &str, calls: &[&str]) -> Value {
        let mut client = Command::new(&self.python);
        client.arg(&self.script).arg("client").arg(self.outbound.outbound().to_string()).arg(authority);
        let output = client.args(calls).kill_on_drop(true).output();
        let output = soon("the end of the client", output).await.expect("Python runs");
        let said = String::from_utf8_lossy(&output.stdout);
        match serde_json::from_str(&said) {
            Ok(results) => results,
            Err(error) => panic!("{error}: {said}\n{}", String::from_utf8_lossy(&output.stderr)),
        }
    }
}

#[tokio::test]
async fn every_kind_of_call_goes_through_with_its_status_and_trailers() {
    let scene = Scene::start().await;
    let calls = ["unary", "large", "server_stream", "client_stream", "both", "fail", "fail_later", "unknown"];
    let results = scene.ask("echo", &calls).await;
    let ok = |answer: Value, trailers: Value| json!({ "answer": answer, "code": "OK", "details": "", "trailers": trailers });
    for (call, expected) in [
        ("unary", ok(json!("hello"), json!({ "x-length": "5", "x-raw-bin": "00ff" }))),
        ("large", ok(json!(3 << 20), json!({ "x-length": "3145728", "x-raw-bin": "00ff" }))),
        ("server_stream", ok(json!(499_500), json!({ "x-sent": "1000" }))),
        ("client_stream", ok(json!("0,1,2,3,4"), json!({}))),
        ("both", ok(json!(["A", "B", "C"]), json!({ "x-sent": "3" }))),
        (
            "fail",
            json!({ "answer": null, "code": "NOT_FOUND", "details": "no such ad: café", "trailers": { "x-why": "gone" } }),
        ),
        (
            "fail_later",
            json!({ "answer": ["first"], "code": "RESOURCE_EXHAUSTED", "details": "enough", "trailers": {} }),
        ),
    ] {
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
    scene.server.kill().await;
    let results = scene.ask("echo", &["unary"]).await;
    assert_eq!(results["unary"]["code"], "UNAVAILABLE", "{results}");
}
