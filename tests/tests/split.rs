//! Splits: the same user gets the same version, whatever process decides, and nobody sees another one by accident.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use gilmok_tests::caller::ask;
use gilmok_tests::eventually::eventually;
use gilmok_tests::message::Message;
use gilmok_tests::proxy::{Proxy, ProxySettings};
use gilmok_tests::upstream::Upstream;

/// Two versions, each with an upstream that says which it is.
struct Versions {
    v1: Upstream,
    v2: Upstream,
}

impl Versions {
    async fn start() -> Self {
        Self { v1: Upstream::saying("v1").await, v2: Upstream::saying("v2").await }
    }

    /// The mesh with so many percent of v2.
    fn mesh(&self, percent: f64, more: &str) -> String {
        let traffic = format!(
            "[services.shop.traffic]\nstable = \"v1\"\nweights = {{ v1 = {}, v2 = {percent} }}\n{more}\n",
            100.0 - percent
        );
        let endpoint = |version: &str, address: SocketAddr| {
            format!("[[services.shop.endpoints]]\naddress = \"{address}\"\nversion = \"{version}\"\n")
        };
        format!("{traffic}{}{}", endpoint("v1", self.v1.address), endpoint("v2", self.v2.address))
    }
}

async fn get(to: SocketAddr, lines: &str) -> Message {
    ask(to, format!("GET / HTTP/1.1\r\nHost: shop\r\n{lines}\r\n")).await
}

async fn version_of(to: SocketAddr, user: usize) -> String {
    get(to, &format!("X-User-Id: user-{user}\r\n")).await.text()
}

async fn versions_of(to: SocketAddr, users: std::ops::Range<usize>) -> BTreeMap<usize, String> {
    let mut versions = BTreeMap::new();
    for user in users {
        versions.insert(user, version_of(to, user).await);
    }
    versions
}

#[tokio::test]
async fn a_growing_share_drops_nobody_and_a_rollback_brings_everybody_back() {
    let versions = Versions::start().await;
    let proxy = Proxy::start(versions.mesh(0.0, "")).await;
    let mut before: Vec<usize> = Vec::new();
    let mut steps = BTreeMap::new();
    for percent in [1.0, 10.0, 50.0, 10.0, 100.0, 0.0, 10.0] {
        proxy.reload(versions.mesh(percent, "")).await;
        let now = versions_of(proxy.outbound(), 0..200).await;
        let on_v2: Vec<usize> =
            now.iter().filter(|(_, version)| *version == "v2").map(|(user, _)| *user).collect();
        if percent > 50.0 {
            assert_eq!(on_v2.len(), 200);
        }
        let grown = before.len() <= on_v2.len();
        let stays = if grown {
            before.iter().all(|user| on_v2.contains(user))
        } else {
            on_v2.iter().all(|user| before.contains(user))
        };
        assert!(stays, "{percent}: {before:?} {on_v2:?}");
        let same = steps.entry(format!("{percent}")).or_insert_with(|| on_v2.clone());
        assert_eq!(*same, on_v2, "the same share is the same users");
        before = on_v2;
    }
}

#[tokio::test]
async fn every_worker_proxy_and_restart_decides_the_same() {
    let versions = Versions::start().await;
    let mesh = versions.mesh(50.0, "");
    let one = Proxy::start_with(ProxySettings::of_mesh(&mesh).table("[workers]\ncount = 4")).await;
    let two = Proxy::start(&mesh).await;
    let first = versions_of(one.outbound(), 0..60).await;
    assert!(first.values().any(|version| version == "v1") && first.values().any(|version| version == "v2"));
    assert_eq!(first, versions_of(two.outbound(), 0..60).await);
    let again = Proxy::start(&mesh).await;
    assert_eq!(first, versions_of(again.outbound(), 0..60).await);
    for _ in 0..20 {
        assert_eq!(version_of(one.outbound(), 7).await, first[&7]);
    }
}

#[tokio::test]
async fn a_version_that_is_down_is_stood_in_for_and_that_is_counted() {
    let versions = Versions::start().await;
    let check = "[services.shop.health_check]\ntcp = true\ninterval = \"100ms\"\nunhealthy_threshold = 1\n";
    let pins = "pins = [{ header = \"x-version\", equals = \"v2\", version = \"v2\" }]";
    let mesh = format!("{check}{}", versions.mesh(1.0, pins));
    let proxy = Proxy::start(&mesh).await;
    let to = proxy.outbound();
    let tester = "X-Version: v2\r\nX-User-Id: 1\r\nGilmok-Explain: 1\r\n";
    let answer = get(to, tester).await;
    assert_eq!(answer.text(), "v2");
    assert!(answer.header("gilmok-decision").unwrap_or_default().contains("split=pin:0"), "{answer:?}");
    let Versions { v1, v2 } = versions;
    drop(v2);
    let stood_in = async || match get(to, tester).await.text().as_str() {
        "v1" => Ok(()),
        other => Err(other.to_owned()),
    };
    eventually("v1 stands in", stood_in).await;
    let answer = get(to, tester).await;
    assert!(answer.header("gilmok-decision").unwrap_or_default().contains("moved=unhealthy"), "{answer:?}");
    let breaches =
        proxy.metric("gilmok_isolation_breaches_total", &["service=\"shop\"", "version=\"v2\""]).await;
    assert!(breaches >= 2.0, "{breaches}");
    proxy.reload(mesh.replace("stable = \"v1\"\n", "stable = \"v1\"\nwhen_unhealthy = \"fail\"\n")).await;
    let answer = get(to, tester).await;
    assert_eq!((answer.status(), answer.header("retry-after")), (503, Some("1")), "{answer:?}");
    assert_eq!(get(to, "X-User-Id: 1\r\n").await.text(), "v1");
    drop(v1);
}

#[tokio::test]
async fn what_fails_is_tried_again_at_the_same_version_only() {
    let versions = Versions::start().await;
    let gone = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        listener.local_addr().expect("an address")
    };
    let mesh = versions.mesh(100.0, "").replace(&versions.v2.address.to_string(), &gone.to_string());
    let proxy = Proxy::start(mesh).await;
    assert_eq!(version_of(proxy.outbound(), 1).await, "gilmok: the endpoint refused the connection\n");
    assert!(versions.v1.requests().is_empty(), "a failed try moves nobody");
}

#[tokio::test]
async fn a_visitor_at_the_edge_is_known_again_by_a_signed_cookie() {
    let versions = Versions::start().await;
    let routes = "[[routes]]\nhosts = [\"shop\"]\nservice = \"shop\"\n";
    let mesh = format!("{}{routes}", versions.mesh(50.0, "when_no_subject = \"cookie\""));
    let scratch = gilmok_tests::scratch::Scratch::new();
    let keys = scratch.write("uid.keys", "a key that every edge has\n");
    let settings = || {
        let table = format!("[edge]\nuid_key_file = \"{}\"", keys.display());
        ProxySettings::of_mesh(&mesh).listen("edge = \"127.0.0.1:0\"").table(&table)
    };
    let (one, two) = (Proxy::start_with(settings()).await, Proxy::start_with(settings()).await);
    let mut seen = BTreeMap::new();
    for _ in 0..40 {
        let first = get(one.edge(), "Cookie: theme=dark\r\n").await;
        let cookie = first.header("set-cookie").expect("a cookie").to_owned();
        assert!(cookie.ends_with("; Path=/; Max-Age=31536000; HttpOnly; SameSite=Lax"), "{cookie}");
        assert_eq!(first.header("cache-control"), Some("private"));
        let pair = cookie.split(';').next().expect("a pair");
        let again = get(two.edge(), &format!("Cookie: {pair}\r\n")).await;
        assert_eq!((again.text(), again.header("set-cookie")), (first.text(), None), "{pair}");
        // The next hop decides the same by what it was sent.
        assert_eq!(get(one.outbound(), &format!("Cookie: {pair}\r\n")).await.text(), first.text());
        *seen.entry(first.text()).or_insert(0) += 1;
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
    let sent = versions.v1.requests().into_iter().chain(versions.v2.requests()).next().expect("a request");
    let told = sent.header("cookie").unwrap_or_default();
    assert!(told.starts_with("gilmok_uid=") && told.ends_with("; theme=dark"), "{told}");
    let forged = get(one.edge(), "Cookie: gilmok_uid=me.AAAAAAAAAAAAAAAAAAAAAA\r\n").await;
    assert!(forged.header("set-cookie").is_some());
    assert!(get(one.edge(), "X-User-Id: 7\r\n").await.header("set-cookie").is_none(), "it has a subject");
    assert!(get(one.outbound(), "").await.header("set-cookie").is_none());
}

#[tokio::test]
async fn later_hops_agree_by_the_keyed_hash_that_the_first_one_passes_on() {
    let versions = Versions::start().await;
    let routes = "[[routes]]\nhosts = [\"shop\"]\nservice = \"shop\"\n";
    let subject = "subject = [\"baggage\", \"header:x-user-id\"]";
    let mesh = format!("{}{routes}", versions.mesh(50.0, subject));
    let scratch = gilmok_tests::scratch::Scratch::new();
    let keys = scratch.write("uid.keys", "a key that every proxy has\n");
    let settings = || {
        let table = format!("[edge]\nuid_key_file = \"{}\"", keys.display());
        ProxySettings::of_mesh(&mesh).listen("edge = \"127.0.0.1:0\"").table(&table)
    };
    let (first, later) = (Proxy::start_with(settings()).await, Proxy::start_with(settings()).await);
    let passed_on = |version: &str| {
        let upstream = if version == "v1" { &versions.v1 } else { &versions.v2 };
        upstream.requests().last().and_then(|request| request.header("baggage").map(str::to_owned))
    };
    for user in 0..20 {
        let headers = format!("X-User-Id: user-{user}\r\nbaggage: a=b, gilmok.k=0000000000000000\r\n");
        let version = get(first.edge(), &headers).await.text();
        let baggage = passed_on(&version).expect("the endpoint is told");
        let hash = baggage.strip_prefix("a=b,gilmok.k=").expect("the first hop's own");
        assert!(hash.len() == 16 && hash != "0000000000000000", "an edge believes nobody: {baggage}");
        let later = get(later.outbound(), &format!("baggage: {baggage}\r\n")).await;
        assert_eq!(later.text(), version, "user-{user} {baggage}");
        let told = first.admin_json(&format!("/explain?service=shop&subject=user-{user}")).await;
        assert_eq!(told["decision"]["split"]["version"], version, "{told}");
    }
}

#[tokio::test]
async fn the_proxy_explains_what_becomes_of_a_subject() {
    let versions = Versions::start().await;
    let proxy = Proxy::start(versions.mesh(1.0, "")).await;
    for user in 0..30 {
        let told = proxy.admin_json(&format!("/explain?service=shop&subject=user-{user}")).await;
        let split = &told["decision"]["split"];
        assert_eq!(split["version"], version_of(proxy.outbound(), user).await, "{told}");
        assert_eq!(split["salt"], "shop");
        assert!(split["place"].as_u64().is_some_and(|place| place < 1_000_000), "{told}");
        assert_eq!(split["table"], serde_json::json!([["v2", 0, 10_000], ["v1", 10_000, 1_000_000]]));
    }
}

#[tokio::test]
async fn the_last_good_answer_of_one_user_is_never_anothers() {
    let versions = Versions::start().await;
    // The first input decides, but whoever is told by another one is somebody as well.
    let more = "subject = [\"header:x-user-id\", \"header:x-session\", \"client_ip\"]\n\
                [[services.shop.fallback]]\nlast_good = {}";
    let proxy = Proxy::start(versions.mesh(0.0, more)).await;
    let callers = ["X-User-Id: ann\r\n", "X-Session: s\r\n", "X-Forwarded-For: 192.0.2.1\r\n", ""];
    let get = |path: &str, lines: &str| {
        ask(proxy.outbound(), format!("GET {path} HTTP/1.1\r\nHost: shop\r\n{lines}\r\n"))
    };
    for (at, lines) in callers.iter().enumerate() {
        assert_eq!(get(&format!("/{at}"), lines).await.text(), "v1");
    }
    drop(versions);
    for at in 0..3 {
        for lines in callers.iter().chain(&["X-User-Id: bob\r\n"]) {
            assert_ne!(get(&format!("/{at}"), lines).await.status(), 200, "/{at} for {lines:?}");
        }
    }
    assert_ne!(get("/3", "X-User-Id: bob\r\n").await.status(), 200, "nobody's answer for somebody");
    assert_eq!(get("/3", "").await.text(), "v1");
}
