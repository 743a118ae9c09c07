//! The job that copies what moves from one shard to another, when the control plane says so by webhook.
//!
//! Any process could do it. Here every demo app can, whichever is told: it reads from the one shard, writes to the other,
//! and answers when that is done. It is told twice: while the old shard is still written to, and once more when nobody
//! writes any more. Each time it copies all of the part, so that the last time is right whatever came before.
//!
//! A message may come twice, and late. So one is followed at a time, and one that is older than another that was followed is
//! none any more: a copy that comes too late would undo what was written since. For the same reason nothing is deleted: what
//! the old shard still has is of no use to anybody, and is replaced when the part moves back.

use std::net::SocketAddr;

use anyhow::Context as _;
use bytes::Bytes;
use hyper::{Method, Request};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::calls::{CALL_TIMEOUT, send};
use crate::part::Part;
use crate::visits::Given;

/// What copies, and what it has done.
#[derive(Debug)]
pub(crate) struct Copies {
    /// Which message was followed last: the number of its move, and its own. A tokio mutex, since it is held while one is
    /// followed.
    last: Mutex<(u64, u64)>,
    /// Where apps listen themselves, by where the mesh reaches them. Copying is not the mesh's work, and where every hop of it is
    /// encrypted, whoever comes without a certificate finds no way in.
    ways: Vec<(String, SocketAddr)>,
}

/// What is said of a part that moves.
#[derive(Debug, Deserialize)]
struct Message {
    event: String,
    #[serde(rename = "move")]
    moving: u64,
    number: u64,
    batch: Option<Batch>,
    endpoints: Endpoints,
}

#[derive(Debug, Deserialize)]
struct Batch {
    detail: Part,
}

/// Who serves the part now, and who will.
#[derive(Debug, Deserialize)]
struct Endpoints {
    from: Vec<Endpoint>,
    to: Vec<Endpoint>,
}

#[derive(Debug, Deserialize)]
struct Endpoint {
    address: String,
}

impl Copies {
    pub(crate) fn new(ways: Vec<(String, SocketAddr)>) -> Self {
        Self { last: Mutex::default(), ways }
    }

    /// Where an app is reached for copies: itself if that is known, else as everybody reaches it.
    fn way_to(&self, endpoint: &Endpoint) -> String {
        let way = self.ways.iter().find(|(inbound, _)| *inbound == endpoint.address);
        way.map_or_else(|| endpoint.address.clone(), |(_, app)| app.to_string())
    }

    /// Does what a message asks for.
    ///
    /// # Errors
    /// When it is no such message, or an old one, or somebody does not do as asked.
    pub(crate) async fn follow(&self, message: &[u8]) -> anyhow::Result<()> {
        let Message { event, moving, number, batch, endpoints } =
            serde_json::from_slice(message).context("not a message about a move")?;
        let mut last = self.last.lock().await;
        anyhow::ensure!((moving, number) >= *last, "an old message: {last:?} was followed before");
        *last = (moving, number);
        if event != "copy" && event != "fenced" {
            return Ok(());
        }
        let part = batch.context("it names no part")?.detail;
        let address = |of: &[Endpoint], what| of.first().map(|at| self.way_to(at)).context(what);
        let source = address(&endpoints.from, "nobody has the part")?;
        let target = address(&endpoints.to, "nobody takes the part")?;
        let held = ask(Method::POST, &source, &part).await?;
        let visits = serde_json::from_slice(&held).context("not what is known of users")?;
        ask(Method::PUT, &target, &Given { part, visits }).await?;
        Ok(())
    }
}

/// Asks a shard for a part, or gives it one.
async fn ask(method: Method, address: &str, body: &impl Serialize) -> anyhow::Result<Bytes> {
    let what = format!("{method} /visits of {address}");
    let request = Request::builder().method(method).uri("/visits").header("host", address);
    let request = request.body(http_body_util::Full::new(Bytes::from(serde_json::to_vec(body)?)))?;
    let answer = tokio::time::timeout(CALL_TIMEOUT, send(address, request)).await;
    let (head, body) =
        answer.map_err(|_| anyhow::anyhow!("{what}: no answer"))?.with_context(|| what.clone())?;
    anyhow::ensure!(head.status.is_success(), "{what}: {}", head.status);
    Ok(body)
}
