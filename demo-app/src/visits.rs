//! What `profile` keeps of each user, in its memory and nowhere else: how often they came. A part of it can be given to another
//! shard.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::part::Part;

/// The service that plays this part.
pub(crate) const SERVICE: &str = "profile";
/// Users that one app remembers.
const USERS_MAX: usize = 100_000;

/// How often each user came.
#[derive(Debug, Default)]
pub(crate) struct Visits(BTreeMap<String, u64>);

/// A part, and all that is known of its users.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Given {
    pub(crate) part: Part,
    pub(crate) visits: BTreeMap<String, u64>,
}

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

    /// What is known of the users of a part.
    pub(crate) fn within(&self, part: &Part) -> BTreeMap<String, u64> {
        let within = self.0.iter().filter(|(user, _)| part.holds(user));
        within.map(|(user, visits)| (user.clone(), *visits)).collect()
    }

    /// Knows of this part what is given, and nothing else; what belongs to other parts is left out.
    ///
    /// # Errors
    /// When it would remember more users than it can; then nothing has changed.
    pub(crate) fn replace(&mut self, given: Given) -> Result<(), Full> {
        let Given { part, visits } = given;
        let others = self.0.keys().filter(|user| !part.holds(user)).count();
        if others + visits.len() > USERS_MAX {
            return Err(Full);
        }
        self.0.retain(|user, _| !part.holds(user));
        self.0.extend(visits.into_iter().filter(|(user, _)| part.holds(user)));
        Ok(())
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
    fn what_moves_is_what_its_part_holds() {
        let mut visits = Visits::default();
        for user in ["ada", "bob", "ada"] {
            visits.add(user).unwrap();
        }
        let part = |keys: &[&str]| Part::Keys { keys: keys.iter().map(ToString::to_string).collect() };
        let both = BTreeMap::from([("ada".to_owned(), 2), ("bob".to_owned(), 1)]);
        assert_eq!(visits.within(&part(&["ada", "bob", "eve"])), both);
        let moved = visits.within(&part(&["ada"]));
        assert_eq!(moved, BTreeMap::from([("ada".to_owned(), 2)]));

        let of_ada = |visits| Given { part: part(&["ada"]), visits };
        let mut target = Visits::default();
        target.add("bob").unwrap();
        target.replace(of_ada(BTreeMap::from([("ada".to_owned(), 1), ("bob".to_owned(), 7)]))).unwrap();
        target.replace(of_ada(moved)).unwrap();
        assert_eq!(
            (target.of("ada"), target.of("bob")),
            (2, 1),
            "the last copy counts, and only of its part"
        );
        visits.replace(of_ada(BTreeMap::new())).unwrap();
        assert_eq!((visits.of("ada"), visits.of("bob")), (0, 1));
    }

    #[test]
    fn a_user_is_one_segment() {
        assert_eq!(user_of("/users/ada"), Some("ada"));
        for path in ["/users/", "/users/a/b", "/ada", "/"] {
            assert_eq!(user_of(path), None, "{path}");
        }
    }
}
