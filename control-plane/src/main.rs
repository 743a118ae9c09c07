//! Starts the program; everything it does is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    gilmok_control_plane::run(std::env::args_os())
}
