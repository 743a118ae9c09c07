//! The client against servers that answer, dawdle, lie and go away, byte by byte.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};

use super::*;

const OK: &str = "HTTP/1.1 200 OK\r\nx-n: 1\r\ncontent-length: 2\r\n\r\nhi";

/// Reads one request's head, or nothing at the end of the connection.
async fn head(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        text.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(text).unwrap())
}

/// A server that gives each connection the next list of answers, one answer a request, and then closes it.
async fn server(connections: Vec<Vec<String>>) -> Client {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(async move {
        for answers in connections {
            let (mut stream, _) = listener.accept().await.unwrap();
            for answer in answers {
                if head(&mut stream).await.is_none() {
                    break;
                }
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    });
    Client::new(Settings { body_bytes_max: 100, ..Settings::new(origin) }).unwrap()
}

#[tokio::test]
async fn one_connection_serves_request_after_request() {
    let client = server(vec![vec![OK.to_owned(), OK.to_owned()]]).await;
    for _ in 0..2 {
        let response = client.send(&Request::get("/")).await.unwrap();
        assert_eq!(response.status, StatusCode::OK);
        assert_eq!(response.headers["x-n"], "1");
        assert_eq!(response.body, "hi");
    }
}

#[tokio::test]
async fn a_connection_closed_while_idle_is_opened_again_only_for_who_allows_it() {
    let one = || vec![OK.to_owned()];
    let client = server(vec![one(), one(), one()]).await;
    client.send(&Request::get("/")).await.unwrap();
    client.send(&Request::get("/")).await.unwrap();
    let strict = Request { redial: false, ..Request::get("/") };
    let error = client.send(&strict).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(!client.is_connected());
    client.send(&strict).await.unwrap();
}

#[tokio::test]
async fn bodies_are_bounded() {
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 101\r\n\r\n{}", "x".repeat(101));
    let error = server(vec![vec![answer]]).await.send(&Request::get("/")).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { bytes_max: 100, .. }), "{error}");
}

#[tokio::test]
async fn a_truncated_body_and_a_reset_are_unreachable() {
    for answer in ["HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi", "HTTP/1.1 200 O", ""] {
        let error = server(vec![vec![answer.to_owned()]]).await.send(&Request::get("/")).await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{answer:?}: {error}");
    }
}

#[tokio::test]
async fn what_is_not_http_is_told_as_such() {
    let error = server(vec![vec!["SSH-2.0-OpenSSH\r\n\r\n".to_owned()]]).await;
    let error = error.send(&Request::get("/")).await.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
}

#[tokio::test]
async fn a_silent_server_is_given_up_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let client = Client::new(Settings::new(origin)).unwrap();
    let error = client.send(&Request::get("/").timeout(Duration::from_millis(50))).await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    assert!(!client.is_connected());
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    drop(listener);
    let error = Client::new(Settings::new(origin)).unwrap().send(&Request::get("/")).await.unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn lines_come_one_by_one_and_bounded() {
    let long = "x".repeat(150);
    let body = format!("one\n\ntwo\nthree{long}");
    let answer = format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{body}");
    let client = server(vec![vec![answer]]).await;
    let mut lines = client.lines(&Request::get("/"), Duration::from_secs(5)).await.unwrap();
    for expected in ["one", "", "two"] {
        assert_eq!(lines.next().await.unwrap().unwrap(), expected);
    }
    assert!(matches!(lines.next().await.unwrap_err(), Error::TooLarge { .. }));
}

#[tokio::test]
async fn a_unix_socket_is_an_origin_too() {
    let path = std::env::temp_dir().join(format!("gilmok-http-client-{}.sock", std::process::id()));
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let head = head(&mut stream).await.unwrap();
        assert!(head.to_ascii_lowercase().contains("host: localhost\r\n"), "{head}");
        stream.write_all(OK.as_bytes()).await.unwrap();
    });
    let origin = format!("unix://{}", path.display()).parse().unwrap();
    let response = Client::new(Settings::new(origin)).unwrap().send(&Request::get("/")).await;
    std::fs::remove_file(&path).unwrap();
    assert_eq!(response.unwrap().body, "hi");
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/http_client/fixtures").join(name)
}

/// A TLS server that asks for a client certificate; says where it is.
async fn tls_server() -> Origin {
    let certificate = |name: &str| CertificateDer::from_pem_file(fixture(name)).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate("ca.pem")).unwrap();
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(
            vec![certificate("server.pem")],
            PrivateKeyDer::from_pem_file(fixture("server.key")).unwrap(),
        )
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("https://{}", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(mut stream) = acceptor.accept(stream).await
                && head(&mut stream).await.is_some()
            {
                answer(&mut stream).await;
            }
        }
    });
    origin
}

async fn answer(stream: &mut (impl AsyncWrite + Unpin)) {
    // A client that has gone is its own test's business.
    drop(stream.write_all(OK.as_bytes()).await);
}

#[tokio::test]
async fn tls_checks_the_server_and_shows_our_certificate() {
    let origin = tls_server().await;
    let sound = TlsSettings {
        ca_file: Some(fixture("ca.pem")),
        cert_file: Some(fixture("client.pem")),
        key_file: Some(fixture("client.key")),
        server_name: Some("consul.test".to_owned()),
    };
    let ask = async |tls: &TlsSettings| {
        let settings = Settings { tls: tls.clone(), ..Settings::new(origin.clone()) };
        Client::new(settings).unwrap().send(&Request::get("/")).await
    };
    assert_eq!(ask(&sound).await.unwrap().body, "hi");
    let other_name = TlsSettings { server_name: Some("other.test".to_owned()), ..sound.clone() };
    assert!(ask(&other_name).await.unwrap_err().to_string().contains("certificate"));
    let nameless = TlsSettings { cert_file: None, key_file: None, ..sound.clone() };
    assert!(matches!(ask(&nameless).await.unwrap_err(), Error::Unreachable { .. }));
}

#[test]
fn tls_files_that_cannot_be_used_are_told_at_the_start() {
    let origin: Origin = "https://127.0.0.1:1".parse().unwrap();
    let half = TlsSettings {
        ca_file: Some(fixture("ca.pem")),
        cert_file: Some(fixture("client.pem")),
        ..TlsSettings::default()
    };
    let missing = TlsSettings { ca_file: Some(fixture("nobody.pem")), ..TlsSettings::default() };
    let empty = TlsSettings { ca_file: Some(fixture("README.md")), ..TlsSettings::default() };
    for (tls, told) in [(half, "belong together"), (missing, "nobody.pem"), (empty, "no certificate")] {
        let error = Client::new(Settings { tls, ..Settings::new(origin.clone()) }).unwrap_err();
        assert!(error.to_string().contains(told), "{error}");
    }
}
