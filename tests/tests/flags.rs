//! Feature flags on their way to applications: what a request tells, whom a listener believes, and files that change.

use std::net::SocketAddr;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use gilmok_config::flag::OverrideKey;
use gilmok_tests::caller;
use gilmok_tests::control_plane::ControlPlane;
use gilmok_tests::eventually::eventually;
use gilmok_tests::message::Message;
use gilmok_tests::process::Signal;
use gilmok_tests::proxy::{Proxy, ProxySettings, service};
use gilmok_tests::scratch::Scratch;
use gilmok_tests::upstream::Upstream;
use serde_json::json;

const SET: &str = r#"{ "flags": {
    "new-ui": { "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": "off",
        "targeting": { "if": [{ "in": [{ "var": "targetingKey" }, ["ann", "eve"]] }, "on"] },
        "x-gilmok": { "header": { "single": "Feature-New-Ui" } } },
    "page-size": { "state": "ENABLED", "variants": { "big": 25 }, "defaultVariant": "big" },
    "secret": { "state": "ENABLED", "variants": { "on": true }, "defaultVariant": "on" } } }"#;

/// What `SET` tells `shop` for these users.
const OF_ANN: &str = "page-size=25;v=big, new-ui;v=on";
const OF_BOB: &str = "page-size=25;v=big, new-ui=?0;v=off";

fn mesh(upstream: &Upstream) -> String {
    let emit = "[services.shop.flags]\nemit = [\"new-ui\", \"page-size\"]\n[flags]\nfile = \"flags.json\"\n\
        [[routes]]\nhosts = [\"shop.example.com\"]\nservice = \"shop\"\n";
    format!("{}{}{emit}", service("shop", "", &[upstream.address]), service("ads", "", &[upstream.address]))
}

async fn proxy(settings: ProxySettings) -> Proxy {
    let scratch = Scratch::new();
    scratch.write("flags.json", SET);
    let proxy = Proxy::start_unready(settings, scratch).await;
    proxy.is_ready().await;
    proxy
}

/// The request as the application gets it, with these fields of its caller.
async fn through(listener: SocketAddr, host: &str, fields: &str, upstream: &Upstream) -> Message {
    let answer = caller::ask(listener, format!("GET / HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n")).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    upstream.requests().pop().expect("the request arrived")
}

#[tokio::test]
async fn a_service_is_told_its_flags_and_nobody_is_told_others() {
    let upstream = Upstream::saying("fine").await;
    let proxy = proxy(ProxySettings::of_mesh(mesh(&upstream))).await;
    for (user, flags, single) in [("ann", OF_ANN, "true"), ("bob", OF_BOB, "false"), ("ann", OF_ANN, "true")]
    {
        let seen = through(proxy.outbound(), "shop", &format!("X-User-Id: {user}\r\n"), &upstream).await;
        assert_eq!(seen.header("feature-flags"), Some(flags), "{user}: {seen:?}");
        assert_eq!(seen.header("feature-new-ui"), Some(single), "{user}");
    }
    let seen = through(proxy.outbound(), "ads", "X-User-Id: ann\r\n", &upstream).await;
    assert_eq!(
        (seen.header("feature-flags"), seen.header("feature-new-ui")),
        (None, None),
        "it asks for none"
    );
    for (labels, count) in [
        (["flag=\"new-ui\"", "variant=\"on\"", "reason=\"TARGETING_MATCH\""], 2.0),
        (["flag=\"new-ui\"", "variant=\"off\"", "reason=\"DEFAULT\""], 1.0),
        (["flag=\"page-size\"", "variant=\"big\"", "reason=\"STATIC\""], 3.0),
        (["flag=\"secret\"", "variant=\"on\"", "reason=\"STATIC\""], 0.0),
    ] {
        assert_eq!(proxy.metric("gilmok_flag_evaluations_total", &labels).await, count, "{labels:?}");
    }
}

#[tokio::test]
async fn nobody_grants_themselves_a_flag() {
    const CLAIMS: &str = "X-User-Id: bob\r\nFeature-Flags: admin, new-ui;v=on\r\nFeature-New-Ui: true\r\n\
        Feature_New_Ui: true\r\nfeature_flags: admin\r\nFeature-Policy: kept\r\nConnection: Feature-Flags, Feature-New-Ui\r\n";
    let upstream = Upstream::saying("fine").await;
    let settings = ProxySettings::of_mesh(mesh(&upstream)).listen("edge = \"127.0.0.1:0\"");
    let strict = settings.clone().listen("trusted = [\"10.0.0.0/8\"]").app("shop", upstream.address, "");
    let (proxy, strict) = (proxy(settings).await, proxy(strict).await);
    for (what, listener, host) in [
        ("outbound", proxy.outbound(), "shop"),
        ("edge", proxy.edge(), "shop.example.com"),
        ("inbound", strict.inbound(0), "shop"),
    ] {
        let seen = through(listener, host, CLAIMS, &upstream).await;
        assert_eq!(seen.header("feature-flags"), Some(OF_BOB), "{what}: {seen:?}");
        assert_eq!(seen.header("feature-new-ui"), Some("false"), "{what}");
        assert_eq!((seen.header("feature_new_ui"), seen.header("feature_flags")), (None, None), "{what}");
        assert_eq!(seen.header("feature-policy"), Some("kept"), "{what}");
    }
    let seen = through(proxy.outbound(), "ads", CLAIMS, &upstream).await;
    assert_eq!((seen.header("feature-flags"), seen.header("feature-new-ui")), (None, None), "{seen:?}");
    // Some applications join trailers with headers.
    let request = "POST / HTTP/1.1\r\nHost: ads\r\nTransfer-Encoding: chunked\r\n\
        Trailer: Feature-New-Ui, feature_new_ui, Feature-Flags, X-Sum\r\n\r\n1\r\na\r\n0\r\n\
        Feature-New-Ui: true\r\nfeature_new_ui: true\r\nFeature-Flags: admin\r\nX-Sum: 7\r\n\r\n";
    assert_eq!(caller::ask(proxy.outbound(), request).await.status(), 200);
    let seen = upstream.requests().pop().expect("the request arrived");
    assert_eq!(seen.trailers, [("x-sum".to_owned(), "7".to_owned())], "{seen:?}");
}

#[tokio::test]
async fn beside_an_app_a_caller_who_is_believed_has_said_it_already() {
    let upstream = Upstream::saying("fine").await;
    let proxy = proxy(ProxySettings::of_mesh(mesh(&upstream)).app("shop", upstream.address, "")).await;
    let said =
        "X-User-Id: bob\r\nFeature-Flags: new-ui;v=on\r\nFeature-New-Ui: true\r\nfeature_new_ui: 1\r\n";
    let seen = through(proxy.inbound(0), "shop", said, &upstream).await;
    assert_eq!(seen.header("feature-flags"), Some("new-ui;v=on"), "{seen:?}");
    assert_eq!(seen.header("feature-new-ui"), Some("true"));
    assert_eq!(seen.header("feature_new_ui"), None, "no sidecar writes it so");
    // Nobody before it has evaluated anything.
    let seen = through(proxy.inbound(0), "shop", "X-User-Id: ann\r\n", &upstream).await;
    assert_eq!(seen.header("feature-flags"), Some(OF_ANN), "{seen:?}");
}

#[tokio::test]
async fn a_tester_sees_what_is_signed_at_every_listener() {
    let upstream = Upstream::saying("fine").await;
    let keys = Scratch::new();
    let file = keys.write("keys", "0123456789abcdef\n");
    let table = format!("[edge]\nuid_key_file = \"{}\"", file.display());
    let routed = "[[routes]]\nhosts = [\"beta.mesh\"]\nwhen_flag = \"new-ui:on\"\nservice = \"shop\"\n";
    let settings =
        ProxySettings::of_mesh(mesh(&upstream) + routed).listen("edge = \"127.0.0.1:0\"").table(&table);
    let proxy = proxy(settings.app("shop", upstream.address, "")).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let sign = |secret: &str, expires: u64| {
        let header = OverrideKey::new(secret.as_bytes()).sign([("new-ui", "on")], expires);
        format!("X-User-Id: bob\r\nFeature-Flags-Override: {}\r\n", header.expect("it can be said"))
    };
    let mine = sign("0123456789abcdef", now + 600);
    let outside = |listener, host| through(listener, host, &mine, &upstream);
    for (what, seen) in [
        ("outbound", outside(proxy.outbound(), "shop").await),
        ("edge", outside(proxy.edge(), "shop.example.com").await),
        ("inbound", outside(proxy.inbound(0), "shop").await),
        ("a route by the flag", outside(proxy.outbound(), "beta.mesh").await),
    ] {
        assert_eq!(seen.header("feature-flags"), Some("page-size=25;v=big, new-ui;v=on"), "{what}: {seen:?}");
        assert_eq!(seen.header("feature-new-ui"), Some("true"), "{what}");
        assert!(seen.header("feature-flags-override").is_some(), "{what}: the next hop may see it too");
    }
    for (what, fields) in [
        ("another key", sign("0123456789abcdeX", now + 600)),
        ("over", sign("0123456789abcdef", now - 1)),
        ("changed", mine.replace("new-ui=on", "secret=on")),
        ("no form", "X-User-Id: bob\r\nFeature-Flags-Override: new-ui=on\r\n".to_owned()),
    ] {
        let seen = through(proxy.outbound(), "shop", &fields, &upstream).await;
        assert_eq!(seen.header("feature-flags"), Some(OF_BOB), "{what}: {seen:?}");
    }
}

#[tokio::test]
async fn who_stands_in_is_told_its_own_flags() {
    let upstream = Upstream::saying("fine").await;
    let mesh = format!(
        "[services.ads]\n[[services.ads.fallback]]\nservice = \"shop\"\n[services.ads.flags]\nemit = [\"secret\"]\n{}",
        mesh(&upstream)
            .replace("[services.ads]", "[services.others]")
            .replace("services.ads.", "services.others.")
    );
    let proxy = proxy(ProxySettings::of_mesh(mesh)).await;
    let seen = through(proxy.outbound(), "ads", "X-User-Id: ann\r\n", &upstream).await;
    assert_eq!(seen.header("feature-flags"), Some(OF_ANN), "{seen:?}");
}

#[tokio::test]
async fn what_finds_no_room_is_counted() {
    let upstream = Upstream::saying("fine").await;
    let flags = (0..100).map(|n| {
        format!("\"flag-{n:03}-{}\": {{\"state\": \"ENABLED\", \"variants\": {{\"on\": true}}, \"defaultVariant\": \"on\"}}", "x".repeat(20))
    });
    let set = format!("{{\"flags\": {{{}}}}}", flags.collect::<Vec<_>>().join(","));
    let scratch = Scratch::new();
    scratch.write("flags.json", set);
    let mesh = mesh(&upstream).replace("[\"new-ui\", \"page-size\"]", "[\"*\"]");
    let proxy = Proxy::start_unready(ProxySettings::of_mesh(mesh), scratch).await;
    proxy.is_ready().await;
    let seen = through(proxy.outbound(), "shop", "", &upstream).await;
    let told = seen.header("feature-flags").expect("flags").split(", ").count();
    assert!((40..80).contains(&told), "{seen:?}");
    let dropped = proxy.metric("gilmok_flags_dropped_total", &["service=\"shop\""]).await;
    assert_eq!(dropped, (100 - told) as f64);
    let evaluated = proxy.metric("gilmok_flag_evaluations_total", &["reason=\"STATIC\""]).await;
    assert_eq!(evaluated, told as f64);
}

#[tokio::test]
async fn a_file_of_flags_that_changes_is_in_force_within_a_second_and_a_faulty_one_changes_nothing() {
    let upstream = Upstream::saying("fine").await;
    let proxy = proxy(ProxySettings::of_mesh(mesh(&upstream))).await;
    let told = async || {
        let seen = through(proxy.outbound(), "shop", "X-User-Id: bob\r\n", &upstream).await;
        seen.header("feature-flags").unwrap_or_default().to_owned()
    };
    assert_eq!(told().await, OF_BOB);
    proxy.scratch.write(
        "flags.json",
        SET.replace("\"page-size\": {", "\"page-size\": { \"x-gilmok\": { \"no-such-key\": 1 },"),
    );
    eventually("the refusal", async || {
        let count = proxy.metric("gilmok_config_rejected_total", &[]).await;
        if count > 0.0 { Ok(()) } else { Err(count) }
    })
    .await;
    let config = proxy.admin_json("/config").await.to_string();
    assert!(
        config.contains("no-such-key") && config.contains("page-size"),
        "the fault with its place: {config}"
    );
    assert_eq!(told().await, OF_BOB);
    let changed = Instant::now();
    proxy.scratch.write("flags.json", SET.replace("\"big\": 25", "\"big\": 50"));
    eventually("the new set", async || {
        let told = told().await;
        if told == OF_BOB.replace("25", "50") { Ok(()) } else { Err(told) }
    })
    .await;
    assert!(changed.elapsed() < Duration::from_secs(5), "{:?}", changed.elapsed());
}

#[tokio::test]
async fn flags_come_with_the_feed_and_are_remembered() {
    let upstream = Upstream::saying("fine").await;
    let mut plane = ControlPlane::start().await;
    let set: serde_json::Value = serde_json::from_str(SET).unwrap();
    let mut document = json!({
        "services": { "shop": {
            "endpoints": [{ "address": upstream.address.to_string() }],
            "flags": { "emit": ["new-ui", "page-size"] },
        } },
        "flags": { "set": set },
    });
    plane.put("/v1/mesh", &document).await;
    let settings = ProxySettings::of_control_planes(&[plane.address]);
    let proxy = Proxy::start_with(settings.clone()).await;
    let told = async |proxy: &Proxy| {
        let seen = through(proxy.outbound(), "shop", "X-User-Id: ann\r\n", &upstream).await;
        seen.header("feature-flags").unwrap_or_default().to_owned()
    };
    assert_eq!(told(&proxy).await, OF_ANN);
    document["flags"]["set"]["flags"]["new-ui"]["x-gilmok"]["kill"] =
        json!({ "active": true, "variant": "off" });
    plane.put("/v1/mesh?wait=20s", &document).await;
    // What is killed is the same for everybody, and those come in the order of their keys.
    let killed = "new-ui=?0;v=off, page-size=25;v=big";
    assert_eq!(told(&proxy).await, killed);
    let file = proxy.scratch.path().join("state/test.last-known-good");
    eventually("the set on disk", async || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        if text.contains("\"active\":true") { Ok(()) } else { Err(text) }
    })
    .await;
    plane.process.kill().await;
    let proxy = proxy.restart_after(Signal::Terminate, settings).await;
    proxy.is_ready().await;
    assert_eq!(told(&proxy).await, killed, "from the last known good state");
}
