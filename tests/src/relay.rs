//! A TCP relay that counts the requests that pass through it, and can cut every connection, for once or for good.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The relay; ends with its handle.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
    /// The number of cuts so far: a connection ends when it grows.
    cuts: watch::Sender<u32>,
    /// Whether nothing passes any more.
    closed: Arc<AtomicBool>,
    _running: JoinSet<()>,
}

impl Relay {
    /// Relays to `target`.
    ///
    /// # Panics
    /// When no port can be bound.
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("a bound listener has an address");
        let (requests, connections) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let cuts = watch::Sender::new(0);
        let mut running = JoinSet::new();
        let closed = Arc::<AtomicBool>::default();
        let (counted, opened, cut) = (Arc::clone(&requests), Arc::clone(&connections), cuts.clone());
        let is_closed = Arc::clone(&closed);
        running.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                opened.fetch_add(1, Ordering::Relaxed);
                if is_closed.load(Ordering::Relaxed) {
                    continue;
                }
                let (counted, mut cut) = (Arc::clone(&counted), cut.subscribe());
                open.spawn(async move {
                    tokio::select! {
                        () = pass(stream, target, &counted) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self { address, requests, connections, cuts, closed, _running: running }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many requests without a body have gone to the target.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// How many connections have come.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Ends every connection.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Ends every connection, those to come included, before anything passes.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.cut();
    }
}

/// Passes bytes both ways and counts the ends of heads on the way to the target.
async fn pass(mut from: TcpStream, target: SocketAddr, requests: &AtomicUsize) {
    let Ok(mut to) = TcpStream::connect(target).await else { return };
    let (mut up, mut down) = ([0; 16 << 10], vec![0; 16 << 10]);
    let mut matched = 0;
    loop {
        tokio::select! {
            read = from.read(&mut up) => {
                let Ok(read @ 1..) = read else { return };
                for byte in &up[..read] {
                    matched = if *byte == b"\r\n\r\n"[matched] { matched + 1 } else { usize::from(*byte == b'\r') };
                    if matched == 4 {
                        requests.fetch_add(1, Ordering::Relaxed);
                        matched = 0;
                    }
                }
                if to.write_all(&up[..read]).await.is_err() { return }
            }
            read = to.read(&mut down) => {
                let Ok(read @ 1..) = read else { return };
                if from.write_all(&down[..read]).await.is_err() { return }
            }
        }
    }
}
