//! Where kept answers stand: by question and by what `Vary` names, within one limit, least recently used out first.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use http::header::HeaderName;

use super::answer::{Packed, VARY_NAMES_MAX};
use super::question::Question;

/// Most answers to one question, for different values of what `Vary` names.
pub(super) const VARIANTS_MAX: usize = 32;

/// What an answer takes beside its bytes: its places in the maps, the heads of allocations and their rounding.
pub(super) const BESIDE_BYTES: usize = 512;

#[derive(Debug)]
pub(super) struct Shelf {
    bytes_max: usize,
    bytes: usize,
    /// Grows with every use.
    turn: u64,
    /// By key, compared byte by byte. With the seeded hash of std, because callers choose what they ask for.
    questions: HashMap<Arc<[u8]>, Variants>,
    /// Who was used when. Invariant: holds the turn of every variant once, and no other.
    uses: BTreeMap<u64, Arc<[u8]>>,
}

/// The answers to one question.
#[derive(Debug, Default)]
struct Variants {
    /// What any answer has said it varies by, as long as one is kept. It only grows: an answer that forgets to
    /// say so once is not given to those whom another answer told apart.
    names: Vec<HeaderName>,
    kept: Vec<Variant>,
}

#[derive(Debug)]
pub(super) struct Variant {
    /// The request's values of `names`.
    values: Vec<u8>,
    /// The turn of its last use.
    used: u64,
    bytes: usize,
    packed: Packed,
}

impl Shelf {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes: 0, turn: 0, questions: HashMap::new(), uses: BTreeMap::new() }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keeps an answer. Returns what it replaced or pushed out, to be freed by the caller.
    pub(super) fn keep(
        &mut self,
        question: &Question,
        vary: Vec<HeaderName>,
        packed: Packed,
    ) -> Vec<Variant> {
        let key = question.key();
        let known = self.questions.get(key).map_or(&[][..], |variants| &variants.names);
        let names = union(known, vary);
        // What was kept was not told apart by the new ones: nobody can be given it.
        let mut gone = if names.len() > known.len() { self.forget(key) } else { Vec::new() };
        let values = question.values_of(&names);
        let names_bytes: usize = names.iter().map(|name| name.as_str().len()).sum();
        let bytes = packed.block.len() + key.len() + values.len() + names_bytes + BESIDE_BYTES;
        if names.len() > VARY_NAMES_MAX || bytes > self.bytes_max {
            return gone;
        }
        match self.questions.get(key).and_then(|variants| variants.to_replace(&values)) {
            // Its question was asked before that of the one that is there, and only its body took longer.
            Some(before) if before.values == values && before.packed.at_ms > packed.at_ms => return gone,
            Some(before) => gone.extend(self.take(before.used)),
            None => {}
        }
        self.turn += 1;
        let known = self.questions.get_key_value(key).map(|(key, _)| Arc::clone(key));
        let key = known.unwrap_or_else(|| Arc::from(key));
        self.uses.insert(self.turn, Arc::clone(&key));
        let variants = self.questions.entry(key).or_default();
        variants.names = names;
        variants.kept.push(Variant { values, used: self.turn, bytes, packed });
        self.bytes += bytes;
        // The new one was used last and fits alone, so it stays.
        while self.bytes > self.bytes_max
            && let Some((&oldest, _)) = self.uses.first_key_value()
        {
            gone.extend(self.take(oldest));
        }
        debug_assert!(self.bytes <= self.bytes_max, "more is kept than may be");
        gone
    }

    /// The answer to a question, unless it is too old. That is a use of it.
    pub(super) fn give(&mut self, question: &Question, now_ms: u64) -> Option<Packed> {
        let variants = self.questions.get_mut(question.key())?;
        let values = question.values_of(&variants.names);
        let variant = variants.kept.iter_mut().find(|variant| variant.values == values)?;
        let age_ms = now_ms.saturating_sub(variant.packed.at_ms);
        if u128::from(age_ms) > question.policy().max_age.as_millis() {
            let used = variant.used;
            self.take(used);
            return None;
        }
        self.turn += 1;
        let key = self.uses.remove(&variant.used)?;
        self.uses.insert(self.turn, key);
        variant.used = self.turn;
        Some(variant.packed.clone())
    }

    /// Takes out every answer to a question.
    pub(super) fn forget(&mut self, key: &[u8]) -> Vec<Variant> {
        let gone = self.questions.remove(key).map(|variants| variants.kept).unwrap_or_default();
        for variant in &gone {
            self.uses.remove(&variant.used);
            self.bytes -= variant.bytes;
        }
        gone
    }

    /// Takes out the one that was used in this turn.
    fn take(&mut self, used: u64) -> Option<Variant> {
        let key = self.uses.remove(&used)?;
        let variants = self.questions.get_mut(&key)?;
        let at = variants.kept.iter().position(|variant| variant.used == used)?;
        let variant = variants.kept.swap_remove(at);
        if variants.kept.is_empty() {
            self.questions.remove(&key);
        }
        self.bytes -= variant.bytes;
        Some(variant)
    }

    /// Invariant: what is counted is what is there, within the limit, and each has its place in the order.
    /// Looks at everything, so only tests ask.
    #[cfg(test)]
    pub(super) fn is_sound(&self) -> bool {
        let all = || self.questions.values().flat_map(|variants| &variants.kept);
        self.bytes <= self.bytes_max
            && self.bytes == all().map(|variant| variant.bytes).sum::<usize>()
            && self.uses.len() == all().count()
            && all().all(|variant| self.uses.contains_key(&variant.used))
            && self.questions.values().all(|variants| {
                (1..=VARIANTS_MAX).contains(&variants.kept.len()) && variants.names.len() <= VARY_NAMES_MAX
            })
    }
}

impl Variants {
    /// Whose place a new one takes: the one for the same values, or with no place left the least recently used.
    fn to_replace(&self, values: &[u8]) -> Option<&Variant> {
        self.kept.iter().find(|variant| variant.values == values).or_else(|| {
            let is_full = self.kept.len() >= VARIANTS_MAX;
            self.kept.iter().filter(|_| is_full).min_by_key(|variant| variant.used)
        })
    }
}

fn union(known: &[HeaderName], mut names: Vec<HeaderName>) -> Vec<HeaderName> {
    names.extend(known.iter().cloned());
    names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
    names.dedup();
    names
}
