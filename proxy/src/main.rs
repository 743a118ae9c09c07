//! Starts the program; everything it does is in the library.

use std::process::ExitCode;

/// Needs the least memory for an idle connection of the allocators measured.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    gilmok_proxy::run(std::env::args_os())
}
