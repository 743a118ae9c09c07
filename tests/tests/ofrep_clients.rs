//! OpenFeature's own clients at the OFREP listener: what each of them is known to fail at, it does not fail at here.

use gilmok_tests::flag_client::{ask, question};
use gilmok_tests::proxy::{Proxy, ProxySettings};
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
