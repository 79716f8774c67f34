//! HTTP/2 frames on their way past the walker.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    edge::listen::frames::fuzz(data);
});
