//! What of a newly read list is believed: gains at once, losses once they are confirmed.
//!
//! Consul has answered valid, empty lists during elections and after restarts, and a check may turn critical for a
//! moment when its service registers again. So what would leave the balancing stays until
//! - one more read agrees, for a single instance that is gone or in maintenance;
//! - reads have agreed for [`FLAP_HOLD`], for an instance whose check turned critical;
//! - reads have agreed for [`MASS_HOLD`], when nothing or less than half would be left;
//! - for good, when the list is empty and the token may simply not be allowed to see what there is.
//!
//! Only believed reads count, i.e. not stale ones; the last one, too, on which the loss is acted upon.
//!
//! Pure: time and evidence are arguments.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use tokio::time::Instant;

/// How long losses of everything or of more than half are confirmed.
pub(super) const MASS_HOLD: Duration = Duration::from_secs(2);
/// How long a critical check is confirmed.
pub(super) const FLAP_HOLD: Duration = Duration::from_millis(1_500);
/// How long to wait at least before a read is repeated that could not confirm a loss.
const UNCONFIRMED_AGAIN_MIN: Duration = Duration::from_millis(100);

/// Whether an item of a list counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stand {
    /// Receives traffic.
    In,
    /// Taken out on purpose.
    Out,
    /// A check says so, which may be about to change its mind.
    Unwell,
}

/// An item of a list that is settled.
pub(super) trait Standing: Clone + PartialEq {
    fn standing(&self) -> Stand;
}

/// How much a list is worth.
#[derive(Clone, Copy, Debug)]
pub(super) struct Evidence {
    /// It comes from a server that is in touch with the leader, and the token hid nothing that we know of.
    pub(super) believed: bool,
    /// An empty list means that there is nothing, not that the token may not see it.
    pub(super) may_empty: bool,
}

/// What came of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settled {
    /// The current list is another one now.
    pub(super) changed: bool,
    /// When losses wait for confirmation: how long until another read can settle them.
    pub(super) confirm_in: Option<Duration>,
    /// Everything is gone, and that is not believed.
    pub(super) kept_in_doubt: bool,
}

/// The list that is acted upon, and what is about to leave it.
#[derive(Debug)]
pub(super) struct Listing<K, V> {
    current: BTreeMap<K, V>,
    /// Whether any answer has been seen; before, `current` is what an earlier life knew, or nothing.
    known: bool,
    leaving: BTreeMap<K, Leaving>,
}

#[derive(Clone, Copy, Debug)]
struct Leaving {
    since: Instant,
    /// When a believed read first agreed.
    believed_since: Option<Instant>,
    /// Whether there has been a read after the first one.
    read_again: bool,
}

impl<K: Ord + Clone, V: Standing> Listing<K, V> {
    /// A list that begins with what was known last.
    pub(super) fn new(last_known: BTreeMap<K, V>) -> Self {
        Self { current: last_known, known: false, leaving: BTreeMap::new() }
    }

    /// The list that is acted upon.
    pub(super) fn current(&self) -> &BTreeMap<K, V> {
        &self.current
    }

    /// Takes in what has just been read, asked after every earlier list had been taken in.
    pub(super) fn settle(&mut self, now: Instant, fresh: BTreeMap<K, V>, evidence: Evidence) -> Settled {
        self.note_losses(now, &fresh, evidence);
        let is_in = |list: &BTreeMap<K, V>| list.values().filter(|v| v.standing() == Stand::In).count();
        let (before, left) = (is_in(&self.current), is_in(&fresh));
        let mass = left == 0 || left * 2 < before;
        // What is visible, if only as critical, is not hidden.
        let in_doubt = fresh.is_empty() && !evidence.may_empty;

        let mut next = fresh;
        let mut confirm_in: Option<Duration> = None;
        let mut waiting = BTreeMap::new();
        for (key, leaving) in std::mem::take(&mut self.leaving) {
            let flap = if next.get(&key).is_some_and(|v| v.standing() == Stand::Unwell) {
                FLAP_HOLD
            } else {
                Duration::ZERO
            };
            let hold = if mass { MASS_HOLD } else { flap };
            let age = |since| now.saturating_duration_since(since);
            // The first read again is immediate. What is believed need only go on for the rest of its time; while
            // nothing is, the reads are further and further apart.
            let rest = match leaving.believed_since {
                _ if !leaving.read_again => Duration::ZERO,
                Some(since) if evidence.believed => {
                    let rest = hold.saturating_sub(age(since));
                    if rest.is_zero() && !in_doubt {
                        continue;
                    }
                    rest
                }
                Some(_) | None => (age(leaving.since) / 2).max(UNCONFIRMED_AGAIN_MIN),
            };
            confirm_in = Some(confirm_in.map_or(rest, |least| least.min(rest)));
            if let Some(kept) = self.current.get(&key) {
                next.insert(key.clone(), kept.clone());
            }
            waiting.insert(key, leaving);
        }
        self.leaving = waiting;
        let changed = !self.known || next != self.current;
        self.known = true;
        self.current = next;
        let kept_in_doubt = in_doubt && !self.leaving.is_empty();
        // Reading again cannot tell a hidden list from an empty one.
        Settled { changed, confirm_in: confirm_in.filter(|_| !kept_in_doubt), kept_in_doubt }
    }

    /// Brings `leaving` up to what this read lacks.
    fn note_losses(&mut self, now: Instant, fresh: &BTreeMap<K, V>, evidence: Evidence) {
        let lost = |key: &K| fresh.get(key).is_none_or(|value| value.standing() != Stand::In);
        self.leaving.retain(|key, _| lost(key));
        for (key, value) in &self.current {
            if value.standing() != Stand::In || !lost(key) {
                continue;
            }
            let leaving = match self.leaving.entry(key.clone()) {
                Entry::Occupied(known) => {
                    let leaving = known.into_mut();
                    leaving.read_again = true;
                    leaving
                }
                Entry::Vacant(new) => {
                    new.insert(Leaving { since: now, believed_since: None, read_again: false })
                }
            };
            if evidence.believed {
                leaving.believed_since.get_or_insert(now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SURE: Evidence = Evidence { believed: true, may_empty: true };
    const STALE: Evidence = Evidence { believed: false, may_empty: true };
    const DENIED: Evidence = Evidence { believed: true, may_empty: false };
    const MS: Duration = Duration::from_millis(1);

    #[derive(Clone, Debug, PartialEq)]
    struct Item(Stand);

    impl Standing for Item {
        fn standing(&self) -> Stand {
            self.0
        }
    }

    /// `abc` are in, `(x)` is unwell, `[x]` is in maintenance.
    fn list(text: &str) -> BTreeMap<char, Item> {
        let mut items = BTreeMap::new();
        let mut stand = Stand::In;
        for letter in text.chars() {
            match letter {
                '(' => stand = Stand::Unwell,
                '[' => stand = Stand::Out,
                ')' | ']' => stand = Stand::In,
                _ => drop(items.insert(letter, Item(stand))),
            }
        }
        items
    }

    /// A listing and the time that has passed for it.
    struct Scene {
        listing: Listing<char, Item>,
        now: Instant,
    }

    impl Scene {
        fn known(text: &str) -> Self {
            let mut scene = Self { listing: Listing::new(BTreeMap::new()), now: Instant::now() };
            assert!(scene.read(Duration::ZERO, text, SURE).changed);
            scene
        }

        fn read(&mut self, later: Duration, text: &str, evidence: Evidence) -> Settled {
            self.now += later;
            self.listing.settle(self.now, list(text), evidence)
        }

        #[track_caller]
        fn holds(&self, text: &str) {
            assert_eq!(self.listing.current(), &list(text));
        }
    }

    #[test]
    fn gains_are_believed_at_once() {
        let mut scene = Scene::known("");
        let settled = scene.read(MS, "a", STALE);
        assert_eq!(settled, Settled { changed: true, confirm_in: None, kept_in_doubt: false });
        scene.read(MS, "ab(c)", SURE);
        scene.holds("ab(c)");
    }

    #[test]
    fn a_list_that_says_the_same_changes_nothing() {
        let mut scene = Scene::known("ab");
        assert!(!scene.read(MS, "ab", SURE).changed);
    }

    #[test]
    fn a_single_deregistration_takes_one_more_read_and_no_time() {
        for (gone, after) in [("ab", "ab"), ("ab[c]", "ab[c]")] {
            let mut scene = Scene::known("abc");
            let settled = scene.read(MS, gone, SURE);
            assert_eq!((settled.changed, settled.confirm_in), (false, Some(Duration::ZERO)));
            scene.holds("abc");
            let settled = scene.read(MS, gone, SURE);
            assert_eq!((settled.changed, settled.confirm_in), (true, None));
            scene.holds(after);
        }
    }

    #[test]
    fn a_loss_that_the_next_read_does_not_show_never_happened() {
        let mut scene = Scene::known("abc");
        scene.read(MS, "ab", STALE);
        assert!(!scene.read(MS, "abc", SURE).changed);
        // And the next one needs its own confirmation.
        assert!(!scene.read(MS, "ab", SURE).changed);
        scene.holds("abc");
    }

    #[test]
    fn what_a_server_without_a_leader_says_confirms_nothing() {
        let mut scene = Scene::known("abc");
        scene.read(MS, "ab", STALE);
        for _ in 0..100 {
            let settled = scene.read(Duration::from_secs(1), "ab", STALE);
            assert!(!settled.changed && settled.confirm_in.is_some());
        }
        scene.holds("abc");
        assert!(scene.read(MS, "ab", SURE).changed);
    }

    #[test]
    fn reads_that_cannot_confirm_are_further_and_further_apart() {
        let mut scene = Scene::known("abc");
        let mut pause = scene.read(MS, "ab", STALE).confirm_in.unwrap();
        let mut reads = 0;
        let end = scene.now + Duration::from_secs(600);
        while scene.now < end {
            pause = scene.read(pause, "ab", STALE).confirm_in.unwrap();
            reads += 1;
        }
        assert!(reads < 40, "{reads}");
    }

    #[test]
    fn an_emptied_list_and_a_loss_of_more_than_half_take_two_seconds() {
        for (before, gone) in [("a", ""), ("abcd", ""), ("abcd", "a"), ("abc", "a(bc)"), ("ab", "[ab]")] {
            let mut scene = Scene::known(before);
            assert_eq!(scene.read(MS, gone, SURE).confirm_in, Some(Duration::ZERO), "{before} to {gone}");
            let settled = scene.read(MS, gone, SURE);
            assert_eq!((settled.changed, settled.confirm_in), (false, Some(MASS_HOLD - MS)));
            scene.holds(before);
            assert!(!scene.read(MASS_HOLD - 2 * MS, gone, SURE).changed);
            assert!(scene.read(MS, gone, SURE).changed, "{before} to {gone}");
            scene.holds(gone);
        }
    }

    #[test]
    fn two_seconds_begin_and_end_with_a_believed_read() {
        // There was a leader, then none: a stale read is not the end of the two seconds.
        let mut scene = Scene::known("abc");
        scene.read(MS, "", SURE);
        scene.read(MS, "", SURE);
        let settled = scene.read(MASS_HOLD, "", STALE);
        assert!(!settled.changed && settled.confirm_in.is_some());
        assert!(scene.read(MS, "", SURE).changed);
        // There was no leader, then one: a stale read is not their beginning.
        let mut scene = Scene::known("abc");
        scene.read(MS, "", STALE);
        scene.read(MASS_HOLD, "", SURE);
        scene.holds("abc");
        assert!(scene.read(MASS_HOLD, "", SURE).changed);
    }

    #[test]
    fn half_may_leave_without_delay() {
        let mut scene = Scene::known("abcd");
        scene.read(MS, "ab", SURE);
        assert!(scene.read(MS, "ab", SURE).changed);
        scene.holds("ab");
    }

    #[test]
    fn a_list_that_is_back_within_two_seconds_was_never_gone() {
        let mut scene = Scene::known("abcd");
        scene.read(MS, "", SURE);
        scene.read(Duration::from_millis(1_900), "", SURE);
        assert!(!scene.read(MS, "abcd", SURE).changed);
        scene.read(Duration::from_secs(1), "", SURE);
        let settled = scene.read(Duration::from_millis(1_900), "", SURE);
        assert!(!settled.changed, "the two seconds begin anew");
    }

    #[test]
    fn all_replaced_at_once_by_as_many_is_no_mass_loss() {
        let mut scene = Scene::known("abc");
        assert!(scene.read(MS, "xyz", SURE).changed, "the new ones are in");
        scene.holds("abcxyz");
        assert!(scene.read(MS, "xyz", SURE).changed);
        scene.holds("xyz");
    }

    #[test]
    fn a_check_that_turns_critical_for_a_moment_takes_nothing_out() {
        let mut scene = Scene::known("abc");
        scene.read(MS, "ab(c)", SURE);
        let settled = scene.read(MS, "ab(c)", SURE);
        assert_eq!((settled.changed, settled.confirm_in), (false, Some(FLAP_HOLD - MS)));
        assert!(!scene.read(Duration::from_secs(1), "abc", SURE).changed);
        scene.holds("abc");
        scene.read(MS, "ab(c)", SURE);
        assert!(scene.read(FLAP_HOLD, "ab(c)", SURE).changed);
        scene.holds("ab(c)");
    }

    #[test]
    fn a_flap_delays_no_one_else() {
        let mut scene = Scene::known("abcd");
        scene.read(MS, "abc(d)", SURE);
        scene.read(MS, "abce(d)", SURE);
        scene.holds("abcde");
        scene.read(MS, "abe(d)", SURE);
        scene.read(MS, "abe(d)", SURE);
        scene.holds("abde");
    }

    #[test]
    fn empty_where_the_token_may_see_nothing_is_no_removal() {
        let mut scene = Scene::known("ab");
        scene.read(MS, "", DENIED);
        for _ in 0..10 {
            let settled = scene.read(Duration::from_secs(60), "", DENIED);
            assert_eq!(settled, Settled { changed: false, confirm_in: None, kept_in_doubt: true });
        }
        scene.holds("ab");
        // What is left shows that the token sees: now it counts.
        assert!(scene.read(MS, "c", DENIED).changed);
        scene.holds("c");
    }

    #[test]
    fn what_is_visible_as_critical_is_not_hidden() {
        let mut scene = Scene::known("ab");
        scene.read(MS, "(ab)", DENIED);
        assert!(scene.read(MASS_HOLD, "(ab)", DENIED).changed);
        scene.holds("(ab)");
    }

    #[test]
    fn what_an_earlier_life_knew_is_confirmed_like_anything_else() {
        let mut scene = Scene { listing: Listing::new(list("abcd")), now: Instant::now() };
        assert!(scene.read(MS, "", SURE).changed, "an answer has been seen");
        scene.holds("abcd");
        scene.read(MASS_HOLD, "", SURE);
        scene.holds("");
    }

    proptest::proptest! {
        /// Whatever is read, nothing leaves that the last believed read still showed, and what all reads of the last
        /// two seconds agreed on is what is acted upon.
        #[test]
        fn the_listing_follows_what_is_agreed_on(
            reads in proptest::collection::vec((0_u64..700, 0_u8..32, proptest::bool::ANY), 1..60),
        ) {
            let items = |bits: u8| ('a'..='e').enumerate().filter(move |(bit, _)| bits >> bit & 1 == 1);
            let text = |bits: u8| items(bits).map(|(_, letter)| letter).collect::<String>();
            let mut scene = Scene::known("abcde");
            let mut last = 31;
            for (later, bits, believed) in reads {
                let evidence = Evidence { believed, may_empty: true };
                scene.read(Duration::from_millis(later), &text(bits), evidence);
                for (_, letter) in items(bits) {
                    proptest::prop_assert!(scene.listing.current().contains_key(&letter));
                }
                last = bits;
            }
            scene.read(MS, &text(last), SURE);
            scene.read(MASS_HOLD, &text(last), SURE);
            scene.holds(&text(last));
        }
    }
}
