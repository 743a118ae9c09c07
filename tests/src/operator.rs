//! An operator at the command line: `gilmok` with arguments, and what it said.

use std::process::{Output, Stdio};

use serde_json::Value as Json;
use tokio::process::Command;

use crate::control_plane::ControlPlane;
use crate::eventually::soon;
use crate::process::program;

/// What a command said and how it ended.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    /// What it said to programs.
    ///
    /// # Panics
    /// When that is no JSON.
    #[must_use]
    pub fn json(&self) -> Json {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code().expect("it ends by itself");
        Self { code, out: text(&output.stdout), err: text(&output.stderr) }
    }
}

/// The command of `kim`, who asks the control plane at this address.
#[must_use]
pub fn command(plane: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(args).env("GILMOK_CLI_CONTROL_PLANE", plane).env("USER", "kim").stdin(Stdio::null());
    command
}

/// Runs a command to its end.
///
/// # Panics
/// When it cannot be started or does not end.
pub async fn gilmok(plane: &ControlPlane, args: &[&str]) -> Said {
    let ended = command(&format!("http://{}", plane.address), args).output();
    soon("the command to end", ended).await.expect("it can be started").into()
}
