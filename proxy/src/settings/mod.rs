//! What one proxy process is told: proxy.toml, flags and environment, with every default filled in.
//!
//! Faults are collected, never stopped at: settings that could not be read keep their default beside the fault,
//! so that `--check` goes on to the mesh file.

mod apps;
mod arguments;
mod body_files;
mod limits;
mod network;
mod ofrep;
mod overlay;
mod server;
mod tls;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gilmok_config::body_file::read_document;
use gilmok_config::document::Document;
use gilmok_config::grammar::{Faults, Value};
use gilmok_config::name::Name;
use gilmok_config::node::Node;
use gilmok_config::problem::Problems;
use thiserror::Error;
use tracing::level_filters::LevelFilter;

pub use apps::{App, Registration};
pub use arguments::{Environment, Task, command, unknown_variables};
pub use body_files::BodyFiles;
pub use limits::Limits;
pub use network::Network;
pub use ofrep::OfrepSettings;
pub use server::{Server, ServerTls};

use crate::tls::{IdentitySettings, Mode, PairFiles, TlsSettings};
use crate::visitor::VisitorKeys;

const OUTBOUND_DEFAULT: &str = "127.0.0.1:15001";
const ADMIN_DEFAULT: &str = "127.0.0.1:15000";
/// Most control planes of one proxy.
const CONTROL_PLANES_MAX: usize = 16;
/// Longest name of a node, in bytes.
const NODE_BYTES_MAX: usize = 200;

/// The settings of a proxy process.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of this proxy, stable over restarts.
    pub node: String,
    pub zone: Name,
    /// What is logged at first; `PUT /log` changes it live.
    pub log: LevelFilter,
    pub apps: Vec<App>,
    pub listen: Listen,
    pub outbound: Outbound,
    /// Holds what callers of the admin listener show who are not on this machine; without it there are none.
    pub admin_token_file: Option<PathBuf>,
    pub ofrep: OfrepSettings,
    /// What is sound in the mesh file, and may still surprise; see [`Document::warnings`].
    pub(crate) mesh_warnings: Vec<String>,
    /// What signs the cookies of an edge listener's visitors; from `[edge] uid_key_file`.
    pub(crate) visitor_keys: Option<VisitorKeys>,
    /// How listeners speak TLS, and who this process is; from `[identity]`, `[[edge.certificates]]` and `[listen]`.
    pub(crate) tls: TlsSettings,
    pub source: Source,
    pub registration: Registration,
    /// Where it is written, as JSON, at what addresses this process listens: for those who asked for port 0.
    pub port_file: Option<PathBuf>,
    /// Where the last known good state is kept; used with control planes only.
    pub state_dir: PathBuf,
    /// Worker threads, at least 1.
    pub workers: usize,
    pub drain: DrainTimes,
    pub limits: Limits,
    pub access_log: Option<AccessLogSettings>,
}

/// `[listen]`: what is opened beside the apps' inbound listeners. Port 0 takes any free one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    pub outbound: Option<SocketAddr>,
    pub admin: Option<SocketAddr>,
    pub edge: Option<SocketAddr>,
    pub metrics: Option<SocketAddr>,
    /// For OpenFeature's SDKs.
    pub ofrep: Option<SocketAddr>,
    /// Whose headers are believed.
    pub trusted: Vec<Network>,
}

/// `[outbound]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outbound {
    pub unknown_hosts: UnknownHosts,
}

/// What becomes of a request to a host that the mesh does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownHosts {
    /// Sent on to that host, for loopback callers only, never to link-local addresses; CONNECT too.
    Pass,
    /// 404.
    #[default]
    Reject,
}

/// `[source]`: where snapshots come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    ControlPlanes { servers: Vec<Server>, token_file: Option<PathBuf> },
    MeshFile(PathBuf),
}

/// `[drain]`: how this process leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainTimes {
    /// Not ready any more, still accepting as if nothing were.
    pub announce: Duration,
    /// Counted from the begin of the drain: whatever is left is ended.
    pub deadline: Duration,
}

/// `[access_log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLogSettings {
    pub target: LogTarget,
    /// Lines that may wait to be written; what comes beyond is dropped and counted.
    pub queue: usize,
    /// Whether the query stands behind the path. Off by default: queries carry what users type.
    pub query: bool,
}

/// Where the access log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    File(PathBuf),
    Stderr,
    Stdout,
}

/// Why the proxy does not start.
#[derive(Debug, Error)]
pub enum SettingsError {
    #[error(transparent)]
    Usage(#[from] clap::Error),
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Faulty(Vec<FaultyFile>),
}

/// One file with all its faults.
#[derive(Debug)]
pub struct FaultyFile {
    /// The file; `None` for what flags and environment say.
    pub file: Option<PathBuf>,
    pub problems: Problems,
}

impl std::fmt::Display for FaultyFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, problem) in self.problems.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            if let Some(file) = &self.file {
                write!(f, "{}: ", file.display())?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl Settings {
    /// Reads the command line, the environment and the files they name.
    ///
    /// # Errors
    /// A wrong command line, or every fault of proxy.toml and of the mesh file it names.
    pub fn load(
        args: impl IntoIterator<Item = OsString>,
        environment: Environment<'_>,
    ) -> Result<(Task, Self), SettingsError> {
        let arguments = arguments::Arguments::read(args, environment)?;
        let mut faulty = Vec::new();
        let mut tree = Node::empty();
        if let Some(file) = &arguments.config {
            match read_text(file).and_then(|text| Node::parse_toml(&text)) {
                Ok(node) => tree = node,
                Err(problems) => faulty.push(FaultyFile { file: Some(file.clone()), problems }),
            }
        }
        overlay::lay_over(&mut tree, &arguments.said);
        let base = arguments.config.as_deref().and_then(Path::parent).unwrap_or(Path::new(""));
        let faults = Faults::new();
        let root = Value::root(&tree, &faults);
        let (mut settings, source) = Self::read(&root, base, environment);
        // A file that could not be parsed says nothing, so what it lacks is no fault of its own.
        if faulty.is_empty()
            && let Err(mut problems) = faults.into_result(())
        {
            name_origins(&mut problems, &arguments.said);
            faulty.push(FaultyFile { file: arguments.config.clone(), problems });
        }
        if let Some(Source::MeshFile(file)) = &source {
            match read_mesh(file) {
                Ok(document) => settings.mesh_warnings = document.warnings(),
                Err(problems) => faulty.push(FaultyFile { file: Some(file.clone()), problems }),
            }
        }
        if faulty.is_empty() { Ok((arguments.task, settings)) } else { Err(SettingsError::Faulty(faulty)) }
    }
}

impl Settings {
    fn read(root: &Value<'_>, base: &Path, environment: Environment<'_>) -> (Self, Option<Source>) {
        let mut table = root.table();
        let mut take = |key| table.as_mut().and_then(|table| table.optional(key));
        let (node, zone, log) = (take("node"), take("zone"), take("log"));
        let port_file = take("port_file");
        let (apps, listen, outbound) = (take("apps"), take("listen"), take("outbound"));
        let admin = take("admin");
        let (edge, ofrep, identity) = (take("edge"), take("ofrep"), take("identity"));
        let (source, registration, state) = (take("source"), take("registration"), take("state"));
        let (workers, drain) = (take("workers"), take("drain"));
        let (limits, access_log) = (take("limits"), take("access_log"));
        if let Some(table) = table {
            table.finish();
        }
        let apps = apps.as_ref().map(App::read_all).unwrap_or_default();
        let source = read_source(root, source.as_ref(), base);
        let has_control_planes = matches!(source, Some(Source::ControlPlanes { .. }));
        let registration = Registration::read(registration.as_ref(), has_control_planes, base);
        check_ports(root, registration != Registration::Nowhere);
        let (visitor_keys, certificates) = edge.map(|v| read_edge(&v, base)).unwrap_or_default();
        let identity = identity.and_then(|v| tls::read_identity(&v, base, &apps, has_control_planes));
        let (outbound, outbound_mode) =
            outbound.map(|v| Outbound::read(&v, identity.as_ref())).unwrap_or_default();
        let (listen, tls) = Listen::read(listen.as_ref(), certificates, identity);
        let tls = TlsSettings { outbound_mode, ..tls };
        let settings = Self {
            node: node.and_then(|v| read_node(&v)).unwrap_or_else(|| default_node(&apps, environment)),
            zone: zone.and_then(|v| v.named(Name::parse)).unwrap_or_default(),
            log: log.and_then(|v| v.choice(&LEVELS)).unwrap_or(LevelFilter::INFO),
            apps,
            listen,
            outbound,
            admin_token_file: admin.and_then(|v| read_admin(&v, base)),
            ofrep: ofrep.map(|v| OfrepSettings::read(&v, base)).unwrap_or_default(),
            mesh_warnings: Vec::new(),
            visitor_keys,
            tls,
            source: source.clone().unwrap_or_else(|| Source::MeshFile(PathBuf::new())),
            registration,
            port_file: port_file.and_then(|v| read_path(&v, base)),
            state_dir: read_state_dir(state.as_ref(), base),
            workers: read_workers(workers.as_ref()),
            drain: DrainTimes::read(drain.as_ref()),
            limits: limits.map(|v| Limits::read(&v)).unwrap_or_default(),
            access_log: access_log.and_then(|v| AccessLogSettings::read(&v, base)),
        };
        (settings, source)
    }
}

/// The words for how much is logged.
pub const LEVELS: [(&str, LevelFilter); 6] = [
    ("off", LevelFilter::OFF),
    ("error", LevelFilter::ERROR),
    ("warn", LevelFilter::WARN),
    ("info", LevelFilter::INFO),
    ("debug", LevelFilter::DEBUG),
    ("trace", LevelFilter::TRACE),
];

impl Listen {
    fn read(
        value: Option<&Value<'_>>,
        edge: Vec<PairFiles>,
        identity: Option<IdentitySettings>,
    ) -> (Self, TlsSettings) {
        let mut listen = Self {
            outbound: OUTBOUND_DEFAULT.parse().ok(),
            admin: ADMIN_DEFAULT.parse().ok(),
            edge: None,
            metrics: None,
            ofrep: None,
            trusted: Network::loopback(),
        };
        let mut tls = TlsSettings { edge, identity, edge_mode: Mode::Strict, ..TlsSettings::default() };
        let Some(mut table) = value.and_then(Value::table) else { return (listen, tls) };
        let mut socket = |key| table.optional(key).and_then(|v| read_socket(&v));
        listen.outbound = socket("outbound");
        listen.admin = socket("admin");
        listen.edge = socket("edge");
        listen.metrics = socket("metrics");
        listen.ofrep = socket("ofrep");
        if let Some(trusted) = table.optional("trusted").and_then(|v| v.list(Value::parsed::<Network>)) {
            listen.trusted = trusted;
        }
        tls::read_modes(&mut table, &mut tls);
        table.finish();
        (listen, tls)
    }
}

impl Outbound {
    fn read(value: &Value<'_>, identity: Option<&IdentitySettings>) -> (Self, Mode) {
        let Some(mut table) = value.table() else { return Default::default() };
        let words = [("reject", UnknownHosts::Reject), ("pass", UnknownHosts::Pass)];
        let unknown_hosts =
            table.optional("unknown_hosts").and_then(|v| v.choice(&words)).unwrap_or_default();
        let mode = table.optional("tls").map(|v| tls::read_outbound_mode(&v, identity)).unwrap_or_default();
        table.finish();
        (Self { unknown_hosts }, mode)
    }
}

/// What `[edge]` says: by which keys visitors are known, and the certificates.
fn read_edge(value: &Value<'_>, base: &Path) -> (Option<VisitorKeys>, Vec<PairFiles>) {
    let Some(mut table) = value.table() else { return Default::default() };
    let (keys, certificates) = (table.optional("uid_key_file"), table.optional("certificates"));
    table.finish();
    let certificates = certificates.map(|v| tls::read_certificates(&v, base)).unwrap_or_default();
    (keys.and_then(|v| read_visitor_keys(&v, base)), certificates)
}

/// The keys in a file, whose contents are never told.
fn read_visitor_keys(file: &Value<'_>, base: &Path) -> Option<VisitorKeys> {
    let path = read_path(file, base)?;
    let read = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()));
    match read.and_then(|text| VisitorKeys::parse(&text).map_err(str::to_owned)) {
        Ok(keys) => Some(keys),
        Err(why) => {
            file.fault("no file with keys", why);
            None
        }
    }
}

impl DrainTimes {
    fn read(value: Option<&Value<'_>>) -> Self {
        let default = Self { announce: Duration::from_secs(1), deadline: Duration::from_secs(8) };
        let Some(mut table) = value.and_then(Value::table) else { return default };
        let mut duration = |key, default| {
            let value = table.optional(key);
            value.and_then(|v| v.duration(Duration::ZERO, Duration::from_hours(1))).unwrap_or(default)
        };
        let announce = duration("announce", default.announce);
        let deadline = duration("deadline", default.deadline.max(announce));
        if deadline < announce {
            table.value().fault(
                "the deadline is over before the announcement is",
                "`deadline` counts from the begin of the drain, `announce` included",
            );
        }
        table.finish();
        Self { announce, deadline }
    }
}

impl AccessLogSettings {
    fn read(value: &Value<'_>, base: &Path) -> Option<Self> {
        let mut table = value.table()?;
        let path = table.required("path");
        let target = path.and_then(|v| match v.is_text().then(|| v.text()).flatten() {
            Some("stderr") => Some(LogTarget::Stderr),
            Some("stdout") => Some(LogTarget::Stdout),
            _ => read_path(&v, base).map(LogTarget::File),
        });
        let queue = table.optional("queue").and_then(|v| v.integer(1_u32, 10_000_000)).unwrap_or(8_192);
        let query = table.optional("query").and_then(|v| v.boolean()).unwrap_or(false);
        table.finish();
        Some(Self { target: target?, queue: queue as usize, query })
    }
}

/// `[admin]`: the token that callers from other machines need.
fn read_admin(value: &Value<'_>, base: &Path) -> Option<PathBuf> {
    let mut table = value.table()?;
    let token_file = table.optional("token_file").and_then(|v| read_path(&v, base));
    table.finish();
    token_file
}

fn read_source(root: &Value<'_>, value: Option<&Value<'_>>, base: &Path) -> Option<Source> {
    const HINT: &str =
        "[source] with control_plane = [\"http://127.0.0.1:7070\"], or mesh_file = \"mesh.toml\" (or --mesh)";
    let Some(value) = value else {
        root.fault("nothing says where the mesh is told", HINT);
        return None;
    };
    let mut table = value.table()?;
    let mesh_file = table.optional("mesh_file");
    let control_plane = table.optional("control_plane");
    let token_file = table.optional("token_file").and_then(|v| read_path(&v, base));
    let ca_file = table.optional("ca_file");
    table.finish();
    match (mesh_file, control_plane) {
        (Some(file), None) => read_path(&file, base).map(Source::MeshFile),
        (None, Some(list)) => {
            let mut servers = list.list(Value::parsed::<Server>)?;
            if servers.is_empty() || servers.len() > CONTROL_PLANES_MAX {
                list.fault(format!("{} control planes", servers.len()), format!("1 to {CONTROL_PLANES_MAX}"));
                return None;
            }
            if let Some(value) = ca_file {
                let over_tls: Vec<_> = servers.iter_mut().filter_map(|server| server.tls.as_mut()).collect();
                if over_tls.is_empty() {
                    value.fault(
                        "no control plane is called over TLS",
                        "\"https://host:port\" in `control_plane`",
                    );
                }
                let ca_file = read_path(&value, base);
                over_tls.into_iter().for_each(|tls| tls.ca_file.clone_from(&ca_file));
            }
            Some(Source::ControlPlanes { servers, token_file })
        }
        (None, None) | (Some(_), Some(_)) => {
            value.fault("exactly one of `mesh_file` and `control_plane` is needed", HINT);
            None
        }
    }
}

/// An address to listen on: an IP address with a port, 0 for any free one.
fn read_socket(value: &Value<'_>) -> Option<SocketAddr> {
    let text = value.text()?;
    let socket = text.parse::<SocketAddr>();
    if socket.is_err() {
        value.fault("not an address to listen on", "\"ip:port\", e.g. \"127.0.0.1:15001\" or \"[::1]:0\"");
    }
    socket.ok()
}

/// A path, relative to the file that names it.
fn read_path(value: &Value<'_>, base: &Path) -> Option<PathBuf> {
    let text = value.text()?;
    if text.is_empty() {
        value.fault("an empty path", "");
        return None;
    }
    Some(base.join(text))
}

fn read_state_dir(value: Option<&Value<'_>>, base: &Path) -> PathBuf {
    let default = || PathBuf::from("/var/lib/gilmok");
    let Some(mut table) = value.and_then(Value::table) else { return default() };
    let dir = table.optional("dir").and_then(|v| read_path(&v, base));
    table.finish();
    dir.unwrap_or_else(default)
}

fn read_workers(value: Option<&Value<'_>>) -> usize {
    let mut count = 0;
    if let Some(mut table) = value.and_then(Value::table) {
        count = table.optional("count").and_then(|v| v.integer(0_u32, 1_024)).unwrap_or(0);
        table.finish();
    }
    match count {
        // Knows the quota of the cgroup.
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        count => count as usize,
    }
}

fn read_node(value: &Value<'_>) -> Option<String> {
    let text = value.text()?;
    if is_node(text) {
        return Some(text.to_owned());
    }
    value
        .fault("not a name for a node", "1 to 200 letters, digits, '-', '_' and '.', not beginning with '.'");
    None
}

/// Whether a text may name a node: it becomes part of a file's name and of a query.
fn is_node(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !text.is_empty() && text.len() <= NODE_BYTES_MAX && !text.starts_with('.') && text.bytes().all(allowed)
}

fn default_node(apps: &[App], environment: Environment<'_>) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| environment("HOSTNAME").map(|name| name.to_string_lossy().into_owned()));
    let host = host.as_deref().map(str::trim).filter(|host| is_node(host)).unwrap_or("localhost");
    match apps.first() {
        Some(app) => format!("{host}-{}", app.service),
        None => host.to_owned(),
    }
}

/// Two listeners cannot share an address, and what is registered must be an address that others can call.
fn check_ports(root: &Value<'_>, registered: bool) {
    // What is of the wrong kind was told by whoever read it.
    let Some(mut table) = root.table() else { return };
    let mut sockets: Vec<(Value<'_>, SocketAddr)> = Vec::new();
    let listen = table.optional("listen").filter(Value::is_table).and_then(|v| v.entries());
    let apps = table.optional("apps").filter(Value::is_list).and_then(|v| v.items()).unwrap_or_default();
    sockets.extend(listen.into_iter().flatten().filter_map(|(_, value)| socket_of(&value)));
    for app in apps.into_iter().filter(Value::is_table) {
        let Some(mut app) = app.table() else { continue };
        let Some((value, socket)) = app.optional("inbound").and_then(|v| socket_of(&v)) else { continue };
        if registered && socket.ip().is_unspecified() && app.optional("advertise").is_none() {
            value.fault(
                format!("callers cannot be told {}", socket.ip()),
                "say by `advertise` at what address others reach this machine",
            );
        }
        sockets.push((value, socket));
    }
    for (index, (value, socket)) in sockets.iter().enumerate() {
        let taken = sockets[..index].iter().find(|(_, other)| {
            let overlap =
                other.ip() == socket.ip() || other.ip().is_unspecified() || socket.ip().is_unspecified();
            socket.port() != 0 && socket.port() == other.port() && overlap
        });
        if let Some((other, _)) = taken {
            value.fault(format!("{socket} is {}'s already", other.path()), "one listener to an address");
        }
    }
}

fn socket_of<'d>(value: &Value<'d>) -> Option<(Value<'d>, SocketAddr)> {
    let text = value.is_text().then(|| value.text()).flatten()?;
    Some((value.clone(), text.parse().ok()?))
}

/// A fault of what a flag or a variable said has no line; it has a name instead.
fn name_origins(problems: &mut Problems, said: &[overlay::Said]) {
    for problem in &mut problems.0 {
        let within = |said: &&overlay::Said| {
            problem.path == said.setting.path
                || problem.path.strip_prefix(said.setting.path).is_some_and(|rest| rest.starts_with('['))
        };
        if problem.line.is_none()
            && let Some(said) = said.iter().rfind(within)
        {
            problem.what = format!("{} (said by {})", problem.what, said.origin);
        }
    }
}

fn read_text(file: &Path) -> Result<String, Problems> {
    let bytes = std::fs::read(file).map_err(|error| Problems::whole(format!("cannot be read: {error}")))?;
    text_of(bytes)
}

fn text_of(bytes: Vec<u8>) -> Result<String, Problems> {
    String::from_utf8(bytes).map_err(|_| Problems::whole("not UTF-8"))
}

fn read_mesh(file: &Path) -> Result<Document, Problems> {
    let bytes = std::fs::read(file).map_err(|error| Problems::whole(format!("cannot be read: {error}")))?;
    parse_mesh(bytes, &mut BodyFiles::beside(file))
}

/// Checks what a mesh file holds.
///
/// # Errors
/// Every fault of the file.
pub(crate) fn parse_mesh(bytes: Vec<u8>, beside: &mut BodyFiles) -> Result<Document, Problems> {
    let node = Node::parse_toml(&text_of(bytes)?)?;
    beside.forget();
    read_document(node, &mut |name, most| beside.read(name, most)).map(|(document, _)| document)
}

#[cfg(test)]
mod tests;
