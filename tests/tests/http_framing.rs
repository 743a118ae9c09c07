//! Framing (reference P1): two readers of the same bytes must never see two different requests.

use std::time::Duration;

use gilmok_tests::caller::Caller;
use gilmok_tests::eventually::eventually;
use gilmok_tests::proxy::{Proxy, service};
use gilmok_tests::upstream::Upstream;

async fn app() -> (Upstream, Proxy) {
    let upstream = Upstream::saying("fine").await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    (upstream, proxy)
}

/// A clean request afterwards proves that nothing of the connection before it reached the app late.
async fn only_a_clean_request_arrives(upstream: &Upstream, proxy: &Proxy) {
    assert_eq!(proxy.get("app", "/clean").await.status(), 200);
    let request = upstream.only_request().await;
    assert!(request.start.starts_with("GET /clean "), "{request:?}");
}

#[tokio::test]
async fn length_beside_chunked_is_decoded_as_chunked_alone_and_ends_the_connection() {
    for framing in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "Content-Length: 44\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: nonsense",
    ] {
        let (upstream, proxy) = app().await;
        let mut caller = proxy.caller().await;
        let smuggled = "GET /smuggled HTTP/1.1\r\nHost: app\r\n\r\n";
        let request =
            format!("POST /p HTTP/1.1\r\nHost: app\r\n{framing}\r\n\r\n5\r\nhello\r\n0\r\n\r\n{smuggled}");
        let answer = caller.ask(request).await;
        assert_eq!(answer.status(), 200, "{framing}: {answer:?}");
        assert!(answer.says_close(), "{framing}: {answer:?}");
        caller.expect_end().await;
        let seen = upstream.only_request().await;
        assert_eq!(seen.text(), "hello", "{framing}");
        assert!(seen.all("content-length").is_empty(), "the input's length went on: {seen:?}");
        assert_eq!(seen.all("transfer-encoding"), ["chunked"], "{seen:?}");
    }
}

#[tokio::test]
async fn framing_that_can_be_read_in_two_ways_is_refused() {
    let cases: [(&str, &str); 20] = [
        ("two encodings", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
        ("two encodings, one hidden", "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked"),
        ("gzip first", "Transfer-Encoding: gzip, chunked"),
        ("an empty element", "Transfer-Encoding: chunked,"),
        ("chunked is not last", "Transfer-Encoding: chunked, gzip"),
        ("twice chunked", "Transfer-Encoding: chunked, chunked"),
        ("something like chunked", "Transfer-Encoding: xchunked"),
        ("quoted", "Transfer-Encoding: \"chunked\""),
        ("with a parameter", "Transfer-Encoding: chunked;q=1"),
        ("identity", "Transfer-Encoding: identity"),
        ("a vertical tab", "Transfer-Encoding: \x0bchunked"),
        ("a space before the colon", "Transfer-Encoding : chunked"),
        ("a folded line", "Transfer-Encoding:\r\n chunked"),
        ("two lengths", "Content-Length: 5\r\nContent-Length: 6"),
        ("a sign", "Content-Length: +5"),
        ("a minus", "Content-Length: -5"),
        ("a list", "Content-Length: 5, 5"),
        ("a list of two", "Content-Length: 5, 6"),
        ("hexadecimal", "Content-Length: 0x5"),
        ("more than fits", "Content-Length: 99999999999999999999999"),
    ];
    let (upstream, proxy) = app().await;
    for (what, framing) in cases {
        let mut caller = proxy.caller().await;
        let body = "5\r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: app\r\n\r\n";
        caller.send(format!("POST /p HTTP/1.1\r\nHost: app\r\n{framing}\r\n\r\n{body}")).await;
        let answer = caller.answer().await;
        assert_eq!(answer.status(), 400, "{what}: {answer:?}");
        assert!(caller.is_closed_within(Duration::from_secs(10)).await, "{what}: the connection stays");
        assert!(caller.rest().is_empty(), "{what}: {:?}", String::from_utf8_lossy(caller.rest()));
    }
    only_a_clean_request_arrives(&upstream, &proxy).await;
}

#[tokio::test]
async fn an_encoding_in_http_1_0_is_refused() {
    let (upstream, proxy) = app().await;
    let mut caller = proxy.caller().await;
    let request = "POST /p HTTP/1.0\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    assert_eq!(caller.ask(request).await.status(), 400);
    assert!(caller.is_closed_within(Duration::from_secs(10)).await);
    only_a_clean_request_arrives(&upstream, &proxy).await;
}

#[tokio::test]
async fn white_space_around_chunked_is_no_part_of_it() {
    for value in ["chunked\t", "  chunked", "chunked \t "] {
        let (upstream, proxy) = app().await;
        let body = "5\r\nhello\r\n0\r\n\r\n";
        let request = format!("POST /p HTTP/1.1\r\nHost: app\r\nTransfer-Encoding:{value}\r\n\r\n{body}");
        let answer = proxy.caller().await.ask(request).await;
        assert_eq!(answer.status(), 200, "{value:?}: {answer:?}");
        let seen = upstream.only_request().await;
        assert_eq!(seen.text(), "hello");
        assert_eq!(seen.all("transfer-encoding"), ["chunked"]);
    }
}

#[tokio::test]
async fn heads_that_are_not_http_are_refused_and_reach_nobody() {
    let (upstream, proxy) = app().await;
    for (what, head) in [
        ("a space before the colon", "GET / HTTP/1.1\r\nHost: app\r\nX-A : 1\r\n\r\n"),
        ("a folded line", "GET / HTTP/1.1\r\nHost: app\r\nX-A: 1\r\n b\r\n\r\n"),
        ("a zero byte", "GET / HTTP/1.1\r\nHost: app\r\nX-A: a\0b\r\n\r\n"),
        ("a bare carriage return", "GET / HTTP/1.1\r\nHost: app\r\nX-A: a\rb\r\n\r\n"),
        ("no name", "GET / HTTP/1.1\r\nHost: app\r\n: 1\r\n\r\n"),
        ("a space in the target", "GET /a b HTTP/1.1\r\nHost: app\r\n\r\n"),
        ("another version", "GET / HTTP/3.7\r\nHost: app\r\n\r\n"),
        ("no method", " / HTTP/1.1\r\nHost: app\r\n\r\n"),
        ("TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n"),
    ] {
        let mut caller = proxy.caller().await;
        caller.send(head).await;
        match caller.try_answer(Duration::from_secs(10)).await {
            Ok(answer) => assert_eq!(answer.status(), 400, "{what}: {answer:?}"),
            Err(reason) => assert_eq!(reason, gilmok_tests::message::NoMessage::Closed, "{what}"),
        }
        assert!(caller.is_closed_within(Duration::from_secs(10)).await, "{what}: the connection stays");
    }
    only_a_clean_request_arrives(&upstream, &proxy).await;
    eventually("all of them to be counted", async || {
        let counted = proxy.metric("gilmok_malformed_requests_total", &["listener=\"outbound\""]).await;
        if (counted - 9.0).abs() < f64::EPSILON { Ok(()) } else { Err(counted) }
    })
    .await;
}

#[tokio::test]
async fn chunks_that_lie_end_the_request_and_the_connection() {
    for (what, body) in [
        ("not a number", "zz\r\nhello\r\n0\r\n\r\n"),
        ("a prefix", "0x5\r\nhello\r\n0\r\n\r\n"),
        ("a sign", "+5\r\nhello\r\n0\r\n\r\n"),
        ("more than fits", "fffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
        ("longer than said", "3\r\nhello\r\n0\r\n\r\n"),
        ("no line end", "5\r\nhello0\r\n\r\n"),
    ] {
        let (upstream, proxy) = app().await;
        let mut caller = proxy.caller().await;
        let head = "POST /p HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n";
        caller.send(format!("{head}{body}GET /smuggled HTTP/1.1\r\nHost: app\r\n\r\n")).await;
        if let Ok(answer) = caller.try_answer(Duration::from_secs(10)).await {
            assert!(matches!(answer.status(), 400 | 502), "{what}: {answer:?}");
        }
        assert!(caller.is_closed_within(Duration::from_secs(10)).await, "{what}: the connection stays");
        assert_eq!(proxy.get("app", "/clean").await.status(), 200);
        let requests = upstream.requests();
        let whole: Vec<_> = requests.iter().filter(|request| request.is_complete).collect();
        assert_eq!(whole.len(), 1, "{what}: {requests:?}");
        assert!(whole[0].start.starts_with("GET /clean"), "{what}: {requests:?}");
    }
}

#[tokio::test]
async fn requests_that_are_sent_at_once_are_answered_in_order() {
    let upstream = Upstream::start(|mut conversation| async move {
        while let Some(request) = conversation.request().await {
            let path = request.start.split(' ').nth(1).unwrap_or_default().to_owned();
            conversation.send(gilmok_tests::upstream::ok(&path)).await;
        }
    })
    .await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let mut caller = proxy.caller().await;
    let pipeline: String = (0..20).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: app\r\n\r\n")).collect();
    caller.send(pipeline).await;
    for n in 0..20 {
        let answer = caller.answer().await;
        assert_eq!(answer.text(), format!("/{n}"));
    }
}

#[tokio::test]
async fn http_1_0_callers_are_served_without_chunks() {
    let upstream = Upstream::answering(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n",
    )
    .await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let mut caller = proxy.caller().await;
    let answer = caller.ask("GET / HTTP/1.0\r\nHost: app\r\n\r\n").await;
    assert_eq!(answer.status(), 200);
    assert!(answer.header("transfer-encoding").is_none(), "{answer:?}");
    assert_eq!(answer.text(), "hello!");
    caller.expect_end().await;
}

#[tokio::test]
async fn head_keeps_the_length_and_has_no_body() {
    let upstream = Upstream::start(|mut conversation| async move {
        while conversation.exchange("HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n").await.is_some() {}
    })
    .await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let mut caller: Caller = proxy.caller().await;
    for _ in 0..3 {
        caller.send("HEAD / HTTP/1.1\r\nHost: app\r\n\r\n").await;
        let answer = caller.answer_to_head().await;
        assert_eq!((answer.status(), answer.header("content-length")), (200, Some("1234")));
    }
    assert_eq!(upstream.connections(), 1, "the connection to the app stays usable after HEAD");
}

#[tokio::test]
async fn not_modified_keeps_the_length_and_has_no_body() {
    let upstream =
        Upstream::answering("HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\nETag: \"a\"\r\n\r\n").await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let mut caller = proxy.caller().await;
    for _ in 0..3 {
        let answer = caller.ask("GET / HTTP/1.1\r\nHost: app\r\nIf-None-Match: \"a\"\r\n\r\n").await;
        assert_eq!((answer.status(), answer.header("etag")), (304, Some("\"a\"")));
    }
    assert_eq!(upstream.connections(), 1);
}
