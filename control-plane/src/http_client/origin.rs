//! Where an HTTP server is: `http://name:port`, `https://name:port` or `unix:///path`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

/// The server of a [`super::Client`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Plain HTTP over TCP.
    Http { host: Arc<str>, port: u16 },
    /// HTTP over TLS over TCP.
    Https { host: Arc<str>, port: u16 },
    /// Plain HTTP over a unix domain socket, by absolute path.
    Unix(PathBuf),
}

const HINT: &str = "an address is \"http://name:port\", \"https://name:port\" or \"unix:///path\"";

impl Origin {
    /// The value of the `Host` header.
    pub(super) fn authority(&self) -> String {
        match self {
            Self::Http { host, port } | Self::Https { host, port } if host.contains(':') => {
                format!("[{host}]:{port}")
            }
            Self::Http { host, port } | Self::Https { host, port } => format!("{host}:{port}"),
            Self::Unix(_) => "localhost".to_owned(),
        }
    }

    /// Whether the connection is encrypted.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Https { .. })
    }
}

impl FromStr for Origin {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix://") {
            let path = PathBuf::from(path);
            return if path.is_absolute() { Ok(Self::Unix(path)) } else { Err(HINT) };
        }
        let uri: http::Uri = text.parse().map_err(|_| HINT)?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or(HINT)?;
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() || text.contains('@') {
            return Err(HINT);
        }
        let host: Arc<str> = host.trim_start_matches('[').trim_end_matches(']').into();
        let port = |default| match uri.port() {
            Some(port) if port.as_u16() == 0 => Err("the port is 0"),
            Some(port) => Ok(port.as_u16()),
            // A trailing colon without digits is a mistake, not a default.
            None if uri.authority().is_some_and(|authority| authority.as_str().ends_with(':')) => Err(HINT),
            None => Ok(default),
        };
        match uri.scheme_str() {
            Some("http") => Ok(Self::Http { host, port: port(80)? }),
            Some("https") => Ok(Self::Https { host, port: port(443)? }),
            _ => Err(HINT),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http { .. } => write!(f, "http://{}", self.authority()),
            Self::Https { .. } => write!(f, "https://{}", self.authority()),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_kinds_are_read_and_written_back() {
        for text in [
            "http://127.0.0.1:8500",
            "https://consul.internal:8501",
            "http://[::1]:8500",
            "unix:///run/consul.sock",
        ] {
            assert_eq!(text.parse::<Origin>().unwrap().to_string(), text);
        }
        assert_eq!("http://a/".parse::<Origin>().unwrap().to_string(), "http://a:80");
    }

    #[test]
    fn what_is_no_origin_is_refused() {
        for text in [
            "",
            "127.0.0.1:8500",
            "ftp://a:1",
            "http://a:0",
            "http://a:",
            "http://u@a:1",
            "http://a/v1",
            "unix://rel",
        ] {
            assert!(text.parse::<Origin>().is_err(), "{text}");
        }
    }
}
