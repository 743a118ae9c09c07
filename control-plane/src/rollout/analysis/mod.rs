//! Whether a candidate version is worse than the stable one, not worse, or not known yet: pure statistics of counts.
//!
//! **Looking at every tick is allowed.** Everything here is an e-value: what a bet against a claim has multiplied to, tick by
//! tick, when the bet would win nothing in the mean if the claim were true. By Ville's inequality the chance that it *ever*
//! reaches 1/α is then at most α, however often one looks and whenever one stops (Ramdas, Grünwald, Vovk, Shafer,
//! "Game-Theoretic Statistics and Safe Anytime-Valid Inference", 2023).
//!
//! **Worse** (`stream`, `odds`). How a tick's failures fall on the two versions, once their sum is known, depends on the
//! ratio of the versions' odds alone (Fisher's noncentral hypergeometric distribution): the service's own failure rate
//! cancels out, and shares of traffic may change (Lindon, Sanden, Shirikian, "Rapid Regression Detection in Software
//! Deployments through Sequential Testing", KDD 2022). The bet is a mean of likelihood ratios of larger ratios to the
//! tolerated one. Likelihood ratios of this family grow with the candidate's failures, so a bet that is fair at the tolerated
//! ratio loses in the mean at each smaller one: the claim is "at most what is tolerated". Capping what a tick may win, and
//! letting a part of the stakes in later, takes from the mean or leaves it, so neither can make a false rollback likelier.
//! A candidate whose latest trials have a share of failures within `floor` is not rolled back even then.
//!
//! **Not worse** (`stream`, `share`). Either the ratio of the odds has been shown to be below `max_ratio`: the mirrored
//! bet, smaller ratios against it. Or the candidate's own share has been shown to be below `max_ratio` times `floor`, by bets
//! on its trials alone (Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", 2024). Where
//! nothing fails, ratios know nothing and the second road is the only one. Both together say: below `max_ratio` times the
//! stable version's share or `floor`, whichever is more. Both bounds are about all ticks together; what goes wrong late is
//! for the bets on "worse" to find, and from half their way on nothing is called not worse.
//!
//! **Latency** (`latency`). "Slower than the stable version's own median, p95, p99" is an event like a failure, with a
//! floor of its own: half, a twentieth, a hundredth of all trials are beyond by the meaning of the word.
//!
//! **α is kept over all of them.** Rolling back: failures and latency have a half each, and each percentile a third of its
//! half. Going on: each of the two roads has a half; failures and p95 must both be shown, so they share nothing.

mod counts;
mod criteria;
mod evidence;
mod judge;
mod latency;
mod logarithm;
mod odds;
mod share;
mod stream;

use serde::{Deserialize, Serialize};

pub use counts::Came;
pub use criteria::Criteria;
pub use evidence::{Comparison, Counted, Evidence, Finding, LatencyComparison, Metric, Verdict};

use counts::Tally;
use latency::Latency;
use stream::Stream;

/// All that is remembered of a rollout's ticks. Of bounded size, so that it can be kept in a store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Analysis {
    failures: Stream,
    latency: Latency,
}

impl Analysis {
    /// Takes what both versions came to in one tick.
    pub fn add(&mut self, stable: &Came, candidate: &Came) {
        let tally = |came: &Came| Tally::new(came.trials, came.failures);
        self.failures.add(tally(stable), tally(candidate));
        self.latency.add(stable, candidate);
    }

    /// What is known so far, by these criteria.
    #[must_use]
    pub fn evidence(&self, criteria: &Criteria) -> Evidence {
        judge::evidence(&self.failures, &self.latency, criteria)
    }

    /// What is thought of the candidate so far, by these criteria: the verdict of its [`Analysis::evidence`], for less work.
    #[must_use]
    pub fn verdict(&self, criteria: &Criteria) -> Verdict {
        judge::verdict(&self.failures, &self.latency, criteria)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A bucket in the middle, of about 100 ms.
    const MEDIAN: u16 = 43;

    /// A hundred trials for each of `hundreds`, as slow as ever or by so many buckets slower.
    fn came(hundreds: u64, failures: u64, slower: u16) -> Came {
        let latency = [(0, 40), (1, 30), (4, 20), (8, 7), (14, 3)];
        let latency = latency.map(|(bucket, count)| (MEDIAN + bucket + slower, count * hundreds)).to_vec();
        Came { trials: 100 * hundreds, failures, latency }
    }

    fn after(ticks: u32, stable: &Came, candidate: &Came) -> Analysis {
        let mut analysis = Analysis::default();
        (0..ticks).for_each(|_| analysis.add(stable, candidate));
        analysis
    }

    fn verdict(ticks: u32, stable: &Came, candidate: &Came) -> Verdict {
        after(ticks, stable, candidate).verdict(&Criteria::default())
    }

    #[test]
    fn nothing_and_little_say_nothing() {
        assert_eq!(Analysis::default().verdict(&Criteria::default()), Verdict::Unsure);
        assert_eq!(verdict(6, &came(100, 0, 0), &came(1, 0, 0)), Verdict::Unsure);
        let lone = Came { trials: 1_000_000, ..Came::default() };
        assert_eq!(verdict(10, &lone, &Came::default()), Verdict::Unsure);
    }

    #[test]
    fn a_service_that_never_fails_goes_on() {
        assert_eq!(verdict(8, &came(100, 0, 0), &came(1, 0, 0)), Verdict::NotWorse);
    }

    #[test]
    fn a_service_that_often_fails_goes_on_if_its_next_version_fails_no_more() {
        assert_eq!(verdict(15, &came(100, 1_000, 0), &came(1, 10, 0)), Verdict::NotWorse);
        assert_eq!(verdict(15, &came(100, 1_000, 0), &came(1, 30, 0)), Verdict::Worse(Metric::Failures));
    }

    #[test]
    fn certain_but_small_is_never_a_reason_to_roll_back() {
        let (stable, candidate) = (came(1_000, 1_000, 0), came(1_000, 1_200, 0));
        assert_eq!(verdict(100, &stable, &candidate), Verdict::NotWorse);
        // Certain and within what nobody minds.
        let analysis = after(100, &came(1_000, 0, 0), &came(10, 3, 0));
        let evidence = analysis.evidence(&Criteria::default());
        assert!(evidence.failures.e_value > evidence.failures.e_value_needed);
        assert_eq!(evidence.verdict(), Verdict::NotWorse);
        let stricter = Criteria { floor: 0.001, ..Criteria::default() };
        assert_eq!(analysis.verdict(&stricter), Verdict::Worse(Metric::Failures));
    }

    #[test]
    fn somewhat_slower_for_all_goes_on_and_twice_as_slow_does_not() {
        let stable = came(1_000, 1_000, 0);
        assert_eq!(verdict(50, &stable, &came(10, 10, 1)), Verdict::NotWorse);
        assert_eq!(verdict(50, &stable, &came(10, 10, 2)), Verdict::NotWorse);
        let twice = after(50, &stable, &came(10, 10, 4));
        assert_eq!(twice.verdict(&Criteria::default()), Verdict::Worse(Metric::Latency));
        let unminded = Criteria { latency: false, ..Criteria::default() };
        assert_eq!(twice.verdict(&unminded), Verdict::NotWorse);
        assert!(twice.evidence(&unminded).latency.is_empty());
    }

    #[test]
    fn a_tail_is_found_where_the_median_has_nothing_to_tell() {
        let mut candidate = came(10, 10, 0);
        candidate.latency.push((MEDIAN + 24, 100));
        let evidence = after(50, &came(1_000, 1_000, 0), &candidate).evidence(&Criteria::default());
        let findings = evidence.latency.iter().map(|one| (one.percentile, one.comparison.finding));
        assert_eq!(
            findings.collect::<Vec<_>>(),
            [(50, Finding::NotWorse), (95, Finding::Worse), (99, Finding::Worse)]
        );
    }

    #[test]
    fn without_latencies_nothing_goes_on_unless_they_are_not_asked_for() {
        let came = |trials, failures| Came { trials, failures, latency: Vec::new() };
        let analysis = after(50, &came(100_000, 100), &came(1_000, 1));
        assert_eq!(analysis.verdict(&Criteria::default()), Verdict::Unsure);
        let unminded = Criteria { latency: false, ..Criteria::default() };
        assert_eq!(analysis.verdict(&unminded), Verdict::NotWorse);
    }

    #[test]
    fn what_is_going_wrong_is_not_called_right_for_having_been_right() {
        let mut analysis = after(100, &came(100, 100, 0), &came(10, 10, 0));
        assert_eq!(analysis.verdict(&Criteria::default()), Verdict::NotWorse);
        let mut seen = Vec::new();
        for _ in 0..10 {
            analysis.add(&came(100, 100, 0), &came(10, 50, 0));
            seen.push(analysis.verdict(&Criteria::default()));
        }
        let unsure = seen.iter().position(|verdict| *verdict == Verdict::Unsure);
        let worse = seen.iter().position(|verdict| *verdict == Verdict::Worse(Metric::Failures));
        assert!(unsure < worse && worse.is_some_and(|ticks| ticks < 8), "{seen:?}");
        assert!(seen[unsure.unwrap_or_default()..].iter().all(|verdict| *verdict != Verdict::NotWorse));
    }

    #[test]
    fn criteria_beyond_their_ranges_count_as_the_nearest() {
        let analysis = after(50, &came(100, 100, 0), &came(1, 1, 0));
        let strange = Criteria { alpha: f64::NAN, max_ratio: f64::INFINITY, floor: -1.0, latency: true };
        let nearest = Criteria { max_ratio: 30.0, floor: 0.0, ..Criteria::default() };
        assert_eq!(analysis.evidence(&strange), analysis.evidence(&nearest));
    }

    /// Small numbers, large ones and the largest.
    fn a_count() -> impl Strategy<Value = u64> {
        prop_oneof![0_u64..5, 0_u64..2_000, 0_u64..1 << 40, any::<u64>(), Just(u64::MAX)]
    }

    fn a_came() -> impl Strategy<Value = Came> {
        let latency = proptest::collection::vec((any::<u16>(), a_count()), 0..4);
        (a_count(), a_count(), latency).prop_map(|(trials, failures, latency)| Came {
            trials,
            failures,
            latency,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn whatever_is_counted_the_evidence_is_of_numbers(
            ticks in proptest::collection::vec((a_came(), a_came()), 1..4),
            alpha in any::<f64>(),
            max_ratio in any::<f64>(),
            floor in any::<f64>(),
            latency in any::<bool>(),
        ) {
            let mut analysis = Analysis::default();
            for (stable, candidate) in &ticks {
                analysis.add(stable, candidate);
            }
            let evidence = analysis.evidence(&Criteria { alpha, max_ratio, floor, latency });
            // What is no number is `null` in JSON, which is not read back as one.
            let text = serde_json::to_string(&evidence).unwrap();
            let read: Evidence = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(read.verdict(), evidence.verdict());
            let text = serde_json::to_string(&analysis).unwrap();
            prop_assert!(text.len() < 8 << 10, "{}", text.len());
            let read: Analysis = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(read.verdict(&Criteria::default()), analysis.verdict(&Criteria::default()));
        }
    }
}
