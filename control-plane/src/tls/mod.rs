//! TLS of the control plane's own listener: its certificate, and which sidecars have shown who they are.
//!
//! The files are followed: what is sound is taken within a second, and what is not is refused, told, and tried again when it
//! changes. Connections that are open go on, but for those of sidecars whose roots have changed or whose certificate has ended.

mod files;

mod handshakes;

mod receive;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use gilmok_config::certificate::Facts;
use gilmok_config::hash::content_hash;
use gilmok_config::moment::format_moment;
use gilmok_config::unit::format_duration;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{RootCertStore, ServerConfig};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use files::{Pair, provider, read};
use handshakes::Handshakes;

pub use receive::{Received, Refused, Shown};

/// How often the files are looked at.
const POLL: Duration = Duration::from_millis(250);
/// Handshakes that are under way at a time. Beyond it, the one that has lasted longest ends.
const HANDSHAKES_MAX: usize = 1_024;
/// How often it is told that a certificate is near its end.
const TELL: Duration = Duration::from_hours(1);
/// Near is: less than this part of its life is left.
const NEAR: u64 = 5;
/// The certificate of this listener, and the first root of callers that ends, as metrics call them.
const OWN: &str = "control_plane";
const CALLERS: &str = "callers_ca";

/// `[tls]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSettings {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
    /// Roots of the mesh: sidecars that have a certificate of theirs are known by it.
    pub client_ca_file: Option<PathBuf>,
    /// The only trust domain that counts; `None` is every one of these roots.
    pub trust_domain: Option<Arc<str>>,
    pub mode: Mode,
}

/// Whether plaintext is taken as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Both, told apart by the first byte.
    Permissive,
    #[default]
    Strict,
}

/// How callers are received.
#[derive(Debug)]
pub struct Tls {
    settings: TlsSettings,
    /// A swap: a connection takes it once, when it comes.
    accepting: ArcSwap<Accepting>,
    handshakes: Handshakes,
    /// Counts changes of the roots. A watch: connections wait for it.
    roots: watch::Sender<u64>,
}

#[derive(Debug)]
struct Accepting {
    config: Arc<ServerConfig>,
    /// The roots by which callers are known.
    roots: u64,
}

/// What the files say together.
struct Read {
    pair: Pair,
    /// The roots of callers, when the first of them ends, and their content.
    callers: Option<(Arc<RootCertStore>, u64, String)>,
}

/// Follows the files.
pub struct Follower {
    tls: Arc<Tls>,
    pair: Pair,
    /// Of the roots' content.
    callers: Option<String>,
    /// Of everything that was read last, whatever became of it.
    seen: String,
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follower").finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads what the settings name, and what follows it.
    ///
    /// # Errors
    /// The first file that cannot be used, and why.
    pub fn open(settings: &TlsSettings) -> Result<Follower, String> {
        let seen = seen(settings);
        let read = Read::of(settings)?;
        let accepting = Accepting { config: config(&read)?, roots: 0 };
        let (settings, accepting) = (settings.clone(), ArcSwap::from_pointee(accepting));
        let handshakes = Handshakes::new(HANDSHAKES_MAX);
        let tls = Arc::new(Self { settings, accepting, handshakes, roots: watch::Sender::new(0) });
        describe();
        tell_end(&read);
        let callers = read.callers.map(|(_, _, content)| content);
        Ok(Follower { tls, pair: read.pair, callers, seen })
    }
}

impl Follower {
    #[must_use]
    pub fn tls(&self) -> Arc<Tls> {
        Arc::clone(&self.tls)
    }

    /// Follows the files until dropped.
    pub async fn follow(mut self) {
        let (mut polls, mut tellings) = (interval(POLL), interval(TELL));
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = polls.tick() => self.look(),
                _ = tellings.tick() => tell_near(OWN, &self.pair.facts),
            }
        }
    }

    /// Takes what has changed, if it is sound. Reads small files; they are on a disk of this machine.
    fn look(&mut self) {
        let seen = seen(&self.tls.settings);
        if seen == self.seen {
            return;
        }
        self.seen = seen;
        let read = Read::of(&self.tls.settings).and_then(|read| {
            let now = unix_now();
            let (new, old) = (&read.pair.facts, &self.pair.facts);
            if !new.is_valid_at(now) && old.is_valid_at(now) {
                if new.not_before > now {
                    // Its time comes.
                    self.seen.clear();
                }
                return Err(format!(
                    "the new certificate is not valid now, but from {} to {}",
                    format_moment(new.not_before),
                    format_moment(new.not_after)
                ));
            }
            Ok((config(&read)?, read))
        });
        match read {
            Ok((config, read)) => {
                tell_end(&read);
                let callers = read.callers.map(|(_, _, content)| content);
                let mut roots = *self.tls.roots.borrow();
                let have_changed = callers != self.callers;
                roots += u64::from(have_changed);
                self.tls.accepting.store(Arc::new(Accepting { config, roots }));
                if have_changed {
                    // Whoever was believed by a root that has gone shows itself anew.
                    self.tls.roots.send_replace(roots);
                }
                (self.pair, self.callers) = (read.pair, callers);
                count("taken");
                tracing::info!(
                    "[tls]: the new certificate is in use, until {}",
                    format_moment(self.pair.facts.not_after)
                );
            }
            Err(why) => {
                count("refused");
                tracing::error!("[tls]: refused, the old one stays in use: {why}");
            }
        }
    }
}

impl Read {
    fn of(settings: &TlsSettings) -> Result<Self, String> {
        let pair = Pair::read(&settings.cert_file, &settings.key_file)?;
        let callers = settings.client_ca_file.as_deref().map(files::roots).transpose()?;
        Ok(Self { pair, callers })
    }
}

fn config(read: &Read) -> Result<Arc<ServerConfig>, String> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let certificate = Arc::new(SingleCertAndKey::from(read.pair.certified.clone()));
    let builder = match &read.callers {
        None => builder.with_no_client_auth(),
        Some((roots, ..)) => {
            // Operators have tokens, and no certificate.
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider());
            let verifier = verifier.allow_unauthenticated().build().map_err(|error| error.to_string())?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Connections are few and kept. Whoever comes shows itself: a session would outlive what it was verified by.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// What is in the files, as one text to compare.
fn seen(settings: &TlsSettings) -> String {
    let files = [Some(&settings.cert_file), Some(&settings.key_file), settings.client_ca_file.as_ref()];
    let content = |file: &PathBuf| {
        read(Path::new(file)).map_or_else(|_| "none".to_owned(), |bytes| content_hash(&bytes))
    };
    files.into_iter().flatten().map(content).collect::<Vec<_>>().join(" ")
}

fn describe() {
    metrics::describe_gauge!("gilmok_certificate_end_seconds", "When a certificate ends, in Unix time.");
    metrics::describe_counter!(
        "gilmok_certificate_reloads_total",
        "Changes of certificates' files by what became of them."
    );
    metrics::describe_counter!(
        "gilmok_tls_handshakes_total",
        "Handshakes with callers by what they came to."
    );
    for result in ["taken", "refused"] {
        metrics::counter!("gilmok_certificate_reloads_total", "certificate" => OWN, "result" => result)
            .absolute(0);
    }
}

fn count(result: &'static str) {
    metrics::counter!("gilmok_certificate_reloads_total", "certificate" => OWN, "result" => result)
        .increment(1);
}

#[expect(clippy::cast_precision_loss, reason = "seconds are exact in a double for longer than anybody asks")]
fn tell_end(read: &Read) {
    let own = read.pair.facts.not_after;
    metrics::gauge!("gilmok_certificate_end_seconds", "certificate" => OWN).set(own as f64);
    if let Some((_, end, _)) = &read.callers {
        metrics::gauge!("gilmok_certificate_end_seconds", "certificate" => CALLERS).set(*end as f64);
    }
}

fn tell_near(name: &str, facts: &Facts) {
    let (now, end) = (unix_now(), format_moment(facts.not_after));
    match facts.not_after.checked_sub(now) {
        None => tracing::error!("{name}: its certificate has ended, on {end}; callers refuse it"),
        Some(left) if left < facts.not_after.saturating_sub(facts.not_before) / NEAR => {
            let left = format_duration(Duration::from_secs(left));
            tracing::warn!("{name}: its certificate ends in {left}, on {end}");
        }
        Some(_) => {}
    }
}

/// Seconds of Unix time.
fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
