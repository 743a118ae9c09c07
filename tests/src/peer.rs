//! Real clients of others, run once: curl, openssl, python3.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use crate::eventually::{SOON, within};

/// Runs a program with these arguments and this input, and gives what it said.
///
/// # Panics
/// When it is not installed, or does not end within [`SOON`].
pub async fn run(program: &str, args: Vec<String>, input: &'static str) -> Output {
    let name = program.to_owned();
    let running = tokio::task::spawn_blocking(move || {
        let mut command = Command::new(&name);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => panic!("this test needs {name} (Debian: apt-get install {name}): {error}"),
        };
        let mut stdin = child.stdin.take().expect("its input is a pipe");
        // One that has ended already tells so by its output.
        drop(stdin.write_all(input.as_bytes()));
        drop(stdin);
        child.wait_with_output().expect("its output is a pipe")
    });
    within(SOON, "the client", running).await.expect("it did not panic")
}

/// The words of a command line that quotes nothing.
#[must_use]
pub fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}
