//! Authorities and certificates of tests.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};

use crate::tls::PairFiles;

/// An authority that signs with a key of its own.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
}

/// A certificate with its key.
pub(crate) struct Leaf {
    der: Vec<u8>,
    key: KeyPair,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().to_vec();
        Self { issuer: Issuer::new(params, key), der }
    }

    pub(crate) fn pem(&self) -> String {
        pem("CERTIFICATE", &self.der)
    }

    /// A certificate for this URI.
    pub(crate) fn leaf(&self, uri: &str) -> Leaf {
        self.leaf_for(&[uri], &[])
    }

    /// A certificate for these names. Valid for a day, since an hour ago.
    pub(crate) fn leaf_for(&self, uris: &[&str], dns_names: &[&str]) -> Leaf {
        let mut params = CertificateParams::default();
        let now = std::time::SystemTime::now();
        params.not_before = (now - std::time::Duration::from_hours(1)).into();
        params.not_after = (now + std::time::Duration::from_hours(24)).into();
        let uris = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap()));
        let dns_names = dns_names.iter().map(|name| SanType::DnsName((*name).try_into().unwrap()));
        params.subject_alt_names = uris.chain(dns_names).collect();
        let key = KeyPair::generate().unwrap();
        let der = params.signed_by(&key, &self.issuer).unwrap().der().to_vec();
        Leaf { der, key }
    }
}

impl Leaf {
    pub(crate) fn der(&self) -> Vec<u8> {
        self.der.clone()
    }

    pub(crate) fn pem(&self) -> String {
        pem("CERTIFICATE", &self.der)
    }

    pub(crate) fn key_pem(&self) -> String {
        pem("PRIVATE KEY", self.key.serialized_der())
    }
}

/// Writes a certificate and its key into a folder.
pub(crate) fn write(folder: &Path, name: &str, leaf: &Leaf) -> PairFiles {
    let path = |ending: &str| folder.join(format!("{name}.{ending}"));
    let files = PairFiles { cert_file: path("pem"), key_file: path("key") };
    std::fs::write(&files.cert_file, leaf.pem()).unwrap();
    std::fs::write(&files.key_file, leaf.key_pem()).unwrap();
    files
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
