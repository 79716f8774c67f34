//! A date pattern and lines: a time, or none.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    edge::ban::filter::fuzz_date(data);
});
