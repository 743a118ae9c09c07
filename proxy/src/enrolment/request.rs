//! A key that never leaves this process but for its own disk, and the request for a certificate of it (PKCS#10, RFC 2986).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use zeroize::Zeroizing;

/// `CertificationRequestInfo` up to the point of the key: version 0, no name, a key on P-256. Who we are is not for us to say.
const BEFORE_KEY: [u8; 33] = [
    0x30, 98, 0x02, 1, 0, 0x30, 0, 0x30, 89, 0x30, 19, // id-ecPublicKey
    0x06, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, // prime256v1
    0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, // the key's bit string
    0x03, 66, 0, // begins
];
/// No attributes.
const BEHIND_KEY: [u8; 2] = [0xa0, 0];
/// ecdsa-with-SHA256, and the tag of the bit string of the signature.
const BEFORE_SIGNATURE: [u8; 13] = [0x30, 10, 0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02, 0x03];
/// Characters of a line of PEM.
const LINE: usize = 64;

/// A request with the key that it is for.
pub(super) struct Request {
    /// In PEM. Secret.
    pub(super) key: Zeroizing<String>,
    pub(super) pem: String,
}

impl Request {
    /// Makes a key and asks for a certificate of it.
    ///
    /// # Errors
    /// When this machine has no random numbers.
    pub(super) fn make() -> Result<Self, String> {
        let none = |_| "this machine has no random numbers to make a key of".to_owned();
        let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_ASN1_SIGNING);
        let made = EcdsaKeyPair::generate_pkcs8(algorithm, &random).map_err(none)?;
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, made.as_ref(), &random)
            .map_err(|why| format!("the new key: {why}"))?;
        let info = [&BEFORE_KEY[..], pair.public_key().as_ref(), &BEHIND_KEY].concat();
        let signature = pair.sign(&random, &info).map_err(none)?;
        let signature = signature.as_ref();
        // A signature on P-256 has at most 72 bytes, so that both lengths are short.
        let length = |length: usize| u8::try_from(length).map_err(|_| "the signature is too long".to_owned());
        let of_signature = [length(signature.len() + 1)?, 0];
        let content = [&info[..], &BEFORE_SIGNATURE, &of_signature[..], signature].concat();
        let head = [0x30, 0x81, length(content.len())?];
        let pem = pem("CERTIFICATE REQUEST", &[&head[..], &content].concat());
        Ok(Self { key: Zeroizing::new(self::pem("PRIVATE KEY", made.as_ref())), pem })
    }
}

/// PEM (RFC 7468).
fn pem(label: &str, der: &[u8]) -> String {
    let text = Zeroizing::new(BASE64.encode(der));
    let room = text.len() + text.len() / LINE + 2 * label.len() + 40;
    // Room is made once: a buffer that grows leaves copies of the key behind.
    let mut out = String::with_capacity(room);
    for part in ["-----BEGIN ", label, "-----\n"] {
        out.push_str(part);
    }
    let mut rest = text.as_str();
    while let Some((line, after)) =
        rest.split_at_checked(LINE.min(rest.len())).filter(|(line, _)| !line.is_empty())
    {
        out.push_str(line);
        out.push('\n');
        rest = after;
    }
    for part in ["-----END ", label, "-----\n"] {
        out.push_str(part);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_signed_by_the_key_that_it_tells() {
        let request = Request::make().unwrap();
        let text: String = request.pem.lines().filter(|line| !line.starts_with('-')).collect();
        let der = BASE64.decode(text).unwrap();
        // SEQUENCE with two bytes of length; what is signed, with its key; the algorithm, and the signature.
        assert_eq!((der[0], der[1], usize::from(der[2])), (0x30, 0x81, der.len() - 3));
        let (info, rest) = der[3..].split_at(BEFORE_KEY.len() + 65 + BEHIND_KEY.len());
        let key = &info[BEFORE_KEY.len()..info.len() - BEHIND_KEY.len()];
        let (head, signature) = rest.split_at(BEFORE_SIGNATURE.len() + 2);
        assert_eq!(usize::from(head[head.len() - 2]), signature.len() + 1);
        let algorithm = &ring::signature::ECDSA_P256_SHA256_ASN1;
        ring::signature::UnparsedPublicKey::new(algorithm, key).verify(info, signature).unwrap();
    }

    #[test]
    fn every_request_is_of_another_key_and_shows_nothing_of_it() {
        let (one, other) = (Request::make().unwrap(), Request::make().unwrap());
        assert_ne!(one.pem, other.pem);
        assert!(one.key.starts_with("-----BEGIN PRIVATE KEY-----\n") && one.key.ends_with("-----\n"));
        assert!(one.pem.lines().all(|line| line.len() <= LINE));
        let secret = one.key.lines().nth(1).unwrap();
        assert!(!one.pem.contains(&secret[40..]));
    }
}
