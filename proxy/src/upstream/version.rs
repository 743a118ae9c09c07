//! The versions of one service as they live now: what was counted of each, for as long as anything is under way to it.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use gilmok_config::name::Name;

use super::mirrored::Mirrored;
use crate::metrics::{Sums, TargetSeries};

/// Most versions that have gone and are remembered for what is still under way to them.
const GONE_MAX: usize = 256;

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
}

/// The versions of one service in one snapshot.
#[derive(Debug, Default)]
pub(crate) struct Versions {
    /// Those that its traffic names, in that order, then those that only endpoints have.
    known: Vec<Arc<VersionState>>,
    /// Those that nobody names any more. Weak, so that they end with what is under way to them.
    gone: Vec<Weak<VersionState>>,
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

    fn targets(&self) -> std::sync::MutexGuard<'_, Vec<Arc<TargetSeries>>> {
        // A panic leaves the list whole: it is only ever added to.
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Versions {
    /// Those of the next snapshot: at first all have gone. What is named is then taken up again.
    pub(crate) fn following(before: Option<&Self>) -> Self {
        let Some(before) = before else { return Self::default() };
        let alive = before.gone.iter().filter(|version| version.strong_count() > 0);
        let gone = before.known.iter().map(Arc::downgrade).chain(alive.cloned());
        Self { known: Vec::new(), gone: gone.take(GONE_MAX).collect() }
    }

    /// A version that is named: as it was, if it is still there.
    pub(crate) fn take_up(&mut self, name: &Name) -> Arc<VersionState> {
        if let Some(known) = self.known.iter().find(|known| known.name == *name) {
            return Arc::clone(known);
        }
        let mut gone = self.gone.iter().enumerate();
        let found = gone.find_map(|(at, version)| {
            version.upgrade().filter(|version| version.name == *name).map(|version| (at, version))
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
        self.gone.iter().filter_map(Weak::upgrade)
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
        assert_eq!(Versions::following(Some(&versions)).gone().count(), GONE_MAX);
    }
}
