//! A control plane that dies in a rollout: nobody's version changes meanwhile, and the next one goes on where it was.

use std::collections::BTreeMap;
use std::time::Duration;

use gilmok_tests::control_plane::ControlPlane;
use gilmok_tests::eventually::eventually_within;
use gilmok_tests::process::Signal;
use gilmok_tests::proxy::{Proxy, ProxySettings};
use gilmok_tests::shop::{Shop, deeds, everybody_on, lenient};
use gilmok_tests::upstream::Upstream;
use serde_json::{Value, json};

/// The services of the mesh, each with a plan that comes to stand in another phase.
fn plans() -> BTreeMap<&'static str, Value> {
    let plan = |steps: Value| json!({ "candidate": "v2", "analysis": "off", "steps": steps });
    let mut frozen = plan(json!([{ "percent": 40, "hold": "1h" }, { "percent": 100 }]));
    frozen["on_fail"] = json!("freeze");
    BTreeMap::from([
        ("waiting", plan(json!([{ "percent": 10 }, { "percent": 100, "min_endpoints": 2 }]))),
        ("holding", plan(json!([{ "percent": 20, "hold": "6s" }, { "percent": 100 }]))),
        ("gated", plan(json!([{ "percent": 30 }, { "gate": true }, { "percent": 100 }]))),
        ("paused", plan(json!([{ "percent": 50, "hold": "2s" }, { "percent": 100 }]))),
        ("frozen", frozen),
    ])
}

async fn rollout(plane: &ControlPlane, service: &str) -> Value {
    plane.json(&format!("/v1/services/{service}/rollout")).await
}

async fn is(plane: &ControlPlane, service: &str, state: &str) {
    eventually_within(Duration::from_secs(60), &format!("{service} to be {state}"), async || {
        let told = rollout(plane, service).await;
        if told["state"] == state { Ok(()) } else { Err(told) }
    })
    .await;
}

async fn register(plane: &ControlPlane, service: &str, id: &str, upstream: &Upstream) {
    let version = &id[..2];
    let body = json!({ "address": upstream.address.to_string(), "version": version, "ttl": "1h" });
    plane.put(&format!("/v1/membership/{service}/{id}"), &body).await;
}

/// Whose each place is, as the proxy decides it.
async fn tables(proxy: &Proxy) -> BTreeMap<&'static str, Value> {
    let mut tables = BTreeMap::new();
    for service in plans().keys() {
        let told = proxy.admin_json(&format!("/explain?service={service}&subject=user-1")).await;
        tables.insert(*service, told["decision"]["split"]["table"].clone());
    }
    tables
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_in_any_phase_changes_no_weight_and_the_plan_goes_on() {
    let (v1, v2) = (Upstream::saying("v1").await, Upstream::saying("v2").await);
    let mut plane = ControlPlane::start().await;
    for service in plans().keys() {
        plane.put(&format!("/v1/services/{service}"), &json!({ "traffic": everybody_on("v1") })).await;
        register(&plane, service, "v1", &v1).await;
        register(&plane, service, "v2", &v2).await;
    }
    let proxy = Proxy::start_with(ProxySettings::of_control_planes(&[plane.address])).await;
    for (service, plan) in plans() {
        // Last, so that its time is not over before the others stand.
        if service != "holding" {
            plane.put(&format!("/v1/services/{service}/rollout"), &plan).await;
        }
    }
    is(&plane, "paused", "holding").await;
    assert_eq!(plane.call("POST", "/v1/services/paused/rollout/pause", None).await.status(), 200);
    is(&plane, "frozen", "holding").await;
    assert_eq!(plane.call("DELETE", "/v1/membership/frozen/v2", None).await.status(), 204);
    for service in ["waiting", "gated", "frozen"] {
        is(&plane, service, service).await;
    }
    let answer = plane.call("PUT", "/v1/services/holding/rollout?wait=20s", Some(&plans()["holding"])).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    is(&plane, "holding", "holding").await;
    // Every proxy runs the newest revision.
    let answer = plane.call("PATCH", "/v1/services/gated?wait=15s", Some(&json!({}))).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let before = tables(&proxy).await;
    assert_eq!(before["waiting"], json!([["v2", 0, 100_000], ["v1", 100_000, 1_000_000]]));
    plane.process.signal(Signal::Kill).await;
    assert_eq!(tables(&proxy).await, before, "while nobody conducts");
    plane = plane.restart_after(Signal::Kill, "").await;
    for service in plans().keys() {
        let told = rollout(&plane, service).await;
        assert_eq!(told["state"], *service, "{told}");
    }
    assert_eq!(tables(&proxy).await, before, "when somebody conducts again");
    // Each goes on in its own way.
    register(&plane, "waiting", "v2-more", &v2).await;
    assert_eq!(plane.call("POST", "/v1/services/gated/rollout/promote", None).await.status(), 200);
    assert_eq!(plane.call("POST", "/v1/services/paused/rollout/resume", None).await.status(), 200);
    for service in ["waiting", "holding", "gated", "paused"] {
        is(&plane, service, "done").await;
    }
    assert_eq!(rollout(&plane, "frozen").await["state"], "frozen");
    assert_eq!(plane.call("POST", "/v1/services/frozen/rollout/abort?wait=20s", None).await.status(), 200);
    for (service, table) in tables(&proxy).await {
        let all = if service == "frozen" { "v1" } else { "v2" };
        assert_eq!(table, json!([[all, 0, 1_000_000]]), "{service}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_dies_again_and_again_brings_a_canary_to_its_end() {
    let mut shop = Shop::start().await;
    let users = shop.users(2_000);
    let steps: Vec<Value> =
        [1, 5, 10, 25, 50, 100].iter().map(|percent| json!({ "percent": percent })).collect();
    shop.begin(&json!({ "candidate": "v2", "analysis": lenient(), "steps": steps })).await;
    let mut kills = 0;
    while shop.rollout().await["state"] != "done" {
        // Somewhere between two ticks, which come every second.
        tokio::time::sleep(Duration::from_millis(900 + 173 * (kills % 7))).await;
        shop = shop.lose_control_plane("").await;
        kills += 1;
        assert!(kills < 30, "{}", shop.rollout().await);
    }
    shop.converges().await;
    assert_eq!(shop.on_v2(0..200).await.len(), 200);
    let heard = users.stop().await;
    heard.expect_no_failure();
    for (user, path) in heard.paths() {
        assert!(path == ["v1"] || path == ["v1", "v2"] || path == ["v2"], "user-{user}: {path:?}");
    }
    let rollout = shop.rollout().await;
    let taken: Vec<f64> = rollout["history"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|event| event["what"] == "step")
        .filter_map(|event| event["percent"].as_f64())
        .collect();
    assert_eq!(taken, [1.0, 5.0, 10.0, 25.0, 50.0, 100.0], "no step twice, and none left out: {rollout}");
    assert_eq!(deeds(&rollout).last(), Some(&"done"));
    assert_eq!(shop.traffic().await, everybody_on("v2"));
    println!("{kills} control planes");
}
