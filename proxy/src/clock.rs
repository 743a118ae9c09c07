//! Milliseconds since the process began: small enough for an atomic, moved by tokio's clock (and so by paused tests); and
//! what calendars say.

use std::sync::OnceLock;
use std::time::SystemTime;

use tokio::time::Instant;

/// When this process first asked for the time.
static BEGIN: OnceLock<Instant> = OnceLock::new();

/// Milliseconds since the process began. Never 0, so that 0 can stand for "never".
pub(crate) fn now_ms() -> u64 {
    ms_of(Instant::now())
}

/// The same in nanoseconds, for what counts more often than that.
pub(crate) fn ns_of(moment: Instant) -> u64 {
    let begin = *BEGIN.get_or_init(|| moment);
    u64::try_from(moment.saturating_duration_since(begin).as_nanos()).unwrap_or(u64::MAX)
}

/// The same for a moment that is known already.
pub(crate) fn ms_of(moment: Instant) -> u64 {
    let begin = *BEGIN.get_or_init(|| moment);
    u64::try_from(moment.saturating_duration_since(begin).as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}

/// Seconds since 1970, for what people have written moments in.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
