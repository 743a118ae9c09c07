//! The store: every revision of the operators' intent, on disk before it is acknowledged.
//!
//! One writer decides: a revision is appended only behind the one its author has read. A revision's number lives
//! in the store and counts up by one; with the store's own id it means the same everywhere and for ever.

mod backup;

mod records;

mod tokens;

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use gilmok_config::name::ServiceName;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;

use crate::intent::{FlagChange, Intent};
use crate::record::{Record, Records};
use crate::schedule::Schedule;
use crate::tokens::Tokens;

pub use backup::BackupError;
pub use tokens::{By, TokenDeed, TokenDeedKind};

/// Revisions by number, as JSON.
const REVISIONS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("revisions");
/// Who did what, by revision.
const AUDIT: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("audit");
/// What is kept of services beside their tables, by name.
const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
/// The rest: the store's id, the last membership.
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

const STORE_ID: &str = "store";
const VISITOR_KEYS: &str = "visitor_keys";
const SCHEDULE: &str = "schedule";
/// Whether an authority of its own was made beside this store; what it is stands elsewhere.
pub const AUTHORITY: &str = "authority";
/// The file in the store's folder.
const FILE: &str = "gilmok.redb";
/// Entries of the audit that are kept.
const AUDIT_MAX: u64 = 100_000;
/// Most entries that one reading answers.
pub const PAGE_MAX: usize = 1_000;

/// What is made once, when a store is.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The store's id.
    pub store: Arc<str>,
    /// The keys of visitors' cookies as proxies are told them, one a line. Secret.
    pub visitor_keys: Arc<str>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("store", &self.store).finish_non_exhaustive()
    }
}

/// One revision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Revision {
    /// From 1, without gaps.
    pub number: u64,
    /// When it was written, in milliseconds since 1970.
    pub at_ms: u64,
    pub who: String,
    pub what: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// See [`Intent::hash`].
    pub hash: String,
    /// See [`Intent::json`].
    pub document: Value,
}

/// One entry of the audit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    pub revision: u64,
    pub at_ms: u64,
    pub who: String,
    pub what: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Hash of the document before; empty for the first.
    pub before: String,
    pub after: String,
    /// What became of single flags; at most [`crate::intent::CHANGES_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<FlagChange>,
}

/// A revision that is not written yet.
#[derive(Clone, Debug)]
pub struct Draft {
    pub who: String,
    pub what: String,
    pub reason: String,
    pub intent: Intent,
    /// What is kept of these services from then on, each as it was read but for its changes; `None` is nothing.
    pub records: Vec<(ServiceName, Option<Record>)>,
    /// What becomes of single flags, for the audit.
    pub flags: Vec<FlagChange>,
    /// The changes of flags that wait from then on, where these are others.
    pub schedule: Option<Schedule>,
}

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else wrote first, a revision or what is kept of a service: read again and decide anew.
    #[error("somebody else wrote meanwhile; the newest revision is {head}")]
    Conflict { head: u64 },
    /// The folder or file cannot be used; the text says which and why.
    #[error("the store {path}: {why}")]
    Unusable { path: PathBuf, why: String },
    /// Something that was written cannot be read.
    #[error("the store holds something that is no {what}: {why}")]
    Damaged { what: &'static str, why: String },
}

/// The embedded store. Clones are handles to the same one.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    database: Database,
    path: PathBuf,
    identity: Identity,
    /// Revisions that are kept, at least 1.
    history_max: u64,
    head: watch::Sender<Option<Arc<Revision>>>,
    /// What is kept of services, as on disk. A watch, because whoever reads holds a whole state and waits for nobody.
    records: watch::Sender<Arc<Records>>,
    /// Changes of flags that wait for their time, with the revision that they are of. A watch, as `records` is.
    schedule: watch::Sender<(u64, Arc<Schedule>)>,
    /// A watch, as `records` is.
    tokens: watch::Sender<Arc<Tokens>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("id", &self.inner.identity.store)
            .field("path", &self.inner.path)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store in a folder, or makes it. Blocks for the length of a few disk reads.
    ///
    /// # Errors
    /// When the folder cannot be made, another process has the store open, or it is damaged.
    pub fn open(dir: &Path, history_max: u64) -> Result<Self, StoreError> {
        let path = dir.join(FILE);
        let unusable =
            |why: &dyn std::fmt::Display| StoreError::Unusable { path: path.clone(), why: why.to_string() };
        std::fs::create_dir_all(dir).map_err(|error| unusable(&error))?;
        private(&path).map_err(|error| unusable(&error))?;
        let database = Database::create(&path).map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => {
                unusable(&"another control plane has it open; give this one a folder of its own")
            }
            other => unusable(&other),
        })?;
        let identity = make_tables(&database).map_err(|error| unusable(&error))?;
        let inner = Inner {
            database,
            path,
            identity,
            history_max: history_max.max(1),
            head: watch::Sender::new(None),
            records: watch::Sender::default(),
            schedule: watch::Sender::default(),
            tokens: watch::Sender::default(),
        };
        let store = Self { inner: Arc::new(inner) };
        store.inner.records.send_replace(Arc::new(store.read_records()?));
        let schedule: Schedule = store.kept(SCHEDULE)?.unwrap_or_default();
        store.inner.schedule.send_replace((0, Arc::new(schedule)));
        store.inner.tokens.send_replace(Arc::new(store.read_tokens()?));
        let head = store.read_head()?;
        store.inner.head.send_replace(head.map(Arc::new));
        Ok(store)
    }

    /// The store's identity, made once.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.inner.identity.store
    }

    /// What was made once, when the store was.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.inner.identity
    }

    /// The newest revision; `None` in a store that was never written.
    #[must_use]
    pub fn head(&self) -> Option<Arc<Revision>> {
        self.inner.head.borrow().clone()
    }

    /// Changes of flags that wait for their time.
    #[must_use]
    pub fn schedule(&self) -> Arc<Schedule> {
        Arc::clone(&self.inner.schedule.borrow().1)
    }

    /// Follows the newest revision.
    #[must_use]
    pub fn heads(&self) -> watch::Receiver<Option<Arc<Revision>>> {
        self.inner.head.subscribe()
    }

    /// Writes a revision behind `expected` (0: the store was never written). It is on disk when this answers.
    /// Dropped half-way, the write still happens or does not happen as a whole.
    ///
    /// # Errors
    /// A conflict when another was written since; otherwise the disk's.
    pub async fn append(&self, expected: u64, draft: Draft) -> Result<Arc<Revision>, StoreError> {
        self.blocking(move |store| store.append_now(expected, draft)).await
    }

    /// One revision, if it is still kept.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn revision(&self, number: u64) -> Result<Option<Revision>, StoreError> {
        self.blocking(move |store| {
            let read = || -> Result<_, redb::Error> {
                let table = store.inner.database.begin_read()?.open_table(REVISIONS)?;
                Ok(table.get(number)?.map(|bytes| bytes.value().to_vec()))
            };
            read()
                .map_err(|error| store.unusable(&error))?
                .map(|bytes| decode(&bytes, "revision"))
                .transpose()
        })
        .await
    }

    /// Revisions below `before`, newest first, at most `limit` and [`PAGE_MAX`].
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn revisions(&self, before: u64, limit: usize) -> Result<Vec<Revision>, StoreError> {
        self.blocking(move |store| store.page(REVISIONS, before, limit, "revision")).await
    }

    /// Entries of the audit below revision `before`, newest first, at most `limit` and [`PAGE_MAX`].
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn audit(&self, before: u64, limit: usize) -> Result<Vec<AuditEntry>, StoreError> {
        self.blocking(move |store| store.page(AUDIT, before, limit, "audit entry")).await
    }

    /// Keeps something small beside the revisions, e.g. the last membership. Not worth an error to its caller's work.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn keep(&self, key: &'static str, value: Value) -> Result<(), StoreError> {
        self.blocking(move |store| {
            let write = || -> Result<(), redb::Error> {
                let transaction = store.inner.database.begin_write()?;
                transaction.open_table(META)?.insert(key, value.to_string().as_bytes())?;
                transaction.commit()?;
                Ok(())
            };
            write().map_err(|error| store.unusable(&error))
        })
        .await
    }

    /// What was kept under a key.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn kept<T: for<'d> Deserialize<'d>>(&self, key: &'static str) -> Result<Option<T>, StoreError> {
        let read = || -> Result<_, redb::Error> {
            let table = self.inner.database.begin_read()?.open_table(META)?;
            Ok(table.get(key)?.map(|bytes| bytes.value().to_vec()))
        };
        read().map_err(|error| self.unusable(&error))?.map(|bytes| decode(&bytes, "kept value")).transpose()
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.clone();
        match tokio::task::spawn_blocking(move || work(&store)).await {
            Ok(done) => done,
            // The runtime is shutting down, or the work panicked: whatever it was, it is not known to be done.
            Err(error) => Err(self.unusable(&error)),
        }
    }

    fn append_now(&self, expected: u64, draft: Draft) -> Result<Arc<Revision>, StoreError> {
        let unusable = |error: redb::Error| self.unusable(&error);
        // redb lets one writer in at a time. What is read inside the transaction is what the write decides by;
        // the watched head may still be that of the writer before.
        let transaction = self.inner.database.begin_write().map_err(|error| unusable(error.into()))?;
        let before = last_revision(&transaction).map_err(unusable)?;
        let before: Option<Revision> = before.map(|bytes| decode(&bytes, "revision")).transpose()?;
        let head = before.as_ref().map_or(0, |revision| revision.number);
        if head != expected {
            return Err(StoreError::Conflict { head });
        }
        let Draft { who, what, reason, intent, records, flags, schedule } = draft;
        let number = head + 1;
        let revision =
            Revision { number, at_ms: now_ms(), who, what, reason, hash: intent.hash, document: intent.json };
        let entry = AuditEntry {
            revision: number,
            at_ms: revision.at_ms,
            who: revision.who.clone(),
            what: revision.what.clone(),
            reason: revision.reason.clone(),
            before: before.map(|before| before.hash).unwrap_or_default(),
            after: revision.hash.clone(),
            flags,
        };
        let Some(kept) = records::write(&transaction, records).map_err(unusable)? else {
            return Err(StoreError::Conflict { head });
        };
        let write = || -> Result<(), redb::Error> {
            {
                let mut revisions = transaction.open_table(REVISIONS)?;
                revisions.insert(number, encode(&revision).as_slice())?;
                revisions.retain_in(..number.saturating_sub(self.inner.history_max - 1), |_, _| false)?;
                let mut audit = transaction.open_table(AUDIT)?;
                audit.insert(number, encode(&entry).as_slice())?;
                audit.retain_in(..number.saturating_sub(AUDIT_MAX - 1), |_, _| false)?;
            }
            if let Some(schedule) = &schedule {
                transaction.open_table(META)?.insert(SCHEDULE, encode(schedule).as_slice())?;
            }
            transaction.commit()?;
            Ok(())
        };
        write().map_err(unusable)?;
        self.told_of_records(kept);
        if let Some(schedule) = schedule {
            // Before the head is: whoever reads a head finds what waits then, or later.
            self.inner.schedule.send_if_modified(|known| {
                let newer = known.0 < number;
                if newer {
                    *known = (number, Arc::new(schedule));
                }
                newer
            });
        }
        let revision = Arc::new(revision);
        // The next writer may have been here first: the head only goes up.
        self.inner.head.send_if_modified(|head| {
            let newer = head.as_ref().is_none_or(|head| head.number < number);
            if newer {
                *head = Some(Arc::clone(&revision));
            }
            newer
        });
        Ok(revision)
    }

    fn read_head(&self) -> Result<Option<Revision>, StoreError> {
        let read = || -> Result<_, redb::Error> {
            let table = self.inner.database.begin_read()?.open_table(REVISIONS)?;
            Ok(table.last()?.map(|(_, bytes)| bytes.value().to_vec()))
        };
        read().map_err(|error| self.unusable(&error))?.map(|bytes| decode(&bytes, "revision")).transpose()
    }

    fn page<T: for<'d> Deserialize<'d>>(
        &self,
        table: TableDefinition<'static, u64, &'static [u8]>,
        before: u64,
        limit: usize,
        what: &'static str,
    ) -> Result<Vec<T>, StoreError> {
        let read = || -> Result<Vec<Vec<u8>>, redb::Error> {
            let table = self.inner.database.begin_read()?.open_table(table)?;
            let newest_first = table.range(..before)?.rev().take(limit.min(PAGE_MAX));
            newest_first.map(|entry| Ok(entry?.1.value().to_vec())).collect()
        };
        let page = read().map_err(|error| self.unusable(&error))?;
        page.iter().map(|bytes| decode(bytes, what)).collect()
    }

    fn unusable(&self, why: &dyn std::fmt::Display) -> StoreError {
        StoreError::Unusable { path: self.inner.path.clone(), why: why.to_string() }
    }
}

/// Makes an empty file where there is none. Nobody else reads it: the keys of visitors' cookies are in it.
fn private(path: &Path) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600).open(path).map(drop)
}

fn last_revision(transaction: &redb::WriteTransaction) -> Result<Option<Vec<u8>>, redb::Error> {
    let table = transaction.open_table(REVISIONS)?;
    let last = table.last()?.map(|(_, bytes)| bytes.value().to_vec());
    Ok(last)
}

/// Makes the tables and the store's identity where there are none.
fn make_tables(database: &Database) -> Result<Identity, redb::Error> {
    let transaction = database.begin_write()?;
    let identity = {
        transaction.open_table(REVISIONS)?;
        transaction.open_table(AUDIT)?;
        transaction.open_table(RECORDS)?;
        transaction.open_table(tokens::TOKENS)?;
        transaction.open_table(tokens::TOKEN_AUDIT)?;
        let mut meta = transaction.open_table(META)?;
        let mut made_once = |key, make: fn() -> String| -> Result<Arc<str>, redb::Error> {
            let known = meta.get(key)?.map(|kept| String::from_utf8_lossy(kept.value()).into_owned());
            if let Some(known) = known {
                return Ok(known.into());
            }
            let made = make();
            meta.insert(key, made.as_bytes())?;
            Ok(made.into())
        };
        Identity {
            store: made_once(STORE_ID, || format!("{:032x}", fastrand::u128(..)))?,
            visitor_keys: made_once(VISITOR_KEYS, visitor_key)?,
        }
    };
    transaction.commit()?;
    Ok(identity)
}

/// 256 bits that nobody guesses; empty, which no proxy takes for a key, where the machine has no random numbers.
fn visitor_key() -> String {
    let mut bytes = [0_u8; 32];
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}")),
        Err(_) => String::new(),
    }
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("invariant: the store's types become JSON")
}

fn decode<T: for<'d> Deserialize<'d>>(bytes: &[u8], what: &'static str) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|error| StoreError::Damaged { what, why: error.to_string() })
}

/// Milliseconds since 1970.
#[must_use]
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
