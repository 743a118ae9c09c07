//! Fallbacks: what is answered when a service brings nothing, and whose answer is never given to whom.

use std::net::SocketAddr;
use std::time::Duration;

use gilmok_tests::eventually::eventually;
use gilmok_tests::h2_caller::H2Caller;
use gilmok_tests::message::Message;
use gilmok_tests::proxy::{Proxy, service};
use gilmok_tests::sick::{Sick, Sickness};
use gilmok_tests::upstream::Upstream;

/// A service whose breaker is forced open, with this chain.
fn opened(app: &Sick, chain: &str) -> String {
    let text = service("app", "", &[app.upstream.address]);
    format!("{text}[[services.app.forced_breakers]]\nstate = \"open\"\n{chain}")
}

fn status_of(answer: &Message) -> &str {
    answer.header("proxy-status").unwrap_or_default()
}

const HOUSE: &str = "[[services.app.fallback]]\n\
    respond = { status = 203, headers = { content-type = \"image/svg+xml\", x-a = \"1\" }, body = \"<svg/>\" }\n";

#[tokio::test]
async fn a_prepared_answer_says_what_it_is_and_needs_nothing_of_the_body() {
    let app = Sick::start("app").await;
    let proxy = Proxy::start(opened(&app, &format!("{HOUSE}methods = [\"GET\", \"HEAD\", \"PUT\"]\n"))).await;
    let answer = proxy.get("app", "/").await;
    assert_eq!((answer.status(), answer.text().as_str()), (203, "<svg/>"));
    assert_eq!((answer.header("content-type"), answer.header("x-a")), (Some("image/svg+xml"), Some("1")));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(
        status_of(&answer),
        "gilmok; error=destination_unavailable; details=\"breaker=open fallback=respond\""
    );
    let mut caller = proxy.caller().await;
    caller.send("HEAD / HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n").await;
    let head = caller.answer_to_head().await;
    assert_eq!((head.status(), head.header("content-length")), (203, Some("6")));
    // Not a byte of the body has been sent.
    let mut caller = proxy.caller().await;
    caller.send("PUT / HTTP/1.1\r\nHost: app\r\nContent-Length: 1000000\r\n\r\n").await;
    let answer = caller.answer().await;
    assert_eq!(answer.status(), 203, "{answer:?}");
    assert!(answer.says_close(), "what is unread would be taken for a request: {answer:?}");
    let h2 = H2Caller::connect(proxy.outbound()).await.unwrap();
    let answer = h2.get("app", "/").await.unwrap();
    assert_eq!((answer.status, answer.body.as_slice()), (203, &b"<svg/>"[..]));
    assert_eq!(app.asked(), 0);
    let labels = ["service=\"app\"", "kind=\"respond\"", "reason=\"open\""];
    assert!((proxy.metric("gilmok_fallbacks_total", &labels).await - 4.0).abs() < f64::EPSILON);
    let counted = proxy.metric("gilmok_requests_total", &["service=\"app\"", "code=\"fallback\""]).await;
    assert!((counted - 4.0).abs() < f64::EPSILON, "{counted}");
}

#[tokio::test]
async fn writes_and_the_applications_own_answers_are_left_alone() {
    let app = Sick::start("app").await;
    let proxy = Proxy::start(opened(&app, HOUSE)).await;
    let answer = proxy.caller().await.ask("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(answer.status(), 503, "a lost order must not look well: {answer:?}");
    let text = service("app", "", &[app.upstream.address]);
    proxy.reload(format!("{text}{HOUSE}")).await;
    for status in [404, 500, 503] {
        app.is(Sickness::status(status));
        let answer = proxy.get("app", "/").await;
        assert_eq!((answer.status(), answer.header("proxy-status")), (status, None));
    }
    proxy.reload(format!("{text}{HOUSE}on = [\"5xx\"]\n")).await;
    let answer = proxy.get("app", "/").await;
    assert_eq!(answer.status(), 203, "{answer:?}");
    assert_eq!(status_of(&answer), "gilmok; received-status=503; details=\"fallback=respond\"");
    app.is(Sickness::Resets);
    assert_eq!(proxy.get("app", "/").await.status(), 502, "not listed any more");
}

#[tokio::test]
async fn time_outs_overflow_and_no_endpoint_fall_back_too() {
    let app = Sick::start("app").await;
    app.is(Sickness::Hangs);
    let policy = "request_timeout = \"100ms\"\nmax_concurrent = 1";
    let proxy = Proxy::start(format!("{}{HOUSE}", service("app", policy, &[app.upstream.address]))).await;
    let answer = proxy.get("app", "/").await;
    assert_eq!(answer.status(), 203, "{answer:?}");
    assert!(status_of(&answer).contains("error=http_response_timeout"), "{answer:?}");
    let policy = "request_timeout = \"1m\"\nmax_concurrent = 1";
    proxy.reload(format!("{}{HOUSE}", service("app", policy, &[app.upstream.address]))).await;
    let mut first = proxy.caller().await;
    first.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n").await;
    eventually(
        "the first call at the app",
        async || if app.asked() == 2 { Ok(()) } else { Err(app.asked()) },
    )
    .await;
    let answer = proxy.get("app", "/").await;
    assert!(status_of(&answer).contains("connection_limit_reached"), "{answer:?}");
    assert_eq!((answer.status(), app.asked()), (203, 2));
    proxy.reload(format!("[services.app]\n{HOUSE}")).await;
    assert_eq!(proxy.get("app", "/").await.status(), 203);
    for reason in ["timeout", "overflow", "no_endpoint"] {
        let reason = format!("reason=\"{reason}\"");
        let given = proxy.metric("gilmok_fallbacks_total", &["kind=\"respond\"", &reason]).await;
        assert!((given - 1.0).abs() < f64::EPSILON, "{reason}: {given}");
    }
}

#[tokio::test]
async fn another_service_answers_and_its_own_chain_when_it_cannot() {
    let app = Sick::start("app").await;
    let house = Sick::start("house").await;
    let chain = "[[services.app.fallback]]\nservice = \"house\"\n\
                 [[services.app.fallback]]\nrespond = { body = \"last\" }\n";
    let houses = service("house", "request_timeout = \"100ms\"", &[house.upstream.address]);
    let proxy = Proxy::start(format!("{}{houses}", opened(&app, chain))).await;
    let answer = proxy.get("app", "/picture").await;
    assert_eq!((answer.status(), answer.text().as_str()), (200, "house"));
    assert!(status_of(&answer).ends_with("breaker=open fallback=service\""), "{answer:?}");
    assert_eq!(house.upstream.only_request().await.start, "GET /picture HTTP/1.1");
    house.is(Sickness::Hangs);
    assert_eq!(proxy.get("app", "/").await.text(), "last", "the next link");
    // What was sent and broke off goes to the other service, when it is idempotent.
    house.is(Sickness::None);
    app.is(Sickness::Resets);
    let text = service("app", "", &[app.upstream.address]);
    proxy.reload(format!("{text}{chain}{houses}")).await;
    let answer = proxy.get("app", "/").await;
    assert_eq!(answer.text(), "house");
    assert!(status_of(&answer).contains("connection_terminated"), "{answer:?}");
    let told = proxy.admin_json("/endpoints").await;
    for service in told["services"].as_array().unwrap() {
        assert_eq!(service["in_flight"], 0, "{told}");
    }
}

#[tokio::test]
async fn callers_of_grpc_are_answered_in_its_words() {
    let app = Sick::start("app").await;
    let chain = "[[services.app.fallback]]\nrespond = { grpc_status = \"ok\", body_base64 = \"CgNhZA==\" }\n\
                 methods = [\"POST\"]\n";
    let proxy = Proxy::start(opened(&app, chain)).await;
    let h2 = H2Caller::connect(proxy.outbound()).await.unwrap();
    let request = || {
        http::Request::post("http://app/ads.Ads/Get")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap()
    };
    let answer = h2.ask(request(), b"\0\0\0\0\0", None).await.unwrap();
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b"\0\0\0\0\x04\x0a\x03ad"[..]));
    assert_eq!(answer.trailers["grpc-status"], "0");
    let refused = "[[services.app.fallback]]\nrespond = { grpc_status = \"unavailable\", grpc_message = \"no ads\" }\n\
                   methods = [\"POST\"]\n";
    proxy.reload(opened(&app, refused)).await;
    let answer = h2.ask(request(), b"\0\0\0\0\0", None).await.unwrap();
    assert_eq!((answer.field("grpc-status"), answer.field("grpc-message")), (Some("14"), Some("no ads")));
}

const LAST_GOOD: &str = "[[services.app.fallback]]\nlast_good = {}\n";

#[tokio::test]
async fn the_last_good_answer_is_given_again_with_its_age() {
    let app = Sick::start("today's ads").await;
    let text = service("app", "", &[app.upstream.address]);
    let proxy = Proxy::start(format!("{text}{LAST_GOOD}")).await;
    assert_eq!(proxy.get("app", "/ads?n=1").await.text(), "today's ads");
    app.is(Sickness::Resets);
    let again = proxy.get("app", "/ads?n=1").await;
    assert_eq!((again.status(), again.text().as_str()), (200, "today's ads"));
    assert!(again.header("age").is_some(), "{again:?}");
    assert!(status_of(&again).contains("fallback=last_good"), "{again:?}");
    let mut caller = proxy.caller().await;
    caller.send("HEAD /ads?n=1 HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n").await;
    let head = caller.answer_to_head().await;
    assert_eq!((head.status(), head.header("content-length")), (200, Some("11")));
    assert_eq!(proxy.get("app", "/ads?n=2").await.status(), 502, "another question");
    assert!(proxy.metric("gilmok_last_good_bytes", &[]).await > 0.0);
}

#[tokio::test]
async fn no_caller_is_given_what_was_made_for_another() {
    let app = Sick::start("public").await;
    let text = service("app", "", &[app.upstream.address]);
    let proxy = Proxy::start(format!("{text}{LAST_GOOD}")).await;
    let ask = async |path: &str, more: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: app\r\n{more}Connection: close\r\n\r\n");
        proxy.caller().await.ask(request).await
    };
    let private = |fields: &str| {
        Sickness::Answers(
            format!("HTTP/1.1 200 OK\r\n{fields}\r\nContent-Length: 6\r\n\r\nsecret").into_bytes(),
        )
    };
    // What was asked with credentials is not kept.
    for (at, more) in ["Cookie: id=ann\r\n", "Authorization: Bearer ann\r\n"].iter().enumerate() {
        assert_eq!(ask(&format!("/asked/{at}"), more).await.status(), 200);
    }
    // Nor is what the application says is nobody else's.
    let fields = [
        "Set-Cookie: id=ann",
        "Cache-Control: private",
        "Cache-Control: no-store",
        "Cache-Control: no-cache",
        "Vary: *",
    ];
    for (at, fields) in fields.iter().enumerate() {
        app.is(private(fields));
        assert_eq!(ask(&format!("/said/{at}"), "").await.text(), "secret");
    }
    app.is(Sickness::None);
    assert_eq!(ask("/public", "").await.text(), "public");
    app.is(private("Vary: Accept-Language"));
    assert_eq!(ask("/vary", "Accept-Language: de\r\n").await.text(), "secret");
    app.is(Sickness::Resets);
    for path in ["/asked/0", "/asked/1", "/said/0", "/said/1", "/said/2", "/said/3", "/said/4"] {
        assert_eq!(ask(path, "").await.status(), 502, "{path}");
    }
    // Who shows credentials gets nobody's answer, not even a public one.
    assert_eq!(ask("/public", "Cookie: id=bob\r\n").await.status(), 502);
    assert_eq!(ask("/public", "").await.text(), "public");
    assert_eq!(ask("/vary", "Accept-Language: en\r\n").await.status(), 502);
    assert_eq!(ask("/vary", "Accept-Language: de\r\n").await.text(), "secret");
}

#[tokio::test]
async fn half_an_answer_is_nobodys_last_good_one() {
    let broken = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it";
    let app = Sick::start("well").await;
    let text = service("app", "", &[app.upstream.address]);
    let proxy = Proxy::start(format!("{text}{LAST_GOOD}")).await;
    app.is(Sickness::Answers(broken.to_vec()));
    let mut caller = proxy.caller().await;
    caller.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n").await;
    drop(caller.try_answer(Duration::from_millis(300)).await);
    drop(caller);
    app.is(Sickness::Resets);
    assert_eq!(proxy.get("app", "/").await.status(), 502);
}

#[tokio::test]
async fn a_sidecars_fallback_is_not_taken_for_the_applications_answer() {
    let said = "HTTP/1.1 200 OK\r\nProxy-Status: gilmok; error=connection_refused; details=\"x fallback=respond\"\r\n\
                Content-Length: 5\r\n\r\nhouse";
    let upstream = Upstream::answering(said).await;
    let text = service("app", "", &[upstream.address]);
    let proxy = Proxy::start(format!("{text}{LAST_GOOD}")).await;
    assert_eq!(proxy.get("app", "/").await.text(), "house");
    assert!(proxy.metric("gilmok_last_good_bytes", &[]).await.abs() < f64::EPSILON);
}

#[tokio::test]
async fn a_sidecar_that_is_full_is_an_overflow_and_another_one_is_asked_first() {
    let said = "HTTP/1.1 503 Service Unavailable\r\nProxy-Status: gilmok; error=connection_limit_reached\r\n\
                Content-Length: 0\r\n\r\n";
    let (full, free) = (Upstream::answering(said).await, Upstream::saying("fine").await);
    let house = "[[services.app.fallback]]\nrespond = { body = \"house\" }\n";
    let mesh = |addresses: &[SocketAddr]| {
        let endpoints = addresses
            .iter()
            .map(|address| format!("[[services.app.endpoints]]\naddress = \"{address}\"\ninbound = true\n"));
        format!(
            "[services.app]\nload_balancer = \"round_robin\"\n[services.app.circuit_breaker]\n\
             consecutive_failures = 2\n{house}{}",
            endpoints.collect::<String>()
        )
    };
    let proxy = Proxy::start(mesh(&[full.address])).await;
    for _ in 0..5 {
        let answer = proxy.get("app", "/").await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, "house"));
        assert!(
            status_of(&answer).contains("connection_limit_reached"),
            "who is full has not failed: {answer:?}"
        );
    }
    let other = proxy.caller().await.ask("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!((other.status(), other.header("retry-after")), (503, Some("1")), "{other:?}");
    proxy.reload(mesh(&[full.address, free.address])).await;
    let before = full.requests().len();
    for _ in 0..10 {
        assert_eq!(proxy.get("app", "/").await.text(), "fine");
    }
    assert!(full.requests().len() > before + 3, "it is asked on: {}", full.requests().len() - before);
}
