//! Is there such an object? The catalog first; what it does not know for sure is looked for
//! on both file servers before anybody says no.

use futures_util::future::join_all;

use super::envelope::{EnvelopeError, Opened, RECORD_LABEL, Record, SLOT, inspect, longest, read_slots};
use super::file_server::{FileServer, FileServerError, Replica};
use super::mending::{Slots, mend};
use super::object::{Entry, ObjectId, State};
use super::sessions::{Progress, Sessions};
use super::{Inner, Storage, StorageError, now};

/// What became of an object.
#[derive(Debug, Clone)]
pub enum Found {
    /// It can be read.
    Stored(Box<Entry>),
    /// Deleted, or purged: its state tells.
    Deleted(Box<Entry>),
    /// Neither catalog nor any file server has it.
    Absent,
}

/// What looking on the file servers came to.
#[derive(Default)]
pub(super) struct Looked {
    /// Where a whole replica lies.
    pub(super) on: Vec<String>,
    /// Its record, if one of the keys opens it.
    pub(super) record: Option<Record>,
    /// Why not every file server could be asked.
    pub(super) unsure: Option<String>,
}

impl Storage {
    /// Looks an object up. One that only a file server knows is verified as a whole and
    /// adopted into the catalog.
    ///
    /// # Errors
    /// The catalog's, or [`StorageError::Unsure`].
    pub async fn find(&self, id: &ObjectId) -> Result<Found, StorageError> {
        let known = self.0.catalog.entry(*id).await?;
        match known {
            Some(entry) if entry.state == State::Stored => Ok(Found::Stored(Box::new(entry))),
            Some(entry) if entry.state > State::Stored => Ok(Found::Deleted(Box::new(entry))),
            // Its upload is still running, and its id has been told to nobody.
            _ if self.0.live().contains(id) => Ok(Found::Absent),
            known => self.0.find_on_servers(*id, known).await,
        }
    }
}

impl Inner {
    async fn find_on_servers(&self, id: ObjectId, known: Option<Entry>) -> Result<Found, StorageError> {
        let looked = self.look(id, known.as_ref()).await;
        if let Some(entry) = self.adopt(id, known, &looked).await? {
            return Ok(match entry.state {
                State::Deleted | State::Purged => Found::Deleted(Box::new(entry)),
                _ => Found::Stored(Box::new(entry)),
            });
        }
        match looked.unsure {
            Some(why) => Err(StorageError::Unsure { id, why }),
            None => Ok(Found::Absent),
        }
    }

    /// Takes what was found into the catalog; `None` where nothing whole was found.
    pub(super) async fn adopt(
        &self,
        id: ObjectId,
        known: Option<Entry>,
        looked: &Looked,
    ) -> Result<Option<Entry>, StorageError> {
        if looked.on.is_empty() {
            return Ok(None);
        }
        let from_record = |record: &Record| Entry {
            id,
            metadata: record.metadata.clone(),
            state: State::Pending,
            origin: self.own.clone(),
            identity: Some(record.identity.clone()),
            replicas: Vec::new(),
        };
        let Some(entry) = known.or_else(|| looked.record.as_ref().map(from_record)) else { return Ok(None) };
        tracing::info!(object = %id, servers = ?looked.on, "found on the file servers; taken into the catalog");
        Ok(Some(self.catalog.stored(entry, looked.on.clone(), now()).await?))
    }

    /// Looks for a whole replica on every file server; `known` is what the catalog has of it.
    pub(super) async fn look(&self, id: ObjectId, known: Option<&Entry>) -> Looked {
        let answers = self.servers.iter().map(|server| self.look_on(id, known, server));
        let mut looked = Looked::default();
        for (server, answer) in self.servers.iter().zip(join_all(answers).await) {
            match answer {
                Ok(seen) => {
                    looked.on.push(server.name().to_owned());
                    looked.record = looked.record.or(seen.record);
                    if looked.record.is_none() {
                        looked.unsure = Some("its record is sealed to none of this vault's keys".to_owned());
                    }
                }
                Err(FileServerError::Absent { .. }) => {}
                // What cannot be read now may still be whole: `unsure`, not damaged.
                Err(FileServerError::Damaged { .. }) => {
                    self.metrics.damaged.with_label_values(&[server.name()]).inc();
                }
                Err(error) => looked.unsure = Some(error.to_string()),
            }
        }
        looked
    }

    /// Reads a replica from end to end; a damaged one is set aside, a rotten record written anew.
    pub(super) async fn look_on(
        &self,
        id: ObjectId,
        known: Option<&Entry>,
        server: &Sessions,
    ) -> Result<Seen, FileServerError> {
        // Whoever asks for what is not there waits for no whole object's place.
        server.run(id, move |server, _| server.open(&id).map(drop)).await?;
        let identities = self.ring().identities();
        let longest = known.map_or(Longest::Accepted(self.settings.max_file.0), |entry| {
            Longest::Known(longest(entry.metadata.size))
        });
        let look = move |server: &dyn FileServer, progress: &Progress| {
            look_at(server, progress, &id, longest, &identities)
        };
        let seen = server.run_long(id, look).await?;
        self.count_slots(server.name(), &seen.slots);
        Ok(seen)
    }
}

/// A whole replica.
pub(super) struct Seen {
    /// Its record, if one of the keys opens it.
    pub(super) record: Option<Record>,
    /// What its two records are like.
    pub(super) slots: Slots,
}

/// How long a replica can be, in bytes.
#[derive(Clone, Copy)]
enum Longest {
    /// The catalog knows the object.
    Known(u64),
    /// It does not. A longer one may be of a time when more plaintext than this was accepted.
    Accepted(u64),
}

impl Longest {
    const fn bytes(self) -> u64 {
        match self {
            Self::Known(bytes) => bytes,
            Self::Accepted(plaintext) => longest(plaintext),
        }
    }
}

/// Verifies one replica as a whole and opens its record; quarantines a damaged one.
fn look_at(
    server: &dyn FileServer,
    progress: &Progress,
    id: &ObjectId,
    most: Longest,
    identities: &[age::x25519::Identity],
) -> Result<Seen, FileServerError> {
    use std::io::{Read, Seek};
    let set_aside = |damage: FileServerError| {
        server.quarantine(id, most.bytes(), &|| progress.note())?;
        tracing::error!("{damage}");
        Err(damage)
    };
    let mut replica = match (server.open_within(id, most.bytes()), most) {
        (Err(damage @ FileServerError::Damaged { .. }), Longest::Known(_)) => return set_aside(damage),
        (Err(FileServerError::Damaged { server, object, why }), Longest::Accepted(_)) => {
            let source = std::io::Error::other(format!("{why}, by storage.max_file"));
            return Err(FileServerError::Unreadable { server, object, source });
        }
        (opened, _) => progress.watch(opened?),
    };
    let mut slots = Vec::with_capacity(2 * SLOT);
    let read = replica.by_ref().take(2 * SLOT as u64).read_to_end(&mut slots);
    let checked = read.and_then(|_| replica.rewind()).map_err(EnvelopeError::Beneath);
    match checked.and_then(|()| inspect(&mut replica, id)) {
        Ok(rotten) => {
            let record = match read_slots(&slots, identities).and_then(|record| with_label(record, replica)) {
                Ok(record) => Some(record),
                Err(error) => {
                    tracing::error!(server = server.name(), object = %id, "whole, but {error}");
                    None
                }
            };
            Ok(Seen { record, slots: mend(server, progress, id, rotten) })
        }
        Err(error) => match damage(error, server.name(), id) {
            damage @ FileServerError::Damaged { .. } => set_aside(damage),
            beneath => Err(beneath),
        },
    }
}

/// What an envelope's error tells of the replica that it is about.
pub(super) fn damage(error: EnvelopeError, server: &str, id: &ObjectId) -> FileServerError {
    match error {
        EnvelopeError::Beneath(error) => beneath(error, server, id),
        damage => FileServerError::Damaged {
            server: server.to_owned(),
            object: id.to_string(),
            why: damage.reason(),
        },
    }
}

/// A record with its whole label: a long one stands in the body.
pub(super) fn with_label(mut record: Record, replica: Replica) -> Result<Record, EnvelopeError> {
    if record.metadata.label.len() > RECORD_LABEL {
        let label = Opened::new(replica, &record.identity, record.metadata.size)?.label()?;
        record.metadata.label = label.unwrap_or(record.metadata.label);
    }
    Ok(record)
}

/// The file server's own error out of a reader's.
pub(super) fn beneath(error: std::io::Error, server: &str, id: &ObjectId) -> FileServerError {
    error.downcast::<FileServerError>().unwrap_or_else(|source| FileServerError::Away {
        server: server.to_owned(),
        object: id.to_string(),
        source,
    })
}
