//! The mirror of a real Consul: who comes, who goes, how fast, and what happens when the agent misbehaves.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use gilmok_config::name::ServiceName;
use gilmok_control_plane::http_client::{Client, Origin, Request, Settings as HttpSettings, TlsSettings};
use gilmok_control_plane::membership::consul::{Consul as Mirror, Settings, start};
use gilmok_control_plane::membership::{Status, View};
use gilmok_tests::consul::{Consul, free_port};
use gilmok_tests::eventually::{SOON, eventually};
use gilmok_tests::process::Signal;
use gilmok_tests::relay::Relay;
use gilmok_tests::scratch::Scratch;
use gilmok_tests::source_tree;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// A mirror of a real Consul, of the service `ads` unless said otherwise.
struct Scene {
    mirror: Mirror,
    _names: watch::Sender<BTreeSet<ServiceName>>,
}

impl Scene {
    fn of(origin: Origin, adjust: impl FnOnce(&mut Settings)) -> Self {
        Self::of_services(origin, adjust, ["ads"])
    }

    fn of_services<N: AsRef<str>>(
        origin: Origin,
        adjust: impl FnOnce(&mut Settings),
        names: impl IntoIterator<Item = N>,
    ) -> Self {
        let mut settings = Settings::at(origin);
        adjust(&mut settings);
        let names = names.into_iter().map(|name| ServiceName::parse(name.as_ref()).expect("a sound name"));
        let names = watch::Sender::new(names.collect());
        let mirror = start(settings, &Arc::default(), names.subscribe()).expect("plain http needs no files");
        Self { mirror, _names: names }
    }

    async fn until(&mut self, told: &str, test: impl FnMut(&Arc<View>) -> bool) {
        let reached = timeout(SOON, self.mirror.view.wait_for(test)).await.is_ok();
        assert!(reached, "{told}: {:?}", self.mirror.view.borrow());
    }

    /// Waits until these instances and no others receive traffic.
    async fn shows(&mut self, ids: &[&str]) {
        self.until(&format!("{ids:?}"), |view| alive(view) == ids).await;
    }

    /// Fails when anything else receives traffic within a time.
    async fn keeps(&mut self, ids: &[&str], time: Duration) {
        let other = timeout(time, self.mirror.view.wait_for(|view| alive(view) != ids)).await;
        let other = other.ok().map(|view| alive(&view.expect("the mirror runs")));
        assert!(other.is_none(), "{other:?} instead of {ids:?}");
    }

    /// Fails when any of these stops receiving traffic within a time.
    async fn keeps_at_least(&mut self, ids: &[&str], time: Duration) {
        let lost = |view: &Arc<View>| {
            let alive = alive(view);
            ids.iter().any(|id| !alive.iter().any(|other| other == id))
        };
        let lost = timeout(time, self.mirror.view.wait_for(lost)).await;
        let lost = lost.ok().map(|view| alive(&view.expect("the mirror runs")));
        assert!(lost.is_none(), "{lost:?} lacks one of {ids:?}");
    }

    fn status(&self, id: &str) -> Status {
        let view = self.mirror.view.borrow();
        view.members.values().flatten().find(|member| member.id == id).expect("it is known").status
    }
}

/// The ids of what receives traffic.
fn alive(view: &View) -> Vec<String> {
    let endpoints: Vec<_> = view.endpoints.values().flat_map(|list| list.iter()).collect();
    let members = view.members.values().flatten();
    let mut ids: Vec<String> = members
        .filter(|member| endpoints.contains(&&member.endpoint))
        .map(|member| member.id.clone())
        .collect();
    ids.sort();
    ids
}

async fn with_three(consul: &Consul) {
    for (id, port) in [("a", 9_001), ("b", 9_002), ("c", 9_003)] {
        consul.register("ads", id, port, json!({})).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_come_and_go() {
    let consul = Consul::start().await;
    with_three(&consul).await;
    let mut scene = Scene::of(consul.origin(), |_| {});
    scene.shows(&["a", "b", "c"]).await;
    for _ in 0..10 {
        consul.register("ads", "d", 9_004, json!({ "Meta": { "version": "v2" } })).await;
        scene.shows(&["a", "b", "c", "d"]).await;
        consul.deregister("d").await;
        scene.shows(&["a", "b", "c"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_is_what_its_registration_says() {
    let consul = Consul::start().await;
    let meta =
        json!({ "version": "v2", "shard": "3", "role": "replica", "zone": "eu", "gilmok-inbound": "true" });
    let check = json!({ "CheckID": "t", "TTL": "1h", "Status": "warning" });
    let more = json!({ "Meta": meta, "Weights": { "Passing": 9, "Warning": 4 }, "Check": check });
    consul.register("ads", "a", 9_001, more).await;
    consul.register("ads", "b", 9_002, json!({ "Address": "", "Tags": ["version=v1", "priority=1"] })).await;
    let mut scene = Scene::of(consul.origin(), |_| {});
    scene.shows(&["a", "b"]).await;
    let endpoints =
        serde_json::to_value(scene.mirror.view.borrow().endpoints.values().next().unwrap().to_vec());
    let expected = json!([
        { "address": "127.0.0.1:9001", "version": "v2", "shard": "3", "role": "replica", "zone": "eu", "weight": 4,
          "inbound": true },
        { "address": "127.0.0.1:9002", "version": "v1", "priority": 1 },
    ]);
    assert_eq!(endpoints.unwrap(), expected);
    assert_eq!(scene.status("a"), Status::Warning);
}

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_takes_out_at_once_and_says_why() {
    let consul = Consul::start().await;
    with_three(&consul).await;
    let mut scene = Scene::of(consul.origin(), |_| {});
    scene.shows(&["a", "b", "c"]).await;
    consul.put("/v1/agent/service/maintenance/b?enable=true&reason=disk", &json!(null)).await;
    scene.shows(&["a", "c"]).await;
    assert_eq!(scene.status("b"), Status::Maintenance);
    consul.put("/v1/agent/service/maintenance/b?enable=false", &json!(null)).await;
    scene.shows(&["a", "b", "c"]).await;
    // The whole agent: everything on it goes, and that is confirmed for two seconds.
    let begin = Instant::now();
    consul.put("/v1/agent/maintenance?enable=true&reason=move", &json!(null)).await;
    scene.shows(&[]).await;
    assert!(begin.elapsed() >= Duration::from_secs(2), "{:?}", begin.elapsed());
    consul.put("/v1/agent/maintenance?enable=false", &json!(null)).await;
    scene.shows(&["a", "b", "c"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_critical_check_of_the_node_takes_all_of_it_out_after_it_is_confirmed() {
    let consul = Consul::start().await;
    with_three(&consul).await;
    let mut scene = Scene::of(consul.origin(), |_| {});
    scene.shows(&["a", "b", "c"]).await;
    let check = json!({ "Name": "disk", "ID": "disk", "TTL": "1h", "Status": "passing" });
    consul.put("/v1/agent/check/register", &check).await;
    consul.put("/v1/agent/check/fail/disk", &json!(null)).await;
    scene.keeps(&["a", "b", "c"], Duration::from_secs(1)).await;
    consul.put("/v1/agent/check/pass/disk", &json!(null)).await;
    scene.keeps(&["a", "b", "c"], Duration::from_secs(2)).await;
    consul.put("/v1/agent/check/fail/disk", &json!(null)).await;
    scene.shows(&[]).await;
    consul.put("/v1/agent/check/pass/disk", &json!(null)).await;
    scene.shows(&["a", "b", "c"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn registering_again_takes_nothing_out() {
    let consul = Consul::start().await;
    let check = || json!({ "Check": { "CheckID": "t-c", "TTL": "1h" } });
    with_three(&consul).await;
    consul.register("ads", "c", 9_003, check()).await;
    consul.put("/v1/agent/check/pass/t-c", &json!(null)).await;
    let mut scene = Scene::of(consul.origin(), |_| {});
    scene.shows(&["a", "b", "c"]).await;
    for _ in 0..5 {
        // A registration begins critical until its first heartbeat.
        let critical = json!({ "Check": { "CheckID": "t-c", "TTL": "1h", "Status": "critical" } });
        consul.register("ads", "c", 9_003, critical).await;
        scene.keeps(&["a", "b", "c"], Duration::from_millis(100)).await;
        consul.put("/v1/agent/check/pass/t-c", &json!(null)).await;
        scene.keeps(&["a", "b", "c"], Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_restarts_is_followed_at_once_though_it_counts_anew() {
    let mut consul = Consul::start().await;
    with_three(&consul).await;
    // Let its index grow well beyond what a fresh agent begins with.
    for turn in 0..30 {
        consul.register("other", "o", 9_100 + turn, json!({})).await;
    }
    let mut scene = Scene::of(consul.origin(), |_| {});
    scene.shows(&["a", "b", "c"]).await;
    consul.stop();
    scene.keeps(&["a", "b", "c"], Duration::from_secs(3)).await;
    consul.start_again().await;
    with_three(&consul).await;
    consul.register("ads", "d", 9_004, json!({})).await;
    scene.shows(&["a", "b", "c", "d"]).await;
    consul.deregister("d").await;
    scene.shows(&["a", "b", "c"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_hangs_changes_nothing_and_is_followed_when_it_wakes() {
    let consul = Consul::start().await;
    with_three(&consul).await;
    let mut scene = Scene::of(consul.origin(), |_| {});
    scene.shows(&["a", "b", "c"]).await;
    consul.signal(Signal::Stop).await;
    scene.keeps(&["a", "b", "c"], Duration::from_secs(3)).await;
    let ages = scene.mirror.contacts.ages();
    assert!(ages[0].1 >= 3.0, "{ages:?}");
    consul.signal(Signal::Continue).await;
    consul.register("ads", "d", 9_004, json!({})).await;
    scene.shows(&["a", "b", "c", "d"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_mirror_asks_next_to_nothing_and_a_busy_catalog_does_not_heat_it() {
    let consul = Consul::start().await;
    with_three(&consul).await;
    let Origin::Http { port, .. } = consul.origin() else { panic!("not http") };
    let relay = Relay::start(([127, 0, 0, 1], port).into()).await;
    let origin: Origin = format!("http://{}", relay.address()).parse().unwrap();
    let mut scene = Scene::of(origin, |settings| settings.all_with_tag = Some("mesh".to_owned()));
    scene.shows(&["a", "b", "c"]).await;
    scene.keeps(&["a", "b", "c"], Duration::from_millis(300)).await;
    let quiet = relay.requests();
    scene.keeps(&["a", "b", "c"], Duration::from_secs(3)).await;
    assert_eq!(relay.requests() - quiet, 0, "a watch waits in Consul");
    // A service that comes and goes wakes the watch of the catalog, not that of `ads`.
    for turn in 0..100 {
        consul.register("other", &format!("o{turn}"), 9_100, json!({})).await;
    }
    let busy = relay.requests() - quiet;
    println!("requests while another service changed 100 times: {busy}");
    assert!(busy <= 110, "{busy}");
    // Cut off, it comes back and has missed nothing.
    consul.deregister("c").await;
    relay.cut();
    consul.register("ads", "d", 9_004, json!({})).await;
    scene.shows(&["a", "b", "d"]).await;
    println!("connections: {}", relay.connections());
    assert!(relay.connections() < 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_may_see_nothing_removes_nothing() {
    let acl = json!({ "acl": {
        "enabled": true, "default_policy": "deny", "tokens": { "master": "root-token", "agent": "root-token" },
    } });
    let consul = Consul::start_with(acl, Some("root-token")).await;
    with_three(&consul).await;
    let scratch = Scratch::new();
    let file = scratch.write("token", "root-token\n");
    let mut scene = Scene::of(consul.origin(), |settings| settings.token_file = Some(file));
    scene.shows(&["a", "b", "c"]).await;
    // A token that is unknown is refused (the registrations wake the query that waits with the old one).
    scratch.write("token", "00000000-0000-0000-0000-000000000001\n");
    consul.register("ads", "d", 9_004, json!({})).await;
    scene.keeps_at_least(&["a", "b", "c"], Duration::from_millis(1_500)).await;
    consul.register("ads", "e", 9_005, json!({})).await;
    scene.keeps_at_least(&["a", "b", "c"], Duration::from_millis(1_500)).await;
    // The anonymous one is answered, with an empty list.
    scratch.write("token", "anonymous\n");
    scene.keeps_at_least(&["a", "b", "c"], Duration::from_secs(5)).await;
    let seen = Client::new(HttpSettings::new(consul.origin())).unwrap();
    let seen = seen.send(&Request::get("/v1/health/service/ads")).await.unwrap();
    assert_eq!((seen.status.as_u16(), seen.body.as_ref()), (200, b"[]\n".as_slice()));
    scratch.write("token", "root-token\n");
    scene.keeps_at_least(&["a", "b", "c"], Duration::from_millis(1_100)).await;
    consul.register("ads", "f", 9_006, json!({})).await;
    scene.shows(&["a", "b", "c", "d", "e", "f"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_leader_everything_stays_and_with_a_new_one_it_goes_on() {
    let mut servers = Consul::start_three().await;
    with_three(&servers[0]).await;
    let mut scene = Scene::of(servers[0].origin(), |_| {});
    scene.shows(&["a", "b", "c"]).await;
    // One server alone is no quorum: it has no leader, and says so after a while.
    servers[1].stop();
    servers[2].stop();
    eventually("the leader is missed", async || {
        let (status, said) = servers[0].get("/v1/health/service/ads").await;
        if said.contains("No cluster leader") { Ok(()) } else { Err(format!("{status} {said}")) }
    })
    .await;
    assert_eq!(servers[0].get("/v1/health/service/ads?stale").await.0, 200);
    scene.keeps(&["a", "b", "c"], Duration::from_secs(4)).await;
    servers[1].start_again().await;
    servers[2].start_again().await;
    servers[0].register("ads", "d", 9_004, json!({})).await;
    scene.shows(&["a", "b", "c", "d"]).await;
    servers[0].deregister("d").await;
    scene.shows(&["a", "b", "c"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_agent_is_asked_when_one_dies() {
    let mut servers = Consul::start_three().await;
    with_three(&servers[0]).await;
    // A service of a node that dies turns critical with its node: what is watched lives elsewhere.
    let origins = [servers[1].origin(), servers[2].origin()];
    let mut scene = Scene::of(origins[0].clone(), |settings| settings.addresses = origins.into());
    scene.shows(&["a", "b", "c"]).await;
    servers[1].stop();
    scene.keeps(&["a", "b", "c"], Duration::from_secs(1)).await;
    servers[0].register("ads", "d", 9_004, json!({})).await;
    scene.shows(&["a", "b", "c", "d"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_services_than_an_agent_takes_connections_are_mirrored() {
    let consul = Consul::start().await;
    let names: Vec<String> = (0..220).map(|number| format!("s{number}")).collect();
    for (name, port) in names.iter().zip(9_001..) {
        consul.register(name, name, port, json!({})).await;
    }
    let mut scene = Scene::of_services(consul.origin(), |_| {}, &names);
    scene.until("every service is there", |view| alive(view).len() == 220).await;
    for name in &names {
        consul.register(name, &format!("{name}-b"), 20_000, json!({})).await;
    }
    scene.until("every service has another", |view| alive(view).len() == 440).await;
    assert!(scene.mirror.contacts.ages().iter().all(|(_, age)| *age < 10.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_reached_over_tls_and_over_a_unix_socket_too() {
    let fixture = |name: &str| source_tree::root().join("control-plane/src/http_client/fixtures").join(name);
    let (scratch, https) = (Scratch::new(), free_port());
    let socket = scratch.path().join("consul.sock");
    let config = json!({
        "ports": { "https": https },
        "addresses": { "http": format!("127.0.0.1 unix://{}", socket.display()) },
        "ca_file": fixture("ca.pem"), "cert_file": fixture("server.pem"), "key_file": fixture("server.key"),
        "verify_incoming_https": true,
    });
    let consul = Consul::start_with(config, None).await;
    with_three(&consul).await;
    let origin = format!("unix://{}", socket.display()).parse().unwrap();
    Scene::of(origin, |_| {}).shows(&["a", "b", "c"]).await;
    let tls = TlsSettings {
        ca_file: Some(fixture("ca.pem")),
        cert_file: Some(fixture("client.pem")),
        key_file: Some(fixture("client.key")),
        server_name: Some("consul.test".to_owned()),
    };
    let origin = format!("https://127.0.0.1:{https}").parse().unwrap();
    let mut scene = Scene::of(origin, |settings| settings.tls = tls);
    scene.shows(&["a", "b", "c"]).await;
    consul.deregister("c").await;
    scene.shows(&["a", "b"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn services_with_the_tag_are_found_by_themselves() {
    let consul = Consul::start().await;
    with_three(&consul).await;
    let mut scene = Scene::of(consul.origin(), |settings| settings.all_with_tag = Some("mesh".to_owned()));
    scene.shows(&["a", "b", "c"]).await;
    consul.register("shop", "s", 9_010, json!({ "Tags": ["mesh"] })).await;
    consul.register("db", "x", 9_011, json!({ "Tags": ["other"] })).await;
    scene.shows(&["a", "b", "c", "s"]).await;
}
