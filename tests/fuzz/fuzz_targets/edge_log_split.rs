//! Blocks of a log, cut anywhere, into lines.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    edge::log_watch::tail::fuzz_split(data);
});
