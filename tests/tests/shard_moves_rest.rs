//! Moves of shards by REST and command line against a real control plane: its sidecars are played, its webhooks heard, and it is
//! killed.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gilmok_tests::control_plane::{ControlPlane, call};
use gilmok_tests::eventually::eventually;
use gilmok_tests::operator::gilmok;
use gilmok_tests::process::Signal;
use gilmok_tests::scratch::Scratch;
use gilmok_tests::upstream::Upstream;
use serde_json::{Value as Json, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

const MOVES: &str = "/v1/services/profile/sharding/moves";

/// A service of two shards with a place for four, all of them behind sidecars.
async fn profile(plane: &ControlPlane) {
    let endpoints: Vec<Json> = (0..4)
        .map(|shard| json!({ "address": address(shard), "shard": shard.to_string(), "inbound": true }))
        .collect();
    let sharding = json!({
        "key": "path_segment:2", "strategy": "slots", "map": { "0": "0-8191", "1": "8192-16383" },
    });
    plane.put("/v1/services/profile", &json!({ "endpoints": endpoints, "sharding": sharding })).await;
}

fn address(shard: usize) -> String {
    format!("127.0.0.1:{}", 20_000 + shard)
}

/// What a sidecar does about batches that are closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Closes them and says so.
    Prompt,
    /// Runs what names them, and never says that it has closed one.
    Stubborn,
}

/// The sidecars of all shards, as far as a control plane can tell.
struct Sidecars {
    manner: watch::Sender<Manner>,
    /// Ends with the test's runtime.
    task: JoinHandle<()>,
}

impl Sidecars {
    fn start(plane: SocketAddr) -> Self {
        let (manner, mut manners) = watch::channel(Manner::Prompt);
        let task = tokio::spawn(async move {
            loop {
                let manner = *manners.borrow_and_update();
                // A control plane that is killed answers nothing for a moment.
                let _told = Self::report(plane, manner).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Self { manner, task }
    }

    async fn report(plane: SocketAddr, manner: Manner) -> Option<()> {
        let limit = Duration::from_secs(5);
        let get = async |path: &str| {
            let answer = call(plane, "GET", path, None, limit).await.ok()?;
            serde_json::from_slice::<Json>(&answer.body).ok()
        };
        let status = get("/v1/status").await?;
        let told = get("/v1/services/profile/sharding").await?;
        let closed = told["sharding"]["next"]["closed"].as_u64().filter(|_| manner == Manner::Prompt);
        let fence = closed.map(|closed| json!({ "service": "profile", "closed": closed, "persisted": true }));
        for shard in 0..4 {
            let ack = json!({
                "node": format!("sidecar-{shard}"), "instance": "1", "wire": 1,
                "applied": { "store": status["store"], "revision": status["revision"], "hash": status["hash"] },
                "apps": [{ "service": "profile", "shard": shard.to_string(), "address": address(shard) }],
                "fences": fence.iter().collect::<Vec<_>>(),
            });
            call(plane, "POST", "/v1/feed/acks", Some(&ack), limit).await.ok()?;
        }
        Some(())
    }

    fn are(&self, manner: Manner) {
        self.manner.send_replace(manner);
    }
}

impl Drop for Sidecars {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What is answered to messages of an event, one after the other; 0 is no answer.
type Answers = VecDeque<(&'static str, u16)>;

/// Who copies: answers the messages of each event as it was told to, and then with 200.
struct Copier {
    upstream: Upstream,
    /// A mutex: taken for an answer a message.
    answers: Arc<Mutex<Answers>>,
}

impl Copier {
    async fn start() -> Self {
        let answers = Arc::<Mutex<Answers>>::default();
        let said = Arc::clone(&answers);
        let upstream = Upstream::start(move |mut conversation| {
            let said = Arc::clone(&said);
            async move {
                while let Some(message) = conversation.request().await {
                    let told: Json = serde_json::from_slice(&message.body).unwrap_or_default();
                    let status = {
                        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                        let at = said.iter().position(|(event, _)| told["event"] == *event);
                        at.and_then(|at| said.remove(at)).map_or(200, |(_, status)| status)
                    };
                    if status == 0 {
                        conversation.hang().await;
                        return;
                    }
                    let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n");
                    if !conversation.send(answer).await {
                        return;
                    }
                }
            }
        })
        .await;
        Self { upstream, answers }
    }

    fn answers(&self, answers: &[(&'static str, u16)]) {
        *self.answers.lock().unwrap_or_else(PoisonError::into_inner) = answers.iter().copied().collect();
    }

    fn url(&self) -> String {
        format!("http://{}/hook", self.upstream.address)
    }

    fn heard(&self) -> Vec<Json> {
        let requests = self.upstream.requests().into_iter();
        requests.map(|request| serde_json::from_slice(&request.body).expect("JSON")).collect()
    }

    /// Each message once: the same may come twice.
    fn events(&self) -> Vec<String> {
        let mut numbers = BTreeSet::new();
        let heard = self.heard().into_iter().filter(|told| numbers.insert(told["number"].as_u64()));
        heard.map(|told| told["event"].as_str().unwrap_or_default().to_owned()).collect()
    }
}

async fn begin(plane: &ControlPlane, body: &Json) -> u64 {
    let answer = plane.call("POST", MOVES, Some(body)).await;
    assert_eq!(answer.status(), 201, "{answer:?}");
    serde_json::from_slice::<Json>(&answer.body).expect("JSON")["revision"].as_u64().expect("its id")
}

async fn is(plane: &ControlPlane, id: u64, state: &str) -> Json {
    eventually(&format!("the move to be {state}"), async || {
        let moving = plane.json(&format!("{MOVES}/{id}")).await;
        if moving["state"] == state { Ok(moving) } else { Err(moving.to_string()) }
    })
    .await
}

async fn say(plane: &ControlPlane, id: u64, word: &str) -> u16 {
    plane.call("POST", &format!("{MOVES}/{id}/{word}"), Some(&json!({}))).await.status()
}

fn four() -> Json {
    json!({ "shards": ["0", "1", "2", "3"], "last_copy": "none" })
}

/// A control plane that can sign messages.
async fn signing() -> ControlPlane {
    let scratch = Scratch::new();
    let file = scratch.write("secret", "nobody else knows this\n");
    ControlPlane::start_with(&format!("webhook_secret_file = \"{}\"", file.display()), scratch).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_is_planned_begun_and_steered_by_rest() {
    let plane = ControlPlane::start().await;
    profile(&plane).await;
    let answer = plane.call("POST", "/v1/services/profile/sharding/plan", Some(&four())).await;
    let plan: Json = serde_json::from_slice(&answer.body).expect("JSON");
    assert_eq!(
        (&plan["moves_percent"], plan["batches"].as_array().map(Vec::len)),
        (&json!(50.0), Some(2)),
        "{plan}"
    );
    assert_eq!(plan["rule"]["map"]["2"], "4096-8191", "{plan}");
    let dry = plane.call("POST", &format!("{MOVES}?dry_run=true"), Some(&four())).await;
    let dry: Json = serde_json::from_slice(&dry.body).expect("JSON");
    assert_eq!((&dry["changed"], &dry["plan"]["batches"]), (&json!(true), &plan["batches"]));
    assert_eq!(plane.json(MOVES).await, json!([]), "nothing was begun");

    for (method, path, body, status, words) in [
        ("POST", MOVES, json!({ "shards": ["0", "0"] }), 422, "nothing was changed"),
        ("POST", MOVES, json!({ "shards": ["0", "1"] }), 409, "nothing moves"),
        ("POST", MOVES, json!({ "colour": "red" }), 422, "unknown field `colour`"),
        ("POST", MOVES, json!({ "shards": ["0", "1", "2", "3"] }), 422, "would be lost"),
        ("POST", "/v1/services/none/sharding/moves", four(), 404, "there is no service `none`"),
        ("POST", "/v1/services/none/sharding/plan", four(), 404, "there is no service `none`"),
        ("GET", "/v1/services/none/sharding/moves", Json::Null, 404, "there is no service `none`"),
        ("GET", "/v1/services/profile/sharding/moves/9", Json::Null, 404, "there is no move 9"),
        ("POST", "/v1/services/profile/sharding/moves/9/pause", json!({}), 404, "there is no move 9"),
        ("GET", "/v1/services/profile/sharding/moves/last", Json::Null, 400, ""),
    ] {
        let answer = plane.call(method, path, Some(&body)).await;
        assert!(
            answer.status() == status && answer.text().contains(words),
            "{method} {path} {body}: {answer:?}"
        );
    }
    let told = json!({ "shards": ["0", "1", "2", "3"], "webhooks": [{ "url": "http://127.0.0.1:1/", "on": ["fenced"] }] });
    let answer = plane.call("POST", MOVES, Some(&told)).await;
    assert!(answer.status() == 422 && answer.text().contains("webhook_secret_file"), "{answer:?}");

    let sidecars = Sidecars::start(plane.address);
    let id = begin(&plane, &four()).await;
    let moving = is(&plane, id, "copying").await;
    assert!(moving["why"].as_str().is_some_and(|why| why.contains("`resume`")), "{moving}");
    let again = plane.call("POST", MOVES, Some(&four())).await;
    assert!(again.status() == 409 && again.text().contains("gilmok shards reverse profile"), "{again:?}");
    let map = json!({ "sharding": { "map": { "0": "0-16383", "1": "" } } });
    let changed = plane.call("PATCH", "/v1/services/profile", Some(&map)).await;
    assert!(changed.status() == 409 && changed.text().contains("gilmok shards move profile"), "{changed:?}");
    let told = plane.json("/v1/services/profile/sharding").await;
    assert_eq!((&told["move"]["id"], &told["move"]["state"]), (&json!(id), &json!("copying")), "{told}");
    let metrics = plane.get("/metrics").await.text();
    assert!(metrics.contains("gilmok_shard_move_batches_left{service=\"profile\"} 2"), "{metrics}");

    // Nobody closes it: it is opened again, and says who was missing.
    sidecars.are(Manner::Stubborn);
    assert_eq!(say(&plane, id, "resume").await, 200);
    let paused = is(&plane, id, "paused").await;
    let why = paused["why"].as_str().unwrap_or_default();
    assert!(why.starts_with("it was not fenced within 2 s: sidecar-0 (has not closed it yet)"), "{paused}");
    assert_eq!(plane.json("/v1/services/profile/sharding").await["sharding"]["next"]["closed"], Json::Null);
    assert_eq!(say(&plane, id, "pause").await, 409);
    sidecars.are(Manner::Prompt);
    assert_eq!(say(&plane, id, "resume").await, 200);
    eventually("the second batch", async || {
        let moving = plane.json(&format!("{MOVES}/{id}")).await;
        if moving["moved"] == 1 && moving["state"] == "copying" { Ok(()) } else { Err(moving.to_string()) }
    })
    .await;
    assert_eq!(say(&plane, id, "resume").await, 200);
    is(&plane, id, "done").await;
    let told = plane.json("/v1/services/profile/sharding").await;
    assert_eq!((&told["move"], &told["rule"]["epoch"]), (&Json::Null, &json!(2)), "{told}");
    let metrics = plane.get("/metrics").await.text();
    for line in ["result=\"moved\"} 2", "result=\"reopened\"} 1"] {
        assert!(
            metrics.contains(&format!("gilmok_shard_moves_total{{service=\"profile\",{line}")),
            "{metrics}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copier_is_asked_to_copy_and_told_the_rest_in_order() {
    let plane = signing().await;
    profile(&plane).await;
    let _sidecars = Sidecars::start(plane.address);
    let copier = Copier::start().await;
    let on = ["copy", "fenced", "moved", "done", "paused", "reversed"];
    let mut body = four();
    body["webhooks"] = json!([{ "url": copier.url(), "on": on, "retries": 0 }]);
    // The first copy is only begun; and the last words of the second batch are not copied in time.
    copier.answers(&[("copy", 202), ("fenced", 200), ("fenced", 0)]);
    let id = begin(&plane, &body).await;
    eventually("the copy to have begun", async || {
        let moving = plane.json(&format!("{MOVES}/{id}")).await;
        let why = moving["why"].as_str().unwrap_or_default().to_owned();
        if why.starts_with("the webhook `copy` has begun") { Ok(()) } else { Err(why) }
    })
    .await;
    assert_eq!(say(&plane, id, "resume").await, 200, "the job is done");
    let paused = is(&plane, id, "paused").await;
    let why = paused["why"].as_str().unwrap_or_default();
    assert!(why.contains("the webhook `fenced` did not agree"), "{paused}");
    assert_eq!(paused["moved"], 1, "{paused}");
    assert_eq!(say(&plane, id, "resume").await, 200);
    is(&plane, id, "done").await;
    let expected = ["copy", "fenced", "moved", "copy", "fenced", "paused", "copy", "fenced", "moved", "done"];
    eventually("the last word", async || {
        let mut heard = copier.events();
        // What is told is not waited for, so it may come later than what is asked next.
        let mut sorted = expected.map(str::to_owned);
        heard.sort_unstable();
        sorted.sort_unstable();
        if heard == sorted { Ok(()) } else { Err(format!("{:?}", copier.events())) }
    })
    .await;
    let heard = copier.heard();
    let asked: Vec<&Json> =
        heard.iter().filter(|told| told["event"] == "copy" || told["event"] == "fenced").collect();
    let first = asked[0];
    assert_eq!(
        (&first["batch"]["from"], &first["batch"]["to"], &first["batch"]["detail"]),
        (&json!("0"), &json!("2"), &json!({ "slots": [[4096, 8191]] })),
        "{first}"
    );
    assert_eq!(
        (&first["endpoints"]["to"][0]["address"], &first["rule"]["map"]["0"], &first["next"]["map"]["0"]),
        (&json!(address(2)), &json!("0-8191"), &json!("0-4095")),
        "{first}"
    );
    assert!(asked[1]["closed"].is_u64() && first["closed"].is_null(), "{heard:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_is_killed_in_any_stage_goes_on_or_back() {
    let mut plane = ControlPlane::start().await;
    profile(&plane).await;
    let sidecars = Sidecars::start(plane.address);
    let id = begin(&plane, &four()).await;
    is(&plane, id, "copying").await;
    plane = plane.restart_after(Signal::Kill, "").await;
    is(&plane, id, "copying").await;
    // While it is closed: nobody answers it, and it is killed before its two seconds are over.
    sidecars.are(Manner::Stubborn);
    assert_eq!(say(&plane, id, "resume").await, 200);
    is(&plane, id, "handover").await;
    plane = plane.restart_after(Signal::Kill, "").await;
    is(&plane, id, "paused").await;
    let sharding = &plane.json("/v1/services/profile").await["sharding"];
    assert_eq!((&sharding["next"]["closed"], &sharding["map"]["0"]), (&Json::Null, &json!("0-8191")));
    sidecars.are(Manner::Prompt);
    assert_eq!(say(&plane, id, "resume").await, 200);
    let moved = eventually("the batch to have moved", async || {
        let moving = plane.json(&format!("{MOVES}/{id}")).await;
        if moving["moved"] == 1 { Ok(moving) } else { Err(moving.to_string()) }
    })
    .await;
    let what: Vec<&str> = moved["history"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|event| event["what"].as_str())
        .collect();
    assert_eq!(what.iter().filter(|what| **what == "moved").count(), 1, "{what:?}");
    plane = plane.restart_after(Signal::Kill, "").await;
    assert_eq!(say(&plane, id, "reverse").await, 200);
    is(&plane, id, "copying").await;
    assert_eq!(say(&plane, id, "resume").await, 200);
    let back = is(&plane, id, "reversed").await;
    assert_eq!((&back["moved"], &back["direction"]), (&json!(0), &json!("back")));
    let sharding = &plane.json("/v1/services/profile").await["sharding"];
    assert_eq!(
        (&sharding["map"], &sharding["epoch"]),
        (&json!({ "0": "0-8191", "1": "8192-16383" }), &json!(2))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_move_shards_with_words() {
    let plane = signing().await;
    profile(&plane).await;
    let sidecars = Sidecars::start(plane.address);
    let copier = Copier::start().await;
    let shards = ["profile", "--shards", "0,1,2,3"];
    let planned = gilmok(&plane, &[&["shards", "plan"][..], &shards].concat()).await;
    let expected = "profile: 50 % of the keys would move, in 2 batches

BATCH  FROM  TO  KEYS               SHARE
1      0     2   slots 4096-8191    25 %
2      1     3   slots 12288-16383  25 %\n";
    assert!(planned.code == 0 && planned.out.starts_with(expected), "{planned:?}");
    let dry =
        gilmok(&plane, &[&["shards", "move"][..], &shards, &["--dry-run", "--last-copy", "none"]].concat())
            .await;
    assert_eq!((dry.code, &dry.out), (0, &planned.out));
    let none = gilmok(&plane, &["shards", "pause", "profile"]).await;
    assert!(
        none.code == 1 && none.err.contains("`gilmok shards move profile --shards NAMES` begins one"),
        "{none:?}"
    );

    let url = copier.url();
    let more = ["--webhook", url.as_str(), "--on", "copy,fenced", "--wait", "--reason", "growing"];
    let moved = gilmok(&plane, &[&["shards", "move"][..], &shards, &more].concat()).await;
    assert_eq!(moved.code, 0, "{moved:?}");
    let lines: Vec<&str> = moved.out.lines().collect();
    assert!(lines[0].starts_with("the move 2 of the shards of profile has begun: revision 2"), "{moved:?}");
    assert!(lines.last().is_some_and(|line| line.starts_with("done, 2 of 2 batches moved")), "{moved:?}");

    // Back by hand, and nobody closes anything at first.
    sidecars.are(Manner::Stubborn);
    let back = ["shards", "move", "profile", "--shards", "0,1", "--last-copy", "none", "--json"];
    let id = gilmok(&plane, &back).await.json()["revision"].as_u64().expect("its id");
    is(&plane, id, "copying").await;
    assert_eq!(gilmok(&plane, &["shards", "resume", "profile"]).await.code, 0);
    is(&plane, id, "paused").await;
    let told = gilmok(&plane, &["shards", "moves", "profile", &id.to_string(), "--history"]).await;
    for words in [
        "0 of 2 batches",
        "it was not fenced within 2 s: sidecar-2 (has not closed it yet)",
        "`gilmok shards resume profile` goes on, `gilmok shards reverse profile` goes back",
        "WHEN",
    ] {
        assert!(told.out.contains(words), "{words}: {}", told.out);
    }
    let again = gilmok(&plane, &["shards", "pause", "profile"]).await;
    assert!(again.code == 1 && again.err.contains("it is paused already"), "{again:?}");
    let reversed = gilmok(&plane, &["shards", "reverse", "profile", "--reason", "not today"]).await;
    assert!(reversed.out.contains("goes the other way: revision"), "{reversed:?}");
    let listed = gilmok(&plane, &["shards", "moves", "profile"]).await;
    let rows: Vec<&str> = listed.out.lines().collect();
    assert!(rows.len() == 3 && rows[1].contains("reversed") && rows[2].contains("done"), "{listed:?}");
    let json = gilmok(&plane, &["shards", "moves", "profile", "--json"]).await.json();
    assert_eq!((&json[0]["id"], &json[1]["by"]), (&json!(id), &json!("kim")));
}
