//! Placeholder of storage.

pub mod key;

use std::path::PathBuf;
use std::time::Duration;

use shared::config::ByteSize;

/// `[storage]` and `[[file_server]]`
#[derive(Debug, Clone)]
pub struct Settings {
    /// The catalog's SQLite file.
    pub catalog: PathBuf,
    /// Where uploads are encrypted to before they go to the file servers; never plaintext.
    pub spool: PathBuf,
    /// The active age identity (`AGE-SECRET-KEY-1…`), the same on both vaults.
    pub key_file: PathBuf,
    /// The escrow's age recipient (`age1…`); its identity stays offline.
    pub escrow_recipient: String,
    /// How many replicas must be durable before an upload is acknowledged.
    pub min_replicas: usize,
    /// Largest plaintext accepted.
    pub max_file: ByteSize,
    /// Most uploads at once; further ones get 503.
    pub max_uploads: usize,
    /// How often owed replicas and deletions are tried again.
    pub retry_every: Duration,
    /// Exactly two.
    pub file_servers: Vec<FileServerSettings>,
}

/// One `[[file_server]]`
#[derive(Debug, Clone)]
pub struct FileServerSettings {
    /// Its name in the catalog; never reuse one for another place.
    pub name: String,
    /// The directory that holds the replicas.
    pub path: PathBuf,
}
