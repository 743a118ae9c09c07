//! One worker: a thread with a runtime of its own, its view of what is in force, its connections.

use std::cell::{Cell, RefCell};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;
use tokio::sync::{Semaphore, watch};

use crate::access_log::AccessLog;
use crate::current::{Current, InForce};
use crate::drain::Phase;
use crate::listen::caller::PerIp;
use crate::listen::{self, Gate};
use crate::metrics::TargetSeries;
use crate::settings::{Limits, Network, UnknownHosts};
use crate::upstream::pool::Pools;

/// How often idle connections are looked through.
const SWEEP: Duration = Duration::from_secs(1);

/// What all workers of a proxy share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) in_force: Arc<InForce>,
    pub(crate) limits: Limits,
    /// Who may set the mesh's own headers.
    pub(crate) trusted: Vec<Network>,
    pub(crate) unknown_hosts: UnknownHosts,
    pub(crate) access_log: Option<AccessLog>,
    pub(crate) phase: watch::Receiver<Phase>,
    /// One permit for each connection that may be open; admin and metrics listeners need none.
    pub(crate) connections: Arc<Semaphore>,
    /// Open connections by address, where `connections_per_ip` asks for it.
    pub(crate) per_ip: PerIp,
    /// Open connections by listener: edge, inbound, outbound.
    pub(crate) open: [AtomicU32; 3],
    /// Counts requests that no service answers to.
    pub(crate) nowhere: Arc<TargetSeries>,
}

/// One worker. Everything it points to by `Rc` stays on its thread.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) index: usize,
    pub(crate) shared: Arc<Shared>,
    pub(crate) pools: Pools,
    /// The phase of the drain, looked at by every answer.
    pub(crate) phase: Cell<Phase>,
    /// Requests in flight on this worker, and how many may be: its share of `limits.requests_in_flight`.
    pub(crate) requests: Cell<u32>,
    pub(crate) requests_max: u32,
    cache: RefCell<Cache<Arc<ArcSwap<Current>>, Arc<Current>>>,
    view: RefCell<Rc<View>>,
}

/// What is in force as this worker sees it. Counted per worker, so that requests share no counter with other threads.
#[derive(Debug)]
pub(crate) struct View(Arc<Current>);

impl Deref for View {
    type Target = Current;

    fn deref(&self) -> &Current {
        &self.0
    }
}

impl Worker {
    fn new(index: usize, shared: Arc<Shared>) -> Self {
        let cache = Cache::new(Arc::clone(shared.in_force.cell()));
        let view = RefCell::new(Rc::new(View(shared.in_force.load())));
        let phase = Cell::new(*shared.phase.borrow());
        let workers = u32::try_from(shared.in_force.workers()).unwrap_or(1);
        Self {
            index,
            pools: Pools::new(&shared.limits),
            phase,
            requests: Cell::new(0),
            requests_max: shared.limits.requests_in_flight.div_ceil(workers),
            cache: RefCell::new(cache),
            view,
            shared,
        }
    }

    /// What is in force: one load of an atomic while nothing changed.
    pub(crate) fn view(&self) -> Rc<View> {
        let mut cache = self.cache.borrow_mut();
        let current = cache.load();
        let mut view = self.view.borrow_mut();
        if !Arc::ptr_eq(current, &view.0) {
            *view = Rc::new(View(Arc::clone(current)));
        }
        Rc::clone(&view)
    }

    /// Serves until the drain is over. Runs on a thread of its own.
    ///
    /// # Errors
    /// When the thread's runtime cannot be made or a listener cannot be registered with it.
    pub(crate) fn run(index: usize, shared: Arc<Shared>, gates: Vec<Gate>) -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(tokio::runtime::LocalOptions::default())?;
        runtime.block_on(async move {
            let mut phases = shared.phase.clone();
            let worker = Rc::new(Self::new(index, shared));
            // Each of these ends with the runtime.
            tokio::task::spawn_local(Rc::clone(&worker).follow());
            tokio::task::spawn_local(Rc::clone(&worker).sweep());
            for gate in gates {
                listen::start(&worker, gate)?;
            }
            loop {
                let phase = *phases.borrow_and_update();
                worker.phase.set(phase);
                if phase == Phase::Over || phases.changed().await.is_err() {
                    return Ok(());
                }
            }
        })
    }

    /// Takes what is put in force, also while no request comes: old connections close and acks can be sent.
    async fn follow(self: Rc<Self>) {
        let mut generations = self.shared.in_force.generations();
        loop {
            generations.mark_unchanged();
            let view = self.view();
            self.pools.keep(view.endpoints());
            self.shared.in_force.take(self.index, view.generation);
            drop(view);
            if generations.changed().await.is_err() {
                return;
            }
        }
    }

    async fn sweep(self: Rc<Self>) {
        loop {
            tokio::time::sleep(SWEEP).await;
            self.pools.sweep();
        }
    }
}

/// Runs what hyper's HTTP/2 spawns on the worker's own thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future + 'static,
{
    fn execute(&self, future: F) {
        // Ends with its stream or connection.
        tokio::task::spawn_local(async move { drop(future.await) });
    }
}
