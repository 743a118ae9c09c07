//! Shards that move by each rule that can move keys (slots: `shard_moves`), there and back while users come, by real processes.

use std::collections::BTreeSet;

use gilmok_tests::caller::{Caller, get};
use gilmok_tests::profile::{Profile, names};
use gilmok_tests::visitors::Visitors;
use serde_json::{Value, json};

/// Users of each of two callers: `user-0-0` to `user-0-19`, and `user-1-…`.
const USERS: usize = 20;
/// Visits between two things that happen.
const VISITS: u64 = 200;

/// Moves from a rule to another one and back, while users come. `before` and `after` name the shards that have users then,
/// `batches` is how many the move has.
async fn there_and_back(rule: &Value, wanted: Value, before: usize, after: usize, batches: u64) {
    let profile = Profile::start_by(rule, after).await;
    let (a, b) = (profile.caller("caller-a").await, profile.caller("caller-b").await);
    let visitors = Visitors::start(&[a.outbound(), b.outbound()], USERS);
    visitors.go_on_for(VISITS).await;
    let had = profile.rule().await;
    assert_eq!(serving(&visitors, &[&a, &b]).await, names(before));
    let id = profile.begin_to(wanted.clone()).await;
    let told = profile.is(&id, "done").await;
    assert_eq!(told["batches"].as_array().map(Vec::len), usize::try_from(batches).ok(), "{told}");
    visitors.go_on_for(VISITS).await;
    assert_eq!(serving(&visitors, &[&a, &b]).await, names(after));
    let has = profile.rule().await;
    for (key, wanted) in wanted.as_object().expect("a table") {
        assert_eq!(&has[key], wanted, "{has}");
    }
    assert_eq!((&has["epoch"], has.get("next")), (&json!(batches), None), "{has}");
    assert_eq!(profile.say(&id, "reverse").await.status(), 200);
    profile.is(&id, "reversed").await;
    visitors.go_on_for(VISITS).await;
    assert_eq!(serving(&visitors, &[&a, &b]).await, names(before));
    let has = profile.rule().await;
    for key in ["map", "shards", "default", "next"] {
        assert_eq!(has.get(key), had.get(key), "{key}");
    }
    let seen = visitors.leave().await;
    assert_eq!(seen.unknown, 0, "nobody died");
    for caller in [&a, &b] {
        seen.expect_exact_at(caller.outbound()).await;
    }
}

/// The shards that answer for the users who came so far.
async fn serving(visitors: &Visitors, callers: &[&gilmok_tests::proxy::Proxy]) -> Vec<String> {
    let mut serving = BTreeSet::new();
    for caller in callers {
        let mut caller = Caller::connect(caller.outbound()).await;
        for user in visitors.so_far().users.keys() {
            let answer = caller.ask(get("profile", &format!("/users/{user}"))).await;
            let said: Value = serde_json::from_slice(&answer.body).expect("an answer in JSON");
            serving.insert(said["shard"].as_str().unwrap_or_default().to_owned());
        }
    }
    serving.into_iter().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn four_places_of_a_list_become_eight_and_four_again() {
    let rule = json!({ "strategy": "modulo", "shards": names(4) });
    there_and_back(&rule, json!({ "shards": names(8) }), 4, 8, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_are_cut_and_joined_again() {
    let rule = json!({ "strategy": "range", "map": { "0": "", "1": "user-1" } });
    // A part from within, and the upper one of the other shard.
    let wanted =
        json!({ "map": { "0": ["", "user-0-15"], "1": "user-1", "2": "user-0-1", "3": "user-1-3" } });
    there_and_back(&rule, wanted, 2, 4, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn single_users_of_a_directory_have_a_shard_of_their_own_and_none_again() {
    let rule =
        json!({ "strategy": "directory", "default": "0", "map": { "user-0-0": "1", "user-1-1": "1" } });
    // One that was listed, and two that were not.
    let wanted = json!({ "map": { "user-0-0": "1", "user-1-1": "2", "user-0-7": "2", "user-1-7": "3" } });
    there_and_back(&rule, wanted, 2, 4, 3).await;
}
