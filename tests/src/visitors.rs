//! Visitors of a service whose shards count them: each visit is counted there and here, so that one that was lost, counted
//! twice or counted at the wrong shard is found.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::caller::{Caller, get};
use crate::eventually::eventually;
use crate::message::Message;

/// How long a caller rests between two visits.
const REST: Duration = Duration::from_millis(5);
/// After so long without an answer nobody knows what became of a visit.
const PATIENCE: Duration = Duration::from_secs(10);

/// Visitors who come until they are told to leave.
#[derive(Debug)]
pub struct Visitors {
    seen: Arc<Mutex<Seen>>,
    callers: JoinSet<()>,
}

/// What they saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub users: BTreeMap<String, Tally>,
    /// Visits that were not taken: answered 503 with `Retry-After`.
    pub turned_away: u64,
    /// Visits of which nobody knows whether they were counted.
    pub unknown: u64,
    /// How long each acknowledged visit took.
    pub took: Vec<Duration>,
    /// What must never be.
    pub wrong: Vec<String>,
    leaving: bool,
}

/// The visits of one user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub acknowledged: u64,
    pub unknown: u64,
    /// The number that the last acknowledged visit was given.
    highest: u64,
}

impl Visitors {
    /// So many users for each of these callers' proxies, all of them at once.
    #[must_use]
    pub fn start(proxies: &[SocketAddr], users: usize) -> Self {
        let seen = Arc::<Mutex<Seen>>::default();
        let mut callers = JoinSet::new();
        for (number, proxy) in proxies.iter().enumerate() {
            for user in 0..users {
                callers.spawn(keep_coming(*proxy, format!("user-{number}-{user}"), Arc::clone(&seen)));
            }
        }
        Self { seen, callers }
    }

    /// What they saw so far.
    #[must_use]
    pub fn so_far(&self) -> Seen {
        locked(&self.seen).clone()
    }

    /// Waits until so many more visits were acknowledged.
    ///
    /// # Panics
    /// When they were not.
    pub async fn go_on_for(&self, visits: u64) {
        let goal = self.so_far().acknowledged() + visits;
        eventually("more visits", async || {
            let seen = self.so_far();
            if seen.acknowledged() >= goal { Ok(()) } else { Err(seen.acknowledged()) }
        })
        .await;
    }

    /// Lets every visit that is under way end, and nobody come any more.
    ///
    /// # Panics
    /// When a caller panicked.
    pub async fn leave(mut self) -> Seen {
        locked(&self.seen).leaving = true;
        while let Some(ended) = self.callers.join_next().await {
            ended.expect("no caller panics");
        }
        let seen = self.so_far();
        assert!(seen.wrong.is_empty(), "{:#?}", seen.wrong);
        seen
    }
}

impl Seen {
    /// Visits that were answered well.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.users.values().map(|tally| tally.acknowledged).sum()
    }

    /// Asks for every user through this proxy: each count is what was acknowledged, and at most what nobody knows of more.
    ///
    /// # Panics
    /// When one is not.
    pub async fn expect_exact_at(&self, proxy: SocketAddr) {
        let mut caller = Caller::connect(proxy).await;
        for (user, tally) in &self.users {
            let answer = caller.ask(get("profile", &format!("/users/{user}"))).await;
            assert_eq!(answer.status(), 200, "{user}: {answer:?}");
            let counted = visits(&answer).expect("a count");
            let most = tally.acknowledged + tally.unknown;
            assert!((tally.acknowledged..=most).contains(&counted), "{user}: {counted} for {tally:?}");
        }
    }
}

async fn keep_coming(proxy: SocketAddr, user: String, seen: Arc<Mutex<Seen>>) {
    let request = format!("POST /users/{user} HTTP/1.1\r\nHost: profile\r\nContent-Length: 0\r\n\r\n");
    let mut caller = None;
    while !locked(&seen).leaving {
        let mut connected = match caller.take() {
            Some(caller) => caller,
            None => match tokio::net::TcpStream::connect(proxy).await {
                Ok(io) => Caller::over(io),
                // Its proxy is dead, and comes back.
                Err(_) => {
                    tokio::time::sleep(REST).await;
                    continue;
                }
            },
        };
        let asked = Instant::now();
        connected.send(&request).await;
        let answer = connected.try_answer(PATIENCE).await;
        locked(&seen).note(&user, asked.elapsed(), answer.as_ref().ok());
        caller = answer.ok().filter(|answer| !answer.says_close()).map(|_| connected);
        tokio::time::sleep(REST).await;
    }
}

impl Seen {
    fn note(&mut self, user: &str, took: Duration, answer: Option<&Message>) {
        let tally = self.users.entry(user.to_owned()).or_default();
        match answer {
            Some(answer) if answer.status() == 200 => {
                let number = visits(answer).unwrap_or_default();
                let most = tally.acknowledged + tally.unknown + 1;
                if number <= tally.highest || number > most || number <= tally.acknowledged {
                    self.wrong.push(format!("{user}: visit {number} after {tally:?}: {answer:?}"));
                }
                tally.acknowledged += 1;
                tally.highest = number;
                self.took.push(took);
            }
            // Whoever is asked to come again was not let in.
            Some(answer) if answer.status() == 503 && answer.header("retry-after").is_some() => {
                self.turned_away += 1;
            }
            Some(answer) if answer.status() == 421 => {
                self.wrong.push(format!("{user}: an owner's 421 reached the caller: {answer:?}"));
            }
            Some(_) | None => {
                tally.unknown += 1;
                self.unknown += 1;
            }
        }
    }
}

fn visits(answer: &Message) -> Option<u64> {
    serde_json::from_slice::<Value>(&answer.body).ok()?["visits"].as_u64()
}

fn locked(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
