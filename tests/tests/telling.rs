//! What the proxy tells of requests: its access log, and what `/explain` says beside what happens.

use std::time::Duration;

use gilmok_tests::caller;
use gilmok_tests::eventually::eventually;
use gilmok_tests::load::{Ask, Load};
use gilmok_tests::process::Signal;
use gilmok_tests::proxy::{Proxy, ProxySettings, service};
use gilmok_tests::upstream::Upstream;
use serde_json::Value;

#[tokio::test]
async fn every_request_is_one_line_of_json_without_its_query() {
    let upstream = Upstream::saying("fine").await;
    let settings = ProxySettings::of_mesh(service("app", "", &[upstream.address]));
    let proxy = Proxy::start_with(settings.table("[access_log]\npath = \"access.log\"")).await;
    let request = "GET /a?password=secret HTTP/1.1\r\nHost: app\r\nX-Request-Id: one\r\nAuthorization: Bearer secret\r\n\r\n";
    assert_eq!(proxy.caller().await.ask(request).await.status(), 200);
    assert_eq!(proxy.get("nobody", "/b").await.status(), 404);
    let file = proxy.scratch.path().join("access.log");
    let text = eventually("two lines", async || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        if text.lines().count() == 2 { Ok(text) } else { Err(text) }
    })
    .await;
    assert!(!text.contains("secret"), "{text}");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [first, second] = [&lines[0], &lines[1]];
    assert_eq!(
        (&first["path"], &first["status"], &first["service"]),
        (&"/a".into(), &200.into(), &"app".into())
    );
    assert_eq!((&first["request_id"], &first["complete"]), (&"one".into(), &true.into()), "{first}");
    assert_eq!(first["endpoint"], upstream.address.to_string());
    assert_eq!((&second["status"], &second["path"]), (&404.into(), &"/b".into()));
    assert!(second["proxy_status"].as_str().unwrap().contains("destination_not_found"), "{second}");
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_up_neither_requests_nor_the_end() {
    let upstream = Upstream::saying("fine").await;
    let settings = ProxySettings::of_mesh(service("app", "", &[upstream.address]))
        .table("[access_log]\npath = \"pipe\"\nqueue = 100")
        .table("[drain]\nannounce = \"10ms\"\ndeadline = \"1s\"");
    let scratch = gilmok_tests::scratch::Scratch::new();
    let pipe = scratch.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // Open at both ends, so that opening does not wait; nothing is ever read.
    let _unread = std::fs::File::options().read(true).write(true).open(&pipe).unwrap();
    let mut proxy = Proxy::start_unready(settings, scratch).await;
    proxy.is_ready().await;
    let load = Load::start(proxy.outbound(), 8, &Ask { rest: Duration::ZERO, ..Ask::of("app") });
    load.flows(3_000).await;
    load.stop().await.expect_no_failure();
    proxy.process.signal(Signal::Terminate).await;
    let status = proxy.process.ended(Duration::from_secs(15)).await;
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn a_log_that_is_rotated_goes_on_in_the_new_file() {
    let upstream = Upstream::saying("fine").await;
    let settings = ProxySettings::of_mesh(service("app", "", &[upstream.address]));
    let proxy = Proxy::start_with(settings.table("[access_log]\npath = \"access.log\"")).await;
    let file = proxy.scratch.path().join("access.log");
    let grows = async |what: &str| {
        eventually(what, async || {
            assert_eq!(proxy.get("app", "/").await.status(), 200);
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            if text.is_empty() { Err("nothing in it") } else { Ok(()) }
        })
        .await;
    };
    grows("the first file").await;
    std::fs::rename(&file, proxy.scratch.path().join("access.log.1")).unwrap();
    proxy.process.signal(Signal::Hangup).await;
    grows("the file after rotation").await;
}

#[tokio::test]
async fn explain_says_what_then_happens() {
    let (app, shop) = (Upstream::saying("app").await, Upstream::saying("shop").await);
    let routes = "[[routes]]\nhosts = [\"example.com\"]\npath_prefix = \"/api\"\nservice = \"app\"\n\
        [[routes]]\nhosts = [\"example.com\"]\nmethods = [\"POST\"]\nservice = \"app\"\n\
        [[routes]]\nhosts = [\"example.com\"]\nheaders = { x-beta = \"1\" }\npath_regex = \"/b.*\"\nservice = \"app\"\n\
        [[routes]]\nhosts = [\"example.com\"]\npath = \"/exact\"\nservice = \"shop\"\n";
    let mesh =
        format!("{}{}{routes}", service("app", "", &[app.address]), service("shop", "", &[shop.address]));
    let proxy = Proxy::start(mesh).await;
    for method in ["GET", "POST"] {
        for host in ["example.com", "EXAMPLE.com:80", "app", "shop.mesh", "nobody"] {
            for path in ["/", "/api", "/api/x", "/apix", "/exact", "/exact/", "/beta", "/api?x=1"] {
                for beta in ["0", "1"] {
                    let body = serde_json::json!({
                        "method": method, "host": host, "path": path, "headers": { "x-beta": beta },
                    })
                    .to_string();
                    let asked = format!(
                        "POST /explain HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    let told = caller::ask(proxy.admin_address(), asked).await.text();
                    let told: Value = serde_json::from_str(&told).unwrap();
                    let request = format!(
                        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nX-Beta: {beta}\r\nContent-Length: 0\r\n\r\n"
                    );
                    let answer = caller::ask(proxy.outbound(), request).await;
                    let expected = told["decision"]["service"].as_str().unwrap_or("");
                    match answer.status() {
                        200 => assert_eq!(answer.text(), expected, "{body}: {told}"),
                        404 => assert_eq!(expected, "", "{body}: {told}"),
                        _ => panic!("{body}: {answer:?}"),
                    }
                }
            }
        }
    }
}
