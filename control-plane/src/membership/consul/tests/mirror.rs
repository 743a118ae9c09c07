//! The mirror against a Consul that answers, blocks, lies, hangs and goes away.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use gilmok_config::name::ServiceName;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::fake::{Fake, Fault, checked, instance};
use crate::membership::consul::{Consul, Settings, start};
use crate::membership::{Status, View};

/// Longer than anything takes here; only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(20);

fn name(text: &str) -> ServiceName {
    ServiceName::parse(text).unwrap()
}

/// A mirror of a fake, and what it is asked for.
struct Scene {
    fake: Fake,
    consul: Consul,
    names: watch::Sender<BTreeSet<ServiceName>>,
}

impl Scene {
    /// A mirror of `ads`.
    async fn of_ads(ids: &[&str]) -> Self {
        let fake = Fake::start().await;
        fake.set("ads", ids);
        let mut scene = Self::with(fake, |_| {}, &["ads"]);
        scene.shows("ads", ids).await;
        scene
    }

    fn with(fake: Fake, adjust: impl FnOnce(&mut Settings), names: &[&str]) -> Self {
        Self::knowing(&Arc::default(), fake, adjust, names)
    }

    fn knowing(
        last_known: &Arc<View>,
        fake: Fake,
        adjust: impl FnOnce(&mut Settings),
        names: &[&str],
    ) -> Self {
        let mut settings = Settings::at(fake.origin());
        adjust(&mut settings);
        let names = watch::Sender::new(names.iter().map(|text| name(text)).collect());
        let consul = start(settings, last_known, names.subscribe()).unwrap();
        Self { fake, consul, names }
    }

    /// Waits until the view is as told.
    async fn until(&mut self, told: &str, test: impl FnMut(&Arc<View>) -> bool) {
        let reached = timeout(PATIENCE, self.consul.view.wait_for(test)).await.is_ok();
        assert!(reached, "{told}: {:?}", self.consul.view.borrow());
    }

    /// Waits until these instances of a service, and no others, receive traffic.
    async fn shows(&mut self, service: &str, ids: &[&str]) {
        let told = format!("{service} shows {ids:?}");
        self.until(&told, |view| is_alive(view, service, ids)).await;
    }

    /// Watches for a time and fails if the service ever shows anything else.
    async fn keeps(&mut self, service: &str, ids: &[&str], time: Duration) {
        let other = self.consul.view.wait_for(|view| !is_alive(view, service, ids));
        let other = timeout(time, other).await.map(|view| alive(&view.unwrap(), service));
        assert!(other.is_err(), "{service} shows {other:?} instead of {ids:?}");
    }

    async fn eventually(&self, told: &str, test: impl Fn(&Fake) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !test(&self.fake) {
            assert!(Instant::now() < deadline, "{told}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// The ids of what receives traffic; nothing when the service is unknown.
fn alive(view: &View, service: &str) -> Option<Vec<String>> {
    let endpoints = view.endpoints.get(service)?;
    let members = view.members.get(service)?;
    let mut ids: Vec<String> = members
        .iter()
        .filter(|member| endpoints.contains(&member.endpoint))
        .map(|member| member.id.clone())
        .collect();
    ids.sort();
    Some(ids)
}

fn is_alive(view: &View, service: &str, ids: &[&str]) -> bool {
    alive(view, service).is_some_and(|alive| alive == ids)
}

#[tokio::test]
async fn instances_come_and_go() {
    let mut scene = Scene::of_ads(&["a", "b", "c"]).await;
    for ids in [&["a", "b", "c", "d"][..], &["a", "b", "c"], &["b", "c"], &["b", "c", "x", "y"]] {
        scene.fake.set("ads", ids);
        scene.shows("ads", ids).await;
    }
}

#[tokio::test]
async fn the_view_says_everything_and_the_endpoints_only_who_is_well() {
    let fake = Fake::start().await;
    let node_down = checked("b", "passing").replace(
        r#""Checks":["#,
        r#""Checks":[{"CheckID":"_node_maintenance","Status":"critical","Notes":"disk"},"#,
    );
    fake.set_json("ads", vec![checked("a", "warning"), node_down, checked("c", "critical")]);
    let mut scene = Scene::with(fake, |_| {}, &["ads", "nobody"]);
    scene.shows("ads", &["a"]).await;
    scene.shows("nobody", &[]).await;
    let view = scene.consul.view.borrow().clone();
    let members = &view.members["ads"];
    let status: Vec<_> = members.iter().map(|member| (member.id.as_str(), member.status)).collect();
    assert_eq!(status, [("a", Status::Warning), ("b", Status::Maintenance), ("c", Status::Critical)]);
    assert_eq!((members[1].node.as_str(), members[1].note.as_str()), ("node-b", "maintenance: disk"));
}

#[tokio::test]
async fn no_misbehaviour_takes_anything_out() {
    let mut scene = Scene::of_ads(&["a", "b", "c"]).await;
    let null = r#"[{"Node":null,"Service":null,"Checks":null}]"#;
    let faults = [
        Fault::Status(500, "", "rpc error: stream closed"),
        Fault::Status(500, "", "No cluster leader"),
        Fault::Status(500, "", "No cluster leader"),
        Fault::Status(403, "", "Permission denied"),
        Fault::Status(404, "x-consul-index: 7\r\n", ""),
        Fault::Status(429, "retry-after: 1\r\n", ""),
        Fault::Status(413, "", "too large"),
        Fault::Truncated,
        Fault::Reset,
        Fault::Says(99, String::new()),
        Fault::Says(99, "[{\"Service\":{\"Port\":\"80\"}}]".to_owned()),
        Fault::Says(0, "[]".to_owned()),
        Fault::Says(99, "null".to_owned()),
        Fault::Says(100, null.to_owned()),
    ];
    for fault in faults {
        // The one before must be over: errors in a row are backed off from.
        scene.eventually("it blocks again", blocks).await;
        scene.fake.misbehave([fault.clone()]);
        scene.eventually(&format!("{fault:?} is played"), Fake::is_done).await;
        scene.keeps("ads", &["a", "b", "c"], Duration::from_millis(20)).await;
    }
    // And the watch is alive after all of it.
    scene.fake.set("ads", &["a", "b", "c", "d"]);
    scene.shows("ads", &["a", "b", "c", "d"]).await;
}

#[tokio::test]
async fn a_403_that_lasts_stops_neither_the_list_nor_the_loop() {
    let mut scene = Scene::of_ads(&["a"]).await;
    scene.fake.break_down(Some(Fault::Status(403, "", "ACL not found")));
    scene.keeps("ads", &["a"], Duration::from_secs(1)).await;
    scene.fake.set("ads", &["a", "b"]);
    scene.fake.break_down(None);
    scene.shows("ads", &["a", "b"]).await;
}

#[tokio::test]
async fn a_hang_is_given_up_and_its_connection_with_it() {
    let fake = Fake::start().await;
    fake.set("ads", &["a"]);
    fake.misbehave([Fault::Hang]);
    let mut scene = Scene::with(fake, |_| {}, &["ads"]);
    scene.eventually("it hangs", Fake::is_done).await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(11)).await;
    tokio::time::resume();
    scene.shows("ads", &["a"]).await;
    let seen = scene.fake.seen("/v1/health/service/ads");
    assert_ne!(seen[0].connection, seen[1].connection);
}

#[tokio::test]
async fn a_blocking_query_that_hangs_is_given_up_after_its_wait() {
    let mut scene = Scene::of_ads(&["a"]).await;
    scene.eventually("it blocks", blocks).await;
    // Another count has begun behind the same connection: the query would hang for the whole of its wait.
    scene.fake.count_from(1);
    scene.fake.set("ads", &["a", "b"]);
    scene.keeps("ads", &["a"], Duration::from_millis(100)).await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(46)).await;
    tokio::time::resume();
    scene.shows("ads", &["a", "b"]).await;
}

/// Whether the last question about health is one that blocks.
fn blocks(fake: &Fake) -> bool {
    fake.seen("/v1/health").last().is_some_and(|seen| seen.target.contains("index="))
}

#[tokio::test]
async fn after_a_reset_everything_is_asked_anew() {
    let mut scene = Scene::of_ads(&["a"]).await;
    scene.eventually("it blocks", blocks).await;
    // The agent restarts: connections end and it counts anew.
    scene.fake.misbehave([Fault::Reset]);
    scene.eventually("it resets", Fake::is_done).await;
    scene.fake.count_from(1);
    scene.fake.set("ads", &["a", "b"]);
    scene.shows("ads", &["a", "b"]).await;
    let seen = scene.fake.seen("/v1/health");
    let fresh = seen.iter().find(|ask| ask.connection != seen[0].connection).unwrap();
    assert!(!fresh.target.contains("index="), "{fresh:?}");
}

#[tokio::test]
async fn an_index_that_goes_back_is_no_hot_loop() {
    let mut scene = Scene::of_ads(&["a"]).await;
    let before = scene.fake.seen("/v1/health").len();
    // Two agents behind a balancer, each with a count of its own.
    for turn in 0..1_000_u64 {
        scene.fake.misbehave([Fault::Says(1_000 + turn % 2, format!("[{}]", instance("a")))]);
    }
    scene.keeps("ads", &["a"], Duration::from_secs(3)).await;
    let asked = scene.fake.seen("/v1/health").len() - before;
    assert!(asked < 130, "{asked}");
}

#[tokio::test]
async fn emptied_lists_are_confirmed_for_two_seconds() {
    let mut scene = Scene::of_ads(&["a", "b", "c"]).await;
    scene.fake.set("ads", &[]);
    scene.keeps("ads", &["a", "b", "c"], Duration::from_millis(1_500)).await;
    scene.fake.set("ads", &["a", "b", "c"]);
    scene.keeps("ads", &["a", "b", "c"], Duration::from_secs(1)).await;
    let begin = Instant::now();
    scene.fake.set("ads", &["a"]);
    scene.shows("ads", &["a"]).await;
    assert!(begin.elapsed().as_millis() >= 1_990, "{:?}", begin.elapsed());
    let seen = scene.fake.seen("/v1/health");
    let confirming = seen.iter().filter(|seen| seen.target.contains("consistent")).count();
    assert!((2..12).contains(&confirming), "{confirming}");
}

#[tokio::test]
async fn a_check_that_flaps_takes_nothing_out() {
    let mut scene = Scene::of_ads(&["a", "b", "c"]).await;
    let flapping = |status| vec![instance("a"), instance("b"), checked("c", status)];
    for _ in 0..3 {
        scene.fake.set_json("ads", flapping("critical"));
        scene.keeps("ads", &["a", "b", "c"], Duration::from_millis(300)).await;
        scene.fake.set_json("ads", flapping("passing"));
        scene.keeps("ads", &["a", "b", "c"], Duration::from_millis(50)).await;
    }
    let begin = Instant::now();
    scene.fake.set_json("ads", flapping("critical"));
    scene.shows("ads", &["a", "b"]).await;
    assert!(begin.elapsed().as_millis() >= 1_490, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn the_error_of_one_service_is_nothing_to_another() {
    let mut scene = Scene::of_ads(&["a"]).await;
    scene.fake.set("shop", &["s"]);
    scene.names.send_replace([name("ads"), name("shop")].into());
    scene.shows("shop", &["s"]).await;
    scene.fake.misbehave([Fault::Status(500, "", "no")]);
    scene.fake.set("shop", &["s", "t"]);
    scene.shows("shop", &["s", "t"]).await;
    scene.keeps("ads", &["a"], Duration::from_millis(50)).await;
}

#[tokio::test]
async fn a_service_that_nobody_asks_for_is_forgotten_with_its_metric() {
    let mut scene = Scene::of_ads(&["a"]).await;
    assert_eq!(scene.consul.contacts.ages().len(), 1);
    scene.names.send_replace(BTreeSet::new());
    scene.until("ads is gone", |view| view.endpoints.is_empty() && view.members.is_empty()).await;
    assert!(scene.consul.contacts.ages().is_empty());
}

#[tokio::test]
async fn the_services_with_the_tag_are_mirrored_too() {
    let fake = Fake::start().await;
    fake.set("ads", &["a"]);
    fake.set("shop", &["s"]);
    fake.tag("ads", &["x", "mesh"]);
    fake.tag("shop", &[]);
    fake.tag("Not A Name", &["mesh"]);
    let mut scene = Scene::with(fake, |settings| settings.all_with_tag = Some("mesh".to_owned()), &[]);
    scene.shows("ads", &["a"]).await;
    assert_eq!(alive(&scene.consul.view.borrow(), "shop"), None);
    scene.fake.tag("shop", &["mesh"]);
    scene.shows("shop", &["s"]).await;
    // A name that leaves the catalog leaves by its own watch, which confirms it.
    scene.fake.untag("shop");
    scene.fake.set("shop", &[]);
    scene.keeps("shop", &["s"], Duration::from_millis(1_500)).await;
    scene.shows("shop", &[]).await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(9)).await;
    tokio::time::resume();
    scene.until("shop is forgotten", |view| !view.endpoints.contains_key("shop")).await;
    scene.shows("ads", &["a"]).await;
}

#[tokio::test]
async fn empty_is_no_removal_where_the_token_may_see_nothing() {
    let fake = Fake::start().await;
    fake.say_of_agent(r#"{"DebugConfig":{"ACLsEnabled":true,"ACLDefaultPolicy":"deny"}}"#);
    fake.set("ads", &["a", "b"]);
    let mut scene = Scene::with(fake, |_| {}, &["ads"]);
    scene.shows("ads", &["a", "b"]).await;
    scene.fake.set("ads", &[]);
    scene.keeps("ads", &["a", "b"], Duration::from_millis(2_500)).await;
    scene.fake.say_in_headers("x-consul-default-acl-policy: allow\r\n");
    scene.fake.set("other", &[]);
    scene.shows("ads", &[]).await;
}

#[tokio::test]
async fn what_was_known_last_serves_until_consul_says_otherwise() {
    let mut before = Scene::of_ads(&["a", "b", "c"]).await;
    before.fake.set("shop", &["s"]);
    before.names.send_replace([name("ads"), name("shop")].into());
    before.shows("shop", &["s"]).await;
    let last_known = before.consul.view.borrow().clone();

    let fake = Fake::start().await;
    fake.break_down(Some(Fault::Reset));
    fake.set("ads", &["a", "b"]);
    let mut scene = Scene::knowing(&last_known, fake, |_| {}, &["ads"]);
    scene.until("nobody asks for shop", |view| !view.endpoints.contains_key("shop")).await;
    scene.keeps("ads", &["a", "b", "c"], Duration::from_millis(500)).await;
    scene.fake.break_down(None);
    scene.shows("ads", &["a", "b"]).await;
}

#[tokio::test]
async fn endpoints_without_names_serve_until_the_named_ones_are_there() {
    let before = Scene::of_ads(&["a", "b", "c"]).await;
    let endpoints = before.consul.view.borrow().endpoints.clone();
    let last_known = Arc::new(View { endpoints: endpoints.clone(), ..View::default() });
    let fake = Fake::start().await;
    fake.break_down(Some(Fault::Reset));
    fake.set("ads", &["a", "b", "d"]);
    let mut scene = Scene::knowing(&last_known, fake, |_| {}, &["ads"]);
    let other = scene.consul.view.wait_for(|view| view.endpoints != endpoints);
    assert!(timeout(Duration::from_millis(300), other).await.is_err());
    scene.fake.break_down(None);
    scene.shows("ads", &["a", "b", "d"]).await;
    assert_eq!(scene.consul.view.borrow().members[&name("ads")].len(), 3);
}

#[tokio::test]
async fn the_next_address_is_asked_when_one_fails() {
    let dead = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", dead.local_addr().unwrap()).parse().unwrap();
    drop(dead);
    let fake = Fake::start().await;
    fake.set("ads", &["a"]);
    let mut scene = Scene::with(fake, |settings| settings.addresses.insert(0, origin), &["ads"]);
    scene.shows("ads", &["a"]).await;
}

#[tokio::test]
async fn the_token_goes_in_its_header_only_and_the_datacenter_in_the_query() {
    let file = std::env::temp_dir().join(format!("gilmok-mirror-token-{}", std::process::id()));
    std::fs::write(&file, "s3cret\n").unwrap();
    let fake = Fake::start().await;
    fake.set("ads", &["a"]);
    let adjust = |settings: &mut Settings| {
        settings.token_file = Some(file.clone());
        settings.datacenter = Some("dc 1".to_owned());
    };
    let mut scene = Scene::with(fake, adjust, &["ads"]);
    scene.shows("ads", &["a"]).await;
    std::fs::remove_file(&file).unwrap();
    for seen in scene.fake.seen("/v1/health") {
        assert_eq!(seen.token.as_deref(), Some("s3cret"));
        assert!(seen.target.contains("dc=dc%201") && !seen.target.contains("s3cret"), "{seen:?}");
        assert!(!seen.target.contains("filter") && !seen.target.contains("passing"), "{seen:?}");
    }
}

#[tokio::test]
async fn beyond_150_services_the_agents_cache_is_polled_over_few_connections() {
    let fake = Fake::start().await;
    let names: Vec<String> = (0..170).map(|number| format!("s{number}")).collect();
    for name in &names {
        fake.set(name, &["a"]);
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut scene = Scene::with(fake, |_| {}, &names);
    scene.until("all are there", |view| view.endpoints.len() == 170).await;
    let seen = scene.fake.seen("/v1/health");
    let connections: BTreeSet<usize> = seen.iter().map(|seen| seen.connection).collect();
    assert!(connections.len() <= 150 + 8, "{}", connections.len());
    let cached: BTreeSet<&str> =
        seen.iter().filter(|seen| seen.target.contains("cached")).map(|seen| seen.target.as_str()).collect();
    assert_eq!(cached.len(), 20);
    for name in names {
        scene.fake.set(name, &["a", "b"]);
    }
    let two = |view: &Arc<View>| view.endpoints.values().all(|endpoints| endpoints.len() == 2);
    scene.until("polled ones follow", two).await;
}

#[tokio::test]
async fn a_mirror_ends_when_nobody_looks() {
    let scene = Scene::of_ads(&["a"]).await;
    let Scene { fake, consul, names } = scene;
    drop(consul);
    timeout(PATIENCE, names.closed()).await.unwrap();
    drop(fake);
}
