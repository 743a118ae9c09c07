//! What a proxy writes down for its next start: the last state that all its workers ran.
//!
//! Five lines: the format with a checksum of the rest, what it is, the document as JSON, who was alive, visitors' keys.
//! Written beside and renamed, so that a crash leaves the old file or the new one.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use gilmok_config::hash::content_hash;
use gilmok_config::snapshot::Membership;
use gilmok_config::wire::Applied;
use thiserror::Error;

/// The format that this build writes and reads.
const FORMAT: &str = "gilmok-last-known-good-1";
/// Longest file that is read, in bytes: the longest document and as much membership.
const BYTES_MAX: u64 = 4 * gilmok_config::node::DOCUMENT_BYTES_MAX as u64;

/// What is remembered.
#[derive(Clone, Debug)]
pub(crate) struct Remembered {
    pub(crate) store: String,
    pub(crate) revision: u64,
    pub(crate) hash: String,
    /// The document as JSON.
    pub(crate) text: Arc<str>,
    pub(crate) membership: Membership,
    /// By which visitors are known; see [`gilmok_config::wire::FeedLine::Hello`].
    pub(crate) visitor_keys: String,
}

/// The folder in which one node remembers. Locked by who writes there, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Keeper {
    path: PathBuf,
    lock_file: File,
    /// A process that hands over to this one has the lock until it has ended.
    locked: AtomicBool,
}

/// Why nothing can be remembered. The proxy serves all the same.
#[derive(Debug, Error)]
pub(crate) enum KeepError {
    #[error("{}: {error}", .path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("{}: another proxy with the name of this node uses it; give each its own [state] dir or node", .0.display())]
    Locked(PathBuf),
    #[error("{}: {why}; it is left aside", .path.display())]
    Damaged { path: PathBuf, why: String },
}

impl Keeper {
    /// Creates the folder. What is there can be read at once; it is locked at the first writing at the latest.
    ///
    /// # Errors
    /// Why nothing can be remembered there.
    pub(crate) fn open(dir: &Path, node: &str) -> Result<Self, KeepError> {
        let fault = |path: &Path| {
            let path = path.to_owned();
            move |error| KeepError::Io { path, error }
        };
        std::fs::create_dir_all(dir).map_err(fault(dir))?;
        let lock_path = dir.join(format!("{node}.lock"));
        let mut options = File::options();
        options.create(true).truncate(false).write(true);
        let lock_file = options.open(&lock_path).map_err(fault(&lock_path))?;
        let path = dir.join(format!("{node}.last-known-good"));
        let keeper = Self { path, lock_file, locked: AtomicBool::new(false) };
        match keeper.lock() {
            // Tried again when there is something to write.
            Ok(()) | Err(KeepError::Locked(_)) => Ok(keeper),
            Err(error) => Err(error),
        }
    }

    fn lock(&self) -> Result<(), KeepError> {
        if self.locked.load(Relaxed) {
            return Ok(());
        }
        match self.lock_file.try_lock() {
            Ok(()) => {
                self.locked.store(true, Relaxed);
                Ok(())
            }
            Err(TryLockError::WouldBlock) => Err(KeepError::Locked(self.path.clone())),
            Err(TryLockError::Error(error)) => Err(KeepError::Io { path: self.path.clone(), error }),
        }
    }

    /// Whether nobody else writes there.
    pub(crate) fn is_ours(&self) -> bool {
        self.locked.load(Relaxed)
    }

    /// What was written down last; `None` when nothing was.
    ///
    /// # Errors
    /// When it cannot be read, or is not what was written.
    pub(crate) fn load(&self) -> Result<Option<Remembered>, KeepError> {
        let fault = |error| KeepError::Io { path: self.path.clone(), error };
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fault(error)),
        };
        let mut text = String::new();
        file.take(BYTES_MAX).read_to_string(&mut text).map_err(fault)?;
        parse(&text).map(Some).map_err(|why| KeepError::Damaged { path: self.path.clone(), why })
    }

    /// Writes it down. Returns once it is on the disk.
    ///
    /// # Errors
    /// When it cannot be written; what was written before is still there.
    pub(crate) fn save(&self, remembered: &Remembered) -> Result<(), KeepError> {
        self.lock()?;
        let body = body_of(remembered)
            .map_err(|error| KeepError::Io { path: self.path.clone(), error: error.into() })?;
        let new = self.path.with_extension("new");
        let write = || -> io::Result<()> {
            // The keys in it are secret.
            let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
            writeln!(file, "{FORMAT} {}", content_hash(body.as_bytes()))?;
            file.write_all(body.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&new, &self.path)?;
            // The rename itself is on the disk once the folder is.
            match self.path.parent() {
                Some(dir) => File::open(dir)?.sync_all(),
                None => Ok(()),
            }
        };
        write().map_err(|error| KeepError::Io { path: self.path.clone(), error })
    }
}

fn body_of(remembered: &Remembered) -> Result<String, serde_json::Error> {
    let applied = Applied {
        store: remembered.store.clone(),
        revision: remembered.revision,
        hash: remembered.hash.clone(),
        last_known_good: true,
    };
    let (applied, membership) =
        (serde_json::to_string(&applied)?, serde_json::to_string(&remembered.membership)?);
    // Compact JSON has no line feed of its own.
    let keys = serde_json::to_string(&remembered.visitor_keys)?;
    Ok(format!("{applied}\n{}\n{membership}\n{keys}\n", remembered.text))
}

fn parse(text: &str) -> Result<Remembered, String> {
    let (first, body) = text.split_once('\n').ok_or("it is cut off")?;
    let (format, checksum) = first.split_once(' ').ok_or("it is no such file")?;
    if format != FORMAT {
        return Err(format!("it is of another format than {FORMAT}"));
    }
    if content_hash(body.as_bytes()) != checksum {
        return Err("its checksum does not match".to_owned());
    }
    let mut lines = body.lines();
    let mut next = || lines.next().ok_or("it is cut off");
    let (applied, document, membership) = (next()?, next()?, next()?);
    let fault = |error: serde_json::Error| error.to_string();
    let applied: Applied = serde_json::from_str(applied).map_err(fault)?;
    Ok(Remembered {
        store: applied.store,
        revision: applied.revision,
        hash: applied.hash,
        text: document.into(),
        membership: serde_json::from_str(membership).map_err(fault)?,
        // Files of before there were keys end here.
        visitor_keys: lines.next().map(serde_json::from_str).transpose().map_err(fault)?.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use gilmok_config::endpoint::Endpoint;
    use gilmok_config::name::ServiceName;

    use super::*;
    use crate::testing::Folder;

    fn remembered() -> Remembered {
        let endpoints: Arc<[Endpoint]> = vec![Endpoint::at("10.0.0.1:80".parse().unwrap())].into();
        Remembered {
            store: "s".to_owned(),
            revision: 7,
            hash: "h".to_owned(),
            text: r#"{"services":{"ads":{}}}"#.into(),
            membership: [(ServiceName::parse("ads").unwrap(), endpoints)].into(),
            visitor_keys: "0123456789abcdef".to_owned(),
        }
    }

    #[test]
    fn what_is_written_down_is_read_back() {
        let dir = Folder::new("keeper");
        let keeper = Keeper::open(&dir.join("made/for/it"), "web-1").unwrap();
        assert!(keeper.load().unwrap().is_none());
        keeper.save(&remembered()).unwrap();
        keeper.save(&remembered()).unwrap();
        let back = keeper.load().unwrap().unwrap();
        assert_eq!((back.store.as_str(), back.revision, back.hash.as_str()), ("s", 7, "h"));
        assert_eq!((back.text, back.membership), (remembered().text, remembered().membership));
        assert_eq!(back.visitor_keys, remembered().visitor_keys);
    }

    #[test]
    fn a_damaged_file_is_told_and_never_used() {
        let dir = Folder::new("keeper-damaged");
        let keeper = Keeper::open(&dir, "web-1").unwrap();
        keeper.save(&remembered()).unwrap();
        let whole = std::fs::read(&keeper.path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&keeper.path, &whole[..length]).unwrap();
            assert!(matches!(keeper.load(), Err(KeepError::Damaged { .. })), "cut at {length}");
        }
        for at in (0..whole.len()).step_by(7) {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            std::fs::write(&keeper.path, &flipped).unwrap();
            assert!(keeper.load().is_err(), "flipped at {at}");
        }
        std::fs::write(&keeper.path, &whole).unwrap();
        assert!(keeper.load().unwrap().is_some());
    }

    #[test]
    fn two_proxies_do_not_write_to_one_place() {
        let dir = Folder::new("keeper-locked");
        let first = Keeper::open(&dir, "web-1").unwrap();
        first.save(&remembered()).unwrap();
        let second = Keeper::open(&dir, "web-1").unwrap();
        assert!(first.is_ours() && !second.is_ours());
        assert!(second.load().unwrap().is_some(), "a process that takes over reads what is there");
        assert!(matches!(second.save(&remembered()), Err(KeepError::Locked(_))));
        assert!(Keeper::open(&dir, "web-2").unwrap().save(&remembered()).is_ok());
        drop(first);
        assert!(second.save(&remembered()).is_ok(), "and writes once the other has ended");
    }

    #[test]
    fn a_place_that_cannot_be_written_is_an_error_and_no_more() {
        let dir = Folder::new("keeper-file");
        let file = dir.join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(Keeper::open(&file.join("sub"), "web-1"), Err(KeepError::Io { .. })));
    }
}
