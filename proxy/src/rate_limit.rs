//! Rate limits: how many requests of a service, or of each of its callers, this proxy lets through.
//!
//! GCRA, the leaky bucket as one number: of each caller only the moment is kept at which all that it sent would have
//! come at the even rate. A request moves it on by one interval, and is refused where it would be too far ahead of now.
//!
//! Callers are kept in a table of a fixed size, in sets of a few places. Whoever is in none of the places of its set
//! takes that of the one who is least ahead, and goes on from there. Mostly that one is not ahead at all, and nobody
//! notices; where all of them are, the newcomer takes over the least debt there is. So nobody gets more than its limit by
//! being forgotten, whoever makes up callers gets no more than the table has places, and no lock is needed: whatever two
//! workers do at once, a request that was let through is on somebody's account.

use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use gilmok_config::rate_limit::{By, RateLimit};
use gilmok_config::subject::{Asker, Baggage, Inputs, Uid};
use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::client::named_client;
use crate::settings::Network;

/// Places of a service's table: with [`WAYS`] of 16 bytes each, 256 KiB.
const SETS: usize = 2_048;
const WAYS: usize = 8;
/// How often a place is looked for while other workers take it away.
const CLAIMS_MAX: usize = 4;

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// The limit of one service, shared by all workers.
#[derive(Debug)]
pub(crate) struct Limiter {
    policy: RateLimit,
    /// From one request to the next at the even rate.
    interval_ns: u64,
    /// How far ahead of now a request may be.
    tolerance_ns: u64,
    /// The account of all callers together.
    whole: AtomicU64,
    /// Made at the first request, where each caller has an account of its own.
    callers: OnceLock<Box<[Set]>>,
    /// Its keys are of this process, so that nobody can choose whose place it takes.
    hasher: RandomState,
    refused: AtomicU64,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Set([Account; WAYS]);

/// What is kept of one caller. Relaxed: each is a number of its own.
#[derive(Debug, Default)]
struct Account {
    /// Who it is; 0 is nobody.
    caller: AtomicU64,
    /// When all that was let through would have come at the even rate, in nanoseconds of [`crate::clock`].
    ahead_ns: AtomicU64,
}

/// A request, as far as it says who is asking.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asking<'r> {
    pub(crate) peer: IpAddr,
    /// Whether the peer may say for whom it asks.
    pub(crate) trusted: bool,
    /// Whose word is taken for whom they ask.
    pub(crate) networks: &'r [Network],
    pub(crate) headers: &'r HeaderMap,
    pub(crate) query: Option<&'r str>,
}

/// A request over the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limited {
    /// When the next one may be let through, at least 1.
    pub(crate) seconds: u32,
    requests: u32,
    per: Duration,
}

impl Limiter {
    pub(crate) fn new(policy: &RateLimit) -> Self {
        let interval_ns = (ns(policy.per) / u64::from(policy.requests)).max(1);
        Self {
            interval_ns,
            tolerance_ns: interval_ns.saturating_mul(u64::from(policy.burst).saturating_sub(1)),
            policy: policy.clone(),
            whole: AtomicU64::new(0),
            callers: OnceLock::new(),
            hasher: RandomState::new(),
            refused: AtomicU64::new(0),
        }
    }

    pub(crate) fn policy(&self) -> &RateLimit {
        &self.policy
    }

    /// Requests that were refused.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    /// Lets a request through that came at `now_ns` of [`crate::clock`], or not.
    pub(crate) fn admit(&self, asking: &Asking<'_>, now_ns: u64) -> Result<(), Limited> {
        let account = match &self.policy.by {
            By::Service => &self.whole,
            By::Caller => self.account(&Caller::Address(asking.client())),
            By::Subject(inputs) => match inputs.find(&asking.asker(inputs)) {
                Some(subject) => self.account(&Caller::Subject(subject)),
                None => self.account(&Caller::Address(asking.client())),
            },
        };
        self.take(account, now_ns).map_err(|wait_ns| {
            self.refused.fetch_add(1, Relaxed);
            let seconds = u32::try_from(wait_ns.div_ceil(1_000_000_000)).unwrap_or(u32::MAX).max(1);
            Limited { seconds, requests: self.policy.requests, per: self.policy.per }
        })
    }

    /// Moves an account on by one request; else how long it takes until that may be.
    fn take(&self, account: &AtomicU64, now_ns: u64) -> Result<(), u64> {
        let mut wait_ns = 0;
        let taken = account.fetch_update(Relaxed, Relaxed, |ahead_ns| {
            let from_ns = ahead_ns.max(now_ns);
            wait_ns = (from_ns - now_ns).saturating_sub(self.tolerance_ns);
            (wait_ns == 0).then(|| from_ns.saturating_add(self.interval_ns))
        });
        taken.map(|_| ()).map_err(|_| wait_ns)
    }

    /// The account of a caller. Another worker may give it to somebody else in this very moment; then a request is put
    /// down to the wrong one of two, and none is forgotten.
    fn account(&self, caller: &Caller<'_>) -> &AtomicU64 {
        let sets = self.callers.get_or_init(|| (0..SETS).map(|_| Set::default()).collect());
        let caller = self.hasher.hash_one(caller).max(1);
        let at = usize::try_from(caller % SETS as u64).unwrap_or_default();
        let places = &sets[at].0;
        for _ in 0..CLAIMS_MAX {
            if let Some(mine) = places.iter().find(|place| place.caller.load(Relaxed) == caller) {
                return &mine.ahead_ns;
            }
            let least = least_ahead(places);
            let before = least.caller.load(Relaxed);
            if least.caller.compare_exchange(before, caller, Relaxed, Relaxed).is_ok() {
                return &least.ahead_ns;
            }
        }
        &least_ahead(places).ahead_ns
    }
}

fn least_ahead(places: &[Account; WAYS]) -> &Account {
    let (first, others) = (&places[0], &places[1..]);
    others.iter().fold(first, |least, place| {
        if place.ahead_ns.load(Relaxed) < least.ahead_ns.load(Relaxed) { place } else { least }
    })
}

/// Who has an account.
#[derive(Debug, Hash)]
enum Caller<'r> {
    Address(IpAddr),
    Subject(Cow<'r, [u8]>),
}

impl<'r> Asking<'r> {
    /// The same, for those who look for a subject.
    fn asker(&self, inputs: &Inputs) -> Asker<'r> {
        let client = inputs.want_client().then(|| self.client());
        Asker {
            headers: self.headers,
            query: self.query,
            client,
            uid: Uid::AsSent,
            baggage: Baggage::default(),
        }
    }

    /// The address that a request comes from: the peer's, or, as long as that is trusted, the one it names.
    fn client(&self) -> IpAddr {
        let peer = self.peer.to_canonical();
        let client = if self.trusted { named_client(peer, self.networks, self.headers) } else { peer };
        // Whoever has an address of IPv6 has as many as it likes, with the same first half.
        match client {
            IpAddr::V4(_) => client,
            IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        }
    }
}

impl Limited {
    /// Says what the limit is (draft-ietf-httpapi-ratelimit-headers-10).
    pub(crate) fn tell(self, headers: &mut HeaderMap) {
        let limit = format!("\"default\";r=0;t={}", self.seconds);
        // The window is told in whole seconds, or not at all.
        let window =
            if self.per.subsec_nanos() == 0 { format!(";w={}", self.per.as_secs()) } else { String::new() };
        let policy = format!("\"default\";q={}{window}", self.requests);
        for (name, value) in [(RATE_LIMIT, limit), (RATE_LIMIT_POLICY, policy)] {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(name, value);
            }
        }
    }
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn limiter(requests: u32, per: Duration, burst: u32, by: By) -> Limiter {
        Limiter::new(&RateLimit { requests, per, burst, by })
    }

    fn asking<'r>(peer: &str, headers: &'r HeaderMap, networks: &'r [Network]) -> Asking<'r> {
        let peer: IpAddr = peer.parse().unwrap();
        let trusted = networks.iter().any(|network| network.contains(peer));
        Asking { peer, trusted, networks, headers, query: None }
    }

    fn from(peer: &str, limiter: &Limiter, now_ns: u64) -> bool {
        limiter.admit(&asking(peer, &HeaderMap::new(), &[]), now_ns).is_ok()
    }

    #[test]
    fn a_burst_passes_at_once_and_then_the_even_rate() {
        let limiter = limiter(10, Duration::from_secs(1), 3, By::Service);
        let now = 5 * SECOND;
        let passed: Vec<bool> = (0..5).map(|_| from("10.0.0.1", &limiter, now)).collect();
        assert_eq!(passed, [true, true, true, false, false]);
        assert!(!from("10.0.0.2", &limiter, now + SECOND / 10 - 1), "all of a service together");
        assert!(from("10.0.0.2", &limiter, now + SECOND / 10));
        assert!(!from("10.0.0.2", &limiter, now + SECOND / 10));
        assert_eq!(limiter.refused(), 4);
        let refilled = (0..5).filter(|_| from("10.0.0.1", &limiter, now + 10 * SECOND)).count();
        assert_eq!(refilled, 3, "silence saves up no more than a burst");
    }

    #[test]
    fn the_time_to_come_again_is_told_in_whole_seconds() {
        let limiter = limiter(3, Duration::from_mins(1), 1, By::Service);
        let headers = HeaderMap::new();
        let ask = |now_ns| limiter.admit(&asking("10.0.0.1", &headers, &[]), now_ns);
        assert_eq!(ask(SECOND), Ok(()));
        for (now, seconds) in [(1, 20), (2, 19), (20, 1)] {
            assert_eq!(
                ask(now * SECOND + SECOND / 2).map_err(|limited| limited.seconds),
                Err(seconds),
                "{now}"
            );
        }
        let limited = ask(2 * SECOND).unwrap_err();
        let mut told = HeaderMap::new();
        limited.tell(&mut told);
        assert_eq!(told[RATE_LIMIT], "\"default\";r=0;t=19");
        assert_eq!(told[RATE_LIMIT_POLICY], "\"default\";q=3;w=60");
        let limited = Limited { per: Duration::from_millis(500), ..limited };
        limited.tell(&mut told);
        assert_eq!(told[RATE_LIMIT_POLICY], "\"default\";q=3");
    }

    #[test]
    fn a_caller_is_the_last_address_that_somebody_trusted_names() {
        let networks: Vec<Network> = ["127.0.0.0/8", "10.0.0.0/8"].map(|text| text.parse().unwrap()).into();
        for (peer, forwarded, expected) in [
            ("192.0.2.1", &["198.51.100.7"][..], "192.0.2.1"),
            ("127.0.0.1", &[], "127.0.0.1"),
            ("127.0.0.1", &["198.51.100.7"], "198.51.100.7"),
            // What a stranger says of others is not believed.
            ("127.0.0.1", &["203.0.113.9, 198.51.100.7, 10.1.1.1"], "198.51.100.7"),
            ("127.0.0.1", &["203.0.113.9", "198.51.100.7,10.1.1.1"], "198.51.100.7"),
            ("127.0.0.1", &["198.51.100.7, unknown"], "127.0.0.1"),
            ("127.0.0.1", &["10.2.2.2, 10.1.1.1"], "10.2.2.2"),
            ("::ffff:192.0.2.1", &[], "192.0.2.1"),
            ("2001:db8:1:2:3:4:5:6", &[], "2001:db8:1:2::"),
        ] {
            let mut headers = HeaderMap::new();
            for line in forwarded {
                headers.append("x-forwarded-for", HeaderValue::from_static(line));
            }
            let client = asking(peer, &headers, &networks).client();
            assert_eq!(client, expected.parse::<IpAddr>().unwrap(), "{peer} {forwarded:?}");
        }
    }

    #[test]
    fn each_subject_has_its_own_limit_and_whoever_has_none_is_its_address() {
        let limiter = limiter(1, Duration::from_mins(1), 1, By::Subject(Inputs::default()));
        let ask = |peer: &str, user: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-user-id", HeaderValue::from_static(user));
            limiter.admit(&asking(peer, &headers, &[]), SECOND).is_ok()
        };
        assert!(ask("10.0.0.1", "1") && ask("10.0.0.1", "2"));
        assert!(!ask("10.0.0.2", "1"), "the same one from elsewhere");
        assert!(ask("10.0.0.1", "") && !ask("10.0.0.1", "") && ask("10.0.0.2", ""));
    }

    #[test]
    fn callers_without_end_get_no_more_than_the_table_has_places() {
        let limiter = limiter(1, Duration::from_hours(1), 1, By::Caller);
        let flood = |now_ns| {
            (0..60_000_u32).filter(|n| from(&IpAddr::V4((*n).into()).to_string(), &limiter, now_ns)).count()
        };
        let passed = flood(SECOND);
        assert!((SETS * WAYS * 95 / 100..=SETS * WAYS).contains(&passed), "{passed}");
        assert_eq!(flood(SECOND), 0);
        // An hour later everybody is forgotten, and nobody has anything to pay.
        assert!(from("192.0.2.1", &limiter, SECOND + 3_600 * SECOND));
    }

    #[test]
    fn workers_together_let_through_exactly_the_burst() {
        for by in [By::Service, By::Caller] {
            let limiter = limiter(1, Duration::from_hours(1), 1_000, by);
            let passed: usize = std::thread::scope(|scope| {
                let worker = || (0..2_000).filter(|_| from("10.0.0.1", &limiter, SECOND)).count();
                let workers: Vec<_> = (0..4).map(|_| scope.spawn(worker)).collect();
                workers.into_iter().map(|worker| worker.join().unwrap()).sum()
            });
            assert_eq!((passed, limiter.refused()), (1_000, 7_000));
        }
    }

    proptest! {
        #[test]
        fn in_no_time_more_than_the_burst_and_the_even_rate_pass(
            requests in 1_u32..1_000,
            per_ms in 100_u64..10_000,
            burst in 1_u32..100,
            gaps in proptest::collection::vec(0_u64..20_000_000, 1..400),
        ) {
            let limiter = limiter(requests, Duration::from_millis(per_ms), burst, By::Caller);
            let headers = HeaderMap::new();
            let asking = asking("10.0.0.1", &headers, &[]);
            let mut now = SECOND;
            let mut passed: Vec<u64> = Vec::new();
            for gap in gaps {
                now += gap;
                match limiter.admit(&asking, now) {
                    Ok(()) => passed.push(now),
                    Err(limited) => {
                        prop_assert!(limited.seconds >= 1);
                        // Whoever comes when told would be let through.
                        let later = now + u64::from(limited.seconds) * SECOND;
                        let ahead = limiter.account(&Caller::Address(asking.client())).load(Relaxed);
                        prop_assert!(ahead.saturating_sub(later) <= limiter.tolerance_ns);
                    }
                }
            }
            for (first, from) in passed.iter().enumerate() {
                for (count, to) in (1_u64..).zip(&passed[first..]) {
                    let even = (to - from) / limiter.interval_ns;
                    prop_assert!(count <= u64::from(burst) + even, "{count} in {} ns", to - from);
                }
            }
            prop_assert!(!passed.is_empty());
        }
    }
}
