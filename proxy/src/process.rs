//! The life of the process: open the listeners, start the threads, serve, and leave in good order.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use gilmok_config::address::Address;
use gilmok_config::endpoint::Endpoint;
use gilmok_config::name::{Name, ServiceName};
use gilmok_config::wire::InboundApp;
use rustix::process::{Resource, Rlimit, Signal};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use crate::access_log::{self, AccessLog};
use crate::admin::{self, Admin};
use crate::command::Command;
use crate::current::{InForce, LocalApp};
use crate::drain::{Drain, Phase};
use crate::flags;
use crate::health;
use crate::last_good::LastGoodStore;
use crate::metrics::TargetSeries;
use crate::own_identity;
use crate::resolve;
use crate::settings::{App, DrainTimes, OfrepSettings, Settings, Source};
use crate::sockets::Sockets;
use crate::source::registration::{Announced, Registrar, Wanted};
use crate::source::{Here, Identity, Sources};
use crate::telemetry::{Logs, Metrics};
use crate::thread;
use crate::tls::Tls;
use crate::worker::Shared;
use crate::{EXIT_CONFIGURATION, EXIT_INTERNAL};

/// How often it is looked whether connections are left, once there should be none.
const IDLE_POLL: Duration = Duration::from_millis(20);
/// Looks in a row that must find none: a connection may just be on its way from the kernel's queue.
const IDLE_POLLS: u32 = 3;
/// How long a command may take to end once its time is over, before it is ended the hard way.
const COMMAND_GRACE: Duration = Duration::from_secs(1);

/// Serves until told to stop, or until `command` has ended.
pub(crate) fn run(settings: &Settings, command: Option<&[OsString]>) -> ExitCode {
    let logs = Logs::start(settings.log);
    let metrics = Metrics::start();
    let limit_before = raise_descriptor_limit();
    let beside = command.map(|words| Beside { words, limit_before });
    let sockets = match Sockets::open(settings) {
        Ok(sockets) => sockets,
        Err(error) => {
            tracing::error!("{error}");
            return ExitCode::from(EXIT_INTERNAL);
        }
    };
    // One thread for everything but requests; the workers have runtimes of their own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let code = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        let code = runtime.block_on(serve(settings, beside.as_ref(), sockets, logs, metrics))?;
        // Not waiting for a disk or a resolver that is stuck.
        runtime.shutdown_background();
        Ok(code)
    });
    code.unwrap_or_else(|error| {
        tracing::error!("{error:#}");
        ExitCode::from(EXIT_INTERNAL)
    })
}

/// What runs beside the proxy.
#[derive(Debug)]
struct Beside<'a> {
    words: &'a [OsString],
    /// The limit of open files it is to have: programs that were never tried with a million may go wrong.
    limit_before: Rlimit,
}

impl Beside<'_> {
    fn start(&self) -> anyhow::Result<Command> {
        let ours = rustix::process::getrlimit(Resource::Nofile);
        // A command has the limits of who starts it, at that moment.
        set_descriptor_limit(self.limit_before);
        let started = Command::start(self.words);
        set_descriptor_limit(ours);
        started.with_context(|| {
            format!(
                "cannot start {}",
                self.words.first().map_or_else(Default::default, |word| word.to_string_lossy())
            )
        })
    }
}

async fn serve(
    settings: &Settings,
    command: Option<&Beside<'_>>,
    sockets: Sockets,
    logs: Logs,
    metrics: Metrics,
) -> anyhow::Result<ExitCode> {
    let (follower, mesh) = match Tls::open(&settings.tls) {
        Ok(opened) => opened,
        Err(why) => {
            tracing::error!("{why}");
            return Ok(ExitCode::from(EXIT_CONFIGURATION));
        }
    };
    let tls = Arc::clone(follower.tls());
    let drain = Drain::new();
    let apps = settings.apps.iter().map(local_app).collect();
    let in_force = Arc::new(InForce::new(settings.workers, settings.zone.clone(), apps));
    if let Some(keys) = &settings.visitor_keys {
        in_force.put_keys(keys.clone());
    }
    // Ends with this function.
    let mut tasks = JoinSet::new();
    let enrolled = watch::Sender::default();
    let (own, enrolment) = own_identity::start(settings, follower, mesh, &in_force, &enrolled, &mut tasks);
    let identity = Identity { node: settings.node.clone(), instance: format!("{:016x}", fastrand::u64(..)) };
    let apps = inbound_apps(settings, &sockets);
    let here = Here { identity: identity.clone(), apps, tls: Arc::clone(&tls), enrolled };
    let started = Sources::start(settings, &here, &in_force, drain.phases(), &mut tasks);
    let sources = match started {
        Ok(sources) => Arc::new(sources),
        Err(problems) => {
            for problem in &problems.0 {
                tracing::error!("the mesh file: {problem}");
            }
            return Ok(ExitCode::from(EXIT_CONFIGURATION));
        }
    };
    let opened = settings.access_log.as_ref().map(AccessLog::start).transpose();
    let (access_log, log_writer) = match opened.context("cannot open the access log")? {
        Some((log, writer)) => (Some(log), Some(writer)),
        None => (None, None),
    };
    let shared = Arc::new(share(settings, &sockets, &in_force, &drain, tls, access_log.clone()));
    let (workers, mut deaths) = start_workers(settings.workers, &shared, &sockets)?;
    let health = health::start(&settings.apps, &in_force, &mut tasks);
    tasks.spawn(resolve::run(Arc::clone(&in_force)));
    tasks.spawn(metrics.clone().keep_up());
    let mut registrars =
        start_registrars(settings, own.as_ref(), &sockets, &shared, &drain, &health, &mut tasks);
    let addresses = sockets.addresses();
    if let Some(file) = &settings.port_file {
        sockets.write_addresses(file).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let admin = Arc::new(Admin {
        settings: settings.clone(),
        identity,
        listeners: addresses.clone(),
        in_force: Arc::clone(&in_force),
        sources: Arc::clone(&sources),
        enrolment,
        drain: drain.clone(),
        shared: Arc::clone(&shared),
        logs,
        metrics,
        apps_healthy: health.iter().map(watch::Sender::subscribe).collect(),
    });
    let scopes = [(sockets.admin, admin::Scope::Everything), (sockets.metrics, admin::Scope::Watching)];
    for (socket, scope) in scopes {
        if let Some(socket) = socket {
            tasks.spawn(admin::serve(TcpListener::from_std(socket)?, Arc::clone(&admin), scope));
        }
    }
    if let Some(socket) = sockets.ofrep {
        start_ofrep(socket, settings, &sources, &in_force, &drain)?;
    }
    tracing::info!("{} listens: {addresses}", settings.node);

    let mut times = settings.drain;
    if command.is_some() && settings.apps.is_empty() && settings.listen.edge.is_none() {
        // Only the command itself calls here: nobody needs to hear that it has gone.
        times.announce = Duration::ZERO;
    }
    let live = live(times, command, &drain, &in_force, &shared, &sources, &mut registrars);
    let code = tokio::select! {
        code = live => code?,
        Some(index) = deaths.recv() => {
            tracing::error!("worker {index} has died; ending the process rather than serving with less");
            return Ok(ExitCode::from(EXIT_INTERNAL));
        }
    };
    tasks.shutdown().await;
    finish(workers, log_writer, (admin, shared, access_log)).await;
    Ok(code)
}

/// Serves until the drain is over; the code to leave with.
async fn live(
    times: DrainTimes,
    command: Option<&Beside<'_>>,
    drain: &Drain,
    in_force: &InForce,
    shared: &Shared,
    sources: &Sources,
    registrars: &mut JoinSet<()>,
) -> anyhow::Result<ExitCode> {
    let deregistered = async { while registrars.join_next().await.is_some() {} };
    let told = watch::Sender::new(None);
    let Some(command) = command else {
        tokio::select! {
            () = drain.lead(times, deregistered, async || no_connections(shared).await) => {}
            error = signals(drain, shared, sources, &told) => return Err(error),
        }
        return Ok(ExitCode::SUCCESS);
    };
    let ready = async {
        let mut generations = in_force.generations();
        drop(generations.wait_for(|generation| *generation > 0).await);
        in_force.taken_by_all(*generations.borrow()).await;
    };
    tokio::select! {
        () = ready => {}
        error = signals(drain, shared, sources, &told) => return Err(error),
        // Told to leave before there was anything to leave.
        () = reached(drain, Phase::Announcing) => return Ok(ExitCode::SUCCESS),
    }
    let mut running = command.start()?;
    let ended = watch::Sender::new(None);
    let idle = async || {
        drop(ended.subscribe().wait_for(Option::is_some).await);
        no_connections(shared).await;
    };
    let beside = async {
        ended.send_replace(Some(accompany(&mut running, drain, &told).await));
    };
    tokio::select! {
        ((), ()) = async { tokio::join!(drain.lead(times, deregistered, idle), beside) } => {}
        error = signals(drain, shared, sources, &told) => return Err(error),
    }
    let code = ended.borrow().unwrap_or(EXIT_INTERNAL);
    Ok(ExitCode::from(code))
}

/// Waits for the end of the command and hands signals on; its code. Its end is the begin of a drain.
async fn accompany(command: &mut Command, drain: &Drain, told: &watch::Sender<Option<Signal>>) -> u8 {
    let mut signals = told.subscribe();
    loop {
        tokio::select! {
            code = command.ended() => {
                drain.begin();
                return code;
            }
            () = reached(drain, Phase::Over) => {
                if let Ok(code) = tokio::time::timeout(COMMAND_GRACE, command.ended()).await {
                    return code;
                }
                command.kill();
                return command.ended().await;
            }
            changed = signals.changed() => {
                let now = *signals.borrow_and_update();
                if let (Ok(()), Some(signal)) = (changed, now) {
                    // Until the announcement is over it still has callers.
                    if matches!(signal, Signal::TERM | Signal::INT) {
                        reached(drain, Phase::Closing).await;
                    }
                    command.signal(signal);
                }
            }
        }
    }
}

async fn reached(drain: &Drain, phase: Phase) {
    // The drain outlives everyone who waits for it.
    drop(drain.phases().wait_for(|now| *now >= phase).await);
}

/// Acts on signals until the process ends; returns only when they cannot be heard.
async fn signals(
    drain: &Drain,
    shared: &Shared,
    sources: &Sources,
    told: &watch::Sender<Option<Signal>>,
) -> anyhow::Error {
    let listen = |kind| signal(kind).map_err(anyhow::Error::from);
    let all = (
        listen(SignalKind::terminate()),
        listen(SignalKind::interrupt()),
        listen(SignalKind::hangup()),
        listen(SignalKind::user_defined1()),
        listen(SignalKind::user_defined2()),
        listen(SignalKind::quit()),
    );
    let (Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup), Ok(mut first), Ok(mut second), Ok(mut quit)) =
        all
    else {
        return anyhow::anyhow!("cannot listen to signals");
    };
    loop {
        let heard = tokio::select! {
            _ = terminate.recv() => Signal::TERM,
            _ = interrupt.recv() => Signal::INT,
            _ = hangup.recv() => Signal::HUP,
            _ = first.recv() => Signal::USR1,
            _ = second.recv() => Signal::USR2,
            _ = quit.recv() => Signal::QUIT,
        };
        match heard {
            // Somebody at a terminal who asks twice.
            Signal::INT if drain.phase() > Phase::Serving => drain.hurry(),
            Signal::TERM | Signal::INT => drain.begin(),
            Signal::HUP => {
                tracing::info!("told to read files anew");
                sources.reload();
                if let Some(log) = &shared.access_log {
                    log.reopen();
                }
            }
            _ => {}
        }
        told.send_replace(Some(heard));
    }
}

/// Waits until no connection from downstream is open.
async fn no_connections(shared: &Shared) {
    let mut seen = 0;
    while seen < IDLE_POLLS {
        let open: u32 = shared.open.iter().map(|open| open.load(Relaxed)).sum();
        seen = if open == 0 { seen + 1 } else { 0 };
        tokio::time::sleep(IDLE_POLL).await;
    }
}

fn local_app(app: &App) -> LocalApp {
    let mut endpoint = Endpoint::at(app.address.clone());
    endpoint.version = app.version.clone();
    endpoint.shard = app.shard.clone();
    endpoint.role = app.role;
    LocalApp { service: app.service.clone(), endpoint }
}

/// What membership is told of where an app is that is reached at this address.
fn advertised(app: &App, bound: SocketAddr) -> Address {
    app.advertise.clone().unwrap_or(Address::Socket(bound))
}

/// Ends when the drain is over; nobody waits for it, as it holds nothing that would have to be finished.
fn start_ofrep(
    socket: std::net::TcpListener,
    settings: &Settings,
    sources: &Sources,
    in_force: &Arc<InForce>,
    drain: &Drain,
) -> std::io::Result<()> {
    let OfrepSettings { allowed_origins, token_file, stale_after } = settings.ofrep.clone();
    let access =
        flags::Access { origins: allowed_origins, token_file, trusted: settings.listen.trusted.clone() };
    let freshness = flags::Freshness { status: Arc::clone(&sources.status), stale_after };
    flags::start(socket, access, freshness, Arc::clone(in_force), drain.phases()).map(drop)
}

fn inbound_apps(settings: &Settings, sockets: &Sockets) -> Vec<InboundApp> {
    let apps = settings.apps.iter().zip(&sockets.inbound).map(|(app, socket)| InboundApp {
        service: app.service.clone(),
        shard: app.shard.clone(),
        address: socket.local_addr().ok().map(|bound| advertised(app, bound).to_string()),
    });
    apps.collect()
}

fn share(
    settings: &Settings,
    sockets: &Sockets,
    in_force: &Arc<InForce>,
    drain: &Drain,
    tls: Arc<Tls>,
    access_log: Option<AccessLog>,
) -> Shared {
    let nowhere = TargetSeries::new(Name::default(), Name::default(), settings.workers);
    Shared {
        in_force: Arc::clone(in_force),
        limits: settings.limits.clone(),
        trusted: settings.listen.trusted.clone(),
        unknown_hosts: settings.outbound.unknown_hosts,
        outbound: sockets.outbound.as_ref().and_then(|socket| socket.local_addr().ok()),
        access_log,
        phase: drain.phases(),
        connections: Arc::new(Semaphore::new(settings.limits.connections as usize)),
        per_ip: Default::default(),
        open: Default::default(),
        malformed: Default::default(),
        tls,
        last_good: Arc::new(LastGoodStore::new(settings.limits.last_good_bytes)),
        nowhere: Arc::new(nowhere),
        held: Default::default(),
    }
}

/// Tells that its worker is gone, also when it panicked.
struct Death {
    index: usize,
    told: mpsc::Sender<usize>,
}

impl Drop for Death {
    fn drop(&mut self) {
        // There is room for every worker, and after the drain nobody listens.
        self.told.try_send(self.index).unwrap_or_default();
    }
}

fn start_workers(
    count: usize,
    shared: &Arc<Shared>,
    sockets: &Sockets,
) -> anyhow::Result<(Vec<JoinHandle<()>>, mpsc::Receiver<usize>)> {
    let (told, deaths) = mpsc::channel(count);
    let start = |index| -> anyhow::Result<JoinHandle<()>> {
        let (shared, gates, told) = (Arc::clone(shared), sockets.gates()?, told.clone());
        let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            let phase = shared.phase.clone();
            let death = Death { index, told };
            if let Err(error) = thread::run(index, shared, gates) {
                tracing::error!("worker {index}: {error}");
            } else if *phase.borrow() == Phase::Over {
                // The good end; nobody needs to know.
                std::mem::forget(death);
            }
        })?;
        Ok(thread)
    };
    let workers = (0..count).map(start).collect::<anyhow::Result<Vec<_>>>()?;
    Ok((workers, deaths))
}

fn start_registrars(
    settings: &Settings,
    own: Option<&ServiceName>,
    sockets: &Sockets,
    shared: &Shared,
    drain: &Drain,
    health: &[watch::Sender<bool>],
    tasks: &mut JoinSet<()>,
) -> JoinSet<()> {
    let mut registrars = JoinSet::new();
    let (servers, token_file) = match &settings.source {
        Source::ControlPlanes { servers, token_file } => (servers.as_slice(), token_file.as_ref()),
        Source::MeshFile(_) => (&[][..], None),
    };
    for ((app, socket), healthy) in settings.apps.iter().zip(&sockets.inbound).zip(health) {
        let Ok(bound) = socket.local_addr() else { continue };
        let mut endpoint = local_app(app).endpoint;
        endpoint.address = advertised(app, bound);
        endpoint.zone = settings.zone.clone();
        endpoint.inbound = true;
        // Callers check that the service they mean is the one that answers.
        endpoint.mtls = own == Some(&app.service);
        if let (Some(own), false) = (own, endpoint.mtls) {
            tracing::warn!("{} is called in the clear: this proxy's identity is that of {own}", app.service);
        }
        let announced = Announced {
            service: app.service.clone(),
            id: format!("{}-{}", settings.node, bound.port()),
            endpoint,
        };
        let wanted = watch::Sender::new(Wanted::Away);
        let all = Registrar::all(&settings.registration, servers, token_file, &shared.tls, &announced);
        for registrar in all {
            registrars.spawn(registrar.keep(wanted.subscribe()));
        }
        tasks.spawn(want(wanted, shared.in_force.generations(), drain.phases(), healthy.subscribe()));
    }
    registrars
}

/// Works out what an app's registration should be, for as long as the process lives.
async fn want(
    wanted: watch::Sender<Wanted>,
    mut generations: watch::Receiver<u64>,
    mut phases: watch::Receiver<Phase>,
    mut healthy: watch::Receiver<bool>,
) {
    loop {
        let now = match *phases.borrow_and_update() {
            Phase::Announcing | Phase::Closing | Phase::Ending | Phase::Over => Wanted::Leave,
            Phase::Serving if *generations.borrow_and_update() > 0 && *healthy.borrow_and_update() => {
                Wanted::Registered
            }
            Phase::Serving => Wanted::Away,
        };
        wanted.send_if_modified(|before| std::mem::replace(before, now) != now);
        let changed = tokio::select! {
            changed = generations.changed() => changed,
            changed = phases.changed() => changed,
            changed = healthy.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Waits for the threads: workers first, then the writer of the access log, which ends once nobody can log.
async fn finish<L>(workers: Vec<JoinHandle<()>>, writer: Option<access_log::Writer>, loggers: L) {
    let joined = tokio::task::spawn_blocking(move || {
        for worker in workers {
            drop(worker.join());
        }
    });
    // A worker that does not end holds up nobody: the process ends around it.
    drop(tokio::time::timeout(COMMAND_GRACE, joined).await);
    drop(loggers);
    if let Some(writer) = writer {
        let written = tokio::task::spawn_blocking(move || writer.finish());
        drop(tokio::time::timeout(COMMAND_GRACE, written).await);
    }
}

/// Takes as many descriptors as the system grants: the usual soft limit of 1024 is less than our own limits.
/// Answers what the limit was.
fn raise_descriptor_limit() -> Rlimit {
    let before = rustix::process::getrlimit(Resource::Nofile);
    set_descriptor_limit(Rlimit { current: before.maximum, maximum: before.maximum });
    before
}

fn set_descriptor_limit(limit: Rlimit) {
    if rustix::process::getrlimit(Resource::Nofile) != limit
        && let Err(error) = rustix::process::setrlimit(Resource::Nofile, limit)
    {
        tracing::warn!("cannot change the limit of open files: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_panics_is_told() {
        let (told, mut deaths) = mpsc::channel(1);
        let death = Death { index: 3, told };
        let thread = std::thread::spawn(move || {
            let _death = death;
            panic!("as a test");
        });
        assert!(thread.join().is_err());
        assert_eq!(deaths.blocking_recv(), Some(3));
    }

    #[tokio::test]
    async fn an_app_is_wanted_while_there_is_something_in_force_and_it_is_healthy() {
        let (generation, healthy, drain) = (watch::Sender::new(0), watch::Sender::new(true), Drain::new());
        let wanted = watch::Sender::new(Wanted::Away);
        let mut now = wanted.subscribe();
        let task = tokio::spawn(want(wanted, generation.subscribe(), drain.phases(), healthy.subscribe()));
        generation.send_replace(1);
        assert!(now.wait_for(|now| *now == Wanted::Registered).await.is_ok());
        healthy.send_replace(false);
        assert!(now.wait_for(|now| *now == Wanted::Away).await.is_ok());
        healthy.send_replace(true);
        assert!(now.wait_for(|now| *now == Wanted::Registered).await.is_ok());
        drain.begin();
        assert!(now.wait_for(|now| *now == Wanted::Leave).await.is_ok());
        healthy.send_replace(false);
        tokio::task::yield_now().await;
        assert_eq!(*now.borrow(), Wanted::Leave, "there is no way back");
        task.abort();
    }
}
