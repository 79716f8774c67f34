//! A file server behind a deadline: a few threads, one operation at a time on each. A
//! server that hangs costs its caller the deadline once; then it is suspended, refused at
//! once, and probed until it answers again. Knows nothing of objects.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::file_server::{FileServer, FileServerError};

type Job = Box<dyn FnOnce(&dyn FileServer) + Send>;

/// Moves whenever an operation gets on: slow is not stuck.
#[derive(Clone, Default)]
pub(super) struct Progress(Arc<AtomicU64>);

impl Progress {
    /// Something was read or written.
    pub(super) fn note(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn seen(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What is known of a file server's health.
#[derive(Debug, Clone, Default)]
pub(super) struct Health {
    /// Why nothing is sent there at present.
    pub(super) suspended: Option<String>,
    /// It has refused a write for lack of space.
    pub(super) full: bool,
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
    sessions: usize,
    deadline: Duration,
    health: Mutex<Health>,
}

impl Sessions {
    /// Starts the threads; they end with this value, a hanging one when its operation returns.
    pub(super) fn start(server: Box<dyn FileServer>, deadline: Duration) -> std::io::Result<Self> {
        let server: Arc<dyn FileServer> = Arc::from(server);
        let sessions = server.sessions().max(1);
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

    /// Runs one operation, unless the server is suspended.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        object: impl ToString,
        job: impl FnOnce(&dyn FileServer, &Progress) -> Result<T, FileServerError> + Send + 'static,
    ) -> Result<T, FileServerError> {
        if let Some(why) = self.health().suspended {
            return Err(self.away(&object, format!("suspended: {why}")));
        }
        self.attempt(object, job).await
    }

    /// Runs one operation even on a suspended server; success ends the suspension.
    pub(super) async fn probe<T: Send + 'static>(
        &self,
        job: impl FnOnce(&dyn FileServer, &Progress) -> Result<T, FileServerError> + Send + 'static,
    ) -> Result<T, FileServerError> {
        let answer = self.attempt("probe", job).await?;
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
        }
    }

    /// Space has been found or found wanting.
    pub(super) fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    /// It has little space left, or enough again.
    pub(super) fn set_low(&self, low: bool) {
        let before = std::mem::replace(&mut self.lock().low, low);
        if before != low {
            tracing::warn!(server = %self.name, low, "space is low: less than storage.keep_free is left");
        }
    }

    /// It has come back from a backup.
    pub(super) fn note_restored(&self) {
        self.lock().restored += 1;
    }

    async fn attempt<T: Send + 'static>(
        &self,
        object: impl ToString,
        job: impl FnOnce(&dyn FileServer, &Progress) -> Result<T, FileServerError> + Send + 'static,
    ) -> Result<T, FileServerError> {
        let permit = tokio::time::timeout(self.deadline, Arc::clone(&self.permits).acquire_owned()).await;
        let Ok(Ok(permit)) = permit else {
            return Err(self.away(&object, format!("all {} sessions stayed busy", self.sessions)));
        };
        let outcome = self.wait(&object, permit, job).await;
        if let Err(error) = &outcome {
            self.note(error);
        }
        outcome
    }

    async fn wait<T: Send + 'static>(
        &self,
        object: &impl ToString,
        permit: OwnedSemaphorePermit,
        job: impl FnOnce(&dyn FileServer, &Progress) -> Result<T, FileServerError> + Send + 'static,
    ) -> Result<T, FileServerError> {
        let progress = Progress::default();
        let watched = progress.clone();
        let (answer, mut answered) = oneshot::channel();
        let job: Job = Box::new(move |server| {
            // Given back when the operation really ends, so that a hanging one keeps its place.
            let _permit = permit;
            // Whoever asked may have given up.
            let _ = answer.send(job(server, &progress));
        });
        // As many places as permits: this never waits.
        if self.jobs.try_send(job).is_err() {
            return Err(self.away(object, "its sessions have ended".to_owned()));
        }
        loop {
            let before = watched.seen();
            match tokio::time::timeout(self.deadline, &mut answered).await {
                Ok(Ok(outcome)) => return outcome,
                Ok(Err(_)) => {
                    return Err(self.away(object, "the operation ended without an answer".to_owned()));
                }
                Err(_) if watched.seen() != before => {}
                Err(_) => {
                    let why = format!("no answer within {} s", self.deadline.as_secs_f32());
                    return Err(self.away(object, why));
                }
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
        if matches!(
            error,
            FileServerError::Away { .. } | FileServerError::NotOurs { .. } | FileServerError::NoEntry { .. }
        ) {
            self.suspend(error);
        }
    }

    fn away(&self, object: &impl ToString, why: String) -> FileServerError {
        let source = std::io::Error::new(std::io::ErrorKind::TimedOut, why);
        FileServerError::Away { server: self.name.clone(), object: object.to_string(), source }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

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
        assert!(refused.unwrap_err().to_string().contains("suspended"));
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
