//! Where a server of our own calls is, and how it is believed: a control plane, or a Consul agent.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use gilmok_config::address::Address;

/// `http://host:port`, `https://host:port` or `unix:///path`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Server {
    /// What is connected to.
    pub address: Address,
    /// What the `host` header says.
    pub authority: String,
    /// How it is reached over TLS; `None` is in the clear.
    pub tls: Option<ServerTls>,
}

/// Who a server has to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ServerTls {
    /// The authorities that are believed; `None` is the system's own.
    pub ca_file: Option<PathBuf>,
}

const HINT: &str = "\"http://host:port\", \"https://host:port\" or \"unix:///path\"";

impl FromStr for Server {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with("unix://") {
            return Ok(Self { address: text.parse()?, authority: "localhost".to_owned(), tls: None });
        }
        let (tls, rest, port) = match text.split_once("://") {
            Some(("http", rest)) => (None, rest, 80),
            Some(("https", rest)) => (Some(ServerTls::default()), rest, 443),
            Some(_) | None => return Err(HINT),
        };
        let authority = rest.trim_end_matches('/');
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
        let address = if has_port { authority.parse() } else { format!("{authority}:{port}").parse() };
        match address {
            Ok(address @ (Address::Name { .. } | Address::Socket(_))) => {
                Ok(Self { address, authority: authority.to_owned(), tls })
            }
            Ok(Address::Unix(_)) | Err(_) => Err(HINT),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Unix(_) => self.address.fmt(f),
            Address::Name { .. } | Address::Socket(_) => {
                write!(f, "{}://{}", if self.tls.is_some() { "https" } else { "http" }, self.authority)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_and_written_back() {
        for (text, address) in [
            ("http://127.0.0.1:7070", "127.0.0.1:7070"),
            ("http://[::1]:7070", "[::1]:7070"),
            ("http://[::1]", "[::1]:80"),
            ("http://plane.internal", "plane.internal:80"),
            ("https://plane.internal", "plane.internal:443"),
            ("https://[::1]:7070", "[::1]:7070"),
            ("unix:///run/consul.sock", "unix:///run/consul.sock"),
        ] {
            let server: Server = text.parse().unwrap();
            assert_eq!(server.address.to_string(), address);
            assert_eq!(server.to_string(), text);
        }
        for text in
            ["127.0.0.1:7070", "ftp://x:1", "http://", "https://", "http://a/b", "http://u@x:1", "unix://rel"]
        {
            assert!(text.parse::<Server>().is_err(), "{text}");
        }
    }
}
