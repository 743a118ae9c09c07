//! The connections of one worker to one endpoint: a stack of idle HTTP/1 ones, a few shared HTTP/2 ones.
//!
//! Each worker has its own, so nothing here is locked or shared between threads.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use gilmok_config::service::Protocol;
use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::{Sleep, sleep, timeout};

use super::connect::{ConnectError, Socket, connect};
use super::endpoint::EndpointState;
use super::unanswered::Unanswered;
use super::upload::Upload;
use crate::clock;
use crate::executor::LocalExecutor;
use crate::settings::Limits;

/// Most HTTP/2 connections that a worker keeps to one endpoint.
const H2_CONNECTIONS_MAX: usize = 8;
/// Streams in flight on one HTTP/2 connection before another one is opened.
const H2_STREAMS_MAX: usize = 100;
/// Read buffer of an HTTP/1 connection to an endpoint. It grows to this only while bodies flow.
const H1_BUFFER_BYTES_MAX: usize = 256 << 10;
/// How long the first settings of an HTTP/2 peer are waited for before it is sent something.
const H2_SETTINGS_WAIT: Duration = Duration::from_millis(250);
/// HTTP/2 windows: fixed, since adapting ones cost latency on a LAN.
const H2_STREAM_WINDOW: u32 = 1 << 20;
const H2_CONNECTION_WINDOW: u32 = 8 << 20;
/// How an HTTP/2 peer that went silent is found out.
const H2_KEEP_ALIVE: Duration = Duration::from_secs(15);
const H2_KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
const H2_HEADER_LIST_BYTES_MAX: u32 = 64 << 10;

/// The pools of one worker, by the id of the endpoint's state.
#[derive(Debug)]
pub(crate) struct Pools {
    bounds: Bounds,
    /// The time of the last sweep: near enough to say since when a connection is idle, without reading the clock.
    swept_at_ms: Rc<Cell<u64>>,
    by_id: RefCell<HashMap<u64, Rc<Pool>, BuildHasherDefault<IdHasher>>>,
}

/// How many connections are kept, and how long.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    idle_max: usize,
    idle_ms_max: u64,
    age_ms_max: u64,
}

/// One worker's connections to one endpoint.
#[derive(Debug)]
pub(crate) struct Pool {
    state: Arc<EndpointState>,
    bounds: Bounds,
    swept_at_ms: Rc<Cell<u64>>,
    idle: RefCell<Vec<Idle>>,
    h2: RefCell<Vec<Rc<H2Connection>>>,
    /// One opens at a time: others that need a connection wait for it instead of opening as many.
    h2_opening: tokio::sync::Mutex<()>,
    /// The endpoint is gone: what comes back is closed.
    closed: Cell<bool>,
}

#[derive(Debug)]
struct Idle {
    connection: Box<H1Connection>,
    idle_since_ms: u64,
}

/// An HTTP/1 connection: it serves one request after the other.
#[derive(Debug)]
struct H1Connection {
    sender: http1::SendRequest<Upload>,
    unanswered: Arc<Unanswered>,
    /// Bounds the wait for an answer. Kept, since setting a timer to later costs a hundredth of making one.
    timer: Pin<Box<Sleep>>,
    born_ms: u64,
}

#[derive(Debug)]
struct H2Connection {
    sender: http2::SendRequest<Upload>,
    streams: Cell<usize>,
    /// Streams that its peer allows at once.
    allowed: Rc<Cell<usize>>,
    born_ms: u64,
}

/// The head of an answer; or what went wrong, with the request where nothing of it was sent.
pub(crate) type Sent = Result<Response<Incoming>, TrySendError<Request<Upload>>>;

/// A connection lent to one request. Dropped, it is closed; [`Lease::give_back`] returns it.
#[derive(Debug)]
pub(crate) enum Lease {
    Http1(H1Lease),
    H2(H2Lease),
}

#[derive(Debug)]
pub(crate) struct H1Lease {
    pool: Rc<Pool>,
    /// Boxed once, since it goes back and forth with each request.
    connection: Box<H1Connection>,
    /// Whether it has served a request before.
    reused: bool,
}

#[derive(Debug)]
pub(crate) struct H2Lease {
    connection: Rc<H2Connection>,
    reused: bool,
}

impl Pools {
    pub(crate) fn new(limits: &Limits) -> Self {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let bounds = Bounds {
            idle_max: limits.upstream_idle_connections,
            idle_ms_max: ms(limits.upstream_idle_timeout),
            age_ms_max: ms(limits.upstream_max_age),
        };
        let swept_at_ms = Rc::new(Cell::new(clock::now_ms()));
        Self { bounds, swept_at_ms, by_id: RefCell::default() }
    }

    /// The pool of an endpoint, made at its first request.
    pub(crate) fn of(&self, state: &Arc<EndpointState>) -> Rc<Pool> {
        if state.id == EndpointState::OUTSIDE {
            let pool = self.make(state);
            pool.closed.set(true);
            return Rc::new(pool);
        }
        let mut by_id = self.by_id.borrow_mut();
        let pool = by_id.entry(state.id).or_insert_with(|| {
            let pool = self.make(state);
            // For whoever decided before its version was left: it keeps no connection.
            pool.closed.set(!state.version.is_asked());
            Rc::new(pool)
        });
        Rc::clone(pool)
    }

    fn make(&self, state: &Arc<EndpointState>) -> Pool {
        Pool::new(Arc::clone(state), self.bounds, Rc::clone(&self.swept_at_ms))
    }

    /// Closes what is idle for too long. Called each second.
    pub(crate) fn sweep(&self) {
        let now_ms = clock::now_ms();
        self.swept_at_ms.set(now_ms);
        self.by_id.borrow_mut().retain(|_, pool| {
            pool.sweep(now_ms);
            pool.is_used()
        });
    }

    /// Closes every connection to endpoints that are no longer among `alive`, or whose version is asked no more; those
    /// that are lent to a request close when they come back. Called when something else is in force.
    pub(crate) fn keep<'s>(&self, alive: impl Iterator<Item = &'s Arc<EndpointState>>) {
        let mut by_id = self.by_id.borrow_mut();
        if by_id.is_empty() {
            return;
        }
        let alive: HashSet<u64> =
            alive.filter(|state| state.version.is_asked()).map(|state| state.id).collect();
        by_id.retain(|id, pool| {
            // One that was closed when it was made is made anew.
            let keep = alive.contains(id) && !pool.closed.get();
            if !keep {
                pool.close();
            }
            keep
        });
    }
}

impl Pool {
    fn new(state: Arc<EndpointState>, bounds: Bounds, swept_at_ms: Rc<Cell<u64>>) -> Self {
        Self {
            state,
            bounds,
            swept_at_ms,
            idle: RefCell::default(),
            h2: RefCell::default(),
            h2_opening: tokio::sync::Mutex::new(()),
            closed: Cell::new(false),
        }
    }

    /// An open connection that can take a request, if there is one.
    pub(crate) fn take(self: &Rc<Self>, protocol: Protocol) -> Option<Lease> {
        match protocol {
            Protocol::Http1 => self.take_idle().map(Lease::Http1),
            Protocol::H2 => self.take_h2(H2_STREAMS_MAX).map(Lease::H2),
        }
    }

    /// A new connection. Rare, and boxed by its caller, so that the futures of requests stay small.
    pub(crate) async fn open(
        self: &Rc<Self>,
        protocol: Protocol,
        within: Duration,
    ) -> Result<Lease, ConnectError> {
        match protocol {
            Protocol::Http1 => self.open_http1(within).await.map(Lease::Http1),
            // Waiting for whoever opens one is part of the time in which there must be one.
            Protocol::H2 => match timeout(within, self.open_or_share_h2(within)).await {
                Ok(opened) => opened.map(Lease::H2),
                Err(_elapsed) => Err(ConnectError::Timeout),
            },
        }
    }

    /// The connection that was used last: the likeliest to be alive, and the others may time out.
    fn take_idle(self: &Rc<Self>) -> Option<H1Lease> {
        let mut idle = self.idle.borrow_mut();
        while let Some(Idle { connection, .. }) = idle.pop() {
            if connection.sender.is_ready() {
                return Some(H1Lease { pool: Rc::clone(self), connection, reused: true });
            }
        }
        None
    }

    async fn open_http1(self: &Rc<Self>, within: Duration) -> Result<H1Lease, ConnectError> {
        let mut socket = connect(&self.state.peer, self.state.dial.as_deref(), within).await?;
        let unanswered = socket.keep_unanswered();
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(H1_BUFFER_BYTES_MAX)
            .handshake(TokioIo::new(socket))
            .await
            .map_err(|_closed| ConnectError::Unreachable)?;
        // Ends with its connection: when either side closes, or when the sender is dropped.
        tokio::task::spawn_local(async move {
            // How it ended was told to the request that was on it.
            drop(connection.with_upgrades().await);
        });
        let timer = Box::pin(sleep(Duration::ZERO));
        let connection = Box::new(H1Connection { sender, unanswered, timer, born_ms: clock::now_ms() });
        Ok(H1Lease { pool: Rc::clone(self), connection, reused: false })
    }

    fn put_back(&self, connection: Box<H1Connection>) {
        let now_ms = self.swept_at_ms.get();
        let mut idle = self.idle.borrow_mut();
        let aged = now_ms.saturating_sub(connection.born_ms) > self.bounds.age_ms_max;
        if self.closed.get() || idle.len() >= self.bounds.idle_max || aged {
            return;
        }
        idle.push(Idle { connection, idle_since_ms: now_ms });
    }

    async fn open_or_share_h2(&self, within: Duration) -> Result<H2Lease, ConnectError> {
        let opening = self.h2_opening.lock().await;
        // Whoever held it before may have opened what is needed here.
        if let Some(lease) = self.take_h2(H2_STREAMS_MAX) {
            return Ok(lease);
        }
        let is_full = self.h2.borrow().len() >= H2_CONNECTIONS_MAX;
        if is_full && let Some(lease) = self.take_h2(usize::MAX) {
            return Ok(lease);
        }
        let connection = self.open_h2(within).await?;
        drop(opening);
        Ok(H2Lease::on(&connection, false))
    }

    /// The shared connection with the fewest streams, if they are fewer than `streams_max` and than its peer allows.
    /// Where all are in use, h2 lets streams wait.
    fn take_h2(&self, streams_max: usize) -> Option<H2Lease> {
        let mut connections = self.h2.borrow_mut();
        let now_ms = clock::now_ms();
        connections.retain(|connection| {
            !connection.sender.is_closed()
                && now_ms.saturating_sub(connection.born_ms) <= self.bounds.age_ms_max
        });
        connections
            .iter()
            .filter(|connection| connection.takes_more(streams_max))
            .min_by_key(|connection| connection.streams.get())
            .map(|connection| H2Lease::on(connection, true))
    }

    async fn open_h2(&self, within: Duration) -> Result<Rc<H2Connection>, ConnectError> {
        let mut socket: Socket = connect(&self.state.peer, self.state.dial.as_deref(), within).await?;
        let heard = socket.tell_when_heard();
        let (sender, connection) = http2::Builder::new(LocalExecutor)
            .timer(TokioTimer::new())
            .initial_stream_window_size(H2_STREAM_WINDOW)
            .initial_connection_window_size(H2_CONNECTION_WINDOW)
            .keep_alive_interval(H2_KEEP_ALIVE)
            .keep_alive_timeout(H2_KEEP_ALIVE_TIMEOUT)
            .max_header_list_size(H2_HEADER_LIST_BYTES_MAX)
            .handshake(TokioIo::new(socket))
            .await
            .map_err(|_closed| ConnectError::Unreachable)?;
        // What a peer says first is how many streams it allows: who comes next should know. Whoever waits with it until
        // it is asked something does not keep us for long.
        drop(timeout(H2_SETTINGS_WAIT, heard.notified()).await);
        let allowed = Rc::new(Cell::new(connection.current_max_send_streams()));
        let told = Rc::clone(&allowed);
        // Ends when either side closes, or when every sender is dropped.
        tokio::task::spawn_local(async move {
            let mut connection = std::pin::pin!(connection);
            // It is polled for each request, and so what the peer has said is noted before the next one.
            let driven = std::future::poll_fn(|cx| {
                let polled = connection.as_mut().poll(cx);
                told.set(connection.current_max_send_streams());
                polled
            });
            drop(driven.await);
        });
        let (streams, born_ms) = (Cell::new(0), clock::now_ms());
        let connection = Rc::new(H2Connection { sender, streams, allowed, born_ms });
        if !self.closed.get() {
            self.h2.borrow_mut().push(Rc::clone(&connection));
        }
        Ok(connection)
    }

    /// Whether it has a connection, or a request holds it.
    fn is_used(self: &Rc<Self>) -> bool {
        Rc::strong_count(self) > 1 || !self.idle.borrow().is_empty() || !self.h2.borrow().is_empty()
    }

    /// What is idle ends now, what is lent ends when it comes back.
    fn close(&self) {
        self.closed.set(true);
        self.idle.borrow_mut().clear();
        self.h2.borrow_mut().clear();
    }

    fn sweep(&self, now_ms: u64) {
        let fresh = |idle: &Idle| {
            !idle.connection.sender.is_closed()
                && now_ms.saturating_sub(idle.idle_since_ms) <= self.bounds.idle_ms_max
                && now_ms.saturating_sub(idle.connection.born_ms) <= self.bounds.age_ms_max
        };
        let mut idle = self.idle.borrow_mut();
        idle.retain(fresh);
        if idle.is_empty() {
            idle.shrink_to_fit();
        }
        drop(idle);
        let alive = |connection: &Rc<H2Connection>| {
            !connection.sender.is_closed()
                && now_ms.saturating_sub(connection.born_ms) <= self.bounds.age_ms_max
        };
        self.h2.borrow_mut().retain(alive);
    }
}

impl Lease {
    pub(crate) fn reused(&self) -> bool {
        match self {
            Self::Http1(lease) => lease.reused,
            Self::H2(lease) => lease.reused,
        }
    }

    /// The request that broke, if it may be sent once more although it was written: the connection had served others
    /// before and ended without a byte of an answer, and the request is idempotent and has no body.
    pub(crate) fn unanswered(&self) -> Option<Request<Upload>> {
        match self {
            Self::Http1(lease) => lease.connection.unanswered.take(),
            Self::H2(_) => None,
        }
    }

    /// The request as it was written, whatever came back of it, if it was sent to be kept.
    pub(crate) fn written(&self) -> Option<Request<Upload>> {
        match self {
            Self::Http1(lease) => lease.connection.unanswered.take_any(),
            Self::H2(_) => None,
        }
    }

    /// Returns the connection after a whole answer was read.
    pub(crate) fn give_back(self) {
        match self {
            Self::Http1(lease) => lease.give_back(),
            // A stream ends with its lease.
            Self::H2(lease) => drop(lease),
        }
    }
}

impl H1Lease {
    /// Sends a request; gives the timer of this connection and what waits for the head of the answer. With `keep`, what
    /// is written of a request that may be sent again can be had by [`Lease::written`].
    pub(crate) fn send(
        &mut self,
        request: Request<Upload>,
        keep: bool,
    ) -> (Pin<&mut Sleep>, impl Future<Output = Sent> + use<>) {
        let H1Connection { sender, unanswered, timer, .. } = &mut *self.connection;
        if (self.reused || keep) && request.method().is_idempotent() && request.body().is_end_stream() {
            unanswered.begin();
        } else {
            unanswered.pass();
        }
        (timer.as_mut(), sender.try_send_request(request))
    }

    fn give_back(self) {
        let Self { pool, mut connection, .. } = self;
        if connection.sender.is_ready() {
            pool.put_back(connection);
        } else if !connection.sender.is_closed() {
            // The upload is still on its way, or the connection's task has not run since the last byte.
            // Ends when the connection is ready or closed.
            tokio::task::spawn_local(async move {
                if connection.sender.ready().await.is_ok() {
                    pool.put_back(connection);
                }
            });
        }
    }
}

impl H2Connection {
    fn takes_more(&self, streams_max: usize) -> bool {
        // `usize::MAX` takes any: the peer's limit is then h2's to keep.
        let most = if streams_max == usize::MAX { streams_max } else { streams_max.min(self.allowed.get()) };
        self.streams.get() < most
    }
}

impl H2Lease {
    fn on(connection: &Rc<H2Connection>, reused: bool) -> Self {
        connection.streams.set(connection.streams.get() + 1);
        Self { connection: Rc::clone(connection), reused }
    }

    /// Sends a request and waits for the head of its answer.
    pub(crate) fn send(&self, request: Request<Upload>) -> impl Future<Output = Sent> + use<> {
        self.connection.sender.clone().try_send_request(request)
    }
}

impl Drop for H2Lease {
    fn drop(&mut self) {
        self.connection.streams.set(self.connection.streams.get() - 1);
    }
}

/// Ids are unique and dense: one multiplication spreads them.
#[derive(Debug, Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, id: u64) {
        self.0 = (self.0 ^ id).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}
