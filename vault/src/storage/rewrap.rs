//! Rewrapping: brings the records of all replicas to the keys in use, slot by slot. Knows the
//! order of objects and the pace; `envelope` knows which slot is next.
//!
//! What is done stands in the catalog, so a walk that was broken off goes on where it was. Both vaults may walk at once: each begins at a place of its own.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use age::x25519::Identity;
use futures_util::stream::{self, StreamExt};

use super::catalog::seals::At;
use super::envelope::{BODY, Next, Record, SLOT, examine, seal_slot};
use super::file_server::{FileServer, FileServerError};
use super::lookup::beneath;
use super::object::{Entry, ObjectId};
use super::ring::Ring;
use super::sessions::Progress as Passing;
use super::task::{Progress, Running};
use super::tasks::{Asked, REWRAP};
use super::{Inner, Storage, StorageError};

/// Replicas taken from the catalog at once; what a crash makes us look at again.
const BATCH: usize = 64;
/// Replicas worked on at once.
const AT_ONCE: usize = 4;
/// Two writes and a last look, and as much again for another vault that does the same.
const LOOKS: usize = 6;

impl Storage {
    /// Starts rewrapping, at most `per_second` replicas a second. It runs until its end, and goes on
    /// by itself after a restart; [`Storage::keys`] tells how far it is.
    ///
    /// # Errors
    /// [`StorageError::Busy`] while it runs, [`StorageError::NotActive`] where it would bring nothing to the
    /// newest key, or the catalog's.
    pub async fn rewrap(&self, per_second: u32) -> Result<Progress, StorageError> {
        // What the operator has just done counts at once.
        self.compare_keys().await?;
        self.0.check_newest()?;
        let running = self.0.rewrap.begin().ok_or(StorageError::Busy("rewrapping is under way"))?;
        self.0.begin_asked(Asked::Rewrap { per_second }).await?;
        Ok(self.0.rewrap_with(running, per_second))
    }

    /// How far the last rewrapping since start is.
    #[must_use]
    pub fn rewrap_progress(&self) -> Progress {
        self.0.rewrap.progress()
    }
}

impl Inner {
    /// Is the newest key the one that records are brought to?
    fn check_newest(&self) -> Result<(), StorageError> {
        let ring = self.ring();
        let Some(newest) = ring.filed().first().filter(|_| !ring.newest_is_active()) else { return Ok(()) };
        let (newest, peer) = (newest.recipient().to_string(), &self.settings.peer);
        let lacks = self.agreement.heard().is_some_and(|heard| !heard.recipients.contains(&newest));
        let why = match lacks {
            true => format!("{peer} does not have it (copy storage.key_file there)"),
            false => format!("{peer} has not shown yet that it has it"),
        };
        Err(StorageError::NotActive { why })
    }

    /// Goes on with the walk of a former life.
    pub(super) fn rewrap_on(self: &Arc<Self>, per_second: u32) {
        if let Some(running) = self.rewrap.begin() {
            self.rewrap_with(running, per_second);
        }
    }

    fn rewrap_with(self: &Arc<Self>, running: Running, per_second: u32) -> Progress {
        let (inner, started) = (Arc::clone(self), self.rewrap.progress());
        tokio::spawn(async move {
            let stopped = inner.rewrap_all(&running, per_second.max(1)).await.err();
            match &stopped {
                None => tracing::info!("storage: rewrapping has come to its end"),
                Some(error) => {
                    tracing::error!("{error}; rewrapping stopped: vault keys rewrap goes on with it")
                }
            }
            inner.end_asked(REWRAP).await;
            running.end(stopped.map(|error| error.to_string()));
        });
        started
    }

    async fn rewrap_all(&self, running: &Running, per_second: u32) -> Result<(), StorageError> {
        let ring = self.ring();
        ring.recipients().ok_or_else(|| self.no_key())?;
        let seals = self.catalog.seals().await?;
        let all: u64 = seals.iter().filter(|(seal, _)| seal != ring.seal()).map(|(_, count)| count).sum();
        let start = ObjectId::new(*blake3::hash(self.own.as_bytes()).as_bytes());
        // From the start to the end, and from the beginning to the start.
        for (mut after, until) in [(Some((start, String::new())), None), (None, Some(start))] {
            loop {
                let batch = self.catalog.sealed_otherwise(ring.seal().to_owned(), after, BATCH).await?;
                let Some((last, server)) = batch.last() else { break };
                after = Some((last.id, server.clone()));
                let within: Vec<_> =
                    batch.into_iter().filter(|(entry, _)| until.is_none_or(|end| entry.id < end)).collect();
                let Ok(count) = u32::try_from(within.len()) else { break };
                if count == 0 {
                    break;
                }
                let pause = tokio::time::sleep(Duration::from_secs(1) * count / per_second);
                tokio::join!(self.rewrap_batch(within, &ring, running), pause).0?;
                running.note(|progress| {
                    let walked = progress.done + progress.passed + progress.failed;
                    progress.percent = u8::try_from(walked * 100 / all.max(1)).unwrap_or(99).min(99);
                });
            }
        }
        Ok(())
    }

    async fn rewrap_batch(
        &self,
        batch: Vec<(Entry, String)>,
        ring: &Ring,
        running: &Running,
    ) -> Result<(), StorageError> {
        let work = batch.into_iter().map(|(entry, server)| async move {
            let outcome = self.rewrap_one(&entry, &server, ring).await;
            ((entry.id, server), outcome)
        });
        let outcomes: Vec<_> = stream::iter(work).buffer_unordered(AT_ONCE).collect().await;
        let mut sealed: Vec<At> = Vec::new();
        for (at, outcome) in outcomes {
            match outcome {
                Ok(written) => {
                    running.note(|progress| {
                        *if written { &mut progress.done } else { &mut progress.passed } += 1
                    });
                    sealed.push(at);
                }
                Err(error) => {
                    tracing::warn!("{error}; its record stays as it is");
                    running.failed(&error.to_string());
                }
            }
        }
        Ok(self.catalog.sealed(sealed, ring.seal().to_owned()).await?)
    }

    /// Rewraps one replica; false if there was nothing to write.
    async fn rewrap_one(&self, entry: &Entry, server: &str, ring: &Ring) -> Result<bool, StorageError> {
        let id = entry.id;
        let Some(identity) = entry.identity.clone() else { return Ok(false) };
        let known = Record { metadata: entry.metadata.clone(), identity };
        let [active, escrow] = ring.recipients().ok_or_else(|| self.no_key())?;
        let identities = ring.identities();
        let wanted = ring.seal().to_owned();
        let rewrapped = self.server(id, server)?.run(id, move |server, passing| {
            let seal = |record: &Record, generation| seal_slot(record, [&active, &escrow], generation);
            rewrap_replica(server, passing, &id, &known, &identities, &wanted, &seal)
        });
        rewrapped.await.map_err(|error| StorageError::Unreadable { id, why: error.to_string() })
    }
}

type Seal<'a> = &'a dyn Fn(&Record, u32) -> Result<Vec<u8>, super::envelope::EnvelopeError>;

/// Looks, writes what is next, and looks again until there is nothing left.
fn rewrap_replica(
    server: &dyn FileServer,
    passing: &Passing,
    id: &ObjectId,
    known: &Record,
    identities: &[Identity],
    wanted: &str,
    seal: Seal<'_>,
) -> Result<bool, FileServerError> {
    let refuse = |why: String| FileServerError::BadSource {
        server: server.name().to_owned(),
        object: id.to_string(),
        why,
    };
    for look in 0..LOOKS {
        let slots = first_bytes(server, id)?;
        passing.note();
        let examined = examine(&slots, identities, wanted);
        match examined.next {
            Next::Nothing => return Ok(look > 0),
            Next::CopyFrom(side) => server.write_slot(id, side.other(), side.of(&slots))?,
            Next::SealInto(side, generation) => {
                // What lies there counts, if it is about the same body; if nothing of it opens,
                // the catalog's knowledge makes it whole again.
                if examined.record.as_ref().is_some_and(|record| record.identity != known.identity) {
                    return Err(refuse("its record is another than the catalog's".to_owned()));
                }
                let record = examined.record.as_ref().unwrap_or(known);
                let slot = seal(record, generation).map_err(|error| refuse(error.to_string()))?;
                server.write_slot(id, side, &slot)?;
            }
            Next::Exhausted => return Err(refuse("its generations are used up".to_owned())),
        }
        passing.note();
    }
    Err(refuse("its slots change while they are rewrapped; does the other vault do the same?".to_owned()))
}

/// Both slots of a replica, or what there is of them.
pub(super) fn first_bytes(server: &dyn FileServer, id: &ObjectId) -> Result<Vec<u8>, FileServerError> {
    let mut slots = Vec::with_capacity(2 * SLOT);
    let read = server.open(id)?.take(BODY).read_to_end(&mut slots);
    read.map_err(|error| beneath(error, server.name(), id))?;
    Ok(slots)
}
