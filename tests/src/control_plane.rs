//! A control plane process of a test, and REST over a connection of its own for each call.

use std::net::SocketAddr;
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
        let plane = Self { process, scratch, address };
        eventually("the control plane to be ready", async || {
            let answer = plane.get("/readyz").await;
            if answer.status() == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
        })
        .await;
        plane
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
    let body = body.map(Json::to_string).unwrap_or_default();
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let connecting = tokio::net::TcpStream::connect(address).await;
    let Ok(io) = connecting else { return Err(NoMessage::Closed) };
    let mut caller = Caller::over(io);
    caller.send(request).await;
    caller.try_answer(limit).await
}
