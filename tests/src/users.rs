//! Users who call again and again, and which version answered each of them when.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::eventually::{SOON, within};
use crate::message::{Message, Reader};

/// Longest that requests are waited for: machines are shared.
const FLOW_MAX: Duration = Duration::from_secs(120);
/// Most kinds of failures that are told apart.
const KINDS_MAX: usize = 50;

/// A crowd of users that calls until it is stopped.
#[derive(Debug)]
pub struct Users {
    state: Arc<State>,
    callers: JoinSet<Vec<Answer>>,
}

#[derive(Debug, Default)]
struct State {
    stop: AtomicBool,
    answered: AtomicU64,
    failures: Mutex<BTreeMap<String, u64>>,
}

/// Who calls, and how.
#[derive(Clone, Debug)]
pub struct Crowd {
    pub host: String,
    pub path: String,
    /// The numbers in `X-User-Id: user-N`.
    pub users: Range<u32>,
    /// Connections. Each goes through all users in turn, every one from another user on, so that a user is on several.
    pub callers: u32,
    /// How long each connection rests after an answer.
    pub rest: Duration,
}

/// One good answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub user: u32,
    pub asked: Instant,
    pub answered: Instant,
    pub version: String,
}

/// What became of all requests.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// In the order in which they were asked.
    pub answers: Vec<Answer>,
    /// What went wrong, and how often.
    pub failures: BTreeMap<String, u64>,
}

impl Crowd {
    /// So many users of a service over four connections without a rest.
    #[must_use]
    pub fn of(host: &str, users: u32) -> Self {
        let (host, path) = (host.to_owned(), "/".to_owned());
        Self { host, path, users: 0..users, callers: 4, rest: Duration::ZERO }
    }
}

impl Users {
    #[must_use]
    pub fn start(address: SocketAddr, crowd: &Crowd) -> Self {
        let mut users = Self { state: Arc::default(), callers: JoinSet::new() };
        for number in 0..crowd.callers {
            users.callers.spawn(call(address, crowd.clone(), number, Arc::clone(&users.state)));
        }
        users
    }

    /// How many good answers there were so far.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.state.answered.load(Ordering::Relaxed)
    }

    /// Waits for so many more good answers.
    ///
    /// # Panics
    /// When they do not come; the message has the failures.
    pub async fn flow(&self, more: u64) {
        let goal = self.answered() + more;
        let flowing = async {
            while self.answered() < goal {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let in_time = tokio::time::timeout(FLOW_MAX, flowing).await.is_ok();
        assert!(in_time, "only {} of {goal} answers; {:?}", self.answered(), self.state.failures());
    }

    /// Lets every connection finish the request it is at, and gives all that was heard.
    ///
    /// # Panics
    /// When a request does not end.
    pub async fn stop(mut self) -> Heard {
        self.state.stop.store(true, Ordering::Relaxed);
        let mut answers = within(Duration::from_secs(60), "the last requests", async {
            let mut answers = Vec::new();
            while let Some(heard) = self.callers.join_next().await {
                answers.extend(heard.expect("no caller panics"));
            }
            answers
        })
        .await;
        answers.sort_by_key(|answer| answer.asked);
        Heard { answers, failures: self.state.failures() }
    }
}

impl Heard {
    /// # Panics
    /// When a request failed.
    pub fn expect_no_failure(&self) {
        assert!(self.failures.is_empty(), "{} good, but: {:#?}", self.answers.len(), self.failures);
    }

    /// What each user saw, one version after the other.
    #[must_use]
    pub fn paths(&self) -> BTreeMap<u32, Vec<String>> {
        let mut paths: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for answer in &self.answers {
            let path = paths.entry(answer.user).or_default();
            if path.last() != Some(&answer.version) {
                path.push(answer.version.clone());
            }
        }
        paths
    }
}

impl State {
    fn fail(&self, what: String) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() < KINDS_MAX || failures.contains_key(&what) {
            *failures.entry(what).or_default() += 1;
        }
    }

    fn failures(&self) -> BTreeMap<String, u64> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn call(address: SocketAddr, crowd: Crowd, number: u32, state: Arc<State>) -> Vec<Answer> {
    let count = crowd.users.end - crowd.users.start;
    let mut at = count / crowd.callers * number;
    let mut heard = Vec::new();
    let mut connection: Option<(TcpStream, Reader)> = None;
    while !state.stop.load(Ordering::Relaxed) {
        let (mut io, mut reader) = match connection.take() {
            Some(open) => open,
            None => match TcpStream::connect(address).await {
                Ok(io) => (io, Reader::default()),
                Err(error) => {
                    state.fail(format!("connect: {error}"));
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            },
        };
        let user = crowd.users.start + at % count;
        at = (at + 1) % count;
        let Crowd { host, path, .. } = &crowd;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nX-User-Id: user-{user}\r\n\r\n");
        let asked = Instant::now();
        if let Err(error) = io.write_all(request.as_bytes()).await {
            state.fail(format!("sending: {error}"));
            continue;
        }
        match reader.answer(&mut io, SOON, false).await {
            Ok(answer) if answer.status() == 200 && answer.is_complete => {
                let version = version_of(&answer);
                heard.push(Answer { user, asked, answered: Instant::now(), version });
                state.answered.fetch_add(1, Ordering::Relaxed);
                connection = (!answer.says_close()).then_some((io, reader));
            }
            Ok(answer) => {
                let status = answer.header("proxy-status").unwrap_or_default();
                state.fail(format!("{} complete={} {status}", answer.start, answer.is_complete));
                connection = (answer.is_complete && !answer.says_close()).then_some((io, reader));
            }
            Err(reason) => state.fail(format!("no answer: {reason:?}")),
        }
        if !crowd.rest.is_zero() {
            tokio::time::sleep(crowd.rest).await;
        }
    }
    heard
}

/// Which version an answer says it is of: a demo app says it in JSON, or in a sentence about its health; other upstreams
/// say nothing else.
#[must_use]
pub fn version_of(answer: &Message) -> String {
    const KEY: &str = "\"version\": \"";
    let text = String::from_utf8_lossy(&answer.body);
    let in_json = text.split_once(KEY).and_then(|(_, rest)| rest.split_once('"')).map(|(version, _)| version);
    let in_words = || text.strip_suffix(" is well\n")?.split_once(' ').map(|(_, version)| version);
    in_json.or_else(in_words).unwrap_or(&text).to_owned()
}
