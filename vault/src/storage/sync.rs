//! The comparison of the catalog with what really lies on the file servers: drives listings
//! through the sessions, hands both to `comparison`, and notes its findings. What is missing is
//! copied by the repair turns, as it is and without a key.

use std::sync::atomic::Ordering;

use futures_util::future::{join_all, ready};
use futures_util::stream::{StreamExt, TryStreamExt, iter};
use serde::{Deserialize, Serialize};

use super::catalog::FoundObject;
use super::comparison::{Finding, compare};
use super::envelope::{inspect, longest};
use super::file_server::FileServerError;
use super::lookup::{Found, damage};
use super::mending::{Checkup, mend};
use super::object::{ObjectId, ReplicaState, State};
use super::rebuild::Taken;
use super::sessions::{Kind, Sessions};
use super::task::Progress;
use super::{Inner, Storage, StorageError, now};

/// Parts compared at once; a file server keeps sessions for uploads and reads.
const AT_ONCE: usize = 3;
/// With more objects than this, what all of them have in common is spelt out further, so that no
/// part is too large for memory.
const MANY: u64 = 1_000_000;
/// Ids that a part may hold beyond twice those known: a file server that lists more is not believed,
/// for it would fill the memory. A lost catalog's rebuilding lists in pages.
const UNKNOWN: usize = if cfg!(test) { 500 } else { 1_000_000 };
/// Ids in one answer of a listing, 2 MiB: about a whole part.
const PAGE: usize = 1 << 16;
/// With more differing prefixes than this, listing everything costs no more.
const MOST_PARTS: usize = 1024;
/// Ids that differ and are looked at at once.
const LOOKS: usize = 4;

/// What a comparison came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Synced {
    /// Objects that the catalog knew, deleted ones too.
    pub known: u64,
    /// Replicas listed, of all file servers.
    pub listed: u64,
    /// Replicas that should have been there and were not; owed from now on.
    pub missing: u64,
    /// Replicas that were owed and are there, whole.
    pub present: u64,
    /// Replicas that were there and damaged; owed from now on.
    pub damaged: u64,
    /// Objects that the catalog did not know, taken into it.
    pub adopted: u64,
    /// Unknown objects that stay so: their record cannot be read.
    pub foreign: u64,
    /// Of those, objects whose record none of the keys opens.
    #[serde(default)]
    pub sealed: u64,
    /// Replicas of deleted objects that were there again; to be removed.
    pub risen: u64,
    /// File servers that could not be listed whole, each with why.
    pub unlisted: Vec<String>,
}

impl Synced {
    fn add(mut self, other: Self) -> Self {
        self.known += other.known;
        self.listed += other.listed;
        self.missing += other.missing;
        self.present += other.present;
        self.damaged += other.damaged;
        self.adopted += other.adopted;
        self.foreign += other.foreign;
        self.risen += other.risen;
        self.sealed += other.sealed;
        for why in other.unlisted {
            // One reason for each file server will do.
            let known = |listed: &String| listed.split_once(": ").map(|(server, _)| server.to_owned());
            if !self.unlisted.iter().any(|listed| known(listed) == known(&why)) {
                self.unlisted.push(why);
            }
        }
        self
    }

    /// Did everything agree?
    #[must_use]
    pub const fn agreed(&self) -> bool {
        self.differences() == 0 && self.unlisted.is_empty()
    }

    const fn differences(&self) -> u64 {
        self.missing + self.present + self.damaged + self.adopted + self.foreign + self.risen
    }
}

impl Storage {
    /// Compares the catalog with whole listings of all file servers and notes what differs. What
    /// is missing is owed when this returns; the repair turns copy it.
    ///
    /// # Errors
    /// Another comparison is under way; or the catalog's.
    pub async fn sync(&self) -> Result<Synced, StorageError> {
        self.compare_parts(Vec::new()).await
    }

    /// How far the last comparison since start is: differences are what it has done, objects what
    /// it has passed.
    #[must_use]
    pub fn sync_progress(&self) -> Progress {
        self.0.compare.progress()
    }

    /// Compares the objects under these prefixes; without any, or with very many, all of them.
    pub(super) async fn compare_parts(&self, mut parts: Vec<String>) -> Result<Synced, StorageError> {
        let running = self.0.compare.begin().ok_or(StorageError::Busy("a comparison is under way"))?;
        let whole = parts.is_empty() || parts.len() > MOST_PARTS;
        if whole {
            parts = if self.0.catalog.counts().await?.objects > MANY {
                (0..=u8::MAX).map(|byte| format!("{byte:02x}")).collect()
            } else {
                (0..16).map(|digit| format!("{digit:x}")).collect()
            };
        }
        let (all, mut behind) = (parts.len().max(1), 0);
        let compared = iter(parts).map(|part| self.compare_part(part)).buffer_unordered(AT_ONCE);
        let add = |sum: Synced, part: Synced| {
            behind += 1;
            let sum = sum.add(part);
            running.note(|progress| {
                (progress.done, progress.passed) = (sum.differences(), sum.known);
                progress.percent = u8::try_from(behind * 100 / all).unwrap_or(99).min(99);
            });
            ready(Ok(sum))
        };
        let synced = compared.try_fold(Synced::default(), add).await;
        running.end(synced.as_ref().err().map(ToString::to_string));
        let synced = synced?;
        if whole {
            self.0.clear_all_set_aside().await?;
            self.0.unopened.store(synced.sealed, Ordering::Relaxed);
        }
        if synced.sealed > 0 {
            tracing::error!(
                "storage: no key of storage.key_file opens {} files on the file servers, and the catalog does not know \
                 them: put the earlier key into that file, too, or vault file rebuild-catalog --identity FILE --merge",
                synced.sealed
            );
        }
        tracing::info!(?synced, whole, "compared the catalog with the file servers");
        Ok(synced)
    }

    async fn compare_part(&self, part: String) -> Result<Synced, StorageError> {
        let inner = &self.0;
        // Before the listings begin: see `comparison`.
        let known = inner.catalog.known_under(part.clone()).await?;
        let most = known.len().saturating_mul(2).saturating_add(UNKNOWN);
        let lists = join_all(inner.servers.iter().map(|server| list(server, &part, most))).await;
        let mut synced = Synced { known: known.len() as u64, ..Synced::default() };
        let mut listings = Vec::with_capacity(lists.len());
        for (server, listed) in inner.servers.iter().zip(lists) {
            match listed {
                Ok(ids) => {
                    synced.listed += ids.len() as u64;
                    listings.push(Some(ids));
                }
                Err(error) => {
                    synced.unlisted.push(format!("{}: {error}", server.name()));
                    listings.push(None);
                }
            }
        }
        let (noted, looked_at): (Vec<_>, Vec<_>) = compare(&known, &listings)
            .into_iter()
            .partition(|finding| matches!(finding, Finding::Missing { .. } | Finding::Risen { .. }));
        self.note(&noted, &mut synced).await?;
        let places = |finding: &Finding| {
            let Finding::Unknown { id } = finding else { return Vec::new() };
            let lies_at =
                |at: &usize| listings[*at].as_ref().is_some_and(|ids| ids.binary_search(id).is_ok());
            (0..listings.len()).filter(lies_at).collect()
        };
        let looked_at: Vec<_> = looked_at.into_iter().map(|finding| (places(&finding), finding)).collect();
        drop(listings);
        let looks =
            iter(looked_at).map(|(places, finding)| self.look_into(finding, places)).buffer_unordered(LOOKS);
        let add = |sum: Synced, one: Synced| async { Ok(sum.add(one)) };
        looks.try_fold(synced, add).await
    }

    async fn note(&self, findings: &[Finding], synced: &mut Synced) -> Result<(), StorageError> {
        let inner = &self.0;
        let mut seen = Vec::with_capacity(findings.len());
        for finding in findings {
            let (id, server, state) = match *finding {
                Finding::Missing { id, server } => (id, server, ReplicaState::Owed),
                // Seen stored although deleted: the catalog owes its removal.
                Finding::Risen { id, server } => (id, server, ReplicaState::Stored),
                Finding::Present { .. } | Finding::Unknown { .. } => continue,
            };
            // An upload that is just being written is missing only by the look of it.
            if inner.live().contains(&id) {
                continue;
            }
            let server = inner.servers[server].name();
            if state == ReplicaState::Owed {
                synced.missing += 1;
                inner.metrics.damaged.with_label_values(&[server]).inc();
            } else {
                synced.risen += 1;
            }
            seen.push((id, server.to_owned(), state));
        }
        if !seen.is_empty() {
            inner.catalog.observed_all(seen, now()).await?;
        }
        Ok(())
    }

    async fn look_into(&self, finding: Finding, places: Vec<usize>) -> Result<Synced, StorageError> {
        let mut synced = Synced::default();
        match finding {
            Finding::Present { id, server } if !self.0.live().contains(&id) => {
                match self.0.check(id, &self.0.servers[server], None).await {
                    Ok(Checkup { state: ReplicaState::Stored, .. }) => synced.present = 1,
                    Ok(_) => synced.damaged = 1,
                    Err(error) => tracing::warn!("{error}; looked at again by the next comparison"),
                }
            }
            // The rebuilding takes it in at a fraction of the reading.
            Finding::Unknown { .. } if self.0.rebuild.progress().running => {}
            Finding::Unknown { id } => match self.know(id, places).await {
                Ok(Known::Adopted) => synced.adopted = 1,
                Ok(Known::Sealed) => (synced.foreign, synced.sealed) = (1, 1),
                Ok(Known::Not) => {}
                Err(StorageError::Unsure { why, .. } | StorageError::Unreadable { why, .. }) => {
                    synced.foreign = 1;
                    tracing::warn!(object = %id, "lies on a file server and is not known: {why}; left alone");
                }
                Err(StorageError::FileServer(error)) => {
                    synced.foreign = 1;
                    tracing::warn!("{error}; looked at again by the next comparison");
                }
                Err(error) => return Err(error),
            },
            Finding::Present { .. } | Finding::Missing { .. } | Finding::Risen { .. } => {}
        }
        Ok(synced)
    }
}

impl Storage {
    /// Takes in what lies at `places` and is not known. Where the catalog
    /// knows nothing at all of it, its record alone is read, as a rebuilding does: after the loss of
    /// a catalog that is everything there is. The body is verified by whoever reads or scrubs it.
    async fn know(&self, id: ObjectId, places: Vec<usize>) -> Result<Known, StorageError> {
        let inner = &self.0;
        if inner.catalog.entry(id).await?.is_none() {
            let ring = inner.ring();
            match inner.take_in((id, places), &ring.identities(), &ring).await? {
                Taken::New(one) => {
                    let FoundObject { entry, on, sealed } = *one;
                    let taken = inner.catalog.stored(entry, on, now()).await?;
                    if let Some((server, seal)) = sealed {
                        inner.catalog.sealed(vec![(id, server)], seal).await?;
                    }
                    return Ok(if taken.state == State::Stored { Known::Adopted } else { Known::Not });
                }
                Taken::Known(_) => return Ok(Known::Not),
                Taken::Sealed => return Ok(Known::Sealed),
                // Is it an object at all?
                Taken::Rotten(_) => {}
            }
        }
        // Found deleted or not at all: told since by the peer, deleted since, or just being uploaded.
        let found = self.find(&id).await?;
        Ok(if matches!(found, Found::Stored(_)) { Known::Adopted } else { Known::Not })
    }
}

/// What became of an object that was not known.
enum Known {
    /// It can be read now.
    Adopted,
    /// None of the keys opens its record.
    Sealed,
    /// Nothing, for now.
    Not,
}

/// Every id under `part`, page by page; more than `most` are none.
async fn list(server: &Sessions, part: &str, most: usize) -> Result<Vec<ObjectId>, String> {
    let mut ids: Vec<ObjectId> = Vec::new();
    loop {
        let (prefix, after) = (part.to_owned(), ids.last().copied());
        let listed = server.run_as(Kind::Listing, "list", move |server, progress| {
            server.list_watched(&prefix, after.as_ref(), PAGE, &|| progress.note())
        });
        let page = listed.await.map_err(|error| error.to_string())?;
        // A server that repeats itself must not keep us for ever.
        let more = page.len() == PAGE && page.last() > after.as_ref();
        ids.extend(page);
        if ids.len() > most {
            return Err(format!(
                "lists more than {most} objects under {part}, far more than are known: look what lies there, or run vault file rebuild-catalog"
            ));
        }
        if !more {
            return Ok(ids);
        }
    }
}

impl Inner {
    /// Reads a replica as a whole, sets it aside if it is damaged, writes a rotten record anew, and
    /// notes what was seen.
    /// With `pace`, slowly.
    pub(super) async fn check(
        &self,
        id: ObjectId,
        server: &Sessions,
        pace: Option<super::scrub::Pace>,
    ) -> Result<Checkup, StorageError> {
        let known = self.catalog.entry(id).await?;
        let longest = known.map_or(u64::MAX, |entry| longest(entry.metadata.size));
        let looked = server.run_as(Kind::Background, id, move |server, progress| {
            let (progress, after) = (progress.clone(), progress.clone());
            let opened = server.open_within(&id, longest).map(|replica| {
                progress.watch(replica).watched(move |count| {
                    if let Some(pace) = &pace {
                        pace.rest_after(count, &progress);
                    }
                })
            });
            let fail = |error| damage(error, server.name(), &id);
            match opened.and_then(|replica| inspect(replica, &id).map_err(fail)) {
                Ok(rotten) => {
                    let slots = mend(server, &after, &id, rotten);
                    Ok(Checkup { state: ReplicaState::Stored, slots })
                }
                Err(damage @ FileServerError::Damaged { .. }) => {
                    tracing::error!("{damage}");
                    server.quarantine(&id, longest, &|| after.note())?;
                    Ok(ReplicaState::Damaged.into())
                }
                Err(error) => Err(error),
            }
        });
        let checkup = match looked.await {
            Ok(checkup) => checkup,
            Err(error) => match error.shows() {
                Some(state) => {
                    tracing::error!("{error}");
                    state.into()
                }
                None => return Err(StorageError::Unreadable { id, why: error.to_string() }),
            },
        };
        self.count_slots(server.name(), &checkup.slots);
        let state = checkup.state;
        let known = self.catalog.entry(id).await?;
        let known =
            known.as_ref().and_then(|entry| entry.replicas.iter().find(|(name, _)| name == server.name()));
        if known.map(|(_, known)| *known) != Some(state) {
            self.catalog.observed(id, server.name().to_owned(), state, now()).await?;
        }
        if state != ReplicaState::Stored {
            self.metrics.damaged.with_label_values(&[server.name()]).inc();
        }
        Ok(checkup)
    }
}
