//! The end of a version: what is under way to one that nobody is sent to any more is told until it has ended.

use std::net::SocketAddr;

use gilmok_tests::caller::Caller;
use gilmok_tests::control_plane::ControlPlane;
use gilmok_tests::eventually::eventually;
use gilmok_tests::proxy::{Proxy, ProxySettings};
use gilmok_tests::upstream::{Upstream, ok};
use serde_json::{Value, json};

const UPGRADE: &str =
    "GET /chat HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-User-Id: 1\r\n\r\n";
const STREAM: &str = "GET /stream HTTP/1.1\r\nHost: shop\r\nX-User-Id: 1\r\n\r\n";
const SWITCHING: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

/// Says which version it is; on `/chat` says everything back, on `/stream` begins an answer and says `more` whenever the
/// other end of its connection lives on.
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
