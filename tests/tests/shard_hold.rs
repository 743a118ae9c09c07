//! Callers of keys on their way to another shard: what may change one of them waits at the caller's proxy, is decided anew on
//! each new map, and is refused when none comes in time.

use std::net::SocketAddr;
use std::time::Duration;

use gilmok_tests::caller::{Caller, ask};
use gilmok_tests::eventually::eventually;
use gilmok_tests::h2_caller::H2Caller;
use gilmok_tests::message::Message;
use gilmok_tests::moving::{Patient, Step};
use gilmok_tests::proxy::{Proxy, ProxySettings};
use gilmok_tests::upstream::Upstream;
use http::Request;
use serde_json::{Value, json};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// How long a request waits.
const HOLD: Duration = Duration::from_secs(2);
/// Most requests that wait in one proxy.
const HELD_MAX: usize = 1_000;

/// The application of each shard; a proxy of their callers.
struct Mesh {
    zero: Upstream,
    one: Upstream,
    two: Upstream,
    proxy: Proxy,
}

impl Mesh {
    async fn start(step: Step, more: &str) -> Self {
        let (zero, one, two) =
            (Upstream::saying("zero").await, Upstream::saying("one").await, Upstream::saying("two").await);
        let endpoints = [("0", zero.address), ("1", one.address), ("2", two.address)];
        let proxy = Proxy::start(format!("{}{more}", step.mesh(&endpoints))).await;
        Self { zero, one, two, proxy }
    }

    async fn go_to(&self, step: Step) {
        let endpoints = [("0", self.zero.address), ("1", self.one.address), ("2", self.two.address)];
        self.proxy.reload(step.mesh(&endpoints)).await;
    }

    /// A request that waits.
    async fn held(&self, request: String) -> JoinHandle<Message> {
        let asking = tokio::spawn(ask(self.proxy.outbound(), request));
        is_held(&self.proxy, 1).await;
        asking
    }

    async fn outcome(&self, outcome: &str) -> usize {
        outcomes(&self.proxy, outcome).await
    }
}

fn post(key: &str, lines: &str) -> String {
    format!("POST /users/{key} HTTP/1.1\r\nHost: profile\r\nContent-Length: 5\r\n{lines}\r\nhello")
}

async fn send(to: SocketAddr, method: &str, key: &str) -> Message {
    ask(to, format!("{method} /users/{key} HTTP/1.1\r\nHost: profile\r\nContent-Length: 0\r\n\r\n")).await
}

async fn moving(proxy: &Proxy) -> Value {
    proxy.admin_json("/config").await["keys_on_their_way"][0].clone()
}

async fn is_held(proxy: &Proxy, many: usize) {
    eventually("requests that wait", async || {
        let moving = moving(proxy).await;
        if moving["held"] == json!(many) { Ok(()) } else { Err(moving) }
    })
    .await;
}

async fn outcomes(proxy: &Proxy, outcome: &str) -> usize {
    let outcome = format!("outcome=\"{outcome}\"");
    let sum = proxy.metric("gilmok_shard_held_total", &["service=\"profile\"", &outcome]).await;
    // The sum of nothing is -0.
    format!("{}", sum + 0.0).parse().expect("a whole number")
}

fn is_moving(answer: &Message) {
    assert_eq!((answer.status(), answer.header("retry-after")), (503, Some("1")), "{answer:?}");
    let status = "gilmok; error=destination_unavailable; details=\"shard=moving\"";
    assert_eq!(answer.header("proxy-status"), Some(status));
}

#[tokio::test]
async fn what_waits_goes_to_the_new_owner_and_everything_else_goes_on() {
    let mesh = Mesh::start(Step::Open, "").await;
    let to = mesh.proxy.outbound();
    assert_eq!(send(to, "POST", "1").await.text(), "one", "open: as before");
    mesh.go_to(Step::Closed).await;
    let waiting = mesh.held(post("1", "Gilmok-Explain: 1\r\n")).await;
    for method in ["GET", "OPTIONS"] {
        assert_eq!(send(to, method, "1").await.text(), "one", "{method}");
    }
    assert_eq!(send(to, "POST", "2").await.text(), "zero", "a key that does not move");
    assert_eq!(ask(to, "DELETE / HTTP/1.1\r\nHost: profile\r\n\r\n").await.status(), 200, "no key");
    let told = moving(&mesh.proxy).await;
    assert_eq!((&told["closed"], &told["epoch"]), (&json!(41), &json!(7)), "{told}");
    let explained = mesh.proxy.admin_json("/explain?service=profile&path=/users/1").await;
    assert_eq!(explained["decision"]["shard"]["moving"], json!(true), "{explained}");
    assert_eq!(
        (&explained["service"]["sharding"]["next"]["closed"], &explained["service"]["sharding"]["held"]),
        (&json!(41), &json!(1)),
        "{explained}"
    );
    // A snapshot that lets nothing through leaves it waiting.
    let endpoints = [("0", mesh.zero.address), ("1", mesh.one.address), ("2", mesh.two.address)];
    mesh.proxy.reload(format!("{}[services.other]\n", Step::Closed.mesh(&endpoints))).await;
    assert!(!waiting.is_finished());
    mesh.go_to(Step::Moved).await;
    let answer = waiting.await.unwrap();
    assert_eq!((answer.status(), answer.text()), (200, "two".to_owned()), "{answer:?}");
    assert!(answer.header("gilmok-decision").unwrap().contains("shard=2"), "decided anew: {answer:?}");
    // What has no key goes anywhere.
    let posts = |app: &Upstream| -> Vec<Message> {
        app.requests().into_iter().filter(|it| it.start.starts_with("POST")).collect()
    };
    let [got] = posts(&mesh.two).try_into().unwrap();
    assert_eq!((got.body.as_slice(), got.header("gilmok-shard")), (&b"hello"[..], Some("2")));
    assert!(got.header("gilmok-shard-map").unwrap().starts_with("8-"));
    assert_eq!(posts(&mesh.one).len(), 1, "while it was open");
    assert_eq!((mesh.outcome("moved").await, mesh.outcome("expired").await), (1, 0));
    let counted = mesh.proxy.metric("gilmok_requests_total", &["service=\"profile\""]).await;
    assert!((counted - 6.0).abs() < f64::EPSILON, "each request once: {counted}");
}

#[tokio::test]
async fn what_waits_goes_on_where_the_batch_is_opened_again() {
    let mesh = Mesh::start(Step::Closed, "").await;
    let waiting = mesh.held(post("1", "")).await;
    mesh.go_to(Step::Open).await;
    assert_eq!(waiting.await.unwrap().text(), "one");
    let waiting = {
        mesh.go_to(Step::Closed).await;
        mesh.held(post("3", "")).await
    };
    // Neither batch nor rule: the move was given up, and the keys are where they were.
    mesh.go_to(Step::Before).await;
    assert_eq!(waiting.await.unwrap().text(), "one");
    assert_eq!((mesh.outcome("reopened").await, mesh.outcome("moved").await), (2, 0));
}

#[tokio::test]
async fn what_has_waited_in_vain_is_refused_and_nothing_stands_in_for_it() {
    let fallback = "[[services.profile.fallback]]\nrespond = { status = 200, body = \"not this\" }\non = [\"open\", \"overflow\", \"no_endpoint\", \"5xx\"]\nmethods = [\"POST\"]\n";
    let mesh = Mesh::start(Step::Closed, fallback).await;
    let to = mesh.proxy.outbound();
    let began = Instant::now();
    let answer = ask(to, post("1", "")).await;
    is_moving(&answer);
    let took = began.elapsed();
    assert!(took >= HOLD, "{took:?}");
    assert!(answer.text().contains("closed by revision 41"), "{answer:?}");
    // Who gives less time gets its answer in that time.
    let began = Instant::now();
    is_moving(&ask(to, post("1", "Gilmok-Timeout: 100\r\n")).await);
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(100) && took < HOLD, "{took:?}");
    assert_eq!((mesh.outcome("expired").await, mesh.one.requests().len()), (2, 0));
    is_held(&mesh.proxy, 0).await;
    let answer = ask(to, post("1,2", "")).await;
    assert_eq!(answer.status(), 400, "keys of several shards wait for nothing: {answer:?}");
}

#[tokio::test]
async fn callers_from_outside_wait_at_the_edge_as_well() {
    let (one, two) = (Upstream::saying("one").await, Upstream::saying("two").await);
    let endpoints = [("1", one.address), ("2", two.address)];
    let route = "[[routes]]\nhosts = [\"shop.example\"]\npath_prefix = \"/api\"\nstrip_prefix = \"/api\"\nservice = \"profile\"\n";
    let mesh = |step: Step| format!("{}{route}", step.mesh(&endpoints));
    let settings = ProxySettings::of_mesh(mesh(Step::Closed)).listen("edge = \"127.0.0.1:0\"");
    let proxy = Proxy::start_with(settings).await;
    let request = |method: &str| {
        format!("{method} /api/users/1 HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 0\r\n\r\n")
    };
    let waiting = tokio::spawn(ask(proxy.edge(), request("PUT")));
    is_held(&proxy, 1).await;
    assert_eq!(ask(proxy.edge(), request("GET")).await.text(), "one");
    proxy.reload(mesh(Step::Moved)).await;
    assert_eq!(waiting.await.unwrap().text(), "two");
}

#[tokio::test]
async fn whoever_leaves_waits_no_longer() {
    let mesh = Mesh::start(Step::Closed, "").await;
    let mut caller = Caller::connect(mesh.proxy.outbound()).await;
    caller.send(post("1", "")).await;
    is_held(&mesh.proxy, 1).await;
    drop(caller);
    is_held(&mesh.proxy, 0).await;
    assert_eq!(mesh.outcome("expired").await, 0, "it left, and was not waited for");
    mesh.go_to(Step::Moved).await;
    assert_eq!(send(mesh.proxy.outbound(), "POST", "1").await.text(), "two");
    assert_eq!(mesh.two.requests().len(), 1, "what was left is not sent");
}

#[tokio::test]
async fn so_many_wait_and_no_more() {
    let (zero, one, two) =
        (Upstream::saying("zero").await, Upstream::saying("one").await, Upstream::saying("two").await);
    let endpoints = [("0", zero.address), ("1", one.address), ("2", two.address)];
    let limits = "[limits]\nh2_streams = 2000\n";
    let proxy = Proxy::start_with(ProxySettings::of_mesh(Step::Closed.mesh(&endpoints)).table(limits)).await;
    let caller = H2Caller::connect(proxy.outbound()).await.unwrap();
    let mut sender = caller.sender().await.unwrap();
    let mut answers = JoinSet::new();
    for _ in 0..HELD_MAX + 7 {
        let request = Request::post("http://profile/users/1").body(()).unwrap();
        sender = sender.ready().await.unwrap();
        let (answer, _) = sender.send_request(request, true).unwrap();
        answers.spawn(async move { gilmok_tests::h2_caller::read(answer).await.unwrap() });
    }
    for _ in 0..7 {
        let refused = answers.join_next().await.unwrap().unwrap();
        assert_eq!((refused.status, refused.field("retry-after")), (503, Some("1")));
        assert!(String::from_utf8_lossy(&refused.body).contains("wait already"), "{refused:?}");
    }
    assert_eq!(outcomes(&proxy, "overflow").await, 7);
    proxy.reload(Step::Moved.mesh(&endpoints)).await;
    let mut moved = 0;
    while let Some(answer) = answers.join_next().await {
        let answer = answer.unwrap();
        // On a busy machine some may have waited for too long.
        moved += usize::from(answer.status == 200);
        assert!(answer.status == 200 || answer.status == 503, "{answer:?}");
    }
    assert_eq!(outcomes(&proxy, "moved").await, moved);
    assert_eq!(two.requests().len(), moved);
}

#[tokio::test]
async fn what_is_under_way_is_counted_by_what_was_known_when_it_was_decided() {
    let (zero, one) = (Patient::start("zero").await, Patient::start("one").await);
    let two = Upstream::saying("two").await;
    let endpoints = [("0", zero.upstream.address), ("1", one.upstream.address), ("2", two.address)];
    let proxy = Proxy::start(Step::Before.mesh(&endpoints)).await;
    let to = proxy.outbound();
    let mut asking = JoinSet::new();
    let mut begin = async |path: &'static str, method: &'static str, app: &Patient| {
        let before = app.upstream.requests().len();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: profile\r\nContent-Length: 0\r\n\r\n");
        asking.spawn(ask(to, request));
        eventually("the request at its application", async || {
            let now = app.upstream.requests().len();
            if now > before { Ok(()) } else { Err(format!("{now} requests")) }
        })
        .await;
    };
    begin("/users/2/before", "POST", &zero).await;
    begin("/users/2/read-before", "GET", &zero).await;
    proxy.reload(Step::Open.mesh(&endpoints)).await;
    begin("/users/2/other", "POST", &zero).await;
    begin("/users/1/own", "PUT", &one).await;
    begin("/users/1/read", "GET", &one).await;
    proxy.reload(Step::Closed.mesh(&endpoints)).await;
    let calling = async || moving(&proxy).await["calling"].clone();
    assert_eq!(calling().await, json!(2), "its own, and the one from before it was known");
    let falls_to = async |many: u64| {
        eventually("what is under way", async || {
            let now = calling().await;
            if now == json!(many) { Ok(()) } else { Err(now) }
        })
        .await;
    };
    one.let_go("/users/1/own");
    falls_to(1).await;
    zero.let_go("/users/2/before");
    falls_to(0).await;
    for (app, path) in [(&zero, "/users/2/read-before"), (&zero, "/users/2/other"), (&one, "/users/1/read")] {
        app.let_go(path);
    }
    while let Some(answer) = asking.join_next().await {
        assert_eq!(answer.unwrap().status(), 200);
    }
}
