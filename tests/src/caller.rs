//! An HTTP/1 client that sends exactly the bytes it is given.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::eventually::SOON;
use crate::message::{Message, NoMessage, Reader};

/// One connection of a client.
#[derive(Debug)]
pub struct Caller {
    pub io: TcpStream,
    reader: Reader,
}

impl Caller {
    /// # Panics
    /// When nobody listens there.
    pub async fn connect(address: SocketAddr) -> Self {
        match TcpStream::connect(address).await {
            Ok(io) => Self::over(io),
            Err(error) => panic!("nobody answers at {address}: {error}"),
        }
    }

    /// A client on a connection that is there already.
    #[must_use]
    pub fn over(io: TcpStream) -> Self {
        // Only latency is lost without it.
        drop(io.set_nodelay(true));
        Self { io, reader: Reader::default() }
    }

    /// Sends bytes as they are. A peer that has closed already is no fault here: reading will tell.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        drop(self.io.write_all(bytes.as_ref()).await);
    }

    /// Says that nothing more will come, and stays to listen.
    pub async fn finish(&mut self) {
        drop(self.io.shutdown().await);
    }

    /// Reads the next answer.
    ///
    /// # Panics
    /// When none comes.
    pub async fn answer(&mut self) -> Message {
        match self.try_answer(SOON).await {
            Ok(answer) => answer,
            Err(reason) => panic!("no answer: {reason:?}, only {:?}", lossy(&self.reader.rest)),
        }
    }

    /// Reads the answer to a HEAD.
    ///
    /// # Panics
    /// When none comes.
    pub async fn answer_to_head(&mut self) -> Message {
        match self.reader.answer(&mut self.io, SOON, true).await {
            Ok(answer) => answer,
            Err(reason) => panic!("no answer to HEAD: {reason:?}, only {:?}", lossy(&self.reader.rest)),
        }
    }

    /// Reads the next answer, if one comes within `limit`.
    ///
    /// # Errors
    /// When none comes.
    pub async fn try_answer(&mut self, limit: Duration) -> Result<Message, NoMessage> {
        self.reader.answer(&mut self.io, limit, false).await
    }

    /// Sends and reads one answer.
    pub async fn ask(&mut self, bytes: impl AsRef<[u8]>) -> Message {
        self.send(bytes).await;
        self.answer().await
    }

    /// Whether the peer ends the connection within `limit`; `rest` has what it said before.
    pub async fn is_closed_within(&mut self, limit: Duration) -> bool {
        self.reader.is_closed(&mut self.io, limit).await
    }

    /// # Panics
    /// When the peer keeps the connection, or sends anything more before its end.
    pub async fn expect_end(&mut self) {
        assert!(self.is_closed_within(SOON).await, "the connection stays open");
        assert!(self.reader.rest.is_empty(), "more than expected: {:?}", lossy(&self.reader.rest));
    }

    /// What came and belongs to no answer read so far.
    #[must_use]
    pub fn rest(&self) -> &[u8] {
        &self.reader.rest
    }

    /// Waits for at least `count` bytes that belong to no answer, and takes them.
    ///
    /// # Panics
    /// When they do not come.
    pub async fn take(&mut self, count: usize) -> Vec<u8> {
        use tokio::io::AsyncReadExt;
        let reading = async {
            while self.reader.rest.len() < count {
                match self.io.read_buf(&mut self.reader.rest).await {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => break,
                }
            }
        };
        let in_time = tokio::time::timeout(SOON, reading).await.is_ok();
        let rest = &mut self.reader.rest;
        assert!(rest.len() >= count, "in time: {in_time}; only {:?}", lossy(rest));
        rest.drain(..count).collect()
    }
}

/// One request over a connection of its own.
pub async fn ask(address: SocketAddr, bytes: impl AsRef<[u8]>) -> Message {
    Caller::connect(address).await.ask(bytes).await
}

/// A GET of `path` for `host`, as bytes.
#[must_use]
pub fn get(host: &str, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")
}

fn lossy(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(&bytes[..bytes.len().min(2_000)])
}
