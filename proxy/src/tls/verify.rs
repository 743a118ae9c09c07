//! Who a peer is: its certificate is checked against the mesh's roots, and its name is the SPIFFE URI in it and nothing else.
//!
//! A certificate of the mesh has exactly one URI, and that is an identity of our trust domain. What the address or a
//! common name says does not count. Constraints of an authority on URIs are refused as a whole: rustls does not know how
//! to check them.

use std::sync::Arc;
use std::{fmt, io};

use gilmok_config::identity::Identity;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};

use super::der::Facts;
use super::pair::provider;

/// A certificate that is sound, and not of whom it should be.
#[derive(Debug)]
enum WrongIdentity {
    /// Another service, or another trust domain.
    Another {
        presented: Identity,
        wanted: String,
    },
    Nobody,
}

/// The identity in a certificate. Whether it may be believed is for the verifiers below.
pub(super) fn identity_of(certificate: &CertificateDer<'_>) -> Option<(Identity, Facts)> {
    let facts = Facts::read(certificate)?;
    Some((facts.identity()?, facts))
}

/// Checks that a callee is the service that was meant.
#[derive(Debug)]
pub(super) struct CalleeVerifier {
    roots: Arc<RootCertStore>,
    meant: Identity,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Checks that a caller is somebody of our trust domain.
#[derive(Debug)]
pub(super) struct CallerVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    domain: Arc<str>,
}

/// Believes every server, where an operator wants it so. What is sent is encrypted, for whom is not known.
#[derive(Debug)]
pub(super) struct Unverified {
    algorithms: WebPkiSupportedAlgorithms,
}

impl CalleeVerifier {
    pub(super) fn new(roots: &Arc<RootCertStore>, meant: Identity) -> Self {
        let algorithms = provider().signature_verification_algorithms;
        Self { roots: Arc::clone(roots), meant, algorithms }
    }
}

impl CallerVerifier {
    /// With `required`, nobody comes in without a certificate.
    ///
    /// # Errors
    /// When there is no root.
    pub(super) fn new(roots: &Arc<RootCertStore>, domain: &Arc<str>, required: bool) -> Result<Self, String> {
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider());
        let builder = if required { builder } else { builder.allow_unauthenticated() };
        let chain = builder.build().map_err(|error| error.to_string())?;
        Ok(Self { chain, domain: Arc::clone(domain) })
    }
}

impl Unverified {
    pub(super) fn new() -> Self {
        Self { algorithms: provider().signature_verification_algorithms }
    }
}

impl ServerCertVerifier for CalleeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        match identity_of(end_entity) {
            Some((identity, _)) if identity == self.meant => Ok(ServerCertVerified::assertion()),
            Some((presented, _)) => {
                Err(WrongIdentity::Another { presented, wanted: self.meant.to_string() }.into())
            }
            None => Err(WrongIdentity::Nobody.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for CallerVerifier {
    fn offer_client_auth(&self) -> bool {
        self.chain.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.chain.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.chain.verify_client_cert(end_entity, intermediates, now)?;
        match identity_of(end_entity) {
            Some((identity, _)) if identity.domain == self.domain => Ok(ClientCertVerified::assertion()),
            Some((presented, _)) => {
                let wanted = format!("spiffe://{}/service/…", self.domain);
                Err(WrongIdentity::Another { presented, wanted }.into())
            }
            None => Err(WrongIdentity::Nobody.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// What went wrong in a handshake, in words. rustls shows what is not its own the way programs do.
pub(super) fn told(error: &io::Error) -> String {
    let source = error.get_ref().and_then(|source| source.downcast_ref::<Error>());
    match source {
        Some(Error::InvalidCertificate(CertificateError::Other(OtherError(wrong)))) => wrong.to_string(),
        Some(_) | None => error.to_string(),
    }
}

impl fmt::Display for WrongIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Another { presented, wanted } => write!(f, "it is {presented}, not {wanted}"),
            Self::Nobody => f.write_str("its certificate does not have exactly one URI that is an identity"),
        }
    }
}

impl std::error::Error for WrongIdentity {}

impl From<WrongIdentity> for Error {
    fn from(wrong: WrongIdentity) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(wrong))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::certificates::Authority;

    #[test]
    fn what_is_cut_or_changed_is_read_or_refused_and_nothing_else() {
        let der = Authority::new("mesh").leaf("spiffe://mesh/service/shop").der();
        let facts = Facts::read(&der).unwrap();
        assert_eq!(facts.uris, ["spiffe://mesh/service/shop"]);
        assert!(facts.dns_names.is_empty() && facts.is_valid_at(facts.not_after) && !facts.is_valid_at(0));
        assert!(!facts.is_valid_at(facts.not_after + 1));
        for length in 0..der.len() {
            assert_eq!(Facts::read(&der[..length]), None, "{length} bytes");
        }
        for at in 0..der.len() {
            for value in [0, 0x7f, 0x80, 0x84, 0xff] {
                let mut changed = der.clone();
                changed[at] = value;
                // Whatever it says: no panic.
                drop(Facts::read(&changed));
            }
        }
    }
}
