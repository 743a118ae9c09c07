//! Flags changed by people, with real processes: the kill switch under load, the way back, changes at a time across a crash.

use std::time::Duration;

use gilmok_tests::caller;
use gilmok_tests::control_plane::ControlPlane;
use gilmok_tests::demo_app::DemoApp;
use gilmok_tests::eventually::{SOON, eventually};
use gilmok_tests::operator::gilmok;
use gilmok_tests::process::Signal;
use gilmok_tests::proxy::{Proxy, ProxySettings};
use gilmok_tests::scratch::Scratch;
use gilmok_tests::users::{Crowd, Users};
use serde_json::{Value, json};
use tokio::time::Instant;

/// How soon a kill switch holds everywhere.
const KILLED_WITHIN: Duration = Duration::from_secs(1);
const HOST: &str = "shop.example.com";

fn new_ui() -> Value {
    json!({ "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": "on" })
}

/// A shop whose page is that of `new-shop` for whom the flag is on.
fn mesh() -> Value {
    let table = json!({ "flags": { "subject": ["header:x-user-id"], "emit": ["*"] } });
    json!({
        "services": { "shop": table, "new-shop": table },
        "routes": [
            { "hosts": [HOST], "when_flag": "new-ui:on", "service": "new-shop" },
            { "hosts": [HOST], "service": "shop" },
        ],
        "flags": { "set": { "flags": { "new-ui": new_ui() } } },
    })
}

/// A control plane with both shops.
struct Shops {
    plane: ControlPlane,
    proxies: Vec<Proxy>,
    _apps: [DemoApp; 2],
}

impl Shops {
    async fn start(proxies: usize) -> Self {
        let plane = ControlPlane::start().await;
        let apps = [DemoApp::start("shop", "old").await, DemoApp::start("new-shop", "new").await];
        plane.put("/v1/mesh", &mesh()).await;
        plane.put("/v1/membership/shop/old", &apps[0].endpoint("old")).await;
        plane.put("/v1/membership/new-shop/new", &apps[1].endpoint("new")).await;
        let mut started = Vec::new();
        for number in 0..proxies {
            let settings = ProxySettings::of_control_planes(&[plane.address]);
            started.push(Proxy::start_with(settings.top(&format!("node = \"web-{number}\""))).await);
        }
        let shops = Self { plane, proxies: started, _apps: apps };
        shops.all_go_to("new-shop").await;
        shops
    }

    /// Waits until every proxy sends everybody there, and says that it would.
    async fn all_go_to(&self, service: &str) {
        for proxy in &self.proxies {
            eventually("the proxy to send users there", async || {
                let path = format!("/explain?host={HOST}&subject=user-7");
                let told = proxy.admin_json(&path).await;
                let is_there = told["decision"]["service"] == service
                    && told["service"]["endpoints"].as_array().is_some_and(|all| !all.is_empty());
                if is_there { Ok(()) } else { Err(told) }
            })
            .await;
        }
    }

    async fn post(&self, path: &str, body: Option<&Value>) -> (u16, Value) {
        let answer = self.plane.call("POST", path, body).await;
        (answer.status(), serde_json::from_slice(&answer.body).unwrap_or_default())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_switch_holds_everywhere_at_once_and_no_request_fails() {
    let shops = Shops::start(3).await;
    let crowd = Crowd { callers: 2, rest: Duration::from_millis(2), ..Crowd::of(HOST, 20) };
    let crowds: Vec<Users> =
        shops.proxies.iter().map(|proxy| Users::start(proxy.outbound(), &crowd)).collect();
    for users in &crowds {
        users.flow(200).await;
    }
    let (status, done) = shops.post("/v1/flags/new-ui/kill?reason=it+hurts", None).await;
    let killed = Instant::now();
    assert_eq!((status, &done["revision"]), (200, &json!(2)), "{done}");
    shops.all_go_to("shop").await;
    for users in &crowds {
        users.flow(200).await;
    }
    // Before it is asked for: proxies may be faster than the answer.
    let back = Instant::now();
    let (status, done) = shops.post("/v1/revisions/1/restore", None).await;
    assert_eq!((status, &done["revision"]), (200, &json!(3)), "{done}");
    shops.all_go_to("new-shop").await;
    for users in crowds {
        users.flow(200).await;
        let heard = users.stop().await;
        heard.expect_no_failure();
        let count = |version: &str| heard.answers.iter().filter(|answer| answer.version == version).count();
        assert!(count("old") > 100 && count("new") > 300, "{} old, {} new", count("old"), count("new"));
        let between = heard.answers.iter().filter(|answer| answer.asked > killed && answer.asked < back);
        let last = between.filter(|answer| answer.version == "new").map(|answer| answer.asked - killed).max();
        assert!(
            last.is_none_or(|last| last < KILLED_WITHIN),
            "still on {last:?} after the switch was pulled"
        );
    }
    let audit = shops.plane.json("/v1/audit").await;
    let killed = audit.as_array().unwrap().iter().find(|entry| entry["revision"] == 2).unwrap();
    assert_eq!((&killed["what"], &killed["reason"]), (&json!("kill flag new-ui"), &json!("it hurts")));
    assert_eq!(killed["flags"][0]["after"]["x-gilmok"]["kill"]["active"], true, "{killed}");
}

#[tokio::test]
async fn applications_that_rely_on_a_flag_are_spared_unless_it_is_forced() {
    let plane = ControlPlane::start_with("reason_required = true", Scratch::new()).await;
    let flag = "/v1/flags/new-ui";
    assert_eq!(plane.call("PUT", flag, Some(&new_ui())).await.status(), 400, "nobody says why");
    plane.put(&format!("{flag}?reason=first"), &new_ui()).await;
    let number = json!({ "state": "ENABLED", "variants": { "on": 1 }, "defaultVariant": "on" });
    let odd = json!({ "targeting": { "nonsense": [1] } });
    let ack = json!({ "node": "web-1", "instance": "1", "wire": 1,
        "flags": [{ "flag": "new-ui", "variant": "on", "reason": "STATIC", "count": 1 }] });
    assert_eq!(plane.call("POST", "/v1/feed/acks", Some(&ack)).await.status(), 204);
    for (method, more, body, expected) in [
        ("PUT", "", Some(&number), 409),
        ("DELETE", "", None, 409),
        ("PATCH", "", Some(&odd), 422),
        ("PATCH", "&accept_warnings=true", Some(&odd), 200),
    ] {
        let answer = plane.call(method, &format!("{flag}?reason=test{more}"), body).await;
        assert_eq!(answer.status(), expected, "{method}: {answer:?}");
    }
    // A process that ends in good order forgets nothing of it.
    let plane = plane.restart_after(Signal::Terminate, "").await;
    assert_eq!(plane.call("DELETE", flag, None).await.status(), 409);
    assert_eq!(plane.call("DELETE", &format!("{flag}?force=true"), None).await.status(), 200);
}

#[tokio::test]
async fn what_is_in_use_is_what_proxies_evaluate_by_header_and_by_ofrep() {
    let plane = ControlPlane::start().await;
    let app = DemoApp::start("shop", "v1").await;
    let mut document = mesh();
    document["services"]["shop"]["flags"]["emit"] = json!(["new-ui"]);
    for key in ["asked", "unused"] {
        document["flags"]["set"]["flags"][key] = new_ui();
    }
    plane.put("/v1/mesh", &document).await;
    plane.put("/v1/membership/shop/v1", &app.endpoint("v1")).await;
    let settings = ProxySettings::of_control_planes(&[plane.address]).listen("ofrep = \"127.0.0.1:0\"");
    let proxy = Proxy::start_with(settings.clone()).await;
    let use_both = async |proxy: &Proxy| {
        let request = "GET / HTTP/1.1\r\nHost: shop\r\nX-User-Id: ann\r\n\r\n";
        eventually("the shop", async || {
            let status = caller::ask(proxy.outbound(), request).await.status();
            if status == 200 { Ok(()) } else { Err(status) }
        })
        .await;
        let asked =
            "POST /ofrep/v1/evaluate/flags/asked HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(caller::ask(proxy.port("ofrep"), asked).await.status(), 200);
    };
    let counted = async |of_header: u64, of_ofrep: u64| {
        eventually("the counts", async || {
            let overview = plane.json("/v1/flags?overview=true").await;
            let count = |key: &str| {
                let row = overview["flags"].as_array()?.iter().find(|row| row["flag"] == key)?;
                row["seen"]["on"]["evaluations"]["STATIC"].as_u64()
            };
            let counts = (count("new-ui"), count("asked"), count("unused"));
            if counts == (Some(of_header), Some(of_ofrep), None) { Ok(()) } else { Err(overview) }
        })
        .await;
    };
    use_both(&proxy).await;
    counted(1, 1).await;
    // Another start of the proxy counts from 0, and that is added.
    let proxy = proxy.restart_after(Signal::Terminate, settings).await;
    use_both(&proxy).await;
    counted(2, 2).await;
    let shown = gilmok(&plane, &["flags", "show", "asked"]).await;
    assert!(shown.out.contains("2 by static"), "{shown:?}");
    for key in ["new-ui", "asked"] {
        let path = format!("/v1/flags/{key}");
        let answer = plane.call("DELETE", &path, None).await;
        assert_eq!(answer.status(), 409, "{key}: {answer:?}");
    }
    assert_eq!(plane.call("DELETE", "/v1/flags/unused", None).await.status(), 200);
    let answer = plane.call("DELETE", "/v1/flags/asked?force=true", None).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
}

#[tokio::test]
async fn a_change_at_a_time_outlives_the_process_and_is_made_once() {
    let plane = ControlPlane::start().await;
    plane.put("/v1/flags/new-ui", &new_ui()).await;
    let now_s = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let at = now_s() + 3;
    let body = json!({ "at": gilmok_config::moment::format_moment(at), "patch": { "state": "DISABLED" } });
    let said = plane.call("POST", "/v1/flags/new-ui/schedule?reason=night", Some(&body)).await;
    assert_eq!(said.status(), 201, "{said:?}");
    assert_eq!(plane.json("/v1/flags/new-ui").await["state"], "ENABLED");
    let ControlPlane { mut process, scratch, address } = plane;
    process.signal(Signal::Kill).await;
    process.ended(SOON).await;
    eventually(
        "the time to come while nobody is there",
        async || {
            if now_s() > at { Ok(()) } else { Err("not yet") }
        },
    )
    .await;
    let mut plane = ControlPlane::start_at(&address.to_string(), "", scratch).await;
    for _ in 0..2 {
        eventually("the change to be made", async || {
            let flag = plane.json("/v1/flags/new-ui").await;
            if flag["state"] == "DISABLED" { Ok(()) } else { Err(flag) }
        })
        .await;
        assert_eq!(plane.json("/v1/flags/new-ui/schedule").await, json!([]));
        let audit = plane.json("/v1/audit").await;
        let what: Vec<_> =
            audit.as_array().unwrap().iter().map(|entry| entry["what"].as_str().unwrap()).collect();
        let expected =
            ["carry out a change of flag new-ui", "schedule a change of flag new-ui", "put flag new-ui"];
        assert_eq!(what, expected);
        assert_eq!(
            (&audit[0]["reason"], &audit[0]["flags"][0]["after"]["state"]),
            (&json!("night"), &json!("DISABLED"))
        );
        plane = plane.restart_after(Signal::Kill, "").await;
    }
}

#[tokio::test]
async fn an_operator_changes_flags_from_the_command_line() {
    let plane = ControlPlane::start().await;
    let scratch = Scratch::new();
    let file = scratch.write("flags.json", json!({ "flags": { "new-ui": {
        "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": "off",
        "targeting": { "if": [{ "==": [{ "var": "tier" }, "gold"] }, "on", { "fractional": [["on", 10], ["off", 90]] }] },
        "x-gilmok": { "expires": "2001-01-01" } } } }).to_string());
    let file = file.to_str().unwrap();
    let run = async |args: &[&str]| {
        let said = gilmok(&plane, &[&["flags"], args].concat()).await;
        assert_eq!(said.code, 0, "{args:?}: {said:?}");
        said.out
    };
    assert!(run(&["set", file, "--dry-run"]).await.contains("it can be done"));
    assert!(run(&["set", file, "--reason", "first"]).await.contains("revision 1"));
    let listed = run(&[]).await;
    assert!(listed.contains("new-ui  enabled  boolean  off"), "{listed}");
    let explained = run(&["explain", "new-ui", "--subject", "user-42", "--context", "tier=gold"]).await;
    assert!(explained.contains("on = true"), "{explained}");
    let explained = run(&["explain", "new-ui", "--subject", "user-42"]).await;
    assert!(explained.contains("of 100, hash ") && explained.contains("by version 3"), "{explained}");
    assert!(run(&["stale"]).await.contains("past 2001-01-01T00:00:00Z"));
    assert!(run(&["kill", "new-ui", "--reason", "it hurts"]).await.contains("new-ui is killed: revision 2"));
    assert!(run(&["list"]).await.contains("KILLED"));
    assert!(run(&["unkill", "new-ui"]).await.contains("revision 3"));
    run(&["patch", "new-ui", r#"{"defaultVariant": "on"}"#]).await;
    let shown = run(&["show", "new-ui"]).await;
    assert!(shown.contains("\"defaultVariant\": \"on\""), "{shown}");
    let at = "2999-01-01T00:00:00Z";
    run(&["schedule", "new-ui", "--at", at, "--patch", r#"{"state": "DISABLED"}"#]).await;
    assert!(run(&["schedule", "new-ui"]).await.contains(at));
    run(&["schedule", "new-ui", "--cancel", "5"]).await;
    assert!(run(&["schedule", "new-ui"]).await.contains("no change waits"));
    let number = scratch
        .write("number.json", r#"{"state": "ENABLED", "variants": {"on": 1}, "defaultVariant": "on"}"#);
    let refused = gilmok(&plane, &["flags", "set", number.to_str().unwrap(), "--flag", "new-ui"]).await;
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("of type boolean"), "{refused:?}");
    run(&["delete", "new-ui"]).await;
    assert!(run(&[]).await.contains("there are no flags"));
}
