//! Receiving a caller over TLS: in bounded time, with a bounded number of handshakes under way at once.
//!
//! Where there are too many, the one that has lasted longest is ended for the new one: a sound handshake takes one or two
//! ways to the caller and back, so it is one that does not go on. Whoever opens thousands and says nothing takes places
//! only from itself.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::{Error, HandshakeKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy, sink};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsStream, server};

use super::live::Accepting;
use super::mesh::CallerIdentity;
use super::unix_now;
use super::verify::told;

/// How long and how much a caller that is refused is still read from.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: u64 = 64 << 10;

/// What handshakes come to, as the metric tells it.
pub(crate) const RESULTS: [&str; 11] = [
    "full",
    "resumed",
    "closed",
    "crowded_out",
    "timeout",
    "not_tls",
    "no_certificate",
    "bad_certificate",
    "no_protocol",
    "alert",
    "failed",
];

/// What a handshake came to: a place in [`RESULTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Full = 0,
    Resumed,
    /// The caller left.
    Closed,
    /// Too many were under way, and this one had lasted longest.
    CrowdedOut,
    Timeout,
    /// What came is no TLS.
    NotTls,
    /// There must be a certificate, and there was none.
    NoCertificate,
    /// The caller's certificate is not sound, has ended, or is nobody's whom we know.
    BadCertificate,
    /// No version, cipher or application protocol in common.
    NoProtocol,
    /// The caller did not like ours, most likely our certificate.
    Alert,
    Failed,
}

/// A caller that was received.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) stream: Box<TlsStream<TcpStream>>,
    pub(crate) identity: Option<CallerIdentity>,
    /// Which protocol was agreed upon; `None` where the caller asked for none.
    pub(crate) is_h2: Option<bool>,
    pub(crate) outcome: Outcome,
}

/// A caller that was not.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) outcome: Outcome,
    pub(crate) why: String,
    /// Where it is still to be heard out.
    stream: Option<TcpStream>,
}

/// The handshakes of one worker that are under way.
#[derive(Debug)]
pub(crate) struct Handshakes {
    most: usize,
    next: Cell<u64>,
    /// By when they began. Dropping the sender ends one.
    running: RefCell<BTreeMap<u64, oneshot::Sender<()>>>,
}

/// A place among them, given back when it is dropped.
struct Place<'h> {
    handshakes: &'h Handshakes,
    number: u64,
}

impl Handshakes {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, next: Cell::new(0), running: RefCell::default() }
    }

    /// Receives a caller.
    ///
    /// # Errors
    /// Why it could not be received, and what is to be said of it.
    pub(crate) async fn receive(
        &self,
        accepting: &Accepting,
        stream: TcpStream,
        within: Duration,
    ) -> Result<Received, Refused> {
        let (place, mut ended) = self.begin();
        let acceptor = TlsAcceptor::from(Arc::clone(&accepting.config));
        let accepted = tokio::select! {
            accepted = acceptor.accept(stream).into_fallible() => accepted,
            _ = &mut ended => return Err(Refused::new(Outcome::CrowdedOut, "too many handshakes at once".to_owned())),
            () = sleep(within) => return Err(Refused::new(Outcome::Timeout, format!("no end within {within:?}"))),
        };
        drop(place);
        match accepted {
            Ok(stream) => received(accepting, stream),
            Err((error, stream)) => {
                Err(Refused { stream: Some(stream), ..Refused::new(of_error(&error), told(&error)) })
            }
        }
    }

    fn begin(&self) -> (Place<'_>, oneshot::Receiver<()>) {
        let number = self.next.replace(self.next.get() + 1);
        let (end, ended) = oneshot::channel();
        let mut running = self.running.borrow_mut();
        if running.len() >= self.most {
            running.pop_first();
        }
        running.insert(number, end);
        (Place { handshakes: self, number }, ended)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.handshakes.running.borrow_mut().remove(&self.number);
    }
}

impl Refused {
    fn new(outcome: Outcome, why: String) -> Self {
        Self { outcome, why, stream: None }
    }

    /// Lets the caller read why: closing on what it has sent already would take back the alert.
    pub(crate) async fn part(self) {
        let Some(mut stream) = self.stream else { return };
        let reading = async {
            if stream.shutdown().await.is_ok() {
                drop(copy(&mut (&mut stream).take(LINGER_BYTES_MAX), &mut sink()).await);
            }
        };
        drop(timeout(LINGER, reading).await);
    }
}

fn received(accepting: &Accepting, stream: server::TlsStream<TcpStream>) -> Result<Received, Refused> {
    let connection = stream.get_ref().1;
    let outcome = match connection.handshake_kind() {
        Some(HandshakeKind::Resumed) => Outcome::Resumed,
        Some(_) | None => Outcome::Full,
    };
    let chain = connection.peer_certificates().unwrap_or_default();
    let identity = accepting.mesh.as_ref().and_then(|mesh| mesh.caller(chain, unix_now()));
    // Verified when its session began, and ended since.
    if accepting.needs_identity() && identity.is_none() {
        return Err(Refused::new(Outcome::BadCertificate, "its certificate has ended".to_owned()));
    }
    let is_h2 = connection.alpn_protocol().map(|protocol| protocol == b"h2");
    Ok(Received { stream: Box::new(stream.into()), identity, is_h2, outcome })
}

fn of_error(error: &io::Error) -> Outcome {
    let Some(error) = error.get_ref().and_then(|source| source.downcast_ref::<Error>()) else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                Outcome::Closed
            }
            _ => Outcome::Failed,
        };
    };
    match error {
        Error::NoCertificatesPresented => Outcome::NoCertificate,
        Error::InvalidCertificate(_) => Outcome::BadCertificate,
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Outcome::NoProtocol,
        Error::AlertReceived(_) => Outcome::Alert,
        Error::InvalidMessage(_) => Outcome::NotTls,
        _ => Outcome::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_ended(ended: &mut oneshot::Receiver<()>) -> bool {
        ended.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[test]
    fn the_one_that_has_lasted_longest_makes_room() {
        let handshakes = Handshakes::new(2);
        let (first, mut first_ended) = handshakes.begin();
        let (second, mut second_ended) = handshakes.begin();
        let (_third, mut third_ended) = handshakes.begin();
        assert!(is_ended(&mut first_ended) && !is_ended(&mut second_ended) && !is_ended(&mut third_ended));
        drop((first, second));
        let (_fourth, mut fourth_ended) = handshakes.begin();
        assert!(!is_ended(&mut third_ended) && !is_ended(&mut fourth_ended), "places are given back");
        assert_eq!(handshakes.running.borrow().len(), 2);
    }
}
