//! A configuration file, read as an operator's typing error leaves it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let path = std::path::Path::new("fuzz.toml");
    let _ = shared::config::read_text(path, text, |root| {
        let _: Option<std::time::Duration> = root.optional("wait");
        let _: Vec<shared::config::ByteSize> = root.list("sizes");
        let mut section = root.section("section");
        section.required::<std::net::SocketAddr>("listen")
    });
});
