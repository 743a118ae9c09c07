//! Starts the program; everything it does is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    gilmok_demo_app::run(std::env::args_os())
}
