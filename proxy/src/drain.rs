//! How a proxy leaves: the phases of a drain, told to everyone who has to act on one.
//!
//! Serving → Announcing (not ready, deregistered, still accepting) → Closing (`Connection: close` and GOAWAY,
//! still accepting) → Ending (nothing is left, nothing new is taken) → Over. There is no way back.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::settings::DrainTimes;

/// How long before the deadline nothing new is taken any more, at most.
const ENDING_MAX: Duration = Duration::from_secs(1);

/// How far a drain is. The order means something: later phases include what the earlier ones ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    #[default]
    Serving,
    /// Not ready any more and deregistered; everything else as if nothing were, until the word is out.
    Announcing,
    /// Answers say that the connection ends; idle connections wait for their next request.
    Closing,
    /// Nothing is taken from the listeners any more. Who waits in their queues is taken by the process that
    /// inherited them, where there is one; what came in a moment before is finished.
    Ending,
    /// Whatever is left is ended.
    Over,
}

/// Begins a drain and tells its phases.
#[derive(Clone, Debug)]
pub(crate) struct Drain {
    phase: Arc<watch::Sender<Phase>>,
}

impl Drain {
    pub(crate) fn new() -> Self {
        Self { phase: Arc::new(watch::Sender::new(Phase::Serving)) }
    }

    pub(crate) fn phases(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Begins to leave; a drain that has begun goes on as it was. [`Drain::lead`] does the rest.
    pub(crate) fn begin(&self) {
        self.advance(Phase::Announcing);
    }

    fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let later = *phase < to;
            if later {
                *phase = to;
            }
            later
        });
    }

    /// Ends what is left now: whoever asks a second time does not want to wait.
    pub(crate) fn hurry(&self) {
        self.advance(Phase::Over);
    }

    /// Waits for the begin of the drain and leads it to its end: `deregistered` is run at once, then callers
    /// are let in and out in order until the deadline, or until `idle`, which resolves while nothing is left.
    pub(crate) async fn lead(
        &self,
        times: DrainTimes,
        deregistered: impl Future<Output = ()>,
        idle: impl AsyncFn(),
    ) {
        let mut phases = self.phases();
        // The sender lives in self: this cannot fail.
        drop(phases.wait_for(|phase| *phase >= Phase::Announcing).await);
        tokio::select! {
            () = self.lead_in_order(times, deregistered, idle) => self.advance(Phase::Over),
            _ = phases.wait_for(|phase| *phase == Phase::Over) => {}
        }
    }

    async fn lead_in_order(
        &self,
        times: DrainTimes,
        deregistered: impl Future<Output = ()>,
        idle: impl AsyncFn(),
    ) {
        let began = Instant::now();
        tracing::info!(
            "draining: not ready; accepting for another {:?}, done in {:?} at the latest",
            times.announce,
            times.deadline
        );
        let deadline = began + times.deadline;
        if tokio::time::timeout(times.deadline, deregistered).await.is_err() {
            tracing::warn!("draining: could not deregister within {:?}", times.deadline);
        }
        // The announcement counts from the moment at which nobody is sent here any more.
        sleep_until((Instant::now() + times.announce).min(deadline)).await;
        self.advance(Phase::Closing);
        // Callers that come and come are turned away before the deadline, so that it cuts off none of their requests.
        let closing = deadline.saturating_duration_since(Instant::now());
        let ending = (closing / 4).min(ENDING_MAX);
        drop(tokio::time::timeout(closing.saturating_sub(ending), idle()).await);
        self.advance(Phase::Ending);
        // Once more in any case: something may have been accepted before everyone had heard of it.
        if tokio::time::timeout(deadline.saturating_duration_since(Instant::now()), idle()).await.is_err() {
            tracing::warn!("draining: the deadline is over; ending what is left");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: DrainTimes =
        DrainTimes { announce: Duration::from_secs(1), deadline: Duration::from_secs(8) };

    async fn began(drain: &Drain) {
        drain.begin();
        tokio::task::yield_now().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_announces_then_closes_then_ends() {
        let drain = Drain::new();
        let lead = {
            let drain = drain.clone();
            tokio::spawn(
                async move { drain.lead(TIMES, async {}, async || std::future::pending().await).await },
            )
        };
        began(&drain).await;
        let start = Instant::now();
        assert_eq!(drain.phase(), Phase::Announcing);
        let mut phases = drain.phases();
        phases.wait_for(|phase| *phase == Phase::Closing).await.unwrap();
        assert_eq!(start.elapsed().as_millis() / 10, 100);
        phases.wait_for(|phase| *phase == Phase::Over).await.unwrap();
        assert_eq!(start.elapsed().as_millis() / 10, 800);
        lead.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn deregistration_comes_before_the_announcement_and_idleness_ends_early() {
        let drain = Drain::new();
        let lead = {
            let drain = drain.clone();
            let slow = tokio::time::sleep(Duration::from_secs(2));
            tokio::spawn(async move { drain.lead(TIMES, slow, async || {}).await })
        };
        began(&drain).await;
        let start = Instant::now();
        drain.phases().wait_for(|phase| *phase == Phase::Over).await.unwrap();
        assert_eq!(start.elapsed().as_millis() / 10, 300);
        lead.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_in_a_hurry_does_not_wait() {
        let drain = Drain::new();
        drain.begin();
        let start = Instant::now();
        let lead = drain.lead(TIMES, std::future::pending(), async || std::future::pending().await);
        let hurry = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            drain.hurry();
        };
        tokio::join!(lead, hurry);
        assert_eq!(start.elapsed().as_millis() / 10, 50);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stuck_deregistration_does_not_move_the_deadline() {
        let drain = Drain::new();
        drain.begin();
        drain.begin();
        let start = Instant::now();
        drain.lead(TIMES, std::future::pending(), async || std::future::pending().await).await;
        assert_eq!(start.elapsed().as_millis() / 10, 800);
        assert_eq!(drain.phase(), Phase::Over);
    }
}
