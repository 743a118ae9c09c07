//! A crowd: every request is another user's, through the proxy of each machine in turn, and counted by the version it met.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use gilmok_control_plane::http_client::{Client, Response};
use hyper::StatusCode;
use serde_json::Value;
use tokio::task::JoinSet;

use super::layout::Layout;
use super::mesh::SOON;
use super::talk;

/// Requests under way at a time; beyond that one is left out, so that a machine that is busy has a smaller crowd and no
/// queue.
const UNDER_WAY_MAX: usize = 64;
/// Requests that met no version and are kept word for word.
const KEPT_MAX: usize = 5;
const POLL: Duration = Duration::from_millis(10);

/// Users who come until it is dropped.
#[derive(Debug)]
pub(crate) struct Crowd {
    /// A std mutex: nothing is awaited under it, and each count is one step.
    counts: Arc<Mutex<Counts>>,
    _callers: JoinSet<()>,
}

/// What came of the crowd so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    versions: BTreeMap<String, Met>,
    /// Requests that no version answered.
    lost: u64,
    /// The first of them.
    reasons: Vec<String>,
}

/// What came of requests that met one version.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Met {
    pub(crate) users: u64,
    /// How many of them got an error.
    pub(crate) failed: u64,
    /// When the last one asked, by the clock of the machine: the control plane has the same.
    pub(crate) last_asked: Option<SystemTime>,
}

impl Crowd {
    /// Begins to send so many users a second to `service`.
    ///
    /// # Errors
    /// Never for addresses.
    pub(crate) fn start(layout: &Layout, service: &'static str, per_second: u32) -> anyhow::Result<Self> {
        let clients = layout.machines.iter().map(|machine| talk::client(machine.outbound).map(Arc::new));
        let clients: Vec<Arc<Client>> = clients.collect::<anyhow::Result<_>>()?;
        let counts = Arc::<Mutex<Counts>>::default();
        let mut callers = JoinSet::new();
        let counted = Arc::clone(&counts);
        callers.spawn(async move {
            let mut under_way = JoinSet::new();
            let mut ticks = tokio::time::interval(Duration::from_secs(1) / per_second);
            for client in clients.iter().cycle() {
                ticks.tick().await;
                while under_way.try_join_next().is_some() {}
                if under_way.len() < UNDER_WAY_MAX {
                    under_way.spawn(one_user(Arc::clone(client), service, Arc::clone(&counted)));
                }
            }
        });
        Ok(Self { counts, _callers: callers })
    }

    /// What came of it so far.
    pub(crate) fn so_far(&self) -> Counts {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until so many more users have had an answer.
    ///
    /// # Errors
    /// When they have not.
    pub(crate) async fn go_on_for(&self, users: u64) -> anyhow::Result<()> {
        let goal = self.so_far().users() + users;
        let deadline = tokio::time::Instant::now() + SOON;
        while self.so_far().users() < goal {
            let waited = tokio::time::Instant::now() < deadline;
            anyhow::ensure!(waited, "waited {} s for {users} more users", SOON.as_secs());
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }
}

impl Counts {
    /// What came of requests that met this version.
    pub(crate) fn of(&self, version: &str) -> Met {
        self.versions.get(version).copied().unwrap_or_default()
    }

    /// Everybody who met any version.
    pub(crate) fn users(&self) -> u64 {
        self.versions.values().map(|met| met.users).sum()
    }

    /// Whether every request met a version, whatever that said.
    ///
    /// # Errors
    /// How many met none, and what the first were told.
    pub(crate) fn none_lost(&self) -> anyhow::Result<()> {
        let first = self.reasons.join("\n  ");
        anyhow::ensure!(self.lost == 0, "{} requests met no version; the first:\n  {first}", self.lost);
        Ok(())
    }

    /// Whether every request was answered well.
    ///
    /// # Errors
    /// Which version failed how often.
    pub(crate) fn none_failed(&self) -> anyhow::Result<()> {
        self.none_lost()?;
        for (version, met) in &self.versions {
            anyhow::ensure!(met.failed == 0, "{version} failed {} of {} users", met.failed, met.users);
        }
        Ok(())
    }

    fn count(&mut self, asked: SystemTime, met: anyhow::Result<(String, bool)>) {
        match met {
            Ok((version, well)) => {
                let met = self.versions.entry(version).or_default();
                met.users += 1;
                met.failed += u64::from(!well);
                met.last_asked = met.last_asked.max(Some(asked));
            }
            Err(reason) => {
                self.lost += 1;
                if self.reasons.len() < KEPT_MAX {
                    self.reasons.push(format!("{reason:#}"));
                }
            }
        }
    }
}

async fn one_user(client: Arc<Client>, service: &'static str, counts: Arc<Mutex<Counts>>) {
    // Nobody comes twice: sixty-four bits of chance are never the same.
    let user = format!("visitor-{:016x}", fastrand::u64(..));
    let request = talk::of_service(service, "/").and_then(|request| talk::as_user(request, &user));
    let asked = SystemTime::now();
    let met = match request {
        Ok(request) => client.send(&request).await.context("no answer").and_then(|answer| who_met(&answer)),
        Err(error) => Err(error),
    };
    counts.lock().unwrap_or_else(PoisonError::into_inner).count(asked, met);
}

/// The version that gave an answer, and whether it is a good one.
fn who_met(answer: &Response) -> anyhow::Result<(String, bool)> {
    let said: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let version = said["version"].as_str().with_context(|| talk::brief(answer))?;
    Ok((version.to_owned(), answer.status == StatusCode::OK))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use hyper::HeaderMap;

    use super::*;

    fn met(status: StatusCode, body: &str) -> anyhow::Result<(String, bool)> {
        let body = Bytes::from(body.to_owned());
        who_met(&Response { status, headers: HeaderMap::new(), body })
    }

    #[test]
    fn an_error_of_a_version_is_told_from_one_of_nobody() {
        let error = StatusCode::INTERNAL_SERVER_ERROR;
        let now = SystemTime::now();
        let mut counts = Counts::default();
        counts.count(now, met(StatusCode::OK, r#"{"version": "v1"}"#));
        counts.none_failed().unwrap();
        counts.count(now, met(error, r#"{"version": "v2", "failed": "as told"}"#));
        counts.none_lost().unwrap();
        assert_eq!(counts.none_failed().unwrap_err().to_string(), "v2 failed 1 of 1 users");
        counts.count(now, met(StatusCode::SERVICE_UNAVAILABLE, "gilmok: no endpoint is alive"));
        assert!(counts.none_lost().unwrap_err().to_string().contains("no endpoint is alive"));
        assert_eq!((counts.users(), counts.of("v2").last_asked, counts.of("v3").users), (2, Some(now), 0));
    }
}
