//! Identities: who a peer is, as its certificate says it: `spiffe://DOMAIN/service/NAME` (SPIFFE-ID, version 1).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::name::ServiceName;

/// Longest trust domain, in bytes (SPIFFE-ID, 2.1).
const DOMAIN_BYTES_MAX: usize = 255;

/// A service of a trust domain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// The trust domain: lower-case letters, digits, `.`, `-`, `_`.
    pub domain: Arc<str>,
    pub service: ServiceName,
}

const HINT: &str = "\"spiffe://DOMAIN/service/NAME\", in lower case";

impl Identity {
    /// A service of the same trust domain.
    #[must_use]
    pub fn sibling(&self, service: &ServiceName) -> Self {
        Self { domain: Arc::clone(&self.domain), service: service.clone() }
    }
}

impl FromStr for Identity {
    type Err = &'static str;

    /// Takes one spelling only, so that what is equal is written the same.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = text.strip_prefix("spiffe://").ok_or(HINT)?;
        let (domain, path) = rest.split_once('/').ok_or(HINT)?;
        let name = path.strip_prefix("service/").ok_or(HINT)?;
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
        if domain.is_empty() || domain.len() > DOMAIN_BYTES_MAX || !domain.bytes().all(inner) {
            return Err(HINT);
        }
        let service = ServiceName::parse(name).map_err(|_| HINT)?;
        Ok(Self { domain: domain.into(), service })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/service/{}", self.domain, self.service)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_read_and_written_back() {
        for text in ["spiffe://mesh.example/service/shop", "spiffe://a/service/ads-2.eu"] {
            assert_eq!(text.parse::<Identity>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn there_is_one_spelling() {
        for text in [
            "",
            "spiffe://",
            "spiffe:///service/shop",
            "spiffe://mesh/service/",
            "spiffe://mesh/service/Shop",
            "spiffe://Mesh/service/shop",
            "SPIFFE://mesh/service/shop",
            "spiffe://mesh/service/shop/",
            "spiffe://mesh/service/shop/x",
            "spiffe://mesh//service/shop",
            "spiffe://mesh/service/../admin",
            "spiffe://mesh/service/sh%6Fp",
            "spiffe://mesh/service/shop?x",
            "spiffe://mesh/service/shop#x",
            "spiffe://mesh:443/service/shop",
            "spiffe://user@mesh/service/shop",
            "spiffe://mesh/ns/default/svc/shop",
            "https://mesh/service/shop",
            "spiffe://mesh/service/shop ",
        ] {
            assert!(text.parse::<Identity>().is_err(), "{text}");
        }
    }
}
