//! The seek table at an object's end.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first_chunk() else { return };
    let _ = vault::storage::envelope::parse_seek_table(rest, u64::from_le_bytes(*first));
});
