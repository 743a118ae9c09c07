//! The program under test: everything of the mesh in one, since `cargo test` builds no other package's binaries.

use std::process::ExitCode;

/// The same as in the programs that are shipped.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    gilmok_cli::run(std::env::args_os())
}
