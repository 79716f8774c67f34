//! A file server behind a deadline: a few threads, one operation at a time on each. A
//! server that hangs costs its caller the deadline once; then it is suspended, refused at
//! once, and probed until it answers again. Operations that move whole objects leave a place
//! or two to the short ones, copies one to the rest of what nobody waits for, and listings wait for
//! neither. Knows nothing of objects.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::file_server::{FileServer, FileServerError};
use super::note::MAX_NOTE;

mod progress;

pub(super) use progress::Progress;
use progress::{Gauge, Pulse};

type Job = Box<dyn FnOnce(&dyn FileServer) + Send>;

/// Operations that wait for a session at most.
const MOST_WAITING: usize = 8192;
/// A full file server is tried again once it has this much space, whatever it refused.
const SPACE: u64 = 64 << 20;
/// What is refused and is no object is a note, at most.
const NOTE: u64 = MAX_NOTE as u64;
/// Beside what was refused: a file system wants some for names, and the last of it may be root's.
const MARGIN: u64 = 2 << 20;
/// Nobody waits for a session longer than so many deadlines, however well the others get on.
const PATIENCE: u32 = 20;

/// How an operation is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A frame, a note, a few names: any session will do.
    Short,
    /// A whole object that a caller waits for: leaves the last sessions to short ones.
    Long,
    /// As long, and nobody waits for it: also leaves a session to long ones.
    Background,
    /// As that, and may take a day: also leaves a session to others in the background.
    Copy,
    /// Names, what was set aside, leftovers: no whole object, and nobody waits for it. Has a place of
    /// its own where whole objects take those in the background.
    Listing,
    /// Short, and asked of a suspended server too.
    Probe,
}

/// A session's place, and those among the operations of its kind.
type Place = Vec<OwnedSemaphorePermit>;

/// What is known of a file server's health.
#[derive(Debug, Clone, Default)]
pub(super) struct Health {
    /// Why nothing is sent there at present.
    pub(super) suspended: Option<String>,
    /// The same in as few words as it takes, and since when, in Unix seconds.
    pub(super) cause: String,
    /// See `cause`.
    pub(super) since: i64,
    /// It has refused a write for lack of space.
    pub(super) full: bool,
    /// Bytes of the smallest object that it refused so.
    pub(super) refused: Option<u64>,
    /// It has less space left than the operator wants kept free.
    pub(super) low: bool,
    /// How often it came back from a backup.
    pub(super) restored: u64,
    /// The last thing that went wrong.
    pub(super) last_error: Option<String>,
    /// How many operations failed, absence not counted.
    pub(super) errors: u64,
}

/// One file server and its threads.
pub(super) struct Sessions {
    name: String,
    jobs: mpsc::Sender<Job>,
    permits: Arc<Semaphore>,
    /// Fewer than there are sessions.
    long: Arc<Semaphore>,
    /// Fewer still, but at least one.
    background: Arc<Semaphore>,
    /// And fewer, but at least one.
    copies: Arc<Semaphore>,
    /// One, which needs none of these.
    listing: Arc<Semaphore>,
    /// Held by who collects temporaries there.
    collecting: Arc<tokio::sync::Mutex<()>>,
    waiting: Semaphore,
    gauge: Gauge,
    sessions: usize,
    deadline: Duration,
    health: Mutex<Health>,
}

impl Sessions {
    /// Starts the threads; they end with this value, a hanging one when its operation returns.
    pub(super) fn start(server: Box<dyn FileServer>, deadline: Duration) -> std::io::Result<Self> {
        let sessions = server.sessions().max(1);
        Self::start_so_many(server, sessions, deadline)
    }

    fn start_so_many(
        server: Box<dyn FileServer>,
        sessions: usize,
        deadline: Duration,
    ) -> std::io::Result<Self> {
        let server: Arc<dyn FileServer> = Arc::from(server);
        let long = sessions - kept_for_short(sessions);
        let background = long.saturating_sub(1).max(1);
        let (jobs, queue) = mpsc::channel::<Job>(sessions);
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..sessions {
            let (server, queue) = (Arc::clone(&server), Arc::clone(&queue));
            let thread = std::thread::Builder::new().name(format!("fs-{}", server.name()));
            let run = move || {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
                    let Some(job) = next else { break };
                    // A panic ends the operation, not the session; its caller is told.
                    if catch_unwind(AssertUnwindSafe(|| job(server.as_ref()))).is_err() {
                        tracing::error!(server = server.name(), "an operation panicked");
                    }
                }
            };
            thread.spawn(run)?;
        }
        Ok(Self {
            name: server.name().to_owned(),
            jobs,
            permits: Arc::new(Semaphore::new(sessions)),
            long: Arc::new(Semaphore::new(long)),
            background: Arc::new(Semaphore::new(background)),
            copies: Arc::new(Semaphore::new(background.saturating_sub(1).max(1))),
            listing: Arc::new(Semaphore::new(1)),
            collecting: Arc::default(),
            waiting: Semaphore::new(MOST_WAITING),
            gauge: Gauge::default(),
            sessions,
            deadline,
            health: Mutex::default(),
        })
    }

    /// The file server's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Its health now.
    pub(super) fn health(&self) -> Health {
        self.lock().clone()
    }

    /// For who is about to collect temporaries there; `None` while somebody does.
    pub(super) fn begin_collecting(&self) -> Option<OwnedMutexGuard<()>> {
        Arc::clone(&self.collecting).try_lock_owned().ok()
    }

    /// Waits until nobody collects temporaries there.
    #[cfg(test)]
    pub(super) async fn collected(&self) {
        drop(self.collecting.lock().await);
    }

    /// Runs one short operation, unless the server is suspended.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        object: impl ToString,
        job: impl FnOnce(&dyn FileServer, &Progress) -> Result<T, FileServerError> + Send + 'static,
    ) -> Result<T, FileServerError> {
        self.run_as(Kind::Short, object, job).await
    }

    /// Runs one operation that moves a whole object or may take as long and that a caller waits for,
    /// unless the server is suspended.
    pub(super) async fn run_long<T: Send + 'static>(
        &self,
        object: impl ToString,
        job: impl FnOnce(&dyn FileServer, &Progress) -> Result<T, FileServerError> + Send + 'static,
    ) -> Result<T, FileServerError> {
        self.run_as(Kind::Long, object, job).await
    }

    /// Runs one operation even on a suspended server; success ends the suspension.
    pub(super) async fn probe<T: Send + 'static>(
        &self,
        job: impl FnOnce(&dyn FileServer, &Progress) -> Result<T, FileServerError> + Send + 'static,
    ) -> Result<T, FileServerError> {
        let answer = self.run_as(Kind::Probe, "probe", job).await?;
        if self.lock().suspended.take().is_some() {
            tracing::info!(server = %self.name, "file server answers again");
        }
        Ok(answer)
    }

    /// Sends nothing there until a probe succeeds.
    pub(super) fn suspend(&self, error: &FileServerError) {
        let mut health = self.lock();
        if health.suspended.is_none() {
            tracing::error!("{error}; suspended until it answers a probe");
            health.suspended = Some(error.to_string());
            (health.cause, health.since) = (error.cause(), super::now());
        }
    }

    /// Space has been found or found wanting.
    pub(super) fn set_full(&self, full: bool) {
        let mut health = self.lock();
        (health.full, health.refused) = (full, None);
    }

    /// An object of so many bytes was refused for lack of space.
    pub(super) fn note_refused(&self, length: u64) {
        let mut health = self.lock();
        health.refused = Some(health.refused.map_or(length, |least| least.min(length)));
    }

    /// So many bytes are left; `keep` are to be kept free. A full one is tried again once what it
    /// refused fits.
    pub(super) fn note_space(&self, free: u64, keep: u64) {
        let mut health = self.lock();
        // A little more before it counts as roomy again, so that it does not change with every file.
        let low = free < if health.low { keep.saturating_add(keep / 10) } else { keep };
        let before = std::mem::replace(&mut health.low, low);
        let fits = health.refused.unwrap_or(NOTE).saturating_add(MARGIN);
        if health.full && free >= fits.min(SPACE.max(keep)) {
            (health.full, health.refused) = (false, None);
        }
        drop(health);
        if before != low {
            tracing::warn!(server = %self.name, low, "space is low: less than storage.keep_free is left");
        }
    }

    /// It has come back from a backup.
    pub(super) fn note_restored(&self) {
        self.lock().restored += 1;
    }

    /// Runs one operation of this kind.
    pub(super) async fn run_as<T: Send + 'static>(
        &self,
        kind: Kind,
        object: impl ToString,
        job: impl FnOnce(&dyn FileServer, &Progress) -> Result<T, FileServerError> + Send + 'static,
    ) -> Result<T, FileServerError> {
        let object = object.to_string();
        self.check_suspended(&object, kind)?;
        let place = self.place(&object, kind).await?;
        self.check_suspended(&object, kind)?;
        let outcome = self.wait(&object, place, job).await;
        if let Err(error) = &outcome {
            self.note(error);
        }
        outcome
    }

    fn check_suspended(&self, object: &str, kind: Kind) -> Result<(), FileServerError> {
        match self.health() {
            Health { suspended: Some(_), cause, .. } if kind != Kind::Probe => {
                Err(self.away(object, format!("suspended: {cause}")))
            }
            _ => Ok(()),
        }
    }

    /// Waits for a session: as long as those that have one get on, within reason.
    async fn place(&self, object: &str, kind: Kind) -> Result<Place, FileServerError> {
        let queued = self.waiting.try_acquire();
        let _queued = queued.map_err(|_| self.away(object, format!("{MOST_WAITING} operations wait")))?;
        let mut acquired = pin!(self.acquire(kind));
        for _ in 0..PATIENCE {
            let before = self.gauge.seen();
            match tokio::time::timeout(self.deadline, &mut acquired).await {
                Ok(Some(place)) => return Ok(place),
                Ok(None) => return Err(self.away(object, "its sessions have ended".to_owned())),
                Err(_) => self.check_suspended(object, kind)?,
            }
            if self.gauge.seen() == before {
                break;
            }
        }
        Err(self.away(object, format!("all {} sessions stayed busy", self.sessions)))
    }

    async fn acquire(&self, kind: Kind) -> Option<Place> {
        let spare = if kind == Kind::Listing { self.spare() } else { None };
        // From the narrowest on: who waits for it holds nothing that others wait for.
        let narrow: &[_] = match kind {
            Kind::Short | Kind::Probe => &[],
            Kind::Long => &[&self.long],
            Kind::Background => &[&self.background, &self.long],
            Kind::Copy => &[&self.copies, &self.background, &self.long],
            Kind::Listing if spare.is_some() => &[],
            Kind::Listing => &[&self.listing],
        };
        let mut place = spare.unwrap_or_default();
        for class in narrow {
            place.push(Arc::clone(class).acquire_owned().await.ok()?);
        }
        place.push(Arc::clone(&self.permits).acquire_owned().await.ok()?);
        Some(place)
    }

    /// A place in the background that nobody has or waits for.
    fn spare(&self) -> Option<Place> {
        let free = |class: &Arc<Semaphore>| Arc::clone(class).try_acquire_owned().ok();
        Some(vec![free(&self.background)?, free(&self.long)?])
    }

    async fn wait<T: Send + 'static>(
        &self,
        object: &str,
        place: Place,
        job: impl FnOnce(&dyn FileServer, &Progress) -> Result<T, FileServerError> + Send + 'static,
    ) -> Result<T, FileServerError> {
        let progress = Progress::new(&self.name, object, &self.gauge);
        let (watched, gauge) = (progress.clone(), self.gauge.clone());
        let (answer, mut answered) = oneshot::channel();
        let job: Job = Box::new(move |server| {
            // Given back when the operation really ends, so that a hanging one keeps its place.
            let _place = place;
            // Whoever asked may have given up.
            let _ = answer.send(job(server, &progress));
            gauge.note();
        });
        // As many places as permits: this never waits.
        if self.jobs.try_send(job).is_err() {
            return Err(self.away(object, "its sessions have ended".to_owned()));
        }
        let mut pulse = Pulse::new(watched.clone(), self.deadline);
        loop {
            match tokio::time::timeout(self.deadline, &mut answered).await {
                Ok(Ok(outcome)) => return outcome,
                Ok(Err(_)) => {
                    return Err(self.away(object, "the operation ended without an answer".to_owned()));
                }
                Err(_) => {}
            }
            if let Err(why) = pulse.check() {
                watched.give_up();
                return Err(self.away(object, why));
            }
        }
    }

    fn note(&self, error: &FileServerError) {
        if matches!(error, FileServerError::Absent { .. }) {
            return;
        }
        let mut health = self.lock();
        health.errors += 1;
        health.last_error = Some(error.to_string());
        health.full |= matches!(error, FileServerError::Full { .. });
        drop(health);
        if error.is_of_the_place() {
            self.suspend(error);
        }
    }

    fn away(&self, object: &str, why: String) -> FileServerError {
        let source = std::io::Error::new(std::io::ErrorKind::TimedOut, why);
        FileServerError::Away { server: self.name.clone(), object: object.to_owned(), source }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many of so many sessions long operations leave to short ones.
const fn kept_for_short(sessions: usize) -> usize {
    match sessions {
        0 | 1 => 0,
        2..=4 => 1,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::channel;

    use super::super::file_server::Replica;
    use super::super::file_server::directory::Directory;
    use super::super::step::Steps;
    use super::*;

    fn sessions(folder: &tempfile::TempDir, deadline: Duration) -> Sessions {
        let server = Directory::new("one", folder.path(), "vault-a", Steps::default());
        server.attach(None, true).unwrap();
        Sessions::start(Box::new(server), deadline).unwrap()
    }

    #[tokio::test]
    async fn a_hanging_server_costs_one_deadline_then_is_refused_at_once_and_comes_back_by_probe() {
        let folder = tempfile::tempdir().unwrap();
        let sessions = sessions(&folder, Duration::from_millis(20));
        let (release, hang) = channel::<()>();
        let hung = sessions.run("x", move |_, _| {
            let _ = hang.recv();
            Ok(())
        });
        assert!(matches!(hung.await, Err(FileServerError::Away { .. })));
        let refused = sessions.run("y", |_, _| -> Result<(), _> { unreachable!("not sent there") }).await;
        let told = refused.unwrap_err().to_string();
        assert!(told.starts_with("file server one: y: away: suspended: "), "{told}");
        assert_eq!(told.matches("tried again").count(), 1, "{told}");
        assert!(!told.contains("x:"), "another object's name is no cause: {told}");
        drop(release);
        sessions.probe(|server, _| server.free_space()).await.unwrap();
        assert!(sessions.run("z", |_, _| Ok(())).await.is_ok());
    }

    #[tokio::test]
    async fn a_slow_operation_that_gets_on_is_not_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let sessions = sessions(&folder, Duration::from_millis(100));
        let slow = sessions.run("x", |_, progress| {
            for _ in 0..30 {
                std::thread::sleep(Duration::from_millis(10));
                progress.note();
            }
            Ok(())
        });
        assert!(slow.await.is_ok());
    }

    /// Gets on for so many pieces of 10 ms.
    fn busy(progress: &Progress, pieces: usize) {
        for _ in 0..pieces {
            std::thread::sleep(Duration::from_millis(10));
            progress.moved(1 << 20);
        }
    }

    #[tokio::test]
    async fn whole_objects_under_way_leave_a_session_to_short_operations_and_each_gets_its_turn() {
        let folder = tempfile::tempdir().unwrap();
        let sessions = Arc::new(sessions(&folder, Duration::from_millis(100)));
        // Each takes three deadlines, so the last of them waits for a session for longer than one.
        let long = (0..2 * sessions.sessions).map(|number| {
            let sessions = Arc::clone(&sessions);
            tokio::spawn(async move {
                sessions
                    .run_long(number, |_, progress| {
                        busy(progress, 30);
                        Ok(())
                    })
                    .await
            })
        });
        let long: Vec<_> = long.collect();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let begun = tokio::time::Instant::now();
        sessions.run("short", |_, _| Ok(())).await.unwrap();
        assert!(begun.elapsed() < Duration::from_millis(200), "{:?}", begun.elapsed());
        for long in long {
            long.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn work_in_the_background_leaves_a_place_to_a_whole_object_that_somebody_waits_for() {
        let folder = tempfile::tempdir().unwrap();
        let sessions = Arc::new(sessions(&folder, Duration::from_secs(5)));
        let background = (0..sessions.sessions).map(|number| {
            let sessions = Arc::clone(&sessions);
            tokio::spawn(async move {
                sessions
                    .run_as(Kind::Background, number, |_, progress| {
                        busy(progress, 50);
                        Ok(())
                    })
                    .await
            })
        });
        let background: Vec<_> = background.collect();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let begun = tokio::time::Instant::now();
        sessions.run_long("awaited", |_, _| Ok(())).await.unwrap();
        assert!(begun.elapsed() < Duration::from_millis(300), "{:?}", begun.elapsed());
        for one in background {
            one.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn however_few_sessions_there_are_copies_and_scrubs_keep_no_listing_waiting() {
        use Kind::{Background, Copy, Listing, Long, Short};
        let every = [Short, Listing, Long, Background];
        // What goes on however many are under way that nobody waits for.
        for (count, of, on) in [
            (2, Copy, &every[..2]),
            (3, Copy, &every[..3]),
            (4, Copy, &every[..]),
            (6, Copy, &every[..]),
            (9, Copy, &every[..]),
            (2, Background, &every[..2]),
            (6, Background, &every[..3]),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let server = Directory::new("one", folder.path(), "vault-a", Steps::default());
            let deadline = Duration::from_secs(20);
            let sessions = Arc::new(Sessions::start_so_many(Box::new(server), count, deadline).unwrap());
            let held = Arc::new(AtomicBool::new(true));
            let slow = (0..count).map(|number| {
                let (sessions, held) = (Arc::clone(&sessions), Arc::clone(&held));
                let slow = move |_: &dyn FileServer, progress: &Progress| {
                    while held.load(Ordering::Relaxed) {
                        busy(progress, 1);
                    }
                    Ok(())
                };
                tokio::spawn(async move { sessions.run_as(of, number, slow).await })
            });
            let slow: Vec<_> = slow.collect();
            tokio::time::sleep(Duration::from_millis(50)).await;
            for (at, &kind) in on.iter().enumerate() {
                let other = sessions.run_as(kind, "other", |_, _| Ok(()));
                let other = tokio::time::timeout(Duration::from_secs(5), other).await;
                other.unwrap_or_else(|_| panic!("{count} sessions: kind {at} waits")).unwrap();
            }
            held.store(false, Ordering::Relaxed);
            for slow in slow {
                slow.await.unwrap().unwrap();
            }
        }
    }

    #[tokio::test]
    async fn listings_run_beside_each_other_where_no_whole_object_is_under_way() {
        let folder = tempfile::tempdir().unwrap();
        let sessions = Arc::new(sessions(&folder, Duration::from_secs(20)));
        let together = Arc::new(Barrier::new(3));
        let listings = (0..3).map(|number| {
            let (sessions, together) = (Arc::clone(&sessions), Arc::clone(&together));
            let listing = move |_: &dyn FileServer, _: &Progress| {
                together.wait();
                Ok(())
            };
            tokio::spawn(async move { sessions.run_as(Kind::Listing, number, listing).await })
        });
        for listing in listings.collect::<Vec<_>>() {
            let listed = tokio::time::timeout(Duration::from_secs(5), listing).await;
            listed.expect("they wait for each other").unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn a_full_server_is_tried_again_as_soon_as_what_it_refused_fits() {
        const MIB: u64 = 1 << 20;
        let folder = tempfile::tempdir().unwrap();
        let sessions = sessions(&folder, Duration::from_secs(5));
        let refuse = |length| {
            sessions.set_full(true);
            sessions.note_refused(length);
        };
        refuse(10 * MIB);
        refuse(20 * MIB);
        for (free, keep, full) in [(11 * MIB, 0, true), (21 * MIB, 0, true), (22 * MIB, 1 << 30, false)] {
            sessions.note_space(free, keep);
            assert_eq!(sessions.health().full, full, "{free}");
        }
        assert!(sessions.health().low, "it is spared while the other has room");
        refuse(4 << 30);
        sessions.note_space(64 * MIB, 0);
        assert!(!sessions.health().full, "smaller objects fit");
    }

    #[tokio::test]
    async fn who_waits_behind_operations_that_hang_waits_one_deadline() {
        let folder = tempfile::tempdir().unwrap();
        let sessions = sessions(&folder, Duration::from_millis(50));
        let hanging: Vec<_> = (0..sessions.sessions)
            .map(|_| {
                let (release, hang) = channel::<()>();
                (release, hang)
            })
            .collect();
        let mut releases = Vec::new();
        for (release, hang) in hanging {
            releases.push(release);
            let hung: Result<(), _> = sessions
                .probe(move |_, _| {
                    let _ = hang.recv();
                    Ok(())
                })
                .await;
            assert!(hung.is_err());
        }
        let begun = tokio::time::Instant::now();
        let refused = sessions.probe(|_, _| Ok(())).await.unwrap_err();
        assert!(refused.to_string().contains("stayed busy"), "{refused}");
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_server_that_dribbles_is_away_and_the_operation_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let sessions = sessions(&folder, Duration::from_secs(1));
        let (ended, end) = channel();
        let dribbling = sessions.run_long("x", move |_, progress| {
            let drop_by_drop = |buffer: &mut [u8], _: u64| {
                std::thread::sleep(Duration::from_millis(50));
                buffer[0] = 1;
                Ok(1)
            };
            let mut replica = progress.watch(Replica::new(1 << 30, Box::new(drop_by_drop)));
            let stopped = std::io::copy(&mut replica, &mut std::io::sink()).is_err();
            let _ = ended.send(stopped);
            Ok(())
        });
        let outcome = tokio::time::timeout(Duration::from_secs(10), dribbling).await;
        let Ok(Err(error @ FileServerError::Away { .. })) = outcome else { panic!("{outcome:?}") };
        assert!(error.to_string().contains("a second"), "{error}");
        assert!(sessions.health().suspended.is_some());
        assert!(end.recv_timeout(Duration::from_secs(5)).unwrap(), "its session is free again");
    }

    #[tokio::test]
    async fn a_panic_ends_the_operation_and_not_the_session() {
        let folder = tempfile::tempdir().unwrap();
        let sessions = sessions(&folder, Duration::from_secs(5));
        for _ in 0..2 * sessions.sessions {
            let outcome: Result<(), _> = sessions.probe(|_, _| panic!("as a test")).await;
            assert!(outcome.is_err());
        }
        assert!(sessions.probe(|_, _| Ok(())).await.is_ok());
    }
}
