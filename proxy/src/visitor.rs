//! Visitors of edge listeners: the signed cookie by which a browser is known again.
//!
//! `gilmok_uid=ID.SIGNATURE`: 16 random bytes and the first 16 of HMAC-SHA256 over them, both as unpadded base64url.
//! The signature keeps a visitor from choosing its id, and so its version. It lets nobody in.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gilmok_config::baggage::SubjectKey;
use gilmok_config::flag::OverrideKey;
use gilmok_config::subject::{UID_COOKIE, cookie};
use http::header::{CACHE_CONTROL, COOKIE, EXPIRES, HeaderMap, HeaderValue, SET_COOKIE};
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};

/// Bytes of an id and of its signature.
const BYTES: usize = 16;
/// Most keys at a time: the one that signs, and others that still are believed.
pub(crate) const KEYS_MAX: usize = 8;
/// Fewest characters of a key.
const KEY_BYTES_MIN: usize = 16;
/// A browser keeps the cookie for a year.
const MAX_AGE_SECONDS: u32 = 365 * 24 * 60 * 60;
/// What is signed begins with this, so that no other use of the key makes the same signature.
const CONTEXT: &[u8] = b"gilmok_uid\0";

/// The keys that sign visitors' cookies. The first one signs, all are believed.
#[derive(Clone)]
pub(crate) struct VisitorKeys {
    keys: Vec<hmac::Key>,
    /// Of the first key: by which subjects are hashed for later hops.
    subject_key: SubjectKey,
    /// Of all: who may say what testers see.
    override_keys: Vec<OverrideKey>,
    /// What they were made of.
    text: String,
}

impl std::fmt::Debug for VisitorKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VisitorKeys").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

impl PartialEq for VisitorKeys {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

/// A visitor who comes for the first time.
#[derive(Debug)]
pub(crate) struct NewVisitor {
    pub(crate) id: String,
    signature: String,
}

impl VisitorKeys {
    /// The keys of a text, one a line; empty lines and those that begin with `#` are left out.
    ///
    /// # Errors
    /// What would be right.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let lines: Vec<_> = lines.collect();
        let is_sound =
            (1..=KEYS_MAX).contains(&lines.len()) && lines.iter().all(|line| line.len() >= KEY_BYTES_MIN);
        if !is_sound {
            return Err("1 to 8 lines with a key each, of at least 16 characters");
        }
        let keys = lines.iter().map(|line| hmac::Key::new(hmac::HMAC_SHA256, line.as_bytes()));
        let subject_key = SubjectKey::new(lines[0].as_bytes());
        let override_keys = lines.iter().map(|line| OverrideKey::new(line.as_bytes())).collect();
        Ok(Self { keys: keys.collect(), subject_key, override_keys, text: lines.join("\n") })
    }

    /// By which subjects are hashed for later hops.
    pub(crate) fn subject_key(&self) -> &SubjectKey {
        &self.subject_key
    }

    /// By which it is known who may say what testers see.
    pub(crate) fn override_keys(&self) -> &[OverrideKey] {
        &self.override_keys
    }

    /// The visitor's id, if its cookie was signed by one of these keys.
    pub(crate) fn known<'r>(&self, headers: &'r HeaderMap) -> Option<&'r str> {
        let value = std::str::from_utf8(cookie(headers, UID_COOKIE)?).ok()?;
        let (id, signature) = value.rsplit_once('.')?;
        let told = URL_SAFE_NO_PAD.decode(signature).ok().filter(|told| told.len() == BYTES)?;
        let is_signed = self.keys.iter().any(|key| {
            let right = hmac::sign(key, &[CONTEXT, id.as_bytes()].concat());
            // Compared in the same time wherever they differ.
            let differing = right.as_ref()[..BYTES].iter().zip(&told).fold(0, |all, (a, b)| all | (a ^ b));
            differing == 0
        });
        is_signed.then_some(id)
    }

    /// An id for a visitor who has none; `None` where the machine has no random numbers.
    pub(crate) fn greet(&self) -> Option<NewVisitor> {
        let mut bytes = [0; BYTES];
        SystemRandom::new().fill(&mut bytes).ok()?;
        let id = URL_SAFE_NO_PAD.encode(bytes);
        let signed = hmac::sign(self.keys.first()?, &[CONTEXT, id.as_bytes()].concat());
        Some(NewVisitor { signature: URL_SAFE_NO_PAD.encode(&signed.as_ref()[..BYTES]), id })
    }
}

impl NewVisitor {
    /// Puts the cookie into the request in place of what it had under this name, so that later hops see who it is.
    pub(crate) fn tell_endpoint(&self, headers: &mut HeaderMap) {
        let mut line = format!("{UID_COOKIE}={}.{}", self.id, self.signature).into_bytes();
        for before in headers.get_all(COOKIE) {
            for pair in before.as_bytes().split(|byte| *byte == b';').map(<[u8]>::trim_ascii) {
                let name = pair.split(|byte| *byte == b'=').next().unwrap_or_default();
                if !pair.is_empty() && name != UID_COOKIE.as_bytes() {
                    line.extend_from_slice(b"; ");
                    line.extend_from_slice(pair);
                }
            }
        }
        if let Ok(line) = HeaderValue::from_bytes(&line) {
            headers.insert(COOKIE, line);
        }
    }

    /// Gives the visitor its cookie, unless a shared cache may keep the answer and give everybody the same.
    ///
    /// An answer that says nothing about caches is made one that only the browser keeps: a cache may guess otherwise
    /// (RFC 9111, 4.2.2).
    pub(crate) fn tell_caller(&self, headers: &mut HeaderMap, secure: bool) {
        let told = headers.get_all(CACHE_CONTROL);
        let mut directives =
            told.iter().filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(','));
        let is_silent = told.iter().next().is_none() && !headers.contains_key(EXPIRES);
        let is_private = directives.any(|directive| {
            let word = directive.trim();
            word.eq_ignore_ascii_case("private") || word.eq_ignore_ascii_case("no-store")
        });
        if !is_silent && !is_private {
            return;
        }
        if is_silent {
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("private"));
        }
        let Self { id, signature } = self;
        // What came encrypted is not sent in the clear later on.
        let secure = if secure { "; Secure" } else { "" };
        let line = format!(
            "{UID_COOKIE}={id}.{signature}; Path=/; Max-Age={MAX_AGE_SECONDS}; HttpOnly; SameSite=Lax{secure}"
        );
        if let Ok(line) = HeaderValue::try_from(line) {
            headers.append(SET_COOKIE, line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &str = "# the newest first\n0123456789abcdef\nan older key of the same kind\n";

    fn cookies(line: &str) -> HeaderMap {
        [(COOKIE, HeaderValue::from_str(line).unwrap())].into_iter().collect()
    }

    #[test]
    fn a_visitor_is_known_again_and_a_forger_is_not() {
        let keys = VisitorKeys::parse(KEYS).unwrap();
        let new = keys.greet().unwrap();
        let mut headers = cookies("theme=dark; gilmok_uid=forged.AAAAAAAAAAAAAAAAAAAAAA; a=b=c");
        assert_eq!(keys.known(&headers), None);
        new.tell_endpoint(&mut headers);
        assert_eq!(keys.known(&headers), Some(new.id.as_str()));
        assert!(headers[COOKIE].to_str().unwrap().ends_with("; theme=dark; a=b=c"), "{headers:?}");
        for broken in
            ["gilmok_uid=", "gilmok_uid=abc", "gilmok_uid=abc.", "gilmok_uid=.AAAA", "gilmok_uid=a.b.c"]
        {
            assert_eq!(keys.known(&cookies(broken)), None, "{broken}");
        }
        let older = VisitorKeys::parse("an older key of the same kind").unwrap();
        let mut from_before = HeaderMap::new();
        older.greet().unwrap().tell_endpoint(&mut from_before);
        assert!(keys.known(&from_before).is_some(), "keys are changed one after the other");
        assert_eq!(older.known(&headers), None);
    }

    #[test]
    fn the_signature_is_frozen() {
        let keys = VisitorKeys::parse("0123456789abcdef").unwrap();
        // printf 'gilmok_uid\0AAAAAAAAAAAAAAAAAAAAAA' | openssl dgst -sha256 -hmac 0123456789abcdef -binary | head -c 16 | base64
        let line = "gilmok_uid=AAAAAAAAAAAAAAAAAAAAAA.Hxam_WwG2F8K7zQp0pZMjw";
        assert_eq!(keys.known(&cookies(line)), Some("AAAAAAAAAAAAAAAAAAAAAA"));
    }

    #[test]
    fn no_shared_cache_may_keep_an_answer_that_brings_a_cookie() {
        let new = VisitorKeys::parse(KEYS).unwrap().greet().unwrap();
        for (cache_control, gets_cookie, after) in [
            (None, true, Some("private")),
            (Some("private, max-age=60"), true, Some("private, max-age=60")),
            (Some("No-Store"), true, Some("No-Store")),
            (Some("max-age=60"), false, Some("max-age=60")),
            (Some("public"), false, Some("public")),
            (Some("no-cache"), false, Some("no-cache")),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(text) = cache_control {
                headers.insert(CACHE_CONTROL, HeaderValue::from_static(text));
            }
            new.tell_caller(&mut headers, false);
            assert_eq!(headers.contains_key(SET_COOKIE), gets_cookie, "{cache_control:?}");
            assert_eq!(headers.get(CACHE_CONTROL).and_then(|value| value.to_str().ok()), after);
        }
        let mut expires: HeaderMap =
            [(EXPIRES, HeaderValue::from_static("Thu, 01 Dec 2033 16:00:00 GMT"))].into_iter().collect();
        new.tell_caller(&mut expires, true);
        assert!(!expires.contains_key(SET_COOKIE));
        for secure in [true, false] {
            let mut headers = HeaderMap::new();
            new.tell_caller(&mut headers, secure);
            assert_eq!(headers[SET_COOKIE].to_str().unwrap().ends_with("; Secure"), secure);
        }
    }

    #[test]
    fn a_key_that_is_none_is_refused() {
        for text in ["", "short", "# only a comment", &"0123456789abcdef\n".repeat(9)] {
            assert!(VisitorKeys::parse(text).is_err(), "{text}");
        }
    }
}
