//! Unsafe requests under way to a sharded service, counted so that a batch of its keys can be closed: those of the batch, and
//! those that were decided on before the batch was known.
//!
//! Counting begins anew whenever another batch is to move, or another rule divides the keys: an era. A request is counted in
//! the era of the snapshot that decided on it, from the turn of the worker's loop in which it was decided on until its answer
//! has ended. Once every worker has taken a snapshot with the batch nobody is added to the eras before, so that the batch is
//! quiet when its own part of its era and all of the eras before are empty.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Weak};

use gilmok_config::sharding::Sharding;
use gilmok_config::sharding::moving::Next;
use tokio::sync::Notify;

/// The unsafe requests under way to one service in one snapshot.
#[derive(Debug)]
pub(crate) struct Passages {
    rule: Arc<Sharding>,
    now: Arc<Era>,
    /// The eras before. Weak, so that one ends with the last request in it and the last snapshot that could add one: there
    /// are never more of them than requests and snapshots are under way.
    before: Vec<Weak<Era>>,
}

/// One unsafe request under way; it counts until this is dropped.
#[derive(Debug)]
pub(crate) struct Passage {
    era: Arc<Era>,
    moves: bool,
}

/// What is counted while one batch, or none, is known. Atomics: requests of all workers write, the thread of the acks reads.
/// Sequentially consistent: whoever takes the last request away and whoever begins to watch must not miss each other.
#[derive(Debug)]
struct Era {
    /// Requests of the batch.
    moving: AtomicU64,
    others: AtomicU64,
    /// Whether somebody waits for it to become empty.
    is_watched: AtomicBool,
    /// Told then.
    emptied: Arc<Notify>,
}

impl Passages {
    /// Those of the next snapshot, which has this rule. `emptied` is told whenever a closed batch may have become quiet.
    pub(crate) fn following(before: Option<&Self>, rule: &Arc<Sharding>, emptied: &Arc<Notify>) -> Self {
        let kept = before.filter(|before| is_same_batch(&before.rule, rule));
        let now = kept.map_or_else(|| Era::new(emptied), |kept| Arc::clone(&kept.now));
        let earlier = before.into_iter().flat_map(|before| {
            let ended = if kept.is_some() { None } else { Some(Arc::downgrade(&before.now)) };
            before.before.iter().cloned().chain(ended)
        });
        let passages = Self {
            rule: Arc::clone(rule),
            now,
            before: earlier.filter(|era| era.strong_count() > 0).collect(),
        };
        if rule.is_closed() {
            passages.eras_before().for_each(|era| era.is_watched.store(true, SeqCst));
            passages.now.is_watched.store(true, SeqCst);
        }
        passages
    }

    /// A request goes to the service; `moves` says whether it is of the batch.
    pub(crate) fn begin(&self, moves: bool) -> Passage {
        Passage::begin(&self.now, moves)
    }

    /// How many are under way that are of the batch, or were decided on before it was known.
    pub(crate) fn unquiet(&self) -> u64 {
        let before = self.eras_before().map(|era| era.moving.load(SeqCst) + era.others.load(SeqCst));
        self.now.moving.load(SeqCst) + before.sum::<u64>()
    }

    fn eras_before(&self) -> impl Iterator<Item = Arc<Era>> {
        self.before.iter().filter_map(Weak::upgrade)
    }
}

/// Whether the same keys are of the batch by both rules, open or closed, and nobody has another shard.
fn is_same_batch(one: &Sharding, other: &Sharding) -> bool {
    one.divides_as(other) && one.next().map(Next::map_hash) == other.next().map(Next::map_hash)
}

impl Era {
    fn new(emptied: &Arc<Notify>) -> Arc<Self> {
        Arc::new(Self {
            moving: AtomicU64::new(0),
            others: AtomicU64::new(0),
            is_watched: AtomicBool::new(false),
            emptied: Arc::clone(emptied),
        })
    }

    fn count(&self, moves: bool) -> &AtomicU64 {
        if moves { &self.moving } else { &self.others }
    }
}

impl Passage {
    fn begin(era: &Arc<Era>, moves: bool) -> Self {
        era.count(moves).fetch_add(1, SeqCst);
        Self { era: Arc::clone(era), moves }
    }

    /// Another one for a copy of the request.
    pub(crate) fn twin(&self) -> Self {
        Self::begin(&self.era, self.moves)
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        let left = self.era.count(self.moves).fetch_sub(1, SeqCst) - 1;
        if left == 0 && self.era.is_watched.load(SeqCst) {
            self.era.emptied.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use gilmok_config::document::Document;

    use super::*;

    /// By number: 0 and 1 at two shards; then 1 leaves with whatever `next` says.
    fn rule(next: &str) -> Arc<Sharding> {
        let text = format!(
            "[services.s.sharding]\nkey = \"host\"\nstrategy = \"modulo\"\nhash = \"identity\"\nshards = [\"0\", \"1\"]\n{next}"
        );
        let service = Document::parse_toml(&text).unwrap().services["s"].clone();
        service.sharding.unwrap()
    }

    const OPEN: &str = "[services.s.sharding.next]\nshards = [\"0\", \"2\"]\n";
    const CLOSED: &str = "[services.s.sharding.next]\nshards = [\"0\", \"2\"]\nclosed = 41\n";
    const OTHER: &str = "[services.s.sharding.next]\nshards = [\"2\", \"1\"]\n";

    fn after(before: &Passages, next: &str) -> Passages {
        Passages::following(Some(before), &rule(next), &before.now.emptied)
    }

    fn first() -> Passages {
        Passages::following(None, &rule(""), &Arc::default())
    }

    #[test]
    fn a_batch_waits_for_its_own_requests_and_for_all_that_came_before_it_was_known() {
        let known_before = first();
        let early = known_before.begin(false);
        let open = after(&known_before, OPEN);
        assert_eq!(open.unquiet(), 1, "decided on before");
        let (own, other) = (open.begin(true), open.begin(false));
        let closed = after(&open, CLOSED);
        assert_eq!(closed.unquiet(), 2, "the request of another key does not count");
        drop(known_before.begin(false));
        assert_eq!(
            (known_before.unquiet(), closed.unquiet()),
            (0, 2),
            "without a batch nothing is waited for"
        );
        drop(early);
        drop(own);
        assert_eq!(closed.unquiet(), 0);
        drop(other);
        let reopened = after(&closed, OPEN);
        let _own = reopened.begin(true);
        assert_eq!(after(&reopened, CLOSED).unquiet(), 1, "open again and closed again: the same batch");
    }

    #[test]
    fn another_batch_counts_anew_and_waits_for_the_one_before() {
        let open = after(&first(), OPEN);
        let (own, other) = (open.begin(true), open.begin(false));
        let next = after(&open, OTHER);
        assert_eq!(next.unquiet(), 2);
        let third = after(&after(&next, ""), OTHER);
        assert_eq!(third.unquiet(), 2);
        drop((own, other, open, next));
        assert_eq!(third.unquiet(), 0);
        assert_eq!(after(&third, "").before.len(), 1, "only the era that could still be added to is kept");
    }

    #[test]
    fn a_snapshot_that_somebody_still_decides_by_is_waited_for() {
        let old = first();
        let closed = after(&old, CLOSED);
        assert_eq!(closed.unquiet(), 0);
        let late = old.begin(false);
        drop(old);
        assert_eq!(closed.unquiet(), 1);
        drop(late);
        assert_eq!(closed.unquiet(), 0);
    }

    #[tokio::test]
    async fn the_last_request_that_a_closed_batch_waits_for_is_told_and_no_other() {
        let old = first();
        let emptied = Arc::clone(&old.now.emptied);
        let early = old.begin(false);
        let told = async || {
            let mut waiting = std::pin::pin!(emptied.notified());
            std::future::poll_fn(|cx| std::task::Poll::Ready(waiting.as_mut().poll(cx).is_ready())).await
        };
        let open = after(&old, OPEN);
        let (one, two) = (open.begin(true), open.begin(true));
        drop(open.begin(true).twin());
        assert!(!told().await, "nothing is closed");
        let _closed = after(&open, CLOSED);
        drop(one);
        assert!(!told().await, "there is another one");
        drop(two);
        assert!(told().await);
        drop(early);
        assert!(told().await, "the eras before are watched too");
    }
}
