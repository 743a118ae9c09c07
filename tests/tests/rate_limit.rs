//! Rate limits: who is refused, in what words, before its body is read, and that others are not.

use std::net::SocketAddr;
use std::time::Duration;

use gilmok_tests::caller::ask;
use gilmok_tests::message::Message;
use gilmok_tests::proxy::{Proxy, ProxySettings, service};
use gilmok_tests::upstream::Upstream;

fn mesh(limit: &str, endpoint: SocketAddr) -> String {
    format!("{}[services.app.rate_limit]\n{limit}\n", service("app", "", &[endpoint]))
}

/// GET with further header lines, each with its end.
async fn get(to: SocketAddr, lines: &str) -> Message {
    ask(to, format!("GET / HTTP/1.1\r\nHost: app\r\n{lines}\r\n")).await
}

async fn statuses(to: SocketAddr, lines: &str, requests: usize) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..requests {
        statuses.push(get(to, lines).await.status());
    }
    statuses
}

#[tokio::test]
async fn what_is_over_the_limit_is_refused_in_the_words_of_the_standards() {
    let upstream = Upstream::saying("fine").await;
    let proxy = Proxy::start(mesh("requests = 3\nper = \"1h\"", upstream.address)).await;
    assert_eq!(statuses(proxy.outbound(), "", 3).await, [200, 200, 200]);
    let answer = get(proxy.outbound(), "").await;
    assert_eq!(answer.status(), 429, "{answer:?}");
    assert_eq!(
        answer.header("proxy-status"),
        Some("gilmok; error=http_request_denied; details=\"the rate limit of the service is reached\"")
    );
    let seconds: u32 = answer.header("retry-after").unwrap_or_default().parse().expect("a number of seconds");
    assert!((1_100..=1_200).contains(&seconds), "a third of an hour: {seconds}");
    assert_eq!(answer.header("ratelimit"), Some(format!("\"default\";r=0;t={seconds}").as_str()));
    assert_eq!(answer.header("ratelimit-policy"), Some("\"default\";q=3;w=3600"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(upstream.requests().len(), 3);
    let refused = proxy.metric("gilmok_rate_limited_total", &["service=\"app\""]).await;
    assert!((refused - 1.0).abs() < f64::EPSILON, "{refused}");
    let counted = proxy.metric("gilmok_requests_total", &["service=\"app\"", "code=\"refused\""]).await;
    assert!((counted - 1.0).abs() < f64::EPSILON, "{counted}");
}

#[tokio::test]
async fn a_body_is_not_waited_for_and_grpc_is_told_in_its_own_words() {
    let upstream = Upstream::saying("fine").await;
    let proxy = Proxy::start(mesh("requests = 1\nper = \"1h\"", upstream.address)).await;
    assert_eq!(statuses(proxy.outbound(), "", 1).await, [200]);
    let mut caller = proxy.caller().await;
    caller.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 1000000\r\n\r\n").await;
    let answer = caller.answer().await;
    assert_eq!((answer.status(), answer.header("connection")), (429, Some("close")), "{answer:?}");
    let answer = get(proxy.outbound(), "Content-Type: application/grpc\r\n").await;
    assert_eq!((answer.status(), answer.header("grpc-status")), (200, Some("8")), "{answer:?}");
}

#[tokio::test]
async fn what_is_not_used_up_comes_back_at_the_even_rate() {
    let upstream = Upstream::saying("fine").await;
    let proxy = Proxy::start(mesh("requests = 20\nper = \"1s\"\nburst = 1", upstream.address)).await;
    let begin = std::time::Instant::now();
    let mut passed = 0_u32;
    while begin.elapsed() < Duration::from_millis(1_500) {
        passed += u32::from(proxy.get("app", "/").await.status() == 200);
    }
    let even = (begin.elapsed().as_secs_f64() * 20.0).ceil();
    assert!(f64::from(passed) <= even + 1.0 && passed >= 10, "{passed} of {even}");
}

#[tokio::test]
async fn each_subject_has_its_own_limit_and_a_reload_does_not_give_it_anew() {
    let upstream = Upstream::saying("fine").await;
    let limit =
        "requests = 2\nper = \"1h\"\nby = \"subject\"\nsubject = [\"header:x-user-id\", \"cookie:uid\"]";
    let proxy = Proxy::start(mesh(limit, upstream.address)).await;
    let to = proxy.outbound();
    assert_eq!(statuses(to, "X-User-Id: 1\r\n", 3).await, [200, 200, 429]);
    assert_eq!(statuses(to, "X-User-Id: 2\r\n", 1).await, [200]);
    assert_eq!(statuses(to, "Cookie: theme=dark; uid=2\r\n", 2).await, [200, 429], "the same one");
    assert_eq!(statuses(to, "", 3).await, [200, 200, 429], "without one it is the caller");
    proxy.reload(format!("{}[services.other]\n", mesh(limit, upstream.address))).await;
    assert_eq!(statuses(to, "X-User-Id: 1\r\n", 1).await, [429]);
    let other = limit.replace("requests = 2", "requests = 3");
    proxy.reload(mesh(&other, upstream.address)).await;
    assert_eq!(statuses(to, "X-User-Id: 1\r\n", 4).await, [200, 200, 200, 429], "another limit begins anew");
}

#[tokio::test]
async fn behind_somebody_trusted_the_caller_is_the_one_it_names() {
    let upstream = Upstream::saying("fine").await;
    let mesh = mesh("requests = 1\nper = \"1h\"\nby = \"caller\"", upstream.address);
    let routes = format!("{mesh}[[routes]]\nhosts = [\"app\"]\nservice = \"app\"\n");
    let settings = ProxySettings::of_mesh(routes).listen("edge = \"127.0.0.1:0\"");
    let proxy = Proxy::start_with(settings).await;
    let to = proxy.outbound();
    assert_eq!(statuses(to, "X-Forwarded-For: 192.0.2.1\r\n", 2).await, [200, 429]);
    assert_eq!(statuses(to, "X-Forwarded-For: 192.0.2.2\r\n", 1).await, [200]);
    assert_eq!(statuses(to, "X-Forwarded-For: 192.0.2.3, 192.0.2.1\r\n", 1).await, [429]);
    // At the edge everybody is a stranger, whatever it says.
    assert_eq!(statuses(proxy.edge(), "X-Forwarded-For: 192.0.2.7\r\n", 1).await, [200]);
    assert_eq!(statuses(proxy.edge(), "X-Forwarded-For: 192.0.2.8\r\n", 1).await, [429]);
}

#[tokio::test]
async fn all_workers_together_let_through_no_more_than_the_limit() {
    let upstream = Upstream::saying("fine").await;
    let mesh = mesh("requests = 50\nper = \"1h\"", upstream.address);
    let settings = ProxySettings::of_mesh(mesh).table("[workers]\ncount = 4");
    let proxy = Proxy::start_with(settings).await;
    let to = proxy.outbound();
    let callers = (0..20).map(|_| tokio::spawn(statuses(to, "", 10)));
    let mut passed = 0;
    for caller in callers.collect::<Vec<_>>() {
        passed += caller.await.expect("no caller panics").into_iter().filter(|status| *status == 200).count();
    }
    assert_eq!((passed, upstream.requests().len()), (50, 50));
}

#[tokio::test]
async fn the_proxy_beside_an_app_limits_what_comes_in() {
    let app = Upstream::saying("fine").await;
    let mesh = "[services.app]\n[services.app.rate_limit]\nrequests = 2\nper = \"1h\"\nby = \"caller\"\n";
    let proxy = Proxy::start_with(ProxySettings::of_mesh(mesh).app("app", app.address, "")).await;
    assert_eq!(statuses(proxy.inbound(0), "X-Forwarded-For: 192.0.2.1\r\n", 3).await, [200, 200, 429]);
    assert_eq!(statuses(proxy.inbound(0), "X-Forwarded-For: 192.0.2.2\r\n", 1).await, [200]);
    assert_eq!(app.requests().len(), 3);
}

#[tokio::test]
async fn what_was_answered_to_a_subject_is_no_last_good_answer_for_others() {
    let upstream = Upstream::saying("fine").await;
    let limit = "requests = 100\nby = \"subject\"\n[[services.app.fallback]]\nlast_good = {}";
    let proxy = Proxy::start(mesh(limit, upstream.address)).await;
    let to = proxy.outbound();
    let get = |path: &str, user: &str| ask(to, format!("GET {path} HTTP/1.1\r\nHost: app\r\n{user}\r\n"));
    let (nobody, one, two) = ("", "X-User-Id: 1\r\n", "X-User-Id: 2\r\n");
    for (path, user) in [("/common", nobody), ("/mine", one)] {
        assert_eq!(get(path, user).await.status(), 200);
    }
    drop(upstream);
    assert_eq!(get("/common", nobody).await.status(), 200, "the last good answer");
    for user in [nobody, one, two] {
        assert_eq!(get("/mine", user).await.status(), 502);
    }
}
