//! The helper's socket: who may ask, one thread a conversation, and the clock that ends trials.
//! Must not know rules.

use std::io::{BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use edge::firewall::message::{Answer, MAX_BATCH, Question, Standing, framed, read_frame};
use rustix::net::sockopt;

use crate::netlink::NetlinkError;
use crate::warden::{Warden, WardenError};
use crate::watch::Watch;

/// Conversations at once: edge has one, operators' commands come and go.
const MOST: usize = 16;
/// A caller that takes no answer for so long is given up.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often due roll-backs are looked for.
const TICK: Duration = Duration::from_millis(500);
/// So often, and with such pauses, is looked whether another helper lives on the socket.
const TAKING_OVER: u32 = 40;
const MOMENT: Duration = Duration::from_millis(50);
/// Whether somebody changed the rules is looked at every so many ticks.
const RULES: u32 = 2;
/// The host's own addresses are asked for every so many ticks.
const OWN_ADDRESSES: u32 = 20;

/// The helper cannot listen.
#[derive(Debug, thiserror::Error)]
#[error(
    "{path}: {what} failed: {source}; the folder it lies in must be there and belong to the helper's user"
)]
pub(crate) struct ServeError {
    path: PathBuf,
    what: &'static str,
    #[source]
    source: std::io::Error,
}

/// Everything one conversation needs.
#[derive(Debug, Clone)]
struct Desk {
    warden: Arc<Mutex<Warden>>,
    watch: Arc<Watch>,
    edge_user: Arc<str>,
    open: Arc<AtomicUsize>,
}

/// Makes the state folder where it is missing; its mode keeps others out. The folder that it lies in
/// is not made: a path with a typing error is better told.
///
/// # Errors
/// It cannot be made.
pub(crate) fn make_state_folder(path: &Path) -> Result<(), ServeError> {
    let failed = |source| ServeError { path: path.to_owned(), what: "making the state folder", source };
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if path.is_dir() && error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(failed),
    }
}

/// Makes the socket. Anybody may connect; who may ask is decided by the kernel's word on who it is.
///
/// # Errors
/// Another helper lives there, or the folder is not ours.
pub(crate) fn listen(path: &Path) -> Result<UnixListener, ServeError> {
    let failed = |what| move |source| ServeError { path: path.to_owned(), what, source };
    // A program that a killed predecessor had just started holds its socket for a moment.
    let mut tries = TAKING_OVER;
    while UnixStream::connect(path).is_ok() {
        if tries == 0 {
            return Err(failed("taking over")(std::io::ErrorKind::AddrInUse.into()));
        }
        tries -= 1;
        std::thread::sleep(MOMENT);
    }
    let fresh = path.with_extension("new");
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(failed("tidying up")(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&fresh).map_err(failed("binding"))?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o666)).map_err(failed("opening"))?;
    std::fs::rename(&fresh, path).map_err(failed("putting it in place"))?;
    Ok(listener)
}

/// Serves until the process ends.
pub(crate) fn serve(listener: &UnixListener, warden: Warden, watch: Watch) {
    let edge_user = warden.settings.edge_user.as_str().into();
    let (warden, watch) = (Arc::new(Mutex::new(warden)), Arc::new(watch));
    let desk = Desk { warden, watch, edge_user, open: Arc::default() };
    if let Some(lacks) = desk.nobody_is_edge() {
        tracing::error!("firewall: {lacks}");
    }
    let clock = desk.clone();
    std::thread::spawn(move || clock.tick());
    loop {
        match listener.accept() {
            Ok((stream, _)) => desk.welcome(stream),
            Err(error) => {
                tracing::warn!("socket: accept: {error}");
                std::thread::sleep(TICK);
            }
        }
    }
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Warden> {
        // A thread that panicked has changed the kernel by whole transactions only.
        self.warden.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tick(&self) {
        for tick in 0_u32.. {
            std::thread::sleep(TICK);
            let mut warden = self.lock();
            if let Err(error) = warden.tick() {
                tracing::error!("firewall: {error}; tried again");
            }
            if tick % OWN_ADDRESSES == 0 {
                warden.refresh_own();
            }
            drop(warden);
            if tick % RULES == 0 {
                self.watch.look(&self.warden);
            }
        }
    }

    fn welcome(&self, stream: UnixStream) {
        let Some(caller) = self.caller(&stream) else { return };
        if self.open.fetch_add(1, Ordering::SeqCst) >= MOST {
            self.open.fetch_sub(1, Ordering::SeqCst);
            answer(&stream, &Answer::Failed(format!("{MOST} conversations are open; try again")));
            return;
        }
        let desk = self.clone();
        std::thread::spawn(move || {
            if let Err(error) = desk.converse(&stream, caller) {
                tracing::debug!("socket: conversation with user {caller}: {error}");
            }
            desk.open.fetch_sub(1, Ordering::SeqCst);
        });
    }

    /// The user at the other end, where it may ask.
    fn caller(&self, stream: &UnixStream) -> Option<u32> {
        let uid = match sockopt::socket_peercred(stream) {
            Ok(credentials) => credentials.uid.as_raw(),
            Err(error) => {
                tracing::warn!("socket: who calls cannot be told: {error}");
                return None;
            }
        };
        stream.set_write_timeout(Some(PATIENCE)).ok()?;
        if uid == 0 || user_id(&self.edge_user) == Some(uid) {
            return Some(uid);
        }
        let lacks = self.nobody_is_edge().map_or_else(String::new, |lacks| format!("; {lacks}"));
        tracing::warn!("socket: user {uid} was refused; only root and {} may ask{lacks}", self.edge_user);
        let why = format!("user {uid} may not ask; only root and {} may{lacks}", self.edge_user);
        answer(stream, &Answer::Failed(why));
        None
    }

    /// What to do where the user that may ask does not exist. The rules hold meanwhile, and the user is
    /// known as soon as it is there: on a fresh host this program may be the first to start.
    fn nobody_is_edge(&self) -> Option<String> {
        let name = &self.edge_user;
        user_id(name).is_none().then(|| {
            format!(
                "edge_user {name:?} does not exist on this host, so edge cannot order bans; \
                 write `useradd --system --no-create-home {name}`"
            )
        })
    }

    fn converse(&self, stream: &UnixStream, caller: u32) -> std::io::Result<()> {
        let mut from = BufReader::with_capacity(64 * 1024, stream);
        let mut to = stream;
        while let Some(body) = read_frame(&mut from)? {
            let question = match Question::decode(&body) {
                Ok(question) => question,
                Err(error) => {
                    tracing::warn!("socket: user {caller}: {error}; the conversation ends");
                    return to.write_all(&framed(&Answer::Failed(error.to_string()).encode()));
                }
            };
            for answer in self.answers(question, caller) {
                to.write_all(&framed(&answer.encode()))?;
            }
        }
        Ok(())
    }

    fn answers(&self, question: Question, caller: u32) -> Vec<Answer> {
        if question.is_for_root() && caller != 0 {
            return vec![Answer::Failed(format!("user {caller} may not do this; only root may"))];
        }
        if question == Question::Standing {
            // Never behind an order that takes its time.
            return vec![standing(&self.watch).unwrap_or_else(|error| Answer::Failed(error.to_string()))];
        }
        let mut warden = self.lock();
        let mut answered = match answers(&mut warden, &self.watch, question.clone()) {
            // Somebody removed the table a moment ago: it is put back, and asked again.
            Err(WardenError::Netlink(NetlinkError::Missing)) => {
                warden.heal().and_then(|()| answers(&mut warden, &self.watch, question))
            }
            answered => answered,
        };
        if let Ok([Answer::Status(status)]) = answered.as_deref_mut() {
            status.warnings.extend(self.nobody_is_edge());
        }
        answered.unwrap_or_else(|error| {
            let missing = matches!(error, WardenError::Netlink(NetlinkError::Missing));
            vec![match self.watch.standing() {
                Ok(Standing::NoRules) if missing => Answer::Standing(Standing::NoRules),
                _ => Answer::Failed(error.to_string()),
            }]
        })
    }
}

fn answers(warden: &mut Warden, watch: &Watch, question: Question) -> Result<Vec<Answer>, WardenError> {
    let keeper = &mut warden.keeper;
    let done = |()| Answer::Done(Vec::new());
    Ok(vec![match question {
        Question::Ban(bans) => Answer::Done(keeper.ban(&bans)?),
        Question::Unban(networks) => keeper.unban(&networks).map(done)?,
        Question::Clear => keeper.clear().map(done)?,
        Question::Lift(leases) => Answer::Done(keeper.lift(&leases)?),
        Question::Unlift(networks) => keeper.unlift(&networks).map(done)?,
        Question::List => {
            let bans = keeper.list()?;
            let pages = bans.len().div_ceil(MAX_BATCH).max(1);
            let page = |at: usize| {
                let bans = bans.iter().skip(at * MAX_BATCH).take(MAX_BATCH).copied().collect();
                Answer::Page(bans, at + 1 < pages)
            };
            return Ok((0..pages).map(page).collect());
        }
        Question::Figures => Answer::Figures(warden.figures()?),
        Question::Standing => standing(watch)?,
        Question::Apply { confirm, ssh } => Answer::Told(warden.apply(confirm, ssh)?),
        Question::Confirm { ssh } => Answer::Told(warden.confirm(ssh.as_deref())?),
        Question::Rollback => Answer::Told(warden.end_trial()?),
        Question::Status => Answer::Status(Box::new(warden.status()?)),
        Question::Remove => Answer::Told(warden.remove()?),
    }])
}

fn standing(watch: &Watch) -> Result<Answer, WardenError> {
    Ok(Answer::Standing(watch.standing()?))
}

fn answer(mut stream: &UnixStream, answer: &Answer) {
    if let Err(error) = stream.write_all(&framed(&answer.encode())) {
        tracing::debug!("socket: an answer was not taken: {error}");
    }
}

/// Out of `/etc/passwd`; a user of another directory is named by its number.
fn user_id(name: &str) -> Option<u32> {
    if let Ok(number) = name.parse() {
        return Some(number);
    }
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}
