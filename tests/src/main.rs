//! The program under test: everything of the mesh in one, since `cargo test` builds no other package's binaries.

fn main() {}
