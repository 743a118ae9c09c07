//! A request that was written to a pooled connection and got no byte back, kept so that it can be sent once more.
//!
//! hyper takes a request for good. Copying every head in case its connection turns out to be closed would cost each
//! request ten times what keeping the written bytes does, so the bytes are kept, in a buffer of the connection, and
//! read again in the rare case.

use std::io::IoSlice;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use http::header::CONTENT_LENGTH;
use http::{HeaderName, HeaderValue, Request};

use super::upload::Upload;

/// Longer heads are not kept.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// Nothing is kept.
const IDLE: u8 = 0;
/// What is written next begins a request.
const BEGUN: u8 = 1;
/// It is being written, or was, and nothing came back.
const WRITTEN: u8 = 2;
/// Something came back: from here on it is not known what the endpoint did.
const ANSWERED: u8 = 3;

/// What was written of the request on one connection. Shared by the connection, which writes it, and the lease.
///
/// Both are on one thread: the lock is never waited for, it is there because hyper wants what it upgrades to be `Send`.
#[derive(Debug, Default)]
pub(crate) struct Unanswered {
    state: AtomicU8,
    head: Mutex<Vec<u8>>,
}

impl Unanswered {
    /// A request comes that may be sent again: idempotent and without a body.
    pub(super) fn begin(&self) {
        self.state.store(BEGUN, Relaxed);
    }

    /// A request comes that may not.
    pub(super) fn pass(&self) {
        self.state.store(IDLE, Relaxed);
    }

    /// So many bytes of these were written.
    pub(super) fn wrote(&self, parts: &[IoSlice<'_>], mut length: usize) {
        match self.state.load(Relaxed) {
            BEGUN => {
                self.head().clear();
                self.state.store(WRITTEN, Relaxed);
            }
            WRITTEN => {}
            _ => return,
        }
        let mut head = self.head();
        for part in parts {
            let written = &part[..part.len().min(length)];
            length -= written.len();
            if head.len() + written.len() > HEAD_BYTES_MAX {
                return self.pass();
            }
            head.extend_from_slice(written);
        }
    }

    /// Something came back.
    pub(super) fn answered(&self) {
        match self.state.load(Relaxed) {
            WRITTEN => self.state.store(ANSWERED, Relaxed),
            BEGUN => self.pass(),
            _ => {}
        }
    }

    /// The request, if it was written as a whole and nothing came back.
    pub(super) fn take(&self) -> Option<Request<Upload>> {
        let is_written = self.state.swap(IDLE, Relaxed) == WRITTEN;
        is_written.then(|| read(&self.head())).flatten()
    }

    /// The request, if it was written as a whole, whatever came back.
    pub(super) fn take_any(&self) -> Option<Request<Upload>> {
        let state = self.state.swap(IDLE, Relaxed);
        (state == WRITTEN || state == ANSWERED).then(|| read(&self.head())).flatten()
    }

    fn head(&self) -> MutexGuard<'_, Vec<u8>> {
        self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a head that hyper has written; `None` when it is anything but one whole head.
fn read(head: &[u8]) -> Option<Request<Upload>> {
    let mut lines = head.strip_suffix(b"\r\n\r\n")?.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
    let start = std::str::from_utf8(lines.next()?).ok()?;
    let (method, target) = start.strip_suffix(" HTTP/1.1")?.split_once(' ')?;
    let mut request = Request::builder().method(method).uri(target).body(Upload::Empty).ok()?;
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = (HeaderName::from_bytes(&line[..colon]).ok()?, line[colon + 1..].trim_ascii());
        if name != CONTENT_LENGTH {
            request.headers_mut().append(name, HeaderValue::from_bytes(value).ok()?);
        }
    }
    Some(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(parts: &[&str]) -> Unanswered {
        let unanswered = Unanswered::default();
        unanswered.begin();
        for part in parts {
            unanswered.wrote(&[IoSlice::new(part.as_bytes())], part.len());
        }
        unanswered
    }

    #[test]
    fn what_was_written_comes_back_as_it_was() {
        let head = "GET /a?b HTTP/1.1\r\nhost: app\r\nx-a: 1\r\nx-a: \r\nx-b: a:b\r\n\r\n";
        let request = written(&[head]).take().unwrap();
        assert_eq!((request.method().as_str(), request.uri().to_string().as_str()), ("GET", "/a?b"));
        let headers: Vec<_> = request
            .headers()
            .iter()
            .map(|(name, value)| format!("{name}={}", value.to_str().unwrap()))
            .collect();
        assert_eq!(headers, ["host=app", "x-a=1", "x-a=", "x-b=a:b"]);
    }

    #[test]
    fn heads_written_in_parts_are_whole_with_the_last_one() {
        let unanswered = written(&["GET / HTTP/1.1\r\nhost: a", "pp\r\n\r\n"]);
        assert_eq!(unanswered.take().unwrap().headers()["host"], "app");
        assert!(unanswered.take().is_none(), "taken twice");
        let parts = [IoSlice::new(b"GET / HTTP/1.1\r\n"), IoSlice::new(b"\r\nmore")];
        let unanswered = written(&[]);
        unanswered.wrote(&parts, 18);
        assert!(unanswered.take().is_some(), "only what was written counts");
    }

    #[test]
    fn nothing_else_is_ever_sent_again() {
        for (what, head) in [
            ("half a head", "GET / HTTP/1.1\r\nhost: a"),
            ("the end of a body before it", "rest of it\r\nGET / HTTP/1.1\r\nhost: app\r\n\r\n"),
            ("a request inside the end of a body", "GET /a HTTP/1.1\r\nx: y\r\nGET /b:c HTTP/1.1\r\n\r\n"),
            ("two heads", "GET /a HTTP/1.1\r\nx: y\r\n\r\nGET /b HTTP/1.1\r\n\r\n"),
            ("nothing", ""),
        ] {
            assert!(written(&[head]).take().is_none(), "{what}");
        }
        let long = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(HEAD_BYTES_MAX));
        assert!(written(&[&long]).take().is_none(), "too long");
        let unanswered = written(&["GET / HTTP/1.1\r\n\r\n"]);
        unanswered.answered();
        assert!(unanswered.take().is_none(), "something came back");
        let unanswered = written(&["GET / HTTP/1.1\r\n\r\n"]);
        unanswered.answered();
        assert!(unanswered.take_any().is_some() && unanswered.take_any().is_none(), "asked for all the same");
        unanswered.pass();
        unanswered.wrote(&[IoSlice::new(b"POST / HTTP/1.1\r\n\r\n")], 19);
        assert!(unanswered.take().is_none(), "a request that may not be sent again");
    }
}
