//! The whole store as lines of JSON, and back: for another disk, another machine, or the day after a mistake.

use std::io::{BufRead, Write};
use std::path::Path;

use gilmok_config::hash::content_hash;
use gilmok_config::name::ServiceName;
use redb::{Database, ReadableDatabase, ReadableTable};
use serde::{Deserialize, Serialize};

use super::tokens::{TOKEN_AUDIT, TOKENS, TokenDeed};
use super::{
    AUDIT, AUTHORITY, AuditEntry, FILE, Identity, META, RECORDS, REVISIONS, Revision, SCHEDULE, STORE_ID,
    Store, StoreError, VISITOR_KEYS, decode, encode, private,
};
use crate::record::Record;
use crate::schedule::Schedule;
use crate::tokens::Token;

/// Longest line of a backup: a document and what belongs to it.
const LINE_BYTES_MAX: u64 = (gilmok_config::node::DOCUMENT_BYTES_MAX as u64) * 2;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Begin {
        format: u32,
        store: String,
        /// Absent in backups of before there were any: then new ones are made.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        visitor_keys: Option<String>,
        /// Whether an authority was beside it, whose loss is to be told.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        authority: bool,
    },
    Revision(Box<Revision>),
    Audit(AuditEntry),
    /// What is kept of a service beside its table.
    Record {
        service: ServiceName,
        record: Box<Record>,
    },
    /// Changes of flags that wait for their time; only where there are any.
    Schedule(Schedule),
    /// Known by the hash of its text; the text itself is nowhere.
    Token(Token),
    TokenDeed(TokenDeed),
    /// How many lines were before this one, and the hash over their hashes: a backup that ends early is refused.
    End {
        lines: u64,
        hash: String,
    },
}

const FORMAT: u32 = 1;

/// Why a backup could not be written or taken back.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the backup: {0}")]
    Io(#[from] std::io::Error),
    #[error("the backup, line {line}: {why}")]
    Unsound { line: u64, why: String },
    #[error("{0} holds a store already; give an empty folder")]
    NotEmpty(std::path::PathBuf),
}

impl Store {
    /// Writes the whole store, consistent at one moment. Blocks for the length of a full read.
    ///
    /// # Errors
    /// When the store cannot be read or the backup not be written.
    pub fn backup(&self, out: &mut impl Write) -> Result<(), BackupError> {
        let broken = |error: redb::Error| BackupError::Store(self.unusable(&error));
        let transaction = self.inner.database.begin_read().map_err(|error| broken(error.into()))?;
        let revisions = transaction.open_table(REVISIONS).map_err(|error| broken(error.into()))?;
        let audit = transaction.open_table(AUDIT).map_err(|error| broken(error.into()))?;
        let records = transaction.open_table(RECORDS).map_err(|error| broken(error.into()))?;
        let mut seal = Seal::default();
        let Identity { store, visitor_keys } = self.identity();
        let (store, visitor_keys) = (store.to_string(), Some(visitor_keys.to_string()));
        let meta = transaction.open_table(META).map_err(|error| broken(error.into()))?;
        let authority = meta.get(AUTHORITY).map_err(|error| broken(error.into()))?.is_some();
        seal.write(out, &Line::Begin { format: FORMAT, store, visitor_keys, authority })?;
        for entry in revisions.iter().map_err(|error| broken(error.into()))? {
            let (_, bytes) = entry.map_err(|error| broken(error.into()))?;
            seal.write(out, &Line::Revision(decode(bytes.value(), "revision")?))?;
        }
        for entry in audit.iter().map_err(|error| broken(error.into()))? {
            let (_, bytes) = entry.map_err(|error| broken(error.into()))?;
            seal.write(out, &Line::Audit(decode(bytes.value(), "audit entry")?))?;
        }
        for entry in records.iter().map_err(|error| broken(error.into()))? {
            let (name, bytes) = entry.map_err(|error| broken(error.into()))?;
            let service = ServiceName::parse(name.value())
                .map_err(|why| StoreError::Damaged { what: "service's name", why: why.to_owned() })?;
            seal.write(out, &Line::Record { service, record: decode(bytes.value(), "record")? })?;
        }
        if let Some(kept) = meta.get(SCHEDULE).map_err(|error| broken(error.into()))? {
            let schedule: Schedule = decode(kept.value(), "schedule")?;
            if !schedule.is_empty() {
                seal.write(out, &Line::Schedule(schedule))?;
            }
        }
        let tokens = transaction.open_table(TOKENS).map_err(|error| broken(error.into()))?;
        for entry in tokens.iter().map_err(|error| broken(error.into()))? {
            let (_, bytes) = entry.map_err(|error| broken(error.into()))?;
            seal.write(out, &Line::Token(decode(bytes.value(), "token")?))?;
        }
        let deeds = transaction.open_table(TOKEN_AUDIT).map_err(|error| broken(error.into()))?;
        for entry in deeds.iter().map_err(|error| broken(error.into()))? {
            let (_, bytes) = entry.map_err(|error| broken(error.into()))?;
            seal.write(out, &Line::TokenDeed(decode(bytes.value(), "entry of the audit of tokens")?))?;
        }
        let end = Line::End { lines: seal.lines, hash: seal.hash.clone() };
        seal.write(out, &end)?;
        out.flush()?;
        Ok(())
    }

    /// Makes a store of a backup in an empty folder. Its id and numbering go on.
    ///
    /// # Errors
    /// When the folder holds a store, or the backup is not whole.
    pub fn restore(dir: &Path, backup: impl BufRead) -> Result<(), BackupError> {
        let path = dir.join(FILE);
        if path.exists() {
            return Err(BackupError::NotEmpty(dir.to_owned()));
        }
        std::fs::create_dir_all(dir)?;
        // Built beside its place and renamed when it is whole, so that a broken backup leaves nothing behind.
        let building = dir.join("gilmok.redb.restoring");
        let built = build(&building, backup);
        match built {
            Ok(()) => Ok(std::fs::rename(&building, &path)?),
            Err(error) => {
                drop(std::fs::remove_file(&building));
                Err(error)
            }
        }
    }
}

/// Makes the tables, and what is made once.
fn begin(
    transaction: &redb::WriteTransaction,
    store: &str,
    visitor_keys: Option<&str>,
    authority: bool,
) -> Result<(), redb::Error> {
    transaction.open_table(AUDIT)?;
    transaction.open_table(REVISIONS)?;
    transaction.open_table(RECORDS)?;
    let mut meta = transaction.open_table(META)?;
    meta.insert(STORE_ID, store.as_bytes())?;
    if let Some(keys) = visitor_keys {
        meta.insert(VISITOR_KEYS, keys.as_bytes())?;
    }
    if authority {
        meta.insert(AUTHORITY, b"true".as_slice())?;
    }
    Ok(())
}

fn build(path: &Path, mut backup: impl BufRead) -> Result<(), BackupError> {
    let broken = |error: redb::Error| {
        BackupError::Store(StoreError::Unusable { path: path.to_owned(), why: error.to_string() })
    };
    drop(std::fs::remove_file(path));
    private(path)?;
    let database = Database::create(path).map_err(|error| broken(error.into()))?;
    let transaction = database.begin_write().map_err(|error| broken(error.into()))?;
    let mut seal = Seal::default();
    loop {
        let number = seal.lines + 1;
        let unsound = |why: String| BackupError::Unsound { line: number, why };
        let mut text = Vec::new();
        let read = std::io::Read::take(&mut backup, LINE_BYTES_MAX).read_until(b'\n', &mut text)?;
        if read == 0 {
            return Err(unsound("the backup ends before its last line".to_owned()));
        }
        let line: Line = serde_json::from_slice(&text).map_err(|error| unsound(error.to_string()))?;
        let insert = || -> Result<(), redb::Error> {
            match &line {
                Line::Begin { store, visitor_keys, authority, .. } => {
                    begin(&transaction, store, visitor_keys.as_deref(), *authority)?;
                }
                Line::Revision(revision) => {
                    transaction
                        .open_table(REVISIONS)?
                        .insert(revision.number, encode(revision).as_slice())?;
                }
                Line::Audit(entry) => {
                    transaction.open_table(AUDIT)?.insert(entry.revision, encode(entry).as_slice())?;
                }
                Line::Record { service, record } => {
                    transaction
                        .open_table(RECORDS)?
                        .insert(service.as_str(), encode(record.as_ref()).as_slice())?;
                }
                Line::Schedule(schedule) => {
                    transaction.open_table(META)?.insert(SCHEDULE, encode(schedule).as_slice())?;
                }
                Line::Token(token) => {
                    let key = token.id.as_str();
                    transaction.open_table(TOKENS)?.insert(key, encode(token).as_slice())?;
                }
                Line::TokenDeed(deed) => {
                    transaction.open_table(TOKEN_AUDIT)?.insert(deed.number, encode(deed).as_slice())?;
                }
                Line::End { .. } => {}
            }
            Ok(())
        };
        match &line {
            Line::Begin { format, .. } if *format != FORMAT => {
                return Err(unsound(format!("format {format} is not known; this version reads {FORMAT}")));
            }
            Line::Begin { .. } if number != 1 => return Err(unsound("a second beginning".to_owned())),
            Line::Revision(_)
            | Line::Audit(_)
            | Line::Record { .. }
            | Line::Schedule(_)
            | Line::Token(_)
            | Line::TokenDeed(_)
            | Line::End { .. }
                if number == 1 =>
            {
                return Err(unsound("not a beginning".to_owned()));
            }
            Line::End { lines, hash } if *lines != seal.lines || *hash != seal.hash => {
                return Err(unsound("what is before it is not what was written".to_owned()));
            }
            Line::End { .. } => break,
            Line::Begin { .. }
            | Line::Revision(_)
            | Line::Audit(_)
            | Line::Record { .. }
            | Line::Schedule(_)
            | Line::Token(_)
            | Line::TokenDeed(_) => {}
        }
        insert().map_err(broken)?;
        seal.add(&text);
    }
    transaction.commit().map_err(|error| broken(error.into()))
}

/// Counts and hashes the lines of a backup.
#[derive(Default)]
struct Seal {
    lines: u64,
    hash: String,
}

impl Seal {
    fn write(&mut self, out: &mut impl Write, line: &Line) -> Result<(), BackupError> {
        let mut bytes = encode(line);
        bytes.push(b'\n');
        out.write_all(&bytes)?;
        self.add(&bytes);
        Ok(())
    }

    fn add(&mut self, line: &[u8]) {
        self.lines += 1;
        let mut chained = std::mem::take(&mut self.hash).into_bytes();
        chained.extend_from_slice(line);
        self.hash = content_hash(&chained);
    }
}
