//! Visitors of `profile`: users who come again and again, each counted by the shard that holds them and here as well, so that
//! a single visit that was lost or counted at the wrong place is found at the next one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use gilmok_control_plane::http_client::{Client, Request};
use hyper::header::{HOST, HeaderValue};
use hyper::{Method, StatusCode};
use tokio::task::JoinSet;

use super::layout::Layout;
use super::mesh::SOON;
use super::talk;

/// Callers at a time, each with users of its own, and how long each rests between two visits.
const CALLERS: usize = 8;
const USERS_OF_EACH: usize = 50;
const REST: Duration = Duration::from_millis(15);
/// How long whoever is asked to come again waits.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// Visits whose time is remembered.
const VISITS_MAX: usize = 200_000;
const POLL: Duration = Duration::from_millis(10);

/// Visitors who come until they are dropped.
#[derive(Debug)]
pub(crate) struct Visitors {
    /// A std mutex: nothing is awaited under it, and each visit is one step.
    seen: Arc<Mutex<Seen>>,
    callers: JoinSet<anyhow::Result<()>>,
}

/// What they saw so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Visits that were acknowledged, by user.
    pub(crate) visits: BTreeMap<String, u64>,
    /// When each was asked for, and how long it took.
    times: Vec<(Instant, Duration)>,
    /// How often somebody was asked to come again a little later.
    pub(crate) again: u64,
    /// Whether nobody is to come any more.
    leaving: bool,
}

impl Visitors {
    /// Begins to send users to `profile`, through the proxy of each machine in turn.
    ///
    /// # Errors
    /// Never for addresses.
    pub(crate) fn start(layout: &Layout) -> anyhow::Result<Self> {
        let seen = Arc::<Mutex<Seen>>::default();
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            let machine = &layout.machines[caller % layout.machines.len()];
            let client = talk::client(machine.outbound)?;
            callers.spawn(keep_coming(client, caller, Arc::clone(&seen)));
        }
        Ok(Self { seen, callers })
    }

    pub(crate) fn so_far(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until so many more visits were counted.
    ///
    /// # Errors
    /// When they were not, or one was not as it has to be.
    pub(crate) async fn go_on_for(&mut self, visits: usize) -> anyhow::Result<()> {
        let goal = self.so_far().times.len() + visits;
        let deadline = Instant::now() + SOON;
        while self.so_far().times.len() < goal {
            self.none_failed()?;
            anyhow::ensure!(
                Instant::now() < deadline,
                "waited {} s for {visits} more visits",
                SOON.as_secs()
            );
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Whether every visit so far was counted, exactly once and at the right place.
    ///
    /// # Errors
    /// The first one that was not.
    pub(crate) fn none_failed(&mut self) -> anyhow::Result<()> {
        // Nobody stops by itself but for a failure.
        match self.callers.try_join_next() {
            None => Ok(()),
            Some(ended) => ended.context("a visitor has panicked")?,
        }
    }

    /// Lets every visit that is under way end, and nobody come any more; what they saw.
    ///
    /// # Errors
    /// The first visit that was not as it has to be.
    pub(crate) async fn leave(mut self) -> anyhow::Result<Seen> {
        self.none_failed()?;
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).leaving = true;
        while let Some(ended) = self.callers.join_next().await {
            ended.context("a visitor has panicked")??;
        }
        Ok(self.so_far())
    }
}

impl Seen {
    /// How long visits took that were asked for between two moments: their number, the median and the 99th of a hundred.
    pub(crate) fn between(&self, begin: Instant, end: Instant) -> (usize, Duration, Duration) {
        let within = self.times.iter().filter(|(asked, _)| (begin..end).contains(asked));
        let mut times: Vec<_> = within.map(|(_, took)| *took).collect();
        times.sort_unstable();
        let at = |hundredths: usize| times.get(times.len() * hundredths / 100).copied().unwrap_or_default();
        (times.len(), at(50), at(99))
    }
}

async fn keep_coming(client: Client, caller: usize, seen: Arc<Mutex<Seen>>) -> anyhow::Result<()> {
    let users: Vec<_> = (0..USERS_OF_EACH).map(|user| format!("visitor-{caller}-{user}")).collect();
    for user in users.iter().cycle() {
        if seen.lock().unwrap_or_else(PoisonError::into_inner).leaving {
            return Ok(());
        }
        visit(&client, user, &seen).await.with_context(|| format!("a visit of {user}"))?;
        tokio::time::sleep(REST).await;
    }
    Ok(())
}

/// One visit, until it is counted.
async fn visit(client: &Client, user: &str, seen: &Mutex<Seen>) -> anyhow::Result<()> {
    let asked = Instant::now();
    let request = Request::new(Method::POST, format!("/users/{user}"))
        .timeout(SOON)
        .header(HOST, HeaderValue::from_static("profile"));
    let answer = loop {
        let answer = client.send(&request).await.context("no answer")?;
        let asked_again =
            answer.status == StatusCode::SERVICE_UNAVAILABLE && answer.headers.contains_key("retry-after");
        if !asked_again {
            break answer;
        }
        anyhow::ensure!(
            asked.elapsed() < SOON,
            "again and again asked to come later: {}",
            talk::brief(&answer)
        );
        seen.lock().unwrap_or_else(PoisonError::into_inner).again += 1;
        tokio::time::sleep(AGAIN_AFTER).await;
    };
    let said = talk::json(&answer, StatusCode::OK)?;
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    let known = seen.visits.entry(user.to_owned()).or_default();
    *known += 1;
    anyhow::ensure!(said["visits"] == *known, "it is number {known}, and {said} counts it otherwise");
    if seen.times.len() < VISITS_MAX {
        seen.times.push((asked, asked.elapsed()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_of_the_visits_between_two_moments() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let times = (0..100).map(|ms| (at(ms), Duration::from_millis(ms))).collect();
        let seen = Seen { times, ..Seen::default() };
        let ms = Duration::from_millis;
        assert_eq!(seen.between(begin, at(100)), (100, ms(50), ms(99)));
        assert_eq!(seen.between(at(10), at(20)), (10, ms(15), ms(19)));
        assert_eq!(seen.between(at(200), at(300)), (0, ms(0), ms(0)));
    }
}
