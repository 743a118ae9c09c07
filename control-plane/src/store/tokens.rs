//! Tokens beside the revisions: none of them is ever in a document, and who made or revoked which one is in an audit of their own.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use gilmok_config::name::ServiceName;
use redb::{ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::{AUDIT_MAX, Store, StoreError, decode, encode, now_ms};
use crate::tokens::{Scopes, Token, TokenId, Tokens};

/// How often it is looked whether a token in use has ended: the time of day may be set while it is waited for.
const LOOK: Duration = Duration::from_secs(10);
/// Tokens by id, as JSON.
pub(super) const TOKENS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("tokens");
/// Who made and revoked them, from 1.
pub(super) const TOKEN_AUDIT: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("token_audit");

/// One entry of the audit of tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenDeed {
    /// From 1, without gaps.
    pub number: u64,
    /// In milliseconds since 1970.
    pub at_ms: u64,
    pub who: String,
    pub what: TokenDeedKind,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// As it was then. Without what its text is known by.
    pub token: TokenId,
    pub name: String,
    pub scopes: Scopes,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<BTreeSet<ServiceName>>,
}

/// What was done to a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenDeedKind {
    Create,
    Revoke,
}

/// Who did something to a token, and why.
#[derive(Clone, Debug, Default)]
pub struct By {
    pub who: String,
    pub reason: String,
}

impl Store {
    /// Every token.
    #[must_use]
    pub fn tokens(&self) -> Arc<Tokens> {
        self.inner.tokens.borrow().clone()
    }

    /// Keeps a token that was made. False when there is no room, or one with its id.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub async fn add_token(&self, token: Token, by: By) -> Result<bool, StoreError> {
        self.blocking(move |store| {
            let known = store.tokens();
            if !known.has_room() || known.get(&token.id).is_some() {
                return Ok(false);
            }
            store.write_token(TokenDeedKind::Create, &token, &by)?;
            store.change_tokens(|tokens| tokens.insert(token));
            Ok(true)
        })
        .await
    }

    /// Forgets a token: from now on it is nobody's, also when the disk does not take it. False when there is none with this
    /// id, on disk neither.
    ///
    /// # Errors
    /// When the disk does not take it: the next start would know it again, unless it is revoked again before that.
    pub async fn revoke_token(&self, id: TokenId, by: By) -> Result<bool, StoreError> {
        self.blocking(move |store| {
            let known = store.tokens().get(&id).cloned();
            // What is forgotten may be on a disk that did not take that.
            let kept = if known.is_none() { store.read_tokens()?.get(&id).cloned() } else { None };
            let Some(token) = known.or(kept) else { return Ok(false) };
            store.change_tokens(|tokens| tokens.remove(&id));
            store.write_token(TokenDeedKind::Revoke, &token, &by)?;
            Ok(true)
        })
        .await
    }

    /// Waits until a token is nobody's any more: until it is revoked, or has ended. Does not keep the store open.
    pub fn until_worthless(&self, token: Arc<Token>) -> impl Future<Output = ()> + Send + use<> {
        let mut tokens = self.inner.tokens.subscribe();
        async move {
            loop {
                let now = now_ms();
                let is_known = tokens.borrow_and_update().get(&token.id).is_some();
                if !is_known || !token.is_valid_at(now) {
                    return;
                }
                let left =
                    token.expires_ms.map_or(LOOK, |end| Duration::from_millis(end.saturating_sub(now)));
                tokio::select! {
                    changed = tokens.changed() => if changed.is_err() { return },
                    () = sleep(left.min(LOOK)) => {}
                }
            }
        }
    }

    /// Entries of the audit of tokens below `before`, newest first, at most `limit` and [`super::PAGE_MAX`].
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn token_audit(&self, before: u64, limit: usize) -> Result<Vec<TokenDeed>, StoreError> {
        self.blocking(move |store| store.page(TOKEN_AUDIT, before, limit, "entry of the audit of tokens"))
            .await
    }

    /// What is on disk and what is in force differ for a moment; each change is of one token, so that none undoes another.
    fn change_tokens(&self, change: impl FnOnce(&mut Tokens)) {
        self.inner.tokens.send_modify(|tokens| {
            let mut next = Tokens::clone(tokens);
            change(&mut next);
            *tokens = Arc::new(next);
        });
    }

    fn write_token(&self, what: TokenDeedKind, token: &Token, by: &By) -> Result<(), StoreError> {
        let write = || -> Result<(), redb::Error> {
            let transaction = self.inner.database.begin_write()?;
            {
                let mut table = transaction.open_table(TOKENS)?;
                match what {
                    TokenDeedKind::Create => {
                        drop(table.insert(token.id.as_str(), encode(token).as_slice())?);
                    }
                    TokenDeedKind::Revoke => drop(table.remove(token.id.as_str())?),
                }
                let mut audit = transaction.open_table(TOKEN_AUDIT)?;
                let number = audit.last()?.map_or(0, |(number, _)| number.value()) + 1;
                let deed = TokenDeed {
                    number,
                    at_ms: now_ms(),
                    who: by.who.clone(),
                    what,
                    reason: by.reason.clone(),
                    token: token.id.clone(),
                    name: token.name.clone(),
                    scopes: token.scopes.clone(),
                    services: token.services.clone(),
                };
                audit.insert(number, encode(&deed).as_slice())?;
                audit.retain_in(..number.saturating_sub(AUDIT_MAX - 1), |_, _| false)?;
            }
            transaction.commit()?;
            Ok(())
        };
        write().map_err(|error| self.unusable(&error))
    }

    pub(super) fn read_tokens(&self) -> Result<Tokens, StoreError> {
        let read = || -> Result<Vec<Vec<u8>>, redb::Error> {
            let table = self.inner.database.begin_read()?.open_table(TOKENS)?;
            table.iter()?.map(|entry| Ok(entry?.1.value().to_vec())).collect()
        };
        let entries = read().map_err(|error| self.unusable(&error))?;
        entries.iter().map(|bytes| decode(bytes, "token")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::{Made, RANDOM_BYTES, Scope, Wanted};

    #[tokio::test]
    async fn what_the_disk_has_kept_of_a_revoked_token_is_revoked_once_more() {
        let folder = std::env::temp_dir().join(format!("gilmok-kept-token-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&folder));
        let store = Store::open(&folder, 10).unwrap();
        let wanted =
            Wanted { name: "t".to_owned(), scopes: [Scope::Read].into_iter().collect(), ..Wanted::default() };
        let Made { token, text } = Token::make(wanted, 1, "ann", &[7; RANDOM_BYTES]).unwrap();
        let id = token.id.clone();
        assert!(store.add_token(token, By::default()).await.unwrap());
        // As a disk leaves it that does not take the revocation.
        store.change_tokens(|tokens| tokens.remove(&id));
        assert!(store.tokens().find(&text, 2).is_err());
        assert!(store.revoke_token(id.clone(), By::default()).await.unwrap(), "it is on disk");
        assert!(!store.revoke_token(id, By::default()).await.unwrap(), "it is nowhere");
        assert!(store.read_tokens().unwrap().is_empty());
        let audit = store.token_audit(u64::MAX, 10).await.unwrap();
        assert_eq!(
            audit.iter().map(|deed| deed.what).collect::<Vec<_>>(),
            [TokenDeedKind::Revoke, TokenDeedKind::Create]
        );
        drop(store);
        drop(std::fs::remove_dir_all(&folder));
    }
}
