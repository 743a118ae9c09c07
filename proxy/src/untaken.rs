//! Ends an HTTP/2 stream whose caller takes nothing of the answer that is ready for it; hyper would wait for ever.
//!
//! A caller need not open its window, and may answer every ping all the same: its connection looks alive. hyper asks
//! a body for the next frame once there was room for the one before, so a body that is not asked again is not taken.
//! Bodies say it here, to the task of their stream. HTTP/1 has one answer a connection, whose timer sees it.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// What becomes of the frames of the stream whose task runs now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taking {
    /// It is taken as it comes.
    Freely,
    /// There has been no room for the last one; there has to be by then.
    Until(Instant),
    /// No stream's task runs.
    Unwatched,
}

thread_local! {
    /// Tasks of streams stay on their worker's thread, and one runs at a time.
    static STREAM: Cell<Taking> = const { Cell::new(Taking::Unwatched) };
}

/// A body is asked for its next frame.
pub(crate) fn asked() {
    if let Taking::Until(_) = STREAM.get() {
        STREAM.set(Taking::Freely);
    }
}

/// A body gives a frame, which has to be taken within this time.
pub(crate) fn given(limit: Duration) {
    if STREAM.get() != Taking::Unwatched {
        STREAM.set(Taking::Until(Instant::now() + limit));
    }
}

/// Runs a stream's task to its end, or until a frame was not taken in time: dropping it then resets the stream.
pub(crate) async fn watch(stream: impl Future) {
    let mut stream = pin!(stream);
    let mut taking = Taking::Freely;
    let mut timer = None;
    poll_fn(|cx| {
        let outside = STREAM.replace(taking);
        let polled = stream.as_mut().poll(cx);
        taking = STREAM.replace(outside);
        let at = match (polled, taking) {
            (Poll::Ready(_ended), _) => return Poll::Ready(()),
            (Poll::Pending, Taking::Until(at)) => at,
            (Poll::Pending, Taking::Freely | Taking::Unwatched) => return Poll::Pending,
        };
        let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        // A timer of an earlier frame is set on when it rings.
        while timer.as_mut().poll(cx).is_ready() {
            if at <= Instant::now() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(at);
        }
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::sleep;

    const LIMIT: Duration = Duration::from_secs(5);

    async fn lasts(stream: impl Future) -> Duration {
        let began = Instant::now();
        watch(stream).await;
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_taken_in_time_ends_the_stream_and_waiting_for_the_endpoint_does_not() {
        let untaken = async {
            asked();
            given(LIMIT);
            std::future::pending::<()>().await;
        };
        assert_eq!(lasts(untaken).await, LIMIT);
        let slow = async {
            for _ in 0..10 {
                asked();
                given(LIMIT);
                sleep(Duration::from_secs(4)).await;
            }
            asked();
            // Nothing is there to be taken.
            sleep(Duration::from_mins(10)).await;
        };
        assert_eq!(lasts(slow).await, Duration::from_secs(640));
        given(LIMIT);
        assert_eq!(STREAM.get(), Taking::Unwatched, "outside of a stream's task");
    }
}
