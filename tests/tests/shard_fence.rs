//! Owners of keys on their way to another shard: the proxy beside an owner closes the batch, and says whose a key is, whatever
//! callers know.

use std::net::SocketAddr;

use gilmok_tests::caller::{Caller, ask};
use gilmok_tests::eventually::eventually;
use gilmok_tests::h2_caller::H2Caller;
use gilmok_tests::message::Message;
use gilmok_tests::moving::{Patient, Step};
use gilmok_tests::proxy::{Proxy, ProxySettings};
use gilmok_tests::upstream::Upstream;
use http::Request;
use serde_json::json;
use tokio::task::JoinSet;

/// The applications of two shards with the proxies beside them, and a proxy of their callers.
struct Mesh {
    one: Upstream,
    two: Upstream,
    old: Proxy,
    new: Proxy,
    caller: Proxy,
}

impl Mesh {
    /// How far the move is for the old owner, the new one and the caller.
    async fn start(old: Step, new: Step, caller: Step) -> Self {
        Self::start_with(old, new, caller, "").await
    }

    async fn start_with(old: Step, new: Step, caller: Step, more: &str) -> Self {
        let (one, two) = (Upstream::saying("one").await, Upstream::saying("two").await);
        let (old, new) = (owner(old, one.address, "1").await, owner(new, two.address, "2").await);
        let text = format!("{}{more}", caller.mesh_with(&endpoints(&old, &new), "inbound = true"));
        let caller = Proxy::start(text).await;
        Self { one, two, old, new, caller }
    }

    async fn post(&self, key: &str) -> Message {
        ask(self.caller.outbound(), post(key)).await
    }
}

fn endpoints<'s>(old: &Proxy, new: &Proxy) -> [(&'s str, SocketAddr); 3] {
    // Shard 0 has nothing to do with it.
    [("0", SocketAddr::from(([127, 0, 0, 1], 1))), ("1", old.inbound(0)), ("2", new.inbound(0))]
}

async fn owner(step: Step, app: SocketAddr, shard: &str) -> Proxy {
    let settings = ProxySettings::of_mesh(step.mesh(&[]));
    Proxy::start_with(settings.app("profile", app, &format!("shard = \"{shard}\"\n"))).await
}

fn post(key: &str) -> String {
    format!("POST /users/{key} HTTP/1.1\r\nHost: profile\r\nContent-Length: 5\r\n\r\nhello")
}

fn get(key: &str) -> String {
    format!("GET /users/{key} HTTP/1.1\r\nHost: profile\r\n\r\n")
}

async fn is_held(owner: &Proxy) {
    eventually("a request that waits", async || {
        let held = owner.admin_json("/config").await["keys_on_their_way"][0]["held"].clone();
        if held == json!(1) { Ok(()) } else { Err(held) }
    })
    .await;
}

/// A request that waits at the owner.
async fn wait_at(owner: &Proxy, to: SocketAddr, request: String) -> tokio::task::JoinHandle<Message> {
    let asking = tokio::spawn(ask(to, request));
    is_held(owner).await;
    asking
}

async fn sum(proxy: &Proxy, metric: &str) -> String {
    // The sum of nothing is -0.
    format!("{}", proxy.metric(metric, &["service=\"profile\""]).await + 0.0)
}

fn is_elsewhere(answer: &Message, shard: &str) {
    assert_eq!((answer.status(), answer.header("gilmok-shard")), (421, Some(shard)), "{answer:?}");
    let map = answer.header("gilmok-shard-map").unwrap_or_default();
    assert!(map.starts_with("8-"), "{answer:?}");
    let status = "gilmok; error=http_request_error; details=\"shard=elsewhere\"";
    assert_eq!(answer.header("proxy-status"), Some(status));
}

#[tokio::test]
async fn an_owner_that_has_lost_a_key_says_whose_it_is_whatever_is_asked() {
    let app = Upstream::saying("one").await;
    let old = owner(Step::Moved, app.address, "1").await;
    let to = old.inbound(0);
    for request in [post("1"), get("1"), get("3")] {
        is_elsewhere(&ask(to, request).await, "2");
    }
    is_elsewhere(&ask(to, post("2")).await, "0");
    let grpc = "POST /users/1 HTTP/1.1\r\nHost: profile\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\n\r\n";
    is_elsewhere(&ask(to, grpc).await, "2");
    let h2 = H2Caller::connect(to).await.unwrap();
    let request = Request::post("http://profile/users/1").body(()).unwrap();
    let answer = h2.ask(request, b"hello", None).await.unwrap();
    assert_eq!((answer.status, answer.field("gilmok-shard")), (421, Some("2")));
    assert!(app.requests().is_empty(), "the application sees nothing of it");
    assert_eq!(sum(&old, "gilmok_shard_misdirected_total").await, "6");
    // Whoever says no key asks for nobody else's.
    for path in ["/", "/users/", "/users/me"] {
        let answer = ask(to, format!("DELETE {path} HTTP/1.1\r\nHost: profile\r\n\r\n")).await;
        assert_eq!(answer.text(), "one", "{path}");
    }
    let several = ask(to, post("1,2")).await;
    assert_eq!(several.status(), 400, "{several:?}");
    assert!(several.text().contains("1 on 2, 2 on 0"), "{several:?}");
}

#[tokio::test]
async fn an_app_without_a_shard_or_a_service_without_a_rule_serves_everything() {
    let app = Upstream::saying("app").await;
    let settings = ProxySettings::of_mesh(Step::Closed.mesh(&[])).app("profile", app.address, "");
    let proxy = Proxy::start_with(settings.app("other", app.address, "shard = \"0\"\n")).await;
    for at in [0, 1] {
        assert_eq!(ask(proxy.inbound(at), post("1")).await.text(), "app");
    }
    assert!(!proxy.metrics().await.contains("gilmok_shard_misdirected_total"), "nobody owns anything");
}

#[tokio::test]
async fn before_anything_is_in_force_nobody_is_let_through() {
    let app = Upstream::saying("one").await;
    let nobody = "127.0.0.1:1".parse().unwrap();
    let settings = ProxySettings::of_control_planes(&[nobody]).app("profile", app.address, "shard = \"1\"\n");
    let proxy = Proxy::start_unready(settings, gilmok_tests::scratch::Scratch::new()).await;
    let answer = ask(proxy.inbound(0), post("1")).await;
    assert_eq!((answer.status(), app.requests().len()), (503, 0), "{answer:?}");
}

#[tokio::test]
async fn a_stale_caller_meets_the_new_owner() {
    let mesh = Mesh::start(Step::Moved, Step::Moved, Step::Open).await;
    let answer = mesh.post("1").await;
    assert_eq!((answer.status(), answer.text()), (200, "two".to_owned()), "{answer:?}");
    let got = mesh.two.only_request().await;
    assert_eq!((got.body.as_slice(), got.header("gilmok-shard")), (&b"hello"[..], Some("2")));
    assert_eq!(ask(mesh.caller.outbound(), get("1")).await.text(), "two");
    assert!(mesh.one.requests().is_empty());
    assert_eq!(sum(&mesh.caller, "gilmok_shard_redirects_total").await, "2");
    // One who does not know that there is such a shard cannot follow.
    mesh.caller.reload(Step::Before.mesh_with(&endpoints(&mesh.old, &mesh.new), "inbound = true")).await;
    let answer = mesh.post("1").await;
    assert_eq!((answer.status(), answer.header("retry-after")), (503, Some("1")), "{answer:?}");
}

#[tokio::test]
async fn a_body_on_its_way_to_the_old_owner_arrives_whole_at_the_new_one() {
    let mesh = Mesh::start(Step::Moved, Step::Moved, Step::Open).await;
    let post = async |length: usize, chunked: bool| {
        let mut caller = Caller::connect(mesh.caller.outbound()).await;
        let body = vec![b'x'; length];
        let framing = if chunked {
            "Transfer-Encoding: chunked".to_owned()
        } else {
            format!("Content-Length: {length}")
        };
        caller.send(format!("POST /users/1 HTTP/1.1\r\nHost: profile\r\n{framing}\r\n\r\n")).await;
        let (first, rest) = body.split_at(length / 2);
        let mut send = async |part: &[u8]| {
            if chunked {
                caller.send(format!("{:x}\r\n", part.len())).await;
            }
            caller.send(part).await;
            if chunked {
                caller.send("\r\n").await;
            }
        };
        send(first).await;
        eventually("the first half at the old owner", async || {
            let told = mesh.caller.admin_json("/endpoints?service=profile").await;
            let all = told["services"][0]["endpoints"].as_array().unwrap().clone();
            if all.iter().any(|it| it["in_flight"] == json!(1)) { Ok(()) } else { Err(told) }
        })
        .await;
        send(rest).await;
        if chunked {
            caller.send("0\r\n\r\n").await;
        }
        caller.answer().await
    };
    let most = 64 << 10;
    for (length, chunked) in [(2, false), (most, false), (2, true), (most, true)] {
        let answer = post(length, chunked).await;
        assert_eq!(
            (answer.status(), answer.text()),
            (200, "two".to_owned()),
            "{length} {chunked}: {answer:?}"
        );
        assert_eq!(mesh.two.requests().pop().unwrap().body.len(), length);
    }
    let before = mesh.two.requests().len();
    let answer = post(most + 1, true).await;
    assert_eq!((answer.status(), answer.header("retry-after")), (503, Some("1")), "{answer:?}");
    assert_eq!((mesh.one.requests().len(), mesh.two.requests().len()), (0, before));
}

#[tokio::test]
async fn a_body_that_is_too_long_to_be_sent_on_costs_the_caller_no_upload() {
    let app = Upstream::saying("one").await;
    let old = owner(Step::Moved, app.address, "1").await;
    let mut caller = Caller::connect(old.inbound(0)).await;
    let length = (64 << 10) + 1;
    caller
        .send(format!("POST /users/1 HTTP/1.1\r\nHost: profile\r\nContent-Length: {length}\r\n\r\nbegin"))
        .await;
    let answer = caller.answer().await;
    is_elsewhere(&answer, "2");
    assert!(answer.says_close(), "what is unread would be taken for the next request: {answer:?}");
    // A short one is read away, and the connection stays.
    let mut caller = Caller::connect(old.inbound(0)).await;
    for _ in 0..2 {
        let answer = caller.ask(post("1")).await;
        is_elsewhere(&answer, "2");
        assert!(!answer.says_close(), "{answer:?}");
    }
}

#[tokio::test]
async fn the_fence_stands_at_the_owner_whatever_its_callers_know() {
    let mesh = Mesh::start(Step::Closed, Step::Closed, Step::Open).await;
    let to = mesh.caller.outbound();
    assert_eq!(ask(to, get("1")).await.text(), "one", "reads go on");
    let waiting = wait_at(&mesh.old, to, post("1")).await;
    mesh.new.reload(Step::Moved.mesh(&[])).await;
    mesh.old.reload(Step::Moved.mesh(&[])).await;
    let answer = waiting.await.unwrap();
    assert_eq!((answer.status(), answer.text()), (200, "two".to_owned()), "{answer:?}");
    assert_eq!((mesh.one.requests().len(), mesh.two.requests().len()), (1, 1));
    let labels = ["service=\"profile\"", "outcome=\"moved\""];
    assert!((mesh.old.metric("gilmok_shard_held_total", &labels).await - 1.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn a_fence_that_is_opened_again_lets_through_what_waits() {
    let mesh = Mesh::start(Step::Closed, Step::Closed, Step::Open).await;
    let waiting = wait_at(&mesh.old, mesh.caller.outbound(), post("1")).await;
    mesh.old.reload(Step::Open.mesh(&[])).await;
    assert_eq!(waiting.await.unwrap().text(), "one");
    let labels = ["service=\"profile\"", "outcome=\"reopened\""];
    assert!((mesh.old.metric("gilmok_shard_held_total", &labels).await - 1.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn what_waited_at_the_owner_in_vain_is_refused_once_and_hurts_nobody_else() {
    let fallback = "[[services.profile.fallback]]\nrespond = { status = 200, body = \"not this\" }\non = [\"no_endpoint\", \"5xx\"]\nmethods = [\"POST\"]\n";
    let mesh = Mesh::start_with(Step::Closed, Step::Closed, Step::Open, fallback).await;
    let ahead = Step::Moved.mesh_with(&endpoints(&mesh.old, &mesh.new), "inbound = true");
    let ahead = Proxy::start(ahead).await;
    // What may be repeated would be, were it not for what was waited for.
    for (answer, owner) in
        [(ask(mesh.caller.outbound(), post("1")), &mesh.old), (ask(ahead.outbound(), get("1")), &mesh.new)]
            .map(|(asking, owner)| (tokio::spawn(asking), owner))
    {
        let answer = answer.await.unwrap();
        assert_eq!((answer.status(), answer.header("retry-after")), (503, Some("1")), "{answer:?}");
        let status = answer.header("proxy-status").unwrap();
        assert_eq!(status, "gilmok; error=destination_unavailable; details=\"shard=moving\"");
        let labels = ["service=\"profile\"", "outcome=\"expired\""];
        let expired = owner.metric("gilmok_shard_held_total", &labels).await;
        assert!((expired - 1.0).abs() < f64::EPSILON, "not tried again: {expired}");
    }
    assert_eq!(ask(mesh.caller.outbound(), get("1")).await.text(), "one", "the owner is not shunned");
    assert_eq!((mesh.one.requests().len(), mesh.two.requests().len()), (1, 0));
}

#[tokio::test]
async fn a_new_owner_that_is_behind_waits_for_what_its_caller_knows() {
    // The caller has heard of it.
    let mesh = Mesh::start(Step::Moved, Step::Closed, Step::Moved).await;
    for request in [post("1"), get("1")] {
        let waiting = wait_at(&mesh.new, mesh.caller.outbound(), request).await;
        mesh.new.reload(Step::Moved.mesh(&[])).await;
        assert_eq!(waiting.await.unwrap().text(), "two");
        mesh.new.reload(Step::Closed.mesh(&[])).await;
    }
    // The old owner has heard of it, and its word goes along.
    mesh.caller.reload(Step::Open.mesh_with(&endpoints(&mesh.old, &mesh.new), "inbound = true")).await;
    let waiting = wait_at(&mesh.new, mesh.caller.outbound(), post("1")).await;
    mesh.new.reload(Step::Moved.mesh(&[])).await;
    assert_eq!(waiting.await.unwrap().text(), "two");
    let told = mesh.two.requests().pop().unwrap();
    assert!(told.header("gilmok-shard-map").unwrap().starts_with("8-"), "{told:?}");
    assert!(mesh.one.requests().is_empty());
}

#[tokio::test]
async fn a_stranger_cannot_make_an_owner_wait() {
    let app = Upstream::saying("two").await;
    let settings = ProxySettings::of_mesh(Step::Closed.mesh(&[])).listen("trusted = [\"10.0.0.0/8\"]").app(
        "profile",
        app.address,
        "shard = \"2\"\n",
    );
    let new = Proxy::start_with(settings).await;
    let claim = "GET /users/1 HTTP/1.1\r\nHost: profile\r\nGilmok-Shard-Map: 99-0123456789abcdef\r\n\r\n";
    let answer = ask(new.inbound(0), claim).await;
    assert_eq!((answer.status(), answer.header("gilmok-shard")), (421, Some("1")), "{answer:?}");
}

#[tokio::test]
async fn what_an_application_says_of_its_keys_itself_passes_its_proxy() {
    let app = Upstream::answering(
        "HTTP/1.1 421 Misdirected Request\r\nGilmok-Shard: 2\r\nContent-Length: 0\r\n\r\n",
    );
    let app = app.await;
    let old = owner(Step::Open, app.address, "1").await;
    let answer = ask(old.inbound(0), post("1")).await;
    assert_eq!((answer.status(), answer.header("gilmok-shard")), (421, Some("2")), "{answer:?}");
    assert_eq!(app.requests().len(), 1);
}

#[tokio::test]
async fn what_an_owner_serves_is_counted_by_what_was_known_when_it_was_decided() {
    let app = Patient::start("one").await;
    let old = owner(Step::Before, app.upstream.address, "1").await;
    let mut asking = JoinSet::new();
    let mut begin = async |path: &'static str, method: &'static str| {
        let before = app.upstream.requests().len();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: profile\r\nContent-Length: 0\r\n\r\n");
        asking.spawn(ask(old.inbound(0), request));
        eventually("the request at its application", async || {
            let now = app.upstream.requests().len();
            if now > before { Ok(()) } else { Err(format!("{now} requests")) }
        })
        .await;
    };
    begin("/users/1/before", "POST").await;
    old.reload(Step::Open.mesh(&[])).await;
    begin("/users/1/own", "POST").await;
    begin("/users/1/read", "GET").await;
    begin("/no/key", "POST").await;
    old.reload(Step::Closed.mesh(&[])).await;
    let falls_to = async |many: u64| {
        eventually("what is under way", async || {
            let now = old.admin_json("/config").await["keys_on_their_way"][0]["serving"].clone();
            if now == json!(many) { Ok(()) } else { Err(now) }
        })
        .await;
    };
    falls_to(2).await;
    app.let_go("/users/1/before");
    falls_to(1).await;
    app.let_go("/users/1/own");
    falls_to(0).await;
    app.let_go("/users/1/read");
    app.let_go("/no/key");
    while let Some(answer) = asking.join_next().await {
        assert_eq!(answer.unwrap().status(), 200);
    }
}
