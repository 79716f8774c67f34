//! Enrolment as the requester sees it: makes the key where it stays, proves who the vault is
//! by the token's pin, and puts key and certificate in place together.
//! Knows nothing of how the vault decides; a token is good for one certificate only.

mod pinned;
mod place;
mod token;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use x509_parser::prelude::FromDer;

use crate::api::{EnrolAnswer, EnrolRequest, Problem};
use crate::tls::{Files, Identity, Role, TlsError, provider};

pub use token::{Pin, Token};

/// Connecting, proving and asking together may take this long.
const DEADLINE: Duration = Duration::from_secs(10);
/// Longest answer read; a certificate is about 1 KiB.
const MAX_ANSWER: usize = 64 << 10;

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

/// Why an enrolment failed. No file was put in place.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The token's text is damaged.
    #[error("the token is incomplete or mistyped; copy all of it, from \"evt1.\" to its last character")]
    BadToken,
    /// The vault's name cannot stand in a certificate.
    #[error("{0:?} is no vault's name; write --vault NAME=ADDRESS:PORT")]
    BadName(String),
    /// A key lies there already.
    #[error("{0}: a key is there already and stays; to give it up for a new one, add --replace")]
    KeyExists(PathBuf),
    /// A file cannot be written.
    #[error("{file}: {what} failed: {source}; the token stays unused unless the vault has answered")]
    File {
        /// The file.
        file: PathBuf,
        /// The step.
        what: &'static str,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// No key could be made.
    #[error("no key could be made: {0}; the token stays unused")]
    Key(#[source] rcgen::Error),
    /// Nobody answers there.
    #[error("vault {vault} at {address}: no connection: {source}; is it running, and does the firewall let port {port} in?", port = address.port())]
    Unreachable {
        /// Its name.
        vault: String,
        /// Where it was looked for.
        address: SocketAddr,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// It took too long.
    #[error(
        "vault {vault} at {address}: no answer within {DEADLINE:?}; try again, and with a new token if this one is then refused"
    )]
    TooLate {
        /// Its name.
        vault: String,
        /// Where it was looked for.
        address: SocketAddr,
    },
    /// Whoever answers does not show the authority that the token names.
    #[error(
        "vault {vault} at {address}: does not show the authority that the token names: it may be an impostor; nothing was sent to it. Check the address, and that the token is this authority's"
    )]
    Impostor {
        /// Its name.
        vault: String,
        /// Where it was looked for.
        address: SocketAddr,
    },
    /// The authority's, but another name.
    #[error(
        "{address} is not vault {vault}, though it belongs to the token's authority; write the name of the vault that listens there"
    )]
    OtherVault {
        /// The name asked for.
        vault: String,
        /// Where it was looked for.
        address: SocketAddr,
    },
    /// TLS failed otherwise.
    #[error("vault {vault} at {address}: TLS failed: {source}")]
    Tls {
        /// Its name.
        vault: String,
        /// Where it was looked for.
        address: SocketAddr,
        /// rustls's reason.
        #[source]
        source: std::io::Error,
    },
    /// HTTP broke off.
    #[error(
        "vault {vault}: the answer broke off: {source}; try again, and with a new token if this one is then refused"
    )]
    Broken {
        /// Its name.
        vault: String,
        /// hyper's reason.
        #[source]
        source: hyper::Error,
    },
    /// The token is unknown, used or too old.
    #[error("vault {vault} refuses the token: {detail}")]
    TokenRefused {
        /// Its name.
        vault: String,
        /// Its words.
        detail: String,
    },
    /// The authority's key is not there; the token is still good.
    #[error("vault {vault} cannot issue now: {detail}; the token stays unused")]
    AuthorityOffline {
        /// Its name.
        vault: String,
        /// Its words.
        detail: String,
    },
    /// Any other refusal.
    #[error("vault {vault} refuses: {problem}")]
    Refused {
        /// Its name.
        vault: String,
        /// Its words.
        problem: Box<Problem>,
    },
    /// The vault said yes, but not with a certificate for our key.
    #[error("vault {vault}: its answer is unusable: {what}; make a new token and revoke what this one gave")]
    BadAnswer {
        /// Its name.
        vault: String,
        /// What is wrong.
        what: &'static str,
    },
    /// The token was made for somebody else.
    #[error("the token was made for {role} {name:?} of {owner:?}, not for this program; nothing was written: make a new token for it and revoke {serial}", role = .0.role, name = .0.name, owner = .0.owner, serial = .0.serial)]
    OtherIdentity(Box<Identity>),
}

/// Enrols with `token` at the vault called `vault_name`; never replaces a key that is there.
///
/// # Errors
/// See [`EnrolError`]; no file was put in place.
pub async fn enrol(
    vault_name: &str,
    address: SocketAddr,
    token: &str,
    files: &Files,
) -> Result<Enrolled, EnrolError> {
    Enrolment { vault: vault_name, address, token, files, replace: false, expected: None }.run().await
}

/// One enrolment with everything that can be said about it; [`enrol`] is the short form.
#[derive(Debug, Clone, Copy)]
pub struct Enrolment<'a> {
    /// The vault's name, which its certificate must carry.
    pub vault: &'a str,
    /// Where its API listens.
    pub address: SocketAddr,
    /// As `vault pki token` printed it.
    pub token: &'a str,
    /// Where certificate, key and authority go; missing folders are made.
    pub files: &'a Files,
    /// Give up a key that is there already.
    pub replace: bool,
    /// The role the caller needs, and the name where that matters too; another identity is not
    /// put in place.
    pub expected: Option<(Role, Option<&'a str>)>,
}

impl Enrolment<'_> {
    /// Does it: key and request first, then the call, then all files together.
    ///
    /// # Errors
    /// See [`EnrolError`]; no file was put in place.
    pub async fn run(&self) -> Result<Enrolled, EnrolError> {
        let token: Token = self.token.trim().parse().map_err(|_| EnrolError::BadToken)?;
        let name = ServerName::try_from(self.vault.to_owned())
            .ok()
            .filter(|name| matches!(name, ServerName::DnsName(_)))
            .ok_or_else(|| EnrolError::BadName(self.vault.to_owned()))?;
        let (key, request) = key_and_request()?;
        let draft = self.draft(key.serialize_pem()).await?;
        let answer = tokio::time::timeout(DEADLINE, self.ask(&token, name, request))
            .await
            .map_err(|_| EnrolError::TooLate { vault: self.vault.to_owned(), address: self.address })??;
        let issued = self.checked(&answer, &token, &key)?;
        let place = move || draft.place(&answer.certificate, &answer.authority);
        run_blocking(place).await?;
        Ok(issued)
    }

    /// Everything that can fail on our own disk is tried before the token is spent.
    async fn draft(&self, key: String) -> Result<place::Draft, EnrolError> {
        let (files, replace) = (self.files.clone(), self.replace);
        run_blocking(move || place::Draft::begin(files, &key, replace)).await
    }

    async fn ask(
        &self,
        token: &Token,
        name: ServerName<'static>,
        request: String,
    ) -> Result<EnrolAnswer, EnrolError> {
        let (vault, address) = (self.vault.to_owned(), self.address);
        let socket = TcpStream::connect(address).await.map_err(|source| EnrolError::Unreachable {
            vault: vault.clone(),
            address,
            source,
        })?;
        let verifier = Arc::new(pinned::Pinned::new(token.pin));
        let connector = TlsConnector::from(Arc::new(pinned::client(Arc::clone(&verifier))));
        let stream = connector.connect(name, socket).await.map_err(|source| match verifier.verdict() {
            Some(pinned::Verdict::NoAuthority) => EnrolError::Impostor { vault: vault.clone(), address },
            Some(pinned::Verdict::OtherName) => EnrolError::OtherVault { vault: vault.clone(), address },
            None => EnrolError::Tls { vault: vault.clone(), address, source },
        })?;
        let broken = |source| EnrolError::Broken { vault: self.vault.to_owned(), source };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let body = serde_json::to_vec(&EnrolRequest { secret: token.secret.clone(), request });
        let call = Request::builder()
            .method(Method::POST)
            .uri("/v1/enrol")
            .header(header::HOST, self.vault)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|_| EnrolError::BadName(self.vault.to_owned()))?;
        let exchange = async {
            let response = sender.send_request(call).await.map_err(broken)?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_ANSWER)
                .collect()
                .await
                .map_err(|_| self.bad("too long or cut off"))?;
            Ok::<_, EnrolError>((head.status, body.to_bytes()))
        };
        tokio::pin!(connection, exchange);
        let (status, body) = tokio::select! {
            answered = &mut exchange => answered?,
            ended = &mut connection => match ended {
                // The answer may have come with the connection's end.
                Ok(()) => exchange.await?,
                Err(source) => return Err(broken(source)),
            },
        };
        self.understood(status, &body)
    }

    fn understood(&self, status: StatusCode, body: &[u8]) -> Result<EnrolAnswer, EnrolError> {
        if status.is_success() {
            return serde_json::from_slice(body).map_err(|_| self.bad("no certificate in it"));
        }
        let problem: Problem = serde_json::from_slice(body)
            .unwrap_or_else(|_| Problem::new(status, "unknown", "no reason given; is this a vault?"));
        let vault = self.vault.to_owned();
        Err(match problem.code.as_str() {
            "token_refused" => EnrolError::TokenRefused { vault, detail: problem.detail },
            "authority_offline" => EnrolError::AuthorityOffline { vault, detail: problem.detail },
            _ => EnrolError::Refused { vault, problem: Box::new(problem) },
        })
    }

    /// Trusts the answer no further than the pin and our own key reach.
    fn checked(&self, answer: &EnrolAnswer, token: &Token, key: &KeyPair) -> Result<Enrolled, EnrolError> {
        let leaf = only_certificate(&answer.certificate).ok_or_else(|| self.bad("no certificate in it"))?;
        let authority = only_certificate(&answer.authority).ok_or_else(|| self.bad("no authority in it"))?;
        if Pin::of(&authority) != Some(token.pin) {
            return Err(self.bad("its authority is not the token's"));
        }
        let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(&leaf)
            .map_err(|_| self.bad("no certificate in it"))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(self.bad("the certificate is for another key"));
        }
        let identity = Identity::of(&leaf).map_err(|_: TlsError| self.bad("the certificate names nobody"))?;
        let other = |(role, name): (Role, Option<&str>)| {
            identity.role != role || name.is_some_and(|name| name != identity.name)
        };
        if self.expected.is_some_and(other) {
            return Err(EnrolError::OtherIdentity(Box::new(identity)));
        }
        let not_after = rfc3339(parsed.validity().not_after.timestamp());
        Ok(Enrolled { identity, files: self.files.clone(), not_after })
    }

    fn bad(&self, what: &'static str) -> EnrolError {
        EnrolError::BadAnswer { vault: self.vault.to_owned(), what }
    }
}

/// Puts a key, its certificate and the authority's certificate (all PEM) in place without
/// asking anybody; blocks on the disk. For the vault that is its own authority.
///
/// # Errors
/// A key is there already and `replace` is false, or a file cannot be written.
pub fn install(
    files: &Files,
    key: &str,
    certificate: &str,
    authority: &str,
    replace: bool,
) -> Result<(), EnrolError> {
    place::Draft::begin(files.clone(), key, replace)?.place(certificate, authority)
}

/// Makes a key and a request that proves its possession. The request names nobody: the
/// token has fixed the names.
fn key_and_request() -> Result<(KeyPair, String), EnrolError> {
    let key = KeyPair::generate().map_err(EnrolError::Key)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request =
        params.serialize_request(&key).and_then(|request| request.pem()).map_err(EnrolError::Key)?;
    Ok((key, request))
}

fn only_certificate(pem: &str) -> Option<CertificateDer<'static>> {
    let mut found = CertificateDer::pem_slice_iter(pem.as_bytes());
    let first = found.next()?.ok()?;
    found.next().is_none().then_some(first)
}

/// Seconds since 1970 as RFC 3339 in UTC; times that no calendar holds read as 1970.
fn rfc3339(seconds: i64) -> String {
    time::OffsetDateTime::from_unix_timestamp(seconds)
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_default()
}

async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EnrolError> + Send + 'static,
) -> Result<T, EnrolError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}
