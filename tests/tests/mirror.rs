//! Copies of requests: another version sees them, nobody sees its answers, and whatever it does nobody notices.

use std::net::SocketAddr;
use std::time::Duration;

use gilmok_tests::caller::{Caller, ask};
use gilmok_tests::eventually::eventually;
use gilmok_tests::load::{Ask, Load};
use gilmok_tests::message::Message;
use gilmok_tests::proxy::{Proxy, ProxySettings};
use gilmok_tests::upstream::{Conversation, Upstream};

/// Copies in flight on one worker, as the proxy has it.
const COPIES_MAX: usize = 64;

/// All requests for v1, and so many percent of copies to v2.
fn mesh(v1: SocketAddr, v2: SocketAddr, percent: f64, more: &str) -> String {
    format!(
        "[services.shop]\n{more}\n[services.shop.traffic]\nstable = \"v1\"\nweights = {{ v1 = 100, v2 = 0 }}\n\
         mirror = {{ version = \"v2\", percent = {percent} }}\n\
         [[services.shop.endpoints]]\naddress = \"{v1}\"\nversion = \"v1\"\n\
         [[services.shop.endpoints]]\naddress = \"{v2}\"\nversion = \"v2\"\n"
    )
}

async fn get(to: SocketAddr, lines: &str) -> Message {
    ask(to, format!("GET /a?b HTTP/1.1\r\nHost: shop\r\n{lines}\r\n")).await
}

async fn outcomes(proxy: &Proxy, outcome: &str) -> f64 {
    let outcome = format!("outcome=\"{outcome}\"");
    let labels = ["service=\"shop\"", "version=\"v2\"", outcome.as_str()];
    proxy.metric("gilmok_mirrored_requests_total", &labels).await
}

/// Waits until so many copies have had this outcome.
async fn counted(proxy: &Proxy, outcome: &str, expected: usize) {
    eventually(outcome, async || {
        let count = outcomes(proxy, outcome).await;
        if count == expected as f64 { Ok(()) } else { Err(format!("{count}\n{}", proxy.metrics().await)) }
    })
    .await;
}

/// Takes requests and never answers.
async fn hangs(mut conversation: Conversation) {
    drop(conversation.request().await);
    conversation.hang().await;
}

#[tokio::test]
async fn a_copy_is_the_same_request_with_a_mark_and_its_answer_goes_nowhere() {
    let (v1, v2) = (Upstream::saying("v1").await, Upstream::saying("v2, longer").await);
    let proxy = Proxy::start(mesh(v1.address, v2.address, 100.0, "")).await;
    let answer = get(proxy.outbound(), "X-User-Id: 7\r\nX-Request-Id: one\r\nGilmok-Mirror: 1\r\n").await;
    assert_eq!(answer.text(), "v1");
    let (real, copy) = (v1.only_request().await, v2.only_request().await);
    assert_eq!((copy.start.as_str(), copy.header("gilmok-mirror")), ("GET /a?b HTTP/1.1", Some("1")));
    assert_eq!(real.header("gilmok-mirror"), None, "the app does not decide what is a copy");
    for name in ["host", "x-user-id", "x-request-id", "traceparent", "x-forwarded-for", "gilmok-timeout"] {
        assert!(real.header(name).is_some(), "{name}");
        assert_eq!(real.header(name), copy.header(name), "{name}");
    }
    assert_eq!((real.header("gilmok-version"), copy.header("gilmok-version")), (Some("v1"), Some("v2")));
    counted(&proxy, "same", 1).await;
    // What the copies came to is told apart from what callers' requests did.
    let requests = proxy.metric("gilmok_requests_total", &["service=\"shop\"", "version=\"v2\""]).await;
    let attempts = proxy.metric("gilmok_upstream_attempts_total", &["service=\"shop\""]).await;
    assert_eq!((requests, attempts), (0.0, 1.0));
    for of in ["of=\"copy\"", "of=\"real\""] {
        assert_eq!(proxy.metric("gilmok_mirrored_duration_seconds_count", &[of]).await, 1.0, "{of}");
    }
}

#[tokio::test]
async fn copies_have_connections_of_their_own_and_keep_them() {
    // Both versions are one application.
    let app = Upstream::saying("fine").await;
    let proxy = Proxy::start(mesh(app.address, app.address, 100.0, "")).await;
    let mut caller = proxy.caller().await;
    for n in 1..=20 {
        assert_eq!(caller.ask("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.status(), 200);
        counted(&proxy, "same", n).await;
    }
    assert_eq!((app.requests().len(), app.connections()), (40, 2));
}

#[tokio::test]
async fn another_status_is_told_and_seen_by_nobody() {
    let v1 = Upstream::saying("v1").await;
    let v2 = Upstream::answering("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\nno").await;
    let guards = "circuit_breaker = { scope = \"service\", min_requests = 1, failure_percent = 1 }\n\
        outlier_detection = { consecutive_failures = 1 }";
    let proxy = Proxy::start(mesh(v1.address, v2.address, 100.0, guards)).await;
    for n in 1..=10 {
        assert_eq!(get(proxy.outbound(), "").await.text(), "v1");
        counted(&proxy, "different", n).await;
    }
    assert_eq!(proxy.metric("gilmok_breaker_state", &["service=\"shop\""]).await, 0.0);
    assert_eq!(proxy.metric("gilmok_ejections_total", &["service=\"shop\""]).await, 0.0);
}

#[tokio::test]
async fn a_dead_version_is_counted_and_hurts_nobody() {
    let v1 = Upstream::saying("v1").await;
    let gone = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        listener.local_addr().expect("an address")
    };
    let guards = "circuit_breaker = { scope = \"service\", min_requests = 1, failure_percent = 1 }";
    let proxy = Proxy::start(mesh(v1.address, gone, 100.0, guards)).await;
    for _ in 0..10 {
        assert_eq!(get(proxy.outbound(), "").await.text(), "v1");
    }
    counted(&proxy, "failed", 10).await;
    assert_eq!(proxy.metric("gilmok_breaker_state", &["service=\"shop\""]).await, 0.0);
    // Nobody at all: the version has no endpoint.
    proxy.reload(mesh(v1.address, gone, 100.0, "").replace("version = \"v2\"\n", "version = \"v3\"\n")).await;
    assert_eq!(get(proxy.outbound(), "").await.text(), "v1");
    counted(&proxy, "failed", 11).await;
}

#[tokio::test]
async fn a_version_that_hangs_takes_a_bounded_number_of_copies_and_slows_nothing() {
    let (v1, v2) = (Upstream::saying("v1").await, Upstream::start(hangs).await);
    let proxy = Proxy::start(mesh(v1.address, v2.address, 100.0, "request_timeout = \"5s\"")).await;
    let mut caller = proxy.caller().await;
    let began = std::time::Instant::now();
    for _ in 0..COPIES_MAX + 30 {
        let answer = caller.ask("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, "v1"));
    }
    assert!(began.elapsed() < Duration::from_secs(5), "nobody waited for a copy: {:?}", began.elapsed());
    counted(&proxy, "dropped", 30).await;
    eventually("the copies at v2", async || match v2.requests().len() {
        COPIES_MAX => Ok(()),
        count => Err(count),
    })
    .await;
    counted(&proxy, "failed", COPIES_MAX).await;
    // There is room again.
    assert_eq!(caller.ask("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.status(), 200);
    eventually("another copy", async || if v2.requests().len() > COPIES_MAX { Ok(()) } else { Err("none") })
        .await;
}

#[tokio::test]
async fn only_safe_requests_without_a_body_are_copied() {
    let (v1, v2) = (Upstream::saying("v1").await, Upstream::saying("v2").await);
    let proxy = Proxy::start(mesh(v1.address, v2.address, 100.0, "")).await;
    let to = proxy.outbound();
    let post = "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(ask(to, post).await.text(), "v1");
    let with_body = "GET / HTTP/1.1\r\nHost: shop\r\nContent-Length: 2\r\n\r\nhi";
    assert_eq!(ask(to, with_body).await.text(), "v1");
    let upgrade = "GET / HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(ask(to, upgrade).await.text(), "v1");
    counted(&proxy, "skipped", 2).await;
    assert_eq!(v1.requests().len(), 3);
    assert!(v2.requests().is_empty(), "{:?}", v2.requests());
    let posts = mesh(v1.address, v2.address, 100.0, "")
        .replace("percent = 100 }", "percent = 100, methods = [\"POST\"] }");
    proxy.reload(posts).await;
    assert_eq!(ask(to, post).await.text(), "v1");
    assert_eq!(get(to, "").await.text(), "v1");
    assert_eq!(v2.only_request().await.start, "POST / HTTP/1.1");
    counted(&proxy, "same", 1).await;
}

#[tokio::test]
async fn a_share_is_copied_and_no_more() {
    let (v1, v2) = (Upstream::saying("v1").await, Upstream::saying("v2").await);
    let mesh = mesh(v1.address, v2.address, 20.0, "");
    let proxy = Proxy::start_with(ProxySettings::of_mesh(mesh).table("[workers]\ncount = 2")).await;
    let load = Load::start(proxy.outbound(), 8, &Ask { rest: Duration::ZERO, ..Ask::of("shop") });
    load.flows(5_000).await;
    let outcome = load.stop().await;
    outcome.expect_no_failure();
    // Seven standard deviations of a binomial: never by chance.
    let (all, share) = (outcome.succeeded as f64, 0.2);
    let tolerance = 7.0 * (all * share * (1.0 - share)).sqrt();
    let chosen = eventually("every copy counted", async || {
        let (same, dropped) = (outcomes(&proxy, "same").await, outcomes(&proxy, "dropped").await);
        if same == v2.requests().len() as f64 { Ok(same + dropped) } else { Err(format!("{same}")) }
    })
    .await;
    assert!((chosen - all * share).abs() < tolerance, "{chosen} of {all}");
}

#[tokio::test]
async fn a_sidecar_keeps_the_mark_of_those_it_trusts() {
    let app = Upstream::saying("app").await;
    for (trusted, expected) in [("127.0.0.0/8", Some("1")), ("10.0.0.0/8", None)] {
        let settings = ProxySettings::of_mesh("[services.shop]\n")
            .listen(&format!("trusted = [\"{trusted}\"]"))
            .app("shop", app.address, "");
        let proxy = Proxy::start_with(settings).await;
        let mut caller = Caller::connect(proxy.inbound(0)).await;
        let answer = caller.ask("GET / HTTP/1.1\r\nHost: shop\r\nGilmok-Mirror: 1\r\n\r\n").await;
        assert_eq!(answer.text(), "app");
        let sent = app.requests().pop().expect("a request");
        assert_eq!(sent.header("gilmok-mirror"), expected, "{trusted}");
    }
}
