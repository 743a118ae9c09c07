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
use tokio::time::Instant;

use crate::app::App;
use crate::arguments::Arguments;
use crate::say;

/// Connections at a time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 4_096;
/// From the begin of a connection, or the end of a request, to the end of the next head.
const HEADER_TIMEOUT: Duration = Duration::from_mins(1);
/// How long what is under way may take once it was told to leave.
const LEAVE_MAX: Duration = Duration::from_secs(5);
/// What it dies with when it was told to.
const DEATH: u8 = 1;
/// How often a dying app looks whether it is between two requests, and when it stops looking.
const DEATH_POLL: Duration = Duration::from_millis(2);
const DEATH_MAX: Duration = Duration::from_millis(500);

/// Serves until it is told to leave or to die.
///
/// # Errors
/// When it cannot listen, or cannot say where.
pub(crate) async fn serve(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let address = arguments.listen;
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let address = listener.local_addr()?;
    if let Some(file) = &arguments.port_file {
        write_address(file, &json!({"listen": address.to_string()}).to_string())?;
    }
    say(&format!("{} {} listens on {address}", arguments.service, arguments.version));
    let app = App::new(arguments);
    let leaving = watch::Sender::new(false);
    let mut connections = JoinSet::new();
    let code = tokio::select! {
        never = accept(&listener, &app, &leaving, &mut connections) => match never {},
        _ = terminate.recv() => ExitCode::SUCCESS,
        _ = interrupt.recv() => ExitCode::SUCCESS,
        () = death(&app) => {
            // Everything that is open breaks, as it would if the machine were gone.
            say("told to die");
            return Ok(ExitCode::from(DEATH));
        }
    };
    drop(listener);
    leaving.send_replace(true);
    let left = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(LEAVE_MAX, left).await.is_err() {
        say(&format!("left with {} connections still open", connections.len()));
    }
    Ok(code)
}

/// Takes connections until it is dropped.
pub(crate) async fn accept(
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

/// Ends once the app was told to die and nothing is in flight: what was taken is still answered.
pub(crate) async fn death(app: &App) {
    if app.dying().wait_for(|dying| *dying).await.is_err() {
        return std::future::pending().await;
    }
    let latest = Instant::now() + DEATH_MAX;
    loop {
        // First, so that the answer to the order itself is written.
        tokio::time::sleep(DEATH_POLL).await;
        if app.in_flight() == 0 || Instant::now() >= latest {
            return;
        }
    }
}

/// In one step, so that nobody reads half of it.
fn write_address(file: &Path, text: &str) -> anyhow::Result<()> {
    let new = file.with_extension("new");
    let written = std::fs::write(&new, format!("{text}\n")).and_then(|()| std::fs::rename(&new, file));
    written.with_context(|| format!("cannot write {}", file.display()))
}
