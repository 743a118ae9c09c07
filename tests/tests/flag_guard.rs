//! Guarded flags with real processes: one whose variant makes the application fail turns itself off, one that is well stays.

use std::time::Duration;

use gilmok_tests::control_plane::ControlPlane;
use gilmok_tests::eventually::eventually_within;
use gilmok_tests::operator::gilmok;
use gilmok_tests::proxy::{Proxy, ProxySettings};
use gilmok_tests::upstream::{Upstream, ok};
use gilmok_tests::users::{Crowd, Users};
use serde_json::{Value, json};
use tokio::time::Instant;

/// How long a feature that fails for every second user may do so, on a machine with others.
const KILLED_WITHIN: Duration = Duration::from_secs(30);

/// On for so many of a hundred users.
fn guarded(percent: u32, on_fail: &str) -> Value {
    json!({
        "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": "off",
        "targeting": { "fractional": [["on", percent], ["off", 100 - percent]] },
        "x-gilmok": { "guard": { "metrics": ["errors", "latency"], "onFail": on_fail } },
    })
}

/// A shop that fails for whom `bad` is on.
async fn shop() -> Upstream {
    Upstream::start(|mut conversation| async move {
        while let Some(request) = conversation.request().await {
            let flags = request.header("feature-flags").unwrap_or_default();
            let answer = if flags.contains("bad;v=on") {
                b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n".to_vec()
            } else {
                ok("v1")
            };
            if !conversation.send(answer).await {
                return;
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feature_that_fails_turns_itself_off_and_others_stay() {
    let plane = ControlPlane::start().await;
    let shop = shop().await;
    let mut flags = json!({ "fine": guarded(50, "kill"), "told": guarded(50, "tell") });
    let document = |flags: &Value| {
        json!({
            "services": { "shop": {
                "endpoints": [{ "address": shop.address.to_string() }],
                "flags": { "emit": ["*"], "subject": ["header:x-user-id"] },
            } },
            "flags": { "set": { "flags": flags } },
        })
    };
    plane.put("/v1/mesh", &document(&flags)).await;
    let proxy = Proxy::start_with(ProxySettings::of_control_planes(&[plane.address])).await;
    let crowd = Crowd { callers: 2, rest: Duration::from_millis(2), ..Crowd::of("shop", 50_000) };
    let users = Users::start(proxy.outbound(), &crowd);
    users.flow(300).await;
    flags["bad"] = guarded(20, "kill");
    plane.put("/v1/mesh?wait=20s", &document(&flags)).await;
    let begun = Instant::now();
    let row = async |key: &str| {
        let overview = plane.json("/v1/flags?overview=true").await;
        let mut rows = overview["flags"].as_array().into_iter().flatten();
        rows.find(|row| row["flag"] == key).cloned().unwrap_or_default()
    };
    let killed = eventually_within(KILLED_WITHIN, "the guard", async || {
        let row = row("bad").await;
        if row["killed"] == true { Ok(row) } else { Err(row) }
    })
    .await;
    eprintln!("killed after {:?}", begun.elapsed());
    assert_eq!(killed["killed_by"]["by"], "guard", "{killed}");
    let why = killed["killed_by"]["why"].as_str().unwrap_or_default();
    assert!(why.starts_with("on fails in 100.00 % of ") && why.contains("off in 0.00 %"), "{why}");
    let audit = plane.json("/v1/audit").await;
    let entry = &audit[0];
    assert_eq!((&entry["what"], &entry["who"]), (&json!("kill flag bad"), &json!("guard")), "{entry}");
    assert_eq!(entry["reason"], why, "{entry}");
    let change = &entry["flags"][0];
    assert_eq!(change["before"].pointer("/x-gilmok/kill"), None, "{change}");
    assert_eq!(change["after"]["x-gilmok"]["kill"]["active"], true, "{change}");
    for args in [&["flags", "show", "bad"][..], &["flags", "explain", "bad", "--subject", "user-1"]] {
        let told = gilmok(&plane, args).await;
        assert!(told.out.contains(&format!("guard: {why}")), "{args:?}: {told:?}");
    }
    // Nobody has it any more, and nobody suffers any more.
    plane.put("/v1/services/shop?wait=20s", &document(&flags)["services"]["shop"]).await;
    let answered = Instant::now();
    users.flow(2_000).await;
    let heard = users.stop().await;
    let failed: u64 = heard.failures.values().sum();
    let good_before = heard.answers.iter().filter(|answer| answer.asked > begun && answer.asked < answered);
    assert!(failed >= 30 && failed < good_before.count() as u64, "{failed} failed: {:?}", heard.failures);
    let failures = proxy.metric("gilmok_flag_requests_total", &["flag=\"bad\"", "code=\"5xx\""]).await;
    assert!(failures >= failed as f64, "{failures} of {failed}");
    for (key, on_fail) in [("fine", "kill"), ("told", "tell")] {
        let row = row(key).await;
        assert_eq!((&row["killed"], &row["guard"]["on_fail"]), (&json!(false), &json!(on_fail)), "{row}");
        assert!(row["guard"].get("failed").is_none(), "{row}");
        let trials = row["guard"]["variants"][0]["evidence"]["failures"]["candidate"]["trials"].as_u64();
        assert!(trials.is_some_and(|trials| trials > 500), "{row}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_that_is_to_tell_tells_and_changes_nothing() {
    let plane = ControlPlane::start().await;
    let shop = shop().await;
    let document = json!({
        "services": { "shop": {
            "endpoints": [{ "address": shop.address.to_string() }],
            "flags": { "emit": ["bad"], "subject": ["header:x-user-id"] },
        } },
        "flags": { "set": { "flags": { "bad": guarded(20, "tell") } } },
    });
    plane.put("/v1/mesh", &document).await;
    let proxy = Proxy::start_with(ProxySettings::of_control_planes(&[plane.address])).await;
    let crowd = Crowd { callers: 2, rest: Duration::from_millis(2), ..Crowd::of("shop", 50_000) };
    let _users = Users::start(proxy.outbound(), &crowd);
    eventually_within(KILLED_WITHIN, "the guard", async || {
        let overview = plane.json("/v1/flags?overview=true").await;
        let failed = overview["flags"][0]["guard"]["failed"].as_str();
        if failed.is_some_and(|why| why.starts_with("on fails in 100.00 %")) { Ok(()) } else { Err(overview) }
    })
    .await;
    let told = gilmok(&plane, &["flags", "show", "bad"]).await;
    assert!(told.out.contains("FAILED: on fails in 100.00 %"), "{told:?}");
    assert_eq!(plane.json("/v1/flags/bad").await.pointer("/x-gilmok/kill"), None);
    assert_eq!(plane.json("/v1/audit").await.as_array().map(Vec::len), Some(1));
}
