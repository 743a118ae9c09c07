//! An upstream that a test makes sick and well again.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::upstream::{Upstream, ok};

/// What is the matter with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sickness {
    /// Answers with these bytes.
    Answers(Vec<u8>),
    /// Takes requests and never answers.
    Hangs,
    /// Takes a request and resets the connection.
    Resets,
    /// Answers after so long.
    Slow(Duration),
    /// Answers one byte after the other, with a pause between them, and never comes to the end of the body.
    Trickles,
    None,
}

/// An upstream whose state can be switched; `Upstream` is its address and what it saw.
#[derive(Debug)]
pub struct Sick {
    pub upstream: Upstream,
    state: Arc<Mutex<Sickness>>,
}

impl Sickness {
    /// An answer with this status.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self::Answers(format!("HTTP/1.1 {status} Sick\r\nContent-Length: 4\r\n\r\nsick").into_bytes())
    }
}

impl Sick {
    /// Answers `text` while it is well.
    pub async fn start(text: &str) -> Self {
        let state = Arc::new(Mutex::new(Sickness::None));
        let (seen, well) = (Arc::clone(&state), ok(text));
        let upstream = Upstream::start(move |mut conversation| {
            let (seen, well) = (Arc::clone(&seen), well.clone());
            async move {
                while conversation.request().await.is_some() {
                    let state = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    let goes_on = match state {
                        Sickness::None => conversation.send(&well).await,
                        Sickness::Answers(bytes) => conversation.send(bytes).await,
                        Sickness::Slow(time) => {
                            tokio::time::sleep(time).await;
                            conversation.send(&well).await
                        }
                        Sickness::Hangs => {
                            conversation.hang().await;
                            false
                        }
                        Sickness::Trickles => {
                            let head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n";
                            conversation.send(head).await;
                            conversation.trickle(vec![b'x'; 100_000], Duration::from_millis(100)).await;
                            false
                        }
                        Sickness::Resets => return conversation.reset(),
                    };
                    if !goes_on {
                        return;
                    }
                }
            }
        })
        .await;
        Self { upstream, state }
    }

    /// What it does with requests from now on.
    pub fn is(&self, state: Sickness) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// How many requests have reached it.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.upstream.requests().len()
    }
}
