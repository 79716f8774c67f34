//! The certificate request of whoever enrols.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    vault::pki::read_request(data);
});
