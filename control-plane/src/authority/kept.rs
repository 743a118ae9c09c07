//! The file in which an authority keeps its roots, their keys and how far a change of the root has come.
//!
//! One file, replaced as a whole, so that no crash leaves half a step. It is readable by its owner only.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

/// The format that this build writes and reads.
const FORMAT: &str = "gilmok-authority-1";
/// Longest file that is read, in bytes.
const BYTES_MAX: u64 = 1 << 20;

/// What is kept.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kept {
    format: String,
    pub(super) domain: String,
    /// The longest life of a leaf that `signing` may have given, in seconds.
    pub(super) leaf_seconds: u64,
    pub(super) signing: KeptSigner,
    /// Trusted by proxies, and not signing yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) next: Option<KeptSigner>,
    /// When that began, in seconds of Unix time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) announced: Option<u64>,
    /// Still trusted, and signing no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) retiring: Option<Retiring>,
}

/// A root and its key, in PEM.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeptSigner {
    pub(super) certificate: String,
    pub(super) key: String,
}

/// A root that goes. Its key is gone already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Retiring {
    pub(super) certificate: String,
    /// When the last leaf of it has ended, in seconds of Unix time.
    pub(super) leaves_end: u64,
}

impl Drop for KeptSigner {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl Kept {
    pub(super) fn new(domain: &str, leaf_seconds: u64, signing: KeptSigner) -> Self {
        let (format, domain) = (FORMAT.to_owned(), domain.to_owned());
        Self { format, domain, leaf_seconds, signing, next: None, announced: None, retiring: None }
    }

    /// From when on `next` may sign: one life of a leaf after it was announced.
    pub(super) fn signs_from(&self) -> Option<u64> {
        self.announced.map(|announced| announced.saturating_add(self.leaf_seconds))
    }

    /// Reads the file; `None` where there is none.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, String> {
        let told = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
        let mut text = Zeroizing::new(String::new());
        match File::open(path) {
            Ok(file) => file.take(BYTES_MAX).read_to_string(&mut text).map_err(|error| told(&error))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(told(&error)),
        };
        // What serde says of a fault may repeat what stands there.
        let kept: Self = serde_json::from_str(&text).map_err(|_| told(&"not what this program wrote"))?;
        if kept.format != FORMAT {
            return Err(told(&format_args!("of another format than {FORMAT}")));
        }
        Ok(Some(kept))
    }

    /// Writes it beside and renames it. It is on the disk when this answers.
    ///
    /// # Errors
    /// When it cannot be written; what was there is still there.
    pub(super) fn write(&self, path: &Path) -> Result<(), String> {
        let text = serde_json::to_string_pretty(self).map(Zeroizing::new);
        let text = text.map_err(|error| error.to_string())?;
        replace(path, 0o600, text.as_bytes())
    }
}

/// Writes a file beside and renames it. It is on the disk when this answers.
///
/// # Errors
/// When it cannot be written; what was there is still there.
pub(super) fn replace(path: &Path, mode: u32, text: &[u8]) -> Result<(), String> {
    let new = path.with_extension("new");
    let write = || -> io::Result<()> {
        // One that is there already may be readable by others.
        if let Err(error) = std::fs::remove_file(&new)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let mut file = File::options().create_new(true).write(true).mode(mode).open(&new)?;
        file.write_all(text)?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        // The rename itself is on the disk once the folder is.
        match path.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(|error| format!("{}: {error}", path.display()))
}
