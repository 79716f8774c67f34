//! The head of a client's HTTP/1.1 request, in any portions.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    edge::listen::head::fuzz(data);
});
