//! Tokens of the control plane, as callers from other machines need them: what each lets them do, and until when.

use std::net::SocketAddr;
use std::time::Duration;

use gilmok_tests::control_plane::{ControlPlane, call, call_with};
use gilmok_tests::eventually::{SOON, eventually, soon};
use gilmok_tests::operator::{Said, command, gilmok};
use gilmok_tests::process::Signal;
use gilmok_tests::proxy::{Proxy, ProxySettings};
use gilmok_tests::scratch::Scratch;
use gilmok_tests::upstream::Upstream;
use serde_json::{Value as Json, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Makes a token on the machine of the control plane; its text.
async fn token(plane: &ControlPlane, words: &str) -> String {
    let args: Vec<&str> = ["tokens", "create"].into_iter().chain(words.split(' ')).collect();
    let said = gilmok(plane, &args).await;
    assert!(said.code == 0 && said.out.starts_with("gilmok_"), "{said:?}");
    said.out.trim().to_owned()
}

fn id(token: &str) -> &str {
    token.split('_').nth(1).expect("a token has an id")
}

async fn status(at: SocketAddr, token: &str, method: &str, path: &str, body: &Json) -> u16 {
    let answer = call_with(token, at, method, path, Some(body)).await;
    answer.map_or_else(|reason| panic!("{method} {path}: {reason:?}"), |answer| answer.status())
}

#[tokio::test]
async fn from_elsewhere_a_token_does_what_it_is_for_until_it_ends() {
    let plane = ControlPlane::start_at("0.0.0.0:0", "", Scratch::new()).await;
    let there = plane.from_elsewhere();
    for (path, expected) in [("/livez", 200), ("/readyz", 200), ("/v1/status", 401), ("/metrics", 401)] {
        let answer = call(there, "GET", path, None, SOON).await.unwrap();
        assert_eq!(answer.status(), expected, "{path}");
    }
    let admin = token(&plane, "root --scope admin").await;
    let read = token(&plane, "dashboards --scope read").await;
    let flags = token(&plane, "product --scope flags").await;
    let of_shop = token(&plane, "deploys --scope traffic --service shop").await;
    let short = token(&plane, "visit --scope read --ttl 1s").await;
    let gone = token(&plane, "gone --scope admin").await;
    let table = json!({"endpoints": [
        {"address": "127.0.0.1:1", "version": "v1"}, {"address": "127.0.0.1:2", "version": "v2"}]});
    let traffic = json!({"stable": "v1", "weights": {"v1": 50, "v2": 50}});
    for (token, method, path, body, expected) in [
        (&admin, "PUT", "/v1/services/shop", &table, 201),
        (&admin, "PUT", "/v1/services/ads", &table, 201),
        (&read, "GET", "/v1/services/shop", &Json::Null, 200),
        (&read, "PUT", "/v1/services/shop/traffic", &traffic, 403),
        (&read, "GET", "/v1/tokens", &Json::Null, 403),
        (&read, "GET", "/v1/backup", &Json::Null, 403),
        (&read, "GET", "/v1/feed?node=a&wire=1", &Json::Null, 403),
        (&flags, "PUT", "/v1/services/shop/traffic", &traffic, 403),
        (&flags, "PUT", "/v1/flags", &json!({"flags": {}}), 201),
        (&of_shop, "PUT", "/v1/services/shop/traffic", &traffic, 201),
        (&of_shop, "PUT", "/v1/services/ads/traffic", &traffic, 403),
        (&of_shop, "PUT", "/v1/services/shop", &table, 403),
        (&of_shop, "PUT", "/v1/mesh", &json!({}), 403),
        (&of_shop, "PUT", "/v1/flags", &json!({"flags": {}}), 403),
        (&of_shop, "POST", "/v1/tokens", &json!({"name": "more", "scopes": ["admin"]}), 403),
        (&gone, "DELETE", &format!("/v1/tokens/{}", id(&gone)), &Json::Null, 204),
        (&gone, "GET", "/v1/status", &Json::Null, 401),
    ] {
        assert_eq!(status(there, token, method, path, body).await, expected, "{method} {path}");
    }
    eventually("the short one to end", async || {
        let status = status(there, &short, "GET", "/v1/status", &Json::Null).await;
        if status == 401 { Ok(()) } else { Err(status) }
    })
    .await;
    let audit = plane.json("/v1/audit").await;
    assert_eq!(audit[0]["who"], format!("token {} (deploys)", id(&of_shop)), "{audit}");

    // What is kept is kept over a crash, and nothing more is.
    let plane = plane.restart_after(Signal::Kill, "").await;
    let there = SocketAddr::new(there.ip(), plane.address.port());
    for (token, expected) in [(&admin, 200), (&of_shop, 200), (&short, 401), (&gone, 401)] {
        assert_eq!(status(there, token, "GET", "/v1/status", &Json::Null).await, expected);
    }
    let listed = gilmok(&plane, &["tokens"]).await.out;
    assert!(listed.contains("deploys") && listed.contains("ENDED") && !listed.contains("gone"), "{listed}");
    // Nowhere is a secret told again.
    let store = std::fs::read(plane.scratch.path().join("data/gilmok.redb")).unwrap();
    let metrics = plane.get("/metrics").await.text();
    let places = [listed, plane.process.log(), metrics, String::from_utf8_lossy(&store).into_owned()];
    for (place, token) in places.iter().flat_map(|place| [(place, &admin), (place, &of_shop), (place, &gone)])
    {
        let secret = token.rsplit('_').next().unwrap();
        assert!(!place.contains(secret));
    }
    assert!(
        places[2].contains("gilmok_authentication_failures_total{reason=\"unknown\"} 1\n"),
        "{}",
        places[2]
    );
}

#[tokio::test]
async fn operators_make_list_and_revoke_tokens() {
    let plane = ControlPlane::start_at("0.0.0.0:0", "reason_required = true", Scratch::new()).await;
    let said = gilmok(&plane, &["tokens"]).await;
    assert_eq!(said.out, "there is no token; `gilmok tokens create` makes one\n");
    let said = gilmok(&plane, &["tokens", "create", "ci", "--scope", "traffic"]).await;
    assert!(said.code == 1 && said.err.contains("reason"), "{said:?}");
    let create = ["tokens", "create", "ci", "--scope", "traffic", "--scope", "proxy", "--service", "shop"];
    let said = gilmok(&plane, &[&create[..], &["--reason", "deploys", "--json"]].concat()).await;
    let made = said.json();
    assert_eq!(made["scopes"], json!(["traffic", "proxy"]));
    let file = plane.scratch.write("ci.token", made["token"].as_str().unwrap());
    let there = format!("http://{}", plane.from_elsewhere());
    let from_elsewhere = async |args: &[&str]| -> Said {
        soon("the command to end", command(&there, args).output()).await.unwrap().into()
    };
    let said = from_elsewhere(&["status"]).await;
    assert!(said.code == 1 && said.err.contains("--token-file"), "{said:?}");
    let file = file.display().to_string();
    let said = from_elsewhere(&["status", "--token-file", &file]).await;
    assert_eq!(said.code, 0, "{said:?}");
    let said = from_elsewhere(&["flags", "kill", "x", "--token-file", &file, "--reason", "y"]).await;
    assert!(said.code == 1 && said.err.contains("the scope `flags`"), "{said:?}");
    let said = gilmok(&plane, &["tokens", "create", "x", "--scope", "joni", "--reason", "y"]).await;
    assert!(said.code == 1 && said.err.contains("scopes[0]: `joni` is no scope"), "{said:?}");
    let id = made["id"].as_str().unwrap();
    let said = gilmok(&plane, &["tokens", "revoke", id, "--reason", "leaked"]).await;
    assert_eq!(said.out, format!("the token {id} is nobody's any more\n"));
    let said = from_elsewhere(&["status", "--token-file", &file]).await;
    assert!(said.code == 1 && said.err.contains("not known"), "{said:?}");
    let said = gilmok(&plane, &["tokens", "audit"]).await;
    let lines: Vec<_> = said.out.lines().collect();
    assert!(
        lines[1].contains("kim") && lines[1].contains("revoke") && lines[1].ends_with("leaked"),
        "{said:?}"
    );
    assert!(lines[2].contains("create") && lines[2].ends_with("deploys"), "{said:?}");
}

/// A proxy beside an app of `shop` that follows from elsewhere with this token.
async fn follower(plane: &ControlPlane, token: &str, app: SocketAddr) -> Proxy {
    let scratch = Scratch::new();
    scratch.write("token", token);
    let source =
        format!("[source]\ncontrol_plane = [\"http://{}\"]\ntoken_file = \"token\"", plane.from_elsewhere());
    let settings = ProxySettings::default().table(&source).app("shop", app, "");
    Proxy::start_unready(settings, scratch).await
}

#[tokio::test]
async fn a_proxy_with_a_token_of_another_service_registers_nothing_and_acks_for_nobody() {
    let plane = ControlPlane::start_at("0.0.0.0:0", "", Scratch::new()).await;
    plane.put("/v1/services/shop", &json!({})).await;
    let app = Upstream::saying("here").await;
    let of_ads = token(&plane, "thief --scope proxy --service ads").await;
    let of_shop = token(&plane, "sidecar --scope proxy --service shop").await;
    let thief = follower(&plane, &of_ads, app.address).await;
    for told in ["takes no acks: answered 403 Forbidden", "the service `shop`"] {
        eventually("it to be refused", async || {
            let log = thief.process.log();
            if log.contains(told) { Ok(()) } else { Err(log) }
        })
        .await;
    }
    assert_eq!(plane.json("/v1/proxies").await, json!([]));
    assert_eq!(plane.get("/v1/membership/shop").await.status(), 404);
    drop(thief);
    let honest = follower(&plane, &of_shop, app.address).await;
    honest.is_ready().await;
    eventually("its app to be registered", async || {
        let members = plane.get("/v1/membership/shop").await;
        if members.status() == 200 { Ok(()) } else { Err(members.text()) }
    })
    .await;
    // Revoked, it goes on with what it has; nobody hears of it any more.
    let revoked = plane.call("DELETE", &format!("/v1/tokens/{}", id(&of_shop)), None).await;
    assert_eq!(revoked.status(), 204);
    eventually("it to be refused", async || {
        let log = honest.process.log();
        if log.contains("takes no acks: answered 4") { Ok(()) } else { Err(log) }
    })
    .await;
    assert_eq!(honest.get("shop", "/").await.status(), 200);
    assert!(!honest.process.log().contains(&of_shop[30..]), "no secret in a log");
}

#[tokio::test]
async fn guesses_and_garbage_get_nobody_in_and_others_are_served() {
    let scratch = Scratch::new();
    scratch.write("token", "chosen");
    let plane =
        ControlPlane::start_at("0.0.0.0:0", "token_file = \"token\"\nloopback = \"token\"", scratch).await;
    let there = plane.from_elsewhere();
    for (at, expected) in [(plane.address, 401), (there, 401)] {
        let answer = call(at, "GET", "/v1/status", None, SOON).await.unwrap();
        assert_eq!(answer.status(), expected, "this machine shows a token too");
    }
    assert_eq!(status(there, "chosen", "GET", "/v1/status", &Json::Null).await, 200);
    let wish = json!({"name": "a", "scopes": ["read"]});
    let made = call_with("chosen", there, "POST", "/v1/tokens", Some(&wish)).await.unwrap();
    let made: Json = serde_json::from_slice(&made.body).unwrap();
    let made = made["token"].as_str().unwrap();
    let long = "x".repeat(60_000);
    let odd = [
        "Authorization: Bearer \u{7f}\u{80}ÿ",
        "Authorization: Bearer",
        "Authorization: Bearer gilmok__",
        "Authorization: Bearer a\r\nAuthorization: Bearer chosen",
        "Authorization: Basic Y2hvc2Vu",
        &format!("Authorization: Bearer {long}"),
    ];
    for header in odd {
        let mut caller = TcpStream::connect(there).await.unwrap();
        let request = format!("GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{header}\r\n\r\n");
        caller.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        drop(tokio::time::timeout(SOON, caller.read_to_end(&mut answer)).await.unwrap());
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 4"), "{}: {answer}", &header[..header.len().min(60)]);
    }
    let mut barred = None;
    for guess in 0..20 {
        let answer = call_with(&format!("guess{guess}"), there, "GET", "/v1/status", None).await.unwrap();
        if answer.status() == 429 {
            barred = Some(answer);
            break;
        }
        assert_eq!(answer.status(), 401);
    }
    let wait: u64 = barred.expect("too many").header("retry-after").unwrap().parse().unwrap();
    assert!(wait <= 7, "{wait}");
    assert_eq!(
        status(there, "chosen", "GET", "/v1/status", &Json::Null).await,
        429,
        "not even the right one"
    );
    assert_eq!(status(there, made, "GET", "/v1/status", &Json::Null).await, 200, "nobody guesses this one");
    assert_eq!(
        status(plane.address, "chosen", "GET", "/v1/status", &Json::Null).await,
        200,
        "another address"
    );
    tokio::time::sleep(Duration::from_secs(wait)).await;
    assert_eq!(status(there, "chosen", "GET", "/v1/status", &Json::Null).await, 200, "it was waited for");
}
