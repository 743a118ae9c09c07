//! Rollouts conducted over a real store, with what proxies would say: who acts, what is lost, what a killed process leaves.

use std::path::PathBuf;

use gilmok_config::endpoint::Endpoint;
use gilmok_config::name::Name;
use gilmok_config::wire::{Applied, Registration, ServiceCounts, VersionCounts, WIRE_LEVEL};
use serde_json::{Value, json};

use super::*;
use crate::intent::Deed;
use crate::store::Store;

/// A folder that goes with the test.
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    pub(super) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("gilmok-conductor-{name}-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&path));
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn shop() -> ServiceName {
    ServiceName::parse("shop").unwrap()
}

/// A control plane over the store in this folder.
fn plane(folder: &Folder) -> Arc<State> {
    over(Store::open(&folder.0, 100).unwrap())
}

fn over(store: Store) -> Arc<State> {
    let state = State::new(store, false).unwrap();
    for version in ["v1", "v2"] {
        let endpoint = Endpoint {
            version: Name::parse(version).unwrap(),
            ..Endpoint::at(format!("10.0.0.{}:80", version.len()).parse().unwrap())
        };
        let registration = Registration { endpoint, ttl: None };
        state.registry.put(shop(), version, registration).unwrap();
    }
    state
}

async fn begun(state: &State, plan: Value) {
    let traffic = json!({"traffic": {"stable": "v1", "weights": {"v1": 100}}});
    let commands = [Command::PutService(shop(), traffic), Command::PutRollout(shop(), plan)];
    for command in commands {
        state.write(&command, &Author::default()).await.unwrap();
    }
}

/// What a proxy says it has counted of both versions since it was started.
fn says(state: &State, node: &str, stable: u64, candidate: u64, failures: u64) {
    let of = |version: &str, trials: u64, failures: u64| VersionCounts {
        version: Name::parse(version).unwrap(),
        trials,
        failures,
        requests: trials,
        ..VersionCounts::default()
    };
    let counts =
        ServiceCounts { service: shop(), versions: vec![of("v1", stable, 0), of("v2", candidate, failures)] };
    let store = state.store.id().to_owned();
    let revision = state.store.head().map_or(0, |head| head.number);
    state.publisher.acks.note(Ack {
        node: node.to_owned(),
        instance: "1".to_owned(),
        wire: WIRE_LEVEL,
        version: String::new(),
        applied: Some(Applied { store, revision, hash: String::new(), last_known_good: false }),
        refused: None,
        state: Default::default(),
        counts: vec![counts],
        apps: Vec::new(),
        fences: Vec::new(),
        flags: Vec::new(),
        guarded: Vec::new(),
        identity: None,
    });
}

fn weights(state: &State) -> Value {
    state.store.head().unwrap().document["services"]["shop"]["traffic"]["weights"].clone()
}

async fn ticks(conductor: &Conductor, ticks: u64) {
    for _ in 0..ticks {
        conductor.tick(TICK, None).await;
    }
}

fn plan() -> Value {
    json!({"candidate": "v2", "analysis": {"latency": false}, "steps": [{"percent": 10, "hold": "3s"}, {"percent": 100}]})
}

#[tokio::test]
async fn a_rollout_goes_on_by_what_proxies_count_and_each_step_is_a_revision() {
    let folder = Folder::new("goes-on");
    let state = plane(&folder);
    begun(&state, plan()).await;
    let conductor = Conductor::new(Arc::clone(&state), None);
    says(&state, "a", 500, 500, 500);
    ticks(&conductor, 1).await;
    assert_eq!(weights(&state), json!({"v1": 90, "v2": 10}));
    let revision = state.store.head().unwrap().number;
    for second in 1..=20 {
        says(&state, "a", 500 + 9_000 * second, 500 + 1_000 * second, 500);
        ticks(&conductor, 1).await;
    }
    let rollout = conductor.rollout(&shop()).unwrap();
    assert_eq!((rollout.state(), weights(&state)), ("done", json!({"v2": 100})), "{}", rollout.why);
    assert_eq!(
        state.store.head().unwrap().number,
        revision + 1,
        "a tick that changes nothing is no revision"
    );
    assert_eq!(rollout.history.iter().find_map(|event| event.revision), Some(revision));
    let audit = state.store.audit(u64::MAX, 1).await.unwrap();
    assert_eq!((audit[0].who.as_str(), audit[0].what.as_str()), ("rollout", "rollout of shop: 100 % v2"));
}

#[tokio::test]
async fn two_conductors_of_one_store_never_act_twice() {
    let folder = Folder::new("two");
    let state = plane(&folder);
    begun(&state, plan()).await;
    let other = over(state.store.clone());
    let conductors = [Conductor::new(Arc::clone(&state), None), Conductor::new(Arc::clone(&other), None)];
    for second in 0..30 {
        for state in [&state, &other] {
            says(state, "a", 9_000 * second, 1_000 * second, 0);
        }
        tokio::join!(ticks(&conductors[0], 1), ticks(&conductors[1], 1));
    }
    let record = state.store.records()[&shop()].clone();
    let rollout = record.rollout.unwrap();
    assert_eq!(rollout.state(), "done");
    let steps: Vec<_> = rollout.history.iter().map(|event| event.what.as_str()).collect();
    assert_eq!(steps, ["started", "step", "step", "done"]);
    let moved = state.store.audit(u64::MAX, 100).await.unwrap();
    assert_eq!(moved.iter().filter(|entry| entry.who == "rollout").count(), 2, "{moved:?}");
}

#[tokio::test]
async fn a_killed_control_plane_changes_no_share_and_loses_nothing_that_was_counted() {
    let folder = Folder::new("killed");
    {
        let state = plane(&folder);
        begun(&state, plan()).await;
        let conductor = Conductor::new(Arc::clone(&state), None);
        says(&state, "a", 0, 0, 0);
        ticks(&conductor, 1).await;
        // Kept as every five seconds; what comes after that is only in memory.
        conductor.keep(&shop()).await;
        says(&state, "a", 900, 100, 0);
        ticks(&conductor, 1).await;
        assert_eq!(conductor.rollout(&shop()).unwrap().tally.step.candidate.trials, 100);
    }
    let state = plane(&folder);
    assert_eq!(weights(&state), json!({"v1": 90, "v2": 10}));
    let conductor = Conductor::new(Arc::clone(&state), None);
    says(&state, "a", 1_800, 200, 0);
    ticks(&conductor, 1).await;
    let rollout = conductor.rollout(&shop()).unwrap();
    assert_eq!(rollout.tally.step.candidate.trials, 200, "also what was counted while nobody listened");
    assert_eq!((rollout.state(), rollout.step), ("holding", 0));
}

#[tokio::test]
async fn an_operators_word_and_what_is_counted_do_not_lose_each_other() {
    let folder = Folder::new("word");
    let state = plane(&folder);
    begun(&state, plan()).await;
    let conductor = Conductor::new(Arc::clone(&state), None);
    says(&state, "a", 0, 0, 0);
    ticks(&conductor, 1).await;
    says(&state, "a", 900, 100, 0);
    ticks(&conductor, 1).await;
    state.write(&Command::Rollout(shop(), Deed::Pause), &Author::default()).await.unwrap();
    says(&state, "a", 1_800, 200, 0);
    ticks(&conductor, 10).await;
    let rollout = conductor.rollout(&shop()).unwrap();
    assert_eq!((rollout.state(), rollout.tally.step.candidate.trials), ("paused", 200));
    state.write(&Command::Rollout(shop(), Deed::Abort), &Author::default()).await.unwrap();
    ticks(&conductor, 2).await;
    assert_eq!(
        (conductor.rollout(&shop()).unwrap().state(), weights(&state)),
        ("aborted", json!({"v1": 100}))
    );
    let drain = conductor.drain(&shop()).unwrap();
    assert!(!drain.drainable && drain.version.as_str() == "v2", "{drain:?}");
    says(&state, "a", 1_800, 200, 0);
    assert!(conductor.drain(&shop()).unwrap().drainable);
}

#[tokio::test]
async fn what_is_kept_of_services_is_in_a_backup() {
    let (folder, other) = (Folder::new("backup"), Folder::new("restored"));
    let state = plane(&folder);
    begun(&state, plan()).await;
    let mut backup = Vec::new();
    state.store.backup(&mut backup).unwrap();
    Store::restore(&other.0, backup.as_slice()).unwrap();
    let restored = Store::open(&other.0, 100).unwrap();
    assert_eq!(restored.records(), state.store.records());
    assert!(restored.records()[&shop()].running().is_some());
}
