//! The handshakes that are under way, at most so many: whoever opens thousands and says nothing crowds out its own.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Handshakes that are under way, and which of them ends when there are too many: the one that has lasted longest.
#[derive(Debug)]
pub(super) struct Handshakes {
    most: usize,
    /// A std mutex: taken for a look-up at both ends of a handshake, and nothing is awaited under it.
    running: Mutex<Running>,
}

#[derive(Debug, Default)]
struct Running {
    next: u64,
    /// By when they began. Dropping the sender ends one.
    ends: BTreeMap<u64, oneshot::Sender<()>>,
}

/// A place among them, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place<'h> {
    handshakes: &'h Handshakes,
    number: u64,
}

impl Handshakes {
    pub(super) fn new(most: usize) -> Self {
        Self { most, running: Mutex::default() }
    }

    /// A place, and what fails once it has to make room for others.
    pub(super) fn begin(&self) -> (Place<'_>, oneshot::Receiver<()>) {
        let (end, ended) = oneshot::channel();
        let mut running = self.lock();
        let number = running.next;
        running.next += 1;
        if running.ends.len() >= self.most {
            running.ends.pop_first();
        }
        running.ends.insert(number, end);
        (Place { handshakes: self, number }, ended)
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        // Whoever panicked left a whole map.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.handshakes.lock().ends.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_has_lasted_longest_makes_room() {
        let is_ended =
            |ended: &mut oneshot::Receiver<()>| ended.try_recv() == Err(oneshot::error::TryRecvError::Closed);
        let handshakes = Handshakes::new(2);
        let (first, mut first_ended) = handshakes.begin();
        let (second, mut second_ended) = handshakes.begin();
        let (_third, mut third_ended) = handshakes.begin();
        assert!(is_ended(&mut first_ended) && !is_ended(&mut second_ended) && !is_ended(&mut third_ended));
        drop((first, second));
        let (_fourth, mut fourth_ended) = handshakes.begin();
        assert!(!is_ended(&mut third_ended) && !is_ended(&mut fourth_ended), "places are given back");
        assert_eq!(handshakes.lock().ends.len(), 2);
    }
}
