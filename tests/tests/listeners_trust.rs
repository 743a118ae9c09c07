//! Whom a listener believes (reference P11): trust belongs to where a request came in, not to what it says.

use std::net::SocketAddr;

use gilmok_tests::caller;
use gilmok_tests::message::Message;
use gilmok_tests::proxy::{Proxy, ProxySettings, service};
use gilmok_tests::upstream::Upstream;

const CLAIMS: &str = "Feature-Flags: new-ui;v=on\r\nGilmok-Version: v2\r\nGilmok-Shard: 7\r\nGilmok-Anything: 1\r\n\
    X-Forwarded-For: 9.9.9.9\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil.example\r\n\
    X-Request-Id: chosen\r\n\
    X-Forwarded-Client-Cert: Hash=1\r\nX-Forwarded-User: root\r\nForwarded: for=9.9.9.9\r\n\
    Gilmok_Version: v2\r\nfeature_flags: new-ui\r\nX_Forwarded-For: 9.9.9.9\r\nuser_id: kept\r\nFeature-Policy: kept\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n";

async fn through(listener: SocketAddr, host: &str, upstream: &Upstream) -> Message {
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n{CLAIMS}\r\n");
    let answer = caller::ask(listener, request).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    upstream.requests().pop().expect("the request arrived")
}

fn claims_are_gone(seen: &Message) {
    assert_eq!(seen.header("feature-flags"), None, "{seen:?}");
    assert_ne!(seen.header("gilmok-version"), Some("v2"), "{seen:?}");
    assert_ne!(seen.header("gilmok-shard"), Some("7"), "{seen:?}");
    assert_eq!(seen.header("gilmok-anything"), None, "{seen:?}");
    assert_eq!(seen.header("feature-policy"), Some("kept"), "only our own fields are ours: {seen:?}");
    look_alikes_are_gone(seen);
}

/// What an application behind CGI's names would take for a field of ours.
fn look_alikes_are_gone(seen: &Message) {
    for name in ["gilmok_version", "feature_flags", "x_forwarded-for"] {
        assert_eq!(seen.header(name), None, "{seen:?}");
    }
    assert_eq!(seen.header("user_id"), Some("kept"), "{seen:?}");
}

fn forwarding_is_overwritten(seen: &Message, host: &str) {
    assert_eq!(seen.all("x-forwarded-for"), ["127.0.0.1"], "{seen:?}");
    assert_eq!(seen.all("x-forwarded-proto"), ["http"], "{seen:?}");
    assert_eq!(seen.all("x-forwarded-host"), [host], "{seen:?}");
    for name in ["x-forwarded-client-cert", "x-forwarded-user", "forwarded"] {
        assert_eq!(seen.header(name), None, "{seen:?}");
    }
    assert_ne!(seen.header("x-request-id"), Some("chosen"), "{seen:?}");
    assert_eq!(seen.all("x-request-id").len(), 1, "{seen:?}");
}

fn mesh(upstream: &Upstream) -> String {
    let route = "[[routes]]\nhosts = [\"shop.example.com\"]\nservice = \"app\"\n";
    format!("{}{route}", service("app", "", &[upstream.address]))
}

#[tokio::test]
async fn an_edge_listener_believes_nobody() {
    let upstream = Upstream::saying("fine").await;
    let proxy =
        Proxy::start_with(ProxySettings::of_mesh(mesh(&upstream)).listen("edge = \"127.0.0.1:0\"")).await;
    let seen = through(proxy.edge(), "shop.example.com", &upstream).await;
    claims_are_gone(&seen);
    forwarding_is_overwritten(&seen, "shop.example.com");
}

#[tokio::test]
async fn an_edge_listener_serves_only_hosts_that_routes_name() {
    let upstream = Upstream::saying("never").await;
    let proxy =
        Proxy::start_with(ProxySettings::of_mesh(mesh(&upstream)).listen("edge = \"127.0.0.1:0\"")).await;
    for host in ["app", "app.mesh", "app.service.consul", "other.example.com"] {
        let answer = caller::ask(proxy.edge(), caller::get(host, "/")).await;
        assert_eq!(answer.status(), 404, "{host}: {answer:?}");
    }
    assert!(upstream.requests().is_empty());
}

#[tokio::test]
async fn an_edge_listener_makes_no_tunnels() {
    let upstream = Upstream::saying("never").await;
    let settings = ProxySettings::of_mesh(mesh(&upstream))
        .listen("edge = \"127.0.0.1:0\"")
        .table("[outbound]\nunknown_hosts = \"pass\"");
    let proxy = Proxy::start_with(settings).await;
    let connect = format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", upstream.address);
    assert!(caller::ask(proxy.edge(), connect).await.status() >= 400);
    let unknown = caller::get(&upstream.address.to_string(), "/");
    assert_eq!(caller::ask(proxy.edge(), unknown).await.status(), 404);
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn an_inbound_listener_believes_trusted_addresses() {
    let upstream = Upstream::saying("fine").await;
    let settings = ProxySettings::of_mesh("[services.app]\n").app("app", upstream.address, "");
    let proxy = Proxy::start_with(settings).await;
    let seen = through(proxy.inbound(0), "app", &upstream).await;
    assert_eq!(seen.header("feature-flags"), Some("new-ui;v=on"), "{seen:?}");
    assert_eq!(seen.header("gilmok-version"), Some("v2"));
    assert_eq!(seen.header("gilmok-shard"), Some("7"));
    assert_eq!(seen.header("x-forwarded-for"), Some("9.9.9.9, 127.0.0.1"));
    assert_eq!(seen.header("x-forwarded-proto"), Some("https"));
    assert_eq!(seen.header("x-forwarded-host"), Some("evil.example"));
    assert_eq!(seen.header("x-request-id"), Some("chosen"));
    assert_eq!(seen.header("x-forwarded-user"), Some("root"));
    look_alikes_are_gone(&seen);
}

#[tokio::test]
async fn nothing_is_claimed_in_trailers() {
    let upstream = Upstream::saying("fine").await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let names = "Gilmok-Version, X-Forwarded-For, X_Request_Id, X-Sum";
    let request = format!(
        "POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\nTrailer: {names}\r\n\r\n1\r\na\r\n0\r\n\
         Gilmok-Version: v2\r\nX-Forwarded-For: 9.9.9.9\r\nX_Request_Id: 1\r\nX-Sum: 7\r\n\r\n"
    );
    assert_eq!(caller::ask(proxy.outbound(), request).await.status(), 200);
    let seen = upstream.only_request().await;
    assert_eq!(seen.trailers, [("x-sum".to_owned(), "7".to_owned())], "{seen:?}");
}

#[tokio::test]
async fn an_inbound_listener_does_not_believe_others() {
    let upstream = Upstream::saying("fine").await;
    let settings = ProxySettings::of_mesh("[services.app]\n").listen("trusted = [\"10.0.0.0/8\"]");
    let proxy = Proxy::start_with(settings.app("app", upstream.address, "")).await;
    let seen = through(proxy.inbound(0), "app", &upstream).await;
    claims_are_gone(&seen);
    forwarding_is_overwritten(&seen, "app");
}

#[tokio::test]
async fn an_inbound_listener_serves_its_app_whatever_the_host_is() {
    let upstream = Upstream::saying("fine").await;
    let other = Upstream::saying("never").await;
    let settings = ProxySettings::of_mesh(service("other", "", &[other.address]));
    let proxy = Proxy::start_with(settings.app("app", upstream.address, "")).await;
    for host in ["app", "other", "10.1.2.3:80", "whatever.example.com"] {
        let answer = caller::ask(proxy.inbound(0), caller::get(host, "/")).await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, "fine"), "{host}");
    }
    assert!(other.requests().is_empty());
}

#[tokio::test]
async fn an_outbound_listener_removes_what_the_app_claims() {
    let upstream = Upstream::saying("fine").await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let seen = through(proxy.outbound(), "app", &upstream).await;
    claims_are_gone(&seen);
}

#[tokio::test]
async fn an_outbound_listener_tells_what_it_knows() {
    let upstream = Upstream::saying("fine").await;
    let mesh = format!(
        "[services.app]\n[[services.app.endpoints]]\naddress = \"{}\"\nversion = \"v1\"\nshard = \"3\"\n",
        upstream.address
    );
    let proxy = Proxy::start(mesh).await;
    assert_eq!(proxy.get("app", "/").await.status(), 200);
    let seen = upstream.only_request().await;
    assert_eq!(seen.header("gilmok-version"), Some("v1"), "{seen:?}");
    assert_eq!(seen.header("gilmok-shard"), Some("3"), "{seen:?}");
    let left: u64 = seen.header("gilmok-timeout").unwrap().parse().unwrap();
    assert!((1..=15_000).contains(&left), "{left}");
    let trace = seen.header("traceparent").unwrap();
    let parts: Vec<&str> = trace.split('-').collect();
    assert!(parts.len() == 4 && parts[1].len() == 32 && parts[2].len() == 16, "{trace}");
    assert!(seen.header("x-request-id").is_some());
}

#[tokio::test]
async fn a_trace_goes_on_through_the_proxy() {
    let upstream = Upstream::saying("fine").await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let seen = through(proxy.outbound(), "app", &upstream).await;
    let trace = seen.header("traceparent").unwrap();
    assert!(trace.starts_with("00-0af7651916cd43dd8448eb211c80319c-"), "{trace}");
}

#[tokio::test]
async fn the_admin_listener_tells_how_it_decides_only_when_asked() {
    let upstream = Upstream::saying("fine").await;
    let mesh = format!(
        "[services.app]\n[[services.app.endpoints]]\naddress = \"{}\"\nversion = \"v1\"\n",
        upstream.address
    );
    let proxy = Proxy::start(mesh).await;
    let answer = proxy.get("app", "/").await;
    assert_eq!(answer.header("gilmok-decision"), None, "{answer:?}");
    let asked = proxy.caller().await.ask("GET / HTTP/1.1\r\nHost: app\r\nGilmok-Explain: 1\r\n\r\n").await;
    assert!(asked.header("gilmok-decision").unwrap_or_default().contains("version=v1"), "{asked:?}");
    assert_eq!(upstream.requests()[1].header("gilmok-explain"), None);
}
