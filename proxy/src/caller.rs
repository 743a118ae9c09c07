//! Who is at the other end of a downstream connection, and what the connection is doing.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gilmok_config::decide::Listener;
use http::HeaderValue;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::clock;
use crate::tls::CallerIdentity;
use crate::worker::{Shared, Worker};

/// How long a connection may be idle between requests. Longer than upstream pools of common callers keep theirs.
const KEEP_ALIVE_MS: u64 = 10 * 60 * 1000;
/// How long a caller may take nothing of an answer that is ready for it.
const STALL_MS: u64 = 60 * 1000;

/// The other end of one downstream connection.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) listener: Listener,
    /// Which app an inbound connection is for.
    pub(crate) app: Option<usize>,
    pub(crate) peer: SocketAddr,
    /// Whether it may set the mesh's own headers.
    pub(crate) trusted: bool,
    /// Whether the connection is encrypted.
    pub(crate) secure: bool,
    /// Who it has shown that it is.
    pub(crate) identity: Option<CallerIdentity>,
    /// When the certificate ends by which it has, in milliseconds of [`clock`]; `u64::MAX` is never.
    until_ms: u64,
    /// Its address as `X-Forwarded-For` tells it, made once per connection.
    pub(crate) forwarded_for: HeaderValue,
    pub(crate) activity: Arc<Activity>,
    _permit: OwnedSemaphorePermit,
    _counted: Option<CountedIp>,
    _open: Open,
}

/// What headers depend on: where a request comes in, and who sends it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Downstream<'c> {
    pub(crate) listener: Listener,
    pub(crate) trusted: bool,
    pub(crate) secure: bool,
    /// Who it has shown that it is, as the app is told.
    pub(crate) client_cert: Option<&'c HeaderValue>,
    pub(crate) forwarded_for: &'c HeaderValue,
}

/// What a connection is doing; written by its socket and its requests, read by its timer.
///
/// Atomics only because hyper asks of an upgradable socket that it can change threads; nobody shares them.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    /// Requests in flight: at most one in HTTP/1, one for each stream in HTTP/2.
    requests: AtomicU32,
    /// When the first byte of a head came that is not complete yet; 0 is none. Milliseconds of [`clock`].
    head_since_ms: AtomicU64,
    idle_since_ms: AtomicU64,
    /// Since when the caller takes nothing; 0 is not.
    blocked_since_ms: AtomicU64,
}

/// Why a connection is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expired {
    /// The caller's certificate has ended, and with it what it had shown.
    Certificate,
    /// A head did not become complete in time.
    Head,
    /// No request for a long time.
    Idle,
    /// The caller takes nothing of its answer.
    Stalled,
}

impl Downstream<'_> {
    /// Whether the mesh's own fields that it sends are kept.
    pub(crate) fn speaks_for_mesh(&self) -> bool {
        self.listener == Listener::Inbound && self.trusted
    }
}

impl Caller {
    /// What headers depend on.
    pub(crate) fn downstream(&self) -> Downstream<'_> {
        let Self { listener, trusted, secure, forwarded_for, .. } = self;
        let client_cert = self.identity.as_ref().map(|identity| &identity.forwarded);
        Downstream { listener: *listener, trusted: *trusted, secure: *secure, client_cert, forwarded_for }
    }

    /// Admits a connection; `None` when its address has too many already.
    pub(crate) fn admit(
        worker: &Worker,
        listener: Listener,
        app: Option<usize>,
        peer: SocketAddr,
        permit: OwnedSemaphorePermit,
    ) -> Option<Self> {
        let ip = peer.ip().to_canonical();
        let counted = match worker.shared.limits.connections_per_ip {
            Some(most) if !ip.is_loopback() => Some(CountedIp::new(&worker.shared.per_ip, ip, most)?),
            Some(_) | None => None,
        };
        // Outsiders are outsiders, wherever they call from.
        let trusted =
            listener != Listener::Edge && worker.shared.trusted.iter().any(|network| network.contains(ip));
        let forwarded_for =
            HeaderValue::try_from(ip.to_string()).unwrap_or_else(|_| HeaderValue::from_static("unknown"));
        let activity = Arc::new(Activity::default());
        activity.idle_since_ms.store(clock::now_ms(), Relaxed);
        Some(Self {
            listener,
            app,
            peer,
            trusted,
            secure: false,
            identity: None,
            until_ms: u64::MAX,
            forwarded_for,
            activity,
            _permit: permit,
            _counted: counted,
            _open: Open::new(&worker.shared, listener),
        })
    }

    /// It speaks TLS, and may have shown who it is: whoever belongs to the mesh may speak for it.
    pub(crate) fn showed(&mut self, identity: Option<CallerIdentity>) {
        self.secure = true;
        self.trusted |= identity.is_some();
        if let Some(identity) = &identity {
            let lasts_ms = u64::try_from(identity.lasts.as_millis()).unwrap_or(u64::MAX);
            self.until_ms = clock::now_ms().saturating_add(lasts_ms);
        }
        self.identity = identity;
    }

    /// What is overdue now, or how long nothing can be.
    pub(crate) fn check(&self, now_ms: u64, head_timeout: Duration) -> Result<Duration, Expired> {
        let left_ms = self.until_ms.saturating_sub(now_ms);
        if left_ms == 0 {
            return Err(Expired::Certificate);
        }
        let next = self.activity.check(now_ms, head_timeout)?;
        Ok(next.min(Duration::from_millis(left_ms)))
    }
}

impl Activity {
    /// Bytes came from the caller. Between requests they are the beginning of a head.
    pub(crate) fn received(&self) {
        if self.requests.load(Relaxed) == 0 && self.head_since_ms.load(Relaxed) == 0 {
            self.head_since_ms.store(clock::now_ms(), Relaxed);
        }
    }

    /// What came was no head of a request, or a whole one.
    pub(crate) fn head_ended(&self) {
        self.head_since_ms.store(0, Relaxed);
    }

    /// A head is complete: its request begins.
    pub(crate) fn request_began(&self) {
        self.requests.store(self.requests.load(Relaxed).saturating_add(1), Relaxed);
        self.head_ended();
    }

    /// An answer has ended, at this moment.
    pub(crate) fn request_ended(&self, at: Instant) {
        let left = self.requests.load(Relaxed).saturating_sub(1);
        self.requests.store(left, Relaxed);
        if left == 0 {
            self.idle_since_ms.store(clock::ms_of(at), Relaxed);
        }
    }

    /// Whether the caller takes what it is sent.
    pub(crate) fn writing(&self, blocked: bool) {
        let since = self.blocked_since_ms.load(Relaxed);
        if blocked && since == 0 {
            self.blocked_since_ms.store(clock::now_ms(), Relaxed);
        } else if !blocked && since != 0 {
            self.blocked_since_ms.store(0, Relaxed);
        }
    }

    /// What is overdue now, or how long nothing can be.
    fn check(&self, now_ms: u64, head_timeout: Duration) -> Result<Duration, Expired> {
        let head_ms = u64::try_from(head_timeout.as_millis()).unwrap_or(u64::MAX);
        let left = |since: u64, most: u64| (since + most).saturating_sub(now_ms);
        let blocked = self.blocked_since_ms.load(Relaxed);
        let head = self.head_since_ms.load(Relaxed);
        let busy = self.requests.load(Relaxed) > 0;
        let mut next = head_ms;
        if blocked != 0 {
            match left(blocked, STALL_MS) {
                0 => return Err(Expired::Stalled),
                ms => next = next.min(ms),
            }
        }
        if !busy && head != 0 {
            match left(head, head_ms) {
                0 => return Err(Expired::Head),
                ms => next = next.min(ms),
            }
        } else if !busy {
            match left(self.idle_since_ms.load(Relaxed), KEEP_ALIVE_MS) {
                0 => return Err(Expired::Idle),
                ms => next = next.min(ms),
            }
        }
        Ok(Duration::from_millis(next))
    }
}

/// One connection counted as open until it is dropped. Its requests hold it too, so a tunnel counts until its end.
#[derive(Debug)]
struct Open {
    shared: Arc<Shared>,
    listener: Listener,
}

impl Open {
    fn new(shared: &Arc<Shared>, listener: Listener) -> Self {
        shared.open[listener as usize].fetch_add(1, Relaxed);
        Self { shared: Arc::clone(shared), listener }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.open[self.listener as usize].fetch_sub(1, Relaxed);
    }
}

/// One connection counted for its address until it is dropped.
#[derive(Debug)]
struct CountedIp {
    counts: Arc<Mutex<HashMap<IpAddr, u32>>>,
    ip: IpAddr,
}

impl CountedIp {
    fn new(all: &Arc<Mutex<HashMap<IpAddr, u32>>>, ip: IpAddr, most: u32) -> Option<Self> {
        // A mutex: taken twice per connection of an outsider, for a look-up each.
        let mut counts = all.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let count = counts.entry(ip).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Self { counts: Arc::clone(all), ip })
    }
}

impl Drop for CountedIp {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_head_that_drips_expires_but_an_idle_connection_does_not() {
        let activity = Activity::default();
        activity.idle_since_ms.store(clock::now_ms(), Relaxed);
        tokio::time::advance(Duration::from_mins(1)).await;
        assert_eq!(activity.check(clock::now_ms(), HEAD), Ok(HEAD));
        activity.received();
        tokio::time::advance(Duration::from_secs(9)).await;
        activity.received();
        assert_eq!(activity.check(clock::now_ms(), HEAD), Ok(Duration::from_secs(1)));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(activity.check(clock::now_ms(), HEAD), Err(Expired::Head));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_in_flight_is_not_idle() {
        let activity = Activity::default();
        activity.request_began();
        tokio::time::advance(Duration::from_hours(1)).await;
        assert_eq!(activity.check(clock::now_ms(), HEAD), Ok(HEAD));
        activity.request_ended(Instant::now());
        tokio::time::advance(Duration::from_millis(KEEP_ALIVE_MS)).await;
        assert_eq!(activity.check(clock::now_ms(), HEAD), Err(Expired::Idle));
    }

    #[test]
    fn an_address_has_so_many_connections_at_a_time_and_others_have_theirs() {
        let counts = Arc::default();
        let (one, other) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let open: Vec<_> = (0..2).map(|_| CountedIp::new(&counts, one, 2).unwrap()).collect();
        assert!(CountedIp::new(&counts, one, 2).is_none());
        let others = CountedIp::new(&counts, other, 2).unwrap();
        drop(open);
        assert!(CountedIp::new(&counts, one, 2).is_some());
        drop(others);
        assert!(counts.lock().unwrap().is_empty(), "addresses that are gone cost nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_takes_nothing_expires() {
        let activity = Activity::default();
        activity.request_began();
        activity.writing(true);
        tokio::time::advance(Duration::from_millis(STALL_MS)).await;
        assert_eq!(activity.check(clock::now_ms(), HEAD), Err(Expired::Stalled));
        activity.writing(false);
        assert!(activity.check(clock::now_ms(), HEAD).is_ok());
    }
}
