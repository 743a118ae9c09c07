//! What is tried again and what never is (reference P12), and connections that die while they wait (P13).

use std::net::SocketAddr;
use std::time::Duration;

use gilmok_tests::eventually::eventually;
use gilmok_tests::load::{Ask, Load};
use gilmok_tests::process::Signal;
use gilmok_tests::proxy::{Proxy, service};
use gilmok_tests::upstream::{Upstream, ok};

/// An address at which nobody listens.
async fn nobody() -> SocketAddr {
    Upstream::saying("gone").await.address
}

/// Takes a request and resets the connection without an answer.
async fn resetting() -> Upstream {
    Upstream::start(|mut conversation| async move {
        drop(conversation.request().await);
        conversation.reset();
    })
    .await
}

#[tokio::test]
async fn what_was_not_sent_goes_to_another_endpoint_whatever_the_method() {
    let upstream = Upstream::saying("fine").await;
    let mesh = service("app", "load_balancer = \"round_robin\"", &[nobody().await, upstream.address]);
    let proxy = Proxy::start(mesh).await;
    for n in 0..20 {
        let request = format!("POST /{n} HTTP/1.1\r\nHost: app\r\nContent-Length: 5\r\n\r\nhello");
        let answer = proxy.caller().await.ask(request).await;
        assert_eq!(answer.status(), 200, "{answer:?}");
    }
    assert_eq!(upstream.requests().len(), 20);
    assert!(upstream.requests().iter().all(|request| request.text() == "hello"));
    assert!(proxy.metric("gilmok_retries_total", &["service=\"app\""]).await >= 1.0);
}

#[tokio::test]
async fn what_was_sent_is_not_tried_again_without_a_retry_table() {
    let first = resetting().await;
    let second = resetting().await;
    let proxy = Proxy::start(service("app", "", &[first.address, second.address])).await;
    let answer = proxy.get("app", "/").await;
    assert_eq!(answer.status(), 502, "{answer:?}");
    assert!(
        answer.header("proxy-status").unwrap_or_default().contains("connection_terminated"),
        "{answer:?}"
    );
    assert_eq!(first.requests().len() + second.requests().len(), 1);
}

#[tokio::test]
async fn an_upload_of_which_bytes_were_sent_is_not_tried_again() {
    // Takes the head and a bit of the body, then resets.
    let upstream = Upstream::start(|mut conversation| async move {
        drop(conversation.request_head().await);
        conversation.reset();
    })
    .await;
    let other = Upstream::saying("never").await;
    let mesh = service("app", "load_balancer = \"round_robin\"", &[upstream.address, other.address]);
    let proxy = Proxy::start(mesh).await;
    let mut failed = 0;
    for _ in 0..6 {
        let mut caller = proxy.caller().await;
        let body = "a".repeat(100_000);
        caller.send(format!("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 100000\r\n\r\n{body}")).await;
        failed += u32::from(caller.answer().await.status() == 502);
    }
    let sent = upstream.requests().len() + other.requests().len();
    assert_eq!((failed, sent), (u32::try_from(upstream.requests().len()).unwrap(), 6));
    assert!(failed > 0);
}

#[tokio::test]
async fn one_more_try_is_all_there_is() {
    let dead = [nobody().await, nobody().await, nobody().await];
    let proxy = Proxy::start(service("app", "", &dead)).await;
    let answer = proxy.get("app", "/").await;
    assert_eq!(answer.status(), 502, "{answer:?}");
    assert!(answer.header("proxy-status").unwrap_or_default().contains("connection_refused"), "{answer:?}");
    let attempts = proxy.metric("gilmok_upstream_attempts_total", &["service=\"app\""]).await;
    assert!((attempts - 2.0).abs() < f64::EPSILON, "{attempts}");
}

#[tokio::test]
async fn no_endpoint_at_all_is_503_with_a_time_to_come_back() {
    let proxy = Proxy::start("[services.app]\n").await;
    let answer = proxy.get("app", "/").await;
    assert_eq!(answer.status(), 503, "{answer:?}");
    assert!(answer.header("retry-after").is_some());
    assert!(
        answer.header("proxy-status").unwrap_or_default().contains("destination_unavailable"),
        "{answer:?}"
    );
    assert_eq!(answer.header("cache-control"), Some("no-store"));
}

#[tokio::test]
async fn a_storm_of_failures_is_not_doubled_by_retries() {
    let dead: Vec<SocketAddr> = vec![nobody().await, nobody().await];
    let proxy = Proxy::start(service("app", "", &dead)).await;
    let load = Load::start(proxy.outbound(), 40, &Ask::of("app"));
    tokio::time::sleep(Duration::from_secs(2)).await;
    let outcome = load.stop().await;
    let requests = u32::try_from(outcome.failed()).map(f64::from).unwrap();
    let retries = proxy.metric("gilmok_retries_total", &["service=\"app\""]).await;
    let attempts = proxy.metric("gilmok_upstream_attempts_total", &["service=\"app\""]).await;
    assert!(requests > 100.0, "{outcome:?}");
    // 20 % of active requests, at least 3 at a time. What waits for the budget may be counted once more.
    assert!(retries <= requests, "{retries} retries of {requests} requests");
    assert!(attempts <= 2.0 * requests, "{attempts} attempts of {requests} requests");
}

/// Answers, then closes the connection when nothing more comes for so long.
async fn impatient(patience: Duration) -> Upstream {
    Upstream::start(move |mut conversation| async move {
        while conversation.request_within(patience).await.is_some() {
            conversation.send(ok("fine")).await;
        }
    })
    .await
}

#[tokio::test]
async fn connections_that_the_app_has_closed_fail_no_request() {
    let upstream = impatient(Duration::from_millis(50)).await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let mut caller = proxy.caller().await;
    for n in 0..10 {
        let answer = caller.ask("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 2\r\n\r\nhi").await;
        assert_eq!(answer.status(), 200, "request {n}: {answer:?}");
        eventually("the app to close", async || if upstream.open() == 0 { Ok(()) } else { Err("open") })
            .await;
    }
    assert_eq!(upstream.connections(), 10);
}

#[tokio::test]
async fn a_connection_that_the_app_closes_just_as_it_is_used_again_fails_no_get() {
    let upstream = impatient(Duration::from_millis(150)).await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let mut caller = proxy.caller().await;
    for n in 0..40_u64 {
        let answer = caller.ask("GET / HTTP/1.1\r\nHost: app\r\n\r\n").await;
        assert_eq!(answer.status(), 200, "request {n}: {answer:?}");
        tokio::time::sleep(Duration::from_millis(140 + n % 20)).await;
    }
    assert!(upstream.connections() > 1, "the app closed nothing");
    let resets = proxy.metric("gilmok_upstream_attempts_total", &["outcome=\"reset\""]).await;
    assert!(resets.abs() < f64::EPSILON, "{resets} counted against the endpoint");
}

/// Answers the first request of each connection; takes the second one and ends the connection with `last`.
async fn ending_with(last: &'static str) -> Upstream {
    Upstream::start(move |mut conversation| async move {
        drop(conversation.exchange(ok("first")).await);
        drop(conversation.request().await);
        conversation.send(last).await;
    })
    .await
}

#[tokio::test]
async fn what_a_closed_connection_swallowed_is_sent_again_where_nobody_can_notice() {
    for (request, expected) in [
        ("GET /a HTTP/1.1\r\nHost: app\r\nX-A: 1\r\n\r\n", 200),
        ("DELETE /a HTTP/1.1\r\nHost: app\r\nX-A: 1\r\n\r\n", 200),
        ("PUT /a HTTP/1.1\r\nHost: app\r\nX-A: 1\r\nContent-Length: 0\r\n\r\n", 200),
        ("PUT /a HTTP/1.1\r\nHost: app\r\nX-A: 1\r\nContent-Length: 2\r\n\r\nhi", 502),
        ("POST /a HTTP/1.1\r\nHost: app\r\nX-A: 1\r\nContent-Length: 0\r\n\r\n", 502),
    ] {
        let upstream = ending_with("").await;
        // One failure would open it.
        let breaker = "[services.app.circuit_breaker]\nconsecutive_failures = 1\n";
        let proxy = Proxy::start(service("app", "", &[upstream.address]) + breaker).await;
        assert_eq!(proxy.get("app", "/first").await.status(), 200);
        let answer = proxy.caller().await.ask(request).await;
        assert_eq!(answer.status(), expected, "{request}: {answer:?}");
        let seen = upstream.requests();
        assert_eq!(seen.len(), if expected == 200 { 3 } else { 2 }, "{request}: {seen:?}");
        assert!(seen[1..].iter().all(|again| again.header("x-a") == Some("1")), "{request}: {seen:?}");
        if expected == 200 {
            assert_eq!(seen[1].raw, seen[2].raw, "the same once more");
        }
        let stale = proxy.metric("gilmok_upstream_attempts_total", &["outcome=\"stale_connection\""]).await;
        assert!((stale - 1.0).abs() < f64::EPSILON, "{request}: {stale} counted as stale");
        let opened = proxy.metric("gilmok_breaker_transitions_total", &["to=\"open\""]).await;
        assert!(opened.abs() < f64::EPSILON, "{request}: a closed connection is no failure");
    }
}

#[tokio::test]
async fn what_an_endpoint_began_to_answer_is_not_sent_again() {
    let upstream = ending_with("HTTP/1.1 2").await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    assert_eq!(proxy.get("app", "/first").await.status(), 200);
    assert_eq!(proxy.get("app", "/second").await.status(), 502);
    assert_eq!(upstream.requests().len(), 2);
}

#[tokio::test]
async fn connections_are_used_again() {
    let upstream = Upstream::saying("fine").await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    for _ in 0..50 {
        assert_eq!(proxy.get("app", "/").await.status(), 200);
    }
    assert!(upstream.connections() <= 2, "{} connections for requests in turn", upstream.connections());
}

#[tokio::test]
async fn an_app_that_says_close_is_believed() {
    let upstream = Upstream::start(|mut conversation| async move {
        drop(conversation.request().await);
        conversation.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nonce").await;
        // Whoever uses this connection again gets nothing.
        conversation.hang().await;
    })
    .await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let mut caller = proxy.caller().await;
    for _ in 0..10 {
        let answer = caller.ask("GET / HTTP/1.1\r\nHost: app\r\n\r\n").await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, "once"));
        assert!(!answer.says_close(), "what the app says of its connection is not for the caller");
    }
    assert_eq!(upstream.connections(), 10);
}

#[tokio::test]
async fn an_endpoint_that_dies_under_load_fails_only_what_it_was_doing() {
    // The demo app and the registry have their own test; here it is plain TCP that dies.
    let steady = Upstream::saying("fine").await;
    let dying = Upstream::saying("fine").await;
    let proxy = Proxy::start(service("app", "", &[steady.address, dying.address])).await;
    let load = Load::start(proxy.outbound(), 8, &Ask::of("app"));
    load.flows(200).await;
    drop(dying);
    load.flows(500).await;
    let outcome = load.stop().await;
    // At most one request in flight for each caller can have been cut.
    assert!(outcome.failed() <= 8, "{outcome:?}");
    proxy.process.signal(Signal::Terminate).await;
}
