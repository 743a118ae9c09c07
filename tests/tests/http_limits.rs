//! Sizes and times that one caller may take (reference P9, P10), each just below and just above its limit.

use std::time::Duration;

use gilmok_tests::caller::Caller;
use gilmok_tests::eventually::{SOON, eventually, soon};
use gilmok_tests::h2_caller::{self, H2Caller};
use gilmok_tests::message::{NoMessage, Reader};
use gilmok_tests::process::{Signal, program};
use gilmok_tests::proxy::{Proxy, ProxySettings, service};
use gilmok_tests::scratch::Scratch;
use gilmok_tests::upstream::{Upstream, ok};
use tokio::io::AsyncWriteExt;

async fn app(limits: &str) -> (Upstream, Proxy) {
    let upstream = Upstream::saying("fine").await;
    let settings = ProxySettings::of_mesh(service("app", "", &[upstream.address]));
    let proxy = Proxy::start_with(settings.table(&format!("[limits]\n{limits}"))).await;
    (upstream, proxy)
}

#[tokio::test]
async fn a_target_longer_than_the_limit_is_414() {
    let (upstream, proxy) = app("uri_bytes = \"1KiB\"").await;
    let path = |length: usize| format!("/{}", "a".repeat(length - 1));
    assert_eq!(proxy.get("app", &path(1024)).await.status(), 200);
    assert_eq!(proxy.get("app", &path(1025)).await.status(), 414);
    // The query counts as well, and far beyond it is hyper that answers.
    let query = format!("/?{}", "b".repeat(1023));
    assert_eq!(proxy.get("app", &query).await.status(), 414);
    assert!(matches!(proxy.get("app", &path(70_000)).await.status(), 414 | 431));
    assert_eq!(upstream.requests().len(), 1);
}

#[tokio::test]
async fn a_head_larger_than_the_limit_is_431() {
    let (upstream, proxy) = app("header_bytes = \"16KiB\"").await;
    let request = |bytes: usize| {
        let lines: String = (0..8).map(|n| format!("X-{n}: {}\r\n", "a".repeat(bytes / 8))).collect();
        format!("GET / HTTP/1.1\r\nHost: app\r\n{lines}\r\n")
    };
    assert_eq!(proxy.caller().await.ask(request(15 << 10)).await.status(), 200);
    let mut caller = proxy.caller().await;
    assert_eq!(caller.ask(request(17 << 10)).await.status(), 431);
    assert!(caller.is_closed_within(Duration::from_secs(10)).await);
    assert_eq!(upstream.requests().len(), 1);
}

#[tokio::test]
async fn more_than_a_hundred_headers_are_431() {
    let (upstream, proxy) = app("").await;
    let request = |count: usize| {
        let lines: String = (0..count).map(|n| format!("X-{n}: a\r\n")).collect();
        format!("GET / HTTP/1.1\r\nHost: app\r\n{lines}\r\n")
    };
    assert_eq!(proxy.caller().await.ask(request(80)).await.status(), 200);
    assert_eq!(proxy.caller().await.ask(request(101)).await.status(), 431);
    assert_eq!(upstream.requests().len(), 1);
}

#[tokio::test]
async fn a_body_known_to_be_too_large_is_413_before_it_is_read() {
    let (upstream, proxy) = app("body_bytes = \"1KiB\"").await;
    let head = |length: usize| format!("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: {length}\r\n\r\n");
    let body = "a".repeat(1024);
    let mut caller = proxy.caller().await;
    assert_eq!(caller.ask(format!("{}{body}", head(1024))).await.status(), 200);
    let answer = caller.ask(head(1025)).await;
    assert_eq!(answer.status(), 413, "{answer:?}");
    assert_eq!(upstream.requests().len(), 1);
}

#[tokio::test]
async fn a_body_that_turns_out_too_large_is_413_and_never_whole_upstream() {
    let (upstream, proxy) = app("body_bytes = \"1KiB\"").await;
    let mut caller = proxy.caller().await;
    caller.send("POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    for _ in 0..3 {
        caller.send(format!("190\r\n{}\r\n", "a".repeat(400))).await;
    }
    let answer = caller.answer().await;
    assert_eq!(answer.status(), 413, "{answer:?}");
    assert!(caller.is_closed_within(Duration::from_secs(10)).await);
    assert!(upstream.requests().iter().all(|request| !request.is_complete), "{:?}", upstream.requests());
}

#[tokio::test]
async fn a_head_that_drips_is_ended_by_the_header_timeout() {
    let (upstream, proxy) = app("header_timeout = \"500ms\"").await;
    for beginning in ["GET / HT", "PRI * HTTP/2.0\r\n", "GET / HTTP/1.1\r\nHost: app\r\nX-A: "] {
        let mut caller = proxy.caller().await;
        caller.send(beginning).await;
        let dripping = async {
            loop {
                tokio::time::sleep(Duration::from_millis(100)).await;
                caller.send("a").await;
                match caller.try_answer(Duration::from_millis(1)).await {
                    Err(NoMessage::Late) => {}
                    other => return other.map(|answer| answer.status()),
                }
            }
        };
        let end = tokio::time::timeout(Duration::from_secs(10), dripping).await;
        // A 408 is polite, an end is enough.
        match end.expect("the connection stays") {
            Err(NoMessage::Closed | NoMessage::Cut) | Ok(400 | 408) => {}
            other => panic!("{beginning:?}: {other:?}"),
        }
    }
    assert!(upstream.requests().is_empty());
}

#[tokio::test]
async fn a_connection_that_says_nothing_does_not_count_as_a_dripping_head() {
    let (_upstream, proxy) = app("header_timeout = \"300ms\"").await;
    let mut caller = proxy.caller().await;
    assert_eq!(caller.ask("GET / HTTP/1.1\r\nHost: app\r\n\r\n").await.status(), 200);
    assert!(!caller.is_closed_within(Duration::from_millis(900)).await, "an idle connection was ended");
    assert_eq!(caller.ask("GET / HTTP/1.1\r\nHost: app\r\n\r\n").await.status(), 200);
}

#[tokio::test]
async fn an_upload_that_stalls_is_ended_by_the_idle_timeout() {
    let upstream = Upstream::saying("never").await;
    let proxy = Proxy::start(service("app", "idle_timeout = \"500ms\"", &[upstream.address])).await;
    let mut caller = proxy.caller().await;
    caller.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 10\r\n\r\nhell").await;
    let answer = caller.answer().await;
    assert!(matches!(answer.status(), 400 | 408), "{answer:?}");
    assert!(caller.is_closed_within(Duration::from_secs(10)).await);
}

#[tokio::test]
async fn an_upload_that_trickles_is_bounded_by_the_idle_timeout_between_its_bytes() {
    let upstream = Upstream::saying("all of it").await;
    let policy = "request_timeout = \"300ms\"\nidle_timeout = \"2s\"\nmax_concurrent = 1";
    let proxy = Proxy::start(service("app", policy, &[upstream.address])).await;
    // Longer than request_timeout, which begins when the upload has ended, and never idle for long.
    let mut caller = proxy.caller().await;
    caller.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 10\r\n\r\n").await;
    for byte in b"0123456789" {
        tokio::time::sleep(Duration::from_millis(60)).await;
        caller.send([*byte]).await;
    }
    assert_eq!(caller.answer().await.text(), "all of it");
    // One that pauses for longer is ended, also over HTTP/2, and gives its place back.
    for speaks_h2 in [false, true] {
        if speaks_h2 {
            let caller = H2Caller::connect(proxy.outbound()).await.unwrap();
            let request = http::Request::post("http://app/").body(()).unwrap();
            let (answer, mut sending) = caller.sender().await.unwrap().send_request(request, false).unwrap();
            sending.send_data("0".into(), false).unwrap();
            let answer = soon("an end of the upload", h2_caller::read(answer)).await;
            assert!(answer.as_ref().map_or(true, |answer| answer.status == 408), "{answer:?}");
        } else {
            let mut caller = proxy.caller().await;
            caller.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 10\r\n\r\n0").await;
            assert_eq!(caller.answer().await.status(), 408);
        }
        eventually("its place to be free", async || {
            let answer = proxy.get("app", "/").await;
            if answer.status() == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
        })
        .await;
    }
}

#[tokio::test]
async fn an_upload_that_the_app_does_not_take_is_ended_by_the_idle_timeout() {
    let upstream = Upstream::start(|mut conversation| async move {
        if conversation.number == 0 {
            // Takes the head and nothing more.
            drop(conversation.request_head().await);
            tokio::time::sleep(Duration::from_secs(600)).await;
        } else {
            while conversation.exchange(ok("fine")).await.is_some() {}
        }
    })
    .await;
    let policy = "request_timeout = \"200ms\"\nidle_timeout = \"1s\"\nmax_concurrent = 1";
    let breaker =
        "[services.app.circuit_breaker]\nslow_call = \"300ms\"\nmin_requests = 1\nopen_for = \"100ms\"\n";
    let proxy = Proxy::start(format!("{}{breaker}", service("app", policy, &[upstream.address]))).await;
    // More than all sockets and buffers on the way hold.
    let body = vec![b'x'; 32 << 20];
    let mut caller = proxy.caller().await;
    caller.send(format!("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: {}\r\n\r\n", body.len())).await;
    let (mut read, mut write) = caller.io.split();
    let mut reader = Reader::default();
    let answer = tokio::select! {
        answer = reader.answer(&mut read, SOON, false) => answer.expect("an answer"),
        _ = async { drop(write.write_all(&body).await); std::future::pending::<()>().await } => unreachable!(),
    };
    assert_eq!(answer.status(), 504, "{answer:?}");
    let told = answer.header("proxy-status").unwrap_or_default();
    assert!(told.contains("http_response_timeout") && told.contains("idle_timeout"), "{told}");
    let opened = proxy.metric("gilmok_breaker_transitions_total", &["to=\"open\""]).await;
    assert!(opened >= 1.0, "what takes nothing is slow");
    eventually("its place to be free", async || {
        let answer = proxy.get("app", "/").await;
        if answer.status() == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_stalls_is_broken_off_by_the_idle_timeout() {
    let upstream = Upstream::start(|mut conversation| async move {
        drop(conversation.request().await);
        conversation.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhell").await;
        conversation.hang().await;
    })
    .await;
    let proxy = Proxy::start(service("app", "idle_timeout = \"500ms\"", &[upstream.address])).await;
    let answer = proxy.get("app", "/").await;
    assert_eq!((answer.status(), answer.is_complete), (200, false), "{answer:?}");
    eventually("the upstream's end", async || if upstream.open() == 0 { Ok(()) } else { Err("still open") })
        .await;
}

#[tokio::test]
async fn an_answer_that_an_http_2_caller_does_not_take_is_ended_by_the_idle_timeout() {
    let upstream = Upstream::saying(&"x".repeat(1 << 20)).await;
    let policy = "idle_timeout = \"500ms\"\nmax_concurrent = 1";
    let proxy = Proxy::start(service("app", policy, &[upstream.address])).await;
    let caller = H2Caller::connect(proxy.outbound()).await.unwrap();
    let request = || http::Request::get("http://app/").body(()).unwrap();
    let (answer, _) = caller.sender().await.unwrap().send_request(request(), true).unwrap();
    // The head comes, and what the windows take; the connection itself is well.
    let mut body = soon("the head", answer).await.unwrap().into_body();
    let taken = eventually("its place to be free", async || {
        let (answer, _) = caller.sender().await.unwrap().send_request(request(), true).unwrap();
        let status = soon("a head", answer).await.unwrap().status();
        if status == 200 { Ok(()) } else { Err(status) }
    });
    taken.await;
    let reset = async {
        loop {
            match body.data().await {
                Some(Ok(_)) => {}
                other => return other,
            }
        }
    };
    assert!(matches!(soon("the stream's end", reset).await, Some(Err(_))), "half an answer ended cleanly");
}

#[tokio::test]
async fn an_answer_that_never_comes_is_504() {
    let upstream = Upstream::start(|mut conversation| async move {
        drop(conversation.request().await);
        conversation.hang().await;
    })
    .await;
    let proxy = Proxy::start(service("app", "request_timeout = \"300ms\"", &[upstream.address])).await;
    let answer = proxy.get("app", "/").await;
    assert_eq!(answer.status(), 504, "{answer:?}");
    assert!(
        answer.header("proxy-status").unwrap_or_default().contains("http_response_timeout"),
        "{answer:?}"
    );
    eventually("the upstream's end", async || if upstream.open() == 0 { Ok(()) } else { Err("still open") })
        .await;
}

#[tokio::test]
async fn an_answer_that_trickles_is_not_cut_by_the_request_timeout() {
    let upstream = Upstream::start(|mut conversation| async move {
        drop(conversation.request().await);
        conversation.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n").await;
        conversation.trickle("0123456789", Duration::from_millis(60)).await;
    })
    .await;
    let policy = "request_timeout = \"300ms\"\nidle_timeout = \"5s\"";
    let proxy = Proxy::start(service("app", policy, &[upstream.address])).await;
    let answer = proxy.get("app", "/").await;
    assert_eq!((answer.text().as_str(), answer.is_complete), ("0123456789", true));
}

#[tokio::test]
async fn an_endpoint_that_never_accepts_is_a_connect_timeout() {
    // A listener whose queue is full drops what comes next, so that connecting hangs.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut filling = Vec::new();
    for _ in 0..8 {
        let connecting = tokio::net::TcpStream::connect(address);
        match tokio::time::timeout(Duration::from_millis(200), connecting).await {
            Ok(connected) => filling.push(connected.unwrap()),
            Err(_) => break,
        }
    }
    let proxy = Proxy::start(service("app", "connect_timeout = \"200ms\"", &[address])).await;
    let answer = proxy.get("app", "/").await;
    assert_eq!(answer.status(), 504, "{answer:?}");
    assert!(answer.header("proxy-status").unwrap_or_default().contains("connection_timeout"), "{answer:?}");
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_and_are_served_when_one_ends() {
    let (_upstream, proxy) = app("connections = 2").await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut caller = proxy.caller().await;
        assert_eq!(caller.ask("GET / HTTP/1.1\r\nHost: app\r\n\r\n").await.status(), 200);
        open.push(caller);
    }
    let mut third = proxy.caller().await;
    third.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n").await;
    let early = third.try_answer(Duration::from_millis(300)).await;
    assert!(early.is_err(), "served beyond the limit: {early:?}");
    open.clear();
    match early.unwrap_err() {
        NoMessage::Late => assert_eq!(third.answer().await.status(), 200),
        // Closed at once is an answer too; the next one is served.
        _ => {
            eventually("a connection after others have ended", async || {
                let mut caller = proxy.caller().await;
                caller.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n").await;
                caller.try_answer(Duration::from_secs(1)).await.map_err(|reason| format!("{reason:?}"))
            })
            .await;
        }
    }
}

#[tokio::test]
async fn a_proxy_that_is_full_refuses_at_once_and_its_admin_listener_answers() {
    let upstream = Upstream::start(|mut conversation| async move {
        drop(conversation.request().await);
        conversation.hang().await;
    })
    .await;
    let mesh = service("app", "", &[upstream.address]) + "[services.other]\n";
    let limits = "[limits]\nrequests_in_flight = 3\nconnections = 4";
    let proxy = Proxy::start_with(ProxySettings::of_mesh(mesh).table(limits)).await;
    let mut waiting = Vec::new();
    for number in 1..=3 {
        let mut caller = proxy.caller().await;
        caller.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n").await;
        waiting.push(caller);
        eventually("the request at the app", async || match upstream.requests().len() {
            count if count == number => Ok(()),
            count => Err(count),
        })
        .await;
    }
    let mut caller = proxy.caller().await;
    // All services together, and whatever has been sent of a body.
    let answer = caller.ask("POST / HTTP/1.1\r\nHost: other\r\nContent-Length: 1000000\r\n\r\n").await;
    assert_eq!((answer.status(), answer.header("retry-after")), (503, Some("1")), "{answer:?}");
    assert!(answer.header("proxy-status").unwrap().contains("connection_limit_reached"), "{answer:?}");
    // That was the last connection; those who ask what is wrong have places of their own.
    for path in ["/livez", "/readyz", "/metrics", "/endpoints"] {
        assert_eq!(proxy.admin(path).await.status(), 200, "{path}");
    }
    waiting.pop();
    eventually("a place", async || {
        let mut caller = proxy.caller().await;
        caller.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n").await;
        match caller.try_answer(Duration::from_millis(300)).await {
            Err(NoMessage::Late) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn accepting_without_descriptors_left_does_not_spin_and_recovers() {
    let upstream = Upstream::start(|mut conversation| async move {
        while conversation.exchange(ok("fine")).await.is_some() {}
    })
    .await;
    let scratch = Scratch::new();
    let args = Proxy::prepare(&ProxySettings::of_mesh(service("app", "", &[upstream.address])), &scratch);
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", "ulimit -n 80; exec \"$0\" \"$@\""]).arg(program()).args(args);
    let process = gilmok_tests::process::Process::spawn(command, &scratch.path().join("proxy.log"));
    let proxy = Proxy::adopt(process, scratch).await;
    let mut crowd: Vec<Caller> = Vec::new();
    for _ in 0..100 {
        crowd.push(proxy.caller().await);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = gilmok_tests::observe::cpu_ticks(proxy.process.pid());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let spent = gilmok_tests::observe::cpu_ticks(proxy.process.pid()) - before;
    // A tick is 10 ms: a spinning accept would burn a hundred of them.
    assert!(spent < 50, "{spent} ticks in one second of waiting");
    drop(crowd);
    eventually("a request after the crowd", async || {
        let mut caller = proxy.caller().await;
        caller.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n").await;
        match caller.try_answer(Duration::from_secs(1)).await {
            Ok(answer) if answer.status() == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    proxy.process.signal(Signal::Terminate).await;
}
