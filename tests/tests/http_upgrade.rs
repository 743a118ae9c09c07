//! Upgrade, WebSocket and CONNECT (reference P3): bytes are a tunnel's only after the other side has agreed.

use std::time::Duration;

use gilmok_tests::caller::{self, Caller};
use gilmok_tests::eventually::eventually;
use gilmok_tests::proxy::{Proxy, ProxySettings, service};
use gilmok_tests::upstream::{Upstream, ok};

const UPGRADE: &str = "GET /chat HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n";

/// Agrees to switch, then says everything back in capitals.
async fn echo() -> Upstream {
    Upstream::start(|mut conversation| async move {
        let Some(request) = conversation.request().await else { return };
        if request.header("upgrade") != Some("websocket") {
            conversation.send(ok("plain")).await;
            return;
        }
        conversation.send(SWITCHING).await;
        loop {
            let bytes = conversation.bytes().await;
            if bytes.is_empty() || !conversation.send(bytes.to_ascii_uppercase()).await {
                return;
            }
        }
    })
    .await
}

#[tokio::test]
async fn after_101_bytes_pass_both_ways_as_they_are() {
    let upstream = echo().await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let mut caller = proxy.caller().await;
    let answer = caller.ask(UPGRADE).await;
    assert_eq!(answer.status(), 101, "{answer:?}");
    assert_eq!(answer.header("upgrade"), Some("websocket"));
    assert_eq!(answer.header("sec-websocket-accept"), Some("x"));
    for text in ["hello", "GET / HTTP/1.1\r\n\r\n", "\x00\x01bye"] {
        caller.send(text).await;
        assert_eq!(caller.take(text.len()).await, text.to_ascii_uppercase().as_bytes());
    }
    drop(caller);
    eventually("the tunnel's end at the upstream", async || {
        if upstream.open() == 0 { Ok(()) } else { Err("still open") }
    })
    .await;
}

#[tokio::test]
async fn without_101_nothing_sent_ahead_becomes_a_request() {
    for (what, answer) in [
        ("200", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        ("400", "HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno"),
        ("426", "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n"),
    ] {
        let upstream = Upstream::answering(answer).await;
        let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
        let mut caller = proxy.caller().await;
        let ahead = "GET /smuggled HTTP/1.1\r\nHost: app\r\n\r\n";
        let got = caller.ask(format!("{UPGRADE}{ahead}")).await;
        assert_eq!(got.status().to_string(), what, "{got:?}");
        assert!(caller.is_closed_within(Duration::from_secs(10)).await, "{what}: the connection stays");
        assert!(caller.rest().is_empty(), "{what}: {:?}", String::from_utf8_lossy(caller.rest()));
        assert_eq!(proxy.get("app", "/clean").await.status(), got.status());
        let paths: Vec<String> = upstream.requests().iter().map(|request| request.start.clone()).collect();
        assert_eq!(paths, ["GET /chat HTTP/1.1", "GET /clean HTTP/1.1"], "{what}");
    }
}

#[tokio::test]
async fn without_any_answer_nothing_sent_ahead_becomes_a_request() {
    let upstream = Upstream::start(|mut conversation| async move {
        drop(conversation.request().await);
        conversation.hang().await;
    })
    .await;
    let proxy = Proxy::start(service("app", "request_timeout = \"300ms\"", &[upstream.address])).await;
    let mut caller = proxy.caller().await;
    let answer = caller.ask(format!("{UPGRADE}GET /smuggled HTTP/1.1\r\nHost: app\r\n\r\n")).await;
    assert_eq!(answer.status(), 504, "{answer:?}");
    assert!(caller.is_closed_within(Duration::from_secs(10)).await);
    assert_eq!(upstream.requests().len(), 1);
}

#[tokio::test]
async fn upgrade_that_connection_does_not_name_is_not_passed_on() {
    let upstream = echo().await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let request = "GET / HTTP/1.1\r\nHost: app\r\nUpgrade: websocket\r\n\r\n";
    let answer = proxy.caller().await.ask(request).await;
    assert_eq!((answer.status(), answer.text().as_str()), (200, "plain"));
}

#[tokio::test]
async fn no_upgrade_leads_past_the_proxy() {
    for offered in ["h2c", "H2C", "websocket, h2c", "HTTP/2.0", "TLS/1.0", "websocket\r\nUpgrade: h2c"] {
        let upstream = Upstream::saying("plain").await;
        let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
        let request = format!(
            "GET / HTTP/1.1\r\nHost: app\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: {offered}\r\n\
             HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n"
        );
        let answer = proxy.caller().await.ask(request).await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, "plain"), "{offered}");
        let seen = upstream.only_request().await;
        assert!(
            seen.all("upgrade").is_empty() && seen.all("http2-settings").is_empty(),
            "{offered}: {seen:?}"
        );
    }
}

#[tokio::test]
async fn a_101_that_nobody_asked_for_is_an_error() {
    let upstream = Upstream::answering(SWITCHING).await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let answer = proxy.get("app", "/").await;
    assert_eq!(answer.status(), 502, "{answer:?}");
}

#[tokio::test]
async fn a_tunnel_in_which_nothing_moves_ends() {
    let upstream = echo().await;
    let proxy = Proxy::start(service("app", "idle_timeout = \"500ms\"", &[upstream.address])).await;
    let mut caller = proxy.caller().await;
    assert_eq!(caller.ask(UPGRADE).await.status(), 101);
    caller.send("x").await;
    assert_eq!(caller.take(1).await, b"X");
    assert!(caller.is_closed_within(Duration::from_secs(10)).await);
}

#[tokio::test]
async fn connect_is_refused_by_default() {
    let upstream = Upstream::saying("never").await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let request = format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", upstream.address);
    let answer = proxy.caller().await.ask(request).await;
    assert!(matches!(answer.status(), 400..500), "{answer:?}");
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn connect_makes_a_tunnel_where_unknown_hosts_pass() {
    let upstream = Upstream::saying("through").await;
    let settings = ProxySettings::of_mesh("[services.app]\n").table("[outbound]\nunknown_hosts = \"pass\"");
    let proxy = Proxy::start_with(settings).await;
    let mut caller: Caller = proxy.caller().await;
    caller.send(format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", upstream.address)).await;
    // A 2xx to CONNECT has no body, and must not say that it has one.
    let answer = caller.answer_to_head().await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    assert!(answer.header("content-length").is_none() && answer.header("transfer-encoding").is_none());
    let answer = caller.ask("GET /inside HTTP/1.1\r\nHost: whatever\r\n\r\n").await;
    assert_eq!(answer.text(), "through");
    assert!(upstream.only_request().await.header("x-request-id").is_none(), "a tunnel adds nothing");
}

#[tokio::test]
async fn link_local_addresses_are_never_passed_to() {
    let settings = ProxySettings::of_mesh("[services.app]\n").table("[outbound]\nunknown_hosts = \"pass\"");
    let proxy = Proxy::start_with(settings).await;
    let answer = proxy.caller().await.ask("GET / HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n").await;
    assert_eq!(answer.status(), 403, "{answer:?}");
    let request = "CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: 169.254.169.254:80\r\n\r\n";
    assert_eq!(proxy.caller().await.ask(request).await.status(), 403);
}

#[tokio::test]
async fn unknown_hosts_pass_as_they_are_for_loopback_callers() {
    let upstream = Upstream::saying("outside").await;
    let settings = ProxySettings::of_mesh("[services.app]\n").table("[outbound]\nunknown_hosts = \"pass\"");
    let proxy = Proxy::start_with(settings).await;
    let answer = proxy.get(&upstream.address.to_string(), "/x").await;
    assert_eq!((answer.status(), answer.text().as_str()), (200, "outside"), "{answer:?}");
    assert_eq!(upstream.only_request().await.header("host"), Some(upstream.address.to_string().as_str()));
}

#[tokio::test]
async fn what_would_come_back_to_the_proxy_is_not_passed_on() {
    let settings = ProxySettings::of_mesh("[services.app]\n").table("[outbound]\nunknown_hosts = \"pass\"");
    let proxy = Proxy::start_with(settings).await;
    let own = proxy.outbound().to_string();
    for request in [caller::get(&own, "/"), format!("CONNECT {own} HTTP/1.1\r\nHost: {own}\r\n\r\n")] {
        let answer = proxy.caller().await.ask(request).await;
        assert_eq!(answer.status(), 403, "{answer:?}");
    }
}
