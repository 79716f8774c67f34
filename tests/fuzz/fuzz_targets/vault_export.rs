//! Exports of the ledger, read and written anew.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    vault::sequence::export::fuzz(data);
});
