//! What operators ask and tell a control plane: one file a command.

use std::process::ExitCode;

use clap::Subcommand;

/// A command of an operator.
#[derive(Clone, Copy, Debug, Subcommand)]
pub(crate) enum Command {}

pub(crate) fn run(command: &Command) -> ExitCode {
    match *command {}
}
