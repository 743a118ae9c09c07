//! What of an authority's certificate matters here, read from its DER.
//!
//! Nothing is believed for being read: peers check what was signed.

use ring::digest::{SHA256, digest};

use super::der::{self, SEQUENCE};

// Object identifiers, as DER has them.
pub(super) const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
pub(super) const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
pub(super) const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
pub(super) const SUBJECT_KEY_ID: &[u8] = &[0x55, 0x1d, 0x0e];

pub(super) const TRUE: [u8; 3] = [der::BOOLEAN, 1, 0xff];
/// `[0] EXPLICIT INTEGER 2`: version 3.
pub(super) const VERSION_3: [u8; 5] = [0xa0, 3, der::INTEGER, 1, 2];
/// `[3] EXPLICIT`, the extensions of a certificate.
pub(super) const EXTENSIONS: u8 = 0xa3;
/// `keyCertSign`, in the first byte of a key's usage.
const KEY_CERT_SIGN: u8 = 0x04;
/// Bytes of the name of a key: SHA-256, cut (RFC 7093, section 2, method 1).
const KEY_ID_BYTES: usize = 20;

/// What of a certificate matters here.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// Its name, in DER.
    pub(super) subject: Vec<u8>,
    /// Its key, a `SubjectPublicKeyInfo` in DER.
    pub(super) key: Vec<u8>,
    pub(super) key_id: Option<Vec<u8>>,
    pub(super) is_authority: bool,
    /// Whether its key may sign certificates, as far as it says for what it may be used.
    pub(super) may_sign: bool,
    /// In seconds of Unix time.
    pub(super) not_after: u64,
}

impl Facts {
    /// Reads a certificate; `None` where it is none.
    pub(super) fn read(certificate: &[u8]) -> Option<Self> {
        let mut rest = certificate;
        let mut signed = der::take(&mut rest, SEQUENCE)?.content;
        let mut fields = der::take(&mut signed, SEQUENCE)?.content;
        // Version 3: there are extensions.
        der::take(&mut fields, VERSION_3[0])?;
        // Serial number, signature algorithm, issuer.
        for _ in 0..3 {
            der::next(&mut fields)?;
        }
        let mut validity = der::take(&mut fields, SEQUENCE)?.content;
        der::next(&mut validity)?;
        let not_after = der::moment(der::next(&mut validity)?)?;
        let subject = der::take(&mut fields, SEQUENCE)?.whole.to_vec();
        let key = der::take(&mut fields, SEQUENCE)?.whole.to_vec();
        let mut facts = Self { subject, key, key_id: None, is_authority: false, may_sign: true, not_after };
        while !fields.is_empty() {
            let field = der::next(&mut fields)?;
            if field.tag == EXTENSIONS {
                let mut wrapped = field.content;
                facts.read_extensions(der::take(&mut wrapped, SEQUENCE)?.content)?;
            }
        }
        Some(facts)
    }

    fn read_extensions(&mut self, mut extensions: &[u8]) -> Option<()> {
        while !extensions.is_empty() {
            let mut extension = der::take(&mut extensions, SEQUENCE)?.content;
            let oid = der::take(&mut extension, der::OID)?.content;
            // Whether it is critical may stand between.
            let mut value = der::next(&mut extension)?;
            if value.tag == der::BOOLEAN {
                value = der::next(&mut extension)?;
            }
            let mut value = value.content;
            if oid == BASIC_CONSTRAINTS {
                self.is_authority = der::take(&mut value, SEQUENCE)?.content.starts_with(&TRUE);
            } else if oid == KEY_USAGE {
                // Behind the number of bits that do not count.
                let bits = der::take(&mut value, der::BIT_STRING)?.content;
                self.may_sign = bits.get(1).is_some_and(|first| first & KEY_CERT_SIGN != 0);
            } else if oid == SUBJECT_KEY_ID {
                self.key_id = Some(der::take(&mut value, der::OCTET_STRING)?.content.to_vec());
            }
        }
        Some(())
    }

    /// The common name in its subject, for people; empty where there is none.
    pub(super) fn name(&self) -> String {
        let common = |set: &[u8]| {
            let mut set = set;
            let mut pair = der::take(&mut set, SEQUENCE)?.content;
            let oid = der::take(&mut pair, der::OID)?.content;
            let value = der::next(&mut pair)?.content;
            (oid == COMMON_NAME).then(|| String::from_utf8_lossy(value).into_owned())
        };
        let mut subject = self.subject.as_slice();
        let mut names = der::take(&mut subject, SEQUENCE).map(|names| names.content).unwrap_or_default();
        while let Some(set) = der::take(&mut names, der::SET) {
            if let Some(name) = common(set.content) {
                return name;
            }
        }
        String::new()
    }
}

/// The name by which certificates refer to a key.
pub(super) fn key_id(key: &[u8]) -> Vec<u8> {
    let mut rest = key;
    let bits = der::take(&mut rest, SEQUENCE).and_then(|key| {
        let mut fields = key.content;
        der::take(&mut fields, SEQUENCE)?;
        der::bits(der::next(&mut fields)?)
    });
    digest(&SHA256, bits.unwrap_or(key)).as_ref()[..KEY_ID_BYTES].to_vec()
}
