//! Placeholder of the authority.

use std::path::PathBuf;
use std::time::Duration;

/// `[pki]`
#[derive(Debug, Clone)]
pub struct Settings {
    /// Issued and revoked certificates, open tokens.
    pub database: PathBuf,
    /// The authority's private key; may be absent (offline) while nothing is enrolled.
    pub authority_key: PathBuf,
    /// How long an enrolment token is good for.
    pub token_lifetime: Duration,
    /// How long a new certificate is good for.
    pub certificate_lifetime: Duration,
}
