//! The mesh file as a source: read at start, read again within a second of a change, refused as a whole when faulty.

use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gilmok_config::hash::content_hash;
use gilmok_config::problem::Problems;
use gilmok_config::snapshot::{Membership, Snapshot};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};

use super::status::Status;
use crate::current::InForce;
use crate::settings::{BodyFiles, parse_mesh};

/// How often the file is looked at, so that a change is in force within a second whatever else happens then.
/// Polling sees what notifications miss; see docs/decisions/0006.
const POLL: Duration = Duration::from_millis(250);
/// A file that changed within this time is read although it looks the same: its clock may be too coarse to tell.
const CLOCK_GRAIN: Duration = Duration::from_secs(3);

/// A mesh file and what is known of it.
#[derive(Debug)]
pub(crate) struct MeshFile {
    path: PathBuf,
    seen: Option<Seen>,
    /// What it names.
    bodies: BodyFiles,
}

/// By what a change is noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    modified: Option<SystemTime>,
    length: u64,
    hash: String,
}

/// What reading the file again has brought.
#[derive(Debug)]
pub(crate) enum Read {
    Changed(Box<Snapshot>),
    Faulty(Problems),
    Unchanged,
}

impl MeshFile {
    pub(crate) fn new(path: PathBuf) -> Self {
        let bodies = BodyFiles::beside(&path);
        Self { path, seen: None, bodies }
    }

    /// The hash of what was read last, also when that was faulty.
    pub(crate) fn hash(&self) -> Option<&str> {
        self.seen.as_ref().map(|seen| seen.hash.as_str())
    }

    /// Reads the file if it may have changed since the last time, or in any case when `forced`.
    pub(crate) fn read(&mut self, forced: bool) -> Read {
        let stamp = match std::fs::metadata(&self.path) {
            Ok(metadata) => Some(stamp(&metadata)),
            // The reading below says what is wrong with it.
            Err(_) => None,
        };
        let forced = forced || self.bodies.have_changed();
        if let (Some(seen), Some((modified, length)), false) = (&self.seen, stamp, forced) {
            let settled = modified.and_then(|at| at.elapsed().ok()).is_some_and(|age| age > CLOCK_GRAIN);
            if settled && (seen.modified, seen.length) == (modified, length) {
                return Read::Unchanged;
            }
        }
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) => {
                // Editors replace a file in two steps: what is not there for a moment is no change,
                // and what stays away is told once.
                let gone = Seen { modified: None, length: 0, hash: String::new() };
                let told = self.seen.replace(gone.clone()) == Some(gone);
                return if told && !forced {
                    Read::Unchanged
                } else {
                    Read::Faulty(Problems::whole(format!("cannot be read: {error}")))
                };
            }
        };
        let (modified, length) = stamp.unwrap_or((None, bytes.len() as u64));
        let hash = content_hash(&bytes);
        let same = self.seen.as_ref().is_some_and(|seen| seen.hash == hash);
        self.seen = Some(Seen { modified, length, hash });
        if same && !forced {
            return Read::Unchanged;
        }
        match parse_mesh(bytes, &mut self.bodies) {
            Ok(document) => {
                for warning in document.warnings() {
                    tracing::warn!("{}: {warning}", self.path.display());
                }
                Read::Changed(Box::new(Snapshot::join(&document, &Membership::new())))
            }
            Err(problems) => Read::Faulty(problems),
        }
    }

    /// Follows the file until the process ends. `reload` asks for a reading now.
    pub(crate) async fn follow(mut self, in_force: Arc<InForce>, status: Arc<Status>, reload: Arc<Notify>) {
        let mut polls = interval(POLL);
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut faulty = false;
        loop {
            let forced = tokio::select! {
                _ = polls.tick() => false,
                () = reload.notified() => true,
            };
            match self.read(forced) {
                Read::Changed(snapshot) => {
                    faulty = false;
                    in_force.put(*snapshot, None);
                    status.accepted(self.hash());
                    tracing::info!("{}: read anew and in force", self.path.display());
                }
                Read::Faulty(problems) => {
                    faulty = true;
                    reject(&self.path, &problems, &status);
                }
                Read::Unchanged if !faulty => status.confirm(),
                Read::Unchanged => {}
            }
        }
    }
}

fn reject(path: &Path, problems: &Problems, status: &Status) {
    for problem in &problems.0 {
        tracing::error!("{}: {problem}", path.display());
    }
    tracing::error!("{}: refused; what was in force stays in force", path.display());
    // Told in any case: who asks for a reading wants to hear of it.
    status.reject(path.display().to_string(), None, problems, None);
}

fn stamp(metadata: &Metadata) -> (Option<SystemTime>, u64) {
    (metadata.modified().ok(), metadata.len())
}

#[cfg(test)]
mod tests {
    use gilmok_config::name::Name;

    use super::*;
    use crate::testing::{Folder, eventually};

    fn write(path: &Path, text: &str) {
        // The way careful editors do it.
        let new = path.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, path).unwrap();
    }

    #[test]
    fn a_change_is_noticed_and_only_a_change() {
        let dir = Folder::new("mesh-file");
        let path = dir.join("mesh.toml");
        write(&path, "[services.a]\n");
        let mut file = MeshFile::new(path.clone());
        assert!(matches!(file.read(false), Read::Changed(_)));
        assert!(matches!(file.read(false), Read::Unchanged));
        write(&path, "[services.b]\n");
        assert!(matches!(file.read(false), Read::Changed(_)), "same length, same second");
        write(&path, "[services.b\n");
        assert!(matches!(file.read(false), Read::Faulty(_)));
        assert!(matches!(file.read(false), Read::Unchanged), "a fault is told once");
        assert!(matches!(file.read(true), Read::Faulty(_)), "and again when asked");
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(file.read(false), Read::Faulty(_)));
        assert!(matches!(file.read(false), Read::Unchanged));
        write(&path, "[services.c]\n");
        assert!(matches!(file.read(false), Read::Changed(_)));
    }

    #[test]
    fn what_the_document_names_is_watched_with_it() {
        let dir = Folder::new("mesh-bodies");
        let (path, body) = (dir.join("mesh.toml"), dir.join("house.svg"));
        write(&path, "[[services.ads.fallback]]\nrespond = { body_file = \"house.svg\" }\n");
        let mut file = MeshFile::new(path);
        let Read::Faulty(problems) = file.read(false) else { panic!("there is no such file yet") };
        assert!(
            problems.to_string().starts_with("line 2: services.ads.fallback[0].respond.body_file: "),
            "{problems}"
        );
        assert!(matches!(file.read(false), Read::Unchanged));
        write(&body, "<svg/>");
        assert!(matches!(file.read(false), Read::Changed(_)));
        assert!(matches!(file.read(false), Read::Unchanged));
        write(&body, "<svg></svg>");
        assert!(matches!(file.read(false), Read::Changed(_)));
        write(&body, &"x".repeat((1 << 20) + 1));
        assert!(matches!(file.read(false), Read::Faulty(_)), "too long");
    }

    #[tokio::test(start_paused = true)]
    async fn a_bad_file_keeps_what_is_in_force_and_a_good_one_replaces_it() {
        let dir = Folder::new("mesh-follow");
        let path = dir.join("mesh.toml");
        write(&path, "[services.a]\n");
        let in_force = Arc::new(InForce::new(1, Name::default(), Vec::new()));
        let status = Arc::new(Status::new("file"));
        let reload = Arc::new(Notify::new());
        let file = MeshFile::new(path.clone());
        let task = tokio::spawn(file.follow(Arc::clone(&in_force), Arc::clone(&status), Arc::clone(&reload)));
        let knows = |name: &str| in_force.load().snapshot.service_index(name).is_some();
        eventually("read at start", || knows("a")).await;
        write(&path, "[services.b]\nprotocol = \"tcp\"\n");
        eventually("refused", || status.rejection().is_some()).await;
        assert!(knows("a") && !knows("b"));
        assert_eq!(status.rejection().unwrap().problems.0[0].line, Some(2));
        write(&path, "[services.c]\n");
        reload.notify_one();
        eventually("taken", || knows("c")).await;
        assert!(status.rejection().is_none());
        assert_eq!(status.rejected_total(), 1);
        task.abort();
    }
}
