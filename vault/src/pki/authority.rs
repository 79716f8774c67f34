//! The authority's key and what it signs. The key is read for one certificate and dropped
//! again, so that it may live offline. Knows X.509, not tokens or the register.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PublicKeyData,
    SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use shared::api::IssuedCertificate;
use shared::enrol::Pin;
use shared::tls::{Identity, Role, TlsError};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::certificate::X509Certificate;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::{PkiError, token};

/// The authority outlives every certificate it signs.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(3653 * 86_400);
/// Clocks of the hosts may differ by so much.
const CLOCK_SLACK: Duration = Duration::from_secs(300);
/// Longest request looked at; ours has about 400 bytes.
const MAX_REQUEST: usize = 16 << 10;

/// An authority with its key in memory.
pub(super) struct Authority {
    name: String,
    certificate: CertificateDer<'static>,
    pem: String,
    not_after: OffsetDateTime,
    issuer: Issuer<'static, KeyPair>,
}

/// Whom a certificate is for.
pub(super) struct Subject<'a> {
    pub(super) role: Role,
    pub(super) owner: &'a str,
    pub(super) name: &'a str,
    /// Further DNS names of a vault, beside its own.
    pub(super) dns: &'a [String],
    pub(super) lifetime: Duration,
}

/// A certificate as it was signed.
pub(super) struct Issued {
    pub(super) pem: String,
    pub(super) entry: IssuedCertificate,
}

impl Authority {
    /// Makes the key and writes it, synced, to a file that must not exist (0600). The
    /// certificate is the caller's to put in place.
    pub(super) fn create(name: &str, key_file: &Path, now: SystemTime) -> Result<Self, PkiError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(PkiError::Issue)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(random_serial());
        params.not_before = (now - CLOCK_SLACK).into();
        params.not_after = (now + AUTHORITY_LIFETIME).into();
        let certificate = params.self_signed(&key).map_err(PkiError::Issue)?;
        write_key(key_file, &key.serialize_pem())?;
        Ok(Self {
            name: name.to_owned(),
            certificate: certificate.der().clone(),
            pem: certificate.pem(),
            not_after: params.not_after,
            issuer: Issuer::new(params, key),
        })
    }

    /// Reads key and certificate, which must belong together.
    pub(super) fn open(key_file: &Path, certificate_file: &Path) -> Result<Self, PkiError> {
        let file = |file: &Path, source| PkiError::File { file: file.to_owned(), what: "reading", source };
        let damaged = |source| PkiError::Damaged { file: key_file.to_owned(), source };
        let key = match fs::read_to_string(key_file) {
            Ok(pem) => KeyPair::from_pem(&pem).map_err(damaged)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(PkiError::Offline(key_file.to_owned()));
            }
            Err(error) => return Err(file(key_file, error)),
        };
        let pem = fs::read_to_string(certificate_file).map_err(|error| file(certificate_file, error))?;
        let no_authority = || TlsError::NoAuthority(certificate_file.to_owned());
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| no_authority())?;
        let (_, parsed) = X509Certificate::from_der(&certificate).map_err(|_| no_authority())?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(PkiError::OtherKey {
                key: key_file.to_owned(),
                certificate: certificate_file.to_owned(),
            });
        }
        let name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let name = name.ok_or_else(no_authority)?.to_owned();
        let not_after = OffsetDateTime::from_unix_timestamp(parsed.validity().not_after.timestamp())
            .map_err(|_| no_authority())?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(damaged)?;
        Ok(Self { name, pem, not_after, issuer, certificate: certificate.clone() })
    }

    pub(super) fn pem(&self) -> &str {
        &self.pem
    }

    pub(super) fn pin(&self) -> Option<Pin> {
        Pin::of(&self.certificate)
    }

    /// Signs a certificate for `key`. It never outlives the authority.
    pub(super) fn issue(
        &self,
        subject: &Subject<'_>,
        key: &impl PublicKeyData,
        now: SystemTime,
    ) -> Result<Issued, PkiError> {
        let serial = random_serial();
        let identity = Identity {
            role: subject.role,
            owner: subject.owner.to_owned(),
            name: subject.name.to_owned(),
            serial: serial.as_ref().iter().map(|byte| format!("{byte:02x}")).collect(),
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, subject.name);
        params.subject_alt_names = names(&identity, &self.name, subject.dns).map_err(PkiError::Issue)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if subject.role == Role::Vault {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial);
        params.not_before = (now - CLOCK_SLACK).into();
        params.not_after = self.not_after.min((now + subject.lifetime.min(AUTHORITY_LIFETIME)).into());
        let certificate = params.signed_by(key, &self.issuer).map_err(PkiError::Issue)?;
        let entry = IssuedCertificate {
            serial: identity.serial,
            role: identity.role,
            owner: identity.owner,
            name: identity.name,
            not_after: params
                .not_after
                .replace_nanosecond(0)
                .unwrap_or(params.not_after)
                .format(&Rfc3339)
                .unwrap_or_default(),
            revoked: false,
        };
        Ok(Issued { pem: certificate.pem(), entry })
    }
}

fn names(identity: &Identity, authority: &str, dns: &[String]) -> Result<Vec<SanType>, rcgen::Error> {
    let mut names = vec![SanType::URI(identity.uri(authority).try_into()?)];
    if identity.role == Role::Vault {
        for name in std::iter::once(&identity.name).chain(dns) {
            names.push(SanType::DnsName(name.as_str().try_into()?));
        }
    }
    Ok(names)
}

/// Reads a PKCS#10 request in PEM and proves that its sender holds the key (RFC 2986, 4.2).
/// Every name and extension in it is ignored.
pub(super) fn proven_key(pem: &str) -> Result<SubjectPublicKeyInfo, PkiError> {
    if pem.len() > MAX_REQUEST {
        return Err(PkiError::BadRequest("it is too long"));
    }
    let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
        .map_err(|_| PkiError::BadRequest("it is not PEM"))?;
    proven_key_der(&der)
}

pub(super) fn proven_key_der(der: &[u8]) -> Result<SubjectPublicKeyInfo, PkiError> {
    let (rest, request) =
        X509CertificationRequest::from_der(der).map_err(|_| PkiError::BadRequest("it is not PKCS#10"))?;
    if !rest.is_empty() {
        return Err(PkiError::BadRequest("something follows it"));
    }
    let key = SubjectPublicKeyInfo::from_der(request.certification_request_info.subject_pki.raw)
        .ok()
        .filter(|key| {
            [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519].contains(&key.algorithm())
        })
        .ok_or(PkiError::BadRequest("its kind of key is not accepted"))?;
    request
        .verify_signature()
        .map_err(|_| PkiError::BadRequest("it is not signed with the key that it names"))?;
    Ok(key)
}

/// 16 random bytes; the top bits make it positive and of full length, as DER wants it.
fn random_serial() -> SerialNumber {
    let mut bytes: [u8; 16] = token::random_bytes();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn write_key(file: &Path, pem: &str) -> Result<(), PkiError> {
    let fail = |what| move |source| PkiError::File { file: file.to_owned(), what, source };
    let folder = super::make_folder(file)?;
    let mut opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file).map_err(
        |error| match error.kind() {
            io::ErrorKind::AlreadyExists => PkiError::Exists(file.to_owned()),
            _ => fail("creating")(error),
        },
    )?;
    opened.write_all(pem.as_bytes()).map_err(fail("writing"))?;
    opened.sync_all().map_err(fail("syncing"))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail("syncing its folder"))
}
