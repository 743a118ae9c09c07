//! Changing the mesh file of a running proxy (reference P17): whole, at once, and unnoticed by whoever is being served.

use std::time::Duration;

use gilmok_tests::eventually::eventually;
use gilmok_tests::load::{Ask, Load};
use gilmok_tests::process::Signal;
use gilmok_tests::proxy::{Proxy, service};
use gilmok_tests::upstream::Upstream;

const RELOADS: u32 = 1_000;

#[tokio::test]
async fn a_thousand_reloads_under_load_fail_nothing_and_keep_the_pools() {
    let upstream = Upstream::saying("fine").await;
    let mesh = |n: u32| {
        // The service stays, another one comes and goes, a policy changes back and forth.
        let policy = format!("max_concurrent = {}", 1_000 + n % 2);
        format!("{}[services.other-{}]\n", service("app", &policy, &[upstream.address]), n % 7)
    };
    let proxy = Proxy::start(mesh(0)).await;
    let load = Load::start(proxy.outbound(), 8, &Ask::of("app"));
    load.flows(100).await;
    let connections = upstream.connections();
    for n in 1..=RELOADS {
        proxy.write_mesh(mesh(n));
        proxy.process.signal(Signal::Hangup).await;
    }
    load.flows(100).await;
    let outcome = load.stop().await;
    outcome.expect_no_failure();
    let more = upstream.connections() - connections;
    assert!(more <= 8, "{more} new connections to an endpoint that never changed");
    eventually("the last file in force", async || {
        // Known, but without endpoints.
        let status = proxy.get(&format!("other-{}", RELOADS % 7), "/").await.status();
        if status == 503 { Ok(()) } else { Err(status) }
    })
    .await;
}

#[tokio::test]
async fn a_file_that_changes_is_read_within_a_second_or_so_without_a_signal() {
    let first = Upstream::saying("first").await;
    let second = Upstream::saying("second").await;
    let proxy = Proxy::start(service("app", "", &[first.address])).await;
    assert_eq!(proxy.get("app", "/").await.text(), "first");
    proxy.write_mesh(service("app", "", &[second.address]));
    eventually("the new endpoint", async || match proxy.get("app", "/").await.text() {
        text if text == "second" => Ok(()),
        text => Err(text),
    })
    .await;
    // In place, the way an editor or a config map does it.
    std::fs::write(proxy.scratch.path().join("mesh.toml"), service("app", "", &[first.address])).unwrap();
    eventually("the old endpoint again", async || match proxy.get("app", "/").await.text() {
        text if text == "first" => Ok(()),
        text => Err(text),
    })
    .await;
}

#[tokio::test]
async fn a_broken_document_changes_nothing_and_is_told_with_every_fault() {
    let upstream = Upstream::saying("fine").await;
    let good = service("app", "", &[upstream.address]);
    let proxy = Proxy::start(&good).await;
    let load = Load::start(proxy.outbound(), 4, &Ask::of("app"));
    let broken = format!("{good}\n[services.other]\nmax_concurrent = 0\nunheard_of = 1\n");
    for broken in [broken.as_str(), "", "not = = toml", "[services.app]\nendpoints = 3\n"] {
        if broken.is_empty() {
            // An empty document is sound: it says that there is nothing. Operators mean it rarely, but may.
            continue;
        }
        let before = proxy.metric("gilmok_config_rejected_total", &[]).await;
        proxy.write_mesh(broken);
        proxy.process.signal(Signal::Hangup).await;
        eventually("the refusal in the metrics", async || {
            let count = proxy.metric("gilmok_config_rejected_total", &[]).await;
            if count > before { Ok(()) } else { Err(count) }
        })
        .await;
        assert_eq!(proxy.admin("/readyz").await.status(), 200);
    }
    proxy.write_mesh(&broken);
    eventually("every fault in /config, with its line", async || {
        let told = proxy.admin_json("/config").await.to_string();
        if told.contains("max_concurrent") && told.contains("unheard_of") { Ok(()) } else { Err(told) }
    })
    .await;
    let log = proxy.process.log();
    assert!(log.contains("unheard_of") && log.contains("max_concurrent"), "{log}");
    load.flows(50).await;
    load.stop().await.expect_no_failure();
}

#[tokio::test]
async fn an_upload_under_way_survives_a_reload_that_removes_its_service() {
    let upstream = Upstream::saying("all of it").await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let mut caller = proxy.caller().await;
    caller.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 10\r\n\r\nhello").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    proxy.reload("[services.other]\n").await;
    assert_eq!(proxy.get("app", "/").await.status(), 404);
    let answer = caller.ask("world").await;
    assert_eq!((answer.status(), answer.text().as_str()), (200, "all of it"), "{answer:?}");
    assert_eq!(upstream.only_request().await.text(), "helloworld");
}

#[tokio::test]
async fn connections_to_an_endpoint_that_is_gone_are_closed() {
    let first = Upstream::saying("first").await;
    let second = Upstream::saying("second").await;
    let proxy = Proxy::start(service("app", "", &[first.address])).await;
    assert_eq!(proxy.get("app", "/").await.text(), "first");
    assert_eq!(first.open(), 1);
    proxy.reload(service("app", "", &[second.address])).await;
    eventually("the pool's end", async || if first.open() == 0 { Ok(()) } else { Err("open") }).await;
}

#[tokio::test]
async fn series_of_a_service_that_is_gone_disappear() {
    let upstream = Upstream::saying("fine").await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    assert_eq!(proxy.get("app", "/").await.status(), 200);
    assert!(proxy.metrics().await.contains("service=\"app\""));
    proxy.reload("[services.other]\n").await;
    eventually("the series' end", async || match proxy.metrics().await {
        text if text.contains("service=\"app\"") => Err(text),
        _ => Ok(()),
    })
    .await;
}
