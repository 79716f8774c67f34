//! What an SFTP server answers while folders are listed with requests in flight.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    vault::storage::file_server::fuzz_listing(data);
});
