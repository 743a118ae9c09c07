//! The control plane: knows what is wanted and who is alive, and says what is true.
//!
//! In reading order: who makes certificates of services' identities ([`authority`]); what a process is told ([`settings`]); who is told of what happens ([`webhook`]); how users move from one
//! version to another ([`rollout`]); how keys move
//! from one shard to another ([`resharding`]); what is kept of a service beside its table ([`record`]); who asks, and what they may ([`tokens`]), over what ([`tls`]); which flags are in use ([`exposure`]), what comes of those that are guarded ([`guards`]) and which of them change when ([`schedule`]); what operators want ([`intent`]) and where it is kept ([`store`]); who is alive ([`membership`]); what follows from both ([`compile`]); telling it to proxies
//! ([`publish`]); how a write goes through all of it ([`state`]); who lets
//! rollouts go on ([`conductor`]); and REST ([`admin`]).

pub mod authority;

pub mod settings;

pub mod webhook;

pub mod rollout;

pub mod resharding;

pub mod record;

pub mod tokens;

pub mod tls;

pub mod exposure;

pub mod guards;

pub mod schedule;

mod merge_patch;

pub mod intent;

pub mod store;

pub mod http_client;

pub mod membership;

pub mod compile;

pub mod publish;

pub mod state;

pub mod conductor;

pub mod admin;

mod process;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use settings::{Settings, SettingsError, Task};

/// Wrong on the command line.
const EXIT_USAGE: u8 = 64;
/// A broken invariant or a missing resource.
const EXIT_INTERNAL: u8 = 70;
/// Wrong in a file.
const EXIT_CONFIGURATION: u8 = 78;

/// Runs a control plane with these arguments, the program's name first, until it is told to stop.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let loaded = Settings::load(args, &|name| std::env::var_os(name));
    if !matches!(loaded, Err(SettingsError::Usage(_))) {
        settings::unknown_variables(std::env::vars_os().map(|(name, _)| name))
            .iter()
            .for_each(|told| say(told));
    }
    let (task, settings) = match loaded {
        Ok(loaded) => loaded,
        Err(SettingsError::Usage(error)) => {
            // Help and version are no errors; they go to stdout.
            drop(error.print());
            return if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
        Err(faulty @ SettingsError::Faulty { .. }) => {
            say(&faulty.to_string());
            return ExitCode::from(EXIT_CONFIGURATION);
        }
    };
    let done = match task {
        Task::Check => {
            say("the settings are sound");
            Ok(())
        }
        Task::Restore(backup) => process::restore(&settings, &backup),
        Task::Serve => process::serve(settings),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("{error:#}"));
            ExitCode::from(EXIT_INTERNAL)
        }
    }
}

fn say(text: &str) {
    for line in text.lines() {
        // Where stderr is gone there is nobody to tell.
        drop(writeln!(std::io::stderr().lock(), "gilmok-control-plane: {line}"));
    }
}
