//! Names of logs against patterns with stars and question marks.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    edge::log_watch::tail::fuzz_matches(data);
});
