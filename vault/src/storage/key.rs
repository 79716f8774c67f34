//! The active age identity's file: making it, reading it, and its recipient. Knows the
//! file's form (that of `age-keygen`, so stock `age -i` reads it too) and its permissions;
//! not what is encrypted with it.

use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use age::secrecy::ExposeSecret;
use age::x25519::{Identity, Recipient};

/// A key file is three short lines; more is something else.
const MAX_FILE: u64 = 64 * 1024;

/// What can be wrong with a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error(
        "{file}: cannot be read: {source}; make it with `vault key new --file {file}`, or copy the other vault's"
    )]
    Read {
        /// The file.
        file: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Others on this host may read the file.
    #[error("{file}: mode {mode:04o} lets others read the key; chmod 600 {file}")]
    Permissions {
        /// The file.
        file: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not exactly one age identity.
    #[error("{file}: holds no single AGE-SECRET-KEY-1… line; name the file that `vault key new` wrote")]
    Contents {
        /// The file.
        file: PathBuf,
    },
    /// The file to be created is there.
    #[error(
        "{file}: exists, and a key is never overwritten: what it encrypted would be lost; name another file"
    )]
    Exists {
        /// The file.
        file: PathBuf,
    },
    /// The new file cannot be written.
    #[error(
        "{file}: cannot be written: {source}; no key was made: is its folder there, and may you write to it?"
    )]
    Write {
        /// The file.
        file: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The escrow recipient is none.
    #[error(
        "storage.escrow_recipient: {text:?} is no age recipient: {why}; write the age1… line of the escrow key"
    )]
    Recipient {
        /// What was configured.
        text: String,
        /// age's reason.
        why: &'static str,
    },
}

/// Makes a new identity in `file` (mode 0600, synced) and returns its recipient (`age1…`).
///
/// # Errors
/// The file exists or cannot be written.
pub fn create(file: &Path) -> Result<String, KeyError> {
    let identity = Identity::generate();
    let recipient = identity.to_public().to_string();
    let text = format!("# public key: {recipient}\n{}\n", identity.to_string().expose_secret());
    let mut open = std::fs::OpenOptions::new();
    let mut handle =
        open.write(true).create_new(true).mode(0o600).open(file).map_err(|source| match source.kind() {
            std::io::ErrorKind::AlreadyExists => KeyError::Exists { file: file.to_owned() },
            _ => KeyError::Write { file: file.to_owned(), source },
        })?;
    handle
        .write_all(text.as_bytes())
        .and_then(|()| handle.sync_all())
        .map_err(|source| KeyError::Write { file: file.to_owned(), source })?;
    Ok(recipient)
}

/// The recipient (`age1…`) of the identity in `file`.
///
/// # Errors
/// As [`load`].
pub fn recipient(file: &Path) -> Result<String, KeyError> {
    Ok(load(file)?.to_public().to_string())
}

/// Reads the identity in `file`.
///
/// # Errors
/// Unreadable, readable by others, or not exactly one identity.
pub fn load(file: &Path) -> Result<Identity, KeyError> {
    let unread = |source| KeyError::Read { file: file.to_owned(), source };
    let handle = std::fs::File::open(file).map_err(unread)?;
    let mode = handle.metadata().map_err(unread)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Permissions { file: file.to_owned(), mode });
    }
    let mut bytes = Vec::new();
    handle.take(MAX_FILE).read_to_end(&mut bytes).map_err(unread)?;
    let text = String::from_utf8(bytes).map_err(|_| KeyError::Contents { file: file.to_owned() })?;
    let mut keys = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    match (keys.next().map(str::parse), keys.next()) {
        (Some(Ok(identity)), None) => Ok(identity),
        _ => Err(KeyError::Contents { file: file.to_owned() }),
    }
}

/// Reads a recipient as the configuration gives it.
///
/// # Errors
/// Not an age X25519 recipient.
pub fn parse_recipient(text: &str) -> Result<Recipient, KeyError> {
    text.parse().map_err(|why| KeyError::Recipient { text: text.to_owned(), why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_is_private_reads_back_and_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("active.key");
        let made = create(&file).unwrap();
        assert!(made.starts_with("age1"));
        assert_eq!(recipient(&file).unwrap(), made);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(create(&file), Err(KeyError::Exists { .. })));
        assert_eq!(recipient(&file).unwrap(), made);
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("active.key");
        create(&file).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        let refused = load(&file).err().unwrap().to_string();
        assert!(refused.contains("mode 0640 lets others read the key; chmod 600"), "{refused}");
    }

    #[test]
    fn what_is_no_single_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("active.key");
        for text in ["", "# nothing\n", "AGE-SECRET-KEY-1XYZ\n", "hello\nworld\n"] {
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
            assert!(matches!(load(&file), Err(KeyError::Contents { .. })), "{text:?}");
        }
        assert!(matches!(parse_recipient("age1nonsense"), Err(KeyError::Recipient { .. })));
    }
}
