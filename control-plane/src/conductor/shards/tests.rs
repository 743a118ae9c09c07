//! Moves of shards conducted over a real store, with what proxies would say: who acts, when it gives up, what a killed process
//! leaves.

use gilmok_config::wire::{Ack, Applied, FenceReport, InboundApp, ProxyState, Registration, WIRE_LEVEL};

use super::super::tests::Folder;
use super::*;
use crate::intent::MoveDeed;
use crate::store::Store;

fn profile() -> ServiceName {
    ServiceName::parse("profile").unwrap()
}

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn address(shard: usize) -> String {
    format!("10.0.0.{}:15006", shard + 1)
}

/// A control plane over the store in this folder, in which four shards are alive.
fn plane(folder: &Folder, inbound: bool) -> Arc<State> {
    let state = State::new(Store::open(&folder.0, 100).unwrap(), false).unwrap();
    for shard in 0..4 {
        let endpoint = Endpoint {
            shard: name(&shard.to_string()),
            inbound,
            ..Endpoint::at(address(shard).parse().unwrap())
        };
        let registration = Registration { endpoint, ttl: None };
        state.registry.put(profile(), &shard.to_string(), registration).unwrap();
    }
    state
}

async fn begin(state: &State) {
    begin_at(state, 0).await;
}

async fn begin_at(state: &State, epoch: i64) {
    let rule = json!({"key": "host", "strategy": "slots", "slots": 4, "map": {"0": "0-1", "1": "2-3"}, "epoch": epoch});
    let commands = [
        Command::PutService(profile(), json!({ "sharding": rule })),
        Command::BeginMove(profile(), json!({"shards": ["0", "1", "2", "3"], "last_copy": "none"})),
    ];
    for command in commands {
        state.write(&command, &Author::default()).await.unwrap();
    }
}

async fn say(state: &State, deed: MoveDeed) {
    let id = moving(state).id;
    state.write(&Command::Move(profile(), id, deed), &Author::default()).await.unwrap();
}

fn moving(state: &State) -> Box<ShardMove> {
    state.store.records()[&profile()].moving.clone().unwrap()
}

fn table(state: &State) -> Value {
    state.store.head().unwrap().document["services"]["profile"]["sharding"].clone()
}

fn ack(node: &str, fence: Option<FenceReport>) -> Ack {
    Ack {
        node: node.to_owned(),
        instance: "1".to_owned(),
        wire: WIRE_LEVEL,
        version: String::new(),
        applied: None,
        refused: None,
        state: ProxyState::Ready,
        counts: Vec::new(),
        apps: Vec::new(),
        fences: fence.into_iter().collect(),
        flags: Vec::new(),
        guarded: Vec::new(),
        identity: None,
    }
}

fn fenced(state: &State) -> Option<FenceReport> {
    let closed = moving(state).closed()?;
    Some(FenceReport { service: profile(), closed, calling: 0, serving: 0, persisted: true })
}

/// The sidecar of a shard says whether it has closed the batch.
fn sidecar(state: &State, shard: usize, fence: Option<FenceReport>) {
    let app =
        InboundApp { service: profile(), shard: name(&shard.to_string()), address: Some(address(shard)) };
    let ack = Ack { apps: vec![app], ..ack_of(state, &format!("sidecar-{shard}"), fence) };
    state.publisher.acks.note(ack);
}

/// The sidecar of a shard says that it runs what the control plane has.
fn ack_of(state: &State, node: &str, fence: Option<FenceReport>) -> Ack {
    let head = state.store.head().unwrap();
    let applied = Applied {
        store: state.store.id().to_owned(),
        revision: head.number,
        hash: head.hash.clone(),
        last_known_good: false,
    };
    Ack { applied: Some(applied), ..ack(node, fence) }
}

/// The sidecars of the targets, where there are any, follow the document.
fn targets_follow(state: &State) {
    let has_sidecars = state.view().endpoints[&profile()].iter().any(|endpoint| endpoint.inbound);
    (2..4).filter(|_| has_sidecars).for_each(|shard| sidecar(state, shard, None));
}

/// Every sidecar has closed what is closed.
fn all_close(state: &State) {
    (0..4).for_each(|shard| sidecar(state, shard, fenced(state)));
}

async fn ticks(mover: &Mover, ticks: usize) {
    for _ in 0..ticks {
        mover.tick(None).await;
    }
}

/// To where the first batch is closed.
async fn closed(state: &State, mover: &Mover) {
    begin(state).await;
    ticks(mover, 1).await;
    say(state, MoveDeed::Resume).await;
    targets_follow(state);
    ticks(mover, 1).await;
    assert_eq!(moving(state).state(), "handover", "{}", moving(state).why);
}

#[tokio::test]
async fn a_move_goes_on_by_what_its_sidecars_close() {
    let folder = Folder::new("moves");
    let state = plane(&folder, true);
    let mover = Mover::new(Arc::clone(&state), None);
    closed(&state, &mover).await;
    let (shown, waits) = mover.current(&profile()).unwrap();
    assert_eq!(waits.len(), 1, "{waits:?}");
    assert!(shown.why.contains("the sidecar at 10.0.0.1:15006"), "{}", shown.why);
    // Whoever else has closed it helps nobody.
    sidecar(&state, 1, fenced(&state));
    sidecar(&state, 0, fenced(&state).map(|fence| FenceReport { serving: 1, ..fence }));
    ticks(&mover, 1).await;
    assert_eq!(moving(&state).state(), "handover");
    all_close(&state);
    ticks(&mover, 1).await;
    assert_eq!((moving(&state).moved, &table(&state)["epoch"]), (1, &json!(1)));
    ticks(&mover, 1).await;
    say(&state, MoveDeed::Resume).await;
    ticks(&mover, 1).await;
    assert_eq!(
        moving(&state).state(),
        "copying",
        "its target's sidecar has not said that it knows of the batch"
    );
    let (shown, _) = mover.current(&profile()).unwrap();
    assert!(shown.why.contains("shard 3 at 10.0.0.4:15006 has not said"), "{}", shown.why);
    targets_follow(&state);
    ticks(&mover, 1).await;
    all_close(&state);
    ticks(&mover, 1).await;
    assert_eq!(moving(&state).state(), "done");
    let what: Vec<_> =
        state.store.audit(u64::MAX, 100).await.unwrap().into_iter().rev().map(|entry| entry.what).collect();
    assert_eq!(
        what[1..6],
        [
            "begin move of shards of profile",
            "move of shards of profile: slot 1 announced",
            "resume move of shards of profile",
            "move of shards of profile: slot 1 closed",
            "move of shards of profile: slot 1 moved",
        ]
    );
}

#[tokio::test]
async fn a_batch_that_cannot_be_handed_over_is_open_again_and_says_why() {
    let folder = Folder::new("no-epoch");
    let state = plane(&folder, true);
    let mover = Mover::new(Arc::clone(&state), None);
    begin_at(&state, i64::MAX).await;
    ticks(&mover, 1).await;
    say(&state, MoveDeed::Resume).await;
    targets_follow(&state);
    ticks(&mover, 1).await;
    all_close(&state);
    ticks(&mover, 1).await;
    let (told, table) = (moving(&state), table(&state));
    assert_eq!((told.state(), told.moved, &table["epoch"]), ("paused", 0, &json!(i64::MAX)));
    assert!(table["next"]["map"].is_object() && table["next"].get("closed").is_none(), "{table}");
    assert!(
        told.why.contains("the document would not be sound") && told.why.contains("epoch"),
        "{}",
        told.why
    );
    let happened = told.happened;
    ticks(&mover, 3).await;
    assert_eq!(moving(&state).happened, happened, "it is said once");
}

#[tokio::test]
async fn two_who_conduct_one_store_never_act_twice() {
    let folder = Folder::new("two-moves");
    let state = plane(&folder, true);
    begin(&state).await;
    let other = State::new(state.store.clone(), false).unwrap();
    let movers = [Mover::new(Arc::clone(&state), None), Mover::new(Arc::clone(&other), None)];
    for _ in 0..20 {
        if moving(&state).state() == "copying" && !moving(&state).copied {
            say(&state, MoveDeed::Resume).await;
        }
        all_close(&state);
        all_close(&other);
        tokio::join!(ticks(&movers[0], 1), ticks(&movers[1], 1));
    }
    assert_eq!((moving(&state).state(), &table(&state)["epoch"]), ("done", &json!(2)));
    let mut seen: Vec<_> = moving(&state).history.iter().map(|event| event.what.as_str()).collect();
    seen.retain(|what| *what == "moved");
    assert_eq!(seen.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_closed_for_two_seconds_of_this_processs_clock() {
    let folder = Folder::new("two-seconds");
    let state = plane(&folder, true);
    let mover = Mover::new(Arc::clone(&state), None);
    closed(&state, &mover).await;
    tokio::time::advance(HOLD_MAX.checked_sub(Duration::from_millis(1)).unwrap()).await;
    ticks(&mover, 1).await;
    assert_eq!(moving(&state).state(), "handover");
    tokio::time::advance(Duration::from_millis(2)).await;
    ticks(&mover, 1).await;
    assert_eq!((moving(&state).state(), table(&state)["next"].get("closed")), ("paused", None));
    ticks(&mover, 3).await;
    assert_eq!(moving(&state).history.len(), 6, "it is said once: {:?}", moving(&state).history);
    // What was said of the batch that was closed then says nothing of the one that is closed now.
    let before = fenced(&state);
    assert_eq!(before, None);
    say(&state, MoveDeed::Resume).await;
    ticks(&mover, 1).await;
    assert_eq!(moving(&state).state(), "handover");
}

#[tokio::test(start_paused = true)]
async fn every_word_of_a_proxy_counts_at_once_while_a_batch_is_closed() {
    let folder = Folder::new("at-once");
    let state = plane(&folder, true);
    begin(&state).await;
    let mover = Mover::new(Arc::clone(&state), None);
    let conducting = tokio::spawn(Arc::clone(&mover).conduct());
    let mut heads = state.store.heads();
    let mut is_in = async |wanted: &str| {
        while moving(&state).state() != wanted {
            heads.changed().await.unwrap();
        }
    };
    is_in("copying").await;
    let before = Instant::now();
    targets_follow(&state);
    say(&state, MoveDeed::Resume).await;
    is_in("handover").await;
    all_close(&state);
    is_in("copying").await;
    assert!(before.elapsed() < TICK, "no tick was waited for: {:?}", before.elapsed());
    assert_eq!(moving(&state).moved, 1);
    // And nobody who is silent is waited for longer than that.
    targets_follow(&state);
    say(&state, MoveDeed::Resume).await;
    is_in("handover").await;
    let closed = Instant::now();
    is_in("paused").await;
    assert!(closed.elapsed() <= HOLD_MAX + OVERDUE_PAUSE, "{:?}", closed.elapsed());
    conducting.abort();
}

#[tokio::test]
async fn a_killed_control_plane_goes_on_or_back_wherever_it_stood() {
    for (name, steps) in [("prepare", 0), ("copying", 1), ("handover", 2)] {
        let folder = Folder::new(&format!("killed-{name}"));
        {
            let state = plane(&folder, true);
            let mover = Mover::new(Arc::clone(&state), None);
            begin(&state).await;
            for _ in 0..steps {
                ticks(&mover, 1).await;
                if moving(&state).state() == "copying" && steps > 1 {
                    say(&state, MoveDeed::Resume).await;
                    targets_follow(&state);
                }
            }
            assert_eq!(moving(&state).state(), name);
        }
        let state = plane(&folder, true);
        let mover = Mover::new(Arc::clone(&state), None);
        assert_eq!(moving(&state).state(), name);
        if name != "handover" {
            ticks(&mover, 1).await;
            say(&state, MoveDeed::Resume).await;
            targets_follow(&state);
            ticks(&mover, 1).await;
        }
        // Nobody has said anything to this process yet.
        ticks(&mover, 1).await;
        assert_eq!(moving(&state).moved, 0);
        all_close(&state);
        ticks(&mover, 1).await;
        assert_eq!(moving(&state).moved, 1, "{name}: {}", moving(&state).why);
    }
}

#[tokio::test]
async fn a_batch_that_was_closed_long_before_this_process_began_is_opened_at_once() {
    let folder = Folder::new("long-closed");
    {
        let state = plane(&folder, true);
        let mover = Mover::new(Arc::clone(&state), None);
        closed(&state, &mover).await;
        let mut record = state.store.records()[&profile()].clone();
        record.moving.as_mut().unwrap().since_ms -= 2_000;
        assert!(state.store.keep_records(vec![(profile(), record)]).await.unwrap());
    }
    let state = plane(&folder, true);
    let mover = Mover::new(Arc::clone(&state), None);
    ticks(&mover, 1).await;
    assert_eq!((moving(&state).state(), table(&state)["next"].get("closed")), ("paused", None));
    assert!(moving(&state).why.starts_with("it was not fenced within 2 s"), "{}", moving(&state).why);
}

#[tokio::test]
async fn whoever_called_an_app_itself_is_waited_for_also_by_the_next_control_plane() {
    let folder = Folder::new("barrier");
    {
        let state = plane(&folder, false);
        let mover = Mover::new(Arc::clone(&state), None);
        for caller in ["near", "cut-off"] {
            state.publisher.acks.note(ack(caller, None));
        }
        closed(&state, &mover).await;
        state.publisher.acks.note(ack("near", fenced(&state)));
        ticks(&mover, 1).await;
        assert_eq!(moving(&state).moved, 0);
    }
    let state = plane(&folder, false);
    let mover = Mover::new(Arc::clone(&state), None);
    state.publisher.acks.note(ack("near", fenced(&state)));
    let (shown, waits) = mover.current(&profile()).unwrap();
    assert_eq!((waits.len(), waits[0].who.as_str()), (1, "cut-off"), "{}", shown.why);
    ticks(&mover, 1).await;
    assert_eq!(moving(&state).moved, 0);
    state.publisher.acks.note(ack("cut-off", fenced(&state)));
    ticks(&mover, 1).await;
    assert_eq!(moving(&state).moved, 1);
}

#[tokio::test]
async fn callers_of_an_app_itself_are_waited_for_when_it_has_a_sidecar_by_now() {
    let folder = Folder::new("fronted");
    {
        let state = plane(&folder, false);
        let mover = Mover::new(Arc::clone(&state), None);
        begin(&state).await;
        ticks(&mover, 1).await;
        assert!(moving(&state).direct.contains(&name("0")));
    }
    // The same addresses, with sidecars.
    let state = plane(&folder, true);
    state.publisher.acks.note(ack("caller", None));
    let mover = Mover::new(Arc::clone(&state), None);
    say(&state, MoveDeed::Resume).await;
    targets_follow(&state);
    ticks(&mover, 1).await;
    all_close(&state);
    ticks(&mover, 1).await;
    assert_eq!(moving(&state).moved, 0);
    state.publisher.acks.note(ack("caller", fenced(&state)));
    ticks(&mover, 1).await;
    assert_eq!(moving(&state).moved, 1);
}

#[tokio::test]
async fn moves_are_in_a_backup() {
    let (folder, other) = (Folder::new("moves-backup"), Folder::new("moves-restored"));
    let state = plane(&folder, true);
    let mover = Mover::new(Arc::clone(&state), None);
    closed(&state, &mover).await;
    let mut backup = Vec::new();
    state.store.backup(&mut backup).unwrap();
    Store::restore(&other.0, backup.as_slice()).unwrap();
    let restored = Store::open(&other.0, 100).unwrap();
    assert_eq!(restored.records(), state.store.records());
    assert_eq!(restored.records()[&profile()].running_move().unwrap().state(), "handover");
}

#[test]
fn a_message_says_what_there_is_to_copy_and_where_from_and_to() {
    let rules = [json!({"map": {"0": "0-3"}}), json!({"map": {"0": "0-1", "2": "2-3"}})];
    let batch = crate::resharding::state::Batch {
        from: name("0"),
        to: name("2"),
        what: "slots 2-3".to_owned(),
        detail: json!({"slots": [[2, 3]]}),
        ppm: Some(500_000),
        change: json!({"map": {"0": "0-1", "2": "2-3"}}),
    };
    let hand = Hand { by: "ann", why: "", now_ms: 1, revision: 40 };
    let mut moving = ShardMove::new(rules[0].clone(), vec![batch], Vec::new(), &hand);
    let owed = Owed { number: 1, occasion: Occasion::Copy, step: 0, back: false, why: "because".to_owned() };
    let endpoint = |shard: usize| Endpoint {
        shard: name(&shard.to_string()),
        ..Endpoint::at(address(shard).parse().unwrap())
    };
    let endpoints = [endpoint(0), endpoint(1), endpoint(2)];
    let told = |moving: &ShardMove, owed: &Owed| {
        body(&profile(), moving, owed, &endpoints, Some(&json!({"epoch": 7})), 9)
    };
    let first = told(&moving, &owed);
    assert_eq!(
        first,
        json!({
            "event": "copy", "service": "profile", "move": 40, "number": 1, "state": "prepare", "direction": "forward",
            "batch": {"from": "0", "to": "2", "what": "slots 2-3", "detail": {"slots": [[2, 3]]}, "place": 0},
            "batches": 1, "moved": 0, "closed": null, "rule": rules[0], "next": rules[1], "epoch": 7,
            "endpoints": {
                "from": [{"address": "10.0.0.1:15006", "role": "primary", "version": ""}],
                "to": [{"address": "10.0.0.3:15006", "role": "primary", "version": ""}],
            },
            "why": "because", "at_ms": 9,
        })
    );
    moving.moved = 1;
    moving.direction = Direction::Back;
    assert_eq!(told(&moving, &owed)["batch"], first["batch"], "what is said late is of the batch as it went");
    let back = told(&moving, &Owed { back: true, ..owed.clone() });
    assert_eq!((&back["batch"]["from"], &back["rule"], &back["next"]), (&json!("2"), &rules[1], &rules[0]));
}
