//! Fuzzes the rules of headers between two hops.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    gilmok_proxy::fuzzing::request(bytes);
    gilmok_proxy::fuzzing::answer(bytes);
});
