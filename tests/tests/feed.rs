//! From control planes to proxies by real processes: what is followed, what is refused, and what is served without anyone.

use std::net::SocketAddr;
use std::time::Duration;

use gilmok_tests::control_plane::ControlPlane;
use gilmok_tests::eventually::{eventually, eventually_within, within};
use gilmok_tests::load::{Ask, Load};
use gilmok_tests::observe;
use gilmok_tests::process::Signal;
use gilmok_tests::proxy::{Proxy, ProxySettings};
use gilmok_tests::scratch::Scratch;
use gilmok_tests::upstream::Upstream;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

fn app_at(address: SocketAddr) -> Value {
    json!({"endpoints": [{"address": address.to_string()}]})
}

async fn says(proxy: &Proxy, text: &str) {
    eventually(text, async || {
        let answer = proxy.get("app", "/").await;
        if answer.status() == 200 && answer.text() == text { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
}

async fn plane_with(app: &Upstream) -> ControlPlane {
    let plane = ControlPlane::start().await;
    plane.put("/v1/services/app", &app_at(app.address)).await;
    plane
}

#[tokio::test]
async fn a_change_reaches_the_proxies_and_is_told_back() {
    let (first, second) = (Upstream::saying("first").await, Upstream::saying("second").await);
    let plane = plane_with(&first).await;
    let mut proxies = Vec::new();
    for n in 0..3 {
        let settings =
            ProxySettings::of_control_planes(&[plane.address]).top(&format!("node = \"proxy-{n}\""));
        proxies.push(Proxy::start_with(settings).await);
    }
    for proxy in &proxies {
        says(proxy, "first").await;
    }
    let body = app_at(second.address);
    let answer = plane.call("PUT", "/v1/services/app?wait=20s", Some(&body)).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let told: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(told["converged"], true, "{told}");
    for proxy in &proxies {
        // Told back only once it is so: no waiting here.
        assert_eq!(proxy.get("app", "/").await.text(), "second");
        assert_eq!(proxy.admin_json("/config").await["revision"], told["revision"]);
    }
}

#[tokio::test]
async fn a_proxy_serves_on_while_the_control_plane_is_dead_and_follows_the_next() {
    let (first, second) = (Upstream::saying("first").await, Upstream::saying("second").await);
    let plane = plane_with(&first).await;
    let proxy = Proxy::start_with(ProxySettings::of_control_planes(&[plane.address])).await;
    says(&proxy, "first").await;
    let load = Load::start(proxy.outbound(), 4, &Ask::of("app"));
    load.flows(50).await;
    let plane = plane.restart_after(Signal::Kill, "").await;
    load.flows(50).await;
    plane.put("/v1/services/app", &app_at(second.address)).await;
    says(&proxy, "second").await;
    load.flows(50).await;
    load.stop().await.expect_no_failure();
}

#[tokio::test]
async fn a_proxy_that_starts_alone_serves_what_it_knew_last() {
    let app = Upstream::saying("fine").await;
    let mut plane = plane_with(&app).await;
    let settings = ProxySettings::of_control_planes(&[plane.address]);
    let proxy = Proxy::start_with(settings.clone()).await;
    says(&proxy, "fine").await;
    let state = proxy.scratch.path().join("state");
    eventually("the state on disk", async || {
        let files = std::fs::read_dir(&state).into_iter().flatten().flatten();
        let names: Vec<String> = files.map(|file| file.file_name().to_string_lossy().into_owned()).collect();
        if names.iter().any(|name| name.ends_with(".last-known-good")) {
            Ok(())
        } else {
            Err(names.join(" "))
        }
    })
    .await;
    plane.process.kill().await;
    let proxy = proxy.restart_after(Signal::Kill, settings).await;
    proxy.is_ready().await;
    says(&proxy, "fine").await;
    assert_eq!(proxy.admin_json("/config").await["last_known_good"], true);
}

#[tokio::test]
async fn a_proxy_that_knows_nothing_is_alive_but_not_ready() {
    // Nobody listens there any more.
    let nowhere = Upstream::saying("gone").await.address;
    let proxy = Proxy::start_unready(ProxySettings::of_control_planes(&[nowhere]), Scratch::new()).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(proxy.admin("/livez").await.status(), 200);
    assert_eq!(proxy.admin("/readyz").await.status(), 503);
    assert_ne!(proxy.get("app", "/").await.status(), 200);
}

#[tokio::test]
async fn a_damaged_memory_is_left_aside() {
    let app = Upstream::saying("fine").await;
    let mut plane = plane_with(&app).await;
    let settings = ProxySettings::of_control_planes(&[plane.address]);
    let proxy = Proxy::start_with(settings.clone()).await;
    says(&proxy, "fine").await;
    let file = proxy.scratch.path().join("state/test.last-known-good");
    eventually("the state on disk", async || if file.exists() { Ok(()) } else { Err("none") }).await;
    plane.process.kill().await;
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("127.0.0.1", "127.0.0.9", 1)).unwrap();
    let proxy = proxy.restart_after(Signal::Kill, settings).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(proxy.admin("/readyz").await.status(), 503, "{}", proxy.process.log());
    assert!(proxy.process.log().contains("last known good"), "{}", proxy.process.log());
}

#[tokio::test]
async fn a_foreign_store_is_refused_until_an_operator_accepts_it() {
    let (first, second) = (Upstream::saying("first").await, Upstream::saying("second").await);
    let plane = plane_with(&first).await;
    let proxy = Proxy::start_with(ProxySettings::of_control_planes(&[plane.address])).await;
    says(&proxy, "first").await;
    // The machine is set up anew at the same address: another store, with more revisions.
    let address = plane.address.to_string();
    let mut plane = plane;
    plane.process.kill().await;
    let plane = ControlPlane::start_at(&address, "", Scratch::new()).await;
    for n in 0..5 {
        plane.put("/v1/services/app", &json!({"max_concurrent": n + 1})).await;
    }
    plane.put("/v1/services/app", &app_at(second.address)).await;
    let foreign = eventually("the foreign store in /config", async || {
        let config = proxy.admin_json("/config").await;
        let foreign = config["foreign_store"].as_str().map(str::to_owned);
        foreign.ok_or_else(|| config.to_string())
    })
    .await;
    assert_eq!(proxy.get("app", "/").await.text(), "first");
    assert!(proxy.process.log().contains("accept-store"), "{}", proxy.process.log());
    let body = json!({"store": foreign}).to_string();
    let request = format!(
        "POST /accept-store HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = gilmok_tests::caller::ask(proxy.admin_address(), request).await;
    assert!(matches!(answer.status(), 200..300), "{answer:?}");
    says(&proxy, "second").await;
}

#[tokio::test]
async fn a_store_that_went_back_is_not_followed_until_it_is_ahead_again() {
    let (first, second) = (Upstream::saying("first").await, Upstream::saying("second").await);
    let plane = plane_with(&first).await;
    let data = plane.scratch.path().join("data");
    let proxy = Proxy::start_with(ProxySettings::of_control_planes(&[plane.address])).await;
    says(&proxy, "first").await;
    // A copy of the store as it was, put back later as if from an old backup.
    let mut plane = plane;
    plane.process.signal(Signal::Terminate).await;
    plane.process.ended(Duration::from_secs(20)).await;
    let old = plane.scratch.path().join("old");
    copy(&data, &old);
    let address = plane.address.to_string();
    let ControlPlane { scratch, .. } = plane;
    let mut plane = ControlPlane::start_at(&address, "", scratch).await;
    for n in 0..4 {
        plane.put("/v1/services/other", &json!({"max_concurrent": n + 1})).await;
    }
    plane.put("/v1/services/app", &app_at(second.address)).await;
    says(&proxy, "second").await;
    plane.process.kill().await;
    std::fs::remove_dir_all(&data).unwrap();
    copy(&old, &data);
    let ControlPlane { scratch, .. } = plane;
    let plane = ControlPlane::start_at(&address, "", scratch).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(proxy.get("app", "/").await.text(), "second", "the proxy went back");
    // What is written now overtakes what the proxy knows, and is followed.
    for n in 10..20 {
        plane.put("/v1/services/other", &json!({"max_concurrent": n})).await;
    }
    says(&proxy, "first").await;
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).expect("a folder can be made");
    for entry in std::fs::read_dir(from).expect("a folder").flatten() {
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("a file can be copied");
    }
}

#[tokio::test]
async fn a_store_that_was_never_written_takes_nothing_away() {
    let app = Upstream::saying("fine").await;
    let plane = ControlPlane::start().await;
    let proxy =
        Proxy::start_unready(ProxySettings::of_control_planes(&[plane.address]), Scratch::new()).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(proxy.admin("/readyz").await.status(), 503);
    plane.put("/v1/services/app", &app_at(app.address)).await;
    proxy.is_ready().await;
    says(&proxy, "fine").await;
}

#[tokio::test]
async fn a_stuck_subscriber_delays_nobody_and_costs_no_memory() {
    let app = Upstream::saying("fine").await;
    let plane = plane_with(&app).await;
    let proxy = Proxy::start_with(ProxySettings::of_control_planes(&[plane.address])).await;
    says(&proxy, "fine").await;
    let mut stuck = Vec::new();
    for n in 0..20 {
        let mut io = tokio::net::TcpStream::connect(plane.address).await.unwrap();
        let request =
            format!("GET /v1/feed?node=stuck-{n}&instance=x&wire=1 HTTP/1.1\r\nHost: localhost\r\n\r\n");
        io.write_all(request.as_bytes()).await.unwrap();
        stuck.push(io);
    }
    let before = observe::resident_bytes(plane.process.pid());
    for n in 0..100 {
        let hosts: Vec<String> =
            (0..100).map(|host| format!("{host}.{}.{}.example.com", n % 10, "a".repeat(60))).collect();
        let body = json!({"hosts": hosts, "max_concurrent": n + 1});
        let answer = plane.call("PUT", &format!("/v1/services/big-{}?wait=20s", n % 10), Some(&body)).await;
        assert!(matches!(answer.status(), 200 | 201), "{answer:?}");
    }
    let grown = observe::resident_bytes(plane.process.pid()).saturating_sub(before);
    assert!(grown < 64 << 20, "{} MiB more for twenty that do not read", grown >> 20);
    drop(stuck);
}

#[tokio::test]
async fn a_stopped_proxy_does_not_hold_up_a_change_for_the_others() {
    let (first, second) = (Upstream::saying("first").await, Upstream::saying("second").await);
    let plane = plane_with(&first).await;
    let settings =
        |name: &str| ProxySettings::of_control_planes(&[plane.address]).top(&format!("node = \"{name}\""));
    let stopped = Proxy::start_with(settings("stopped")).await;
    let lively = Proxy::start_with(settings("lively")).await;
    stopped.process.signal(Signal::Stop).await;
    plane.put("/v1/services/app", &app_at(second.address)).await;
    within(Duration::from_secs(5), "the change at the others", says(&lively, "second")).await;
    let answer = plane.call("PATCH", "/v1/services/app?wait=1s", Some(&json!({"max_concurrent": 7}))).await;
    assert_eq!(answer.status(), 202, "{answer:?}");
    let told: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(told["lagging"], json!(["stopped"]), "{told}");
    stopped.process.signal(Signal::Continue).await;
    says(&stopped, "second").await;
}

#[tokio::test]
async fn garbage_from_a_control_plane_changes_nothing() {
    let app = Upstream::saying("fine").await;
    let good = plane_with(&app).await;
    let settings = ProxySettings::of_control_planes(&[good.address]);
    let proxy = Proxy::start_with(settings.clone()).await;
    says(&proxy, "fine").await;
    let store = proxy.admin_json("/config").await["store"].as_str().unwrap().to_owned();
    let file = proxy.scratch.path().join("state/test.last-known-good");
    eventually("the state on disk", async || if file.exists() { Ok(()) } else { Err("none") }).await;
    let hello = json!({"line": "hello", "store": store, "revision": 9, "hash": "x", "wire": 1}).to_string();
    let document = |text: Value| {
        let hash = gilmok_config::hash::content_hash(text.to_string().as_bytes());
        json!({"line": "document", "revision": 9, "hash": hash, "document": text}).to_string()
    };
    let cases: Vec<(&'static str, String)> = vec![
        ("not JSON", "what is this\n".to_owned()),
        ("half a line", format!("{hello}\n{{\"line\":\"docu")),
        ("no hello", format!("{}\n", document(json!({})))),
        ("a wire level of the future", format!("{}\n", hello.replace("\"wire\":1", "\"wire\":99"))),
        (
            "something required and unknown",
            format!(
                "{hello}\n{{\"line\":\"heartbeat\",\"revision\":9}}\n{}\n",
                document(json!({})).replacen('{', "{\"required\":[\"tcp\"],", 1)
            ),
        ),
        (
            "a faulty document",
            format!(
                "{hello}\n{}\n{{\"line\":\"synced\",\"revision\":9}}\n",
                document(json!({"services": {"app": {"max_concurrent": 0}}}))
            ),
        ),
        (
            "a document that was damaged",
            format!(
                "{hello}\n{}\n{{\"line\":\"synced\",\"revision\":9}}\n",
                document(json!({"services": {"app": {}}})).replacen("app", "apq", 1)
            ),
        ),
        ("an endless line", format!("{hello}\n{}", "x".repeat(1 << 20))),
        ("not HTTP", String::new()),
    ];
    drop(good);
    let mut checks = tokio::task::JoinSet::new();
    for (what, lines) in cases {
        checks.spawn(lie(what, lines, file.clone()));
    }
    checks.join_all().await;
}

/// Starts a proxy that knows something from a control plane that tells it this.
async fn lie(what: &'static str, lines: String, memory: std::path::PathBuf) {
    let liar = Upstream::start(move |mut conversation| {
        let lines = lines.clone();
        async move {
            let Some(request) = conversation.request().await else { return };
            if request.start.starts_with("GET /v1/feed") && !lines.is_empty() {
                let head = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n";
                conversation.send(format!("{head}{:x}\r\n{lines}\r\n", lines.len())).await;
            } else {
                conversation.send("SSH-2.0-x\r\n").await;
            }
            conversation.hang().await;
        }
    })
    .await;
    let lied = ProxySettings::of_control_planes(&[liar.address]);
    let scratch = Scratch::new();
    std::fs::create_dir_all(scratch.path().join("state")).expect("a folder can be made");
    std::fs::copy(memory, scratch.path().join("state/test.last-known-good")).expect("a file can be copied");
    let proxy = Proxy::start_unready(lied, scratch).await;
    proxy.is_ready().await;
    eventually("the lie", async || if liar.requests().is_empty() { Err("not asked") } else { Ok(()) }).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(proxy.get("app", "/").await.text(), "fine", "{what}: {}", proxy.process.log());
}

#[tokio::test]
async fn several_control_planes_may_be_named_and_one_is_enough() {
    let app = Upstream::saying("fine").await;
    let nobody = Upstream::saying("gone").await.address;
    let plane = plane_with(&app).await;
    let proxy = Proxy::start_with(ProxySettings::of_control_planes(&[nobody, plane.address])).await;
    eventually_within(Duration::from_secs(10), "an answer", async || {
        let answer = proxy.get("app", "/").await;
        if answer.status() == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
}
