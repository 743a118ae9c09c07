//! Flags over REST: a life, a source for flagd, why somebody gets what they get, and who is asked for a reason.

use http::header::{ETAG, IF_NONE_MATCH};

use super::*;

fn flag() -> Value {
    json!({ "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": "on" })
}

#[tokio::test]
async fn a_flag_lives_through_rest() {
    let served = Served::start("flags").await;
    assert_eq!(served.get("/v1/flags").await.1, json!({ "flags": {} }));
    let put = served.put("/v1/flags/new-ui", &flag()).await;
    assert_eq!(put, (StatusCode::CREATED, json!({ "revision": 1 })));
    assert_eq!(served.get("/v1/flags/new-ui").await.1, flag());
    let patch = r#"{"metadata":{"owner":"ann"}}"#;
    let patched = served.ask(Method::PATCH, "/v1/flags/new-ui?reason=owner", &[], patch).await;
    assert_eq!(patched, (StatusCode::OK, json!({ "revision": 2 })));
    let kill = |headers| served.ask(Method::POST, "/v1/flags/new-ui/kill?reason=slow", headers, "");
    assert_eq!(kill(&[("if-match", "\"1\"")]).await.0, StatusCode::PRECONDITION_FAILED);
    assert_eq!(kill(&[("gilmok-who", "ann")]).await, (StatusCode::OK, json!({ "revision": 3 })));
    assert_eq!(kill(&[]).await, (StatusCode::OK, json!({ "revision": 3 })), "once is enough");
    let (_, overview) = served.get("/v1/flags?overview=true").await;
    let row = &overview["flags"][0];
    assert_eq!(
        (&row["flag"], &row["killed"], &row["type"]),
        (&json!("new-ui"), &json!(true), &json!("boolean"))
    );
    assert_eq!(row["killed_by"], json!({ "by": "ann", "why": "slow" }));
    let (_, audit) = served.get("/v1/audit?limit=1").await;
    assert_eq!((&audit[0]["who"], &audit[0]["what"]), (&json!("ann"), &json!("kill flag new-ui")));
    let change = &audit[0]["flags"][0];
    assert_eq!((&change["flag"], &change["before"]["x-gilmok"]), (&json!("new-ui"), &Value::Null));
    assert_eq!(
        change["after"]["x-gilmok"],
        json!({ "kill": { "active": true, "by": "ann", "why": "slow" } })
    );
    let restored = served.ask(Method::POST, "/v1/revisions/1/restore", &[], "").await;
    assert_eq!(restored, (StatusCode::OK, json!({ "revision": 4 })));
    assert_eq!(served.get("/v1/flags/new-ui").await.1, flag());
    let foreseen = served.ask(Method::DELETE, "/v1/flags/new-ui?dry_run=true", &[], "").await;
    assert_eq!(foreseen, (StatusCode::OK, json!({ "revision": 4, "changed": true })));
    assert_eq!(served.ask(Method::DELETE, "/v1/flags/new-ui", &[], "").await.0, StatusCode::OK);
    assert_eq!(served.get("/v1/flags/new-ui").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn what_cannot_be_is_refused_and_says_why() {
    let served = Served::start("flags-refused").await;
    served.put("/v1/flags/a", &flag()).await;
    let unknown = r#"{"targeting":{"nonsense":[1]}}"#;
    let other = r#"{"state":"ENABLED","variants":{"on":1},"defaultVariant":"on"}"#;
    let long = format!("/v1/flags/{}", "x".repeat(257));
    for (method, target, body, expected) in [
        (Method::GET, "/v1/flags/none", "", 404),
        (Method::GET, "/v1/flags?overveiw=true", "", 400),
        (Method::GET, "/v1/flags/%ff", "", 400),
        (Method::GET, long.as_str(), "", 400),
        (Method::PATCH, "/v1/flags/none", "{}", 404),
        (Method::DELETE, "/v1/flags/none", "", 404),
        (Method::POST, "/v1/flags/none/kill", "", 404),
        (Method::POST, "/v1/flags/none/unkill", "", 404),
        (Method::GET, "/v1/flags/none/explain", "", 404),
        (Method::POST, "/v1/flags/a/explain", r#"{"context":5}"#, 422),
        (Method::PUT, "/v1/flags", "[]", 422),
        (Method::PUT, "/v1/flags/a", "{}", 422),
        (Method::PUT, "/v1/flags/a", other, 409),
        (Method::PATCH, "/v1/flags/a", unknown, 422),
    ] {
        let (status, problem) = served.ask(method.clone(), target, &[], body).await;
        assert_eq!(status.as_u16(), expected, "{method} {target} {body}: {problem}");
        assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{target}: {problem}");
    }
    let (_, problem) = served.ask(Method::PATCH, "/v1/flags/a", &[], unknown).await;
    assert!(problem["detail"].as_str().unwrap().contains("accept_warnings"), "{problem}");
    assert_eq!(problem["problems"][0]["path"], "flags.set.flags.a.targeting.\"nonsense\"", "{problem}");
    let accepted = served.ask(Method::PATCH, "/v1/flags/a?accept_warnings=true", &[], unknown).await;
    assert_eq!(accepted.0, StatusCode::OK);
    assert_eq!(served.ask(Method::PUT, "/v1/flags/a?force=true", &[], other).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_flag_that_proxies_evaluate_is_not_deleted_in_passing() {
    let served = Served::start("flags-in-use").await;
    served.put("/v1/flags/a", &flag()).await;
    let ack = json!({ "node": "web-1", "instance": "1", "wire": 1,
        "flags": [{ "flag": "a", "variant": "on", "reason": "STATIC", "count": 3 }] });
    let told = served.ask(Method::POST, "/v1/feed/acks", &[], &ack.to_string()).await;
    assert_eq!(told.0, StatusCode::NO_CONTENT);
    for target in ["/v1/flags/a", "/v1/flags"] {
        let (method, body) =
            if target == "/v1/flags" { (Method::PUT, r#"{"flags":{}}"#) } else { (Method::DELETE, "") };
        let (status, problem) = served.ask(method, target, &[], body).await;
        assert_eq!(status, StatusCode::CONFLICT, "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains("was evaluated 0 min ago"), "{problem}");
    }
    let (_, overview) = served.get("/v1/flags?overview=true").await;
    assert!(overview["flags"][0]["seen"]["on"]["last_ms"].as_u64() > Some(0), "{overview}");
    assert_eq!(served.ask(Method::DELETE, "/v1/flags/a?force=true", &[], "").await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_stock_flagd_takes_the_flags_and_asks_again_for_nothing() {
    let served = Served::start("flagd").await;
    served.put("/v1/flags/a", &flag()).await;
    served.ask(Method::POST, "/v1/flags/a/kill", &[], "").await;
    let target = "/v1/flags/flagd.json";
    let first = served.client.send(&Request::get(target)).await.unwrap();
    let told: Value = serde_json::from_slice(&first.body).unwrap();
    assert_eq!((&told["flags"]["a"]["defaultVariant"], first.status), (&json!("off"), StatusCode::OK));
    let tag = first.headers[ETAG].clone();
    let again = || Request::get(target).header(IF_NONE_MATCH, tag.clone());
    // Another revision with the same flags is nothing new to flagd.
    served.put("/v1/services/ads", &json!({})).await;
    let known = served.client.send(&again()).await.unwrap();
    assert_eq!((known.status, known.body.len()), (StatusCode::NOT_MODIFIED, 0));
    served.ask(Method::POST, "/v1/flags/a/unkill", &[], "").await;
    assert_eq!(served.client.send(&again()).await.unwrap().status, StatusCode::OK);
}

#[tokio::test]
async fn a_flag_is_explained_down_to_the_bucket() {
    let served = Served::start("flags-explained").await;
    let mut ui = flag();
    ui["targeting"] = json!({ "if": [{ "==": [{ "var": "tier" }, "gold"] }, "on",
        { "fractional": [["on", 10], ["off", 90]] }] });
    served.put("/v1/flags/new-ui", &ui).await;
    let (_, by_share) = served.get("/v1/flags/new-ui/explain?subject=user-42").await;
    let step = &by_share["steps"][0]["step"];
    assert_eq!((&by_share["targeting_key"], step), (&json!("user-42"), &json!("state")), "{by_share}");
    let share =
        by_share["steps"].as_array().unwrap().iter().find(|step| step["step"] == "targeting").unwrap();
    assert_eq!((&share["fractional"]["hash_version"], &share["fractional"]["of"]), (&json!(3), &json!(100)));
    let asked = r#"{"subject":"user-42","context":{"tier":"gold"}}"#;
    let (_, gold) = served.ask(Method::POST, "/v1/flags/new-ui/explain", &[], asked).await;
    assert_eq!((&gold["variant"], &gold["reason"]), (&json!("on"), &json!("TARGETING_MATCH")), "{gold}");
}

#[tokio::test]
async fn what_testers_see_is_signed_and_explained() {
    let served = Served::start("flags-overrides").await;
    served.put("/v1/services/shop", &json!({ "flags": { "emit": ["*"] } })).await;
    served.put("/v1/flags/new-ui", &flag()).await;
    let sign = |body: &'static str| served.ask(Method::POST, "/v1/flag-overrides", &[], body);
    let (status, signed) = sign(r#"{"flags":{"new-ui":"off"},"ttl":"10m"}"#).await;
    assert_eq!((status, &signed["name"]), (StatusCode::OK, &json!("Feature-Flags-Override")));
    let header = signed["value"].as_str().unwrap();
    let explained = async |header: &str| {
        let question = json!({ "host": "shop", "headers": { "feature-flags-override": header } });
        let (_, told) = served.ask(Method::POST, "/v1/explain", &[], &question.to_string()).await;
        let told = &told["decision"];
        (told["flags"]["header"].clone(), told["override_refused"].clone())
    };
    assert_eq!(explained(header).await, (json!("new-ui=?0;v=off"), Value::Null));
    let (told, why) = explained(&header.replace("off", "on")).await;
    assert_eq!((told, why), (json!("new-ui;v=on"), json!("not signed by a key of this mesh")));
    for (body, path, what) in [
        (r#"{"flags":{"none":"on"}}"#, "flags.none", "there is no flag `none`"),
        (r#"{"flags":{"new-ui":"blue"}}"#, "flags.new-ui", "there is no variant `blue`"),
        (r#"{"flags":{"new-ui":"on"},"ttl":"31d"}"#, "ttl", "out of range"),
        (r#"{"flags":{"new-ui":"on"},"ttl":"soon"}"#, "ttl", "not understood"),
        (r#"{"flags":{}}"#, "flags", "1 to 32 flags can be overridden at a time"),
    ] {
        let (status, problem) = sign(body).await;
        assert_eq!(
            (status, &problem["problems"][0]["path"], &problem["problems"][0]["what"]),
            (StatusCode::UNPROCESSABLE_ENTITY, &json!(path), &json!(what)),
            "{problem}"
        );
    }
}

#[tokio::test]
async fn where_reasons_are_wanted_nothing_is_written_without_one() {
    let access = Access { reason_required: true, ..Access::default() };
    let served = Served::start_as("flags-reason", Patience::default(), access).await;
    let (status, problem) = served.put("/v1/flags/a", &flag()).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{problem}");
    assert_eq!(served.get("/v1/flags/a").await.0, StatusCode::NOT_FOUND);
    assert_eq!(served.put("/v1/flags/a?dry_run=true", &flag()).await.0, StatusCode::OK);
    assert_eq!(served.put("/v1/flags/a?reason=because", &flag()).await.0, StatusCode::CREATED);
    let said = served.ask(Method::POST, "/v1/flags/a/kill", &[("gilmok-reason", "it hurts")], "").await;
    assert_eq!(said.0, StatusCode::OK);
    // Nor signed.
    let wish = r#"{"flags":{"a":"on"}}"#;
    let (status, problem) = served.ask(Method::POST, "/v1/flag-overrides", &[], wish).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{problem}");
    let said = served.ask(Method::POST, "/v1/flag-overrides?reason=testing", &[], wish).await;
    assert_eq!(said.0, StatusCode::OK, "{}", said.1);
}

#[tokio::test]
async fn a_change_is_said_listed_and_taken_back() {
    let served = Served::start("flags-schedule").await;
    served.put("/v1/flags/a", &flag()).await;
    let target = "/v1/flags/a/schedule";
    for (body, expected) in [
        (r#"{"at":"soon","patch":{}}"#, 422),
        (r#"{"at":"2001-01-01T00:00:00Z","patch":{}}"#, 422),
        (r#"{"at":"2999-01-01T00:00:00Z"}"#, 422),
        (r#"{"at":"2999-01-01T00:00:00Z","patch":{"state":"ON"}}"#, 422),
        (r#"{"at":"2999-01-01T00:00:00Z","patch":{"state":"DISABLED"}}"#, 201),
    ] {
        let (status, told) = served.ask(Method::POST, target, &[("gilmok-who", "ann")], body).await;
        assert_eq!(status.as_u16(), expected, "{body}: {told}");
    }
    let (_, listed) = served.get(target).await;
    assert_eq!(
        (&listed[0]["id"], &listed[0]["at"], &listed[0]["by"]),
        (&json!(2), &json!("2999-01-01T00:00:00Z"), &json!("ann"))
    );
    assert_eq!(served.get("/v1/flags?overview=true").await.1["flags"][0]["scheduled"], 1);
    for (target, expected) in
        [("/v1/flags/b/schedule/2", 404), ("/v1/flags/a/schedule/2", 200), ("/v1/flags/a/schedule/2", 404)]
    {
        assert_eq!(served.ask(Method::DELETE, target, &[], "").await.0.as_u16(), expected, "{target}");
    }
    assert_eq!(served.get(target).await.1, json!([]));
    assert_eq!(served.get("/v1/flags/b/schedule").await.0, StatusCode::NOT_FOUND);
    let (_, audit) = served.get("/v1/audit").await;
    let what: Vec<_> =
        audit.as_array().unwrap().iter().map(|entry| entry["what"].as_str().unwrap()).collect();
    assert_eq!(what, ["take back a change of flag a", "schedule a change of flag a", "put flag a"]);
}
