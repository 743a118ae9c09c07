//! What `profile` keeps of each user, in its memory and nowhere else: how often they came. And which of it is whose, since a
//! part of it can be given to another shard.

use std::collections::BTreeMap;

use gilmok_config::hash::KeyHash;

/// The service that plays this part.
pub(crate) const SERVICE: &str = "profile";
/// Users that one app remembers.
const USERS_MAX: usize = 100_000;
/// Slots of the rule by which `profile` is sharded, as Redis Cluster has them.
const SLOTS: u64 = 16_384;

/// How often each user came.
#[derive(Debug, Default)]
pub(crate) struct Visits(BTreeMap<String, u64>);

/// Some of the slots: what moves from one shard to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slots(Vec<(u64, u64)>);

/// Why a visit was not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl Visits {
    /// One more visit; how many there were.
    ///
    /// # Errors
    /// When it remembers as many users as it can.
    pub(crate) fn add(&mut self, user: &str) -> Result<u64, Full> {
        if !self.0.contains_key(user) && self.0.len() >= USERS_MAX {
            return Err(Full);
        }
        let visits = self.0.entry(user.to_owned()).or_default();
        *visits = visits.saturating_add(1);
        Ok(*visits)
    }

    pub(crate) fn of(&self, user: &str) -> u64 {
        self.0.get(user).copied().unwrap_or_default()
    }

    /// What is known of the users in these slots.
    pub(crate) fn within(&self, slots: &Slots) -> BTreeMap<String, u64> {
        let within = self.0.iter().filter(|(user, _)| slots.hold(user));
        within.map(|(user, visits)| (user.clone(), *visits)).collect()
    }

    /// Knows of these slots what is given, and nothing else; what belongs to other slots is left out.
    ///
    /// # Errors
    /// When it would remember more users than it can; then nothing has changed.
    pub(crate) fn replace(&mut self, slots: &Slots, given: BTreeMap<String, u64>) -> Result<(), Full> {
        let others = self.0.keys().filter(|user| !slots.hold(user)).count();
        if others + given.len() > USERS_MAX {
            return Err(Full);
        }
        self.0.retain(|user, _| !slots.hold(user));
        self.0.extend(given.into_iter().filter(|(user, _)| slots.hold(user)));
        Ok(())
    }
}

impl Slots {
    /// Reads `0-4095,8192`; `None` when it is none of that.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let run = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let run: (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
            (run.0 <= run.1 && run.1 < SLOTS).then_some(run)
        };
        text.split(',').map(run).collect::<Option<_>>().map(Self)
    }

    fn hold(&self, user: &str) -> bool {
        let slot = KeyHash::Crc16.of(user.as_bytes()).map(|hash| hash % SLOTS);
        slot.is_some_and(|slot| self.0.iter().any(|(first, last)| (*first..=*last).contains(&slot)))
    }
}

/// The user that a path names: `/users/ID`.
pub(crate) fn user_of(path: &str) -> Option<&str> {
    let user = path.strip_prefix("/users/")?;
    (!user.is_empty() && !user.contains('/')).then_some(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_is_what_its_slots_hold() {
        let mut visits = Visits::default();
        for user in ["ada", "bob", "ada"] {
            visits.add(user).unwrap();
        }
        let all = Slots::parse("0-16383").unwrap();
        assert_eq!(visits.within(&all), BTreeMap::from([("ada".to_owned(), 2), ("bob".to_owned(), 1)]));
        let slot = KeyHash::Crc16.of(b"ada").unwrap() % SLOTS;
        let of_ada = Slots::parse(&slot.to_string()).unwrap();
        let moved = visits.within(&of_ada);
        assert_eq!(moved, BTreeMap::from([("ada".to_owned(), 2)]));

        let mut target = Visits::default();
        target.add("bob").unwrap();
        target.replace(&of_ada, BTreeMap::from([("ada".to_owned(), 1), ("bob".to_owned(), 7)])).unwrap();
        target.replace(&of_ada, moved).unwrap();
        assert_eq!(
            (target.of("ada"), target.of("bob")),
            (2, 1),
            "the last copy counts, and only of its slots"
        );
        visits.replace(&of_ada, BTreeMap::new()).unwrap();
        assert_eq!((visits.of("ada"), visits.of("bob")), (0, 1));
    }

    #[test]
    fn slots_are_runs_within_their_number() {
        assert_eq!(Slots::parse("0-4095,8192"), Some(Slots(vec![(0, 4_095), (8_192, 8_192)])));
        for text in ["", "a", "5-4", "0-16384", "1,"] {
            assert_eq!(Slots::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_user_is_one_segment() {
        assert_eq!(user_of("/users/ada"), Some("ada"));
        for path in ["/users/", "/users/a/b", "/ada", "/"] {
            assert_eq!(user_of(path), None, "{path}");
        }
    }
}
