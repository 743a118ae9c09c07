//! What people and programs say to a rollout that runs: by hand, at a gate, at once, and by webhook.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gilmok_tests::control_plane::call;
use gilmok_tests::eventually::{SOON, eventually};
use gilmok_tests::message::Message;
use gilmok_tests::shop::{Shop, deeds, everybody_on, lenient};
use gilmok_tests::upstream::Upstream;
use ring::hmac;
use serde_json::{Value, json};

/// A step that nobody leaves in a test.
fn held(percent: u32) -> Value {
    json!({ "candidate": "v2", "analysis": "off", "steps": [{ "percent": percent, "hold": "1h" }, { "percent": 100 }] })
}

/// A call with `If-Match`.
async fn call_if(shop: &Shop, revision: &str, method: &str, path: &str, body: &Value) -> Message {
    let body = body.to_string();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: plane\r\nIf-Match: {revision}\r\nConnection: close\r\n\
         Content-Type: application/merge-patch+json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    gilmok_tests::caller::ask(shop.plane.address, request).await
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_are_not_edited_by_hand_while_a_rollout_moves_them() {
    let shop = Shop::start().await;
    shop.begin(&held(10)).await;
    shop.is("holding").await;
    let before = shop.plane.json("/v1/mesh").await;
    let half = json!({ "stable": "v1", "weights": { "v1": 50, "v2": 50 } });
    for (method, path, body) in [
        ("PUT", "/v1/services/shop/traffic", half.clone()),
        ("PUT", "/v1/services/shop", json!({ "traffic": half })),
        ("PUT", "/v1/services/shop", json!({})),
        ("PATCH", "/v1/services/shop", json!({ "traffic": { "weights": { "v1": 80, "v2": 20 } } })),
        ("PATCH", "/v1/services/shop", json!({ "traffic": { "salt": "other" } })),
        ("PATCH", "/v1/services/shop", json!({ "traffic": null })),
        ("PUT", "/v1/mesh", json!({ "services": { "shop": { "traffic": half } } })),
        ("POST", "/v1/services/shop/switch", json!({ "to": "v2" })),
        ("PUT", "/v1/services/shop/rollout", held(20)),
    ] {
        let answer = shop.plane.call(method, path, Some(&body)).await;
        assert_eq!(answer.status(), 409, "{method} {path} {body}: {answer:?}");
        assert!(answer.text().contains("gilmok rollout abort shop"), "it says what to do: {answer:?}");
    }
    assert_eq!(shop.plane.json("/v1/mesh").await, before, "nothing was changed");
    // What moves nobody is nobody's hindrance.
    let answer = shop.plane.call("PATCH", "/v1/services/shop", Some(&json!({ "max_concurrent": 77 }))).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    assert_eq!(shop.rollout().await["state"], "holding");
    let forced = shop.plane.call("PUT", "/v1/services/shop/traffic?force=true", Some(&half)).await;
    assert_eq!(forced.status(), 200, "{forced:?}");
    assert_eq!(shop.rollout().await["state"], "aborted", "whoever forces it decides from now on");
    assert_eq!(shop.traffic().await["weights"], half["weights"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_writers_at_once_one_is_told_so_and_nothing_is_lost() {
    let shop = Shop::start().await;
    shop.begin(&held(10)).await;
    shop.is("holding").await;
    for round in 0..10 {
        let etag = shop.plane.get("/v1/services/shop").await.header("etag").expect("a revision").to_owned();
        let (one, other) =
            (json!({ "max_concurrent": 100 + round }), json!({ "slow_start": format!("{}s", round + 1) }));
        let path = "/v1/services/shop";
        let (first, second) = tokio::join!(
            call_if(&shop, &etag, "PATCH", path, &one),
            call_if(&shop, &etag, "PATCH", path, &other)
        );
        let mut statuses = [first.status(), second.status()];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 412], "{first:?} {second:?}");
        // Whoever was behind reads and decides again.
        let late = if first.status() == 412 { &one } else { &other };
        let etag = shop.plane.get("/v1/services/shop").await.header("etag").expect("a revision").to_owned();
        assert_eq!(call_if(&shop, &etag, "PATCH", path, late).await.status(), 200);
        let table = shop.plane.json(path).await;
        assert_eq!(table["max_concurrent"], one["max_concurrent"], "{table}");
        assert_eq!(table["slow_start"], other["slow_start"], "{table}");
        assert_eq!(table["traffic"]["weights"], json!({ "v1": 90, "v2": 10 }), "{table}");
    }
    // Many words at once about one rollout: each is taken or refused, and one of each kind is enough.
    let words = ["pause", "resume", "promote?force=true", "abort"];
    let mut said = tokio::task::JoinSet::new();
    for word in words.iter().cycle().take(40) {
        let (address, path) = (shop.plane.address, format!("/v1/services/shop/rollout/{word}"));
        said.spawn(async move { call(address, "POST", &path, None, SOON).await.expect("an answer") });
    }
    for answer in said.join_all().await {
        assert!(matches!(answer.status(), 200 | 409), "{answer:?}");
    }
    let rollout = shop.rollout().await;
    let traffic = shop.traffic().await;
    match rollout["state"].as_str() {
        Some("aborted") => assert_eq!(traffic, everybody_on("v1")),
        Some("done") => assert_eq!(traffic, everybody_on("v2")),
        _ => panic!("{rollout}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_waits_until_somebody_promotes_it() {
    let shop = Shop::start().await;
    let users = shop.users(1_000);
    let plan = json!({ "candidate": "v2", "analysis": lenient(), "steps": [
        { "percent": 10 }, { "gate": { "timeout": "1h" } }, { "percent": 100 },
    ] });
    shop.begin(&plan).await;
    shop.is("gated").await;
    let before = shop.on_v2(0..100).await;
    users.flow(500).await;
    assert_eq!(shop.rollout().await["state"], "gated");
    assert_eq!(shop.on_v2(0..100).await, before);
    let answer = shop.say("promote?reason=looks%20good").await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let rollout = shop.is("done").await;
    assert_eq!(deeds(&rollout), ["started", "step", "gate", "approved", "step", "done"], "{rollout}");
    let approved = &rollout["history"][3];
    assert_eq!(
        (&approved["by"], &approved["why"]),
        (&json!("127.0.0.1"), &json!("looks good")),
        "{approved}"
    );
    users.stop().await.expect_no_failure();
}

/// Somebody who is told of rollouts and answers as the test says: with these statuses one after the other, and then 200.
struct Receiver {
    upstream: Upstream,
    statuses: Arc<Mutex<VecDeque<u16>>>,
}

impl Receiver {
    async fn start() -> Self {
        let statuses = Arc::<Mutex<VecDeque<u16>>>::default();
        let said = Arc::clone(&statuses);
        let upstream = Upstream::start(move |mut conversation| {
            let said = Arc::clone(&said);
            async move {
                while conversation.request().await.is_some() {
                    let status = said.lock().expect("nobody panics with it").pop_front().unwrap_or(200);
                    if !conversation.send(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n")).await {
                        return;
                    }
                }
            }
        })
        .await;
        Self { upstream, statuses }
    }

    fn answers(&self, statuses: &[u16]) {
        *self.statuses.lock().expect("nobody panics with it") = statuses.iter().copied().collect();
    }

    /// What was told so far, each checked by its signature: event, step, message.
    fn heard(&self, secret: &[u8]) -> Vec<(String, u64, String)> {
        let told = self.upstream.requests().into_iter().map(|request| {
            let header =
                |name: &str| request.header(name).unwrap_or_else(|| panic!("no {name}: {request:?}"));
            let (id, at) = (header("webhook-id"), header("webhook-timestamp"));
            let signature =
                header("webhook-signature").strip_prefix("v1,").expect("the version of the signature");
            let signed = [format!("{id}.{at}.").as_bytes(), &request.body].concat();
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
            let signature = STANDARD.decode(signature).expect("a signature in Base64");
            hmac::verify(&key, &signed, &signature).expect("it is signed by whom it says");
            let body: Value = serde_json::from_slice(&request.body).expect("JSON");
            (
                body["event"].as_str().unwrap_or_default().to_owned(),
                body["step"].as_u64().unwrap_or(99),
                id.to_owned(),
            )
        });
        told.collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_are_asked_and_told_in_order_and_a_no_pauses() {
    const SECRET: &str = "nobody else knows this";
    let scratch = gilmok_tests::scratch::Scratch::new();
    let file = scratch.write("secret", format!("{SECRET}\n"));
    let shop = Shop::start_with(&format!("webhook_secret_file = \"{}\"", file.display())).await;
    let receiver = Receiver::start().await;
    let users = shop.users(1_000);
    let webhook = json!({ "url": format!("http://{}/hook", receiver.upstream.address),
        "on": ["before", "step", "gate", "after", "rollback"], "retries": 1 });
    let plan = json!({ "candidate": "v2", "analysis": lenient(), "webhooks": [webhook], "steps": [
        { "percent": 20 }, { "percent": 50 }, { "gate": true }, { "percent": 100 },
    ] });
    // Once is forgiven: it is tried again. Before the second step both tries are refused.
    receiver.answers(&[500, 200, 200, 500, 500]);
    shop.begin(&plan).await;
    let rollout = shop.is("paused").await;
    let why = rollout["why"].as_str().unwrap_or_default();
    assert!(
        why.starts_with("the webhook `step` did not agree: http://127.0.0.1:")
            && why.ends_with("500 Internal Server Error"),
        "{why}"
    );
    assert_eq!(rollout["percent"], 20.0, "{rollout}");
    assert_eq!(shop.say("resume").await.status(), 200);
    shop.is("gated").await;
    assert_eq!(shop.say("promote").await.status(), 200);
    shop.is("done").await;
    let events = ["before", "before", "step", "step", "step", "step", "gate", "step", "after"];
    let heard = eventually("the last word", async || {
        let heard = receiver.heard(SECRET.as_bytes());
        if heard.len() >= events.len() { Ok(heard) } else { Err(format!("{heard:?}")) }
    })
    .await;
    assert_eq!(heard.iter().map(|(event, ..)| event.as_str()).collect::<Vec<_>>(), events, "{heard:?}");
    let steps: Vec<u64> = heard.iter().map(|(_, step, _)| *step).collect();
    assert_eq!(steps, [0, 0, 0, 1, 1, 1, 2, 3, 3], "{heard:?}");
    assert_eq!(heard[0].2, heard[1].2, "the same message again has the same name");
    let mut names: Vec<&String> = heard.iter().map(|(.., name)| name).collect();
    names.dedup();
    assert_eq!(names.len(), 7, "{heard:?}");
    users.stop().await.expect_no_failure();
}
