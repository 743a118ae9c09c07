//! TLS from the proxy to endpoints: mutual TLS between sidecars, services that speak TLS themselves, and roots that change.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use gilmok_tests::certificates::{Authority, Leaf, Spec};
use gilmok_tests::control_plane::ControlPlane;
use gilmok_tests::eventually::eventually;
use gilmok_tests::load::{Ask, Load};
use gilmok_tests::process::{Process, Signal};
use gilmok_tests::proxy::{Proxy, ProxySettings, service};
use gilmok_tests::scratch::Scratch;
use gilmok_tests::upstream::{Upstream, ok};
use rcgen::ExtendedKeyUsagePurpose;
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

const IDENTITY: &str = "[identity]\ncert_file = \"own.pem\"\nkey_file = \"own.key\"\nca_file = \"ca.pem\"";

/// A folder with an identity.
fn identity(leaf: &Leaf, roots: &str) -> Scratch {
    let scratch = Scratch::new();
    leaf.write(scratch.path(), "own");
    scratch.write("ca.pem", roots);
    scratch
}

async fn started(settings: ProxySettings, scratch: Scratch) -> Proxy {
    let proxy = Proxy::start_unready(settings, scratch).await;
    proxy.is_ready().await;
    proxy
}

/// A sidecar of `name` beside an app at `app`.
async fn sidecar(authority: &Authority, name: &str, app: SocketAddr, listen: &str) -> Proxy {
    let settings = ProxySettings::of_mesh(format!("[services.{name}]\n"))
        .listen(listen)
        .app(name, app, "")
        .table(IDENTITY);
    started(settings, identity(&authority.sign(&Spec::service(name)), &authority.pem())).await
}

/// A proxy with the identity of `shop` that knows this mesh.
async fn shop(authority: &Authority, mesh: &str) -> Proxy {
    let settings = ProxySettings::of_mesh(mesh).table(IDENTITY);
    started(settings, identity(&authority.sign(&Spec::service("shop")), &authority.pem())).await
}

/// A service whose endpoints are sidecars that say they speak mutual TLS.
fn sidecars(name: &str, policy: &str, addresses: &[SocketAddr]) -> String {
    let endpoints = addresses.iter().map(|address| {
        format!("[[services.{name}.endpoints]]\naddress = \"{address}\"\ninbound = true\nmtls = true\n")
    });
    format!("[services.{name}]\n{policy}\n{}", endpoints.collect::<String>())
}

/// A server that speaks TLS with this certificate and answers every request with 200.
struct TlsServer {
    address: SocketAddr,
    _serving: JoinSet<()>,
}

async fn tls_server(leaf: &Leaf, alpn: &[&str]) -> TlsServer {
    let chain = leaf.chain.iter().cloned().map(CertificateDer::from).collect();
    let key = PrivatePkcs8KeyDer::from(leaf.key.clone()).into();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the default versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a pair");
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        loop {
            let Ok((tcp, _)) = listener.accept().await else { return };
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(tcp).await else { return };
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                    if stream.write_all(&ok("fine")).await.and(stream.flush().await).is_err() {
                        return;
                    }
                }
            });
        }
    });
    TlsServer { address, _serving: serving }
}

#[tokio::test]
async fn sidecars_with_identities_speak_mutual_tls_and_the_app_knows_who_calls() {
    let app = Upstream::saying("fine").await;
    let authority = Authority::new("mesh");
    let ads = sidecar(&authority, "ads", app.address, "inbound_tls = \"strict\"").await;
    let policy = "[services.ads.health_check]\npath = \"/healthz\"\ninterval = \"100ms\"";
    let shop = shop(&authority, &sidecars("ads", policy, &[ads.inbound(0)])).await;
    for _ in 0..5 {
        assert_eq!(shop.get("ads", "/").await.status(), 200);
    }
    let is_call = |request: &gilmok_tests::message::Message| request.start.starts_with("GET / ");
    let calls: Vec<_> = app.requests().into_iter().filter(|request| is_call(request)).collect();
    assert_eq!(calls.len(), 5);
    for call in &calls {
        let told = call.header("x-forwarded-client-cert").unwrap();
        assert!(told.ends_with(";URI=spiffe://mesh/service/shop"), "{told}");
        assert_eq!(call.header("x-forwarded-proto"), Some("http"), "as the shop's app called it");
    }
    eventually("the check to pass over mutual TLS", async || {
        let told = shop.admin_json("/endpoints").await["services"][0]["endpoints"][0]["health"].clone();
        if told == "healthy" { Ok(()) } else { Err(told) }
    })
    .await;
    // Each check opens a connection of its own.
    eventually("a session to be resumed", async || {
        let resumed = ads.metric("gilmok_tls_handshakes_total", &["result=\"resumed\""]).await;
        if resumed >= 1.0 { Ok(()) } else { Err(resumed) }
    })
    .await;
}

#[tokio::test]
async fn the_service_that_was_meant_must_be_the_one_that_answers() {
    let app = Upstream::saying("fine").await;
    let authority = Authority::new("mesh");
    let (ads, thief) = (
        sidecar(&authority, "ads", app.address, "").await,
        sidecar(&authority, "thief", app.address, "").await,
    );
    let only_thief = sidecars("ads", "", &[thief.inbound(0)]);
    let shop = shop(&authority, &only_thief).await;
    let answer = shop.get("ads", "/").await;
    assert_eq!(answer.status(), 502);
    assert!(answer.header("proxy-status").unwrap().contains("error=tls_certificate_error"), "{answer:?}");
    assert!(app.requests().is_empty(), "nothing was said to the wrong one");
    assert!(shop.process.log().contains("it is spiffe://mesh/service/thief, not spiffe://mesh/service/ads"));
    let tried = shop.metric("gilmok_upstream_attempts_total", &["service=\"ads\"", "outcome=\"tls\""]).await;
    assert!(tried >= 1.0);
    // Beside the right one it harms nobody.
    shop.reload(sidecars("ads", "", &[thief.inbound(0), ads.inbound(0)])).await;
    for _ in 0..20 {
        assert_eq!(
            shop.caller()
                .await
                .ask("POST / HTTP/1.1\r\nHost: ads\r\nContent-Length: 2\r\n\r\nhi")
                .await
                .status(),
            200
        );
    }
}

#[tokio::test]
async fn callees_that_cannot_prove_who_they_are_are_not_called() {
    let (authority, other) = (Authority::new("mesh"), Authority::new("mesh"));
    let hour = Duration::from_secs(3_600);
    let ads = Spec::service("ads");
    let between = authority.constrained("between", "elsewhere");
    let cases: Vec<(&str, Leaf, bool)> = vec![
        ("good", authority.sign(&ads), true),
        (
            "expired",
            authority.sign(&Spec { begins: (2 * hour, false), ends: (hour, false), ..ads.clone() }),
            false,
        ),
        ("not yet", authority.sign(&Spec { begins: (hour, true), ..ads.clone() }), false),
        ("another authority", other.sign(&ads), false),
        ("self-signed", ads.self_signed(), false),
        (
            "a common name only",
            authority.sign(&Spec { common_name: "spiffe://mesh/service/ads".into(), ..Spec::default() }),
            false,
        ),
        ("the host's name", authority.sign(&Spec::names(&["ads.mesh", "127.0.0.1"])), false),
        ("another domain", authority.sign(&Spec::uri("spiffe://other/service/ads")), false),
        (
            "for clients only",
            authority.sign(&Spec { purposes: vec![ExtendedKeyUsagePurpose::ClientAuth], ..ads.clone() }),
            false,
        ),
        ("an authority that may not sign this", between.sign(&ads).under(&between), false),
    ];
    let shop = shop(&authority, "[services.ads]\n").await;
    for (name, leaf, is_good) in cases {
        let server = tls_server(&leaf, &["http/1.1"]).await;
        shop.reload(format!("# {name}\n{}", sidecars("ads", "", &[server.address]))).await;
        let answer = shop.get("ads", "/").await;
        assert_eq!(answer.status(), if is_good { 200 } else { 502 }, "{name}: {answer:?}");
        if !is_good {
            assert!(
                answer.header("proxy-status").unwrap().contains("tls_certificate_error"),
                "{name}: {answer:?}"
            );
        }
    }
}

#[tokio::test]
async fn without_an_identity_a_caller_is_served_where_that_is_allowed() {
    let app = Upstream::saying("fine").await;
    let authority = Authority::new("mesh");
    let permissive = sidecar(&authority, "ads", app.address, "").await;
    let strict = sidecar(&authority, "news", app.address, "inbound_tls = \"strict\"").await;
    let mesh = sidecars("ads", "", &[permissive.inbound(0)]) + &sidecars("news", "", &[strict.inbound(0)]);
    let nobody = Proxy::start(mesh.clone()).await;
    assert_eq!(nobody.get("ads", "/").await.status(), 200);
    assert_eq!(nobody.get("news", "/").await.status(), 502);
    // An identity of another mesh is worse than none: it is refused, and nothing of the request was delivered.
    let stranger = started(
        ProxySettings::of_mesh(mesh).table(IDENTITY),
        identity(&Authority::new("mesh").sign(&Spec::service("shop")), &authority.pem()),
    )
    .await;
    let answer =
        stranger.caller().await.ask("POST / HTTP/1.1\r\nHost: news\r\nContent-Length: 2\r\n\r\nhi").await;
    assert_eq!(answer.status(), 502);
    assert!(answer.header("proxy-status").unwrap().contains("tls_protocol_error"), "{answer:?}");
    assert_eq!(app.requests().len(), 1);
}

#[tokio::test]
async fn a_strict_caller_calls_nobody_in_the_clear_whatever_membership_says() {
    let app = Upstream::saying("fine").await;
    let authority = Authority::new("mesh");
    let ads = sidecar(&authority, "ads", app.address, "").await;
    // Neither is said to be a sidecar, and only one of them is.
    let mesh = service("ads", "", &[ads.inbound(0)]) + &service("news", "", &[app.address]);
    let settings = ProxySettings::of_mesh(mesh).table(IDENTITY).table("[outbound]\ntls = \"strict\"");
    let scratch = identity(&authority.sign(&Spec::service("shop")), &authority.pem());
    let shop = started(settings, scratch).await;
    assert_eq!(shop.get("ads", "/").await.status(), 200);
    assert!(app.only_request().await.header("x-forwarded-client-cert").is_some());
    let answer = shop.get("news", "/").await;
    assert!(answer.status() >= 502, "{answer:?}");
    assert!(app.requests().iter().all(|request| request.header("host") != Some("news")));
}

#[tokio::test]
async fn a_registration_says_who_speaks_mutual_tls() {
    let app = Upstream::saying("fine").await;
    let authority = Authority::new("mesh");
    let plane = ControlPlane::start().await;
    plane.put("/v1/services/ads", &serde_json::json!({})).await;
    let of_plane = || ProxySettings::of_control_planes(&[plane.address]).table(IDENTITY);
    let of = |name: &str| identity(&authority.sign(&Spec::service(name)), &authority.pem());
    let ads = started(
        of_plane().top("node = \"ads-1\"").listen("inbound_tls = \"strict\"").app("ads", app.address, ""),
        of("ads"),
    )
    .await;
    let shop = started(of_plane().top("node = \"shop-1\""), of("shop")).await;
    eventually("a call over mutual TLS", async || {
        let answer = shop.get("ads", "/").await;
        if answer.status() == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    assert!(app.requests()[0].header("x-forwarded-client-cert").unwrap().ends_with("/service/shop"));
    let told = shop.admin_json("/endpoints").await["services"][0]["endpoints"][0].clone();
    assert_eq!(told["mtls"], true, "{told}");
    drop(ads);
}

/// Puts a certificate or roots in place and waits until the proxy uses them.
async fn renewed(proxy: &Proxy, change: impl FnOnce(&Path)) {
    let taken = async || {
        proxy
            .metric("gilmok_certificate_reloads_total", &["certificate=\"identity\"", "result=\"taken\""])
            .await
    };
    let before = taken().await;
    change(proxy.scratch.path());
    eventually("the change to be taken", async || {
        let now = taken().await;
        if now > before { Ok(()) } else { Err(proxy.process.log()) }
    })
    .await;
}

#[tokio::test]
async fn leaves_and_roots_change_under_load_and_no_request_fails() {
    let app = Upstream::saying("fine").await;
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let ads = sidecar(&old, "ads", app.address, "inbound_tls = \"strict\"").await;
    let shop = shop(&old, &sidecars("ads", "", &[ads.inbound(0)])).await;
    let load = Load::start(shop.outbound(), 8, &Ask::of("ads"));
    load.flows(200).await;
    let both = old.pem() + &new.pem();
    for (proxy, name) in [(&ads, "ads"), (&shop, "shop")] {
        renewed(proxy, |folder| drop(old.sign(&Spec::service(name)).write(folder, "own"))).await;
        load.flows(100).await;
    }
    for proxy in [&ads, &shop] {
        renewed(proxy, |_| drop(proxy.scratch.write("ca.pem", &both))).await;
        load.flows(100).await;
    }
    for (proxy, name) in [(&shop, "shop"), (&ads, "ads")] {
        renewed(proxy, |folder| drop(new.sign(&Spec::service(name)).write(folder, "own"))).await;
        load.flows(100).await;
    }
    for proxy in [&ads, &shop] {
        renewed(proxy, |_| drop(proxy.scratch.write("ca.pem", new.pem()))).await;
        load.flows(100).await;
    }
    load.stop().await.expect_no_failure();
    // What had the old root is out.
    let late = started(
        ProxySettings::of_mesh(sidecars("ads", "", &[ads.inbound(0)])).table(IDENTITY),
        identity(&old.sign(&Spec::service("shop")), &both),
    )
    .await;
    assert_eq!(late.get("ads", "/").await.status(), 502);
}

#[tokio::test]
async fn endpoints_that_speak_tls_are_checked_as_the_document_says() {
    let (authority, other) = (Authority::new("office"), Authority::new("other"));
    let server = tls_server(&authority.sign(&Spec::names(&["ads.internal"])), &["http/1.1"]).await;
    let of_address = tls_server(&authority.sign(&Spec::names(&["127.0.0.1"])), &[]).await;
    let proxy = Proxy::start("[services.ads]\n").await;
    proxy.scratch.write("office.pem", authority.pem());
    proxy.scratch.write("other.pem", other.pem());
    let (named, by_address) = (server.address, of_address.address);
    for (tls, address, told) in [
        ("ca_file = \"office.pem\"\nserver_name = \"ads.internal\"", named, None),
        ("ca_file = \"office.pem\"", by_address, None),
        ("ca_file = \"office.pem\"", named, Some("tls_certificate_error")),
        ("ca_file = \"other.pem\"\nserver_name = \"ads.internal\"", named, Some("tls_certificate_error")),
        ("server_name = \"ads.internal\"", named, Some("tls_certificate_error")),
        ("verify = false", named, None),
    ] {
        let policy = format!("[services.ads.tls]\n{tls}");
        proxy.reload(service("ads", &policy, &[address])).await;
        let answer = proxy.get("ads", "/").await;
        assert_eq!(answer.status(), if told.is_some() { 502 } else { 200 }, "{tls}: {answer:?}");
        if let Some(told) = told {
            assert!(answer.header("proxy-status").unwrap().contains(told), "{tls}: {answer:?}");
        }
    }
    // HTTP/2 must be agreed upon.
    let policy = "protocol = \"h2\"\n[services.ads.tls]\nverify = false";
    proxy.reload(service("ads", policy, &[of_address.address])).await;
    let answer = proxy.get("ads", "/").await;
    assert!(answer.header("proxy-status").unwrap().contains("tls_protocol_error"), "{answer:?}");
    let plain = Upstream::start(|mut conversation| async move {
        conversation.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
        conversation.hang().await;
    })
    .await;
    proxy.reload(service("ads", "[services.ads.tls]\nverify = false", &[plain.address])).await;
    let answer = proxy.get("ads", "/").await;
    assert!(answer.header("proxy-status").unwrap().contains("tls_protocol_error"), "{answer:?}");
    assert!(proxy.process.log().contains("no TLS with"));
}

#[tokio::test]
async fn nginx_is_called_over_tls_in_both_protocols() {
    let installed = Command::new("nginx").arg("-v").output().is_ok();
    assert!(installed, "this test needs nginx (Debian: apt-get install nginx)");
    let authority = Authority::new("office");
    let scratch = Scratch::new();
    let folder = scratch.path().display().to_string();
    authority.sign(&Spec::names(&["ads.internal"])).write(scratch.path(), "nginx");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = scratch.write(
        "nginx.conf",
        format!(
            "daemon off;\nmaster_process off;\npid {folder}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\n access_log off;\n \
             client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c; uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;\n \
             server {{\n listen {port} ssl http2;\n ssl_protocols TLSv1.2 TLSv1.3;\n ssl_certificate {folder}/nginx.pem;\n ssl_certificate_key {folder}/nginx.key;\n \
             location / {{ return 200 \"$ssl_server_name $server_protocol $ssl_protocol\"; }}\n }}\n}}\n"
        ),
    );
    let args = ["-c".into(), config.into_os_string(), "-e".into(), "stderr".into()];
    let nginx = Process::start(Path::new("nginx"), args, &scratch.path().join("nginx.log"));
    let proxy = Proxy::start("[services.ads]\n").await;
    proxy.scratch.write("office.pem", authority.pem());
    for (protocol, told) in [("http1", "HTTP/1.1"), ("h2", "HTTP/2.0")] {
        let policy = format!(
            "protocol = \"{protocol}\"\n[services.ads.tls]\nca_file = \"office.pem\"\nserver_name = \"ads.internal\""
        );
        proxy.reload(service("ads", &policy, &[port])).await;
        let answer = eventually("nginx", async || {
            let answer = proxy.get("ads", "/").await;
            if answer.status() == 200 { Ok(answer) } else { Err(format!("{answer:?} {}", nginx.log())) }
        })
        .await;
        assert_eq!(answer.text(), format!("ads.internal {told} TLSv1.3"));
    }
    nginx.signal(Signal::Terminate).await;
}

#[tokio::test]
async fn identities_that_openssl_made_as_the_docs_say_are_believed() {
    let page = std::fs::read_to_string(gilmok_tests::source_tree::root().join("docs/moving-in.md")).unwrap();
    let script: Vec<&str> =
        page.lines().filter(|line| line.starts_with("openssl ") || line.starts_with("printf ")).collect();
    assert_eq!(script.len(), 4, "{script:?}");
    let folder = Scratch::new();
    // The root once, then each service; the second one with an RSA key.
    let rsa = script[1..]
        .join("\n")
        .replace("checkout", "shop")
        .replace("ec -pkeyopt ec_paramgen_curve:P-256", "rsa:2048");
    for commands in [script.join("\n"), rsa] {
        let output = Command::new("sh").args(["-ec", &commands]).current_dir(folder.path()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    let files = |name: &str| {
        let path = |ending: &str| folder.path().join(format!("{name}.{ending}")).display().to_string();
        format!(
            "[identity]\ncert_file = \"{}\"\nkey_file = \"{}\"\nca_file = \"{}\"",
            path("pem"),
            path("key"),
            folder.path().join("root.pem").display()
        )
    };
    let app = Upstream::saying("fine").await;
    let callee = ProxySettings::of_mesh("[services.checkout]\nallow = [\"shop\"]\n")
        .listen("inbound_tls = \"strict\"")
        .app("checkout", app.address, "")
        .table(&files("checkout"));
    let callee = Proxy::start_with(callee).await;
    let shop = ProxySettings::of_mesh(sidecars("checkout", "", &[callee.inbound(0)])).table(&files("shop"));
    let shop = Proxy::start_with(shop).await;
    assert_eq!(shop.get("checkout", "/").await.status(), 200);
    let told = app.only_request().await.header("x-forwarded-client-cert").unwrap().to_owned();
    assert!(told.ends_with(";URI=spiffe://mesh.example/service/shop"), "{told}");
}

#[tokio::test]
async fn sidecars_speak_http2_with_each_other_where_the_service_says_so() {
    let app = Upstream::saying("fine").await;
    let authority = Authority::new("mesh");
    let ads = sidecar(&authority, "ads", app.address, "inbound_tls = \"strict\"").await;
    let shop = shop(&authority, &sidecars("ads", "protocol = \"h2\"", &[ads.inbound(0)])).await;
    let load = Load::start(shop.outbound(), 8, &Ask::of("ads"));
    load.flows(200).await;
    load.stop().await.expect_no_failure();
    let open = ads.metric("gilmok_connections", &["listener=\"inbound\""]).await;
    assert!(open <= 2.0, "streams share a connection: {open}");
}
