//! The vault's HTTP API as both programs speak it: the types of its bodies and the names
//! of its headers. No transport here ([`client`] calls it, vault answers it).
//! The whole contract, with every status, is vault's OpenAPI document.

pub mod client;
pub mod message;
mod number;
pub mod record;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use number::{
    Batch, BatchAnswer, BatchItem, Confirm, Count, Dropped, Epoch, Left, LifeAnswer, LookedAt, MAX_BATCH,
    MAX_NUMBER_KEY, MAX_SPANS, Number, NumberState, Reseeded, Series, SeriesKind, Span, TakeOver, TokenFor,
    TokenText, VAULT_FINAL, VAULT_LIFE, VAULT_SUPERSEDES, VAULT_TICKET, Void,
};

/// The media type of every error body, RFC 9457.
pub const PROBLEM_JSON: &str = "application/problem+json";
/// Request header that makes a write safe to repeat: the same key never acts twice.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Request header with a file's human-readable label, percent-encoded UTF-8.
pub const FILE_LABEL: &str = "file-label";
/// Answer header of a deletion: what the file was before, `stored`, `deleted` or `purged`.
pub const FILE_WAS: &str = "file-was";
/// Request header with the body's digest, RFC 9530.
pub const CONTENT_DIGEST: &str = "content-digest";
/// Longest idempotency key of a file, in bytes of visible ASCII.
pub const MAX_KEY: usize = 128;
/// Longest label, in bytes of UTF-8 after decoding.
pub const MAX_LABEL: usize = 4096;
/// Most items one page of a list holds.
pub const MAX_PAGE: usize = 1000;

/// An error body as RFC 9457 gives it. `code` is the stable word for programs,
/// `detail` the sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Always `about:blank`: the status and `code` tell the kind.
    #[serde(rename = "type", default = "about_blank")]
    pub kind: String,
    /// The status line's own words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// Stable, lower-case, underscores: `peer_away`, `key_reused`, `not_found` …
    pub code: String,
    /// What failed, why, and what to do next.
    pub detail: String,
}

fn about_blank() -> String {
    "about:blank".to_owned()
}

impl Problem {
    /// A problem with the status's usual title.
    #[must_use]
    pub fn new(status: http::StatusCode, code: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: about_blank(),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            status: status.as_u16(),
            code: code.to_owned(),
            detail: detail.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.status, self.code, self.detail)
    }
}

/// One stored file, as upload, `GET /v1/files` and `HEAD` know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// 64 hex digits: BLAKE3 of the encrypted body.
    pub id: String,
    /// Who it belongs to.
    pub owner: String,
    /// What its owner calls it; may be empty.
    pub label: String,
    /// As given at upload, `application/octet-stream` otherwise.
    pub media_type: String,
    /// Plaintext bytes.
    pub size: u64,
    /// RFC 3339, UTC. A label only: no guarantee rests on it.
    pub created: String,
    /// File servers that hold a replica.
    pub replicas: Vec<String>,
    /// File servers that are still owed one.
    pub owed: Vec<String>,
    /// RFC 3339, UTC: since when it is deleted, in a list of deleted files alone.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub deleted: Option<String>,
    /// RFC 3339, UTC: a deleted file is purged no earlier.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub purged_after: Option<String>,
}

/// A debt of one file server: a replica that it still has to get, or to lose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwedReplica {
    /// The file's id.
    pub id: String,
    /// Whose debt.
    pub file_server: String,
    /// `replica`, `removal`, or `lost`: a replica of a file of which no whole one is left.
    pub what: String,
    /// RFC 3339, UTC.
    pub since: String,
    /// How often paying it has failed.
    pub failed: u64,
    /// What it waits for.
    pub why: String,
}

/// Answer of `POST /v1/files/{id}/verify`: each file server's replica, read from end to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedFile {
    /// The file's id.
    pub id: String,
    /// Is every replica whole?
    pub whole: bool,
    /// Is none whole, and all of them known not to be? Then nothing heals it by itself.
    #[serde(default)]
    pub lost: bool,
    /// One for each file server.
    pub replicas: Vec<VerifiedReplica>,
}

/// One replica, as it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedReplica {
    /// Where it lies.
    pub file_server: String,
    /// What was found.
    pub state: Verdict,
    /// In words, where it is not whole, or was mended just now.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub why: Option<String>,
}

/// What re-reading a replica showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Every byte is as it was written.
    Whole,
    /// Not there; owed from now on.
    Absent,
    /// There, but not what was written: set aside, and owed from now on. Or one of its two records
    /// is not, and cannot be written anew.
    Damaged,
    /// The file server does not answer, or does not let us read.
    Unknown,
}

/// A page of a list. `next`, if any, is the `after` of the following page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    /// At most [`MAX_PAGE`] items.
    pub items: Vec<T>,
    /// Where the next page starts.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next: Option<String>,
}

/// Body of `POST /v1/enrol`, the one call that needs no certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolRequest {
    /// The single-use secret out of the token.
    pub secret: String,
    /// PKCS#10 request in PEM. Names in it are ignored: the token fixed them.
    pub request: String,
}

/// Answer to [`EnrolRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolAnswer {
    /// The new certificate, PEM.
    pub certificate: String,
    /// The authority's certificate, PEM; its pin stands in the token.
    pub authority: String,
}

/// One certificate the authority has issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedCertificate {
    /// Hex, without separators.
    pub serial: String,
    /// What it may do.
    pub role: crate::tls::Role,
    /// On whose behalf.
    pub owner: String,
    /// The host or person.
    pub name: String,
    /// RFC 3339, UTC.
    pub not_after: String,
    /// Refused from the moment this is true.
    pub revoked: bool,
}

/// Body of `POST /v1/pki/tokens`: for whom the token is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// What its certificate may do.
    pub role: crate::tls::Role,
    /// On whose behalf.
    pub owner: String,
    /// The host or person.
    pub name: String,
}

/// Answer to [`TokenRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenAnswer {
    /// `evt1.<secret>.<pin>`; shown once, good for one certificate.
    pub token: String,
    /// RFC 3339, UTC.
    pub expires: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_what_rfc_9457_says() {
        let problem = Problem::new(http::StatusCode::NOT_FOUND, "not_found", "no such file");
        let json = serde_json::to_string(&problem).unwrap();
        assert_eq!(
            json,
            r#"{"type":"about:blank","title":"Not Found","status":404,"code":"not_found","detail":"no such file"}"#
        );
    }
}
