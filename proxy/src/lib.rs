//! The data plane: takes requests, decides with `gilmok-config`, acts.
//!
//! In reading order: what a process is told ([`settings`]), how it lives (`process`), where it listens
//! (`sockets`) and how it leaves (`drain`), where snapshots come from (`source`) and what is in force
//! (`current`, with names kept by `resolve`), the threads (`thread`) that take connections (`listen`, `caller`,
//! for whom: `client`, `visitor`, and what they may not say: `claims`; encrypted and known by what they show: `tls`)
//! and act on requests (`request`) with what each `worker` owns, as far as callers take it (`untaken`),
//! the called side (`upstream`) with its `breaker`s and limits (`rate_limit`, `access`), and its `health`, what is given again when it brings nothing (`last_good`),
//! how often apps are told of features (`flag_counts`), what comes of it (`flag_outcomes`) and what they may ask of them
//! (`flags`, by a `token` where one is asked for),
//! and what is told of it all (served `aside`: `admin`, `metrics`, `telemetry`, `access_log`).

pub mod settings;

mod process;

mod command;

mod sockets;

mod drain;

mod source;

mod current;

mod resolve;

mod thread;

mod listen;

mod tls;

mod caller;

mod client;

mod visitor;

mod claims;

mod worker;

mod executor;

mod untaken;

mod request;

mod gather;

mod last_good;

mod breaker;

mod rate_limit;

mod access;

mod flag_counts;

mod flag_outcomes;

mod token;

mod flags;

mod aside;

mod upstream;

mod health;

mod enrolment;

mod own_identity;

mod admin;

mod metrics;

mod telemetry;

mod access_log;

mod clock;

#[cfg(test)]
mod testing;

#[cfg(any(test, fuzzing))]
pub use request::fuzzing;

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

/// Runs the proxy with these arguments, the program's name first, until it has ended.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let loaded = Settings::load(args, &|name| std::env::var_os(name));
    if !matches!(loaded, Err(SettingsError::Usage(_))) {
        for told in settings::unknown_variables(std::env::vars_os().map(|(name, _)| name)) {
            say(&told);
        }
    }
    match loaded {
        Ok((Task::Check, settings)) => {
            for warning in &settings.mesh_warnings {
                say(&format!("warning: {warning}"));
            }
            ExitCode::SUCCESS
        }
        Ok((Task::Run(command), settings)) => process::run(&settings, Some(&command)),
        Ok((Task::Serve, settings)) => process::run(&settings, None),
        Err(SettingsError::Usage(error)) => {
            // Help and version are no errors; they go to stdout.
            drop(error.print());
            if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS }
        }
        Err(error @ SettingsError::Faulty(_)) => {
            say(&error.to_string());
            ExitCode::from(EXIT_CONFIGURATION)
        }
    }
}

/// Before there is a log, and for people at a terminal: one plain line per fault.
fn say(text: &str) {
    // Where stderr is gone there is nobody to tell.
    drop(writeln!(std::io::stderr().lock(), "{text}"));
}
