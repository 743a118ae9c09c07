//! A key that certificates are signed with, and the certificates that it makes: roots of its own, leaves of services (RFC 5280).
//!
//! The key may be of any kind that TLS here knows. A root that is made here has an ECDSA key on P-256.

use std::sync::Arc;

use gilmok_config::identity::Identity;
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{
    AlgorithmIdentifier, CertificateDer, IpAddr, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime,
    alg_id,
};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::SigningKey;
use rustls::{RootCertStore, SignatureScheme};
use zeroize::Zeroizing;

use super::der::{self, bit_string, element, sequence};
use super::facts::{
    BASIC_CONSTRAINTS, COMMON_NAME, EXTENSIONS, Facts, KEY_USAGE, SUBJECT_KEY_ID, TRUE, VERSION_3, key_id,
};
use super::pem;

/// How long a root that is made here lasts, in seconds: ten years.
const ROOT_SECONDS: u64 = 10 * 365 * 86_400;
/// How long before it is made a certificate begins, in seconds: clocks of a mesh differ.
const EARLIER_SECONDS: u64 = 300;
/// Most certificates in the file of an authority.
const CHAIN_MAX: usize = 8;
/// Bytes of a serial number (RFC 5280, 4.1.2.2: at most 20).
const SERIAL_BYTES: usize = 16;

/// What keys may sign with, the best first, and how certificates name it.
const SCHEMES: [(SignatureScheme, AlgorithmIdentifier); 4] = [
    (SignatureScheme::ECDSA_NISTP256_SHA256, alg_id::ECDSA_SHA256),
    (SignatureScheme::ECDSA_NISTP384_SHA384, alg_id::ECDSA_SHA384),
    (SignatureScheme::ED25519, alg_id::ED25519),
    (SignatureScheme::RSA_PKCS1_SHA256, alg_id::RSA_PKCS1_SHA256),
];

// Object identifiers, as DER has them.
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
const AUTHORITY_KEY_ID: &[u8] = &[0x55, 0x1d, 0x23];
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const SERVER_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
const CLIENT_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02];

/// `digitalSignature`: all that TLS since its version 1.2 with fresh keys asks for.
const USAGE_OF_LEAF: [u8; 4] = [der::BIT_STRING, 2, 7, 0x80];
/// `keyCertSign` and `cRLSign`.
const USAGE_OF_ROOT: [u8; 4] = [der::BIT_STRING, 2, 1, 0x06];
/// Signs leaves and no further authorities.
const NO_PATH: [u8; 3] = [der::INTEGER, 1, 0];
/// Context tags: of a `GeneralName`, and the `keyIdentifier` of an `AuthorityKeyIdentifier`.
const DNS_NAME: u8 = 0x82;
const URI: u8 = 0x86;
const IP_ADDRESS: u8 = 0x87;
const KEY_IDENTIFIER: u8 = 0x80;

/// Passed wherever one is needed, never process-global.
pub(super) fn provider() -> CryptoProvider {
    rustls::crypto::ring::default_provider()
}

/// A key with its certificate and those above it.
#[derive(Clone)]
pub(super) struct Signer {
    key: Arc<dyn SigningKey>,
    scheme: SignatureScheme,
    algorithm: AlgorithmIdentifier,
    /// Its own first, what proxies trust last; often they are the same one.
    certificates: Vec<CertificateDer<'static>>,
    facts: Facts,
}

/// A leaf that was made.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// It, and the certificates between it and the root.
    pub chain: String,
    /// Its serial number, in hexadecimal digits.
    pub serial: String,
    /// Its last second, of Unix time.
    pub not_after: u64,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("scheme", &self.scheme).finish_non_exhaustive()
    }
}

/// A key on P-256 that was just made.
pub(super) struct MadeKey {
    key: PrivateKeyDer<'static>,
    /// In PEM. Secret.
    pub(super) text: Zeroizing<String>,
    signing: Arc<dyn SigningKey>,
    /// A `SubjectPublicKeyInfo` in DER.
    pub(super) public: Vec<u8>,
}

impl MadeKey {
    /// # Errors
    /// When the machine has no random numbers.
    pub(super) fn make() -> Result<Self, String> {
        let random = SystemRandom::new();
        let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random)
            .map_err(|_| "this machine has no random numbers")?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.as_ref())).clone_key();
        let text = Zeroizing::new(pem::write("PRIVATE KEY", made.as_ref()));
        let signing =
            rustls::crypto::ring::sign::any_supported_type(&key).map_err(|error| error.to_string())?;
        let public = signing.public_key().ok_or("no public key")?.to_vec();
        Ok(Self { key, text, signing, public })
    }
}

impl Signer {
    /// Reads the certificate of a trust domain's authority, those above it, and its key, all in PEM.
    ///
    /// # Errors
    /// Why they are no authority, in words for an operator; nothing of the key.
    pub(super) fn read(certificates: &[u8], key: &[u8], domain: &str) -> Result<Self, String> {
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificates).collect();
        let certificates = certificates.map_err(|_| "not certificates in PEM")?;
        if certificates.is_empty() || certificates.len() > CHAIN_MAX {
            return Err(format!("{} certificates; 1 to {CHAIN_MAX} are taken", certificates.len()));
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| "no private key in PEM")?;
        let signer = Self::of(certificates, &key)?;
        signer.prove(domain)?;
        Ok(signer)
    }

    /// Makes a root for a trust domain, and its key in PEM.
    ///
    /// # Errors
    /// When the machine has no random numbers.
    pub(super) fn make_root(domain: &str, now: u64) -> Result<(Self, Zeroizing<String>), String> {
        let MadeKey { key, text, signing, public } = MadeKey::make()?;
        let key_id = key_id(&public);
        // The name tells roots apart that follow each other.
        let name = format!("Gilmok root of {domain}, {}", hex(&key_id[..4]));
        let name =
            sequence(&[&element(der::OID, &[COMMON_NAME]), &element(der::UTF8_STRING, &[name.as_bytes()])]);
        let subject = sequence(&[&element(der::SET, &[&name])]);
        let extensions = [
            extension(BASIC_CONSTRAINTS, true, &sequence(&[&TRUE, &NO_PATH])),
            extension(KEY_USAGE, true, &USAGE_OF_ROOT),
            extension(SUBJECT_KEY_ID, false, &element(der::OCTET_STRING, &[&key_id])),
        ];
        let (scheme, algorithm) = scheme_of(&*signing)?;
        let to_sign = certificate(
            &serial()?,
            algorithm,
            (&subject, &subject),
            (now.saturating_sub(EARLIER_SECONDS), now + ROOT_SECONDS),
            &public,
            &extensions,
        );
        let signed = sign(&*signing, scheme, algorithm, &to_sign)?;
        Ok((Self::of(vec![signed.into()], &key)?, text))
    }

    fn of(certificates: Vec<CertificateDer<'static>>, key: &PrivateKeyDer<'_>) -> Result<Self, String> {
        let key = rustls::crypto::ring::sign::any_supported_type(key)
            .map_err(|_| "not a key that can be used: RSA, ECDSA P-256 or P-384, Ed25519")?;
        let facts = certificates.first().and_then(|own| Facts::read(own)).ok_or("not a certificate")?;
        if key.public_key().is_none_or(|public| public.as_ref() != facts.key) {
            return Err("the key is not that of the first certificate".to_owned());
        }
        if !facts.is_authority {
            return Err(
                "the first certificate is no authority's: its basic constraints do not say CA".to_owned()
            );
        }
        if !facts.may_sign {
            return Err(
                "the first certificate may not sign others: its key usage lacks keyCertSign".to_owned()
            );
        }
        let (scheme, algorithm) = scheme_of(&*key)?;
        Ok(Self { key, scheme, algorithm, certificates, facts })
    }

    /// Whether peers will believe what it signs.
    fn prove(&self, domain: &str) -> Result<(), String> {
        let now = UnixTime::now();
        let identity =
            format!("spiffe://{domain}/service/probe").parse::<Identity>().map_err(str::to_owned)?;
        let (leaf, _) = self.leaf(&identity, &[], &self.facts.key, now.as_secs(), EARLIER_SECONDS)?;
        let between = &self.certificates[..self.certificates.len() - 1];
        verify(self.root(), &leaf.into(), between, now)
            .map_err(|why| format!("peers would not believe what it signs: {why}"))
    }

    /// What proxies are to trust, in DER.
    pub(super) fn root(&self) -> &CertificateDer<'static> {
        self.certificates.last().expect("invariant: there is at least its own")
    }

    /// Its certificates in PEM, its own first.
    pub(super) fn pem(&self) -> String {
        pem::certificates(self.certificates.iter().map(|certificate| certificate.as_ref()))
    }

    /// Until when it can sign, in seconds of Unix time.
    pub(super) fn not_after(&self) -> u64 {
        self.facts.not_after
    }

    /// Makes a leaf for a key of an identity and of these names beside it: for both sides of TLS, from a little ago, for so
    /// many seconds from now and no longer than the authority.
    ///
    /// # Errors
    /// When the machine has no random numbers, or the authority has ended.
    pub(super) fn issue(
        &self,
        identity: &Identity,
        beside: &[ServerName<'_>],
        key: &[u8],
        now: u64,
        seconds: u64,
    ) -> Result<Leaf, String> {
        if self.facts.not_after <= now {
            return Err("the authority's certificate has ended".to_owned());
        }
        let (leaf, serial) = self.leaf(identity, beside, key, now, seconds)?;
        let between = self.certificates[..self.certificates.len() - 1].iter();
        let chain = pem::certificates([leaf.as_slice()].into_iter().chain(between.map(|der| der.as_ref())));
        Ok(Leaf { chain, serial: hex(&serial), not_after: self.end(now, seconds) })
    }

    fn end(&self, now: u64, seconds: u64) -> u64 {
        now.saturating_add(seconds).min(self.facts.not_after)
    }

    fn leaf(
        &self,
        identity: &Identity,
        beside: &[ServerName<'_>],
        key: &[u8],
        now: u64,
        seconds: u64,
    ) -> Result<(Vec<u8>, [u8; SERIAL_BYTES]), String> {
        let serial = serial()?;
        let purposes = [SERVER_AUTH, CLIENT_AUTH].map(|purpose| element(der::OID, &[purpose]));
        let mut names = vec![element(URI, &[identity.to_string().as_bytes()])];
        names.extend(beside.iter().filter_map(general_name));
        let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
        let mut extensions = vec![
            extension(BASIC_CONSTRAINTS, true, &sequence(&[])),
            extension(KEY_USAGE, true, &USAGE_OF_LEAF),
            extension(EXTENDED_KEY_USAGE, false, &sequence(&[&purposes[0], &purposes[1]])),
            extension(SUBJECT_KEY_ID, false, &element(der::OCTET_STRING, &[&key_id(key)])),
            // Critical, as there is no other name.
            extension(SUBJECT_ALT_NAME, true, &sequence(&names)),
        ];
        if let Some(key_id) = &self.facts.key_id {
            let issuer = sequence(&[&element(KEY_IDENTIFIER, &[key_id])]);
            extensions.push(extension(AUTHORITY_KEY_ID, false, &issuer));
        }
        let to_sign = certificate(
            &serial,
            self.algorithm,
            (&self.facts.subject, &sequence(&[])),
            (now.saturating_sub(EARLIER_SECONDS), self.end(now, seconds)),
            key,
            &extensions,
        );
        Ok((sign(&*self.key, self.scheme, self.algorithm, &to_sign)?, serial))
    }
}

/// Checks a leaf as a peer does.
///
/// # Errors
/// Why it is not believed.
pub(super) fn verify(
    root: &CertificateDer<'_>,
    leaf: &CertificateDer<'_>,
    between: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), String> {
    let told = |error: &dyn std::fmt::Display| error.to_string();
    let mut roots = RootCertStore::empty();
    roots.add(root.clone().into_owned()).map_err(|error| told(&error))?;
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(provider()));
    let verifier = builder.build().map_err(|error| told(&error))?;
    verifier.verify_client_cert(leaf, between, now).map(drop).map_err(|error| told(&error))
}

/// What is signed of a certificate: `TBSCertificate`.
fn certificate(
    serial: &[u8],
    algorithm: AlgorithmIdentifier,
    (issuer, subject): (&[u8], &[u8]),
    (not_before, not_after): (u64, u64),
    key: &[u8],
    extensions: &[Vec<u8>],
) -> Vec<u8> {
    let extensions: Vec<&[u8]> = extensions.iter().map(Vec::as_slice).collect();
    sequence(&[
        &VERSION_3,
        &element(der::INTEGER, &[serial]),
        &sequence(&[&algorithm]),
        issuer,
        &sequence(&[&der::time(not_before), &der::time(not_after)]),
        subject,
        key,
        &element(EXTENSIONS, &[&sequence(&extensions)]),
    ])
}

fn extension(oid: &[u8], is_critical: bool, value: &[u8]) -> Vec<u8> {
    let critical: &[u8] = if is_critical { &TRUE } else { &[] };
    sequence(&[&element(der::OID, &[oid]), critical, &element(der::OCTET_STRING, &[value])])
}

fn sign(
    key: &dyn SigningKey,
    scheme: SignatureScheme,
    algorithm: AlgorithmIdentifier,
    to_sign: &[u8],
) -> Result<Vec<u8>, String> {
    let signer = key.choose_scheme(&[scheme]).ok_or("the key cannot sign")?;
    let signature = signer.sign(to_sign).map_err(|error| error.to_string())?;
    Ok(sequence(&[to_sign, &sequence(&[&algorithm]), &bit_string(&signature)]))
}

fn scheme_of(key: &dyn SigningKey) -> Result<(SignatureScheme, AlgorithmIdentifier), String> {
    let known = SCHEMES.iter().find(|(scheme, _)| key.choose_scheme(&[*scheme]).is_some());
    known.copied().ok_or_else(|| "the key cannot sign certificates".to_owned())
}

/// A name of a server as a `GeneralName`; `None` where it is of a kind that there is no name of.
fn general_name(name: &ServerName<'_>) -> Option<Vec<u8>> {
    match name {
        ServerName::DnsName(name) => Some(element(DNS_NAME, &[name.as_ref().as_bytes()])),
        ServerName::IpAddress(IpAddr::V4(ip)) => Some(element(IP_ADDRESS, &[ip.as_ref()])),
        ServerName::IpAddress(IpAddr::V6(ip)) => Some(element(IP_ADDRESS, &[ip.as_ref()])),
        _ => None,
    }
}

/// Random, positive, of full length.
fn serial() -> Result<[u8; SERIAL_BYTES], String> {
    let mut serial = [0; SERIAL_BYTES];
    SystemRandom::new().fill(&mut serial).map_err(|_| "this machine has no random numbers")?;
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(serial)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}
