//! Endpoints that are well, ill, slow and gone, and what is made of them.

use std::sync::atomic::{AtomicBool, AtomicU16};

use gilmok_config::document::Document;
use gilmok_config::name::Name;
use gilmok_config::snapshot::{Membership, Snapshot};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::testing::eventually;

/// An app that answers every request with a status that tests change.
struct Upright {
    address: std::net::SocketAddr,
    status: Arc<AtomicU16>,
}

async fn upright(status: u16) -> Upright {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let status = Arc::new(AtomicU16::new(status));
    let told = Arc::clone(&status);
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let told = Arc::clone(&told);
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = socket.read_u8().await else { return };
                    head.push(byte);
                }
                let answer = format!("HTTP/1.1 {} x\r\ncontent-length: 0\r\n\r\n", told.load(Relaxed));
                drop(socket.write_all(answer.as_bytes()).await);
            });
        }
    });
    Upright { address, status }
}

fn document(checked: bool, addresses: &[std::net::SocketAddr]) -> Snapshot {
    document_of(checked.then_some("/healthz"), addresses)
}

fn document_of(path: Option<&str>, addresses: &[std::net::SocketAddr]) -> Snapshot {
    let mut text = "[services.ads]\n".to_owned();
    if let Some(path) = path {
        text += &format!(
            "health_check = {{ path = \"{path}\", interval = \"20ms\", timeout = \"1s\", unhealthy_threshold = 2 }}\n"
        );
    }
    for address in addresses {
        text += &format!("[[services.ads.endpoints]]\naddress = \"{address}\"\n");
    }
    Snapshot::join(&Document::parse_toml(&text).unwrap(), &Membership::new())
}

struct Proxy {
    in_force: Arc<InForce>,
    _tasks: JoinSet<()>,
}

fn proxy(snapshot: Snapshot) -> Proxy {
    let in_force = Arc::new(InForce::new(1, Name::default(), Vec::new()));
    in_force.put(snapshot, None);
    let mut tasks = JoinSet::new();
    start(&[], &in_force, &mut tasks);
    Proxy { in_force, _tasks: tasks }
}

impl Proxy {
    fn healths(&self) -> Vec<Health> {
        self.in_force.load().upstreams[0].endpoints.iter().map(|state| state.health()).collect()
    }

    fn eligible(&self) -> usize {
        self.in_force.load().upstreams[0].eligible(clock::now_ms()).all.endpoints().len()
    }

    fn fails_open(&self) -> bool {
        self.in_force.load().upstreams[0].shared.fail_open.load(Relaxed)
    }
}

#[tokio::test]
async fn a_sick_endpoint_is_taken_out_and_brought_back() {
    let (well, ill) = (upright(200).await, upright(200).await);
    let proxy = proxy(document(true, &[well.address, ill.address]));
    eventually("both healthy", || proxy.healths() == [Health::Healthy, Health::Healthy]).await;
    ill.status.store(503, Relaxed);
    eventually("one taken out", || proxy.eligible() == 1).await;
    assert_eq!(proxy.healths(), [Health::Healthy, Health::Unhealthy]);
    ill.status.store(302, Relaxed);
    eventually("brought back", || proxy.eligible() == 2).await;
    // With one pass on record the check is believed, even when everything fails.
    well.status.store(500, Relaxed);
    ill.status.store(500, Relaxed);
    eventually("none left", || proxy.eligible() == 0).await;
    assert!(!proxy.fails_open());
}

#[tokio::test]
async fn a_check_that_never_passed_takes_none_out() {
    let (one, two) = (upright(404).await, upright(404).await);
    let proxy = proxy(document(true, &[one.address, two.address]));
    eventually("failing open", || proxy.fails_open() && proxy.healths() == [Health::Unhealthy; 2]).await;
    assert_eq!(proxy.eligible(), 2);
    one.status.store(200, Relaxed);
    eventually("believed", || !proxy.fails_open() && proxy.eligible() == 1).await;
}

#[tokio::test]
async fn a_changed_check_has_to_pass_before_it_is_believed() {
    let app = upright(200).await;
    let proxy = proxy(document(true, &[app.address]));
    eventually("healthy", || proxy.healths() == [Health::Healthy]).await;
    app.status.store(404, Relaxed);
    proxy.in_force.put(document_of(Some("/mistyped"), &[app.address]), None);
    eventually("failing open", || proxy.fails_open()).await;
    assert_eq!(proxy.eligible(), 1);
}

#[tokio::test]
async fn health_outlives_a_reload_and_ends_with_the_check() {
    let (well, ill) = (upright(200).await, upright(503).await);
    let proxy = proxy(document(true, &[well.address, ill.address]));
    eventually("one taken out", || proxy.eligible() == 1).await;
    proxy.in_force.put(document(true, &[well.address, ill.address]), None);
    assert_eq!(proxy.eligible(), 1, "at once, without another check");
    proxy.in_force.put(document(false, &[well.address, ill.address]), None);
    eventually("unchecked", || proxy.eligible() == 2).await;
    eventually("forgotten", || proxy.healths() == [Health::Unknown; 2]).await;
}

#[tokio::test]
async fn every_kind_of_question_is_asked() {
    let app = upright(200).await;
    let peer = Peer::Tcp(app.address);
    let service = ServiceName::parse("ads").unwrap();
    let policy = |probe| HealthCheckPolicy {
        probe,
        interval: Duration::from_secs(1),
        timeout: Duration::from_millis(300),
        healthy_threshold: 1,
        unhealthy_threshold: 1,
    };
    let ask =
        async |peer: &Peer, probe| probe::ask((peer, None), &service, Protocol::Http1, &policy(probe)).await;
    use gilmok_config::health::Probe;
    assert_eq!(ask(&peer, Probe::Tcp).await, Ok(()));
    assert_eq!(ask(&peer, Probe::Http("/".to_owned())).await, Ok(()));
    assert!(ask(&peer, Probe::Grpc(String::new())).await.is_err(), "it does not speak HTTP/2");
    let nobody = Peer::Tcp("127.0.0.1:1".parse().unwrap());
    assert_eq!(ask(&nobody, Probe::Tcp).await.unwrap_err(), "it refuses connections");
    // The kernel accepts, nobody answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = Peer::Tcp(silent.local_addr().unwrap());
    let told = ask(&silent, Probe::Http("/".to_owned())).await;
    assert!(told.is_err(), "{told:?}");
}

#[tokio::test]
async fn grpc_servers_are_asked_by_their_own_protocol() {
    use http_body_util::{BodyExt, Full};
    let serving = Arc::new(AtomicBool::new(true));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = Peer::Tcp(listener.local_addr().unwrap());
    let told = Arc::clone(&serving);
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let told = Arc::clone(&told);
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let status = if told.load(Relaxed) { 1 } else { 2 };
                async move {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    assert_eq!(request.headers()["content-type"], "application/grpc");
                    let asked = request.into_body().collect().await.unwrap().to_bytes();
                    assert_eq!(&asked[..], [0, 0, 0, 0, 3, 0x0a, 1, b'S']);
                    let mut trailers = http::HeaderMap::new();
                    trailers.insert("grpc-status", "0".parse().unwrap());
                    let body = Full::new(bytes::Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 0x08, status]))
                        .with_trailers(std::future::ready(Some(Ok(trailers))));
                    Ok::<_, std::convert::Infallible>(http::Response::new(body))
                }
            });
            let executor = hyper_util::rt::TokioExecutor::new();
            let connection = hyper::server::conn::http2::Builder::new(executor)
                .serve_connection(hyper_util::rt::TokioIo::new(socket), service);
            tokio::spawn(async move { drop(connection.await) });
        }
    });
    let policy = HealthCheckPolicy {
        probe: gilmok_config::health::Probe::Grpc("S".to_owned()),
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(5),
        healthy_threshold: 1,
        unhealthy_threshold: 1,
    };
    let service = ServiceName::parse("ads").unwrap();
    assert_eq!(probe::ask((&peer, None), &service, Protocol::H2, &policy).await, Ok(()));
    serving.store(false, Relaxed);
    assert_eq!(
        probe::ask((&peer, None), &service, Protocol::H2, &policy).await.unwrap_err(),
        "it says NOT_SERVING"
    );
}

#[test]
fn thresholds_count_answers_in_a_row() {
    let policy = HealthCheckPolicy {
        probe: gilmok_config::health::Probe::Tcp,
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
        healthy_threshold: 2,
        unhealthy_threshold: 3,
    };
    let mut thresholds = Thresholds::after(Health::Healthy);
    let mut play = |answers: &str| -> Health {
        for answer in answers.chars() {
            thresholds.take(answer == '+', &policy);
        }
        thresholds.health
    };
    for (answers, expected) in [
        ("--+--", Health::Healthy),
        ("-", Health::Unhealthy),
        ("+-+-", Health::Unhealthy),
        ("++", Health::Healthy),
    ] {
        assert_eq!(play(answers), expected, "{answers}");
    }
}

#[test]
fn pauses_vary_by_a_tenth() {
    for _ in 0..1_000 {
        let regular = pause(Duration::from_secs(10), false).as_millis();
        assert!((9_000..=11_000).contains(&regular), "{regular} ms");
        assert!(pause(Duration::from_secs(10), true) <= Duration::from_secs(10));
    }
}
