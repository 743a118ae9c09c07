//! Our identity in the mesh: the certificate that we show, the roots that we check others against, and what follows for both sides.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use gilmok_config::identity::Identity;
use gilmok_config::name::ServiceName;
use gilmok_config::service::Protocol;
use http::HeaderValue;
use ring::digest::{SHA256, digest};
use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ServerSessionMemoryCache;
use rustls::server::danger::ClientCertVerifier as _;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ServerConfig};

use super::pair::{Pair, PairFiles, Roots, client, server};
use super::verify::{CalleeVerifier, CallerVerifier, identity_of};
use super::{CLIENT_SESSIONS_MAX, Mode, SERVER_ALPN, alpn};

/// Sessions of callers that are remembered, over all workers: about 2 KiB each. The oldest go first; who is forgotten
/// makes a whole handshake.
const SESSIONS_MAX: usize = 4_096;

/// `[identity]`: where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdentityFiles {
    pub(crate) pair: PairFiles,
    pub(crate) ca_file: PathBuf,
}

/// Where an identity comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum IdentitySettings {
    /// From files.
    Files(IdentityFiles),
    /// From a control plane.
    Issued(IssuedSettings),
}

/// `[identity]` with `issuer = "control_plane"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IssuedSettings {
    /// The service that this proxy is.
    pub(crate) service: ServiceName,
    /// Holds the token by which it may be that service; without it the token of `[source]` must be enough.
    pub(crate) join_token_file: Option<PathBuf>,
}

/// Our identity, as it was read.
#[derive(Debug)]
pub(crate) struct Mesh {
    pub(crate) identity: Identity,
    pub(crate) pair: Pair,
    pub(crate) roots: Roots,
    /// Whether endpoints are called in the clear that do not say they speak mutual TLS.
    pub(crate) calls: Mode,
}

/// A caller that has shown who it is.
#[derive(Clone, Debug)]
pub(crate) struct CallerIdentity {
    pub(crate) service: ServiceName,
    /// When its certificate ends, from the moment it was shown.
    pub(crate) lasts: Duration,
    /// What the app is told of it: `X-Forwarded-Client-Cert` in Envoy's grammar, made once per connection.
    pub(crate) forwarded: HeaderValue,
}

impl Mesh {
    /// Reads the three files.
    ///
    /// # Errors
    /// Why they are no identity, in words for an operator.
    pub(crate) fn read(files: &IdentityFiles, calls: Mode) -> Result<Self, String> {
        let pair = Pair::read(&files.pair)?;
        let roots = Roots::read(&files.ca_file)?;
        Self::of(pair, roots, calls).map_err(|why| format!("{}: {why}", files.pair.cert_file.display()))
    }

    /// Puts an identity together.
    ///
    /// # Errors
    /// When the certificate is nobody's.
    pub(crate) fn of(pair: Pair, roots: Roots, calls: Mode) -> Result<Self, &'static str> {
        let leaf = pair.certified.cert.first();
        let Some((identity, _)) = leaf.and_then(identity_of) else {
            return Err("its alternative names need exactly one URI, spiffe://DOMAIN/service/NAME");
        };
        Ok(Self { identity, pair, roots, calls })
    }

    /// Whether peers who trust these roots believe our certificate now. Where they do not, it is time for another one.
    pub(crate) fn is_believed_by(&self, roots: &Roots) -> bool {
        let Some((leaf, between)) = self.pair.certified.cert.split_first() else { return false };
        let verifier = CallerVerifier::new(&roots.store, &self.identity.domain, true);
        verifier.is_ok_and(|verifier| verifier.verify_client_cert(leaf, between, UnixTime::now()).is_ok())
    }

    /// How callers are received. A new one forgets every session: whoever was believed by an old root shows itself anew.
    ///
    /// # Errors
    /// When rustls refuses it.
    pub(super) fn server_config(&self, mode: Mode) -> Result<Arc<ServerConfig>, String> {
        let verifier = CallerVerifier::new(&self.roots.store, &self.identity.domain, mode == Mode::Strict)?;
        let certificate = SingleCertAndKey::from((*self.pair.certified).clone());
        let mut config =
            server().with_client_cert_verifier(Arc::new(verifier)).with_cert_resolver(Arc::new(certificate));
        config.alpn_protocols = SERVER_ALPN.map(<[u8]>::to_vec).to_vec();
        // Not by tickets: what was verified stays in this process.
        config.session_storage = ServerSessionMemoryCache::new(SESSIONS_MAX);
        Ok(Arc::new(config))
    }

    /// How a service's sidecar is called. Each service has its own, and with it its own sessions: one that was made with
    /// another service is never taken up.
    pub(super) fn client_config(&self, service: &ServiceName, protocol: Protocol) -> Arc<ClientConfig> {
        let verifier = CalleeVerifier::new(&self.roots.store, self.identity.sibling(service));
        let certificate = SingleCertAndKey::from((*self.pair.certified).clone());
        let mut config = client()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(certificate));
        config.alpn_protocols = alpn(protocol);
        config.resumption = Resumption::in_memory_sessions(CLIENT_SESSIONS_MAX);
        Arc::new(config)
    }

    /// Who a caller is whose certificate was verified, now or when its session began; `None` where it has none, or one
    /// that has ended meanwhile.
    pub(super) fn caller(&self, chain: &[CertificateDer<'_>], now: u64) -> Option<CallerIdentity> {
        let leaf = chain.first()?;
        let (identity, facts) = identity_of(leaf)?;
        if identity.domain != self.identity.domain || !facts.is_valid_at(now) {
            return None;
        }
        let mut forwarded = format!("By={};Hash=", self.identity);
        for byte in digest(&SHA256, leaf).as_ref() {
            forwarded.push_str(&format!("{byte:02x}"));
        }
        forwarded.push_str(&format!(";URI={identity}"));
        let forwarded = HeaderValue::try_from(forwarded).ok()?;
        let lasts = Duration::from_secs(facts.not_after - now);
        Some(CallerIdentity { service: identity.service, lasts, forwarded })
    }
}

#[cfg(test)]
mod tests {
    use super::super::der::Facts;
    use super::*;
    use crate::testing::Folder;
    use crate::testing::certificates::{Authority, write};

    #[test]
    fn an_identity_is_one_uri_of_the_mesh() {
        let (dir, authority) = (Folder::new("identity"), Authority::new("mesh"));
        let ca_file = dir.join("ca.pem");
        std::fs::write(&ca_file, authority.pem()).unwrap();
        let read = |leaf| {
            let pair = write(&dir, "a", &leaf);
            Mesh::read(&IdentityFiles { pair, ca_file: ca_file.clone() }, Mode::Permissive)
        };
        let mesh = read(authority.leaf("spiffe://mesh/service/shop")).unwrap();
        assert_eq!(mesh.identity.to_string(), "spiffe://mesh/service/shop");
        for leaf in [
            authority.leaf_for(&["spiffe://mesh/service/shop", "spiffe://mesh/service/ads"], &[]),
            authority.leaf_for(&["https://mesh/service/shop"], &[]),
            authority.leaf_for(&[], &["shop.mesh"]),
        ] {
            assert!(read(leaf).unwrap_err().contains("exactly one URI"));
        }
    }

    #[test]
    fn a_caller_is_told_in_envoys_grammar_and_only_while_its_certificate_lasts() {
        let (dir, authority) = (Folder::new("caller"), Authority::new("mesh"));
        let ca_file = dir.join("ca.pem");
        std::fs::write(&ca_file, authority.pem()).unwrap();
        let pair = write(&dir, "a", &authority.leaf("spiffe://mesh/service/ads"));
        let mesh = Mesh::read(&IdentityFiles { pair, ca_file }, Mode::Permissive).unwrap();
        let caller = CertificateDer::from(authority.leaf("spiffe://mesh/service/shop").der());
        let until = Facts::read(&caller).unwrap().not_after;
        let known = mesh.caller(std::slice::from_ref(&caller), until).unwrap();
        let told = known.forwarded.to_str().unwrap();
        assert_eq!(known.service.as_str(), "shop");
        let (by, rest) = told.split_once(";Hash=").unwrap();
        let (hash, uri) = rest.split_once(';').unwrap();
        assert_eq!((by, uri), ("By=spiffe://mesh/service/ads", "URI=spiffe://mesh/service/shop"));
        assert!(hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()), "{hash}");
        assert!(mesh.caller(std::slice::from_ref(&caller), until + 1).is_none());
        assert!(mesh.caller(&[], 0).is_none());
        let stranger = CertificateDer::from(authority.leaf("spiffe://other/service/shop").der());
        assert!(mesh.caller(&[stranger], until).is_none());
    }
}
