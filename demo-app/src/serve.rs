//! The life of the process: listen, serve, and leave in good order, or die when told to.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::app::App;
use crate::arguments::Arguments;
use crate::say;

/// Connections at a time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 4_096;
/// From the begin of a connection, or the end of a request, to the end of the next head.
const HEADER_TIMEOUT: Duration = Duration::from_mins(1);
/// How long what is under way may take once it was told to leave, or to die.
const LEAVE_MAX: Duration = Duration::from_secs(5);
const DEATH_MAX: Duration = Duration::from_millis(500);
/// What it dies with when it was told to.
const DEATH: u8 = 1;

/// Serves until it is told to leave or to die.
///
/// # Errors
/// When it cannot listen, or cannot say where.
pub(crate) async fn serve(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let address = arguments.listen;
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let address = listener.local_addr()?;
    if let Some(file) = &arguments.port_file {
        write_address(file, &json!({"listen": address.to_string()}).to_string())?;
    }
    say(&format!("{} {} listens on {address}", arguments.service, arguments.version));
    live(listener, &App::new(arguments)).await
}

/// Serves on this listener until told to leave or to die; the code to end with.
pub(crate) async fn live(listener: TcpListener, app: &Arc<App>) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut dying = app.dying();
    let leaving = watch::Sender::new(false);
    let mut connections = JoinSet::new();
    let (code, limit) = tokio::select! {
        never = accept(&listener, app, &leaving, &mut connections) => match never {},
        _ = terminate.recv() => (ExitCode::SUCCESS, LEAVE_MAX),
        _ = interrupt.recv() => (ExitCode::SUCCESS, LEAVE_MAX),
        // A sudden end as callers see it, between two requests: what was taken is answered, and nobody is told.
        _ = dying.wait_for(|dying| *dying) => (ExitCode::from(DEATH), DEATH_MAX),
    };
    // Closing the listener would reset who is in its queue already.
    while let Some(stream) = waiting(&listener).await {
        connections.spawn(connection(stream, Arc::clone(app), leaving.subscribe()));
    }
    drop(listener);
    leaving.send_replace(true);
    let left = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limit, left).await.is_err() {
        say(&format!("ends with {} connections still open", connections.len()));
    }
    Ok(code)
}

/// A connection that waits to be accepted, if there is one.
async fn waiting(listener: &TcpListener) -> Option<TcpStream> {
    tokio::select! {
        biased;
        accepted = listener.accept() => accepted.ok().map(|(stream, _)| stream),
        () = std::future::ready(()) => None,
    }
}

/// Takes connections until it is dropped.
async fn accept(
    listener: &TcpListener,
    app: &Arc<App>,
    leaving: &watch::Sender<bool>,
    connections: &mut JoinSet<()>,
) -> std::convert::Infallible {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { continue };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (app, leaving) = (Arc::clone(app), leaving.subscribe());
                connections.spawn(async move {
                    connection(stream, app, leaving).await;
                    drop(place);
                });
            }
            Err(error) => {
                // Mostly: no descriptor left. One that is closed in the meantime helps.
                say(&format!("cannot accept: {error}"));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, app: Arc<App>, mut leaving: watch::Receiver<bool>) {
    // Answers are small and written whole; without this they may wait for an acknowledgement.
    drop(stream.set_nodelay(true));
    let service = service_fn(move |request| Arc::clone(&app).answer(request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .half_close(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        // Broken connections are the caller's news, not ours.
        _ = connection.as_mut() => return,
        _ = leaving.wait_for(|leaving| *leaving) => connection.as_mut().graceful_shutdown(),
    }
    drop(connection.await);
}

/// In one step, so that nobody reads half of it.
fn write_address(file: &Path, text: &str) -> anyhow::Result<()> {
    let new = file.with_extension("new");
    let written = std::fs::write(&new, format!("{text}\n")).and_then(|()| std::fs::rename(&new, file));
    written.with_context(|| format!("cannot write {}", file.display()))
}
