//! `Feature-Flags-Override`: variants that a tester sees whatever the rules say, signed by the mesh until some time.
//!
//! `("new-ui=on" "theme=dark");expires=1767225600;sig=:BASE64:`, a list of RFC 9651. The signature is HMAC-SHA256 over what
//! stands before `;sig`. Whoever has the header has what it says, like a key to a door: it names nobody, and it ends by
//! itself. A kill switch and a disabled flag are stronger. Nothing is allocated for reading it.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{HeaderMap, HeaderName};
use ring::hmac;

use super::Flag;

pub const FEATURE_FLAGS_OVERRIDE: HeaderName = HeaderName::from_static("feature-flags-override");
/// Most flags that one header says something of.
pub const OVERRIDES_MAX: usize = 32;
/// Longest header, in bytes.
const OVERRIDE_BYTES_MAX: usize = 2_048;
/// Longest time that one holds.
pub const OVERRIDE_TTL_MAX: Duration = Duration::from_hours(30 * 24);
/// What is signed begins with this, so that no other use of the key makes the same signature.
const CONTEXT: &[u8] = b"feature-flags-override\0";
const EXPIRES: &str = ");expires=";
const SIGNATURE: &str = ";sig=:";

/// What signs, and what is believed.
#[derive(Clone, Debug)]
pub struct OverrideKey(hmac::Key);

/// What a header says whose signature is right. The default says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overrides<'r>(&'r str);

/// Why a header says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverrideFault {
    /// Or it would hold longer than any may.
    Expired,
    Malformed,
    Unsigned,
}

impl OverrideFault {
    /// In words for whoever asks why.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "it has expired, or would hold for more than 30 days",
            Self::Malformed => {
                "not (\"FLAG=VARIANT\" …);expires=SECONDS;sig=:BASE64: in one line of at most 2048 bytes"
            }
            Self::Unsigned => "not signed by a key of this mesh",
        }
    }
}

impl OverrideKey {
    #[must_use]
    pub fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// The header for these variants of these flags, until a second of Unix time.
    ///
    /// # Errors
    /// What cannot be said in it: too many, too long, or a name with a quote, a backslash, or what is not printable ASCII.
    pub fn sign<'c>(
        &self,
        choices: impl IntoIterator<Item = (&'c str, &'c str)>,
        expires: u64,
    ) -> Result<String, &'static str> {
        let mut items = Vec::new();
        for (flag, variant) in choices {
            if flag.contains('=') || !can_be_quoted(flag) || !can_be_quoted(variant) {
                return Err(
                    "a name with a quote, a backslash or what is not printable ASCII, or a flag with `=` in its name",
                );
            }
            items.push(format!("\"{flag}={variant}\""));
        }
        if items.is_empty() || items.len() > OVERRIDES_MAX {
            return Err("1 to 32 flags can be overridden at a time");
        }
        let told = format!("({}{EXPIRES}{expires}", items.join(" "));
        let signature = STANDARD.encode(hmac::sign(&self.0, &[CONTEXT, told.as_bytes()].concat()));
        let header = format!("{told}{SIGNATURE}{signature}:");
        if header.len() > OVERRIDE_BYTES_MAX { Err("longer than 2048 bytes") } else { Ok(header) }
    }

    fn has_signed(&self, told: &str, signature: &[u8]) -> bool {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(CONTEXT);
        context.update(told.as_bytes());
        // Compared in the same time wherever they differ.
        let right = context.sign();
        let right = right.as_ref();
        right.len() == signature.len()
            && right.iter().zip(signature).fold(0, |all, (a, b)| all | (a ^ b)) == 0
    }
}

/// Whether it may stand in a string of RFC 9651 as it is.
fn can_be_quoted(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\'))
}

impl<'r> Overrides<'r> {
    /// What the request's header says, if one of the keys has signed it; nothing without a header. `now` in seconds of Unix time
    /// is asked for only if there is one.
    ///
    /// # Errors
    /// Why it says nothing.
    pub fn read(
        headers: &'r HeaderMap,
        keys: &[OverrideKey],
        now: impl FnOnce() -> u64,
    ) -> Result<Self, OverrideFault> {
        let mut lines = headers.get_all(FEATURE_FLAGS_OVERRIDE).iter();
        let Some(line) = lines.next() else { return Ok(Self::default()) };
        if lines.next().is_some() || line.len() > OVERRIDE_BYTES_MAX {
            return Err(OverrideFault::Malformed);
        }
        let (told, signature, expires, items) =
            line.to_str().ok().and_then(parts).ok_or(OverrideFault::Malformed)?;
        let mut bytes = [0; 48];
        let length = STANDARD.decode_slice(signature, &mut bytes).map_err(|_| OverrideFault::Malformed)?;
        if !keys.iter().any(|key| key.has_signed(told, &bytes[..length])) {
            return Err(OverrideFault::Unsigned);
        }
        let now = now();
        // Also those that somebody has signed by hand end some day.
        if expires <= now || expires - now > OVERRIDE_TTL_MAX.as_secs() {
            return Err(OverrideFault::Expired);
        }
        Ok(Self(items))
    }

    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// The place of the variant that is chosen of a flag.
    pub(super) fn of(self, flag: &Flag) -> Option<usize> {
        if self.is_empty() {
            return None;
        }
        // Names have no quotes: those that are there begin and end items.
        let mut items = self.0.split('"').skip(1).step_by(2).take(OVERRIDES_MAX);
        let variant = items.find_map(|item| item.strip_prefix(&*flag.key)?.strip_prefix('='))?;
        flag.place_of(variant)
    }
}

/// What is signed, the signature, the end, and the items of a header.
fn parts(line: &str) -> Option<(&str, &str, u64, &str)> {
    let (told, signature) = line.rsplit_once(SIGNATURE)?;
    let (items, expires) = told.rsplit_once(EXPIRES)?;
    Some((told, signature.strip_suffix(':')?, expires.parse().ok()?, items.strip_prefix('(')?))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;
    use serde_json::json;
    use sfv::{FieldType as _, List, Parser};

    use super::*;
    use crate::flag::FlagSet;
    use crate::flag::{Asked, Context};

    const NOW: u64 = 1_700_000_000;
    const SOON: u64 = NOW + 3_600;

    fn key() -> OverrideKey {
        OverrideKey::new(b"the key of the mesh")
    }

    fn headers(line: &str) -> HeaderMap {
        HeaderMap::from_iter([(FEATURE_FLAGS_OVERRIDE, HeaderValue::from_str(line).unwrap())])
    }

    fn fault(line: &str) -> Option<OverrideFault> {
        Overrides::read(&headers(line), &[key()], || NOW).err()
    }

    fn set() -> FlagSet {
        let flag = |more: serde_json::Value| {
            let mut flag = json!({ "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": "off" });
            for (key, value) in more.as_object().unwrap() {
                flag[key] = value.clone();
            }
            flag
        };
        let flags = json!({ "flags": {
            "a": flag(json!({})),
            "b": flag(json!({ "targeting": { "if": [true, "off"] } })),
            "broken": flag(json!({ "targeting": { "x": 1 } })),
            "killed": flag(json!({ "x-gilmok": { "kill": { "active": true, "variant": "off" } } })),
            "disabled": flag(json!({ "state": "DISABLED" })),
            "needs": flag(json!({ "x-gilmok": { "prerequisites": [{ "flag": "a", "variant": "on" }] },
                "targeting": { "if": [true, "on"] } })),
        } });
        FlagSet::parse(flags.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_header_is_signed_as_it_always_was() {
        let header = key().sign([("new-ui", "on"), ("theme", "dark")], NOW).unwrap();
        // printf 'feature-flags-override\0("new-ui=on" "theme=dark");expires=1700000000' |
        //     openssl dgst -sha256 -hmac 'the key of the mesh' -binary | base64
        let expected = "(\"new-ui=on\" \"theme=dark\");expires=1700000000;sig=:ojjBmnvxZIBBTET4nli4A4FF4OM0zcgwz85h8+ylQN0=:";
        assert_eq!(header, expected);
        let list: List = Parser::new(header.as_bytes()).parse().unwrap();
        assert_eq!(list.serialize().as_deref(), Some(expected), "it is a list of RFC 9651");
    }

    #[test]
    fn a_tester_sees_what_is_signed_unless_the_flag_is_off_for_all() {
        let set = set();
        let all = ["a", "b", "broken", "killed", "disabled"].map(|flag| (flag, "on"));
        let header = headers(&key().sign(all, SOON).unwrap());
        let context = Context::default();
        let seen = |overrides: Overrides<'_>, flag: &str| {
            let found = set.evaluate(flag, &Asked { overrides, ..Asked::of(&context, NOW) });
            found.ok().map(|found| {
                let variant = found.variant().map(|variant| variant.name().to_owned());
                (
                    variant.unwrap_or_default(),
                    found.detail.map(|detail| detail.to_string()).unwrap_or_default(),
                )
            })
        };
        let told = Overrides::read(&header, &[OverrideKey::new(b"another"), key()], || NOW).unwrap();
        for (flag, with, without) in [
            ("a", Some(("on", "override")), Some(("off", ""))),
            ("b", Some(("on", "override")), Some(("off", ""))),
            ("broken", Some(("on", "override")), None),
            ("killed", Some(("off", "kill-switch")), Some(("off", "kill-switch"))),
            ("disabled", Some(("", "")), Some(("", ""))),
            // What it needs is overridden.
            ("needs", Some(("on", "")), Some(("off", "prerequisite:a"))),
        ] {
            let expected = |pair: Option<(&str, &str)>| pair.map(|(a, b)| (a.to_owned(), b.to_owned()));
            assert_eq!(seen(told, flag), expected(with), "{flag}");
            if flag == "needs" {
                continue;
            }
            assert_eq!(seen(Overrides::default(), flag), expected(without), "{flag}");
        }
        let strange = headers(&key().sign([("a", "none"), ("b=", "on")].into_iter().take(1), SOON).unwrap());
        let strange = Overrides::read(&strange, &[key()], || NOW).unwrap();
        assert_eq!(
            seen(strange, "a"),
            Some(("off".to_owned(), String::new())),
            "a variant that is not there"
        );
    }

    #[test]
    fn what_is_not_signed_or_over_says_nothing() {
        let header = key().sign([("a", "on")], SOON).unwrap();
        assert_eq!(fault(&header), None);
        assert_eq!(fault(&key().sign([("a", "on")], NOW).unwrap()), Some(OverrideFault::Expired));
        let forever = key().sign([("a", "on")], u64::MAX).unwrap();
        assert_eq!(fault(&forever), Some(OverrideFault::Expired));
        assert_eq!(fault(&header.replace("a=on", "b=on")), Some(OverrideFault::Unsigned));
        assert_eq!(fault(&header.replace("=17", "=18")), Some(OverrideFault::Unsigned));
        let other = OverrideKey::new(b"another").sign([("a", "on")], SOON).unwrap();
        assert_eq!(fault(&other), Some(OverrideFault::Unsigned));
        let without = header.split(";sig").next().unwrap();
        let long =
            key().sign([("a", "x".repeat(100).as_str())], SOON).unwrap() + &" ".repeat(OVERRIDE_BYTES_MAX);
        for line in ["", "a=on", without, &format!("{without};sig=:AAAA"), &long] {
            assert_eq!(fault(line), Some(OverrideFault::Malformed), "{line}");
        }
        assert_eq!(fault(&format!("{without};sig=:AAAA:")), Some(OverrideFault::Unsigned));
        let mut twice = headers(&header);
        twice.append(FEATURE_FLAGS_OVERRIDE, HeaderValue::from_str(&header).unwrap());
        assert_eq!(Overrides::read(&twice, &[key()], || NOW), Err(OverrideFault::Malformed));
        assert_eq!(Overrides::read(&HeaderMap::new(), &[], || 0), Ok(Overrides::default()));
    }

    #[test]
    fn what_cannot_be_said_is_refused_when_it_is_signed() {
        let many: Vec<String> = (0..=OVERRIDES_MAX).map(|at| format!("flag-{at}")).collect();
        assert!(key().sign(many.iter().map(|flag| (flag.as_str(), "on")), SOON).is_err());
        let long = "x".repeat(300);
        assert!(key().sign(many[..8].iter().map(|flag| (flag.as_str(), long.as_str())), SOON).is_err());
        for (flag, variant) in [("a\"", "on"), ("a", "o\\n"), ("a", "ö"), ("a=b", "on")] {
            assert!(key().sign([(flag, variant)], SOON).is_err(), "{flag}={variant}");
        }
        assert!(key().sign([], SOON).is_err());
    }

    proptest! {
        #[test]
        fn no_header_makes_trouble_and_none_is_believed_by_chance(line in "[ -~]{0,200}") {
            prop_assert!(fault(&line).is_some());
        }

        #[test]
        fn one_changed_byte_is_one_too_many(at in 0_usize..200, to in b' '..=b'~') {
            let header = key().sign([("new-ui", "on"), ("theme", "dark")], SOON).unwrap();
            let mut changed = header.clone().into_bytes();
            let at = at % changed.len();
            prop_assume!(changed[at] != to);
            changed[at] = to;
            prop_assert!(fault(std::str::from_utf8(&changed).unwrap()).is_some());
        }
    }
}
