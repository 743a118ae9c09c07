//! The whole mesh on a real Consul: a control plane that mirrors it, proxies that follow, apps that register in it.

use std::time::Duration;

use gilmok_tests::caller::{Caller, get};
use gilmok_tests::consul::Consul;
use gilmok_tests::control_plane::ControlPlane;
use gilmok_tests::eventually::{eventually, soon};
use gilmok_tests::process::Signal;
use gilmok_tests::proxy::{Proxy, ProxySettings};
use gilmok_tests::scratch::Scratch;
use gilmok_tests::upstream::Upstream;
use gilmok_tests::users::{Crowd, Users};
use serde_json::json;
use tokio::time::Instant;

/// A control plane that mirrors this Consul and knows the service `ads`, called in turn.
async fn plane_on(consul: &Consul) -> ControlPlane {
    let tables = format!("[membership.consul]\naddress = \"{}\"\n", consul.origin());
    let plane = ControlPlane::start_with(&tables, Scratch::new()).await;
    plane.put("/v1/services/ads", &json!({ "load_balancer": "round_robin" })).await;
    plane
}

/// Who answers for `ads` over this connection.
async fn who(caller: &mut Caller) -> String {
    let answer = caller.ask(get("ads", "/")).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    answer.text()
}

async fn says(proxy: &Proxy, text: &str) {
    eventually(text, async || {
        let answer = proxy.get("ads", "/").await;
        if answer.status() == 200 && answer.text() == text { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_comes_into_the_balancing_and_goes_out_of_it() {
    /// Calls after which an instance that has not answered is out: four turns of the balancing.
    const ABSENT: usize = 12;
    let consul = Consul::start().await;
    let apps = [Upstream::saying("a").await, Upstream::saying("b").await, Upstream::saying("c").await];
    for (app, id) in apps.iter().zip(["a", "b", "c"]) {
        consul.register("ads", id, app.address.port(), json!({})).await;
    }
    let guest = Upstream::saying("guest").await;
    let plane = plane_on(&consul).await;
    let proxy = Proxy::start_with(ProxySettings::of_control_planes(&[plane.address])).await;
    eventually("the three to be known", async || {
        let endpoints = plane.json("/v1/membership/ads").await.to_string();
        if endpoints.contains("\"c\"") { Ok(()) } else { Err(endpoints) }
    })
    .await;
    eventually("the proxy to call them", async || {
        let answer = proxy.get("ads", "/").await;
        if answer.status() == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    // How long it takes is measured by the bench `consul_changes`; here no call fails meanwhile.
    let mut caller = proxy.caller().await;
    for _ in 0..5 {
        consul.register("ads", "guest", guest.address.port(), json!({})).await;
        soon("a call of who was registered", async { while who(&mut caller).await != "guest" {} }).await;
        consul.deregister("guest").await;
        let left = async {
            let mut absent = 0;
            while absent < ABSENT {
                absent = if who(&mut caller).await == "guest" { 0 } else { absent + 1 };
            }
        };
        soon("the last call of who was deregistered", left).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_registers_in_consul_and_is_called_through_its_sidecar() {
    let consul = Consul::start().await;
    let app = Upstream::saying("from the app").await;
    let registration = format!("[registration]\nconsul = \"{}\"\n", consul.origin());
    let settings = ProxySettings::of_mesh("[services.ads]\n")
        .app("ads", app.address, "version = \"v2\"\n")
        .table(&registration);
    let mut sidecar = Proxy::start_with(settings).await;
    let plane = plane_on(&consul).await;
    let caller = Proxy::start_with(ProxySettings::of_control_planes(&[plane.address])).await;
    says(&caller, "from the app").await;
    let membership = plane.json("/v1/membership/ads").await.to_string();
    for part in [
        "\"inbound\":true",
        "\"version\":\"v2\"",
        "\"passing\"",
        "\"consul\"",
        &sidecar.inbound(0).to_string(),
    ] {
        assert!(membership.contains(part), "{part}: {membership}");
    }
    // It says good-bye itself; the only instance of a service is believed gone after two seconds.
    sidecar.terminate().await;
    eventually("the app to be gone", async || {
        let membership = plane.json("/v1/membership/ads").await.to_string();
        if membership.contains("v2") { Err(membership) } else { Ok(()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consul_that_dies_or_hangs_fails_no_request_and_is_followed_again() {
    let mut consul = Consul::start().await;
    let (app, other) = (Upstream::saying("app").await, Upstream::saying("other").await);
    consul.register("ads", "app", app.address.port(), json!({})).await;
    let plane = plane_on(&consul).await;
    let proxy = Proxy::start_with(ProxySettings::of_control_planes(&[plane.address])).await;
    says(&proxy, "app").await;
    consul.signal(Signal::Stop).await;
    let mut caller = proxy.caller().await;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(2) {
        assert_eq!(who(&mut caller).await, "app");
    }
    consul.stop();
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(3) {
        assert_eq!(who(&mut caller).await, "app");
    }
    assert_eq!(plane.get("/readyz").await.status(), 200, "readiness does not speak of Consul");
    // A control plane that starts without Consul begins with what was known last.
    let tables = format!("[membership.consul]\naddress = \"{}\"\n", consul.origin());
    let plane = plane.restart_after(Signal::Terminate, &tables).await;
    assert!(plane.json("/v1/membership/ads").await.to_string().contains(&app.address.to_string()));
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(1) {
        assert_eq!(who(&mut caller).await, "app");
    }
    consul.start_again().await;
    consul.register("ads", "other", other.address.port(), json!({})).await;
    says(&proxy, "other").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_versions_on_one_node_are_switched_and_the_old_one_leaves_consul() {
    let consul = Consul::start().await;
    let (blue, green) = (Upstream::saying("blue").await, Upstream::saying("green").await);
    consul.register("ads", "blue", blue.address.port(), json!({ "Tags": ["version=blue"] })).await;
    let plane = plane_on(&consul).await;
    let traffic = json!({ "stable": "blue", "weights": { "blue": 100 } });
    plane.put("/v1/services/ads", &json!({ "traffic": traffic })).await;
    let proxy = Proxy::start_with(ProxySettings::of_control_planes(&[plane.address])).await;
    says(&proxy, "blue").await;
    let users = Users::start(proxy.outbound(), &Crowd::of("ads", 20));
    users.flow(100).await;
    let post = async |path: &str, body| {
        plane.call("POST", &format!("/v1/services/ads/{path}"), Some(&body)).await.status()
    };
    assert_eq!(post("switch", json!({ "to": "green" })).await, 422, "nobody has heard of it");
    consul.register("ads", "green", green.address.port(), json!({ "Meta": { "version": "green" } })).await;
    eventually("green to be known", async || {
        let status = post("switch?wait=20s", json!({ "to": "green" })).await;
        if status == 200 { Ok(()) } else { Err(status) }
    })
    .await;
    eventually("blue to be drainable", async || {
        let release = plane.json("/v1/services/ads/traffic").await["release"].clone();
        if release["drain"]["drainable"] == true { Ok(()) } else { Err(release) }
    })
    .await;
    users.flow(100).await;
    // Stopped first and said so afterwards: nobody asks it any more.
    drop(blue);
    users.flow(100).await;
    consul.deregister("blue").await;
    eventually("blue to be gone", async || {
        let membership = plane.json("/v1/membership/ads").await.to_string();
        if membership.contains("blue") { Err(membership) } else { Ok(()) }
    })
    .await;
    assert_eq!(post("rollback", json!({})).await, 409, "there is nobody to go back to");
    users.flow(100).await;
    let heard = users.stop().await;
    heard.expect_no_failure();
    assert!(heard.paths().values().all(|path| path == &["blue", "green"]), "{:?}", heard.paths());
}
