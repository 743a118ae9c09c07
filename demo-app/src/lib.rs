//! A small service that shows off: says its version, shard and flags; can be told to be slow, failing or dead.
//!
//! In reading order: the command line (`arguments`), the process (`serve`), what becomes of a request (`app`), how
//! the app was told to behave (`behaviour`), what it says (`identity`, `page`), what `profile` remembers and how that moves
//! (`part`, `visits`, `copies`), which of its features are on (`features`), and how the shop calls the others (`shop`,
//! `calls`).

mod arguments;

mod serve;

mod app;

mod behaviour;

mod identity;

mod page;

mod part;

mod visits;

mod copies;

mod features;

mod shop;

mod calls;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use arguments::Arguments;

/// Wrong on the command line.
const EXIT_USAGE: u8 = 64;
/// A missing resource: mostly a port that is taken.
const EXIT_INTERNAL: u8 = 70;

/// Runs the demo app with these arguments, the program's name first, until it has ended.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(args) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help is no error; it goes to stdout.
            drop(error.print());
            return if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let code =
        runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(serve::serve(arguments)));
    code.unwrap_or_else(|error| {
        say(&format!("{error:#}"));
        ExitCode::from(EXIT_INTERNAL)
    })
}

/// One line on standard error; when nobody can hear it, nothing is lost.
fn say(line: &str) {
    drop(writeln!(std::io::stderr().lock(), "{line}"));
}

#[cfg(test)]
mod tests;
