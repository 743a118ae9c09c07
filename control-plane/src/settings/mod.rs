//! What a control plane is told: control-plane.toml, flags and environment, with every default filled in.
//!
//! Faults are collected, never stopped at, so that one look mends them all.

mod arguments;

mod identity;

mod tls;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use gilmok_config::grammar::{Faults, Value};
use gilmok_config::node::Node;
use gilmok_config::problem::Problems;
use rustls::pki_types::ServerName;
use tracing::level_filters::LevelFilter;

use crate::authority;
use crate::membership::consul;
use crate::tls::TlsSettings;
use crate::tokens::OnLoopback;

pub use arguments::{Environment, Task, command, unknown_variables};

const LISTEN_DEFAULT: &str = "127.0.0.1:7070";
const STORE_DIR_DEFAULT: &str = "data";
/// Revisions that are kept when nothing is said.
const HISTORY_DEFAULT: u32 = 1_000;
const HISTORY_MAX: u32 = 1_000_000;
/// Longest control-plane.toml, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The words for what callers on this machine show.
const ON_LOOPBACK: [(&str, OnLoopback); 2] = [("open", OnLoopback::Open), ("token", OnLoopback::Token)];

/// The words for how much is logged.
const LEVELS: [(&str, LevelFilter); 6] = [
    ("off", LevelFilter::OFF),
    ("error", LevelFilter::ERROR),
    ("warn", LevelFilter::WARN),
    ("info", LevelFilter::INFO),
    ("debug", LevelFilter::DEBUG),
    ("trace", LevelFilter::TRACE),
];

/// The settings of a control plane process.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Port 0 takes any free one.
    pub listen: SocketAddr,
    /// Holds the token of administrators; without it there are only those that were made over REST.
    pub token_file: Option<PathBuf>,
    pub on_loopback: OnLoopback,
    /// Without it, REST and feed are in the clear.
    pub tls: Option<TlsSettings>,
    /// The names of the certificate that the authority makes for this listener; none where it stands in files.
    pub own_names: Vec<ServerName<'static>>,
    /// Whether writes must say why.
    pub reason_required: bool,
    /// Holds what webhooks are signed with; without it no plan may name one.
    pub webhook_secret_file: Option<PathBuf>,
    pub store: StoreSettings,
    /// Who makes certificates of services' identities; without it nobody does.
    pub identity: Option<authority::Settings>,
    /// Mirrored beside the embedded registry.
    pub consul: Option<consul::Settings>,
    pub log: LevelFilter,
    /// Where the address is written once the process listens, as JSON.
    pub port_file: Option<PathBuf>,
}

/// `[store]`: the embedded one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreSettings {
    pub dir: PathBuf,
    /// Revisions that are kept, at least 1.
    pub history: u32,
}

/// Why the control plane does not start.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error(transparent)]
    Usage(#[from] clap::Error),
    #[error("{}", told(file.as_deref(), problems))]
    Faulty { file: Option<PathBuf>, problems: Problems },
}

fn told(file: Option<&Path>, problems: &Problems) -> String {
    let origin = file.map(|file| format!("{}: ", file.display())).unwrap_or_default();
    problems.0.iter().map(|problem| format!("{origin}{problem}")).collect::<Vec<_>>().join("\n")
}

impl Settings {
    /// Reads the command line, the environment and the file they name.
    ///
    /// # Errors
    /// A wrong command line, or every fault of the settings.
    pub fn load(
        args: impl IntoIterator<Item = OsString>,
        environment: Environment<'_>,
    ) -> Result<(Task, Self), SettingsError> {
        let arguments = arguments::Arguments::read(args, environment)?;
        let file = arguments.config;
        let faulty = |problems| SettingsError::Faulty { file: file.clone(), problems };
        let mut tree = match &file {
            Some(path) => read_text(path).and_then(|text| Node::parse_toml(&text)).map_err(faulty)?,
            None => Node::empty(),
        };
        arguments::lay_over(&mut tree, &arguments.said);
        let folder = file.as_deref().and_then(Path::parent).unwrap_or(Path::new(""));
        let faults = Faults::new();
        let settings = Self::read(&Value::root(&tree, &faults), folder);
        match faults.into_result(settings) {
            Ok(settings) => Ok((arguments.task, settings)),
            Err(mut problems) => {
                arguments::name_origins(&mut problems, &arguments.said);
                Err(faulty(problems))
            }
        }
    }

    /// Reads the tree; what is faulty keeps its default beside the noted fault.
    fn read(root: &Value<'_>, folder: &Path) -> Self {
        let mut table = root.table();
        let mut take = |key| table.as_mut().and_then(|table| table.optional(key));
        let (listen, token_file) = (take("listen"), take("token_file"));
        let (on_loopback, tls) = (take("loopback"), take("tls"));
        let (reason_required, webhook_secret_file) = (take("reason_required"), take("webhook_secret_file"));
        let (store, membership) = (take("store"), take("membership"));
        let (log, port_file) = (take("log"), take("port_file"));
        let identity = take("identity");
        if let Some(table) = table {
            table.finish();
        }
        let listen = listen.and_then(|value| read_socket(&value));
        let store = StoreSettings::read(store.as_ref(), folder);
        let identity = identity.and_then(|value| identity::read(&value, folder));
        let own = identity.as_ref().map(|identity| (identity, store.dir.as_path()));
        let tls = tls.and_then(|value| tls::read(&value, folder, own));
        let (tls, own_names) = tls.map_or_else(Default::default, |(tls, names)| (Some(tls), names));
        Self {
            listen: listen.unwrap_or_else(|| LISTEN_DEFAULT.parse().expect("invariant: it is an address")),
            token_file: token_file.and_then(|value| read_secret_file(&value, folder, "token")),
            on_loopback: on_loopback.and_then(|value| value.choice(&ON_LOOPBACK)).unwrap_or_default(),
            tls,
            own_names,
            reason_required: reason_required.and_then(|value| value.boolean()).unwrap_or_default(),
            webhook_secret_file: webhook_secret_file
                .and_then(|value| read_secret_file(&value, folder, "secret")),
            store,
            identity,
            consul: membership.and_then(|value| read_consul(&value, folder)),
            log: log.and_then(|value| value.choice(&LEVELS)).unwrap_or(LevelFilter::INFO),
            port_file: port_file.and_then(|value| read_path(&value, folder)),
        }
    }
}

impl StoreSettings {
    fn read(value: Option<&Value<'_>>, folder: &Path) -> Self {
        let mut settings = Self { dir: folder.join(STORE_DIR_DEFAULT), history: HISTORY_DEFAULT };
        let Some(mut table) = value.and_then(Value::table) else { return settings };
        if let Some(dir) = table.optional("dir").and_then(|value| read_path(&value, folder)) {
            settings.dir = dir;
        }
        if let Some(history) = table.optional("history").and_then(|value| value.integer(1, HISTORY_MAX)) {
            settings.history = history;
        }
        for key in ["consul", "prefix"] {
            if let Some(value) = table.optional(key) {
                value.fault(
                    "the intent cannot be kept in Consul yet",
                    "use `dir`; to mirror who is alive, write [membership.consul]",
                );
            }
        }
        table.finish();
        settings
    }
}

fn read_consul(value: &Value<'_>, folder: &Path) -> Option<consul::Settings> {
    let mut table = value.table()?;
    let consul = table.optional("consul").and_then(|value| consul::Settings::read(&value, folder));
    table.finish();
    consul
}

/// An address to listen on: an IP address with a port, 0 for any free one.
fn read_socket(value: &Value<'_>) -> Option<SocketAddr> {
    let socket = value.text()?.parse::<SocketAddr>();
    if socket.is_err() {
        value.fault("not an address to listen on", "\"ip:port\", e.g. \"127.0.0.1:7070\" or \"[::1]:0\"");
    }
    socket.ok()
}

/// A path, relative to the file that names it.
fn read_path(value: &Value<'_>, folder: &Path) -> Option<PathBuf> {
    let text = value.text()?;
    if text.is_empty() {
        value.fault("an empty path", "");
        return None;
    }
    Some(folder.join(text))
}

/// A secret that cannot be read now would be missed later, in a worse moment: it is a fault of the settings.
fn read_secret_file(value: &Value<'_>, folder: &Path, what: &str) -> Option<PathBuf> {
    let path = read_path(value, folder)?;
    match std::fs::read_to_string(&path) {
        Ok(text) if text.trim().is_empty() => value.fault(format!("the file holds no {what}"), ""),
        Ok(_) => {}
        Err(error) => {
            value.fault(format!("{}: {error}", path.display()), format!("a file with one line, the {what}"));
        }
    }
    Some(path)
}

fn read_text(file: &Path) -> Result<String, Problems> {
    let unreadable = |error: std::io::Error| Problems::whole(format!("cannot be read: {error}"));
    let about = std::fs::metadata(file).map_err(unreadable)?;
    if about.len() > FILE_BYTES_MAX {
        return Err(Problems::whole(format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    let bytes = std::fs::read(file).map_err(unreadable)?;
    String::from_utf8(bytes).map_err(|_| Problems::whole("not UTF-8"))
}

#[cfg(test)]
mod tests;
