//! A client's HTTP/1.1 body: where it ends must not depend on how it arrives.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    edge::listen::body::fuzz(data);
});
