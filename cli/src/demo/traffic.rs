//! A little traffic: a few callers who ask one service again and again through one proxy, and keep count.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use gilmok_control_plane::http_client::{Client, Request, Response};
use hyper::StatusCode;
use tokio::sync::RwLock;
use tokio::task::JoinSet;

use super::layout::{Machine, proxy_of};
use super::mesh::{Concerning, SOON};
use super::talk;

/// Callers at a time, and how long each rests between two requests.
const CALLERS: usize = 2;
const REST: Duration = Duration::from_millis(25);
/// Failures that are kept word for word.
const KEPT_MAX: usize = 5;
/// Requests under way at a time at a rate, several times what a hang of the ads makes of it. Beyond that one is left out, so
/// that a machine that is busy with other things has fewer pages and no queue of them.
const UNDER_WAY_MAX: usize = 100;
/// Pages that are remembered one by one.
const PAGES_MAX: usize = 100_000;
/// What stands where there is no advertisement.
pub(crate) const HOUSE_AD: &str = "/house-ad.svg";
const POLL: Duration = Duration::from_millis(10);

/// Traffic that runs until it is stopped or dropped.
#[derive(Debug)]
pub(crate) struct Traffic {
    /// The process whose log tells more when a request fails.
    proxy: String,
    tally: Arc<Mutex<Tally>>,
    /// Each request holds it for reading.
    under_way: Arc<RwLock<()>>,
    _callers: JoinSet<()>,
}

/// One page that came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    pub(crate) asked: Instant,
    pub(crate) took: Duration,
    pub(crate) house: bool,
}

/// What came of the traffic so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) answered: u64,
    failed: u64,
    /// The first failures.
    failures: Vec<String>,
    pub(crate) slowest: Duration,
    /// By process id, for the service itself and the parts of the shop's page.
    answers_of: BTreeMap<u64, u64>,
    /// Every page: when it was asked for, how long it took, and whether it has the house's picture for an advertisement.
    pub(crate) pages: Vec<Page>,
}

impl Traffic {
    /// Begins to call `service` through the proxy of a machine.
    ///
    /// # Errors
    /// A service's name that is none.
    pub(crate) fn start(machine: &Machine, service: &str) -> anyhow::Result<Self> {
        let traffic = Self::to(machine);
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            callers.spawn(keep_calling(traffic.counted(machine, service, caller)?));
        }
        Ok(Self { _callers: callers, ..traffic })
    }

    /// So many requests a second, whether those before are answered or not, as the world outside does it.
    ///
    /// # Errors
    /// A service's name that is none.
    pub(crate) fn start_at_rate(machine: &Machine, service: &str, per_second: u32) -> anyhow::Result<Self> {
        let traffic = Self::to(machine);
        let counted = Arc::new(traffic.counted(machine, service, 0)?);
        let mut callers = JoinSet::new();
        callers.spawn(async move {
            let mut under_way = JoinSet::new();
            let mut ticks = tokio::time::interval(Duration::from_secs(1) / per_second);
            loop {
                ticks.tick().await;
                while under_way.try_join_next().is_some() {}
                if under_way.len() < UNDER_WAY_MAX {
                    let counted = Arc::clone(&counted);
                    under_way.spawn(async move { counted.call().await });
                }
            }
        });
        Ok(Self { _callers: callers, ..traffic })
    }

    fn to(machine: &Machine) -> Self {
        let (tally, under_way) = (Arc::default(), Arc::default());
        Self { proxy: proxy_of(machine), tally, under_way, _callers: JoinSet::new() }
    }

    fn counted(&self, machine: &Machine, service: &str, caller: usize) -> anyhow::Result<Counted> {
        let request = talk::of_service(service, "/?format=json")?;
        let request = talk::as_user(request, &format!("user-{caller}"))?;
        let (tally, under_way) = (Arc::clone(&self.tally), Arc::clone(&self.under_way));
        Ok(Counted { client: talk::client(machine.outbound)?, request, tally, under_way })
    }

    /// What came of it so far.
    pub(crate) fn so_far(&self) -> Tally {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A moment between two requests: none is under way, and none begins while what is given is held.
    ///
    /// A request that breaks off half-way may have been acted on, so it is not tried again unless a policy says so;
    /// what happens in between must fail no request at all.
    pub(crate) async fn between_requests(&self) -> impl Sized {
        self.under_way.write().await
    }

    /// What came of it so far, if no request has failed.
    ///
    /// # Errors
    /// How many failed, and what the first said.
    pub(crate) fn none_failed(&self) -> anyhow::Result<Tally> {
        let tally = self.so_far();
        tally.none_failed().with_context(|| Concerning(self.proxy.clone()))?;
        Ok(tally)
    }

    /// Waits until so many more requests have ended, well or not.
    ///
    /// # Errors
    /// When they do not end.
    pub(crate) async fn go_on_for(&self, requests: u64) -> anyhow::Result<()> {
        let ended = |tally: &Tally| tally.answered + tally.failed;
        let goal = ended(&self.so_far()) + requests;
        self.until(&format!("{requests} more requests to end"), |tally| ended(tally) >= goal).await
    }

    /// Waits until this process has answered once more.
    ///
    /// # Errors
    /// When it does not.
    pub(crate) async fn answered_by(&self, pid: u64) -> anyhow::Result<()> {
        let of = |tally: &Tally| tally.answers_of.get(&pid).copied().unwrap_or(0);
        let before = of(&self.so_far());
        self.until(&format!("process {pid} to answer"), |tally| of(tally) > before).await
    }

    /// Waits until something can be said of what came so far.
    ///
    /// # Errors
    /// When it cannot.
    pub(crate) async fn until(&self, what: &str, reached: impl Fn(&Tally) -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + SOON;
        while !reached(&self.so_far()) {
            anyhow::ensure!(Instant::now() < deadline, "waited {} s for {what}", SOON.as_secs());
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }
}

impl Tally {
    fn none_failed(&self) -> anyhow::Result<()> {
        let all = self.answered + self.failed;
        let first = self.failures.join("\n  ");
        anyhow::ensure!(self.failed == 0, "{} of {all} requests failed; the first:\n  {first}", self.failed);
        Ok(())
    }

    fn count(&mut self, asked: Instant, took: Duration, outcome: anyhow::Result<Who>) {
        self.slowest = self.slowest.max(took);
        match outcome {
            Ok(Who { pids, house }) => {
                self.answered += 1;
                if self.pages.len() < PAGES_MAX {
                    self.pages.push(Page { asked, took, house });
                }
                for pid in pids {
                    *self.answers_of.entry(pid).or_default() += 1;
                }
            }
            Err(error) => {
                self.failed += 1;
                if self.failures.len() < KEPT_MAX {
                    self.failures.push(format!("{error:#}"));
                }
            }
        }
    }
}

/// Calls that are counted.
struct Counted {
    client: Client,
    request: Request,
    tally: Arc<Mutex<Tally>>,
    under_way: Arc<RwLock<()>>,
}

impl Counted {
    async fn call(&self) {
        let asking = self.under_way.read().await;
        let began = Instant::now();
        let outcome = match self.client.send(&self.request).await {
            Ok(answer) => who_answered(&answer),
            Err(error) => Err(error.into()),
        };
        drop(asking);
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).count(began, began.elapsed(), outcome);
    }
}

async fn keep_calling(counted: Counted) {
    loop {
        counted.call().await;
        tokio::time::sleep(REST).await;
    }
}

/// Who took part in an answer.
#[derive(Debug, PartialEq)]
struct Who {
    pids: Vec<u64>,
    /// Whether the house's picture stands for an advertisement.
    house: bool,
}

/// Who took part in an answer; an error when a part of the page is missing.
fn who_answered(answer: &Response) -> anyhow::Result<Who> {
    let said = talk::json(answer, StatusCode::OK)?;
    let mut pids = vec![said["pid"].as_u64().context("an answer without a pid")?];
    let mut house = false;
    if let Some(parts) = said["parts"].as_object() {
        for (service, part) in parts {
            if let Some(failed) = part["failed"].as_str() {
                anyhow::bail!("the page came without `{service}`: {failed}");
            }
            house |= part["answer"]["image"] == HOUSE_AD;
            pids.extend(part["answer"]["pid"].as_u64());
        }
    }
    Ok(Who { pids, house })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use hyper::HeaderMap;
    use serde_json::{Value, json};

    use super::*;

    fn answer(status: StatusCode, body: &Value) -> Response {
        Response { status, headers: HeaderMap::new(), body: Bytes::from(body.to_string()) }
    }

    #[test]
    fn a_page_with_a_missing_part_counts_as_failed() {
        let whole = json!({"pid": 1, "parts": {"ads": {"answer": {"pid": 2}}}});
        assert_eq!(
            who_answered(&answer(StatusCode::OK, &whole)).unwrap(),
            Who { pids: vec![1, 2], house: false }
        );
        let house = json!({"pid": 1, "parts": {"ads": {"answer": {"image": HOUSE_AD}}}});
        assert_eq!(
            who_answered(&answer(StatusCode::OK, &house)).unwrap(),
            Who { pids: vec![1], house: true }
        );
        let missing = json!({"pid": 1, "parts": {"ads": {"failed": "answered 503"}}});
        assert!(who_answered(&answer(StatusCode::OK, &missing)).is_err());
        assert!(who_answered(&answer(StatusCode::BAD_GATEWAY, &whole)).is_err());
    }

    #[test]
    fn failures_are_counted_and_told() {
        let mut tally = Tally::default();
        tally.count(Instant::now(), Duration::from_millis(3), Ok(Who { pids: vec![7], house: false }));
        tally.none_failed().unwrap();
        tally.count(Instant::now(), Duration::from_millis(9), Err(anyhow::anyhow!("refused")));
        assert_eq!((tally.answered, tally.failed, tally.slowest.as_millis()), (1, 1, 9));
        assert!(tally.none_failed().unwrap_err().to_string().contains("1 of 2 requests failed"));
    }
}
