//! One worker: its view of what is in force, its connections, and what it shares with the others.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;
use tokio::sync::{Semaphore, watch};

use crate::access_log::AccessLog;
use crate::current::{Current, InForce};
use crate::drain::Phase;
use crate::last_good::LastGoodStore;
use crate::metrics::TargetSeries;
use crate::settings::{Limits, Network, UnknownHosts};
use crate::tls::{Handshakes, Tls};
use crate::upstream::pool::Pools;

/// What all workers of a proxy share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) in_force: Arc<InForce>,
    pub(crate) limits: Limits,
    /// Who may set the mesh's own headers.
    pub(crate) trusted: Vec<Network>,
    pub(crate) unknown_hosts: UnknownHosts,
    /// Where the outbound listener is: what is passed on to it would come back for ever.
    pub(crate) outbound: Option<SocketAddr>,
    pub(crate) access_log: Option<AccessLog>,
    pub(crate) phase: watch::Receiver<Phase>,
    /// One permit for each connection that may be open; admin and metrics listeners need none.
    pub(crate) connections: Arc<Semaphore>,
    /// Open connections by address, where `connections_per_ip` asks for it.
    pub(crate) per_ip: Arc<Mutex<HashMap<IpAddr, u32>>>,
    /// Open connections by listener: edge, inbound, outbound.
    pub(crate) open: [AtomicU32; 3],
    /// Heads that hyper refused, by listener in the same order. Atomics: counted rarely, read by the admin thread.
    pub(crate) malformed: [AtomicU64; 3],
    /// How listeners speak TLS, where they do.
    pub(crate) tls: Arc<Tls>,
    /// What may be given again when a service brings nothing.
    pub(crate) last_good: Arc<LastGoodStore>,
    /// Counts requests that no service answers to.
    pub(crate) nowhere: Arc<TargetSeries>,
    /// Requests that wait for a newer snapshot, of all workers. An atomic: only what waits pays for it.
    pub(crate) held: AtomicUsize,
}

/// One worker. Everything it points to by `Rc` stays on its thread.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) index: usize,
    pub(crate) shared: Arc<Shared>,
    pub(crate) pools: Pools,
    /// Handshakes with callers that are under way: its share of `limits.handshakes`.
    pub(crate) handshakes: Handshakes,
    /// Connections of their own for copies of requests, and how many of those are in flight.
    pub(crate) copy_pools: Pools,
    pub(crate) copies: Cell<u32>,
    /// The phase of the drain, looked at by every answer.
    pub(crate) phase: Cell<Phase>,
    /// Requests in flight on this worker, and how many may be: its share of `limits.requests_in_flight`.
    pub(crate) requests: Cell<u32>,
    pub(crate) requests_max: u32,
    /// Its share of `limits.buffered_bytes`.
    pub(crate) buffered_bytes_max: usize,
    cache: RefCell<Cache<Arc<ArcSwap<Current>>, Arc<Current>>>,
    view: RefCell<Rc<View>>,
    /// The generation that was taken last. A watch of each worker's own, so that those who wait for the next one share no
    /// lock with other threads.
    taken: watch::Sender<u64>,
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
    pub(crate) fn new(index: usize, shared: Arc<Shared>) -> Self {
        let cache = Cache::new(Arc::clone(shared.in_force.cell()));
        let view = RefCell::new(Rc::new(View(shared.in_force.load())));
        let phase = Cell::new(*shared.phase.borrow());
        let workers = u32::try_from(shared.in_force.workers()).unwrap_or(1);
        Self {
            index,
            pools: Pools::new(&shared.limits),
            handshakes: Handshakes::new(shared.limits.handshakes.div_ceil(workers) as usize),
            copy_pools: Pools::new(&shared.limits),
            copies: Cell::new(0),
            phase,
            requests: Cell::new(0),
            buffered_bytes_max: shared.limits.buffered_bytes / shared.in_force.workers().max(1),
            requests_max: shared.limits.requests_in_flight.div_ceil(workers),
            cache: RefCell::new(cache),
            view,
            taken: watch::Sender::new(0),
            shared,
        }
    }

    /// Takes what is in force, and wakes those who wait for it.
    pub(crate) fn take(&self) -> Rc<View> {
        let view = self.view();
        self.taken.send_replace(view.generation);
        view
    }

    /// Waits until something newer than this generation is in force.
    pub(crate) async fn newer_than(&self, generation: u64) {
        // The sender lives as long as the worker.
        drop(self.taken.subscribe().wait_for(|taken| *taken > generation).await);
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
}
