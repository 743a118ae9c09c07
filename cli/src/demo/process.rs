//! One child of the demo: started from this executable, its log in a file, gone when the parent is.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

/// How long a child may take to leave before it is killed.
const LEAVE_MAX: Duration = Duration::from_secs(8);
/// Most of a log that is shown.
const SHOWN_LINES_MAX: usize = 40;

/// One program of the mesh, running or not.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) name: String,
    args: Vec<OsString>,
    log: PathBuf,
    child: Option<Child>,
    /// Whether it is meant to run now.
    wanted: bool,
}

impl Process {
    /// `this-executable PROGRAM --with-parent ARGS…`, not running yet.
    pub(crate) fn new(
        name: &str,
        program: &str,
        args: impl IntoIterator<Item = OsString>,
        dir: &Path,
    ) -> Self {
        let mut all = vec![OsString::from(program), OsString::from("--with-parent")];
        all.extend(args);
        let log = dir.join(format!("{name}.log"));
        Self { name: name.to_owned(), args: all, log, child: None, wanted: false }
    }

    /// Starts it, as before if it ran before.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn begin(&mut self) -> anyhow::Result<()> {
        let name = &self.name;
        let log = std::fs::File::options().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("cannot write {}", self.log.display()))?;
        let program = std::env::current_exe().context("cannot find this executable")?;
        let mut command = Command::new(program);
        // Settings of this shell are not the mesh's.
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("GILMOK_") {
                command.env_remove(variable);
            }
        }
        command
            .args(&self.args)
            // Held open by this process and nobody else: it ends with us, however we end.
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is for us; we end the children in order.
            .process_group(0)
            .kill_on_drop(true);
        self.child = Some(command.spawn().with_context(|| format!("cannot start {name}"))?);
        self.wanted = true;
        Ok(())
    }

    /// Whether it has ended although nobody wanted that; how.
    pub(crate) fn ended_unasked(&mut self) -> Option<ExitStatus> {
        let child = self.child.as_mut().filter(|_| self.wanted)?;
        child.try_wait().ok().flatten()
    }

    /// Says that its end is wanted, and waits for it.
    ///
    /// # Errors
    /// When it still runs after `limit`.
    pub(crate) async fn ends(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        self.wanted = false;
        let child = self.child.as_mut().with_context(|| format!("{} was not started", self.name))?;
        let ended = tokio::time::timeout(limit, child.wait()).await;
        Ok(ended.with_context(|| format!("{} still runs after {limit:?}", self.name))??)
    }

    /// Ends it the hard way, as if the power were gone.
    ///
    /// # Errors
    /// When there is nothing to end.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        self.wanted = false;
        let child = self.child.as_mut().with_context(|| format!("{} was not started", self.name))?;
        child.kill().await.with_context(|| format!("cannot kill {}", self.name))
    }

    /// Asks it to leave in good order.
    pub(crate) fn ask_to_leave(&mut self) {
        self.wanted = false;
        let pid = self.child.as_ref().and_then(Child::id).and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            // One that has just ended needs no asking.
            kill_process(pid, Signal::TERM).unwrap_or_default();
        }
    }

    /// Waits until it has left, and no longer than a moment: then it is killed, and `false`.
    pub(crate) async fn leave(&mut self) -> bool {
        let left = self.ends(LEAVE_MAX).await.is_ok();
        if !left && let Some(child) = &mut self.child {
            drop(child.kill().await);
            return false;
        }
        true
    }

    /// The end of its log.
    pub(crate) fn last_words(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<_> = text.lines().collect();
        let skipped = lines.len().saturating_sub(SHOWN_LINES_MAX);
        lines[skipped..].join("\n")
    }
}
