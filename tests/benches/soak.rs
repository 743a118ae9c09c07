//! A long run under mixed load that watches memory and descriptors: `cargo bench -p gilmok-tests --bench soak [-- MINUTES]`.
//!
//! Keep-alive callers over HTTP/1 and HTTP/2, callers that leave early, uploads, tunnels, unknown hosts, and a reload each
//! second. After a first tenth of the time memory must not grow any more by more than [`GROWTH_MAX`].

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use gilmok_tests::caller::Caller;
use gilmok_tests::load::{Ask, Load};
use gilmok_tests::observe;
use gilmok_tests::proxy::{Proxy, service};
use gilmok_tests::upstream::{Upstream, ok};

/// What a proxy may gain between the first tenth and the end, in bytes: pools and allocator's caches settle.
const GROWTH_MAX: u64 = 8 << 20;
const DESCRIPTORS_MORE_MAX: usize = 50;

fn main() -> Result<()> {
    let minutes = std::env::args().filter_map(|argument| argument.parse::<u64>().ok()).next().unwrap_or(10);
    tokio::runtime::Runtime::new()?.block_on(soak(Duration::from_secs(60 * minutes)))
}

async fn soak(length: Duration) -> Result<()> {
    let upstream = Upstream::start(|mut conversation| async move {
        while let Some(request) = conversation.request().await {
            if request.header("upgrade").is_some() {
                conversation
                    .send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
                    .await;
                conversation.hang().await;
                return;
            }
            conversation.send(ok(&"answer ".repeat(100))).await;
        }
    })
    .await;
    let mesh = |n: u64| {
        let app = service("app", &format!("max_concurrent = {}", 500 + n % 2), &[upstream.address]);
        format!("{app}[services.other-{}]\n", n % 50)
    };
    let proxy = Proxy::start(mesh(0)).await;
    let pid = proxy.process.pid();
    let http1 = Load::start(proxy.outbound(), 16, &Ask::of("app"));
    let h2 = Load::start_h2(proxy.outbound(), 8, &Ask::of("app"));
    let began = Instant::now();
    let mut settled: Option<(u64, usize)> = None;
    let mut round = 0_u64;
    while began.elapsed() < length {
        round += 1;
        disturb(&proxy, round).await;
        proxy.write_mesh(mesh(round));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = (observe::resident_bytes(pid), observe::descriptors(pid));
        if settled.is_none() && began.elapsed() > length / 10 {
            settled = Some(now);
        }
        if round % 30 == 1 {
            let (resident, descriptors) = now;
            let line = format!(
                "{:5} s: {:6.1} MiB, {descriptors} descriptors, {} requests\n",
                began.elapsed().as_secs(),
                f64::from(u32::try_from(resident >> 10)?) / 1024.0,
                http1.succeeded() + h2.succeeded()
            );
            std::io::stdout().write_all(line.as_bytes())?;
        }
    }
    let (http1, h2) = tokio::join!(http1.stop(), h2.stop());
    http1.expect_no_failure();
    h2.expect_no_failure();
    let (resident, descriptors) = settled.unwrap_or_default();
    let grown = observe::resident_bytes(pid).saturating_sub(resident);
    ensure!(grown < GROWTH_MAX, "{} MiB more than after a tenth of the time", grown >> 20);
    let more = observe::descriptors(pid).saturating_sub(descriptors);
    ensure!(more < DESCRIPTORS_MORE_MAX, "{more} descriptors more than after a tenth of the time");
    std::io::stdout().write_all(format!("{} KiB more; memory stays\n", grown >> 10).as_bytes())?;
    Ok(())
}

/// Callers that behave badly, some of each kind.
async fn disturb(proxy: &Proxy, round: u64) {
    for n in 0..20_u64 {
        let mut caller: Caller = proxy.caller().await;
        match n % 5 {
            0 => caller.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n").await,
            1 => caller.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 100000\r\n\r\nhalf").await,
            2 => caller.send(format!("GET / HTTP/1.1\r\nHost: scan-{round}-{n}.example.com\r\n\r\n")).await,
            3 => {
                let upgrade = "GET / HTTP/1.1\r\nHost: app\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
                caller.send(upgrade).await;
            }
            _ => caller.send("\x16\x03\x01 what is this\r\n\r\n").await,
        }
        tokio::time::sleep(Duration::from_millis(n)).await;
    }
}
