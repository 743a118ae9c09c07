//! The life of the process: open the store, mirror, listen, serve, and leave politely.

use std::io::BufReader;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::pki_types::ServerName;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::admin::{self, Access, Admin, Patience, router};
use crate::authority::Authority;
use crate::conductor::{Conductor, Guardian, Mover, keep_time};
use crate::membership::consul;
use crate::settings::Settings;
use crate::state::State;
use crate::store::{AUTHORITY, Store, now_ms};
use crate::tls::{Follower, Tls};

/// REST and feeds are little work; more threads would only cost memory beside the apps.
const THREADS: usize = 2;
/// How long the disk may take to keep the last membership when the process ends.
const KEEP_WITHIN: Duration = Duration::from_secs(5);
/// How often the metrics exporter tidies up.
const UPKEEP: Duration = Duration::from_secs(5);

/// Makes the store of a backup.
pub(crate) fn restore(settings: &Settings, backup: &Path) -> anyhow::Result<()> {
    let file = std::fs::File::open(backup).with_context(|| format!("cannot read {}", backup.display()))?;
    Store::restore(&settings.store.dir, BufReader::new(file))?;
    crate::say(&format!(
        "the store in {} is the backup's; its numbering goes on",
        settings.store.dir.display()
    ));
    Ok(())
}

/// Serves until a signal ends it.
pub(crate) fn serve(settings: Settings) -> anyhow::Result<()> {
    start_log(&settings);
    raise_descriptor_limit();
    let metrics = start_metrics();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .context("cannot start threads")?;
    runtime.block_on(live(settings, metrics))
}

async fn live(settings: Settings, metrics: PrometheusHandle) -> anyhow::Result<()> {
    let store = Store::open(&settings.store.dir, u64::from(settings.store.history))?;
    tracing::info!("store {} in {}", store.id(), settings.store.dir.display());
    let authority = open_authority(&settings, &store).await?;
    let state = State::new(store, settings.consul.is_some())?;
    let mirror = match settings.consul {
        Some(consul) => Some(consul::start(consul, &state.last_consul(), state.names())?),
        None => None,
    };
    let conductor = Conductor::new(Arc::clone(&state), settings.webhook_secret_file.clone());
    let mover = Mover::new(Arc::clone(&state), settings.webhook_secret_file);
    let guardian = Guardian::new(Arc::clone(&state));
    let (stop, stopped) = watch::channel(false);
    let background = [
        // Each ends with the runtime.
        tokio::spawn(Arc::clone(&conductor).conduct()),
        tokio::spawn(Arc::clone(&mover).conduct()),
        tokio::spawn(Arc::clone(&guardian).watch()),
        tokio::spawn(keep_time(Arc::clone(&state))),
        tokio::spawn(follow(Arc::clone(&state), mirror.as_ref().map(|mirror| mirror.view.clone()))),
        tokio::spawn(keep(Arc::clone(&state))),
        tokio::spawn(expire(Arc::clone(&state))),
        tokio::spawn(tidy(metrics.clone())),
    ];
    let admin = Admin {
        state: Arc::clone(&state),
        conductor,
        mover,
        guardian,
        access: Access {
            token_file: settings.token_file,
            on_loopback: settings.on_loopback,
            failures: Arc::default(),
            reason_required: settings.reason_required,
        },
        authority,
        stop: stopped.clone(),
        contacts: mirror.map(|mirror| mirror.contacts),
        metrics,
    };
    let renewing = match &admin.authority {
        Some(authority) if !settings.own_names.is_empty() => {
            let lasts = authority.issue_own(&settings.own_names, now_ms() / 1_000);
            let lasts = lasts.map_err(anyhow::Error::msg).context("[tls]")?;
            // Ends with the runtime.
            Some(tokio::spawn(renew_own(Arc::clone(authority), settings.own_names, lasts)))
        }
        Some(_) | None => None,
    };
    let follower = match &settings.tls {
        Some(tls) => Some(Tls::open(tls).map_err(|why| anyhow::anyhow!("[tls]: {why}"))?),
        None => None,
    };
    let tls = follower.as_ref().map(Follower::tls);
    // Ends with the runtime.
    let following = follower.map(|follower| tokio::spawn(follower.follow()));
    let listener = TcpListener::bind(settings.listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {}", settings.listen))?;
    let address = listener.local_addr().context("the listener has no address")?;
    if let Some(path) = &settings.port_file {
        write_port_file(path, address).with_context(|| format!("cannot write {}", path.display()))?;
    }
    tracing::info!("listening on {address}");
    if !address.ip().is_loopback() && admin.access.token_file.is_none() && state.store.tokens().is_empty() {
        tracing::warn!(
            "callers from other hosts are refused: `gilmok tokens create` here makes tokens for them, or set token_file"
        );
    }
    let leave = async move {
        wait_for_signal().await;
        tracing::info!("leaving: ending feeds; proxies go on with what they have");
        stop.send_replace(true);
    };
    tokio::join!(admin::serve(listener, router(Arc::new(admin)), tls, Patience::default(), stopped), leave);
    for task in background.into_iter().chain(following).chain(renewing) {
        task.abort();
    }
    // What the next start begins with; a disk that hangs must not keep the process.
    if timeout(KEEP_WITHIN, state.keep_now()).await.is_err() {
        tracing::warn!("the last membership could not be kept");
    }
    Ok(())
}

async fn open_authority(settings: &Settings, store: &Store) -> anyhow::Result<Option<Arc<Authority>>> {
    let Some(identity) = &settings.identity else { return Ok(None) };
    let was_there = store.kept(AUTHORITY)?.unwrap_or(false);
    let authority = Authority::open(identity.clone(), &settings.store.dir, was_there, now_ms() / 1_000);
    let authority = authority.map_err(anyhow::Error::msg).context("there is no authority")?;
    if !was_there && !authority.is_given() {
        store.keep(AUTHORITY, serde_json::Value::Bool(true)).await?;
    }
    tracing::info!("certificates of {} are made here", authority.trust_domain());
    Ok(Some(Arc::new(authority)))
}

/// Renews the certificate of this listener at half of its life.
async fn renew_own(authority: Arc<Authority>, names: Vec<ServerName<'static>>, mut lasts: Duration) {
    let mut wait = lasts / 2;
    loop {
        tokio::time::sleep(wait).await;
        // A small file.
        wait = match authority.issue_own(&names, now_ms() / 1_000) {
            Ok(renewed) => {
                lasts = renewed;
                lasts / 2
            }
            Err(why) => {
                tracing::error!("[tls]: no new certificate of our own, trying on: {why}");
                lasts / 20
            }
        };
    }
}

/// Takes as many descriptors as the system grants: the usual soft limit of 1024 is that of 500 proxies.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!("cannot raise the limit of open files: {error}");
    }
}

async fn follow(state: Arc<State>, mirror: Option<watch::Receiver<Arc<crate::membership::View>>>) {
    state.follow_membership(mirror).await;
}

async fn keep(state: Arc<State>) {
    state.keep_for_next_start().await;
}

async fn expire(state: Arc<State>) {
    state.registry.expire().await;
}

async fn tidy(metrics: PrometheusHandle) {
    loop {
        tokio::time::sleep(UPKEEP).await;
        metrics.run_upkeep();
    }
}

async fn wait_for_signal() {
    let terminate = async {
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => drop(terminate.recv().await),
            Err(error) => {
                tracing::warn!("cannot hear SIGTERM: {error}");
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        () = terminate => {}
        interrupted = tokio::signal::ctrl_c() => if let Err(error) = interrupted {
            tracing::warn!("cannot hear SIGINT: {error}");
            std::future::pending::<()>().await;
        },
    }
}

/// Written beside its place and renamed, so that whoever waits for it reads it whole.
fn write_port_file(path: &Path, address: SocketAddr) -> std::io::Result<()> {
    let beside = path.with_extension("writing");
    std::fs::write(&beside, format!("{}\n", serde_json::json!({ "listen": address })))?;
    std::fs::rename(&beside, path)
}

fn start_log(settings: &Settings) {
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    // The crates below speak in frames and polls: of them only warnings are for operators.
    let targets = tracing_subscriber::filter::Targets::new()
        .with_default(settings.log.min(tracing::level_filters::LevelFilter::WARN))
        .with_target("gilmok", settings.log);
    // A log that is there already stays.
    drop(tracing_subscriber::registry().with(targets).with(lines).try_init());
}

fn start_metrics() -> PrometheusHandle {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    // A recorder that is there already stays.
    drop(metrics::set_global_recorder(recorder));
    metrics::describe_counter!(
        "gilmok_authentication_failures_total",
        "Requests that were not let in, by why."
    );
    metrics::describe_counter!("gilmok_writes_total", "Writes of operators by what became of them.");
    handle
}
