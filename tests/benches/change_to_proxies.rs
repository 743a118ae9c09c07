//! How long a change over REST takes until every one of fifty proxies runs it.
//!
//! `cargo bench -p gilmok-tests --bench change_to_proxies [-- CHANGES PROXIES]`. A change is a PATCH that waits
//! until all have acknowledged, so the way back of the last ack is in the figure.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use gilmok_tests::control_plane::ControlPlane;
use gilmok_tests::eventually::eventually_within;
use gilmok_tests::proxy::{Proxy, ProxySettings};
use serde_json::json;

fn main() -> Result<()> {
    let mut numbers = std::env::args().filter_map(|argument| argument.parse::<usize>().ok());
    let changes = numbers.next().unwrap_or(300);
    let proxies = numbers.next().unwrap_or(50);
    tokio::runtime::Runtime::new()?.block_on(measure(changes, proxies))
}

async fn measure(changes: usize, count: usize) -> Result<()> {
    let plane = ControlPlane::start().await;
    plane.put("/v1/services/app", &json!({"max_concurrent": 1})).await;
    let mut proxies = Vec::new();
    for n in 0..count {
        let settings =
            ProxySettings::of_control_planes(&[plane.address]).top(&format!("node = \"proxy-{n}\""));
        proxies.push(Proxy::start_with(settings).await);
    }
    eventually_within(Duration::from_secs(60), "all proxies known", async || {
        let told = plane.json("/v1/proxies").await;
        let known = told["proxies"].as_array().or(told.as_array()).map_or(0, Vec::len);
        if known == count { Ok(()) } else { Err(told.to_string()) }
    })
    .await;
    let mut times = Vec::new();
    for n in 0..changes {
        let began = Instant::now();
        let body = json!({"max_concurrent": n + 2});
        let answer = plane.call("PATCH", "/v1/services/app?wait=30s", Some(&body)).await;
        times.push(began.elapsed().as_secs_f64() * 1e3);
        ensure!(answer.status() == 200, "{answer:?}");
    }
    times.sort_by(f64::total_cmp);
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    let report = format!(
        "{changes} changes to {count} proxies: p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, max {:.1} ms\n",
        at(50),
        at(90),
        at(99),
        at(100)
    );
    std::io::stdout().write_all(report.as_bytes())?;
    Ok(())
}
