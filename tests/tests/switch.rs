//! Blue/green by real processes: everybody moves at once and back, nobody's request fails, and the old version may go.

use std::time::Duration;

use gilmok_tests::control_plane::ControlPlane;
use gilmok_tests::demo_app::DemoApp;
use gilmok_tests::eventually::{eventually, eventually_within};
use gilmok_tests::message::Message;
use gilmok_tests::process::Signal;
use gilmok_tests::proxy::{Proxy, ProxySettings};
use gilmok_tests::users::{Answer, Crowd, Users};
use serde_json::{Value, json};
use tokio::time::Instant;

/// Switches and rollbacks, in turns.
const TURNS: usize = 20;
/// Requests in all of them.
const REQUESTS: u64 = 100_000;

/// A colour of the service `shop`: its app runs only while it is wanted.
struct Colour {
    name: &'static str,
    /// Whether a sidecar registers it; else the one who starts it does.
    has_sidecar: bool,
    running: Option<(DemoApp, Option<Proxy>)>,
}

impl Colour {
    fn new(name: &'static str, has_sidecar: bool) -> Self {
        Self { name, has_sidecar, running: None }
    }

    /// Starts it and returns once the control plane knows it; whether proxies do is not waited for.
    async fn start(&mut self, plane: &ControlPlane) {
        let app = DemoApp::start("shop", self.name).await;
        let mut sidecar = None;
        if self.has_sidecar {
            let settings = ProxySettings::of_control_planes(&[plane.address])
                .top(&format!("node = \"{}\"", self.name))
                .app("shop", app.address, &format!("version = \"{}\"", self.name))
                .table("[drain]\nannounce = \"100ms\"\ndeadline = \"5s\"");
            sidecar = Some(Proxy::start_with(settings).await);
            alive(plane, self.name, 1).await;
        } else {
            plane.put(&format!("/v1/membership/shop/{}", self.name), &app.endpoint(self.name)).await;
        }
        self.running = Some((app, sidecar));
    }

    /// Ends it at once, as whoever is told that it is drainable may: first the app dies, and then it is taken out.
    async fn stop(&mut self, plane: &ControlPlane) {
        let (mut app, sidecar) = self.running.take().expect("it runs");
        app.process.kill().await;
        match sidecar {
            Some(mut sidecar) => assert!(sidecar.terminate().await.success(), "{}", sidecar.process.log()),
            None => {
                let path = format!("/v1/membership/shop/{}", self.name);
                assert_eq!(plane.call("DELETE", &path, None).await.status(), 204);
            }
        }
    }
}

/// Waits until so many endpoints of a version are alive, as the control plane sees it.
async fn alive(plane: &ControlPlane, version: &str, count: usize) {
    eventually(&format!("{count} of {version}"), async || {
        // 404 until somebody has said anything of the service.
        let told = plane.get("/v1/membership/shop").await.text();
        let members: Vec<Value> = serde_json::from_str(&told).unwrap_or_default();
        let is_meant =
            |member: &&Value| member["status"] == "passing" && member["endpoint"]["version"] == version;
        if members.iter().filter(is_meant).count() == count { Ok(()) } else { Err(told) }
    })
    .await;
}

async fn post(plane: &ControlPlane, path: &str, body: Value) -> Message {
    plane.call("POST", &format!("/v1/services/shop/{path}"), Some(&body)).await
}

/// What the version that lost its users still waits for.
async fn drain(plane: &ControlPlane) -> Value {
    plane.json("/v1/services/shop/traffic").await["release"]["drain"].clone()
}

/// Waits until the old version may be stopped.
async fn drainable(plane: &ControlPlane, version: &str) {
    eventually_within(Duration::from_secs(60), "the old version to be drainable", async || {
        let drain = drain(plane).await;
        assert_eq!(drain["version"], version, "{drain}");
        if drain["drainable"] == true { Ok(()) } else { Err(drain) }
    })
    .await;
}

async fn caller(plane: &ControlPlane, node: &str) -> Proxy {
    let settings = ProxySettings::of_control_planes(&[plane.address]).top(&format!("node = \"{node}\""));
    Proxy::start_with(settings.table("[workers]\ncount = 2")).await
}

async fn says(proxy: &Proxy, version: &str) {
    eventually(version, async || {
        let answer = proxy.get("shop", "/").await;
        let said = gilmok_tests::users::version_of(&answer);
        if answer.status() == 200 && said == version { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
}

/// When everybody was told to go where.
struct Turn {
    to: &'static str,
    began: Instant,
    /// When everybody was told to go back.
    ended: Option<Instant>,
}

impl Turn {
    /// Whether this is of the turn alone: what was asked for before its end and decided behind it is of the next one.
    fn has(&self, answer: &Answer) -> bool {
        answer.asked >= self.began && self.ended.is_none_or(|ended| answer.answered < ended)
    }

    /// When the first answer of the new version came, and the last one of the old version that was asked for after it.
    fn overlap(&self, answers: &[Answer]) -> Option<Duration> {
        let own = answers.iter().filter(|answer| self.has(answer));
        let new = own.clone().filter(|answer| answer.version == self.to);
        let first = new.map(|answer| answer.answered).min().expect("somebody sees the new version");
        let late = own.filter(|answer| answer.version != self.to && answer.asked > first);
        late.map(|answer| answer.answered.duration_since(first)).max()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_requests_across_twenty_switches_and_rollbacks_lose_nothing() {
    let plane = ControlPlane::start().await;
    let (mut blue, mut green) = (Colour::new("blue", false), Colour::new("green", true));
    let traffic = json!({ "stable": "blue", "weights": { "blue": 100 } });
    plane.put("/v1/services/shop", &json!({ "traffic": traffic })).await;
    blue.start(&plane).await;
    let proxies = [caller(&plane, "one").await, caller(&plane, "two").await];
    for proxy in &proxies {
        says(proxy, "blue").await;
    }
    // The page on which the app says most would take longer than all the rest.
    let crowd = Crowd { path: "/healthz".to_owned(), ..Crowd::of("shop", 40) };
    let crowds = proxies.each_ref().map(|proxy| Users::start(proxy.outbound(), &crowd));
    let answered = || crowds.iter().map(Users::answered).sum::<u64>();
    let mut turns: Vec<Turn> = Vec::new();
    for turn in 0..TURNS {
        let (from, to) = if turn % 2 == 0 { (&mut blue, &mut green) } else { (&mut green, &mut blue) };
        to.start(&plane).await;
        let began = Instant::now();
        if let Some(before) = turns.last_mut() {
            before.ended = Some(began);
        }
        turns.push(Turn { to: to.name, began, ended: None });
        // Some wait until every proxy says so, others do not.
        let terms = if turn % 3 == 0 { "?wait=30s" } else { "" };
        let answer = if turn % 2 == 0 {
            post(&plane, &format!("switch{terms}"), json!({ "to": "green" })).await
        } else {
            post(&plane, &format!("rollback{terms}"), json!({})).await
        };
        assert_eq!(answer.status(), 200, "{answer:?}");
        assert!(terms.is_empty() || answer.text().contains("\"converged\":true"), "{answer:?}");
        drainable(&plane, from.name).await;
        from.stop(&plane).await;
        let goal = REQUESTS / TURNS as u64 * (turn as u64 + 1);
        crowds[turn % 2].flow(goal.saturating_sub(answered()) / 2).await;
        crowds[1 - turn % 2].flow(goal.saturating_sub(answered())).await;
    }
    let mut heard = Vec::new();
    for users in crowds {
        let through_one = users.stop().await;
        through_one.expect_no_failure();
        for turn in &turns {
            let overlap = turn.overlap(&through_one.answers);
            assert_eq!(overlap, None, "through one proxy nobody sees the old version again: to {}", turn.to);
        }
        heard.extend(through_one.answers);
    }
    assert!(heard.len() as u64 >= REQUESTS, "{}", heard.len());
    let mut windows: Vec<Duration> =
        turns.iter().map(|turn| turn.overlap(&heard).unwrap_or_default()).collect();
    windows.sort();
    println!(
        "{} requests, {TURNS} switches and rollbacks; two proxies answered with both versions for {:?} (median), {:?} (longest)",
        heard.len(),
        windows[TURNS / 2],
        windows[TURNS - 1],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_is_cut_off_keeps_the_old_version_until_its_time_is_up() {
    let plane = ControlPlane::start().await;
    let (mut blue, mut green) = (Colour::new("blue", false), Colour::new("green", false));
    let traffic = json!({ "stable": "blue", "weights": { "blue": 100 }, "drain_timeout": "4s" });
    plane.put("/v1/services/shop", &json!({ "traffic": traffic })).await;
    blue.start(&plane).await;
    green.start(&plane).await;
    let (near, far) = (caller(&plane, "near").await, caller(&plane, "far").await);
    says(&near, "blue").await;
    says(&far, "blue").await;
    far.process.signal(Signal::Stop).await;
    let answer = post(&plane, "switch?wait=1s", json!({ "to": "green" })).await;
    assert_eq!(answer.status(), 202, "{answer:?}");
    let told: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((&told["converged"], &told["lagging"]), (&json!(false), &json!(["far"])), "{told}");
    says(&near, "green").await;
    let waits = drain(&plane).await;
    assert_eq!(
        (&waits["drainable"], &waits["waiting_for"][0]["proxy"]),
        (&json!(false), &json!("far")),
        "{waits}"
    );
    drainable(&plane, "blue").await;
    let over = drain(&plane).await;
    assert!(over["why"].as_str().is_some_and(|why| why.contains("its time is up; far")), "{over}");
    let at_ms = plane.json("/v1/services/shop/traffic").await["release"]["at_ms"].clone();
    assert_eq!(over["deadline_ms"].as_u64(), at_ms.as_u64().map(|at| at + 4_000), "{over}");
    far.process.signal(Signal::Continue).await;
    says(&far, "green").await;
    eventually("nobody to be waited for", async || {
        let drain = drain(&plane).await;
        if drain["waiting_for"] == json!([]) { Ok(()) } else { Err(drain) }
    })
    .await;
}

/// A host by its address: one proxy with both colours beside it, of which the blue one runs.
struct Host {
    address: &'static str,
    green_at: String,
    green: Option<DemoApp>,
    _blue: DemoApp,
    _proxy: Proxy,
}

impl Host {
    async fn start(plane: &ControlPlane, address: &'static str) -> Self {
        let blue = DemoApp::start_at(&format!("{address}:0"), "shop", "blue").await;
        let free = tokio::net::TcpListener::bind((address, 0)).await.expect("a free port");
        let green_at = free.local_addr().expect("an address").to_string();
        drop(free);
        let app = |version: &str, at: &str| {
            format!(
                "[[apps]]\nservice = \"shop\"\nversion = \"{version}\"\naddress = \"{at}\"\ninbound = \"{address}:0\"\n\
                 health_check = {{ path = \"/healthz\", interval = \"200ms\" }}\n"
            )
        };
        let settings = ProxySettings::of_control_planes(&[plane.address])
            .top(&format!("node = \"{address}\""))
            .table(&app("blue", &blue.address.to_string()))
            .table(&app("green", &green_at));
        let proxy = Proxy::start_with(settings).await;
        Self { address, green_at, green: None, _blue: blue, _proxy: proxy }
    }

    async fn start_green(&mut self) {
        self.green = Some(DemoApp::start_at(&self.green_at, "shop", "green").await);
    }
}

async fn mesh_of(addresses: &[&'static str]) -> (ControlPlane, Vec<Host>, Proxy) {
    let plane = ControlPlane::start().await;
    let traffic = json!({ "stable": "blue", "weights": { "blue": 100 } });
    plane.put("/v1/services/shop", &json!({ "traffic": traffic })).await;
    let mut hosts = Vec::new();
    for address in addresses {
        hosts.push(Host::start(&plane, address).await);
    }
    alive(&plane, "blue", addresses.len()).await;
    let proxy = caller(&plane, "caller").await;
    says(&proxy, "blue").await;
    (plane, hosts, proxy)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_versions_beside_one_proxy_are_switched_all_at_once() {
    let (plane, mut hosts, proxy) = mesh_of(&["127.0.0.2"]).await;
    let users = Users::start(proxy.outbound(), &Crowd::of("shop", 20));
    users.flow(100).await;
    let answer = post(&plane, "switch", json!({ "to": "green" })).await;
    assert_eq!(answer.status(), 422, "nobody has heard of it yet: {answer:?}");
    hosts[0].start_green().await;
    alive(&plane, "green", 1).await;
    let answer = post(&plane, "switch?wait=30s", json!({ "to": "green" })).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    users.flow(200).await;
    let answer = post(&plane, "rollback?wait=30s", json!({})).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    users.flow(200).await;
    let heard = users.stop().await;
    heard.expect_no_failure();
    for (user, path) in heard.paths() {
        assert!(
            ["blue", "green", "blue"].starts_with(&path.iter().map(String::as_str).collect::<Vec<_>>()),
            "{user}: {path:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn host_by_host_each_host_brings_its_part_of_the_users() {
    let (plane, mut hosts, proxy) = mesh_of(&["127.0.0.2", "127.0.0.3"]).await;
    let users = Users::start(proxy.outbound(), &Crowd::of("shop", 200));
    hosts[0].start_green().await;
    alive(&plane, "green", 1).await;
    let plan = json!({ "candidate": "green", "preset": "OneAtATime",
        "analysis": { "floor_percent": 25, "alpha": 0.05, "latency": false } });
    let answer = plane.call("PUT", "/v1/services/shop/rollout", Some(&plan)).await;
    assert_eq!(answer.status(), 201, "{answer:?}");
    let rollout = async || plane.json("/v1/services/shop/rollout").await;
    eventually_within(
        Duration::from_secs(60),
        "half of the users, and the second host waited for",
        async || {
            let told = rollout().await;
            let why = told["why"].as_str().unwrap_or_default();
            let waits =
                told["percent"] == 50.0 && told["state"] == "waiting" && why.contains("1 of the 2 endpoints");
            if waits { Ok(()) } else { Err(told) }
        },
    )
    .await;
    users.flow(400).await;
    assert_eq!(rollout().await["percent"], 50.0, "it waits for {}", hosts[1].address);
    hosts[1].start_green().await;
    eventually_within(Duration::from_secs(60), "the end", async || {
        let told = rollout().await;
        if told["state"] == "done" { Ok(()) } else { Err(told) }
    })
    .await;
    users.flow(400).await;
    says(&proxy, "green").await;
    let heard = users.stop().await;
    heard.expect_no_failure();
    for (user, path) in heard.paths() {
        assert!(path == ["blue"] || path == ["blue", "green"] || path == ["green"], "user-{user}: {path:?}");
    }
}
