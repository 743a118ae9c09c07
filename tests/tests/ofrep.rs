//! The OFREP listener as its protocol (0.3.0) has it: one flag, all flags with their tag, change events, pages, tokens.

use std::net::SocketAddr;
use std::time::Duration;

use gilmok_tests::caller::{self, Caller};
use gilmok_tests::control_plane::ControlPlane;
use gilmok_tests::eventually::{eventually, eventually_within};
use gilmok_tests::message::Message;
use gilmok_tests::process::Signal;
use gilmok_tests::proxy::{Proxy, ProxySettings};
use gilmok_tests::scratch::Scratch;
use serde_json::{Value, json};

const MESH: &str = "[services.shop.traffic]\nstable = \"v1\"\nweights = { v1 = 50, v2 = 50 }\n[flags]\nfile = \"flags.json\"\n";

fn set() -> Value {
    json!({ "metadata": { "flagSetId": "shop", "version": "3" }, "flags": {
        "new-ui": { "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": "off",
            "targeting": { "if": [{ "==": [{ "var": "tier" }, "gold"] }, "on"] }, "metadata": { "owner": "web" } },
        "size": { "state": "ENABLED", "variants": { "big": 10, "half": 0.5 }, "defaultVariant": "big" },
        "whole": { "state": "ENABLED", "variants": { "ten": 10 }, "defaultVariant": "ten" },
        "object": { "state": "ENABLED", "variants": { "a": { "x": [1, null] } }, "defaultVariant": "a" },
        "disabled": { "state": "DISABLED", "variants": { "on": true }, "defaultVariant": "on" },
        "killed": { "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": "on",
            "x-gilmok": { "kill": { "active": true, "variant": "off" } } },
        "broken": { "state": "ENABLED", "variants": { "on": true }, "defaultVariant": "on", "targeting": { "no_such": [1] } },
        "s/l.a%sh": { "state": "ENABLED", "variants": { "on": true }, "defaultVariant": "on",
            "metadata": { "flagSetId": "other" }, "x-gilmok": { "header": { "name": "slash" } } },
        "follows": { "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": "off",
            "x-gilmok": { "follow": "shop" } },
    } })
}

async fn proxy_of(set: &Value, settings: ProxySettings) -> Proxy {
    let scratch = Scratch::new();
    scratch.write("flags.json", set.to_string());
    let proxy = Proxy::start_unready(settings.listen("ofrep = \"127.0.0.1:0\""), scratch).await;
    proxy.is_ready().await;
    proxy
}

async fn proxy() -> Proxy {
    proxy_of(&set(), ProxySettings::of_mesh(MESH)).await
}

/// What is answered at this path below `/ofrep/v1`.
async fn post(at: SocketAddr, path: &str, fields: &str, body: &str) -> Message {
    let length = body.len();
    let request = format!(
        "POST /ofrep/v1{path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{fields}\r\n{body}"
    );
    caller::ask(at, request).await
}

async fn one(at: SocketAddr, key: &str, context: Value) -> (u16, Value) {
    let answer =
        post(at, &format!("/evaluate/flags/{key}"), "", &json!({ "context": context }).to_string()).await;
    assert_eq!(answer.header("content-type"), Some("application/json"), "{answer:?}");
    (answer.status(), serde_json::from_slice(&answer.body).expect("JSON"))
}

async fn all(at: SocketAddr, fields: &str, context: Value) -> Message {
    post(at, "/evaluate/flags", fields, &json!({ "context": context }).to_string()).await
}

#[tokio::test]
async fn one_flag_is_told_with_everything_that_clients_rely_on() {
    let proxy = proxy().await;
    let at = proxy.port("ofrep");
    let told = |key: &str, value: Value, variant: &str, reason: &str, more: Value| {
        let mut metadata = json!({ "flagSetId": "shop", "version": "3" });
        for (key, value) in more.as_object().unwrap() {
            metadata[key] = value.clone();
        }
        let mut told = json!({ "key": key, "variant": variant, "reason": reason, "metadata": metadata });
        if !value.is_null() {
            told["value"] = value;
        }
        told
    };
    let (on, gold) = (json!(true), json!({ "targetingKey": "ann", "tier": "gold" }));
    let owner = json!({ "owner": "web" });
    for (key, context, expected) in [
        ("new-ui", gold, told("new-ui", on.clone(), "on", "TARGETING_MATCH", owner.clone())),
        ("new-ui", json!({}), told("new-ui", json!(false), "off", "DEFAULT", owner)),
        ("size", json!({}), told("size", json!(10.0), "big", "STATIC", json!({}))),
        ("whole", json!({}), told("whole", json!(10), "ten", "STATIC", json!({}))),
        ("object", json!({}), told("object", json!({ "x": [1, null] }), "a", "STATIC", json!({}))),
        ("disabled", json!({}), told("disabled", Value::Null, "", "DISABLED", json!({}))),
        (
            "killed",
            json!({}),
            told("killed", json!(false), "off", "DISABLED", json!({ "gilmok.reason": "kill-switch" })),
        ),
        (
            "s/l.a%25sh",
            json!({}),
            told("s/l.a%sh", on.clone(), "on", "STATIC", json!({ "flagSetId": "other" })),
        ),
        ("s%2Fl.a%25sh", json!({}), told("s/l.a%sh", on, "on", "STATIC", json!({ "flagSetId": "other" }))),
    ] {
        assert_eq!(one(at, key, context).await, (200, expected), "{key}");
    }
    // `10` and `10.0` are two things to clients, and one to the comparison above.
    for (key, written) in [("size", "\"value\":10.0"), ("whole", "\"value\":10,")] {
        let text = post(at, &format!("/evaluate/flags/{key}"), "", "").await.text();
        assert!(text.contains(written) || text.contains(&written.replace(',', "}")), "{text}");
    }
    let (status, broken) = one(at, "broken", json!({})).await;
    assert_eq!(
        (status, &broken["key"], &broken["errorCode"]),
        (400, &json!("broken"), &json!("PARSE_ERROR"))
    );
    assert!(broken["errorDetails"].is_string());
    let (status, unknown) = one(at, "nobody", json!({})).await;
    assert_eq!(
        (status, &unknown["key"], &unknown["errorCode"], unknown["errorDetails"].is_string()),
        (404, &json!("nobody"), &json!("FLAG_NOT_FOUND"), true)
    );
    let count = |labels: &'static [&'static str]| proxy.metric("gilmok_flag_evaluations_total", labels);
    assert_eq!(count(&["flag=\"new-ui\"", "variant=\"on\"", "reason=\"TARGETING_MATCH\""]).await, 1.0);
    assert_eq!(count(&["flag=\"broken\"", "reason=\"ERROR\""]).await, 1.0);
    assert_eq!(count(&["flag=\"__unknown__\"", "reason=\"ERROR\""]).await, 1.0);
    assert_eq!(count(&["flag=\"nobody\""]).await, 0.0, "nobody chooses labels");
}

#[tokio::test]
async fn a_flag_that_follows_a_service_is_on_for_those_whom_its_traffic_sends_to_the_candidate() {
    let proxy = proxy().await;
    for user in ["user-1", "user-2", "user-3", "user-4", "user-5", "user-6"] {
        let (_, told) = one(proxy.port("ofrep"), "follows", json!({ "targetingKey": user })).await;
        let explained = proxy.admin_json(&format!("/explain?service=shop&subject={user}")).await;
        let is_on = explained["decision"]["split"]["version"] == "v2";
        assert_eq!((&told["value"], &told["reason"]), (&json!(is_on), &json!("SPLIT")), "{explained}");
    }
    let (_, nobody) = one(proxy.port("ofrep"), "follows", json!({})).await;
    assert_eq!((&nobody["value"], &nobody["reason"]), (&json!(false), &json!("DEFAULT")), "{nobody}");
}

#[tokio::test]
async fn nonsense_is_refused_in_the_protocols_words() {
    let proxy = proxy().await;
    let at = proxy.port("ofrep");
    for body in ["[]", "{", "{\"context\": []}", "{\"context\": \"a\"}"] {
        for path in ["/evaluate/flags/new-ui", "/evaluate/flags"] {
            let answer = post(at, path, "", body).await;
            let told: Value = serde_json::from_slice(&answer.body).unwrap();
            assert_eq!(
                (answer.status(), &told["errorCode"]),
                (400, &json!("INVALID_CONTEXT")),
                "{path} {body}"
            );
            assert!(told["errorDetails"].is_string(), "{told}");
        }
    }
    let large = format!("{{\"context\": {{\"x\": \"{}\"}}}}", "x".repeat(2 << 20));
    assert_eq!(post(at, "/evaluate/flags", "", &large).await.status(), 413);
    assert_eq!(post(at, "/configuration", "", "").await.status(), 404);
    let get = "GET /ofrep/v1/evaluate/flags HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let answer = caller::ask(at, get).await;
    assert_eq!((answer.status(), answer.header("allow")), (405, Some("POST")));
}

#[tokio::test]
async fn what_has_not_changed_is_not_evaluated_again() {
    let proxy = proxy().await;
    let at = proxy.port("ofrep");
    let ann = json!({ "targetingKey": "ann", "tier": "gold" });
    let answer = all(at, "", ann.clone()).await;
    let told: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(told["flags"].as_array().unwrap().len(), 9);
    assert_eq!(told["metadata"], json!({ "flagSetId": "shop", "version": "3" }));
    assert_eq!(told["eventStreams"][0]["endpoint"]["requestUri"], "/ofrep/v1/sse");
    let broken = told["flags"].as_array().unwrap().iter().find(|flag| flag["key"] == "broken").unwrap();
    assert_eq!(broken["errorCode"], "PARSE_ERROR", "one flag that fails is no failure of the others");
    let tag = answer.header("etag").expect("a tag").to_owned();
    let known = format!("If-None-Match: {tag}\r\n");
    let evaluated = proxy.metric("gilmok_flag_evaluations_total", &[]).await;
    for context in [ann, json!({ "tier": "gold", "targetingKey": "ann" })] {
        let again = all(at, &known, context).await;
        assert_eq!((again.status(), again.body.len(), again.header("etag")), (304, 0, Some(tag.as_str())));
    }
    assert_eq!(proxy.metric("gilmok_flag_evaluations_total", &[]).await, evaluated);
    // The web client keeps its tag while its user becomes another one.
    for context in [
        json!({ "targetingKey": "ann", "tier": "iron" }),
        json!({ "targetingKey": "bob", "tier": "gold" }),
        json!({ "targetingKey": "ann", "tier": "gold", "more": 1 }),
    ] {
        assert_eq!(all(at, &known, context.clone()).await.status(), 200, "{context}");
    }
    let selected = all(at, "Flagd-Selector: flagSetId=other\r\n", json!({})).await;
    let selected: Value = serde_json::from_slice(&selected.body).unwrap();
    assert_eq!(selected["flags"].as_array().unwrap().len(), 1, "{selected}");
    assert_eq!(selected["flags"][0]["key"], "s/l.a%sh");
    assert_eq!(
        post(at, "/evaluate/flags/new-ui", "Flagd-Selector: flagSetId=other\r\n", "").await.status(),
        404
    );
    assert_eq!(all(at, "Flagd-Selector: source=a.json\r\n", json!({})).await.status(), 400);
}

#[tokio::test]
async fn what_only_the_time_changes_is_evaluated_each_time() {
    let set = |bound: &str| {
        json!({ "flags": { "late": { "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": "off",
            "targeting": { "if": [{ bound: [{ "var": "$flagd.timestamp" }, 1] }, "on"] } } } })
    };
    let proxy = proxy_of(&set(">"), ProxySettings::of_mesh(MESH)).await;
    let tag = |answer: &Message| answer.header("etag").expect("a tag").to_owned();
    let first = all(proxy.port("ofrep"), "", json!({})).await;
    let again = all(proxy.port("ofrep"), &format!("If-None-Match: {}\r\n", tag(&first)), json!({})).await;
    assert_eq!((again.status(), tag(&again)), (304, tag(&first)));
    assert_eq!(proxy.metric("gilmok_flag_evaluations_total", &["flag=\"late\""]).await, 2.0);
}

#[tokio::test]
async fn a_change_is_told_within_a_second_and_a_faulty_file_changes_nothing() {
    let proxy = proxy().await;
    let at = proxy.port("ofrep");
    let mut stream = Caller::connect(at).await;
    stream.send("GET /ofrep/v1/sse HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n").await;
    let mut heard = String::new();
    assert!(hears(&mut stream, &mut heard, "listening").await.is_ok(), "{heard}");
    assert!(heard.contains("text/event-stream"), "{heard}");
    let mut changed = set();
    changed["flags"]["new-ui"]["defaultVariant"] = json!("no-such-variant");
    proxy.scratch.write("flags.json", changed.to_string());
    eventually("the refusal in the metrics", async || {
        let count = proxy.metric("gilmok_config_rejected_total", &[]).await;
        if count > 0.0 { Ok(()) } else { Err(count) }
    })
    .await;
    assert_eq!(one(at, "new-ui", json!({})).await.1["variant"], "off", "the old set stays");
    changed["flags"]["new-ui"]["defaultVariant"] = json!("on");
    proxy.scratch.write("flags.json", changed.to_string());
    assert!(hears(&mut stream, &mut heard, "refetchEvaluation").await.is_ok(), "{heard}");
    assert!(
        heard.contains("event: message") && heard.contains("\\\"etag\\\"")
            || heard.contains("\"etag\":\"\\\""),
        "{heard}"
    );
    assert_eq!(heard.matches("refetchEvaluation").count(), 1, "{heard}");
    assert_eq!(one(at, "new-ui", json!({})).await.1["variant"], "on");
    // Who was away while it changed is told when it comes back.
    let mut back = Caller::connect(at).await;
    back.send("GET /ofrep/v1/sse HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: older\r\n\r\n").await;
    assert!(hears(&mut back, &mut String::new(), "refetchEvaluation").await.is_ok());
}

/// Reads on until this was heard.
async fn hears(stream: &mut Caller, heard: &mut String, what: &str) -> std::io::Result<()> {
    use tokio::io::AsyncReadExt;
    let reading = async {
        let mut bytes = [0; 4096];
        while !heard.contains(what) {
            match stream.io.read(&mut bytes).await? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                read => heard.push_str(&String::from_utf8_lossy(&bytes[..read])),
            }
        }
        Ok(())
    };
    tokio::time::timeout(Duration::from_secs(20), reading).await?
}

#[tokio::test]
async fn whoever_listens_beside_too_many_others_is_told_to_wait_in_whole_seconds() {
    // A moment in words, as the protocol's example has it, would be read as 2026 seconds by some clients.
    let proxy = proxy().await;
    let at = proxy.port("ofrep");
    let request = "GET /ofrep/v1/sse HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut streams = Vec::new();
    for _ in 0..512 {
        let mut stream = Caller::connect(at).await;
        stream.send(request).await;
        assert!(hears(&mut stream, &mut String::new(), "listening").await.is_ok());
        streams.push(stream);
    }
    let refused = caller::ask(at, request).await;
    let wait = refused.header("retry-after").and_then(|seconds| seconds.parse::<u32>().ok());
    assert_eq!(refused.status(), 503, "{refused:?}");
    assert!(wait.is_some_and(|seconds| seconds >= 1), "{refused:?}");
    drop(streams);
    eventually("a place", async || {
        let mut stream = Caller::connect(at).await;
        stream.send(request).await;
        hears(&mut stream, &mut String::new(), "listening").await
    })
    .await;
}

#[tokio::test]
async fn web_pages_ask_only_where_they_are_listed() {
    let settings =
        ProxySettings::of_mesh(MESH).table("[ofrep]\nallowed_origins = [\"https://shop.example.com\"]");
    let proxy = proxy_of(&set(), settings).await;
    let at = proxy.port("ofrep");
    let preflight = |origin: &str| {
        format!(
            "OPTIONS /ofrep/v1/evaluate/flags HTTP/1.1\r\nHost: localhost\r\nOrigin: {origin}\r\n\
             Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: content-type,if-none-match\r\n\r\n"
        )
    };
    let may = caller::ask(at, preflight("https://shop.example.com")).await;
    assert_eq!(may.status(), 204, "{may:?}");
    assert_eq!(may.header("access-control-allow-origin"), Some("https://shop.example.com"));
    for name in ["Content-Type", "If-None-Match", "Authorization", "X-API-Key"] {
        assert!(may.header("access-control-allow-headers").unwrap().contains(name), "{name}");
    }
    let told = all(at, "Origin: https://shop.example.com\r\n", json!({})).await;
    assert_eq!(
        (told.status(), told.header("access-control-expose-headers")),
        (200, Some("ETag, Retry-After"))
    );
    for answer in [
        caller::ask(at, preflight("https://evil.example")).await,
        all(at, "Origin: https://evil.example\r\n", json!({})).await,
        all(at, "Origin: null\r\n", json!({})).await,
    ] {
        assert_eq!(
            (answer.status(), answer.header("access-control-allow-origin")),
            (403, None),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn with_a_token_file_everybody_needs_the_token() {
    let scratch = Scratch::new();
    let token = scratch.write("token", "secret\n");
    let settings =
        ProxySettings::of_mesh(MESH).table(&format!("[ofrep]\ntoken_file = \"{}\"", token.display()));
    let proxy = proxy_of(&set(), settings).await;
    let at = proxy.port("ofrep");
    for (fields, status) in [
        ("", 401),
        ("Authorization: Bearer wrong\r\n", 401),
        ("Authorization: Bearer secret\r\n", 200),
        ("X-API-Key: secret\r\n", 200),
    ] {
        assert_eq!(all(at, fields, json!({})).await.status(), status, "{fields}");
    }
}

#[tokio::test]
async fn without_flags_there_are_none() {
    let settings = ProxySettings::of_mesh("[services.shop]\n").listen("ofrep = \"127.0.0.1:0\"");
    let proxy = Proxy::start_with(settings).await;
    let told: Value = serde_json::from_slice(&all(proxy.port("ofrep"), "", json!({})).await.body).unwrap();
    assert_eq!(told["flags"], json!([]));
    assert_eq!(one(proxy.port("ofrep"), "new-ui", json!({})).await.0, 404);
    // A set that comes later is there within a second or so.
    proxy.scratch.write("flags.json", set().to_string());
    proxy.write_mesh(MESH);
    eventually_within(Duration::from_secs(10), "the flags", async || {
        let (status, told) = one(proxy.port("ofrep"), "new-ui", json!({})).await;
        if status == 200 { Ok(()) } else { Err(told.to_string()) }
    })
    .await;
}

#[tokio::test]
async fn flags_of_a_silent_control_plane_are_stale_and_have_their_values() {
    let plane = ControlPlane::start().await;
    plane.put("/v1/flags", &json!({ "flags": { "new-ui": set()["flags"]["new-ui"] } })).await;
    let table = "[ofrep]\nstale_after = \"5s\"";
    let settings =
        ProxySettings::of_control_planes(&[plane.address]).table(table).listen("ofrep = \"127.0.0.1:0\"");
    let proxy = Proxy::start_with(settings).await;
    let at = proxy.port("ofrep");
    let gold = json!({ "tier": "gold" });
    let is = async |reason: &str| {
        let gold = gold.clone();
        eventually("the flag to have another reason", async || {
            let (status, told) = one(at, "new-ui", gold.clone()).await;
            assert_eq!((status, &told["value"], &told["variant"]), (200, &json!(true), &json!("on")));
            if told["reason"] == reason { Ok(()) } else { Err(told) }
        })
        .await;
    };
    is("TARGETING_MATCH").await;
    let fresh = all(at, "", gold.clone()).await;
    let tag = fresh.header("etag").expect("a tag").to_owned();
    plane.process.signal(Signal::Stop).await;
    is("STALE").await;
    let stale = all(at, &format!("If-None-Match: {tag}\r\n"), gold.clone()).await;
    assert_eq!(stale.status(), 200, "the reasons are others: {stale:?}");
    plane.process.signal(Signal::Continue).await;
    is("TARGETING_MATCH").await;
    assert_eq!(all(at, &format!("If-None-Match: {tag}\r\n"), gold.clone()).await.status(), 304);
}
