//! Who may connect: a file of names and salted hashes (scrypt, in PHC's form), one a line. Knows no
//! connection. The file is read at every login, so that a change counts at once; what was proved once
//! is remembered in memory under a key of this process, so that a thousand clients that come back
//! together do not cost a thousand hashes.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use scrypt::password_hash::{PasswordHash, PasswordHasher as _, PasswordVerifier as _, SaltString};
use scrypt::{Params, Scrypt};
use shared::tls::is_name;
use tokio::sync::Semaphore;

/// Hashes computed at once, 16 MiB each.
const AT_ONCE: usize = 2;
/// Longest file, bytes.
const LONGEST: u64 = 4 << 20;
/// Longest password, bytes.
const LONGEST_PASSWORD: usize = 1024;
/// Remembered proofs; one a user.
const MOST_PROVED: usize = 10_000;

/// What can be wrong with the users.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// The file cannot be read or written.
    #[error("broker.users_file: {file}: {source}; it must be this user's to read, one NAME:HASH a line")]
    File {
        /// Which file.
        file: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A line is none.
    #[error("broker.users_file: {file}:{line}: no NAME:HASH; remove it and add the user anew")]
    Line {
        /// Which file.
        file: PathBuf,
        /// From 1.
        line: usize,
    },
    /// A name that cannot stand in the file.
    #[error("{0:?} is no user's name; use 1 to 64 letters, digits, dots, dashes, underscores")]
    Name(String),
    /// Empty, or too long to be typed.
    #[error("a password has 1 to {LONGEST_PASSWORD} bytes; choose another")]
    Password,
    /// The system gives no randomness, or the library refuses.
    #[error("the password cannot be hashed: {0}")]
    Hash(String),
}

/// Names and hashes.
pub type Users = BTreeMap<String, String>;

/// Reads the file; one that is not there has nobody in it.
///
/// # Errors
/// [`UsersError::File`], [`UsersError::Line`].
pub fn read(file: &Path) -> Result<Users, UsersError> {
    let failed = |source| UsersError::File { file: file.to_owned(), source };
    match std::fs::metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Users::new()),
        Err(error) => return Err(failed(error)),
        Ok(about) if about.len() > LONGEST => return Err(failed(io::ErrorKind::FileTooLarge.into())),
        Ok(_) => {}
    }
    let text = std::fs::read_to_string(file).map_err(failed)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|(at, line)| {
            let wrong = || UsersError::Line { file: file.to_owned(), line: at + 1 };
            let (name, hash) = line.split_once(':').ok_or_else(wrong)?;
            let fine = is_name(name) && PasswordHash::new(hash).is_ok();
            fine.then(|| (name.to_owned(), hash.to_owned())).ok_or_else(wrong)
        })
        .collect()
}

/// Writes the file anew, readable by this user alone.
///
/// # Errors
/// [`UsersError::File`].
pub fn write(file: &Path, users: &Users) -> Result<(), UsersError> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let failed = |source| UsersError::File { file: file.to_owned(), source };
    let mut beside = file.as_os_str().to_owned();
    beside.push(".new");
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut new = options.open(&beside).map_err(failed)?;
    for (name, hash) in users {
        writeln!(new, "{name}:{hash}").map_err(failed)?;
    }
    new.sync_all().map_err(failed)?;
    std::fs::rename(&beside, file).map_err(failed)
}

/// A new hash for a user's password, with a salt of its own.
///
/// # Errors
/// [`UsersError::Name`], [`UsersError::Password`], [`UsersError::Hash`].
pub fn hash(name: &str, password: &str) -> Result<String, UsersError> {
    if !is_name(name) {
        return Err(UsersError::Name(name.to_owned()));
    }
    if password.is_empty() || password.len() > LONGEST_PASSWORD {
        return Err(UsersError::Password);
    }
    let refused = |error: scrypt::password_hash::Error| UsersError::Hash(error.to_string());
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).map_err(|error| UsersError::Hash(error.to_string()))?;
    let salt = SaltString::encode_b64(&salt).map_err(refused)?;
    // 16 MiB and five passes: among what OWASP's password storage cheat sheet recommends for scrypt.
    let params = Params::new(14, 8, 5, Params::RECOMMENDED_LEN);
    let params = params.map_err(|error| UsersError::Hash(error.to_string()))?;
    let hash = Scrypt.hash_password_customized(password.as_bytes(), None, None, params, &salt);
    Ok(hash.map_err(refused)?.to_string())
}

/// The door: everybody, or who stands in the file. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Door {
    file: Option<PathBuf>,
    at_once: Arc<Semaphore>,
    proved: Arc<Mutex<HashMap<String, [u8; 32]>>>,
    key: [u8; 32],
}

impl Door {
    /// Without a file everybody is let in.
    pub(super) fn new(file: Option<PathBuf>) -> Result<Self, UsersError> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|error| UsersError::Hash(error.to_string()))?;
        Ok(Self { file, at_once: Arc::new(Semaphore::new(AT_ONCE)), proved: Arc::default(), key })
    }

    /// Is it this user?
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) async fn lets_in(&self, name: &str, password: &str) -> Result<bool, UsersError> {
        let Some(file) = self.file.clone() else { return Ok(true) };
        let known = tokio::task::spawn_blocking(move || read(&file)).await;
        let mut known = known.unwrap_or_else(|error| Err(UsersError::Hash(error.to_string())))?;
        if password.len() > LONGEST_PASSWORD {
            return Ok(false);
        }
        // A stranger's name takes as long as a known one's.
        let (hash, is_known) = match known.remove(name) {
            Some(hash) => (Some(hash), true),
            None => (known.into_values().next(), false),
        };
        let Some(hash) = hash else { return Ok(false) };
        Ok(self.proves(name, password, hash).await && is_known)
    }

    async fn proves(&self, name: &str, password: &str, hash: String) -> bool {
        let proof = self.proof(password, &hash);
        if self.locked().get(name) == Some(&proof) {
            return true;
        }
        let _turn = self.at_once.acquire().await;
        let password = password.to_owned();
        let verify = move || {
            let parsed = PasswordHash::new(&hash);
            parsed.is_ok_and(|hash| Scrypt.verify_password(password.as_bytes(), &hash).is_ok())
        };
        let fine = tokio::task::spawn_blocking(verify).await.unwrap_or(false);
        if fine {
            let mut proved = self.locked();
            if proved.len() >= MOST_PROVED {
                proved.clear();
            }
            proved.insert(name.to_owned(), proof);
        }
        fine
    }

    fn proof(&self, password: &str, hash: &str) -> [u8; 32] {
        let mut proof = blake3::Hasher::new_keyed(&self.key);
        proof.update(hash.as_bytes()).update(b"\n").update(password.as_bytes());
        *proof.finalize().as_bytes()
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, HashMap<String, [u8; 32]>> {
        self.proved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_user_is_let_in_with_the_password_of_today_and_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("users");
        let mut users = Users::from([("erp".to_owned(), hash("erp", "open sesame").unwrap())]);
        write(&file, &users).unwrap();
        let door = Door::new(Some(file.clone())).unwrap();
        assert!(door.lets_in("erp", "open sesame").await.unwrap());
        assert!(door.lets_in("erp", "open sesame").await.unwrap(), "remembered");
        for (name, password) in [("erp", "wrong"), ("erp", ""), ("", ""), ("shop", "open sesame")] {
            assert!(!door.lets_in(name, password).await.unwrap(), "{name} {password}");
        }
        users.insert("erp".to_owned(), hash("erp", "another").unwrap());
        write(&file, &users).unwrap();
        assert!(!door.lets_in("erp", "open sesame").await.unwrap(), "what was proved is forgotten");
        users.clear();
        write(&file, &users).unwrap();
        assert!(!door.lets_in("erp", "another").await.unwrap());
        assert!(Door::new(None).unwrap().lets_in("", "").await.unwrap(), "open to everybody");
    }

    #[test]
    fn a_file_that_is_none_lets_nobody_in_and_is_told_with_its_line() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("users");
        assert!(read(&file).unwrap().is_empty());
        let users = Users::from([("erp".to_owned(), hash("erp", "open sesame").unwrap())]);
        write(&file, &users).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read(&file).unwrap(), users);
        std::fs::write(&file, "# staff\n\nerp:secret\n").unwrap();
        assert!(read(&file).unwrap_err().to_string().contains("users:3: no NAME:HASH"));
        for (name, password) in [("a b", "x"), ("", "x"), ("erp", ""), ("erp", &*"x".repeat(1025))] {
            hash(name, password).unwrap_err();
        }
    }
}
