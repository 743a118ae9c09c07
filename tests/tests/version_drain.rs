//! The end of a version: what is under way to one that nobody is sent to any more is told, goes on for a while, and is ended.

use std::net::SocketAddr;

use gilmok_tests::caller::Caller;
use gilmok_tests::control_plane::ControlPlane;
use gilmok_tests::eventually::{eventually, soon};
use gilmok_tests::h2_caller::{self, H2Caller};
use gilmok_tests::proxy::{Proxy, ProxySettings};
use gilmok_tests::upstream::{Upstream, ok};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

const UPGRADE: &str =
    "GET /chat HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-User-Id: 1\r\n\r\n";
const STREAM: &str = "GET /stream HTTP/1.1\r\nHost: shop\r\nX-User-Id: 1\r\n\r\n";
const SWITCHING: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

/// Says which version it is; on `/chat` says everything back, on `/stream` begins an answer and says no more, on `/wait`
/// says nothing at all.
async fn version(name: &'static str) -> Upstream {
    Upstream::start(move |mut conversation| async move {
        while let Some(request) = conversation.request().await {
            if request.start.contains("/chat") {
                conversation.send(SWITCHING).await;
                loop {
                    let bytes = conversation.bytes().await;
                    if bytes.is_empty() || !conversation.send(bytes).await {
                        return;
                    }
                }
            } else if request.start.contains("/stream") {
                conversation
                    .send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegin\r\n")
                    .await;
                conversation.hang().await;
                return;
            } else if request.start.contains("/wait") {
                conversation.hang().await;
                return;
            }
            conversation.send(ok(name)).await;
        }
    })
    .await
}

fn endpoint(version: &str, address: SocketAddr) -> Value {
    json!({"address": address.to_string(), "version": version})
}

/// A control plane that takes acks and does nothing else.
async fn ack_taker() -> Upstream {
    Upstream::answering("HTTP/1.1 204 No Content\r\n\r\n").await
}

/// The last ack, if it is of this revision.
fn last_ack(taker: &Upstream, revision: u64) -> Option<Value> {
    let requests = taker.requests();
    let ack: Value = serde_json::from_slice(&requests.last()?.body).ok()?;
    (ack["applied"]["revision"] == revision).then_some(ack)
}

/// What an ack says is in flight to a version; `None` where it does not speak of it.
fn in_flight(ack: &Value, version: &str) -> Option<u64> {
    let versions = ack["counts"][0]["versions"].as_array()?;
    versions.iter().find(|counts| counts["version"] == version)?["in_flight"].as_u64()
}

#[tokio::test]
async fn a_version_that_has_gone_is_counted_until_its_last_stream_and_tunnel_have_ended() {
    let (v1, v2, taker) = (version("v1").await, version("v2").await, ack_taker().await);
    let plane = ControlPlane::start().await;
    let both = [endpoint("v1", v1.address), endpoint("v2", v2.address)];
    let blue = json!({"stable": "v1", "weights": {"v1": 100}});
    plane.put("/v1/services/shop", &json!({"endpoints": both, "traffic": blue})).await;
    let settings = ProxySettings::of_control_planes(&[plane.address, taker.address]);
    let proxy = Proxy::start_with(settings.table("[workers]\ncount = 2")).await;
    let mut tunnel = proxy.caller().await;
    assert_eq!(tunnel.ask(UPGRADE).await.status(), 101);
    let mut stream: Caller = proxy.caller().await;
    stream.send(STREAM).await;
    eventually("the begin of the stream", async || {
        if v1.requests().len() == 2 { Ok(()) } else { Err(v1.requests().len()) }
    })
    .await;
    // Nobody names v1 any more, not even an endpoint.
    let green = json!({"stable": "v2", "weights": {"v2": 100}});
    let body = json!({"endpoints": [endpoint("v2", v2.address)], "traffic": green});
    let told = plane.put("/v1/services/shop?wait=20s", &body).await;
    let revision = told["revision"].as_u64().expect("a revision");
    let counted = async |expected: Option<u64>| {
        eventually("what is in flight to v1", async || match last_ack(&taker, revision) {
            Some(ack) if in_flight(&ack, "v1") == expected => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    };
    counted(Some(2)).await;
    let acks = taker.requests();
    let of_revision = acks.iter().filter_map(|ack| serde_json::from_slice::<Value>(&ack.body).ok());
    let first = of_revision.into_iter().find(|ack| ack["applied"]["revision"] == revision).expect("an ack");
    assert_eq!(in_flight(&first, "v1"), Some(2), "told with the very first word of it: {first}");
    tunnel.send("hello").await;
    assert_eq!(tunnel.take(5).await, b"hello", "it goes on meanwhile");
    drop(stream);
    counted(Some(1)).await;
    drop(tunnel);
    counted(None).await;
    assert_eq!(proxy.get("shop", "/").await.text(), "v2");
}

/// Two services of two versions each, of which these have everything.
fn mesh(v1: &Upstream, v2: &Upstream, shop: &str, clock: &str, drain_timeout: &str) -> String {
    let mut text = String::new();
    for (service, stable) in [("shop", shop), ("clock", clock)] {
        let other = if stable == "v1" { "v2" } else { "v1" };
        text += &format!(
            "[services.{service}]\nrequest_timeout = \"1m\"\n\
             [services.{service}.traffic]\nstable = \"{stable}\"\nweights = {{ {stable} = 100, {other} = 0 }}\n\
             drain_timeout = \"{drain_timeout}\"\n"
        );
        for (version, address) in [("v1", v1.address), ("v2", v2.address)] {
            text += &format!(
                "[[services.{service}.endpoints]]\naddress = \"{address}\"\nversion = \"{version}\"\n"
            );
        }
    }
    text
}

async fn is_open(upstream: &Upstream, connections: usize) {
    eventually("connections", async || match upstream.open() {
        open if open == connections => Ok(()),
        open => Err(open),
    })
    .await;
}

async fn cuts(proxy: &Proxy, service: &str) -> f64 {
    let service = format!("service=\"{service}\"");
    proxy.metric("gilmok_version_drain_cut_total", &[service.as_str(), "version=\"v1\""]).await
}

#[tokio::test]
async fn idle_connections_to_a_version_that_is_asked_no_more_close() {
    let (v1, v2) = (version("v1").await, version("v2").await);
    let proxy = Proxy::start(mesh(&v1, &v2, "v1", "v1", "30s")).await;
    let mut caller = proxy.caller().await;
    for _ in 0..3 {
        assert_eq!(caller.ask("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.text(), "v1");
    }
    is_open(&v1, 1).await;
    proxy.reload(mesh(&v1, &v2, "v2", "v1", "30s")).await;
    is_open(&v1, 0).await;
    for _ in 0..3 {
        assert_eq!(caller.ask("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.text(), "v2");
    }
    is_open(&v2, 1).await;
    // And the other way round, on connections that are kept again.
    proxy.reload(mesh(&v1, &v2, "v1", "v1", "30s")).await;
    is_open(&v2, 0).await;
    for _ in 0..3 {
        assert_eq!(caller.ask("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.text(), "v1");
    }
    is_open(&v1, 1).await;
    assert_eq!((v1.connections(), v2.connections()), (2, 1));
}

#[tokio::test]
async fn what_is_under_way_goes_on_for_the_drain_timeout_and_is_ended_then() {
    let (v1, v2) = (version("v1").await, version("v2").await);
    let guards = "circuit_breaker = { scope = \"service\", min_requests = 1, failure_percent = 1 }\n\
        outlier_detection = { consecutive_failures = 1 }\n[services.shop.traffic]";
    let mesh = |stable| mesh(&v1, &v2, stable, "v1", "4s").replace("[services.shop.traffic]", guards);
    let proxy = Proxy::start(mesh("v1")).await;
    let mut tunnel = proxy.caller().await;
    assert_eq!(tunnel.ask(UPGRADE).await.status(), 101);
    let mut stream = proxy.caller().await;
    stream.send(STREAM).await;
    let mut waiting = proxy.caller().await;
    waiting.send(STREAM.replace("/stream", "/wait")).await;
    let h2 = H2Caller::connect(proxy.outbound()).await.expect("a connection");
    let request = http::Request::get("http://shop/stream").body(()).expect("a request");
    let (h2_answer, _) = h2.sender().await.expect("a stream").send_request(request, true).expect("a stream");
    is_open(&v1, 4).await;
    eventually("four requests at v1", async || match v1.requests().len() {
        4 => Ok(()),
        count => Err(count),
    })
    .await;
    proxy.reload(mesh("v2")).await;
    tunnel.send("hello").await;
    assert_eq!(tunnel.take(5).await, b"hello", "it goes on");
    assert_eq!(proxy.get("shop", "/").await.text(), "v2", "with others meanwhile");
    let answer = stream.answer().await;
    assert_eq!((answer.status(), answer.text().as_str(), answer.is_complete), (200, "begin", false));
    let error = h2_caller::read(h2_answer).await.expect_err("it is broken off");
    let reason = error.downcast_ref::<h2::Error>().and_then(h2::Error::reason);
    assert_eq!(reason, Some(h2::Reason::CANCEL), "{error:#}");
    let answer = waiting.answer().await;
    assert_eq!((answer.status(), answer.header("retry-after")), (503, Some("1")), "{answer:?}");
    assert!(answer.header("proxy-status").unwrap_or_default().contains("drain_timeout"), "{answer:?}");
    let mut rest = Vec::new();
    tunnel.io.read_to_end(&mut rest).await.expect("a clean end, no reset");
    assert!(rest.is_empty(), "{rest:?}");
    is_open(&v1, 0).await;
    assert_eq!(cuts(&proxy, "shop").await, 4.0, "{}", proxy.metrics().await);
    assert_eq!(proxy.metric("gilmok_breaker_state", &["service=\"shop\""]).await, 0.0);
    assert_eq!(proxy.metric("gilmok_ejections_total", &["service=\"shop\""]).await, 0.0);
}

#[tokio::test]
async fn a_share_that_is_given_back_cuts_nothing() {
    let (v1, v2) = (version("v1").await, version("v2").await);
    let proxy = Proxy::start(mesh(&v1, &v2, "v1", "v1", "2s")).await;
    let mut tunnel = proxy.caller().await;
    assert_eq!(tunnel.ask(UPGRADE).await.status(), 101);
    let mut stream = proxy.caller().await;
    stream.send(STREAM).await;
    let mut clock = proxy.caller().await;
    clock.send(STREAM.replace("shop", "clock")).await;
    is_open(&v1, 3).await;
    proxy.reload(mesh(&v1, &v2, "v2", "v1", "2s")).await;
    // What begins to end now ends later than what is not to end would have.
    proxy.reload(mesh(&v1, &v2, "v1", "v2", "2s")).await;
    assert!(!clock.answer().await.is_complete);
    eventually("the cut", async || match cuts(&proxy, "clock").await {
        1.0 => Ok(()),
        cuts => Err(cuts),
    })
    .await;
    tunnel.send("hello").await;
    assert_eq!(tunnel.take(5).await, b"hello");
    assert_eq!((cuts(&proxy, "shop").await, v1.open()), (0.0, 2));
}

#[tokio::test]
async fn without_a_limit_nothing_is_ever_cut() {
    let (v1, v2) = (version("v1").await, version("v2").await);
    let proxy = Proxy::start(mesh(&v1, &v2, "v1", "v1", "none")).await;
    let mut tunnel = proxy.caller().await;
    assert_eq!(tunnel.ask(UPGRADE).await.status(), 101);
    let mut clock = proxy.caller().await;
    clock.send(STREAM.replace("shop", "clock")).await;
    is_open(&v1, 2).await;
    let limited = |text: String| {
        let (shop, clock) = text.split_once("[services.clock]").expect("two services");
        format!("{shop}[services.clock]{}", clock.replace("\"none\"", "\"1s\""))
    };
    proxy.reload(limited(mesh(&v1, &v2, "v2", "v2", "none"))).await;
    assert!(!clock.answer().await.is_complete);
    tunnel.send("hello").await;
    assert_eq!(tunnel.take(5).await, b"hello");
    // Said later, it counts from the moment that the share was taken.
    proxy.reload(mesh(&v1, &v2, "v2", "v2", "1s")).await;
    assert!(tunnel.is_closed_within(std::time::Duration::from_secs(10)).await);
    assert_eq!(cuts(&proxy, "shop").await, 1.0);
}

#[tokio::test]
async fn a_stream_over_http_2_ends_at_both_sides_with_a_word() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let endpoint = tokio::spawn(async move {
        let (io, _) = listener.accept().await.expect("a connection");
        let mut connection = h2::server::handshake(io).await.expect("HTTP/2");
        let (request, mut respond) = connection.accept().await.expect("a stream").expect("a request");
        let head = http::Response::builder().status(200).body(()).expect("a head");
        let mut answer = respond.send_response(head, false).expect("a begin");
        answer.send_data("begin".into(), false).expect("room");
        let driving = tokio::spawn(async move { while connection.accept().await.is_some() {} });
        let reason = std::future::poll_fn(|cx| answer.poll_reset(cx)).await;
        drop(request);
        // Nobody needs the connection any more.
        driving.await.expect("the end of the connection");
        reason
    });
    let mesh = |stable: &str, other: &str| {
        format!(
            "[services.shop]\nprotocol = \"h2\"\n[services.shop.traffic]\nstable = \"{stable}\"\n\
             weights = {{ {stable} = 100, {other} = 0 }}\ndrain_timeout = \"500ms\"\n\
             [[services.shop.endpoints]]\naddress = \"{address}\"\nversion = \"v1\"\n\
             [[services.shop.endpoints]]\naddress = \"127.0.0.1:1\"\nversion = \"v2\"\n"
        )
    };
    let proxy = Proxy::start(mesh("v1", "v2")).await;
    let caller = H2Caller::connect(proxy.outbound()).await.expect("a connection");
    let request = http::Request::post("http://shop/").body(()).expect("a request");
    // Its upload is not at its end either.
    let (answer, mut upload) =
        caller.sender().await.expect("a stream").send_request(request, false).expect("a stream");
    upload.send_data("hello".into(), false).expect("room");
    let mut body = answer.await.expect("a head").into_body();
    assert_eq!(body.data().await.expect("data").expect("data"), "begin");
    proxy.reload(mesh("v2", "v1")).await;
    let error = body.data().await.expect("no clean end").expect_err("it is broken off");
    assert_eq!(error.reason(), Some(h2::Reason::CANCEL), "{error}");
    let reason = soon("the end at the endpoint", endpoint).await.expect("no panic").expect("a reset");
    assert_eq!(reason, h2::Reason::CANCEL);
    assert_eq!(cuts(&proxy, "shop").await, 1.0);
}
