//! The folder in which the demo keeps its state, settings and logs; gone at the end unless something failed.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// A folder of our own, removed when dropped.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    kept: bool,
}

impl Scratch {
    /// Makes a new folder that only this user may enter.
    ///
    /// # Errors
    /// When the system's folder for such things cannot be written.
    pub(crate) fn create() -> anyhow::Result<Self> {
        let name = format!("gilmok-demo-{}-{:06x}", std::process::id(), fastrand::u32(..1 << 24));
        let path = std::env::temp_dir().join(name);
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { path, kept: false })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the folder for people to look into.
    pub(crate) fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.kept {
            // Whatever cannot be removed lies in the system's folder for such things.
            drop(std::fs::remove_dir_all(&self.path));
        }
    }
}
