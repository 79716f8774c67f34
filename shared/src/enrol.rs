//! Enrolment as the requester sees it: makes the key where it stays, proves who the vault is
//! by the token's pin, and puts key and certificate in place together.

use std::net::SocketAddr;

use crate::tls::{Files, Identity};

/// What an enrolment gave.
#[derive(Debug, Clone)]
pub struct Enrolled {
    /// Who the holder of the new certificate is.
    pub identity: Identity,
    /// Where certificate, key and authority now lie.
    pub files: Files,
    /// RFC 3339, UTC: until when the certificate is good.
    pub not_after: String,
}

/// Why an enrolment failed. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The token's text is damaged.
    #[error("the token is incomplete; copy all of it, from \"evt1.\" to the end")]
    BadToken,
}

/// Enrols with `token` at the vault called `vault_name`; never replaces a usable key.
///
/// # Errors
/// See [`EnrolError`].
#[expect(clippy::unused_async, reason = "the signature is agreed before its body is written")]
pub async fn enrol(
    vault_name: &str,
    address: SocketAddr,
    token: &str,
    files: &Files,
) -> Result<Enrolled, EnrolError> {
    let _ = (vault_name, address, token, files);
    Err(EnrolError::BadToken)
}
