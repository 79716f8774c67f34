//! Who may connect: a file of names and salted hashes (scrypt, in PHC's form), one a line. Knows no
//! connection. The file is read at every login, so that a change counts at once; what was proved or
//! refused once is remembered in memory under a key of this process, so that a thousand clients that
//! come back together do not cost a thousand hashes, nor a client with yesterday's password one a second.
//! Each address waits for its own turn, so that none that guesses keeps the others out.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
/// Remembered refusals.
const MOST_REFUSED: usize = 10_000;
/// Addresses that are known to have asked; more only while as many wait.
const MOST_ADDRESSES: usize = 1024;

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
    refused: Arc<Mutex<HashSet<[u8; 32]>>>,
    /// One hash at a time for each address.
    turns: Arc<Mutex<HashMap<IpAddr, Arc<Semaphore>>>>,
    key: [u8; 32],
}

impl Door {
    /// Without a file everybody is let in.
    pub(super) fn new(file: Option<PathBuf>) -> Result<Self, UsersError> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|error| UsersError::Hash(error.to_string()))?;
        Ok(Self {
            file,
            at_once: Arc::new(Semaphore::new(AT_ONCE)),
            proved: Arc::default(),
            refused: Arc::default(),
            turns: Arc::default(),
            key,
        })
    }

    /// Is it this user?
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) async fn lets_in(&self, from: IpAddr, name: &str, password: &str) -> Result<bool, UsersError> {
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
        Ok(self.proves(from, name, password, hash).await && is_known)
    }

    async fn proves(&self, from: IpAddr, name: &str, password: &str, hash: String) -> bool {
        let proof = self.proof(password, &hash);
        let own = self.turn(from);
        let _own = own.acquire().await;
        if locked(&self.proved).get(name) == Some(&proof) {
            return true;
        }
        if locked(&self.refused).contains(&proof) {
            return false;
        }
        let _turn = self.at_once.acquire().await;
        let password = password.to_owned();
        let verify = move || {
            let parsed = PasswordHash::new(&hash);
            parsed.is_ok_and(|hash| Scrypt.verify_password(password.as_bytes(), &hash).is_ok())
        };
        let fine = tokio::task::spawn_blocking(verify).await.unwrap_or(false);
        if fine {
            let mut proved = locked(&self.proved);
            if proved.len() >= MOST_PROVED {
                proved.clear();
            }
            proved.insert(name.to_owned(), proof);
        } else {
            let mut refused = locked(&self.refused);
            if refused.len() >= MOST_REFUSED {
                refused.clear();
            }
            refused.insert(proof);
        }
        fine
    }

    fn proof(&self, password: &str, hash: &str) -> [u8; 32] {
        let mut proof = blake3::Hasher::new_keyed(&self.key);
        proof.update(hash.as_bytes()).update(b"\n").update(password.as_bytes());
        *proof.finalize().as_bytes()
    }

    fn turn(&self, from: IpAddr) -> Arc<Semaphore> {
        let mut turns = locked(&self.turns);
        if turns.len() >= MOST_ADDRESSES {
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        }
        Arc::clone(turns.entry(from).or_insert_with(|| Arc::new(Semaphore::new(1))))
    }
}

fn locked<T>(it: &Mutex<T>) -> MutexGuard<'_, T> {
    it.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const HOME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[tokio::test]
    async fn a_user_is_let_in_with_the_password_of_today_and_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("users");
        let mut users = Users::from([("erp".to_owned(), hash("erp", "open sesame").unwrap())]);
        write(&file, &users).unwrap();
        let door = Door::new(Some(file.clone())).unwrap();
        assert!(door.lets_in(HOME, "erp", "open sesame").await.unwrap());
        assert!(door.lets_in(HOME, "erp", "open sesame").await.unwrap(), "remembered");
        for (name, password) in [("erp", "wrong"), ("erp", ""), ("", ""), ("shop", "open sesame")] {
            assert!(!door.lets_in(HOME, name, password).await.unwrap(), "{name} {password}");
        }
        users.insert("erp".to_owned(), hash("erp", "another").unwrap());
        write(&file, &users).unwrap();
        assert!(!door.lets_in(HOME, "erp", "open sesame").await.unwrap(), "what was proved is forgotten");
        users.clear();
        write(&file, &users).unwrap();
        assert!(!door.lets_in(HOME, "erp", "another").await.unwrap());
        assert!(Door::new(None).unwrap().lets_in(HOME, "", "").await.unwrap(), "open to everybody");
    }

    #[tokio::test]
    async fn an_address_that_guesses_passwords_keeps_no_other_one_waiting() {
        const GUESSES: usize = 8;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("users");
        let users = Users::from([("erp".to_owned(), hash("erp", "open sesame").unwrap())]);
        write(&file, &users).unwrap();
        let door = Door::new(Some(file)).unwrap();
        let mut guesses = tokio::task::JoinSet::new();
        let stranger: IpAddr = Ipv4Addr::new(192, 0, 2, 1).into();
        for guess in 0..GUESSES {
            let door = door.clone();
            guesses.spawn(
                async move { door.lets_in(stranger, "erp", &format!("guess {guess}")).await.unwrap() },
            );
        }
        // Whoever asks now finds all of them waiting.
        while locked(&door.turns).get(&stranger).is_none_or(|turn| Arc::strong_count(turn) < 1 + GUESSES) {
            tokio::task::yield_now().await;
        }
        assert!(door.lets_in(HOME, "erp", "open sesame").await.unwrap());
        let done = std::iter::from_fn(|| guesses.try_join_next()).count();
        assert!(done < GUESSES - 1, "{done} guesses went before");
        assert!(guesses.join_all().await.iter().all(|is_in| !is_in));
        assert_eq!(locked(&door.refused).len(), GUESSES);
        assert!(!door.lets_in(stranger, "erp", "guess 0").await.unwrap(), "remembered");
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
