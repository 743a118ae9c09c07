//! Random input for some seconds: the proxy answers or closes, stays alive, and passes on only whole, sound requests.
//!
//! The seed is told on failure; `GILMOK_SEED` runs one again and `GILMOK_FUZZ_SECONDS` runs longer.

use std::net::SocketAddr;
use std::time::Duration;

use fastrand::Rng;
use gilmok_tests::caller::Caller;
use gilmok_tests::control_plane::ControlPlane;
use gilmok_tests::message::Message;
use gilmok_tests::observe;
use gilmok_tests::proxy::{Proxy, ProxySettings, service};
use gilmok_tests::upstream::Upstream;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

fn rng() -> (u64, Rng) {
    let given = std::env::var("GILMOK_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| fastrand::u64(..));
    (seed, Rng::with_seed(seed))
}

fn length() -> Duration {
    let given = std::env::var("GILMOK_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(given.unwrap_or(4))
}

fn pick<'p>(rng: &mut Rng, parts: &[&'p str]) -> &'p str {
    parts[rng.usize(..parts.len())]
}

/// Something between a request and noise.
fn request(rng: &mut Rng) -> Vec<u8> {
    let methods = ["GET", "POST", "HEAD", "PUT", "OPTIONS", "CONNECT", "get", "X\tY", ""];
    let targets = ["/", "/a?b=c", "*", "http://app/x", "app:80", "/\u{7f}", "//", "/%00", "http://", ""];
    let versions = ["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "http/1.1", ""];
    let fields = [
        "Host: app",
        "Host: app",
        "Host: app:80",
        "Host: nobody",
        "Host:",
        "Host: a b",
        "host: APP.",
        "Content-Length: 5",
        "Content-Length: 0",
        "Content-Length: 5, 5",
        "Content-Length: -1",
        "Content-Length: 18446744073709551616",
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding : chunked",
        "transfer-encoding: CHUNKED",
        "Connection: close",
        "Connection: keep-alive",
        "Connection: upgrade, x-a",
        "Upgrade: websocket",
        "Expect: 100-continue",
        "TE: trailers",
        "Trailer: X-Sum",
        "X-A: 1",
        "X-A: \u{e9}",
        "X-A:",
        ": 1",
        "X A: 1",
        " folded",
        "Cookie: a=1",
        "Gilmok-Version: v9",
        "X-Forwarded-For: 1.2.3.4",
        "Feature-Flags: a",
        "Content-Type: application/grpc",
        "Gilmok-Explain: 1",
    ];
    let bodies = [
        "",
        "",
        "hello",
        "5\r\nhello\r\n0\r\n\r\n",
        "5\r\nhel",
        "0\r\n\r\n",
        "zz\r\n",
        "0\r\nX-Sum: 1\r\n\r\n",
        "ffffffffffffffff\r\n",
        "5;a=b\r\nhello\r\n0\r\n\r\n",
    ];
    let mut text = format!("{} {} {}\r\n", pick(rng, &methods), pick(rng, &targets), pick(rng, &versions));
    if rng.bool() {
        // Half of them begin soundly, so that what follows is looked at.
        text = "POST /p HTTP/1.1\r\nHost: app\r\n".to_owned();
    }
    for _ in 0..rng.usize(..6) {
        text.push_str(pick(rng, &fields));
        text.push_str(pick(rng, &["\r\n", "\r\n", "\r\n", "\r\n", "\n", "\r"]));
    }
    text.push_str("\r\n");
    text.push_str(pick(rng, &bodies));
    let mut bytes = text.into_bytes();
    if rng.u8(..4) == 0 {
        for _ in 0..rng.usize(1..4) {
            let at = rng.usize(..bytes.len());
            bytes[at] = rng.u8(..);
        }
    }
    bytes
}

/// Says all this over one connection, waits a moment for answers, and leaves; whether the proxy lets it go.
async fn say(address: SocketAddr, requests: Vec<Vec<u8>>) -> bool {
    let mut caller = Caller::connect(address).await;
    for request in requests {
        caller.send(request).await;
    }
    if caller.is_closed_within(Duration::from_millis(100)).await {
        return true;
    }
    caller.finish().await;
    caller.is_closed_within(Duration::from_secs(20)).await
}

/// What every request that reaches an app must be, whatever the caller sent.
fn is_sound(request: &Message) -> Result<(), String> {
    let parts: Vec<&str> = request.start.split(' ').collect();
    let problem = |what: &str| Err(format!("{what}: {request:?}"));
    if parts.len() != 3 || parts[2] != "HTTP/1.1" || !(parts[1].starts_with('/') || parts[1] == "*") {
        return problem("a strange first line");
    }
    if request.all("host").len() != 1 {
        return problem("not one Host");
    }
    let (lengths, encodings) = (request.all("content-length"), request.all("transfer-encoding"));
    if lengths.len() + encodings.len() > 1 || encodings.iter().any(|coding| *coding != "chunked") {
        return problem("framing that can be read in two ways");
    }
    for name in ["feature-flags", "keep-alive", "proxy-connection", "expect"] {
        if request.header(name).is_some() {
            return problem(name);
        }
    }
    if request.header("gilmok-version") == Some("v9") {
        return problem("a claim of the caller");
    }
    let mut names = request.headers.iter().map(|(name, _)| name);
    if names.any(|name| name.is_empty() || !name.bytes().all(|b| b.is_ascii_graphic())) {
        return problem("a strange field");
    }
    Ok(())
}

#[tokio::test]
async fn whatever_callers_send_apps_get_sound_requests() {
    let (seed, mut rng) = rng();
    let upstream = Upstream::saying("fine").await;
    let proxy = Proxy::start(service("app", "idle_timeout = \"500ms\"", &[upstream.address])).await;
    let before = observe::resident_bytes(proxy.process.pid());
    let end = Instant::now() + length();
    let mut sent = 0;
    while Instant::now() < end {
        let mut callers = JoinSet::new();
        for _ in 0..20 {
            let requests: Vec<Vec<u8>> = (0..rng.usize(1..4)).map(|_| request(&mut rng)).collect();
            sent += requests.len();
            callers.spawn(say(proxy.outbound(), requests));
        }
        while let Some(closed) = callers.join_next().await {
            assert!(closed.unwrap(), "seed {seed}: a caller that has finished is kept");
        }
    }
    for request in upstream.requests() {
        if let Err(problem) = is_sound(&request) {
            panic!("seed {seed}: {problem}");
        }
    }
    assert_eq!(proxy.get("app", "/").await.status(), 200, "seed {seed}");
    let grown = observe::resident_bytes(proxy.process.pid()).saturating_sub(before);
    assert!(grown < 32 << 20, "seed {seed}: {} MiB more after {sent} requests", grown >> 20);
    assert!(sent > 100 && !upstream.requests().is_empty(), "seed {seed}: {sent} sent");
}

/// A document that is often sound and often not.
fn document(rng: &mut Rng, upstream: &Upstream) -> Value {
    let names = ["app", "ads", "a-b", "a_b", "A", "", "a b", "x.y", "shop"];
    let mut services = serde_json::Map::new();
    for _ in 0..rng.usize(..4) {
        let mut service = serde_json::Map::new();
        for _ in 0..rng.usize(..5) {
            let (key, values): (&str, Vec<Value>) = match rng.u8(..10) {
                0 => ("protocol", vec![json!("http1"), json!("h2"), json!("tcp"), json!(1)]),
                1 => ("max_concurrent", vec![json!(1), json!(0), json!(1e30), json!(-1), json!("1")]),
                2 => ("request_timeout", vec![json!("1s"), json!("0s"), json!("1y"), json!("-1s"), json!(5)]),
                3 => (
                    "hosts",
                    vec![json!([]), json!(["a.example"]), json!(["a.example:80"]), json!([""]), json!("a")],
                ),
                4 => ("load_balancer", vec![json!("random"), json!("peak_ewma"), json!("maglev")]),
                5 => (
                    "health_check",
                    vec![json!({"path": "/h"}), json!({}), json!({"tcp": true}), json!({"tcp": false})],
                ),
                6 => (
                    "endpoints",
                    vec![
                        json!([{"address": upstream.address.to_string()}]),
                        json!([{"address": "x:1"}, {"address": "x:1"}]),
                        json!([{"address": "unix:///a", "weight": 0}]),
                        json!([{"address": "1.2.3:4"}]),
                        json!({}),
                    ],
                ),
                7 => ("slow_start", vec![json!("0s"), json!("1h"), json!(null)]),
                8 => ("unheard_of", vec![json!(1)]),
                _ => ("idle_timeout", vec![json!("5m"), json!("1ms")]),
            };
            service.insert(key.to_owned(), values[rng.usize(..values.len())].clone());
        }
        services.insert(pick(rng, &names).to_owned(), Value::Object(service));
    }
    let mut routes = Vec::new();
    for _ in 0..rng.usize(..3) {
        routes.push(json!({
            "service": pick(rng, &names),
            "path_prefix": pick(rng, &["/", "/a", "a", "", "/a b"]),
            "hosts": [pick(rng, &["r.example", "R.example", "", "r.example:1"])],
        }));
    }
    json!({"services": services, "routes": routes})
}

#[tokio::test]
async fn whatever_the_control_plane_takes_the_proxies_can_run() {
    let (seed, mut rng) = rng();
    let upstream = Upstream::saying("fine").await;
    let plane = ControlPlane::start().await;
    plane.put("/v1/mesh", &json!({"services": {"app": {}}})).await;
    let proxy = Proxy::start_with(ProxySettings::of_control_planes(&[plane.address])).await;
    let end = Instant::now() + length();
    let (mut taken, mut refused) = (0, 0);
    while Instant::now() < end {
        let body = document(&mut rng, &upstream);
        let answer = plane.call("PUT", "/v1/mesh?wait=20s", Some(&body)).await;
        match answer.status() {
            200 | 201 => {
                let told: Value = serde_json::from_slice(&answer.body).unwrap();
                assert_eq!(told["converged"], true, "seed {seed}: {body}: {answer:?}");
                taken += 1;
            }
            422 => refused += 1,
            _ => panic!("seed {seed}: {body}: {answer:?}"),
        }
    }
    assert!(proxy.metric("gilmok_config_rejected_total", &[]).await.abs() < f64::EPSILON, "seed {seed}");
    assert!(taken > 3 && refused > 3, "seed {seed}: {taken} taken, {refused} refused");
}
