//! `[retry]`: each condition under which what was sent is sent once more, and how long anybody waits.

use std::time::Duration;

use gilmok_tests::eventually::eventually;
use gilmok_tests::proxy::{Proxy, ProxySettings, service};
use gilmok_tests::sick::{Sick, Sickness};
use gilmok_tests::upstream::Upstream;

/// Two endpoints in turn, the first of which is sick.
async fn with(policy: &str, retry: &str, sickness: Sickness) -> (Sick, Sick, Proxy) {
    let (sick, well) = (Sick::start("sick").await, Sick::start("well").await);
    sick.is(sickness);
    let policy = format!("load_balancer = \"round_robin\"\n{policy}");
    let text = service("app", &policy, &[sick.upstream.address, well.upstream.address]);
    let proxy = Proxy::start(format!("{text}[services.app.retry]\n{retry}\n")).await;
    (sick, well, proxy)
}

/// The statuses of ten calls of this method, with this body.
async fn ten(proxy: &Proxy, method: &str, body: &str) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..10 {
        let request = format!(
            "{method} / HTTP/1.1\r\nHost: app\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        statuses.push(proxy.caller().await.ask(request).await.status());
    }
    statuses
}

#[tokio::test]
async fn what_is_listed_and_idempotent_goes_to_another_endpoint() {
    for (sickness, on) in [
        (Sickness::Resets, "\"reset\""),
        (Sickness::status(503), "\"503\""),
        (Sickness::status(502), "\"gateway\""),
        (Sickness::status(500), "\"5xx\""),
    ] {
        let (sick, well, proxy) = with("", &format!("on = [{on}]"), sickness).await;
        for (method, body) in [("GET", ""), ("DELETE", ""), ("PUT", "a short body")] {
            assert_eq!(ten(&proxy, method, body).await, [200; 10], "{method} {on}");
        }
        assert!(sick.asked() >= 10, "every other call went there first: {}", sick.asked());
        assert_eq!(well.asked(), 30, "{on}");
        let bodies = well.upstream.requests().into_iter().filter(|request| request.start.starts_with("PUT"));
        assert!(bodies.into_iter().all(|request| request.text() == "a short body"));
        let retries = proxy.metric("gilmok_retries_total", &["service=\"app\""]).await;
        assert!((retries - sick.asked() as f64).abs() < f64::EPSILON, "{retries}");
    }
}

#[tokio::test]
async fn what_is_not_idempotent_not_listed_or_too_long_is_sent_once() {
    let (sick, well, proxy) = with("", "on = [\"503\"]", Sickness::status(503)).await;
    for (method, body) in [("POST", "order"), ("PATCH", "order"), ("PUT", &"x".repeat(65 << 10))] {
        let statuses = ten(&proxy, method, body).await;
        assert_eq!(statuses.iter().filter(|status| **status == 503).count(), 5, "{method}: {statuses:?}");
    }
    assert_eq!((sick.asked(), well.asked()), (15, 15));
    sick.is(Sickness::status(500));
    assert_eq!(ten(&proxy, "GET", "").await.iter().filter(|status| **status == 500).count(), 5);
    assert!(proxy.metric("gilmok_retries_total", &["service=\"app\""]).await.abs() < f64::EPSILON);
}

#[tokio::test]
async fn a_body_that_there_is_no_room_for_is_sent_once() {
    let (sick, well) = (Sick::start("sick").await, Upstream::saying("well").await);
    sick.is(Sickness::status(503));
    let text = service("app", "load_balancer = \"round_robin\"", &[sick.upstream.address, well.address]);
    let mesh = format!("{text}[services.app.retry]\non = [\"503\"]\n");
    let limits = "[limits]\nbuffered_bytes = \"1KiB\"";
    let proxy = Proxy::start_with(ProxySettings::of_mesh(mesh).table(limits)).await;
    assert_eq!(ten(&proxy, "PUT", &"x".repeat(1024)).await, [200; 10]);
    let statuses = ten(&proxy, "PUT", &"x".repeat(1025)).await;
    assert_eq!(statuses.iter().filter(|status| **status == 503).count(), 5, "{statuses:?}");
}

#[tokio::test]
async fn one_try_does_not_use_up_the_time_of_all() {
    let retry = "on = [\"timeout\"]\nper_try_timeout = \"100ms\"";
    let (sick, _well, proxy) = with("request_timeout = \"1m\"", retry, Sickness::Hangs).await;
    assert_eq!(ten(&proxy, "GET", "").await, [200; 10]);
    assert!(sick.asked() > 0);
    // A POST may have been acted on: its try ends as well, and there is no other.
    let statuses = ten(&proxy, "POST", "order").await;
    assert_eq!(statuses.iter().filter(|status| **status == 504).count(), 5, "{statuses:?}");
}

#[tokio::test]
async fn the_last_answer_is_given_when_all_tries_fail() {
    let app = Sick::start("well").await;
    app.is(Sickness::status(503));
    let text = service("app", "", &[app.upstream.address]);
    let proxy = Proxy::start(format!("{text}[services.app.retry]\nattempts = 2\non = [\"503\"]\n")).await;
    let answer = proxy.get("app", "/").await;
    assert_eq!((answer.status(), answer.text().as_str()), (503, "sick"), "the application's own");
    assert_eq!(app.asked(), 3);
}

#[tokio::test]
async fn an_application_that_wants_to_be_left_alone_is() {
    let later = "HTTP/1.1 503 Later\r\nRetry-After: 30\r\nContent-Length: 0\r\n\r\n";
    let app = Upstream::answering(later).await;
    let text = service("app", "request_timeout = \"2s\"", &[app.address]);
    let proxy = Proxy::start(format!("{text}[services.app.retry]\non = [\"503\"]\n")).await;
    assert_eq!(proxy.get("app", "/").await.status(), 503);
    assert_eq!(app.requests().len(), 1, "there is no time to wait for it");
}

#[tokio::test]
async fn retries_in_flight_are_bounded() {
    let app = Sick::start("well").await;
    app.is(Sickness::status(503));
    let text = service("app", "", &[app.upstream.address]);
    let retry = "[services.app.retry]\non = [\"503\"]\nbudget_percent = 0\nbudget_min = 0\n";
    let proxy = Proxy::start(format!("{text}{retry}")).await;
    for _ in 0..5 {
        assert_eq!(proxy.get("app", "/").await.status(), 503);
    }
    assert_eq!(app.asked(), 5, "no budget, no retry");
}

#[tokio::test]
async fn nothing_is_tried_again_against_an_open_breaker() {
    let app = Sick::start("well").await;
    app.is(Sickness::status(503));
    let text = service("app", "", &[app.upstream.address]);
    let policy = "[services.app.retry]\nattempts = 5\non = [\"503\"]\n\
                  [services.app.circuit_breaker]\nconsecutive_failures = 2\nopen_for = \"1m\"\n";
    let proxy = Proxy::start(format!("{text}{policy}")).await;
    let answer = proxy.get("app", "/").await;
    assert_eq!((answer.status(), answer.text().as_str(), app.asked()), (503, "sick", 2));
}

#[tokio::test]
async fn the_callers_patience_travels_on_and_shrinks() {
    let app = Upstream::saying("well").await;
    let text = service("app", "request_timeout = \"10s\"", &[app.address]);
    // An app beside the proxy, whose callers on this machine are trusted.
    let settings = ProxySettings::of_mesh(text).app("app", app.address, "");
    let proxy = Proxy::start_with(settings).await;
    for (to, field, most) in [
        (proxy.inbound(0), "Gilmok-Timeout: 700", 700),
        (proxy.outbound(), "grpc-timeout: 500m", 500),
        (proxy.outbound(), "grpc-timeout: 90S", 10_000),
        (proxy.outbound(), "Gilmok-Timeout: soon", 10_000),
    ] {
        let before = app.requests().len();
        let request = format!("GET / HTTP/1.1\r\nHost: app\r\n{field}\r\nConnection: close\r\n\r\n");
        assert_eq!(gilmok_tests::caller::ask(to, request).await.status(), 200, "{field}");
        let seen = app.requests()[before].clone();
        let left: u64 = seen.header("gilmok-timeout").and_then(|told| told.parse().ok()).unwrap();
        assert!(left <= most && left + 400 > most, "{field}: {left}");
        if field.starts_with("grpc-timeout: 5") {
            assert_eq!(seen.header("grpc-timeout"), Some(format!("{left}m").as_str()));
        }
    }
}

#[tokio::test]
async fn who_gives_up_early_is_answered_then_and_the_call_is_ended() {
    let app = Sick::start("well").await;
    app.is(Sickness::Hangs);
    let text = service("app", "request_timeout = \"1m\"", &[app.upstream.address]);
    let breaker = "[services.app.circuit_breaker]\nconsecutive_failures = 1\n";
    let proxy = Proxy::start(format!("{text}{breaker}")).await;
    let request = "GET / HTTP/1.1\r\nHost: app\r\ngrpc-timeout: 50m\r\nConnection: close\r\n\r\n";
    let answer = proxy.caller().await.ask(request).await;
    assert_eq!(answer.status(), 504, "{answer:?}");
    eventually("the call to be ended", async || {
        if app.upstream.open() == 0 { Ok(()) } else { Err(app.upstream.open()) }
    })
    .await;
    // Its patience says nothing of the application.
    assert_eq!(proxy.admin_json("/breakers").await["breakers"][0]["state"], "closed");
    app.is(Sickness::Slow(Duration::from_millis(1)));
    assert_eq!(proxy.get("app", "/").await.status(), 200);
}

#[tokio::test]
async fn what_a_sidecar_says_of_its_app_is_tried_again_like_the_apps_own() {
    let said = "HTTP/1.1 502 Bad Gateway\r\nProxy-Status: gilmok; error=connection_terminated\r\nContent-Length: 0\r\n\r\n";
    let (broken, well) = (Upstream::answering(said).await, Upstream::saying("well").await);
    let endpoint = |address| format!("[[services.app.endpoints]]\naddress = \"{address}\"\ninbound = true\n");
    let mesh = format!(
        "[services.app]\nload_balancer = \"round_robin\"\n{}{}[services.app.retry]\non = [\"reset\"]\n",
        endpoint(broken.address),
        endpoint(well.address)
    );
    let proxy = Proxy::start(mesh).await;
    assert_eq!(ten(&proxy, "GET", "").await, [200; 10]);
    let statuses = ten(&proxy, "POST", "order").await;
    assert_eq!(statuses.iter().filter(|status| **status == 502).count(), 5, "{statuses:?}");
}
