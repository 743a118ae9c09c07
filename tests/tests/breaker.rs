//! Breakers: what opens them and what does not, what they let through, and how they find out that all is well.

use std::sync::Mutex;
use std::time::Duration;

use gilmok_tests::caller;
use gilmok_tests::eventually::eventually;
use gilmok_tests::proxy::{Proxy, service};
use gilmok_tests::sick::{Sick, Sickness};
use gilmok_tests::upstream::Upstream;

const TABLE: &str = "[services.app.circuit_breaker]\n";

fn mesh(policy: &str, breaker: &str, sick: &Sick) -> String {
    format!("{}{TABLE}{breaker}\n", service("app", policy, &[sick.upstream.address]))
}

async fn is_open(proxy: &Proxy) -> bool {
    proxy.admin_json("/breakers?service=app").await["breakers"][0]["state"] == "open"
}

/// Calls until a breaker refuses; how many calls that took.
async fn until_refused(proxy: &Proxy, most: usize) -> usize {
    for n in 0..most {
        let answer = proxy.get("app", "/").await;
        if answer.header("proxy-status").is_some_and(|said| said.contains("breaker=open")) {
            assert_eq!(answer.status(), 503, "{answer:?}");
            assert!(answer.header("retry-after").is_some(), "{answer:?}");
            assert!(is_open(proxy).await);
            return n;
        }
    }
    panic!("not refused after {most} calls: {}", proxy.admin_json("/breakers").await);
}

#[tokio::test]
async fn it_opens_by_the_share_of_failures_and_closes_when_a_probe_comes_back() {
    let app = Sick::start("well").await;
    let proxy = Proxy::start(mesh("", "min_requests = 5\nopen_for = \"500ms\"", &app)).await;
    for _ in 0..4 {
        assert_eq!(proxy.get("app", "/").await.status(), 200);
    }
    app.is(Sickness::status(500));
    assert_eq!(until_refused(&proxy, 20).await, 4, "four of eight are half");
    let asked = app.asked();
    assert_eq!(proxy.get("app", "/").await.status(), 503);
    assert_eq!(app.asked(), asked, "refused, not sent");
    app.is(Sickness::None);
    eventually("it to close", async || {
        let answer = proxy.get("app", "/").await;
        let told = proxy.admin_json("/breakers").await;
        if answer.status() == 200 && told["breakers"][0]["state"] == "closed" {
            Ok(())
        } else {
            Err(told.to_string())
        }
    })
    .await;
    for (to, times) in [("open", 1.0), ("half_open", 1.0), ("closed", 1.0)] {
        let label = format!("to=\"{to}\"");
        let entered = proxy.metric("gilmok_breaker_transitions_total", &["service=\"app\"", &label]).await;
        assert!(entered >= times, "{to}: {entered}");
    }
}

#[tokio::test]
async fn what_hangs_opens_it_long_before_the_time_out() {
    let app = Sick::start("well").await;
    let breaker = "min_requests = 3\nslow_call = \"50ms\"\nopen_for = \"1m\"";
    let proxy = Proxy::start(mesh("request_timeout = \"1m\"", breaker, &app)).await;
    app.is(Sickness::Hangs);
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let mut caller = proxy.caller().await;
        caller.send(caller::get("app", "/")).await;
        waiting.push(caller);
    }
    eventually("it to open", async || if is_open(&proxy).await { Ok(()) } else { Err("closed") }).await;
    assert_eq!(proxy.get("app", "/").await.status(), 503);
    assert_eq!(app.asked(), 3);
}

#[tokio::test]
async fn failures_in_a_row_open_it_whatever_the_window_says() {
    let app = Sick::start("well").await;
    let proxy = Proxy::start(mesh("", "consecutive_failures = 3\nopen_for = \"1m\"", &app)).await;
    app.is(Sickness::Resets);
    assert_eq!(until_refused(&proxy, 20).await, 3);
}

#[tokio::test]
async fn answers_below_500_and_callers_who_leave_are_no_failures() {
    let app = Sick::start("well").await;
    let proxy = Proxy::start(mesh("", "min_requests = 2\nconsecutive_failures = 2", &app)).await;
    app.is(Sickness::status(429));
    for _ in 0..10 {
        assert_eq!(proxy.get("app", "/").await.status(), 429);
    }
    app.is(Sickness::Hangs);
    for n in 1..=5 {
        let mut caller = proxy.caller().await;
        caller.send(caller::get("app", "/")).await;
        eventually(
            "the call at the app",
            async || if app.asked() == 10 + n { Ok(()) } else { Err(app.asked()) },
        )
        .await;
        drop(caller);
    }
    eventually("the calls to be given up", async || {
        let left = proxy.metric("gilmok_upstream_attempts_total", &["outcome=\"cancelled\""]).await;
        if left >= 5.0 { Ok(()) } else { Err(left) }
    })
    .await;
    assert!(!is_open(&proxy).await);
    app.is(Sickness::None);
    assert_eq!(proxy.get("app", "/").await.status(), 200);
}

#[tokio::test]
async fn a_bad_shard_or_version_leaves_the_others_alone() {
    for (key, scope) in [("shard", "shard"), ("version", "version"), ("shard", "target")] {
        let (bad, good) = (Sick::start("bad").await, Sick::start("good").await);
        bad.is(Sickness::status(503));
        let mesh = format!(
            "[[services.app.endpoints]]\naddress = \"{}\"\n{key} = \"a\"\n\
             [[services.app.endpoints]]\naddress = \"{}\"\n{key} = \"b\"\n\
             {TABLE}scope = \"{scope}\"\nmin_requests = 5\nopen_for = \"1m\"\n",
            bad.upstream.address, good.upstream.address
        );
        let proxy = Proxy::start(mesh).await;
        // Either may be chosen while both are closed.
        for _ in 0..40 {
            proxy.get("app", "/").await;
        }
        let asked = bad.asked();
        assert_eq!(asked, 5, "{scope}: {}", proxy.admin_json("/breakers").await);
        for _ in 0..20 {
            assert_eq!(proxy.get("app", "/").await.text(), "good", "{scope}");
        }
        let open = proxy.metric("gilmok_breaker_state", &[&format!("{key}=\"a\"")]).await;
        let closed = proxy.metric("gilmok_breaker_state", &[&format!("{key}=\"b\"")]).await;
        assert!((open - 2.0).abs() < f64::EPSILON && closed.abs() < f64::EPSILON, "{scope}: {open} {closed}");
    }
}

#[tokio::test]
async fn no_more_probes_go_out_than_may_be_in_flight() {
    let app = Sick::start("well").await;
    let breaker = "consecutive_failures = 1\nopen_for = \"200ms\"\nhalf_open_requests = 2";
    let proxy = Proxy::start(mesh("request_timeout = \"1m\"", breaker, &app)).await;
    app.is(Sickness::status(500));
    assert_eq!(until_refused(&proxy, 5).await, 1);
    app.is(Sickness::Hangs);
    let before = app.asked();
    // Most are refused at once; two hang.
    let waiting = Mutex::new(Vec::new());
    eventually("two probes at the app", async || {
        let mut caller = proxy.caller().await;
        caller.send(caller::get("app", "/")).await;
        waiting.lock().unwrap().push(caller);
        if app.asked() == before + 2 { Ok(()) } else { Err(app.asked()) }
    })
    .await;
    for _ in 0..10 {
        assert_eq!(proxy.get("app", "/").await.status(), 503);
    }
    assert_eq!(app.asked(), before + 2);
}

#[tokio::test]
async fn operators_open_it_in_a_service_that_has_none_and_close_one_that_would_open() {
    let app = Sick::start("well").await;
    let forced = |state: &str| {
        format!(
            "{}[[services.app.forced_breakers]]\nstate = \"{state}\"\nby = \"ann\"\n",
            service("app", "", &[app.upstream.address])
        )
    };
    let proxy = Proxy::start(forced("open")).await;
    let answer = proxy.get("app", "/").await;
    assert_eq!((answer.status(), app.asked()), (503, 0), "{answer:?}");
    let told = proxy.admin_json("/breakers").await;
    assert_eq!(
        (&told["breakers"][0]["forced"]["by"], &told["breakers"][0]["state"]),
        (&"ann".into(), &"open".into())
    );
    proxy.reload(format!("{}{TABLE}consecutive_failures = 1\n", forced("closed"))).await;
    app.is(Sickness::status(500));
    for _ in 0..5 {
        assert_eq!(proxy.get("app", "/").await.status(), 500, "the application's own");
    }
    proxy.reload(mesh("", "consecutive_failures = 1\nopen_for = \"1m\"", &app)).await;
    assert_eq!(until_refused(&proxy, 5).await, 1);
}

#[tokio::test]
async fn no_sickness_of_the_application_leaks_anything() {
    let app = Sick::start("well").await;
    let breaker = "min_requests = 3\nslow_call = \"50ms\"\nopen_for = \"100ms\"\nopen_for_max = \"100ms\"";
    let proxy = Proxy::start(mesh("request_timeout = \"300ms\"", breaker, &app)).await;
    for sickness in [
        Sickness::Hangs,
        Sickness::Resets,
        Sickness::Slow(Duration::from_millis(200)),
        Sickness::Answers(b"\x16\x03\x01 garbage\r\n\r\n".to_vec()),
        Sickness::Answers(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf".to_vec()),
        Sickness::Trickles,
    ] {
        app.is(sickness);
        for _ in 0..8 {
            let mut caller = proxy.caller().await;
            caller.send(caller::get("app", "/")).await;
            // Whatever comes: an answer, a fault, half an answer, nothing.
            drop(caller.try_answer(Duration::from_millis(400)).await);
        }
    }
    app.is(Sickness::None);
    eventually("all to be well, and nothing in flight", async || {
        let answer = proxy.get("app", "/").await;
        let told = proxy.admin_json("/endpoints?service=app").await;
        let service = &told["services"][0];
        let idle = service["in_flight"] == 0 && service["endpoints"][0]["in_flight"] == 0;
        if answer.status() == 200 && idle { Ok(()) } else { Err(told.to_string()) }
    })
    .await;
    // One for each request of the above and of the waiting, and none twice.
    let (ended, called) = (
        proxy.metric("gilmok_requests_total", &["service=\"app\""]).await,
        proxy.metric("gilmok_request_duration_seconds_count", &["service=\"app\""]).await,
    );
    assert!((ended - called).abs() < f64::EPSILON && ended >= 49.0, "{ended} {called}");
}

#[tokio::test]
async fn answers_that_break_off_in_their_bodies_count() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\nConnection: close\r\n\r\nhalf of it";
    let broken = Upstream::start(move |mut conversation| async move {
        drop(conversation.request().await);
        conversation.send(head).await;
        conversation.reset();
    })
    .await;
    let text = service("app", "", &[broken.address]);
    for opens in ["min_requests = 4", "consecutive_failures = 4"] {
        let proxy = Proxy::start(format!("{text}{TABLE}{opens}\nopen_for = \"1m\"\n")).await;
        for _ in 0..4 {
            let mut caller = proxy.caller().await;
            caller.send(caller::get("app", "/")).await;
            drop(caller.try_answer(Duration::from_secs(5)).await);
        }
        eventually("it to open", async || if is_open(&proxy).await { Ok(()) } else { Err(opens) }).await;
    }
}
