//! Counters of evaluations: by flag, variant and reason, for each thread that evaluates, written without sharing.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use gilmok_config::flag::{Finding, Flag, FlagSet, Reason};

use crate::flag_outcomes::{FlagOutcomes, Watched};

/// Why, as the label `reason` tells it.
const REASONS: [&str; 6] = ["DEFAULT", "DISABLED", "SPLIT", "STATIC", "TARGETING_MATCH", "ERROR"];
/// Counters of one thread are a multiple of this many, so that two threads seldom write to one line of the cache.
const LINE: usize = 8;
/// What flags that the set does not have are told as; no key can be told from it, but that is no harm.
const UNKNOWN: &str = "__unknown__";

/// What a set's flags came to since the process started, for as long as each of them stays as it is.
#[derive(Debug, Default)]
pub(crate) struct FlagCounts {
    /// By place in [`FlagSet::flags`].
    flags: Box<[Arc<OfFlag>]>,
    /// What came of requests that guarded flags were told with, by the same place, in that order. One that has its guard
    /// taken off begins anew when it gets one again: nobody has heard of it meanwhile.
    guarded: Box<[OfGuarded]>,
    unknown: Arc<OfFlag>,
}

/// One guarded flag.
#[derive(Clone, Debug)]
struct OfGuarded {
    flag: usize,
    /// Counts up each time that it is judged anew, modulo 4096: everybody is a trial again.
    step: u16,
    outcomes: Arc<FlagOutcomes>,
}

/// One flag's counters: made when it is first evaluated, so that flags nobody asks for cost next to nothing.
#[derive(Debug, Default)]
struct OfFlag {
    writers: usize,
    variants: usize,
    // Atomics, because another thread reads them; no two threads write the same.
    all: OnceLock<Box<[AtomicU64]>>,
}

impl FlagCounts {
    /// Of a set, for so many threads that evaluate. Flags that `before` had with the same variants go on counting.
    pub(crate) fn new(set: Option<&FlagSet>, writers: usize, before: Option<(&FlagSet, &Self)>) -> Self {
        let known = |flag: &Flag| {
            let (old, counts) = before?;
            let at = old.place_of(flag.key())?;
            let (now, then) = (flag.variants(), old.flags()[at].variants());
            let is_same =
                now.len() == then.len() && now.iter().zip(then).all(|(now, then)| now.name() == then.name());
            is_same.then_some((counts, at))
        };
        let kept = |flag: &Flag| known(flag).map(|(counts, at)| Arc::clone(&counts.flags[at]));
        let watched = |flag: &Flag| {
            let (old, (counts, at)) = (before?.0, known(flag)?);
            let kept = counts.of_guarded(at)?.clone();
            let is_same = flag.judged() == old.flags()[at].judged();
            Some(OfGuarded { step: if is_same { kept.step } else { (kept.step + 1) % (1 << 12) }, ..kept })
        };
        let guarded = set.into_iter().flat_map(FlagSet::flags).enumerate();
        let guarded = guarded.filter(|(_, flag)| flag.guard().is_some()).map(|(at, flag)| {
            let new = || Arc::new(FlagOutcomes::new(writers, flag.variants().len()));
            let watched = watched(flag).unwrap_or_else(|| OfGuarded { flag: at, step: 0, outcomes: new() });
            OfGuarded { flag: at, ..watched }
        });
        let guarded = guarded.collect();
        let flags = set.into_iter().flat_map(FlagSet::flags);
        let flags = flags
            .map(|flag| kept(flag).unwrap_or_else(|| Arc::new(OfFlag::new(writers, flag.variants().len()))));
        let unknown = before
            .map_or_else(|| Arc::new(OfFlag::new(writers, 0)), |(_, counts)| Arc::clone(&counts.unknown));
        Self { flags: flags.collect(), guarded, unknown }
    }

    /// Counts an evaluation; `writer` is the thread's own number.
    pub(crate) fn note(&self, writer: usize, finding: Finding) {
        if let Some(flag) = self.flags.get(finding.flag) {
            flag.note(writer, finding.variant, finding.reason);
        }
    }

    /// A guarded flag is told with a request, whose outcome counts for its variant.
    pub(crate) fn watch(&self, finding: Finding, subject: Option<u32>, now_ms: u64) -> Option<Watched> {
        let guarded = self.of_guarded(finding.flag)?;
        guarded.outcomes.begin(finding, subject, guarded.step, now_ms)
    }

    fn of_guarded(&self, place: usize) -> Option<&OfGuarded> {
        let at = self.guarded.binary_search_by_key(&place, |guarded| guarded.flag).ok()?;
        Some(&self.guarded[at])
    }

    /// What came of the requests that guarded flags were told with.
    pub(crate) fn outcomes<'s>(
        &'s self,
        set: &'s FlagSet,
    ) -> impl Iterator<Item = (&'s Flag, &'s FlagOutcomes)> {
        let guarded = self.guarded.iter();
        guarded.filter_map(|guarded| Some((set.flags().get(guarded.flag)?, &*guarded.outcomes)))
    }

    /// Counts a question for a flag that there is none of.
    pub(crate) fn note_unknown(&self, writer: usize) {
        self.unknown.note(writer, None, None);
    }

    /// Every count above 0: flag, variant (empty where there is none) and reason.
    pub(crate) fn each(&self, set: &FlagSet, told: &mut dyn FnMut(&str, &str, &str, u64)) {
        self.each_of(set, told);
        self.unknown.each(&mut |_, reason, count| told(UNKNOWN, "", reason, count));
    }

    /// The same of flags that the set has.
    pub(crate) fn each_of(&self, set: &FlagSet, told: &mut dyn FnMut(&str, &str, &str, u64)) {
        for (flag, counts) in set.flags().iter().zip(&self.flags) {
            let name = |at: usize| flag.variants().get(at).map_or("", |variant| variant.name());
            counts.each(&mut |variant, reason, count| told(flag.key(), name(variant), reason, count));
        }
    }
}

impl OfFlag {
    fn new(writers: usize, variants: usize) -> Self {
        Self { writers, variants, all: OnceLock::new() }
    }

    /// Counters of one thread.
    fn cells(&self) -> usize {
        ((self.variants + 1) * REASONS.len()).next_multiple_of(LINE)
    }

    /// No variant stands behind all variants.
    fn note(&self, writer: usize, variant: Option<usize>, reason: Option<Reason>) {
        let cells = self.cells();
        let all = self.all.get_or_init(|| (0..self.writers * cells).map(|_| AtomicU64::new(0)).collect());
        let row = variant.unwrap_or(self.variants);
        let cell = row * REASONS.len() + reason.map_or(REASONS.len() - 1, place);
        // A plain load and store: only one thread writes, so no locked instruction is needed.
        if let Some(counter) = all.get(writer * cells + cell) {
            counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
        }
    }

    fn each(&self, told: &mut dyn FnMut(usize, &str, u64)) {
        let Some(all) = self.all.get() else { return };
        let cells = self.cells();
        for cell in 0..cells {
            let count: u64 = all.iter().skip(cell).step_by(cells).map(|counter| counter.load(Relaxed)).sum();
            if count > 0 {
                told(cell / REASONS.len(), REASONS[cell % REASONS.len()], count);
            }
        }
    }
}

fn place(reason: Reason) -> usize {
    match reason {
        Reason::Default => 0,
        Reason::Disabled => 1,
        Reason::Split => 2,
        Reason::Static => 3,
        Reason::TargetingMatch => 4,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::Code;

    fn set(flags: &str) -> FlagSet {
        FlagSet::parse(format!("{{\"flags\": {{{flags}}}}}").as_bytes()).unwrap()
    }

    fn flag(key: &str, variants: &str) -> String {
        format!("\"{key}\": {{\"state\": \"ENABLED\", \"variants\": {{{variants}}}}}")
    }

    fn told(counts: &FlagCounts, set: &FlagSet) -> Vec<String> {
        let mut all = Vec::new();
        counts.each(set, &mut |flag, variant, reason, count| {
            all.push(format!("{flag} {variant} {reason} {count}"))
        });
        all
    }

    #[test]
    fn threads_are_summed_and_flags_that_stay_go_on_counting() {
        let one = set(&[flag("a", "\"on\": true, \"off\": false"), flag("b", "\"x\": 1")].join(","));
        let counts = FlagCounts::new(Some(&one), 2, None);
        let found = |flag, variant, reason| Finding { flag, variant, reason };
        counts.note(0, found(0, Some(1), Some(Reason::Split)));
        counts.note(1, found(0, Some(1), Some(Reason::Split)));
        counts.note(1, found(0, Some(0), Some(Reason::Default)));
        counts.note(0, found(0, None, None));
        counts.note(0, found(1, None, Some(Reason::Disabled)));
        counts.note(0, found(9, None, Some(Reason::Disabled)));
        counts.note_unknown(1);
        assert_eq!(
            told(&counts, &one),
            ["a off DEFAULT 1", "a on SPLIT 2", "a  ERROR 1", "b  DISABLED 1", "__unknown__  ERROR 1"]
        );
        let other = set(
            &[flag("0", "\"x\": 1"), flag("a", "\"on\": 1, \"off\": 0"), flag("b", "\"y\": 1")].join(",")
        );
        let counts = FlagCounts::new(Some(&other), 2, Some((&one, &counts)));
        assert_eq!(
            told(&counts, &other),
            ["a off DEFAULT 1", "a on SPLIT 2", "a  ERROR 1", "__unknown__  ERROR 1"],
            "b has other variants now"
        );
    }

    #[test]
    fn what_is_known_of_a_guarded_flag_stays_while_it_is_guarded() {
        let guard = ", \"defaultVariant\": \"off\", \"x-gilmok\": {\"guard\": {\"metrics\": [\"errors\"]}}";
        let of = |guarded: bool| {
            let flag = flag("b", "\"on\": true, \"off\": false");
            let flag = if guarded { flag.replace("}}", &format!("}}{guard}}}")) } else { flag };
            set(&[self::flag("a", "\"x\": 1"), flag].join(","))
        };
        let (with, without) = (of(true), of(false));
        let finding = Finding { flag: 1, variant: Some(1), reason: Some(Reason::Split) };
        let counts = FlagCounts::new(Some(&with), 1, None);
        assert!(counts.watch(Finding { flag: 0, ..finding }, Some(7), 5).is_none(), "a has no guard");
        counts.watch(finding, Some(7), 5).unwrap().end(0, Code::Hundred(2), Duration::ZERO);
        let trials = |counts: &FlagCounts, set: &FlagSet| {
            counts
                .outcomes(set)
                .map(|(flag, of)| (flag.key().to_owned(), of.trials().count()))
                .collect::<Vec<_>>()
        };
        let same = FlagCounts::new(Some(&with), 1, Some((&with, &counts)));
        assert_eq!(trials(&same, &with), [("b".to_owned(), 1)]);
        let off = FlagCounts::new(Some(&without), 1, Some((&with, &same)));
        assert_eq!(trials(&off, &without), []);
        let again = FlagCounts::new(Some(&with), 1, Some((&without, &off)));
        assert_eq!(trials(&again, &with), [("b".to_owned(), 0)]);
    }

    #[test]
    fn everybody_is_a_trial_again_once_a_flag_is_judged_anew() {
        let of = |value: &str, killed: bool, share: u32| {
            let variants = format!("\"on\": {value}, \"off\": false");
            let more = format!(
                "}}, \"defaultVariant\": \"off\", \"targeting\": {{\"fractional\": [[\"on\", {share}], [\"off\", 50]]}}, \"x-gilmok\": {{\"guard\": {{\"metrics\": [\"errors\"]}}, \"kill\": {{\"active\": {killed}}}}}}}"
            );
            set(&flag("a", &variants).replace("}}", &more))
        };
        let finding = Finding { flag: 0, variant: Some(1), reason: Some(Reason::Split) };
        let trials = |counts: &FlagCounts, set: &FlagSet| -> u64 {
            counts.watch(finding, Some(7), 5).unwrap().end(0, Code::Hundred(2), Duration::ZERO);
            counts.outcomes(set).flat_map(|(_, of)| of.trials()).map(|(_, counts)| counts.trials).sum()
        };
        let mut before = of("true", false, 10);
        let mut counts = FlagCounts::new(Some(&before), 1, None);
        assert_eq!(trials(&counts, &before), 1);
        for (next, expected, why) in [
            (of("true", false, 50), 1, "another share"),
            (of("true", true, 50), 2, "killed: nobody asks, but it begins here"),
            (of("true", false, 50), 3, "on again"),
            (of("null", false, 50), 4, "another value"),
        ] {
            counts = FlagCounts::new(Some(&next), 1, Some((&before, &counts)));
            assert_eq!(trials(&counts, &next), expected, "{why}");
            before = next;
        }
    }
}
