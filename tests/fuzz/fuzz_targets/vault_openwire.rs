//! OpenWire: frames of JMS clients and brokers, and marshalled properties.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    vault::openwire::fuzz(data);
});
