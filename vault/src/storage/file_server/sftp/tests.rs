//! The contract over SFTP, and what a directory cannot do: host keys, sessions that die or
//! hang, servers that come back.

use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;

use super::super::contract::{self, in_memory, object};
use super::proftpd::Proftpd;
use super::sshd::{Sshd, signal};
use super::*;

mod listing;
mod long;
mod writing;

/// Shorter than any operator's, longer than a busy machine needs for one request.
const PATIENCE: Duration = Duration::from_secs(3);

fn sftp(sshd: &Sshd) -> Sftp {
    with(sshd, &sshd.settings(3), Steps::default())
}

fn with(sshd: &Sshd, settings: &SftpSettings, steps: Steps) -> Sftp {
    Sftp::new("one", &sshd.place(), settings, "vault-a", PATIENCE, steps)
}

fn attached(sshd: &Sshd) -> Sftp {
    let server = sftp(sshd);
    server.attach(None, true).unwrap();
    server
}

/// Bytes that no compressor makes smaller.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(&mut next).take(length).collect()
}

/// `bytes` as an object, with `at` called once when half of it has been read.
fn interrupted(bytes: Vec<u8>, at: impl FnOnce() + Send + 'static) -> Replica {
    let length = bytes.len() as u64;
    let half = length / 2;
    let mut at = Some(at);
    let mut whole = in_memory(bytes);
    let read = move |buffer: &mut [u8], position: u64| {
        if position >= half
            && let Some(at) = at.take()
        {
            at();
        }
        whole.seek(SeekFrom::Start(position)).unwrap();
        Ok(whole.read(buffer).unwrap())
    };
    Replica::new(length, Box::new(read))
}

fn whole(server: &Sftp, id: &ObjectId) -> Vec<u8> {
    let mut bytes = Vec::new();
    server.open(id).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// Turns one bit of a replica behind the server's back.
fn damage(sshd: &Sshd, id: &ObjectId) {
    let path = layout::replica_path(&sshd.place(), id);
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
}

fn temporaries(sshd: &Sshd) -> usize {
    std::fs::read_dir(sshd.place().join("tmp")).unwrap().count()
}

/// As the vault does when it starts again. No file is older than the clock's beginning: only its own go.
fn collect_in_next_life(sshd: &Sshd) -> usize {
    let next_life = sftp(sshd);
    next_life.attach(None, true).unwrap();
    next_life.collect_temporaries(SystemTime::UNIX_EPOCH, Duration::from_secs(3600)).unwrap()
}

#[test]
fn an_sftp_server_keeps_the_contract() {
    let sshd = Sshd::start();
    contract::run(&sftp(&sshd), &|| Box::new(sftp(&sshd)), &|id| damage(&sshd, id));
}

#[test]
fn an_sftp_server_that_is_not_openssh_keeps_the_contract() {
    let fixture = Sshd::start();
    let proftpd = Proftpd::start(&fixture);
    let settings = proftpd.settings(&fixture, 3);
    let server = || with(&fixture, &settings, Steps::default());
    contract::run(&server(), &|| Box::new(server()), &|id| damage(&fixture, id));
}

#[test]
fn a_replica_that_cannot_be_read_is_replaced_and_the_server_goes_on() {
    let sshd = Sshd::start();
    let block = |id: &ObjectId| contract::block(&layout::replica_path(&sshd.place(), id));
    let server = sftp(&sshd);
    contract::replaces_what_cannot_be_read_and_blames_nothing_else(&server, &block);
    // Where the marker cannot be read either, it is the place's trouble.
    let (id, bytes) = object(b"on a dying disk");
    server.put(&id, &mut in_memory(bytes)).unwrap();
    block(&id);
    let mut replica = server.open(&id).unwrap();
    contract::block(&sshd.place().join("marker"));
    let refused = replica.read(&mut [0; 10]).unwrap_err().downcast::<FileServerError>().unwrap();
    assert!(matches!(refused, FileServerError::Away { .. }), "{refused}");
}

#[test]
fn a_note_that_cannot_be_read_is_written_anew_and_the_server_goes_on() {
    let sshd = Sshd::start();
    let block = |note: &str| contract::block(&sshd.place().join("notes").join(note));
    contract::replaces_a_note_that_cannot_be_read_and_blames_nothing_else(&sftp(&sshd), &block);
}

#[test]
fn what_is_put_back_out_of_quarantine_is_flushed() {
    let sshd = Sshd::start();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let watch = Arc::clone(&seen);
    let server = with(&sshd, &sshd.settings(3), Steps::watched(move |step| lock(&watch).push(step.clone())));
    server.attach(None, true).unwrap();
    let (id, bytes) = object(b"healed meanwhile");
    server.put(&id, &mut in_memory(bytes.clone())).unwrap();
    server.quarantine(&id, u64::MAX, &|| ()).unwrap();
    assert_eq!(whole(&server, &id), bytes);
    let path = layout::replica_path(&sshd.place(), &id);
    let steps = lock(&seen).clone();
    let last = |wanted: &dyn Fn(&Step) -> bool| steps.iter().rposition(wanted).unwrap();
    let back = last(
        &|step| matches!(step, Step::Rename(from, to) if *to == path && from.parent().unwrap().ends_with("quarantine")),
    );
    for folder in [path.parent().unwrap().to_owned(), sshd.place().join("quarantine")] {
        assert!(back < last(&|step| *step == Step::FolderSynced(folder.clone())), "{steps:#?}");
    }
}

#[test]
fn a_place_made_as_a_directory_is_the_same_place_over_sftp() {
    let sshd = Sshd::start();
    let directory =
        super::super::directory::Directory::new("one", &sshd.place(), "vault-a", Steps::default());
    let place = directory.attach(None, true).unwrap();
    let (id, bytes) = object(b"written as a directory");
    directory.put(&id, &mut in_memory(bytes.clone())).unwrap();
    let server = sftp(&sshd);
    assert_eq!(server.attach(Some(&place), true).unwrap(), place);
    assert_eq!(whole(&server, &id), bytes);
    assert_eq!(server.list("", None, 10).unwrap(), [id]);
}

#[test]
fn what_is_large_comes_back_as_it_was_from_any_position() {
    let sshd = Sshd::start();
    let server = attached(&sshd);
    let (id, bytes) = object(&noise(9 << 20));
    assert_eq!(server.put(&id, &mut in_memory(bytes.clone())).unwrap(), Put::Written);
    assert!(whole(&server, &id) == bytes, "read from front to back");
    let mut replica = server.open(&id).unwrap();
    for position in [8_000_000, 8192, 0, 5_000_001, bytes.len() - 10, 5_000_000, 100] {
        replica.seek(SeekFrom::Start(position as u64)).unwrap();
        let mut piece = vec![0; 300_000.min(bytes.len() - position)];
        replica.read_exact(&mut piece).unwrap();
        assert!(piece == bytes[position..position + piece.len()], "read at {position}");
    }
}

#[test]
fn a_server_that_renews_its_keys_in_mid_file_is_written_and_read_all_the_same() {
    let mut sshd = Sshd::start();
    sshd.kill();
    sshd.configure("UsePAM no", "UsePAM no\nRekeyLimit 1M");
    sshd.run();
    let server = attached(&sshd);
    let (id, bytes) = object(&noise(9 << 20));
    server.put(&id, &mut in_memory(bytes.clone())).unwrap();
    assert!(whole(&server, &id) == bytes);
}

#[test]
fn an_unknown_host_key_is_refused_and_the_words_say_how_to_add_it() {
    let sshd = Sshd::start();
    std::fs::write(sshd.path("known_hosts"), "").unwrap();
    let refused = sftp(&sshd).attach(None, true).unwrap_err();
    let text = refused.to_string();
    assert!(matches!(refused, FileServerError::NoEntry { .. }), "{text}");
    for words in
        ["SHA256:", "is not in", "ssh-keyscan -p ", "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"]
    {
        assert!(text.contains(words), "{words}: {text}");
    }
    std::fs::remove_file(sshd.path("known_hosts")).unwrap();
    let text = sftp(&sshd).attach(None, true).unwrap_err().to_string();
    assert!(text.contains("known_hosts: cannot be read"), "{text}");
    assert_eq!(std::fs::read_dir(sshd.place()).unwrap().count(), 0, "nothing was written there");
}

#[test]
fn another_host_key_is_refused() {
    let sshd = Sshd::start();
    sshd.pin("other_host");
    let refused = sftp(&sshd).attach(None, true).unwrap_err();
    let text = refused.to_string();
    assert!(matches!(refused, FileServerError::NoEntry { .. }), "{text}");
    assert!(text.contains("NOT the one") && text.contains("SHA256:"), "{text}");
}

#[test]
fn a_key_that_others_may_read_or_that_the_server_does_not_know_is_told() {
    let sshd = Sshd::start();
    let told = |settings: &SftpSettings| {
        let refused = with(&sshd, settings, Steps::default()).attach(None, true).unwrap_err();
        assert!(matches!(refused, FileServerError::NoEntry { .. }), "{refused}");
        refused.to_string()
    };
    let mut settings = sshd.settings(1);
    settings.login = Login::KeyFile(sshd.path("stranger"));
    let text = told(&settings);
    assert!(text.contains("does not let") && text.contains("authorized_keys"), "{text}");
    settings.login = Login::KeyFile(sshd.path("public"));
    std::fs::copy(sshd.path("user.pub"), sshd.path("public")).unwrap();
    std::fs::set_permissions(sshd.path("public"), std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(told(&settings).contains("no private key"));
    settings.login = Login::KeyFile(sshd.path("none"));
    assert!(told(&settings).contains("ssh-keygen"));
    std::fs::set_permissions(sshd.path("user"), std::fs::Permissions::from_mode(0o640)).unwrap();
    settings.login = Login::KeyFile(sshd.path("user"));
    let text = told(&settings);
    assert!(text.contains("mode 0640") && text.contains("chmod 600"), "{text}");
}

#[test]
fn a_server_that_may_only_be_read_says_denied() {
    let mut sshd = Sshd::start();
    let server = attached(&sshd);
    let (id, bytes) = object(b"kept");
    server.put(&id, &mut in_memory(bytes.clone())).unwrap();
    sshd.kill();
    sshd.configure("Subsystem sftp internal-sftp", "Subsystem sftp internal-sftp -R");
    sshd.run();
    assert_eq!(whole(&server, &id), bytes);
    let (other, more) = object(b"not kept");
    let refused = server.put(&other, &mut in_memory(more)).unwrap_err();
    assert!(matches!(refused, FileServerError::Denied { .. }), "{refused}");
    let refused = server.try_out().unwrap_err();
    assert!(matches!(refused, FileServerError::Denied { .. }), "{refused}");
}

#[test]
fn check_writes_and_leaves_nothing_and_names_a_missing_folder() {
    let sshd = Sshd::start();
    sftp(&sshd).try_out().unwrap();
    assert_eq!(std::fs::read_dir(sshd.place()).unwrap().count(), 0);
    std::fs::remove_dir(sshd.place()).unwrap();
    let refused = sftp(&sshd).try_out().unwrap_err();
    assert!(refused.to_string().contains("is no folder there; make it"), "{refused}");
    let refused = sftp(&sshd).attach(None, true).unwrap_err();
    assert!(matches!(refused, FileServerError::NotOurs { .. }), "{refused}");
}

#[test]
fn nobody_at_the_address_is_away() {
    let mut sshd = Sshd::start();
    let server = attached(&sshd);
    sshd.kill();
    for refused in [server.check_place().unwrap_err(), sftp(&sshd).attach(None, true).unwrap_err()] {
        assert!(matches!(refused, FileServerError::Away { .. }), "{refused}");
    }
}

#[test]
fn a_server_that_comes_back_is_used_again_without_an_error() {
    let mut sshd = Sshd::start();
    let server = attached(&sshd);
    let (id, bytes) = object(b"before and after");
    server.put(&id, &mut in_memory(bytes.clone())).unwrap();
    sshd.kill();
    sshd.run();
    assert_eq!(whole(&server, &id), bytes);
    sshd.kill();
    sshd.run();
    let (other, more) = object(b"after");
    assert_eq!(server.put(&other, &mut in_memory(more)).unwrap(), Put::Written);
    sshd.kill();
    sshd.run();
    server.remove(&other).unwrap();
}

#[test]
fn a_replica_outlives_the_session_it_was_opened_on() {
    let mut sshd = Sshd::start();
    let server = attached(&sshd);
    let (id, bytes) = object(&noise(4 << 20));
    server.put(&id, &mut in_memory(bytes.clone())).unwrap();
    let mut replica = server.open(&id).unwrap();
    let mut read = vec![0; 1 << 20];
    replica.read_exact(&mut read).unwrap();
    sshd.kill();
    sshd.run();
    replica.read_to_end(&mut read).unwrap();
    assert!(read == bytes);
}

#[test]
fn readers_that_rest_keep_nobody_waiting() {
    let sshd = Sshd::start();
    let server = with(&sshd, &sshd.settings(1), Steps::default());
    server.attach(None, true).unwrap();
    let (id, bytes) = object(&noise(4 << 20));
    server.put(&id, &mut in_memory(bytes.clone())).unwrap();
    let mut readers: Vec<_> = (0..4).map(|_| (server.open(&id).unwrap(), Vec::new())).collect();
    // In turns over one session, with other work in between.
    for turn in 0..9_u8 {
        for (replica, read) in &mut readers {
            let more = replica.by_ref().take(500_000).read_to_end(read).unwrap();
            assert!(more > 0 || read.len() == bytes.len());
        }
        let (other, small) = object(&[turn]);
        server.put(&other, &mut in_memory(small)).unwrap();
        server.quarantine(&other, u64::MAX, &|| ()).unwrap();
    }
    assert!(readers.iter().all(|(_, read)| *read == bytes));
    assert_eq!(server.data.counts(), (1, 0));
    drop(readers);
    assert_eq!(whole(&server, &id), bytes);
}

#[test]
fn a_server_that_hangs_in_mid_write_costs_one_time_out_and_only_that_session() {
    let sshd = Sshd::start();
    let server = attached(&sshd);
    let (other, small) = object(b"elsewhere");
    let before = sshd.sessions();
    server.put(&other, &mut in_memory(small.clone())).unwrap();
    let hung: Vec<_> = sshd.sessions().into_iter().filter(|pid| !before.contains(pid)).collect();
    let stopped = hung.clone();
    let (id, bytes) = object(&noise(12 << 20));
    let began = moment();
    let refused = server.put(&id, &mut interrupted(bytes.clone(), move || signal("STOP", &stopped)));
    let took = moment() - began;
    let refused = refused.unwrap_err();
    assert!(matches!(refused, FileServerError::Away { .. }), "{refused}");
    assert!(took >= PATIENCE && took < 3 * PATIENCE, "{took:?}");
    // The hung session is out of use, and everything goes on without it.
    let began = moment();
    assert_eq!(whole(&server, &other), small);
    assert!(matches!(server.open(&id), Err(FileServerError::Absent { .. })));
    assert!(moment() - began < PATIENCE, "nobody waits for it");
    assert_eq!(server.put(&id, &mut in_memory(bytes.clone())).unwrap(), Put::Written);
    signal("CONT", &hung);
    assert!(whole(&server, &id) == bytes);
    assert_eq!(collect_in_next_life(&sshd), 1, "the torn file is collected");
}

#[test]
fn a_server_that_hangs_in_mid_read_costs_one_time_out_and_only_that_session() {
    let sshd = Sshd::start();
    let server = attached(&sshd);
    let (id, bytes) = object(&noise(12 << 20));
    let before = sshd.sessions();
    server.put(&id, &mut in_memory(bytes.clone())).unwrap();
    let hung: Vec<_> = sshd.sessions().into_iter().filter(|pid| !before.contains(pid)).collect();
    let mut replica = server.open(&id).unwrap();
    replica.read_exact(&mut vec![0; 100_000]).unwrap();
    signal("STOP", &hung);
    let began = moment();
    let refused = replica.read_to_end(&mut Vec::new()).unwrap_err();
    let took = moment() - began;
    assert!(took >= PATIENCE && took < 3 * PATIENCE, "{took:?}");
    let refused = refused.downcast::<FileServerError>().unwrap();
    assert!(matches!(refused, FileServerError::Away { .. }), "{refused}");
    let began = moment();
    assert!(whole(&server, &id) == bytes);
    drop(replica);
    assert!(moment() - began < PATIENCE, "nobody waits for it");
    signal("CONT", &hung);
}

#[test]
fn a_session_killed_in_mid_write_leaves_nothing_under_the_id() {
    let mut sshd = Sshd::start();
    let server = attached(&sshd);
    let (id, bytes) = object(&noise(12 << 20));
    let listener = sshd.listener();
    let kill = move || signal("KILL", &super::sshd::below(listener));
    let refused = server.put(&id, &mut interrupted(bytes.clone(), kill)).unwrap_err();
    assert!(matches!(refused, FileServerError::Away { .. }), "{refused}");
    assert!(matches!(server.open(&id), Err(FileServerError::Absent { .. })));
    assert_eq!(server.put(&id, &mut in_memory(bytes.clone())).unwrap(), Put::Written);
    // What could not be removed at once, because everything was gone, is collected.
    sshd.kill();
    sshd.run();
    std::fs::write(sshd.place().join("tmp/vault-a~torn"), "torn").unwrap();
    let left = temporaries(&sshd);
    assert_eq!(collect_in_next_life(&sshd), left);
    assert_eq!(temporaries(&sshd), 0);
    assert!(whole(&server, &id) == bytes);
}

#[test]
fn a_full_disk_is_told_apart_and_reading_goes_on() {
    let sshd = Sshd::start_on_small_disk(6);
    let server = attached(&sshd);
    let (id, bytes) = object(b"fits");
    server.put(&id, &mut in_memory(bytes.clone())).unwrap();
    let free = server.free_space().unwrap();
    assert!(free > 1 << 20 && free < 6 << 20, "{free}");
    let (large, more) = object(&noise(12 << 20));
    let refused = server.put(&large, &mut in_memory(more)).unwrap_err();
    assert!(matches!(refused, FileServerError::Full { .. }), "{refused}");
    assert_eq!(whole(&server, &id), bytes);
    assert!(matches!(server.open(&large), Err(FileServerError::Absent { .. })));
    assert_eq!(server.free_space().unwrap(), free, "the torn file is gone");
}

#[test]
fn two_that_store_the_same_object_at_once_both_succeed() {
    let sshd = Sshd::start();
    let left = attached(&sshd);
    let right = Sftp::new("one", &sshd.place(), &sshd.settings(3), "vault-b", PATIENCE, Steps::default());
    right.attach(None, true).unwrap();
    for round in 0..8_u8 {
        let (id, bytes) = object(&[&noise(200_000)[..], &[round]].concat());
        std::thread::scope(|scope| {
            for server in [&left, &right] {
                let bytes = bytes.clone();
                scope.spawn(move || server.put(&id, &mut in_memory(bytes)).unwrap());
            }
        });
        assert!(whole(&left, &id) == bytes);
    }
    assert_eq!(temporaries(&sshd), 0);
}

#[test]
fn a_damaged_replica_that_appears_in_mid_write_is_set_aside() {
    let sshd = Sshd::start();
    let server = attached(&sshd);
    let (id, bytes) = object(b"the right one");
    let path = layout::replica_path(&sshd.place(), &id);
    let squat = move || {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "no object").unwrap();
    };
    assert_eq!(server.put(&id, &mut interrupted(bytes.clone(), squat)).unwrap(), Put::Written);
    assert_eq!(whole(&server, &id), bytes);
    assert_eq!(std::fs::read_dir(sshd.place().join("quarantine")).unwrap().count(), 1);
}

#[test]
fn an_exchanged_place_is_not_an_empty_file_server() {
    let sshd = Sshd::start();
    let server = attached(&sshd);
    let (id, bytes) = object(b"here");
    server.put(&id, &mut in_memory(bytes.clone())).unwrap();
    std::fs::rename(sshd.place(), sshd.path("elsewhere")).unwrap();
    std::fs::create_dir(sshd.place()).unwrap();
    let refusals = [
        server.open(&id).err().unwrap(),
        server.remove(&id).unwrap_err(),
        server.put(&id, &mut in_memory(bytes)).unwrap_err(),
        server.list("", None, 10).unwrap_err(),
        server.quarantine(&id, u64::MAX, &|| ()).unwrap_err(),
        server.free_space().unwrap_err(),
    ];
    for refused in refusals {
        assert!(matches!(refused, FileServerError::NotOurs { .. }), "{refused}");
    }
    // `quarantine` may make its folder; nothing else may appear.
    let found = std::fs::read_dir(sshd.place())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name() != "quarantine");
    assert_eq!(found.count(), 0, "nothing was written there");
}

#[test]
fn a_folder_that_goes_under_a_running_server_is_made_again_at_once() {
    let sshd = Sshd::start();
    let server = attached(&sshd);
    let (id, bytes) = object(b"its folders were there once");
    server.put(&id, &mut in_memory(bytes.clone())).unwrap();
    for parts in [2, 1] {
        let path = layout::replica_path(&sshd.place(), &id);
        std::fs::remove_dir_all(path.ancestors().nth(parts).unwrap()).unwrap();
        assert_eq!(server.put(&id, &mut in_memory(bytes.clone())).unwrap(), Put::Written);
    }
    assert_eq!(whole(&server, &id), bytes);
}

#[test]
fn everything_is_flushed_before_put_returns() {
    let sshd = Sshd::start();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let watch = Arc::clone(&seen);
    let steps = Steps::watched(move |step| lock(&watch).push(step.clone()));
    let server = with(&sshd, &sshd.settings(3), steps);
    server.attach(None, true).unwrap();
    let (id, bytes) = object(b"flushed");
    server.put(&id, &mut in_memory(bytes)).unwrap();
    let path = layout::replica_path(&sshd.place(), &id);
    let inner = path.parent().unwrap().to_owned();
    let outer = inner.parent().unwrap().to_owned();
    let steps = lock(&seen).clone();
    let at = |wanted: &dyn Fn(&Step) -> bool| steps.iter().rposition(wanted).unwrap();
    let synced = |folder: &Path| at(&|step| *step == Step::FolderSynced(folder.to_owned()));
    let renamed = at(&|step| matches!(step, Step::Rename(_, to) if *to == path));
    let content =
        at(&|step| matches!(step, Step::FileSynced(file) if file.parent().unwrap().ends_with("tmp")));
    assert!(content < renamed, "{steps:#?}");
    assert!(at(&|step| *step == Step::MakeFolder(outer.clone())) < synced(&sshd.place()), "{steps:#?}");
    assert!(at(&|step| *step == Step::MakeFolder(inner.clone())) < synced(&outer), "{steps:#?}");
    assert!(renamed < synced(&inner), "{steps:#?}");
}

#[test]
fn a_server_that_cannot_flush_is_used_without() {
    let mut sshd = Sshd::start();
    sshd.kill();
    let denied = "Subsystem sftp internal-sftp -P fsync,statvfs,fstatvfs";
    sshd.configure("Subsystem sftp internal-sftp", denied);
    sshd.run();
    let server = attached(&sshd);
    let (id, bytes) = object(b"unflushed");
    assert_eq!(server.put(&id, &mut in_memory(bytes.clone())).unwrap(), Put::Written);
    assert_eq!(whole(&server, &id), bytes);
    assert!(server.told_unflushed.load(Ordering::Relaxed));
    assert_eq!(server.free_space().unwrap(), u64::MAX);
}
