//! `gilmok demo`: a whole mesh on loopback, all of it children of this one process, and a story told with it.
//!
//! In reading order: who is where (`layout`, `settings`), the processes (`process`, `mesh`), how they are talked to
//! (`talk`, `traffic`, `crowd`, `users`, `visitors`), the story (`stage`, `rollout`, `chapters`, `story`), how it is told (`tell`,
//! `guide`), and where it keeps its files (`scratch`).

mod layout;

mod settings;

mod process;

mod mesh;

mod talk;

mod traffic;

mod crowd;

mod users;

mod visitors;

mod stage;

mod rollout;

mod chapters;

mod story;

mod tell;

mod guide;

mod scratch;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use gilmok_control_plane::http_client::{Client, Request, Settings};
use gilmok_proxy::settings::Server;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::EXIT_INTERNAL;
use crowd::Crowd;
use mesh::{Concerning, Mesh};
use scratch::Scratch;
use stage::Stage;
use story::STORY_MAX;
use tell::Teller;

/// How long an app that the reader killed stays dead.
const DEAD_FOR: Duration = Duration::from_secs(5);
/// Users who go on coming to checkout, so that a rollout has something to go by.
const CROWD_PER_SECOND: u32 = 50;
/// How often it is looked whether one is dead.
const WATCH: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Play the story to its end and leave, with 0 when everything came as told
    #[arg(long)]
    once: bool,
    /// Take membership from this Consul instead of the embedded registry, e.g. http://127.0.0.1:8500
    #[arg(long, value_name = "URL")]
    consul: Option<Server>,
    /// Encrypt every hop: each service's sidecars get an identity from the control plane, and strangers are refused
    #[arg(long)]
    tls: bool,
}

pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let teller = Teller::begin();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        teller.title("Gilmok: a whole mesh on this machine, every process of it this one executable");
        runtime.block_on(demo(arguments, &teller))
    });
    match outcome {
        Ok(code) => code,
        Err(error) => {
            tell::complain(&error);
            ExitCode::from(EXIT_INTERNAL)
        }
    }
}

async fn demo(arguments: &Arguments, teller: &Teller) -> anyhow::Result<ExitCode> {
    let mut stop = Stop::listen()?;
    let consul = arguments.consul.as_ref();
    if let Some(consul) = consul {
        reach(consul).await?;
    }
    let consul = consul.map(ToString::to_string);
    let mut scratch = Scratch::create()?;
    let mut mesh = Mesh::start(scratch.path(), consul.as_deref(), arguments.tls).await?;
    teller.show(&guide::what_is_where(&mesh, consul.as_deref()));
    let mut stage = Stage { mesh: &mut mesh, teller };
    // Boxed: the story is one large future.
    let story = Box::pin(tokio::time::timeout(STORY_MAX, story::play(&mut stage)));
    let outcome = tokio::select! {
        outcome = story => outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("not done after {} s", STORY_MAX.as_secs()))),
        () = stop.asked() => {
            mesh.end(teller).await;
            return Ok(if arguments.once { ExitCode::FAILURE } else { ExitCode::SUCCESS });
        }
    };
    if let Err(error) = outcome {
        scratch.keep();
        tell_failure(teller, &mut mesh, &error);
        mesh.end(teller).await;
        return Ok(ExitCode::FAILURE);
    }
    teller.title("That was the story");
    if arguments.once {
        teller.say("everything came as told");
    } else {
        teller.show(&guide::what_to_try(&mesh));
        let crowd = Crowd::start(&mesh.layout, "checkout", CROWD_PER_SECOND)?;
        let outcome = tokio::select! {
            outcome = keep_whole(teller, &mut mesh) => outcome,
            () = stop.asked() => Ok(()),
        };
        drop(crowd);
        teller.say("ending every process");
        mesh.end(teller).await;
        return outcome.map(|()| ExitCode::SUCCESS);
    }
    mesh.end(teller).await;
    Ok(ExitCode::SUCCESS)
}

/// Brings back what the reader kills, after a while in which it can be seen dead.
async fn keep_whole(teller: &Teller, mesh: &mut Mesh) -> anyhow::Result<()> {
    let mut dead_since = None;
    loop {
        tokio::time::sleep(WATCH).await;
        match (mesh.check_running(), dead_since) {
            (Ok(()), _) => dead_since = None,
            (Err(error), None) => {
                teller.say(&format!("{}; it comes back in {} s", error.root_cause(), DEAD_FOR.as_secs()));
                dead_since = Some(Instant::now());
            }
            (Err(_), Some(since)) if since.elapsed() >= DEAD_FOR => {
                teller.say(&format!("started again: {}", mesh.bring_back()?.join(", ")));
                dead_since = None;
            }
            (Err(_), Some(_)) => {}
        }
    }
}

fn tell_failure(teller: &Teller, mesh: &mut Mesh, error: &anyhow::Error) {
    teller.title("FAILED");
    teller.say(&format!("{error:#}"));
    let mut concerned: Vec<_> =
        error.downcast_ref::<Concerning>().map(|at| at.0.clone()).into_iter().collect();
    if let Err(ended) = mesh.check_running() {
        teller.say(&format!("{ended:#}"));
        concerned.extend(ended.downcast_ref::<Concerning>().map(|at| at.0.clone()));
    }
    concerned.dedup();
    for name in concerned {
        teller.show(&format!("\nthe end of the log of {name}:\n{}", mesh.last_words(&name)));
    }
    teller.show(&format!("\nall logs and settings: {}", mesh.dir.display()));
}

/// Whether a Consul is there at all: without one nothing would come of the rest.
async fn reach(consul: &Server) -> anyhow::Result<()> {
    let origin = consul.to_string().parse().map_err(|hint| anyhow::anyhow!("{consul}: {hint}"))?;
    let client = Client::new(Settings::new(origin))?;
    let answer = client.send(&Request::get("/v1/status/leader")).await.context("no Consul")?;
    anyhow::ensure!(answer.status.is_success(), "no Consul at {consul}: {}", talk::brief(&answer));
    Ok(())
}

/// Ctrl-C, or a polite request to end.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn listen() -> anyhow::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
