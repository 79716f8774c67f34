//! One download: frame by frame from one replica, from the other where the first fails.
//! Nothing is released before it is verified; a whole file's last frame only after the
//! digest of all of it.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt, try_unfold};
use tokio::sync::OwnedSemaphorePermit;

use super::envelope::{FRAME, Opened, longest, verify};
use super::file_server::{FileServerError, Replica};
use super::lookup::damage;
use super::object::{Entry, ObjectId, ReplicaState};
use super::sessions::{Kind, Sessions};
use super::{Inner, Storage, StorageError, now};

/// Verified plaintext.
pub type Plaintext = BoxStream<'static, Result<Bytes, StorageError>>;

/// Replicas looked at as a whole at once because a reader found them damaged; of any more, the next
/// reader or the scrub tells.
const SUSPECTS: usize = 8;

/// A download under way.
struct Download {
    inner: Arc<Inner>,
    entry: Entry,
    /// File servers not yet tried, by their place in the settings.
    left: Vec<usize>,
    open: Option<(usize, Opened<Replica>)>,
    /// What is still to be released.
    range: Range<u64>,
    /// Digest of everything released, where that is to be the whole.
    digest: Option<blake3::Hasher>,
    refusals: Vec<String>,
    _permit: OwnedSemaphorePermit,
}

impl Storage {
    /// Opens an object for reading: `range` of its plaintext (clipped to its end), or all of
    /// it. Returns the length that will come. The first frame has been verified by then.
    ///
    /// # Errors
    /// Too many downloads, a range behind the end, or no replica that can be read.
    pub async fn read(
        &self,
        entry: &Entry,
        range: Option<Range<u64>>,
    ) -> Result<(u64, Plaintext), StorageError> {
        let size = entry.metadata.size;
        let whole = range.is_none();
        let range = range.unwrap_or(0..size);
        let range = range.start..range.end.min(size);
        if range.start > range.end || (!whole && range.is_empty()) {
            return Err(StorageError::Range { size });
        }
        let permit = Arc::clone(&self.0.downloads).try_acquire_owned();
        let permit = permit.map_err(|_| StorageError::Busy("as many downloads as allowed are under way"))?;
        let length = range.end - range.start;
        let mut download = Download {
            left: self.0.reading_order(entry),
            inner: Arc::clone(&self.0),
            entry: entry.clone(),
            open: None,
            range,
            digest: whole.then(blake3::Hasher::new),
            refusals: Vec::new(),
            _permit: permit,
        };
        let first = download.next().await?;
        let rest = try_unfold(download, |mut download| async {
            Ok(download.next().await?.map(|bytes| (bytes, download)))
        });
        let first = futures_util::stream::iter(first.map(Ok));
        Ok((length, first.chain(rest).boxed()))
    }
}

impl Download {
    /// The next verified piece, from whichever replica can give it.
    async fn next(&mut self) -> Result<Option<Bytes>, StorageError> {
        if self.range.is_empty() && self.entry.metadata.size > 0 {
            return Ok(None);
        }
        if self.entry.metadata.size == 0 {
            // Nothing to release, but an empty file too must be there and whole.
            if self.digest.take().is_some() {
                self.frame(None).await?;
            }
            return Ok(None);
        }
        let frame_size = FRAME as u64;
        let index = usize::try_from(self.range.start / frame_size).unwrap_or(usize::MAX);
        let start = self.range.start / frame_size * frame_size;
        let frame = self.frame(Some(index)).await?;
        let end = self.range.end.min(start + frame.len() as u64);
        let cut = usize::try_from(self.range.start - start).ok().zip(usize::try_from(end - start).ok());
        let id = self.entry.id;
        let damaged =
            || StorageError::Unreadable { id, why: "its length is not what the catalog tells".to_owned() };
        let (from, to) = cut.filter(|(from, to)| from < to).ok_or_else(damaged)?;
        let bytes = Bytes::from(frame).slice(from..to);
        self.range.start = end;
        self.check_digest(&bytes)?;
        self.inner.metrics.downloaded_bytes.inc_by(bytes.len() as u64);
        Ok(Some(bytes))
    }

    fn check_digest(&mut self, bytes: &Bytes) -> Result<(), StorageError> {
        let Some(digest) = &mut self.digest else { return Ok(()) };
        digest.update(bytes);
        if self.range.is_empty() && digest.finalize().to_hex().as_str() != self.entry.metadata.digest {
            let id = self.entry.id;
            tracing::error!(object = %id, "the plaintext is not what was uploaded; its last part is held back");
            return Err(StorageError::Unreadable { id, why: "its digest is wrong".to_owned() });
        }
        Ok(())
    }

    /// A frame (or, without an index, only the proof that the object opens).
    async fn frame(&mut self, index: Option<usize>) -> Result<Vec<u8>, StorageError> {
        loop {
            let (at, opened) = match self.open.take() {
                Some((at, opened)) => (at, Some(opened)),
                None if self.left.is_empty() => {
                    let why = self.refusals.join("; ");
                    return Err(StorageError::Unreadable { id: self.entry.id, why });
                }
                None => (self.left.remove(0), None),
            };
            match self.inner.read_frame(&self.entry, at, opened, index).await {
                Ok((opened, frame)) => {
                    self.open = Some((at, opened));
                    return Ok(frame);
                }
                Err(error) => {
                    tracing::warn!("{error}; the other replica is read");
                    self.refusals.push(error.to_string());
                    self.inner.note_bad(&self.entry, at, &error).await;
                }
            }
        }
    }
}

impl Inner {
    /// Where to read first: replicas known to be stored, on servers that answer, the faster one
    /// first; then anywhere else, for the catalog may not know all.
    fn reading_order(&self, entry: &Entry) -> Vec<usize> {
        let stored = entry.stored_on();
        let ranks = self.preference().ranks();
        let mut order: Vec<_> = (0..self.servers.len()).collect();
        order.sort_by_key(|&at| {
            let server = &self.servers[at];
            let known = stored.iter().any(|name| name == server.name());
            (!known, server.health().suspended.is_some(), ranks[at])
        });
        order
    }

    async fn read_frame(
        &self,
        entry: &Entry,
        at: usize,
        opened: Option<Opened<Replica>>,
        index: Option<usize>,
    ) -> Result<(Opened<Replica>, Vec<u8>), FileServerError> {
        let (id, size, identity) = (entry.id, entry.metadata.size, entry.identity.clone());
        // What is measured is what a reader waits for: open, head, first frame.
        let begun = opened.is_none().then(tokio::time::Instant::now);
        let read = self.servers[at].run(id, move |server, progress| {
            let fail = |error| damage(error, server.name(), &id);
            let mut opened = match (opened, &identity) {
                (Some(opened), _) => opened,
                (None, Some(identity)) => {
                    let replica = progress.watch(server.open_within(&id, longest(size))?);
                    Opened::new(replica, identity, size).map_err(fail)?
                }
                (None, None) => {
                    let (server, object) = (server.name().to_owned(), id.to_string());
                    return Err(FileServerError::Absent { server, object });
                }
            };
            let frame = index.map_or(Ok(Vec::new()), |index| opened.frame(index)).map_err(fail)?;
            Ok((opened, frame))
        });
        let read = read.await?;
        if let Some(begun) = begun {
            self.preference().note(at, begun.elapsed());
        }
        Ok(read)
    }

    /// A reader found a replica bad or missing: a new one is owed. One that is damaged is looked at as
    /// a whole before; that takes a while, and the reader has the other replica to read.
    async fn note_bad(self: &Arc<Self>, entry: &Entry, at: usize, error: &FileServerError) {
        let (id, server) = (entry.id, &self.servers[at]);
        let Some(state) = error.shows() else { return };
        self.metrics.damaged.with_label_values(&[server.name()]).inc();
        // What cannot be read now is set aside when there is a copy to put in its place.
        if !matches!(error, FileServerError::Damaged { .. }) {
            return self.note_seen(id, server, state).await;
        }
        let Some(suspect) = Suspect::new(self, id, at) else { return };
        let longest = longest(entry.metadata.size);
        tokio::spawn(async move { suspect.inner.look_at_suspect(id, at, longest).await });
    }

    /// Only what is damaged as a whole is set aside: the catalog's identity may be wrong.
    pub(super) async fn look_at_suspect(&self, id: ObjectId, at: usize, longest: u64) {
        let server = &self.servers[at];
        let checked = server.run_as(Kind::Background, id, move |server, progress| {
            let opened = server.open_within(&id, longest).map(|replica| progress.watch(replica));
            let fail = |error| damage(error, server.name(), &id);
            match opened.and_then(|replica| verify(replica, &id).map_err(fail)) {
                Ok(()) => Ok(None),
                // It is damaged, also where it cannot be set aside.
                Err(FileServerError::Damaged { .. }) => {
                    Ok(Some(server.quarantine(&id, longest, &|| progress.note())))
                }
                Err(error) => Err(error),
            }
        });
        let state = match checked.await {
            Ok(None) => {
                return tracing::error!(object = %id, "whole, but not readable as the catalog knows it");
            }
            Ok(Some(Ok(()))) => {
                tracing::error!(server = server.name(), object = %id, "quarantined; owed from now on");
                ReplicaState::Damaged
            }
            Ok(Some(Err(error))) => {
                tracing::error!("{error}");
                error.shows().unwrap_or(ReplicaState::Damaged)
            }
            Err(error) => {
                tracing::error!("{error}");
                // Of what nobody could look at, nothing is known.
                let Some(state) = error.shows() else { return };
                state
            }
        };
        self.note_seen(id, server, state).await;
    }

    async fn note_seen(&self, id: ObjectId, server: &Sessions, state: ReplicaState) {
        let noted = self.catalog.observed(id, server.name().to_owned(), state, now()).await;
        if let Err(error) = noted {
            tracing::error!("storage: {error}");
        }
    }
}

/// A replica that is looked at as a whole, by nobody else at the same time.
struct Suspect {
    inner: Arc<Inner>,
    what: (ObjectId, usize),
}

impl Suspect {
    /// `None`: it is looked at already, or too many are.
    fn new(inner: &Arc<Inner>, id: ObjectId, at: usize) -> Option<Self> {
        let mut suspects = inner.suspects();
        let taken = suspects.len() < SUSPECTS && suspects.insert((id, at));
        drop(suspects);
        taken.then(|| Self { inner: Arc::clone(inner), what: (id, at) })
    }
}

impl Drop for Suspect {
    fn drop(&mut self) {
        self.inner.suspects().remove(&self.what);
    }
}
