//! Endpoints that speak HTTP/2: streams they refuse, connections they end, and bodies they do not read.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use gilmok_tests::proxy::{Proxy, service};
use http::Response;
use tokio::task::JoinSet;

/// What an endpoint does with its n-th stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
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
                while let Some(Ok((_request, mut respond))) = connection.accept().await {
                    let answer = answers(counted.fetch_add(1, Ordering::SeqCst));
                    match answer {
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
