//! A filter's pattern and the lines it is tried on: a fault or an answer, never a panic.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    edge::ban::filter::fuzz_pattern(data);
});
