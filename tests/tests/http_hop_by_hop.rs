//! What belongs to one hop only, and what names the destination (reference P4, P5).

use gilmok_tests::h2_caller::H2Caller;
use gilmok_tests::observe;
use gilmok_tests::proxy::{Proxy, service};
use gilmok_tests::upstream::Upstream;

async fn app() -> (Upstream, Proxy) {
    let upstream = Upstream::saying("fine").await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    (upstream, proxy)
}

#[tokio::test]
async fn fields_of_one_hop_reach_no_upstream() {
    let (upstream, proxy) = app().await;
    let request = "GET / HTTP/1.1\r\nHost: app\r\n\
        Connection: keep-alive, X-Secret , x-other\r\nConnection: X-Third\r\n\
        X-Secret: 1\r\nX-Other: 2\r\nX-Third: 3\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n\
        Proxy-Authorization: Basic eA==\r\nProxy-Authenticate: Basic\r\nTE: gzip\r\nUpgrade: x\r\nX-Kept: 4\r\n\r\n";
    assert_eq!(proxy.caller().await.ask(request).await.status(), 200);
    let seen = upstream.only_request().await;
    for name in [
        "x-secret",
        "x-other",
        "x-third",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "proxy-authenticate",
        "te",
        "upgrade",
        "transfer-encoding",
    ] {
        assert_eq!(seen.header(name), None, "{name}: {seen:?}");
    }
    assert_eq!(seen.header("x-kept"), Some("4"));
}

#[tokio::test]
async fn fields_of_one_hop_reach_no_caller() {
    let upstream = Upstream::answering(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive, X-Secret\r\nX-Secret: 1\r\n\
         Keep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nProxy-Connection: x\r\nUpgrade: h2c\r\nX-Kept: 4\r\n\r\nok",
    )
    .await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let answer = proxy.get("app", "/").await;
    for name in ["x-secret", "keep-alive", "proxy-authenticate", "proxy-connection", "upgrade", "connection"]
    {
        assert_eq!(answer.header(name), None, "{name}: {answer:?}");
    }
    assert_eq!(answer.header("x-kept"), Some("4"));
    assert_eq!(answer.text(), "ok");
}

#[tokio::test]
async fn a_caller_cannot_name_our_own_fields_away() {
    let (upstream, proxy) = app().await;
    let request = "GET / HTTP/1.1\r\nHost: app\r\n\
        Connection: Feature-Flags, Gilmok-Shard, Gilmok-Timeout, X-Request-Id, X-Forwarded-For, \
        X-Forwarded-Proto, X-Forwarded-Host, traceparent, Host, Content-Length\r\n\r\n";
    assert_eq!(proxy.caller().await.ask(request).await.status(), 200);
    // The same again from a caller that also sends them.
    let fields = "X-Request-Id: a\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\n\
        X-Forwarded-Host: x\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n";
    let again = format!("{}{fields}", request.trim_end_matches("\r\n").to_owned() + "\r\n");
    assert_eq!(proxy.caller().await.ask(again).await.status(), 200);
    for seen in upstream.requests() {
        for name in [
            "gilmok-timeout",
            "x-request-id",
            "x-forwarded-for",
            "x-forwarded-proto",
            "x-forwarded-host",
            "traceparent",
            "host",
        ] {
            assert!(seen.header(name).is_some(), "{name} is gone: {seen:?}");
        }
    }
}

#[tokio::test]
async fn exactly_one_host_is_needed() {
    let (upstream, proxy) = app().await;
    for (what, head) in [
        ("none", "GET / HTTP/1.1\r\n\r\n"),
        ("two", "GET / HTTP/1.1\r\nHost: app\r\nHost: app\r\n\r\n"),
        ("two different", "GET / HTTP/1.1\r\nHost: app\r\nHost: other\r\n\r\n"),
        ("a path", "GET / HTTP/1.1\r\nHost: app/x\r\n\r\n"),
        ("a space", "GET / HTTP/1.1\r\nHost: app other\r\n\r\n"),
        ("a user", "GET / HTTP/1.1\r\nHost: user@app\r\n\r\n"),
        ("a list", "GET / HTTP/1.1\r\nHost: app, other\r\n\r\n"),
        ("no port number", "GET / HTTP/1.1\r\nHost: app:x\r\n\r\n"),
        ("empty", "GET / HTTP/1.1\r\nHost:\r\n\r\n"),
        ("beside an absolute target, malformed", "GET http://app/ HTTP/1.1\r\nHost: a b\r\n\r\n"),
        ("a user in the target", "GET http://user@app/ HTTP/1.1\r\nHost: app\r\n\r\n"),
    ] {
        let answer = proxy.caller().await.ask(head).await;
        assert_eq!(answer.status(), 400, "{what}: {answer:?}");
    }
    assert!(upstream.requests().is_empty());
}

#[tokio::test]
async fn hosts_are_compared_without_case_port_and_final_dot() {
    let (upstream, proxy) = app().await;
    for host in ["app", "APP", "App:80", "app:8080", "app.", "app.mesh", "app.service.consul", "app.mesh:1"] {
        let answer = proxy.get(host, "/").await;
        assert_eq!(answer.status(), 200, "{host}: {answer:?}");
    }
    assert_eq!(proxy.get("app.example.com", "/").await.status(), 404);
    assert_eq!(upstream.requests().len(), 8);
}

#[tokio::test]
async fn an_absolute_target_wins_over_host_and_rewrites_it() {
    let (upstream, proxy) = app().await;
    let answer = proxy.caller().await.ask("GET http://app/x?y=1 HTTP/1.1\r\nHost: other\r\n\r\n").await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let seen = upstream.only_request().await;
    assert_eq!(seen.start, "GET /x?y=1 HTTP/1.1");
    assert_eq!(seen.all("host"), ["app"]);
}

#[tokio::test]
async fn an_http_2_authority_that_differs_from_host_is_refused() {
    let (upstream, proxy) = app().await;
    let caller = H2Caller::connect(proxy.outbound()).await.unwrap();
    let request = http::Request::get("http://app/").header("host", "other").body(()).unwrap();
    assert_eq!(caller.ask(request, b"", None).await.unwrap().status, 400);
    assert!(upstream.requests().is_empty());
    let request = http::Request::get("http://app/").header("host", "app").body(()).unwrap();
    assert_eq!(caller.ask(request, b"", None).await.unwrap().status, 200);
    assert_eq!(upstream.only_request().await.all("host"), ["app"]);
}

#[tokio::test]
async fn a_scan_of_hosts_makes_no_series() {
    let (_upstream, proxy) = app().await;
    // Both kinds of answers are there before counting.
    assert_eq!(proxy.get("app", "/").await.status(), 200);
    assert_eq!(proxy.get("nobody", "/").await.status(), 404);
    let before: Vec<String> = observe::series(&proxy.metrics().await).into_keys().collect();
    let mut caller = proxy.caller().await;
    for n in 0..10_000 {
        caller.send(format!("GET / HTTP/1.1\r\nHost: scan-{n}.example.com\r\n\r\n")).await;
        let answer = caller.answer().await;
        assert_eq!(answer.status(), 404, "{answer:?}");
        if answer.says_close() {
            caller = proxy.caller().await;
        }
    }
    let after: Vec<String> = observe::series(&proxy.metrics().await).into_keys().collect();
    assert_eq!(before, after);
}

#[tokio::test]
async fn cookies_that_http_2_splits_arrive_as_one_line() {
    let (upstream, proxy) = app().await;
    let caller = H2Caller::connect(proxy.outbound()).await.unwrap();
    let request = http::Request::get("http://app/").header("cookie", "a=1").header("cookie", "b=2");
    assert_eq!(caller.ask(request.body(()).unwrap(), b"", None).await.unwrap().status, 200);
    assert_eq!(upstream.only_request().await.all("cookie"), ["a=1; b=2"]);
}
