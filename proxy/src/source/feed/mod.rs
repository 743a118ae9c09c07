//! The control planes as a source: fed by one of them at a time, the next one when it fails.

mod join;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use gilmok_config::problem::Problems;
use gilmok_config::wire::{FeedLine, HEARTBEAT_MS, Refused, WIRE_LEVEL};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use self::join::{Connection, Step};
pub(crate) use self::join::{Joiner, STORE_BYTES_MAX, is_store};
use super::Here;
use super::fences::Closed;
use super::http::{Client, Lines, TokenHeader, shown};
use super::last_known_good::Remembered;
use super::status::Status;
use crate::current::InForce;
use crate::settings::Server;
use crate::visitor::VisitorKeys;

/// A feed that is silent for so long is given up: three heartbeats.
const SILENCE_MAX: Duration = Duration::from_millis(3 * HEARTBEAT_MS);
/// The pause after every control plane has failed once; doubles up to the next, with jitter.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Lines that are acted on before what they come to is put in force.
const GATHERED_MAX: usize = 1_000;
/// A failure that goes on is told again after so long.
const REPEAT_AFTER: Duration = Duration::from_mins(1);

/// Who this proxy says it is.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) node: String,
    /// This start of the process.
    pub(crate) instance: String,
}

/// Follows the control planes.
#[derive(Debug)]
pub(crate) struct Feed {
    servers: Vec<Server>,
    token_file: Option<PathBuf>,
    here: Here,
    in_force: Arc<InForce>,
    status: Arc<Status>,
    /// Whether visitors are known by the control plane's keys: not where the settings name some.
    takes_keys: bool,
    /// Held while a line is acted on and its outcome put in force, so that what is put is never older
    /// than what was put before. Never across an await.
    joiner: Mutex<Joiner>,
    /// An operator accepted a store: begin anew.
    accepted: Notify,
}

/// What is to be written down.
#[derive(Debug)]
pub(crate) struct ToRemember {
    pub(crate) remembered: Remembered,
    /// What is closed in it.
    pub(crate) closed: Closed,
    /// At which it was put in force.
    pub(crate) generation: u64,
}

/// How a connection ended.
struct Ended {
    /// Whether it had brought a full set, so that the next failure is a new one.
    synced: bool,
    why: String,
}

impl Feed {
    pub(crate) fn new(
        servers: Vec<Server>,
        token_file: Option<PathBuf>,
        here: Here,
        in_force: Arc<InForce>,
        status: Arc<Status>,
        takes_keys: bool,
        joiner: Joiner,
    ) -> Self {
        let joiner = Mutex::new(joiner);
        let accepted = Notify::new();
        Self { servers, token_file, here, in_force, status, takes_keys, joiner, accepted }
    }

    fn joiner(&self) -> MutexGuard<'_, Joiner> {
        self.joiner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An operator says that this store's intent is to be followed.
    pub(crate) fn accept(&self, store: &str) {
        self.joiner().accept(store);
        self.accepted.notify_one();
        tracing::warn!("an operator accepted the store {store}; following its intent from now on");
    }

    /// Whose intent is followed.
    pub(crate) fn store(&self) -> Option<String> {
        self.joiner().store().map(str::to_owned)
    }

    /// Puts in force what an earlier process wrote down, unless a control plane has spoken.
    pub(crate) fn fall_back(&self) {
        let joiner = self.joiner();
        if let Some((snapshot, applied)) = joiner.fall_back() {
            tracing::warn!(
                "no control plane has said what to follow; serving the last known good state, revision {} of store {}",
                applied.revision,
                applied.store
            );
            self.take_keys(&joiner);
            self.status.set_source("last known good");
            self.in_force.put(snapshot, Some(applied));
        }
    }

    /// What the next process shall know.
    pub(crate) fn remember(&self) -> Option<ToRemember> {
        let joiner = self.joiner();
        let (remembered, closed) = (joiner.remember()?, joiner.closed());
        Some(ToRemember { remembered, closed, generation: self.in_force.load().generation })
    }

    /// What is closed in what is followed.
    pub(crate) fn closed(&self) -> Closed {
        self.joiner().closed()
    }

    /// Follows the control planes until the process ends.
    pub(crate) async fn follow(&self) {
        // Proxies spread over the control planes by beginning anywhere.
        let mut at = fastrand::usize(..self.servers.len());
        let mut failures = 0_u32;
        let mut told: Option<(String, Instant)> = None;
        loop {
            let server = &self.servers[at];
            tokio::select! {
                ended = self.once(server) => {
                    let repeated = told.as_ref().is_some_and(|(why, when)| {
                        *why == ended.why && when.elapsed() < REPEAT_AFTER
                    });
                    if !repeated {
                        tracing::warn!("control plane {server}: {}; trying on", ended.why);
                        told = Some((ended.why, Instant::now()));
                    }
                    failures = if ended.synced { 0 } else { failures.saturating_add(1) };
                    at = (at + 1) % self.servers.len();
                    tokio::select! {
                        () = sleep(self.pause(failures)) => {}
                        () = self.accepted.notified() => failures = 0,
                    }
                }
                () = self.accepted.notified() => failures = 0,
            }
        }
    }

    /// Every other control plane is tried at once; after that pauses grow.
    fn pause(&self, failures: u32) -> Duration {
        let rounds = failures / u32::try_from(self.servers.len()).unwrap_or(u32::MAX).max(1);
        let longest = BACKOFF_MIN.saturating_mul(1 << rounds.min(16)).min(BACKOFF_MAX);
        longest.mul_f64(0.5 + 0.5 * fastrand::f64())
    }

    /// One connection from its begin to its end. Dropped half-way, the connection closes.
    async fn once(&self, server: &Server) -> Ended {
        let mut connection = Connection::default();
        let why = match self.connect(server).await {
            Ok(mut lines) => self.read(server, &mut lines, &mut connection).await,
            Err(why) => why,
        };
        Ended { synced: connection.is_synced(), why }
    }

    async fn connect(&self, server: &Server) -> Result<Lines, String> {
        let (store, revision) = {
            let joiner = self.joiner();
            (joiner.store().unwrap_or_default().to_owned(), joiner.revision())
        };
        let Identity { node, instance } = &self.here.identity;
        let target = format!(
            "/v1/feed?node={node}&instance={instance}&wire={WIRE_LEVEL}&store={}&revision={revision}",
            encoded(&store)
        );
        let client = Client::new(server.clone(), self.token_file.clone(), TokenHeader::Bearer);
        let client = client.showing(&self.here.tls);
        client.open(&target).await.map_err(|error| error.to_string())
    }

    /// Acts on lines until the connection must end; says why.
    async fn read(&self, server: &Server, lines: &mut Lines, connection: &mut Connection) -> String {
        loop {
            let line = match timeout(SILENCE_MAX, lines.next()).await {
                Ok(Ok(Some(line))) => line,
                Ok(Ok(None)) => return "the feed has ended".to_owned(),
                Ok(Err(error)) => return error.to_string(),
                Err(_elapsed) => return format!("silent for {SILENCE_MAX:?}"),
            };
            let mut joiner = self.joiner();
            let mut next = Some(line);
            let mut gathered = 0;
            while let Some(line) = next {
                if let Err(why) = self.take(server, &mut joiner, connection, &line) {
                    return why;
                }
                gathered += 1;
                next = if gathered < GATHERED_MAX { lines.ready() } else { None };
            }
            if let Some((snapshot, applied)) = joiner.take(connection) {
                let before = self.in_force.load().applied.as_ref().map(|applied| applied.revision);
                if before == Some(applied.revision) {
                    tracing::debug!("control plane {server}: other endpoints are in force");
                } else {
                    tracing::info!("control plane {server}: revision {} is in force", applied.revision);
                }
                self.status.set_source(format!("control plane {server}"));
                self.in_force.put(snapshot, Some(applied));
            }
            if connection.is_good() {
                self.status.accepted(joiner.hash());
            }
        }
    }

    fn take(
        &self,
        server: &Server,
        joiner: &mut Joiner,
        connection: &mut Connection,
        line: &Bytes,
    ) -> Result<(), String> {
        let line = FeedLine::parse(line).map_err(|why| {
            // It repeats what was sent, which may be anything.
            let why = shown(why.as_bytes());
            self.status.reject(format!("control plane {server}"), None, &Problems::whole(why.clone()), None);
            why
        })?;
        let hello = match &line {
            FeedLine::Hello { revision, hash, .. } => Some((*revision, hash.clone())),
            _ => None,
        };
        match joiner.line(connection, line) {
            Ok(Step::Taken) => {
                if hello.is_some() {
                    self.take_keys(joiner);
                }
                Ok(())
            }
            Ok(Step::Refused(refused)) => {
                self.tell_refusal(server, refused);
                Ok(())
            }
            Err(error) => {
                if let (join::FeedError::ForeignStore { found, .. }, Some((revision, hash))) = (&error, hello)
                {
                    self.status.set_foreign_store(found);
                    let problems = Problems::whole(error.to_string());
                    self.tell_refusal(server, Refused { store: found.clone(), revision, hash, problems });
                }
                Err(error.to_string())
            }
        }
    }

    /// Knows visitors by what was said, if that is sound.
    fn take_keys(&self, joiner: &Joiner) {
        let text = joiner.visitor_keys();
        if !self.takes_keys || text.is_empty() {
            return;
        }
        match VisitorKeys::parse(text) {
            Ok(keys) => self.in_force.put_keys(keys),
            Err(why) => tracing::warn!("the keys of visitors that a control plane tells are none: {why}"),
        }
    }

    fn tell_refusal(&self, server: &Server, refused: Refused) {
        let (revision, problems) = (refused.revision, refused.problems.clone());
        let from = format!("control plane {server}");
        if !self.status.reject(from, Some(revision), &problems, Some(refused.fitting())) {
            return;
        }
        for problem in &problems.0 {
            tracing::error!("control plane {server}, revision {revision}: {problem}");
        }
        tracing::error!(
            "control plane {server}: revision {revision} refused; what was in force stays in force"
        );
    }
}

#[cfg(test)]
impl Feed {
    /// Puts a document in force as if a control plane had said it.
    pub(crate) fn take_document(&self, revision: u64, text: &str) {
        let document: serde_json::Value = serde_json::from_str(text).unwrap();
        let hash = gilmok_config::hash::content_hash(document.to_string().as_bytes());
        let (store, required) = ("s".to_owned(), Vec::new());
        let mut joiner = self.joiner();
        let mut connection = Connection::default();
        for line in [
            FeedLine::Hello {
                store,
                revision,
                hash: hash.clone(),
                wire: WIRE_LEVEL,
                visitor_keys: String::new(),
                required: required.clone(),
            },
            FeedLine::Document { revision, hash, document, required },
            FeedLine::Synced { revision },
        ] {
            assert_eq!(joiner.line(&mut connection, line), Ok(Step::Taken));
        }
        let (snapshot, applied) = joiner.take(&mut connection).unwrap();
        self.in_force.put(snapshot, Some(applied));
    }
}

/// A text as a query's value.
fn encoded(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02X}").expect("invariant: a String takes every text");
        }
    }
    out
}

#[cfg(test)]
mod tests;
