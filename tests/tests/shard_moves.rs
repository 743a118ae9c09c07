//! Shards that move while users come, by real processes: no acknowledged visit is lost, counted twice or at the wrong shard,
//! whoever is killed, stopped or cut off meanwhile.

use std::net::SocketAddr;
use std::time::Duration;

use gilmok_tests::caller::ask;
use gilmok_tests::eventually::eventually;
use gilmok_tests::message::Message;
use gilmok_tests::process::Signal;
use gilmok_tests::profile::{Profile, TABLES, caller_settings};
use gilmok_tests::proxy::Proxy;
use gilmok_tests::relay::Relay;
use gilmok_tests::visitors::{Seen, Visitors};
use serde_json::{Value, json};

/// Users of each caller.
const USERS: usize = 20;
/// Visits between two things that happen.
const VISITS: u64 = 200;

/// Every user's count is right through every proxy, each asked anew.
async fn expect_exact(seen: &Seen, callers: &[&Proxy]) {
    for caller in callers {
        seen.expect_exact_at(caller.outbound()).await;
    }
}

fn map_of(rule: &Value, shard: &str) -> String {
    rule["map"][shard].as_str().unwrap_or_default().to_owned()
}

/// Nothing of a move is left in the rule, which holds all slots in so many shards.
fn expect_settled(rule: &Value, shards: usize) {
    assert!(rule.get("next").is_none(), "{rule}");
    let holding = rule["map"].as_object().expect("a map").values().filter(|held| *held != "").count();
    assert_eq!(holding, shards, "{rule}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_shards_become_four_and_two_again_and_no_visit_is_lost() {
    let profile = Profile::start(4, 2).await;
    let (a, b) = (profile.caller("caller-a").await, profile.caller("caller-b").await);
    let visitors = Visitors::start(&[a.outbound(), b.outbound()], USERS);
    visitors.go_on_for(VISITS).await;
    let id = profile.begin(4).await;
    profile.is(&id, "done").await;
    visitors.go_on_for(VISITS).await;
    let rule = profile.rule().await;
    expect_settled(&rule, 4);
    assert_eq!((rule["epoch"].as_u64(), map_of(&rule, "2").as_str()), (Some(2), "4096-8191"), "{rule}");
    let answer = profile.say(&id, "reverse").await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    profile.is(&id, "reversed").await;
    visitors.go_on_for(VISITS).await;
    let rule = profile.rule().await;
    expect_settled(&rule, 2);
    assert_eq!(rule["epoch"], 4, "{rule}");
    let seen = visitors.leave().await;
    assert_eq!((seen.turned_away, seen.unknown), (0, 0), "nobody was kept waiting for longer than he waits");
    expect_exact(&seen, &[&a, &b]).await;
    let longest = seen.took.iter().max();
    println!("{} visits, the slowest {longest:?}", seen.acknowledged());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_is_killed_anywhere_goes_on_or_back() {
    let mut profile = Profile::start(4, 2).await;
    let (a, b) = (profile.caller("caller-a").await, profile.caller("caller-b").await);
    let visitors = Visitors::start(&[a.outbound(), b.outbound()], USERS);
    visitors.go_on_for(VISITS).await;
    // While it is copied: that is asked for once more, and the move goes on.
    profile.copier.hold("copy");
    let id = profile.begin(4).await;
    profile.copier.heard("copy", 1).await;
    profile = killed(profile).await;
    profile.copier.hold("fenced");
    profile.goes_on_until(&id, 6, async || profile.copier.has_heard("fenced") > 0).await;
    // While it is closed: it goes on if all are heard of in time, or opens the batch again and waits for a word.
    profile.is(&id, "handover").await;
    profile = killed(profile).await;
    profile.copier.release();
    profile.goes_on_until(&id, 6, async || profile.told(&id).await["state"] == "done").await;
    expect_settled(&profile.rule().await, 4);
    visitors.go_on_for(VISITS).await;
    // Anywhere, again and again, on the way back.
    assert_eq!(profile.say(&id, "reverse").await.status(), 200);
    for pause in [40, 110, 230, 370] {
        profile.goes_on_until(&id, 6, async || profile.told(&id).await["state"] != "paused").await;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        profile = killed(profile).await;
    }
    profile.goes_on_until(&id, 6, async || profile.told(&id).await["state"] == "reversed").await;
    expect_settled(&profile.rule().await, 2);
    visitors.go_on_for(VISITS).await;
    let seen = visitors.leave().await;
    assert_eq!(seen.unknown, 0, "who is turned away was not let in");
    expect_exact(&seen, &[&a, &b]).await;
}

/// Ends the control plane the hard way and starts another one on its store: the map stays one map.
async fn killed(mut profile: Profile) -> Profile {
    let rule = profile.rule().await;
    profile.plane = profile.plane.restart_after(Signal::Kill, TABLES).await;
    let epochs =
        [rule["epoch"].as_u64(), profile.rule().await["epoch"].as_u64()].map(Option::unwrap_or_default);
    assert!(epochs[0] <= epochs[1], "{epochs:?}");
    profile
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_is_cut_off_is_sent_on_by_the_owner() {
    let profile = Profile::start(2, 1).await;
    let relay = Relay::start(profile.plane.address).await;
    let near = profile.caller("near").await;
    let far = profile.caller_of("far", relay.address()).await;
    let visitors = Visitors::start(&[near.outbound(), far.outbound()], USERS);
    visitors.go_on_for(VISITS).await;
    // It knows that there is to be another shard, and nothing of what becomes of that.
    profile.copier.hold("copy");
    let id = profile.begin(2).await;
    knows(&far, |rule| !rule["next"].is_null()).await;
    relay.close();
    profile.copier.release();
    profile.is(&id, "done").await;
    visitors.go_on_for(VISITS).await;
    knows(&far, |rule| rule["epoch"] == 0 && rule["next"]["closed"].is_null()).await;
    let redirects = far.metric("gilmok_shard_redirects_total", &["service=\"profile\""]).await;
    assert!(redirects > 0.0, "half of its users are at the other shard");
    // A stale caller that dies and starts from its disk is as stale.
    let kept = far.scratch.path().join("state/far.last-known-good");
    eventually("what it knows to be on its disk", async || {
        let text = std::fs::read_to_string(&kept).unwrap_or_default();
        if text.contains("\"next\"") { Ok(()) } else { Err(text) }
    })
    .await;
    let outbound = far.outbound();
    let settings = caller_settings("far", relay.address()).listen(&format!("outbound = \"{outbound}\""));
    let far = far.restart_after(Signal::Kill, settings).await;
    far.is_ready().await;
    visitors.go_on_for(VISITS).await;
    knows(&far, |rule| rule["epoch"] == 0).await;
    let seen = visitors.leave().await;
    assert_eq!(seen.turned_away, 0, "{} visits", seen.acknowledged());
    expect_exact(&seen, &[&near, &far]).await;
}

/// Waits until what a proxy knows of the rule is like this.
async fn knows(proxy: &Proxy, is_like_this: impl Fn(&Value) -> bool) {
    eventually("a rule to be known", async || {
        let told = proxy.admin_json("/explain?service=profile&key=user-0-0").await;
        let rule = &told["service"]["sharding"];
        if is_like_this(rule) { Ok(()) } else { Err(rule.clone()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_cannot_close_the_batch_keeps_it() {
    let profile = Profile::start(2, 1).await;
    let a = profile.caller("caller-a").await;
    let visitors = Visitors::start(&[a.outbound()], USERS);
    visitors.go_on_for(VISITS).await;
    profile.copier.hold_answer("copy");
    let id = profile.begin(2).await;
    profile.copier.copied("copy", 1).await;
    // Stopped, it neither serves nor hears that the batch is closed.
    profile.shards[0].sidecar.process.signal(Signal::Stop).await;
    profile.copier.release();
    let told = profile.is(&id, "paused").await;
    let why = told["why"].as_str().unwrap_or_default();
    assert!(why.contains("shard-0"), "it says who was missing: {told}");
    let rule = profile.rule().await;
    assert_eq!(rule["next"].get("closed"), None, "open again: {rule}");
    profile.shards[0].sidecar.process.signal(Signal::Continue).await;
    visitors.go_on_for(VISITS).await;
    assert_eq!(profile.say(&id, "resume").await.status(), 200);
    profile.is(&id, "done").await;
    visitors.go_on_for(VISITS).await;
    let seen = visitors.leave().await;
    expect_exact(&seen, &[&a]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_dies_with_the_batch_closed_finds_it_closed() {
    let mut profile = Profile::start(2, 1).await;
    let a = profile.caller("caller-a").await;
    let visitors = Visitors::start(&[a.outbound()], USERS);
    visitors.go_on_for(VISITS).await;
    profile.copier.hold("fenced");
    let id = profile.begin(2).await;
    // The fence is complete, so the owner has it on its disk; nobody is left who could open it again.
    profile.copier.heard("fenced", 1).await;
    profile.plane.process.signal(Signal::Kill).await;
    profile.sidecar_is_back(0).await;
    let sidecar = &profile.shards[0].sidecar;
    let inbound = sidecar.inbound(0);
    let told = sidecar.admin_json("/config").await;
    assert_eq!(told["source"], "last known good", "{told}");
    // A caller of any age meets it: the half that moves is refused after a while, the other one is served.
    let closed = user_of(&a, true).await;
    let open = user_of(&a, false).await;
    let refused = visit_at(inbound, &closed).await;
    assert_eq!((refused.status(), refused.header("retry-after")), (503, Some("1")), "{refused:?}");
    assert_eq!(visit_at(inbound, &open).await.status(), 200);
    profile.copier.release();
    profile.plane = profile.plane.restart_after(Signal::Kill, TABLES).await;
    let told = profile.is(&id, "paused").await;
    assert!(profile.rule().await["next"].get("closed").is_none(), "{told}");
    profile.hears_of(3).await;
    assert_eq!(profile.say(&id, "resume").await.status(), 200);
    profile.is(&id, "done").await;
    visitors.go_on_for(VISITS).await;
    let seen = visitors.leave().await;
    expect_exact(&seen, &[&a]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_cannot_write_its_disk_keeps_the_batch() {
    let mut profile = Profile::start(2, 1).await;
    let a = profile.caller("caller-a").await;
    let visitors = Visitors::start(&[a.outbound()], USERS);
    visitors.go_on_for(VISITS).await;
    profile.copier.hold("copy");
    let id = profile.begin(2).await;
    let state = profile.shards[0].sidecar.scratch.path().join("state");
    let kept = async |what: &str| {
        let kept = state.join("shard-0.last-known-good");
        eventually(&format!("{what} on its disk"), async || {
            let text = std::fs::read_to_string(&kept).unwrap_or_default();
            if text.contains(what) { Ok(()) } else { Err(text) }
        })
        .await;
    };
    kept("\"next\"").await;
    let moving = user_of(&a, true).await;
    // What it writes first stands in its way from now on, whoever it runs as.
    let in_the_way = state.join("shard-0.new");
    std::fs::create_dir(&in_the_way).expect("a folder can be made");
    profile.copier.release();
    profile.happened(&id, "closed", 1).await;
    // It has closed the batch, which a restart does not find: with nobody there who knows better, it serves.
    profile.plane.process.signal(Signal::Kill).await;
    profile.sidecar_is_back(0).await;
    let told = profile.shards[0].sidecar.admin_json("/config").await;
    assert_eq!(told["source"], "last known good", "{told}");
    assert_eq!(visit_at(profile.shards[0].sidecar.inbound(0), &moving).await.status(), 200);
    // So the batch is not handed over, now or later.
    profile.plane = profile.plane.restart_after(Signal::Kill, TABLES).await;
    profile.is(&id, "paused").await;
    profile.hears_of(3).await;
    assert_eq!(profile.say(&id, "resume").await.status(), 200);
    let told = profile.is(&id, "paused").await;
    let why = told["why"].as_str().unwrap_or_default();
    assert!(why.contains("shard-0 (would not find it closed after a restart)"), "{told}");
    assert!(profile.rule().await["next"].get("closed").is_none(), "{told}");
    std::fs::remove_dir(&in_the_way).expect("it is empty");
    profile.goes_on_until(&id, 3, async || profile.told(&id).await["state"] == "done").await;
    kept("\"epoch\":1").await;
    visitors.go_on_for(VISITS).await;
    let seen = visitors.leave().await;
    expect_exact(&seen, &[&a]).await;
}

/// A visit at a listener itself, by a caller with any map.
async fn visit_at(listener: SocketAddr, user: &str) -> Message {
    let request = format!("POST /users/{user} HTTP/1.1\r\nHost: profile\r\nContent-Length: 0\r\n\r\n");
    ask(listener, request).await
}

/// A user whose shard is another one by the next rule, or not, and who visits nothing by himself.
async fn user_of(caller: &Proxy, moves: bool) -> String {
    for user in 0..USERS {
        let user = format!("guest-{user}");
        let told = caller.admin_json(&format!("/explain?service=profile&key={user}")).await;
        if told["decision"]["shard"]["moving"].as_bool().unwrap_or_default() == moves {
            return user;
        }
    }
    panic!("no user of {USERS} has moving = {moves}");
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_that_die_again_and_again_lose_nothing_that_was_acknowledged() {
    let profile = Profile::start(4, 2).await;
    let a = profile.caller("caller-a").await;
    let mut b = profile.caller("caller-b").await;
    let visitors = Visitors::start(&[a.outbound(), b.outbound()], USERS);
    visitors.go_on_for(VISITS).await;
    let id = profile.begin(4).await;
    let outbound = b.outbound();
    let mut kills = 0;
    while profile.told(&id).await["state"] != "done" && kills < 20 {
        let settings =
            caller_settings("caller-b", profile.plane.address).listen(&format!("outbound = \"{outbound}\""));
        b = b.restart_after(Signal::Kill, settings).await;
        kills += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    profile.is(&id, "done").await;
    b.is_ready().await;
    visitors.go_on_for(VISITS).await;
    let seen = visitors.leave().await;
    expect_exact(&seen, &[&a, &b]).await;
    println!("{kills} callers, {} visits, {} unknown", seen.acknowledged(), seen.unknown);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_pauses_resumes_and_reverses_at_any_point() {
    let profile = Profile::start(4, 2).await;
    let a = profile.caller("caller-a").await;
    let visitors = Visitors::start(&[a.outbound()], USERS);
    visitors.go_on_for(VISITS).await;
    let before = profile.rule().await;
    // While it is copied: nothing has changed, and nothing does.
    profile.copier.hold("copy");
    let id = profile.begin(4).await;
    profile.is(&id, "copying").await;
    let answer = profile
        .plane
        .call(
            "PATCH",
            "/v1/services/profile",
            Some(&json!({ "sharding": { "map": { "0": "0-16383", "1": null } } })),
        )
        .await;
    assert_eq!(answer.status(), 409, "{answer:?}");
    assert!(answer.text().contains("moves"), "{answer:?}");
    assert_eq!(profile.say(&id, "pause").await.status(), 200);
    assert_eq!(profile.say(&id, "pause").await.status(), 409);
    profile.copier.release();
    visitors.go_on_for(VISITS).await;
    assert_eq!(profile.told(&id).await["state"], "paused");
    assert_eq!(profile.say(&id, "reverse").await.status(), 200);
    profile.is(&id, "reversed").await;
    assert_eq!(profile.rule().await["map"], before["map"]);
    // While it is closed.
    profile.copier.hold("fenced");
    let id = profile.begin(4).await;
    profile.is(&id, "handover").await;
    assert_eq!(profile.say(&id, "reverse").await.status(), 200);
    profile.is(&id, "reversed").await;
    profile.copier.release();
    assert_eq!(profile.rule().await["map"], before["map"]);
    visitors.go_on_for(VISITS).await;
    // Once a part has moved, that moves back.
    let id = profile.begin(4).await;
    eventually("a first batch to have moved", async || {
        let told = profile.told(&id).await;
        if told["moved"].as_u64() >= Some(1) { Ok(()) } else { Err(told) }
    })
    .await;
    let answer = profile.say(&id, "reverse").await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    profile.is(&id, "reversed").await;
    expect_settled(&profile.rule().await, 2);
    visitors.go_on_for(VISITS).await;
    let seen = visitors.leave().await;
    assert_eq!(seen.unknown, 0);
    expect_exact(&seen, &[&a]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_apps_are_called_themselves_every_caller_closes_the_batch() {
    let profile = Profile::start_without_sidecars(2, 1).await;
    let (a, b) = (profile.caller("caller-a").await, profile.caller("caller-b").await);
    let visitors = Visitors::start(&[a.outbound(), b.outbound()], USERS);
    visitors.go_on_for(VISITS).await;
    let id = profile.begin(2).await;
    profile.is(&id, "done").await;
    visitors.go_on_for(VISITS).await;
    // A caller that is not heard might still call by what it knew.
    profile.copier.hold_answer("copy");
    assert_eq!(profile.say(&id, "reverse").await.status(), 200);
    profile.copier.copied("copy", 2).await;
    b.process.signal(Signal::Stop).await;
    profile.copier.release();
    let told = profile.is(&id, "paused").await;
    assert!(told["why"].as_str().is_some_and(|why| why.contains("caller-b")), "{told}");
    assert!(profile.rule().await["next"].get("closed").is_none(), "{told}");
    b.process.signal(Signal::Continue).await;
    profile.hears_of(2).await;
    assert_eq!(profile.say(&id, "resume").await.status(), 200);
    profile.is(&id, "reversed").await;
    visitors.go_on_for(VISITS).await;
    expect_settled(&profile.rule().await, 1);
    let seen = visitors.leave().await;
    expect_exact(&seen, &[&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_proxies_of_one_name_do_not_speak_for_each_other() {
    let profile = Profile::start_without_sidecars(2, 1).await;
    let (a, b) = (profile.caller("caller").await, profile.caller("caller").await);
    profile.hears_of(2).await;
    let visitors = Visitors::start(&[a.outbound(), b.outbound()], USERS);
    visitors.go_on_for(VISITS).await;
    profile.copier.hold_answer("copy");
    let id = profile.begin(2).await;
    profile.copier.copied("copy", 1).await;
    a.process.signal(Signal::Stop).await;
    profile.copier.release();
    let told = profile.is(&id, "paused").await;
    assert!(told["why"].as_str().is_some_and(|why| why.contains("caller (has not closed it yet)")), "{told}");
    a.process.signal(Signal::Continue).await;
    profile.hears_of(2).await;
    assert_eq!(profile.say(&id, "resume").await.status(), 200);
    profile.is(&id, "done").await;
    visitors.go_on_for(VISITS).await;
    let log = profile.plane.process.log();
    assert_eq!(log.matches("two proxies say that they are").count(), 1, "{log}");
    let seen = visitors.leave().await;
    expect_exact(&seen, &[&a, &b]).await;
}
