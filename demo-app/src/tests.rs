//! The app over real connections: what callers see of it.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::app::App;
use crate::arguments::Arguments;
use crate::serve::live;

const SOON: Duration = Duration::from_secs(10);

/// An app on a free port; gone with this value.
struct Running {
    address: SocketAddr,
    task: JoinSet<anyhow::Result<ExitCode>>,
}

async fn start(args: &[&str]) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = App::new(Arguments::try_parse_from([&["app"], args].concat()).unwrap());
    let mut task = JoinSet::new();
    task.spawn(async move { live(listener, &app).await });
    Running { address, task }
}

impl Running {
    async fn ask(&self, request: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(SOON, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    async fn get(&self, path: &str) -> (u16, String) {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await
    }

    async fn order(&self, order: &str) -> u16 {
        let request = format!("POST /control/{order} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        self.ask(&request).await.0
    }

    async fn json(&self, path: &str) -> Value {
        let (status, body) = self.get(path).await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }
}

#[tokio::test]
async fn any_path_is_answered_with_who_answers() {
    let ads = start(&["--service", "ads", "--version", "v2", "--shard", "1"]).await;
    let said = ads.json("/some/where?x=1").await;
    assert_eq!(
        (&said["service"], &said["version"], &said["shard"]),
        (&"ads".into(), &"v2".into(), &"1".into())
    );
    assert_eq!(said["path"], "/some/where?x=1");
    assert_eq!(said["headers"]["host"], "x");
    assert!(ads.get("/?format=html").await.1.starts_with("<!doctype html>"));
}

#[tokio::test]
async fn it_fails_as_told_and_is_well_again_when_told() {
    let ads = start(&["--service", "ads", "--version", "v7"]).await;
    assert_eq!(ads.order("fail?percent=100&status=503").await, 200);
    let (status, said) = ads.get("/").await;
    assert_eq!(status, 503);
    assert!(said.contains("\"version\":\"v7\""), "who fails is told: {said}");
    assert_eq!(ads.get("/healthz").await.0, 200);
    assert_eq!(ads.order("fail?status=500&health=false").await, 200);
    assert_eq!(ads.get("/healthz").await.0, 500);
    assert_eq!(ads.order("ok").await, 200);
    assert_eq!(ads.get("/").await.0, 200);
}

#[tokio::test]
async fn orders_are_given_by_post_and_must_make_sense() {
    let ads = start(&["--service", "ads"]).await;
    assert_eq!(ads.get("/control/hang").await.0, 405);
    assert_eq!(ads.order("sleep").await, 400);
    assert_eq!(ads.get("/").await.0, 200);
}

#[tokio::test]
async fn what_hangs_is_answered_once_the_app_is_told_to_be_well() {
    let ads = start(&["--service", "ads"]).await;
    ads.order("hang").await;
    let mut hanging = std::pin::pin!(ads.get("/"));
    let early = tokio::time::timeout(Duration::from_millis(100), hanging.as_mut()).await;
    assert!(early.is_err(), "{early:?}");
    assert_eq!(ads.order("ok").await, 200);
    assert_eq!(hanging.await.0, 200);
}

#[tokio::test]
async fn an_app_that_dies_answers_what_it_took_and_nothing_else() {
    let mut ads = start(&["--service", "ads"]).await;
    let body = "0123456789";
    let mut upload = TcpStream::connect(ads.address).await.unwrap();
    let head = format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    upload.write_all(head.as_bytes()).await.unwrap();
    // Its head has come back: the request is under way.
    let mut head = [0; 1024];
    let read = tokio::time::timeout(SOON, upload.read(&mut head)).await.unwrap().unwrap();
    assert!(head[..read].starts_with(b"HTTP/1.1 200"));
    assert_eq!(ads.order("die").await, 202);
    upload.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(SOON, upload.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.ends_with(body), "{answer}");
    let code = tokio::time::timeout(SOON, ads.task.join_next()).await.unwrap().unwrap().unwrap().unwrap();
    assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(1)));
    assert!(TcpStream::connect(ads.address).await.is_err());
}

#[tokio::test]
async fn a_body_is_echoed() {
    let ads = start(&["--service", "ads"]).await;
    let request = "POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello";
    assert_eq!(ads.ask(request).await, (200, "hello".to_owned()));
}

#[tokio::test]
async fn the_shop_shows_what_the_others_answer_and_says_what_is_missing() {
    // It answers for every service, as a proxy would.
    let mesh = start(&["--service", "ads"]).await;
    let shop = start(&["--service", "shop", "--mesh", &format!("http://{}", mesh.address)]).await;
    let request =
        "GET / HTTP/1.1\r\nHost: shop\r\nX-User-Id: ada\r\nX-Request-Id: r1\r\nConnection: close\r\n\r\n";
    let said: Value = serde_json::from_str(&shop.ask(request).await.1).unwrap();
    assert_eq!(said["whole"], true);
    for service in ["ads", "checkout", "profile"] {
        let arrived = &said["parts"][service]["answer"]["headers"];
        assert_eq!(arrived["host"], service);
        assert_eq!(arrived["x-request-id"], "r1");
        assert_eq!(arrived["x-user-id"], "ada");
    }
    assert_eq!(said["parts"]["profile"]["answer"]["path"], "/users/ada");

    mesh.order("fail?status=503").await;
    let said = shop.json("/").await;
    assert_eq!(said["whole"], false);
    assert_eq!(said["missing"], serde_json::json!(["ads", "checkout", "profile"]));
    assert_eq!(said["parts"]["ads"]["failed"], "answered 503 Service Unavailable");
}

#[tokio::test]
async fn what_a_shard_keeps_is_copied_to_another_one_by_the_newest_message() {
    let (old, new) = tokio::join!(start(&["--service=profile"]), start(&["--service=profile"]));
    let visit = "POST /users/ada HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let tell = async |event: &str, number: u64| {
        let batch = serde_json::json!({"detail": {"slots": [[0, 16_383]]}});
        let endpoints =
            serde_json::json!({"from": [{"address": old.address}], "to": [{"address": new.address}]});
        let message = serde_json::json!({
            "event": event, "move": 7, "number": number, "batch": batch, "endpoints": endpoints
        });
        let message = message.to_string();
        let length = message.len();
        let head = format!(
            "POST /moves HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        new.ask(&format!("{head}{message}")).await.0
    };
    for _ in 0..3 {
        assert_eq!(old.ask(visit).await.0, 200);
    }
    assert_eq!(tell("copy", 1).await, 200);
    assert_eq!(old.ask(visit).await.0, 200);
    assert_eq!(new.json("/users/ada").await["visits"], 3);
    assert_eq!(tell("fenced", 2).await, 200);
    assert_eq!(new.json("/users/ada").await["visits"], 4, "the last copy counts");
    assert_eq!(new.ask(visit).await.0, 200);
    assert_eq!(tell("copy", 1).await, 502, "it comes too late");
    assert_eq!(tell("moved", 3).await, 200);
    assert_eq!(new.json("/users/ada").await["visits"], 5);
    let (status, _) =
        new.ask("POST /moves HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}").await;
    assert_eq!(status, 502, "no message");
}
