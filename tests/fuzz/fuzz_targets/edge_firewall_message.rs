//! The words between edge and its privileged helper, in both directions.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    edge::firewall::message::fuzz_message(data);
});
