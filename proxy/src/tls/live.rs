//! What listeners show and check: what stands in files, read at start and again within a second of a change, and what a
//! control plane gave.
//!
//! What is not sound is refused and the old goes on, told by log, metric and `/config`. New connections take what is
//! there when they come; those that are open go on as they are.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use gilmok_config::decide::Listener;
use gilmok_config::hash::content_hash;
use gilmok_config::moment::format_moment;
use gilmok_config::unit::format_duration;
use rustls::ServerConfig;
use rustls::server::ProducesTickets;
use tokio::time::{MissedTickBehavior, interval};

use super::handshake::{Outcome, RESULTS, Refused};
use super::mesh::{IdentityFiles, IdentitySettings, Mesh};
use super::pair::{Pair, PairFiles, read, tickets};
use super::{Mode, edge, unix_now};

/// How often the files are looked at, as the mesh file is.
const POLL: Duration = Duration::from_millis(250);
/// A file that changed within this time is read although it looks the same: its clock may be too coarse to tell.
const CLOCK_GRAIN: Duration = Duration::from_secs(3);
/// How often it is told that a certificate is near its end.
const TELL: Duration = Duration::from_hours(1);
/// How often it is logged that callers of the mesh do not get in, for each reason.
const TELL_REFUSED_SECONDS: u64 = 60;
/// Near is: less than this part of its life is left.
const NEAR: u64 = 5;

/// What of TLS the settings say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TlsSettings {
    pub(crate) edge: Vec<PairFiles>,
    pub(crate) edge_mode: Mode,
    pub(crate) identity: Option<IdentitySettings>,
    pub(crate) inbound_mode: Mode,
    /// How others are called.
    pub(crate) outbound_mode: Mode,
}

/// What all workers share of TLS.
#[derive(Debug, Default)]
pub(crate) struct Tls {
    edge: Option<Door>,
    inbound: Option<Door>,
    /// By listener and result. Atomics: counted once a connection, read by the admin thread.
    handshakes: [[AtomicU64; RESULTS.len()]; 3],
    /// When each of them was logged last at inbound listeners, in seconds of Unix time; relaxed, as numbers of their own.
    told_at: [AtomicU64; RESULTS.len()],
    /// A mutex: written when a file changes, read by the admin thread.
    standings: Mutex<Vec<Standing>>,
}

/// A listener that speaks TLS.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) mode: Mode,
    /// A swap: a connection takes it once, when it comes. Empty until there is a certificate.
    accepting: ArcSwapOption<Accepting>,
}

/// How callers are received.
#[derive(Debug)]
pub(crate) struct Accepting {
    pub(super) config: Arc<ServerConfig>,
    /// Who they are checked to be; only for callers of the mesh.
    pub(super) mesh: Option<Arc<Mesh>>,
    mode: Mode,
}

/// How it stands with a certificate, as operators are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// What it is for: the metric label `certificate`.
    pub(crate) name: String,
    /// The names in it.
    pub(crate) names: Vec<String>,
    /// Seconds of Unix time.
    pub(crate) not_before: u64,
    pub(crate) not_after: u64,
    /// Changes that were taken, and that were refused.
    pub(crate) taken: u64,
    pub(crate) refused: u64,
    /// Why the last change was refused, while nothing better has come.
    pub(crate) fault: Option<String>,
}

/// Follows the files.
pub(crate) struct Follower {
    tls: Arc<Tls>,
    edge: Vec<(Watched, PairFiles, Pair)>,
    tickets: Option<Arc<dyn ProducesTickets>>,
    identity: Option<(Watched, IdentityFiles)>,
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follower").finish_non_exhaustive()
    }
}

impl Door {
    fn new(mode: Mode, config: Arc<ServerConfig>, mesh: Option<Arc<Mesh>>) -> Self {
        let door = Self::waiting(mode);
        door.put(config, mesh);
        door
    }

    /// One that has no certificate yet.
    fn waiting(mode: Mode) -> Self {
        Self { mode, accepting: ArcSwapOption::empty() }
    }

    /// How a caller is received over TLS who comes now; `None` while there is no certificate.
    pub(crate) fn accepting(&self) -> Option<Arc<Accepting>> {
        self.accepting.load_full()
    }

    fn put(&self, config: Arc<ServerConfig>, mesh: Option<Arc<Mesh>>) {
        self.accepting.store(Some(Arc::new(Accepting { config, mesh, mode: self.mode })));
    }
}

impl Accepting {
    /// Whether nobody comes in without an identity.
    pub(super) fn needs_identity(&self) -> bool {
        self.mesh.is_some() && self.mode == Mode::Strict
    }
}

impl Tls {
    /// Reads what the settings name, and what follows it. The identity is given as well, where it stands in files.
    ///
    /// # Errors
    /// The first file that cannot be used.
    pub(crate) fn open(settings: &TlsSettings) -> Result<(Follower, Option<Arc<Mesh>>), String> {
        let (mut standings, mut edge) = (Vec::new(), Vec::new());
        for (place, files) in settings.edge.iter().enumerate() {
            let watched = Watched::new(&[&files.cert_file, &files.key_file]);
            let pair = Pair::read(files)?;
            standings.push(Standing::of(format!("edge[{place}]"), &pair));
            edge.push((watched, files.clone(), pair));
        }
        let tickets = if edge.is_empty() { None } else { Some(tickets()?) };
        let edge_door = match &tickets {
            Some(tickets) => {
                let pairs: Vec<Pair> = edge.iter().map(|(_, _, pair)| pair.clone()).collect();
                Some(Door::new(settings.edge_mode, edge::server_config(&pairs, tickets)?, None))
            }
            None => None,
        };
        let (mut identity, mut inbound, mut mesh) = (None, None, None);
        if let Some(IdentitySettings::Issued(_)) = &settings.identity {
            inbound = Some(Door::waiting(settings.inbound_mode));
        }
        if let Some(IdentitySettings::Files(files)) = &settings.identity {
            let watched = Watched::new(&[&files.pair.cert_file, &files.pair.key_file, &files.ca_file]);
            let read = Arc::new(Mesh::read(files, settings.outbound_mode)?);
            standings.extend(Standing::of_mesh(&read));
            let config = read.server_config(settings.inbound_mode)?;
            inbound = Some(Door::new(settings.inbound_mode, config, Some(Arc::clone(&read))));
            identity = Some((watched, files.clone()));
            mesh = Some(read);
        }
        let standings = Mutex::new(standings);
        let tls = Arc::new(Self { edge: edge_door, inbound, standings, ..Self::default() });
        tls.tell_ends();
        Ok((Follower { tls, edge, tickets, identity }, mesh))
    }

    /// Receives callers with an identity that a control plane gave, from now on.
    ///
    /// # Errors
    /// When rustls refuses it; then everything is as before.
    pub(crate) fn put_identity(&self, mesh: &Arc<Mesh>) -> Result<(), String> {
        let door = self.inbound.as_ref().ok_or("there is nowhere to use it")?;
        let config = mesh.server_config(door.mode)?;
        door.put(config, Some(Arc::clone(mesh)));
        Standing::of_mesh(mesh).into_iter().for_each(|standing| self.took(standing));
        Ok(())
    }

    /// How a listener speaks TLS, if it does.
    pub(crate) fn door(&self, listener: Listener) -> Option<&Door> {
        match listener {
            Listener::Edge => self.edge.as_ref(),
            Listener::Inbound => self.inbound.as_ref(),
            Listener::Outbound => None,
        }
    }

    /// Who this process is at the moment, where it has an identity. One that has ended, or has not begun, is none: whoever
    /// checks it ends the handshake.
    pub(crate) fn identity(&self) -> Option<Arc<Mesh>> {
        let mesh = self.inbound.as_ref()?.accepting()?.mesh.clone();
        mesh.filter(|mesh| mesh.pair.facts.is_valid_at(unix_now()))
    }

    /// Counts a handshake.
    pub(crate) fn count(&self, listener: Listener, outcome: Outcome) {
        self.handshakes[listener as usize][outcome as usize].fetch_add(1, Relaxed);
    }

    /// Counts a handshake that came to nothing, and tells why: once in a while, where a caller of the mesh does not get
    /// in. At the edge strangers do what they like.
    pub(crate) fn refused(&self, listener: Listener, peer: SocketAddr, refused: &Refused) {
        let (outcome, why) = (refused.outcome, &refused.why);
        self.count(listener, outcome);
        let (told_at, now) = (&self.told_at[outcome as usize], unix_now());
        let is_news = now.saturating_sub(told_at.load(Relaxed)) >= TELL_REFUSED_SECONDS;
        if listener == Listener::Inbound && outcome != Outcome::Closed && is_news {
            told_at.store(now, Relaxed);
            tracing::warn!("no TLS with the caller {peer}: {why}");
        } else {
            tracing::debug!("no TLS with {peer} at the {} listener: {why}", listener.as_str());
        }
    }

    /// How often handshakes at a listener came to each of [`RESULTS`]; `None` where it speaks no TLS.
    pub(crate) fn counts(&self, listener: Listener) -> Option<impl Iterator<Item = (&'static str, u64)>> {
        self.door(listener)?;
        let counts = self.handshakes[listener as usize].iter().map(|count| count.load(Relaxed));
        Some(RESULTS.into_iter().zip(counts))
    }

    /// How it stands with every certificate.
    pub(crate) fn standings(&self) -> Vec<Standing> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Standing>> {
        // A panic leaves the list whole: its entries are replaced one by one.
        self.standings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A change of what has this name was taken.
    fn took(&self, new: Standing) {
        tracing::info!(
            "{}: {} is in use, until {}",
            new.name,
            new.names.join(", "),
            format_moment(new.not_after)
        );
        let mut standings = self.lock();
        match standings.iter_mut().find(|standing| standing.name == new.name) {
            Some(standing) => {
                *standing = Standing { taken: standing.taken + 1, refused: standing.refused, ..new };
            }
            // The first one of an identity that a control plane gives.
            None => standings.push(new),
        }
    }

    /// A change was refused. What is the same as before is not told again.
    fn refused_change(&self, name: &str, why: &str) {
        if let Some(standing) = self.lock().iter_mut().find(|standing| standing.name == name)
            && standing.fault.as_deref() != Some(why)
        {
            standing.refused += 1;
            standing.fault = Some(why.to_owned());
            tracing::error!("{name}: refused, the old one stays in use: {why}");
        }
    }

    fn tell_ends(&self) {
        let now = unix_now();
        for standing in self.lock().iter() {
            let (name, end) = (&standing.name, format_moment(standing.not_after));
            let life = standing.not_after.saturating_sub(standing.not_before);
            match standing.not_after.checked_sub(now) {
                None => tracing::error!("{name}: its certificate has ended, on {end}; peers refuse it"),
                Some(_) if standing.not_before > now => {
                    tracing::error!(
                        "{name}: its certificate begins only on {}",
                        format_moment(standing.not_before)
                    );
                }
                Some(left) if left < life / NEAR => {
                    let left = format_duration(Duration::from_secs(left));
                    tracing::warn!("{name}: its certificate ends in {left}, on {end}");
                }
                Some(_) => {}
            }
        }
    }
}

impl Standing {
    fn of(name: String, pair: &Pair) -> Self {
        let facts = &pair.facts;
        let names = facts.uris.iter().chain(&facts.dns_names).cloned().collect();
        let (not_before, not_after) = (facts.not_before, facts.not_after);
        Self { name, names, not_before, not_after, taken: 0, refused: 0, fault: None }
    }

    /// Of the identity, and of the first of its roots that ends.
    fn of_mesh(mesh: &Mesh) -> [Self; 2] {
        let own = Self::of("identity".to_owned(), &mesh.pair);
        let names = vec![format!("{} roots", mesh.roots.store.len())];
        let (name, not_after) = ("identity_ca".to_owned(), mesh.roots.not_after);
        [own.clone(), Self { name, names, not_before: own.not_before, not_after, ..own }]
    }
}

impl Follower {
    pub(crate) fn tls(&self) -> &Arc<Tls> {
        &self.tls
    }

    /// Follows the files until dropped. A new identity is given to `renewed`, for those who call others.
    pub(crate) async fn follow(mut self, renewed: impl Fn(Arc<Mesh>)) {
        let (mut polls, mut tellings) = (interval(POLL), interval(TELL));
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tellings.tick().await;
        loop {
            tokio::select! {
                _ = polls.tick() => {
                    self.look_at_edge();
                    if let Some(mesh) = self.look_at_identity() {
                        renewed(mesh);
                    }
                }
                _ = tellings.tick() => self.tls.tell_ends(),
            }
        }
    }

    fn look_at_edge(&mut self) {
        let mut news = Vec::new();
        for (place, (watched, files, pair)) in self.edge.iter_mut().enumerate() {
            if !watched.has_changed() {
                continue;
            }
            let name = format!("edge[{place}]");
            match Pair::read(files).and_then(|new| fit(new, &pair.facts.not_after, watched)) {
                Ok(new) => {
                    *pair = new;
                    news.push(Standing::of(name, pair));
                }
                Err(why) => self.tls.refused_change(&name, &why),
            }
        }
        let (Some(door), Some(tickets), false) = (&self.tls.edge, &self.tickets, news.is_empty()) else {
            return;
        };
        let pairs: Vec<Pair> = self.edge.iter().map(|(_, _, pair)| pair.clone()).collect();
        match edge::server_config(&pairs, tickets) {
            Ok(config) => {
                door.put(config, None);
                news.into_iter().for_each(|new| self.tls.took(new));
            }
            Err(why) => news.iter().for_each(|new| self.tls.refused_change(&new.name, &why)),
        }
    }

    fn look_at_identity(&mut self) -> Option<Arc<Mesh>> {
        let (watched, files) = self.identity.as_mut()?;
        if !watched.has_changed() {
            return None;
        }
        let door = self.tls.inbound.as_ref()?;
        let before = door.accepting()?;
        let before = before.mesh.as_ref()?;
        let read = Mesh::read(files, before.calls).and_then(|new| {
            if new.identity != before.identity {
                return Err(format!("it is {}, and this process is {}", new.identity, before.identity));
            }
            let pair = fit(new.pair, &before.pair.facts.not_after, watched)?;
            let new = Mesh { pair, ..new };
            Ok((new.server_config(door.mode)?, new))
        });
        match read {
            Ok((config, new)) => {
                let new = Arc::new(new);
                door.put(config, Some(Arc::clone(&new)));
                Standing::of_mesh(&new).into_iter().for_each(|standing| self.tls.took(standing));
                Some(new)
            }
            Err(why) => {
                self.tls.refused_change("identity", &why);
                None
            }
        }
    }
}

/// A certificate that is not valid now does not replace one that is. One that will be is tried again.
fn fit(new: Pair, old_end: &u64, watched: &mut Watched) -> Result<Pair, String> {
    let now = unix_now();
    if new.facts.is_valid_at(now) || *old_end < now {
        return Ok(new);
    }
    if new.facts.not_before > now {
        watched.forget();
        return Err(format!("the new certificate begins only on {}", format_moment(new.facts.not_before)));
    }
    Err(format!("the new certificate has ended already, on {}", format_moment(new.facts.not_after)))
}

/// Files that belong together, and by what a change of them is noticed.
#[derive(Debug)]
struct Watched {
    files: Vec<PathBuf>,
    seen: Vec<Option<Stamp>>,
    /// Of the content of all; `None` where it is to be read in any case.
    hash: Option<String>,
}

type Stamp = (Option<SystemTime>, u64);

impl Watched {
    /// What is there is taken as known: to be made before the files are read.
    fn new(files: &[&Path]) -> Self {
        let mut watched = Self {
            files: files.iter().map(|file| file.to_path_buf()).collect(),
            seen: Vec::new(),
            hash: None,
        };
        watched.has_changed();
        watched
    }

    /// Whether the content has changed since it was asked last.
    fn has_changed(&mut self) -> bool {
        let stamps: Vec<Option<Stamp>> = self.files.iter().map(|file| stamp(file)).collect();
        let is_settled = |stamp: &Option<Stamp>| {
            stamp.and_then(|(modified, _)| modified?.elapsed().ok()).is_some_and(|age| age > CLOCK_GRAIN)
        };
        if self.hash.is_some() && stamps == self.seen && stamps.iter().all(is_settled) {
            return false;
        }
        self.seen = stamps;
        let contents = self.files.iter().map(|file| match read(file) {
            Ok(bytes) => content_hash(&bytes),
            Err(_) => "none".to_owned(),
        });
        let hash = content_hash(contents.collect::<Vec<_>>().join(" ").as_bytes());
        self.hash.replace(hash) != self.hash
    }

    fn forget(&mut self) {
        self.hash = None;
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    std::fs::metadata(path).ok().map(|metadata| (metadata.modified().ok(), metadata.len()))
}
