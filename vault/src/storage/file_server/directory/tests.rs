//! Promises of the directory beyond the contract: durability, unmounted places, leftovers.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::contract::{self, in_memory, object};
use super::*;

fn directory(root: &Path) -> Directory {
    Directory::new("one", root, "vault-a", Steps::default())
}

#[test]
fn a_directory_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("place");
    let server = directory(&root);
    let damage = |id: &ObjectId| {
        let path = server.replica_path(id);
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    };
    contract::run(&server, &|| Box::new(directory(&root)), &damage);
}

#[test]
fn a_replica_that_cannot_be_read_is_replaced_and_the_directory_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let server = directory(folder.path());
    let block = |id: &ObjectId| contract::block(&server.replica_path(id));
    contract::replaces_what_cannot_be_read_and_blames_nothing_else(&server, &block);
    // Where the marker cannot be read either, it is the place's trouble.
    let (id, bytes) = object(b"on a dying disk");
    server.put(&id, &mut in_memory(bytes)).unwrap();
    block(&id);
    let mut replica = server.open(&id).unwrap();
    contract::block(&folder.path().join("marker"));
    let refused = replica.read(&mut [0; 10]).unwrap_err().downcast::<FileServerError>().unwrap();
    assert!(matches!(refused, FileServerError::Away { .. }), "{refused}");
}

#[test]
fn a_note_or_a_folder_that_cannot_be_read_is_not_the_whole_directorys_trouble() {
    let folder = tempfile::tempdir().unwrap();
    let server = directory(folder.path());
    let block = |note: &str| contract::block(&folder.path().join("notes").join(note));
    contract::replaces_a_note_that_cannot_be_read_and_blames_nothing_else(&server, &block);
    std::fs::write(folder.path().join("ab"), "like a broken folder").unwrap();
    let refused = server.list("", None, 10).unwrap_err();
    assert!(matches!(refused, FileServerError::Faulty { .. }), "{refused}");
    assert!(refused.to_string().contains("list ab: fails"), "{refused}");
    contract::block(&folder.path().join("marker"));
    let refused = server.list("", None, 10).unwrap_err();
    assert!(matches!(refused, FileServerError::Away { .. }), "{refused}");
}

#[test]
fn a_folder_that_goes_under_a_running_server_is_made_again_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("place");
    let server = directory(&root);
    server.attach(None, true).unwrap();
    let (id, bytes) = object(b"its folders were there once");
    server.put(&id, &mut in_memory(bytes.clone())).unwrap();
    for parts in [2, 1] {
        let path = server.replica_path(&id);
        std::fs::remove_dir_all(path.ancestors().nth(parts).unwrap()).unwrap();
        assert_eq!(server.put(&id, &mut in_memory(bytes.clone())).unwrap(), Put::Written);
    }
}

/// A disk that forgets at a power failure whatever was not flushed, driven by the real
/// directory's steps: what is left must hold every replica whose `put` had returned, whole.
#[derive(Default)]
struct Disk {
    synced_files: BTreeSet<PathBuf>,
    /// Names that are made, and those that are durable, with the name their content was flushed under.
    made: Vec<(PathBuf, PathBuf)>,
    durable: BTreeSet<PathBuf>,
}

impl Disk {
    fn apply(&mut self, step: &Step) {
        match step {
            Step::MakeFile(path) | Step::MakeFolder(path) => self.made.push((path.clone(), path.clone())),
            Step::Link(from, to) => self.made.push((to.clone(), from.clone())),
            Step::FileSynced(path) => {
                self.synced_files.insert(path.clone());
            }
            Step::FolderSynced(folder) => {
                for (name, content) in &self.made {
                    let whole = content == name || self.synced_files.contains(content);
                    if name.parent() == Some(folder) && whole {
                        self.durable.insert(name.clone());
                    }
                }
            }
            _ => {}
        }
    }

    fn keeps(&self, root: &Path, path: &Path) -> bool {
        path.ancestors()
            .take_while(|ancestor| *ancestor != root)
            .all(|ancestor| self.durable.contains(ancestor))
    }
}

#[test]
fn a_power_failure_after_put_returned_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Arc::new(Mutex::new(Disk::default()));
    let watch = Arc::clone(&disk);
    let steps = Steps::watched(move |step| lock(&watch).apply(step));
    let server = Directory::new("one", folder.path(), "vault-a", steps);
    server.attach(None, true).unwrap();
    for text in 0..20_u8 {
        let (id, bytes) = object(&[text]);
        server.put(&id, &mut in_memory(bytes)).unwrap();
        assert!(lock(&disk).keeps(folder.path(), &server.replica_path(&id)), "object {id} was not flushed");
    }
}

#[test]
fn a_directory_restored_without_its_folder_of_temporary_files_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    contract::makes_its_folder_of_temporary_files_again(&directory(folder.path()), folder.path());
}

/// An operator copies a replica out of a backup, and breaks off, while it is being healed.
#[test]
fn part_of_a_replica_that_appears_in_mid_write_is_set_aside_and_does_not_count() {
    let folder = tempfile::tempdir().unwrap();
    let server = directory(folder.path());
    server.attach(None, true).unwrap();
    for (text, part) in [(&b"part of it"[..], 8200), (&b"all of it"[..], usize::MAX)] {
        let (id, bytes) = object(text);
        let path = server.replica_path(&id);
        let squat = bytes[..part.min(bytes.len())].to_vec();
        let mut source = in_memory(bytes.clone());
        let read = move |buffer: &mut [u8], position: u64| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &squat).unwrap();
            source.read_at(buffer, position)
        };
        let put = server.put(&id, &mut Replica::new(bytes.len() as u64, Box::new(read))).unwrap();
        assert_eq!(put, if part == usize::MAX { Put::Verified } else { Put::Written });
        assert_eq!(std::fs::read(server.replica_path(&id)).unwrap(), bytes);
    }
    assert_eq!(server.list_set_aside(&|| ()).unwrap().len(), 1);
    assert_eq!(std::fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0);
}

#[test]
fn an_unmounted_directory_is_not_an_empty_file_server() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("place");
    let server = directory(&root);
    let place = server.attach(None, true).unwrap();
    let (id, bytes) = object(b"here");
    server.put(&id, &mut in_memory(bytes.clone())).unwrap();
    std::fs::rename(&root, folder.path().join("elsewhere")).unwrap();
    std::fs::create_dir(&root).unwrap();
    let refusals = [
        server.open(&id).err().unwrap(),
        server.remove(&id).unwrap_err(),
        server.put(&id, &mut in_memory(bytes)).unwrap_err(),
        server.list("", None, 10).unwrap_err(),
        directory(&root).attach(Some(&place), true).unwrap_err(),
    ];
    for refused in refusals {
        assert!(matches!(refused, FileServerError::NotOurs { .. }), "{refused}");
    }
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0, "nothing was written there");
}

#[test]
fn leftovers_of_a_previous_life_go_at_once_and_foreign_ones_by_age() {
    let folder = tempfile::tempdir().unwrap();
    let server = directory(folder.path());
    server.attach(None, true).unwrap();
    for name in ["vault-a~1", "vault-b~1", "vault-a.b~1"] {
        std::fs::write(folder.path().join("tmp").join(name), "torn").unwrap();
    }
    #[expect(clippy::disallowed_methods, reason = "the files under test carry the real time")]
    let now = SystemTime::now();
    assert_eq!(server.collect_temporaries(now, Duration::from_secs(3600)).unwrap(), 1);
    assert_eq!(
        server.collect_temporaries(now + Duration::from_secs(7200), Duration::from_secs(3600)).unwrap(),
        2
    );
}

#[test]
fn errors_tell_the_cases_apart_and_name_server_and_object() {
    let texts: Vec<_> = [ErrorKind::StorageFull, ErrorKind::PermissionDenied, ErrorKind::TimedOut]
        .into_iter()
        .map(|kind| wrap("lyon", "7f3a")(std::io::Error::from(kind)).to_string())
        .collect();
    assert_eq!(
        texts,
        [
            "file server lyon: 7f3a: no space left: no storage space; make room, it is tried again",
            "file server lyon: 7f3a: permission denied: permission denied; give vault's user the right",
            "file server lyon: 7f3a: away: timed out; tried again by itself",
        ]
    );
}
