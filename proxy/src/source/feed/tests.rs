//! A scripted control plane that misbehaves, and what the feed makes of it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use gilmok_config::name::Name;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::testing::eventually;

/// What one connection is answered with, as it goes over the wire; then it closes, or stays open.
#[derive(Clone)]
struct Script {
    bytes: String,
    stays: bool,
}

/// A control plane that plays one script for each connection, the last one again and again.
struct Plane {
    server: Server,
    connections: Arc<AtomicUsize>,
    targets: Arc<Mutex<Vec<String>>>,
}

fn lines(lines: &[&str]) -> Script {
    let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
    Script { bytes: format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{body}"), stays: true }
}

fn raw(text: &str) -> Script {
    Script { bytes: text.to_owned(), stays: false }
}

const HELLO: &str = r#"{"line":"hello","store":"s","revision":1,"hash":"one","wire":1}"#;
const DOCUMENT: &str = r#"{"line":"document","revision":1,"hash":"46d83c3ec3be07508a0fa92270827e16","document":{"services":{"ads":{}}}}"#;
const ENDPOINTS: &str = r#"{"line":"endpoints","service":"ads","endpoints":[{"address":"10.0.0.1:80"}]}"#;
const SYNCED: &str = r#"{"line":"synced","revision":1}"#;

impl Plane {
    async fn start(scripts: Vec<Script>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let targets = Arc::new(Mutex::new(Vec::new()));
        let (counted, noted) = (Arc::clone(&connections), Arc::clone(&targets));
        tokio::spawn(async move {
            let mut scripts = VecDeque::from(scripts);
            let mut open = Vec::new();
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(socket.read_u8().await.unwrap());
                }
                let first = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
                noted.lock().unwrap().push(first);
                counted.fetch_add(1, Relaxed);
                let script = if scripts.len() > 1 { scripts.pop_front() } else { scripts.front().cloned() };
                let script = script.unwrap();
                socket.write_all(script.bytes.as_bytes()).await.unwrap();
                if script.stays {
                    open.push(socket);
                }
            }
        });
        Self { server, connections, targets }
    }
}

struct Proxy {
    feed: Arc<Feed>,
    in_force: Arc<InForce>,
    status: Arc<Status>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn follow(planes: &[&Plane]) -> Proxy {
    let in_force = Arc::new(InForce::new(1, Name::default(), Vec::new()));
    let status = Arc::new(Status::new("control planes"));
    let identity = Identity { node: "web-1".to_owned(), instance: "1".to_owned() };
    let here = Here {
        identity,
        apps: Vec::new(),
        tls: Arc::default(),
        enrolled: tokio::sync::watch::Sender::default(),
    };
    let servers = planes.iter().map(|plane| plane.server.clone()).collect();
    let feed = Arc::new(Feed::new(
        servers,
        None,
        here,
        Arc::clone(&in_force),
        Arc::clone(&status),
        true,
        Joiner::default(),
    ));
    let task = tokio::spawn({
        let feed = Arc::clone(&feed);
        async move { feed.follow().await }
    });
    Proxy { feed, in_force, status, task }
}

#[tokio::test]
async fn a_feed_is_put_in_force_once_it_is_complete() {
    let plane = Plane::start(vec![lines(&[HELLO, DOCUMENT, ENDPOINTS, SYNCED])]).await;
    let proxy = follow(&[&plane]);
    eventually("in force", || proxy.in_force.load().generation == 1).await;
    let current = proxy.in_force.load();
    assert_eq!(current.snapshot.services()[0].endpoints.len(), 1);
    assert_eq!(current.applied.as_ref().unwrap().revision, 1);
    assert_eq!(proxy.feed.store().as_deref(), Some("s"));
    assert_eq!(
        plane.targets.lock().unwrap()[0],
        "GET /v1/feed?node=web-1&instance=1&wire=1&store=&revision=0 HTTP/1.1"
    );
}

#[tokio::test]
async fn what_a_control_plane_does_wrong_ends_the_connection_and_not_the_proxy() {
    let good = lines(&[HELLO, DOCUMENT, ENDPOINTS, SYNCED]);
    let mut cut = lines(&[HELLO, DOCUMENT]);
    cut.bytes.truncate(cut.bytes.len() - 20);
    cut.stays = false;
    for bad in [
        raw(""),
        raw("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"),
        raw("SSH-2.0-OpenSSH\r\n"),
        raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"),
        lines(&["{\"line\":\"hello\""]),
        lines(&["\u{0}\u{1}garbage"]),
        lines(&[SYNCED]),
        lines(&[HELLO, HELLO]),
        lines(&[HELLO, SYNCED, SYNCED]),
        lines(&[HELLO, r#"{"line":"document","revision":1,"hash":"x","document":{},"required":["quic"]}"#]),
        cut,
    ] {
        let plane = Plane::start(vec![bad, good.clone()]).await;
        let proxy = follow(&[&plane]);
        eventually("in force after a bad connection", || proxy.in_force.load().generation > 0).await;
        assert_eq!(plane.connections.load(Relaxed), 2);
        assert_eq!(proxy.in_force.load().snapshot.services().len(), 1);
    }
}

#[tokio::test]
async fn the_next_control_plane_is_asked_when_one_fails() {
    let dead = Plane::start(vec![raw("")]).await;
    let alive = Plane::start(vec![lines(&[HELLO, DOCUMENT, ENDPOINTS, SYNCED])]).await;
    let proxy = follow(&[&dead, &alive]);
    eventually("fed by the second", || proxy.in_force.load().generation > 0).await;
    assert_eq!(proxy.status.source(), format!("control plane {}", alive.server));
}

#[tokio::test]
async fn a_refused_document_is_told_and_what_was_before_stays() {
    let bad = r#"{"line":"document","revision":2,"hash":"caa73d7178507afd88b823f76aa55c54","document":{"services":{"ads":{"protocol":"tcp"}}}}"#;
    let plane = Plane::start(vec![lines(&[HELLO, DOCUMENT, ENDPOINTS, SYNCED, bad])]).await;
    let proxy = follow(&[&plane]);
    eventually("refused", || proxy.status.rejection().is_some()).await;
    let refused = proxy.status.refusals().borrow().clone().unwrap();
    assert_eq!((refused.revision, refused.store.as_str()), (2, "s"));
    assert_eq!(refused.problems.0[0].path, "services.ads.protocol");
    eventually("the first one in force", || proxy.in_force.load().generation > 0).await;
    assert_eq!(proxy.in_force.load().applied.as_ref().unwrap().revision, 1);
}

#[tokio::test]
async fn a_foreign_store_waits_for_an_operator() {
    let foreign = [
        r#"{"line":"hello","store":"other","revision":1,"hash":"x","wire":1}"#,
        r#"{"line":"document","revision":1,"hash":"d6c58f1007aa9dfe2b2548c42e5a07e8","document":{"services":{"other":{}}}}"#,
        SYNCED,
    ];
    let mut ours = lines(&[HELLO, DOCUMENT, ENDPOINTS, SYNCED]);
    ours.stays = false;
    let plane = Plane::start(vec![ours, lines(&foreign)]).await;
    let proxy = follow(&[&plane]);
    eventually("refused", || proxy.status.foreign_store().is_some()).await;
    assert_eq!(proxy.status.foreign_store().as_deref(), Some("other"));
    assert_eq!(proxy.in_force.load().snapshot.services()[0].name.as_str(), "ads");
    proxy.feed.accept("other");
    eventually("taken", || proxy.in_force.load().snapshot.service_index("other").is_some()).await;
    assert!(proxy.status.rejection().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_silent_feed_is_given_up() {
    let plane = Plane::start(vec![lines(&[HELLO]), lines(&[HELLO, DOCUMENT, ENDPOINTS, SYNCED])]).await;
    let proxy = follow(&[&plane]);
    let began = Instant::now();
    eventually("in force", || proxy.in_force.load().generation > 0).await;
    assert!(began.elapsed() >= SILENCE_MAX, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn pauses_grow_and_vary() {
    let proxy = follow(&[&Plane::start(vec![raw("")]).await]);
    for (failures, least, most) in [(0, 50, 100), (1, 100, 200), (3, 400, 800), (60, 2_500, 5_000)] {
        let pause = proxy.feed.pause(failures).as_millis();
        assert!((least..=most).contains(&pause), "{failures}: {pause} ms");
    }
}
