//! A request's path.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    edge::route::fuzz_path(data);
});
