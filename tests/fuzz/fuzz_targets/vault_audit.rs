//! Exports of the ledger, as an auditor reads them.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    vault::sequence::audit::fuzz(data);
});
