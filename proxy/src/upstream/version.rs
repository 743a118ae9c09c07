//! The versions of one service as they live now: what was counted of each, and until when what is under way to it may go on.
//!
//! A version to which no request may go any more is left: its idle connections close, what is under way goes on for the
//! traffic's `drain_timeout`, and is ended then. Nothing that is short pays for it: only what has lasted for
//! [`LASTING`] begins to listen for that end.

use std::future::pending;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use gilmok_config::name::{Name, ServiceName};
use gilmok_config::traffic::Traffic;
use gilmok_config::unit::format_duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::mirrored::Mirrored;
use crate::metrics::{Sums, TargetSeries};

/// Most versions that have gone and are remembered for what is still under way to them.
const GONE_MAX: usize = 256;
/// What has lasted for so long listens for the end of its version: it ends that much too late at most.
pub(crate) const LASTING: Duration = Duration::from_secs(1);

/// One version of a service. Its endpoints hold it, and requests hold those: it lives until the last one has ended,
/// whatever documents and membership say by then.
#[derive(Debug, Default)]
pub(crate) struct VersionState {
    pub(crate) name: Name,
    /// Its part of each shard that it ever had. A mutex: held for a look-up, by those who put a snapshot in force and
    /// those who tell what was counted.
    targets: Mutex<Vec<Arc<TargetSeries>>>,
    /// What copies of other versions' requests came to here. Made with the first one.
    mirrored: OnceLock<Box<Mirrored>>,
    /// Since when it is left, where it is. A watch, since whatever lasts waits for it to change.
    left: watch::Sender<Option<Left>>,
    /// Whether it is: a relaxed load for those who only look, each time that something moves.
    is_left: AtomicBool,
    /// What was ended because its time was over. Relaxed: a number of its own.
    cut: AtomicU64,
}

/// No request may go to a version any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Left {
    since: Instant,
    /// When what is under way to it ends; `None` is never.
    until: Option<Instant>,
}

/// The end of the time that a version has, waited for.
pub(crate) struct Over(Pin<Box<dyn Future<Output = ()>>>);

/// The versions of one service in one snapshot.
#[derive(Debug, Default)]
pub(crate) struct Versions {
    /// Those that its traffic names, in that order, then those that only endpoints have.
    known: Vec<Arc<VersionState>>,
    /// Those that nobody names any more. Weak, so that they end with what is under way to them.
    gone: Vec<(Name, Weak<VersionState>)>,
}

impl VersionState {
    fn new(name: Name) -> Self {
        Self { name, ..Self::default() }
    }

    /// Its part of a shard.
    pub(crate) fn target(&self, shard: &Name, workers: usize) -> Arc<TargetSeries> {
        let mut targets = self.targets();
        if let Some(target) = targets.iter().find(|target| target.shard == *shard) {
            return Arc::clone(target);
        }
        let target = Arc::new(TargetSeries::new(self.name.clone(), shard.clone(), workers));
        targets.push(Arc::clone(&target));
        target
    }

    /// What all its parts came to.
    pub(crate) fn sums(&self) -> Sums {
        self.targets().iter().map(|target| target.sums()).sum()
    }

    /// Where copies of other versions' requests to it are counted.
    pub(crate) fn mirror(&self) -> &Mirrored {
        self.mirrored.get_or_init(Box::default)
    }

    /// What they came to, if there were any.
    pub(crate) fn mirrored(&self) -> Option<&Mirrored> {
        self.mirrored.get().map(Box::as_ref)
    }

    /// Whether requests may go to it.
    pub(crate) fn is_asked(&self) -> bool {
        !self.is_left.load(Relaxed)
    }

    /// Whether the time of what is under way to it is over.
    pub(crate) fn is_over(&self) -> bool {
        self.is_left.load(Relaxed)
            && self.left.borrow().and_then(|left| left.until).is_some_and(|until| until <= Instant::now())
    }

    /// Resolves when that time is over; it may begin, be prolonged and be taken back meanwhile.
    pub(crate) fn over(&self) -> Over {
        let mut left = self.left.subscribe();
        Over(Box::pin(async move {
            loop {
                let until = left.borrow_and_update().and_then(|left| left.until);
                let changed = match until {
                    Some(until) => match timeout_at(until, left.changed()).await {
                        Ok(changed) => changed,
                        Err(_elapsed) => return,
                    },
                    None => left.changed().await,
                };
                if changed.is_err() {
                    // Whoever listens holds it, so it is there.
                    return pending().await;
                }
            }
        }))
    }

    /// Something under way to it was ended because its time was over.
    pub(crate) fn cut(&self) {
        self.cut.fetch_add(1, Relaxed);
    }

    /// How often.
    pub(crate) fn cuts(&self) -> u64 {
        self.cut.load(Relaxed)
    }

    /// Notes whether it is left, and how long what is under way to it may go on then; whether it is from now on.
    fn settle(&self, is_left: bool, drain_timeout: Option<Duration>, now: Instant) -> bool {
        self.is_left.store(is_left, Relaxed);
        let mut is_news = false;
        self.left.send_if_modified(|left| {
            let since = left.map_or(now, |left| left.since);
            let next = is_left.then(|| Left { since, until: drain_timeout.map(|timeout| since + timeout) });
            is_news = is_left && left.is_none();
            std::mem::replace(left, next) != next
        });
        is_news
    }

    fn tell_left(&self, service: &ServiceName, drain_timeout: Option<Duration>) {
        let (name, in_flight) = (&self.name, self.sums().in_flight);
        let limit = drain_timeout.map_or_else(|| "as long as it lasts".to_owned(), format_duration);
        if in_flight > 0 {
            tracing::info!("{service}: nothing goes to {name} any more; in flight: {in_flight}, for {limit}");
        }
    }

    fn targets(&self) -> std::sync::MutexGuard<'_, Vec<Arc<TargetSeries>>> {
        // A panic leaves the list whole: it is only ever added to.
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Versions {
    /// Those of the next snapshot: at first all have gone. What is named is then taken up again.
    pub(crate) fn following(before: Option<&Self>) -> Self {
        let Some(before) = before else { return Self::default() };
        let known = before.known.iter().map(|version| (version.name.clone(), Arc::downgrade(version)));
        let alive = before.gone.iter().filter(|(_, version)| version.strong_count() > 0);
        Self { known: Vec::new(), gone: known.chain(alive.take(GONE_MAX).cloned()).collect() }
    }

    /// A version that is named: as it was, if it is still there.
    pub(crate) fn take_up(&mut self, name: &Name) -> Arc<VersionState> {
        if let Some(known) = self.known.iter().find(|known| known.name == *name) {
            return Arc::clone(known);
        }
        let mut gone = self.gone.iter().enumerate();
        let found = gone.find_map(|(at, (gone, version))| {
            let version = if gone == name { version.upgrade() } else { None };
            version.map(|version| (at, version))
        });
        let version = match found {
            Some((at, version)) => {
                self.gone.swap_remove(at);
                version
            }
            None => Arc::new(VersionState::new(name.clone())),
        };
        self.known.push(Arc::clone(&version));
        version
    }

    /// Those that somebody names: the traffic's first, at their places in it.
    pub(crate) fn known(&self) -> &[Arc<VersionState>] {
        &self.known
    }

    /// Those that nobody names any more, while something may be under way to them.
    pub(crate) fn gone(&self) -> impl Iterator<Item = Arc<VersionState>> {
        self.gone.iter().filter_map(|(_, version)| version.upgrade())
    }

    /// Leaves those to which no request may go any more, and takes back what was left and may be asked again.
    pub(crate) fn settle(&self, service: &ServiceName, traffic: Option<&Traffic>) {
        let now = Instant::now();
        for version in self.known.iter().cloned().chain(self.gone()) {
            let is_left = traffic.is_some_and(|traffic| !traffic.asks(&version.name));
            let drain_timeout = traffic.and_then(|traffic| traffic.drain_timeout);
            if version.settle(is_left, drain_timeout, now) {
                version.tell_left(service, drain_timeout);
            }
        }
    }
}

impl Future for Over {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}

impl std::fmt::Debug for Over {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Over")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    #[test]
    fn a_version_goes_on_while_something_is_under_way_to_it() {
        let mut first = Versions::following(None);
        let v1 = first.take_up(&name("v1"));
        drop(first.take_up(&name("v2")));
        v1.target(&Name::default(), 1).begin(0);
        let second = Versions::following(Some(&first));
        drop(first);
        assert_eq!(second.known().len(), 0);
        let gone: Vec<_> = second.gone().map(|version| version.sums().in_flight).collect();
        assert_eq!(gone, [1], "v1 is held, v2 is not");
        let mut third = Versions::following(Some(&second));
        assert!(Arc::ptr_eq(&third.take_up(&name("v1")), &v1), "it is back as it was");
        assert_eq!((third.known().len(), third.gone().count()), (1, 0));
        drop((third, v1));
        assert_eq!(second.gone().count(), 0);
    }

    #[test]
    fn what_has_gone_is_bounded() {
        let mut versions = Versions::default();
        for at in 0..GONE_MAX + 9 {
            drop(versions.take_up(&name(&format!("v{at}"))));
        }
        let second = Versions::following(Some(&versions));
        assert_eq!(second.gone().count(), GONE_MAX + 9);
        assert_eq!(Versions::following(Some(&second)).gone().count(), GONE_MAX);
    }

    async fn is_over(over: &mut Over) -> bool {
        std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut *over).poll(cx).is_ready())).await
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_under_way_has_the_time_that_the_document_gives_from_the_moment_it_was_left() {
        let version = VersionState::new(name("v1"));
        let mut over = version.over();
        assert!(!is_over(&mut over).await && version.is_asked());
        let (left, short, long) =
            (Instant::now(), Some(Duration::from_secs(10)), Some(Duration::from_secs(20)));
        assert!(version.settle(true, short, left), "news");
        tokio::time::advance(Duration::from_secs(9)).await;
        assert!(!version.settle(true, long, Instant::now()), "it was left before");
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(!is_over(&mut over).await && !version.is_over() && !version.is_asked());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(is_over(&mut over).await && version.is_over());
        version.settle(true, None, Instant::now());
        assert!(!version.is_over() && !is_over(&mut version.over()).await, "for ever");
    }

    #[tokio::test(start_paused = true)]
    async fn a_version_that_is_asked_again_has_all_time() {
        let version = VersionState::new(name("v1"));
        let (mut over, timeout) = (version.over(), Some(Duration::from_secs(10)));
        version.settle(true, timeout, Instant::now());
        assert!(!is_over(&mut over).await);
        tokio::time::advance(Duration::from_secs(9)).await;
        version.settle(false, timeout, Instant::now());
        tokio::time::advance(Duration::from_secs(9)).await;
        assert!(!is_over(&mut over).await && !version.is_over() && version.is_asked());
        assert!(version.settle(true, timeout, Instant::now()), "from the beginning");
        tokio::time::advance(Duration::from_secs(9)).await;
        assert!(!is_over(&mut over).await);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(is_over(&mut over).await);
    }
}
