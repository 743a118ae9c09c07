//! A certificate signing request (PKCS#10, RFC 2986): whose key it is. What else it says is not read.
//!
//! A name in it would be a wish of whoever asks; who they are is known by what they have shown.

use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject as _;

use super::der::{self, SEQUENCE};
use super::signer::provider;

/// Longest request, in bytes of PEM: one of an RSA key of 8192 bits has 4,000.
pub const REQUEST_BYTES_MAX: usize = 16 << 10;

/// Why no certificate is made of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("longer than {REQUEST_BYTES_MAX} bytes")]
    TooLong,
    #[error("no certificate signing request in PEM")]
    NotOne,
    #[error(
        "its key or its signature is of a kind that is not taken: ECDSA P-256 or P-384, Ed25519, RSA from 2048 bits, each with SHA-2"
    )]
    Algorithm,
    #[error("its signature is not that of its key")]
    Signature,
}

/// The key of a request whose owner has signed it, as a `SubjectPublicKeyInfo` in DER.
///
/// # Errors
/// Why it cannot be used.
pub(super) fn key_of(pem: &str) -> Result<Vec<u8>, RequestError> {
    if pem.len() > REQUEST_BYTES_MAX {
        return Err(RequestError::TooLong);
    }
    let request = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes());
    let request = request.map_err(|_| RequestError::NotOne)?;
    let parts = Parts::read(&request).ok_or(RequestError::NotOne)?;
    let provider = provider();
    let known = provider.signature_verification_algorithms.all.iter().filter(|known| {
        known.public_key_alg_id().as_ref() == parts.key_algorithm
            && known.signature_alg_id().as_ref() == parts.signature_algorithm
    });
    let mut known = known.peekable();
    if known.peek().is_none() {
        return Err(RequestError::Algorithm);
    }
    // RSA keys that are too short fail here.
    let is_sound =
        known.any(|known| known.verify_signature(parts.public_key, parts.signed, parts.signature).is_ok());
    if is_sound { Ok(parts.key.to_vec()) } else { Err(RequestError::Signature) }
}

struct Parts<'d> {
    /// `CertificationRequestInfo`.
    signed: &'d [u8],
    key: &'d [u8],
    key_algorithm: &'d [u8],
    public_key: &'d [u8],
    signature_algorithm: &'d [u8],
    signature: &'d [u8],
}

impl<'d> Parts<'d> {
    fn read(der: &'d [u8]) -> Option<Self> {
        let mut rest = der;
        let mut request = der::take(&mut rest, SEQUENCE)?.content;
        let info = der::take(&mut request, SEQUENCE)?;
        let signature_algorithm = der::take(&mut request, SEQUENCE)?.content;
        let signature = der::bits(der::next(&mut request)?)?;
        let mut fields = info.content;
        der::take(&mut fields, der::INTEGER)?;
        // The name that it wishes for.
        der::take(&mut fields, SEQUENCE)?;
        let key = der::take(&mut fields, SEQUENCE)?;
        let mut of_key = key.content;
        let key_algorithm = der::take(&mut of_key, SEQUENCE)?.content;
        let public_key = der::bits(der::next(&mut of_key)?)?;
        let is_whole = rest.is_empty() && request.is_empty() && of_key.is_empty();
        is_whole.then_some(Self {
            signed: info.whole,
            key: key.whole,
            key_algorithm,
            public_key,
            signature_algorithm,
            signature,
        })
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PublicKeyData as _};

    use super::*;

    fn request(algorithm: &'static rcgen::SignatureAlgorithm) -> (String, Vec<u8>) {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = CertificateParams::new(["admin.example".to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "admin");
        (pem_of(params.serialize_request(&key).unwrap().der()), key.subject_public_key_info())
    }

    #[test]
    fn the_key_of_a_request_is_read_whatever_else_it_wishes_for() {
        for algorithm in
            [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519]
        {
            let (pem, key) = request(algorithm);
            assert_eq!(key_of(&pem), Ok(key));
        }
    }

    #[test]
    fn openssl_s_requests_are_read_and_weak_keys_are_not() {
        // openssl req -new -newkey rsa:2048 -nodes -subj /CN=shop, and the same with rsa:1024 and ec secp256k1.
        assert!(key_of(include_str!("fixtures/rsa-2048.csr")).is_ok());
        assert_eq!(key_of(include_str!("fixtures/rsa-1024.csr")), Err(RequestError::Signature));
        assert_eq!(key_of(include_str!("fixtures/secp256k1.csr")), Err(RequestError::Algorithm));
    }

    #[test]
    fn what_is_cut_or_changed_is_refused() {
        let (pem, _) = request(&rcgen::PKCS_ECDSA_P256_SHA256);
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
        assert!(Parts::read(&der).is_some());
        for length in 0..der.len() {
            assert!(Parts::read(&der[..length]).is_none(), "{length} bytes");
        }
        for at in 0..der.len() {
            let mut changed = der.clone();
            changed[at] ^= 0x01;
            let pem = pem_of(&changed);
            assert!(key_of(&pem).is_err(), "byte {at}");
        }
        for text in
            ["", "garbage", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"]
        {
            assert_eq!(key_of(text), Err(RequestError::NotOne));
        }
        assert_eq!(key_of(&"x".repeat(REQUEST_BYTES_MAX + 1)), Err(RequestError::TooLong));
    }

    fn pem_of(der: &[u8]) -> String {
        super::super::pem::write("CERTIFICATE REQUEST", der)
    }
}
