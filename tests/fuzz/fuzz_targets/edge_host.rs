//! `Host` and `:authority`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    edge::route::fuzz_host(data);
});
