//! Calls the check of this name with what the fuzzer finds.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cofferdam_fuzz::streaming::checks::run("tunnel", bytes));
