//! HTTP/2 callers that misuse the protocol (reference P8): they lose their connection, nobody else notices.

use std::time::Duration;

use gilmok_tests::caller::Caller;
use gilmok_tests::eventually::{SOON, eventually, within};
use gilmok_tests::h2_caller::{self, END_HEADERS, END_STREAM, Frame, H2Caller, PREFACE, frame, get_block};
use gilmok_tests::observe;
use gilmok_tests::proxy::{Proxy, service};
use gilmok_tests::upstream::{Upstream, ok};
use tokio::io::AsyncWriteExt;

async fn abuser(proxy: &Proxy) -> Caller {
    let mut caller = proxy.caller().await;
    caller.send(PREFACE).await;
    caller.send(frame(Frame::Settings, 0, 0, &[])).await;
    caller
}

/// An upstream that answers /fine and lets everything else hang.
async fn hanging() -> Upstream {
    Upstream::start(|mut conversation| async move {
        while let Some(request) = conversation.request().await {
            if request.start.contains("/fine") {
                conversation.send(ok("fine")).await;
            } else {
                conversation.hang().await;
                return;
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_rapid_reset_ends_the_connection_and_leaves_nothing_behind() {
    let upstream = hanging().await;
    let proxy = Proxy::start(service("app", "max_concurrent = 50", &[upstream.address])).await;
    let mut caller = abuser(&proxy).await;
    let mut bytes = Vec::new();
    for n in 0..5_000_u32 {
        let stream = 2 * n + 1;
        bytes.extend(frame(Frame::Headers, END_HEADERS | END_STREAM, stream, &get_block("app", "/hang")));
        bytes.extend(frame(Frame::RstStream, 0, stream, &8_u32.to_be_bytes()));
    }
    caller.send(bytes).await;
    assert!(caller.is_closed_within(Duration::from_secs(20)).await, "the connection stays");
    eventually("the upstream's calls to end", async || {
        if upstream.open() == 0 { Ok(()) } else { Err(format!("{} open", upstream.open())) }
    })
    .await;
    // All of max_concurrent is free again.
    let polite = H2Caller::connect(proxy.outbound()).await.unwrap();
    for _ in 0..60 {
        assert_eq!(polite.get("app", "/fine").await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn streams_that_are_reset_once_they_are_taken_up_end_the_connection() {
    let upstream = hanging().await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let polite = H2Caller::connect(proxy.outbound()).await.unwrap();
    let mut caller = abuser(&proxy).await;
    let mut closed = false;
    for batch in 0..200_u32 {
        let streams = (0..50).map(|n| 2 * (batch * 50 + n) + 1);
        let heads: Vec<u8> = streams
            .clone()
            .flat_map(|stream| {
                frame(Frame::Headers, END_HEADERS | END_STREAM, stream, &get_block("app", "/hang"))
            })
            .collect();
        caller.send(heads).await;
        // Long enough for the proxy to take them up, so that h2's own limit does not see them.
        closed = caller.is_closed_within(Duration::from_millis(5)).await;
        if closed {
            break;
        }
        let resets: Vec<u8> =
            streams.flat_map(|stream| frame(Frame::RstStream, 0, stream, &8_u32.to_be_bytes())).collect();
        caller.send(resets).await;
        assert_eq!(polite.get("app", "/fine").await.unwrap().status, 200);
    }
    assert!(closed || caller.is_closed_within(SOON).await, "the connection stays");
    eventually("the upstream's calls to end", async || {
        // One is the polite caller's.
        if upstream.open() <= 1 { Ok(()) } else { Err(format!("{} open", upstream.open())) }
    })
    .await;
    assert_eq!(polite.get("app", "/fine").await.unwrap().status, 200);
}

#[tokio::test]
async fn floods_of_frames_for_no_request_end_the_connection() {
    let upstream = hanging().await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let polite = H2Caller::connect(proxy.outbound()).await.unwrap();
    for (what, flood) in [
        ("PING", frame(Frame::Ping, 0, 0, &[0; 8])),
        ("SETTINGS", frame(Frame::Settings, 0, 0, &[0, 4, 0, 1, 0, 0])),
        ("PRIORITY", frame(Frame::Priority, 0, 1, &[0, 0, 0, 3, 1])),
    ] {
        let caller = abuser(&proxy).await;
        let (mut reading, mut writing) = caller.io.into_split();
        // The answers are read, so that nothing holds the flood back.
        let reading =
            tokio::spawn(async move { tokio::io::copy(&mut reading, &mut tokio::io::sink()).await });
        let many = flood.repeat(1_000);
        let flooding = async { while writing.write_all(&many).await.is_ok() {} };
        within(SOON, what, flooding).await;
        drop(reading.await);
        assert_eq!(polite.get("app", "/fine").await.unwrap().status, 200, "{what}");
    }
}

#[tokio::test]
async fn an_idle_connection_that_is_pinged_stays() {
    let upstream = hanging().await;
    let settings = gilmok_tests::proxy::ProxySettings::of_mesh(service("app", "", &[upstream.address]));
    let proxy = Proxy::start_with(settings.table("[limits]\nheader_timeout = \"200ms\"")).await;
    let mut caller = abuser(&proxy).await;
    // Pings are no head that fails to become complete.
    for _ in 0..10 {
        caller.send(frame(Frame::Ping, 0, 0, &[0; 8])).await;
        assert!(!caller.is_closed_within(Duration::from_millis(100)).await, "the connection ended");
    }
    caller.send(frame(Frame::Headers, END_HEADERS | END_STREAM, 1, &get_block("app", "/fine"))).await;
    eventually("an answer", async || if upstream.requests().is_empty() { Err("no request") } else { Ok(()) })
        .await;
}

#[tokio::test]
async fn a_cancelled_stream_ends_its_call_and_frees_its_place() {
    let upstream = hanging().await;
    let proxy = Proxy::start(service("app", "max_concurrent = 1", &[upstream.address])).await;
    let caller = H2Caller::connect(proxy.outbound()).await.unwrap();
    for round in 1..=5 {
        let request = http::Request::get("http://app/hang").body(()).unwrap();
        let (answer, mut sending) = caller.sender().await.unwrap().send_request(request, true).unwrap();
        eventually("the call at the upstream", async || {
            if upstream.requests().len() >= round {
                Ok(())
            } else {
                Err(format!("{}", upstream.requests().len()))
            }
        })
        .await;
        sending.send_reset(h2::Reason::CANCEL);
        drop(answer);
        eventually("the end of the call", async || if upstream.open() == 0 { Ok(()) } else { Err("open") })
            .await;
    }
    assert_eq!(caller.get("app", "/fine").await.unwrap().status, 200);
}

#[tokio::test]
async fn endless_continuation_frames_end_the_connection() {
    let upstream = hanging().await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let mut caller = abuser(&proxy).await;
    caller.send(frame(Frame::Headers, END_STREAM, 1, &get_block("app", "/fine"))).await;
    let filler: Vec<u8> = (0..100).flat_map(|_| h2_caller::literal(0x04, &"a".repeat(100))).collect();
    let before = observe::resident_bytes(proxy.process.pid());
    for _ in 0..2_000 {
        caller.send(frame(Frame::Continuation, 0, 1, &filler)).await;
    }
    assert!(caller.is_closed_within(Duration::from_secs(20)).await, "the connection stays");
    let grown = observe::resident_bytes(proxy.process.pid()).saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes more");
    assert!(upstream.requests().is_empty());
    assert_eq!(proxy.get("app", "/fine").await.status(), 200);
}

#[tokio::test]
async fn floods_of_small_frames_are_bounded_in_memory() {
    let upstream = hanging().await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let floods = [
        ("PING", frame(Frame::Ping, 0, 0, &[0; 8])),
        ("SETTINGS", frame(Frame::Settings, 0, 0, &[0, 4, 0, 1, 0, 0])),
        ("empty DATA", frame(Frame::Data, 0, 1, &[])),
    ];
    let before = observe::resident_bytes(proxy.process.pid());
    for (what, flood) in floods {
        let mut caller = abuser(&proxy).await;
        if what == "empty DATA" {
            // POST, so that DATA belongs there.
            let mut block = vec![0x83, 0x86];
            block.extend(h2_caller::literal(0x01, "app"));
            block.extend(h2_caller::literal(0x04, "/fine"));
            caller.send(frame(Frame::Headers, END_HEADERS, 1, &block)).await;
        }
        // Nothing is read, so that answers to the flood pile up where they would.
        let many = flood.repeat(20_000);
        let sending = tokio::time::timeout(Duration::from_secs(5), caller.send(&many));
        drop(sending.await);
        let grown = observe::resident_bytes(proxy.process.pid()).saturating_sub(before);
        assert!(grown < 16 << 20, "{what}: {grown} bytes more");
        assert_eq!(proxy.get("app", "/fine").await.status(), 200, "{what}");
    }
}

#[tokio::test]
async fn a_header_list_beyond_the_limit_is_refused() {
    let upstream = hanging().await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let caller = H2Caller::connect(proxy.outbound()).await.unwrap();
    let mut request = http::Request::get("http://app/fine");
    for n in 0..90 {
        request = request.header(format!("x-{n}"), "a".repeat(1_000));
    }
    match caller.ask(request.body(()).unwrap(), b"", None).await {
        Ok(answer) => assert_eq!(answer.status, 431, "{answer:?}"),
        Err(error) => assert!(error.downcast_ref::<h2::Error>().is_some(), "{error:#}"),
    }
    assert!(upstream.requests().is_empty());
    assert_eq!(proxy.get("app", "/fine").await.status(), 200);
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused_and_the_others_go_on() {
    let upstream = hanging().await;
    let settings = gilmok_tests::proxy::ProxySettings::of_mesh(service("app", "", &[upstream.address]));
    let proxy = Proxy::start_with(settings.table("[limits]\nh2_streams = 5")).await;
    let mut caller = abuser(&proxy).await;
    for n in 0..20_u32 {
        let head = frame(Frame::Headers, END_HEADERS | END_STREAM, 2 * n + 1, &get_block("app", "/hang"));
        caller.send(head).await;
    }
    eventually("the streams that are allowed", async || {
        if upstream.requests().len() >= 5 { Ok(()) } else { Err(format!("{}", upstream.requests().len())) }
    })
    .await;
    assert_eq!(proxy.get("app", "/fine").await.status(), 200);
    let hanging = upstream.requests().iter().filter(|request| request.start.contains("/hang")).count();
    assert_eq!(hanging, 5);
}
