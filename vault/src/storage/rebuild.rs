//! Fills an empty catalog from the file servers alone, after both vaults' disks were lost: lists
//! both, reads each object's slots (never its body), opens the record. What is taken in is
//! verified later, by whoever reads or scrubs it.
//!
//! Both file servers are walked side by side in order of id, so that an object comes in once, with
//! every replica it has; the catalog keeps how far the walk is together with what it took in. What
//! the file servers note of deletions is taken over before that: a deleted object comes in deleted,
//! and can be taken back for as long as any.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use age::x25519::Identity;
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};

use super::catalog::FoundObject;
use super::envelope::{EnvelopeError, Next, Record, Side, examine, parse_slot};
use super::file_server::{FileServerError, Replica};
use super::lookup::{beneath, with_label};
use super::note::NoteKey;
use super::object::{Entry, ObjectId, State};
use super::rewrap::first_bytes;
use super::ring::Ring;
use super::sessions::Kind;
use super::task::{Progress, Running};
use super::tasks::{Asked, REBUILD};
use super::{Inner, KeyError, Storage, StorageError, key, now};

/// Ids listed on each file server at once.
const PAGE: usize = if cfg!(test) { 7 } else { 1000 };
/// Objects whose slots are read at once: as many as there are sessions.
const AT_ONCE: usize = 6;
/// The walk's name in the catalog.
const WALK: &str = "rebuild";

/// An object and where it lies, by the file servers' places.
type Found = (ObjectId, Vec<usize>);

/// What an object found is to the catalog.
pub(super) enum Taken {
    /// To be noted.
    New(Box<FoundObject>),
    /// Known as it was found; is it deleted?
    Known(bool),
    /// It has a record, and none of the keys opens it.
    Sealed,
    /// None of its records is whole, for this reason.
    Rotten(String),
}

impl Storage {
    /// Starts filling the catalog; one that is in use only if `merge` says so, or to go on
    /// with a walk that was broken off. `identity` is the text of a key file whose keys are tried
    /// too, such as the escrow's. [`Storage::rebuild_progress`] tells how far it is.
    ///
    /// # Errors
    /// [`StorageError::NotEmpty`], [`StorageError::Busy`], no key in `identity`, the catalog's.
    pub async fn rebuild(&self, identity: Option<&str>, merge: bool) -> Result<Progress, StorageError> {
        let inner = &self.0;
        let mut identities = inner.ring().identities();
        if let Some(text) = identity {
            let keys = key::parse(text).ok_or(KeyError::NoIdentity)?;
            identities.extend(keys.into_iter().map(|key| key.identity));
        }
        let (after, used) = inner.catalog.walk(WALK).await?;
        let broken_off = after.is_some() || inner.catalog.asked(REBUILD).await?.is_some();
        if used && !broken_off && !merge {
            return Err(StorageError::NotEmpty);
        }
        let running = inner.rebuild.begin().ok_or(StorageError::Busy("the catalog is being rebuilt"))?;
        inner.begin_asked(Asked::Rebuild { with_identity: identity.is_some(), told: false }).await?;
        Ok(self.0.rebuild_from(running, identities, after))
    }

    /// How far the last rebuilding since start is.
    #[must_use]
    pub fn rebuild_progress(&self) -> Progress {
        self.0.rebuild.progress()
    }
}

impl Inner {
    /// Goes on with the walk of a former life.
    pub(super) async fn rebuild_on(self: &Arc<Self>) -> Result<(), StorageError> {
        let (after, _) = self.catalog.walk(WALK).await?;
        if let Some(running) = self.rebuild.begin() {
            self.rebuild_from(running, self.ring().identities(), after);
        }
        Ok(())
    }

    fn rebuild_from(
        self: &Arc<Self>,
        running: Running,
        identities: Vec<Identity>,
        after: Option<ObjectId>,
    ) -> Progress {
        let (inner, started) = (Arc::clone(self), self.rebuild.progress());
        tokio::spawn(async move {
            let stopped = inner.rebuild_all(&running, &identities, after).await.err();
            let progress = inner.rebuild.progress();
            match &stopped {
                None if progress.unopened > 0 => {
                    let why = unopened(progress.unopened);
                    tracing::error!("storage: the catalog is rebuilt as far as it goes: {why}");
                    inner.unopened.store(progress.unopened, Ordering::Relaxed);
                    running.note(|progress| progress.last_error = Some(why));
                }
                None if progress.failed > 0 => {
                    let failed = progress.failed;
                    tracing::error!(
                        "storage: the catalog is rebuilt as far as it goes: {failed} files are not in it"
                    );
                }
                None => {
                    inner.unopened.store(0, Ordering::Relaxed);
                    tracing::info!("storage: the catalog is rebuilt");
                }
                Some(error) => {
                    tracing::error!("{error}; rebuilding stopped: vault file rebuild-catalog goes on with it")
                }
            }
            inner.end_asked(REBUILD).await;
            running.end(stopped.map(|error| error.to_string()));
        });
        started
    }

    /// Which objects are deleted, as both file servers note it.
    async fn take_over_deletions(
        &self,
        running: &Running,
        identities: &[Identity],
    ) -> Result<(), StorageError> {
        let mut keys = self.note_keys();
        keys.extend(identities.iter().map(NoteKey::of));
        let mut unread = self.lost_notes().await?;
        for server in &self.servers {
            let name = server.name();
            let Some(place) = self.catalog.place(name.to_owned()).await?.0 else { continue };
            let taken = self.take_over_tombstones(server, &place, &keys).await;
            let opened = taken.map_err(|error| match error {
                StorageError::FileServer(error) => StorageError::Listing(error.to_string()),
                other => other,
            })?;
            if !opened {
                unread.insert(name.to_owned());
            }
        }
        if !unread.is_empty() {
            let names = unread.into_iter().collect::<Vec<_>>().join(", ");
            let why = format!(
                "file servers {names}: what is noted there of deletions opens with none of these keys: files \
                 that were deleted may be back; delete them again, or begin anew with the former storage key"
            );
            tracing::warn!("{why}");
            running.note(|progress| progress.warning = Some(why));
        }
        Ok(())
    }

    async fn rebuild_all(
        &self,
        running: &Running,
        identities: &[Identity],
        mut after: Option<ObjectId>,
    ) -> Result<(), StorageError> {
        let ring = self.ring();
        self.take_over_deletions(running, identities).await?;
        loop {
            let (page, bound) = self.list_both(after).await?;
            let mut taken = Vec::new();
            let read = page.into_iter().map(|found| self.take_in(found, identities, &ring));
            let mut read = stream::iter(read).buffer_unordered(AT_ONCE);
            while let Some(outcome) = read.next().await {
                match outcome {
                    Ok(Taken::New(one)) => taken.push(*one),
                    Ok(Taken::Known(deleted)) => running.note(|progress| {
                        progress.passed += 1;
                        progress.deleted += u64::from(deleted);
                    }),
                    Ok(Taken::Sealed) => running.note(|progress| {
                        progress.failed += 1;
                        progress.unopened += 1;
                    }),
                    Ok(Taken::Rotten(why)) => {
                        tracing::warn!("{why}; not taken into the catalog");
                        running.failed(&why);
                    }
                    Err(error @ (StorageError::Catalog(_) | StorageError::Stopping)) => return Err(error),
                    // The rest of the page may lie there, too: the walk goes on from before it.
                    Err(StorageError::FileServer(error)) => {
                        return Err(StorageError::Listing(error.to_string()));
                    }
                    Err(error) => {
                        tracing::warn!("{error}; not taken into the catalog");
                        running.failed(&error.to_string());
                    }
                }
            }
            drop(read);
            let count = taken.len() as u64;
            let deleted = self.catalog.take_in(taken, WALK, bound, now()).await?;
            running.note(|progress| {
                progress.done += count;
                progress.deleted += deleted;
                // Ids are hashes, so their first byte says how far a walk in their order is.
                progress.percent =
                    bound.map_or(99, |id| u8::try_from(u32::from(id.first()) * 100 / 256).unwrap_or(99));
            });
            if bound.is_none() {
                return Ok(());
            }
            after = bound;
        }
    }

    /// The next objects on both file servers, and up to which id they are all there are; `None`
    /// at the end.
    async fn list_both(
        &self,
        after: Option<ObjectId>,
    ) -> Result<(Vec<Found>, Option<ObjectId>), StorageError> {
        let listings = self.servers.iter().map(|server| {
            server.run_as(Kind::Listing, "list", move |server, progress| {
                server.list_watched("", after.as_ref(), PAGE, &|| progress.note())
            })
        });
        let mut found: BTreeMap<ObjectId, Vec<usize>> = BTreeMap::new();
        let mut bound: Option<ObjectId> = None;
        for (at, listed) in join_all(listings).await.into_iter().enumerate() {
            let ids = listed.map_err(|error| StorageError::Listing(error.to_string()))?;
            if ids.len() >= PAGE {
                bound = ids.last().copied().map(|last| bound.map_or(last, |bound| bound.min(last)));
            }
            for id in ids {
                found.entry(id).or_default().push(at);
            }
        }
        found.retain(|id, _| bound.is_none_or(|bound| *id <= bound));
        Ok((found.into_iter().collect(), bound))
    }

    /// What the catalog should say of one object, by its record.
    ///
    /// # Errors
    /// The catalog's; [`StorageError::FileServer`] where a file server that may tell more is away.
    pub(super) async fn take_in(
        &self,
        (id, places): Found,
        identities: &[Identity],
        ring: &Ring,
    ) -> Result<Taken, StorageError> {
        let on: Vec<_> = places.iter().map(|&at| self.servers[at].name().to_owned()).collect();
        // An upload that runs just now knows better.
        if self.live().contains(&id) {
            return Ok(Taken::Known(false));
        }
        if let Some(known) = self.catalog.entry(id).await? {
            let stored = known.stored_on();
            let all = known.state >= State::Stored && on.iter().all(|name| stored.contains(name));
            if all {
                return Ok(Taken::Known(known.state == State::Deleted));
            }
            // A purged one that turns up again has to go again.
            return Ok(Taken::New(Box::new(FoundObject { entry: known, on, sealed: None })));
        }
        let (mut refusals, mut rotten, mut sealed, mut away) = (Vec::new(), true, true, None);
        for at in places {
            let (own, wanted) = (identities.to_vec(), ring.seal().to_owned());
            let examined = self.servers[at].run(id, move |server, _| {
                let slots = first_bytes(server, &id)?;
                let mut examined = examine(&slots, &own, &wanted);
                if examined.record.is_none() {
                    let any = Side::BOTH.iter().any(|side| parse_slot(side.of(&slots)).is_ok());
                    return Ok((examined, any));
                }
                if let Some(record) = examined.record.take() {
                    examined.record = Some(labelled(record, server.open(&id)?, server.name(), &id)?);
                }
                Ok((examined, true))
            });
            match examined.await {
                Ok((examined, any)) => {
                    (rotten, sealed) = (rotten && !any, sealed && any);
                    let Some(Record { metadata, identity }) = examined.record else {
                        let why = "its record is damaged, or sealed to none of these keys";
                        refusals.push(format!("{}: {why}", self.servers[at].name()));
                        continue;
                    };
                    // The other replica may be sealed to other keys.
                    let there = || (self.servers[at].name().to_owned(), ring.seal().to_owned());
                    let sealed = (examined.next == Next::Nothing).then(there);
                    let (state, origin, identity) = (State::Pending, self.own.clone(), Some(identity));
                    let entry = Entry { id, metadata, state, origin, identity, replicas: Vec::new() };
                    return Ok(Taken::New(Box::new(FoundObject { entry, on, sealed })));
                }
                // Gone since it was listed.
                Err(FileServerError::Absent { .. }) => {}
                Err(error) if error.is_of_the_place() => away = Some(error),
                Err(error) => {
                    (rotten, sealed) = (false, false);
                    refusals.push(error.to_string());
                }
            }
        }
        if let Some(away) = away {
            return Err(away.into());
        }
        if refusals.is_empty() {
            return Ok(Taken::Known(false));
        }
        if sealed {
            return Ok(Taken::Sealed);
        }
        let error = StorageError::Unreadable { id, why: refusals.join("; ") };
        if rotten { Ok(Taken::Rotten(error.to_string())) } else { Err(error) }
    }
}

fn unopened(count: u64) -> String {
    format!("none of these keys opens {count} files: name the right one with --identity")
}

/// A record with its whole label, from the replica that it stands in. That of a body which does not
/// open is cut short, and the body the scrub's to find.
///
/// # Errors
/// The file server's: then the label may be whole, and is read from the other one or another time.
fn labelled(
    record: Record,
    replica: Replica,
    server: &str,
    id: &ObjectId,
) -> Result<Record, FileServerError> {
    match with_label(record.clone(), replica) {
        Ok(whole) => Ok(whole),
        Err(EnvelopeError::Beneath(error)) => Err(beneath(error, server, id)),
        Err(_) => Ok(record),
    }
}

#[cfg(test)]
mod tests {
    use super::super::envelope::RECORD_LABEL;
    use super::super::object::{Metadata, OneOff};
    use super::*;

    #[test]
    fn a_long_label_is_cut_for_a_damaged_body_and_never_for_a_line_error() {
        let id = ObjectId::new([7; 32]);
        let label = "x".repeat(RECORD_LABEL + 1);
        let [owner, key, media_type, created, digest] = ["o", "k", "text/plain", "", ""].map(str::to_owned);
        let metadata = Metadata { owner, key, label, media_type, size: 1, created, digest };
        let record = Record { metadata, identity: OneOff(String::new()) };
        let broken = Replica::new(
            9000,
            Box::new(|_, _| {
                let (server, object) = ("paris".to_owned(), "7".to_owned());
                let source = std::io::ErrorKind::ConnectionReset.into();
                Err(FileServerError::Away { server, object, source })
            }),
        );
        let told = labelled(record.clone(), broken, "paris", &id);
        assert!(matches!(told, Err(FileServerError::Away { .. })));
        let rotten = Replica::new(9000, Box::new(|_, _| Ok(0)));
        assert_eq!(labelled(record.clone(), rotten, "paris", &id).unwrap().metadata, record.metadata);
    }
}
