//! Upstreams that lie (reference P19): callers get an error, or a stream that breaks off, never a wrong answer.

use std::time::Duration;

use gilmok_tests::eventually::eventually;
use gilmok_tests::h2_caller::H2Caller;
use gilmok_tests::observe;
use gilmok_tests::proxy::{Proxy, service};
use gilmok_tests::upstream::{Upstream, ok};

async fn behind(answer: impl Into<Vec<u8>>) -> (Upstream, Proxy) {
    let answer = std::sync::Arc::new(answer.into());
    let upstream = Upstream::start(move |mut conversation| {
        let answer = std::sync::Arc::clone(&answer);
        async move {
            drop(conversation.request().await);
            conversation.send(&answer[..]).await;
        }
    })
    .await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    (upstream, proxy)
}

#[tokio::test]
async fn answers_that_are_not_http_are_502() {
    for (what, answer) in [
        ("nothing", String::new()),
        ("another protocol", "SSH-2.0-OpenSSH_9.0\r\n".to_owned()),
        ("half a head", "HTTP/1.1 200 OK\r\nContent-Le".to_owned()),
        ("no status", "HTTP/1.1 OK\r\n\r\n".to_owned()),
        ("two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc".to_owned()),
        ("a negative length", "HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nab".to_owned()),
        ("a giant head", format!("HTTP/1.1 200 OK\r\nX-A: {}\r\n\r\n", "a".repeat(4 << 20))),
        ("a zero byte", "HTTP/1.1 200 OK\r\nX-A: a\0b\r\nContent-Length: 0\r\n\r\n".to_owned()),
    ] {
        let (_upstream, proxy) = behind(answer).await;
        let got = proxy.get("app", "/").await;
        assert_eq!(got.status(), 502, "{what}: {got:?}");
        let told = got.header("proxy-status").unwrap_or_default();
        assert!(told.contains("gilmok; error="), "{what}: {told}");
    }
}

#[tokio::test]
async fn a_truncated_answer_breaks_off_for_http_1_callers() {
    for (what, answer) in [
        ("chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"),
        ("in a chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhello"),
        ("with a length", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"),
    ] {
        let (_upstream, proxy) = behind(answer).await;
        let got = proxy.get("app", "/").await;
        assert!(!got.is_complete, "{what}: the caller takes it for whole: {got:?}");
    }
}

#[tokio::test]
async fn a_truncated_answer_is_an_error_for_http_2_callers() {
    let (_upstream, proxy) =
        behind("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
    let caller = H2Caller::connect(proxy.outbound()).await.unwrap();
    let error = caller.get("app", "/").await.unwrap_err();
    assert!(error.downcast_ref::<h2::Error>().is_some_and(h2::Error::is_reset), "{error:#}");
}

#[tokio::test]
async fn an_answer_that_ends_with_its_connection_is_whole() {
    let (_upstream, proxy) = behind("HTTP/1.1 200 OK\r\n\r\nuntil the end").await;
    let got = proxy.get("app", "/").await;
    assert_eq!((got.text().as_str(), got.is_complete), ("until the end", true), "{got:?}");
}

#[tokio::test]
async fn bytes_beyond_an_answer_never_become_the_next_one() {
    let upstream = Upstream::start(|mut conversation| async move {
        while conversation.request().await.is_some() {
            let poisoned = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfineHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
            conversation.send(poisoned).await;
        }
    })
    .await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let mut caller = proxy.caller().await;
    for _ in 0..20 {
        let answer = caller.ask("GET / HTTP/1.1\r\nHost: app\r\n\r\n").await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, "fine"), "{answer:?}");
    }
}

#[tokio::test]
async fn a_head_answered_with_a_body_never_poisons_the_next_answer() {
    let upstream = Upstream::start(|mut conversation| async move {
        while let Some(request) = conversation.request().await {
            let is_head = request.start.starts_with("HEAD");
            conversation.send(if is_head { ok("body of a HEAD") } else { ok("fine") }).await;
        }
    })
    .await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let mut caller = proxy.caller().await;
    for _ in 0..10 {
        caller.send("HEAD / HTTP/1.1\r\nHost: app\r\n\r\n").await;
        assert_eq!(caller.answer_to_head().await.status(), 200);
        let answer = caller.ask("GET / HTTP/1.1\r\nHost: app\r\n\r\n").await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, "fine"), "{answer:?}");
    }
}

#[tokio::test]
async fn an_answer_before_the_question_is_never_given_to_anyone() {
    let upstream = Upstream::start(|mut conversation| async move {
        if conversation.number == 0 {
            drop(conversation.exchange(ok("first")).await);
            conversation.send(ok("nobody asked")).await;
            conversation.hang().await;
            return;
        }
        while conversation.exchange(ok("fine")).await.is_some() {}
    })
    .await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    assert_eq!(proxy.get("app", "/").await.text(), "first");
    tokio::time::sleep(Duration::from_millis(100)).await;
    for _ in 0..10 {
        assert_eq!(proxy.get("app", "/").await.text(), "fine");
    }
}

#[tokio::test]
async fn a_flood_of_interim_answers_is_bounded() {
    let upstream = Upstream::start(|mut conversation| async move {
        drop(conversation.request().await);
        let flood = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n".repeat(1_000);
        while conversation.send(&flood).await {}
    })
    .await;
    let proxy = Proxy::start(service("app", "request_timeout = \"1s\"", &[upstream.address])).await;
    let before = observe::resident_bytes(proxy.process.pid());
    let answer = proxy.get("app", "/").await;
    assert!(matches!(answer.status(), 502 | 504), "{answer:?}");
    let grown = observe::resident_bytes(proxy.process.pid()).saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes more");
    eventually("the flood's end", async || if upstream.open() == 0 { Ok(()) } else { Err("open") }).await;
}

#[tokio::test]
async fn a_dead_app_behind_a_live_sidecar_is_a_dead_endpoint() {
    let status = "Proxy-Status: gilmok; error=connection_refused\r\n";
    let sidecar =
        Upstream::answering(format!("HTTP/1.1 502 Bad Gateway\r\n{status}Content-Length: 0\r\n\r\n")).await;
    let alive = Upstream::saying("fine").await;
    let endpoint = |address: std::net::SocketAddr| {
        format!("[[services.app.endpoints]]\naddress = \"{address}\"\ninbound = true\n")
    };
    let mesh = format!(
        "[services.app]\nload_balancer = \"round_robin\"\n{}{}",
        endpoint(sidecar.address),
        endpoint(alive.address)
    );
    let proxy = Proxy::start(mesh).await;
    for _ in 0..10 {
        let answer = proxy.get("app", "/").await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, "fine"), "{answer:?}");
        let posting = "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 5\r\n\r\nhello";
        let answer = proxy.caller().await.ask(posting).await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, "fine"), "{answer:?}");
    }
    assert!(!sidecar.requests().is_empty(), "the sidecar was never tried");
    let posted = alive.requests().into_iter().filter(|request| request.start.starts_with("POST"));
    assert!(posted.map(|request| request.text()).all(|text| text == "hello"), "{:?}", alive.requests());
}

#[tokio::test]
async fn an_app_that_says_proxy_status_itself_is_passed_on() {
    let status = "Proxy-Status: other; error=connection_refused\r\n";
    let app =
        Upstream::answering(format!("HTTP/1.1 502 Bad Gateway\r\n{status}Content-Length: 2\r\n\r\nno")).await;
    let proxy = Proxy::start(service("app", "", &[app.address])).await;
    let answer = proxy.get("app", "/").await;
    assert_eq!((answer.status(), answer.text().as_str()), (502, "no"), "{answer:?}");
}
