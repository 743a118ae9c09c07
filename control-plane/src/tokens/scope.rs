//! What a token is for: scopes, and which of them comes with which.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One thing that a token may be for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Everything: the mesh document, services' tables, backups, tokens.
    Admin,
    /// Changing flags.
    Flags,
    /// Asking for certificates of one service, and nothing else.
    Join,
    /// What a proxy does: following, acks, registering its apps.
    Proxy,
    /// Looking at everything that is no secret.
    Read,
    /// Moving users, keys and breakers of services that are there.
    Traffic,
}

/// What a token may be for, at least one thing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Scopes(BTreeSet<Scope>);

impl Scope {
    /// All of them, in the order in which they are told.
    pub const ALL: [Self; 6] = [Self::Read, Self::Flags, Self::Traffic, Self::Admin, Self::Proxy, Self::Join];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Flags => "flags",
            Self::Join => "join",
            Self::Proxy => "proxy",
            Self::Read => "read",
            Self::Traffic => "traffic",
        }
    }

    /// Whether whoever has this one has the other as well.
    #[must_use]
    pub const fn implies(self, other: Self) -> bool {
        match self {
            Self::Admin => true,
            Self::Flags => matches!(other, Self::Flags | Self::Read),
            Self::Join => matches!(other, Self::Join),
            Self::Proxy => matches!(other, Self::Proxy),
            Self::Read => matches!(other, Self::Read),
            Self::Traffic => matches!(other, Self::Read | Self::Traffic),
        }
    }
}

impl Scopes {
    /// Whether one of them comes with what is needed.
    #[must_use]
    pub fn imply(&self, needed: Scope) -> bool {
        self.0.iter().any(|scope| scope.implies(needed))
    }

    /// Whether exactly this one is named.
    #[must_use]
    pub fn name(&self, scope: Scope) -> bool {
        self.0.contains(&scope)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = Scope> {
        self.0.iter().copied()
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().collect())
    }
}

impl FromStr for Scope {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|scope| scope.as_str() == text);
        known.ok_or("read, flags, traffic, admin, proxy or join")
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_comes_with_what_the_table_says_and_nothing_else() {
        let implied = |scope: Scope| {
            let implied = Scope::ALL.into_iter().filter(|other| scope.implies(*other));
            implied.map(Scope::as_str).collect::<Vec<_>>().join(" ")
        };
        for (scope, expected) in [
            (Scope::Read, "read"),
            (Scope::Flags, "read flags"),
            (Scope::Traffic, "read traffic"),
            (Scope::Admin, "read flags traffic admin proxy join"),
            (Scope::Proxy, "proxy"),
            (Scope::Join, "join"),
        ] {
            assert_eq!(implied(scope), expected, "{scope}");
            assert_eq!(scope.as_str().parse(), Ok(scope));
        }
        assert!("Admin".parse::<Scope>().is_err() && "".parse::<Scope>().is_err());
        let scopes: Scopes = [Scope::Flags, Scope::Proxy].into_iter().collect();
        assert!(scopes.imply(Scope::Read) && scopes.imply(Scope::Proxy) && !scopes.imply(Scope::Traffic));
        assert!(!scopes.name(Scope::Read));
    }
}
