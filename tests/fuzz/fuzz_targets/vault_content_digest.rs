//! `Content-Digest`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    vault::api::files::fuzz_digests(data);
});
