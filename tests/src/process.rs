//! Starting, signalling and ending one program, with what it says kept in a file.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::eventually::{SOON, within};

/// The program under test: everything in one, `gilmok-under-test`, or what `GILMOK_UNDER_TEST` names.
///
/// # Panics
/// When it was not built.
#[must_use]
pub fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("GILMOK_UNDER_TEST") {
        return PathBuf::from(path);
    }
    // Tests lie in target/PROFILE/deps, the programs of the same build one folder up.
    let test = std::env::current_exe().expect("a test knows its own file");
    let program = test.ancestors().nth(2).map(|folder| folder.join("gilmok-under-test"));
    match program.filter(|path| path.exists()) {
        Some(path) => path,
        None => {
            panic!("gilmok-under-test is not beside {}; run `cargo test -p gilmok-tests`", test.display())
        }
    }
}

/// What can be sent to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    Continue,
    Hangup,
    Interrupt,
    Kill,
    Stop,
    Terminate,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Self::Continue => "CONT",
            Self::Hangup => "HUP",
            Self::Interrupt => "INT",
            Self::Kill => "KILL",
            Self::Stop => "STOP",
            Self::Terminate => "TERM",
        }
    }
}

/// Sends a signal to one process by its id. What is gone already is no fault.
///
/// # Panics
/// When there is no shell.
pub async fn send_signal(pid: u32, signal: Signal) {
    // The shell's own `kill`: the standard library has no safe call for it.
    let status =
        Command::new("sh").args(["-c", &format!("kill -{} {pid} 2>/dev/null", signal.name())]).status().await;
    status.expect("a shell is there");
}

/// A running program. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pid: u32,
    log: PathBuf,
}

impl Process {
    /// Starts `program args…` with standard error and output in `log`, and standard input closed.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(program: &Path, args: impl IntoIterator<Item = impl AsRef<OsStr>>, log: &Path) -> Self {
        let mut command = Command::new(program);
        command.args(args);
        Self::spawn(command, log)
    }

    /// Starts a prepared command with standard error and output in `log`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(mut command: Command, log: &Path) -> Self {
        let out = std::fs::File::options().create(true).append(true).open(log);
        let out = out.expect("a log can be written");
        let again = out.try_clone().expect("a file can be cloned");
        command.stdout(Stdio::from(out)).stderr(Stdio::from(again)).kill_on_drop(true);
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) => panic!("{command:?} does not start: {error}"),
        };
        let pid = child.id().expect("a child just started has an id");
        Self { child, pid, log: log.to_owned() }
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Everything it has said so far.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    pub async fn signal(&self, signal: Signal) {
        send_signal(self.pid, signal).await;
    }

    /// Waits until it has ended by itself.
    ///
    /// # Panics
    /// When it has not within `limit`; the message has its log.
    pub async fn ended(&mut self, limit: Duration) -> ExitStatus {
        match tokio::time::timeout(limit, self.child.wait()).await {
            Ok(status) => status.expect("a child can be waited for"),
            Err(_) => panic!("process {} still runs after {limit:?}:\n{}", self.pid, self.log()),
        }
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends it the hard way and waits for its end.
    pub async fn kill(&mut self) {
        self.signal(Signal::Kill).await;
        // A stopped or zombie child is collected all the same.
        drop(within(Duration::from_secs(10), "the end of a killed process", self.child.wait()).await);
    }

    /// Waits for the file in which it says where it listens: a JSON object of names and addresses.
    ///
    /// # Panics
    /// When the process ends before, or the file does not come; the message has its log.
    pub async fn ports(&mut self, file: &Path) -> serde_json::Value {
        let deadline = Instant::now() + SOON;
        loop {
            let text = std::fs::read(file).unwrap_or_default();
            if let Ok(ports) = serde_json::from_slice(&text) {
                return ports;
            }
            let log = self.log();
            assert!(self.is_running(), "process {} ended before it listened:\n{log}", self.pid);
            assert!(Instant::now() < deadline, "no {} from process {}:\n{log}", file.display(), self.pid);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
