//! The identity on this proxy's own disk, so that a start needs no control plane while the certificate lasts.
//!
//! The key is in it: the file is readable by its owner only, and replaced as a whole.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

/// The format that this build writes and reads.
const FORMAT: &str = "gilmok-identity-1";
/// Longest file that is read, in bytes.
const BYTES_MAX: u64 = 1 << 20;

/// What is kept.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Kept {
    format: String,
    /// When it was given, in milliseconds of Unix time.
    pub(super) since_ms: u64,
    /// All in PEM.
    pub(super) chain: String,
    pub(super) roots: String,
    pub(super) key: String,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl Kept {
    pub(super) fn new(since_ms: u64, chain: String, roots: String, key: &str) -> Self {
        Self { format: FORMAT.to_owned(), since_ms, chain, roots, key: key.to_owned() }
    }

    /// Reads the file; `None` where there is none.
    ///
    /// # Errors
    /// Why it cannot be used; nothing of what stands in it.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, String> {
        let told = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
        let mut text = Zeroizing::new(String::new());
        match File::open(path) {
            Ok(file) => file.take(BYTES_MAX).read_to_string(&mut text).map_err(|error| told(&error))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(told(&error)),
        };
        let kept: Self = serde_json::from_str(&text).map_err(|_| told(&"not what this program wrote"))?;
        if kept.format != FORMAT {
            return Err(told(&format_args!("of another format than {FORMAT}")));
        }
        Ok(Some(kept))
    }

    /// Writes it beside and renames it.
    ///
    /// # Errors
    /// When it cannot be written; what was there is still there.
    pub(super) fn write(&self, path: &Path) -> Result<(), String> {
        let new = path.with_extension("identity-new");
        let write = || -> io::Result<()> {
            let text = Zeroizing::new(serde_json::to_vec(self)?);
            if let Some(dir) = path.parent() {
                std::fs::create_dir_all(dir)?;
            }
            // One that is there already may be readable by others.
            if let Err(error) = std::fs::remove_file(&new)
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(error);
            }
            let mut file = File::options().create_new(true).write(true).mode(0o600).open(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::rename(&new, path)
        };
        write().map_err(|error| format!("{}: {error}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::testing::Folder;

    #[test]
    fn what_was_written_is_read_and_only_by_its_owner() {
        let dir = Folder::new("kept-identity");
        let path = dir.join("state/web-1.identity");
        assert!(Kept::read(&path).unwrap().is_none());
        for number in 0..2 {
            Kept::new(number, "chain".to_owned(), "roots".to_owned(), "secret").write(&path).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            let kept = Kept::read(&path).unwrap().unwrap();
            assert_eq!(
                (kept.since_ms, &*kept.chain, &*kept.roots, &*kept.key),
                (number, "chain", "roots", "secret")
            );
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for text in [&text[..text.len() - 1], "", "secret", &text.replace("identity-1", "identity-2")] {
            std::fs::write(&path, text).unwrap();
            let Err(why) = Kept::read(&path) else { panic!("{text}") };
            assert!(!why.contains("secret"), "{why}");
        }
    }
}
