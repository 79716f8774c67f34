//! `vault check` beyond the configuration's text: what would keep vault from starting on
//! this host, all of it at once. Changes nothing.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::Path;

use shared::tls::{Identity, Role};

use crate::config::Config;
use crate::storage::file_server::try_out;
use crate::storage::{Kind, key};

/// One line a fault, each with what to do; empty when vault can start. Blocks on disk and network.
#[must_use]
pub fn check(config: &Config) -> Vec<String> {
    let mut faults = Vec::new();
    let mut note = |fault: Option<String>| faults.extend(fault);
    note(certificate(config));
    note(private(&config.tls.key));
    if config.pki.authority_key.exists() {
        note(private(&config.pki.authority_key));
    }
    note(key::load(&config.storage.key_file).err().map(|error| error.to_string()));
    note(key::parse_recipient(&config.storage.escrow_recipient).err().map(|error| error.to_string()));
    note(folder("state", &config.state));
    note(folder_or_parent("storage.spool_folder", &config.storage.spool));
    for server in &config.storage.file_servers {
        note(match &server.kind {
            Kind::Directory => folder(&format!("file_server {}", server.name), &server.path),
            Kind::Sftp(_) => {
                try_out(server, config.storage.file_server_timeout).err().map(|error| error.to_string())
            }
        });
    }
    if let Some(parent) = config.api.control_socket.parent() {
        note(folder("api.control_socket", parent));
    }
    // A running vault of this configuration holds its ports itself.
    if UnixStream::connect(&config.api.control_socket).is_err() {
        note(port("api.listen", config.api.listen));
        note(port("api.admin", config.api.admin));
    }
    faults
}

fn certificate(config: &Config) -> Option<String> {
    let enrol = "run `vault pki init` (the first vault) or `vault pki enrol` (the second)";
    if let Err(error) = shared::tls::server(&config.tls, &[]) {
        return Some(format!("{error}; {enrol}"));
    }
    let chain = shared::tls::certificates(&config.tls.certificate).ok()?;
    let file = config.tls.certificate.display();
    match chain.first().map(Identity::of)? {
        Err(error) => Some(format!("{file}: {error}")),
        Ok(identity) if identity.role != Role::Vault || identity.name != config.name => Some(format!(
            "{file}: is for {} {:?}, and this vault is {:?}; change name, or enrol this vault",
            identity.role, identity.name, config.name
        )),
        Ok(_) => None,
    }
}

fn private(file: &Path) -> Option<String> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(file).ok()?.permissions().mode() & 0o777;
    (mode & 0o077 != 0)
        .then(|| format!("{}: mode {mode:04o} lets others read the key; chmod 600 it", file.display()))
}

fn folder(what: &str, folder: &Path) -> Option<String> {
    let name = format!("{what}: {}", folder.display());
    match std::fs::metadata(folder) {
        Err(error) => Some(format!("{name}: {error}; make the folder, writable for this user")),
        Ok(about) if !about.is_dir() => Some(format!("{name}: is no folder; write the path of one")),
        Ok(_) => {
            let probe = folder.join(format!(".vault-check-{}", std::process::id()));
            let made = File::create_new(&probe);
            let _ = std::fs::remove_file(&probe);
            made.err().map(|error| format!("{name}: cannot be written to: {error}; give it to this user"))
        }
    }
}

/// Folders that vault makes itself may be missing; then their parent must be writable.
fn folder_or_parent(what: &str, path: &Path) -> Option<String> {
    match path.parent() {
        Some(parent) if !path.exists() => folder(what, parent),
        _ => folder(what, path),
    }
}

fn port(key: &str, address: SocketAddr) -> Option<String> {
    let error = TcpListener::bind(address).err()?;
    Some(format!("{key} = {address}: cannot be listened on: {error}; write a free address of this host"))
}
