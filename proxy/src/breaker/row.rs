//! Failures in a row, those told behind a good head among them.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Failures in a row, in two counts: a good head ends the one of those told in the head, only a whole answer that of
/// those told later. Otherwise whoever always breaks off in the body would begin anew with each head.
///
/// Relaxed atomics, each a number of its own. They are read before they are written: a line that is only read is not
/// taken from the other workers.
#[derive(Debug, Default)]
pub(crate) struct Row {
    early: AtomicU32,
    late: AtomicU32,
}

impl Row {
    /// How many there are.
    pub(crate) fn length(&self) -> u32 {
        self.early.load(Relaxed).max(self.late.load(Relaxed))
    }

    /// One more; how many there are of its kind.
    pub(crate) fn fail(&self) -> u32 {
        self.early.fetch_add(1, Relaxed).saturating_add(1)
    }

    /// One more, behind a good head; how many there are of its kind.
    pub(crate) fn fail_late(&self) -> u32 {
        self.late.fetch_add(1, Relaxed).saturating_add(1)
    }

    /// The head of an answer is good.
    pub(crate) fn good_head(&self) {
        end(&self.early);
    }

    /// An answer with a good head is whole.
    pub(crate) fn whole(&self) {
        end(&self.late);
    }

    /// Whatever it was, it is so long now.
    pub(crate) fn set(&self, length: u32) {
        self.early.store(length, Relaxed);
        self.late.store(length, Relaxed);
    }
}

fn end(count: &AtomicU32) {
    if count.load(Relaxed) != 0 {
        count.store(0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_head_ends_no_row_of_answers_that_broke_off() {
        let row = Row::default();
        for n in 1..=3 {
            row.good_head();
            assert_eq!(row.fail_late(), n);
        }
        assert_eq!(row.fail(), 1);
        row.good_head();
        assert_eq!(row.length(), 3);
        row.whole();
        assert_eq!(row.length(), 0);
        row.set(2);
        row.good_head();
        assert_eq!((row.fail_late(), row.length()), (3, 3));
    }
}
