//! Bodies of any size (reference P2, P15, P16): they stream, they stop when someone leaves, they never end early by accident.

use std::time::Duration;

use gilmok_tests::eventually::{eventually, within};
use gilmok_tests::h2_caller::H2Caller;
use gilmok_tests::message::find;
use gilmok_tests::observe;
use gilmok_tests::proxy::{Proxy, service};
use gilmok_tests::upstream::{Upstream, ok};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How much the proxy's memory may grow while gigabytes pass through.
const GROWTH_MAX: u64 = 24 << 20;

/// How long the large bodies are: 1 GiB, or as many as `GILMOK_BODY_GIB` says.
fn large() -> (usize, Duration) {
    let given = std::env::var("GILMOK_BODY_GIB").ok().and_then(|text| text.parse().ok());
    let gibibytes: u32 = given.unwrap_or(1);
    (gibibytes as usize * (1 << 30), Duration::from_secs(120) * gibibytes)
}

/// Reads a body of this length at the speed of the machine after a slow start, then answers.
async fn slow_reader(length: usize, pause: Duration) -> Upstream {
    Upstream::start(move |mut conversation| async move {
        if conversation.request_head().await.is_none() {
            return;
        }
        tokio::time::sleep(pause).await;
        let mut left = length.saturating_sub(conversation.rest().len());
        let mut buffer = vec![0; 1 << 20];
        while left > 0 {
            match conversation.io.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(count) => left = left.saturating_sub(count),
            }
        }
        conversation.send(ok("all of it")).await;
        conversation.hang().await;
    })
    .await
}

#[tokio::test]
async fn a_large_upload_to_a_slow_reader_costs_no_memory() {
    let (length, patience) = large();
    let upstream = slow_reader(length, Duration::from_secs(1)).await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    assert!(proxy.get("nobody", "/").await.status() == 404);
    let before = observe::resident_bytes(proxy.process.pid());
    let mut caller = proxy.caller().await;
    caller.send(format!("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: {length}\r\n\r\n")).await;
    let chunk = vec![b'x'; 1 << 20];
    let mut most = before;
    within(patience, "the upload", async {
        for _ in 0..length >> 20 {
            caller.io.write_all(&chunk).await.expect("the proxy takes the upload");
            most = most.max(observe::resident_bytes(proxy.process.pid()));
        }
    })
    .await;
    assert_eq!(caller.answer().await.text(), "all of it");
    let grown = most.saturating_sub(before);
    assert!(grown < GROWTH_MAX, "{} MiB more", grown >> 20);
}

#[tokio::test]
async fn a_large_answer_to_a_slow_caller_costs_no_memory() {
    let (length, patience) = large();
    let upstream = Upstream::start(move |mut conversation| async move {
        drop(conversation.request().await);
        conversation.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n")).await;
        let chunk = vec![b'x'; 1 << 20];
        for _ in 0..length >> 20 {
            if !conversation.send(&chunk).await {
                return;
            }
        }
        conversation.hang().await;
    })
    .await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    assert!(proxy.get("nobody", "/").await.status() == 404);
    let before = observe::resident_bytes(proxy.process.pid());
    let mut caller = proxy.caller().await;
    caller.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut most = observe::resident_bytes(proxy.process.pid());
    let mut buffer = vec![0; 1 << 20];
    let mut got = 0;
    within(patience, "the download", async {
        while got < length {
            let count = caller.io.read(&mut buffer).await.expect("the proxy goes on");
            assert!(count > 0, "ended after {got} bytes");
            got += count;
            if got % (16 << 20) < count {
                most = most.max(observe::resident_bytes(proxy.process.pid()));
            }
        }
    })
    .await;
    let grown = most.saturating_sub(before);
    assert!(grown < GROWTH_MAX, "{} MiB more", grown >> 20);
}

#[tokio::test]
async fn an_http_2_upload_waits_for_a_reader_that_does_not_read() {
    let upstream = slow_reader(usize::MAX, Duration::from_secs(600)).await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let caller = H2Caller::connect(proxy.outbound()).await.unwrap();
    let before = observe::resident_bytes(proxy.process.pid());
    let request = http::Request::post("http://app/").body(()).unwrap();
    let (_answer, mut sending) = caller.sender().await.unwrap().send_request(request, false).unwrap();
    let mut sent = 0;
    let pouring = async {
        loop {
            sending.reserve_capacity(64 << 10);
            let Some(Ok(room)) = std::future::poll_fn(|cx| sending.poll_capacity(cx)).await else { return };
            sending.send_data(vec![0; room].into(), false).unwrap();
            sent += room;
        }
    };
    let stopped = tokio::time::timeout(Duration::from_secs(3), pouring).await;
    assert!(stopped.is_err(), "the stream ended after {sent} bytes");
    assert!(sent < 32 << 20, "{sent} bytes were taken that nobody reads");
    let grown = observe::resident_bytes(proxy.process.pid()).saturating_sub(before);
    assert!(grown < GROWTH_MAX, "{grown} bytes more");
}

#[tokio::test]
async fn when_the_caller_leaves_the_call_to_the_app_ends() {
    let upstream = Upstream::start(|mut conversation| async move {
        drop(conversation.request_head().await);
        conversation.hang().await;
    })
    .await;
    let proxy = Proxy::start(service("app", "max_concurrent = 1", &[upstream.address])).await;
    let leaving = [
        ("before the answer", "GET / HTTP/1.1\r\nHost: app\r\n\r\n"),
        ("in the middle of an upload", "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 100\r\n\r\nsome"),
        (
            "in the middle of a chunk",
            "POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nab",
        ),
    ];
    for (round, (what, request)) in leaving.into_iter().enumerate() {
        let mut caller = proxy.caller().await;
        caller.send(request).await;
        eventually(what, async || if upstream.requests().len() > round { Ok(()) } else { Err("not there") })
            .await;
        drop(caller);
        // The place is free again, and the app sees the end.
        eventually(what, async || if upstream.open() == 0 { Ok(()) } else { Err("still open") }).await;
    }
}

#[tokio::test]
async fn a_half_closed_caller_has_given_up() {
    let upstream = Upstream::start(|mut conversation| async move {
        drop(conversation.request().await);
        conversation.hang().await;
    })
    .await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let mut caller = proxy.caller().await;
    caller.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n").await;
    upstream.only_request().await;
    caller.finish().await;
    eventually("the end of the call", async || if upstream.open() == 0 { Ok(()) } else { Err("open") }).await;
}

#[tokio::test]
async fn when_the_caller_leaves_in_the_middle_of_an_answer_the_app_sees_it() {
    let upstream = Upstream::start(|mut conversation| async move {
        drop(conversation.request().await);
        conversation.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        while conversation.send("400\r\n").await
            && conversation.send(vec![b'x'; 1024]).await
            && conversation.send("\r\n").await
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let mut caller = proxy.caller().await;
    caller.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n").await;
    caller.take(5_000).await;
    drop(caller);
    eventually("the end of the call", async || if upstream.open() == 0 { Ok(()) } else { Err("open") }).await;
}

#[tokio::test]
async fn a_truncated_upload_is_never_whole_for_the_app() {
    let upstream = Upstream::saying("never").await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    for request in [
        "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 100\r\n\r\nsome",
        "POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n",
    ] {
        let mut caller = proxy.caller().await;
        caller.send(request).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(caller);
    }
    eventually("both calls to end", async || match upstream.requests() {
        requests if requests.len() == 2 => Ok(()),
        requests => Err(format!("{requests:?}")),
    })
    .await;
    assert!(upstream.requests().iter().all(|request| !request.is_complete), "{:?}", upstream.requests());
}

#[tokio::test]
async fn an_early_answer_arrives_although_the_upload_goes_on() {
    let upstream = Upstream::start(|mut conversation| async move {
        drop(conversation.request_head().await);
        conversation
            .send("HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
            .await;
        // Closing with unread bytes would be a reset, which can overtake the answer: a polite server waits.
        tokio::time::sleep(Duration::from_secs(2)).await;
    })
    .await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let mut caller = proxy.caller().await;
    caller.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 100000000\r\n\r\n").await;
    let (mut reading, mut writing) = caller.io.split();
    let uploading = async {
        // The proxy stops reading; what cannot be written any more is no fault.
        for _ in 0..100 {
            if writing.write_all(&[b'x'; 100_000]).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let answering = async {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"no") {
            let count = reading.read_buf(&mut bytes).await.expect("the answer comes before a reset");
            assert!(count > 0, "{:?}", String::from_utf8_lossy(&bytes));
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let answer = within(Duration::from_secs(20), "the early answer", async {
        tokio::select! { answer = answering => answer, () = uploading => unreachable!("it waits for ever") }
    })
    .await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
}

/// How much has come behind the head.
fn body_length(bytes: &[u8]) -> usize {
    find(bytes, b"\r\n\r\n").map_or(0, |at| bytes.len() - at - 4)
}

#[tokio::test]
async fn an_early_answer_arrives_although_the_app_closes_at_once() {
    // Closing with unread bytes is a reset, which the proxy meets while it writes: the answer is there all the same.
    // The long one still fits into the kernel's buffers, else the app's own reset would throw away its end.
    for (what, length) in [("a short answer", 2), ("a long answer", 20_000)] {
        let upstream = Upstream::start(move |mut conversation| async move {
            drop(conversation.request_head().await);
            let head = format!("HTTP/1.1 413 Content Too Large\r\nContent-Length: {length}\r\n\r\n");
            conversation.send(head + &"n".repeat(length)).await;
        })
        .await;
        let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
        for round in 0..40 {
            let mut caller = proxy.caller().await;
            let (mut reading, mut writing) = caller.io.split();
            let uploading = async {
                drop(
                    writing
                        .write_all(b"POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 100000000\r\n\r\n")
                        .await,
                );
                while writing.write_all(&[b'x'; 100_000]).await.is_ok() {}
                std::future::pending::<()>().await;
            };
            let answering = async {
                let mut bytes = Vec::new();
                while body_length(&bytes) < length && matches!(reading.read_buf(&mut bytes).await, Ok(1..)) {}
                bytes
            };
            let answer = within(Duration::from_secs(20), what, async {
                tokio::select! { answer = answering => answer, () = uploading => unreachable!("it waits for ever") }
            })
            .await;
            let text = String::from_utf8_lossy(&answer);
            assert!(text.starts_with("HTTP/1.1 413"), "{what}, round {round}: {text}");
            assert_eq!(body_length(&answer), length, "{what}, round {round}");
        }
    }
}

#[tokio::test]
async fn our_own_answer_to_a_large_upload_arrives_whole_and_the_upload_is_never_a_request() {
    let upstream = Upstream::saying("never").await;
    let mesh = format!("{}[services.empty]\n", service("app", "", &[upstream.address]));
    let proxy = Proxy::start(mesh).await;
    for _ in 0..5 {
        let mut caller = proxy.caller().await;
        let inside = "GET /smuggled HTTP/1.1\r\nHost: app\r\n\r\n";
        let body = inside.repeat((10 << 20) / inside.len());
        let head = format!("POST / HTTP/1.1\r\nHost: empty\r\nContent-Length: {}\r\n\r\n", body.len());
        let (mut reading, mut writing) = caller.io.split();
        let mut bytes = Vec::new();
        let sending = async {
            drop(writing.write_all(head.as_bytes()).await);
            drop(writing.write_all(body.as_bytes()).await);
            drop(writing.write_all(inside.as_bytes()).await);
            Ok::<(), std::io::Error>(())
        };
        let receiving = reading.read_to_end(&mut bytes);
        let (_, received) =
            within(Duration::from_secs(20), "the answer", async { tokio::join!(sending, receiving) }).await;
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.starts_with("HTTP/1.1 503"), "{received:?}: {text}");
        assert_eq!(text.matches("HTTP/1.1").count(), 1, "{text}");
        assert!(text.to_lowercase().contains("connection: close"), "{text}");
    }
    assert!(upstream.requests().is_empty());
}

#[tokio::test]
async fn a_short_unread_body_is_told_close_or_read_away() {
    let upstream = Upstream::saying("clean").await;
    let mesh = format!("{}[services.empty]\n", service("app", "", &[upstream.address]));
    let proxy = Proxy::start(mesh).await;
    let mut caller = proxy.caller().await;
    let inside = "GET /smuggled HTTP/1.1\r\nHost: app\r\n\r\n";
    let head = format!("POST / HTTP/1.1\r\nHost: empty\r\nContent-Length: {}\r\n\r\n", inside.len());
    // The body comes only after the answer.
    let answer = caller.ask(head).await;
    assert_eq!(answer.status(), 503);
    let next = "GET /next HTTP/1.1\r\nHost: app\r\n\r\n";
    caller.send(format!("{inside}{next}")).await;
    if answer.says_close() {
        assert!(caller.is_closed_within(Duration::from_secs(10)).await);
        assert!(upstream.requests().is_empty(), "{:?}", upstream.requests());
    } else {
        assert_eq!(caller.answer().await.text(), "clean");
        assert!(upstream.only_request().await.start.contains("/next"));
    }
}

#[tokio::test]
async fn events_of_a_stream_arrive_as_they_are_sent() {
    let upstream = Upstream::start(|mut conversation| async move {
        drop(conversation.request().await);
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        conversation.send(head).await;
        // The next event is sent only when the test has seen the one before.
        for n in 0..5 {
            conversation.send(format!("9\r\ndata: {n}\n\n\r\n")).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        conversation.hang().await;
    })
    .await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let mut caller = proxy.caller().await;
    caller.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n").await;
    let mut text = String::new();
    for n in 0..5 {
        let event = format!("data: {n}");
        while !text.contains(&event) {
            text.push_str(&String::from_utf8_lossy(&caller.take(1).await));
        }
        assert!(!text.contains(&format!("data: {}", n + 1)), "events came together: {text}");
    }
}

#[tokio::test]
async fn requests_that_are_given_up_at_any_moment_leave_nothing_behind() {
    let upstream = Upstream::start(|mut conversation| async move {
        while conversation.request().await.is_some() {
            tokio::time::sleep(Duration::from_millis(3)).await;
            conversation.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
            tokio::time::sleep(Duration::from_millis(3)).await;
            conversation.send("5\r\nworld\r\n0\r\n\r\n").await;
        }
    })
    .await;
    let proxy = Proxy::start(service("app", "max_concurrent = 20", &[upstream.address])).await;
    for step in 0..200_u64 {
        let mut caller = proxy.caller().await;
        caller.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 10\r\n\r\nhello").await;
        tokio::time::sleep(Duration::from_micros(step * 60)).await;
        caller.send("world").await;
        tokio::time::sleep(Duration::from_micros(step * 60)).await;
        drop(caller);
    }
    // All twenty places are free, and the connections left in the pool are clean.
    let mut callers = Vec::new();
    for _ in 0..20 {
        let mut caller = proxy.caller().await;
        caller.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n").await;
        callers.push(caller);
    }
    for caller in &mut callers {
        let answer = caller.answer().await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, "helloworld"), "{answer:?}");
    }
}
