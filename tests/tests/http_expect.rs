//! Expect: 100-continue (reference P6): nobody is asked for a body that nobody will read.

use std::time::Duration;

use gilmok_tests::message::NoMessage;
use gilmok_tests::proxy::{Proxy, ProxySettings, service};
use gilmok_tests::upstream::{Upstream, ok};

const POST: &str = "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";

#[tokio::test]
async fn a_caller_that_asks_is_told_to_go_on_and_the_app_never_hears_of_it() {
    let upstream = Upstream::saying("fine").await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let mut caller = proxy.caller().await;
    assert_eq!(caller.ask(POST).await.status(), 100);
    let answer = caller.ask("hello").await;
    assert_eq!((answer.status(), answer.text().as_str()), (200, "fine"));
    let seen = upstream.only_request().await;
    assert_eq!((seen.header("expect"), seen.text().as_str()), (None, "hello"));
}

#[tokio::test]
async fn what_is_refused_is_answered_without_a_100() {
    let upstream = Upstream::saying("fine").await;
    let mesh = format!("{}[services.empty]\n", service("app", "", &[upstream.address]));
    let limited = ProxySettings::of_mesh(&mesh).table("[limits]\nbody_bytes = \"4B\"");
    for (settings, host, status) in [
        (ProxySettings::of_mesh(&mesh), "nobody", 404),
        (ProxySettings::of_mesh(&mesh), "empty", 503),
        (limited, "app", 413),
    ] {
        let proxy = Proxy::start_with(settings).await;
        let answer = proxy.caller().await.ask(POST.replace("Host: app", &format!("Host: {host}"))).await;
        assert_eq!(answer.status(), status, "{host}: {answer:?}");
    }
    assert!(upstream.requests().is_empty());
}

#[tokio::test]
async fn at_the_limit_of_concurrency_no_upload_begins() {
    let upstream = Upstream::start(|mut conversation| async move {
        if conversation.request().await.is_some() {
            conversation.hang().await;
        }
    })
    .await;
    let proxy = Proxy::start(service("app", "max_concurrent = 1", &[upstream.address])).await;
    let mut first = proxy.caller().await;
    first.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n").await;
    upstream.only_request().await;
    let answer = proxy.caller().await.ask(POST).await;
    assert_eq!(answer.status(), 503, "{answer:?}");
    assert!(answer.header("retry-after").is_some());
    let told = answer.header("proxy-status").unwrap_or_default();
    assert!(told.contains("connection_limit_reached"), "{told}");
}

#[tokio::test]
async fn other_expectations_are_refused() {
    let upstream = Upstream::saying("fine").await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let answer = proxy.caller().await.ask("GET / HTTP/1.1\r\nHost: app\r\nExpect: wonders\r\n\r\n").await;
    assert_eq!(answer.status(), 417, "{answer:?}");
    assert!(upstream.requests().is_empty());
}

#[tokio::test]
async fn a_100_of_the_app_and_other_interim_answers_are_not_passed_on() {
    let upstream = Upstream::start(|mut conversation| async move {
        while conversation.request().await.is_some() {
            for interim in [100, 102, 103, 100, 103] {
                let head = format!("HTTP/1.1 {interim} Interim\r\nLink: </a.css>\r\n\r\n");
                conversation.send(head).await;
            }
            conversation.send(ok("at last")).await;
        }
    })
    .await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let mut caller = proxy.caller().await;
    for _ in 0..2 {
        let answer = caller.ask("GET / HTTP/1.1\r\nHost: app\r\n\r\n").await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, "at last"));
    }
    assert_eq!(caller.try_answer(Duration::from_millis(50)).await.unwrap_err(), NoMessage::Late);
}
