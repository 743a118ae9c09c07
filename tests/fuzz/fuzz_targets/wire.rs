//! Fuzzes the reading of what control planes and proxies tell each other.
#![no_main]

#[path = "../../../config/tests/fuzz/targets.rs"]
#[expect(dead_code, reason = "the other targets' checks lie beside it")]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::wire(bytes));
