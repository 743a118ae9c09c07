//! A control plane process of a test, and REST over a connection of its own for each call.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::Value as Json;

use crate::caller::Caller;
use crate::eventually::{SOON, eventually};
use crate::message::{Message, NoMessage};
use crate::process::{Process, Signal, program};
use crate::scratch::Scratch;

/// A running control plane.
#[derive(Debug)]
pub struct ControlPlane {
    pub process: Process,
    pub scratch: Scratch,
    pub address: SocketAddr,
}

impl ControlPlane {
    /// Starts one with the embedded store and registry on a free port.
    ///
    /// # Panics
    /// When it does not become ready.
    pub async fn start() -> Self {
        Self::start_with("", Scratch::new()).await
    }

    /// Starts one on a free port with these keys and tables beside the store's.
    ///
    /// # Panics
    /// When it does not become ready.
    pub async fn start_with(tables: &str, scratch: Scratch) -> Self {
        Self::start_at("127.0.0.1:0", tables, scratch).await
    }

    /// Starts one at this address, with the store of this folder.
    ///
    /// # Panics
    /// When it does not become ready.
    pub async fn start_at(listen: &str, tables: &str, scratch: Scratch) -> Self {
        let plane = Self::start_unready(listen, tables, scratch).await;
        eventually("the control plane to be ready", async || {
            let answer = plane.get("/readyz").await;
            if answer.status() == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
        })
        .await;
        plane
    }

    /// Starts one that may speak TLS, and waits for its port only.
    ///
    /// # Panics
    /// When it does not listen.
    pub async fn start_unready(listen: &str, tables: &str, scratch: Scratch) -> Self {
        let text = format!("listen = \"{listen}\"\nstore.dir = \"data\"\n{tables}\n");
        let config = scratch.write("control-plane.toml", text);
        let ports = scratch.path().join("control-plane-ports.json");
        // Left behind by the process that was here before.
        drop(std::fs::remove_file(&ports));
        let args = ["control-plane".into(), "--config".into(), config, "--port-file".into(), ports.clone()];
        let mut process = Process::start(&program(), args, &scratch.path().join("control-plane.log"));
        let ports = process.ports(&ports).await;
        let address = ports["listen"].as_str().and_then(|text| text.parse().ok());
        let address = address.expect("the control plane says where it listens");
        Self { process, scratch, address }
    }

    /// The same control plane as other machines reach it: at an address of this machine that is not loopback.
    ///
    /// # Panics
    /// When this machine has none.
    #[must_use]
    pub fn from_elsewhere(&self) -> SocketAddr {
        SocketAddr::new(own_address(), self.address.port())
    }

    /// Ends the process in this way and starts another one at the same address with the same store.
    ///
    /// # Panics
    /// When it does not become ready.
    pub async fn restart_after(self, end: Signal, tables: &str) -> Self {
        let Self { mut process, scratch, address } = self;
        process.signal(end).await;
        process.ended(SOON).await;
        Self::start_at(&address.to_string(), tables, scratch).await
    }

    /// One REST call.
    ///
    /// # Panics
    /// When there is no answer.
    pub async fn call(&self, method: &str, path: &str, body: Option<&Json>) -> Message {
        match call(self.address, method, path, body, SOON).await {
            Ok(answer) => answer,
            Err(reason) => panic!("{method} {path}: {reason:?}\n{}", self.process.log()),
        }
    }

    pub async fn get(&self, path: &str) -> Message {
        self.call("GET", path, None).await
    }

    /// GET, as JSON.
    ///
    /// # Panics
    /// When the answer is no 200 with JSON.
    pub async fn json(&self, path: &str) -> Json {
        let answer = self.get(path).await;
        assert_eq!(answer.status(), 200, "{path}: {answer:?}");
        serde_json::from_slice(&answer.body).expect("an answer in JSON")
    }

    /// PUT of JSON that must be taken; gives what is answered.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn put(&self, path: &str, body: &Json) -> Json {
        let answer = self.call("PUT", path, Some(body)).await;
        assert!(matches!(answer.status(), 200..=204), "PUT {path}: {answer:?}");
        serde_json::from_slice(&answer.body).unwrap_or_default()
    }
}

/// An address of this machine that is not loopback.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn own_address() -> IpAddr {
    // Nothing is sent: the system only says from where it would be.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
    let route = socket.connect("192.0.2.1:9").and_then(|()| socket.local_addr());
    let own = route.expect("this test needs a network address that is not loopback").ip();
    assert!(!own.is_loopback(), "{own}");
    own
}

/// The same with a token.
///
/// # Errors
/// As `call`.
pub async fn call_with(
    token: &str,
    address: SocketAddr,
    method: &str,
    path: &str,
    body: Option<&Json>,
) -> Result<Message, NoMessage> {
    send(address, method, path, &format!("Authorization: Bearer {token}\r\n"), body, SOON).await
}

/// One REST call over a connection of its own.
///
/// # Errors
/// When nobody listens, or no answer comes within `limit`.
pub async fn call(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: Option<&Json>,
    limit: Duration,
) -> Result<Message, NoMessage> {
    send(address, method, path, "", body, limit).await
}

async fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: Option<&Json>,
    limit: Duration,
) -> Result<Message, NoMessage> {
    let body = body.map(Json::to_string).unwrap_or_default();
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let connecting = tokio::net::TcpStream::connect(address).await;
    let Ok(io) = connecting else { return Err(NoMessage::Closed) };
    let mut caller = Caller::over(io);
    caller.send(request).await;
    caller.try_answer(limit).await
}
