//! A certificate with its key and the roots of callers, read from PEM and refused where they are not sound.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use gilmok_config::certificate::Facts;
use gilmok_config::hash::content_hash;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, RootCertStore};
use zeroize::Zeroizing;

/// Longest file, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Passed wherever one is needed, never process-global: no other part of the process can change it.
static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::clone(&PROVIDER)
}

/// A certificate, its chain and the key that fits it.
pub(super) struct Pair {
    pub(super) certified: CertifiedKey,
    pub(super) facts: Facts,
}

impl Pair {
    /// # Errors
    /// Why the files are no pair, in words for an operator; nothing of what stands in the key's file.
    pub(super) fn read(cert_file: &Path, key_file: &Path) -> Result<Self, String> {
        let chain = certificates(&read(cert_file)?, cert_file)?;
        let facts = chain.first().and_then(|leaf| Facts::read(leaf));
        let facts = facts.ok_or_else(|| told(cert_file, "no certificate in it"))?;
        let pem = read(key_file)?;
        let key =
            PrivateKeyDer::from_pem_slice(&pem).map_err(|_| told(key_file, "no private key in PEM in it"))?;
        let certified = CertifiedKey::from_der(chain, key, &PROVIDER).map_err(|error| match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                told(key_file, &format!("does not fit {}", cert_file.display()))
            }
            Error::InvalidCertificate(_) => told(cert_file, "not a certificate"),
            _ => told(key_file, "not a key that can be used: RSA, ECDSA P-256 or P-384, Ed25519"),
        })?;
        Ok(Self { certified, facts })
    }
}

/// The roots in a file, when the first of them ends, and their content as one text to compare.
///
/// # Errors
/// Why it cannot be used. All must be sound: one that is left out would be missed when it is too late.
pub(super) fn roots(file: &Path) -> Result<(Arc<RootCertStore>, u64, String), String> {
    let pem = read(file)?;
    let (mut store, mut not_after) = (RootCertStore::empty(), u64::MAX);
    for certificate in certificates(&pem, file)? {
        let facts = Facts::read(&certificate);
        not_after = facts.map_or(not_after, |facts| facts.not_after.min(not_after));
        let added = store.add(certificate);
        added
            .map_err(|_| told(file, "one of its certificates cannot be a root; see `openssl x509 -text`"))?;
    }
    if store.is_empty() {
        return Err(told(file, "no certificate in it"));
    }
    Ok((Arc::new(store), not_after, content_hash(&pem)))
}

fn certificates(pem: &[u8], file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    read.map_err(|_| told(file, "not certificates in PEM"))
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
