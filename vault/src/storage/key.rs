//! The storage keys' file: making it, putting a newer key into it, reading it. Knows the file's
//! form (that of `age-keygen`, the newest key first, so stock `age -i` reads it too) and its
//! permissions; not what is encrypted with it.

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use age::secrecy::ExposeSecret;
use age::x25519::{Identity, Recipient};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A key is three short lines; a longer file is something else.
const MAX_FILE: u64 = 64 * 1024;
/// Most keys in a file: each is tried on every record that is read.
const MAX_KEYS: usize = 32;

/// The recipient that `conf/vault.toml` once showed: nobody who copies it has its identity.
const SAMPLE: &str = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";

/// What can be wrong with a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error(
        "{file}: cannot be read: {source}; make it with `vault keys init --file {file}`, or copy the other vault's"
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
    /// Something else than age identities.
    #[error(
        "{file}: holds something else than AGE-SECRET-KEY-1… lines; name the file that `vault keys init` wrote"
    )]
    Contents {
        /// The file.
        file: PathBuf,
    },
    /// No further key has a place.
    #[error(
        "{file}: holds {MAX_KEYS} keys, the most; run `vault keys rewrap`, then remove the oldest from it on both vaults"
    )]
    TooMany {
        /// The file.
        file: PathBuf,
    },
    /// No age identity was given.
    #[error("no AGE-SECRET-KEY-1… line was given; name a file that `vault keys init` or `age-keygen` wrote")]
    NoIdentity,
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
    /// No escrow recipient is written down.
    #[error(
        "storage.escrow_recipient is empty; write the age1… line that `vault keys init` or `vault keys escrow` printed"
    )]
    NoRecipient,
    /// The secret key stands where its recipient belongs. It is told to nobody.
    #[error(
        "storage.escrow_recipient: this is the secret key; write the age1… line (`age-keygen -y FILE` prints it), \
         and make another escrow key with `vault keys escrow` if others may have read this file"
    )]
    Secret,
    /// The sample's recipient, whose identity the operator cannot have.
    #[error(
        "storage.escrow_recipient: this is the documentation's sample, and its secret key is not yours; write the \
         age1… line that `vault keys init` or `vault keys escrow` printed"
    )]
    Sample,
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

/// One age identity of ours.
#[derive(Clone)]
pub struct Key {
    /// What opens records.
    pub identity: Identity,
    /// RFC 3339, as its file says; a label only.
    pub created: Option<String>,
}

impl Key {
    /// What records are sealed to (`age1…`).
    #[must_use]
    pub fn recipient(&self) -> Recipient {
        self.identity.to_public()
    }
}

/// Makes two new identities, each in its file as [`create`] does, or neither; returns their
/// recipients.
///
/// # Errors
/// One of the files exists or cannot be written.
pub fn create_both(first: &Path, second: &Path, now: SystemTime) -> Result<(String, String), KeyError> {
    // Before anything is made: half a pair of keys is worse than none.
    if second.exists() {
        return Err(KeyError::Exists { file: second.to_owned() });
    }
    let made = create(first, now)?;
    let other = create(second, now).inspect_err(|_| {
        let _ = std::fs::remove_file(first);
    })?;
    Ok((made, other))
}

/// Makes a new identity in `file` (mode 0600, synced) and returns its recipient (`age1…`).
///
/// # Errors
/// The file exists or cannot be written.
pub fn create(file: &Path, now: SystemTime) -> Result<String, KeyError> {
    let (recipient, text) = generate(now);
    let written = write_new(file, |handle| handle.write_all(text.as_bytes()));
    let written = written.and_then(|_| {
        sync_folder(file).inspect_err(|_| {
            let _ = std::fs::remove_file(file);
        })
    });
    written.map_err(|source| match source.kind() {
        ErrorKind::AlreadyExists => KeyError::Exists { file: file.to_owned() },
        _ => KeyError::Write { file: file.to_owned(), source },
    })?;
    Ok(recipient)
}

/// Puts a new identity before those in `file` and returns its recipient. The earlier ones stay:
/// records are sealed to them until all are rewrapped. The file is replaced as a whole, and
/// keeps its owner.
///
/// # Errors
/// As [`load`]; too many keys; the folder cannot be written.
pub fn rotate(file: &Path, now: SystemTime) -> Result<String, KeyError> {
    if load(file)?.len() >= MAX_KEYS {
        return Err(KeyError::TooMany { file: file.to_owned() });
    }
    let fail = |source| KeyError::Write { file: file.to_owned(), source };
    let earlier = std::fs::read(file).map_err(fail)?;
    let owner = std::fs::metadata(file).map_err(fail)?;
    let (recipient, mut text) = generate(now);
    text.push_str(&String::from_utf8_lossy(&earlier));
    let mut temporary = file.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    // Its name is also the lock: two rotations at once would lose one key.
    let handle = write_new(&temporary, |handle| handle.write_all(text.as_bytes())).map_err(|source| {
        match source.kind() {
            ErrorKind::AlreadyExists => KeyError::Exists { file: temporary.clone() },
            _ => fail(source),
        }
    })?;
    let placed = std::os::unix::fs::fchown(&handle, Some(owner.uid()), Some(owner.gid()))
        .and_then(|()| std::fs::rename(&temporary, file))
        .and_then(|()| sync_folder(file));
    placed.map_err(|source| {
        // Gone already if only the folder could not be flushed.
        let _ = std::fs::remove_file(&temporary);
        fail(source)
    })?;
    Ok(recipient)
}

fn generate(now: SystemTime) -> (String, String) {
    let identity = Identity::generate();
    let recipient = identity.to_public().to_string();
    let created = OffsetDateTime::from(now).replace_nanosecond(0).unwrap_or_else(|_| now.into());
    let created = created.format(&Rfc3339).unwrap_or_default();
    let secret = identity.to_string();
    let text = format!("# created: {created}\n# public key: {recipient}\n{}\n", secret.expose_secret());
    (recipient, text)
}

/// A file that was not there before and, unless it is filled, is not there afterwards: half a key
/// would stand in the next one's way.
fn write_new(
    file: &Path,
    fill: impl FnOnce(&mut std::fs::File) -> std::io::Result<()>,
) -> std::io::Result<std::fs::File> {
    let mut open = std::fs::OpenOptions::new();
    let mut handle = open.write(true).create_new(true).mode(0o600).open(file)?;
    let filled = fill(&mut handle).and_then(|()| handle.sync_all());
    filled.inspect_err(|_| {
        let _ = std::fs::remove_file(file);
    })?;
    Ok(handle)
}

fn sync_folder(file: &Path) -> std::io::Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    std::fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// Reads the identities in `file`, the newest first: at least one.
///
/// # Errors
/// Unreadable, readable by others, or not identities alone.
pub fn load(file: &Path) -> Result<Vec<Key>, KeyError> {
    let unread = |source| KeyError::Read { file: file.to_owned(), source };
    let handle = std::fs::File::open(file).map_err(unread)?;
    let mode = handle.metadata().map_err(unread)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Permissions { file: file.to_owned(), mode });
    }
    let mut bytes = Vec::new();
    handle.take(MAX_FILE).read_to_end(&mut bytes).map_err(unread)?;
    let strange = || KeyError::Contents { file: file.to_owned() };
    let keys = String::from_utf8(bytes).ok().and_then(|text| parse(&text)).ok_or_else(strange)?;
    if keys.len() > MAX_KEYS {
        return Err(KeyError::TooMany { file: file.to_owned() });
    }
    Ok(keys)
}

/// A warning where others on this host may read a key that was named on the command line.
#[must_use]
pub fn told_others(file: &Path) -> Option<String> {
    let mode = std::fs::metadata(file).ok()?.permissions().mode() & 0o7777;
    let warning = || format!("{0}: mode {mode:04o} lets others read the key; chmod 600 {0}", file.display());
    (mode & 0o077 != 0).then(warning)
}

/// Reads identities as their file holds them: at least one, and nothing else but comments. One that
/// stands there twice counts once, where it stands first.
#[must_use]
pub fn parse(text: &str) -> Option<Vec<Key>> {
    let (mut keys, mut seen, mut created) = (Vec::new(), HashSet::new(), None);
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Some(comment) = line.strip_prefix('#') {
            let told = comment.trim().strip_prefix("created:").map(|told| told.trim().to_owned());
            created = told.or(created);
            continue;
        }
        let key = Key { identity: line.parse().ok()?, created: created.take() };
        keys.extend(seen.insert(key.recipient().to_string()).then_some(key));
    }
    (!keys.is_empty()).then_some(keys)
}

/// Reads a recipient as the configuration gives it.
///
/// # Errors
/// Not an age X25519 recipient, or one that nobody here has the identity of.
pub fn parse_recipient(text: &str) -> Result<Recipient, KeyError> {
    // Before anything that echoes it.
    if text.to_ascii_uppercase().contains("SECRET-KEY") {
        return Err(KeyError::Secret);
    }
    match text.trim() {
        "" => return Err(KeyError::NoRecipient),
        SAMPLE => return Err(KeyError::Sample),
        _ => {}
    }
    text.parse().map_err(|why| KeyError::Recipient { text: text.to_owned(), why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_is_private_reads_back_and_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("active.key");
        let made = create(&file, SystemTime::UNIX_EPOCH).unwrap();
        assert!(made.starts_with("age1"));
        let recipients = || -> Vec<String> {
            load(&file).unwrap().iter().map(|key| key.recipient().to_string()).collect()
        };
        assert_eq!(recipients(), std::slice::from_ref(&made));
        assert_eq!(load(&file).unwrap()[0].created.as_deref(), Some("1970-01-01T00:00:00Z"));
        let mode = || std::fs::metadata(&file).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(), 0o600);
        assert!(matches!(create(&file, SystemTime::UNIX_EPOCH), Err(KeyError::Exists { .. })));
        assert_eq!(recipients(), std::slice::from_ref(&made));

        let newer = rotate(&file, SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!((recipients(), mode()), (vec![newer.clone(), made.clone()], 0o600));
        // One that died half-way, or runs just now.
        std::fs::write(folder.path().join("active.key.new"), "").unwrap();
        assert!(matches!(rotate(&file, SystemTime::UNIX_EPOCH), Err(KeyError::Exists { .. })));
        assert_eq!(recipients(), [newer, made]);
    }

    #[test]
    fn keys_that_cannot_all_be_written_leave_nothing_in_the_next_ones_way() {
        let folder = tempfile::tempdir().unwrap();
        let [active, escrow, absent] =
            ["active.key", "escrow.key", "absent/escrow.key"].map(|name| folder.path().join(name));
        let now = SystemTime::UNIX_EPOCH;
        assert!(matches!(create_both(&active, &absent, now), Err(KeyError::Write { .. })));
        assert!(!active.exists(), "half a pair");
        create_both(&active, &escrow, now).unwrap();
        let whole = std::fs::read(&active).unwrap();
        assert!(matches!(
            create_both(&active, &folder.path().join("other"), now),
            Err(KeyError::Exists { .. })
        ));
        assert!(matches!(
            create_both(&folder.path().join("other"), &escrow, now),
            Err(KeyError::Exists { .. })
        ));
        assert_eq!(std::fs::read(&active).unwrap(), whole, "what was there stays");
        assert!(!folder.path().join("other").exists());

        let full = |_: &mut std::fs::File| {
            std::fs::OpenOptions::new()
                .write(true)
                .open("/dev/full")
                .and_then(|mut disk| disk.write_all(b"key"))
        };
        let temporary = folder.path().join("active.key.new");
        assert_eq!(write_new(&temporary, full).unwrap_err().kind(), ErrorKind::StorageFull);
        rotate(&active, now).unwrap();
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("active.key");
        create(&file, SystemTime::UNIX_EPOCH).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        let refused = load(&file).err().unwrap().to_string();
        assert!(refused.contains("mode 0640 lets others read the key; chmod 600"), "{refused}");
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("active.key");
        for text in ["", "# nothing\n", "AGE-SECRET-KEY-1XYZ\n", "hello\nworld\n"] {
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
            assert!(matches!(load(&file), Err(KeyError::Contents { .. })), "{text:?}");
        }
        assert!(matches!(parse_recipient("age1nonsense"), Err(KeyError::Recipient { .. })));
    }

    #[test]
    fn a_key_that_stands_twice_counts_once() {
        let (_, newer) = generate(SystemTime::UNIX_EPOCH);
        let (_, earlier) = generate(SystemTime::UNIX_EPOCH);
        let keys = parse(&[&*newer, &earlier, &newer].concat()).unwrap();
        let both = parse(&[&*newer, &earlier].concat()).unwrap();
        let told = |keys: &[Key]| -> Vec<_> { keys.iter().map(|key| key.recipient().to_string()).collect() };
        assert_eq!(told(&keys), told(&both));
    }

    #[test]
    fn a_secret_key_and_the_sample_are_no_escrow_recipient_and_the_secret_is_not_echoed() {
        let (recipient, text) = generate(SystemTime::UNIX_EPOCH);
        let secret = text.lines().last().unwrap();
        for pasted in [secret, &secret.to_lowercase(), &text] {
            let told = parse_recipient(pasted).err().unwrap().to_string();
            assert!(told.contains("this is the secret key; write the age1"), "{told}");
            assert!(!told.to_uppercase().contains(&secret[..24]), "{told}");
        }
        assert!(matches!(parse_recipient(SAMPLE), Err(KeyError::Sample)));
        assert!(matches!(parse_recipient(" "), Err(KeyError::NoRecipient)));
        assert!(parse_recipient(&recipient).is_ok());
    }
}
