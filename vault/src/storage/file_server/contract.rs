//! What every kind of file server must do, as one suite that runs over each of them.

use std::io::Read;
use std::time::{Duration, SystemTime};

use super::{FileServer, FileServerError, Put, Replica};
use crate::storage::envelope::{Record, Sealer, Side, seal_slot};
use crate::storage::object::{Metadata, ObjectId};

/// A whole object around `text`.
pub(in crate::storage) fn object(text: &[u8]) -> (ObjectId, Vec<u8>) {
    let mut sealer = Sealer::new(Vec::new()).unwrap();
    sealer.write(text).unwrap();
    let sealed = sealer.finish().unwrap();
    let metadata = Metadata {
        owner: "erp".to_owned(),
        key: "k".to_owned(),
        label: String::new(),
        media_type: "text/plain".to_owned(),
        size: sealed.size,
        created: String::new(),
        digest: sealed.digest,
    };
    let key = age::x25519::Identity::generate().to_public();
    let slot = seal_slot(&Record { metadata, identity: sealed.identity }, [&key, &key], 0).unwrap();
    (sealed.id, [&slot[..], &slot[..], &sealed.out[..]].concat())
}

/// `bytes` as an object on its way to a file server.
pub(in crate::storage) fn in_memory(bytes: Vec<u8>) -> Replica {
    let length = bytes.len() as u64;
    let read = move |buffer: &mut [u8], position: u64| {
        let start = usize::try_from(position).unwrap().min(bytes.len());
        let count = buffer.len().min(bytes.len() - start);
        buffer[..count].copy_from_slice(&bytes[start..start + count]);
        Ok(count)
    };
    Replica::new(length, Box::new(read))
}

/// A folder in a replica's place: like a bad sector it can be opened, renamed, and not read.
pub(in crate::storage) fn block(replica: &std::path::Path) {
    std::fs::remove_file(replica).unwrap();
    std::fs::create_dir(replica).unwrap();
}

fn whole(server: &dyn FileServer, id: &ObjectId) -> Vec<u8> {
    let mut bytes = Vec::new();
    server.open(id).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// Runs the contract on fresh, empty places. `damage` spoils a replica behind the server's
/// back; `again` opens the same place as another process would.
pub(super) fn run(
    server: &dyn FileServer,
    again: &dyn Fn() -> Box<dyn FileServer>,
    damage: &dyn Fn(&ObjectId),
) {
    attaches_to_its_own_place_only(server, again);
    stores_once_and_reads_at_any_position(server);
    absence_is_told_and_removal_repeats(server);
    refuses_what_is_not_the_object(server);
    replaces_a_damaged_replica_and_keeps_it_aside(server, damage);
    removes_what_was_set_aside_of_one_object_and_no_other(server, again, damage);
    tells_how_far_it_is_with_a_replica_that_is_there(server);
    overwrites_one_slot_and_nothing_else(server);
    lists_in_order_with_pages(server);
    notes_are_replaced_and_stand_beside_the_objects(server, again);
    leaves_no_temporary_file(server, again);
    assert!(server.free_space().unwrap() > 0);
}

fn attaches_to_its_own_place_only(server: &dyn FileServer, again: &dyn Fn() -> Box<dyn FileServer>) {
    assert_eq!(again().marker().unwrap(), None);
    assert!(
        matches!(again().attach(None, false), Err(FileServerError::NotOurs { .. })),
        "it is nobody's yet"
    );
    let place = server.attach(None, true).unwrap();
    assert_eq!(again().marker().unwrap(), Some(place.clone()));
    assert!(again().free_space().is_err(), "looking at a marker believes nothing");
    assert!(again().free_space_anywhere().unwrap() > 0, "whichever place it is");
    assert_eq!(server.attach(Some(&place), true).unwrap(), place);
    assert_eq!(again().attach(None, true).unwrap(), place, "a place is claimed once");
    let refused = again().attach(Some("0123456789abcdef0123456789abcdef"), true).unwrap_err();
    assert!(matches!(refused, FileServerError::NotOurs { .. }), "{refused}");
}

fn stores_once_and_reads_at_any_position(server: &dyn FileServer) {
    let (id, bytes) = object(b"stored once");
    assert_eq!(server.put(&id, &mut in_memory(bytes.clone())).unwrap(), Put::Written);
    assert_eq!(server.put(&id, &mut in_memory(bytes.clone())).unwrap(), Put::Verified);
    assert_eq!(whole(server, &id), bytes);
    let mut replica = server.open(&id).unwrap();
    assert_eq!(replica.length(), bytes.len() as u64);
    std::io::Seek::seek(&mut replica, std::io::SeekFrom::Start(8192)).unwrap();
    let mut word = [0; 8];
    replica.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"age-encr");
}

fn absence_is_told_and_removal_repeats(server: &dyn FileServer) {
    let (id, bytes) = object(b"removed");
    assert!(matches!(server.open(&id), Err(FileServerError::Absent { .. })));
    server.put(&id, &mut in_memory(bytes)).unwrap();
    server.remove(&id).unwrap();
    server.remove(&id).unwrap();
    assert!(matches!(server.open(&id), Err(FileServerError::Absent { .. })));
    assert!(matches!(server.quarantine(&id, u64::MAX, &|| ()), Err(FileServerError::Absent { .. })));
}

fn refuses_what_is_not_the_object(server: &dyn FileServer) {
    let (id, bytes) = object(b"cut short");
    let refused = server.put(&id, &mut in_memory(bytes[..bytes.len() - 1].to_vec())).unwrap_err();
    assert!(matches!(refused, FileServerError::BadSource { .. }), "{refused}");
    assert!(matches!(server.open(&id), Err(FileServerError::Absent { .. })));
    let broken = Replica::new(
        9000,
        Box::new(|_, _| Err(FileServerError::Absent { server: "other".to_owned(), object: "x".to_owned() })),
    );
    let refused = server.put(&id, &mut { broken }).unwrap_err();
    assert!(matches!(refused, FileServerError::Absent { ref server, .. } if server == "other"), "{refused}");
}

fn replaces_a_damaged_replica_and_keeps_it_aside(server: &dyn FileServer, damage: &dyn Fn(&ObjectId)) {
    let (id, bytes) = object(b"healed");
    server.put(&id, &mut in_memory(bytes.clone())).unwrap();
    damage(&id);
    assert_ne!(whole(server, &id), bytes);
    assert_eq!(server.put(&id, &mut in_memory(bytes.clone())).unwrap(), Put::Written);
    assert_eq!(whole(server, &id), bytes);
    // Another vault found the old one damaged and is late: the new one stays.
    server.quarantine(&id, u64::MAX, &|| ()).unwrap();
    assert_eq!(whole(server, &id), bytes);
    damage(&id);
    server.quarantine(&id, u64::MAX, &|| ()).unwrap();
    assert!(matches!(server.open(&id), Err(FileServerError::Absent { .. })));
}

fn removes_what_was_set_aside_of_one_object_and_no_other(
    server: &dyn FileServer,
    again: &dyn Fn() -> Box<dyn FileServer>,
    damage: &dyn Fn(&ObjectId),
) {
    let objects = [object(b"purged"), object(b"kept")];
    for (id, bytes) in objects.iter().chain(&objects[..1]) {
        server.put(id, &mut in_memory(bytes.clone())).unwrap();
        damage(id);
        server.quarantine(id, u64::MAX, &|| ()).unwrap();
    }
    let [(purged, _), (kept, _)] = objects;
    // Another process finds them all the same.
    let other = again();
    other.attach(None, true).unwrap();
    let of = |server: &dyn FileServer, id| {
        let mut all = server.list_set_aside(&|| ()).unwrap();
        all.retain(|aside| aside.id() == id);
        all
    };
    let found = of(other.as_ref(), purged);
    assert_eq!((found.len(), of(server, kept).len()), (2, 1));
    for aside in found.iter().chain(&found) {
        other.remove_set_aside(aside).unwrap();
    }
    assert_eq!((of(server, purged).len(), of(server, kept).len()), (0, 1));
}

fn tells_how_far_it_is_with_a_replica_that_is_there(server: &dyn FileServer) {
    let (id, bytes) = object(&[7; 100_000]);
    let moved = std::cell::Cell::new(0);
    let put = |bytes: Vec<u8>| {
        server.put_watched(&id, &mut in_memory(bytes), &|count| moved.set(moved.get() + count)).unwrap()
    };
    assert_eq!((put(bytes.clone()), moved.get()), (Put::Written, 0));
    assert_eq!(put(bytes.clone()), Put::Verified);
    assert!(moved.get() >= bytes.len(), "{} of {}", moved.get(), bytes.len());
}

/// A backup leaves out empty folders, or those of temporary files: it is made again whenever it is needed.
pub(super) fn makes_its_folder_of_temporary_files_again(server: &dyn FileServer, place: &std::path::Path) {
    server.attach(None, true).unwrap();
    let tmp = place.join("tmp");
    let mut large = vec![0; 700_000];
    blake3::Hasher::new().finalize_xof().fill(&mut large);
    for text in [&b"short"[..], &large] {
        std::fs::remove_dir_all(&tmp).unwrap();
        let (id, bytes) = object(text);
        assert_eq!(server.put(&id, &mut in_memory(bytes.clone())).unwrap(), Put::Written);
        assert_eq!(whole(server, &id), bytes);
    }
    std::fs::remove_dir_all(&tmp).unwrap();
    server.write_note("generation.vault-a.0", b"noted").unwrap();
    let _ = std::fs::remove_dir_all(&tmp);
    assert_eq!(server.collect_temporaries(SystemTime::UNIX_EPOCH, Duration::ZERO).unwrap(), 0);
    server.attach(None, true).unwrap();
    assert!(tmp.is_dir());
}

/// A note that cannot be read is its own trouble and is written anew. Apart from the rest, as below.
pub(super) fn replaces_a_note_that_cannot_be_read_and_blames_nothing_else(
    server: &dyn FileServer,
    block: &dyn Fn(&str),
) {
    server.attach(None, true).unwrap();
    const NAME: &str = "generation.vault-a.0";
    server.write_note(NAME, b"on a bad sector").unwrap();
    block(NAME);
    let refused = server.read_note(NAME).unwrap_err();
    assert!(matches!(refused, FileServerError::Faulty { .. }), "{refused}");
    server.write_note(NAME, b"anew").unwrap();
    assert_eq!(server.read_note(NAME).unwrap().unwrap(), b"anew");
    assert!(server.list_set_aside(&|| ()).unwrap().is_empty(), "a note is no replica");
}

/// A replica that cannot be read is its own trouble and is replaced. Apart from the rest, for not every
/// server opens what [`block`] makes.
pub(super) fn replaces_what_cannot_be_read_and_blames_nothing_else(
    server: &dyn FileServer,
    block: &dyn Fn(&ObjectId),
) {
    server.attach(None, true).unwrap();
    let (id, bytes) = object(b"on a bad sector");
    let read = || {
        let mut replica = server.open(&id)?;
        let read = replica.read_to_end(&mut Vec::new());
        read.map_err(|error| error.downcast::<FileServerError>().unwrap())
    };
    server.put(&id, &mut in_memory(bytes.clone())).unwrap();
    block(&id);
    let slot = Side::A.of(&bytes);
    for refused in [read().unwrap_err(), server.write_slot(&id, Side::A, slot).unwrap_err()] {
        assert!(matches!(refused, FileServerError::Unreadable { .. }), "{refused}");
    }
    assert_eq!(server.put(&id, &mut in_memory(bytes.clone())).unwrap(), Put::Written);
    assert_eq!(whole(server, &id), bytes);
    block(&id);
    server.quarantine(&id, u64::MAX, &|| ()).unwrap();
    assert!(matches!(server.open(&id), Err(FileServerError::Absent { .. })));
}

fn overwrites_one_slot_and_nothing_else(server: &dyn FileServer) {
    let (id, bytes) = object(b"rewrapped");
    let (other, expected) = object(b"another record");
    let slot = |side: Side, of: &[u8]| side.of(of).to_vec();
    let foreign = slot(Side::A, &expected);
    assert!(matches!(server.write_slot(&id, Side::A, &foreign), Err(FileServerError::Absent { .. })));
    assert!(matches!(server.open(&id), Err(FileServerError::Absent { .. })), "none is made");
    server.put(&id, &mut in_memory(bytes.clone())).unwrap();
    server.put(&other, &mut in_memory(expected.clone())).unwrap();
    for no_slot in [&foreign[1..], &[foreign.clone(), vec![0]].concat(), &vec![0; foreign.len()], &[]] {
        let refused = server.write_slot(&id, Side::B, no_slot).unwrap_err();
        assert!(matches!(refused, FileServerError::BadSource { .. }), "{refused}");
    }
    assert_eq!(whole(server, &id), bytes);
    server.write_slot(&id, Side::B, &foreign).unwrap();
    let half = [&slot(Side::A, &bytes)[..], &foreign, &bytes[8192..]].concat();
    assert_eq!(whole(server, &id), half);
    server.write_slot(&id, Side::A, &foreign).unwrap();
    assert_eq!(whole(server, &id), [&foreign[..], &foreign, &bytes[8192..]].concat());
    // It is the same object still, and nobody else's slot has changed.
    assert_eq!(server.put(&id, &mut in_memory(bytes)).unwrap(), Put::Verified);
    assert_eq!(whole(server, &other), expected);
}

fn lists_in_order_with_pages(server: &dyn FileServer) {
    let mut stored: Vec<_> = (0..12_u8)
        .map(|text| {
            let (id, bytes) = object(&[text]);
            server.put(&id, &mut in_memory(bytes)).unwrap();
            id
        })
        .collect();
    stored.sort_unstable();
    let mut listed = Vec::new();
    loop {
        let page = server.list("", listed.last(), 5).unwrap();
        listed.extend(&page);
        if page.len() < 5 {
            break;
        }
    }
    assert!(listed.is_sorted_by(|left, right| left < right));
    assert!(stored.iter().all(|id| listed.contains(id)));
    let prefix = &stored[3].to_string()[..2];
    let some = server.list(prefix, None, 1000).unwrap();
    assert!(some.contains(&stored[3]) && some.iter().all(|id| id.to_string().starts_with(prefix)));
}

fn notes_are_replaced_and_stand_beside_the_objects(
    server: &dyn FileServer,
    again: &dyn Fn() -> Box<dyn FileServer>,
) {
    assert_eq!(server.read_note("generation.vault-a.0").unwrap(), None);
    let large = vec![7; 4 << 20];
    for bytes in [&b"one"[..], b"", &large, b"shorter"] {
        server.write_note("generation.vault-a.0", bytes).unwrap();
        let other = again();
        other.attach(None, true).unwrap();
        assert!(other.read_note("generation.vault-a.0").unwrap().as_deref() == Some(bytes));
    }
    server.write_note("generation.vault-a.1", b"beside").unwrap();
    assert_eq!(server.read_note("generation.vault-a.0").unwrap().unwrap(), b"shorter");
    assert!(server.write_note("too-long", &vec![0; (4 << 20) + 1]).is_err());
    for name in ["", "../marker", ".hidden", "a/b"] {
        assert!(server.write_note(name, b"x").is_err(), "{name}");
        assert!(server.read_note(name).is_err(), "{name}");
    }
}

fn leaves_no_temporary_file(server: &dyn FileServer, again: &dyn Fn() -> Box<dyn FileServer>) {
    let next_life = again();
    next_life.attach(None, true).unwrap();
    #[expect(clippy::disallowed_methods, reason = "the files under test carry the real time")]
    let now = SystemTime::now();
    assert_eq!(next_life.collect_temporaries(now + Duration::from_secs(1), Duration::ZERO).unwrap(), 0);
    assert_eq!(server.collect_temporaries(now, Duration::ZERO).unwrap(), 0);
}
