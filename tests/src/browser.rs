//! What browsers need to trust an edge: an authority of this run alone, and certificates by
//! it. Also used to be the foreign authority that a vault must refuse.

use std::path::{Path, PathBuf};

use anyhow::Context;
use rcgen::string::Ia5String;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};

/// An authority for this run; its certificate lies in the folder it was made in.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// What clients are to trust, PEM.
    pub certificate: PathBuf,
}

/// A certificate and its key, PEM.
#[derive(Debug, Clone)]
pub struct Pair {
    /// Leaf first.
    pub certificate: PathBuf,
    /// PKCS#8.
    pub key: PathBuf,
}

impl Authority {
    /// Makes one; writes `folder/<stem>.crt`.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn new(folder: &Path, stem: &str) -> anyhow::Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.distinguished_name.push(DnType::CommonName, format!("{stem} of this run"));
        let key = KeyPair::generate()?;
        let own = params.self_signed(&key)?;
        let certificate = folder.join(format!("{stem}.crt"));
        write(&certificate, &own.pem())?;
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    /// A certificate for DNS names (or addresses); writes `folder/<stem>.crt` and `.key`,
    /// replacing what is there.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn issue(&self, folder: &Path, stem: &str, names: &[&str]) -> anyhow::Result<Pair> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        self.sign(folder, stem, CertificateParams::new(names)?)
    }

    /// As [`Self::issue`], for a URI name: a forged identity.
    ///
    /// # Errors
    /// The folder cannot be written, or the URI is no ASCII.
    pub fn issue_uri(&self, folder: &Path, stem: &str, uri: &str) -> anyhow::Result<Pair> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.subject_alt_names.push(SanType::URI(Ia5String::try_from(uri)?));
        self.sign(folder, stem, params)
    }

    fn sign(&self, folder: &Path, stem: &str, params: CertificateParams) -> anyhow::Result<Pair> {
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &self.issuer)?;
        let pair =
            Pair { certificate: folder.join(format!("{stem}.crt")), key: folder.join(format!("{stem}.key")) };
        // The key first: a program that watches the certificate then finds its own key.
        write(&pair.key, &key.serialize_pem())?;
        write(&pair.certificate, &leaf.pem())?;
        Ok(pair)
    }
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    let temporary = file.with_extension("new");
    std::fs::write(&temporary, text).with_context(|| format!("{}", temporary.display()))?;
    std::fs::rename(&temporary, file).with_context(|| format!("{}", file.display()))
}
