//! Names of records, files and leases.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let name = String::from_utf8_lossy(data);
    let _ = vault::sequence::record::name::checked(vault::sequence::record::Kind::Name, &name);
});
