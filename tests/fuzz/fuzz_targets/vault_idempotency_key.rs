//! `Idempotency-Key`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = vault::api::key::IdempotencyKey::read(data);
});
