//! The files that a mesh document names, for bodies of prepared answers and for flags: read where the document stands, and watched.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What is known of the files that a document names.
#[derive(Debug, Default)]
pub struct BodyFiles {
    folder: PathBuf,
    seen: Vec<(PathBuf, Option<Stamp>)>,
}

/// By what a change is noticed; `None` is a file that is not there.
type Stamp = (Option<SystemTime>, u64);

impl BodyFiles {
    /// Of a document in this file: names are relative to it.
    #[must_use]
    pub fn beside(document: &Path) -> Self {
        let folder = document.parent().map(Path::to_path_buf).unwrap_or_default();
        Self { folder, seen: Vec::new() }
    }

    /// Whether one of them has changed since it was read.
    pub(crate) fn have_changed(&self) -> bool {
        self.seen.iter().any(|(path, seen)| stamp(path) != *seen)
    }

    /// Before the document is read anew.
    pub(crate) fn forget(&mut self) {
        self.seen.clear();
    }

    /// The content of one of them, if it is at most so many bytes.
    ///
    /// # Errors
    /// Why there is none, in words for a person.
    pub fn read(&mut self, name: &str, most: usize) -> Result<Vec<u8>, String> {
        let path = self.folder.join(name);
        // Before it is read: what is written meanwhile is a change.
        if self.seen.iter().all(|(seen, _)| *seen != path) {
            self.seen.push((path.clone(), stamp(&path)));
        }
        content(&path, most).map_err(|error| format!("{}: {error}", path.display()))
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    std::fs::metadata(path).ok().map(|metadata| (metadata.modified().ok(), metadata.len()))
}

fn content(path: &Path, most: usize) -> Result<Vec<u8>, String> {
    let told = |error: std::io::Error| format!("cannot be read: {error}");
    // Asked first: opening a pipe would wait for its other end.
    if !std::fs::metadata(path).map_err(told)?.is_file() {
        return Err("is no plain file".to_owned());
    }
    let mut bytes = Vec::new();
    // One byte more than may be, so that what is too long is seen to be.
    File::open(path).map_err(told)?.take(most as u64 + 1).read_to_end(&mut bytes).map_err(told)?;
    if bytes.len() > most {
        return Err(format!("is longer than {most} bytes"));
    }
    Ok(bytes)
}
