//! The watch over the file servers as places: has one been restored from a backup, is a
//! comparison due, is what lies there written down there? Drives what `inventory` decides; the
//! form of what is written is `note`'s.
//!
//! ```text
//! notes/generation.<vault>.<slot>    which inventory counts: place, generation, its digest
//! notes/inventory.<vault>.<slot>     a digest for each prefix of what should lie there
//! notes/deleted-<xx>.<vault>.<slot>, notes/revisions-<xx>.<vault>.<slot>: see `tombstones`
//! ```
//!
//! Written in the order tombstones, inventory, generation; the catalog has the generation on
//! record before and confirms it after. All of it is for finding differences early: what it
//! misses, the whole comparison finds. That one takes its time and goes by itself, so that what was
//! deleted meanwhile is noted all the same.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::file_server::{FileServer, FileServerError};
use super::inventory::{Inventory, Marker, Remembered, Verdict, judge};
use super::note::{NoteKey, SLOTS, Title};
use super::round::Round;
use super::scrub::SCRUB;
use super::sessions::Sessions;
use super::{Inner, Storage, StorageError, Use, now};

/// The round's name in the catalog.
pub(super) const SYNC: &str = "sync";
/// Under this name the catalog keeps whose notes were lost.
const LOST_NOTES: &str = "lost notes";
/// A comparison that could not list everything is tried again after this time, then after twice
/// as long and so on,
const AGAIN: Duration = Duration::from_secs(60);
/// up to this; with a file server away only now and then: it begins anew when that one is back.
const AGAIN_ALONE: Duration = Duration::from_secs(3600);

/// What the watch and the comparison tell each other.
#[derive(Default)]
pub(super) struct Patrol {
    /// Have the file servers been looked at since start? What is deleted is known only then.
    watched: AtomicBool,
    /// How often a whole comparison was asked for.
    asked: AtomicU64,
    /// The Unix second of the last one that could not list everything, and how many of these there
    /// were in a row.
    failed_at: AtomicI64,
    failures: AtomicU32,
    /// File servers whose notes no key opens, and whether everything was compared since. Before that
    /// they are not written over, so that the operator can still put the right key into the file.
    foreign: Mutex<HashMap<String, bool>>,
}

impl Patrol {
    fn foreign(&self) -> MutexGuard<'_, HashMap<String, bool>> {
        self.foreign.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a turn of the comparison came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compared {
    /// Nothing: it is not due.
    NotDue,
    /// Everything was compared.
    Whole,
    /// Not everything could be listed; a later turn tries again.
    Partly,
}

impl Storage {
    /// A watch and a comparison, and a watch after it.
    ///
    /// # Errors
    /// The catalog's; what ails a file server is logged.
    pub async fn patrol_turn(&self) -> Result<(), StorageError> {
        self.watch_turn().await?;
        self.compare_turn().await?;
        self.watch_turn().await
    }

    /// Looks whether the file servers are as they were left, and brings what is noted there up to
    /// date. Call it every [`Storage::retry_every`], one at a time.
    ///
    /// # Errors
    /// The catalog's; what ails a file server is logged.
    pub async fn watch_turn(&self) -> Result<(), StorageError> {
        let inner = &self.0;
        let (mut stale, mut unseen) = (Vec::new(), Vec::new());
        for server in &inner.servers {
            if server.health().suspended.is_some() {
                continue;
            }
            let foreign = inner.patrol.foreign().get(server.name()).copied();
            if let Some(compared) = foreign {
                if compared { &mut stale } else { &mut unseen }.push(server.name());
                continue;
            }
            match self.inspect(server).await {
                Ok(true) => {}
                Ok(false) => stale.push(server.name()),
                Err(StorageError::FileServer(error)) => {
                    tracing::warn!("{error}; looked at again at the next turn");
                    unseen.push(server.name());
                }
                Err(error) => return Err(error),
            }
        }
        inner.patrol.watched.store(true, Ordering::Relaxed);
        for server in &inner.servers {
            // What was not read is not written over.
            let held = inner.patrol.foreign().get(server.name()) == Some(&false);
            if held || unseen.contains(&server.name()) || server.health().suspended.is_some() {
                continue;
            }
            if inner.patrol.foreign().get(server.name()) == Some(&true) {
                inner.lose_notes(server.name()).await?;
            }
            match inner.write_if_due(server, stale.contains(&server.name())).await {
                Err(StorageError::FileServer(error)) => tracing::warn!("{error}; written at the next turn"),
                other => {
                    other?;
                    inner.patrol.foreign().remove(server.name());
                }
            }
        }
        Ok(())
    }

    /// True if the file server is as it was left. If not, what differs at first sight is noted and
    /// a whole comparison is due.
    async fn inspect(&self, server: &Sessions) -> Result<bool, StorageError> {
        let inner = &self.0;
        let name = server.name();
        let Some(place) = inner.catalog.place(name.to_owned()).await?.0 else { return Ok(true) };
        let (verdict, parts) = inner.differing(server, &place).await?;
        match verdict {
            Verdict::Current => return Ok(true),
            // Nothing is written while no key is in use.
            Verdict::Sealed if inner.ring().active().is_none() => return Ok(true),
            Verdict::New | Verdict::Ahead | Verdict::Unfinished => {
                tracing::info!(server = name, ?verdict, "a whole comparison is due");
            }
            Verdict::Sealed => tracing::warn!(
                "file server {name}: what is noted there opens with no key of storage.key_file: has that changed, or \
                 has the note rotted? Written anew, and a whole comparison is due"
            ),
            Verdict::Behind | Verdict::Gone => {
                inner.metrics.restored.with_label_values(&[name]).inc();
                server.note_restored();
                tracing::error!(
                    "file server {name}: what it holds is older than what was left there: restored from a backup? \
                     What is missing is found, owed and copied by itself"
                );
            }
        }
        if matches!(verdict, Verdict::Behind | Verdict::Gone | Verdict::Ahead) {
            // Its records may be older, or this catalog is.
            inner.catalog.forget_seals(name.to_owned()).await?;
        }
        inner.request_comparison().await?;
        match verdict {
            // This vault wrote it, so its catalog knows what it says.
            Verdict::Sealed => {}
            // All that both vaults deleted since is known here.
            Verdict::Behind | Verdict::Unfinished => {
                tracing::info!(server = name, prefixes = parts.len(), "prefixes differ");
                if !parts.is_empty() {
                    self.compare_now(parts).await?;
                }
            }
            _ if !inner.take_over_tombstones(server, &place, &inner.note_keys()).await? => {
                tracing::warn!(
                    "file server {name}: what is noted there of deletions is of another place, or opens with no key of \
                     storage.key_file: if this catalog is new, deleted files may come back; put the earlier key \
                     into that file, too"
                );
                inner.patrol.foreign().insert(name.to_owned(), false);
            }
            _ => {}
        }
        Ok(false)
    }

    /// An operator's comparison that is under way serves as well.
    async fn compare_now(&self, parts: Vec<String>) -> Result<bool, StorageError> {
        match self.compare_parts(parts).await {
            Ok(synced) => Ok(synced.unlisted.is_empty()),
            Err(StorageError::Busy(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Compares everything, if that is due. Call it every [`Storage::retry_every`], one at a time;
    /// it may take minutes, and the watch does not wait for it.
    ///
    /// # Errors
    /// The catalog's; what ails a file server is logged.
    pub async fn compare_turn(&self) -> Result<Compared, StorageError> {
        let (inner, patrol) = (&self.0, &self.0.patrol);
        let round = inner.catalog.round(SYNC).await?;
        let every = inner.settings.sync_every;
        let due = round.is_due(every, now()) && (round.running || !every.is_zero());
        if !due || !patrol.watched.load(Ordering::Relaxed) {
            return Ok(Compared::NotDue);
        }
        let alone = inner.servers.iter().any(|server| server.health().suspended.is_some());
        let failures = patrol.failures.load(Ordering::Relaxed);
        let pause = if alone { AGAIN_ALONE } else { pause_after(failures) };
        let waits = 0..i64::try_from(pause.as_secs()).unwrap_or(i64::MAX);
        if failures > 0 && waits.contains(&now().saturating_sub(patrol.failed_at.load(Ordering::Relaxed))) {
            return Ok(Compared::NotDue);
        }
        let asked = patrol.asked.load(Ordering::Relaxed);
        let round = round.at_work(now());
        inner.catalog.keep_round(SYNC, round.clone()).await?;
        let all = self.compare_now(Vec::new()).await;
        patrol.foreign().values_mut().for_each(|compared| *compared = true);
        if !matches!(all, Ok(true)) {
            patrol.failed_at.store(now(), Ordering::Relaxed);
            patrol.failures.store(failures.saturating_add(1), Ordering::Relaxed);
            return all.map(|_| Compared::Partly);
        }
        patrol.failures.store(0, Ordering::Relaxed);
        // What another one was asked for since may lie in what was listed before.
        if patrol.asked.load(Ordering::Relaxed) == asked {
            inner.catalog.keep_round(SYNC, round.ended(now())).await?;
        }
        Ok(Compared::Whole)
    }

    /// Everything is compared at the next turn, whatever the period says.
    ///
    /// # Errors
    /// The catalog's.
    pub async fn request_sync(&self) -> Result<(), StorageError> {
        self.0.patrol.failures.store(0, Ordering::Relaxed);
        self.0.request_comparison().await
    }

    /// The Unix seconds at which the next comparison and the next scrub begin by themselves; `None`: under
    /// way, or not at all.
    ///
    /// # Errors
    /// The catalog's.
    pub async fn rounds_due(&self) -> Result<(Option<i64>, Option<i64>), StorageError> {
        let (catalog, settings) = (&self.0.catalog, &self.0.settings);
        let (sync, scrub) = (catalog.round(SYNC).await?, catalog.round(SCRUB).await?);
        Ok((sync.next(settings.sync_every), scrub.next(settings.scrub_every)))
    }
}

/// How long to wait after so many comparisons in a row that could not list everything.
fn pause_after(failures: u32) -> Duration {
    AGAIN.saturating_mul(1 << failures.saturating_sub(1).min(6)).min(AGAIN_ALONE)
}

impl Inner {
    /// Is a file server as it was left, and under which prefixes is it not, as far as the
    /// inventories tell?
    pub(super) async fn differing(
        &self,
        server: &Sessions,
        place: &str,
    ) -> Result<(Verdict, Vec<String>), StorageError> {
        let name = server.name().to_owned();
        let remembered = self.catalog.generation(name.clone()).await?;
        let keys = self.note_keys();
        let title = self.title("generation", place);
        let found = self.read_marker(server, &title, &keys).await?;
        let claimed = if remembered.is_some() { self.claimed(server, title).await? } else { None };
        let verdict = judge(found.as_ref(), remembered.as_ref(), claimed);
        let (Verdict::Behind | Verdict::Unfinished, Some(marker)) = (verdict, found) else {
            return Ok((verdict, Vec::new()));
        };
        let left = self.read_inventory(server, &self.title("inventory", place), &marker, &keys).await?;
        let Some(left) = left else { return Ok((verdict, Vec::new())) };
        Ok((verdict, self.catalog.inventory(name).await?.differing(&left)))
    }

    /// A whole comparison is due, also after a restart.
    pub(super) async fn request_comparison(&self) -> Result<(), StorageError> {
        self.patrol.asked.fetch_add(1, Ordering::Relaxed);
        let round = self.catalog.round(SYNC).await?;
        if round.running {
            return Ok(());
        }
        Ok(self.catalog.keep_round(SYNC, Round { running: false, ..round }.at_work(now())).await?)
    }

    async fn write_if_due(&self, server: &Sessions, stale: bool) -> Result<(), StorageError> {
        let name = server.name().to_owned();
        // What is sealed with a key that the other vault lacks could be opened by nobody one day.
        if self.ring().active().is_none() {
            return Ok(());
        }
        let Some(place) = self.catalog.place(name.clone()).await?.0 else { return Ok(()) };
        let remembered = self.catalog.generation(name.clone()).await?;
        let every = i64::try_from(self.settings.inventory_every.as_secs()).unwrap_or(i64::MAX);
        let due = remembered.is_none_or(|memory| {
            memory.change != self.catalog.last_change()
                && !(0..every).contains(&now().saturating_sub(memory.at))
        });
        let reseal = self.reseal().contains(&name);
        if stale || due || reseal {
            self.write_notes(server, &place, remembered).await?;
            self.reseal().remove(&name);
        }
        Ok(())
    }

    /// Writes down on a file server what should lie there.
    async fn write_notes(
        &self,
        server: &Sessions,
        place: &str,
        remembered: Option<Remembered>,
    ) -> Result<(), StorageError> {
        let name = server.name().to_owned();
        let title = |kind: &str| self.title(kind, place);
        let keys = self.note_keys();
        let found = self.read_marker(server, &title("generation"), &keys).await?;
        let left = match &found {
            // After a change of keys all of it is written anew.
            Some(marker) => {
                self.read_inventory(server, &title("inventory"), marker, &keys[..keys.len().min(1)]).await?
            }
            None => None,
        };
        // Before the inventory is gathered: what changes meanwhile is the next one's.
        let change = self.catalog.last_change();
        let inventory = self.catalog.inventory(name.clone()).await?;
        // One that was not finished is written again under its own number: only so is a crash
        // told from a backup.
        let next = remembered.map_or(1, |memory| memory.generation + u64::from(memory.confirmed));
        let generation = next.max(found.map_or(0, |marker| marker.generation + 1));
        let memory = Remembered { generation, confirmed: false, change, at: now() };
        self.catalog.remember_generation(name.clone(), memory).await?;
        self.write_tombstones(server, place, generation, &inventory, left.as_ref()).await?;
        let encoded = inventory.encode();
        let marker = Marker::of(generation, inventory.objects(), &encoded);
        // The inventory that the present marker names stays until the next marker is there.
        let keep = found.map(|marker| marker.generation);
        self.write_note(server, title("inventory"), keep, generation, encoded).await?;
        self.write_note(server, title("generation"), None, generation, marker.encode()).await?;
        self.catalog.remember_generation(name, Remembered { confirmed: true, ..memory }).await?;
        Ok(())
    }

    pub(super) fn title(&self, kind: &str, place: &str) -> Title {
        Title { kind: kind.to_owned(), place: place.to_owned(), vault: self.own.clone() }
    }

    pub(super) async fn read_marker(
        &self,
        server: &Sessions,
        title: &Title,
        keys: &[NoteKey],
    ) -> Result<Option<Marker>, StorageError> {
        let notes = self.read_notes(server, title, keys).await?;
        let markers = notes.iter().filter_map(|(generation, payload)| Marker::decode(*generation, payload));
        Ok(markers.max_by_key(|marker| marker.generation))
    }

    pub(super) async fn read_inventory(
        &self,
        server: &Sessions,
        title: &Title,
        marker: &Marker,
        keys: &[NoteKey],
    ) -> Result<Option<Inventory>, StorageError> {
        let notes = self.read_notes(server, title, keys).await?;
        let named = notes.iter().find(|(_, payload)| blake3::hash(payload).as_bytes() == &marker.digest);
        Ok(named.and_then(|(_, payload)| Inventory::decode(payload)))
    }

    /// What notes are sealed and opened with: the active storage key first, then those that
    /// sealed before it or will after it.
    pub(super) fn note_keys(&self) -> Vec<NoteKey> {
        let ring = self.ring();
        let mut keys: Vec<_> =
            ring.keys().map(|(key, used)| (used != Use::Active, NoteKey::of(&key.identity))).collect();
        keys.sort_by_key(|(other, _)| *other);
        keys.into_iter().map(|(_, key)| key).collect()
    }

    /// The highest generation that a note claims, whichever key sealed it.
    async fn claimed(&self, server: &Sessions, title: Title) -> Result<Option<u64>, StorageError> {
        let looked = server.run(title.kind.clone(), move |server, progress| {
            let mut highest = None;
            for slot in SLOTS {
                let bytes = read_slot(server, &title.name(slot))?;
                progress.note();
                highest = highest.max(bytes.as_deref().and_then(|bytes| title.claims(bytes)));
            }
            Ok(highest)
        });
        Ok(looked.await?)
    }

    /// File servers whose notes this catalog could not read before it had them written anew: what was
    /// deleted before its time is not known.
    pub(super) async fn lost_notes(&self) -> Result<BTreeSet<String>, StorageError> {
        let kept = self.catalog.asked(LOST_NOTES).await?;
        Ok(kept.and_then(|kept| serde_json::from_str(&kept).ok()).unwrap_or_default())
    }

    async fn lose_notes(&self, server: &str) -> Result<(), StorageError> {
        let mut lost = self.lost_notes().await?;
        if !lost.insert(server.to_owned()) {
            return Ok(());
        }
        Ok(self.catalog.keep_asked(LOST_NOTES, serde_json::to_string(&lost).ok()).await?)
    }

    /// Is there anything under a note's name, whatever it says?
    pub(super) async fn has_note(&self, server: &Sessions, title: Title) -> Result<bool, StorageError> {
        let looked = server.run(title.kind.clone(), move |server, progress| {
            for slot in SLOTS {
                match server.read_note(&title.name(slot)) {
                    Ok(None) => progress.note(),
                    Ok(Some(_)) | Err(FileServerError::Faulty { .. }) => return Ok(true),
                    Err(error) => return Err(error),
                }
            }
            Ok(false)
        });
        Ok(looked.await?)
    }

    /// The valid slots of a note, opened with one of `keys`: generation and payload.
    pub(super) async fn read_notes(
        &self,
        server: &Sessions,
        title: &Title,
        keys: &[NoteKey],
    ) -> Result<Vec<(u64, Vec<u8>)>, StorageError> {
        let (asked, keys) = (title.clone(), keys.to_vec());
        let read = server.run(&title.kind, move |server, progress| {
            let mut notes = Vec::new();
            for slot in SLOTS {
                let bytes = read_slot(server, &asked.name(slot))?;
                progress.note();
                let opened =
                    bytes.as_deref().and_then(|bytes| keys.iter().find_map(|key| asked.open(key, bytes)));
                notes.extend(opened.map(|(generation, payload)| (generation, payload.to_vec())));
            }
            Ok(notes)
        });
        Ok(read.await?)
    }

    /// Writes a note into the slot that may go: not the one of generation `keep`, or without it
    /// not the latest valid one.
    pub(super) async fn write_note(
        &self,
        server: &Sessions,
        title: Title,
        keep: Option<u64>,
        generation: u64,
        payload: Vec<u8>,
    ) -> Result<(), StorageError> {
        let keys = self.note_keys();
        let written = server.run(title.kind.clone(), move |server, progress| {
            let mut valid = Vec::new();
            for slot in SLOTS {
                let bytes = read_slot(server, &title.name(slot))?;
                progress.note();
                let opened =
                    bytes.as_deref().and_then(|bytes| keys.iter().find_map(|key| title.open(key, bytes)));
                valid.extend(opened.map(|(generation, _)| (generation, slot)));
            }
            let kept = valid.iter().find(|(generation, _)| Some(*generation) == keep);
            let kept = kept.or_else(|| valid.iter().max()).map(|(_, slot)| *slot);
            let slot = SLOTS.into_iter().find(|slot| Some(*slot) != kept).unwrap_or_default();
            let Some(key) = keys.first() else { return Ok(()) };
            server.write_note(&title.name(slot), &title.seal(key, generation, &payload))
        });
        Ok(written.await?)
    }
}

/// One slot of a note; one that cannot be read holds nothing, and is written over in its turn.
fn read_slot(server: &dyn FileServer, name: &str) -> Result<Option<Vec<u8>>, FileServerError> {
    match server.read_note(name) {
        Err(error @ FileServerError::Faulty { .. }) => {
            tracing::error!("{error}; written anew at its turn");
            Ok(None)
        }
        other => other,
    }
}
