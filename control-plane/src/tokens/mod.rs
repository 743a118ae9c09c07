//! Tokens: what callers show who are not on this machine, what each is for, and until when. Pure: time and dice are arguments.
//!
//! A token's text is `gilmok_ID_SECRET`. Only the SHA-256 of the whole text is kept. The secret has 256 bits that nobody
//! chose, so nothing is gained by a hash that is slow: there is no list of likely ones to try.

mod caller;

mod scope;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use gilmok_config::name::ServiceName;
use gilmok_config::problem::{Problem, Problems};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

pub use caller::{Caller, Lacking, OnLoopback, Reach};
pub use scope::{Scope, Scopes};

/// Most tokens that are kept, those that have ended included until they are revoked.
pub const TOKENS_MAX: usize = 10_000;
/// Longest name of a token, in characters.
pub const NAME_CHARS_MAX: usize = 100;
/// Most services that a token is limited to.
pub const SERVICES_MAX: usize = 100;
/// Shortest and longest life of a token that ends.
pub const TTL_MIN: Duration = Duration::from_secs(1);
pub const TTL_MAX: Duration = Duration::from_hours(24 * 3_650);
/// Bytes of dice in a token: first those of its id, which is no secret, then those of its secret.
pub const RANDOM_BYTES: usize = ID_BYTES + 32;
const ID_BYTES: usize = 8;
/// What every text of a token begins with, so that it is recognised where it was left lying.
const PREFIX: &str = "gilmok_";

/// Which token it is: 16 hexadecimal digits. No secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenId(Arc<str>);

/// A token, as it is kept. Its text cannot be had from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    pub id: TokenId,
    /// What it is for, in people's words.
    pub name: String,
    pub scopes: Scopes,
    /// The only services for which it is; `None` is all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<BTreeSet<ServiceName>>,
    /// In milliseconds since 1970.
    pub created_ms: u64,
    pub created_by: String,
    /// From when on it is nobody's, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    hash: Hash,
}

/// SHA-256 of a text, in hexadecimal digits. Not shown: it is nobody's business.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Hash(String);

/// What somebody wants a token for.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub name: String,
    pub scopes: Scopes,
    pub services: Option<BTreeSet<ServiceName>>,
    /// `None`: it does not end by itself.
    pub ttl: Option<Duration>,
}

/// A token that was just made, with the text that is shown once.
pub struct Made {
    pub token: Token,
    /// Wiped when it is dropped.
    pub text: Zeroizing<String>,
}

/// Every token that is kept.
#[derive(Clone, Debug, Default)]
pub struct Tokens(BTreeMap<TokenId, Arc<Token>>);

/// Why a text is no token that is worth anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Worthless {
    /// It was one.
    Expired(TokenId),
    Unknown,
}

impl TokenId {
    /// Reads an id; `None` where it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_id = text.len() == ID_BYTES * 2
            && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        is_id.then(|| Self(text.into()))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Hash {
    fn of(text: &[u8]) -> Self {
        Self(hexadecimal(digest(&SHA256, text).as_ref()))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl fmt::Debug for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Made").field("token", &self.token).finish_non_exhaustive()
    }
}

impl Token {
    /// Makes a token of dice that nobody else has seen.
    ///
    /// # Errors
    /// Everything that is wrong with what is wanted.
    pub fn make(
        wanted: Wanted,
        now_ms: u64,
        by: &str,
        random: &[u8; RANDOM_BYTES],
    ) -> Result<Made, Problems> {
        let faults = wanted.faults();
        if !faults.is_empty() {
            return Err(faults);
        }
        let (id, secret) = random.split_at(ID_BYTES);
        let id = TokenId(hexadecimal(id).into());
        let text = Zeroizing::new(format!("{PREFIX}{id}_{}", hexadecimal(secret)));
        let lasts_ms = |ttl: Duration| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let Wanted { name, scopes, services, ttl } = wanted;
        let token = Self {
            id,
            name,
            scopes,
            services,
            created_ms: now_ms,
            created_by: by.to_owned(),
            expires_ms: ttl.map(|ttl| now_ms.saturating_add(lasts_ms(ttl))),
            hash: Hash::of(text.as_bytes()),
        };
        Ok(Made { token, text })
    }

    /// Whether it has not ended.
    #[must_use]
    pub fn is_valid_at(&self, now_ms: u64) -> bool {
        self.expires_ms.is_none_or(|end| now_ms < end)
    }
}

impl Wanted {
    fn faults(&self) -> Problems {
        let mut faults = Vec::new();
        let mut fault = |path, what: &str, hint: String| faults.push(Problem::at(path, what, hint));
        let length = self.name.chars().count();
        if length == 0 || length > NAME_CHARS_MAX || self.name.chars().any(char::is_control) {
            fault("name", "no name", format!("1 to {NAME_CHARS_MAX} characters that say what it is for"));
        }
        if self.scopes.is_empty() {
            fault("scopes", "a token is for something", "read, flags, traffic, admin, proxy or join".into());
        }
        if let Some(services) = &self.services {
            if services.is_empty() || services.len() > SERVICES_MAX {
                fault("services", "no list of services", format!("1 to {SERVICES_MAX} of them, or none"));
            }
            if self.scopes.name(Scope::Flags) {
                fault(
                    "services",
                    "flags belong to no service",
                    "make a token of its own for flags, without `services`".into(),
                );
            }
            if self.scopes.iter().all(|scope| scope == Scope::Read) && !self.scopes.is_empty() {
                let hint = "`services` limits admin, traffic, proxy and join";
                fault("services", "whoever may read, may read all", hint.into());
            }
        }
        if self.scopes.name(Scope::Join) {
            if self.scopes.len() > 1 {
                fault("scopes", "`join` stands alone", "make another token for the rest".into());
            }
            if self.services.as_ref().is_none_or(|services| services.len() != 1) {
                fault("services", "`join` is for exactly one service", String::new());
            }
        }
        if self.ttl.is_some_and(|ttl| !(TTL_MIN..=TTL_MAX).contains(&ttl)) {
            fault("ttl", "out of range", "1s to 3650d, or none".into());
        }
        Problems(faults)
    }
}

impl Tokens {
    /// Whose text this is.
    ///
    /// # Errors
    /// When it is nobody's, or not any more.
    pub fn find(&self, text: &str, now_ms: u64) -> Result<&Arc<Token>, Worthless> {
        let id = text.strip_prefix(PREFIX).and_then(|rest| rest.split_once('_')).map(|(id, _)| id);
        let token = id.and_then(TokenId::parse).and_then(|id| self.0.get(&id));
        let Some(token) = token.filter(|token| same(&token.hash, &Hash::of(text.as_bytes()))) else {
            return Err(Worthless::Unknown);
        };
        if token.is_valid_at(now_ms) { Ok(token) } else { Err(Worthless::Expired(token.id.clone())) }
    }

    #[must_use]
    pub fn get(&self, id: &TokenId) -> Option<&Arc<Token>> {
        self.0.get(id)
    }

    /// Whether there is room for another one.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.0.len() < TOKENS_MAX
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn insert(&mut self, token: Token) {
        self.0.insert(token.id.clone(), Arc::new(token));
    }

    pub(crate) fn remove(&mut self, id: &TokenId) {
        self.0.remove(id);
    }

    /// All of them, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Token>> {
        self.0.values()
    }
}

impl FromIterator<Token> for Tokens {
    fn from_iter<I: IntoIterator<Item = Token>>(tokens: I) -> Self {
        Self(tokens.into_iter().map(|token| (token.id.clone(), Arc::new(token))).collect())
    }
}

/// Whether two texts are the same, in a time that tells nothing of either, their lengths included.
#[must_use]
pub fn same_text(a: &[u8], b: &[u8]) -> bool {
    same(&Hash::of(a), &Hash::of(b))
}

/// Compares in a time that does not tell where the first difference is.
fn same(a: &Hash, b: &Hash) -> bool {
    let (a, b) = (a.0.as_bytes(), b.0.as_bytes());
    a.len() == b.len() && a.iter().zip(b).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const RANDOM: [u8; RANDOM_BYTES] = [0xab; RANDOM_BYTES];

    pub(super) fn wanted(scopes: &[Scope], services: &[&str]) -> Wanted {
        let services: BTreeSet<ServiceName> =
            services.iter().map(|name| ServiceName::parse(name).unwrap()).collect();
        Wanted {
            name: "deploys".to_owned(),
            scopes: scopes.iter().copied().collect(),
            services: Some(services).filter(|services| !services.is_empty()),
            ttl: None,
        }
    }

    #[test]
    fn only_the_whole_text_of_a_token_will_do_and_only_until_it_ends() {
        let wanted = Wanted { ttl: Some(Duration::from_secs(1)), ..wanted(&[Scope::Read], &[]) };
        let Made { token, text } = Token::make(wanted, 1_000, "ann", &RANDOM).unwrap();
        assert_eq!(*text, format!("gilmok_{}_{}", "ab".repeat(8), "ab".repeat(32)));
        let (id, tokens) = (token.id.clone(), Tokens::from_iter([token]));
        assert_eq!(tokens.find(&text, 1_999).unwrap().id, id);
        assert_eq!(tokens.find(&text, 2_000), Err(Worthless::Expired(id)));
        for other in [
            &text[..text.len() - 1],
            &format!("{}0", *text),
            &text.to_uppercase(),
            &text.replace("gilmok_", ""),
            &text.replace("_ab", "_ac"),
            "gilmok_abababababababab_",
            "gilmok__",
            "",
        ] {
            assert_eq!(tokens.find(other, 1_999), Err(Worthless::Unknown), "{other}");
        }
    }

    #[test]
    fn what_is_kept_is_read_back_and_neither_it_nor_its_debug_text_tells_the_secret() {
        let made = Token::make(wanted(&[Scope::Traffic], &["shop"]), 1_000, "ann", &RANDOM).unwrap();
        let kept = serde_json::to_string(&made.token).unwrap();
        let secret = "ab".repeat(32);
        assert!(made.text.contains(&secret) && !kept.contains(&secret), "{kept}");
        // The hash of the whole text, as `printf gilmok_… | sha256sum` has it.
        assert!(kept.contains("ea9f37fdeba31e8b7d8f01079f2a3e6f895fb397d6a428afafc308082e7fef5e"), "{kept}");
        let read: Token = serde_json::from_str(&kept).unwrap();
        assert_eq!(read, made.token);
        for told in [format!("{made:?}"), format!("{read:?}")] {
            assert!(!told.contains(&secret) && !told.contains(&read.hash.0), "{told}");
        }
    }

    #[test]
    fn everything_that_is_wrong_with_a_wish_is_told_at_once() {
        let faults = |wanted: Wanted| {
            let made = Token::make(wanted, 0, "ann", &RANDOM);
            made.map_or_else(|faults| faults.0.into_iter().map(|fault| fault.path).collect(), |_| Vec::new())
        };
        let none: [String; 0] = [];
        for scopes in [&[Scope::Admin][..], &[Scope::Traffic, Scope::Proxy], &[Scope::Proxy, Scope::Read]] {
            assert_eq!(faults(wanted(scopes, &["shop", "ads"])), none);
            assert_eq!(faults(wanted(scopes, &[])), none);
        }
        assert_eq!(faults(wanted(&[Scope::Join], &["shop"])), none);
        assert_eq!(faults(wanted(&[Scope::Join], &[])), ["services"]);
        assert_eq!(faults(wanted(&[Scope::Join], &["shop", "ads"])), ["services"]);
        assert_eq!(faults(wanted(&[Scope::Join, Scope::Read], &["shop"])), ["scopes"]);
        assert_eq!(faults(wanted(&[Scope::Flags], &["shop"])), ["services"]);
        assert_eq!(faults(wanted(&[Scope::Read], &["shop"])), ["services"]);
        assert_eq!(faults(Wanted::default()), ["name", "scopes"]);
        let long = Wanted {
            name: "x".repeat(NAME_CHARS_MAX + 1),
            ttl: Some(TTL_MAX * 2),
            services: Some(BTreeSet::new()),
            scopes: [Scope::Admin].into_iter().collect(),
        };
        assert_eq!(faults(long), ["name", "services", "ttl"]);
    }

    #[test]
    fn texts_are_compared_as_a_whole() {
        for (a, b, expected) in
            [("abc", "abc", true), ("abc", "ab", false), ("abc", "abd", false), ("", "", true)]
        {
            assert_eq!(same_text(a.as_bytes(), b.as_bytes()), expected);
        }
    }
}
