//! Fuzzes the reading and evaluating of flags.
#![no_main]

#[path = "../../../config/tests/fuzz/targets.rs"]
#[expect(dead_code, reason = "the other targets' checks lie beside it")]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::flags(bytes));
