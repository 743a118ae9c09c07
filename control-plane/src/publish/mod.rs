//! Telling proxies what is true, and hearing from them what they run.

mod acks;

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use gilmok_config::wire::HEARTBEAT_MS;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::compile::Published;

pub use acks::{Acks, Foreign, LIVE, ProxyReport};

/// Most proxies that may follow one control plane.
pub const SUBSCRIBERS_MAX: usize = 10_000;
/// Lines that may wait for one proxy's connection. They are shared by all, so this bounds pointers, not copies.
const WAITING_LINES_MAX: usize = 64;
/// How long one proxy may take none of its lines before its connection ends. Others never wait for it.
const STALL: Duration = Duration::from_secs(10);

/// Publishes to whoever follows.
#[derive(Debug)]
pub struct Publisher {
    /// A watch: followers see the newest state, however many they have missed. `None` until the store was written.
    published: watch::Sender<Option<Arc<Published>>>,
    /// Held while something is made to be published: one at a time, and whoever reads waits for none of it.
    making: Mutex<()>,
    subscribers: Arc<AtomicUsize>,
    pub acks: Acks,
}

/// Why nobody can follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FeedRefusal {
    #[error("{SUBSCRIBERS_MAX} proxies follow this control plane already")]
    Full,
    #[error("the store was never written, so there is nothing to follow yet; write a mesh document first")]
    NeverWritten,
}

impl Default for Publisher {
    fn default() -> Self {
        Self {
            published: watch::Sender::new(None),
            making: Mutex::default(),
            subscribers: Arc::default(),
            acks: Acks::default(),
        }
    }
}

impl Publisher {
    /// What is true now.
    #[must_use]
    pub fn current(&self) -> Option<Arc<Published>> {
        self.published.borrow().clone()
    }

    /// Follows what is true: new revisions, and who is alive.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Option<Arc<Published>>> {
        self.published.subscribe()
    }

    /// Says what is true from now on; `make` gets what was, and runs alone. `None` changes nothing.
    pub fn publish_with(&self, make: impl FnOnce(Option<&Published>) -> Option<Arc<Published>>) {
        let making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(now) = make(self.current().as_deref()) {
            self.published.send_replace(Some(now));
        }
        drop(making);
    }

    /// Proxies that follow.
    #[must_use]
    pub fn subscribers(&self) -> usize {
        self.subscribers.load(Relaxed)
    }

    /// The lines for one proxy, from a full set to whatever changes, until it leaves, stalls, or `stop` is true.
    ///
    /// # Errors
    /// When there is nothing to follow, or there are too many.
    pub fn follow(&self, stop: watch::Receiver<bool>) -> Result<mpsc::Receiver<Bytes>, FeedRefusal> {
        if self.published.borrow().is_none() {
            return Err(FeedRefusal::NeverWritten);
        }
        let counted = Counted::new(&self.subscribers).ok_or(FeedRefusal::Full)?;
        let (lines, waiting) = mpsc::channel(WAITING_LINES_MAX);
        let published = self.published.subscribe();
        // Ends when the proxy leaves or stalls, or with the publisher.
        tokio::spawn(async move {
            feed(published, stop, &lines).await;
            drop(counted);
        });
        Ok(waiting)
    }
}

async fn feed(
    mut published: watch::Receiver<Option<Arc<Published>>>,
    mut stop: watch::Receiver<bool>,
    lines: &mpsc::Sender<Bytes>,
) {
    let mut told: Option<Arc<Published>> = None;
    loop {
        let Some(now) = published.borrow_and_update().clone() else { return };
        for line in now.lines_since(told.as_deref()) {
            if send(lines, line).await.is_none() {
                return;
            }
        }
        let heartbeat = now.heartbeat.clone();
        told = Some(now);
        loop {
            let next_beat = Instant::now() + Duration::from_millis(HEARTBEAT_MS);
            tokio::select! {
                changed = published.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                () = sleep_until(next_beat) => if send(lines, heartbeat.clone()).await.is_none() { return },
                () = told_to_stop(&mut stop) => return,
                () = lines.closed() => return,
            }
        }
    }
}

async fn told_to_stop(stop: &mut watch::Receiver<bool>) {
    // Whoever could say so being gone is the same.
    drop(stop.wait_for(|stop| *stop).await);
}

/// Hands a line over; `None` when nobody takes it.
async fn send(lines: &mpsc::Sender<Bytes>, line: Bytes) -> Option<()> {
    timeout(STALL, lines.send(line)).await.ok()?.ok()
}

/// One follower, counted until it is dropped.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Option<Self> {
        if count.fetch_add(1, Relaxed) >= SUBSCRIBERS_MAX {
            count.fetch_sub(1, Relaxed);
            return None;
        }
        Some(Self(Arc::clone(count)))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::compile::compile;
    use crate::intent::Intent;
    use crate::membership::View;
    use crate::store::Identity;
    use crate::store::Revision;

    fn published(number: u64) -> Arc<Published> {
        let intent = Intent::parse(&json!({"services": {"ads": {"max_concurrent": number}}})).unwrap();
        let revision = Revision {
            number,
            at_ms: 0,
            who: String::new(),
            what: String::new(),
            reason: String::new(),
            hash: intent.hash,
            document: intent.json,
        };
        let identity = Identity { store: "s".into(), visitor_keys: "".into() };
        Arc::new(compile(&identity, &revision, &View::default(), None))
    }

    fn kind(line: &Bytes) -> String {
        serde_json::from_slice::<serde_json::Value>(line).unwrap()["line"].as_str().unwrap().to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_was_never_written_serves_no_feed() {
        let publisher = Publisher::default();
        let (_go_on, stop) = watch::channel(false);
        assert_eq!(publisher.follow(stop).unwrap_err(), FeedRefusal::NeverWritten);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_reads_does_not_wait_for_what_is_being_made() {
        let publisher = Publisher::default();
        publisher.publish_with(|_| Some(published(1)));
        let (_go_on, stop) = watch::channel(false);
        publisher.publish_with(|before| {
            assert_eq!(publisher.current().unwrap().revision, before.unwrap().revision);
            assert!(publisher.follow(stop).is_ok());
            Some(published(2))
        });
        assert_eq!(publisher.current().unwrap().revision, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_feed_beats_and_ends_when_told() {
        let publisher = Publisher::default();
        publisher.publish_with(|_| Some(published(1)));
        let (end, stop) = watch::channel(false);
        let mut lines = publisher.follow(stop).unwrap();
        let mut kinds = Vec::new();
        for _ in 0..5 {
            kinds.push(kind(&lines.recv().await.unwrap()));
        }
        assert_eq!(kinds, ["hello", "document", "synced", "heartbeat", "heartbeat"]);
        end.send_replace(true);
        while lines.recv().await.is_some() {}
        assert_eq!(publisher.subscribers(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stuck_proxy_delays_nobody_and_is_let_go() {
        let publisher = Publisher::default();
        publisher.publish_with(|_| Some(published(1)));
        let (_go_on, stop) = watch::channel(false);
        let stuck = publisher.follow(stop.clone()).unwrap();
        let mut lively = publisher.follow(stop).unwrap();
        for number in 2..200 {
            publisher.publish_with(|_| Some(published(number)));
            loop {
                let line = lively.recv().await.unwrap();
                if kind(&line) == "document"
                    && String::from_utf8_lossy(&line).contains(&format!("\"revision\":{number},"))
                {
                    break;
                }
            }
        }
        tokio::time::sleep(STALL * 2).await;
        assert_eq!(publisher.subscribers(), 1, "the stuck one is gone");
        drop(stuck);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_was_slow_sees_the_newest_state_not_every_one() {
        let publisher = Publisher::default();
        publisher.publish_with(|_| Some(published(1)));
        let (_go_on, stop) = watch::channel(false);
        let mut lines = publisher.follow(stop).unwrap();
        while kind(&lines.recv().await.unwrap()) != "synced" {}
        for number in 2..100 {
            publisher.publish_with(|_| Some(published(number)));
        }
        let line = lines.recv().await.unwrap();
        assert!(String::from_utf8_lossy(&line).contains("\"revision\":99,"), "{line:?}");
    }
}
