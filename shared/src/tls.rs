//! mTLS between our own programs: loading PEM files, the identity a certificate carries,
//! and the two rustls configurations. TLS 1.3 only here (both ends are ours); what edge
//! offers browsers is edge's own matter.
//!
//! Identity is a URI name in the certificate, in the manner of SPIFFE X.509-SVID:
//! `spiffe://<authority>/<role>/<owner>/<name>`. A vault's certificate also carries its name
//! as DNS name, so a caller checks "this is vault-a" whatever address it dialled.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// What a certificate's holder may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A DMZ host: acts for its owner only.
    Edge,
    /// One of the pair.
    Vault,
    /// An operator.
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Edge => "edge",
            Role::Vault => "vault",
            Role::Admin => "admin",
        })
    }
}

impl FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "edge" => Ok(Role::Edge),
            "vault" => Ok(Role::Vault),
            "admin" => Ok(Role::Admin),
            other => Err(format!("{other:?} is no role; write edge, vault or admin")),
        }
    }
}

/// Who holds a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Identity {
    /// What it may do.
    pub role: Role,
    /// On whose behalf; series and files belong to owners.
    pub owner: String,
    /// The host or person.
    pub name: String,
    /// The certificate's serial, lower-case hex.
    pub serial: String,
}

impl std::hash::Hash for Role {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        std::mem::discriminant(self).hash(state);
    }
}

impl Identity {
    /// The URI name that a certificate of this identity carries.
    #[must_use]
    pub fn uri(&self, authority: &str) -> String {
        format!("spiffe://{authority}/{}/{}/{}", self.role, self.owner, self.name)
    }

    /// Reads it back out of a certificate that has already been verified against the authority.
    ///
    /// # Errors
    /// The certificate is no X.509 or carries no such URI.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, TlsError> {
        let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate)
            .map_err(|_| TlsError::NoIdentity)?;
        let names = parsed.subject_alternative_name().ok().flatten().ok_or(TlsError::NoIdentity)?;
        names
            .value
            .general_names
            .iter()
            .find_map(|name| match name {
                GeneralName::URI(uri) => parse_uri(uri),
                _ => None,
            })
            .map(|(role, owner, name)| Self { role, owner, name, serial: serial(&parsed) })
            .ok_or(TlsError::NoIdentity)
    }
}

/// A certificate's serial as this project writes it: lower-case hex, no separators.
fn serial(certificate: &x509_parser::certificate::X509Certificate<'_>) -> String {
    certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse_uri(uri: &str) -> Option<(Role, String, String)> {
    let mut parts = uri.strip_prefix("spiffe://")?.split('/').skip(1);
    let (role, owner, name) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || !is_name(owner) || !is_name(name) {
        return None;
    }
    Some((role.parse().ok()?, owner.to_owned(), name.to_owned()))
}

/// Owners, hosts and series are named alike: 1 to 64 of `a-z A-Z 0-9 . _ -`, not starting with a dot.
#[must_use]
pub fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && !text.starts_with('.')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// What can be wrong with certificates and keys.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file that cannot be read or holds nothing of its kind.
    #[error("{file}: no usable {what}: {source}")]
    Pem {
        /// The file.
        file: PathBuf,
        /// `certificate` or `private key`.
        what: &'static str,
        /// The reader's own reason.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// A file without a single certificate.
    #[error("{0}: holds no certificate")]
    Empty(PathBuf),
    /// rustls refuses the combination, usually a key that belongs to another certificate.
    #[error("{file}: {source}")]
    Refused {
        /// The certificate's file.
        file: PathBuf,
        /// rustls's reason.
        #[source]
        source: rustls::Error,
    },
    /// The authority's certificate cannot serve as a trust anchor.
    #[error("{0}: is no authority's certificate")]
    NoAuthority(PathBuf),
    /// A certificate without role, owner and name.
    #[error("the certificate carries no role, owner and name; enrol again with a token of this authority")]
    NoIdentity,
}

/// The three files every mTLS participant has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Own chain, PEM, leaf first.
    pub certificate: PathBuf,
    /// Own key, PEM (PKCS#8), readable by nobody else.
    pub key: PathBuf,
    /// The authority's certificate, PEM.
    pub authority: PathBuf,
}

/// Reads every certificate of a PEM file.
///
/// # Errors
/// Unreadable, malformed or empty.
pub fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrap = |source| TlsError::Pem { file: file.to_owned(), what: "certificate", source };
    let chain =
        CertificateDer::pem_file_iter(file).map_err(wrap)?.collect::<Result<Vec<_>, _>>().map_err(wrap)?;
    if chain.is_empty() { Err(TlsError::Empty(file.to_owned())) } else { Ok(chain) }
}

/// Reads the first private key of a PEM file.
///
/// # Errors
/// Unreadable or malformed.
pub fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(file).map_err(|source| TlsError::Pem {
        file: file.to_owned(),
        what: "private key",
        source,
    })
}

/// The one cipher provider of both programs.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn roots(file: &Path) -> Result<Arc<RootCertStore>, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(file)? {
        store.add(certificate).map_err(|_| TlsError::NoAuthority(file.to_owned()))?;
    }
    Ok(Arc::new(store))
}

/// A server that demands nothing but verifies what it is given: callers without a
/// certificate come through (to enrol), callers with a foreign one do not.
///
/// # Errors
/// Any of the files.
pub fn server(files: &Files, protocols: &[&[u8]]) -> Result<ServerConfig, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(&files.authority)?, provider())
        .allow_unauthenticated()
        .build()
        .map_err(|_| TlsError::NoAuthority(files.authority.clone()))?;
    let refused = |source| TlsError::Refused { file: files.certificate.clone(), source };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(refused)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&files.certificate)?, private_key(&files.key)?)
        .map_err(refused)?;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

/// A client that shows its own certificate and trusts the authority alone. The caller passes
/// the vault's NAME as server name, not its address.
///
/// # Errors
/// Any of the files.
pub fn client(files: &Files, protocols: &[&[u8]]) -> Result<ClientConfig, TlsError> {
    let refused = |source| TlsError::Refused { file: files.certificate.clone(), source };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(refused)?
        .with_root_certificates(roots(&files.authority)?)
        .with_client_auth_cert(certificates(&files.certificate)?, private_key(&files.key)?)
        .map_err(refused)?;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    // A revoked certificate must not come back by a ticket.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_identities_are_read() {
        assert_eq!(
            parse_uri("spiffe://acme/edge/erp/www1"),
            Some((Role::Edge, "erp".to_owned(), "www1".to_owned()))
        );
        for bad in [
            "spiffe://acme/edge/erp",
            "spiffe://acme/root/erp/www1",
            "https://acme/edge/erp/www1",
            "spiffe://acme/edge/../www1",
            "spiffe://acme/edge/erp/www1/x",
            "spiffe://acme/edge//www1",
        ] {
            assert_eq!(parse_uri(bad), None, "{bad}");
        }
    }
}
