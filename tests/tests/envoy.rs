//! A real Envoy and our sidecars speak mutual TLS with each other: in both directions, and never with whoever was not meant.

use std::net::SocketAddr;
use std::time::Duration;

use gilmok_tests::caller;
use gilmok_tests::certificates::{Authority, Leaf, Spec};
use gilmok_tests::envoy::{Door, Envoy, EnvoyTls};
use gilmok_tests::eventually::eventually;
use gilmok_tests::message::Message;
use gilmok_tests::proxy::{Proxy, ProxySettings};
use gilmok_tests::scratch::Scratch;
use gilmok_tests::upstream::Upstream;

const IDENTITY: &str = "[identity]\ncert_file = \"own.pem\"\nkey_file = \"own.key\"\nca_file = \"ca.pem\"";
/// What a caller says of itself, that nobody believes.
const CLAIM: &str = "URI=spiffe://mesh/service/admin";
/// Both versions and both protocols.
const WAYS: [(&str, &str); 4] =
    [("TLSv1_3", "http/1.1"), ("TLSv1_3", "h2"), ("TLSv1_2", "http/1.1"), ("TLSv1_2", "h2")];

async fn started(settings: ProxySettings, authority: &Authority, leaf: &Leaf) -> Proxy {
    let scratch = Scratch::new();
    leaf.write(scratch.path(), "own");
    scratch.write("ca.pem", authority.pem());
    let proxy = Proxy::start_unready(settings.table(IDENTITY), scratch).await;
    proxy.is_ready().await;
    proxy
}

/// The sidecar of `ads`, which takes nobody without an identity and lets only `shop` call.
async fn ads(authority: &Authority, leaf: &Leaf, app: SocketAddr) -> Proxy {
    let settings = ProxySettings::of_mesh("[services.shop]\n[services.ads]\nallow = [\"shop\"]\n")
        .listen("inbound_tls = \"strict\"")
        .app("ads", app, "");
    started(settings, authority, leaf).await
}

/// A mesh in which the sidecar of `ads` is here.
fn mesh(address: SocketAddr, protocol: &str) -> String {
    format!(
        "[services.ads]\nprotocol = \"{protocol}\"\n[[services.ads.endpoints]]\naddress = \"{address}\"\ninbound = true\nmtls = true\n"
    )
}

async fn handshakes(proxy: &Proxy, result: &str) -> f64 {
    proxy.metric("gilmok_tls_handshakes_total", &[&format!("result=\"{result}\"")]).await
}

/// A request that claims to be another's.
async fn ask(at: SocketAddr) -> Message {
    let request = format!("GET /users/7 HTTP/1.1\r\nHost: ads\r\nX-Forwarded-Client-Cert: {CLAIM}\r\n\r\n");
    caller::ask(at, request).await
}

#[tokio::test]
async fn envoy_calls_a_sidecar_when_each_is_who_the_other_expects() {
    let app = Upstream::saying("fine").await;
    let (authority, other) = (Authority::new("mesh"), Authority::new("mesh"));
    let leaf = |name: &str| authority.sign(&Spec::service(name));
    let ads = ads(&authority, &leaf("ads"), app.address).await;
    let at = ads.inbound(0);
    let good = EnvoyTls::new(&authority, &leaf("shop"), "ads");
    let (hour, shop) = (Duration::from_secs(3_600), Spec::service("shop"));
    let expired = Spec { begins: (2 * hour, false), ends: (hour, false), ..shop.clone() };
    let shows = |leaf: Leaf| EnvoyTls { shows: Some(leaf), ..good.clone() };
    let bad = [
        ("nobody", EnvoyTls { shows: None, ..good.clone() }),
        ("another authority of the same name", shows(other.sign(&shop))),
        ("another trust domain", shows(authority.sign(&Spec::uri("spiffe://other/service/shop")))),
        ("a DNS name", shows(authority.sign(&Spec::names(&["shop"])))),
        ("expired", shows(authority.sign(&expired))),
        // What Envoy thinks of us.
        (
            "another service was meant",
            EnvoyTls { meant: "spiffe://mesh/service/news".into(), ..good.clone() },
        ),
        ("another authority is believed", EnvoyTls { believes: other.pem(), ..good.clone() }),
    ];
    let ways = WAYS.map(|(version, alpn)| EnvoyTls { version, alpn, ..good.clone() });
    let mut doors: Vec<Door> = WAYS
        .iter()
        .zip(&ways)
        .map(|((version, alpn), tls)| Door::calling(&format!("{version} {alpn}"), at, tls))
        .collect();
    doors.extend(bad.iter().map(|(name, tls)| Door::calling(name, at, tls)));
    doors.push(Door::calling("not allowed", at, &shows(leaf("news"))));
    let envoy = Envoy::start(doors).await;
    for (version, alpn) in WAYS {
        let answer = ask(envoy.at(&format!("{version} {alpn}"))).await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, "fine"), "{version} {alpn}: {answer:?}");
    }
    for (name, _) in &bad {
        let answer = ask(envoy.at(name)).await;
        assert_eq!(answer.status(), 503, "{name}: {answer:?}");
        assert_eq!(answer.header("proxy-status"), None, "{name}: it is Envoy's own: {answer:?}");
    }
    let denied = ask(envoy.at("not allowed")).await;
    assert_eq!(denied.status(), 403, "{denied:?}");
    assert!(
        denied.header("proxy-status").unwrap().starts_with("gilmok; error=http_request_denied"),
        "{denied:?}"
    );
    let requests = app.requests();
    assert_eq!(requests.len(), WAYS.len(), "{requests:?}");
    for request in &requests {
        let told = request.all("x-forwarded-client-cert");
        assert_eq!(told.len(), 1, "{request:?}");
        assert!(
            told[0].starts_with("By=spiffe://mesh/service/ads;Hash=")
                && told[0].ends_with(";URI=spiffe://mesh/service/shop"),
            "{told:?}"
        );
    }
    // Envoy tries some of them again.
    for (result, least) in [("no_certificate", 1.0), ("bad_certificate", 4.0), ("alert", 2.0)] {
        eventually(result, async || {
            let count = handshakes(&ads, result).await;
            if count >= least { Ok(()) } else { Err(count) }
        })
        .await;
    }
    let received = handshakes(&ads, "full").await + handshakes(&ads, "resumed").await;
    assert_eq!(received, 5.0, "those who got in, and the one that may not call");
    assert!(envoy.counter("cluster.another service was meant.ssl.fail_verify_san").await >= 1);
}

#[tokio::test]
async fn a_sidecar_calls_envoy_when_each_is_who_the_other_expects() {
    let app = Upstream::saying("fine").await;
    let (authority, other) = (Authority::new("mesh"), Authority::new("mesh"));
    let leaf = |name: &str| authority.sign(&Spec::service(name));
    let good = EnvoyTls::new(&authority, &leaf("ads"), "shop");
    let shows = |leaf: Leaf| EnvoyTls { shows: Some(leaf), ..good.clone() };
    let bad = [
        ("another service", shows(leaf("thief")), "tls_certificate_error"),
        (
            "another authority of the same name",
            shows(other.sign(&Spec::service("ads"))),
            "tls_certificate_error",
        ),
        (
            "a DNS name",
            shows(authority.sign(&Spec::names(&["ads.mesh", "127.0.0.1"]))),
            "tls_certificate_error",
        ),
        ("no such protocol", EnvoyTls { alpn: "h3", ..good.clone() }, "tls_protocol_error"),
        // What Envoy thinks of us.
        (
            "another caller is meant",
            EnvoyTls { meant: "spiffe://mesh/service/news".into(), ..good.clone() },
            "tls_protocol_error",
        ),
        (
            "another authority is believed",
            EnvoyTls { believes: other.pem(), ..good.clone() },
            "tls_protocol_error",
        ),
    ];
    let ways = WAYS.map(|(version, alpn)| EnvoyTls { version, alpn, ..good.clone() });
    let mut doors: Vec<Door> = WAYS
        .iter()
        .zip(&ways)
        .map(|((version, alpn), tls)| Door::receiving(&format!("{version} {alpn}"), app.address, tls))
        .collect();
    doors.extend(bad.iter().map(|(name, tls, _)| Door::receiving(name, app.address, tls)));
    let envoy = Envoy::start(doors).await;
    let shop = started(ProxySettings::of_mesh("[services.ads]\n"), &authority, &leaf("shop")).await;
    for (version, alpn) in WAYS {
        let protocol = if alpn == "h2" { "h2" } else { "http1" };
        shop.reload(mesh(envoy.at(&format!("{version} {alpn}")), protocol)).await;
        let answer = ask(shop.outbound()).await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, "fine"), "{version} {alpn}: {answer:?}");
    }
    for (name, _, told) in &bad {
        let protocol = if *name == "no such protocol" { "h2" } else { "http1" };
        shop.reload(mesh(envoy.at(name), protocol)).await;
        let answer = ask(shop.outbound()).await;
        assert_eq!(answer.status(), 502, "{name}: {answer:?}");
        assert!(answer.header("proxy-status").unwrap().contains(told), "{name}: {answer:?}");
    }
    assert_eq!(app.requests().len(), WAYS.len());
}

#[tokio::test]
async fn the_app_is_told_of_its_caller_word_for_word_as_envoy_would_tell_it() {
    let app = Upstream::saying("fine").await;
    let authority = Authority::new("mesh");
    let [shop_leaf, ads_leaf] = ["shop", "ads"].map(|name| authority.sign(&Spec::service(name)));
    let ads = ads(&authority, &ads_leaf, app.address).await;
    let calling = EnvoyTls::new(&authority, &shop_leaf, "ads");
    let receiving = EnvoyTls::new(&authority, &ads_leaf, "shop");
    let envoy = Envoy::start(vec![
        Door::calling("to our sidecar", ads.inbound(0), &calling),
        Door::receiving("in its place", app.address, &receiving),
    ])
    .await;
    // The same caller and the same called: once we tell who calls, once Envoy does.
    assert_eq!(ask(envoy.at("to our sidecar")).await.status(), 200);
    let shop =
        started(ProxySettings::of_mesh(mesh(envoy.at("in its place"), "http1")), &authority, &shop_leaf)
            .await;
    eventually("the way through Envoy", async || {
        let answer = ask(shop.outbound()).await;
        if answer.status() == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    let told: Vec<_> = app
        .requests()
        .iter()
        .map(|request| request.header("x-forwarded-client-cert").unwrap().to_owned())
        .collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(told[0], told[1]);
}
