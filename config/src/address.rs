//! Where an endpoint is: `ip:port`, `[v6]:port`, `name:port` or `unix:///path`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The address of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Address {
    /// A name with a port: every A and AAAA record is an endpoint; resolved again and again.
    Name { host: Arc<str>, port: u16 },
    /// An IP address with a port.
    Socket(SocketAddr),
    /// A unix domain socket by absolute path.
    Unix(PathBuf),
}

const HINT: &str = "an address is \"ip:port\", \"[v6]:port\", \"name:port\" or \"unix:///path\"";

impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix://") {
            let path = PathBuf::from(path);
            // sun_path holds 108 bytes, the last one 0.
            let fits = path.as_os_str().len() < 108 && !text.contains('\0');
            return if path.is_absolute() && fits { Ok(Self::Unix(path)) } else { Err(HINT) };
        }
        if let Ok(socket) = text.parse::<SocketAddr>() {
            return if socket.port() == 0 { Err("the port is 0") } else { Ok(Self::Socket(socket)) };
        }
        let (host, port) = text.rsplit_once(':').ok_or(HINT)?;
        let port: u16 = port.parse().map_err(|_| HINT)?;
        if port == 0 {
            return Err("the port is 0");
        }
        match crate::host::canonical(host) {
            // Digits and dots alone are a mistyped IP address, not a name.
            Some(name) if !host.contains(':') && name.bytes().any(|byte| byte.is_ascii_alphabetic()) => {
                Ok(Self::Name { host: name.as_ref().into(), port })
            }
            _ => Err(HINT),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name { host, port } => write!(f, "{host}:{port}"),
            Self::Socket(socket) => socket.fmt(f),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

impl TryFrom<String> for Address {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_four_kinds_are_read_and_written_back() {
        for text in ["127.0.0.1:80", "[::1]:8080", "db.internal:5432", "unix:///run/app.sock"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "127.0.0.1",
            "127.0.0.1:0",
            "127.0.0.1:70000",
            "1.2.3:80",
            ":80",
            "a b:80",
            "unix://rel",
            "unix:///a\0b",
            "http://x:1",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
