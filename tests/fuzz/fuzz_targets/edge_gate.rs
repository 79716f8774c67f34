//! Everything a client sends before pingora sees it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    edge::listen::gate::fuzz(data);
});
