//! OpenFeature's own clients at the OFREP listener: what each of them is known to fail at, it does not fail at here.

use gilmok_tests::eventually::eventually;
use gilmok_tests::flag_client::{Follower, Sdk, ask, ask_by, question};
use gilmok_tests::proxy::{Proxy, ProxySettings};
use gilmok_tests::relay::Relay;
use gilmok_tests::scratch::Scratch;
use serde_json::{Value, json};

const MESH: &str = "[flags]\nfile = \"flags.json\"\n";

fn set() -> Value {
    let flag = |variants: Value| {
        let default = variants.as_object().and_then(|all| all.keys().next()).cloned();
        json!({ "state": "ENABLED", "variants": variants, "defaultVariant": default })
    };
    let with = |mut flag: Value, key: &str, value: Value| {
        flag[key] = value;
        flag
    };
    json!({ "flags": {
        "boolean": with(flag(json!({ "on": true, "off": false })), "targeting", json!({ "if": [{ "==": [{ "var": "targetingKey" }, "ann"] }, "on", "off"] })),
        "text": flag(json!({ "a": "grün" })),
        "whole": flag(json!({ "a": 10 })),
        "real": flag(json!({ "a": 10, "b": 0.5 })),
        "object": flag(json!({ "a": { "x": 1 } })),
        "disabled": with(flag(json!({ "on": true })), "state", json!("DISABLED")),
        "none": with(flag(json!({ "on": true })), "defaultVariant", Value::Null),
        "killed": with(flag(json!({ "off": false, "on": true })), "x-gilmok", json!({ "kill": { "active": true, "variant": "off" } })),
        "broken": with(flag(json!({ "on": true })), "targeting", json!({ "no_such": 1 })),
        "s/l.a%sh": with(flag(json!({ "on": true })), "x-gilmok", json!({ "header": { "name": "slash" } })),
    } })
}

async fn proxy(more: &str) -> Proxy {
    let scratch = Scratch::new();
    scratch.write("flags.json", set().to_string());
    scratch.write("token", "secret");
    let settings = ProxySettings::of_mesh(MESH).listen("ofrep = \"127.0.0.1:0\"").table(more);
    let proxy = Proxy::start_unready(settings, scratch).await;
    proxy.is_ready().await;
    proxy
}

#[tokio::test]
async fn the_python_client_understands_everything_it_is_told() {
    let proxy = proxy("").await;
    let nobody = json!({});
    let expected = [
        (
            question("Boolean", "boolean", &json!(false), &json!({ "targetingKey": "ann" })),
            json!(true),
            "on",
            "TARGETING_MATCH",
        ),
        (
            question("Boolean", "boolean", &json!(true), &json!({ "targetingKey": "bob" })),
            json!(false),
            "off",
            "TARGETING_MATCH",
        ),
        (question("Boolean", "boolean", &json!(true), &nobody), json!(false), "off", "TARGETING_MATCH"),
        (question("String", "text", &json!("x"), &nobody), json!("grün"), "a", "STATIC"),
        (question("Integer", "whole", &json!(1), &nobody), json!(10), "a", "STATIC"),
        (question("Float", "real", &json!(0.1), &nobody), json!(10.0), "a", "STATIC"),
        (question("Object", "object", &json!({}), &nobody), json!({ "x": 1 }), "a", "STATIC"),
        (question("Boolean", "disabled", &json!(true), &nobody), json!(true), "", "DISABLED"),
        (question("Boolean", "disabled", &json!(false), &nobody), json!(false), "", "DISABLED"),
        (question("Boolean", "none", &json!(true), &nobody), json!(true), "", "DEFAULT"),
        (question("Boolean", "killed", &json!(true), &nobody), json!(false), "off", "DISABLED"),
        (question("Boolean", "s/l.a%sh", &json!(false), &nobody), json!(true), "on", "STATIC"),
    ];
    let questions: Vec<Value> = expected.iter().map(|(question, ..)| question.clone()).collect();
    let answers = ask(proxy.port("ofrep"), None, &questions).await;
    assert_eq!(answers.len(), expected.len());
    for ((question, value, variant, reason), answer) in expected.iter().zip(&answers) {
        assert_eq!(
            (&answer["value"], &answer["variant"], &answer["reason"], &answer["error"]),
            (value, &json!(variant), &json!(reason), &Value::Null),
            "{question}: {answer}"
        );
    }
    assert_eq!(answers[10]["metadata"]["gilmok.reason"], "kill-switch");
}

#[tokio::test]
async fn the_python_client_keeps_its_default_where_a_flag_fails() {
    let proxy = proxy("").await;
    let expected = [
        ("Boolean", "broken", "PARSE_ERROR"),
        ("Boolean", "nobody", "FLAG_NOT_FOUND"),
        ("String", "boolean", "TYPE_MISMATCH"),
    ];
    let default = |kind: &str| if kind == "String" { json!("mine") } else { json!(true) };
    let questions: Vec<Value> =
        expected.iter().map(|(kind, key, _)| question(kind, key, &default(kind), &json!({}))).collect();
    let answers = ask(proxy.port("ofrep"), None, &questions).await;
    for ((kind, key, code), answer) in expected.iter().zip(&answers) {
        let what = (&answer["value"], &answer["reason"], &answer["error"]);
        assert_eq!(what, (&default(kind), &json!("ERROR"), &json!(code)), "{key}: {answer}");
        assert!(answer["message"].is_string(), "{answer}");
    }
}

#[tokio::test]
async fn the_python_client_brings_a_token() {
    let proxy = proxy("[ofrep]\ntoken_file = \"token\"").await;
    let questions = [question("String", "text", &json!("mine"), &json!({}))];
    let with = ask(proxy.port("ofrep"), Some("secret"), &questions).await;
    assert_eq!(with[0]["value"], "grün", "{with:?}");
    let without = ask(proxy.port("ofrep"), None, &questions).await;
    assert_eq!(
        (&without[0]["value"], &without[0]["reason"]),
        (&json!("mine"), &json!("ERROR")),
        "{without:?}"
    );
}

/// What the clients in JavaScript ask, and what they make of it: value, variant, reason, error. They have one kind of number.
fn in_javascript() -> Vec<(Value, [Value; 4])> {
    let nobody = json!({});
    let of = |kind: &str, key: &str, default: Value| question(kind, key, &default, &nobody);
    let boolean = |user: &str| question("Boolean", "boolean", &json!(true), &json!({ "targetingKey": user }));
    let found =
        |value: Value, variant: &str, reason: &str| [value, json!(variant), json!(reason), Value::Null];
    let failed = |value: Value, error: &str| [value, Value::Null, json!("ERROR"), json!(error)];
    vec![
        (boolean("ann"), found(json!(true), "on", "TARGETING_MATCH")),
        (boolean("bob"), found(json!(false), "off", "TARGETING_MATCH")),
        (of("Boolean", "boolean", json!(true)), found(json!(false), "off", "TARGETING_MATCH")),
        (of("String", "text", json!("x")), found(json!("grün"), "a", "STATIC")),
        (of("Integer", "whole", json!(1)), found(json!(10), "a", "STATIC")),
        (of("Float", "whole", json!(1.5)), found(json!(10), "a", "STATIC")),
        (of("Integer", "real", json!(1)), found(json!(10), "a", "STATIC")),
        (of("Float", "real", json!(1.5)), found(json!(10), "a", "STATIC")),
        (of("Object", "object", json!({})), found(json!({ "x": 1 }), "a", "STATIC")),
        (of("Boolean", "killed", json!(true)), found(json!(false), "off", "DISABLED")),
        (of("Boolean", "s/l.a%sh", json!(false)), found(json!(true), "on", "STATIC")),
        (of("Boolean", "broken", json!(true)), failed(json!(true), "PARSE_ERROR")),
        (of("Boolean", "nobody", json!(true)), failed(json!(true), "FLAG_NOT_FOUND")),
        (of("String", "boolean", json!("mine")), failed(json!("mine"), "TYPE_MISMATCH")),
    ]
}

/// Asks all of these and compares; gives the answers.
async fn compare(sdk: Sdk, proxy: &Proxy, expected: &[(Value, [Value; 4])]) -> Vec<Value> {
    let questions: Vec<Value> = expected.iter().map(|(question, _)| question.clone()).collect();
    let answers = ask_by(sdk, proxy.port("ofrep"), None, &questions).await;
    assert_eq!(answers.len(), expected.len());
    for ((question, expected), answer) in expected.iter().zip(&answers) {
        let told = ["value", "variant", "reason", "error"].map(|name| answer[name].clone());
        assert_eq!(&told, expected, "{sdk:?}: {question}: {answer}");
        assert_eq!(answer["message"].is_string(), !expected[3].is_null(), "{sdk:?}: {question}: {answer}");
    }
    let killed = expected.iter().position(|(question, _)| question["key"] == "killed").expect("it is asked");
    assert_eq!(answers[killed]["metadata"]["gilmok.reason"], "kill-switch");
    answers
}

#[tokio::test]
async fn the_javascript_client_of_servers_understands_all_but_a_flag_without_a_value() {
    let proxy = proxy("").await;
    let mut expected = in_javascript();
    // It takes no answer without a value, whatever the reason; what it comes to is right.
    for (key, default) in [("disabled", true), ("disabled", false), ("none", true)] {
        let default = json!(default);
        let failed = [default.clone(), Value::Null, json!("ERROR"), json!("GENERAL")];
        expected.push((question("Boolean", key, &default, &json!({})), failed));
    }
    let answers = compare(Sdk::Server, &proxy, &expected).await;
    let broken = &answers[11]["message"];
    assert!(broken.as_str().unwrap().contains("no_such"), "our words arrive: {broken}");
}

#[tokio::test]
async fn the_javascript_client_of_pages_understands_everything_it_is_told() {
    let proxy = proxy("").await;
    let mut expected = in_javascript();
    for (key, default, reason) in
        [("disabled", true, "DISABLED"), ("disabled", false, "DISABLED"), ("none", true, "DEFAULT")]
    {
        let told = [json!(default), json!(""), json!(reason), Value::Null];
        expected.push((question("Boolean", key, &json!(default), &json!({})), told));
    }
    compare(Sdk::Web, &proxy, &expected).await;
}

#[tokio::test]
async fn the_javascript_clients_bring_a_token() {
    let proxy = proxy("[ofrep]\ntoken_file = \"token\"").await;
    let questions = [question("String", "text", &json!("mine"), &json!({}))];
    for (sdk, error) in [(Sdk::Server, "GENERAL"), (Sdk::Web, "PROVIDER_FATAL")] {
        let with = ask_by(sdk, proxy.port("ofrep"), Some("secret"), &questions).await;
        assert_eq!(with[0]["value"], "grün", "{sdk:?}: {with:?}");
        for token in [None, Some("wrong")] {
            let without = ask_by(sdk, proxy.port("ofrep"), token, &questions).await;
            let told = (&without[0]["value"], &without[0]["reason"], &without[0]["error"]);
            assert_eq!(told, (&json!("mine"), &json!("ERROR"), &json!(error)), "{sdk:?}: {without:?}");
        }
    }
}

#[tokio::test]
async fn a_page_whose_user_changes_an_attribute_is_told_the_flags_of_that() {
    // It keeps the tag of what it was told before as long as the targeting key is the same.
    let proxy = proxy("").await;
    let mut set = set();
    set["flags"]["gold"] = json!({ "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": "off",
        "targeting": { "if": [{ "==": [{ "var": "tier" }, "gold"] }, "on"] } });
    proxy.scratch.write("flags.json", set.to_string());
    eventually("the new set", async || {
        let told = ask_by(
            Sdk::Web,
            proxy.port("ofrep"),
            None,
            &[question("Boolean", "gold", &json!(false), &json!({}))],
        )
        .await;
        if told[0]["variant"] == "off" { Ok(()) } else { Err(format!("{told:?}")) }
    })
    .await;
    let tiers = ["iron", "gold", "gold", "iron"];
    let questions = tiers.map(|tier| {
        question("Boolean", "gold", &json!(false), &json!({ "targetingKey": "ann", "tier": tier }))
    });
    let answers = ask_by(Sdk::Web, proxy.port("ofrep"), None, &questions).await;
    let variants: Vec<&Value> = answers.iter().map(|answer| &answer["variant"]).collect();
    assert_eq!(variants, ["off", "on", "on", "off"], "{answers:?}");
}

/// Puts another set in force, in which `boolean` is this for everybody.
fn turn(proxy: &Proxy, variant: &str) {
    let mut set = set();
    set["flags"]["boolean"]["targeting"] = json!({});
    set["flags"]["boolean"]["defaultVariant"] = json!(variant);
    proxy.scratch.write("flags.json", set.to_string());
}

#[tokio::test]
async fn a_page_is_told_of_a_switch_by_the_stream_of_events() {
    let proxy = proxy("").await;
    let relay = Relay::start(proxy.port("ofrep")).await;
    let page = Follower::start(relay.address(), "boolean", None);
    assert_eq!(page.said(1).await["value"], true);
    eventually("the page to listen", async || {
        let asked = relay.requests();
        if asked == 2 { Ok(()) } else { Err(asked) }
    })
    .await;
    turn(&proxy, "off");
    assert_eq!(page.said(2).await["value"], false);
    turn(&proxy, "on");
    assert_eq!(page.said(3).await["value"], true);
    assert_eq!(relay.requests(), 4, "it asks when it is told to, and not otherwise");
}

#[tokio::test]
async fn a_page_that_asks_again_and_again_costs_no_evaluation_until_something_changes() {
    let proxy = proxy("").await;
    let relay = Relay::start(proxy.port("ofrep")).await;
    let page = Follower::start(relay.address(), "boolean", Some(20));
    assert_eq!(page.said(1).await["value"], true);
    let evaluated = proxy.metric("gilmok_flag_evaluations_total", &[]).await;
    let before = relay.requests();
    eventually("ten more questions", async || {
        let asked = relay.requests() - before;
        if asked >= 10 { Ok(()) } else { Err(asked) }
    })
    .await;
    assert_eq!(proxy.metric("gilmok_flag_evaluations_total", &[]).await, evaluated);
    turn(&proxy, "off");
    assert_eq!(page.said(2).await["value"], false);
    assert!(proxy.metric("gilmok_flag_evaluations_total", &[]).await > evaluated);
}
