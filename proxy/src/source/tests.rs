//! Starting without anyone who answers, and what an earlier process left behind.

use std::ffi::OsString;

use gilmok_config::endpoint::Endpoint;
use gilmok_config::name::{Name, ServiceName};
use serde_json::{Value, json};

use super::last_known_good::Remembered;
use super::*;
use crate::drain::Drain;
use crate::testing::{Calls, Folder, at_once, eventually, recording};

fn settings(dir: &Path, plane: &str) -> Settings {
    let args = [
        "gilmok-proxy",
        "--node",
        "web-1",
        "--source-control-plane",
        plane,
        "--state-dir",
        dir.to_str().unwrap(),
    ];
    Settings::load(args.map(OsString::from), &|_| None).unwrap().1
}

/// A rule whose batch was closed by this revision.
fn closed_by(revision: u64) -> String {
    let rule = json!({
        "key": "host", "strategy": "modulo", "hash": "identity", "shards": ["0", "1"],
        "next": { "shards": ["0", "2"], "closed": revision },
    });
    json!({ "services": { "ads": { "sharding": rule } } }).to_string()
}

fn remember(dir: &Path) {
    remember_text(dir, r#"{"services":{"ads":{}}}"#);
}

fn remember_text(dir: &Path, text: &str) {
    let endpoints: Arc<[Endpoint]> = vec![Endpoint::at("10.0.0.1:80".parse().unwrap())].into();
    let remembered = Remembered {
        store: "s".to_owned(),
        revision: 7,
        hash: "h".to_owned(),
        text: text.into(),
        membership: [(ServiceName::parse("ads").unwrap(), endpoints)].into(),
        visitor_keys: "the key of visitors".to_owned(),
    };
    Keeper::open(dir, "web-1").unwrap().save(&remembered).unwrap();
}

struct Started {
    in_force: Arc<InForce>,
    sources: Sources,
    _drain: Drain,
    _tasks: JoinSet<()>,
}

fn start(settings: &Settings) -> Started {
    let in_force = Arc::new(InForce::new(1, Name::default(), Vec::new()));
    let identity = Identity { node: settings.node.clone(), instance: "1".to_owned() };
    let here = Here { identity, apps: Vec::new(), tls: Arc::default(), enrolled: watch::Sender::default() };
    let mut tasks = JoinSet::new();
    let drain = Drain::new();
    let sources = Sources::start(settings, &here, &in_force, drain.phases(), &mut tasks).unwrap();
    Started { in_force, sources, _drain: drain, _tasks: tasks }
}

#[tokio::test(start_paused = true)]
async fn the_last_known_good_state_serves_when_nobody_answers() {
    let dir = Folder::new("fall-back");
    remember(&dir);
    let began = tokio::time::Instant::now();
    let started = start(&settings(&dir, "http://127.0.0.1:1"));
    assert_eq!(started.in_force.load().generation, 0, "not at once");
    eventually("in force", || started.in_force.load().generation > 0).await;
    assert!(began.elapsed() >= LAST_KNOWN_GOOD_AFTER);
    let current = started.in_force.load();
    let applied = current.applied.as_ref().unwrap();
    assert!(applied.last_known_good && applied.revision == 7);
    assert_eq!(current.snapshot.services()[0].endpoints.len(), 1);
    assert_eq!(started.sources.store().as_deref(), Some("s"));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_used_is_left_aside() {
    let dir = Folder::new("left-aside");
    remember(&dir);
    std::fs::write(dir.join("web-1.last-known-good"), "gilmok-last-known-good-9 0\n").unwrap();
    let started = start(&settings(&dir, "http://127.0.0.1:1"));
    sleep(LAST_KNOWN_GOOD_AFTER * 2).await;
    assert_eq!(started.in_force.load().generation, 0);
    // Nor does a folder that cannot be written keep a proxy from starting.
    let file = dir.join("file");
    std::fs::write(&file, "").unwrap();
    let started = start(&settings(&file, "http://127.0.0.1:1"));
    assert!(started.sources.accept_store("s").is_ok());
    assert!(started.sources.accept_store("").is_err());
}

fn fences(calls: &Calls) -> Value {
    let calls = calls.lock().unwrap();
    let acks = calls.iter().rev().find(|(line, _)| line.starts_with("POST"));
    acks.map(|(_, ack)| ack["fences"].clone()).unwrap_or_default()
}

async fn is_told(calls: &Calls, calling: u64, persisted: bool) {
    let expected = json!([
        { "service": "ads", "closed": 41, "calling": calling, "serving": 0, "persisted": persisted }
    ]);
    at_once(&format!("{expected}"), || fences(calls) == expected).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_closed_before_a_restart_is_closed_after_it_and_told_so() {
    let dir = Folder::new("closed");
    remember_text(&dir, &closed_by(41));
    // Takes acks, and has no feed.
    let (server, calls) = recording(|_| 200).await;
    let started = start(&settings(&dir, &server.to_string()));
    eventually("the last known good state", || started.in_force.load().generation > 0).await;
    let generation = started.in_force.load().generation;
    let is_ack = |(line, _): &(String, Value)| line.starts_with("POST");
    eventually("an ack", || calls.lock().unwrap().iter().any(is_ack)).await;
    assert!(fences(&calls).is_null(), "the worker has not taken it");
    started.in_force.take(0, generation);
    is_told(&calls, 0, true).await;
}

#[tokio::test(start_paused = true)]
async fn a_closed_batch_is_written_down_at_once_and_told_when_the_disk_has_it() {
    let dir = Folder::new("written");
    let (server, calls) = recording(|_| 200).await;
    let started = start(&settings(&dir, &server.to_string()));
    let feed = started.sources.feed.clone().unwrap();
    feed.take_document(7, &closed_by(41));
    let current = started.in_force.load();
    let passage = current.upstreams[0].passages.as_ref().unwrap().begin(true);
    started.in_force.take(0, current.generation);
    is_told(&calls, 1, true).await;
    drop(passage);
    is_told(&calls, 0, true).await;
    // What cannot be written is told as it is.
    let nowhere = dir.join("file");
    std::fs::write(&nowhere, "").unwrap();
    let (server, calls) = recording(|_| 200).await;
    let started = start(&settings(&nowhere, &server.to_string()));
    started.sources.feed.clone().unwrap().take_document(7, &closed_by(41));
    started.in_force.take(0, started.in_force.load().generation);
    is_told(&calls, 0, false).await;
}
