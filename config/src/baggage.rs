//! A subject's keyed hash in W3C baggage, by which later hops agree on a version although only the first one knows the user.
//!
//! `baggage: gilmok.k=9f2c4e01a7d85b36`: 64 bits of HMAC-SHA256, so that nobody without the key learns who it is.
//! Applications that pass on a trace's context pass it on as well. <https://www.w3.org/TR/baggage/>

use http::header::{HeaderMap, HeaderName, HeaderValue};
use ring::hmac;

pub const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
/// Our member.
const MEMBER: &[u8] = b"gilmok.k";
/// Members that begin with this are the mesh's.
const OURS: &[u8] = b"gilmok.";
/// Most members and bytes that everybody passes on; what would be more is left as it is.
const MEMBERS_MAX: usize = 64;
const BYTES_MAX: usize = 8_192;
/// What is hashed begins with this, so that no other use of the key makes the same hash.
const CONTEXT: &[u8] = b"gilmok.k\0";

/// A subject's keyed hash: 16 hexadecimal digits.
pub type KeyedSubject = [u8; 16];

/// The key of the mesh's subjects.
#[derive(Clone, Debug)]
pub struct SubjectKey(hmac::Key);

impl SubjectKey {
    #[must_use]
    pub fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// The keyed hash of a subject; the same wherever the key is.
    #[must_use]
    pub fn hash(&self, subject: &[u8]) -> KeyedSubject {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut context = hmac::Context::with_key(&self.0);
        context.update(CONTEXT);
        context.update(subject);
        let tag = context.sign();
        let mut digits = [0; 16];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(tag.as_ref()) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        digits
    }
}

/// The keyed subject that an earlier hop has put on. Only trusted callers may be asked.
#[must_use]
pub fn keyed_subject(headers: &HeaderMap) -> Option<KeyedSubject> {
    members(headers).find_map(|member| {
        let value = value_of(member.strip_prefix(MEMBER)?.trim_ascii_start())?;
        let is_hash = value.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        value.try_into().ok().filter(|_| is_hash)
    })
}

/// Takes the mesh's members off.
pub fn strip(headers: &mut HeaderMap) {
    if members(headers).any(|member| member.starts_with(OURS)) {
        put(headers, None);
    }
}

/// Tells later hops whose request it is, in place of what was told before.
/// Baggage that is as long as everybody passes on already stays as it is.
pub fn tell(headers: &mut HeaderMap, subject: &KeyedSubject) {
    if keyed_subject(headers).as_ref() != Some(subject) {
        put(headers, Some(subject));
    }
}

fn put(headers: &mut HeaderMap, subject: Option<&KeyedSubject>) {
    let mut kept: Vec<&[u8]> = members(headers).filter(|member| !member.starts_with(OURS)).collect();
    let ours = subject.map(|subject| [MEMBER, b"=", subject].concat());
    let bytes: usize = kept.iter().map(|member| member.len() + 1).sum();
    if let Some(ours) = &ours
        && kept.len() < MEMBERS_MAX
        && bytes + ours.len() <= BYTES_MAX
    {
        kept.push(ours);
    }
    let line = kept.join(&b","[..]);
    match HeaderValue::from_bytes(&line) {
        Ok(line) if !line.is_empty() => drop(headers.insert(BAGGAGE, line)),
        _ => drop(headers.remove(BAGGAGE)),
    }
}

fn members(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let lines = headers.get_all(BAGGAGE).iter();
    let members = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    members.map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}

/// What stands behind the `=`, without properties.
fn value_of(rest: &[u8]) -> Option<&[u8]> {
    let value = rest.strip_prefix(b"=")?;
    value.split(|byte| *byte == b';').next().map(<[u8]>::trim_ascii)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (BAGGAGE, HeaderValue::from_str(line).unwrap())).collect()
    }

    fn text(headers: &HeaderMap) -> Vec<&str> {
        headers.get_all(BAGGAGE).iter().map(|line| line.to_str().unwrap()).collect()
    }

    #[test]
    fn the_hash_is_frozen() {
        // printf 'gilmok.k\0user-42' | openssl dgst -sha256 -hmac 0123456789abcdef | head -c 16 of the digits
        let hash = SubjectKey::new(b"0123456789abcdef").hash(b"user-42");
        assert_eq!(std::str::from_utf8(&hash).unwrap(), "0c5ba969db392bbb");
        assert_ne!(hash, SubjectKey::new(b"0123456789abcdeg").hash(b"user-42"));
    }

    #[test]
    fn what_was_told_is_found_and_garbage_is_not() {
        for (lines, expected) in [
            (&["gilmok.k=0123456789abcdef"][..], true),
            (&["a=b;p=1 , gilmok.k = 0123456789abcdef;x=y"], true),
            (&["a=b", "gilmok.k=0123456789abcdef,c=d"], true),
            (&["gilmok.k=0123456789ABCDEF"], false),
            (&["gilmok.k=0123456789abcde"], false),
            (&["gilmok.kk=0123456789abcdef"], false),
            (&["gilmok.k", "gilmok.k=", ",,,", ""], false),
        ] {
            assert_eq!(keyed_subject(&headers(lines)).is_some(), expected, "{lines:?}");
        }
    }

    #[test]
    fn others_members_stay() {
        let mut map = headers(&["a=b;p=1, gilmok.k=0000000000000000", "gilmok.x=1,c=d"]);
        tell(&mut map, b"0123456789abcdef");
        assert_eq!(text(&map), ["a=b;p=1,c=d,gilmok.k=0123456789abcdef"]);
        strip(&mut map);
        assert_eq!(text(&map), ["a=b;p=1,c=d"]);
        let mut only = headers(&["gilmok.k=0123456789abcdef"]);
        strip(&mut only);
        assert!(only.is_empty());
    }

    #[test]
    fn full_baggage_is_left_as_it_is() {
        let full = vec!["a=b"; MEMBERS_MAX].join(",");
        let mut map = headers(&[&full]);
        tell(&mut map, b"0123456789abcdef");
        assert_eq!(text(&map), [full]);
        let mut map = headers(&[&format!("a={}", "b".repeat(BYTES_MAX))]);
        tell(&mut map, b"0123456789abcdef");
        assert_eq!(keyed_subject(&map), None);
    }
}
