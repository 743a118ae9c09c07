//! Receiving one caller: over TLS or in the clear, within bounds, and with what it has shown.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use gilmok_config::certificate::Facts;
use gilmok_config::identity::Identity;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy, sink};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{Mode, Tls, unix_now};

/// From the first byte that is waited for to the end of the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long, and for how many bytes, who is not received is heard out.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: u64 = 64 << 10;
/// What every handshake begins with: the content type of its record.
const HANDSHAKE: u8 = 22;
/// What is said to who speaks HTTP in the clear.
const NOT_HERE: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/problem+json\r\nConnection: close\r\n\
    Content-Length: 86\r\n\r\n{\"type\":\"about:blank\",\"status\":400,\"detail\":\"this listener speaks TLS: use https://\"}\n";

/// A caller that was received.
#[derive(Debug)]
pub enum Received {
    Plain(TcpStream),
    /// With the identity that it has shown, if it has.
    Tls(Box<TlsStream<TcpStream>>, Option<Shown>),
}

/// A caller that was not.
#[derive(Debug)]
pub struct Refused(pub String);

/// An identity that was shown, and how long it counts.
#[derive(Debug)]
pub struct Shown {
    pub identity: Identity,
    lasts: Duration,
    /// By which it was believed.
    roots: u64,
    changes: watch::Receiver<u64>,
}

impl Shown {
    /// Waits until it does not count any more: the certificate has ended, or the roots are others.
    pub async fn ended(&mut self) {
        let changed = async {
            let is_gone = self.changes.wait_for(|roots| *roots != self.roots).await.is_err();
            if is_gone {
                // Nobody is left who could change them.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = sleep(self.lasts) => {}
            () = changed => {}
        }
    }
}

impl Tls {
    /// Receives a caller.
    ///
    /// # Errors
    /// Why it could not be received.
    pub async fn receive(&self, stream: TcpStream) -> Result<Received, Refused> {
        let (place, ended) = self.handshakes.begin();
        let received = tokio::select! {
            received = timeout(HANDSHAKE_TIMEOUT, self.receive_untimed(stream)) => {
                received.unwrap_or_else(|_| Err(refused("timeout", "it takes too long")))
            }
            _ = ended => Err(refused("crowded_out", "too many handshakes at once")),
        };
        drop(place);
        if let Ok(Received::Tls(..)) = &received {
            count("full");
        }
        received
    }

    async fn receive_untimed(&self, mut stream: TcpStream) -> Result<Received, Refused> {
        let mut first = [0];
        let peeked = stream.peek(&mut first).await;
        match peeked {
            Ok(1) if first[0] == HANDSHAKE => {}
            Ok(1) if self.settings.mode == Mode::Permissive => return Ok(Received::Plain(stream)),
            Ok(1) => {
                // Whether it hears it is its own affair.
                drop(stream.write_all(NOT_HERE).await);
                part(stream).await;
                return Err(refused("not_tls", "it speaks in the clear"));
            }
            Ok(_) | Err(_) => return Err(refused("closed", "it left")),
        }
        let accepting = self.accepting.load_full();
        let acceptor = TlsAcceptor::from(Arc::clone(&accepting.config));
        let stream = match acceptor.accept(stream).into_fallible().await {
            Ok(stream) => stream,
            Err((error, stream)) => {
                part(stream).await;
                return Err(refused(of_error(&error), &error.to_string()));
            }
        };
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let shown = self.identity(chain).map(|(identity, lasts)| Shown {
            identity,
            lasts,
            roots: accepting.roots,
            changes: self.roots.subscribe(),
        });
        Ok(Received::Tls(Box::new(stream), shown))
    }

    /// Who a caller is whose certificate was verified; `None` where it has none, or is nobody of the mesh.
    fn identity(&self, chain: &[CertificateDer<'_>]) -> Option<(Identity, Duration)> {
        let facts = Facts::read(chain.first()?)?;
        let identity = facts.identity()?;
        let is_ours = self.settings.trust_domain.as_ref().is_none_or(|domain| *domain == identity.domain);
        let lasts = Duration::from_secs(facts.not_after.checked_sub(unix_now())?);
        is_ours.then_some((identity, lasts))
    }
}

/// Lets the caller read why: closing on what it has sent already would take back what was said.
async fn part(mut stream: TcpStream) {
    let reading = async {
        if stream.shutdown().await.is_ok() {
            drop(copy(&mut (&mut stream).take(LINGER_BYTES_MAX), &mut sink()).await);
        }
    };
    drop(timeout(LINGER, reading).await);
}

fn refused(result: &'static str, why: &str) -> Refused {
    count(result);
    Refused(why.to_owned())
}

fn count(result: &'static str) {
    metrics::counter!("gilmok_tls_handshakes_total", "listener" => "control_plane", "result" => result)
        .increment(1);
}

fn of_error(error: &io::Error) -> &'static str {
    use rustls::Error;
    match error.get_ref().and_then(|source| source.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(_)) => "bad_certificate",
        Some(Error::PeerIncompatible(_) | Error::NoApplicationProtocol) => "no_protocol",
        Some(Error::AlertReceived(_)) => "alert",
        Some(Error::InvalidMessage(_)) => "not_tls",
        None if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
            "closed"
        }
        Some(_) | None => "failed",
    }
}
