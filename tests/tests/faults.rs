//! Real processes that stop, go on and die under load: nobody waits long, nothing is lost, every counter adds up.

use std::time::Duration;

use gilmok_tests::demo_app::DemoApp;
use gilmok_tests::eventually::eventually;
use gilmok_tests::load::{Ask, Load};
use gilmok_tests::observe;
use gilmok_tests::process::Signal;
use gilmok_tests::proxy::{Proxy, ProxySettings, service};

/// A guarded service whose fallback says so.
fn mesh(app: &DemoApp) -> String {
    let text = service("ads", "request_timeout = \"500ms\"", &[app.address]);
    format!(
        "{text}[services.ads.circuit_breaker]\nwindow = \"1s\"\nmin_requests = 5\nslow_call = \"100ms\"\n\
         slow_percent = 50\nopen_for = \"200ms\"\nopen_for_max = \"200ms\"\n\
         [[services.ads.fallback]]\nrespond = {{ body = \"house\" }}\n"
    )
}

async fn says(proxy: &Proxy, what: &str) {
    eventually(what, async || {
        let answer = proxy.get("ads", "/").await;
        assert_eq!(answer.status(), 200, "{answer:?}");
        let is_house = answer.text() == "house";
        if is_house == (what == "the fallback") { Ok(()) } else { Err(answer.text()) }
    })
    .await;
}

async fn counted(proxy: &Proxy, code: &str) -> f64 {
    let code = format!("code=\"{code}\"");
    proxy.metric("gilmok_requests_total", &["service=\"ads\"", &code]).await
}

/// Every request is in one code, in one histogram, and in no service's requests in flight any more.
async fn everything_adds_up(proxy: &Proxy, asked: u64) {
    eventually("all counters to add up", async || {
        let told = proxy.admin_json("/endpoints?service=ads").await;
        let in_flight = told["services"][0]["in_flight"].clone();
        let total = proxy.metric("gilmok_requests_total", &["service=\"ads\""]).await;
        let timed = proxy.metric("gilmok_request_duration_seconds_count", &["service=\"ads\""]).await;
        let given = proxy.metric("gilmok_fallbacks_total", &["service=\"ads\""]).await;
        let (whole, fallback) = (counted(proxy, "2xx").await, counted(proxy, "fallback").await);
        #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
        let sums = [total - asked as f64, timed - total, given - fallback, whole + fallback - total];
        let is_even = sums.iter().all(|sum| sum.abs() < f64::EPSILON);
        if is_even && in_flight == 0 { Ok(()) } else { Err(format!("{asked} {sums:?} {told}")) }
    })
    .await;
}

#[tokio::test]
async fn a_process_that_stops_goes_on_and_dies_fails_nobody() {
    let mut app = DemoApp::start("ads", "v1").await;
    let settings = ProxySettings::of_mesh(mesh(&app)).table("[workers]\ncount = 2");
    let proxy = Proxy::start_with(settings).await;
    let ask = Ask { rest: Duration::from_millis(10), ..Ask::of("ads") };
    let (http1, h2) = (Load::start(proxy.outbound(), 8, &ask), Load::start_h2(proxy.outbound(), 4, &ask));
    http1.flows(50).await;
    h2.flows(50).await;
    app.process.signal(Signal::Stop).await;
    // Far more than there is time for if each waited for its time-out.
    http1.flows(500).await;
    h2.flows(250).await;
    app.process.signal(Signal::Continue).await;
    let before = counted(&proxy, "2xx").await;
    eventually("real answers again", async || {
        let now = counted(&proxy, "2xx").await;
        if now > before + 100.0 { Ok(()) } else { Err(now - before) }
    })
    .await;
    app.process.kill().await;
    let before = counted(&proxy, "fallback").await;
    eventually("the fallback once it is dead", async || {
        let now = counted(&proxy, "fallback").await;
        if now > before + 100.0 { Ok(()) } else { Err(now - before) }
    })
    .await;
    let (http1, h2) = tokio::join!(http1.stop(), h2.stop());
    http1.expect_no_failure();
    h2.expect_no_failure();
    everything_adds_up(&proxy, http1.succeeded + h2.succeeded).await;
}

#[tokio::test]
async fn stopping_again_and_again_leaks_no_descriptor() {
    let app = DemoApp::start("ads", "v1").await;
    let proxy = Proxy::start(mesh(&app)).await;
    says(&proxy, "the application").await;
    let before = observe::descriptors(proxy.process.pid());
    for _ in 0..3 {
        app.process.signal(Signal::Stop).await;
        says(&proxy, "the fallback").await;
        app.process.signal(Signal::Continue).await;
        says(&proxy, "the application").await;
    }
    eventually("as many descriptors as before", async || {
        let now = observe::descriptors(proxy.process.pid());
        if now <= before + 1 { Ok(()) } else { Err(format!("{before} before, {now} now")) }
    })
    .await;
}
