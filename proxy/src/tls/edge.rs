//! The certificates of the edge listener, chosen by the name that a client asks for (SNI).

use std::collections::HashMap;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::{ClientHello, ProducesTickets, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::SERVER_ALPN;
use super::pair::{Pair, server};

/// Certificates by name. The first one serves who asks for a name that none has, or for none.
#[derive(Debug)]
struct ByName {
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By what stands behind `*.`; the star is one label.
    wildcard: HashMap<String, Arc<CertifiedKey>>,
    first: Arc<CertifiedKey>,
}

impl ByName {
    /// Where two have the same name, the first one of them serves it. `None` where there is no certificate.
    fn new(pairs: &[Pair]) -> Option<Self> {
        let first = Arc::clone(&pairs.first()?.certified);
        let (mut exact, mut wildcard) = (HashMap::new(), HashMap::new());
        for pair in pairs {
            for name in &pair.facts.dns_names {
                let name = name.to_ascii_lowercase();
                let (names, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut wildcard, parent.to_owned()),
                    None => (&mut exact, name),
                };
                names.entry(name).or_insert_with(|| Arc::clone(&pair.certified));
            }
        }
        Some(Self { exact, wildcard, first })
    }

    fn of(&self, name: Option<&str>) -> &Arc<CertifiedKey> {
        let Some(name) = name.map(str::to_ascii_lowercase) else { return &self.first };
        let parent = || self.wildcard.get(name.split_once('.')?.1);
        self.exact.get(&name).or_else(parent).unwrap_or(&self.first)
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(self.of(client_hello.server_name())))
    }
}

/// How clients outside the mesh are received. They show no certificate, so their sessions are kept by themselves, as
/// tickets: `tickets` goes on over changes of the certificates.
///
/// # Errors
/// When rustls refuses it.
pub(super) fn server_config(
    pairs: &[Pair],
    tickets: &Arc<dyn ProducesTickets>,
) -> Result<Arc<ServerConfig>, String> {
    let names = ByName::new(pairs).ok_or("no certificate")?;
    let mut config = server().with_no_client_auth().with_cert_resolver(Arc::new(names));
    config.alpn_protocols = SERVER_ALPN.map(<[u8]>::to_vec).to_vec();
    config.ticketer = Arc::clone(tickets);
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Folder;
    use crate::testing::certificates::{Authority, write};

    #[test]
    fn the_name_that_is_asked_for_chooses() {
        let (dir, authority) = (Folder::new("sni"), Authority::new("edge"));
        let pair = |name: &str, names: &[&str]| {
            Pair::read(&write(&dir, name, &authority.leaf_for(&[], names))).unwrap()
        };
        let pairs = [
            pair("a", &["shop.example", "Www.shop.example"]),
            pair("b", &["*.ads.example", "shop.example"]),
            pair("c", &["x.ads.example"]),
        ];
        let names = ByName::new(&pairs).unwrap();
        for (asked, expected) in [
            (Some("shop.example"), 0),
            (Some("SHOP.example"), 0),
            (Some("www.shop.example"), 0),
            (Some("y.ads.example"), 1),
            (Some("x.ads.example"), 2),
            (Some("a.y.ads.example"), 0),
            (Some("ads.example"), 0),
            (Some("other"), 0),
            (None, 0),
        ] {
            assert!(Arc::ptr_eq(names.of(asked), &pairs[expected].certified), "{asked:?}");
        }
        assert!(ByName::new(&[]).is_none());
    }
}
