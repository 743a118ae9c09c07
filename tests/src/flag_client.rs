//! OpenFeature's own Python SDK and OFREP provider as a client of a proxy's flags.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::eventually::within;
use crate::python;
use crate::scratch::Scratch;

/// The versions that the tests know.
const PACKAGES: &str = "openfeature-sdk==0.10.0 openfeature-provider-ofrep==0.3.0";
/// The client itself; see there.
const CLIENT: &str = include_str!("flag_client.py");
/// For hundreds of questions one after the other, on a machine with others.
const LONGEST: Duration = Duration::from_secs(120);

/// What a flag is asked as: `type` is Boolean, Float, Integer, Object or String.
#[must_use]
pub fn question(kind: &str, key: &str, default: &Value, context: &Value) -> Value {
    json!({ "type": kind, "key": key, "default": default, "context": context })
}

/// What the SDK makes of these questions: value, variant, reason, error, message, metadata of each.
///
/// # Panics
/// When Python and the packages are not to be had, or the client fails.
pub async fn ask(at: SocketAddr, token: Option<&str>, questions: &[Value]) -> Vec<Value> {
    let python = python::with(PACKAGES);
    let scratch = Scratch::new();
    let script = scratch.write("flag_client.py", CLIENT);
    let mut client = Command::new(python);
    client.arg(script).arg(format!("http://{at}")).args(token);
    client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut client = client.spawn().expect("Python runs");
    let mut input = client.stdin.take().expect("a pipe");
    let questions = Value::from(questions.to_vec()).to_string();
    let talking = async {
        // A client that fails at once takes nothing, and says why.
        drop(input.write_all(questions.as_bytes()).await);
        drop(input);
        client.wait_with_output().await.expect("Python ends")
    };
    let output = within(LONGEST, "the end of the client", talking).await;
    match serde_json::from_slice(&output.stdout) {
        Ok(answers) => answers,
        Err(error) => panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)),
    }
}
