//! Endpoints that speak HTTP/2: streams they refuse, connections they end, and bodies they do not read.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use gilmok_tests::h2_caller::{END_HEADERS, END_STREAM, Frame, H2Caller, PREFACE, frame};
use gilmok_tests::proxy::{Proxy, service};
use gilmok_tests::upstream::{Conversation, Upstream};
use http::Response;
use tokio::task::JoinSet;

/// What an endpoint does with its n-th stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Echo,
    Fine,
    GoAwayAfter,
    Refuse,
    Reset,
}

/// An HTTP/2 server that answers as told; the count is of the streams that it saw.
async fn server(
    answers: impl Fn(usize) -> Answer + Send + Sync + 'static,
) -> (SocketAddr, Arc<AtomicUsize>, JoinSet<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let seen = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&seen);
    let answers = Arc::new(answers);
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((io, _)) = listener.accept().await {
            let (answers, counted) = (Arc::clone(&answers), Arc::clone(&counted));
            connections.spawn(async move {
                let Ok(mut connection) = h2::server::handshake(io).await else { return };
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let answer = answers(counted.fetch_add(1, Ordering::SeqCst));
                    match answer {
                        Answer::Echo => drop(tokio::spawn(echo(request, respond))),
                        Answer::Refuse => respond.send_reset(h2::Reason::REFUSED_STREAM),
                        Answer::Reset => respond.send_reset(h2::Reason::INTERNAL_ERROR),
                        Answer::Fine | Answer::GoAwayAfter => {
                            let head = Response::builder().status(200).body(()).expect("a head");
                            let Ok(mut body) = respond.send_response(head, false) else { return };
                            drop(body.send_data(Bytes::from_static(b"fine"), true));
                            if answer == Answer::GoAwayAfter {
                                connection.graceful_shutdown();
                            }
                        }
                    }
                }
            });
        }
    });
    (address, seen, serving)
}

/// Says a request's body back.
async fn echo(request: http::Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
    let (mut body, mut bytes) = (request.into_body(), Vec::new());
    while let Some(Ok(data)) = body.data().await {
        drop(body.flow_control().release_capacity(data.len()));
        bytes.extend_from_slice(&data);
    }
    let head = Response::builder().status(200).body(()).expect("a head");
    if let Ok(mut answer) = respond.send_response(head, false) {
        drop(answer.send_data(bytes.into(), true));
    }
}

fn h2(endpoints: &[SocketAddr]) -> String {
    service("app", "protocol = \"h2\"\nload_balancer = \"round_robin\"", endpoints)
}

#[tokio::test]
async fn a_refused_stream_goes_to_another_endpoint() {
    let (refusing, refused, _one) = server(|_| Answer::Refuse).await;
    let (taking, taken, _other) = server(|_| Answer::Fine).await;
    let proxy = Proxy::start(h2(&[refusing, taking])).await;
    for _ in 0..10 {
        let answer = proxy.get("app", "/").await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, "fine"), "{answer:?}");
    }
    assert!(refused.load(Ordering::SeqCst) > 0);
    assert_eq!(taken.load(Ordering::SeqCst), 10);
}

#[tokio::test]
async fn a_stream_that_was_reset_is_not_tried_again() {
    let (address, seen, _serving) = server(|_| Answer::Reset).await;
    let (other, _, _serving_other) = server(|_| Answer::Reset).await;
    let proxy = Proxy::start(h2(&[address, other])).await;
    assert_eq!(proxy.get("app", "/").await.status(), 502);
    assert!(seen.load(Ordering::SeqCst) <= 1);
}

#[tokio::test]
async fn connections_that_say_goaway_are_left_without_a_failed_request() {
    // Every third answer is the last one of its connection.
    let (address, seen, _serving) =
        server(|n| if n % 3 == 2 { Answer::GoAwayAfter } else { Answer::Fine }).await;
    let proxy = Proxy::start(h2(&[address])).await;
    let mut caller = proxy.caller().await;
    for n in 0..60 {
        let answer = caller.ask("GET / HTTP/1.1\r\nHost: app\r\n\r\n").await;
        assert_eq!(answer.status(), 200, "request {n}: {answer:?}");
    }
    assert_eq!(seen.load(Ordering::SeqCst), 60);
}

/// Reads frames up to the next HEADERS and gives its stream; `None` at the end of the connection.
async fn next_stream(conversation: &mut Conversation, read: &mut Vec<u8>) -> Option<u32> {
    loop {
        while let [a, b, c, kind, _flags, w, x, y, z, ..] = read[..] {
            let end = 9 + u32::from_be_bytes([0, a, b, c]) as usize;
            if read.len() < end {
                break;
            }
            read.drain(..end);
            if kind == Frame::Headers as u8 {
                return Some(u32::from_be_bytes([w, x, y, z]));
            }
        }
        let more = conversation.bytes().await;
        if more.is_empty() {
            return None;
        }
        read.extend(more);
    }
}

/// An endpoint whose first connection says at its first stream that it took nothing beyond `last`, and ends; later
/// ones answer.
async fn going_away(last: u32, reason: h2::Reason) -> Upstream {
    Upstream::start(move |mut conversation| async move {
        let mut read = conversation.bytes().await;
        read.drain(..PREFACE.len());
        conversation.send(frame(Frame::Settings, 0, 0, &[])).await;
        while let Some(stream) = next_stream(&mut conversation, &mut read).await {
            if conversation.number == 0 {
                let told = [last.to_be_bytes(), u32::from(reason).to_be_bytes()].concat();
                conversation.send(frame(Frame::GoAway, 0, 0, &told)).await;
                return;
            }
            // `:status: 200` is 8 in the static table.
            conversation.send(frame(Frame::Headers, END_HEADERS, stream, &[0x88])).await;
            conversation.send(frame(Frame::Data, END_STREAM, stream, b"fine")).await;
        }
    })
    .await
}

#[tokio::test]
async fn streams_that_a_goaway_left_out_go_to_another_connection() {
    for reason in [h2::Reason::NO_ERROR, h2::Reason::ENHANCE_YOUR_CALM] {
        let upstream = going_away(0, reason).await;
        let proxy = Proxy::start(h2(&[upstream.address])).await;
        // Whatever the method: nothing of it was taken up.
        let answer =
            proxy.caller().await.ask("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, "fine"), "{reason:?}: {answer:?}");
        assert_eq!(upstream.connections(), 2);
        let retries = proxy.metric("gilmok_retries_total", &["service=\"app\""]).await;
        assert!((retries - 1.0).abs() < f64::EPSILON, "{retries} retries");
        let refused = proxy.metric("gilmok_upstream_attempts_total", &["outcome=\"refused\""]).await;
        assert!(refused.abs() < f64::EPSILON, "{refused} counted against the endpoint");
    }
}

#[tokio::test]
async fn streams_that_a_goaway_counts_as_taken_up_are_not_sent_again() {
    let upstream = going_away(1, h2::Reason::NO_ERROR).await;
    let proxy = Proxy::start(h2(&[upstream.address])).await;
    let answer = proxy.get("app", "/").await;
    assert_eq!(answer.status(), 502, "{answer:?}");
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn a_refused_stream_is_asked_once_more_where_there_is_only_one_endpoint() {
    let (address, seen, _serving) = server(|n| if n == 0 { Answer::Refuse } else { Answer::Fine }).await;
    let proxy = Proxy::start(h2(&[address])).await;
    let answer = proxy.get("app", "/").await;
    assert_eq!((answer.status(), answer.text().as_str()), (200, "fine"), "{answer:?}");
    assert_eq!(seen.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_refused_stream_takes_its_short_body_along() {
    let (address, seen, _serving) = server(|n| if n % 2 == 0 { Answer::Refuse } else { Answer::Echo }).await;
    let proxy = Proxy::start(h2(&[address])).await;
    for n in 0..50 {
        let body = format!("body {n}");
        let head = format!("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: {}\r\n\r\n", body.len());
        let answer = proxy.caller().await.ask(head + &body).await;
        assert_eq!((answer.status(), answer.text()), (200, body), "{answer:?}");
    }
    // As gRPC calls come.
    let caller = H2Caller::connect(proxy.outbound()).await.unwrap();
    for n in 0..50 {
        let body = format!("body {n}").into_bytes();
        let request = http::Request::post("http://app/").body(()).unwrap();
        let answer = caller.ask(request, &body, None).await.unwrap();
        assert_eq!((answer.status, answer.body), (200, body));
    }
    assert_eq!(seen.load(Ordering::SeqCst), 200);
}

#[tokio::test]
async fn a_refused_stream_with_a_long_body_is_not_sent_again() {
    let (address, seen, _serving) = server(|_| Answer::Refuse).await;
    let proxy = Proxy::start(h2(&[address])).await;
    let body = "b".repeat(100_000);
    let head = "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 100000\r\n\r\n".to_owned();
    let answer = proxy.caller().await.ask(head + &body).await;
    assert_eq!((answer.status(), seen.load(Ordering::SeqCst)), (502, 1), "{answer:?}");
}

#[tokio::test]
async fn an_endpoint_that_allows_few_streams_gets_more_connections() {
    const AT_ONCE: usize = 8;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // Answers once all of them are there.
    let all = Arc::new(tokio::sync::Barrier::new(AT_ONCE));
    let _serving = tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            let all = Arc::clone(&all);
            tokio::spawn(async move {
                let handshake = h2::server::Builder::new().max_concurrent_streams(2).handshake(io);
                let mut connection = handshake.await.expect("a proxy that speaks HTTP/2");
                while let Some(Ok((request, respond))) = connection.accept().await {
                    let all = Arc::clone(&all);
                    tokio::spawn(async move {
                        if request.uri().path() == "/together" {
                            all.wait().await;
                        }
                        echo(request, respond).await;
                    });
                }
            });
        }
    });
    let proxy = Proxy::start(h2(&[address])).await;
    for _ in 0..3 {
        assert_eq!(proxy.get("app", "/alone").await.status(), 200);
    }
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..AT_ONCE {
        let mut caller = proxy.caller().await;
        callers
            .spawn(async move { caller.ask("GET /together HTTP/1.1\r\nHost: app\r\n\r\n").await.status() });
    }
    assert_eq!(callers.join_all().await, [200; AT_ONCE]);
}

#[tokio::test]
async fn callers_that_wait_for_a_connection_wait_no_longer_than_its_connect_timeout() {
    // A listener whose queue is full drops what comes next, so that connecting hangs.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let hanging = listener.local_addr().unwrap();
    let mut filling = Vec::new();
    for _ in 0..8 {
        let connecting = tokio::net::TcpStream::connect(hanging);
        match tokio::time::timeout(Duration::from_millis(200), connecting).await {
            Ok(connected) => filling.push(connected.unwrap()),
            Err(_) => break,
        }
    }
    let (fine, _seen, _serving) = server(|_| Answer::Fine).await;
    let policy = "protocol = \"h2\"\nload_balancer = \"round_robin\"\nconnect_timeout = \"500ms\"\nrequest_timeout = \"3s\"";
    let proxy = Proxy::start(service("app", policy, &[hanging, fine])).await;
    let mut callers = tokio::task::JoinSet::new();
    // Half of them want the connection that hangs: more than fit into request_timeout one after the other.
    for _ in 0..16 {
        let mut caller = proxy.caller().await;
        callers.spawn(async move { caller.ask("GET / HTTP/1.1\r\nHost: app\r\n\r\n").await.status() });
    }
    assert_eq!(callers.join_all().await, [200; 16]);
}

#[tokio::test]
async fn many_callers_share_few_connections() {
    let (address, _seen, _serving) = server(|_| Answer::Fine).await;
    let proxy = Proxy::start(h2(&[address])).await;
    let ask = gilmok_tests::load::Ask::of("app");
    let load = gilmok_tests::load::Load::start(proxy.outbound(), 50, &ask);
    load.flows(1_000).await;
    let outcome = load.stop().await;
    outcome.expect_no_failure();
}
