//! How long after a rollback was decided the last request reaches the bad version, with fifty proxies under load.
//!
//! `cargo bench -p gilmok-tests --bench rollback_latency [-- BY_HAND BY_ITSELF PROXIES]`. By hand: from the moment at which
//! `POST …/rollback` is sent. By itself: from the moment that the control plane writes down for its decision. The end is the
//! bad version's own word: when the last request arrived there.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use gilmok_tests::control_plane::ControlPlane;
use gilmok_tests::eventually::{eventually, eventually_within};
use gilmok_tests::message::Reader;
use gilmok_tests::proxy::{Proxy, ProxySettings};
use gilmok_tests::shop::everybody_on;
use gilmok_tests::users::{Crowd, Users};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

/// After so long without a request nobody asks the bad version any more: callers rest far less.
const QUIET_US: u64 = 1_000_000;
const PATIENCE: Duration = Duration::from_secs(60);

/// A version that notes when it was asked last.
struct Version {
    endpoint: Value,
    /// In microseconds since 1970. Relaxed atomics: each is a number of its own.
    asked: Arc<AtomicU64>,
    fails: Arc<AtomicBool>,
}

impl Version {
    async fn start(name: &'static str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = json!({ "address": listener.local_addr()?.to_string(), "version": name, "ttl": "1h" });
        let (asked, fails) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (noted, failing) = (Arc::clone(&asked), Arc::clone(&fails));
        tokio::spawn(async move {
            while let Ok((mut io, _)) = listener.accept().await {
                let (noted, failing) = (Arc::clone(&noted), Arc::clone(&failing));
                tokio::spawn(async move {
                    let mut reader = Reader::default();
                    while reader.request(&mut io, PATIENCE).await.is_ok() {
                        noted.fetch_max(now_us(), Relaxed);
                        let status = if failing.load(Relaxed) { "500 Bad" } else { "200 OK" };
                        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\n{name}");
                        if io.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Ok(Self { endpoint, asked, fails })
    }

    /// When it was asked last, once nobody asks it any more.
    async fn last_asked(&self) -> u64 {
        eventually_within(PATIENCE, "the last request", async || {
            let last = self.asked.load(Relaxed);
            if last + QUIET_US <= now_us() { Ok(last) } else { Err("asked still") }
        })
        .await
    }
}

fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

fn main() -> Result<()> {
    let mut numbers = std::env::args().filter_map(|argument| argument.parse::<usize>().ok());
    let [by_hand, by_itself, proxies] = [100, 20, 50].map(|default| numbers.next().unwrap_or(default));
    tokio::runtime::Runtime::new()?.block_on(measure(by_hand, by_itself, proxies))
}

async fn measure(by_hand: usize, by_itself: usize, count: usize) -> Result<()> {
    let (good, bad) = (Version::start("v1").await?, Version::start("v2").await?);
    let plane = ControlPlane::start().await;
    plane.put("/v1/services/shop", &json!({ "traffic": everybody_on("v1") })).await;
    for (name, version) in [("v1", &good), ("v2", &bad)] {
        plane.put(&format!("/v1/membership/shop/{name}"), &version.endpoint).await;
    }
    let mut proxies = Vec::new();
    for n in 0..count {
        let settings =
            ProxySettings::of_control_planes(&[plane.address]).top(&format!("node = \"proxy-{n}\""));
        proxies.push(Proxy::start_with(settings).await);
    }
    eventually_within(PATIENCE, "all proxies known", async || {
        let told = plane.json("/v1/proxies").await;
        let known = told.as_array().map_or(0, Vec::len);
        if known == count { Ok(()) } else { Err(told) }
    })
    .await;
    let crowd = Crowd { callers: 1, rest: Duration::from_millis(20), ..Crowd::of("shop", 1_000) };
    let users: Vec<Users> = proxies.iter().map(|proxy| Users::start(proxy.outbound(), &crowd)).collect();
    let began = (now_us(), answered(&users));
    let mut hands = Vec::new();
    for _ in 0..by_hand {
        post(&plane, "switch?wait=30s", &json!({ "to": "v2" })).await?;
        bad_is_asked(&bad).await;
        let decided = now_us();
        post(&plane, "rollback", &json!({})).await?;
        hands.push(bad.last_asked().await.saturating_sub(decided));
    }
    let rate = (answered(&users) - began.1) as f64 / (now_us() - began.0) as f64 * 1e6;
    bad.fails.store(true, Relaxed);
    let mut selves = Vec::new();
    for _ in 0..by_itself {
        selves.push(roll_out(&plane, &bad).await?);
    }
    report("by hand", &mut hands, count, rate)?;
    report("by itself", &mut selves, count, rate)
}

/// A rollout to a version that fails, and how long it was asked after the control plane had decided.
async fn roll_out(plane: &ControlPlane, bad: &Version) -> Result<u64> {
    let steps = json!([{ "percent": 50, "hold": "1h" }, { "percent": 100 }]);
    let plan = json!({ "candidate": "v2", "steps": steps, "analysis": { "latency": false } });
    plane.put("/v1/services/shop/rollout", &plan).await;
    eventually_within(PATIENCE, "the rollback", async || {
        let rollout = plane.json("/v1/services/shop/rollout").await;
        if rollout["state"] == "rolled_back" { Ok(()) } else { Err(rollout) }
    })
    .await;
    let release = plane.json("/v1/services/shop/traffic").await["release"].clone();
    let decided = release["at_ms"].as_u64().unwrap_or_default() * 1_000;
    ensure!(release["kind"] == "rollback" && decided > 0, "{release}");
    Ok(bad.last_asked().await.saturating_sub(decided))
}

async fn post(plane: &ControlPlane, path: &str, body: &Value) -> Result<()> {
    let answer = plane.call("POST", &format!("/v1/services/shop/{path}"), Some(body)).await;
    ensure!(answer.status() == 200, "{path}: {answer:?}");
    Ok(())
}

async fn bad_is_asked(bad: &Version) {
    let before = now_us();
    eventually("requests at the bad version", async || {
        if bad.asked.load(Relaxed) > before { Ok(()) } else { Err("none") }
    })
    .await;
}

fn answered(users: &[Users]) -> u64 {
    users.iter().map(Users::answered).sum()
}

fn report(how: &str, times: &mut [u64], proxies: usize, rate: f64) -> Result<()> {
    times.sort_unstable();
    let at = |percent: usize| {
        times
            .get((times.len() * percent / 100).min(times.len().saturating_sub(1)))
            .map_or(0.0, |us| *us as f64 / 1e3)
    };
    let text = format!(
        "{} rollbacks {how}, {proxies} proxies, {rate:.0} requests a second: the last request reached the bad version after p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms\n",
        times.len(),
        at(50),
        at(99),
        at(100),
    );
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}
