//! Sidecars that are killed in each stage of a move while users come, by real processes: the move goes on, or pauses with a reason
//! that one can read, and no acknowledged visit is lost, counted twice or at the wrong shard.

use gilmok_tests::caller::ask;
use gilmok_tests::eventually::eventually;
use gilmok_tests::process::Signal;
use gilmok_tests::profile::{Profile, Shard, TABLES};
use gilmok_tests::proxy::Proxy;
use gilmok_tests::visitors::Visitors;
use serde_json::Value;

const USERS: usize = 20;
/// Visits between two things that happen.
const VISITS: u64 = 200;
/// The two sidecars and the caller.
const PROXIES: usize = 3;

/// One shard, and a move to two that waits for the other one.
async fn prepared(profile: &Profile) -> String {
    let id = profile.begin(2).await;
    eventually("the target to be waited for", async || {
        let told = profile.told(&id).await;
        let waits = told["state"] == "prepare" && why(&told) == "shard 1 has no primary; it is waited for";
        if waits { Ok(()) } else { Err(told) }
    })
    .await;
    id
}

fn why(told: &Value) -> String {
    told["why"].as_str().unwrap_or_default().to_owned()
}

/// The move has paused, and says this.
async fn paused(profile: &Profile, id: &str, reason: &str) {
    let told = profile.is(id, "paused").await;
    assert!(why(&told).contains(reason), "{told}");
    assert!(profile.rule().await["next"].get("closed").is_none(), "open at its source: {told}");
}

/// The sidecar of a shard is there again, and known, and the move goes on where it has paused.
async fn is_back(profile: &mut Profile, shard: usize, id: &str) {
    profile.sidecar_is_back(shard).await;
    profile.shards[shard].is_known(&profile.plane).await;
    profile.hears_of(PROXIES).await;
    if profile.told(id).await["state"] == "paused" {
        assert_eq!(profile.say(id, "resume").await.status(), 200);
    }
}

/// A visit at the sidecar of a shard itself, by a caller with any map; the status.
async fn visit_at(profile: &Profile, shard: usize, user: &str) -> u16 {
    let request = format!("POST /users/{user} HTTP/1.1\r\nHost: profile\r\nContent-Length: 0\r\n\r\n");
    ask(profile.shards[shard].sidecar.inbound(0), request).await.status()
}

/// A user of this shard, as a caller's proxy has it, who visits nothing by himself.
async fn user_of(caller: &Proxy, shard: &str) -> String {
    for user in 0..USERS {
        let user = format!("guest-{user}");
        let answer = caller.get("profile", &format!("/users/{user}")).await;
        let said: Value = serde_json::from_slice(&answer.body).expect("an answer in JSON");
        if said["shard"] == shard {
            return user;
        }
    }
    panic!("no user of {USERS} is at shard {shard}");
}

/// When all has moved: the sidecar of a shard dies while no control plane is there, and goes by what is on its disk. Answers the
/// statuses of visits at itself by a user who has moved, and by one who has not.
async fn comes_back_from_its_disk(profile: &mut Profile, caller: &Proxy, shard: usize) -> [u16; 2] {
    let [moved, stayed] = [user_of(caller, "1").await, user_of(caller, "0").await];
    profile.plane.process.signal(Signal::Kill).await;
    profile.sidecar_is_back(shard).await;
    let told = profile.shards[shard].sidecar.admin_json("/config").await;
    assert_eq!(told["source"], "last known good", "{told}");
    [visit_at(profile, shard, &moved).await, visit_at(profile, shard, &stayed).await]
}

/// Ends a move that goes back, whose sidecar of this shard dies with the batch closed.
async fn back_again(profile: &mut Profile, shard: usize, id: &str, closed: usize) {
    profile.copier.hold("fenced");
    assert_eq!(profile.say(id, "reverse").await.status(), 200);
    profile.happened(id, "closed", closed + 1).await;
    profile.sidecar_dies(shard).await;
    paused(profile, id, "").await;
    profile.copier.release();
    is_back(profile, shard, id).await;
    profile.goes_on_until(id, PROXIES, async || profile.told(id).await["state"] == "reversed").await;
}

async fn closings(profile: &Profile, id: &str) -> usize {
    let told = profile.told(id).await;
    told["history"].as_array().map_or(0, |all| all.iter().filter(|event| event["what"] == "closed").count())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sidecar_of_the_source_dies_in_each_stage() {
    let mut profile = Profile::start(1, 1).await;
    let a = profile.caller("caller-a").await;
    let visitors = Visitors::start(&[a.outbound()], USERS);
    visitors.go_on_for(VISITS).await;
    let id = prepared(&profile).await;
    profile.sidecar_dies(0).await;
    profile.sidecar_is_back(0).await;
    visitors.go_on_for(VISITS).await;
    // While it is copied, which nobody can without it.
    profile.copier.hold("copy");
    profile.shards.push(Shard::start(&profile.plane, 1).await);
    profile.copier.heard("copy", 1).await;
    profile.sidecar_dies(0).await;
    profile.copier.release();
    paused(&profile, &id, "the webhook `copy` did not agree").await;
    profile.copier.hold_answer("copy");
    is_back(&mut profile, 0, &id).await;
    visitors.go_on_for(VISITS).await;
    profile.copier.copied("copy", 1).await;
    // While it is closed, before it has heard of that.
    profile.shards[0].sidecar.process.signal(Signal::Stop).await;
    profile.copier.hold("fenced");
    profile.happened(&id, "closed", 1).await;
    profile.sidecar_dies(0).await;
    paused(&profile, &id, "shard-0 (has not closed it yet)").await;
    is_back(&mut profile, 0, &id).await;
    visitors.go_on_for(VISITS).await;
    // While it is closed, after it has said so.
    profile.copier.heard("fenced", 1).await;
    profile.sidecar_dies(0).await;
    paused(&profile, &id, "").await;
    profile.copier.release();
    is_back(&mut profile, 0, &id).await;
    profile.goes_on_until(&id, PROXIES, async || profile.told(&id).await["state"] == "done").await;
    // What it has on its disk may be older than the move's end, yet it serves nothing that has moved.
    let [moved, stayed] = comes_back_from_its_disk(&mut profile, &a, 0).await;
    assert!(matches!(moved, 421 | 503), "{moved}");
    assert_eq!(stayed, 200);
    profile.plane = profile.plane.restart_after(Signal::Kill, TABLES).await;
    profile.hears_of(PROXIES).await;
    visitors.go_on_for(VISITS).await;
    let closed = closings(&profile, &id).await;
    back_again(&mut profile, 0, &id, closed).await;
    visitors.go_on_for(VISITS).await;
    let seen = visitors.leave().await;
    seen.expect_exact_at(a.outbound()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sidecar_of_the_target_dies_in_each_stage() {
    let mut profile = Profile::start(1, 1).await;
    let a = profile.caller("caller-a").await;
    let visitors = Visitors::start(&[a.outbound()], USERS);
    visitors.go_on_for(VISITS).await;
    // Before it was seen by the move; membership takes it for alive for a while.
    let id = prepared(&profile).await;
    assert_eq!(profile.say(&id, "pause").await.status(), 200);
    profile.shards.push(Shard::start(&profile.plane, 1).await);
    profile.sidecar_dies(1).await;
    assert_eq!(profile.say(&id, "resume").await.status(), 200);
    paused(&profile, &id, "the webhook `copy` did not agree").await;
    visitors.go_on_for(VISITS).await;
    // While it is copied.
    profile.copier.hold("copy");
    let told = profile.copier.has_heard("copy");
    is_back(&mut profile, 1, &id).await;
    profile.copier.heard("copy", told + 1).await;
    profile.sidecar_dies(1).await;
    profile.copier.release();
    paused(&profile, &id, "the webhook `copy` did not agree").await;
    visitors.go_on_for(VISITS).await;
    // While it is closed: what was written last cannot be copied to it.
    profile.copier.hold("fenced");
    is_back(&mut profile, 1, &id).await;
    profile.copier.heard("fenced", 1).await;
    profile.sidecar_dies(1).await;
    profile.copier.release();
    paused(&profile, &id, "did not agree").await;
    visitors.go_on_for(VISITS).await;
    // While it is closed and copied: it may have the batch before it is there again.
    profile.copier.hold_answer("fenced");
    is_back(&mut profile, 1, &id).await;
    profile.copier.copied("fenced", 1).await;
    profile.sidecar_dies(1).await;
    profile.copier.release();
    is_back(&mut profile, 1, &id).await;
    profile.goes_on_until(&id, PROXIES, async || profile.told(&id).await["state"] == "done").await;
    visitors.go_on_for(VISITS).await;
    // What it has on its disk may be older than the move's end.
    let [moved, stayed] = comes_back_from_its_disk(&mut profile, &a, 1).await;
    assert!(matches!(moved, 200 | 421 | 503), "{moved}");
    assert_eq!(stayed, 421);
    profile.plane = profile.plane.restart_after(Signal::Kill, TABLES).await;
    profile.hears_of(PROXIES).await;
    visitors.go_on_for(VISITS).await;
    let closed = closings(&profile, &id).await;
    back_again(&mut profile, 1, &id, closed).await;
    visitors.go_on_for(VISITS).await;
    let seen = visitors.leave().await;
    seen.expect_exact_at(a.outbound()).await;
}
