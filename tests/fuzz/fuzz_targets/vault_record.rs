//! An object's record, decrypted.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = vault::storage::envelope::parse_record(data);
});
