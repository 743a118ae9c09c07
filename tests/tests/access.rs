//! Who may call: rules of the document, held by the sidecar of the called, for callers that have shown who they are.

use std::net::SocketAddr;

use gilmok_tests::caller;
use gilmok_tests::certificates::{Authority, Spec};
use gilmok_tests::eventually::eventually;
use gilmok_tests::peer::{run, words};
use gilmok_tests::proxy::{Proxy, ProxySettings};
use gilmok_tests::scratch::Scratch;
use gilmok_tests::upstream::Upstream;

/// The sidecar of `profile` with this mesh document, and the certificates of its callers beside it.
async fn profile(mesh: &str, app: SocketAddr) -> Proxy {
    let (authority, scratch) = (Authority::new("mesh"), Scratch::new());
    for (name, file) in [("profile", "own"), ("shop", "shop"), ("admin", "admin"), ("ads", "ads")] {
        authority.sign(&Spec::service(name)).write(scratch.path(), file);
    }
    scratch.write("ca.pem", authority.pem());
    let settings = ProxySettings::of_mesh(mesh)
        .app("profile", app, "")
        .table("[identity]\ncert_file = \"own.pem\"\nkey_file = \"own.key\"\nca_file = \"ca.pem\"");
    let proxy = Proxy::start_unready(settings, scratch).await;
    proxy.is_ready().await;
    proxy
}

/// curl as one of the callers, with the path as it stands; the status and the headers.
async fn call(proxy: &Proxy, protocol: &str, who: &str, method: &str, path: &str) -> (String, String) {
    let folder = proxy.scratch.path().display();
    let args = format!(
        "-sS -k -i --max-time 15 --{protocol} --path-as-is -X {method} --cert {folder}/{who}.pem --key {folder}/{who}.key https://{}{path}",
        proxy.inbound(0)
    );
    let output = run("curl", words(&args), "").await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (text.split_whitespace().nth(1).unwrap_or_default().to_owned(), text.to_lowercase())
}

const RULES: &str = "[services.shop]\n[services.admin]\n[services.profile]\n\
    allow = [\"shop\", { service = \"admin\", methods = [\"GET\"], path_prefix = \"/users\" }, \
    { unidentified = true, methods = [\"GET\"], path_prefix = \"/healthz\" }]\n";

#[tokio::test]
async fn only_who_may_calls_and_the_app_gets_the_path_that_was_allowed() {
    let app = Upstream::saying("fine").await;
    let proxy = profile(RULES, app.address).await;
    for (who, method, path, status) in [
        ("shop", "DELETE", "/users/7", "200"),
        ("shop", "GET", "/users/../admin", "200"),
        ("admin", "GET", "/users/7?role=/../x", "200"),
        ("admin", "DELETE", "/users/7", "403"),
        ("admin", "GET", "/", "403"),
        ("admin", "GET", "/usersx", "403"),
        ("admin", "GET", "/Users/7", "403"),
        ("admin", "GET", "/users/../admin", "403"),
        ("admin", "GET", "/users/%2e%2e/admin", "403"),
        ("admin", "GET", "/users/%252e%252e/admin", "403"),
        ("admin", "GET", "/users//admin", "403"),
        ("admin", "GET", "//users/7", "403"),
        ("admin", "GET", "/users/..%2fadmin", "403"),
        ("admin", "GET", "/users/..;/admin", "403"),
        ("admin", "GET", "/users/..\\admin", "403"),
        ("admin", "GET", "/users/%c0%ae%c0%ae/admin", "403"),
        ("admin", "GET", "/users/a%20b", "200"),
        ("ads", "GET", "/users/7", "403"),
    ] {
        for protocol in ["http1.1", "http2"] {
            let (told, text) = call(&proxy, protocol, who, method, path).await;
            assert_eq!(told, status, "{protocol} {who} {method} {path}: {text}");
            if status == "403" {
                assert!(text.contains("proxy-status: gilmok; error=http_request_denied"), "{text}");
            }
        }
    }
    // Without an identity, whatever it says of itself.
    let claims = "GET /users HTTP/1.1\r\nHost: profile\r\nX-Forwarded-Client-Cert: URI=spiffe://mesh/service/shop\r\n\r\n";
    assert_eq!(caller::ask(proxy.inbound(0), claims).await.status(), 403);
    assert_eq!(caller::ask(proxy.inbound(0), caller::get("profile", "/healthz")).await.status(), 200);
    // An absolute form is the same request.
    let absolute = "GET http://profile/healthz/../users HTTP/1.1\r\nHost: profile\r\n\r\n";
    assert_eq!(caller::ask(proxy.inbound(0), absolute).await.status(), 403);
    let grpc = "POST /users HTTP/1.1\r\nHost: profile\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(caller::ask(proxy.inbound(0), grpc).await.header("grpc-status"), Some("7"));
    let seen: Vec<String> = app.requests().iter().map(|request| request.start.clone()).collect();
    let both = ["DELETE /users/7", "GET /users/../admin", "GET /users/7?role=/../x", "GET /users/a%20b"];
    let expected = both.iter().flat_map(|start| [start, start]).chain([&"GET /healthz"]);
    assert_eq!(seen, expected.map(|start| format!("{start} HTTP/1.1")).collect::<Vec<_>>());
    for (caller, rule, count) in [
        ("admin", "method", 2.0),
        ("admin", "path", 8.0),
        ("admin", "ambiguous_path", 16.0),
        ("ads", "caller", 2.0),
        ("(unidentified)", "path", 1.0),
        ("(unidentified)", "ambiguous_path", 1.0),
        ("(unidentified)", "method", 1.0),
    ] {
        let labels = [
            &format!("caller=\"{caller}\""),
            &format!("rule=\"{rule}\""),
            "service=\"profile\"",
            "mode=\"enforce\"",
        ]
        .map(|label: &str| label.to_owned());
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let denied = proxy.metric("gilmok_access_denied_total", &labels).await;
        assert_eq!(denied, count, "{caller} {rule}: {}", proxy.metrics().await);
    }
    let refused = ["listener=\"inbound\"", "service=\"profile\"", "code=\"refused\""];
    assert_eq!(proxy.metric("gilmok_requests_total", &refused).await, 31.0);
}

#[tokio::test]
async fn a_dry_run_denies_nobody_and_tells_whom_it_would() {
    let app = Upstream::saying("fine").await;
    let proxy = profile("default_access = \"deny\"\naccess_mode = \"dry_run\"\n", app.address).await;
    for _ in 0..3 {
        assert_eq!(call(&proxy, "http1.1", "ads", "GET", "/").await.0, "200");
    }
    let denied = ["caller=\"ads\"", "rule=\"default\"", "mode=\"dry_run\""];
    assert_eq!(proxy.metric("gilmok_access_denied_total", &denied).await, 3.0);
    let told = "a call of ads would be denied: nobody may call the service until it says who";
    assert_eq!(proxy.process.log().matches(told).count(), 1, "told once a minute: {}", proxy.process.log());
    let access = proxy.admin_json("/config").await["settings"]["apps"][0]["access"].clone();
    assert_eq!(access, serde_json::json!({ "rules": null, "default": "deny", "mode": "dry_run" }));
    // In force for whoever has rules, live.
    proxy
        .reload("default_access = \"deny\"\n[services.shop]\n[services.profile]\nallow = [\"shop\"]\n")
        .await;
    eventually("the rules in force", async || {
        let (shop, ads) = (
            call(&proxy, "http1.1", "shop", "GET", "/").await.0,
            call(&proxy, "http1.1", "ads", "GET", "/").await.0,
        );
        if (shop.as_str(), ads.as_str()) == ("200", "403") { Ok(()) } else { Err(format!("{shop} {ads}")) }
    })
    .await;
}
