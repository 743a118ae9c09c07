//! Authorities and certificates, sound ones and others, and a client that speaks TLS.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, SanType,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::eventually::SOON;
use crate::message::{Message, NoMessage, Reader};

const HOUR: Duration = Duration::from_secs(60 * 60);
/// id-ce-nameConstraints, 2.5.29.30.
const NAME_CONSTRAINTS: [u64; 4] = [2, 5, 29, 30];

/// An authority that signs with a key of its own.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
}

/// What stands in a certificate.
#[derive(Clone, Debug)]
pub struct Spec {
    pub common_name: String,
    pub uris: Vec<String>,
    pub names: Vec<String>,
    /// From now, forth or back.
    pub begins: (Duration, bool),
    pub ends: (Duration, bool),
    pub purposes: Vec<ExtendedKeyUsagePurpose>,
}

/// A certificate with its key.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// It and what it was signed by, up to the root.
    pub chain: Vec<Vec<u8>>,
    pub key: Vec<u8>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Default for Spec {
    /// Since an hour ago, for a day, for both sides.
    fn default() -> Self {
        Self {
            common_name: "test".to_owned(),
            uris: Vec::new(),
            names: Vec::new(),
            begins: (HOUR, false),
            ends: (24 * HOUR, true),
            purposes: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        }
    }
}

impl Spec {
    /// For a service of the mesh `mesh`.
    #[must_use]
    pub fn service(name: &str) -> Self {
        Self::uri(&format!("spiffe://mesh/service/{name}"))
    }

    #[must_use]
    pub fn uri(uri: &str) -> Self {
        Self { uris: vec![uri.to_owned()], ..Self::default() }
    }

    #[must_use]
    pub fn names(names: &[&str]) -> Self {
        Self { names: names.iter().map(|name| (*name).to_owned()).collect(), ..Self::default() }
    }

    fn params(&self) -> CertificateParams {
        let moment = |(from_now, forth): (Duration, bool)| {
            let now = SystemTime::now();
            if forth { now + from_now } else { now - from_now }
        };
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, self.common_name.as_str());
        params.not_before = moment(self.begins).into();
        params.not_after = moment(self.ends).into();
        params.extended_key_usages.clone_from(&self.purposes);
        let uris = self.uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().expect("ASCII")));
        let names = self.names.iter().map(|name| match name.parse() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(name.as_str().try_into().expect("ASCII")),
        });
        params.subject_alt_names = uris.chain(names).collect();
        params
    }

    /// Signed by its own key.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn self_signed(&self) -> Leaf {
        let key = KeyPair::generate().expect("a key");
        let der = self.params().self_signed(&key).expect("a certificate").der().to_vec();
        Leaf { chain: vec![der], key: key.serialize_der() }
    }
}

impl Authority {
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let params = Self::params(name);
        let der = params.self_signed(&key).expect("a certificate").der().to_vec();
        Self { issuer: Issuer::new(params, key), der }
    }

    /// One that this one signs, which may sign only for URIs of this host (RFC 5280, 4.2.1.10).
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn constrained(&self, name: &str, host: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = Self::params(name);
        let element = |tag: u8, content: &[u8]| {
            let length = u8::try_from(content.len()).expect("a short one");
            [&[tag, length], content].concat()
        };
        // permittedSubtrees [0] { GeneralSubtree { uniformResourceIdentifier [6] } }
        let subtree = element(0x30, &element(0x86, host.as_bytes()));
        let content = element(0x30, &element(0xa0, &subtree));
        let mut constraints = CustomExtension::from_oid_content(&NAME_CONSTRAINTS, content);
        constraints.set_criticality(true);
        params.custom_extensions.push(constraints);
        let der = params.signed_by(&key, &self.issuer).expect("a certificate").der().to_vec();
        Self { issuer: Issuer::new(params, key), der }
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    #[must_use]
    pub fn pem(&self) -> String {
        pem("CERTIFICATE", &self.der)
    }

    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// This one and no other.
    ///
    /// # Panics
    /// When rustls refuses it.
    #[must_use]
    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(self.der.clone())).expect("a root");
        roots
    }

    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn sign(&self, spec: &Spec) -> Leaf {
        let key = KeyPair::generate().expect("a key");
        let der = spec.params().signed_by(&key, &self.issuer).expect("a certificate").der().to_vec();
        Leaf { chain: vec![der], key: key.serialize_der() }
    }
}

impl Leaf {
    /// With the authority between it and the root.
    #[must_use]
    pub fn under(mut self, between: &Authority) -> Self {
        self.chain.push(between.der.clone());
        self
    }

    #[must_use]
    pub fn pem(&self) -> String {
        self.chain.iter().map(|der| pem("CERTIFICATE", der)).collect()
    }

    #[must_use]
    pub fn key_pem(&self) -> String {
        pem("PRIVATE KEY", &self.key)
    }

    /// Writes `NAME.pem` and `NAME.key` into a folder, each in one step; where they are.
    ///
    /// # Panics
    /// When they cannot be written.
    pub fn write(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let put = |ending: &str, text: String| {
            let (path, new) = (folder.join(format!("{name}.{ending}")), folder.join(format!("{name}.new")));
            std::fs::write(&new, text)
                .and_then(|()| std::fs::rename(&new, &path))
                .expect("it can be written");
            path
        };
        (put("pem", self.pem()), put("key", self.key_pem()))
    }
}

/// A client that believes this authority, and shows this certificate.
///
/// # Panics
/// When rustls refuses it.
#[must_use]
pub fn client_config(authority: &Authority, shows: Option<&Leaf>, alpn: &[&str]) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the default versions")
        .with_root_certificates(authority.roots());
    let mut config = match shows {
        None => builder.with_no_client_auth(),
        Some(leaf) => {
            let chain = leaf.chain.iter().cloned().map(CertificateDer::from).collect();
            let key = PrivatePkcs8KeyDer::from(leaf.key.clone()).into();
            builder.with_client_auth_cert(chain, key).expect("a pair")
        }
    };
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// A client's connection over TLS.
#[derive(Debug)]
pub struct TlsCaller {
    pub io: TlsStream<TcpStream>,
    reader: Reader,
}

impl TlsCaller {
    /// # Errors
    /// Why there is none.
    pub async fn connect(
        config: &Arc<ClientConfig>,
        address: SocketAddr,
        name: &str,
    ) -> std::io::Result<Self> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        let io = tokio_rustls::TlsConnector::from(Arc::clone(config)).connect(name, tcp).await?;
        Ok(Self { io, reader: Reader::default() })
    }

    /// Sends and reads one answer.
    ///
    /// # Errors
    /// When none comes.
    pub async fn ask(&mut self, bytes: impl AsRef<[u8]>) -> Result<Message, NoMessage> {
        // A peer that has closed already is no fault here: reading will tell.
        drop(self.io.write_all(bytes.as_ref()).await);
        drop(self.io.flush().await);
        self.reader.answer(&mut self.io, SOON, false).await
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
