//! Trailers and gRPC (reference P7): what comes after the body arrives, and errors speak the caller's language.

use std::net::SocketAddr;

use bytes::Bytes;
use gilmok_tests::h2_caller::{H2Answer, H2Caller};
use gilmok_tests::proxy::{Proxy, service};
use gilmok_tests::upstream::Upstream;
use http::{HeaderMap, HeaderValue, Request, Response};

const TRAILED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
    5\r\nhello\r\n0\r\nX-Sum: 7\r\nX-Undeclared: 8\r\n\r\n";

#[tokio::test]
async fn declared_trailers_reach_http_1_callers_that_ask_for_them() {
    let upstream = Upstream::answering(TRAILED).await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let asking = "GET / HTTP/1.1\r\nHost: app\r\nTE: trailers\r\nConnection: TE\r\n\r\n";
    let answer = proxy.caller().await.ask(asking).await;
    assert_eq!((answer.text().as_str(), answer.trailer("x-sum")), ("hello", Some("7")), "{answer:?}");
    assert_eq!(answer.trailer("x-undeclared"), None);
    assert_eq!(upstream.only_request().await.header("te"), Some("trailers"));
}

#[tokio::test]
async fn callers_that_do_not_ask_get_the_body_without_trailers() {
    let upstream = Upstream::answering(TRAILED).await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let answer = proxy.get("app", "/").await;
    assert_eq!((answer.text().as_str(), answer.trailer("x-sum")), ("hello", None), "{answer:?}");
}

#[tokio::test]
async fn trailers_of_a_request_reach_the_app() {
    let upstream = Upstream::saying("fine").await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let request = "POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
        5\r\nhello\r\n0\r\nX-Sum: 7\r\n\r\n";
    assert_eq!(proxy.caller().await.ask(request).await.status(), 200);
    let seen = upstream.only_request().await;
    assert_eq!((seen.text().as_str(), seen.trailer("x-sum")), ("hello", Some("7")), "{seen:?}");
}

#[tokio::test]
async fn an_http_1_apps_trailers_reach_an_http_2_caller() {
    let upstream = Upstream::answering(TRAILED).await;
    let proxy = Proxy::start(service("app", "", &[upstream.address])).await;
    let caller = H2Caller::connect(proxy.outbound()).await.unwrap();
    let request = Request::get("http://app/").header("te", "trailers").body(()).unwrap();
    let answer = caller.ask(request, b"", None).await.unwrap();
    assert_eq!(answer.body, b"hello");
    assert_eq!(answer.trailers.get("x-sum").unwrap(), "7");
}

/// A gRPC server by hand: says the message back, with the status that the path asks for.
async fn grpc_server() -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let serving = tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(io).await else { return };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(answer_grpc(request, respond));
                }
            });
        }
    });
    (address, serving)
}

async fn answer_grpc(request: Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
    let status = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    let te = request.headers().get("te").cloned();
    let mut body = Vec::new();
    let mut stream = request.into_body();
    while let Some(Ok(data)) = stream.data().await {
        drop(stream.flow_control().release_capacity(data.len()));
        body.extend_from_slice(&data);
    }
    let came = stream.trailers().await.ok().flatten().unwrap_or_default();
    let mut head = Response::builder().header("content-type", "application/grpc+proto");
    if let Some(te) = te {
        head = head.header("x-te", te);
    }
    let number: u16 = status.parse().unwrap_or(0);
    if number != 0 {
        // Trailers-only: the status stands in the head.
        let head = head
            .header("grpc-status", number)
            .header("grpc-message", "so%20it%20is")
            .body(())
            .expect("a head");
        drop(respond.send_response(head, true));
        return;
    }
    let Ok(mut sending) = respond.send_response(head.body(()).expect("a head"), false) else { return };
    drop(sending.send_data(Bytes::from(body), false));
    let mut trailers = HeaderMap::new();
    // `14-later`: a message, and then the status.
    let later = status.strip_suffix("-later").and_then(|status| HeaderValue::from_str(status).ok());
    trailers.insert("grpc-status", later.unwrap_or(HeaderValue::from_static("0")));
    if let Some(value) = came.get("x-sum") {
        trailers.insert("x-sum", value.clone());
    }
    drop(sending.send_trailers(trailers));
}

async fn call(proxy: &Proxy, service: &str, method: &str, message: &[u8]) -> H2Answer {
    let caller = H2Caller::connect(proxy.outbound()).await.expect("a connection");
    let request = Request::post(format!("http://{service}/demo.Echo/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .expect("a head");
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("7"));
    caller.ask(request, message, Some(trailers)).await.expect("an answer")
}

#[tokio::test]
async fn a_grpc_call_keeps_its_message_status_and_trailers() {
    let (address, _serving) = grpc_server().await;
    let proxy = Proxy::start(service("echo", "protocol = \"h2\"", &[address])).await;
    let answer = call(&proxy, "echo", "0", b"\0\0\0\0\x02hi").await;
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b"\0\0\0\0\x02hi"[..]));
    assert_eq!(answer.trailers.get("grpc-status").unwrap(), "0");
    assert_eq!(answer.trailers.get("x-sum").unwrap(), "7", "the call's own trailers were lost");
    assert_eq!(answer.headers.get("x-te").unwrap(), "trailers");
    assert_eq!(answer.headers.get("content-type").unwrap(), "application/grpc+proto");
}

#[tokio::test]
async fn a_grpc_error_keeps_its_status_and_message() {
    let (address, _serving) = grpc_server().await;
    let proxy = Proxy::start(service("echo", "protocol = \"h2\"", &[address])).await;
    let answer = call(&proxy, "echo", "7", b"\0\0\0\0\0").await;
    assert_eq!((answer.status, answer.field("grpc-status")), (200, Some("7")), "{answer:?}");
    assert_eq!(answer.field("grpc-message"), Some("so%20it%20is"));
}

#[tokio::test]
async fn statuses_that_are_listed_count_as_failures_before_and_behind_a_message() {
    let (address, _serving) = grpc_server().await;
    let text = service("echo", "protocol = \"h2\"", &[address]);
    for (listed, method, opens) in [
        ("grpc:unavailable", "14", true),
        ("grpc:unavailable", "14-later", true),
        ("grpc:unavailable", "5", false),
        ("5xx", "14", false),
    ] {
        let breaker = format!(
            "[services.echo.circuit_breaker]\nmin_requests = 4\nopen_for = \"1m\"\nfailures = [\"{listed}\"]\n"
        );
        let proxy = Proxy::start(format!("{text}{breaker}")).await;
        for _ in 0..4 {
            let answer = call(&proxy, "echo", method, b"\0\0\0\0\x02hi").await;
            let status = method.trim_end_matches("-later");
            assert_eq!(answer.field("grpc-status"), Some(status), "{method}: the application's own");
        }
        let answer = call(&proxy, "echo", "0", b"\0\0\0\0\x02hi").await;
        let said = answer.field("proxy-status").unwrap_or_default().to_owned();
        assert_eq!(said.contains("breaker=open"), opens, "{listed} {method}: {answer:?}");
    }
}

#[tokio::test]
async fn our_own_errors_are_told_to_grpc_callers_in_grpc() {
    let (address, serving) = grpc_server().await;
    let mesh =
        format!("{}[services.empty]\nprotocol = \"h2\"\n", service("echo", "protocol = \"h2\"", &[address]));
    let proxy = Proxy::start(mesh).await;
    serving.abort();
    drop(serving.await);
    for (service, status) in [("nobody", "12"), ("empty", "14"), ("echo", "14")] {
        let answer = call(&proxy, service, "0", b"\0\0\0\0\0").await;
        assert_eq!(
            (answer.status, answer.field("grpc-status")),
            (200, Some(status)),
            "{service}: {answer:?}"
        );
        assert_eq!(answer.headers.get("content-type").unwrap(), "application/grpc", "{service}");
        assert!(answer.field("grpc-message").is_some(), "{service}");
    }
}

#[tokio::test]
async fn a_grpc_stream_flows_both_ways_while_it_is_open() {
    let (address, _serving) = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let Ok((io, _)) = listener.accept().await else { return };
            let mut connection = h2::server::handshake(io).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                tokio::spawn(async move {
                    let head =
                        Response::builder().header("content-type", "application/grpc").body(()).unwrap();
                    let mut sending = respond.send_response(head, false).unwrap();
                    let mut stream = request.into_body();
                    while let Some(Ok(data)) = stream.data().await {
                        drop(stream.flow_control().release_capacity(data.len()));
                        drop(sending.send_data(data, false));
                    }
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", "0".parse().unwrap());
                    drop(sending.send_trailers(trailers));
                });
            }
        });
        (address, serving)
    };
    let proxy = Proxy::start(service("echo", "protocol = \"h2\"", &[address])).await;
    let caller = H2Caller::connect(proxy.outbound()).await.unwrap();
    let request = Request::post("http://echo/demo.Echo/Chat").header("content-type", "application/grpc");
    let mut sender = caller.sender().await.unwrap();
    let (answer, mut sending) = sender.send_request(request.body(()).unwrap(), false).unwrap();
    let mut stream = answer.await.unwrap().into_body();
    for n in 0..10_u8 {
        sending.send_data(Bytes::from(vec![0, 0, 0, 0, 1, n]), false).unwrap();
        let data = gilmok_tests::eventually::soon("a message of the stream", stream.data()).await;
        let data = data.unwrap().unwrap();
        stream.flow_control().release_capacity(data.len()).unwrap();
        assert_eq!(data.as_ref(), [0, 0, 0, 0, 1, n]);
    }
    sending.send_data(Bytes::new(), true).unwrap();
    assert!(stream.data().await.is_none());
    assert_eq!(stream.trailers().await.unwrap().unwrap().get("grpc-status").unwrap(), "0");
}
