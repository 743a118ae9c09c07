//! An upstream that does exactly what a test tells it, and remembers exactly what it was sent.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::eventually::{SOON, eventually};
use crate::message::{Message, NoMessage, Reader};

/// A listener whose connections each run a script.
#[derive(Debug)]
pub struct Upstream {
    pub address: SocketAddr,
    seen: Arc<Seen>,
    // Dropped with the upstream, and with it every connection.
    _serving: JoinSet<()>,
}

/// What all connections of an upstream have seen.
#[derive(Debug, Default)]
struct Seen {
    requests: Mutex<Vec<Message>>,
    connections: AtomicUsize,
    open: AtomicUsize,
}

/// One connection, as the script sees it.
#[derive(Debug)]
pub struct Conversation {
    pub io: TcpStream,
    /// Which connection of this upstream it is, from 0.
    pub number: usize,
    reader: Reader,
    seen: Arc<Seen>,
}

impl Upstream {
    /// Listens on a free port and runs `script` for each connection.
    ///
    /// # Panics
    /// When no port is free.
    pub async fn start<F>(script: impl Fn(Conversation) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::start_at("127.0.0.1:0".parse().expect("an address"), script).await
    }

    /// Listens on this address and runs `script` for each connection.
    ///
    /// # Panics
    /// When the address is taken.
    pub async fn start_at<F>(
        address: SocketAddr,
        script: impl Fn(Conversation) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await.expect("a port is free");
        let address = listener.local_addr().expect("a listener has an address");
        let seen = Arc::new(Seen::default());
        let mut serving = JoinSet::new();
        let shared = Arc::clone(&seen);
        serving.spawn(async move {
            let mut conversations = JoinSet::new();
            while let Ok((io, _)) = listener.accept().await {
                let number = shared.connections.fetch_add(1, Ordering::SeqCst);
                let open = Open::new(&shared);
                let conversation =
                    Conversation { io, number, reader: Reader::default(), seen: Arc::clone(&shared) };
                drop(conversation.io.set_nodelay(true));
                let talk = script(conversation);
                conversations.spawn(async move {
                    talk.await;
                    drop(open);
                });
                while conversations.try_join_next().is_some() {}
            }
        });
        Self { address, seen, _serving: serving }
    }

    /// Answers every request with these bytes, on connections that stay.
    pub async fn answering(answer: impl Into<Vec<u8>>) -> Self {
        let answer = Arc::new(answer.into());
        Self::start(move |mut conversation| {
            let answer = Arc::clone(&answer);
            async move { while conversation.exchange(&answer[..]).await.is_some() {} }
        })
        .await
    }

    /// Answers every request 200 with this text.
    pub async fn saying(text: &str) -> Self {
        Self::answering(ok(text)).await
    }

    /// Every whole request so far, in the order of their ends.
    ///
    /// # Panics
    /// Never: nothing panics while the list is held.
    #[must_use]
    pub fn requests(&self) -> Vec<Message> {
        self.seen.requests.lock().expect("no script panics while it notes a request").clone()
    }

    /// The only request so far, waited for.
    ///
    /// # Panics
    /// When there are none or several.
    pub async fn only_request(&self) -> Message {
        let requests = eventually("a request at the upstream", async || {
            let requests = self.requests();
            if requests.is_empty() { Err("none yet") } else { Ok(requests) }
        })
        .await;
        assert_eq!(requests.len(), 1, "{requests:#?}");
        requests[0].clone()
    }

    /// How many connections there were.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    /// How many connections there are, by the count of scripts that still run.
    #[must_use]
    pub fn open(&self) -> usize {
        self.seen.open.load(Ordering::SeqCst)
    }
}

impl Conversation {
    /// Reads a request, for as long as the proxy keeps the connection; `None` at its end.
    pub async fn request(&mut self) -> Option<Message> {
        self.request_within(Duration::from_secs(600)).await
    }

    /// Reads a request that comes within `patience`.
    pub async fn request_within(&mut self, patience: Duration) -> Option<Message> {
        let request = self.reader.request(&mut self.io, patience).await.ok()?;
        self.note(&request);
        Some(request)
    }

    /// Reads the head of a request and leaves its body on the wire.
    pub async fn request_head(&mut self) -> Option<Message> {
        let request = self.reader.request_head(&mut self.io, Duration::from_secs(600)).await.ok()?;
        self.note(&request);
        Some(request)
    }

    /// Sends bytes as they are; whether they could be.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.io.write_all(bytes.as_ref()).await.is_ok()
    }

    /// Reads a request and sends these bytes; `None` when the connection is over.
    pub async fn exchange(&mut self, answer: impl AsRef<[u8]>) -> Option<Message> {
        let request = self.request().await?;
        self.send(answer).await.then_some(request)
    }

    /// Sends one byte after the other, with a pause between them.
    pub async fn trickle(&mut self, bytes: impl AsRef<[u8]>, pause: Duration) {
        for byte in bytes.as_ref() {
            if !self.send([*byte]).await {
                return;
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Says nothing until the other end leaves.
    pub async fn hang(&mut self) {
        self.reader.is_closed(&mut self.io, Duration::from_secs(600)).await;
    }

    /// Whether the other end leaves within [`SOON`].
    pub async fn is_left(&mut self) -> bool {
        self.reader.is_closed(&mut self.io, SOON).await
    }

    /// Ends the connection with a reset instead of a FIN.
    pub fn reset(self) {
        drop(self.io.set_zero_linger());
    }

    /// What came and belongs to no request read so far.
    #[must_use]
    pub fn rest(&self) -> &[u8] {
        &self.reader.rest
    }

    /// Reads whatever comes next, without reading messages; empty at the end.
    pub async fn bytes(&mut self) -> Vec<u8> {
        use tokio::io::AsyncReadExt;
        if self.reader.rest.is_empty() {
            drop(self.io.read_buf(&mut self.reader.rest).await);
        }
        std::mem::take(&mut self.reader.rest)
    }

    fn note(&self, request: &Message) {
        let mut requests = self.seen.requests.lock().expect("no script panics while it notes a request");
        requests.push(request.clone());
    }
}

/// Counts a connection as open for as long as its script runs.
struct Open(Arc<Seen>);

impl Open {
    fn new(seen: &Arc<Seen>) -> Self {
        seen.open.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(seen))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A 200 with this text, as bytes.
#[must_use]
pub fn ok(text: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()).into_bytes()
}

/// Reads one request head and body off any stream, for scripts that need more than a conversation.
///
/// # Errors
/// When there is none.
pub async fn read_request(io: &mut TcpStream, limit: Duration) -> Result<Message, NoMessage> {
    Reader::default().request(io, limit).await
}
