//! The headers of a posted message.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    vault::api::messages::fuzz_headers(data);
});
