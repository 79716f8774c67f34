//! A file of fail2ban's: its sections, what its values ask for, and the filter it makes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    edge::ban::fail2ban::fuzz_ini(data);
});
