//! Rollouts that judge themselves, by real processes: a good candidate gets everybody, a bad one loses everybody.

use std::collections::BTreeSet;

use gilmok_tests::eventually::eventually;
use gilmok_tests::process::Signal;
use gilmok_tests::proxy::ProxySettings;
use gilmok_tests::shop::{Shop, deeds, everybody_on, lenient};
use gilmok_tests::upstream::{Upstream, ok};
use gilmok_tests::users::{Crowd, Users};
use serde_json::{Value, json};
use tokio::time::Instant;

/// 1, 10, 50, 100.
fn canary() -> Value {
    json!({ "candidate": "v2", "analysis": lenient(), "steps": [
        { "percent": 1, "hold": "1s" }, { "percent": 10, "hold": "1s" }, { "percent": 50, "hold": "1s" }, { "percent": 100 },
    ] })
}

/// Everything that was known when a rollout did this.
fn evidence<'a>(rollout: &'a Value, what: &str) -> &'a Value {
    let mut events = rollout["history"].as_array().into_iter().flatten();
    &events.find(|event| event["what"] == what).unwrap_or_else(|| panic!("never {what}: {rollout}"))["evidence"]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_canary_gets_everybody_and_no_user_is_moved_back() {
    let shop = Shop::start().await;
    let users = shop.users(2_000);
    shop.begin(&canary()).await;
    let rollout = shop.is("done").await;
    assert_eq!(deeds(&rollout), ["started", "step", "step", "step", "step", "done"], "{rollout}");
    assert_eq!(shop.traffic().await, everybody_on("v2"));
    shop.converges().await;
    assert_eq!(shop.on_v2(0..200).await.len(), 200);
    let heard = users.stop().await;
    heard.expect_no_failure();
    for (user, path) in heard.paths() {
        assert!(path == ["v1"] || path == ["v1", "v2"] || path == ["v2"], "user-{user}: {path:?}");
    }
    for event in rollout["history"].as_array().into_iter().flatten().skip(2) {
        let trials = event["evidence"]["failures"]["candidate"]["trials"].as_u64();
        assert!(trials.is_some_and(|trials| trials > 0), "each decision keeps its evidence: {event}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_that_fails_now_and_then_is_taken_back_by_itself() {
    for percent in [5, 20] {
        let shop = Shop::start().await;
        shop.v2.told(&format!("fail?percent={percent}")).await;
        let users = shop.users(20_000);
        let analysis = json!({ "floor_percent": 1, "latency": false });
        let steps = json!([{ "percent": 20, "hold": "5m" }, { "percent": 100 }]);
        shop.begin(&json!({ "candidate": "v2", "analysis": analysis, "steps": steps })).await;
        let rollout = shop.is("rolled_back").await;
        assert_eq!(deeds(&rollout), ["started", "step", "rolled_back"], "{rollout}");
        assert_eq!(shop.traffic().await, everybody_on("v1"));
        let failures = &evidence(&rollout, "rolled_back")["failures"];
        assert_eq!(
            (&failures["finding"], &failures["stable"]["events"]),
            (&json!("worse"), &json!(0)),
            "{failures}"
        );
        assert!(failures["e_value"].as_f64() >= failures["e_value_needed"].as_f64(), "{failures}");
        assert!(rollout["why"].as_str().is_some_and(|why| why.starts_with("v2 fails in ")), "{rollout}");
        let release = shop.plane.json("/v1/services/shop/traffic").await["release"].clone();
        assert_eq!((&release["kind"], &release["from"]), (&json!("rollback"), &json!("v2")), "{release}");
        shop.converges().await;
        let back = Instant::now();
        users.flow(100).await;
        let heard = users.stop().await;
        let mut late = heard.answers.iter().filter(|answer| answer.asked > back);
        assert!(late.all(|answer| answer.version == "v1"), "everybody is back");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_user_who_causes_every_error_takes_nothing_back() {
    let shop = Shop::start().await;
    // Fails for nobody but users from a million on, of whom there is one.
    let v2 = Upstream::start(move |mut conversation| async move {
        while let Some(request) = conversation.request().await {
            let answer = if request.header("x-user-id").is_some_and(|user| user.len() == "user-1000000".len())
            {
                b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n".to_vec()
            } else {
                ok("v2")
            };
            if !conversation.send(answer).await {
                return;
            }
        }
    })
    .await;
    let endpoint = json!({ "address": v2.address.to_string(), "version": "v2", "ttl": "1h" });
    shop.plane.put("/v1/membership/shop/v2", &endpoint).await;
    let users = shop.users(2_000);
    let steps = json!([{ "percent": 20, "hold": "4s", "min_requests": 500 }, { "percent": 100 }]);
    let analysis = json!({ "floor_percent": 1, "max_ratio": 10, "latency": false });
    shop.begin(&json!({ "candidate": "v2", "analysis": analysis, "steps": steps })).await;
    shop.is("holding").await;
    let mut abuser = 1_000_000;
    while place(&shop, abuser).await >= 200_000 {
        abuser += 1;
    }
    let crowd = Crowd { users: abuser..abuser + 1, callers: 2, ..Crowd::of("shop", 1) };
    let abusive = Users::start(shop.proxy.outbound(), &crowd);
    let rollout = shop.is("done").await;
    let failures = &evidence(&rollout, "done")["failures"];
    let refused: u64 = abusive.stop().await.failures.values().sum();
    assert!(refused > 100, "only {refused} errors");
    assert!(failures["candidate"]["events"].as_u64().is_some_and(|events| events <= 2), "{failures}");
    drop(users);
}

/// Where a user stands among all, in parts per million.
async fn place(shop: &Shop, user: u32) -> u64 {
    // The proxy hears of a step a moment after the control plane has decided on it.
    eventually("the proxy to split users", async || {
        let told = shop.proxy.admin_json(&format!("/explain?service=shop&subject=user-{user}")).await;
        told["decision"]["split"]["place"].as_u64().ok_or(told)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_whose_only_endpoint_is_killed_or_taken_out_is_taken_back() {
    for (is_killed, why) in [(true, "cannot be connected to"), (false, "no endpoint of v2 is alive")] {
        let mut shop = Shop::start().await;
        let users = shop.users(1_000);
        let steps = json!([{ "percent": 30, "hold": "10m" }, { "percent": 100 }]);
        // Hard stops end a rollout that is not judged, too.
        shop.begin(&json!({ "candidate": "v2", "analysis": "off", "steps": steps })).await;
        shop.is("holding").await;
        users.flow(200).await;
        if is_killed {
            shop.v2.process.kill().await;
        } else {
            assert_eq!(shop.plane.call("DELETE", "/v1/membership/shop/v2", None).await.status(), 204);
        }
        let rollout = shop.is("rolled_back").await;
        assert!(rollout["why"].as_str().is_some_and(|said| said.contains(why)), "{why}: {rollout}");
        assert_eq!(shop.traffic().await, everybody_on("v1"));
        let heard = users.stop().await;
        assert!(is_killed || heard.failures.is_empty(), "v1 stands in: {:?}", heard.failures);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn past_the_point_of_no_return_a_failure_freezes() {
    let shop = Shop::start().await;
    let users = shop.users(20_000);
    let mut plan = canary();
    plan["rollback_safe_until"] = json!(10);
    plan["steps"][2] = json!({ "percent": 50, "hold": "10m" });
    shop.begin(&plan).await;
    shop.is_at(50.0).await;
    shop.v2.told("fail?percent=100").await;
    let rollout = shop.is("frozen").await;
    assert!(
        rollout["why"].as_str().is_some_and(|why| why.contains("past 10 % nothing is taken back")),
        "{rollout}"
    );
    let weights = json!({ "v1": 50, "v2": 50 });
    assert_eq!(shop.traffic().await["weights"], weights);
    users.flow(100).await;
    // Nothing moves it but a word, and only with force forward.
    for word in ["pause", "resume", "promote"] {
        let answer = shop.say(word).await;
        assert_eq!(answer.status(), 409, "{word}: {answer:?}");
        assert!(answer.text().contains("it is frozen: v2 fails in"), "{answer:?}");
    }
    assert_eq!(
        (shop.rollout().await["state"].clone(), shop.traffic().await["weights"].clone()),
        (json!("frozen"), weights)
    );
    shop.v2.told("ok").await;
    let answer = shop.say("promote?force=true").await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let rollout = shop.is("done").await;
    assert_eq!(deeds(&rollout)[4..], ["frozen", "promoted", "step", "done"], "{rollout}");
    assert_eq!(shop.traffic().await, everybody_on("v2"));
    drop(users);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_restarts_in_a_rollout_is_no_reason_for_anything() {
    let mut shop = Shop::start().await;
    let settings = ProxySettings::of_control_planes(&[shop.plane.address]);
    let mut plan = canary();
    plan["steps"] = json!([{ "percent": 30, "hold": "1h" }, { "percent": 100 }]);
    shop.begin(&plan).await;
    shop.is("holding").await;
    let users = shop.users(1_000);
    users.flow(500).await;
    drop(users);
    let before = shop.on_v2(0..200).await;
    for end in [Signal::Terminate, Signal::Kill] {
        shop.proxy = shop.proxy.restart_after(end, settings.clone()).await;
        shop.proxy.is_ready().await;
        eventually("the same users", async || {
            let now: BTreeSet<u32> = shop.on_v2(0..200).await;
            if now == before { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .await;
    }
    let users = shop.users(1_000);
    // Once what the new process counts is enough.
    eventually("the evidence", async || {
        let answer = shop.say("promote").await;
        if answer.status() == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    let rollout = shop.is("done").await;
    assert_eq!(deeds(&rollout), ["started", "step", "promoted", "step", "done"], "{rollout}");
    users.stop().await.expect_no_failure();
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_gate_waits_the_candidate_is_judged_and_taken_back() {
    let shop = Shop::start().await;
    let users = shop.users(20_000);
    let steps = json!([{ "percent": 20, "hold": "1s" }, { "gate": true }, { "percent": 100 }]);
    shop.begin(&json!({ "candidate": "v2", "analysis": lenient(), "steps": steps })).await;
    shop.is("gated").await;
    shop.v2.told("fail?percent=100").await;
    let rollout = shop.is("rolled_back").await;
    assert_eq!(deeds(&rollout), ["started", "step", "gate", "rolled_back"], "{rollout}");
    assert_eq!(shop.traffic().await, everybody_on("v1"));
    let answer = shop.say("promote").await;
    assert_eq!(answer.status(), 409, "{answer:?}");
    drop(users);
}
