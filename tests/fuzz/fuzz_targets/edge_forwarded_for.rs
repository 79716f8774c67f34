//! `X-Forwarded-For` out of a trusted proxy and out of anybody else.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    edge::client::fuzz_forwarded_for(data);
});
