//! Who asks, as it was found out, and whether that is enough for what is asked.

use std::sync::Arc;

use gilmok_config::identity::Identity;
use gilmok_config::name::ServiceName;

use super::{Scope, Token};

/// Who asks. Each request carries it from the moment it was checked.
#[derive(Clone, Debug)]
pub enum Caller {
    /// A sidecar that has shown the mesh's certificate of this service.
    Identity(Identity),
    /// Somebody on this machine who has shown nothing, where that is enough.
    Loopback,
    /// Whoever knows what stands in `token_file`: an administrator.
    Operator,
    /// Whoever knows the text of this token.
    Token(Arc<Token>),
}

/// What callers on this machine show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnLoopback {
    /// Nothing: whoever is here may do everything.
    #[default]
    Open,
    /// A token, as others do.
    Token,
}

/// What a request touches, as far as that decides who may send it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach<'r> {
    /// Nothing of any one service, or nothing at all: what is limited to services may do it.
    Any,
    /// More than single services.
    Mesh,
    Service(&'r ServiceName),
}

/// Why a caller may not do what is asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lacking {
    #[error("this needs a token with the scope `{0}`")]
    Scope(Scope),
    #[error("this needs a token for the service `{0}`")]
    Service(ServiceName),
    #[error("this needs a token with the scope `{0}` that is not limited to services")]
    Whole(Scope),
}

impl Caller {
    /// Whether this caller may do something for which `needed` is needed.
    ///
    /// # Errors
    /// What is lacking.
    pub fn may(&self, needed: Scope, reach: Reach<'_>) -> Result<(), Lacking> {
        let is_granted = match self {
            Self::Loopback | Self::Operator => return Ok(()),
            Self::Identity(_) => needed == Scope::Proxy,
            Self::Token(token) => token.scopes.imply(needed),
        };
        if !is_granted {
            return Err(Lacking::Scope(needed));
        }
        match reach {
            Reach::Any => Ok(()),
            Reach::Mesh if self.is_limited() => Err(Lacking::Whole(needed)),
            Reach::Mesh => Ok(()),
            Reach::Service(service) if self.covers(service) => Ok(()),
            Reach::Service(service) => Err(Lacking::Service(service.clone())),
        }
    }

    /// Whether this caller may have a certificate that says it is this service.
    #[must_use]
    pub fn may_join(&self, service: &ServiceName) -> bool {
        match self {
            // Renews its own.
            Self::Identity(identity) => identity.service == *service,
            Self::Loopback | Self::Operator | Self::Token(_) => {
                self.may(Scope::Join, Reach::Service(service)).is_ok()
            }
        }
    }

    /// Whether this caller speaks for some services only.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        match self {
            Self::Identity(_) => true,
            Self::Loopback | Self::Operator => false,
            Self::Token(token) => token.services.is_some(),
        }
    }

    /// Whether this caller speaks for a service, as far as it is limited at all.
    #[must_use]
    pub fn covers(&self, service: &ServiceName) -> bool {
        match self {
            Self::Identity(identity) => identity.service == *service,
            Self::Loopback | Self::Operator => true,
            Self::Token(token) => token.services.as_ref().is_none_or(|services| services.contains(service)),
        }
    }

    /// The services that it speaks for; empty where it is not limited.
    #[must_use]
    pub fn speaks_for(&self) -> Vec<ServiceName> {
        match self {
            Self::Identity(identity) => vec![identity.service.clone()],
            Self::Loopback | Self::Operator => Vec::new(),
            Self::Token(token) => token.services.iter().flatten().cloned().collect(),
        }
    }

    /// Who it is, for the audit and the log, where that is known. Nothing secret.
    #[must_use]
    pub fn told(&self) -> Option<String> {
        match self {
            Self::Identity(identity) => Some(identity.to_string()),
            Self::Loopback => None,
            Self::Operator => Some("token_file".to_owned()),
            Self::Token(token) => Some(format!("token {} ({})", token.id, token.name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{RANDOM, wanted};
    use super::*;

    fn service(name: &str) -> ServiceName {
        ServiceName::parse(name).unwrap()
    }

    fn token(scopes: &[Scope], services: &[&str]) -> Caller {
        let made = Token::make(wanted(scopes, services), 0, "ann", &RANDOM).unwrap();
        Caller::Token(Arc::new(made.token))
    }

    #[test]
    fn a_token_does_what_it_is_for_where_it_is_for_it() {
        let (shop, ads) = (service("shop"), service("ads"));
        let (of_shop, of_ads) = (Reach::Service(&shop), Reach::Service(&ads));
        let identity = Caller::Identity("spiffe://mesh/service/shop".parse().unwrap());
        for (caller, needed, reach, expected) in [
            (Caller::Loopback, Scope::Admin, Reach::Mesh, Ok(())),
            (Caller::Operator, Scope::Join, of_shop, Ok(())),
            (token(&[Scope::Read], &[]), Scope::Read, Reach::Any, Ok(())),
            (token(&[Scope::Read], &[]), Scope::Traffic, of_shop, Err(Lacking::Scope(Scope::Traffic))),
            (token(&[Scope::Traffic], &[]), Scope::Traffic, of_ads, Ok(())),
            (token(&[Scope::Traffic], &[]), Scope::Flags, Reach::Mesh, Err(Lacking::Scope(Scope::Flags))),
            (token(&[Scope::Traffic], &["shop"]), Scope::Traffic, of_shop, Ok(())),
            (token(&[Scope::Traffic], &["shop"]), Scope::Read, Reach::Any, Ok(())),
            (token(&[Scope::Traffic], &["shop"]), Scope::Traffic, of_ads, Err(Lacking::Service(ads.clone()))),
            (token(&[Scope::Admin], &["shop"]), Scope::Admin, of_shop, Ok(())),
            (token(&[Scope::Admin], &["shop"]), Scope::Admin, Reach::Mesh, Err(Lacking::Whole(Scope::Admin))),
            (identity.clone(), Scope::Proxy, Reach::Any, Ok(())),
            (identity.clone(), Scope::Proxy, of_shop, Ok(())),
            (identity.clone(), Scope::Proxy, of_ads, Err(Lacking::Service(ads.clone()))),
            (identity.clone(), Scope::Read, Reach::Any, Err(Lacking::Scope(Scope::Read))),
        ] {
            assert_eq!(caller.may(needed, reach), expected, "{caller:?} {needed} {reach:?}");
        }
    }

    #[test]
    fn a_certificate_is_for_whom_the_token_is_for() {
        let (shop, ads) = (service("shop"), service("ads"));
        let join = token(&[Scope::Join], &["shop"]);
        assert!(join.may_join(&shop) && !join.may_join(&ads));
        assert!(join.may(Scope::Read, Reach::Any).is_err() && join.may(Scope::Proxy, Reach::Any).is_err());
        let identity = Caller::Identity("spiffe://mesh/service/shop".parse().unwrap());
        assert!(identity.may_join(&shop) && !identity.may_join(&ads));
        assert!(!token(&[Scope::Proxy], &["shop"]).may_join(&shop));
        assert!(token(&[Scope::Admin], &[]).may_join(&shop));
    }
}
