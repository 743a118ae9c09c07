//! A small service that shows off: says its version, shard and flags; can be told to be slow, failing or dead.

mod arguments;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser as _;

use arguments::Arguments;

/// Wrong on the command line.
const EXIT_USAGE: u8 = 64;

/// Runs the demo app with these arguments, the program's name first, until it has ended.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match Arguments::try_parse_from(args) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            // Help is no error; it goes to stdout.
            drop(error.print());
            if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS }
        }
    }
}
