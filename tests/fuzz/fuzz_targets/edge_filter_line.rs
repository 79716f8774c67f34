//! Log lines, which clients write: whatever they hold, filters with state stay bounded.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    edge::ban::filter::fuzz_line(data);
});
