//! Frames of the other vault.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    vault::pair::frame::fuzz(data);
});
