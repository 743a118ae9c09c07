//! Change events: a stream (server-sent events) that says whenever what flags come to may have changed.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::sleep;

use super::answer::Refused;
use crate::clock;
use crate::current::InForce;

/// Something comes at least so often, so that whoever is between does not take the stream for dead.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// When clients come back after the stream has ended.
const HELLO: &str = "retry: 1000\n: listening\n\n";

/// The body of such an answer.
#[derive(Debug)]
pub(super) struct Events {
    /// Of one: what a client does not take waits where it is made, and what is newer overtakes it there.
    frames: mpsc::Receiver<Bytes>,
    _place: OwnedSemaphorePermit,
}

impl Events {
    /// Begins to listen. `last` is the event that the client heard last, which says whether it has missed one.
    pub(super) fn begin(
        in_force: &Arc<InForce>,
        streams: &Arc<Semaphore>,
        last: Option<String>,
    ) -> Result<Self, Refused> {
        let place = Arc::clone(streams).try_acquire_owned().map_err(|_full| Refused::too_many_streams())?;
        let (sender, frames) = mpsc::channel(1);
        // Ends when the body is dropped, or with its runtime.
        tokio::spawn(tell(Arc::clone(in_force), sender, last));
        Ok(Self { frames, _place: place })
    }
}

impl Body for Events {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.frames.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// Tells changes until nobody listens.
async fn tell(in_force: Arc<InForce>, frames: mpsc::Sender<Bytes>, last: Option<String>) {
    let mut generations = in_force.generations();
    let mut told = last;
    let mut next = Bytes::from_static(HELLO.as_bytes());
    loop {
        // Fails when nobody listens any more.
        if !next.is_empty() && frames.send(next).await.is_err() {
            return;
        }
        generations.mark_unchanged();
        let revision = in_force.load().flag_revision.to_string();
        if told.as_deref().is_some_and(|told| told != revision) {
            next = event(&revision);
            told = Some(revision);
            continue;
        }
        told = Some(revision);
        next = tokio::select! {
            changed = generations.changed() => match changed {
                Ok(()) => Bytes::new(),
                Err(_gone) => return,
            },
            () = sleep(HEARTBEAT) => Bytes::from_static(b": still here\n\n"),
            () = frames.closed() => return,
        };
    }
}

fn event(revision: &str) -> Bytes {
    let data = json!({
        "type": "refetchEvaluation",
        "etag": format!("\"{revision}\""),
        "lastModified": clock::unix_seconds(),
    });
    Bytes::from(format!("event: message\nid: {revision}\ndata: {data}\n\n"))
}
