//! What a load balancer writes before a connection's own bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    edge::listen::proxy_header::fuzz(data);
});
