//! Who shows tokens that are none, by address: whoever goes on guessing is not listened to for a while.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Failures of one address at once, and how soon it may fail once more.
const BURST: u32 = 10;
const ANOTHER_AFTER: Duration = Duration::from_secs(6);
/// Addresses that are remembered. Beyond it, the one that failed longest ago makes room.
const ADDRESSES_MAX: usize = 4_096;
/// How often it is told of an address.
const TELL_EVERY: Duration = Duration::from_mins(1);

/// Failures by address, of IPv6 by its first 64 bits.
#[derive(Debug, Default)]
pub struct Failures {
    /// A std mutex: taken for a look-up by those whose token is none, and nothing is awaited under it.
    known: Mutex<HashMap<IpAddr, Failing>>,
}

#[derive(Debug)]
struct Failing {
    /// When all of its failures will be forgiven: each adds [`ANOTHER_AFTER`].
    forgiven: Instant,
    failed: Instant,
    told: Option<Instant>,
}

impl Failures {
    /// How long an address is not listened to; `None` where it is.
    pub(super) fn barred(&self, address: IpAddr) -> Option<Duration> {
        let now = Instant::now();
        let owed = self.lock().get(&network(address)).map(|failing| failing.forgiven.duration_since(now))?;
        owed.checked_sub(ANOTHER_AFTER * (BURST - 1)).filter(|wait| !wait.is_zero())
    }

    /// Notes a failure; whether it is to be told.
    pub(super) fn note(&self, address: IpAddr) -> bool {
        let now = Instant::now();
        let mut known = self.lock();
        let address = network(address);
        if known.len() >= ADDRESSES_MAX && !known.contains_key(&address) {
            let oldest = known.iter().min_by_key(|(_, failing)| failing.failed).map(|(address, _)| *address);
            oldest.and_then(|address| known.remove(&address));
        }
        let failing = known.entry(address).or_insert(Failing { forgiven: now, failed: now, told: None });
        failing.forgiven = failing.forgiven.max(now) + ANOTHER_AFTER;
        failing.failed = now;
        let is_news = failing.told.is_none_or(|told| now.duration_since(told) >= TELL_EVERY);
        if is_news {
            failing.told = Some(now);
        }
        is_news
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Failing>> {
        // Whoever panicked left whole entries.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever has one address of a network of IPv6 has all of its 2^64.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_goes_on_guessing_is_not_listened_to_for_a_while() {
        let failures = Failures::default();
        let (guesser, other): (IpAddr, IpAddr) = ("10.0.0.9".parse().unwrap(), "10.0.0.8".parse().unwrap());
        for failure in 0..BURST {
            assert_eq!(failures.barred(guesser), None, "{failure}");
            assert_eq!(failures.note(guesser), failure == 0, "told once");
        }
        let wait = failures.barred(guesser).unwrap();
        assert_eq!((wait, failures.barred(other)), (ANOTHER_AFTER, None));
        tokio::time::advance(wait).await;
        assert_eq!(failures.barred(guesser), None);
        failures.note(guesser);
        assert_eq!(failures.barred(guesser), Some(ANOTHER_AFTER), "one more, and no ten");
        tokio::time::advance(ANOTHER_AFTER * BURST).await;
        for _ in 1..BURST {
            failures.note(guesser);
        }
        assert_eq!(failures.barred(guesser), None, "all is forgiven");
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_of_one_network_are_one_and_no_more_are_remembered_than_may_be() {
        let failures = Failures::default();
        for host in 0..BURST {
            failures.note(format!("2001:db8::{host:x}").parse().unwrap());
        }
        assert!(failures.barred("2001:db8::ffff".parse().unwrap()).is_some());
        assert!(failures.barred("2001:db8:0:1::1".parse().unwrap()).is_none());
        for place in 0..ADDRESSES_MAX {
            tokio::time::advance(Duration::from_millis(1)).await;
            let [high, low] = u16::try_from(place).unwrap().to_be_bytes();
            failures.note(IpAddr::from([10, 1, high, low]));
        }
        assert_eq!(failures.lock().len(), ADDRESSES_MAX);
        assert!(failures.barred("2001:db8::1".parse().unwrap()).is_none(), "the oldest made room");
    }
}
