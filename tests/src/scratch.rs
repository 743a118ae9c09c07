//! A folder of a test's own, gone when the test has passed and kept when it has failed.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A folder that is removed on drop, unless the test is failing.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Scratch {
    /// Makes a folder below the system's temporary one: its path stays short enough for unix sockets.
    ///
    /// # Panics
    /// When the folder cannot be made.
    #[must_use]
    pub fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("gilmok-{}-{number}", std::process::id()));
        // A test that failed once with this process id has left its folder behind.
        drop(std::fs::remove_dir_all(&path));
        std::fs::create_dir_all(&path).expect("a temporary folder can be made");
        Self { path }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file in one step, the way a careful operator does: beside it, then renamed.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path.join(name);
        let beside = self.path.join(format!("{name}.new"));
        std::fs::write(&beside, content).expect("the temporary folder can be written");
        std::fs::rename(&beside, &path).expect("a file can be renamed");
        path
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        // A folder that stays behind is no reason to fail a test that has passed.
        drop(std::fs::remove_dir_all(&self.path));
    }
}
