//! Taking connections: accept, find out what is spoken, serve until the connection or the drain ends.

mod socket;

mod calm;

mod serve;

mod receive;

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use gilmok_config::decide::Listener;
use tokio::net::{TcpListener, TcpStream};

use crate::caller::Caller;
use crate::drain::Phase;
use crate::tls::Stream;
use crate::worker::Worker;

/// How long accepting pauses when the process has no descriptor or memory left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// One listening socket as a worker gets it. Workers accept on clones of one socket, so there is one
/// queue and a free worker takes the next connection; a second process on the port fails at bind.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) listener: Listener,
    /// Which app an inbound listener is for, by place in the settings.
    pub(crate) app: Option<usize>,
    /// Non-blocking.
    pub(crate) socket: std::net::TcpListener,
}

/// Begins to accept. The task ends with the worker's runtime.
///
/// # Errors
/// When the socket cannot be registered with the runtime.
pub(crate) fn start(worker: &Rc<Worker>, gate: Gate) -> io::Result<()> {
    let socket = TcpListener::from_std(gate.socket)?;
    tokio::task::spawn_local(accept(Rc::clone(worker), gate.listener, gate.app, socket));
    Ok(())
}

async fn accept(worker: Rc<Worker>, listener: Listener, app: Option<usize>, socket: TcpListener) {
    let mut phases = worker.shared.phase.clone();
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            // Who still waits in the queue is for the process that inherited it, if there is one.
            _ = phases.wait_for(|phase| *phase >= Phase::Ending) => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                // At the limit one caller waits here and the others in the kernel's queue.
                let permit = Arc::clone(&worker.shared.connections).acquire_owned().await;
                let Ok(permit) = permit else { return };
                let Some(caller) = Caller::admit(&worker, listener, app, peer, permit) else { continue };
                // Ends with its connection.
                tokio::task::spawn_local(connection(Rc::clone(&worker), caller, stream));
            }
            // The caller was gone before we took it.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!("cannot accept on the {} listener: {error}; trying again", listener.as_str());
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(worker: Rc<Worker>, mut caller: Caller, stream: TcpStream) {
    // Without it streamed frames wait up to 40 ms for an acknowledgement.
    drop(stream.set_nodelay(true));
    let received = match worker.shared.tls.door(caller.listener) {
        None => Some((Stream::Plain(stream), None)),
        // Boxed: a handshake takes some kilobytes for a moment, a connection stays.
        Some(door) => Box::pin(receive::receive(&worker, &mut caller, door, stream)).await,
    };
    let Some((stream, is_h2)) = received else { return };
    serve::serve(&worker, &Rc::new(caller), stream, is_h2).await;
}
