//! A demo app process of a test: an application that is not in the test's own process, so that it can die.

use std::net::SocketAddr;

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
        let scratch = Scratch::new();
        let ports = scratch.path().join("ports.json");
        let port_file = ports.to_string_lossy();
        let args = [
            "demo-app",
            "--service",
            service,
            "--version",
            version,
            "--listen",
            "127.0.0.1:0",
            "--port-file",
            &port_file,
        ];
        let mut process = Process::start(&program(), args, &scratch.path().join("app.log"));
        let ports = process.ports(&ports).await;
        let address = ports["listen"].as_str().and_then(|text| text.parse().ok());
        Self { process, address: address.expect("the demo app says where it listens"), _scratch: scratch }
    }
}
