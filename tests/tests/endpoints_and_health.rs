//! Who is called: every kind of address, weights, zones and priorities, and what health checks take out and bring back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gilmok_tests::eventually::eventually;
use gilmok_tests::load::{Ask, Load};
use gilmok_tests::proxy::{Proxy, ProxySettings};
use gilmok_tests::scratch::Scratch;
use gilmok_tests::upstream::{Upstream, ok};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// One endpoint of the service `app`, with more keys.
fn endpoint(address: impl std::fmt::Display, more: &str) -> String {
    format!("[[services.app.endpoints]]\naddress = \"{address}\"\n{more}\n")
}

async fn counts(proxy: &Proxy, requests: usize, upstreams: &[&Upstream]) -> Vec<usize> {
    let before: Vec<usize> = upstreams.iter().map(|upstream| upstream.requests().len()).collect();
    let mut caller = proxy.caller().await;
    for _ in 0..requests {
        assert_eq!(caller.ask("GET / HTTP/1.1\r\nHost: app\r\n\r\n").await.status(), 200);
    }
    upstreams.iter().zip(before).map(|(upstream, before)| upstream.requests().len() - before).collect()
}

#[tokio::test]
async fn an_endpoint_may_be_an_address_a_name_or_a_unix_socket() {
    let upstream = Upstream::saying("tcp").await;
    let scratch = Scratch::new();
    let path = scratch.path().join("app.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let serving = tokio::spawn(async move {
        while let Ok((mut io, _)) = listener.accept().await {
            let mut head = vec![0; 4096];
            drop(io.read(&mut head).await);
            drop(io.write_all(&ok("unix")).await);
        }
    });
    let v6 = Upstream::start_at("[::1]:0".parse().unwrap(), |mut conversation| async move {
        while conversation.exchange(ok("v6")).await.is_some() {}
    })
    .await;
    let name = format!("localhost:{}", upstream.address.port());
    let unix = format!("unix://{}", path.display());
    for (address, expected) in
        [(upstream.address.to_string(), "tcp"), (v6.address.to_string(), "v6"), (name, "tcp"), (unix, "unix")]
    {
        let proxy = Proxy::start(endpoint(&address, "")).await;
        // A name is resolved a moment after the start.
        eventually(&address, async || {
            let answer = proxy.get("app", "/").await;
            if answer.text() == expected { Ok(()) } else { Err(format!("{answer:?}")) }
        })
        .await;
    }
    serving.abort();
}

#[tokio::test]
async fn load_follows_the_weights() {
    let (heavy, light, none) =
        (Upstream::saying("a").await, Upstream::saying("b").await, Upstream::saying("c").await);
    for balancer in ["least_request", "round_robin", "random", "peak_ewma"] {
        let mesh = format!(
            "[services.app]\nload_balancer = \"{balancer}\"\n{}{}{}",
            endpoint(heavy.address, "weight = 3"),
            endpoint(light.address, "weight = 1"),
            endpoint(none.address, "weight = 0")
        );
        let proxy = Proxy::start(mesh).await;
        let shares = counts(&proxy, 400, &[&heavy, &light, &none]).await;
        assert_eq!(shares[2], 0, "{balancer}: {shares:?}");
        assert!(shares[1] > 0, "{balancer}: {shares:?}");
        // Latency differs by chance on a busy machine, and that is what peak_ewma goes by.
        assert!(balancer == "peak_ewma" || (220..380).contains(&shares[0]), "{balancer}: {shares:?}");
    }
}

#[tokio::test]
async fn the_own_zone_is_preferred() {
    let (near, far) = (Upstream::saying("near").await, Upstream::saying("far").await);
    let mesh = format!("{}{}", endpoint(near.address, "zone = \"a\""), endpoint(far.address, "zone = \"b\""));
    let proxy = Proxy::start_with(ProxySettings::of_mesh(mesh).top("zone = \"a\"")).await;
    assert_eq!(counts(&proxy, 50, &[&near, &far]).await, [50, 0]);
}

/// An app whose health can be switched, with the number of the checks that it has seen.
async fn patient() -> (Upstream, Arc<AtomicBool>) {
    let healthy = Arc::new(AtomicBool::new(true));
    let shared = Arc::clone(&healthy);
    let upstream = Upstream::start(move |mut conversation| {
        let healthy = Arc::clone(&shared);
        async move {
            while let Some(request) = conversation.request().await {
                let is_check = request.start.contains("/healthz");
                if is_check && !healthy.load(Ordering::SeqCst) {
                    conversation.send("HTTP/1.1 500 Ill\r\nContent-Length: 0\r\n\r\n").await;
                } else {
                    conversation.send(ok("fine")).await;
                }
            }
        }
    })
    .await;
    (upstream, healthy)
}

const CHECK: &str = "[services.app.health_check]\npath = \"/healthz\"\ninterval = \"50ms\"\n";

fn asked(upstream: &Upstream) -> usize {
    upstream.requests().iter().filter(|request| request.start.starts_with("GET / ")).count()
}

#[tokio::test]
async fn a_check_takes_an_endpoint_out_and_brings_it_back() {
    let ((sick, health), (well, _)) = (patient().await, patient().await);
    let mesh = format!("{CHECK}{}{}", endpoint(sick.address, ""), endpoint(well.address, ""));
    let proxy = Proxy::start(mesh).await;
    let load = Load::start(proxy.outbound(), 4, &Ask::of("app"));
    load.flows(200).await;
    assert!(asked(&sick) > 0 && asked(&well) > 0);
    health.store(false, Ordering::SeqCst);
    eventually("the sick one out", async || {
        let before = asked(&sick);
        load.flows(50).await;
        if asked(&sick) == before { Ok(()) } else { Err("still asked") }
    })
    .await;
    let healthy = proxy.metric("gilmok_endpoint_healthy", &[&format!("{}", sick.address)]).await;
    assert!(healthy.abs() < f64::EPSILON, "{}", proxy.metrics().await);
    health.store(true, Ordering::SeqCst);
    eventually("the sick one back", async || {
        let before = asked(&sick);
        load.flows(50).await;
        if asked(&sick) > before { Ok(()) } else { Err("not asked") }
    })
    .await;
    load.stop().await.expect_no_failure();
}

#[tokio::test]
async fn a_check_that_never_passed_takes_nobody_out() {
    let upstream = Upstream::start(|mut conversation| async move {
        while let Some(request) = conversation.request().await {
            let is_check = request.start.contains("/healthz");
            conversation
                .send(if is_check {
                    "HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n".into()
                } else {
                    ok("fine")
                })
                .await;
        }
    })
    .await;
    let proxy = Proxy::start(format!("{CHECK}{}", endpoint(upstream.address, ""))).await;
    eventually("several checks", async || {
        let checks = upstream.requests().len();
        if checks > 6 { Ok(()) } else { Err(checks) }
    })
    .await;
    assert_eq!(proxy.get("app", "/").await.text(), "fine");
    assert!(proxy.metric("gilmok_health_fail_open", &["service=\"app\""]).await > 0.5);
}

#[tokio::test]
async fn the_last_resort_is_used_while_the_first_choice_is_ill() {
    let ((first, health), (last, _)) = (patient().await, patient().await);
    let mesh = format!("{CHECK}{}{}", endpoint(first.address, ""), endpoint(last.address, "priority = 1"));
    let proxy = Proxy::start(mesh).await;
    let load = Load::start(proxy.outbound(), 2, &Ask::of("app"));
    load.flows(100).await;
    assert_eq!(asked(&last), 0);
    health.store(false, Ordering::SeqCst);
    eventually("the last resort", async || if asked(&last) > 20 { Ok(()) } else { Err(asked(&last)) }).await;
    health.store(true, Ordering::SeqCst);
    eventually("the first choice again", async || {
        let before = asked(&last);
        load.flows(50).await;
        if asked(&last) == before { Ok(()) } else { Err("the last resort is still asked") }
    })
    .await;
    load.stop().await.expect_no_failure();
}

#[tokio::test]
async fn a_tcp_check_sees_that_nobody_listens() {
    let well = Upstream::saying("fine").await;
    let dying = Upstream::saying("fine").await;
    let check = "[services.app.health_check]\ntcp = true\ninterval = \"50ms\"\n";
    let mesh = format!("{check}{}{}", endpoint(well.address, ""), endpoint(dying.address, ""));
    let proxy = Proxy::start(mesh).await;
    let address: SocketAddr = dying.address;
    let healthy = async || proxy.metric("gilmok_endpoint_healthy", &[&address.to_string()]).await;
    assert_eq!(proxy.get("app", "/").await.status(), 200);
    eventually("both well", async || if healthy().await > 0.5 { Ok(()) } else { Err("ill") }).await;
    drop(dying);
    eventually("one ill", async || if healthy().await < 0.5 { Ok(()) } else { Err("well") }).await;
    for _ in 0..20 {
        assert_eq!(proxy.get("app", "/").await.status(), 200);
    }
}
