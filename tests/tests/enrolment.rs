//! Identities that a control plane gives: joined with a token, renewed and rooted anew under load, refused to whoever steals.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::Duration;

use gilmok_tests::caller::Caller;
use gilmok_tests::control_plane::{ControlPlane, call, own_address};
use gilmok_tests::eventually::{SOON, eventually, eventually_within, soon};
use gilmok_tests::load::{Ask, Load};
use gilmok_tests::message::Message;
use gilmok_tests::operator::{Said, command, gilmok};
use gilmok_tests::process::Signal;
use gilmok_tests::proxy::{Proxy, ProxySettings};
use gilmok_tests::scratch::Scratch;
use gilmok_tests::upstream::Upstream;
use serde_json::{Value as Json, json};

/// A certificate of it is renewed after 4 s.
const SHORT: &str = "[identity]\ntrust_domain = \"mesh\"\nleaf_ttl = \"8s\"";
const LONG: &str = "[identity]\ntrust_domain = \"mesh\"";

async fn plane(tables: &str) -> ControlPlane {
    let plane = ControlPlane::start_with(tables, Scratch::new()).await;
    plane.put("/v1/services/ads", &json!({})).await;
    plane
}

async fn token(plane: &ControlPlane, scope: &str, service: &str, ttl: &str) -> String {
    let wish = json!({ "name": "test", "scopes": [scope], "services": [service], "ttl": ttl });
    let made = plane.call("POST", "/v1/tokens", Some(&wish)).await;
    assert_eq!(made.status(), 201, "{made:?}");
    let made: Json = serde_json::from_slice(&made.body).expect("an answer in JSON");
    made["token"].as_str().expect("its text").to_owned()
}

/// What a proxy of a service is started with that joins by what is in `join.token`.
fn joining(plane: &ControlPlane, service: &str) -> ProxySettings {
    // The first one is gone; the other is asked in its turn.
    let nobody = ([127, 0, 0, 1], 1).into();
    ProxySettings::of_control_planes(&[nobody, plane.address]).top(&format!("node = \"{service}-1\"")).table(&format!(
        "[identity]\nissuer = \"control_plane\"\nservice = \"{service}\"\njoin_token_file = \"join.token\""
    ))
}

fn with_token(token: &str) -> Scratch {
    let scratch = Scratch::new();
    scratch.write("join.token", token);
    scratch
}

async fn joined(plane: &ControlPlane, service: &str, settings: ProxySettings) -> Proxy {
    let scratch = with_token(&token(plane, "join", service, "1h").await);
    let proxy = Proxy::start_unready(settings, scratch).await;
    proxy.is_ready().await;
    proxy
}

/// A sidecar of `ads` that takes only callers with an identity, and a proxy of `shop`.
async fn pair(plane: &ControlPlane, app: &Upstream) -> (Proxy, Proxy) {
    let ads = joining(plane, "ads").listen("inbound_tls = \"strict\"").app("ads", app.address, "");
    let ads = joined(plane, "ads", ads).await;
    let shop = joined(plane, "shop", joining(plane, "shop")).await;
    eventually("a call over mutual TLS", async || {
        let answer = shop.get("ads", "/").await;
        if answer.status() == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    (ads, shop)
}

fn csr(folder: &Scratch, key: &[&str], subject: &str) -> String {
    let out = folder.path().join("made.csr");
    let output = Command::new("openssl")
        .args(["req", "-new", "-nodes", "-subj", subject, "-keyout"])
        .arg(folder.path().join("made.key"))
        .arg("-out")
        .arg(&out)
        .args(key)
        .output()
        .expect("this test needs openssl");
    assert!(output.status.success(), "{output:?}");
    std::fs::read_to_string(out).expect("what openssl has written")
}

const P256: [&str; 4] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];

/// One call with a token.
async fn with(plane: &ControlPlane, token: &str, method: &str, path: &str, body: &str) -> Message {
    let io = tokio::net::TcpStream::connect(plane.address).await.expect("it listens");
    let mut caller = Caller::over(io);
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {token}\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    caller.send(request).await;
    caller.try_answer(SOON).await.expect("an answer")
}

/// Asks for a certificate.
async fn ask(plane: &ControlPlane, token: &str, csr: &str, service: &str) -> Message {
    let body = json!({ "csr": csr, "service": service }).to_string();
    with(plane, token, "POST", "/v1/identity/certificates", &body).await
}

#[tokio::test]
async fn sidecars_that_join_with_tokens_speak_mutual_tls_and_the_app_knows_who_calls() {
    let app = Upstream::saying("fine").await;
    let plane = plane(LONG).await;
    let (ads, shop) = pair(&plane, &app).await;
    let told = app.requests()[0].header("x-forwarded-client-cert").unwrap().to_owned();
    assert!(told.ends_with(";URI=spiffe://mesh/service/shop"), "{told}");
    let kept = shop.scratch.path().join("state/shop-1.identity");
    assert_eq!(std::fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
    let key: Json = serde_json::from_str(&std::fs::read_to_string(&kept).unwrap()).unwrap();
    let secret = key["key"].as_str().unwrap().lines().nth(1).unwrap().to_owned();
    let token = std::fs::read_to_string(shop.scratch.path().join("join.token")).unwrap();
    let config = shop.admin_json("/config").await;
    assert_eq!(config["identity"]["fault"], Json::Null, "{config}");
    let metrics = shop.admin("/metrics").await.text();
    for told in [config.to_string(), metrics, shop.process.log(), plane.process.log()] {
        assert!(!told.contains(&secret) && !told.contains(&token), "{told}");
    }
    let left = shop.metric("gilmok_certificate_end_seconds", &["certificate=\"identity\""]).await;
    assert!(left > 0.0);
    eventually("both to be told of", async || {
        let told = plane.json("/v1/identity").await;
        let proxies = told["proxies"].as_array().cloned().unwrap_or_default();
        let has_roots = |proxy: &Json| proxy["has_roots"] == true && proxy["live"] == true;
        if proxies.len() == 2 && proxies.iter().all(has_roots) { Ok(()) } else { Err(told) }
    })
    .await;
    let shown = gilmok(&plane, &["identity", "show"]).await;
    assert!(shown.out.contains("shop-1") && shown.out.contains("trust domain mesh"), "{shown:?}");
    drop(ads);
}

#[tokio::test]
async fn openssl_believes_the_chain_and_nothing_that_the_request_wished_for_is_in_it() {
    let plane = plane(LONG).await;
    let made = gilmok(&plane, &["identity", "join-token", "shop", "--ttl", "5m"]).await;
    let token = made.out.trim();
    let folder = Scratch::new();
    let roots = plane.json("/v1/identity/roots").await["roots"].as_str().unwrap().to_owned();
    for (key, subject) in
        [(&P256[..], "/CN=admin"), (&["-newkey", "rsa:2048"], "/CN=spiffe:\\/\\/mesh\\/service\\/admin")]
    {
        let answer = ask(&plane, token, &csr(&folder, key, subject), "shop").await;
        assert_eq!(answer.status(), 200, "{answer:?}");
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        let answer: Json = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(answer["roots"], roots.as_str());
        folder.write("chain.pem", answer["chain"].as_str().unwrap());
        folder.write("roots.pem", &roots);
        for purpose in ["sslserver", "sslclient"] {
            let output = Command::new("openssl")
                .current_dir(folder.path())
                .args([
                    "verify",
                    "-x509_strict",
                    "-purpose",
                    purpose,
                    "-CAfile",
                    "roots.pem",
                    "-untrusted",
                    "chain.pem",
                    "chain.pem",
                ])
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
        }
        let output = Command::new("openssl")
            .current_dir(folder.path())
            .args(["x509", "-in", "chain.pem", "-noout", "-text"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("URI:spiffe://mesh/service/shop") && !text.contains("admin"), "{text}");
        assert!(text.contains("CA:FALSE") && text.contains("Digital Signature"), "{text}");
    }
}

#[tokio::test]
async fn nobody_becomes_a_service_by_what_is_not_theirs() {
    let plane = plane(LONG).await;
    let folder = Scratch::new();
    let sound = csr(&folder, &P256, "/CN=ads");
    let of_shop = token(&plane, "join", "shop", "1h").await;
    let proxy = token(&plane, "proxy", "ads", "1h").await;
    let short = token(&plane, "join", "ads", "1s").await;
    let good = token(&plane, "join", "ads", "1h").await;
    eventually("the short token to end", async || {
        let answer = ask(&plane, &short, &sound, "ads").await;
        if answer.status() == 401 { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    for (token, expected) in [
        (&of_shop, 403),
        (&proxy, 403),
        (&short, 401),
        (&format!("{good}x"), 401),
        (&"gilmok".to_owned(), 401),
        (&good, 200),
    ] {
        let answer = ask(&plane, token, &sound, "ads").await;
        assert_eq!(answer.status(), expected, "{answer:?}");
    }
    let weak = csr(&folder, &["-newkey", "rsa:1024"], "/CN=ads");
    let curve = csr(&folder, &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp256k1"], "/CN=ads");
    let forged = {
        let mut lines: Vec<String> = sound.lines().map(str::to_owned).collect();
        let at = lines.len() - 2;
        lines[at] = lines[at].chars().rev().collect();
        lines.join("\n")
    };
    for bad in [&weak, &curve, &forged, &String::new(), &"garbage".to_owned(), &"x".repeat(20_000)] {
        assert_eq!(ask(&plane, &good, bad, "ads").await.status(), 422, "{bad}");
    }
    for service in ["", "../ads", "ADS", "ads shop"] {
        assert_eq!(ask(&plane, &good, &sound, service).await.status(), 422, "{service}");
    }
    // It is good for nothing else.
    for (method, path) in
        [("GET", "/v1/mesh"), ("GET", "/v1/identity"), ("POST", "/v1/identity/roots/rotate")]
    {
        assert_eq!(with(&plane, &good, method, path, "").await.status(), 403, "{path}");
    }
    let metrics = plane.get("/metrics").await.text();
    assert!(metrics.contains("gilmok_identity_certificates_total{result=\"denied\"} 2"), "{metrics}");
    // A proxy with the token of another service serves nothing, in the clear or otherwise.
    let proxy = Proxy::start_unready(joining(&plane, "ads"), with_token(&of_shop)).await;
    eventually("the refusal to be told", async || {
        let told = proxy.admin_json("/config").await["identity"]["fault"].clone();
        if told.as_str().is_some_and(|told| told.contains("403")) { Ok(()) } else { Err(told) }
    })
    .await;
    let ready = proxy.admin("/readyz").await;
    assert!(ready.status() == 503 && ready.text().contains("identity"), "{ready:?}");
    assert_eq!(proxy.get("ads", "/").await.status(), 404, "it knows of no service");
    // With the right one it goes on.
    proxy.scratch.write("join.token", &good);
    proxy.is_ready().await;
}

#[tokio::test]
async fn certificates_are_renewed_under_load_and_no_request_fails() {
    let app = Upstream::saying("fine").await;
    let plane = plane(SHORT).await;
    let (ads, shop) = pair(&plane, &app).await;
    let load = Load::start(shop.outbound(), 8, &Ask::of("ads"));
    for proxy in [&ads, &shop] {
        eventually_within(Duration::from_secs(60), "three renewals", async || {
            let labels = ["asked=\"certificate\"", "result=\"answered\""];
            let renewed = proxy.metric("gilmok_identity_requests_total", &labels).await;
            if renewed >= 4.0 { Ok(()) } else { Err(proxy.process.log()) }
        })
        .await;
    }
    load.flows(100).await;
    load.stop().await.expect_no_failure();
    let failing = shop.metric("gilmok_identity_failing_seconds", &[]).await;
    assert!(failing == 0.0, "{failing}");
}

#[tokio::test]
async fn the_root_changes_under_load_and_no_request_fails() {
    let app = Upstream::saying("fine").await;
    let plane = plane(SHORT).await;
    let (_ads, shop) = pair(&plane, &app).await;
    let old = plane.json("/v1/identity/roots").await;
    let load = Load::start(shop.outbound(), 8, &Ask::of("ads"));
    load.flows(100).await;
    for (phase, roots) in [("announced", 2), ("signing", 2), ("settled", 1)] {
        // It is refused until proxies have taken the step before, and what was signed before has ended.
        eventually_within(Duration::from_secs(60), "the step to be done", async || {
            let said = gilmok(&plane, &["identity", "rotate", "--reason", "a test"]).await;
            if said.code == 0 { Ok(()) } else { Err(format!("{said:?} {}", plane.process.log())) }
        })
        .await;
        let told = plane.json("/v1/identity").await;
        assert_eq!((told["phase"].as_str(), told["roots"].as_array().unwrap().len()), (Some(phase), roots));
        if phase != "settled" {
            let said = gilmok(&plane, &["identity", "rotate"]).await;
            assert!(said.code == 1 && said.err.contains("force"), "too early: {said:?}");
        }
        load.flows(200).await;
    }
    eventually("the old root to be gone everywhere", async || {
        let told = plane.json("/v1/identity").await;
        if told["lagging"] == json!([]) { Ok(()) } else { Err(told) }
    })
    .await;
    load.flows(200).await;
    load.stop().await.expect_no_failure();
    assert_ne!(plane.json("/v1/identity/roots").await, old);
}

#[tokio::test]
async fn a_control_plane_that_is_gone_costs_nothing_while_certificates_last() {
    let app = Upstream::saying("fine").await;
    let plane = plane(LONG).await;
    let roots = plane.json("/v1/identity/roots").await;
    let (ads, shop) = pair(&plane, &app).await;
    let settings = joining(&plane, "shop");
    let (address, tables) = (plane.address, LONG);
    let ControlPlane { mut process, scratch, .. } = plane;
    process.signal(Signal::Kill).await;
    process.ended(SOON).await;
    let load = Load::start(shop.outbound(), 4, &Ask::of("ads"));
    load.flows(100).await;
    load.stop().await.expect_no_failure();
    // A start without anybody to ask.
    let shop = shop.restart_after(Signal::Terminate, settings).await;
    shop.is_ready().await;
    assert_eq!(shop.get("ads", "/").await.status(), 200);
    eventually("the silence to be told", async || {
        let told = shop.admin_json("/config").await["identity"].clone();
        if told["failing_since"].is_string() { Ok(()) } else { Err(told) }
    })
    .await;
    assert!(shop.process.log().contains("the one in use lasts until"), "{}", shop.process.log());
    // It comes back with the same root.
    let plane = ControlPlane::start_at(&address.to_string(), tables, scratch).await;
    assert_eq!(plane.json("/v1/identity/roots").await, roots);
    eventually_within(Duration::from_secs(60), "it to be asked again", async || {
        let told = shop.admin_json("/config").await["identity"].clone();
        if told["fault"].is_null() { Ok(()) } else { Err(told) }
    })
    .await;
    drop(ads);
}

#[tokio::test]
async fn roots_of_another_authority_are_refused_and_told() {
    let plane = plane(SHORT).await;
    let shop = joined(&plane, "shop", joining(&plane, "shop")).await;
    let ControlPlane { mut process, scratch, address } = plane;
    process.signal(Signal::Terminate).await;
    process.ended(SOON).await;
    std::fs::remove_file(scratch.path().join("data/authority.json")).unwrap();
    let anew = format!("{SHORT}\nnew_root = true");
    let plane = ControlPlane::start_at(&address.to_string(), &anew, scratch).await;
    eventually("the refusal to be told", async || {
        let told = shop.admin_json("/config").await["identity"]["fault"].clone();
        if told.as_str().is_some_and(|told| told.contains("another authority")) { Ok(()) } else { Err(told) }
    })
    .await;
    drop(plane);
}

#[tokio::test]
async fn over_tls_a_certificate_is_renewed_by_the_one_before_and_the_token_is_needed_once() {
    let app = Upstream::saying("fine").await;
    let own = own_address();
    let tables = format!(
        "loopback = \"token\"\ntoken_file = \"admin.token\"\n{SHORT}\n[tls]\nissuer = \"identity\"\nnames = [\"localhost\", \"{own}\"]"
    );
    let scratch = Scratch::new();
    scratch.write("admin.token", "chosen");
    let plane = ControlPlane::start_unready("0.0.0.0:0", &tables, scratch).await;
    let roots = plane.scratch.path().join("data/roots.pem").display().to_string();
    let admin = plane.scratch.path().join("admin.token").display().to_string();
    let at = format!("https://localhost:{}", plane.address.port());
    let gilmok = async |args: &[&str]| -> Said {
        let args = [args, &["--ca-file", &roots, "--token-file", &admin]].concat();
        soon("the command to end", command(&at, &args).output()).await.expect("it can be started").into()
    };
    let document = plane.scratch.write("mesh.toml", "[services.ads]\n").display().to_string();
    eventually("the document to be taken", async || {
        let said = gilmok(&["apply", &document]).await;
        if said.code == 0 { Ok(()) } else { Err(format!("{said:?} {}", plane.process.log())) }
    })
    .await;
    let start = async |service: &str| {
        let made = gilmok(&["identity", "join-token", service, "--ttl", "1h"]).await;
        assert_eq!(made.code, 0, "{made:?}");
        let mut settings = ProxySettings::default().top(&format!("node = \"{service}-1\"")).table(&format!(
            "[source]\ncontrol_plane = [\"https://{}\"]\nca_file = \"{roots}\"\n\
             [identity]\nissuer = \"control_plane\"\nservice = \"{service}\"\njoin_token_file = \"join.token\"",
            plane.from_elsewhere()
        ));
        if service == "ads" {
            settings = settings.listen("inbound_tls = \"strict\"").app("ads", app.address, "");
        }
        let proxy = Proxy::start_unready(settings, with_token(&made.out)).await;
        proxy.is_ready().await;
        // From now on it is known by its certificate.
        std::fs::remove_file(proxy.scratch.path().join("join.token")).expect("it is there");
        proxy
    };
    let (ads, shop) = (start("ads").await, start("shop").await);
    eventually("a call over mutual TLS", async || {
        let answer = shop.get("ads", "/").await;
        if answer.status() == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    let load = Load::start(shop.outbound(), 4, &Ask::of("ads"));
    for proxy in [&ads, &shop] {
        eventually_within(Duration::from_secs(60), "three renewals", async || {
            let labels = ["asked=\"certificate\"", "result=\"answered\""];
            let renewed = proxy.metric("gilmok_identity_requests_total", &labels).await;
            if renewed >= 4.0 { Ok(()) } else { Err(proxy.process.log()) }
        })
        .await;
    }
    load.stop().await.expect_no_failure();
    let shown = gilmok(&["identity", "show", "--json"]).await.json();
    assert_eq!(
        (shown["proxies"].as_array().map(Vec::len), &shown["lagging"]),
        (Some(2), &json!([])),
        "{shown}"
    );
}

#[tokio::test]
async fn without_an_authority_nothing_is_given() {
    let plane = plane("").await;
    for path in ["/v1/identity", "/v1/identity/roots"] {
        let answer = call(plane.address, "GET", path, None, SOON).await.unwrap();
        assert!(answer.status() == 404 && answer.text().contains("[identity]"), "{answer:?}");
    }
}
