//! What operators type, and `gilmok demo`: a whole mesh as child processes of this one executable.
//!
//! In reading order: the command line (here), a mesh of this executable's children (`demo`, `child`) and what
//! operators ask and tell a control plane (`commands`), by REST (`client`), in tables (`table`), with what can go
//! wrong (`trouble`).

mod trouble;

mod table;

mod client;

mod child;

mod commands;

mod demo;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use child::Program;
use commands::Command;

/// Wrong on the command line.
const EXIT_USAGE: u8 = 64;
/// A broken invariant or a missing resource.
const EXIT_INTERNAL: u8 = 70;

#[derive(Debug, Parser)]
#[command(name = "gilmok", version, about = "Asks and tells a Gilmok mesh, or runs a whole one to play with")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Run a whole mesh on loopback and tell what happens in it
    Demo(demo::Arguments),
    #[command(flatten)]
    Operate(Command),
    #[command(flatten)]
    Child(Program),
}

/// The grammar of the command line, from which completions are made.
pub(crate) fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

/// Runs `gilmok` with these arguments, the program's name first, until it has ended.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match Cli::try_parse_from(args) {
        Ok(Cli { task: Task::Demo(arguments) }) => demo::run(&arguments),
        Ok(Cli { task: Task::Operate(command) }) => commands::run(&command),
        Ok(Cli { task: Task::Child(program) }) => child::run(program),
        Err(error) => {
            // Help and version are no errors; they go to stdout.
            drop(error.print());
            if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS }
        }
    }
}
