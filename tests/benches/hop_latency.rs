//! Added latency of one hop at 1,000 requests a second, in turns with the same calls made directly and through peers.
//!
//! `cargo bench -p gilmok-tests --bench hop_latency [-- SECONDS ROUNDS]`; needs nginx, and measures HAProxy and
//! Envoy where they are on the PATH.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use gilmok_tests::process::{Process, program};
use gilmok_tests::scratch::Scratch;
use tokio::process::Command;

const UPSTREAM: u16 = 19_200;
const CONNECTIONS: usize = 8;
const BETWEEN: Duration = Duration::from_millis(1);

/// Median and 99th percentile of one round, in microseconds.
type Quantiles = (f64, f64);

fn main() -> Result<()> {
    let mut numbers = std::env::args().filter_map(|argument| argument.parse::<u64>().ok());
    let seconds = numbers.next().unwrap_or(5);
    let rounds = numbers.next().unwrap_or(7);
    let runtime = tokio::runtime::Runtime::new()?;
    let scratch = Scratch::new();
    let (targets, _processes) = runtime.block_on(start(&scratch))?;
    let mut figures: Vec<Vec<Quantiles>> = vec![Vec::new(); targets.len()];
    for round in 0..=rounds {
        for ((name, port), figures) in targets.iter().zip(&mut figures) {
            let quantiles =
                paced(*port, if round == 0 { 1 } else { seconds }).with_context(|| name.clone())?;
            // The first round warms up.
            if round > 0 {
                figures.push(quantiles);
            }
        }
    }
    let mut report =
        format!("{:10}{:>12}{:>12}{:>14}{:>14}\n", "", "p50 µs", "p99 µs", "added p50", "added p99");
    for ((name, _), own) in targets.iter().zip(&figures) {
        let p50 = median(own.iter().map(|(p50, _)| *p50));
        let p99 = median(own.iter().map(|(_, p99)| *p99));
        // Against the direct calls of the same round, so that a slow minute counts for both.
        let added_p50 = median(own.iter().zip(&figures[0]).map(|(own, direct)| own.0 - direct.0));
        let added_p99 = median(own.iter().zip(&figures[0]).map(|(own, direct)| own.1 - direct.1));
        report += &format!("{name:10}{p50:12.0}{p99:12.0}{added_p50:14.0}{added_p99:14.0}\n");
    }
    std::io::stdout().write_all(report.as_bytes())?;
    Ok(())
}

async fn start(scratch: &Scratch) -> Result<(Vec<(String, u16)>, Vec<Process>)> {
    let templates = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench");
    let render = |name: &str, port: u16| -> Result<PathBuf> {
        let text = std::fs::read_to_string(templates.join(name)).with_context(|| name.to_owned())?;
        let text = text.replace("@PORT@", &port.to_string()).replace("@BACKEND@", &UPSTREAM.to_string());
        Ok(scratch.write(name, text.replace("@WORK@", &scratch.path().to_string_lossy())))
    };
    // nginx' worker is another user.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(scratch.path(), open)?;
    std::fs::create_dir(scratch.path().join("www"))?;
    let log = |name: &str| scratch.path().join(format!("{name}.log"));
    let mut processes = Vec::new();
    let mut upstream = Command::new("nginx");
    upstream.args(["-e", "/dev/null", "-c"]).arg(render("backend.conf", UPSTREAM)?);
    processes.push(Process::spawn(upstream, &log("nginx")));
    listens(UPSTREAM).await?;
    let mut targets = vec![("direct".to_owned(), UPSTREAM)];

    let mesh = render("gilmok.mesh.toml", UPSTREAM)?;
    let settings = format!(
        "node = \"bench\"\n[listen]\noutbound = \"127.0.0.1:19201\"\n[source]\nmesh_file = \"{}\"\n[workers]\ncount = 1\n",
        mesh.display()
    );
    let mut gilmok = pinned(&program());
    gilmok.args(["proxy", "--config"]).arg(scratch.write("proxy.toml", settings));
    let haproxy_config = render("haproxy.cfg", 19_202)?;
    let mut haproxy = pinned(Path::new("haproxy"));
    haproxy.arg("-f").arg(haproxy_config);
    let mut envoy = pinned(Path::new("envoy"));
    envoy.arg("-c").arg(render("envoy.yaml", 19_203)?);
    envoy.args(["--concurrency", "1", "-l", "error", "--disable-hot-restart"]);
    for (name, port, command) in
        [("gilmok", 19_201, gilmok), ("haproxy", 19_202, haproxy), ("envoy", 19_203, envoy)]
    {
        if name != "gilmok" && !is_there(name) {
            continue;
        }
        processes.push(Process::spawn(command, &log(name)));
        listens(port).await.with_context(|| name.to_owned())?;
        targets.push((name.to_owned(), port));
    }
    Ok((targets, processes))
}

fn pinned(program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", "0"]).arg(program);
    command
}

fn is_there(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    folders.any(|folder| folder.join(name).exists())
}

async fn listens(port: u16) -> Result<()> {
    for _ in 0..200 {
        if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("nobody listens on {port}")
}

/// One request every millisecond, in turn over a few connections, from one thread that blocks.
fn paced(port: u16, seconds: u64) -> Result<Quantiles> {
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let io = TcpStream::connect(("127.0.0.1", port))?;
        io.set_nodelay(true)?;
        connections.push(io);
    }
    let mut latencies = Vec::new();
    let mut answer = [0; 4096];
    let begin = Instant::now();
    for n in 0..seconds * 1_000 {
        let at = begin + BETWEEN * u32::try_from(n)?;
        if let Some(left) = at.checked_duration_since(Instant::now()) {
            #[expect(
                clippy::disallowed_methods,
                reason = "this thread serves nobody; a timer would add its own delay"
            )]
            std::thread::sleep(left);
        }
        let io = &mut connections[usize::try_from(n)? % CONNECTIONS];
        let sent = Instant::now();
        io.write_all(b"GET / HTTP/1.1\r\nHost: backend\r\n\r\n")?;
        let length = io.read(&mut answer)?;
        latencies.push(sent.elapsed().as_secs_f64() * 1e6);
        if !answer[..length].starts_with(b"HTTP/1.1 200") {
            bail!("no 200: {}", String::from_utf8_lossy(&answer[..length]));
        }
    }
    latencies.sort_by(f64::total_cmp);
    Ok((latencies[latencies.len() / 2], latencies[latencies.len() * 99 / 100]))
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
