//! Who may connect: a file of names and salted hashes (scrypt, in PHC's form), one a line. Knows no
//! connection. The file is read at every login, so that a change counts at once; what was proved or
//! refused once is remembered in memory under a key of this process, so that a thousand clients that
//! come back together do not cost a thousand hashes, nor a client with yesterday's password one a second.
//! Each address waits for its own turn, so that none that guesses keeps the others out; so many wait, so
//! long, and what was proved or refused once waits for nobody.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use scrypt::password_hash::{PasswordHash, PasswordHasher as _, PasswordVerifier as _, SaltString};
use scrypt::{Params, Scrypt};
use shared::tls::is_name;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

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
/// So many of one address wait for an answer,
const MOST_OF_ONE: usize = 32;
/// and so many of all,
const MOST_WAITING: usize = 1024;
/// so long.
const PATIENCE: Duration = Duration::from_secs(10);

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

/// What the door says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is this user.
    Known,
    /// It is not.
    Wrong,
    /// Nobody has looked: too many ask.
    Busy,
}

impl Verdict {
    fn known_if(is_known: bool) -> Self {
        if is_known { Self::Known } else { Self::Wrong }
    }
}

/// The door: everybody, or who stands in the file. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Door {
    file: Option<PathBuf>,
    at_once: Arc<Semaphore>,
    /// Room for those who wait for it.
    waiting: Arc<Semaphore>,
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
            waiting: Arc::new(Semaphore::new(MOST_WAITING)),
            proved: Arc::default(),
            refused: Arc::default(),
            turns: Arc::default(),
            key,
        })
    }

    /// Is it this user? May be dropped while it waits.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) async fn lets_in(
        &self,
        from: IpAddr,
        name: &str,
        password: &str,
    ) -> Result<Verdict, UsersError> {
        let Some(file) = self.file.clone() else { return Ok(Verdict::Known) };
        let known = tokio::task::spawn_blocking(move || read(&file)).await;
        let mut known = known.unwrap_or_else(|error| Err(UsersError::Hash(error.to_string())))?;
        if password.len() > LONGEST_PASSWORD {
            return Ok(Verdict::Wrong);
        }
        // A stranger's name takes as long as a known one's.
        let (hash, is_known) = match known.remove(name) {
            Some(hash) => (Some(hash), true),
            None => (known.into_values().next(), false),
        };
        let Some(hash) = hash else { return Ok(Verdict::Wrong) };
        Ok(match self.proves(from, name, password, hash).await {
            Some(fine) => Verdict::known_if(fine && is_known),
            None => Verdict::Busy,
        })
    }

    /// Is it the password? None if that cannot be looked at in time.
    async fn proves(&self, from: IpAddr, name: &str, password: &str, hash: String) -> Option<bool> {
        let proof = self.proof(password, &hash);
        if let Some(known) = self.remembers(name, &proof) {
            return Some(known);
        }
        let _place = self.waiting.try_acquire().ok()?;
        let turn = self.turn(from)?;
        let own = timeout(PATIENCE, turn.acquire_owned()).await.ok()?.ok()?;
        // Another that came with it may have been looked at meanwhile.
        if let Some(known) = self.remembers(name, &proof) {
            return Some(known);
        }
        let turn = timeout(PATIENCE, Arc::clone(&self.at_once).acquire_owned()).await.ok()?.ok()?;
        let (door, name, password) = (self.clone(), name.to_owned(), password.to_owned());
        // It is done also for one that has left, and its turn is over then.
        let verify = move || door.verify(name, &password, &hash, proof, (own, turn));
        tokio::task::spawn_blocking(verify).await.ok()
    }

    fn remembers(&self, name: &str, proof: &[u8; 32]) -> Option<bool> {
        if locked(&self.proved).get(name) == Some(proof) {
            return Some(true);
        }
        locked(&self.refused).contains(proof).then_some(false)
    }

    fn verify(
        &self,
        name: String,
        password: &str,
        hash: &str,
        proof: [u8; 32],
        _turns: (OwnedSemaphorePermit, OwnedSemaphorePermit),
    ) -> bool {
        let parsed = PasswordHash::new(hash);
        let fine = parsed.is_ok_and(|hash| Scrypt.verify_password(password.as_bytes(), &hash).is_ok());
        if fine {
            let mut proved = locked(&self.proved);
            if proved.len() >= MOST_PROVED {
                proved.clear();
            }
            proved.insert(name, proof);
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

    /// What those of an address wait for, if not too many of them do.
    fn turn(&self, from: IpAddr) -> Option<Arc<Semaphore>> {
        let mut turns = locked(&self.turns);
        if turns.len() >= MOST_ADDRESSES {
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        }
        let turn = turns.entry(from).or_insert_with(|| Arc::new(Semaphore::new(1)));
        (Arc::strong_count(turn) <= MOST_OF_ONE).then(|| Arc::clone(turn))
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
        assert_eq!(door.lets_in(HOME, "erp", "open sesame").await.unwrap(), Verdict::Known);
        assert_eq!(door.lets_in(HOME, "erp", "open sesame").await.unwrap(), Verdict::Known, "remembered");
        for (name, password) in [("erp", "wrong"), ("erp", ""), ("", ""), ("shop", "open sesame")] {
            assert_eq!(
                door.lets_in(HOME, name, password).await.unwrap(),
                Verdict::Wrong,
                "{name} {password}"
            );
        }
        users.insert("erp".to_owned(), hash("erp", "another").unwrap());
        write(&file, &users).unwrap();
        assert_eq!(
            door.lets_in(HOME, "erp", "open sesame").await.unwrap(),
            Verdict::Wrong,
            "what was proved is forgotten"
        );
        users.clear();
        write(&file, &users).unwrap();
        assert_eq!(door.lets_in(HOME, "erp", "another").await.unwrap(), Verdict::Wrong);
        let open = Door::new(None).unwrap();
        assert_eq!(open.lets_in(HOME, "", "").await.unwrap(), Verdict::Known, "open to everybody");
    }

    #[tokio::test]
    async fn an_address_that_guesses_passwords_keeps_no_other_one_waiting() {
        const GUESSES: usize = 3;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("users");
        let users = Users::from([("erp".to_owned(), hash("erp", "open sesame").unwrap())]);
        write(&file, &users).unwrap();
        let door = Door::new(Some(file)).unwrap();
        let mut guesses = tokio::task::JoinSet::new();
        let stranger: IpAddr = Ipv4Addr::new(192, 0, 2, 1).into();
        // The one in front of them takes for ever.
        let first = door.turn(stranger).unwrap().acquire_owned().await.unwrap();
        for guess in 0..GUESSES {
            let door = door.clone();
            guesses.spawn(
                async move { door.lets_in(stranger, "erp", &format!("guess {guess}")).await.unwrap() },
            );
        }
        while locked(&door.turns).get(&stranger).is_none_or(|turn| Arc::strong_count(turn) < 2 + GUESSES) {
            tokio::task::yield_now().await;
        }
        assert_eq!(door.lets_in(HOME, "erp", "open sesame").await.unwrap(), Verdict::Known);
        assert!(guesses.try_join_next().is_none());
        drop(first);
        assert!(guesses.join_all().await.iter().all(|verdict| *verdict == Verdict::Wrong));
        assert_eq!(locked(&door.refused).len(), GUESSES);
        assert_eq!(door.lets_in(stranger, "erp", "guess 0").await.unwrap(), Verdict::Wrong, "remembered");
    }

    #[tokio::test]
    async fn so_many_of_an_address_wait_and_who_is_remembered_waits_for_none_of_them() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("users");
        let users = Users::from([("erp".to_owned(), hash("erp", "open sesame").unwrap())]);
        write(&file, &users).unwrap();
        let door = Door::new(Some(file)).unwrap();
        assert_eq!(door.lets_in(HOME, "erp", "open sesame").await.unwrap(), Verdict::Known);
        let crowd: Vec<_> = (0..MOST_OF_ONE).map(|_| door.turn(HOME).unwrap()).collect();
        assert_eq!(door.lets_in(HOME, "erp", "a guess").await.unwrap(), Verdict::Busy);
        assert_eq!(door.lets_in(HOME, "erp", "open sesame").await.unwrap(), Verdict::Known);
        let stranger: IpAddr = Ipv4Addr::new(192, 0, 2, 1).into();
        assert_eq!(door.lets_in(stranger, "erp", "a guess").await.unwrap(), Verdict::Wrong);
        drop(crowd);
        assert_eq!(door.lets_in(HOME, "erp", "another guess").await.unwrap(), Verdict::Wrong);
    }

    #[tokio::test]
    async fn who_leaves_gives_up_no_turn_before_his_hash_is_done() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("users");
        let users = Users::from([("erp".to_owned(), hash("erp", "open sesame").unwrap())]);
        write(&file, &users).unwrap();
        let door = Door::new(Some(file)).unwrap();
        // On a busy machine one may be done before it is noticed.
        for guess in 1.. {
            let asker = door.clone();
            let asks = tokio::spawn(async move { asker.lets_in(HOME, "erp", &guess.to_string()).await });
            while door.at_once.available_permits() == AT_ONCE && !asks.is_finished() {
                tokio::task::yield_now().await;
            }
            asks.abort();
            let has_left = asks.await.is_err_and(|error| error.is_cancelled());
            while door.at_once.available_permits() < AT_ONCE {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(locked(&door.refused).len(), guess);
            if has_left {
                break;
            }
        }
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
