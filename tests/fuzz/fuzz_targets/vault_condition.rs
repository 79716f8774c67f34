//! `If-Match` and `If-None-Match` of a write.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vault::api::records::fuzz_condition(data));
