//! Waiting for something to become true, with a deadline and without sleeping blindly.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

/// How long a test waits for something that should be there at once; generous, since machines are shared.
pub const SOON: Duration = Duration::from_secs(20);
/// From one look to the next.
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// Looks again and again until `look` gives `Ok`, for at most [`SOON`].
///
/// # Panics
/// When it never did; the message has the last reason.
pub async fn eventually<T, E, F>(what: &str, look: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, E>>,
    E: Display,
{
    eventually_within(SOON, what, look).await
}

/// Looks again and again until `look` gives `Ok`, for at most `limit`.
///
/// # Panics
/// When it never did; the message has the last reason.
pub async fn eventually_within<T, E, F>(limit: Duration, what: &str, mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, E>>,
    E: Display,
{
    let deadline = Instant::now() + limit;
    loop {
        match look().await {
            Ok(value) => return value,
            Err(reason) if Instant::now() >= deadline => {
                panic!("{what}: not within {limit:?}: {reason}");
            }
            Err(_) => tokio::time::sleep(BETWEEN_LOOKS).await,
        }
    }
}

/// Gives `future` at most [`SOON`].
///
/// # Panics
/// When it takes longer.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    within(SOON, what, future).await
}

/// Gives `future` at most `limit`.
///
/// # Panics
/// When it takes longer.
pub async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {limit:?}"),
    }
}
