//! The authority of the pair: who gets a certificate, and whose has been taken back.
//! Tokens and the authority's key live on one vault; certificates and revocations are known
//! to both. Knows no HTTP and owns no clock: callers pass `now`.

mod authority;
mod register;
mod token;

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, TransactionBehavior};
use rustls::pki_types::{CertificateDer, ServerName};
use shared::api::{EnrolAnswer, IssuedCertificate, Page};
use shared::enrol::{EnrolError, Pin, Token};
use shared::tls::{Files, Role, TlsError, is_name};
use tokio::sync::watch;

use crate::marks::{self, Mark};
use crate::sqlite::SqliteError;
use authority::Authority;
pub use register::Change;

/// No token is good for longer: an open token is a key lying about.
pub const LONGEST_TOKEN: Duration = Duration::from_secs(7 * 86_400);

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

/// Why the authority cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The register cannot be opened.
    #[error("register of certificates: {0}")]
    Open(#[from] SqliteError),
    /// The register fails.
    #[error("register of certificates: {0}; check the disk; nothing was issued or revoked")]
    Register(#[from] rusqlite::Error),
    /// A file of the authority cannot be read or written.
    #[error("{file}: {what} failed: {source}")]
    File {
        /// The file.
        file: PathBuf,
        /// The step.
        what: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// There is an authority, and it is not replaced.
    #[error(
        "{0}: is there already and stays; an authority is made once. To enrol this vault with an existing one, use `vault pki enrol`"
    )]
    Exists(PathBuf),
    /// The authority's key is elsewhere.
    #[error(
        "the authority's key is offline; bring it to {0} (mode 0600), enrol again with the same token, and take it away again"
    )]
    Offline(PathBuf),
    /// The authority's key cannot sign.
    #[error("{file}: no usable authority: {source}")]
    Damaged {
        /// The key's or certificate's file.
        file: PathBuf,
        /// The reader's reason.
        #[source]
        source: rcgen::Error,
    },
    /// The key is another authority's.
    #[error(
        "{key}: is not the key of the authority in {certificate}; bring the right one; nothing was issued"
    )]
    OtherKey {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
    },
    /// No certificate could be made.
    #[error("no certificate could be made: {0}")]
    Issue(#[source] rcgen::Error),
    /// A certificate file cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The vault's own files cannot be put in place.
    #[error(transparent)]
    Place(#[from] EnrolError),
    /// A name that cannot stand in a certificate.
    #[error("{what} {name:?} is no name; use 1 to 64 letters, digits, dots, dashes, underscores")]
    BadName {
        /// `owner`, `name` or `authority`.
        what: &'static str,
        /// As given.
        name: String,
    },
    /// A vault's name must also be a DNS name.
    #[error("{0:?} is no DNS name; a vault is verified by one: write something like vault-a")]
    NoDnsName(String),
    /// The token is not known, used, or too old; the caller learns no more.
    #[error("unknown, used or too old; ask for a new one at the vault that has the authority")]
    TokenRefused,
    /// Somebody makes tokens in a loop.
    #[error("{0} tokens are open; wait until some are used or too old")]
    TooManyTokens(usize),
    /// The certificate request is not one, or not signed with its own key.
    #[error(
        "the certificate request is refused: {0}; send a PKCS#10 request of an ECDSA P-256, P-384 or Ed25519 key"
    )]
    BadRequest(&'static str),
    /// No such serial.
    #[error("no certificate has serial {0:?}; vault pki list shows them")]
    NoSuchCertificate(String),
    /// The peer sent a row that cannot be.
    #[error("the peer sent certificate {0:?} with impossible names; it was not taken over")]
    BadChange(String),
}

/// What a new token looks like to the one who asked for it.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// To be handed to the requester; not kept here.
    pub token: Token,
    /// Refused from then on.
    pub expires: SystemTime,
}

/// The authority and its register. Cheap to clone.
#[derive(Clone)]
pub struct Pki(Arc<Inner>);

struct Inner {
    settings: Settings,
    authority_file: PathBuf,
    connection: Mutex<Connection>,
    revoked: watch::Sender<Arc<BTreeSet<String>>>,
    last_change: watch::Sender<u64>,
    life: String,
}

impl Pki {
    /// Opens the register; the authority's key is looked for only when something is issued.
    /// Blocks on the disk.
    ///
    /// # Errors
    /// The register cannot be opened.
    pub fn open(settings: &Settings, authority_file: &Path) -> Result<Self, PkiError> {
        make_folder(&settings.database)?;
        let connection = register::open(&settings.database)?;
        let revoked = register::revoked(&connection)?;
        let last_change = register::last_change(&connection)?;
        let life = marks::begin(&connection, last_change, "certificates")?;
        Ok(Self(Arc::new(Inner {
            settings: settings.clone(),
            authority_file: authority_file.to_owned(),
            connection: Mutex::new(connection),
            revoked: watch::Sender::new(Arc::new(revoked)),
            last_change: watch::Sender::new(last_change),
            life,
        })))
    }

    /// Makes a single-use token. Only its hash is kept.
    ///
    /// # Errors
    /// Impossible names, too many open tokens, no authority's certificate, the register.
    pub async fn token(
        &self,
        role: Role,
        owner: &str,
        name: &str,
        now: SystemTime,
    ) -> Result<NewToken, PkiError> {
        check_names(role, owner, name)?;
        let (owner, name) = (owner.to_owned(), name.to_owned());
        self.blocking(move |inner| {
            let pin = inner.pin()?;
            let expires = now + inner.settings.token_lifetime.min(LONGEST_TOKEN);
            let token = token::random(pin);
            let grant = register::Grant { role, owner, name };
            register::add_token(&mut inner.lock(), &token::hash(&token.secret), &grant, now, expires)?;
            Ok(NewToken { token, expires })
        })
        .await
    }

    /// Issues the certificate that the token with this `secret` stands for. Token and
    /// certificate change hands in one transaction: whatever dies in between, a token
    /// never gives two certificates. While the authority's key is away the token stays good.
    ///
    /// # Errors
    /// The token, the request, the authority's key, the register.
    pub async fn enrol(&self, secret: &str, request: &str, now: SystemTime) -> Result<EnrolAnswer, PkiError> {
        let (hash, request) = (token::hash(secret), request.to_owned());
        self.blocking(move |inner| inner.enrol(&hash, &request, now)).await
    }

    /// Every certificate in the order of issue, from behind serial `after`.
    ///
    /// # Errors
    /// The register, or `after` is no known serial.
    pub async fn certificates(
        &self,
        after: Option<String>,
        limit: usize,
    ) -> Result<Page<IssuedCertificate>, PkiError> {
        self.blocking(move |inner| register::page(&inner.lock(), after.as_deref(), limit)).await
    }

    /// Takes a certificate back; again is no error. When this returns, [`Pki::is_revoked`]
    /// says so and [`Pki::revocations`] has told everybody.
    ///
    /// # Errors
    /// No such certificate, or the register.
    pub async fn revoke(&self, serial: &str) -> Result<IssuedCertificate, PkiError> {
        let serial = serial.to_ascii_lowercase();
        self.blocking(move |inner| {
            let mut connection = inner.lock();
            let revoked = register::revoke(&mut connection, &serial)?;
            inner.announce(&connection)?;
            Ok(revoked)
        })
        .await
    }

    /// Has this certificate been taken back? Looks in memory only.
    #[must_use]
    pub fn is_revoked(&self, serial: &str) -> bool {
        self.0.revoked.borrow().contains(serial)
    }

    /// All revoked serials, now and whenever they change: live sessions wait on this.
    #[must_use]
    pub fn revocations(&self) -> watch::Receiver<Arc<BTreeSet<String>>> {
        self.0.revoked.subscribe()
    }

    /// The number of the latest change here; tells the pair when there is something to send.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.last_change.subscribe()
    }

    /// At most `limit` changes behind `cursor`, in order; the last one's `seq` is the next cursor.
    ///
    /// # Errors
    /// The register.
    pub async fn changes_since(&self, cursor: u64, limit: usize) -> Result<Vec<Change>, PkiError> {
        self.blocking(move |inner| Ok(register::changes_since(&inner.lock(), cursor, limit)?)).await
    }

    /// Takes over what the peer knows: union by serial, revoked wins; and keeps with it how
    /// far that goes. Any order, any number of times gives the same.
    ///
    /// # Errors
    /// The register, or a row with impossible names (then none of `changes` is taken over).
    pub async fn merge(&self, changes: Vec<Change>, mark: Option<Mark>) -> Result<(), PkiError> {
        for Change { certificate, .. } in &changes {
            let hex = (1..=40).contains(&certificate.serial.len())
                && certificate.serial.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            if !hex || !is_name(&certificate.owner) || !is_name(&certificate.name) {
                return Err(PkiError::BadChange(certificate.serial.chars().take(64).collect()));
            }
        }
        self.blocking(move |inner| {
            let mut connection = inner.lock();
            register::merge(&mut connection, &changes, mark.as_ref())?;
            inner.announce(&connection)
        })
        .await
    }

    /// How far everything that the peer told is taken over.
    ///
    /// # Errors
    /// The register.
    pub async fn heard(&self) -> Result<Mark, PkiError> {
        self.blocking(move |inner| Ok(marks::heard(&inner.lock())?)).await
    }

    /// As far as a peer with this mark has this register's history; the rest is to be told.
    ///
    /// # Errors
    /// The register.
    pub async fn shared(&self, mark: Mark) -> Result<u64, PkiError> {
        self.blocking(move |inner| Ok(marks::shared(&inner.lock(), &inner.life, &mark)?)).await
    }

    /// This start's name, under which its changes are told.
    #[must_use]
    pub fn life(&self) -> &str {
        &self.0.life
    }

    /// How many certificates, revoked ones and open tokens there are, and whether the
    /// authority's key is here; for `vault status`.
    ///
    /// # Errors
    /// The register.
    pub async fn status(&self, now: SystemTime) -> Result<Status, PkiError> {
        self.blocking(move |inner| {
            let connection = inner.lock();
            Ok(Status {
                certificates: register::count(&connection)?,
                revoked: inner.revoked.borrow().len(),
                open_tokens: register::open_tokens(&connection, now)?,
                authority_key_here: inner.settings.authority_key.exists(),
            })
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, PkiError> + Send + 'static,
    ) -> Result<T, PkiError> {
        let inner = Arc::clone(&self.0);
        match tokio::task::spawn_blocking(move || work(&inner)).await {
            Ok(done) => done,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
}

/// What [`Pki::status`] tells.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Status {
    /// Ever issued, as far as this vault knows.
    pub certificates: usize,
    /// Of these, taken back.
    pub revoked: usize,
    /// Made here, neither used nor too old.
    pub open_tokens: usize,
    /// Could something be issued now?
    pub authority_key_here: bool,
}

impl Inner {
    /// A panic elsewhere leaves no half transaction behind, so the lock's poison means nothing.
    fn lock(&self) -> std::sync::MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pin(&self) -> Result<Pin, PkiError> {
        let chain = shared::tls::certificates(&self.authority_file)?;
        chain
            .first()
            .and_then(Pin::of)
            .ok_or_else(|| PkiError::Tls(TlsError::NoAuthority(self.authority_file.clone())))
    }

    fn enrol(&self, hash: &str, request: &str, now: SystemTime) -> Result<EnrolAnswer, PkiError> {
        let mut connection = self.lock();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let grant = register::take_token(&transaction, hash, now)?.ok_or(PkiError::TokenRefused)?;
        let authority = Authority::open(&self.settings.authority_key, &self.authority_file)?;
        let key = authority::proven_key(request)?;
        let subject = authority::Subject {
            role: grant.role,
            owner: &grant.owner,
            name: &grant.name,
            dns: &[],
            lifetime: self.settings.certificate_lifetime,
        };
        let issued = authority.issue(&subject, &key, now)?;
        register::add(&transaction, &issued.entry)?;
        transaction.commit()?;
        self.announce(&connection)?;
        let IssuedCertificate { serial, role, owner, name, .. } = &issued.entry;
        tracing::info!("pki: certificate {serial} issued to {role} {owner}/{name}");
        Ok(EnrolAnswer { certificate: issued.pem, authority: authority.pem().to_owned() })
    }

    /// Called under the lock, so that announcements come in the order of the changes.
    fn announce(&self, connection: &Connection) -> Result<(), PkiError> {
        let revoked = register::revoked(connection)?;
        self.revoked.send_if_modified(|known| {
            let news = **known != revoked;
            if news {
                *known = Arc::new(revoked);
            }
            news
        });
        self.last_change.send_replace(register::last_change(connection)?);
        Ok(())
    }
}

/// What `vault pki init` made.
#[derive(Debug, Clone)]
pub struct Initialised {
    /// The authority's pin.
    pub pin: Pin,
    /// The vault's own entry.
    pub own: IssuedCertificate,
}

/// Makes an authority and this vault's own certificate; nothing that is there is replaced.
/// Blocks on the disk.
///
/// # Errors
/// Impossible names, anything there already, the disk.
pub fn initialise(
    settings: &Settings,
    files: &Files,
    authority: &str,
    vault: &str,
    dns: &[String],
    now: SystemTime,
) -> Result<Initialised, PkiError> {
    if !is_name(authority) {
        return Err(PkiError::BadName { what: "authority", name: authority.to_owned() });
    }
    check_names(Role::Vault, "pair", vault)?;
    dns.iter().try_for_each(|name| check_dns(name))?;
    for file in [&settings.authority_key, &files.authority, &files.certificate, &files.key] {
        if std::fs::symlink_metadata(file).is_ok() {
            return Err(PkiError::Exists(file.clone()));
        }
    }
    let authority = Authority::create(authority, &settings.authority_key, now)?;
    let own = rcgen::KeyPair::generate().map_err(PkiError::Issue)?;
    let lifetime = settings.certificate_lifetime;
    let subject = authority::Subject { role: Role::Vault, owner: "pair", name: vault, dns, lifetime };
    let issued = authority.issue(&subject, &own, now)?;
    let pin = authority.pin().ok_or_else(|| TlsError::NoAuthority(files.authority.clone()))?;
    make_folder(&settings.database)?;
    let connection = register::open(&settings.database)?;
    register::add(&connection, &issued.entry)?;
    shared::enrol::install(files, &own.serialize_pem(), &issued.pem, authority.pem(), false)?;
    Ok(Initialised { pin, own: issued.entry })
}

/// Makes the folder of `file` where it is missing, for this user alone, and tells it.
fn make_folder(file: &Path) -> Result<&Path, PkiError> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map(|()| folder).map_err(|source| PkiError::File {
        file: folder.to_owned(),
        what: "making the folder",
        source,
    })
}

fn check_names(role: Role, owner: &str, name: &str) -> Result<(), PkiError> {
    for (what, text) in [("owner", owner), ("name", name)] {
        if !is_name(text) {
            return Err(PkiError::BadName { what, name: text.to_owned() });
        }
    }
    if role == Role::Vault { check_dns(name) } else { Ok(()) }
}

fn check_dns(name: &str) -> Result<(), PkiError> {
    match ServerName::try_from(name) {
        Ok(ServerName::DnsName(_)) => Ok(()),
        _ => Err(PkiError::NoDnsName(name.to_owned())),
    }
}

/// The fuzz body of the certificate request's reader: refuses or reads, never panics.
pub fn read_request(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = authority::proven_key(text);
    }
    let _ = authority::proven_key_der(bytes);
    let _ = shared::tls::Identity::of(&CertificateDer::from(bytes));
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};

    struct House {
        _folder: tempfile::TempDir,
        settings: Settings,
        files: Files,
        pki: Pki,
    }

    fn house() -> House {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let settings = Settings {
            database: at("pki.db"),
            authority_key: at("pki/authority.key"),
            token_lifetime: Duration::from_secs(3600),
            certificate_lifetime: Duration::from_secs(86_400),
        };
        let files =
            Files { certificate: at("tls/v.crt"), key: at("tls/v.key"), authority: at("tls/authority.crt") };
        initialise(&settings, &files, "acme", "vault-a", &[], now(0)).unwrap();
        let pki = Pki::open(&settings, &files.authority).unwrap();
        House { _folder: folder, settings, files, pki }
    }

    fn now(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    fn request() -> String {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["impostor.example".to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "root");
        params.serialize_request(&key).unwrap().pem().unwrap()
    }

    async fn edge_token(pki: &Pki) -> Token {
        pki.token(Role::Edge, "erp", "www1", now(0)).await.unwrap().token
    }

    #[tokio::test]
    async fn a_token_fixes_the_names_and_the_request_cannot() {
        let house = house();
        let token = edge_token(&house.pki).await;
        let answer = house.pki.enrol(&token.secret, &request(), now(10)).await.unwrap();
        let file = house.settings.database.with_extension("pem");
        std::fs::write(&file, &answer.certificate).unwrap();
        let chain = shared::tls::certificates(&file).unwrap();
        let identity = shared::tls::Identity::of(&chain[0]).unwrap();
        assert_eq!(
            (identity.role, identity.owner.as_str(), identity.name.as_str()),
            (Role::Edge, "erp", "www1")
        );
        assert!(!String::from_utf8_lossy(&chain[0]).contains("impostor"));
        let listed = house.pki.certificates(None, 10).await.unwrap().items;
        assert_eq!(listed.len(), 2);
        assert_eq!(listed[1].serial, identity.serial);
    }

    #[tokio::test]
    async fn a_token_gives_one_certificate_even_when_asked_at_the_same_time() {
        let house = house();
        let token = edge_token(&house.pki).await;
        let calls = (0..8).map(|_| {
            let (pki, secret) = (house.pki.clone(), token.secret.clone());
            tokio::spawn(async move { pki.enrol(&secret, &request(), now(10)).await.is_ok() })
        });
        let mut given = 0;
        for call in calls.collect::<Vec<_>>() {
            given += usize::from(call.await.unwrap());
        }
        assert_eq!(given, 1);
        assert_eq!(house.pki.certificates(None, 10).await.unwrap().items.len(), 2);
    }

    #[tokio::test]
    async fn an_old_token_is_refused() {
        let house = house();
        let token = edge_token(&house.pki).await;
        let late = house.pki.enrol(&token.secret, &request(), now(3600)).await;
        assert!(matches!(late, Err(PkiError::TokenRefused)));
    }

    #[tokio::test]
    async fn while_the_authority_key_is_away_the_token_stays_good() {
        let house = house();
        let token = edge_token(&house.pki).await;
        let away = house.settings.authority_key.with_extension("away");
        std::fs::rename(&house.settings.authority_key, &away).unwrap();
        let refused = house.pki.enrol(&token.secret, &request(), now(1)).await;
        assert!(matches!(refused, Err(PkiError::Offline(_))));
        std::fs::rename(&away, &house.settings.authority_key).unwrap();
        house.pki.enrol(&token.secret, &request(), now(2)).await.unwrap();
    }

    #[tokio::test]
    async fn a_bad_request_does_not_spend_the_token() {
        let house = house();
        let token = edge_token(&house.pki).await;
        assert!(matches!(house.pki.enrol(&token.secret, "x", now(1)).await, Err(PkiError::BadRequest(_))));
        house.pki.enrol(&token.secret, &request(), now(2)).await.unwrap();
    }

    #[tokio::test]
    async fn a_request_signed_by_another_key_is_refused() {
        let house = house();
        let token = edge_token(&house.pki).await;
        let pem = request();
        let mut der = pem_bytes(&pem);
        let last = der.len() - 1;
        der[last] ^= 1;
        assert!(authority::proven_key_der(&pem_bytes(&pem)).is_ok());
        assert!(matches!(authority::proven_key_der(&der), Err(PkiError::BadRequest(_))));
        drop(token);
    }

    fn pem_bytes(pem: &str) -> Vec<u8> {
        use rustls::pki_types::CertificateSigningRequestDer;
        use rustls::pki_types::pem::PemObject;
        CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
    }

    #[tokio::test]
    async fn revocation_is_known_at_once_and_after_a_restart() {
        let house = house();
        let token = edge_token(&house.pki).await;
        house.pki.enrol(&token.secret, &request(), now(1)).await.unwrap();
        let serial = house.pki.certificates(None, 10).await.unwrap().items[1].serial.clone();
        let mut news = house.pki.revocations();
        assert!(!house.pki.is_revoked(&serial));
        assert!(house.pki.revoke(&serial).await.unwrap().revoked);
        assert!(house.pki.is_revoked(&serial));
        assert!(news.has_changed().unwrap());
        assert!(news.borrow_and_update().contains(&serial));
        house.pki.revoke(&serial).await.unwrap();
        let again = Pki::open(&house.settings, &house.files.authority).unwrap();
        assert!(again.is_revoked(&serial));
        assert!(matches!(house.pki.revoke("00").await, Err(PkiError::NoSuchCertificate(_))));
    }

    #[tokio::test]
    async fn both_vaults_end_with_the_same_register() {
        let (left, right) = (house(), house());
        for house in [&left, &right] {
            let token = edge_token(&house.pki).await;
            house.pki.enrol(&token.secret, &request(), now(1)).await.unwrap();
        }
        let serial = left.pki.certificates(None, 10).await.unwrap().items[1].serial.clone();
        right.pki.merge(left.pki.changes_since(0, 100).await.unwrap(), None).await.unwrap();
        right.pki.revoke(&serial).await.unwrap();
        // The older, unrevoked row comes again and must not undo the revocation.
        right.pki.merge(left.pki.changes_since(0, 100).await.unwrap(), None).await.unwrap();
        left.pki.merge(right.pki.changes_since(0, 100).await.unwrap(), None).await.unwrap();
        assert!(left.pki.is_revoked(&serial) && right.pki.is_revoked(&serial));
        let sorted = |mut items: Vec<IssuedCertificate>| {
            items.sort_by(|a, b| a.serial.cmp(&b.serial));
            items
        };
        let known = left.pki.certificates(None, 100).await.unwrap().items;
        assert_eq!(known.len(), 4);
        assert_eq!(sorted(known), sorted(right.pki.certificates(None, 100).await.unwrap().items));
        let settled = *left.pki.changed().borrow();
        left.pki.merge(right.pki.changes_since(0, 100).await.unwrap(), None).await.unwrap();
        assert_eq!(*left.pki.changed().borrow(), settled, "nothing new makes no change to send back");
    }

    #[tokio::test]
    async fn an_authority_is_never_replaced() {
        let house = house();
        let again = initialise(&house.settings, &house.files, "acme", "vault-a", &[], now(0));
        assert!(matches!(again, Err(PkiError::Exists(_))));
        let vault = house.pki.token(Role::Vault, "pair", "1.2.3.4", now(0)).await;
        assert!(matches!(vault, Err(PkiError::NoDnsName(_))));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_request_reader_panic(bytes in proptest::collection::vec(0_u8.., 0..400)) {
            read_request(&bytes);
        }

        #[test]
        fn a_damaged_request_never_panics(at in 0_usize..10_000, flip in 1_u8..) {
            let mut der = pem_bytes(&request());
            let place = at % der.len();
            der[place] ^= flip;
            read_request(&der);
        }
    }
}
