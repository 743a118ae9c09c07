//! OpenFeature's own SDKs and OFREP providers as clients of a proxy's flags.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::eventually::{eventually, within};
use crate::node::Script;
use crate::process::Process;
use crate::python;
use crate::scratch::Scratch;

/// The versions that the tests know.
const PACKAGES: &str = "openfeature-sdk==0.10.0 openfeature-provider-ofrep==0.3.0";
/// The client itself; see there.
const CLIENT: &str = include_str!("flag_client.py");
/// The clients in JavaScript, each with the versions in its lock file; see there.
const SERVER: Script = Script {
    name: "server",
    package: include_str!("../node/server/package.json"),
    lock: include_str!("../node/server/package-lock.json"),
    text: include_str!("../node/server/client.mjs"),
};
const WEB: Script = Script {
    name: "web",
    package: include_str!("../node/web/package.json"),
    lock: include_str!("../node/web/package-lock.json"),
    text: include_str!("../node/web/client.mjs"),
};
/// For hundreds of questions one after the other, on a machine with others.
const LONGEST: Duration = Duration::from_secs(120);

/// What a flag is asked as: `type` is Boolean, Float, Integer, Object or String.
#[must_use]
pub fn question(kind: &str, key: &str, default: &Value, context: &Value) -> Value {
    json!({ "type": kind, "key": key, "default": default, "context": context })
}

/// Whose client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sdk {
    Python,
    /// JavaScript on servers: one question, one request.
    Server,
    /// JavaScript in pages: everything in one request, and again when its context changes.
    Web,
}

/// What Python's SDK makes of these questions: value, variant, reason, error, message, metadata of each.
///
/// # Panics
/// When Python and the packages are not to be had, or the client fails.
pub async fn ask(at: SocketAddr, token: Option<&str>, questions: &[Value]) -> Vec<Value> {
    ask_by(Sdk::Python, at, token, questions).await
}

/// The same of one of the SDKs.
///
/// # Panics
/// When its language and packages are not to be had, or the client fails.
pub async fn ask_by(sdk: Sdk, at: SocketAddr, token: Option<&str>, questions: &[Value]) -> Vec<Value> {
    let scratch = Scratch::new();
    let mut client = match sdk {
        Sdk::Python => {
            let mut client = Command::new(python::with(PACKAGES));
            client.arg(scratch.write("flag_client.py", CLIENT));
            client
        }
        Sdk::Server => SERVER.command(),
        Sdk::Web => WEB.command(),
    };
    client.arg(format!("http://{at}")).args(token);
    client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut client = client.spawn().expect("the client runs");
    let mut input = client.stdin.take().expect("a pipe");
    let questions = Value::from(questions.to_vec()).to_string();
    let talking = async {
        // A client that fails at once takes nothing, and says why.
        drop(input.write_all(questions.as_bytes()).await);
        drop(input);
        client.wait_with_output().await.expect("the client ends")
    };
    let output = within(LONGEST, "the end of the client", talking).await;
    match serde_json::from_slice(&output.stdout) {
        Ok(answers) => answers,
        Err(error) => panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// The web provider as it follows one flag, and what it has said of it.
#[derive(Debug)]
pub struct Follower {
    process: Process,
    _scratch: Scratch,
}

impl Follower {
    /// Starts it: told of changes by the stream of events, or asking every so many milliseconds.
    ///
    /// # Panics
    /// When its language and packages are not to be had.
    #[must_use]
    pub fn start(at: SocketAddr, key: &str, every: Option<u32>) -> Self {
        let scratch = Scratch::new();
        let mut client = WEB.command();
        client.args(["follow", &format!("http://{at}"), key]).args(every.map(|every| every.to_string()));
        Self { process: Process::spawn(client, &scratch.path().join("client.log")), _scratch: scratch }
    }

    /// Waits until it has said this many things, and gives the last one.
    ///
    /// # Panics
    /// When it has not; the message has all of them.
    pub async fn said(&self, things: usize) -> Value {
        eventually(&format!("{things} lines of the client"), async || {
            let log = self.process.log();
            let mut said = log.lines().filter_map(|line| serde_json::from_str(line).ok());
            said.nth(things - 1).ok_or(log)
        })
        .await
    }
}
