//! Certificates by server name, replaced whole when their files change. Knows names and files;
//! must not know who asks. A broken new file never takes the place of a working old one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};

use crate::config::CertificateFiles;
use crate::tls::TlsError;

/// The certificates in use. Shared by every listener.
#[derive(Debug)]
pub struct Certificates {
    files: Vec<CertificateFiles>,
    table: ArcSwap<Table>,
    /// Of the files as last looked at, good or bad, so that a bad file is reported once.
    seen: Mutex<[u8; 32]>,
}

/// What a look at the files came to.
#[derive(Debug)]
pub enum Reload {
    /// The files are as they were.
    Unchanged,
    /// New certificates are in use.
    Replaced,
    /// The new files cannot be used; the old certificates stay.
    Kept(TlsError),
}

#[derive(Debug, Default)]
struct Table {
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// `*.example.org` under `example.org`: one label is replaced (RFC 6125 section 6.4.3).
    wildcard: HashMap<String, Arc<CertifiedKey>>,
    default: Option<Arc<CertifiedKey>>,
}

impl Certificates {
    /// Reads every file.
    ///
    /// # Errors
    /// Any file, or names that are given twice.
    pub fn load(files: &[CertificateFiles]) -> Result<Arc<Self>, TlsError> {
        let seen = fingerprint(files);
        let table = Table::load(files)?;
        Ok(Arc::new(Self {
            files: files.to_vec(),
            table: ArcSwap::from_pointee(table),
            seen: Mutex::new(seen),
        }))
    }

    /// Looks at the files again. Blocks on the disk: call it off the runtime.
    ///
    /// `forced` reads them even where they look the same.
    pub fn reload(&self, forced: bool) -> Reload {
        let now = fingerprint(&self.files);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == now && !forced {
            return Reload::Unchanged;
        }
        *seen = now;
        match Table::load(&self.files) {
            Ok(table) => {
                self.table.store(Arc::new(table));
                Reload::Replaced
            }
            Err(error) => Reload::Kept(error),
        }
    }

    fn find(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let table = self.table.load();
        let Some(name) = name.map(str::to_ascii_lowercase) else { return table.default.clone() };
        let parent = || name.split_once('.').and_then(|(_, parent)| table.wildcard.get(parent));
        table.exact.get(&name).or_else(parent).or(table.default.as_ref()).cloned()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.find(hello.server_name())
    }
}

impl Table {
    fn load(files: &[CertificateFiles]) -> Result<Self, TlsError> {
        let mut table = Self::default();
        let mut named: HashMap<String, String> = HashMap::new();
        let mut default: Option<String> = None;
        for one in files {
            let file = one.certificate.display().to_string();
            let key = Arc::new(certified(&one.certificate, &one.key)?);
            for name in &one.names {
                let name = name.to_ascii_lowercase();
                match named.entry(name.clone()) {
                    Entry::Occupied(first) => {
                        return Err(TlsError::Twice { name, first: first.get().clone(), second: file });
                    }
                    Entry::Vacant(place) => place.insert(file.clone()),
                };
                match name.strip_prefix("*.") {
                    Some(parent) => table.wildcard.insert(parent.to_owned(), Arc::clone(&key)),
                    None => table.exact.insert(name, Arc::clone(&key)),
                };
            }
            if one.default {
                if let Some(first) = default {
                    return Err(TlsError::TwoDefaults { first, second: file });
                }
                default = Some(file);
                table.default = Some(key);
            }
        }
        Ok(table)
    }
}

fn certified(certificate: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let chain = shared::tls::certificates(certificate)?;
    let private = shared::tls::private_key(key)?;
    CertifiedKey::from_der(chain, private, &shared::tls::provider())
        .map_err(|source| shared::tls::TlsError::Refused { file: certificate.to_owned(), source }.into())
}

/// Of the files' content: times and sizes lie after a restore, and the files are small.
fn fingerprint(files: &[CertificateFiles]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for file in files.iter().flat_map(|one| [&one.certificate, &one.key]) {
        match std::fs::read(file) {
            Ok(content) => {
                hash.update((content.len() as u64).to_be_bytes());
                hash.update(content);
            }
            Err(error) => hash.update(format!("unreadable {:?}", error.kind())),
        }
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, stem: &str, names: &[&str], default: bool) -> CertificateFiles {
        let made = rcgen::generate_simple_self_signed(
            names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(),
        )
        .unwrap();
        let certificate = folder.join(format!("{stem}.pem"));
        let key = folder.join(format!("{stem}.key"));
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        CertificateFiles {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            certificate,
            key,
            default,
        }
    }

    fn leaf(certificates: &Certificates, name: Option<&str>) -> Option<Vec<u8>> {
        certificates.find(name).map(|key| key.cert[0].to_vec())
    }

    #[test]
    fn exact_beats_wildcard_beats_default() {
        let folder = tempfile::tempdir().unwrap();
        let files = [
            write(folder.path(), "a", &["www.example.org"], false),
            write(folder.path(), "b", &["*.example.org"], false),
            write(folder.path(), "c", &["other.net"], true),
        ];
        let certificates = Certificates::load(&files).unwrap();
        let [a, b, c] = files.map(|one| shared::tls::certificates(&one.certificate).unwrap()[0].to_vec());
        assert_eq!(leaf(&certificates, Some("WWW.example.org")), Some(a));
        assert_eq!(leaf(&certificates, Some("x.example.org")), Some(b));
        assert_eq!(leaf(&certificates, Some("x.y.example.org")), Some(c.clone()));
        assert_eq!(leaf(&certificates, None), Some(c));
    }

    #[test]
    fn an_unknown_name_gets_nothing_where_there_is_no_default() {
        let folder = tempfile::tempdir().unwrap();
        let certificates =
            Certificates::load(&[write(folder.path(), "a", &["www.example.org"], false)]).unwrap();
        assert_eq!(leaf(&certificates, Some("evil.net")), None);
        assert_eq!(leaf(&certificates, None), None);
    }

    #[test]
    fn a_broken_new_file_keeps_the_old_certificate_and_is_reported_once() {
        let folder = tempfile::tempdir().unwrap();
        let files = [write(folder.path(), "a", &["www.example.org"], true)];
        let certificates = Certificates::load(&files).unwrap();
        let before = leaf(&certificates, None);
        assert!(matches!(certificates.reload(false), Reload::Unchanged));

        std::fs::write(&files[0].certificate, "-----BEGIN CERT").unwrap();
        let Reload::Kept(error) = certificates.reload(false) else { panic!("a broken file was taken") };
        assert!(error.to_string().contains("a.pem"), "{error}");
        assert!(matches!(certificates.reload(false), Reload::Unchanged));
        assert_eq!(leaf(&certificates, None), before);

        // The new certificate with the old key, as in the middle of a renewal.
        let key = std::fs::read(&files[0].key).unwrap();
        write(folder.path(), "a", &["www.example.org"], true);
        let new_key = std::fs::read(&files[0].key).unwrap();
        std::fs::write(&files[0].key, key).unwrap();
        assert!(matches!(certificates.reload(false), Reload::Kept(_)));
        assert_eq!(leaf(&certificates, None), before);

        std::fs::write(&files[0].key, new_key).unwrap();
        assert!(matches!(certificates.reload(false), Reload::Replaced));
        assert_ne!(leaf(&certificates, None), before);
    }

    #[test]
    fn a_name_given_twice_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let files =
            [write(folder.path(), "a", &["a.org"], true), write(folder.path(), "b", &["a.org"], false)];
        assert!(matches!(Certificates::load(&files), Err(TlsError::Twice { .. })));
    }
}
