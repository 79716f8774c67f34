//! `vault check` beyond the configuration's text: what would keep vault from starting on
//! this host, all of it at once. Changes nothing.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::Path;

use shared::tls::{Identity, Role};

use super::status::bytes;
use crate::broker;
use crate::config::Config;
use crate::config::worker::{Call, Kind as Task};
use crate::delivery::{Caller, Endpoint};
use crate::queue::overview::left_behind;
use crate::rooms::queuing;
use crate::sequence::database;
use crate::sequence::run_folder::run_folder;
use crate::storage::file_server::try_out;
use crate::storage::{FileServerError, FileServerSettings, Kind, Visit, free_below, key, visit};

/// What was looked at.
#[derive(Debug, Default)]
pub struct Report {
    /// What keeps vault from starting, each with what to do; empty when it can start.
    pub faults: Vec<String>,
    /// What was found of the file servers and the spool, a line each.
    pub found: Vec<String>,
}

/// Looks at everything. Blocks on disk and network.
#[must_use]
pub fn check(config: &Config) -> Report {
    let mut report = Report::default();
    let mut note = |fault: Option<String>| report.faults.extend(fault);
    note(certificate(config));
    note(private(&config.tls.key));
    if config.pki.authority_key.exists() {
        note(private(&config.pki.authority_key));
    }
    note(key::load(&config.storage.key_file).err().map(|error| error.to_string()));
    note(key::parse_recipient(&config.storage.escrow_recipient).err().map(|error| error.to_string()));
    for (name, endpoint) in handlers(config) {
        note(Caller::new(name, endpoint, 1).err().map(|error| error.to_string()));
        note(endpoint.secret_file.as_deref().and_then(private));
    }
    note(folder("state", &config.state));
    note(folder_or_parent("storage.spool_folder", &config.storage.spool));
    for server in &config.storage.file_servers {
        match file_server(config, server) {
            Ok(found) => report.found.push(found),
            Err(fault) => note(Some(fault)),
        }
    }
    if let Some(parent) = config.api.control_socket.parent() {
        note(folder("api.control_socket", parent));
    }
    // A running vault of this configuration holds its ports itself.
    if UnixStream::connect(&config.api.control_socket).is_err() {
        note(port("api.listen", config.api.listen));
        note(port("api.admin", config.api.admin));
        note(config.broker.as_ref().and_then(|broker| port("broker.listen", broker.listen)));
    }
    if let Some(settings) = &config.broker {
        match broker::try_out(settings) {
            Ok(found) => report.found.push(found),
            Err(error) => report.faults.push(error.to_string()),
        }
    }
    report.found.extend(stranded(config));
    report.found.extend(spool(config));
    // Where etcd is the ledger nobody gives numbers alone.
    if config.database.as_ref().is_none_or(|database| database.role == database::Role::Copy) {
        let none = run_folder(std::env::var_os("RUNTIME_DIRECTORY"), &config.api.control_socket).err();
        report.found.extend(none.map(|none| format!("WARNING: {none}")));
    }
    report
}

/// Messages that were taken, and that nobody serves as the configuration is now.
fn stranded(config: &Config) -> Option<String> {
    let file = config.state.join("queue.db");
    match left_behind(&file, &queuing::served(config)) {
        Ok(left) => left.map(|left| format!("WARNING: {}: {left}", file.display())),
        Err(error) => Some(format!("WARNING: {error}")),
    }
}

/// Every handler that the worker calls, by the name of its section.
fn handlers(config: &Config) -> impl Iterator<Item = (&str, &Endpoint)> {
    let targets = config.deliveries.iter().map(|target| (&*target.name, &target.endpoint));
    let jobs = config.schedules.iter().filter_map(|schedule| match &schedule.kind {
        Task::Http(Call { endpoint, .. }) => Some((&*schedule.job.name, endpoint)),
        Task::Message { .. } => None,
    });
    targets.chain(jobs)
}

fn file_server(config: &Config, server: &FileServerSettings) -> Result<String, String> {
    let name = format!("file_server {}", server.name);
    match &server.kind {
        Kind::Directory => folder(&name, &server.path).map_or(Ok(()), Err),
        Kind::Sftp(_) => try_out(server, config.storage.file_server_timeout).map_err(|error| once(&error)),
    }?;
    let Visit { place, free } = visit(&config.storage, server).map_err(|error| once(&error))?;
    let place = match (place, free) {
        (Err(error), None) => return Err(once(&error)),
        (Err(error), Some(free)) => return Err(format!("{} ({} free there)", once(&error), bytes(free))),
        (Ok(place), _) => place,
    };
    let place = match place {
        Some(place) => format!("it is place {place}"),
        None => "no marker of ours: a new place, which vault makes its own at its start".to_owned(),
    };
    let least = config.storage.keep_free;
    let room = match free {
        None => String::new(),
        Some(free) if free < least.0 => format!(
            "; WARNING: {} free, less than storage.keep_free = {least}: not written to while the other has room",
            bytes(free)
        ),
        Some(free) => format!(", {} free", bytes(free)),
    };
    Ok(format!("{name}: {}: {place}{room}", server.path.display()))
}

/// Nothing is tried again here.
fn once(error: &FileServerError) -> String {
    error.to_string().trim_end_matches("; tried again by itself").to_owned()
}

fn spool(config: &Config) -> Option<String> {
    let folder = &config.storage.spool;
    let there = if folder.exists() { folder.as_path() } else { folder.parent()? };
    let (free, most) = (free_below(there)?, config.storage.max_file);
    let name = format!("storage.spool_folder: {}", folder.display());
    Some(if free < most.0 {
        format!(
            "{name}: WARNING: {} free, less than one upload of storage.max_file = {most} takes",
            bytes(free)
        )
    } else {
        format!("{name}: {} free", bytes(free))
    })
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
