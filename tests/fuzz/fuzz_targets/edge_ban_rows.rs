//! Rows of the ban store as a damaged file may hold them.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    edge::log_watch::ban_store::fuzz_rows(data);
});
