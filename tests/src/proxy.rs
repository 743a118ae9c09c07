//! A proxy process of a test: its settings, its mesh file, its ports, its admin listener.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use serde_json::Value as Json;

use crate::caller::{self, Caller};
use crate::eventually::{SOON, eventually};
use crate::message::Message;
use crate::observe;
use crate::process::{Process, Signal, program};
use crate::scratch::Scratch;

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    pub process: Process,
    pub scratch: Scratch,
    ports: Json,
}

/// What a proxy is started with.
#[derive(Clone, Debug, Default)]
pub struct ProxySettings {
    /// The top of proxy.toml, before its tables.
    pub top: String,
    /// Keys of `[listen]` beside outbound and admin on free ports.
    pub listen: String,
    /// Tables of proxy.toml.
    pub tables: String,
    /// The mesh document; without one the source stands in `tables`.
    pub mesh: Option<String>,
    pub args: Vec<OsString>,
}

impl ProxySettings {
    /// A proxy from a mesh file with one worker.
    #[must_use]
    pub fn of_mesh(mesh: impl Into<String>) -> Self {
        Self { mesh: Some(mesh.into()), ..Self::default() }
    }

    /// A proxy of these control planes.
    #[must_use]
    pub fn of_control_planes(addresses: &[SocketAddr]) -> Self {
        let list: Vec<String> = addresses.iter().map(|address| format!("\"http://{address}\"")).collect();
        Self::default().table(&format!("[source]\ncontrol_plane = [{}]", list.join(", ")))
    }

    /// Adds tables to proxy.toml.
    #[must_use]
    pub fn table(mut self, text: &str) -> Self {
        self.tables.push_str(text);
        self.tables.push('\n');
        self
    }

    /// Adds keys to `[listen]`.
    #[must_use]
    pub fn listen(mut self, text: &str) -> Self {
        self.listen.push_str(text);
        self.listen.push('\n');
        self
    }

    /// Adds keys before the first table.
    #[must_use]
    pub fn top(mut self, text: &str) -> Self {
        self.top.push_str(text);
        self.top.push('\n');
        self
    }

    /// Adds an app on a free inbound port, registered when there is somewhere to.
    #[must_use]
    pub fn app(self, service: &str, address: SocketAddr, more: &str) -> Self {
        self.table(&format!(
            "[[apps]]\nservice = \"{service}\"\naddress = \"{address}\"\ninbound = \"127.0.0.1:0\"\n{more}"
        ))
    }

    fn text(&self, folder: &Path) -> String {
        let mut text = self.top.clone();
        if !self.top.contains("node =") {
            text.push_str("node = \"test\"\n");
        }
        for (key, address) in [("outbound", "127.0.0.1:0"), ("admin", "127.0.0.1:0")] {
            if key == "outbound" {
                text.push_str("[listen]\n");
            }
            if !self.listen.lines().any(|line| line.starts_with(key)) {
                writeln!(text, "{key} = \"{address}\"").expect("a string takes text");
            }
        }
        text.push_str(&self.listen);
        if self.mesh.is_some() {
            text.push_str("[source]\nmesh_file = \"mesh.toml\"\n");
        }
        if !self.tables.contains("[state]") {
            writeln!(text, "[state]\ndir = \"{}\"", folder.join("state").display())
                .expect("a string takes text");
        }
        if !self.tables.contains("[workers]") {
            text.push_str("[workers]\ncount = 1\n");
        }
        text.push_str(&self.tables);
        text
    }
}

impl Proxy {
    /// Starts a proxy from a mesh file and waits until it is ready.
    ///
    /// # Panics
    /// When it does not become ready.
    pub async fn start(mesh: impl Into<String>) -> Self {
        Self::start_with(ProxySettings::of_mesh(mesh)).await
    }

    /// Starts a proxy and waits until it is ready.
    ///
    /// # Panics
    /// When it does not become ready.
    pub async fn start_with(settings: ProxySettings) -> Self {
        let proxy = Self::start_unready(settings, Scratch::new()).await;
        proxy.is_ready().await;
        proxy
    }

    /// Starts a proxy in this folder and waits for its ports only.
    ///
    /// # Panics
    /// When it does not listen.
    pub async fn start_unready(settings: ProxySettings, scratch: Scratch) -> Self {
        let args = Self::prepare(&settings, &scratch);
        let log = scratch.path().join("proxy.log");
        let mut process = Process::start(&program(), args, &log);
        let ports = process.ports(&scratch.path().join("ports.json")).await;
        Self { process, scratch, ports }
    }

    /// Takes a proxy that was started by other means, with what [`Self::prepare`] told.
    ///
    /// # Panics
    /// When it does not become ready.
    pub async fn adopt(mut process: Process, scratch: Scratch) -> Self {
        let ports = process.ports(&scratch.path().join("ports.json")).await;
        let proxy = Self { process, scratch, ports };
        proxy.is_ready().await;
        proxy
    }

    /// Writes the files of a proxy and gives the arguments to start it with.
    ///
    /// # Panics
    /// When the files cannot be written.
    #[must_use]
    pub fn prepare(settings: &ProxySettings, scratch: &Scratch) -> Vec<OsString> {
        if let Some(mesh) = &settings.mesh {
            scratch.write("mesh.toml", mesh);
        }
        let config = scratch.write("proxy.toml", settings.text(scratch.path()));
        let ports = scratch.path().join("ports.json");
        // Left behind by the process that was here before.
        drop(std::fs::remove_file(&ports));
        let mut args: Vec<OsString> = ["proxy", "--config"].map(OsString::from).to_vec();
        args.extend([config.into(), "--port-file".into(), ports.into()]);
        args.extend(settings.args.iter().cloned());
        args
    }

    /// Ends the process and starts another one in the same folder, with these settings.
    ///
    /// # Panics
    /// When it does not listen.
    pub async fn restart_after(self, end: Signal, settings: ProxySettings) -> Self {
        let Self { mut process, scratch, .. } = self;
        process.signal(end).await;
        process.ended(Duration::from_secs(60)).await;
        Self::start_unready(settings, scratch).await
    }

    /// # Panics
    /// When `/readyz` does not become 200; the message has the log.
    pub async fn is_ready(&self) {
        eventually("the proxy to be ready", async || {
            let answer = self.admin("/readyz").await;
            if answer.status() == 200 { Ok(()) } else { Err(format!("{answer:?}\n{}", self.process.log())) }
        })
        .await;
    }

    #[must_use]
    pub fn outbound(&self) -> SocketAddr {
        self.port("outbound")
    }

    #[must_use]
    pub fn edge(&self) -> SocketAddr {
        self.port("edge")
    }

    #[must_use]
    pub fn admin_address(&self) -> SocketAddr {
        self.port("admin")
    }

    /// Where the app of this place in the settings is reached.
    ///
    /// # Panics
    /// When there is no such app.
    #[must_use]
    pub fn inbound(&self, app: usize) -> SocketAddr {
        read_address(&self.ports["inbound"][app], "inbound")
    }

    /// # Panics
    /// When this listener is not open.
    #[must_use]
    pub fn port(&self, listener: &str) -> SocketAddr {
        read_address(&self.ports[listener], listener)
    }

    /// GET at the admin listener.
    pub async fn admin(&self, path: &str) -> Message {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        caller::ask(self.admin_address(), request).await
    }

    /// GET at the admin listener, as JSON.
    ///
    /// # Panics
    /// When it is none.
    pub async fn admin_json(&self, path: &str) -> Json {
        let answer = self.admin(path).await;
        match serde_json::from_slice(&answer.body) {
            Ok(json) => json,
            Err(error) => panic!("{path}: {error}: {answer:?}"),
        }
    }

    /// The text of `/metrics`.
    pub async fn metrics(&self) -> String {
        self.admin("/metrics").await.text()
    }

    /// The sum of the series of this name with these labels.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        observe::sum(&self.metrics().await, name, labels)
    }

    /// A connection to the outbound listener.
    pub async fn caller(&self) -> Caller {
        Caller::connect(self.outbound()).await
    }

    /// GET of `path` for `host` at the outbound listener, over a connection of its own.
    pub async fn get(&self, host: &str, path: &str) -> Message {
        caller::ask(self.outbound(), caller::get(host, path)).await
    }

    /// Replaces the mesh file, in one step.
    pub fn write_mesh(&self, mesh: impl AsRef<[u8]>) -> PathBuf {
        self.scratch.write("mesh.toml", mesh)
    }

    /// Replaces the mesh file and waits until it is in force, told by how often it changed.
    ///
    /// # Panics
    /// When it is not within [`SOON`].
    pub async fn reload(&self, mesh: impl AsRef<[u8]>) {
        let before = self.admin_json("/config").await["hash"].clone();
        self.write_mesh(mesh);
        self.process.signal(Signal::Hangup).await;
        eventually("the new mesh file in force", async || {
            let config = self.admin_json("/config").await;
            if config["hash"] == before { Err(config.to_string()) } else { Ok(()) }
        })
        .await;
    }

    /// Tells it to drain and waits for its end.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.process.signal(Signal::Terminate).await;
        self.process.ended(SOON).await
    }
}

fn read_address(value: &Json, name: &str) -> SocketAddr {
    match value.as_str().and_then(|text| text.parse().ok()) {
        Some(address) => address,
        None => panic!("the proxy has no {name} listener: {value}"),
    }
}

/// A service with these endpoints, as a mesh document.
#[must_use]
pub fn service(name: &str, policy: &str, endpoints: &[SocketAddr]) -> String {
    let mut text = format!("[services.{name}]\n{policy}\n");
    for address in endpoints {
        write!(text, "[[services.{name}.endpoints]]\naddress = \"{address}\"\n")
            .expect("a string takes text");
    }
    text
}
