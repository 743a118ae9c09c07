//! Where snapshots come from, and what is told to where they come from.
//!
//! A mesh file ([`mod@file`]), or control planes ([`feed`]) with the last known good state behind them
//! ([`last_known_good`]). Back go [`acks`], with how batches of keys that are closed stand ([`fences`]) and which flags were evaluated ([`flag_news`]), and the [`registration`] of the apps beside this proxy.

mod acks;

mod fences;

mod flag_news;

mod feed;

mod file;

pub(crate) mod http;

mod last_known_good;

pub(crate) mod registration;

pub(crate) mod status;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use gilmok_config::document::Document;
use gilmok_config::problem::Problems;
use gilmok_config::wire::{IdentityReport, InboundApp};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use self::acks::Reporter;
pub(crate) use self::feed::Identity;
use self::feed::{Feed, Joiner, STORE_BYTES_MAX, is_store};
use self::fences::Closed;
use self::file::{MeshFile, Read};
use self::last_known_good::Keeper;
use self::status::Status;
use crate::current::InForce;
use crate::drain::Phase;
use crate::settings::{Server, Settings, Source};
use crate::tls::Tls;

/// How long control planes may take to answer before the last known good state is used.
const LAST_KNOWN_GOOD_AFTER: Duration = Duration::from_secs(2);

/// What control planes are told of this process.
#[derive(Clone, Debug)]
pub(crate) struct Here {
    pub(crate) identity: Identity,
    /// The apps that callers reach through it.
    pub(crate) apps: Vec<InboundApp>,
    /// How it stands with the identity that a control plane gave it, where one did.
    pub(crate) enrolled: watch::Sender<Option<IdentityReport>>,
    /// Whose identity they are shown over TLS.
    pub(crate) tls: Arc<Tls>,
}

/// The sources of a process, as operators reach them.
#[derive(Debug)]
pub(crate) struct Sources {
    pub(crate) status: Arc<Status>,
    /// Asks for a mesh file to be read now.
    reload: Arc<Notify>,
    feed: Option<Arc<Feed>>,
}

impl Sources {
    /// Starts to take snapshots; the tasks end with `tasks`. From a file the first one is in force on return.
    ///
    /// # Errors
    /// Every fault of the mesh file.
    pub(crate) fn start(
        settings: &Settings,
        here: &Here,
        in_force: &Arc<InForce>,
        phases: watch::Receiver<Phase>,
        tasks: &mut JoinSet<()>,
    ) -> Result<Self, Problems> {
        match &settings.source {
            Source::MeshFile(file) => Self::start_file(file, in_force, tasks),
            Source::ControlPlanes { servers, token_file } => {
                let token_file = token_file.as_ref();
                Ok(Self::start_feed(settings, servers, token_file, here, in_force, phases, tasks))
            }
        }
    }

    fn start_file(path: &Path, in_force: &Arc<InForce>, tasks: &mut JoinSet<()>) -> Result<Self, Problems> {
        let status = Arc::new(Status::new(path.display().to_string()));
        let reload = Arc::new(Notify::new());
        let mut file = MeshFile::new(path.to_owned());
        match file.read(true) {
            Read::Changed(snapshot) => {
                in_force.put(*snapshot, None);
                status.accepted(file.hash());
            }
            Read::Faulty(problems) => return Err(problems),
            // Not when it is read in any case.
            Read::Unchanged => {}
        }
        tasks.spawn(file.follow(Arc::clone(in_force), Arc::clone(&status), Arc::clone(&reload)));
        Ok(Self { status, reload, feed: None })
    }

    fn start_feed(
        settings: &Settings,
        servers: &[Server],
        token_file: Option<&PathBuf>,
        here: &Here,
        in_force: &Arc<InForce>,
        phases: watch::Receiver<Phase>,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let status = Arc::new(Status::new("control planes; none has answered yet"));
        let keeper = Keeper::open(&settings.state_dir, &settings.node);
        let keeper = keeper.inspect_err(|error| {
            tracing::warn!("the last known good state cannot be kept: {error}");
        });
        let keeper = keeper.ok().map(Arc::new);
        let joiner = keeper.as_deref().and_then(recall).unwrap_or_default();
        let on_disk = watch::Sender::new(Closed::default());
        // A process that hands over to this one may still write.
        if keeper.as_ref().is_some_and(|keeper| keeper.is_ours()) {
            on_disk.send_replace(joiner.closed());
        }
        let feed = Arc::new(Feed::new(
            servers.to_vec(),
            token_file.cloned(),
            here.clone(),
            Arc::clone(in_force),
            Arc::clone(&status),
            settings.visitor_keys.is_none(),
            joiner,
        ));
        let confirmed = Arc::new(Notify::new());
        let reporter = Reporter {
            servers: servers.to_vec(),
            token_file: token_file.cloned(),
            here: here.clone(),
            in_force: Arc::clone(in_force),
            status: Arc::clone(&status),
            phases,
            on_disk: on_disk.clone(),
            confirmed: Arc::clone(&confirmed),
        };
        tasks.spawn(reporter.report());
        tasks.spawn({
            let feed = Arc::clone(&feed);
            async move { feed.follow().await }
        });
        tasks.spawn({
            let feed = Arc::clone(&feed);
            async move {
                sleep(LAST_KNOWN_GOOD_AFTER).await;
                feed.fall_back();
            }
        });
        if let Some(keeper) = keeper {
            tasks.spawn(acks::remember(Arc::clone(&feed), Arc::clone(in_force), keeper, confirmed, on_disk));
        }
        Self { status, reload: Arc::new(Notify::new()), feed: Some(feed) }
    }

    /// Reads a mesh file now, whether it seems to have changed or not.
    pub(crate) fn reload(&self) {
        self.reload.notify_one();
    }

    /// Whose intent is followed; `None` in file mode and before the first document.
    pub(crate) fn store(&self) -> Option<String> {
        self.feed.as_ref()?.store()
    }

    /// An operator says that this store's intent is to be followed.
    ///
    /// # Errors
    /// Why that cannot be.
    pub(crate) fn accept_store(&self, store: &str) -> Result<(), String> {
        let Some(feed) = &self.feed else {
            return Err("this proxy follows a mesh file; there is no store to accept".to_owned());
        };
        if !is_store(store) {
            return Err(format!("a store's name has 1 to {STORE_BYTES_MAX} visible ASCII characters"));
        }
        feed.accept(store);
        Ok(())
    }
}

/// What an earlier process wrote down. What cannot be used is told and left aside.
fn recall(keeper: &Keeper) -> Option<Joiner> {
    let remembered = match keeper.load() {
        Ok(remembered) => remembered?,
        Err(error) => {
            tracing::warn!("the last known good state: {error}");
            return None;
        }
    };
    let parsed = serde_json::from_str(&remembered.text)
        .map_err(|error| Problems::whole(error.to_string()))
        .and_then(|json| Document::parse_json(&json));
    match parsed {
        Ok(document) => Some(Joiner::from_remembered(remembered, document)),
        Err(problems) => {
            // Written by a version of the program that understood more.
            tracing::warn!("the last known good state is not understood: {problems}");
            None
        }
    }
}

#[cfg(test)]
mod tests;
