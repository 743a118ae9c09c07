//! Tunnels: after a 101 or a granted CONNECT bytes are passed on as they are, both ways.

use std::future::pending;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{
    AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf, copy, copy_bidirectional_with_sizes, sink,
};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{sleep, timeout};

use super::fault::Fault;
use super::may_pass;
use super::record::Record;
use crate::caller::Caller;
use crate::upstream::version::Over;
use crate::worker::Worker;

/// Buffer of a tunnel, each way. 4 KiB are a bottleneck; tens of thousands of quiet tunnels should fit into memory.
const BUFFER_BYTES: usize = 16 << 10;
/// How long it may take to connect, and how long nothing may move, where no service's policy says it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const IDLE_TIMEOUT: Duration = Duration::from_mins(5);
/// How long both sides of a tunnel that is ended are heard out.
const LINGER: Duration = Duration::from_secs(1);

/// A granted CONNECT that begins when its answer is out.
#[derive(Debug)]
pub(crate) struct Tunnel {
    caller: OnUpgrade,
    to: TcpStream,
}

/// Opens the connection that a CONNECT asks for. Refused unless unknown hosts are passed on for this caller.
pub(super) async fn connect(
    worker: &Worker,
    caller: &Caller,
    mut request: Request<Incoming>,
) -> Result<Tunnel, Fault> {
    if !may_pass(worker, caller) {
        return Err(Fault::Denied(
            "CONNECT needs [outbound] unknown_hosts = pass, and a caller on this machine",
        ));
    }
    let authority = request.uri().authority().ok_or(Fault::BadRequest("CONNECT names no host and port"))?;
    let port = authority.port_u16().ok_or(Fault::BadRequest("CONNECT names no port"))?;
    let address = resolve(worker, authority.host(), port).await?;
    let to = match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => return Err(Fault::Refused),
        Ok(Err(_)) => return Err(Fault::Unreachable),
        Err(_) => return Err(Fault::ConnectTimeout),
    };
    drop(to.set_nodelay(true));
    Ok(Tunnel { caller: hyper::upgrade::on(&mut request), to })
}

/// The address of a host outside the mesh; link-local ones, where clouds keep their secrets, are refused, and our own.
pub(super) async fn resolve(worker: &Worker, host: &str, port: u16) -> Result<SocketAddr, Fault> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let found = timeout(CONNECT_TIMEOUT, lookup_host((host, port))).await;
    let mut addresses = found.map_err(|_| Fault::ConnectTimeout)?.map_err(|_| Fault::NoDestination)?;
    let address = addresses.next().ok_or(Fault::NoDestination)?;
    if is_link_local(address.ip()) {
        return Err(Fault::Denied("link-local addresses are not passed on"));
    }
    if worker.shared.outbound.is_some_and(|own| is_at(own, address)) {
        return Err(Fault::Denied("the host leads back to this proxy, for ever"));
    }
    Ok(address)
}

/// Whether who connects to `address` reaches the listener at `own`.
fn is_at(own: SocketAddr, address: SocketAddr) -> bool {
    let (listens, asked) = (own.ip().to_canonical(), address.ip().to_canonical());
    own.port() == address.port()
        && (listens == asked || (listens.is_unspecified() && is_of_this_machine(asked)))
}

/// Whether an address is one of this machine's: the kernel would then call it from itself. Nothing is sent.
fn is_of_this_machine(ip: IpAddr) -> bool {
    let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let calls_from = || {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect((ip, 1))?;
        io::Result::Ok(socket.local_addr()?.ip())
    };
    ip.is_loopback() || calls_from().is_ok_and(|from| from == ip)
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_unspecified() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_unspecified(),
    }
}

impl Tunnel {
    /// Passes bytes on until either side ends, nothing moves for too long, or the drain is over.
    pub(crate) fn begin(self, record: Box<Record>) {
        // Ends as said above; the worker's runtime ends it at the latest.
        tokio::task::spawn_local(async move {
            if let Ok(caller) = self.caller.await {
                run(caller, self.to, IDLE_TIMEOUT, record).await;
            }
        });
    }
}

/// Joins both sides of a switched protocol.
pub(super) fn join(caller: OnUpgrade, upstream: OnUpgrade, record: Box<Record>) {
    let idle = record.upstream().map_or(IDLE_TIMEOUT, |upstream| upstream.policy.idle_timeout);
    // Ends like every tunnel.
    tokio::task::spawn_local(async move {
        if let (Ok(caller), Ok(upstream)) = tokio::join!(caller, upstream) {
            run(caller, TokioIo::new(upstream), idle, record).await;
        }
    });
}

async fn run(
    caller: Upgraded,
    mut other: impl AsyncRead + AsyncWrite + Unpin,
    idle: Duration,
    mut record: Box<Record>,
) {
    let moved = Arc::new(AtomicU64::new(0));
    let mut caller = Watched { io: TokioIo::new(caller), moved: Arc::clone(&moved) };
    let copy = copy_bidirectional_with_sizes(&mut caller, &mut other, BUFFER_BYTES, BUFFER_BYTES);
    match until_end(copy, &moved, idle, record.over()).await {
        End::Copied(Ok((_, to_caller))) => {
            record.sent(to_caller);
            record.whole();
        }
        End::Copied(Err(_)) | End::Idle => {}
        End::Over => {
            record.drained();
            // Whoever does not listen is left all the same.
            drop(timeout(LINGER, part(&mut caller, &mut other)).await);
        }
    }
}

/// Why a tunnel ends.
enum End {
    Copied(io::Result<(u64, u64)>),
    Idle,
    /// The time of its version is over.
    Over,
}

async fn until_end(
    copy: impl Future<Output = io::Result<(u64, u64)>>,
    moved: &AtomicU64,
    idle: Duration,
    over: Option<Over>,
) -> End {
    let mut copy = std::pin::pin!(copy);
    // A tunnel lasts: it listens from its begin.
    let over = async {
        match over {
            Some(over) => over.await,
            None => pending().await,
        }
    };
    let mut over = std::pin::pin!(over);
    loop {
        let before = moved.load(Relaxed);
        tokio::select! {
            copied = &mut copy => return End::Copied(copied),
            () = &mut over => return End::Over,
            () = sleep(idle) => if moved.load(Relaxed) == before { return End::Idle },
        }
    }
}

/// Says to both sides that nothing more comes, and hears them out: to close on what is unread would take back what they
/// were sent last.
async fn part(
    one: &mut (impl AsyncRead + AsyncWrite + Unpin),
    other: &mut (impl AsyncRead + AsyncWrite + Unpin),
) {
    let (first, second) = tokio::join!(one.shutdown(), other.shutdown());
    if first.is_ok() && second.is_ok() {
        let (mut nowhere, mut neither) = (sink(), sink());
        drop(tokio::join!(copy(one, &mut nowhere), copy(other, &mut neither)));
    }
}

/// Counts what moves, so that a tunnel in which nothing does can be ended.
struct Watched<T> {
    io: T,
    /// Shared with the loop that looks at it, on the same thread.
    moved: Arc<AtomicU64>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.io).poll_read(cx, buf);
        if polled.is_ready() {
            this.moved.fetch_add(1, Relaxed);
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.io).poll_write(cx, data);
        if polled.is_ready() {
            this.moved.fetch_add(1, Relaxed);
        }
        polled
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_local_addresses_are_known_in_every_guise() {
        for (text, expected) in [
            ("169.254.169.254", true),
            ("::ffff:169.254.169.254", true),
            ("fe80::1", true),
            ("0.0.0.0", true),
            ("127.0.0.1", false),
            ("10.0.0.1", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(is_link_local(text.parse().unwrap()), expected, "{text}");
        }
    }

    #[test]
    fn what_would_come_back_is_known() {
        for (own, address, expected) in [
            ("127.0.0.1:15001", "127.0.0.1:15001", true),
            ("127.0.0.1:15001", "[::ffff:127.0.0.1]:15001", true),
            ("127.0.0.1:15001", "127.0.0.1:15002", false),
            ("127.0.0.1:15001", "10.0.0.1:15001", false),
            ("0.0.0.0:15001", "127.0.0.1:15001", true),
            ("[::]:15001", "127.0.0.1:15001", true),
            // One of the addresses that documents use, and so nobody's.
            ("0.0.0.0:15001", "192.0.2.1:15001", false),
        ] {
            assert_eq!(is_at(own.parse().unwrap(), address.parse().unwrap()), expected, "{own} {address}");
        }
    }
}
