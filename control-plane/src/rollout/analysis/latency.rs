//! How long trials took, told as events: "slower than the stable version's own quantile".

use gilmok_config::wire::{LATENCY_BUCKETS, latency_bucket, latency_bucket_end_us};
use serde::{Deserialize, Serialize};

use super::counts::{Came, Tally};
use super::stream::Stream;

/// The quantiles at which both versions are compared, in per cent.
pub(super) const PERCENTILES: [u8; 3] = [50, 95, 99];
/// The one among them that a promotion looks at: the median hides the slow ones, and one in a hundred is rare.
pub(super) const PERCENTILE_OF_PROMOTION: u8 = 95;

/// Latencies of the stable version before there are quantiles to compare with.
const LATENCIES_MIN: u64 = 500;
/// How many buckets slower still counts as no slower: at least a third, at most a half. Less traffic alone makes a candidate
/// somewhat slower: emptier caches, colder connections.
const SLACK_BUCKETS: u16 = 2;
/// What nobody minds, in microseconds: no quantile is taken to be shorter. Below lies the network, not a version.
const UNMINDED_US: u64 = 1_000;

/// Both versions' latencies, and what they say at each of [`PERCENTILES`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Latency {
    stable: Histogram,
    candidate: Histogram,
    streams: [Stream; PERCENTILES.len()],
}

/// One percentile: where it lies, in microseconds and as the end of a bucket, and what was counted behind it.
pub(super) struct AtPercentile<'a> {
    pub(super) percentile: u8,
    pub(super) stable_us: Option<u64>,
    pub(super) candidate_us: Option<u64>,
    pub(super) limit_us: Option<u64>,
    pub(super) allowed_us: Option<u64>,
    pub(super) stream: &'a Stream,
}

impl Latency {
    /// Takes one tick. Where the quantiles lie is known from the ticks before it; one that told where it is to be cut itself
    /// would be a biased witness.
    pub(super) fn add(&mut self, stable: &Came, candidate: &Came) {
        for (percentile, stream) in PERCENTILES.into_iter().zip(&mut self.streams) {
            let Some(limit) = self.stable.limit(percentile) else { continue };
            stream.add(beyond(&stable.latency, limit), beyond(&candidate.latency, limit + SLACK_BUCKETS));
        }
        self.stable.add(&stable.latency);
        self.candidate.add(&candidate.latency);
    }

    /// Each percentile with what was counted behind it.
    pub(super) fn streams(&self) -> impl Iterator<Item = (u8, &Stream)> {
        PERCENTILES.into_iter().zip(&self.streams)
    }

    /// The same with all that people want to know.
    pub(super) fn at_percentiles(&self) -> impl Iterator<Item = AtPercentile<'_>> {
        self.streams().map(|(percentile, stream)| {
            let limit = self.stable.limit(percentile);
            AtPercentile {
                percentile,
                stable_us: self.stable.bucket_at(percentile).and_then(latency_bucket_end_us),
                candidate_us: self.candidate.bucket_at(percentile).and_then(latency_bucket_end_us),
                limit_us: limit.and_then(latency_bucket_end_us),
                allowed_us: limit.and_then(|limit| latency_bucket_end_us(limit + SLACK_BUCKETS)),
                stream,
            }
        })
    }
}

/// The share of trials that lie beyond a percentile by its meaning.
pub(super) fn share_beyond(percentile: u8) -> f64 {
    f64::from(100 - percentile.min(100)) / 100.0
}

/// Of these latencies, those in a bucket behind `limit`.
fn beyond(latency: &[(u16, u64)], limit: u16) -> Tally {
    let sum = |counts: &mut dyn Iterator<Item = u64>| counts.fold(0, u64::saturating_add);
    let trials = sum(&mut latency.iter().map(|(_, count)| *count));
    let slow = latency.iter().filter(|(bucket, _)| (*bucket).min(LATENCY_BUCKETS - 1) > limit);
    Tally::new(trials, sum(&mut slow.map(|(_, count)| *count)))
}

/// All latencies so far, by bucket; as long as the highest bucket met, so at most [`LATENCY_BUCKETS`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Histogram(Vec<u64>);

impl Histogram {
    fn add(&mut self, latency: &[(u16, u64)]) {
        for (bucket, count) in latency {
            let bucket = usize::from((*bucket).min(LATENCY_BUCKETS - 1));
            if self.0.len() <= bucket {
                self.0.resize(bucket + 1, 0);
            }
            self.0[bucket] = self.0[bucket].saturating_add(*count);
        }
    }

    fn total(&self) -> u128 {
        self.0.iter().map(|count| u128::from(*count)).sum()
    }

    /// The bucket in which this percentile lies, where there is any latency.
    fn bucket_at(&self, percentile: u8) -> Option<u16> {
        let total = self.total();
        let mut up_to = 0;
        let reached = |count: &u64| {
            up_to += u128::from(*count);
            up_to > 0 && up_to * 100 >= total * u128::from(percentile)
        };
        self.0.iter().position(reached).and_then(|bucket| u16::try_from(bucket).ok())
    }

    /// The bucket behind which a latency of the stable version is slow; `None` while too little is known.
    fn limit(&self, percentile: u8) -> Option<u16> {
        let known = self.total() >= u128::from(LATENCIES_MIN);
        known.then(|| self.bucket_at(percentile))?.map(|bucket| bucket.max(latency_bucket(UNMINDED_US)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn came(latency: &[(u16, u64)]) -> Came {
        Came { latency: latency.to_vec(), ..Came::default() }
    }

    fn at(latency: &Latency, percentile: u8) -> AtPercentile<'_> {
        latency.at_percentiles().find(|at| at.percentile == percentile).unwrap()
    }

    #[test]
    fn the_first_ticks_only_tell_where_the_quantiles_are() {
        let mut latency = Latency::default();
        latency.add(&came(&[(30, 499)]), &came(&[(40, 5)]));
        latency.add(&came(&[(30, 1)]), &came(&[(40, 5)]));
        assert_eq!(at(&latency, 50).stream, &Stream::default());
        latency.add(&came(&[(30, 90), (31, 10)]), &came(&[(32, 4), (33, 5)]));
        assert_eq!(at(&latency, 50).stream.stable(), Tally::new(100, 10));
        // Somewhat slower is no slower.
        assert_eq!(at(&latency, 50).stream.candidate(), Tally::new(9, 5));
    }

    #[test]
    fn quantiles_are_the_ends_of_buckets() {
        let mut latency = Latency::default();
        latency.add(&came(&[(20, 500), (30, 450), (40, 50)]), &came(&[(30, 1)]));
        let ends = |percentile| {
            let at = at(&latency, percentile);
            (at.stable_us, at.limit_us, at.allowed_us)
        };
        let end = latency_bucket_end_us;
        assert_eq!(ends(50), (end(20), end(20), end(22)));
        assert_eq!(ends(95), (end(30), end(30), end(32)));
        assert_eq!(ends(99), (end(40), end(40), end(42)));
        assert_eq!(at(&latency, 99).candidate_us, end(30));
    }

    #[test]
    fn what_nobody_minds_is_no_limit() {
        let mut latency = Latency::default();
        latency.add(&came(&[(0, 500), (LATENCY_BUCKETS + 9, 1)]), &came(&[]));
        assert_eq!(at(&latency, 50).stable_us, latency_bucket_end_us(0));
        assert!(at(&latency, 50).limit_us.is_some_and(|limit| limit > UNMINDED_US));
        latency.add(&came(&[(latency_bucket(900), 50)]), &came(&[(latency_bucket(1_100), 50)]));
        assert_eq!(at(&latency, 50).stream.stable().events(), 0);
        assert_eq!(at(&latency, 50).stream.candidate().events(), 0);
    }

    #[test]
    fn a_third_slower_is_always_within_the_slack() {
        for us in (2_000..4_000_000).step_by(1_777) {
            let limit = latency_bucket(us);
            assert!(latency_bucket(us * 4 / 3) <= limit + SLACK_BUCKETS, "{us}");
        }
    }
}
