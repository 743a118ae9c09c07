//! DER as certificates are written in it: elements in, elements out (X.690). What is read here is checked by who reads it.

pub(super) const BOOLEAN: u8 = 0x01;
pub(super) const INTEGER: u8 = 0x02;
pub(super) const BIT_STRING: u8 = 0x03;
pub(super) const OCTET_STRING: u8 = 0x04;
pub(super) const OID: u8 = 0x06;
pub(super) const UTF8_STRING: u8 = 0x0c;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;

/// The years that a `UTCTime` can tell (RFC 5280, 4.1.2.5).
const UTC_TIME_YEARS: std::ops::Range<&str> = "1950".."2050";

/// An element that was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Element<'d> {
    pub(super) tag: u8,
    pub(super) content: &'d [u8],
    /// With its tag and length, as it is signed or copied.
    pub(super) whole: &'d [u8],
}

/// Takes the next element from the front; `None` where there is none whole.
pub(super) fn next<'d>(input: &mut &'d [u8]) -> Option<Element<'d>> {
    let before = *input;
    let (&[tag, first], mut rest) = before.split_first_chunk::<2>()?;
    let length = match first {
        0..=0x7f => usize::from(first),
        // As many bytes of length follow.
        0x81..=0x84 => {
            let (bytes, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
            rest = after;
            bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte))
        }
        _ => return None,
    };
    let (content, after) = rest.split_at_checked(length)?;
    *input = after;
    Some(Element { tag, content, whole: before.get(..before.len() - after.len())? })
}

/// Takes the next element if it has this tag.
pub(super) fn take<'d>(input: &mut &'d [u8], tag: u8) -> Option<Element<'d>> {
    next(input).filter(|element| element.tag == tag)
}

/// What a bit string holds that has whole bytes only, as keys and signatures do.
pub(super) fn bits<'d>(element: Element<'d>) -> Option<&'d [u8]> {
    match element.content.split_first() {
        Some((0, bits)) if element.tag == BIT_STRING => Some(bits),
        _ => None,
    }
}

/// An element of these parts.
pub(super) fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = Vec::with_capacity(length + 6);
    out.push(tag);
    let bytes = length.to_be_bytes();
    let significant = &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..];
    match u8::try_from(significant.len()) {
        Ok(count) if length > 0x7f => {
            out.push(0x80 | count);
            out.extend_from_slice(significant);
        }
        _ => out.extend(significant.last().or(Some(&0))),
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}

pub(super) fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    element(SEQUENCE, parts)
}

/// A bit string of whole bytes.
pub(super) fn bit_string(bits: &[u8]) -> Vec<u8> {
    element(BIT_STRING, &[&[0], bits])
}

/// A moment, in seconds of Unix time, in the type that its year asks for.
pub(super) fn time(seconds: u64) -> Vec<u8> {
    let text = gilmok_config::moment::format_moment(seconds).replace(['-', ':', 'T'], "");
    match text.split_at_checked(2) {
        Some((_, short)) if UTC_TIME_YEARS.contains(&text.get(..4).unwrap_or_default()) => {
            element(UTC_TIME, &[short.as_bytes()])
        }
        _ => element(GENERALIZED_TIME, &[text.as_bytes()]),
    }
}

/// Seconds of Unix time of what [`time`] writes.
pub(super) fn moment(element: Element<'_>) -> Option<u64> {
    gilmok_config::certificate::time((element.tag, element.content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_written_as_short_as_they_go_and_read_back() {
        for (length, head) in [
            (0, &[4, 0][..]),
            (1, &[4, 1]),
            (0x7f, &[4, 0x7f]),
            (0x80, &[4, 0x81, 0x80]),
            (0xff, &[4, 0x81, 0xff]),
            (0x100, &[4, 0x82, 1, 0]),
            (0x1_0000, &[4, 0x83, 1, 0, 0]),
        ] {
            let content = vec![7; length];
            let written = element(OCTET_STRING, &[&content]);
            assert_eq!(&written[..head.len()], head);
            let mut rest = written.as_slice();
            let read = next(&mut rest).unwrap();
            assert!(rest.is_empty() && read.content == content && read.whole == written);
            assert!(next(&mut &written[..written.len() - 1]).is_none(), "cut off");
        }
    }

    #[test]
    fn times_change_their_type_with_the_year_2050() {
        for (seconds, expected) in [
            (0, b"\x17\x0d700101000000Z".as_slice()),
            (1_795_876_321, b"\x17\x0d261128143201Z"),
            (2_524_607_999, b"\x17\x0d491231235959Z"),
            (2_524_608_000, b"\x18\x0f20500101000000Z"),
        ] {
            assert_eq!(time(seconds), expected);
            assert_eq!(moment(next(&mut &expected[..]).unwrap()), Some(seconds));
        }
    }
}
