//! TLS against those who mean harm: handshakes by the thousand that never end, changed hellos, certificates without their keys.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use gilmok_tests::caller;
use gilmok_tests::certificates::{Authority, Leaf, Spec, TlsCaller, client_config};
use gilmok_tests::eventually::{SOON, eventually, within};
use gilmok_tests::proxy::{Proxy, ProxySettings, service};
use gilmok_tests::scratch::Scratch;
use gilmok_tests::upstream::Upstream;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const IDENTITY: &str = "[identity]\ncert_file = \"own.pem\"\nkey_file = \"own.key\"\nca_file = \"ca.pem\"";

/// A proxy with an edge listener for `shop.example`, in front of `app`.
async fn edge(authority: &Authority, limits: &str, app: SocketAddr) -> Proxy {
    let scratch = Scratch::new();
    authority.sign(&Spec::names(&["shop.example"])).write(scratch.path(), "edge");
    let mesh = service("app", "", &[app]) + "[[routes]]\nhosts = [\"shop.example\"]\nservice = \"app\"\n";
    let settings = ProxySettings::of_mesh(mesh)
        .listen("edge = \"127.0.0.1:0\"")
        .table(&format!("[limits]\n{limits}"))
        .table("[[edge.certificates]]\ncert_file = \"edge.pem\"\nkey_file = \"edge.key\"");
    started(settings, scratch).await
}

/// A proxy with the identity of this service.
async fn member(authority: &Authority, name: &str, settings: ProxySettings) -> Proxy {
    let scratch = Scratch::new();
    // Clients of these tests look for an address, the mesh for the URI.
    let spec = Spec { names: vec!["127.0.0.1".into()], ..Spec::service(name) };
    authority.sign(&spec).write(scratch.path(), "own");
    scratch.write("ca.pem", authority.pem());
    started(settings.table(IDENTITY), scratch).await
}

async fn started(settings: ProxySettings, scratch: Scratch) -> Proxy {
    let proxy = Proxy::start_unready(settings, scratch).await;
    proxy.is_ready().await;
    proxy
}

/// The sidecar of `ads`, which takes nobody without an identity.
async fn ads(authority: &Authority, app: SocketAddr) -> Proxy {
    let settings =
        ProxySettings::of_mesh("[services.ads]\n").listen("inbound_tls = \"strict\"").app("ads", app, "");
    member(authority, "ads", settings).await
}

async fn handshakes(proxy: &Proxy, result: &str) -> f64 {
    proxy.metric("gilmok_tls_handshakes_total", &[&format!("result=\"{result}\"")]).await
}

/// Room for this many sockets in this process.
fn make_room(sockets: u64) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some_and(|current| current < sockets) {
        let limit = Rlimit { current: Some(sockets), maximum: maximum.map(|maximum| maximum.max(sockets)) };
        setrlimit(Resource::Nofile, limit).expect("this test needs more open files: ulimit -n 12000");
    }
}

#[tokio::test]
async fn ten_thousand_handshakes_that_never_end_keep_nobody_else_out() {
    const STUCK: usize = 10_000;
    make_room(STUCK as u64 + 2_000);
    let upstream = Upstream::saying("fine").await;
    let authority = Authority::new("office");
    let proxy = edge(&authority, "handshakes = 500\nhandshake_timeout = \"2m\"", upstream.address).await;
    let (at, config) = (proxy.edge(), client_config(&authority, None, &[]));
    let mut open = TlsCaller::connect(&config, at, "shop.example").await.unwrap();
    let mut stuck = Vec::with_capacity(STUCK);
    for number in 0..STUCK {
        let mut stream = TcpStream::connect(at).await.unwrap();
        // Nothing, or the beginning of a hello.
        if number % 2 == 0 {
            stream.write_all(&[0x16, 3, 1, 2, 0, 1, 0]).await.unwrap();
        }
        stuck.push(stream);
        if number % 500 == 0 {
            let mut late = TlsCaller::connect(&config, at, "shop.example").await.unwrap();
            for caller in [&mut open, &mut late] {
                assert_eq!(caller.ask(caller::get("shop.example", "/")).await.unwrap().status(), 200);
            }
        }
    }
    let least = (STUCK - 500) as f64;
    let crowded = eventually("the oldest to be ended", async || {
        let crowded = handshakes(&proxy, "crowded_out").await;
        if crowded >= least { Ok(crowded) } else { Err(crowded) }
    })
    .await;
    assert!(crowded <= least + 100.0, "{crowded}");
    assert_eq!(stuck[0].read(&mut [0]).await.unwrap_or(0), 0, "the oldest is closed");
    let open = proxy.metric("gilmok_connections", &["listener=\"edge\""]).await;
    assert!(open <= 600.0, "what is ended is let go of: {open}");
}

#[tokio::test]
async fn what_was_agreed_upon_is_what_is_spoken() {
    let upstream = Upstream::saying("fine").await;
    let authority = Authority::new("mesh");
    let ads = ads(&authority, upstream.address).await;
    let shop = authority.sign(&Spec::service("shop"));
    let http1 = caller::get("ads", "/");
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for (agreed, spoken) in [("h2", http1.as_str()), ("http/1.1", preface)] {
        let config = client_config(&authority, Some(&shop), &[agreed]);
        let mut caller = TlsCaller::connect(&config, ads.inbound(0), "127.0.0.1").await.unwrap();
        let answer = caller.ask(spoken).await;
        assert!(answer.as_ref().map_or(true, |answer| answer.status() >= 400), "{agreed}: {answer:?}");
    }
    assert!(upstream.requests().is_empty());
}

/// Passes connections on to `to`, with `from` written as `into` in the first bytes of the client's.
async fn meddling(to: SocketAddr, from: &'static [u8], into: &'static [u8]) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let mut running = JoinSet::new();
    running.spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut far = TcpStream::connect(to).await.expect("it listens");
            let mut hello = vec![0; 4_096];
            let read = near.read(&mut hello).await.expect("a hello");
            hello.truncate(read);
            let found = hello.windows(from.len()).position(|part| part == from).expect("it is in the hello");
            hello[found..found + from.len()].copy_from_slice(into);
            far.write_all(&hello).await.expect("it is taken");
            drop(copy_bidirectional(&mut near, &mut far).await);
        }
    });
    (address, running)
}

#[tokio::test]
async fn whoever_sits_between_cannot_talk_two_into_an_older_protocol() {
    let upstream = Upstream::saying("fine").await;
    let authority = Authority::new("office");
    let proxy = edge(&authority, "", upstream.address).await;
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(authority.roots())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let config = Arc::new(config);
        let whole = TlsCaller::connect(&config, proxy.edge(), "shop.example").await.unwrap();
        assert_eq!(whole.io.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        // Only HTTP/1.1 is left of what the client offers.
        let offered = b"\x02h2\x08http/1.1";
        for (told, is_good) in [(offered, true), (b"\x02hx\x08http/1.1", false)] {
            let (between, _running) = meddling(proxy.edge(), offered, told).await;
            let connected = TlsCaller::connect(&config, between, "shop.example").await;
            assert_eq!(connected.is_ok(), is_good, "{version:?}: {connected:?}");
        }
    }
    assert!(upstream.requests().is_empty());
}

/// What this certificate can be shown with, though the key is another's.
fn stolen(victim: &Leaf, thief: &Leaf) -> Arc<SingleCertAndKey> {
    let key = PrivatePkcs8KeyDer::from(thief.key.clone()).into();
    let key = ring::sign::any_supported_type(&key).expect("a key");
    let chain = victim.chain.iter().cloned().map(CertificateDer::from).collect();
    Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key)))
}

#[tokio::test]
async fn a_certificate_without_its_key_is_nobody() {
    let upstream = Upstream::saying("fine").await;
    let authority = Authority::new("mesh");
    let leaf = |name: &str| {
        let names = vec!["127.0.0.1".to_owned()];
        authority.sign(&Spec { names, ..Spec::service(name) })
    };
    let (shop, thief, victim) = (leaf("shop"), leaf("thief"), leaf("ads"));
    // As a caller: certificates are no secret, whoever has called once has shown its own.
    let ads = ads(&authority, upstream.address).await;
    let mut config = (*client_config(&authority, Some(&thief), &["http/1.1"])).clone();
    config.client_auth_cert_resolver = stolen(&shop, &thief);
    let config = Arc::new(config);
    let asked = async {
        let mut caller = TlsCaller::connect(&config, ads.inbound(0), "127.0.0.1").await.ok()?;
        caller.ask(caller::get("ads", "/")).await.ok()
    };
    assert!(within(SOON, "the refusal", asked).await.is_none());
    eventually("the refusal to be counted", async || {
        let count = handshakes(&ads, "failed").await + handshakes(&ads, "bad_certificate").await;
        if count == 1.0 { Ok(()) } else { Err(ads.metrics().await) }
    })
    .await;
    // As a callee.
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(stolen(&victim, &thief));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mesh = format!(
        "[services.ads]\n[[services.ads.endpoints]]\naddress = \"{}\"\ninbound = true\nmtls = true\n",
        listener.local_addr().unwrap()
    );
    let caller = member(&authority, "shop", ProxySettings::of_mesh(mesh)).await;
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            // Nobody ever says a word to it.
            assert!(acceptor.accept(tcp).await.is_err());
        }
    });
    let answer = caller.get("ads", "/").await;
    assert_eq!(answer.status(), 502);
    assert!(answer.header("proxy-status").unwrap().contains("error=tls_"), "{answer:?}");
    assert!(upstream.requests().is_empty());
}

#[tokio::test]
async fn a_hello_that_drips_ends_in_time_and_keeps_nobody_else_out() {
    let upstream = Upstream::saying("fine").await;
    let authority = Authority::new("office");
    let proxy = edge(&authority, "handshake_timeout = \"2s\"", upstream.address).await;
    let (at, config) = (proxy.edge(), client_config(&authority, None, &[]));
    let mut client =
        rustls::ClientConnection::new(Arc::clone(&config), "shop.example".try_into().unwrap()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    // Each byte is a record of its own, so that something whole comes all the time.
    let records: Vec<[u8; 6]> = hello[5..].iter().map(|byte| [0x16, 3, 1, 0, 1, *byte]).collect();
    let mut slow = TcpStream::connect(at).await.unwrap();
    // Its slowness is the attack.
    let dripping = async {
        for record in &records {
            if slow.write_all(record).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        panic!("the whole hello was taken");
    };
    let others = async {
        for _ in 0..20 {
            let mut caller = TlsCaller::connect(&config, at, "shop.example").await.unwrap();
            assert_eq!(caller.ask(caller::get("shop.example", "/")).await.unwrap().status(), 200);
        }
    };
    within(SOON, "the end of the slow one", async { tokio::join!(dripping, others) }).await;
    assert_eq!(handshakes(&proxy, "timeout").await, 1.0);
}
