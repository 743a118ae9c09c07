//! How long an instance takes from Consul into the balancing of a proxy, and out of it.
//!
//! `cargo bench -p gilmok-tests --bench consul_changes [-- CHANGES]`. Three instances are called in turn while a fourth
//! one comes and goes: from the answer to its registration to its first call, and from the answer to its
//! deregistration to its last one.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use gilmok_tests::caller::{Caller, get};
use gilmok_tests::consul::Consul;
use gilmok_tests::control_plane::ControlPlane;
use gilmok_tests::eventually::eventually;
use gilmok_tests::proxy::{Proxy, ProxySettings};
use gilmok_tests::scratch::Scratch;
use gilmok_tests::upstream::Upstream;
use serde_json::json;

/// Calls after which an instance that has not answered is out: four turns of the balancing.
const ABSENT: usize = 12;
/// How long a change may take at all.
const LONGEST: Duration = Duration::from_secs(20);

fn main() -> Result<()> {
    let mut numbers = std::env::args().filter_map(|argument| argument.parse::<usize>().ok());
    let changes = numbers.next().unwrap_or(200);
    tokio::runtime::Runtime::new()?.block_on(measure(changes))
}

async fn measure(changes: usize) -> Result<()> {
    let consul = Consul::start().await;
    let apps = [Upstream::saying("a").await, Upstream::saying("b").await, Upstream::saying("c").await];
    for (app, id) in apps.iter().zip(["a", "b", "c"]) {
        consul.register("ads", id, app.address.port(), json!({})).await;
    }
    let guest = Upstream::saying("guest").await;
    let tables = format!("[membership.consul]\naddress = \"{}\"\n", consul.origin());
    let plane = ControlPlane::start_with(&tables, Scratch::new()).await;
    plane.put("/v1/services/ads", &json!({ "load_balancer": "round_robin" })).await;
    let proxy = Proxy::start_with(ProxySettings::of_control_planes(&[plane.address])).await;
    eventually("the three to be called", async || {
        let answer = proxy.get("ads", "/").await;
        let known = plane.json("/v1/membership/ads").await.to_string();
        if answer.status() == 200 && known.contains("\"c\"") { Ok(()) } else { Err(known) }
    })
    .await;
    let mut caller = proxy.caller().await;
    let (mut into, mut out) = (Vec::new(), Vec::new());
    for _ in 0..changes {
        consul.register("ads", "guest", guest.address.port(), json!({})).await;
        let begin = Instant::now();
        while !is_guest(&mut caller).await? {
            ensure!(begin.elapsed() < LONGEST, "never in\n{}", plane.process.log());
        }
        into.push(begin.elapsed());
        consul.deregister("guest").await;
        let begin = Instant::now();
        let (mut last, mut absent) = (Duration::ZERO, 0);
        while absent < ABSENT {
            (last, absent) =
                if is_guest(&mut caller).await? { (begin.elapsed(), 0) } else { (last, absent + 1) };
            ensure!(begin.elapsed() < LONGEST, "never out\n{}", plane.process.log());
        }
        out.push(last);
    }
    for (what, times) in [("registered → first call", into), ("deregistered → last call", out)] {
        report(what, times)?;
    }
    Ok(())
}

async fn is_guest(caller: &mut Caller) -> Result<bool> {
    let answer = caller.ask(get("ads", "/")).await;
    ensure!(answer.status() == 200, "{answer:?}");
    Ok(answer.text() == "guest")
}

fn report(what: &str, mut times: Vec<Duration>) -> Result<()> {
    times.sort();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64() * 1e3;
    let line = format!(
        "{what}, {} times: p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms\n",
        times.len(),
        at(50),
        at(99),
        at(100)
    );
    std::io::stdout().write_all(line.as_bytes())?;
    Ok(())
}
