//! A mesh of processes in which everything but the caller's own proxy is restarted under load: no request fails.

use std::time::Duration;

use gilmok_tests::control_plane::ControlPlane;
use gilmok_tests::demo_app::DemoApp;
use gilmok_tests::eventually::eventually;
use gilmok_tests::load::{Ask, Load};
use gilmok_tests::process::Signal;
use gilmok_tests::proxy::{Proxy, ProxySettings};
use serde_json::json;

/// One host: an app and the proxy beside it, which registers it.
struct Host {
    app: DemoApp,
    proxy: Proxy,
}

impl Host {
    async fn start(plane: &ControlPlane, name: &str) -> Self {
        let app = DemoApp::start("ads", "v1").await;
        let settings = ProxySettings::of_control_planes(&[plane.address])
            .top(&format!("node = \"{name}\""))
            .app("ads", app.address, "")
            .table("[drain]\nannounce = \"300ms\"\ndeadline = \"5s\"")
            .table("[registration]\nttl = \"2s\"");
        let proxy = Proxy::start_with(settings).await;
        Self { app, proxy }
    }

    /// Leaves in good order: the proxy first, and the app once nobody comes any more.
    async fn leave(mut self) {
        assert!(self.proxy.terminate().await.success(), "{}", self.proxy.process.log());
        self.app.process.signal(Signal::Terminate).await;
        self.app.process.ended(Duration::from_secs(20)).await;
    }
}

/// Waits until so many instances are alive, as the control plane sees it.
async fn alive(plane: &ControlPlane, count: usize) {
    eventually("the members", async || {
        // 404 until somebody has said anything of the service.
        let told = plane.get("/v1/membership/ads").await.text();
        let members: Vec<serde_json::Value> = serde_json::from_str(&told).unwrap_or_default();
        let passing = members.iter().filter(|member| member["status"] == "passing").count();
        if passing == count { Ok(()) } else { Err(told) }
    })
    .await;
}

async fn mesh(hosts: usize) -> (ControlPlane, Vec<Host>, Proxy) {
    let plane = ControlPlane::start().await;
    plane.put("/v1/services/ads", &json!({})).await;
    let mut running = Vec::new();
    for n in 0..hosts {
        running.push(Host::start(&plane, &format!("host-{n}")).await);
    }
    alive(&plane, hosts).await;
    let settings = ProxySettings::of_control_planes(&[plane.address]).top("node = \"caller\"");
    let caller = Proxy::start_with(settings).await;
    eventually("an answer through both proxies", async || {
        let answer = caller.get("ads", "/").await;
        if answer.status() == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    (plane, running, caller)
}

#[tokio::test]
async fn restarting_every_host_and_the_control_plane_fails_no_request() {
    let (mut plane, mut hosts, caller) = mesh(3).await;
    let http1 = Load::start(caller.outbound(), 6, &Ask::of("ads"));
    let h2 = Load::start_h2(caller.outbound(), 3, &Ask::of("ads"));
    http1.flows(100).await;
    for n in 0..3 {
        let old = hosts.remove(0);
        old.leave().await;
        hosts.push(Host::start(&plane, &format!("host-{n}")).await);
        alive(&plane, 3).await;
        http1.flows(100).await;
        h2.flows(50).await;
        // In good order, and as if the machine had lost its power.
        let end = if n == 1 { Signal::Kill } else { Signal::Terminate };
        plane = plane.restart_after(end, "").await;
        http1.flows(100).await;
        h2.flows(50).await;
    }
    let (http1, h2) = tokio::join!(http1.stop(), h2.stop());
    http1.expect_no_failure();
    h2.expect_no_failure();
    for host in hosts {
        host.leave().await;
    }
    alive(&plane, 0).await;
}

#[tokio::test]
async fn an_app_that_dies_behind_its_proxy_is_left_out_without_a_failed_request() {
    let (_plane, mut hosts, caller) = mesh(2).await;
    let load = Load::start(caller.outbound(), 4, &Ask::of("ads"));
    load.flows(100).await;
    // The sidecar lives and says connection_refused; the caller's proxy goes to the other endpoint.
    hosts[0].app.process.kill().await;
    load.flows(300).await;
    let outcome = load.stop().await;
    // Only what was in flight at the app when it died can be lost.
    assert!(outcome.failed() <= 4, "{outcome:?}");
}

#[tokio::test]
async fn a_host_that_loses_its_power_is_forgotten_after_its_ttl() {
    let (plane, mut hosts, caller) = mesh(2).await;
    let mut lost = hosts.remove(0);
    lost.proxy.process.kill().await;
    lost.app.process.kill().await;
    alive(&plane, 1).await;
    let load = Load::start(caller.outbound(), 4, &Ask::of("ads"));
    load.flows(100).await;
    load.stop().await.expect_no_failure();
}

#[tokio::test]
async fn what_the_inbound_proxy_does_is_seen_by_the_app() {
    let (_plane, hosts, caller) = mesh(1).await;
    let answer = caller.get("ads", "/").await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let seen =
        hosts[0].proxy.metric("gilmok_requests_total", &["listener=\"inbound\"", "code=\"2xx\""]).await;
    assert!(seen >= 1.0, "{seen}");
}
