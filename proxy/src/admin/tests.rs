//! What the admin listener answers, and to whom.

use std::ffi::OsString;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::level_filters::LevelFilter;

use super::*;
use crate::last_good::LastGoodStore;
use crate::metrics::TargetSeries;
use crate::source::Here;
use crate::testing::Folder;
use gilmok_config::name::Name;

const MESH: &str = "[services.ads]\nhealth_check = { tcp = true }\n\
    [[services.ads.endpoints]]\naddress = \"127.0.0.1:1\"\nversion = \"v1\"\n\
    [[routes]]\nhosts = [\"shop.example.com\"]\npath_prefix = \"/ads\"\nservice = \"ads\"\n";

struct Listening {
    address: SocketAddr,
    admin: Arc<Admin>,
    _folder: Folder,
    _tasks: JoinSet<()>,
}

async fn listening(scope: Scope) -> Listening {
    let folder = Folder::new("admin");
    let mesh = folder.join("mesh.toml");
    std::fs::write(&mesh, MESH).unwrap();
    let args = ["gilmok-proxy", "--mesh", mesh.to_str().unwrap()].map(OsString::from);
    let (_, settings) = Settings::load(args, &|_| None).unwrap();
    let drain = Drain::new();
    let in_force = Arc::new(InForce::new(1, Name::default(), Vec::new()));
    let identity = Identity { node: "web-1".to_owned(), instance: "1".to_owned() };
    let mut tasks = JoinSet::new();
    let here = Here {
        identity: identity.clone(),
        apps: Vec::new(),
        tls: Arc::default(),
        enrolled: watch::Sender::default(),
    };
    let sources = Sources::start(&settings, &here, &in_force, drain.phases(), &mut tasks).unwrap();
    let shared = Shared {
        in_force: Arc::clone(&in_force),
        limits: settings.limits.clone(),
        trusted: settings.listen.trusted.clone(),
        unknown_hosts: settings.outbound.unknown_hosts,
        outbound: None,
        access_log: None,
        phase: drain.phases(),
        connections: Arc::new(Semaphore::new(1)),
        per_ip: Default::default(),
        open: Default::default(),
        malformed: Default::default(),
        tls: Default::default(),
        last_good: Arc::new(LastGoodStore::new(settings.limits.last_good_bytes)),
        nowhere: Arc::new(TargetSeries::new(Name::default(), Name::default(), 1)),
        held: Default::default(),
    };
    let admin = Arc::new(Admin {
        settings,
        identity,
        listeners: json!({}),
        in_force,
        sources: Arc::new(sources),
        enrolment: None,
        drain,
        shared: Arc::new(shared),
        logs: Logs::start(LevelFilter::INFO),
        metrics: Metrics::start(),
        apps_healthy: Vec::new(),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks.spawn(serve(listener, Arc::clone(&admin), scope));
    Listening { address, admin, _folder: folder, _tasks: tasks }
}

impl Listening {
    /// Sends a request as it stands; the whole answer.
    async fn raw(&self, request: &str) -> String {
        let mut socket = TcpStream::connect(self.address).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    /// Status and body.
    async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let length = body.len();
        let answer = self
            .raw(&format!(
                "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
            ))
            .await;
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    async fn json(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let (status, body) = self.ask(method, path, body).await;
        (status, serde_json::from_str(&body).unwrap())
    }
}

#[tokio::test]
async fn what_is_in_force_can_be_seen() {
    let listening = listening(Scope::Everything).await;
    let (status, config) = listening.json("GET", "/config", "").await;
    assert_eq!(status, 200);
    assert_eq!((&config["state"], &config["services"]), (&json!("ready"), &json!(1)));
    assert_eq!(config["hash"], gilmok_config::hash::content_hash(MESH.as_bytes()));
    assert_eq!(config["settings"]["limits"]["connections"], 16_384);
    let (_, told) = listening.json("GET", "/endpoints?service=ads", "").await;
    assert_eq!(told["services"][0]["endpoints"][0]["version"], "v1");
    assert_eq!(told["services"][0]["endpoints"][0]["health"], "unchecked");
    let (_, told) = listening.json("GET", "/endpoints?service=other", "").await;
    assert_eq!(told["services"], json!([]));
}

#[tokio::test]
async fn decisions_are_explained_by_what_decides() {
    let listening = listening(Scope::Everything).await;
    let (status, told) = listening.json("GET", "/explain?service=ads", "").await;
    assert_eq!((status, &told["decision"]["service"]), (200, &json!("ads")));
    let body = r#"{"method":"GET","host":"shop.example.com","path":"/ads/1","headers":{"x-a":["1","2"]}}"#;
    let (_, told) = listening.json("POST", "/explain", body).await;
    assert_eq!(told["decision"]["route"]["place"], 0);
    let (status, told) = listening.json("GET", "/explain?host=shop.example.com&path=/other", "").await;
    assert_eq!((status, &told["refusal"]["status"]), (200, &json!(404)));
    for (method, path, body) in [
        ("GET", "/explain", ""),
        ("GET", "/explain?host=%20", ""),
        ("GET", "/explain?service=ads&listener=side", ""),
        ("POST", "/explain", "no JSON"),
        ("POST", "/explain", r#"{"host":3}"#),
        ("POST", "/explain", r#"{"host":"ads","headers":{"a b":"c"}}"#),
    ] {
        let (status, problem) = listening.json(method, path, body).await;
        assert_eq!(status, 400, "{path} {body}: {problem}");
    }
}

#[tokio::test]
async fn what_is_not_there_is_told_with_what_is() {
    let listening = listening(Scope::Everything).await;
    let (status, problem) = listening.json("GET", "/confg", "").await;
    assert_eq!(status, 404);
    assert!(problem["paths"].as_array().unwrap().contains(&json!("GET /config")));
    let (status, problem) = listening.json("POST", "/config", "").await;
    assert_eq!((status, &problem["detail"]), (405, &json!("/config is asked by GET, not by POST")));
    let answer =
        listening.raw("DELETE /explain HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
    assert!(
        answer.contains("allow: GET, POST\r\n") && answer.contains("application/problem+json"),
        "{answer}"
    );
    let answer = listening.raw("HEAD /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn the_level_of_the_log_changes_live() {
    let listening = listening(Scope::Everything).await;
    let (status, told) = listening.json("PUT", "/log", r#"{"level":"debug"}"#).await;
    assert_eq!((status, told), (200, json!({"level": "debug"})));
    assert_eq!(listening.admin.logs.level(), LevelFilter::DEBUG);
    assert_eq!(listening.json("PUT", "/log", r#"{"level":"loud"}"#).await.0, 400);
    assert_eq!(listening.json("PUT", "/log", r#"{}"#).await.0, 400);
    let large = format!("{{\"level\":\"{}\"}}", "x".repeat(BODY_BYTES_MAX));
    assert_eq!(listening.json("PUT", "/log", &large).await.0, 413);
    assert_eq!(listening.json("GET", "/log", "").await.1, json!({"level": "debug"}));
}

#[tokio::test]
async fn a_drain_makes_it_unready() {
    let listening = listening(Scope::Everything).await;
    assert_eq!(listening.ask("GET", "/readyz", "").await, (200, "ready\n".to_owned()));
    assert_eq!(listening.json("POST", "/drain", "").await, (200, json!({"state": "draining"})));
    let (status, problem) = listening.json("GET", "/readyz", "").await;
    assert_eq!((status, &problem["detail"]), (503, &json!("draining")));
    assert_eq!(listening.ask("GET", "/livez", "").await.0, 200);
    let (status, problem) = listening.json("POST", "/accept-store", r#"{"store":"s"}"#).await;
    assert_eq!(status, 409, "a mesh file has no store: {problem}");
}

#[tokio::test]
async fn pages_in_a_browser_are_refused() {
    let listening = listening(Scope::Everything).await;
    for request in [
        "POST /drain HTTP/1.1\r\nhost: localhost\r\norigin: http://evil.example\r\nconnection: close\r\n\r\n",
        "GET /config HTTP/1.1\r\nhost: rebound.evil.example\r\nconnection: close\r\n\r\n",
    ] {
        let answer = listening.raw(request).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    }
    for host in ["localhost:15000", "127.0.0.1:15000", "[::1]:15000", "web-1"] {
        let request = format!("GET /livez HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        assert!(listening.raw(&request).await.starts_with("HTTP/1.1 200"), "{host}");
    }
    assert_eq!(listening.admin.drain.phase(), Phase::Serving);
}

#[test]
fn strangers_are_refused_unless_they_show_the_token() {
    let dir = Folder::new("admin-token");
    let admit = |file: Option<&Path>, ip: &str, shown: Option<&str>| {
        let mut request = Request::get("/config");
        if let Some(shown) = shown {
            request = request.header("authorization", format!("Bearer {shown}"));
        }
        let request = request.body(()).unwrap();
        let admitted = admit(file, ip.parse().unwrap(), request.headers());
        admitted.map_or_else(|problem| problem.into_response().status().as_u16(), |()| 200)
    };
    for ip in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
        assert_eq!(admit(None, ip, None), 200, "{ip}");
        assert_eq!(admit(None, ip, Some("whatever")), 200, "there is no token: {ip}");
    }
    for ip in ["10.0.0.9", "fe80::1"] {
        assert_eq!(admit(None, ip, Some("")), 403, "nobody from elsewhere: {ip}");
    }
    let file = dir.join("token");
    std::fs::write(&file, "secret\n").unwrap();
    for (ip, shown, expected) in [
        ("127.0.0.1", None, 200),
        ("127.0.0.1", Some("secre"), 401),
        ("10.0.0.9", None, 401),
        ("10.0.0.9", Some("secre"), 401),
        ("10.0.0.9", Some("secret"), 200),
    ] {
        assert_eq!(admit(Some(&file), ip, shown), expected, "{ip} {shown:?}");
    }
    std::fs::remove_file(&file).unwrap();
    assert_eq!(admit(Some(&file), "10.0.0.9", Some("secret")), 503);
}

#[test]
fn a_host_that_cannot_be_read_is_not_this_machine() {
    let admitted = |host: &[u8]| {
        let headers = http::HeaderMap::from_iter([(http::header::HOST, host.try_into().unwrap())]);
        super::admit(None, "127.0.0.1".parse().unwrap(), &headers).is_ok()
    };
    for host in ["a b", "", "\u{e9}vil.example", "evil.example", "evil.example:15000", "localhost.."] {
        assert!(!admitted(host.as_bytes()), "{host}");
    }
    for host in ["localhost:15000", "127.0.0.1:15000", "[::1]:15000", "web-1"] {
        assert!(admitted(host.as_bytes()), "{host}");
    }
}

#[tokio::test]
async fn the_metrics_listener_answers_nothing_else() {
    let listening = listening(Scope::Watching).await;
    let (status, text) = listening.ask("GET", "/metrics", "").await;
    assert_eq!(status, 200);
    assert!(text.contains("gilmok_health_fail_open{service=\"ads\"} 0\n"), "{text}");
    assert!(!text.contains("gilmok_endpoint_healthy"), "nobody has called it: {text}");
    assert_eq!(listening.ask("GET", "/readyz", "").await.0, 200);
    for (method, path) in [("GET", "/config"), ("POST", "/drain"), ("PUT", "/log")] {
        assert_eq!(listening.ask(method, path, "").await.0, 404, "{path}");
    }
}
