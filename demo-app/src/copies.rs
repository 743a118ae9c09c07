//! The job that copies what moves from one shard to another, when the control plane says so by webhook.
//!
//! Any process could do it. Here every demo app can, whichever is told: it reads from the one shard, writes to the other,
//! and answers when that is done. It is told twice: while the old shard is still written to, and once more when nobody
//! writes any more. Each time it copies all of the part, so that the last time is right whatever came before.

use anyhow::Context as _;
use bytes::Bytes;
use hyper::{Method, Request};
use serde::Deserialize;

use crate::calls::{CALL_TIMEOUT, send};

/// What is said of a part that moves.
#[derive(Debug, Deserialize)]
struct Message {
    event: String,
    batch: Batch,
}

/// The part, and where it is.
#[derive(Debug, Deserialize)]
struct Batch {
    slots: Vec<(u64, u64)>,
    source: Vec<String>,
    target: Vec<String>,
}

/// Does what a message asks for.
///
/// # Errors
/// When it is no such message, or somebody does not do as asked.
pub(crate) async fn follow(message: &[u8]) -> anyhow::Result<()> {
    let Message { event, batch } = serde_json::from_slice(message).context("not a message about a move")?;
    let slots: Vec<_> = batch.slots.iter().map(|(first, last)| format!("{first}-{last}")).collect();
    let path = format!("/visits?slots={}", slots.join(","));
    let source = || batch.source.first().context("nobody has the part");
    let target = || batch.target.first().context("nobody takes the part");
    match event.as_str() {
        "copy" | "fenced" => {
            let held = ask(Method::GET, source()?, &path, Bytes::new()).await?;
            ask(Method::PUT, target()?, &path, held).await?;
        }
        // Whoever asks for it there is sent on, so it is of no use any more.
        "moved" => drop(ask(Method::DELETE, source()?, &path, Bytes::new()).await?),
        _ => {}
    }
    Ok(())
}

async fn ask(method: Method, address: &str, path: &str, body: Bytes) -> anyhow::Result<Bytes> {
    let what = format!("{method} {path} of {address}");
    let request = Request::builder().method(method).uri(path).header("host", address);
    let request = request.body(http_body_util::Full::new(body))?;
    let answer = tokio::time::timeout(CALL_TIMEOUT, send(address, request)).await;
    let (head, body) =
        answer.map_err(|_| anyhow::anyhow!("{what}: no answer"))?.with_context(|| what.clone())?;
    anyhow::ensure!(head.status.is_success(), "{what}: {}", head.status);
    Ok(body)
}
