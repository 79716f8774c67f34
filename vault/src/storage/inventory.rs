//! What should lie on a file server, in short: one digest for each of 65,536 prefixes, and a
//! generation that counts how often it was written there. A file server that comes back from a
//! backup shows an older generation than the catalog remembers, and the two inventories tell
//! at once which prefixes differ. Pure; knows neither notes' form nor file servers.

use super::object::ObjectId;

/// Prefixes of two bytes, four digits: with a million objects, fifteen ids each.
pub const PREFIXES: usize = 1 << 16;
/// Deleted objects are kept by their first byte: the purged ones, and beside them those that were
/// deleted or taken back.
pub const SHELVES: usize = 1 << 8;
/// Enough to tell two sets of ids apart; nobody gains by making two alike.
const DIGEST: usize = 16;

type Digest = [u8; DIGEST];

/// See the module. A prefix without ids has a digest of zeros.
#[derive(Clone, PartialEq, Eq)]
pub struct Inventory {
    objects: u64,
    prefixes: Vec<Digest>,
    /// Of the purged objects' ids.
    purged: Vec<Digest>,
    /// Of the ids and revisions of objects that were deleted or taken back.
    revised: Vec<Digest>,
}

/// Gathers an inventory from ids in ascending order, without holding them.
pub struct Gathering {
    inventory: Inventory,
    replicas: Run,
    purged: Run,
    revised: Run,
}

/// The ids under one prefix, as they come.
struct Run {
    at: usize,
    hasher: Option<blake3::Hasher>,
}

impl Run {
    const fn new() -> Self {
        Self { at: 0, hasher: None }
    }

    fn push(&mut self, at: usize, id: &[u8], digests: &mut [Digest]) {
        if self.at != at {
            self.end(digests);
            self.at = at;
        }
        self.hasher.get_or_insert_default().update(id);
    }

    fn end(&mut self, digests: &mut [Digest]) {
        if let Some(hasher) = self.hasher.take() {
            digests[self.at].copy_from_slice(&hasher.finalize().as_bytes()[..DIGEST]);
        }
    }
}

impl Default for Gathering {
    fn default() -> Self {
        let inventory = Inventory {
            objects: 0,
            prefixes: vec![[0; DIGEST]; PREFIXES],
            purged: vec![[0; DIGEST]; SHELVES],
            revised: vec![[0; DIGEST]; SHELVES],
        };
        Self { inventory, replicas: Run::new(), purged: Run::new(), revised: Run::new() }
    }
}

impl Gathering {
    /// The next replica that should be there.
    pub fn replica(&mut self, id: &ObjectId) {
        let bytes = id.as_bytes();
        let at = usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
        self.inventory.objects += 1;
        self.replicas.push(at, bytes, &mut self.inventory.prefixes);
    }

    /// The next purged object.
    pub fn purged(&mut self, id: &ObjectId) {
        self.purged.push(usize::from(id.first()), id.as_bytes(), &mut self.inventory.purged);
    }

    /// The next object that was deleted or taken back, so many times.
    pub fn revised(&mut self, id: &ObjectId, revision: u32) {
        let told = [&id.as_bytes()[..], &revision.to_be_bytes()].concat();
        self.revised.push(usize::from(id.first()), &told, &mut self.inventory.revised);
    }

    /// All of it.
    #[must_use]
    pub fn finish(mut self) -> Inventory {
        self.replicas.end(&mut self.inventory.prefixes);
        self.purged.end(&mut self.inventory.purged);
        self.revised.end(&mut self.inventory.revised);
        self.inventory
    }
}

impl Inventory {
    /// Replicas.
    #[must_use]
    pub const fn objects(&self) -> u64 {
        self.objects
    }

    /// As it lies on a file server: a little over 1 MiB.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.objects.to_be_bytes().to_vec();
        bytes.extend(self.prefixes.iter().chain(&self.purged).chain(&self.revised).flatten());
        bytes
    }

    /// Reads what [`Inventory::encode`] wrote.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (objects, rest) = bytes.split_first_chunk::<8>()?;
        let (digests, left) = rest.as_chunks::<DIGEST>();
        if !left.is_empty() || digests.len() != PREFIXES + 2 * SHELVES {
            return None;
        }
        let (prefixes, shelves) = digests.split_at(PREFIXES);
        let (purged, revised) = shelves.split_at(SHELVES);
        let objects = u64::from_be_bytes(*objects);
        let [prefixes, purged, revised] = [prefixes, purged, revised].map(<[Digest]>::to_vec);
        Some(Self { objects, prefixes, purged, revised })
    }

    /// The prefixes, four hex digits each, whose replicas are not the same.
    #[must_use]
    pub fn differing(&self, other: &Self) -> Vec<String> {
        differing(&self.prefixes, &other.prefixes).map(|at| format!("{at:04x}")).collect()
    }

    /// The first bytes, two hex digits each, whose purged objects are not the same; with nothing to
    /// compare, those that have any.
    #[must_use]
    pub fn differing_purged(&self, other: Option<&Self>) -> Vec<String> {
        differing_shelves(&self.purged, other.map(|other| &other.purged))
    }

    /// The same for objects that were deleted or taken back.
    #[must_use]
    pub fn differing_revised(&self, other: Option<&Self>) -> Vec<String> {
        differing_shelves(&self.revised, other.map(|other| &other.revised))
    }
}

fn differing_shelves(shelves: &[Digest], other: Option<&Vec<Digest>>) -> Vec<String> {
    let none = vec![[0; DIGEST]; SHELVES];
    differing(shelves, other.unwrap_or(&none)).map(|at| format!("{at:02x}")).collect()
}

fn differing<'d>(left: &'d [Digest], right: &'d [Digest]) -> impl Iterator<Item = usize> + 'd {
    left.iter().zip(right).enumerate().filter(|(_, (left, right))| left != right).map(|(at, _)| at)
}

/// What the generation marker on a file server says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marker {
    /// Counts the inventories written there.
    pub generation: u64,
    /// Replicas in that inventory.
    pub objects: u64,
    /// BLAKE3 of that inventory.
    pub digest: [u8; 32],
}

impl Marker {
    /// The marker for an encoded inventory.
    #[must_use]
    pub fn of(generation: u64, objects: u64, encoded: &[u8]) -> Self {
        Self { generation, objects, digest: *blake3::hash(encoded).as_bytes() }
    }

    /// A note's payload; its generation is the note's.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        [&self.objects.to_be_bytes()[..], &self.digest].concat()
    }

    /// Reads what [`Marker::encode`] wrote.
    #[must_use]
    pub fn decode(generation: u64, payload: &[u8]) -> Option<Self> {
        let (objects, digest) = payload.split_first_chunk::<8>()?;
        Some(Self { generation, objects: u64::from_be_bytes(*objects), digest: digest.try_into().ok()? })
    }
}

/// What the catalog remembers of the last inventory it had written to a file server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remembered {
    /// Its generation, on record before the marker was written.
    pub generation: u64,
    /// Is it known to have been written whole?
    pub confirmed: bool,
    /// The catalog's last change that it holds.
    pub change: u64,
    /// Unix seconds.
    pub at: i64,
}

/// What a marker and the catalog's memory say together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing was ever written there.
    New,
    /// As it was left.
    Current,
    /// This vault died while it wrote the next one.
    Unfinished,
    /// Restored from a backup taken at an earlier generation.
    Behind,
    /// Restored from a backup taken before the first one, or somebody removed it.
    Gone,
    /// As new as it was left, by its own words, and no key of ours opens it.
    Sealed,
    /// The catalog is the older one: new, or restored from a backup itself.
    Ahead,
}

/// Compares the marker with what the catalog remembers. `claimed` is the generation that a marker
/// names which does not open: after a change of keys, or spoiled, it is as new as it was left.
#[must_use]
pub fn judge(found: Option<&Marker>, remembered: Option<&Remembered>, claimed: Option<u64>) -> Verdict {
    let verdict = judge_opened(found, remembered);
    let is_left = remembered.zip(claimed).is_some_and(|(memory, claimed)| claimed >= memory.generation);
    match verdict {
        Verdict::Behind | Verdict::Gone if is_left => Verdict::Sealed,
        other => other,
    }
}

fn judge_opened(found: Option<&Marker>, remembered: Option<&Remembered>) -> Verdict {
    match (found.map(|marker| marker.generation), remembered) {
        (None, None) => Verdict::New,
        (None, Some(memory)) if memory.generation == 1 && !memory.confirmed => Verdict::Unfinished,
        (None, Some(_)) => Verdict::Gone,
        (Some(_), None) => Verdict::Ahead,
        (Some(found), Some(memory)) if found == memory.generation => Verdict::Current,
        (Some(found), Some(memory)) if found > memory.generation => Verdict::Ahead,
        (Some(found), Some(memory)) if found + 1 == memory.generation && !memory.confirmed => {
            Verdict::Unfinished
        }
        (Some(_), Some(_)) => Verdict::Behind,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::any;
    use proptest::{prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn gathered(replicas: &BTreeSet<[u8; 3]>, deleted: &BTreeSet<[u8; 3]>) -> Inventory {
        let mut gathering = Gathering::default();
        replicas.iter().for_each(|start| gathering.replica(&id(start)));
        deleted.iter().for_each(|start| gathering.purged(&id(start)));
        deleted.iter().for_each(|start| gathering.revised(&id(start), 1));
        gathering.finish()
    }

    fn id(start: &[u8; 3]) -> ObjectId {
        let mut hash = [7; 32];
        hash[..3].copy_from_slice(start);
        ObjectId::new(hash)
    }

    #[test]
    fn an_older_marker_is_a_restored_backup_and_a_crash_is_not() {
        let marker = |generation| Some(Marker { generation, objects: 0, digest: [0; 32] });
        let memory = |generation, confirmed| Some(Remembered { generation, confirmed, change: 0, at: 0 });
        for (found, remembered, verdict) in [
            (None, None, Verdict::New),
            (None, memory(1, false), Verdict::Unfinished),
            (None, memory(1, true), Verdict::Gone),
            (None, memory(5, false), Verdict::Gone),
            (marker(5), None, Verdict::Ahead),
            (marker(5), memory(5, true), Verdict::Current),
            (marker(5), memory(5, false), Verdict::Current),
            (marker(4), memory(5, false), Verdict::Unfinished),
            (marker(4), memory(5, true), Verdict::Behind),
            (marker(3), memory(5, false), Verdict::Behind),
            (marker(6), memory(5, true), Verdict::Ahead),
        ] {
            assert_eq!(judge(found.as_ref(), remembered.as_ref(), None), verdict, "{found:?} {remembered:?}");
            // One that does not open, and is older itself, changes nothing.
            assert_eq!(judge(found.as_ref(), remembered.as_ref(), Some(0)), verdict);
        }
        for found in [None, marker(4)] {
            assert_eq!(judge(found.as_ref(), memory(5, true).as_ref(), Some(5)), Verdict::Sealed);
            assert_eq!(
                judge(found.as_ref(), memory(6, true).as_ref(), Some(5)),
                judge(found.as_ref(), memory(6, true).as_ref(), None)
            );
        }
    }

    #[test]
    fn one_more_deletion_or_undeletion_of_the_same_object_differs() {
        let inventory = |revision| {
            let mut gathering = Gathering::default();
            gathering.revised(&id(&[0xab, 0, 0]), revision);
            gathering.finish()
        };
        assert_eq!(inventory(2).differing_revised(Some(&inventory(1))), ["ab"]);
        assert_eq!(inventory(2).differing_revised(Some(&inventory(2))), Vec::<String>::new());
    }

    proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
        #[test]
        fn the_differing_prefixes_are_exactly_those_of_the_differing_ids(
            before in proptest::collection::btree_set(any::<[u8; 3]>(), 0..30),
            after in proptest::collection::btree_set(any::<[u8; 3]>(), 0..30),
        ) {
            let none = BTreeSet::new();
            let (old, new) = (gathered(&before, &none), gathered(&after, &none));
            let expected: BTreeSet<_> = before.symmetric_difference(&after)
                .map(|start| id(start).to_string()[..4].to_owned()).collect();
            prop_assert_eq!(new.differing(&old), expected.into_iter().collect::<Vec<_>>());
            let (old, new) = (gathered(&none, &before), gathered(&none, &after));
            let expected: BTreeSet<_> = before.symmetric_difference(&after)
                .map(|start| id(start).to_string()[..2].to_owned()).collect();
            let expected: Vec<_> = expected.into_iter().collect();
            prop_assert_eq!(new.differing_purged(Some(&old)), expected.clone());
            prop_assert_eq!(new.differing_revised(Some(&old)), expected);
        }

        #[test]
        fn inventory_and_marker_read_back_and_nothing_else_does(
            ids in proptest::collection::btree_set(any::<[u8; 3]>(), 0..30),
            noise in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let inventory = gathered(&ids, &ids);
            let bytes = inventory.encode();
            prop_assert!(Inventory::decode(&bytes) == Some(inventory.clone()));
            prop_assert!(Inventory::decode(&bytes[1..]).is_none() && Inventory::decode(&noise).is_none());
            let marker = Marker::of(3, inventory.objects(), &bytes);
            prop_assert_eq!(Marker::decode(3, &marker.encode()), Some(marker));
            prop_assert!(noise.len() == 40 || Marker::decode(3, &noise).is_none());
        }
    }
}
