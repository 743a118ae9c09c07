//! REST and feed over TLS: who is believed, what a sidecar's certificate is good for, and certificates that change under load.

use std::time::Duration;

use gilmok_tests::certificates::{Authority, Leaf, Spec, TlsCaller, client_config};
use gilmok_tests::control_plane::{ControlPlane, own_address};
use gilmok_tests::eventually::{eventually, soon};
use gilmok_tests::load::{Ask, Load};
use gilmok_tests::message::Message;
use gilmok_tests::operator::{Said, command};
use gilmok_tests::peer::{run, words};
use gilmok_tests::process::Signal;
use gilmok_tests::proxy::{Proxy, ProxySettings};
use gilmok_tests::scratch::Scratch;
use gilmok_tests::upstream::Upstream;
use serde_json::Value as Json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const TLS: &str = "[tls]\ncert_file = \"plane.pem\"\nkey_file = \"plane.key\"\nclient_ca_file = \"mesh.pem\"\n\
    trust_domain = \"mesh\"";

/// A control plane that speaks TLS, its authority and that of the mesh.
struct Guarded {
    plane: ControlPlane,
    authority: Authority,
    mesh: Authority,
}

fn of_plane(own: &str) -> Spec {
    Spec::names(&["localhost", "127.0.0.1", own])
}

impl Guarded {
    async fn start(more: &str) -> Self {
        let (authority, mesh, scratch) = (Authority::new("planes"), Authority::new("mesh"), Scratch::new());
        scratch.write("ca.pem", authority.pem());
        scratch.write("mesh.pem", mesh.pem());
        scratch.write("token", "chosen");
        authority.sign(&of_plane(&own_address().to_string())).write(scratch.path(), "plane");
        let plane = ControlPlane::start_unready("0.0.0.0:0", &format!("{more}\n{TLS}"), scratch).await;
        Self { plane, authority, mesh }
    }

    fn ca(&self) -> String {
        self.plane.scratch.path().join("ca.pem").display().to_string()
    }

    /// From this machine, as somebody who shows nothing or this certificate.
    async fn ask(&self, shows: Option<&Leaf>, request: &str) -> Result<Message, String> {
        self.ask_at(false, shows, request).await
    }

    async fn ask_at(&self, elsewhere: bool, shows: Option<&Leaf>, request: &str) -> Result<Message, String> {
        let address = if elsewhere {
            self.plane.from_elsewhere()
        } else {
            (std::net::Ipv4Addr::LOCALHOST, self.plane.address.port()).into()
        };
        let config = client_config(&self.authority, shows, &["http/1.1"]);
        let caller = TlsCaller::connect(&config, address, &address.ip().to_string()).await;
        let mut caller = caller.map_err(|error| error.to_string())?;
        let (line, body) = request.split_once('\n').unwrap_or((request, ""));
        let text =
            format!("{line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        caller.ask(text).await.map_err(|reason| format!("{reason:?}"))
    }

    /// `gilmok` with these arguments.
    async fn gilmok(&self, args: &[&str]) -> Said {
        let at = format!("https://localhost:{}", self.plane.address.port());
        let ca = self.ca();
        let args = [args, &["--ca-file", &ca]].concat();
        soon("the command to end", command(&at, &args).output()).await.expect("it can be started").into()
    }

    async fn json(&self, path: &str) -> Json {
        let answer = self.ask(None, &format!("GET {path}")).await.expect("an answer");
        serde_json::from_slice(&answer.body).expect("an answer in JSON")
    }

    /// A proxy beside an app of this service that follows from elsewhere, and shows this certificate.
    async fn sidecar(&self, node: &str, service: &str, shows: &Leaf, app: &Upstream) -> Proxy {
        self.sidecar_with("", node, service, shows, app).await
    }

    /// One that has a token besides, if it is not empty.
    async fn sidecar_with(
        &self,
        token: &str,
        node: &str,
        service: &str,
        shows: &Leaf,
        app: &Upstream,
    ) -> Proxy {
        let scratch = Scratch::new();
        scratch.write("token", token);
        let token = if token.is_empty() { "" } else { "token_file = \"token\"\n" };
        scratch.write("planes.pem", self.authority.pem());
        scratch.write("mesh.pem", self.mesh.pem());
        shows.write(scratch.path(), "own");
        let source = format!(
            "[source]\ncontrol_plane = [\"https://{}\"]\nca_file = \"planes.pem\"\n{token}\
             [identity]\ncert_file = \"own.pem\"\nkey_file = \"own.key\"\nca_file = \"mesh.pem\"",
            self.plane.from_elsewhere()
        );
        let settings = ProxySettings::default().top(&format!("node = \"{node}\"")).table(&source).app(
            service,
            app.address,
            "",
        );
        Proxy::start_unready(settings, scratch).await
    }
}

async fn told_in(proxy: &Proxy, words: &str) {
    eventually(words, async || {
        let log = proxy.process.log();
        if log.contains(words) { Ok(()) } else { Err(log) }
    })
    .await;
}

#[tokio::test]
async fn only_tls_is_spoken_and_only_with_whom_is_believed() {
    let guarded = Guarded::start("").await;
    let port = guarded.plane.address.port();
    assert_eq!(guarded.gilmok(&["status"]).await.code, 0);
    let said = guarded.gilmok(&["tokens", "create", "ops", "--scope", "read"]).await;
    let token = said.out.trim().to_owned();
    // curl, from elsewhere with a token.
    let elsewhere = guarded.plane.from_elsewhere();
    let curl = async |args: String| run("curl", words(&args), "").await;
    let url = format!("https://{elsewhere}/v1/status");
    let answer = curl(format!("-sS --cacert {} -o /dev/null -w %{{http_code}} {url}", guarded.ca())).await;
    assert_eq!(answer.stdout, b"401", "{answer:?}");
    let scratch = Scratch::new();
    let header = scratch.write("header", format!("Authorization: Bearer {token}"));
    let args = format!("-sS --cacert {} -H @{} {url}", guarded.ca(), header.display());
    let answer = curl(args).await;
    assert!(serde_json::from_slice::<Json>(&answer.stdout).unwrap()["store"].is_string(), "{answer:?}");
    // Another authority is not believed.
    let other = scratch.write("other.pem", Authority::new("other").pem());
    let answer = curl(format!("-sS --cacert {} {url}", other.display())).await;
    assert_eq!(answer.status.code(), Some(60), "{answer:?}");
    // In the clear nothing is told, and who speaks so is told why.
    for request in
        ["GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n".as_bytes(), &[0; 64], &[22, 3, 1, 255, 255, 0, 1, 2, 3]]
    {
        let mut caller = TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, port)).await.unwrap();
        caller.write_all(request).await.unwrap();
        caller.shutdown().await.unwrap();
        let mut answer = Vec::new();
        drop(soon("an end", caller.read_to_end(&mut answer)).await);
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.contains("store"), "{answer}");
        assert!(request[0] != b'G' || answer.contains("use https://"), "{answer}");
    }
    // Those who begin a handshake and say nothing keep nobody out.
    let mut silent = Vec::new();
    for _ in 0..200 {
        let mut caller = TcpStream::connect(elsewhere).await.unwrap();
        caller.write_all(&[22, 3, 1]).await.unwrap();
        silent.push(caller);
    }
    assert_eq!(guarded.gilmok(&["status"]).await.code, 0);
    let metrics = guarded.ask(None, "GET /metrics").await.unwrap().text();
    for expected in [
        "gilmok_tls_handshakes_total{listener=\"control_plane\",result=\"not_tls\"} 3\n",
        "gilmok_certificate_end_seconds{certificate=\"control_plane\"} 1",
        "gilmok_certificate_end_seconds{certificate=\"callers_ca\"} ",
    ] {
        assert!(metrics.contains(expected), "{expected}: {metrics}");
    }
}

#[tokio::test]
async fn while_moving_both_are_taken_on_one_port() {
    let (authority, scratch) = (Authority::new("planes"), Scratch::new());
    authority.sign(&of_plane("127.0.0.2")).write(scratch.path(), "plane");
    let tables = "[tls]\ncert_file = \"plane.pem\"\nkey_file = \"plane.key\"\nmode = \"permissive\"";
    let plane = ControlPlane::start_with(tables, scratch).await;
    assert_eq!(plane.get("/v1/status").await.status(), 200);
    let config = client_config(&authority, None, &[]);
    let mut caller = TlsCaller::connect(&config, plane.address, "127.0.0.1").await.unwrap();
    let answer = caller.ask("GET /v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn a_sidecars_certificate_is_good_for_its_own_service_and_for_nothing_else() {
    let guarded = Guarded::start("").await;
    let shop = guarded.mesh.sign(&Spec::service("shop"));
    let put = guarded.ask(None, "PUT /v1/services/shop\n{}").await.unwrap();
    assert_eq!(put.status(), 201);
    let endpoint = "{\"address\": \"10.0.0.1:1\", \"ttl\": \"10s\"}";
    for (line, body, expected) in [
        ("PUT /v1/membership/shop/a", endpoint, 201),
        ("PUT /v1/membership/ads/a", endpoint, 403),
        ("GET /v1/status", "", 403),
        ("PUT /v1/services/shop", "{}", 403),
        ("GET /v1/backup", "", 403),
    ] {
        for elsewhere in [true, false] {
            let answer = guarded.ask_at(elsewhere, Some(&shop), &format!("{line}\n{body}")).await.unwrap();
            let status = if answer.status() == 200 { 201 } else { answer.status() };
            assert_eq!(status, expected, "{line}: {}", answer.text());
        }
    }
    // Who is nobody of this mesh is a stranger, who does not fit at all is not received.
    let stranger = guarded.mesh.sign(&Spec::uri("spiffe://elsewhere/service/shop"));
    let two = Spec {
        uris: vec!["spiffe://mesh/service/shop".to_owned(), "spiffe://mesh/service/ads".to_owned()],
        ..Spec::default()
    };
    for leaf in [stranger, guarded.mesh.sign(&two), guarded.mesh.sign(&Spec::names(&["shop"]))] {
        let answer =
            guarded.ask_at(true, Some(&leaf), &format!("PUT /v1/membership/shop/a\n{endpoint}")).await;
        assert_eq!(answer.unwrap().status(), 401);
    }
    let hour = Duration::from_secs(3_600);
    let ended = Spec { begins: (2 * hour, false), ends: (hour, false), ..Spec::service("shop") };
    let early = Spec { begins: (hour, true), ..Spec::service("shop") };
    let others = [
        Authority::new("other").sign(&Spec::service("shop")),
        Spec::service("shop").self_signed(),
        guarded.mesh.sign(&ended),
        guarded.mesh.sign(&early),
    ];
    for leaf in &others {
        let refused =
            guarded.ask_at(true, Some(leaf), &format!("PUT /v1/membership/shop/a\n{endpoint}")).await;
        assert!(refused.is_err(), "{refused:?}");
    }
    assert_eq!(guarded.json("/v1/status").await["revision"], 1, "others are served");
}

#[tokio::test]
async fn a_certificate_that_is_not_taken_does_not_stand_in_the_way_of_a_token() {
    let guarded = Guarded::start("").await;
    assert_eq!(guarded.ask(None, "PUT /v1/services/shop\n{}").await.unwrap().status(), 201);
    let token = guarded.gilmok(&["tokens", "create", "sidecars", "--scope", "proxy"]).await.out;
    let (hour, app) = (Duration::from_secs(3_600), Upstream::saying("shop").await);
    let ended = Spec { begins: (2 * hour, false), ends: (hour, false), ..Spec::service("shop") };
    // Of an authority that the control plane does not know, and of its own, but ended.
    let other = Authority::new("other").sign(&Spec::service("shop"));
    for (node, leaf, is_retried) in [("web-1", other, true), ("web-2", guarded.mesh.sign(&ended), false)] {
        let proxy = guarded.sidecar_with(token.trim(), node, "shop", &leaf, &app).await;
        proxy.is_ready().await;
        eventually("it to be heard and its app to be registered", async || {
            let proxies = guarded.json("/v1/proxies").await;
            let members = guarded.json("/v1/membership/shop").await;
            let is_heard = proxies.as_array().unwrap().iter().any(|proxy| proxy["node"] == node);
            let is_registered = members.to_string().contains(&format!("\"{node}-"));
            if is_heard && is_registered { Ok(()) } else { Err(format!("{proxies} {members}")) }
        })
        .await;
        let log = proxy.process.log();
        assert_eq!(log.contains("does not take the certificate of this proxy"), is_retried, "{log}");
    }
}

#[tokio::test]
async fn a_proxy_with_a_stolen_identity_of_another_service_speaks_for_nobody() {
    let guarded = Guarded::start("").await;
    assert_eq!(guarded.ask(None, "PUT /v1/services/shop\n{}").await.unwrap().status(), 201);
    let (app, evil) = (Upstream::saying("shop").await, Upstream::saying("evil").await);
    let (shop, ads) = (guarded.mesh.sign(&Spec::service("shop")), guarded.mesh.sign(&Spec::service("ads")));
    let honest = guarded.sidecar("web-1", "shop", &shop, &app).await;
    honest.is_ready().await;
    eventually("its app to be registered", async || {
        let members = guarded.json("/v1/membership").await;
        if members["shop"].as_array().is_some_and(|members| members.len() == 1) {
            Ok(())
        } else {
            Err(members)
        }
    })
    .await;
    eventually("it to be heard", async || {
        let proxies = guarded.json("/v1/proxies").await;
        if proxies[0]["node"] == "web-1" { Ok(()) } else { Err(proxies) }
    })
    .await;
    let instance = guarded.json("/v1/proxies").await[0]["instance"].clone();
    // One that says it is the other proxy, and one that says it has the other's app.
    let same = guarded.sidecar("web-1", "ads", &ads, &evil).await;
    told_in(&same, "the proxy `web-1` is one of other services").await;
    let posing = guarded.sidecar("web-2", "shop", &ads, &evil).await;
    told_in(&posing, "takes no acks: answered 403 Forbidden").await;
    told_in(&posing, "this needs a token for the service `shop`").await;
    let proxies = guarded.json("/v1/proxies").await;
    assert_eq!((proxies.as_array().unwrap().len(), &proxies[0]["instance"]), (1, &instance), "{proxies}");
    assert_eq!(guarded.json("/v1/membership").await["shop"].as_array().unwrap().len(), 1);
    assert_eq!(honest.get("shop", "/").await.text(), "shop");
}

#[tokio::test]
async fn certificates_and_roots_change_under_load_and_no_request_fails() {
    let guarded = Guarded::start("").await;
    let app = Upstream::saying("shop").await;
    assert_eq!(guarded.ask(None, "PUT /v1/services/shop\n{}").await.unwrap().status(), 201);
    let proxy = guarded.sidecar("web-1", "shop", &guarded.mesh.sign(&Spec::service("shop")), &app).await;
    proxy.is_ready().await;
    eventually("its app to be called", async || {
        let answer = proxy.get("shop", "/").await;
        if answer.status() == 200 { Ok(()) } else { Err(answer.status()) }
    })
    .await;
    let load = Load::start(proxy.outbound(), 4, &Ask::of("shop"));
    let converges = async |revision: u64| {
        let request = format!("PATCH /v1/services/shop?wait=15s\n{{\"max_concurrent\": {}}}", 100 + revision);
        let answer = guarded.ask(None, &request).await.unwrap();
        assert_eq!(answer.status(), 200, "{revision}: {}", answer.text());
    };
    let (folder, own) = (guarded.plane.scratch.path(), own_address().to_string());
    converges(1).await;
    for round in 0..3 {
        guarded.authority.sign(&of_plane(&own)).write(folder, "plane");
        taken(&guarded, round + 1).await;
        converges(10 + round).await;
        load.flows(20).await;
    }
    // A key that does not fit is refused, and the old pair goes on.
    let fitting = std::fs::read(folder.join("plane.key")).unwrap();
    std::fs::write(folder.join("plane.key"), guarded.authority.sign(&of_plane(&own)).key_pem()).unwrap();
    eventually("it to be refused", async || {
        let log = guarded.plane.process.log();
        if log.contains("does not fit") { Ok(()) } else { Err(log) }
    })
    .await;
    converges(20).await;
    std::fs::write(folder.join("plane.key"), fitting).unwrap();
    taken(&guarded, 4).await;
    // Another root for sidecars: the proxy is a stranger until it has a certificate of it, and serves all the while.
    let mesh = Authority::new("another mesh");
    guarded.plane.scratch.write("mesh.pem", mesh.pem());
    told_in(&proxy, "takes no acks").await;
    load.flows(20).await;
    proxy.scratch.write("mesh.pem", mesh.pem());
    mesh.sign(&Spec::service("shop")).write(proxy.scratch.path(), "own");
    told_in(&proxy, "takes acks again").await;
    converges(30).await;
    load.flows(20).await;
    let outcome = load.stop().await;
    assert!(outcome.failures.is_empty() && outcome.succeeded > 100, "{outcome:?}");
}

async fn taken(guarded: &Guarded, times: u64) {
    let expected = format!(
        "gilmok_certificate_reloads_total{{certificate=\"control_plane\",result=\"taken\"}} {times}\n"
    );
    eventually("the new certificate to be taken", async || {
        let metrics = guarded.ask(None, "GET /metrics").await?.text();
        if metrics.contains(&expected) { Ok(()) } else { Err(metrics) }
    })
    .await;
}

#[tokio::test]
async fn several_control_planes_over_tls_stand_in_for_each_other_and_a_restart_is_survived() {
    let guarded = Guarded::start("token_file = \"token\"\nloopback = \"token\"").await;
    let scratch = Scratch::new();
    scratch.write("planes.pem", guarded.authority.pem());
    scratch.write("token", "chosen");
    let at = guarded.plane.from_elsewhere();
    let source = format!(
        "[source]\ncontrol_plane = [\"https://127.0.0.1:1\", \"https://{at}\"]\nca_file = \"planes.pem\"\ntoken_file = \"token\""
    );
    let proxy = Proxy::start_unready(ProxySettings::default().table(&source), scratch).await;
    let token = guarded.plane.scratch.path().join("token").display().to_string();
    let mesh = guarded.plane.scratch.write("mesh.toml", "[services.ads]\n").display().to_string();
    let said = guarded.gilmok(&["apply", &mesh, "--token-file", &token]).await;
    assert_eq!(said.code, 0, "{said:?}");
    proxy.is_ready().await;
    let Guarded { plane, authority, mesh } = guarded;
    let ControlPlane { process, scratch, address } = plane;
    process.signal(Signal::Kill).await;
    drop(process);
    let tables = format!("token_file = \"token\"\nloopback = \"token\"\n{TLS}");
    let plane = ControlPlane::start_unready(&address.to_string(), &tables, scratch).await;
    let guarded = Guarded { plane, authority, mesh };
    let wait = ["apply", &guarded.plane.scratch.write("b.toml", "[services.shop]\n").display().to_string()]
        .map(str::to_owned);
    let said = guarded.gilmok(&[&wait[0], &wait[1], "--wait", "15s", "--token-file", &token]).await;
    assert_eq!(said.code, 0, "{said:?}");
}
