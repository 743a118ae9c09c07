//! A demo app process of a test: an application that is not in the test's own process, so that it can die.

use std::net::SocketAddr;

use serde_json::{Value as Json, json};

use crate::process::{Process, program};
use crate::scratch::Scratch;

/// A running demo app.
#[derive(Debug)]
pub struct DemoApp {
    pub process: Process,
    pub address: SocketAddr,
    _scratch: Scratch,
}

impl DemoApp {
    /// Starts the demo app for this service on a free port.
    ///
    /// # Panics
    /// When it does not listen.
    pub async fn start(service: &str, version: &str) -> Self {
        Self::start_at("127.0.0.1:0", service, version).await
    }

    /// Starts the demo app for a shard of this service on a free port.
    ///
    /// # Panics
    /// When it does not listen.
    pub async fn start_shard(service: &str, shard: &str) -> Self {
        Self::start_as("127.0.0.1:0", &["--service", service, "--shard", shard]).await
    }

    /// Starts the demo app for this service at this address.
    ///
    /// # Panics
    /// When it does not listen.
    pub async fn start_at(listen: &str, service: &str, version: &str) -> Self {
        Self::start_as(listen, &["--service", service, "--version", version]).await
    }

    async fn start_as(listen: &str, who: &[&str]) -> Self {
        let scratch = Scratch::new();
        let ports = scratch.path().join("ports.json");
        let port_file = ports.to_string_lossy();
        let args = [&["demo-app", "--listen", listen, "--port-file", &port_file], who].concat();
        let mut process = Process::start(&program(), args, &scratch.path().join("app.log"));
        let ports = process.ports(&ports).await;
        let address = ports["listen"].as_str().and_then(|text| text.parse().ok());
        Self { process, address: address.expect("the demo app says where it listens"), _scratch: scratch }
    }

    /// Gives it an order: `ok`, `fail?percent=20`, `slow?ms=100`.
    ///
    /// # Panics
    /// When it does not follow.
    pub async fn told(&self, order: &str) {
        let request = format!("POST /control/{order} HTTP/1.1\r\nHost: app\r\nContent-Length: 0\r\n\r\n");
        let answer = crate::caller::ask(self.address, request).await;
        assert_eq!(answer.status(), 200, "{order}: {answer:?}");
    }

    /// How it is registered at a control plane.
    #[must_use]
    pub fn endpoint(&self, version: &str) -> Json {
        json!({ "address": self.address.to_string(), "version": version, "ttl": "1h" })
    }
}
