//! Starts the program; everything it does is in the library.

use std::process::ExitCode;

/// One executable is the whole mesh, so it takes the allocator that the proxy was measured with.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    gilmok_cli::run(std::env::args_os())
}
