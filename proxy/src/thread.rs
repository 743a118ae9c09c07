//! The thread of one worker: a runtime of its own, listeners that it accepts from, and what it does beside requests.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::drain::Phase;
use crate::listen::{self, Gate};
use crate::worker::{Shared, Worker};

/// Tasks that run between two looks at the sockets, and at what other threads sent. A request takes about four turns
/// of its two tasks: fewer looks cost a busy worker less, and an idle one looks at once all the same.
const EVENT_INTERVAL: u32 = 128;
/// How often idle connections are looked through.
const SWEEP: Duration = Duration::from_secs(1);

/// Serves until the drain is over. Runs on a thread of its own.
///
/// # Errors
/// When the thread's runtime cannot be made or a listener cannot be registered with it.
pub(crate) fn run(index: usize, shared: Arc<Shared>, gates: Vec<Gate>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .event_interval(EVENT_INTERVAL)
        .global_queue_interval(EVENT_INTERVAL)
        .build_local(tokio::runtime::LocalOptions::default())?;
    runtime.block_on(async move {
        let mut phases = shared.phase.clone();
        let worker = Rc::new(Worker::new(index, shared));
        // Each of these ends with the runtime.
        tokio::task::spawn_local(follow(Rc::clone(&worker)));
        tokio::task::spawn_local(sweep(Rc::clone(&worker)));
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
async fn follow(worker: Rc<Worker>) {
    let mut generations = worker.shared.in_force.generations();
    loop {
        generations.mark_unchanged();
        let view = worker.take();
        worker.pools.keep(view.endpoints());
        worker.copy_pools.keep(view.endpoints());
        let generation = view.generation;
        drop(view);
        // What this worker decided by an earlier one, and has not begun yet, begins before this comes back: whoever hears
        // that the new one is taken finds it among the requests in flight.
        tokio::task::yield_now().await;
        worker.shared.in_force.take(worker.index, generation);
        if generations.changed().await.is_err() {
            return;
        }
    }
}

async fn sweep(worker: Rc<Worker>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        worker.pools.sweep();
        worker.copy_pools.sweep();
    }
}
