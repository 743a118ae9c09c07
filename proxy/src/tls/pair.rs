//! A certificate with its key, and the roots that others are checked against: read from PEM, refused where they are not sound.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use rustls::crypto::CryptoProvider;
#[cfg(feature = "aws-lc")]
use rustls::crypto::aws_lc_rs as cryptography;
// Whose cryptography it is, is said here and nowhere else.
#[cfg(not(feature = "aws-lc"))]
use rustls::crypto::ring as cryptography;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ProducesTickets;
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, ConfigBuilder, Error, InconsistentKeys, RootCertStore, ServerConfig, WantsVerifier,
};
use zeroize::Zeroizing;

use super::der::Facts;

/// Longest file of certificates or of a key, in bytes: the roots of a whole system take a fifth of it.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Most certificates of one chain; what peers verify is rarely longer than three.
const CHAIN_MAX: usize = 16;
const TOO_LONG: &str = "more than 16 certificates";

/// Passed wherever one is needed, never process-global: no other part of the process can change it.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(cryptography::default_provider()));

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::clone(&PROVIDER)
}

/// What sessions are kept in by clients themselves, under keys that change.
///
/// # Errors
/// When there is no randomness.
pub(super) fn tickets() -> Result<Arc<dyn ProducesTickets>, String> {
    cryptography::Ticketer::new().map_err(|error| error.to_string())
}

/// The beginning of every client's configuration.
pub(super) fn client() -> ConfigBuilder<ClientConfig, WantsVerifier> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("invariant: the provider has suites of TLS 1.2 and 1.3")
}

/// The beginning of every server's configuration.
pub(super) fn server() -> ConfigBuilder<ServerConfig, WantsVerifier> {
    ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("invariant: the provider has suites of TLS 1.2 and 1.3")
}

/// Where a certificate and its key stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PairFiles {
    pub(crate) cert_file: PathBuf,
    pub(crate) key_file: PathBuf,
}

/// A certificate, its chain and the key that fits it. Debug tells what it is for and nothing of the key.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) certified: Arc<CertifiedKey>,
    pub(crate) facts: Facts,
}

/// Why a chain and a key are no pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unfit {
    Chain(&'static str),
    Key(&'static str),
    Mismatch,
}

/// Roots, and when the first of them ends.
#[derive(Clone, Debug)]
pub(crate) struct Roots {
    pub(crate) store: Arc<RootCertStore>,
    pub(crate) not_after: u64,
}

impl Pair {
    /// Reads the two files.
    ///
    /// # Errors
    /// Why they are no pair, in words for an operator; nothing of what stands in the key's file.
    pub(crate) fn read(files: &PairFiles) -> Result<Self, String> {
        let (chain, key) = (read(&files.cert_file)?, read(&files.key_file)?);
        Self::parse(&chain, &key).map_err(|unfit| match unfit {
            Unfit::Chain(why) => told(&files.cert_file, why),
            Unfit::Key(why) => told(&files.key_file, why),
            Unfit::Mismatch => told(&files.key_file, &format!("does not fit {}", files.cert_file.display())),
        })
    }

    /// Reads a chain and a key in PEM.
    ///
    /// # Errors
    /// Why they are no pair.
    pub(crate) fn parse(chain: &[u8], key: &[u8]) -> Result<Self, Unfit> {
        let chain = certificates(chain).map_err(Unfit::Chain)?;
        let leaf = chain.first().ok_or(Unfit::Chain("no certificate in it"))?;
        let facts = Facts::read(leaf).ok_or(Unfit::Chain("not a certificate"))?;
        if chain.len() > CHAIN_MAX {
            return Err(Unfit::Chain(TOO_LONG));
        }
        let key =
            PrivateKeyDer::from_pem_slice(key).map_err(|_| Unfit::Key("no private key in PEM in it"))?;
        let certified = CertifiedKey::from_der(chain, key, &PROVIDER).map_err(|error| match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => Unfit::Mismatch,
            Error::InvalidCertificate(_) => Unfit::Chain("not a certificate"),
            _ => Unfit::Key("not a key that can be used: RSA, ECDSA P-256 or P-384, Ed25519"),
        })?;
        Ok(Self { certified: Arc::new(certified), facts })
    }
}

impl Roots {
    /// Reads a file of roots. All must be sound: one that is left out would be missed when it is too late.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub(crate) fn read(file: &Path) -> Result<Self, String> {
        Self::parse(&read(file)?).map_err(|why| told(file, why))
    }

    /// Reads them from PEM.
    ///
    /// # Errors
    /// Why they are none.
    pub(crate) fn parse(pem: &[u8]) -> Result<Self, &'static str> {
        let mut store = RootCertStore::empty();
        let mut not_after = u64::MAX;
        for certificate in certificates(pem)? {
            let facts = Facts::read(&certificate);
            not_after = facts.map_or(not_after, |facts| facts.not_after.min(not_after));
            store
                .add(certificate)
                .map_err(|_| "one of its certificates cannot be a root; see `openssl x509 -text`")?;
        }
        if store.is_empty() {
            return Err("no certificate in it");
        }
        Ok(Self { store: Arc::new(store), not_after })
    }
}

impl Roots {
    /// Whether one of them is among others: those of one authority follow each other, those of a stranger have nothing in common.
    pub(crate) fn share_one_with(&self, others: &Self) -> bool {
        self.store.roots.iter().any(|root| others.store.roots.contains(root))
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    read.map_err(|_| "not certificates in PEM")
}

/// The content of a file; wiped when it is dropped.
pub(super) fn read(file: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let unread = |error: std::io::Error| told(file, &format!("cannot be read: {error}"));
    // Asked first: opening a pipe would wait for its other end.
    if !std::fs::metadata(file).map_err(unread)?.is_file() {
        return Err(told(file, "is no plain file"));
    }
    // Room is made once: a buffer that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(64 << 10));
    File::open(file).map_err(unread)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unread)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(told(file, &format!("is longer than {FILE_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

fn told(file: &Path, what: &str) -> String {
    format!("{}: {what}", file.display())
}

impl std::fmt::Display for Unfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Chain(why) => write!(f, "the certificate: {why}"),
            Self::Key(why) => write!(f, "the key: {why}"),
            Self::Mismatch => f.write_str("the key does not fit the certificate"),
        }
    }
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").field("facts", &self.facts).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Folder;
    use crate::testing::certificates::{Authority, write};

    #[test]
    fn a_pair_is_read_and_what_does_not_fit_is_refused_without_a_word_of_the_key() {
        let (dir, authority) = (Folder::new("pair"), Authority::new("mesh"));
        let (one, other) =
            (authority.leaf("spiffe://mesh/service/a"), authority.leaf("spiffe://mesh/service/b"));
        let files = write(&dir, "a", &one);
        let pair = Pair::read(&files).unwrap();
        assert_eq!(pair.facts.uris, ["spiffe://mesh/service/a"]);
        assert_eq!(pair.certified.cert.len(), 1);
        let key = other.key_pem();
        std::fs::write(&files.key_file, &key).unwrap();
        let fault = Pair::read(&files).unwrap_err();
        assert!(fault.contains("does not fit") && fault.contains("a.key"), "{fault}");
        for text in
            ["", "not PEM", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", &key[..80]]
        {
            std::fs::write(&files.key_file, text).unwrap();
            let fault = Pair::read(&files).unwrap_err();
            assert!(fault.contains("key") && !fault.contains("AAAA"), "{fault}");
        }
        std::fs::write(&files.key_file, one.key_pem()).unwrap();
        for text in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            std::fs::write(&files.cert_file, text).unwrap();
            assert!(Pair::read(&files).unwrap_err().contains("certificate"), "{text}");
        }
        std::fs::remove_file(&files.cert_file).unwrap();
        assert!(Pair::read(&files).unwrap_err().contains("cannot be read"));
        let debug = format!("{pair:?}");
        assert!(debug.contains("spiffe://mesh/service/a") && debug.len() < 300, "{debug}");
    }

    #[test]
    fn roots_are_all_or_none() {
        let dir = Folder::new("roots");
        let (old, new) = (Authority::new("old"), Authority::new("new"));
        let file = dir.join("ca.pem");
        std::fs::write(&file, old.pem() + &new.pem()).unwrap();
        let both = Roots::read(&file).unwrap();
        assert_eq!(both.store.len(), 2);
        let (only_old, only_new) =
            (Roots::parse(old.pem().as_bytes()).unwrap(), Roots::parse(new.pem().as_bytes()).unwrap());
        assert!(only_old.share_one_with(&both) && both.share_one_with(&only_new));
        assert!(!only_old.share_one_with(&only_new));
        std::fs::write(&file, old.pem() + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
            .unwrap();
        assert!(Roots::read(&file).is_err());
        std::fs::write(&file, "").unwrap();
        assert!(Roots::read(&file).is_err());
    }
}
