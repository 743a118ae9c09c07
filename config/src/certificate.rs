//! What we want to know of a certificate, read from its DER: how long it is valid, and the names it is for.
//!
//! Nothing is trusted for being read here: rustls checks the whole certificate, and this reads a few fields of it.

use crate::identity::Identity;

/// What a certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Unix time in seconds; the certificate is valid from this one
    pub not_before: u64,
    /// to this one.
    pub not_after: u64,
    /// The URIs and DNS names among its alternative names, in its order. Its common name is no name.
    pub uris: Vec<String>,
    /// See `uris`.
    pub dns_names: Vec<String>,
}

const SEQUENCE: u8 = 0x30;
const OID: u8 = 0x06;
const OCTET_STRING: u8 = 0x04;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[3] EXPLICIT`, the extensions of a certificate.
const EXTENSIONS: u8 = 0xa3;
/// `[0] EXPLICIT`, its version.
const VERSION: u8 = 0xa0;
/// id-ce-subjectAltName, 2.5.29.17.
const SUBJECT_ALT_NAME: [u8; 3] = [0x55, 0x1d, 0x11];
/// Context tags of a `GeneralName` (RFC 5280, 4.2.1.6).
const DNS_NAME: u8 = 0x82;
const URI: u8 = 0x86;

impl Facts {
    /// The identity in it: its only URI. Whether it may be believed is for whoever has verified it.
    #[must_use]
    pub fn identity(&self) -> Option<Identity> {
        let [uri] = self.uris.as_slice() else { return None };
        uri.parse().ok()
    }

    /// Reads a certificate; `None` where it is none.
    #[must_use]
    pub fn read(der: &[u8]) -> Option<Self> {
        let mut rest = der;
        let mut certificate = take(&mut rest, SEQUENCE)?;
        let mut fields = take(&mut certificate, SEQUENCE)?;
        if fields.first() == Some(&VERSION) {
            element(&mut fields)?;
        }
        // Serial number, signature algorithm, issuer.
        for _ in 0..3 {
            element(&mut fields)?;
        }
        let mut validity = take(&mut fields, SEQUENCE)?;
        let not_before = time(element(&mut validity)?)?;
        let not_after = time(element(&mut validity)?)?;
        let mut facts = Self { not_before, not_after, uris: Vec::new(), dns_names: Vec::new() };
        while !fields.is_empty() {
            if let (EXTENSIONS, mut wrapped) = element(&mut fields)? {
                facts.read_extensions(take(&mut wrapped, SEQUENCE)?)?;
            }
        }
        Some(facts)
    }

    fn read_extensions(&mut self, mut extensions: &[u8]) -> Option<()> {
        while !extensions.is_empty() {
            let mut extension = take(&mut extensions, SEQUENCE)?;
            let oid = take(&mut extension, OID)?;
            // Whether it is critical may stand between.
            let mut value = element(&mut extension)?;
            if value.0 != OCTET_STRING {
                value = element(&mut extension)?;
            }
            if oid == SUBJECT_ALT_NAME && value.0 == OCTET_STRING {
                let mut wrapped = value.1;
                let mut names = take(&mut wrapped, SEQUENCE)?;
                while !names.is_empty() {
                    let (tag, name) = element(&mut names)?;
                    let list = match tag {
                        URI => &mut self.uris,
                        DNS_NAME => &mut self.dns_names,
                        _ => continue,
                    };
                    // What is no text is no name that we could know, but it counts as one.
                    list.push(String::from_utf8_lossy(name).into_owned());
                }
            }
        }
        Some(())
    }

    /// Whether it is valid at this moment, in seconds of Unix time.
    #[must_use]
    pub fn is_valid_at(&self, now: u64) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }
}

/// The next element: its tag and its content.
fn element<'d>(input: &mut &'d [u8]) -> Option<(u8, &'d [u8])> {
    let (&[tag, first], mut rest) = input.split_first_chunk::<2>()?;
    let length = match first {
        0..=0x7f => usize::from(first),
        // As many bytes of length follow. Nothing that rustls reads is longer than four of them say.
        0x81..=0x84 => {
            let (bytes, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
            rest = after;
            bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte))
        }
        _ => return None,
    };
    let (content, after) = rest.split_at_checked(length)?;
    *input = after;
    Some((tag, content))
}

fn take<'d>(input: &mut &'d [u8], tag: u8) -> Option<&'d [u8]> {
    element(input).filter(|(found, _)| *found == tag).map(|(_, content)| content)
}

/// Seconds of Unix time that an element with this tag tells: `YYMMDDhhmmssZ` or `YYYYMMDDhhmmssZ` (RFC 5280, 4.1.2.5). What
/// lies before 1970 is 0; `None` where it is no time.
#[must_use]
pub fn time((tag, text): (u8, &[u8])) -> Option<u64> {
    let digits = text.strip_suffix(b"Z")?;
    let number = |from: usize, to: usize| -> Option<i64> {
        let part = digits.get(from..to)?;
        part.iter().all(u8::is_ascii_digit).then(|| std::str::from_utf8(part).ok()?.parse().ok())?
    };
    let (year, rest) = match tag {
        UTC_TIME if digits.len() == 12 => {
            let year = number(0, 2)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, 2)
        }
        GENERALIZED_TIME if digits.len() == 14 => (number(0, 4)?, 4),
        _ => return None,
    };
    let part = |at: usize| number(rest + 2 * at, rest + 2 * at + 2);
    let (month, day) = (part(0)?, part(1)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let seconds = days(year, month, day) * 86_400 + part(2)? * 3_600 + part(3)? * 60 + part(4)?;
    Some(u64::try_from(seconds).unwrap_or(0))
}

/// Days since 1970-01-01 in the Gregorian calendar: years begin in March, so that leap days come last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        for (tag, text, expected) in [
            (UTC_TIME, "700101000000Z", Some(0)),
            (UTC_TIME, "261128143201Z", Some(1_795_876_321)),
            (UTC_TIME, "491231235959Z", Some(2_524_607_999)),
            (UTC_TIME, "500101000000Z", Some(0)),
            (GENERALIZED_TIME, "20500101000000Z", Some(2_524_608_000)),
            (GENERALIZED_TIME, "20240229120000Z", Some(1_709_208_000)),
            (GENERALIZED_TIME, "99991231235959Z", Some(253_402_300_799)),
            (UTC_TIME, "261328143201Z", None),
            (UTC_TIME, "2611281432Z", None),
            (UTC_TIME, "26112814320+Z", None),
            (GENERALIZED_TIME, "20500101000000", None),
            (OID, "500101000000Z", None),
        ] {
            assert_eq!(time((tag, text.as_bytes())), expected, "{text}");
        }
    }
}
