//! A slot in front of an object, as a file server hands it back.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = vault::storage::envelope::parse_slot(data);
});
