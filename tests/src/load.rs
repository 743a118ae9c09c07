//! Many callers at once on connections that stay, and what became of every request.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::eventually::{SOON, within};
use crate::h2_caller::H2Caller;
use crate::message::{NoMessage, Reader};

/// Most kinds of failures that are told apart.
const KINDS_MAX: usize = 50;

/// Callers that go on until they are stopped.
#[derive(Debug)]
pub struct Load {
    state: Arc<State>,
    callers: JoinSet<()>,
}

#[derive(Debug, Default)]
struct State {
    stop: AtomicBool,
    succeeded: AtomicU64,
    failures: Mutex<BTreeMap<String, u64>>,
}

/// What became of all requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub succeeded: u64,
    /// What went wrong, and how often.
    pub failures: BTreeMap<String, u64>,
}

/// What the callers ask for.
#[derive(Clone, Debug)]
pub struct Ask {
    pub host: String,
    pub path: String,
    /// How long each caller rests after an answer.
    pub rest: Duration,
}

impl Ask {
    #[must_use]
    pub fn of(host: &str) -> Self {
        Self { host: host.to_owned(), path: "/".to_owned(), rest: Duration::from_millis(1) }
    }
}

impl Load {
    /// Starts `callers` HTTP/1 connections, each with one request after the other.
    #[must_use]
    pub fn start(address: SocketAddr, callers: usize, ask: &Ask) -> Self {
        let mut load = Self { state: Arc::default(), callers: JoinSet::new() };
        for _ in 0..callers {
            load.callers.spawn(call_http1(address, ask.clone(), Arc::clone(&load.state)));
        }
        load
    }

    /// Starts `callers` HTTP/2 connections, each with one request after the other.
    #[must_use]
    pub fn start_h2(address: SocketAddr, callers: usize, ask: &Ask) -> Self {
        let mut load = Self { state: Arc::default(), callers: JoinSet::new() };
        for _ in 0..callers {
            load.callers.spawn(call_h2(address, ask.clone(), Arc::clone(&load.state)));
        }
        load
    }

    /// How many requests have succeeded so far.
    #[must_use]
    pub fn succeeded(&self) -> u64 {
        self.state.succeeded.load(Ordering::Relaxed)
    }

    /// Waits until `more` requests beyond those so far have succeeded.
    ///
    /// # Panics
    /// When they have not within [`SOON`]; the message has the failures.
    pub async fn flows(&self, more: u64) {
        let goal = self.succeeded() + more;
        let flowing = async {
            while self.succeeded() < goal {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let in_time = tokio::time::timeout(SOON, flowing).await.is_ok();
        assert!(in_time, "only {} of {goal} requests; {:?}", self.succeeded(), self.failures());
    }

    /// Lets every caller finish the request it is at, and adds up.
    pub async fn stop(mut self) -> Outcome {
        self.state.stop.store(true, Ordering::Relaxed);
        within(Duration::from_secs(60), "the last requests of the load", async {
            while self.callers.join_next().await.is_some() {}
        })
        .await;
        Outcome { succeeded: self.succeeded(), failures: self.failures() }
    }

    fn failures(&self) -> BTreeMap<String, u64> {
        self.state.failures.lock().expect("nothing panics while it counts").clone()
    }
}

impl Outcome {
    /// # Panics
    /// When a request failed, or when there were none.
    pub fn expect_no_failure(&self) {
        assert!(self.failures.is_empty(), "{} succeeded, but: {:#?}", self.succeeded, self.failures);
        assert!(self.succeeded > 0, "no request was made");
    }

    /// How many failed.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }
}

impl State {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn succeed(&self) {
        self.succeeded.fetch_add(1, Ordering::Relaxed);
    }

    fn fail(&self, what: String) {
        let mut failures = self.failures.lock().expect("nothing panics while it counts");
        if failures.len() < KINDS_MAX || failures.contains_key(&what) {
            *failures.entry(what).or_default() += 1;
        }
    }
}

async fn call_http1(address: SocketAddr, ask: Ask, state: Arc<State>) {
    let request = format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", ask.path, ask.host);
    let mut connection: Option<(TcpStream, Reader)> = None;
    while state.goes_on() {
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
        if let Err(error) = tokio::io::AsyncWriteExt::write_all(&mut io, request.as_bytes()).await {
            state.fail(format!("sending: {error}"));
            continue;
        }
        match reader.answer(&mut io, SOON, false).await {
            Ok(answer) if answer.status() == 200 && answer.is_complete => {
                state.succeed();
                if !answer.says_close() {
                    connection = Some((io, reader));
                }
            }
            Ok(answer) => {
                let status = answer.header("proxy-status").unwrap_or_default();
                state.fail(format!("{} complete={} {status}", answer.start, answer.is_complete));
            }
            Err(NoMessage::Closed) => state.fail("closed without an answer".to_owned()),
            Err(reason) => state.fail(format!("no answer: {reason:?}")),
        }
        tokio::time::sleep(ask.rest).await;
    }
}

async fn call_h2(address: SocketAddr, ask: Ask, state: Arc<State>) {
    let mut connection: Option<H2Caller> = None;
    while state.goes_on() {
        let caller = match connection.take() {
            Some(open) => open,
            None => match H2Caller::connect(address).await {
                Ok(caller) => caller,
                Err(error) => {
                    state.fail(format!("connect: {error:#}"));
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            },
        };
        // A connection that was told GOAWAY before the request takes none: that is no failure.
        if caller.sender().await.is_err() {
            continue;
        }
        match caller.get(&ask.host, &ask.path).await {
            Ok(answer) if answer.status == 200 => {
                state.succeed();
                connection = Some(caller);
            }
            Ok(answer) => {
                let status = answer.field("proxy-status").unwrap_or_default();
                state.fail(format!("{} {status}", answer.status));
            }
            // A client may repeat what a GOAWAY or REFUSED_STREAM says was not looked at.
            Err(error) if is_unprocessed(&error) => {}
            Err(error) => state.fail(format!("no answer: {error:#}")),
        }
        tokio::time::sleep(ask.rest).await;
    }
}

fn is_unprocessed(error: &anyhow::Error) -> bool {
    let Some(error) = error.downcast_ref::<h2::Error>() else { return false };
    let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
    refused || (error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR))
}
