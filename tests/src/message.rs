//! One HTTP/1 message as it came over the wire: start line, headers, body, trailers, and the exact bytes.

use std::fmt;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout_at};

/// Most bytes of one message that a test reads into memory.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// One request or answer, as it came.
#[derive(Clone, Default)]
pub struct Message {
    /// Its bytes, framing included.
    pub raw: Vec<u8>,
    /// The first line, without its end.
    pub start: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// Whether the body ended as its framing says, and not with the connection's unexpected end.
    pub is_complete: bool,
}

impl Message {
    /// The status of an answer.
    ///
    /// # Panics
    /// When this is no answer.
    #[must_use]
    pub fn status(&self) -> u16 {
        let code = self.start.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5));
        match code.and_then(|code| code.parse().ok()) {
            Some(code) => code,
            None => panic!("not the first line of an answer: {:?}", self.start),
        }
    }

    /// The first value of a header; the name in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// All values of a header.
    #[must_use]
    pub fn all(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }

    /// The first value of a trailer field.
    #[must_use]
    pub fn trailer(&self, name: &str) -> Option<&str> {
        self.trailers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Whether `Connection` says that this is the last one on its connection.
    #[must_use]
    pub fn says_close(&self) -> bool {
        let options = self.all("connection").join(",");
        options.split(',').any(|option| option.trim().eq_ignore_ascii_case("close"))
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.raw[..self.raw.len().min(2_000)];
        write!(f, "complete={} {:?}", self.is_complete, String::from_utf8_lossy(shown))
    }
}

/// Why no whole message came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoMessage {
    /// The other end closed or reset before the first byte.
    Closed,
    /// It ended in the middle of the head.
    Cut,
    /// Nothing more came in time.
    Late,
}

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Chunked,
    Length(usize),
    None,
    UntilClose,
}

/// Reads messages off one direction of a connection.
#[derive(Debug, Default)]
pub struct Reader {
    /// What came and belongs to no message read so far.
    pub rest: Vec<u8>,
}

impl Reader {
    /// Reads a request.
    ///
    /// # Errors
    /// When there is none.
    pub async fn request(
        &mut self,
        io: &mut (impl AsyncRead + Unpin),
        limit: Duration,
    ) -> Result<Message, NoMessage> {
        let deadline = Instant::now() + limit;
        let mut message = self.head(io, deadline).await?;
        let framing = framing_of(&message).unwrap_or(Framing::None);
        self.body(io, deadline, framing, &mut message).await;
        Ok(message)
    }

    /// Reads the head of a request and leaves its body where it is.
    ///
    /// # Errors
    /// When there is none.
    pub async fn request_head(
        &mut self,
        io: &mut (impl AsyncRead + Unpin),
        limit: Duration,
    ) -> Result<Message, NoMessage> {
        self.head(io, Instant::now() + limit).await
    }

    /// Reads an answer; `to_head` when the request was a HEAD and so no body follows.
    ///
    /// # Errors
    /// When there is none.
    pub async fn answer(
        &mut self,
        io: &mut (impl AsyncRead + Unpin),
        limit: Duration,
        to_head: bool,
    ) -> Result<Message, NoMessage> {
        let deadline = Instant::now() + limit;
        let mut message = self.head(io, deadline).await?;
        let framing = match message.status() {
            100..200 | 204 | 304 => Framing::None,
            _ if to_head => Framing::None,
            _ => framing_of(&message).unwrap_or(Framing::UntilClose),
        };
        self.body(io, deadline, framing, &mut message).await;
        Ok(message)
    }

    /// Reads until the other end closes; whether it did, and in which way does not matter.
    pub async fn is_closed(&mut self, io: &mut (impl AsyncRead + Unpin), limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            match self.more(io, deadline).await {
                Ok(()) => {}
                Err(NoMessage::Late) => return false,
                Err(NoMessage::Closed | NoMessage::Cut) => return true,
            }
        }
    }

    async fn head(
        &mut self,
        io: &mut (impl AsyncRead + Unpin),
        deadline: Instant,
    ) -> Result<Message, NoMessage> {
        let end = loop {
            if let Some(at) = find(&self.rest, b"\r\n\r\n") {
                break at + 4;
            }
            let was_empty = self.rest.is_empty();
            self.more(io, deadline).await.map_err(|reason| match reason {
                NoMessage::Closed if !was_empty => NoMessage::Cut,
                reason => reason,
            })?;
        };
        let raw: Vec<u8> = self.rest.drain(..end).collect();
        let text = String::from_utf8_lossy(&raw).into_owned();
        let mut lines = text.trim_end_matches("\r\n").split("\r\n");
        let start = lines.next().unwrap_or_default().to_owned();
        let headers = lines.map(split_field).collect();
        Ok(Message { raw, start, headers, ..Message::default() })
    }

    async fn body(
        &mut self,
        io: &mut (impl AsyncRead + Unpin),
        deadline: Instant,
        framing: Framing,
        message: &mut Message,
    ) {
        message.is_complete = match framing {
            Framing::None => true,
            Framing::UntilClose => {
                while self.more(io, deadline).await.is_ok() {}
                message.body = std::mem::take(&mut self.rest);
                message.raw.extend_from_slice(&message.body);
                true
            }
            Framing::Length(length) => {
                let whole = self.fill(io, deadline, length).await;
                let body: Vec<u8> = self.rest.drain(..self.rest.len().min(length)).collect();
                message.raw.extend_from_slice(&body);
                message.body = body;
                whole
            }
            Framing::Chunked => self.chunks(io, deadline, message).await.is_some(),
        };
    }

    async fn chunks(
        &mut self,
        io: &mut (impl AsyncRead + Unpin),
        deadline: Instant,
        message: &mut Message,
    ) -> Option<()> {
        loop {
            let line = self.line(io, deadline, message).await?;
            let digits = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(digits, 16).ok()?;
            if size == 0 {
                break;
            }
            let whole = self.fill(io, deadline, size + 2).await;
            let data: Vec<u8> = self.rest.drain(..self.rest.len().min(size + 2)).collect();
            message.raw.extend_from_slice(&data);
            message.body.extend_from_slice(&data[..data.len().min(size)]);
            whole.then_some(())?;
        }
        loop {
            let line = self.line(io, deadline, message).await?;
            if line.is_empty() {
                return Some(());
            }
            message.trailers.push(split_field(&line));
        }
    }

    async fn line(
        &mut self,
        io: &mut (impl AsyncRead + Unpin),
        deadline: Instant,
        message: &mut Message,
    ) -> Option<String> {
        loop {
            if let Some(at) = find(&self.rest, b"\r\n") {
                let line: Vec<u8> = self.rest.drain(..at + 2).collect();
                message.raw.extend_from_slice(&line);
                return Some(String::from_utf8_lossy(&line[..at]).into_owned());
            }
            self.more(io, deadline).await.ok()?;
        }
    }

    async fn fill(&mut self, io: &mut (impl AsyncRead + Unpin), deadline: Instant, length: usize) -> bool {
        while self.rest.len() < length {
            if self.more(io, deadline).await.is_err() {
                return false;
            }
        }
        true
    }

    async fn more(&mut self, io: &mut (impl AsyncRead + Unpin), deadline: Instant) -> Result<(), NoMessage> {
        assert!(self.rest.len() < MESSAGE_BYTES_MAX, "more than {MESSAGE_BYTES_MAX} bytes without an end");
        match timeout_at(deadline, io.read_buf(&mut self.rest)).await {
            Ok(Ok(1..)) => Ok(()),
            Ok(Ok(0) | Err(_)) => Err(NoMessage::Closed),
            Err(_) => Err(NoMessage::Late),
        }
    }
}

fn framing_of(message: &Message) -> Option<Framing> {
    if message.header("transfer-encoding").is_some_and(|coding| coding.ends_with("chunked")) {
        return Some(Framing::Chunked);
    }
    message.header("content-length").and_then(|length| length.parse().ok()).map(Framing::Length)
}

fn split_field(line: impl AsRef<str>) -> (String, String) {
    let (name, value) = line.as_ref().split_once(':').unwrap_or((line.as_ref(), ""));
    (name.to_owned(), value.trim().to_owned())
}

/// Where `part` begins in `whole`.
#[must_use]
pub fn find(whole: &[u8], part: &[u8]) -> Option<usize> {
    whole.windows(part.len()).position(|window| window == part)
}
