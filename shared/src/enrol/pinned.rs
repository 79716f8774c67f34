//! The one TLS client that trusts no file: it knows a vault by the token's pin alone. The
//! vault shows its authority in the chain; that certificate must carry the pinned key, the
//! vault's own must descend from it and carry the vault's name.

use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::{Pin, provider};

/// Longest chain looked at; ours has two certificates.
const MAX_CHAIN: usize = 8;

/// What is wrong with whoever answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Not the pinned authority, or nothing that descends from it.
    NoAuthority,
    /// Descends from it under another name.
    OtherName,
}

/// Verifies by pin and remembers why it refused.
#[derive(Debug)]
pub(super) struct Pinned {
    pin: Pin,
    provider: Arc<CryptoProvider>,
    verdict: OnceLock<Verdict>,
}

impl Pinned {
    pub(super) fn new(pin: Pin) -> Self {
        Self { pin, provider: provider(), verdict: OnceLock::new() }
    }

    pub(super) fn verdict(&self) -> Option<Verdict> {
        self.verdict.get().copied()
    }

    fn refuse(&self, verdict: Verdict, error: Error) -> Error {
        self.verdict.get_or_init(|| verdict);
        error
    }
}

/// TLS 1.3, no client certificate, HTTP/1.1.
pub(super) fn client(verifier: Arc<Pinned>) -> ClientConfig {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&verifier.provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap_or_else(|_| unreachable!("ring speaks TLS 1.3"))
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::disabled();
    config
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let no_authority =
            || self.refuse(Verdict::NoAuthority, Error::InvalidCertificate(CertificateError::UnknownIssuer));
        let authority = intermediates
            .iter()
            .take(MAX_CHAIN)
            .find(|certificate| Pin::of(certificate) == Some(self.pin))
            .ok_or_else(no_authority)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned()).map_err(|_| no_authority())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
                .build()
                .map_err(|_| no_authority())?;
        verifier.verify_server_cert(end_entity, &[], server_name, &[], now).map_err(|error| match error {
            Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) => self.refuse(Verdict::OtherName, error),
            // Its time is wrong, not its maker: the reader of the error shall see that.
            Error::InvalidCertificate(
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. },
            ) => error,
            _ => self.refuse(Verdict::NoAuthority, error),
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
