//! The bodies of the API's calls about records, file names and leases. Types only; what they
//! promise stands in vault's OpenAPI document.

use serde::{Deserialize, Serialize};

/// Answer header of a read that may be old, because its caller allowed it with `stale=true`.
pub const VAULT_STALE: &str = "vault-stale";

/// One version of a record, as lists and histories show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name within its owner.
    pub name: String,
    /// From 1 upwards without holes; its ETag is the same in quotes.
    pub version: u64,
    /// What it says; nothing where the record was removed with this version.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub value: Option<String>,
    /// Is the value JSON?
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub json: bool,
    /// Who wrote it: role, owner and name of the certificate.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub by: Option<String>,
    /// RFC 3339, UTC. A label only: nothing is decided by it.
    pub changed: String,
}

/// The version that a write made, or that it had made when it was first sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrittenRecord {
    /// The record's name.
    pub name: String,
    /// Its ETag is the same in quotes.
    pub version: u64,
}

/// Body of `PUT /v1/names/{path}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PointAt {
    /// The id of a stored file of the same owner.
    pub file: String,
}

/// What became of the file that a name points at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamedFile {
    /// It can be read.
    Stored,
    /// Deleted; an operator may still take that back.
    Deleted,
    /// Deleted, and gone for good.
    Purged,
    /// No catalog and no file server has it.
    Absent,
    /// Not every file server answers, so it is not sure.
    Unknown,
}

/// One version of a file's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileName {
    /// The name within its owner.
    pub name: String,
    /// From 1 upwards without holes; its ETag is the same in quotes.
    pub version: u64,
    /// The file's id; nothing where the name was removed with this version.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub file: Option<String>,
    /// What became of that file.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub state: Option<NamedFile>,
    /// Who wrote it: role, owner and name of the certificate.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub by: Option<String>,
    /// RFC 3339, UTC. A label only.
    pub changed: String,
}

/// Body of `POST /v1/leases/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcquireLease {
    /// Tells the programs of one certificate apart; 1 to 128 visible ASCII characters.
    pub token: String,
    /// How long it holds without a renewal: 5 to 3600.
    pub ttl_seconds: u64,
}

/// Body of `PUT /v1/leases/{name}`, and the query of its `DELETE`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldLease {
    /// As it was acquired with.
    pub token: String,
    /// As it was told.
    pub epoch: u64,
}

/// A lease that is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Its name within its owner.
    pub name: String,
    /// Who holds it: role, owner and name of the certificate.
    pub holder: String,
    /// The fencing token: grows with each new holder.
    pub epoch: u64,
    /// How long it holds without a renewal.
    pub ttl_seconds: u64,
    /// What is left of that, as the ledger's owner judges it; not in lists.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub left_ms: Option<u64>,
}
