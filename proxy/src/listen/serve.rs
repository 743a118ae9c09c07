//! Serving one connection: HTTP/1.1 or HTTP/2 by what was agreed upon or what its first bytes are, under timers, until it or the drain ends.

use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use super::calm::Calm;
use super::receive::IsH2;
use super::socket::{PREFACE, Socket};
use crate::caller::{Caller, Expired};
use crate::clock;
use crate::drain::Phase;
use crate::executor::StreamExecutor;
use crate::request;
use crate::tls::Stream;
use crate::worker::Worker;

/// Buffer of an HTTP/1 connection from a caller; it grows to this only while bodies flow.
const H1_BUFFER_BYTES_MAX: usize = 128 << 10;
/// HTTP/2 windows: fixed, since adapting ones cost latency on a LAN.
const H2_STREAM_WINDOW: u32 = 512 << 10;
const H2_CONNECTION_WINDOW: u32 = 4 << 20;
/// What may wait to be written on one HTTP/2 stream.
const H2_SEND_BYTES_MAX: usize = 256 << 10;
/// How an HTTP/2 caller that went silent is found out.
const H2_KEEP_ALIVE: Duration = Duration::from_secs(20);
const H2_KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Streams that a caller may reset before they were taken up, before the connection ends (rapid reset).
const H2_RESETS_MAX: usize = 20;

/// Serves a connection to its end.
pub(super) async fn serve(
    worker: &Rc<Worker>,
    caller: &Rc<Caller>,
    mut stream: Stream<TcpStream>,
    agreed: IsH2,
) {
    let mut head = [0; PREFACE.len()];
    let (is_h2, length) = match agreed {
        // Whoever agreed upon one and speaks the other is answered in the one.
        Some(is_h2) => (is_h2, 0),
        None => {
            let sniffed = within(caller, worker, pin!(sniff(&mut stream, &mut head, caller))).await;
            let Ok(Some(length)) = sniffed else { return };
            (length == PREFACE.len() && head == *PREFACE, length)
        }
    };
    let socket = Socket::new(stream, &head[..length], caller.activity.clone(), !is_h2);
    // Boxed, so that a connection costs what its protocol needs and not the larger of the two.
    if is_h2 {
        // From here on bytes between requests are pings and windows as well, not a head that has begun.
        caller.activity.head_ended();
        Box::pin(serve_h2(worker, caller, socket)).await;
    } else {
        Box::pin(serve_http1(worker, caller, socket)).await;
    }
}

/// Reads until it is clear whether this is HTTP/2; `None` when the caller left.
async fn sniff(
    stream: &mut Stream<TcpStream>,
    head: &mut [u8; PREFACE.len()],
    caller: &Caller,
) -> Option<usize> {
    let mut length = 0;
    loop {
        match stream.read(&mut head[length..]).await {
            Ok(0) | Err(_) => return (length > 0).then_some(length),
            Ok(read) => length += read,
        }
        caller.activity.received();
        if length == PREFACE.len() || head[..length] != PREFACE[..length] {
            return Some(length);
        }
    }
}

async fn serve_http1(worker: &Rc<Worker>, caller: &Rc<Caller>, socket: Socket) {
    let limits = &worker.shared.limits;
    let service = service_fn(|request| request::handle(worker, caller, request));
    // Pinned where it is made: a name for it first would make room for it twice in each connection's future.
    let connection = pin!(
        http1::Builder::new()
            .max_buf_size(H1_BUFFER_BYTES_MAX.max(limits.header_bytes))
            .max_header_size(limits.header_bytes)
            .serve_connection(TokioIo::new(socket), service)
            .with_upgrades()
    );
    // HTTP/1 is drained by `Connection: close` on the next answers; see `request/respond.rs`.
    match within(caller, worker, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            // hyper has answered it already, and no request was made of it: only here can it be counted.
            if error.is_parse() {
                worker.shared.malformed[caller.listener as usize].fetch_add(1, Relaxed);
            }
            tracing::debug!("connection from {}: {error}", caller.peer);
        }
        Err(expired) => tracing::debug!("connection from {} ended: {expired:?}", caller.peer),
    }
}

async fn serve_h2(worker: &Rc<Worker>, caller: &Rc<Caller>, socket: Socket) {
    let limits = &worker.shared.limits;
    // The service outlives this call in the streams' tasks, so it owns what it needs.
    let (owned_worker, owned_caller) = (Rc::clone(worker), Rc::clone(caller));
    let service = service_fn(move |request| request::handle(&owned_worker, &owned_caller, request));
    let mut connection = pin!(
        http2::Builder::new(StreamExecutor)
            .timer(TokioTimer::new())
            .initial_stream_window_size(H2_STREAM_WINDOW)
            .initial_connection_window_size(H2_CONNECTION_WINDOW)
            .max_send_buf_size(H2_SEND_BYTES_MAX)
            .max_concurrent_streams(limits.h2_streams)
            .max_pending_accept_reset_streams(H2_RESETS_MAX)
            .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
            .keep_alive_interval(H2_KEEP_ALIVE)
            .keep_alive_timeout(H2_KEEP_ALIVE_TIMEOUT)
            .serve_connection(TokioIo::new(Calm::new(socket)), service)
    );
    let mut phases = worker.shared.phase.clone();
    let draining = async {
        // A worker that is gone ends its connections with it.
        drop(phases.wait_for(|phase| *phase >= Phase::Closing).await);
    };
    let mut draining = pin!(draining);
    let mut told = false;
    let served = std::future::poll_fn(|cx| {
        if !told && draining.as_mut().poll(cx).is_ready() {
            told = true;
            // Two stages: GOAWAY that takes everything under way, a ping, GOAWAY with the last stream.
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(cx)
    });
    match within(caller, worker, pin!(served)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("HTTP/2 connection from {}: {error}", caller.peer),
        Err(expired) => tracing::debug!("HTTP/2 connection from {} ended: {expired:?}", caller.peer),
    }
}

/// Runs a connection under its timer.
pub(super) async fn within<F: Future>(
    caller: &Caller,
    worker: &Worker,
    mut work: Pin<&mut F>,
) -> Result<F::Output, Expired> {
    let head_timeout = worker.shared.limits.header_timeout;
    let mut timer = pin!(sleep(head_timeout));
    std::future::poll_fn(|cx| {
        if let std::task::Poll::Ready(output) = work.as_mut().poll(cx) {
            return std::task::Poll::Ready(Ok(output));
        }
        while timer.as_mut().poll(cx).is_ready() {
            match caller.check(clock::now_ms(), head_timeout) {
                Ok(next) => timer.as_mut().reset(Instant::now() + next),
                Err(expired) => return std::task::Poll::Ready(Err(expired)),
            }
        }
        std::task::Poll::Pending
    })
    .await
}
