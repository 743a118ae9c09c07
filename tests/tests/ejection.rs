//! Endpoints whose calls fail in a row are left out, at most so many, and come back by themselves.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gilmok_tests::eventually::eventually;
use gilmok_tests::proxy::{Proxy, service};
use gilmok_tests::upstream::{Upstream, ok};

const BROKEN: &[u8] = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 3\r\n\r\nbad";

/// Answers 500 while it is sick.
async fn fickle(is_sick: &Arc<AtomicBool>) -> Upstream {
    let is_sick = Arc::clone(is_sick);
    Upstream::start(move |mut conversation| {
        let is_sick = Arc::clone(&is_sick);
        async move {
            while conversation.request().await.is_some() {
                let answer = if is_sick.load(Ordering::SeqCst) { BROKEN.to_vec() } else { ok("fine") };
                if !conversation.send(answer).await {
                    return;
                }
            }
        }
    })
    .await
}

/// Round robin, so that every endpoint gets its calls.
fn mesh(endpoints: &[SocketAddr]) -> String {
    let table = "[services.app.outlier_detection]\nconsecutive_failures = 2\nbase_ejection = \"3s\"\n";
    let text = service("app", "load_balancer = \"round_robin\"", endpoints);
    format!("{text}{table}")
}

async fn failed_of(proxy: &Proxy, calls: usize) -> usize {
    let mut failed = 0;
    for _ in 0..calls {
        failed += usize::from(proxy.get("app", "/").await.status() != 200);
    }
    failed
}

#[tokio::test]
async fn a_failing_endpoint_is_left_out_and_comes_back_when_it_is_well() {
    let is_sick = Arc::new(AtomicBool::new(true));
    let sick = fickle(&is_sick).await;
    let (one, other) = (Upstream::saying("fine").await, Upstream::saying("fine").await);
    let proxy = Proxy::start(mesh(&[sick.address, one.address, other.address])).await;
    assert_eq!(failed_of(&proxy, 30).await, 2, "two in a row, then no more");
    let peer = format!("endpoint=\"{}\"", sick.address);
    assert!((proxy.metric("gilmok_endpoint_ejected", &[&peer]).await - 1.0).abs() < f64::EPSILON);
    assert!((proxy.metric("gilmok_ejections_total", &["service=\"app\""]).await - 1.0).abs() < f64::EPSILON);
    let told = proxy.admin_json("/endpoints?service=app").await;
    assert_eq!(told["services"][0]["endpoints"][0]["ejected"], true, "{told}");
    assert_eq!(told["services"][0]["endpoints"][0]["eligible"], false, "{told}");
    is_sick.store(false, Ordering::SeqCst);
    let before = sick.requests().len();
    eventually("calls at the endpoint that is well again", async || {
        let answer = proxy.get("app", "/").await;
        assert_eq!(answer.status(), 200, "{answer:?}");
        if sick.requests().len() > before { Ok(()) } else { Err("none yet") }
    })
    .await;
    assert!(proxy.metric("gilmok_endpoint_ejected", &[&peer]).await.abs() < f64::EPSILON);
}

#[tokio::test]
async fn when_all_fail_half_of_them_stay_and_it_is_told() {
    let sick = [Upstream::answering(BROKEN).await, Upstream::answering(BROKEN).await];
    let proxy = Proxy::start(mesh(&[sick[0].address, sick[1].address])).await;
    for _ in 0..12 {
        // The application's own answer, not one of the proxy's.
        assert_eq!(proxy.get("app", "/").await.status(), 500);
    }
    let ejected = proxy.metric("gilmok_endpoint_ejected", &["service=\"app\""]).await;
    assert!((ejected - 1.0).abs() < f64::EPSILON, "{ejected}");
    assert!(proxy.metric("gilmok_ejections_refused_total", &["service=\"app\""]).await >= 1.0);
}

#[tokio::test]
async fn an_endpoint_whose_answers_break_off_in_their_bodies_is_left_out() {
    let broken = Upstream::start(|mut conversation| async move {
        drop(conversation.request().await);
        conversation.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it").await;
        conversation.reset();
    })
    .await;
    let fine = Upstream::saying("fine").await;
    let proxy = Proxy::start(mesh(&[broken.address, fine.address])).await;
    let mut broke_off = 0;
    for _ in 0..20 {
        let answer = proxy.get("app", "/").await;
        assert_eq!(answer.status(), 200);
        broke_off += usize::from(!answer.is_complete);
    }
    assert_eq!(broke_off, 2, "two in a row, then no more, although every head was good");
}
