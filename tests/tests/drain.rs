//! Leaving in good order (reference P14): whoever was being served is served, whoever comes is told where not to come again.

use std::time::Duration;

use gilmok_tests::eventually::{eventually, within};
use gilmok_tests::h2_caller::H2Caller;
use gilmok_tests::load::{Ask, Load};
use gilmok_tests::message::NoMessage;
use gilmok_tests::process::Signal;
use gilmok_tests::proxy::{Proxy, ProxySettings, service};
use gilmok_tests::upstream::{Upstream, ok};

const GET: &str = "GET / HTTP/1.1\r\nHost: app\r\n\r\n";

async fn draining(upstream: &Upstream, announce: &str, deadline: &str) -> Proxy {
    let settings = ProxySettings::of_mesh(service("app", "", &[upstream.address]));
    let drain = format!("[drain]\nannounce = \"{announce}\"\ndeadline = \"{deadline}\"");
    Proxy::start_with(settings.table(&drain)).await
}

/// Waits until the process has left the announcement: answers say close.
async fn is_closing(proxy: &Proxy) {
    eventually("answers that say close", async || {
        let answer = proxy.get("app", "/").await;
        if answer.says_close() { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
}

#[tokio::test]
async fn readiness_goes_first_and_serving_goes_on() {
    let upstream = Upstream::saying("fine").await;
    let mut proxy = draining(&upstream, "1s", "5s").await;
    let mut caller = proxy.caller().await;
    proxy.process.signal(Signal::Terminate).await;
    eventually("not ready", async || {
        let status = proxy.admin("/readyz").await.status();
        if status == 503 { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    // Announced: still serving as if nothing were.
    let answer = caller.ask(GET).await;
    assert_eq!((answer.status(), answer.says_close()), (200, false), "{answer:?}");
    is_closing(&proxy).await;
    assert_eq!(proxy.admin("/livez").await.status(), 200);
    drop(caller);
    assert!(proxy.process.ended(Duration::from_secs(15)).await.success());
}

#[tokio::test]
async fn an_idle_connection_may_ask_once_more() {
    let upstream = Upstream::saying("fine").await;
    let mut proxy = draining(&upstream, "10ms", "10s").await;
    let mut idle = proxy.caller().await;
    assert_eq!(idle.ask(GET).await.status(), 200);
    proxy.process.signal(Signal::Terminate).await;
    is_closing(&proxy).await;
    let answer = idle.ask(GET).await;
    assert_eq!((answer.status(), answer.says_close()), (200, true), "{answer:?}");
    assert!(idle.is_closed_within(Duration::from_secs(10)).await);
    assert!(proxy.process.ended(Duration::from_secs(15)).await.success());
}

#[tokio::test]
async fn a_long_answer_is_finished_and_one_beyond_the_deadline_is_cut() {
    let upstream = Upstream::start(|mut conversation| async move {
        while let Some(request) = conversation.request().await {
            let seconds = if request.start.contains("/long") { 2 } else { 60 };
            conversation.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nbe").await;
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            conversation.send("gin").await;
        }
    })
    .await;
    let mut proxy = draining(&upstream, "10ms", "4s").await;
    let mut long = proxy.caller().await;
    long.send("GET /long HTTP/1.1\r\nHost: app\r\n\r\n").await;
    let mut endless = proxy.caller().await;
    endless.send("GET /endless HTTP/1.1\r\nHost: app\r\n\r\n").await;
    eventually("both at the app", async || match upstream.requests().len() {
        2 => Ok(()),
        count => Err(format!("{count}")),
    })
    .await;
    proxy.process.signal(Signal::Terminate).await;
    let answer = long.answer().await;
    assert_eq!((answer.text().as_str(), answer.is_complete), ("begin", true), "{answer:?}");
    let answer = endless.answer().await;
    assert!(!answer.is_complete, "{answer:?}");
    assert!(proxy.process.ended(Duration::from_secs(10)).await.success());
}

#[tokio::test]
async fn an_http_2_caller_gets_goaway_and_its_streams_are_finished() {
    let upstream = Upstream::start(|mut conversation| async move {
        while conversation.request().await.is_some() {
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            conversation.send(ok("slow but sure")).await;
        }
    })
    .await;
    let mut proxy = draining(&upstream, "10ms", "8s").await;
    let caller = H2Caller::connect(proxy.outbound()).await.unwrap();
    let request = http::Request::get("http://app/").body(()).unwrap();
    let (answer, _) = caller.sender().await.unwrap().send_request(request, true).unwrap();
    upstream.only_request().await;
    proxy.process.signal(Signal::Terminate).await;
    let answer = gilmok_tests::h2_caller::read(answer).await.unwrap();
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b"slow but sure"[..]));
    within(Duration::from_secs(10), "the connection's end", caller.ended()).await.unwrap();
    assert!(proxy.process.ended(Duration::from_secs(10)).await.success());
}

#[tokio::test]
async fn half_a_preface_does_not_outlive_the_header_timeout() {
    let upstream = Upstream::saying("fine").await;
    let settings = ProxySettings::of_mesh(service("app", "", &[upstream.address]));
    let proxy = Proxy::start_with(settings.table("[limits]\nheader_timeout = \"300ms\"")).await;
    let mut caller = proxy.caller().await;
    caller.send("PRI * HT").await;
    assert!(caller.is_closed_within(Duration::from_secs(10)).await);
}

#[tokio::test]
async fn a_tunnel_counts_in_the_drain_and_ends_at_its_deadline() {
    let upstream = Upstream::start(|mut conversation| async move {
        drop(conversation.request().await);
        conversation
            .send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
            .await;
        loop {
            let bytes = conversation.bytes().await;
            if bytes.is_empty() || !conversation.send(bytes).await {
                return;
            }
        }
    })
    .await;
    let mut proxy = draining(&upstream, "10ms", "2s").await;
    let mut caller = proxy.caller().await;
    let upgrade = "GET / HTTP/1.1\r\nHost: app\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
    assert_eq!(caller.ask(upgrade).await.status(), 101);
    proxy.process.signal(Signal::Terminate).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    caller.send("still").await;
    assert_eq!(caller.take(5).await, b"still");
    assert!(caller.is_closed_within(Duration::from_secs(10)).await);
    assert!(proxy.process.ended(Duration::from_secs(10)).await.success());
}

#[tokio::test]
async fn nothing_is_left_to_wait_for_means_an_early_end() {
    let upstream = Upstream::saying("fine").await;
    let mut proxy = draining(&upstream, "10ms", "60s").await;
    assert_eq!(proxy.get("app", "/").await.status(), 200);
    proxy.process.signal(Signal::Terminate).await;
    assert!(proxy.process.ended(Duration::from_secs(10)).await.success());
}

#[tokio::test]
async fn a_drain_under_load_fails_no_request_before_the_listener_ends() {
    let upstream = Upstream::saying("fine").await;
    let mut proxy = draining(&upstream, "300ms", "3s").await;
    let http1 = Load::start(proxy.outbound(), 8, &Ask::of("app"));
    let h2 = Load::start_h2(proxy.outbound(), 4, &Ask::of("app"));
    http1.flows(100).await;
    h2.flows(100).await;
    proxy.process.signal(Signal::Terminate).await;
    // Long after the announcement: callers that are told to close come back, and are still served.
    http1.flows(500).await;
    h2.flows(200).await;
    let (http1, h2) = tokio::join!(http1.stop(), h2.stop());
    http1.expect_no_failure();
    h2.expect_no_failure();
    assert!(proxy.process.ended(Duration::from_secs(15)).await.success());
}

#[tokio::test]
async fn new_connections_are_accepted_until_the_end() {
    let upstream = Upstream::saying("fine").await;
    let mut proxy = draining(&upstream, "10ms", "2s").await;
    // Keeps the drain from ending early.
    let mut open = proxy.caller().await;
    assert_eq!(open.ask(GET).await.status(), 200);
    proxy.process.signal(Signal::Terminate).await;
    is_closing(&proxy).await;
    for _ in 0..10 {
        let answer = proxy.get("app", "/").await;
        assert_eq!((answer.status(), answer.says_close()), (200, true));
    }
    assert_eq!(open.try_answer(Duration::from_secs(10)).await.unwrap_err(), NoMessage::Closed);
    assert!(proxy.process.ended(Duration::from_secs(10)).await.success());
}
