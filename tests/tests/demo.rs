//! The demo as CI and a newcomer meet it: its story comes true, and it leaves no process behind, however it ends.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use gilmok_tests::consul::Consul;
use gilmok_tests::eventually::{eventually, eventually_within, soon};
use gilmok_tests::process::{Process, Signal, program, send_signal};
use gilmok_tests::scratch::Scratch;
use tokio::process::Command;
use tokio::time::interval;

/// The story's own limit, and some time to end in.
const STORY_MAX: Duration = Duration::from_secs(190);
/// A control plane, three proxies, ten apps; four more when the shards grow.
const CHILDREN: usize = 14;

/// Parent and state of a process, as the kernel tells them.
fn parent_and_state(pid: u32) -> Option<(u32, char)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    Some((fields.next()?.parse().ok()?, state))
}

fn children_of(parent: u32) -> BTreeSet<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return BTreeSet::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| parent_and_state(*pid).is_some_and(|(of, _)| of == parent)).collect()
}

/// Whether a process is there, and is more than an end that nobody has collected.
fn is_alive(pid: u32) -> bool {
    parent_and_state(pid).is_some_and(|(_, state)| !matches!(state, 'Z' | 'X'))
}

async fn all_gone(children: &BTreeSet<u32>) {
    eventually("every child to be gone", async || {
        let alive: Vec<_> = children.iter().filter(|child| is_alive(**child)).collect();
        if alive.is_empty() { Ok(()) } else { Err(format!("still there: {alive:?}")) }
    })
    .await;
}

fn start(args: &[&str], scratch: &Scratch) -> Process {
    let mut command = Command::new(program());
    // Whatever it leaves behind is ours to remove.
    command.arg("demo").args(args).env("TMPDIR", scratch.path());
    Process::spawn(command, &scratch.path().join("demo.log"))
}

async fn with_all_children(demo: &Process) -> BTreeSet<u32> {
    eventually("the demo to have all its children", async || {
        let children = children_of(demo.pid());
        if children.len() == CHILDREN { Ok(children) } else { Err(format!("{children:?}\n{}", demo.log())) }
    })
    .await
}

/// Plays the story; it must come true and leave nobody behind. What it said.
async fn play(args: &[&str]) -> String {
    let scratch = Scratch::new();
    let mut demo = start(args, &scratch);
    let pid = demo.pid();
    let mut seen = BTreeSet::new();
    let mut ticks = interval(Duration::from_millis(50));
    let status = {
        let mut ended = std::pin::pin!(demo.ended(STORY_MAX));
        loop {
            tokio::select! {
                status = ended.as_mut() => break status,
                // Those that die in the story and those that come after them, too.
                _ = ticks.tick() => seen.extend(children_of(pid)),
            }
        }
    };
    assert!(status.success(), "{status}:\n{}", demo.log());
    assert!(seen.len() >= CHILDREN, "only {seen:?}:\n{}", demo.log());
    all_gone(&seen).await;
    let left = std::fs::read_dir(scratch.path()).expect("a scratch folder").flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name()).filter(|name| *name != "demo.log").collect();
    assert!(left.is_empty(), "files left behind: {left:?}");
    demo.log()
}

#[tokio::test]
async fn the_story_comes_true_and_leaves_no_process_behind() {
    play(&["--once"]).await;
}

#[tokio::test]
async fn the_story_comes_true_where_every_hop_is_encrypted() {
    let said = play(&["--once", "--tls"]).await;
    for told in ["spiffe://demo.mesh/service/checkout", "checkout calls them too and gets 403"] {
        assert!(said.contains(told), "{told:?} is not in:\n{said}");
    }
}

#[tokio::test]
async fn the_story_comes_true_with_a_real_consul() {
    let consul = Consul::start().await;
    let said = play(&["--once", "--consul", &consul.origin().to_string()]).await;
    // What the agent itself has: the proxies' last words reached it, or did not.
    let (status, held) = consul.get("/v1/agent/services").await;
    assert_eq!(
        (status, held.trim()),
        (200, "{}"),
        "the demo takes back what it registered:\n{said}\n{}",
        consul.log()
    );
    // The agent tells the catalog in its own time.
    eventually("the catalog to have Consul alone", async || {
        let (_, services) = consul.get("/v1/catalog/services").await;
        let names: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(&services).expect("Consul answers JSON");
        if names.keys().eq(["consul"]) { Ok(()) } else { Err(format!("{services}\n{}", consul.log())) }
    })
    .await;
}

#[tokio::test]
async fn every_command_that_the_reader_is_told_to_try_works() {
    let scratch = Scratch::new();
    let mut demo = start(&[], &scratch);
    let guide = eventually_within(STORY_MAX, "the story to end", async || {
        let said = demo.log();
        let guide = said.split_once("Try:").map(|(_, guide)| guide.to_owned());
        guide.filter(|guide| guide.contains("Ctrl-C")).ok_or(said)
    })
    .await;
    let mut tried = 0;
    let is_command = |line: &&str| line.starts_with("curl ") || line.contains(" --control-plane ");
    for line in guide.lines().map(str::trim).filter(is_command) {
        let command = line.replacen("curl ", "curl --fail --show-error --max-time 20 ", 1);
        let output = Command::new("sh").args(["-c", &command]).output().await.expect("a shell is there");
        let reason = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !output.stdout.is_empty(), "{line}\n{reason}");
        tried += 1;
    }
    assert!(tried > 8, "{guide}");
    demo.signal(Signal::Interrupt).await;
    assert!(demo.ended(STORY_MAX).await.success());
}

#[tokio::test]
async fn a_story_that_does_not_come_true_says_what_failed_and_shows_the_log() {
    let scratch = Scratch::new();
    let mut demo = start(&["--once"], &scratch);
    let children = with_all_children(&demo).await;
    let shop = children.iter().find(|pid| {
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&arguments).contains("--service=shop")
    });
    // A log that is still empty has nothing to show.
    eventually("the shop to listen", async || {
        let folders = std::fs::read_dir(scratch.path()).unwrap().flatten();
        let mut logs =
            folders.filter_map(|entry| std::fs::read_to_string(entry.path().join("shop.log")).ok());
        if logs.any(|log| log.contains("listens on")) { Ok(()) } else { Err("it does not say so") }
    })
    .await;
    send_signal(*shop.expect("the shop runs"), Signal::Kill).await;
    let status = demo.ended(STORY_MAX).await;
    let said = demo.log();
    assert_eq!(status.code(), Some(1), "{said}");
    for expected in
        ["FAILED", "shop has ended by itself: signal: 9", "the end of the log of shop", "listens on"]
    {
        assert!(said.contains(expected), "{expected:?} is not in:\n{said}");
    }
    all_gone(&children).await;
}

#[tokio::test]
async fn a_demo_that_is_interrupted_ends_its_children() {
    let scratch = Scratch::new();
    let mut demo = start(&[], &scratch);
    let children = with_all_children(&demo).await;
    demo.signal(Signal::Interrupt).await;
    let status = demo.ended(STORY_MAX).await;
    assert!(status.success(), "{status}:\n{}", demo.log());
    all_gone(&children).await;
}

#[tokio::test]
async fn a_demo_that_is_killed_takes_its_children_with_it() {
    let scratch = Scratch::new();
    let mut demo = start(&[], &scratch);
    let children = with_all_children(&demo).await;
    demo.kill().await;
    all_gone(&children).await;
}

#[tokio::test]
async fn a_child_whose_input_cannot_be_read_ends() {
    // Reading a folder fails each time, and says so at once.
    let folder = std::fs::File::open(std::env::temp_dir()).unwrap();
    let mut child = Command::new(program())
        .args(["demo-app", "--with-parent", "--listen", "127.0.0.1:0"])
        .stdin(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    assert!(soon("the end of the child", child.wait()).await.unwrap().success());
}
