//! Operators force breakers: through REST and the command line, seen everywhere, over restarts, for a time, for a version.

use std::net::SocketAddr;
use std::process::Stdio;

use gilmok_tests::control_plane::ControlPlane;
use gilmok_tests::eventually::{eventually, soon};
use gilmok_tests::process::{Signal, program};
use gilmok_tests::proxy::{Proxy, ProxySettings, service};
use gilmok_tests::scratch::Scratch;
use gilmok_tests::upstream::Upstream;
use serde_json::{Value as Json, json};
use tokio::process::Command;

/// Runs `gilmok`; what it said, when it said yes.
async fn gilmok(plane: &ControlPlane, proxy: &Proxy, args: &[&str]) -> Result<String, String> {
    let mut command = Command::new(program());
    command
        .args(args)
        .env("GILMOK_CLI_CONTROL_PLANE", format!("http://{}", plane.address))
        .env("GILMOK_CLI_PROXY", format!("http://{}", proxy.admin_address()))
        .env("USER", "kim")
        .stdin(Stdio::null());
    let output = soon("the command to end", command.output()).await.expect("it can be started");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// A service with two versions, without a breaker of its own, and with an answer for when it is refused.
fn ads(v1: SocketAddr, v2: SocketAddr) -> Json {
    json!({
        "load_balancer": "round_robin",
        "endpoints": [
            { "address": v1.to_string(), "version": "v1" },
            { "address": v2.to_string(), "version": "v2" },
        ],
        "fallback": [{ "respond": { "body": "house" } }],
    })
}

/// What four calls are answered, sorted.
async fn answers(proxy: &Proxy) -> Vec<String> {
    let mut said = Vec::new();
    for _ in 0..4 {
        let answer = proxy.get("ads", "/").await;
        assert_eq!(answer.status(), 200, "{answer:?}");
        said.push(answer.text());
    }
    said.sort();
    said
}

async fn answered(proxy: &Proxy, expected: [&str; 4]) {
    eventually(&format!("{expected:?}"), async || {
        let said = answers(proxy).await;
        if said == expected { Ok(()) } else { Err(format!("{said:?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_drill_is_seen_everywhere_and_survives_restarts() {
    let (v1, v2) = (Upstream::saying("v1").await, Upstream::saying("v2").await);
    let plane = ControlPlane::start().await;
    plane.put("/v1/services/ads", &ads(v1.address, v2.address)).await;
    let settings = || ProxySettings::of_control_planes(&[plane.address]);
    let proxy = Proxy::start_with(settings()).await;
    answered(&proxy, ["v1", "v1", "v2", "v2"]).await;
    assert!(gilmok(&plane, &proxy, &["breakers"]).await.unwrap().contains("no breakers there"));

    let force = ["breakers", "force", "ads", "open", "--for", "10m", "--version", "v2"];
    let said = gilmok(&plane, &proxy, &force).await.unwrap();
    assert_eq!(said, "the breaker of ads is open: revision 2\n");
    // The versions are one pool: what is refused by one is asked of the other.
    answered(&proxy, ["v1"; 4]).await;

    let told = proxy.admin_json("/breakers?service=ads").await;
    let breakers = told["breakers"].as_array().unwrap();
    let of = |version: &str| breakers.iter().find(|one| one["version"] == version).unwrap();
    assert_eq!((&of("v1")["state"], &of("v1")["forced"]), (&json!("closed"), &Json::Null), "{told}");
    assert_eq!((&of("v2")["state"], &of("v2")["forced"]["by"]), (&json!("open"), &json!("kim")), "{told}");
    assert!(of("v2")["forced"]["until"].as_str().is_some_and(|until| until.ends_with('Z')), "{told}");
    let state = |version| {
        let version = format!("version=\"{version}\"");
        let proxy = &proxy;
        async move { proxy.metric("gilmok_breaker_state", &["service=\"ads\"", &version]).await }
    };
    assert!(state("v1").await.abs() < f64::EPSILON && (state("v2").await - 2.0).abs() < f64::EPSILON);
    let said = gilmok(&plane, &proxy, &["breakers"]).await.unwrap();
    assert!(said.contains("kim, ") && said.contains("left"), "{said}");
    let said = gilmok(&plane, &proxy, &["services", "show", "ads"]).await.unwrap();
    assert!(said.contains("open, version v2, by kim, until 2"), "{said}");
    assert!(said.contains("a prepared 200 of 5 bytes"), "{said}");

    // The control plane forgets nothing, and neither does a proxy that finds none.
    let plane = plane.restart_after(Signal::Kill, "").await;
    let forced = plane.json("/v1/services/ads").await["forced_breakers"].clone();
    assert_eq!((&forced[0]["by"], &forced[0]["version"]), (&json!("kim"), &json!("v2")));
    eventually("what is in force to be on disk", async || {
        let state = std::fs::read_dir(proxy.scratch.path().join("state")).map(|folder| folder.count());
        if state.is_ok_and(|files| files > 0) { Ok(()) } else { Err("not yet") }
    })
    .await;
    let ControlPlane { process, .. } = plane;
    process.signal(Signal::Kill).await;
    let settings = ProxySettings::of_control_planes(&[proxy.outbound()]);
    let proxy = proxy.restart_after(Signal::Terminate, settings).await;
    proxy.is_ready().await;
    answered(&proxy, ["v1"; 4]).await;
}

#[tokio::test]
async fn what_is_forced_for_a_time_ends_by_itself() {
    let (v1, v2) = (Upstream::saying("v1").await, Upstream::saying("v2").await);
    let plane = ControlPlane::start().await;
    plane.put("/v1/services/ads", &ads(v1.address, v2.address)).await;
    let proxy = Proxy::start_with(ProxySettings::of_control_planes(&[plane.address])).await;
    gilmok(&plane, &proxy, &["breakers", "force", "ads", "open", "--for", "3s"]).await.unwrap();
    answered(&proxy, ["house"; 4]).await;
    answered(&proxy, ["v1", "v1", "v2", "v2"]).await;
    assert_eq!(proxy.admin_json("/breakers").await["breakers"][0]["forced"], Json::Null);
    // What is over goes with the next word, and `auto` takes the rest.
    gilmok(&plane, &proxy, &["breakers", "force", "ads", "open", "--shard", "7"]).await.unwrap();
    let forced = plane.json("/v1/services/ads").await["forced_breakers"].clone();
    assert_eq!(forced, json!([{ "state": "open", "by": "kim", "shard": "7" }]));
    gilmok(&plane, &proxy, &["breakers", "force", "ads", "auto", "--shard", "7"]).await.unwrap();
    assert!(plane.json("/v1/services/ads").await["forced_breakers"].is_null());
}

#[tokio::test]
async fn what_cannot_be_forced_is_refused_with_what_to_do() {
    let plane = ControlPlane::start().await;
    plane.put("/v1/services/ads", &json!({ "circuit_breaker": { "scope": "service" } })).await;
    let proxy = Proxy::start_with(ProxySettings::of_control_planes(&[plane.address])).await;
    for (args, what) in [
        (&["nobody", "open"][..], "nobody"),
        (&["ads", "open", "--version", "v2"], "circuit_breaker.scope = \"target\""),
        (&["ads", "open", "--shard", "a b"], "forced_breakers[0].shard"),
        (&["ads", "open", "--for", "0s"], "for: "),
        (&["ads", "open", "--for", "1000d"], "for: "),
        (&["ads", "ajar"], "invalid value"),
    ] {
        let said = gilmok(&plane, &proxy, &[&["breakers", "force"], args].concat()).await.unwrap_err();
        assert!(said.contains(what), "{args:?}: {said}");
    }
    assert_eq!(plane.json("/v1/status").await["revision"], 1, "nothing of it was written");
}

#[tokio::test]
async fn the_body_of_an_answer_can_stand_in_a_file() {
    let scratch = Scratch::new();
    scratch.write("house.txt", "house");
    let text = service("ads", "", &["127.0.0.1:1".parse().unwrap()])
        + "[[services.ads.fallback]]\nrespond = { body_file = \"house.txt\" }\n";
    let proxy = Proxy::start_unready(ProxySettings::of_mesh(&text), scratch).await;
    proxy.is_ready().await;
    assert_eq!(proxy.get("ads", "/").await.text(), "house");
    proxy.scratch.write("house.txt", "another house");
    answered(&proxy, ["another house"; 4]).await;
    std::fs::remove_file(proxy.scratch.path().join("house.txt")).unwrap();
    eventually("the missing file to be told", async || {
        let refused = proxy.admin_json("/config").await["refused"].to_string();
        if refused.contains("body_file") { Ok(()) } else { Err(refused) }
    })
    .await;
    assert_eq!(proxy.get("ads", "/").await.text(), "another house", "what was in force stays");

    let plane = ControlPlane::start().await;
    let mesh = proxy.scratch.path().join("mesh.toml").display().to_string();
    let said = gilmok(&plane, &proxy, &["apply", &mesh]).await.unwrap_err();
    assert!(said.contains(": line 6: services.ads.fallback[0].respond.body_file: "), "{said}");
    proxy.scratch.write("house.txt", "house");
    gilmok(&plane, &proxy, &["apply", &mesh]).await.unwrap();
    let stored = plane.json("/v1/services/ads").await;
    assert_eq!(stored["fallback"][0]["respond"], json!({ "body_base64": "aG91c2U=" }));
    let body = json!({ "fallback": [{ "respond": { "body_file": "/etc/hostname" } }] });
    assert_eq!(plane.call("PUT", "/v1/services/b", Some(&body)).await.status(), 422);
}
