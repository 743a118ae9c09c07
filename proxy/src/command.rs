//! The command that `run -- CMD` starts beside the proxy: started once ready, told what we are told, waited for.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// A running command.
#[derive(Debug)]
pub(crate) struct Command {
    child: Child,
    name: String,
}

/// How often it is looked whether it has ended, beside every SIGCHLD: one may be lost when two come at once.
const LOOK_EVERY: Duration = Duration::from_millis(100);

impl Command {
    /// Starts it with this process's own input, output and environment.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(command: &[OsString]) -> io::Result<Self> {
        let [program, arguments @ ..] = command else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no command after --"));
        };
        let child = std::process::Command::new(program).args(arguments).spawn()?;
        let name = program.to_string_lossy().into_owned();
        tracing::info!("started {name} as process {}", child.id());
        Ok(Self { child, name })
    }

    /// Hands a signal on. What has ended already is no fault.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid
            && let Err(error) = kill_process(pid, signal)
        {
            tracing::debug!("cannot signal {}: {error}", self.name);
        }
    }

    /// Waits for its end and answers the code to leave with. Can be dropped and called again.
    pub(crate) async fn ended(&mut self) -> u8 {
        let mut children = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::child()).ok();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => {
                    tracing::info!("{} has ended: {status}", self.name);
                    return code_of(status);
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::error!("cannot wait for {}: {error}", self.name);
                    return 1;
                }
            }
            let news = async {
                match &mut children {
                    Some(children) => drop(children.recv().await),
                    None => std::future::pending().await,
                }
            };
            drop(tokio::time::timeout(LOOK_EVERY, news).await);
        }
    }

    /// Ends it the hard way.
    pub(crate) fn kill(&mut self) {
        tracing::warn!("{} is still there at the deadline; ending it", self.name);
        // Fails only if it has ended.
        drop(self.child.kill());
    }
}

/// The code of a command as shells tell it: 128 and the signal where one ended it.
fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code & 0xff).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(script: &str) -> Command {
        Command::start(&["sh", "-c", script].map(OsString::from)).unwrap()
    }

    #[tokio::test]
    async fn its_code_is_ours() {
        assert_eq!(start("exit 3").ended().await, 3);
        assert_eq!(start("kill -TERM $$").ended().await, 128 + 15);
        assert!(Command::start(&["/no/such/program".into()]).is_err());
        assert!(Command::start(&[]).is_err());
    }

    #[tokio::test]
    async fn signals_are_handed_on() {
        let mut command = start("exec sleep 600");
        command.signal(Signal::TERM);
        assert_eq!(command.ended().await, 128 + 15);
        command.signal(Signal::TERM);
    }

    #[tokio::test]
    async fn what_does_not_end_is_killed() {
        let mut command = start("trap '' TERM; exec sleep 600");
        command.kill();
        assert_eq!(command.ended().await, 128 + 9);
    }
}
