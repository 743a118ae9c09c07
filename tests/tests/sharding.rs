//! Shards: a request goes to the shard of its key and nowhere else, whatever is sick, and whoever may write to it is known.

use std::net::SocketAddr;

use gilmok_tests::caller::ask;
use gilmok_tests::control_plane::ControlPlane;
use gilmok_tests::eventually::eventually;
use gilmok_tests::message::Message;
use gilmok_tests::operator::gilmok;
use gilmok_tests::proxy::{Proxy, ProxySettings};
use gilmok_tests::upstream::Upstream;
use serde_json::json;

/// Shards 0 to 3 by `id % 4`, found in the second segment of the path.
const BY_ID: &str = "key = \"path_segment:2\"\nstrategy = \"modulo\"\nhash = \"identity\"\nshards = [\"0\", \"1\", \"2\", \"3\"]\n";

fn endpoint(address: SocketAddr, shard: &str, more: &str) -> String {
    format!("[[services.profile.endpoints]]\naddress = \"{address}\"\nshard = \"{shard}\"\n{more}\n")
}

/// The service with this rule.
fn mesh(rule: &str, endpoints: &str) -> String {
    format!("[services.profile]\n[services.profile.sharding]\n{rule}\n{endpoints}")
}

/// An upstream for each shard, which says its name.
async fn shards(many: usize) -> Vec<Upstream> {
    let mut upstreams = Vec::new();
    for shard in 0..many {
        upstreams.push(Upstream::saying(&shard.to_string()).await);
    }
    upstreams
}

fn endpoints_of(upstreams: &[Upstream]) -> String {
    let one = |(at, upstream): (usize, &Upstream)| endpoint(upstream.address, &at.to_string(), "");
    upstreams.iter().enumerate().map(one).collect()
}

async fn request(to: SocketAddr, method: &str, path: &str, lines: &str) -> Message {
    ask(to, format!("{method} {path} HTTP/1.1\r\nHost: profile\r\n{lines}\r\n")).await
}

async fn get(to: SocketAddr, path: &str) -> Message {
    request(to, "GET", path, "").await
}

#[tokio::test]
async fn a_key_has_one_shard_and_the_application_is_told_which() {
    let upstreams = shards(4).await;
    let proxy = Proxy::start(mesh(BY_ID, &endpoints_of(&upstreams))).await;
    for id in [0_usize, 1, 2, 3, 41, 42, 1_000_003] {
        let answer = get(proxy.outbound(), &format!("/users/{id}/posts?x=1")).await;
        assert_eq!(answer.text(), (id % 4).to_string(), "{id}");
    }
    let told = upstreams[2].requests();
    assert_eq!(told[0].header("gilmok-shard"), Some("2"));
    let map = told[0].header("gilmok-shard-map").unwrap().to_owned();
    let (epoch, hash) = map.split_once('-').unwrap();
    assert_eq!((epoch, hash.len()), ("0", 16), "{map}");
    let claims = "Gilmok-Shard: 3\r\nGilmok-Shard-Map: 7\r\nGilmok-Explain: 1\r\n";
    let answer = request(proxy.outbound(), "GET", "/users/2", claims).await;
    let decision = answer.header("gilmok-decision").unwrap();
    assert!(decision.contains("shard=2") && decision.contains("shard_by=key"), "{decision}");
    let last = upstreams[2].requests().pop().unwrap();
    assert_eq!((last.all("gilmok-shard"), last.all("gilmok-shard-map")), (vec!["2"], vec![map.as_str()]));
    let explained = proxy.admin_json("/explain?service=profile&key=42").await;
    assert_eq!(explained["decision"]["shard"]["shard"], json!("2"), "{explained}");
    assert_eq!(explained["decision"]["shard"]["map"], json!(map));
    let refused = proxy.admin_json("/explain?service=profile&key=forty-two").await;
    assert_eq!(refused["refusal"]["status"], json!(400), "{refused}");
}

#[tokio::test]
async fn requests_are_counted_by_their_shard() {
    let upstreams = shards(3).await;
    // Nobody serves the last one.
    let proxy = Proxy::start(mesh(BY_ID, &endpoints_of(&upstreams))).await;
    for id in [0_usize, 1, 1, 2, 2, 2, 3] {
        get(proxy.outbound(), &format!("/users/{id}")).await;
    }
    assert_eq!(get(proxy.outbound(), "/users").await.status(), 400);
    let counted = async |shard: &str, code: &str| {
        let labels = [&format!("shard=\"{shard}\""), &format!("code=\"{code}\""), "service=\"profile\""];
        proxy.metric("gilmok_requests_total", &labels).await
    };
    for (shard, code, expected) in
        [("0", "2xx", 1.0), ("1", "2xx", 2.0), ("2", "2xx", 3.0), ("", "refused", 2.0)]
    {
        let found = counted(shard, code).await;
        assert!((found - expected).abs() < f64::EPSILON, "{shard} {code}: {found}");
    }
}

#[tokio::test]
async fn the_key_is_where_the_rule_says_and_routes_take_nothing_from_it() {
    let upstreams = shards(2).await;
    let endpoints = endpoints_of(&upstreams);
    let rule = |key: &str| {
        format!("key = \"{key}\"\nstrategy = \"modulo\"\nhash = \"identity\"\nshards = [\"0\", \"1\"]\n")
    };
    let proxy = Proxy::start(mesh(&rule("header:x-other"), &endpoints)).await;
    let to = proxy.outbound();
    for (key, path, lines) in [
        ("header:x-shard-by", "/", "X-Shard-By: 7\r\n"),
        ("cookie:uid", "/", "Cookie: a=2; uid=7\r\n"),
        ("query:user", "/?a=2&user=%37", ""),
        ("path_segment:1", "/%37/2", ""),
        ("subject", "/", "X-User-Id: 7\r\n"),
    ] {
        proxy.reload(mesh(&rule(key), &endpoints)).await;
        assert_eq!(request(to, "GET", path, lines).await.text(), "1", "{key}");
        let none = get(to, "/").await;
        assert_eq!(none.status(), 400, "{key}");
        assert_eq!(none.text(), format!("gilmok: the request has no sharding key ({key})\n"));
    }
    // As the service sees the path, by whatever way a request comes.
    let route = "[[routes]]\nhosts = [\"shop.example\"]\npath_prefix = \"/api/v1\"\nstrip_prefix = \"/api/v1\"\nservice = \"profile\"\n";
    proxy.reload(format!("{}{route}", mesh(&rule("path_segment:2"), &endpoints))).await;
    assert_eq!(get(to, "/users/7").await.text(), "1");
    assert_eq!(proxy.get("shop.example", "/api/v1/users/7").await.text(), "1");
    let by_host =
        "key = \"host\"\nstrategy = \"directory\"\nmap = { \"profile.mesh\" = \"1\" }\ndefault = \"0\"\n";
    proxy.reload(mesh(by_host, &endpoints)).await;
    assert_eq!(proxy.get("Profile.mesh:80", "/").await.text(), "1");
    assert_eq!(proxy.get("profile", "/").await.text(), "0");
}

#[tokio::test]
async fn a_key_that_says_no_shard_is_refused_or_goes_anywhere_as_the_rule_says() {
    let upstreams = shards(4).await;
    let endpoints = endpoints_of(&upstreams);
    let proxy = Proxy::start(mesh(BY_ID, &endpoints)).await;
    let to = proxy.outbound();
    for (path, why) in [
        ("/users", "the request has no sharding key (path_segment:2)"),
        ("/users/", "the request has no sharding key (path_segment:2)"),
        ("/users/me", "the sharding key (path_segment:2) is malformed: it has to be a number"),
        ("/users/%4", "the sharding key (path_segment:2) is malformed: its percent-encoding is none"),
    ] {
        let answer = get(to, path).await;
        assert_eq!((answer.status(), answer.text()), (400, format!("gilmok: {why}\n")), "{path}");
        let status = answer.header("proxy-status").unwrap();
        assert!(status.starts_with("gilmok; error=http_request_error"), "{status}");
    }
    assert!(
        upstreams.iter().all(|upstream| upstream.requests().is_empty()),
        "never a wrong shard in silence"
    );
    proxy.reload(mesh(&format!("{BY_ID}when_no_key = \"any\""), &endpoints)).await;
    for path in ["/users", "/users/me", "/users/%4"] {
        assert_eq!(get(to, path).await.status(), 200, "{path}");
    }
    let answer = request(to, "POST", "/users", "Content-Length: 0\r\nGilmok-Explain: 1\r\n").await;
    let decision = answer.header("gilmok-decision").unwrap();
    assert!(decision.contains(&format!("shard={}", answer.text())), "{decision}");
    assert!(decision.contains("shard_by=no_key"), "{decision}");
}

#[tokio::test]
async fn keys_of_one_shard_go_there_and_keys_of_several_are_refused_with_their_list() {
    let upstreams = shards(4).await;
    let rule = BY_ID.replace("path_segment:2", "query:ids");
    let proxy = Proxy::start(mesh(&format!("{rule}key_separator = \",\""), &endpoints_of(&upstreams))).await;
    let to = proxy.outbound();
    assert_eq!(get(to, "/users?ids=1,5,%209").await.text(), "1");
    let answer = get(to, "/users?ids=1,5,2").await;
    assert_eq!(answer.status(), 400);
    assert_eq!(
        answer.text(),
        "gilmok: the sharding keys (query:ids) are on several shards: 1 on 1, 5 on 1, 2 on 2\n"
    );
    assert_eq!(get(to, "/users?ids=1&ids=2").await.status(), 400, "another server would take the other one");
}

#[tokio::test]
async fn what_may_change_something_goes_to_the_primary() {
    let (primary, replica) = (Upstream::saying("primary").await, Upstream::saying("replica").await);
    let rule = "key = \"path_segment:1\"\nstrategy = \"jump\"\nshards = [\"0\"]\n";
    let both = |first: &str, second: &str| {
        let role = |role: &str| if role.is_empty() { String::new() } else { format!("role = \"{role}\"") };
        endpoint(primary.address, "0", &role(first)) + &endpoint(replica.address, "0", &role(second))
    };
    let proxy = Proxy::start(mesh(rule, &both("primary", "replica"))).await;
    let to = proxy.outbound();
    let write = async || request(to, "POST", "/7", "Content-Length: 0\r\n").await;
    for (reads, roles, read, written) in [
        ("primary", ("primary", "replica"), &["primary"][..], Ok("primary")),
        ("replica", ("primary", "replica"), &["replica"], Ok("primary")),
        ("any", ("primary", "replica"), &["primary", "replica"], Ok("primary")),
        ("primary", ("replica", "replica"), &["primary", "replica"], Err("the shard has no primary")),
        (
            "any",
            ("primary", "primary"),
            &["primary", "replica"],
            Err("more than one endpoint of the shard says that it is the primary"),
        ),
        (
            "primary",
            ("", ""),
            &["primary", "replica"],
            Err("more than one endpoint of the shard says that it is the primary"),
        ),
    ] {
        proxy.reload(mesh(&format!("{rule}reads = \"{reads}\""), &both(roles.0, roles.1))).await;
        for _ in 0..6 {
            let answer = get(to, "/7").await.text();
            assert!(read.contains(&answer.as_str()), "{reads} {roles:?}: {answer}");
            let answer = write().await;
            match written {
                Ok(expected) => assert_eq!(answer.text(), expected, "{reads} {roles:?}"),
                Err(why) => {
                    assert_eq!(
                        (answer.status(), answer.header("retry-after")),
                        (503, Some("1")),
                        "{roles:?}"
                    );
                    assert_eq!(answer.text(), format!("gilmok: {why}\n"));
                }
            }
        }
    }
}

/// What an owner that has lost a key answers.
fn moved_to(shard: &str) -> String {
    format!("HTTP/1.1 421 Misdirected Request\r\nGilmok-Shard: {shard}\r\nContent-Length: 0\r\n\r\n")
}

#[tokio::test]
async fn an_owner_that_has_lost_a_key_sends_the_request_on_once() {
    let old = Upstream::answering(moved_to("1")).await;
    let new = Upstream::saying("new").await;
    let back = Upstream::answering(moved_to("0")).await;
    let unknown = Upstream::answering(moved_to("9")).await;
    let others =
        Upstream::answering("HTTP/1.1 421 Misdirected Request\r\nContent-Length: 5\r\n\r\nother").await;
    let rule = BY_ID.replace("\"3\"]", "\"3\", \"4\"]");
    let mut endpoints: String = String::new();
    for (upstream, shard) in [(&old, "0"), (&new, "1"), (&back, "2"), (&unknown, "3"), (&others, "4")] {
        endpoints += &endpoint(upstream.address, shard, "");
    }
    let proxy = Proxy::start(mesh(&rule, &endpoints)).await;
    let to = proxy.outbound();
    assert_eq!(get(to, "/users/0").await.text(), "new");
    assert_eq!(new.requests()[0].header("gilmok-shard"), Some("1"));
    let post = "POST /users/0 HTTP/1.1\r\nHost: profile\r\nContent-Length: 5\r\n\r\nhello";
    assert_eq!(ask(to, post).await.text(), "new");
    assert_eq!(new.requests()[1].body, b"hello");
    // What does not fit in hand is not sent on.
    let long = vec![b'x'; (64 << 10) + 1];
    let head = format!("POST /users/0 HTTP/1.1\r\nHost: profile\r\nContent-Length: {}\r\n\r\n", long.len());
    let answer = ask(to, [head.as_bytes(), &long].concat()).await;
    assert_eq!((answer.status(), answer.header("retry-after")), (503, Some("1")));
    // A second word is not believed, nor one that names no shard of the map.
    for id in [2, 3] {
        let answer = get(to, &format!("/users/{id}")).await;
        assert_eq!((answer.status(), answer.header("retry-after")), (503, Some("1")), "{id}");
        assert_eq!(answer.text(), "gilmok: the key has moved to another shard\n");
    }
    assert_eq!((back.requests().len(), unknown.requests().len(), new.requests().len()), (1, 1, 2));
    let answer = get(to, "/users/4").await;
    assert_eq!((answer.status(), answer.text()), (421, "other".to_owned()), "the application's own");
    assert!(proxy.metric("gilmok_shard_redirects_total", &["service=\"profile\""]).await >= 3.0);
}

#[tokio::test]
async fn what_is_kept_for_an_owner_goes_nowhere_else_once_it_was_sent() {
    let lost = Upstream::start(|mut conversation| async move { drop(conversation.request().await) }).await;
    let other = Upstream::saying("other").await;
    let fallback = format!(
        "[[services.profile.fallback]]\nservice = \"other\"\nmethods = [\"POST\"]\n[services.other]\n[[services.other.endpoints]]\naddress = \"{}\"\n",
        other.address
    );
    let rule = "key = \"path_segment:1\"\nstrategy = \"jump\"\nshards = [\"0\"]\n";
    let proxy = Proxy::start(mesh(rule, &format!("{}{fallback}", endpoint(lost.address, "0", "")))).await;
    let post = "POST /7 HTTP/1.1\r\nHost: profile\r\nContent-Length: 5\r\n\r\nhello";
    let answer = ask(proxy.outbound(), post).await;
    assert_eq!((answer.status(), lost.requests().len(), other.requests().len()), (502, 1, 0), "{answer:?}");
}

#[tokio::test]
async fn a_bad_shard_opens_its_own_breaker_and_nobody_stands_in_for_it() {
    let bad = Upstream::answering("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n").await;
    let mut upstreams = shards(4).await;
    upstreams[1] = bad;
    let breaker = "[services.profile.circuit_breaker]\nmin_requests = 3\nfailure_percent = 50\n[services.profile.retry]\nattempts = 2\non = [\"5xx\"]\n";
    let proxy = Proxy::start(mesh(BY_ID, &format!("{breaker}{}", endpoints_of(&upstreams)))).await;
    let to = proxy.outbound();
    for _ in 0..6 {
        let status = get(to, "/users/1").await.status();
        assert!(status == 500 || status == 503, "{status}");
    }
    let refused = get(to, "/users/1").await;
    assert!(refused.header("proxy-status").unwrap().contains("breaker=open"), "{refused:?}");
    for id in [0, 2, 3] {
        assert_eq!(get(to, &format!("/users/{id}")).await.text(), id.to_string());
    }
    for (shard, state) in [("0", 0.0), ("1", 2.0), ("2", 0.0)] {
        let labels = ["service=\"profile\"", &format!("shard=\"{shard}\"")];
        assert!(
            (proxy.metric("gilmok_breaker_state", &labels).await - state).abs() < f64::EPSILON,
            "{shard}"
        );
    }
}

#[tokio::test]
async fn a_shard_that_nobody_serves_is_told_and_refused() {
    let upstreams = shards(3).await;
    let proxy = Proxy::start(mesh(BY_ID, &endpoints_of(&upstreams))).await;
    let answer = get(proxy.outbound(), "/users/3").await;
    assert_eq!((answer.status(), answer.header("retry-after")), (503, Some("1")), "{answer:?}");
    for (shard, many) in [("2", 1.0), ("3", 0.0)] {
        let labels = ["service=\"profile\"", &format!("shard=\"{shard}\"")];
        assert!(
            (proxy.metric("gilmok_shard_endpoints", &labels).await - many).abs() < f64::EPSILON,
            "{shard}"
        );
    }
    let config = proxy.admin_json("/config").await;
    assert_eq!(config["shards_without_endpoints"], json!([{ "service": "profile", "shard": "3" }]));
    assert_eq!(proxy.admin("/readyz").await.status(), 200, "the others are served");
}

#[tokio::test]
async fn a_sharded_service_that_stands_in_for_another_gets_the_request_of_its_own_shard() {
    let upstreams = shards(4).await;
    let fallback = "[services.front]\n[[services.front.endpoints]]\naddress = \"127.0.0.1:1\"\n[[services.front.fallback]]\nservice = \"profile\"\n";
    let proxy = Proxy::start(format!("{}{fallback}", mesh(BY_ID, &endpoints_of(&upstreams)))).await;
    let answer = proxy.get("front", "/users/6").await;
    assert_eq!((answer.status(), answer.text()), (200, "2".to_owned()), "{answer:?}");
    assert_eq!(proxy.get("front", "/users/me").await.status(), 502, "no shard, no stand-in");
}

#[tokio::test]
async fn each_version_has_the_shards_of_its_own() {
    let (v1, v2) = (Upstream::saying("v1").await, Upstream::saying("v2").await);
    let traffic = "[services.profile.traffic]\nstable = \"v1\"\nweights = { v1 = 100, v2 = 0 }\npins = [{ header = \"x-version\", equals = \"v2\", version = \"v2\" }]\n";
    let version = |version: &str| format!("version = \"{version}\"");
    let endpoints = endpoint(v1.address, "0", &version("v1"))
        + &endpoint(v1.address, "1", &version("v1"))
        + &endpoint(v2.address, "0", &version("v2"));
    let rule =
        "key = \"path_segment:1\"\nstrategy = \"modulo\"\nhash = \"identity\"\nshards = [\"0\", \"1\"]\n";
    let proxy = Proxy::start(format!("{}{traffic}", mesh(rule, &endpoints))).await;
    let v2 = "X-Version: v2\r\n";
    assert_eq!(request(proxy.outbound(), "GET", "/0", v2).await.text(), "v2");
    // The second version has nobody for this shard, so the stable one takes it: the shard stays what it is.
    assert_eq!(request(proxy.outbound(), "GET", "/1", v2).await.text(), "v1");
    assert_eq!(v1.requests()[0].header("gilmok-shard"), Some("1"));
}

#[tokio::test]
async fn the_owners_sidecar_passes_on_what_it_is_told_and_what_the_owner_says() {
    let app = Upstream::answering(moved_to("1")).await;
    let new = Upstream::saying("new").await;
    let owner = ProxySettings::of_mesh("").app("profile", app.address, "shard = \"0\"\n");
    let owner = Proxy::start_with(owner).await;
    let rule =
        "key = \"path_segment:1\"\nstrategy = \"modulo\"\nhash = \"identity\"\nshards = [\"0\", \"1\"]\n";
    let endpoints = endpoint(owner.inbound(0), "0", "inbound = true") + &endpoint(new.address, "1", "");
    let proxy = Proxy::start(mesh(rule, &endpoints)).await;
    assert_eq!(get(proxy.outbound(), "/0").await.text(), "new");
    let told = app.only_request().await;
    assert_eq!(told.header("gilmok-shard"), Some("0"));
    assert!(told.header("gilmok-shard-map").is_some(), "{told:?}");
}

#[tokio::test]
async fn the_control_plane_says_the_same() {
    let plane = ControlPlane::start().await;
    let sharding = json!({
        "key": "path_segment:2", "strategy": "slots", "map": { "0": "0-8191", "1": "8192-16383" },
    });
    plane.put("/v1/services/profile", &json!({ "sharding": sharding })).await;
    // CLUSTER KEYSLOT 42 is 8000.
    let told = plane.json("/v1/explain?service=profile&key=42").await;
    let shard = &told["decision"]["shard"];
    assert_eq!((&shard["shard"], &shard["slot"]), (&json!("0"), &json!(8_000)), "{told}");
    let told = plane.json("/v1/explain?service=profile&path=/users/42").await;
    assert_eq!(told["decision"]["shard"]["slot"], json!(8_000));
    let told = plane.json("/v1/services/profile/sharding").await;
    assert_eq!(told["sharding"], sharding);
    assert_eq!(told["rule"]["shards"][1]["holds"], json!("8192-16383"));
    let endpoint = json!({ "address": "127.0.0.1:1", "shard": "1", "role": "replica", "ttl": "10s" });
    plane.put("/v1/membership/profile/a", &endpoint).await;
    let served = eventually("membership is published", async || {
        let told = plane.json("/v1/services/profile/sharding").await;
        let shard = told["rule"]["shards"][1].clone();
        if shard["endpoints"] == json!([]) { Err(shard) } else { Ok(shard) }
    })
    .await;
    assert_eq!((&served["endpoints"][0]["role"], &served["primaries"]), (&json!("replica"), &json!(0)));
    let other = json!({ "sharding": { "map": { "0": "0-8190", "1": "8191-16383" } } });
    let refused = plane.call("PATCH", "/v1/services/profile", Some(&other)).await;
    assert_eq!(refused.status(), 409, "{refused:?}");
    let forced = plane.call("PATCH", "/v1/services/profile?force=true", Some(&other)).await;
    assert_eq!(forced.status(), 200, "{forced:?}");
    let said = gilmok(&plane, &["shards", "show", "profile"]).await;
    assert!(said.out.contains("8191-16383  127.0.0.1:1 (replica)  NO PRIMARY"), "{said:?}");
    let drawn = format!("{}{}", "0".repeat(40), "1".repeat(40));
    assert!(said.out.contains(&format!("\n{drawn}\n0 ")), "{said:?}");
    let said = gilmok(&plane, &["shards", "locate", "profile", "42"]).await;
    assert!(said.out.contains("slot       8000"), "{said:?}");
    let refused = plane.json("/v1/explain?service=profile&path=/users").await;
    assert_eq!(refused["decision"]["refused"], json!("http_request_error"), "{refused}");
}
