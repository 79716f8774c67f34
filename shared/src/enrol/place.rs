//! Puts key, certificate and authority in place: all are written and synced under temporary
//! names beside their place, then renamed. A key never lies there without its certificate
//! for longer than two renames, and what fails leaves nothing behind.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::EnrolError;
use crate::tls::Files;

/// The key under its temporary name; dropped before [`Draft::place`], it is removed.
#[derive(Debug)]
pub(super) struct Draft {
    files: Files,
    key: Temporary,
}

impl Draft {
    /// Makes the folders, refuses a key that is there, and writes the new one (0600).
    pub(super) fn begin(files: Files, key: &str, replace: bool) -> Result<Self, EnrolError> {
        if !replace && fs::symlink_metadata(&files.key).is_ok() {
            return Err(EnrolError::KeyExists(files.key));
        }
        for file in [&files.key, &files.certificate, &files.authority] {
            let folder = folder_of(file);
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|source| {
                EnrolError::File { file: folder.to_owned(), what: "making the folder", source }
            })?;
        }
        let key = Temporary::write(&files.key, key, 0o600)?;
        Ok(Self { files, key })
    }

    /// The certificate's file holds its chain: leaf first, then the authority, so that a
    /// server shows the authority to those who know it by pin alone.
    pub(super) fn place(self, certificate: &str, authority: &str) -> Result<(), EnrolError> {
        let (leaf, authority) = (certificate.trim_end(), authority.trim_end());
        let chain = Temporary::write(&self.files.certificate, &format!("{leaf}\n{authority}\n"), 0o644)?;
        let root = Temporary::write(&self.files.authority, &format!("{authority}\n"), 0o644)?;
        root.rename()?;
        self.key.rename()?;
        chain.rename()
    }
}

#[derive(Debug)]
struct Temporary {
    path: PathBuf,
    target: PathBuf,
}

impl Temporary {
    fn write(target: &Path, text: &str, mode: u32) -> Result<Self, EnrolError> {
        let mut name = target.as_os_str().to_owned();
        name.push(format!(".new{}", std::process::id()));
        let this = Self { path: PathBuf::from(name), target: target.to_owned() };
        let fail = |what| {
            let file = this.path.clone();
            move |source| EnrolError::File { file, what, source }
        };
        match fs::remove_file(&this.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(fail("clearing the way")(error));
            }
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&this.path)
            .map_err(fail("creating"))?;
        file.write_all(text.as_bytes()).map_err(fail("writing"))?;
        file.sync_all().map_err(fail("syncing"))?;
        Ok(this)
    }

    fn rename(self) -> Result<(), EnrolError> {
        let fail = |what, source| EnrolError::File { file: self.target.clone(), what, source };
        fs::rename(&self.path, &self.target).map_err(|source| fail("renaming into place", source))?;
        File::open(folder_of(&self.target))
            .and_then(|folder| folder.sync_all())
            .map_err(|source| fail("syncing the folder", source))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename nothing is there under this name.
        let _ = fs::remove_file(&self.path);
    }
}

fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn files(folder: &Path) -> Files {
        Files {
            certificate: folder.join("tls/a.crt"),
            key: folder.join("tls/a.key"),
            authority: folder.join("tls/authority.crt"),
        }
    }

    #[test]
    fn a_key_that_is_there_stays_unless_its_replacement_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        Draft::begin(files.clone(), "one", false).unwrap().place("leaf", "root").unwrap();
        assert!(matches!(Draft::begin(files.clone(), "two", false), Err(EnrolError::KeyExists(_))));
        assert_eq!(fs::read_to_string(&files.key).unwrap(), "one");
        Draft::begin(files.clone(), "two", true).unwrap().place("leaf", "root").unwrap();
        assert_eq!(fs::read_to_string(&files.key).unwrap(), "two");
        assert_eq!(fs::read_to_string(&files.certificate).unwrap(), "leaf\nroot\n");
        assert_eq!(fs::metadata(&files.key).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn an_enrolment_given_up_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        drop(Draft::begin(files.clone(), "one", false).unwrap());
        assert_eq!(fs::read_dir(folder.path().join("tls")).unwrap().count(), 0);
    }
}
