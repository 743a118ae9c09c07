//! PEM as certificates and keys are written in it (RFC 7468).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// Characters of a line.
const LINE: usize = 64;

/// What is between the lines that name it.
pub(super) fn write(label: &str, der: &[u8]) -> String {
    let mut text = BASE64.encode(der);
    let mut at = LINE;
    while at < text.len() {
        text.insert(at, '\n');
        at += LINE + 1;
    }
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

/// Certificates, one behind the other.
pub(super) fn certificates<'c>(all: impl IntoIterator<Item = &'c [u8]>) -> String {
    all.into_iter().map(|der| write("CERTIFICATE", der)).collect()
}

/// The first certificate of a text, in DER.
pub(super) fn first(text: &str) -> Option<Vec<u8>> {
    CertificateDer::from_pem_slice(text.as_bytes()).ok().map(|der| der.to_vec())
}
