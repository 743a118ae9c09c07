//! The sockets this process listens on: bound anew, or inherited from the process before (`LISTEN_FDS`).

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use gilmok_config::decide::Listener;
use listenfd::ListenFd;
use serde_json::{Map, Value, json};
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;

use crate::listen::Gate;
use crate::settings::Settings;

/// Connections that the kernel holds for us until they are accepted; it takes the lesser of this and its own limit.
const BACKLOG: i32 = 4_096;

/// Every open listener of this process.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub(crate) outbound: Option<TcpListener>,
    pub(crate) edge: Option<TcpListener>,
    /// By place of the app in the settings.
    pub(crate) inbound: Vec<TcpListener>,
    pub(crate) admin: Option<TcpListener>,
    pub(crate) metrics: Option<TcpListener>,
    pub(crate) ofrep: Option<TcpListener>,
}

/// A listener could not be opened.
#[derive(Debug, Error)]
#[error("cannot listen on {address} ({name}): {error}{}", hint(.error))]
pub(crate) struct ListenError {
    name: &'static str,
    address: SocketAddr,
    error: io::Error,
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; another process, perhaps another proxy, has this port",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need a privilege",
        io::ErrorKind::AddrNotAvailable => "; no interface of this machine has this address",
        _ => "",
    }
}

impl Sockets {
    /// Opens every listener that the settings name.
    ///
    /// # Errors
    /// The first that cannot be opened.
    pub(crate) fn open(settings: &Settings) -> Result<Self, ListenError> {
        let mut inherited = inherit();
        let mut open = |name, address: SocketAddr| {
            let taken = inherited.iter().position(|socket| is_at(socket, address));
            let socket = match taken {
                Some(at) => Ok(inherited.swap_remove(at)),
                None => bind(address),
            };
            socket.map_err(|error| ListenError { name, address, error })
        };
        let mut optional = |name, address: Option<SocketAddr>| address.map(|at| open(name, at)).transpose();
        let outbound = optional("outbound", settings.listen.outbound)?;
        let edge = optional("edge", settings.listen.edge)?;
        let admin = optional("admin", settings.listen.admin)?;
        let metrics = optional("metrics", settings.listen.metrics)?;
        let ofrep = optional("ofrep", settings.listen.ofrep)?;
        let inbound = settings.apps.iter().map(|app| open("inbound", app.inbound));
        let inbound = inbound.collect::<Result<Vec<_>, _>>()?;
        for left in inherited {
            // Closing it refuses whoever is in its queue; keeping it open would leave them hanging.
            let address = left.local_addr().map_or_else(|_| "?".to_owned(), |address| address.to_string());
            tracing::warn!("inherited a listener on {address} that no setting names; closing it");
        }
        Ok(Self { outbound, edge, inbound, admin, metrics, ofrep })
    }

    /// The listeners of the request path for one worker: clones of the same sockets.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub(crate) fn gates(&self) -> io::Result<Vec<Gate>> {
        let single = [(Listener::Outbound, &self.outbound), (Listener::Edge, &self.edge)]
            .into_iter()
            .filter_map(|(listener, socket)| socket.as_ref().map(|socket| (listener, None, socket)));
        let inbound = self.inbound.iter().enumerate();
        let inbound = inbound.map(|(app, socket)| (Listener::Inbound, Some(app), socket));
        single
            .chain(inbound)
            .map(|(listener, app, socket)| Ok(Gate { listener, app, socket: socket.try_clone()? }))
            .collect()
    }

    /// At what addresses this process listens, by name.
    pub(crate) fn addresses(&self) -> Value {
        let address = |socket: &TcpListener| socket.local_addr().ok().map(|address| address.to_string());
        let mut names = Map::new();
        for (name, socket) in [
            ("outbound", &self.outbound),
            ("edge", &self.edge),
            ("admin", &self.admin),
            ("metrics", &self.metrics),
            ("ofrep", &self.ofrep),
        ] {
            if let Some(socket) = socket {
                names.insert(name.to_owned(), json!(address(socket)));
            }
        }
        names.insert("inbound".to_owned(), json!(self.inbound.iter().map(address).collect::<Vec<_>>()));
        Value::Object(names)
    }

    /// Writes [`Self::addresses`] to a file, in one step.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn write_addresses(&self, file: &Path) -> io::Result<()> {
        let new = file.with_extension("new");
        std::fs::write(&new, format!("{}\n", self.addresses()))?;
        std::fs::rename(&new, file)
    }
}

/// Binds without `SO_REUSEPORT`: a second proxy on the port fails here instead of sharing the traffic silently.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of an earlier process that linger in TIME_WAIT do not keep the port.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn inherit() -> Vec<TcpListener> {
    let mut passed = ListenFd::from_env();
    (0..passed.len()).filter_map(|at| take(&mut passed, at)).collect()
}

fn take(passed: &mut ListenFd, at: usize) -> Option<TcpListener> {
    let socket = passed.take_tcp_listener(at);
    // Cloned, because a clone is closed in the programs that this process starts.
    let socket = socket.and_then(|socket| socket.map(|socket| socket.try_clone()).transpose());
    match socket.and_then(|socket| {
        socket.as_ref().map_or(Ok(()), |socket| socket.set_nonblocking(true)).map(|()| socket)
    }) {
        Ok(socket) => socket,
        Err(error) => {
            tracing::warn!("inherited descriptor {at} is no TCP listener; leaving it: {error}");
            None
        }
    }
}

fn is_at(socket: &TcpListener, address: SocketAddr) -> bool {
    socket.local_addr().is_ok_and(|at| at == address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_taken_is_told_with_a_reason() {
        let first = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = first.local_addr().unwrap();
        let error = bind(address).unwrap_err();
        let told = ListenError { name: "outbound", address, error }.to_string();
        assert!(told.contains("another proxy") && told.contains("outbound"), "{told}");
        assert!(is_at(&first, address));
    }
}
