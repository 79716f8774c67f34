//! `conf/vault.toml` is what it says: every key it shows is known, and shown with its default.

use std::path::Path;

use vault::config::Config;

const REQUIRED: &str = r#"
name = "vault-a"
[pair]
peer = "vault-b"
address = "10.0.0.6:7443"
[sequence]
owner = "vault-a"
[storage]
key_file = "/etc/vault/storage.key"
escrow_recipient = ""
[[file_server]]
name = "paris"
path = "/srv/paris"
[[file_server]]
name = "lyon"
kind = "sftp"
path = "/srv/vault"
address = "lyon.example"
user = "vault"
known_hosts_file = "/etc/vault/known_hosts"
key_file = "/etc/vault/lyon.key"
"#;

#[test]
fn the_sample_shows_the_defaults() {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf/vault.toml");
    let folder = tempfile::tempdir().unwrap();
    let required = folder.path().join("vault.toml");
    std::fs::write(&required, REQUIRED).unwrap();
    let sample = Config::read(&sample).unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(format!("{sample:#?}"), format!("{:#?}", Config::read(&required).unwrap()));
}
