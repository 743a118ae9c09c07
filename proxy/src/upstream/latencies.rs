//! Latencies counted in the buckets of the wire: bounded, mergeable, told to control planes and as a histogram.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use gilmok_config::wire::{LATENCY_BUCKETS, latency_bucket, latency_bucket_end_us};

/// Buckets to an octave.
const QUARTERS: usize = 4;
/// Octaves that are told as a histogram: the same bounds as those of requests.
const OCTAVES: usize = 21;

/// How often what took how long. Shared by the workers and relaxed: each is a number of its own, and only a part of
/// all requests is counted here.
#[derive(Debug)]
pub(crate) struct Latencies {
    buckets: [AtomicU64; LATENCY_BUCKETS as usize],
    sum_us: AtomicU64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| AtomicU64::new(0)), sum_us: AtomicU64::new(0) }
    }
}

impl Latencies {
    pub(crate) fn note(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.buckets[usize::from(latency_bucket(us))].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    /// Bucket and count, where there are any.
    pub(crate) fn counts(&self) -> Vec<(u16, u64)> {
        let counts = (0..).zip(&self.buckets).map(|(bucket, count)| (bucket, count.load(Relaxed)));
        counts.filter(|(_, count)| *count > 0).collect()
    }

    /// For each bound of a histogram how many took less.
    pub(crate) fn below(&self) -> impl Iterator<Item = (Duration, u64)> {
        let octaves = (0..).zip(&self.buckets).step_by(QUARTERS).take(OCTAVES);
        octaves.filter_map(|(bucket, _)| {
            let below = self.buckets[..=usize::from(bucket)].iter().map(|count| count.load(Relaxed)).sum();
            Some((Duration::from_micros(latency_bucket_end_us(bucket)?), below))
        })
    }

    /// How many there are, and how long all of them took.
    pub(crate) fn total(&self) -> (u64, Duration) {
        let count = self.buckets.iter().map(|count| count.load(Relaxed)).sum();
        (count, Duration::from_micros(self.sum_us.load(Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_has_all_that_is_below_its_bounds() {
        let latencies = Latencies::default();
        for us in [10, 63, 64, 127, 128, 5_000_000] {
            latencies.note(Duration::from_micros(us));
        }
        let below: Vec<(u128, u64)> = latencies.below().map(|(bound, n)| (bound.as_micros(), n)).collect();
        assert_eq!(below[..3], [(64, 2), (128, 4), (256, 5)]);
        assert_eq!(below.last(), Some(&(1 << 26, 6)));
        assert_eq!(latencies.total(), (6, Duration::from_micros(5_000_392)));
        assert_eq!(latencies.counts()[0], (0, 2));
    }
}
