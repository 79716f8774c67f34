//! The certificate of whoever connects, before anything in it is believed.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let certificate = rustls_pki_types::CertificateDer::from(data);
    let _ = shared::tls::Identity::of(&certificate);
});
