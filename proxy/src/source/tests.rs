//! Starting without anyone who answers, and what an earlier process left behind.

use std::ffi::OsString;

use gilmok_config::endpoint::Endpoint;
use gilmok_config::name::{Name, ServiceName};

use super::last_known_good::Remembered;
use super::*;
use crate::drain::Drain;
use crate::testing::{Folder, eventually};

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

fn remember(dir: &Path) {
    let endpoints: Arc<[Endpoint]> = vec![Endpoint::at("10.0.0.1:80".parse().unwrap())].into();
    let remembered = Remembered {
        store: "s".to_owned(),
        revision: 7,
        hash: "h".to_owned(),
        text: r#"{"services":{"ads":{}}}"#.into(),
        membership: [(ServiceName::parse("ads").unwrap(), endpoints)].into(),
        visitor_keys: "the key of visitors".to_owned(),
    };
    Keeper::open(dir, "web-1").unwrap().save(&remembered).unwrap();
}

struct Started {
    in_force: Arc<InForce>,
    sources: Sources,
    _tasks: JoinSet<()>,
}

fn start(settings: &Settings) -> Started {
    let in_force = Arc::new(InForce::new(1, Name::default(), Vec::new()));
    let identity = Identity { node: settings.node.clone(), instance: "1".to_owned() };
    let mut tasks = JoinSet::new();
    let phases = Drain::new().phases();
    let sources = Sources::start(settings, identity, &in_force, phases, &mut tasks).unwrap();
    Started { in_force, sources, _tasks: tasks }
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
