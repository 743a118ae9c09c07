//! One question to one endpoint: HTTP, TCP, or gRPC's health service. A connection of its own for each.

use std::time::Duration;

use bytes::Bytes;
use gilmok_config::health::{HealthCheckPolicy, Probe};
use gilmok_config::name::ServiceName;
use gilmok_config::service::Protocol;
use http::header::{CONTENT_TYPE, HOST, TE, USER_AGENT};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::tls::Dial;
use crate::upstream::connect::{ConnectError, Socket, connect};
use crate::upstream::endpoint::Peer;

/// Nothing, or why it is not healthy.
pub(super) type Probed = Result<(), String>;

/// Longest answer of a gRPC health check, in bytes; a sound one has seven.
const GRPC_BYTES_MAX: usize = 1 << 10;
const AGENT: &str = concat!("gilmok-health/", env!("CARGO_PKG_VERSION"));

/// Asks once. Dropped half-way, the connection closes.
pub(super) async fn ask(
    (peer, dial): (&Peer, Option<&Dial>),
    service: &ServiceName,
    protocol: Protocol,
    policy: &HealthCheckPolicy,
) -> Probed {
    let asking = async {
        let socket = connect(peer, dial, policy.timeout).await.map_err(|error| match error {
            ConnectError::Refused => "it refuses connections".to_owned(),
            ConnectError::Timeout => late(policy.timeout),
            ConnectError::Tls => "it does not agree upon TLS".to_owned(),
            ConnectError::Unreachable => "it cannot be reached".to_owned(),
            ConnectError::Untrusted => "its certificate is not believed".to_owned(),
        })?;
        match &policy.probe {
            Probe::Tcp => Ok(()),
            Probe::Http(path) => ask_http(socket, service, protocol, path).await,
            Probe::Grpc(name) => ask_grpc(socket, service, name).await,
        }
    };
    timeout(policy.timeout, asking).await.unwrap_or_else(|_elapsed| Err(late(policy.timeout)))
}

fn late(limit: Duration) -> String {
    format!("no answer within {limit:?}")
}

#[expect(clippy::needless_pass_by_value, reason = "what `map_err` passes")]
fn broken(error: hyper::Error) -> String {
    format!("the connection broke: {error}")
}

async fn ask_http(socket: Socket, service: &ServiceName, protocol: Protocol, path: &str) -> Probed {
    let request = Request::get(path).header(USER_AGENT, AGENT);
    let status = match protocol {
        Protocol::Http1 => {
            let request = request.header(HOST, service.as_str()).body(Empty::<Bytes>::new());
            exchange_h1(socket, request.map_err(|error| error.to_string())?).await?.status()
        }
        Protocol::H2 => {
            let request = request.uri(format!("http://{service}{path}")).body(Empty::<Bytes>::new());
            let mut connection = JoinSet::new();
            let request = request.map_err(|error| error.to_string())?;
            exchange_h2(socket, request, &mut connection).await?.status()
        }
    };
    if status.is_success() || status.is_redirection() { Ok(()) } else { Err(format!("it answered {status}")) }
}

async fn exchange_h1(socket: Socket, request: Request<Empty<Bytes>>) -> Result<Response<Incoming>, String> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await.map_err(broken)?;
    // Ends with this set, so with this function.
    let mut task = JoinSet::new();
    task.spawn(async move { drop(connection.await) });
    sender.send_request(request).await.map_err(broken)
}

/// The connection lives in `task` for as long as the answer is read.
async fn exchange_h2<B>(
    socket: Socket,
    request: Request<B>,
    task: &mut JoinSet<()>,
) -> Result<Response<Incoming>, String>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await.map_err(broken)?;
    task.spawn(async move { drop(connection.await) });
    sender.send_request(request).await.map_err(broken)
}

async fn ask_grpc(socket: Socket, service: &ServiceName, name: &str) -> Probed {
    let request = Request::post(format!("http://{service}/grpc.health.v1.Health/Check"))
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header(USER_AGENT, AGENT)
        .body(Full::new(Bytes::from(check_request(name))))
        .map_err(|error| error.to_string())?;
    let mut connection = JoinSet::new();
    let response = exchange_h2(socket, request, &mut connection).await?;
    let status = response.status();
    if !status.is_success() {
        return Err(format!("it answered {status}"));
    }
    // Without a message the status stands in the head ("trailers-only").
    fail_on_grpc_status(response.headers())?;
    let body = Limited::new(response.into_body(), GRPC_BYTES_MAX).collect().await;
    let body = body.map_err(|error| format!("its answer broke off: {error}"))?;
    if let Some(trailers) = body.trailers() {
        fail_on_grpc_status(trailers)?;
    }
    match serving_status(&body.to_bytes()) {
        Some(1) => Ok(()),
        Some(status) => Err(format!("it says {}", serving_name(status))),
        None => Err("its answer is not gRPC's".to_owned()),
    }
}

fn fail_on_grpc_status(headers: &HeaderMap) -> Probed {
    match headers.get("grpc-status").map(|status| status.as_bytes()) {
        None | Some(b"0") => Ok(()),
        // UNIMPLEMENTED and NOT_FOUND mean that it cannot say, not that it is well.
        Some(status) => Err(format!("it answered grpc-status {}", String::from_utf8_lossy(status))),
    }
}

/// `HealthCheckRequest { string service = 1; }` in gRPC's framing, by hand: a field is not worth a code generator.
fn check_request(name: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !name.is_empty() {
        // Field 1, length-delimited.
        message.push(0x0a);
        write_varint(&mut message, name.len() as u64);
        message.extend_from_slice(name.as_bytes());
    }
    let mut framed = vec![0];
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(&message);
    framed
}

/// The status of a `HealthCheckResponse { ServingStatus status = 1; }`; 0 where it is left out.
fn serving_status(framed: &[u8]) -> Option<u64> {
    let (&[compressed, a, b, c, d], message) = framed.split_first_chunk::<5>()?;
    if compressed != 0 || message.len() != u32::from_be_bytes([a, b, c, d]) as usize {
        return None;
    }
    let mut rest = message;
    let mut status = 0;
    while !rest.is_empty() {
        let key = read_varint(&mut rest)?;
        match (key >> 3, key & 7) {
            (1, 0) => status = read_varint(&mut rest)?,
            // Fields of later versions of the service are skipped.
            (_, 0) => {
                read_varint(&mut rest)?;
            }
            (_, 2) => {
                let length = usize::try_from(read_varint(&mut rest)?).ok()?;
                rest = rest.get(length..)?;
            }
            (_, 1) => rest = rest.get(8..)?,
            (_, 5) => rest = rest.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn serving_name(status: u64) -> &'static str {
    match status {
        0 => "UNKNOWN",
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        _ => "something else than SERVING",
    }
}

fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

fn read_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_is_framed_as_grpc_wants_it() {
        assert_eq!(check_request(""), [0, 0, 0, 0, 0]);
        assert_eq!(check_request("a.B"), [0, 0, 0, 0, 5, 0x0a, 3, b'a', b'.', b'B']);
        let long = "x".repeat(300);
        assert_eq!(&check_request(&long)[..8], [0, 0, 0, 1, 0x2f, 0x0a, 0xac, 0x02]);
    }

    #[test]
    fn the_answer_is_read_with_care() {
        for (framed, expected) in [
            (&[0, 0, 0, 0, 2, 0x08, 1][..], Some(1)),
            (&[0, 0, 0, 0, 2, 0x08, 2], Some(2)),
            (&[0, 0, 0, 0, 0], Some(0)),
            (&[0, 0, 0, 0, 6, 0x12, 2, b'h', b'i', 0x08, 1], Some(1)),
            (&[], None),
            (&[0, 0, 0], None),
            (&[1, 0, 0, 0, 2, 0x08, 1], None),
            (&[0, 0, 0, 0, 9, 0x08, 1], None),
            (&[0, 0, 0, 0, 1, 0x08], None),
            (&[0, 0, 0, 0, 3, 0x12, 9, 1], None),
            (&[0, 0, 0, 0, 2, 0x0b, 1], None),
        ] {
            assert_eq!(serving_status(framed), expected, "{framed:?}");
        }
    }
}
