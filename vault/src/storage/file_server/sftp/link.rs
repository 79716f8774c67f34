//! One connected session with its one `Sftp`: connecting, logging in, and the requests that
//! storage needs. One request at a time: libssh2 corrupts a file when requests are
//! interleaved, so everything here takes `&mut self`; only listings and objects' bytes, on
//! channels of their own without libssh2's `Sftp`, run ahead of their answers. Knows no ids and no pool.

use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ssh2::{File, FileStat, MethodType, OpenFlags, OpenType, RenameFlags, Session, Sftp};

use super::super::layout::Names;
use super::message::Request;
use super::moment;
use super::pipeline::{Answer, Pipeline};
use super::settings::{Login, SftpSettings};
use super::trouble::{Kind, Trouble};
use super::trust;

/// Measured in libssh2: chacha20 is 1.6 to 2.6 times as fast as AES-GCM.
const CIPHERS: &str = "chacha20-poly1305@openssh.com,aes256-ctr,aes128-ctr,aes256-gcm@openssh.com";
/// A private key is a few lines; more is something else.
const MAX_KEY: u64 = 64 * 1024;
/// Keys of an agent that are tried; servers allow about six attempts.
const AGENT_KEYS: usize = 5;
/// How long a question takes at most that only asks whether the server is still there.
const LIVENESS: Duration = Duration::from_secs(5);
/// Names read of one folder: with a thousand million objects, each of the 65,536 holds as many. More
/// are not of our making, and several folders are read at once.
const MAX_ENTRIES: usize = 1 << 14;
/// Bytes of a name; no file system of ours takes longer ones.
const MAX_NAME: usize = 255;

/// Why there is no session.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It cannot be reached, or breaks off: tried again by itself.
    Away(std::io::Error),
    /// It answers, and something is to be put right first; in words.
    NoEntry(String),
}

/// What a server does not know is asked once and then done without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flushed {
    /// It is on the disk.
    Yes,
    /// The server cannot say.
    Unknown,
}

/// A channel on which requests run ahead of their answers.
enum Ahead {
    Untried,
    Refused,
    On(Pipeline),
}

/// See the module.
pub(super) struct Link {
    sftp: Sftp,
    /// The first is for everything; the second for long files only.
    ahead: [Ahead; 2],
    session: Session,
    socket: TcpStream,
    timeout: Duration,
    /// When the place's marker was last seen on this session.
    pub(super) place_seen: Option<Instant>,
}

impl Link {
    /// Connects and logs in. Every step is bounded by `timeout`.
    pub(super) fn connect(settings: &SftpSettings, timeout: Duration) -> Result<Self, Refusal> {
        let socket = reach(settings, timeout).map_err(Refusal::Away)?;
        let mut session = Session::new().map_err(|error| away(&error))?;
        session.set_timeout(milliseconds(timeout));
        trust::prefer(&session, settings).map_err(Refusal::NoEntry)?;
        for method in [MethodType::CryptCs, MethodType::CryptSc] {
            session.method_pref(method, CIPHERS).map_err(|error| away(&error))?;
        }
        session.set_tcp_stream(socket.try_clone().map_err(Refusal::Away)?);
        session.handshake().map_err(|error| away(&error))?;
        trust::check(&session, settings).map_err(Refusal::NoEntry)?;
        log_in(&session, settings)?;
        let sftp = session.sftp().map_err(|error| {
            unless_broken(&error, || {
                let (user, why) = (&settings.user, error.message());
                format!("it offers no sftp to {user}: {why}; enable Subsystem sftp in its sshd_config")
            })
        })?;
        Ok(Self { sftp, ahead: [Ahead::Untried, Ahead::Untried], session, socket, timeout, place_seen: None })
    }

    /// Has the other side hung up? Costs no round trip.
    pub(super) fn is_closed(&self) -> bool {
        match self.socket.peek(&mut [0]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
        }
    }

    /// Does the other side still answer? For sessions that have lain idle.
    pub(super) fn answers(&mut self) -> bool {
        self.session.set_timeout(milliseconds(self.timeout.min(LIVENESS)));
        let answer = self.sftp.lstat(Path::new(".")).map_err(|error| self.told(&error));
        self.session.set_timeout(milliseconds(self.timeout));
        answer.map_or_else(|trouble| !trouble.spoils_session(), |_| true)
    }

    /// Cuts the connection, so that nothing that is dropped waits for the other side.
    pub(super) fn cut(&self) {
        // Already cut is as good.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Says goodbye; for sound sessions that are no longer wanted.
    pub(super) fn say_goodbye(&self) {
        self.session.set_timeout(milliseconds(Duration::from_secs(1)));
        // A courtesy to the server's log.
        let _ = self.session.disconnect(None, "no longer needed", None);
        self.cut();
    }

    /// Opens a file (or, for [`Self::flush_folder`], a folder) for reading.
    pub(super) fn open(&mut self, path: &Path) -> Result<File, Trouble> {
        self.sftp.open(path).map_err(|error| self.told(&error))
    }

    /// Makes a file that must not be there yet.
    pub(super) fn create(&mut self, path: &Path) -> Result<File, Trouble> {
        let flags = OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::EXCLUSIVE;
        self.sftp.open_mode(path, flags, 0o640, OpenType::File).map_err(|error| self.told(&error))
    }

    /// Opens a file that is there, to overwrite parts of it.
    pub(super) fn open_to_overwrite(&mut self, path: &Path) -> Result<File, Trouble> {
        self.sftp.open_mode(path, OpenFlags::WRITE, 0, OpenType::File).map_err(|error| self.told(&error))
    }

    /// Opens a file to write all of it; what it held is gone.
    pub(super) fn open_anew(&mut self, path: &Path) -> Result<File, Trouble> {
        let flags = OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::TRUNCATE;
        self.sftp.open_mode(path, flags, 0o640, OpenType::File).map_err(|error| self.told(&error))
    }

    /// An open file's facts.
    pub(super) fn facts(&mut self, file: &mut File) -> Result<FileStat, Trouble> {
        file.stat().map_err(|error| self.told(&error))
    }

    /// A name's facts.
    pub(super) fn stat(&mut self, path: &Path) -> Result<FileStat, Trouble> {
        self.sftp.lstat(path).map_err(|error| self.told(&error))
    }

    /// Flushes an open file to the server's disk.
    pub(super) fn flush(&mut self, file: &mut File) -> Result<Flushed, Trouble> {
        if cfg!(feature = "without-fsync") {
            return Ok(Flushed::Yes);
        }
        match file.fsync().map_err(|error| self.told(&error)) {
            Ok(()) => Ok(Flushed::Yes),
            // Not known, or forbidden in the server's configuration.
            Err(trouble) if matches!(trouble.kind, Kind::Unsupported | Kind::Denied) => Ok(Flushed::Unknown),
            Err(trouble) => Err(trouble),
        }
    }

    /// Flushes a folder's names. A server that will not open a folder cannot say.
    pub(super) fn flush_folder(&mut self, path: &Path) -> Result<Flushed, Trouble> {
        if cfg!(feature = "without-fsync") {
            return Ok(Flushed::Yes);
        }
        let mut folder = match self.open(path) {
            Ok(folder) => folder,
            Err(trouble) if matches!(trouble.kind, Kind::Failure | Kind::Denied | Kind::Unsupported) => {
                return Ok(Flushed::Unknown);
            }
            Err(trouble) => return Err(trouble),
        };
        match self.flush(&mut folder) {
            Err(trouble) if trouble.kind == Kind::Failure => Ok(Flushed::Unknown),
            other => other,
        }
    }

    /// Ends with a file; a late error of the server shows here.
    pub(super) fn close(&mut self, mut file: File) -> Result<(), Trouble> {
        file.close().map_err(|error| self.told(&error))
    }

    /// Makes a folder; one that is there is as good.
    pub(super) fn make_folder(&mut self, path: &Path) -> Result<(), Trouble> {
        match self.sftp.mkdir(path, 0o750).map_err(|error| self.told(&error)) {
            Err(trouble) if matches!(trouble.kind, Kind::Exists | Kind::Failure) => {
                self.stat(path).ok().filter(FileStat::is_dir).map(|_| ()).ok_or(trouble)
            }
            other => other,
        }
    }

    /// Gives another name, without overwriting where the server knows how (OpenSSH does;
    /// some overwrite whatever is asked).
    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> Result<(), Trouble> {
        self.sftp.rename(from, to, Some(RenameFlags::empty())).map_err(|error| self.told(&error))
    }

    /// Removes a file.
    pub(super) fn unlink(&mut self, path: &Path) -> Result<(), Trouble> {
        self.sftp.unlink(path).map_err(|error| self.told(&error))
    }

    /// The names in a folder with their facts, in no order; none if it is not there, and of very
    /// many only some.
    pub(super) fn entries(&mut self, path: &Path) -> Result<Vec<(String, FileStat)>, Trouble> {
        self.read_folder(path).map(|(entries, _)| entries)
    }

    /// The same, and whether these are all.
    fn read_folder(&mut self, path: &Path) -> Result<(Vec<(String, FileStat)>, bool), Trouble> {
        let mut folder = match self.sftp.opendir(path).map_err(|error| self.told(&error)) {
            Ok(folder) => folder,
            Err(trouble) if trouble.kind == Kind::Missing => return Ok((Vec::new(), true)),
            Err(trouble) => return Err(trouble),
        };
        let (mut entries, mut all) = (Vec::new(), false);
        for _ in 0..MAX_ENTRIES {
            match folder.readdir() {
                Ok((name, _)) if name.as_os_str().len() > MAX_NAME => {}
                Ok((name, facts)) => entries.push((name.to_string_lossy().into_owned(), facts)),
                // How ssh2 says that this was all.
                Err(error) if error.code() == ssh2::ErrorCode::Session(-16) => {
                    all = true;
                    break;
                }
                Err(error) => return Err(self.told(&error)),
            }
        }
        self.close(folder)?;
        entries.retain(|(name, _)| name != "." && name != "..");
        Ok((entries, all))
    }

    /// The sorted names in a folder that are `wanted`.
    pub(super) fn names(&mut self, path: &Path, wanted: Names) -> Result<Vec<String>, Trouble> {
        let (entries, all) = self.read_folder(path)?;
        if !all {
            let text =
                format!("{}: holds {MAX_ENTRIES} names or more, far more than ours do", path.display());
            return Err(Trouble::new(Kind::Failure, text));
        }
        let mut names: Vec<_> = entries.into_iter().map(|(name, _)| name).collect();
        names.retain(|name| wanted.hold(name));
        names.sort_unstable();
        Ok(names)
    }

    /// As [`Self::names`] of each of `folders` from the first on until there are `enough` names,
    /// with requests in flight; `None` where the server gives a session no second channel for it.
    pub(super) fn names_of_many(
        &mut self,
        folders: &[PathBuf],
        wanted: Names,
        enough: usize,
        progress: &dyn Fn(),
    ) -> Result<Option<Vec<Vec<String>>>, Trouble> {
        let listed = self.pipeline().and_then(|pipeline| {
            pipeline.map(|pipeline| pipeline.list(folders, wanted, enough, progress)).transpose()
        });
        if listed.as_ref().is_err_and(Trouble::spoils_session) {
            self.cut();
        }
        listed
    }

    /// Asks several things at once on the second channel; `None` where the server gives none.
    pub(super) fn ask_at_once(&mut self, requests: &[Request<'_>]) -> Result<Option<Vec<Answer>>, Trouble> {
        let answered =
            self.pipeline().and_then(|pipeline| pipeline.map(|pipeline| pipeline.ask(requests)).transpose());
        if answered.as_ref().is_err_and(Trouble::spoils_session) {
            self.cut();
        }
        answered
    }

    /// Works on `most` channels on which requests run ahead, or on as many as the server gives;
    /// `None` where it gives none.
    pub(super) fn abreast<T>(
        &mut self,
        most: usize,
        work: impl FnOnce(&mut [&mut Pipeline]) -> Result<T, Trouble>,
    ) -> Result<Option<T>, Trouble> {
        let done = self.channels(most).and_then(|mut channels| match channels.as_mut_slice() {
            [] => Ok(None),
            channels => work(channels).map(Some),
        });
        if done.as_ref().is_err_and(Trouble::spoils_session) {
            self.cut();
        }
        done
    }

    fn pipeline(&mut self) -> Result<Option<&mut Pipeline>, Trouble> {
        open(&self.session, self.timeout, &mut self.ahead[0])?;
        Ok(self.ahead[0].on())
    }

    fn channels(&mut self, most: usize) -> Result<Vec<&mut Pipeline>, Trouble> {
        for ahead in self.ahead.iter_mut().take(most) {
            open(&self.session, self.timeout, ahead)?;
            if matches!(ahead, Ahead::Refused) {
                break;
            }
        }
        Ok(self.ahead.iter_mut().take(most).filter_map(Ahead::on).collect())
    }

    /// Bytes and names that may still be written below `path`; the server may not know.
    pub(super) fn space(&mut self, path: &Path) -> Result<Option<(u64, u64)>, Trouble> {
        let mut folder = match self.open(path) {
            Ok(folder) => folder,
            Err(trouble) if trouble.spoils_session() || trouble.kind == Kind::Missing => return Err(trouble),
            Err(_) => return Ok(None),
        };
        match folder.statvfs().map_err(|error| self.told(&error)) {
            Ok(space) => Ok(Some((space.f_bavail.saturating_mul(space.f_frsize), space.f_favail))),
            Err(trouble) if trouble.spoils_session() => Err(trouble),
            Err(_) => Ok(None),
        }
    }

    /// Sorts an error, and cuts the connection where it cannot be trusted any more.
    pub(super) fn told<'error, E>(&self, error: &'error E) -> Trouble
    where
        Trouble: From<&'error E>,
    {
        let trouble = Trouble::from(error);
        if trouble.spoils_session() {
            self.cut();
        }
        trouble
    }
}

impl Ahead {
    const fn on(&mut self) -> Option<&mut Pipeline> {
        match self {
            Self::On(pipeline) => Some(pipeline),
            Self::Untried | Self::Refused => None,
        }
    }
}

impl Drop for Link {
    /// Ending a session asks the other side, which may hang: measured, several seconds.
    fn drop(&mut self) {
        self.cut();
    }
}

fn open(session: &Session, timeout: Duration, ahead: &mut Ahead) -> Result<(), Trouble> {
    if matches!(ahead, Ahead::Untried) {
        *ahead = Pipeline::open(session, timeout)?.map_or(Ahead::Refused, Ahead::On);
    }
    Ok(())
}

fn reach(settings: &SftpSettings, timeout: Duration) -> std::io::Result<TcpStream> {
    let until = moment() + timeout;
    let mut refused = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
    for address in (settings.host.as_str(), settings.port).to_socket_addrs()? {
        let left = until.saturating_duration_since(moment());
        if left.is_zero() {
            break;
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(socket) => {
                socket.set_nodelay(true)?;
                // As libssh2 wants it, and as looking whether it is closed needs it.
                socket.set_nonblocking(true)?;
                return Ok(socket);
            }
            Err(error) => refused = std::io::Error::new(error.kind(), format!("{address}: {error}")),
        }
    }
    Err(refused)
}

fn log_in(session: &Session, settings: &SftpSettings) -> Result<(), Refusal> {
    let user = &settings.user;
    let (outcome, with) = match &settings.login {
        Login::KeyFile(file) => {
            let key = read_key(file).map_err(Refusal::NoEntry)?;
            (session.userauth_pubkey_memory(user, None, &key, None), format!("the key in {}", file.display()))
        }
        Login::Agent => (ask_agent(session, user), "the agent's keys".to_owned()),
    };
    let Err(error) = outcome else { return Ok(()) };
    Err(unless_broken(&error, || {
        format!(
            "it does not let {user} in with {with}: {}; append the public key to that user's authorized_keys \
             there (a key with a passphrase works only through an agent)",
            error.message()
        )
    }))
}

fn ask_agent(session: &Session, user: &str) -> Result<(), ssh2::Error> {
    let mut agent = session.agent()?;
    agent.connect()?;
    agent.list_identities()?;
    let mut refused = ssh2::Error::new(ssh2::ErrorCode::Session(-18), "the agent holds no key");
    for identity in agent.identities()?.iter().take(AGENT_KEYS) {
        match agent.userauth(user, identity) {
            Ok(()) => return Ok(()),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

fn read_key(file: &Path) -> Result<String, String> {
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;
    let name = file.display();
    let unread = |error| {
        format!("{name}: cannot be read: {error}; make it with `ssh-keygen -t ed25519 -N '' -f {name}`")
    };
    let handle = std::fs::File::open(file).map_err(unread)?;
    let mode = handle.metadata().map_err(unread)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(format!("{name}: mode {mode:04o} lets others read the key; chmod 600 {name}"));
    }
    let mut text = String::new();
    handle.take(MAX_KEY).read_to_string(&mut text).map_err(unread)?;
    if text.contains("PRIVATE KEY") {
        return Ok(text);
    }
    Err(format!("{name}: holds no private key; name the file that `ssh-keygen` wrote without .pub"))
}

fn away(error: &ssh2::Error) -> Refusal {
    Refusal::Away(Trouble::from(error).into_io())
}

/// A broken connection mends itself; anything else the operator does.
fn unless_broken(error: &ssh2::Error, words: impl FnOnce() -> String) -> Refusal {
    match error.code() {
        // Sending, receiving, time-outs, disconnection.
        ssh2::ErrorCode::Session(-7 | -9 | -13 | -30 | -43) => away(error),
        _ => Refusal::NoEntry(words()),
    }
}

fn milliseconds(time: Duration) -> u32 {
    // 0 would mean for ever.
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX).max(1)
}
