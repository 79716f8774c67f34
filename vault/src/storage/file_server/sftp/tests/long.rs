//! Long objects, written on two channels of a session: byte for byte, or an error that leaves at
//! most a temporary file.

use super::super::sshd::below;
use super::*;
use crate::storage::envelope::BODY;

/// What is written on two channels from this length on, and the pieces it is cut into.
const TWO: usize = 8 << 20;
const PIECE: usize = 32 << 10;
const TOGETHER: usize = 8 * PIECE;

/// An object of this length as a whole.
fn long(length: usize) -> (ObjectId, Vec<u8>) {
    let (_, mut bytes) = object(b"");
    bytes.truncate(usize::try_from(BODY).unwrap());
    let body = noise(length - bytes.len());
    bytes.extend(&body);
    (ObjectId::new(*blake3::hash(&body).as_bytes()), bytes)
}

/// The processes of this server that have a temporary file open, once for each time they have it.
fn writers(listener: u32, place: &Path) -> Vec<u32> {
    let temporary = place.join("tmp");
    let mut found = Vec::new();
    for process in below(listener) {
        let Ok(files) = std::fs::read_dir(format!("/proc/{process}/fd")) else { continue };
        let targets = files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
        found.extend(targets.filter(|target| target.starts_with(&temporary)).map(|_| process));
    }
    found
}

/// Stores it and says how many processes of the server had it open half-way.
fn writers_of(sshd: &Sshd, server: &Sftp, id: &ObjectId, bytes: &[u8]) -> usize {
    let (count, counted) = std::sync::mpsc::channel();
    let (listener, place) = (sshd.listener(), sshd.place());
    let look = move || count.send(writers(listener, &place).len()).unwrap();
    assert_eq!(server.put(id, &mut interrupted(bytes.to_vec(), look)).unwrap(), Put::Written);
    counted.recv().unwrap()
}

#[test]
fn a_long_object_is_written_on_two_channels_and_comes_back_byte_for_byte_whatever_its_length() {
    let sshd = Sshd::start();
    let server = attached(&sshd);
    for length in [TWO - 1, TWO, TWO + 1, TWO + PIECE - 1, TWO + PIECE, TWO + TOGETHER + 1, 13_000_001] {
        let (id, bytes) = long(length);
        let writers = writers_of(&sshd, &server, &id, &bytes);
        assert_eq!(writers, if length < TWO { 1 } else { 2 }, "{length} bytes");
        assert!(whole(&server, &id) == bytes, "{length} bytes");
    }
    assert_eq!(temporaries(&sshd), 0);
}

#[test]
fn a_server_with_fewer_channels_takes_long_objects_on_those_it_has() {
    for most in [1, 2] {
        let mut sshd = Sshd::start();
        sshd.kill();
        sshd.configure("UsePAM no", &format!("UsePAM no\nMaxSessions {most}"));
        sshd.run();
        let server = attached(&sshd);
        let (id, bytes) = long(TWO + 5000);
        assert_eq!(writers_of(&sshd, &server, &id, &bytes), 1, "MaxSessions {most}");
        assert!(whole(&server, &id) == bytes, "MaxSessions {most}");
    }
}

#[test]
fn a_server_that_is_not_openssh_takes_long_objects_too() {
    let fixture = Sshd::start();
    let proftpd = Proftpd::start(&fixture);
    let server = with(&fixture, &proftpd.settings(&fixture, 3), Steps::default());
    server.attach(None, true).unwrap();
    let (id, bytes) = long(TWO + 5000);
    assert_eq!(server.put(&id, &mut in_memory(bytes.clone())).unwrap(), Put::Written);
    assert!(whole(&server, &id) == bytes);
}

#[test]
fn either_channel_cut_in_mid_write_fails_the_whole_and_leaves_nothing_under_the_id() {
    let sshd = Sshd::start();
    let server = attached(&sshd);
    for (channel, length) in [(0, 12 << 20), (1, 13 << 20)] {
        let (id, bytes) = long(length);
        let (listener, place) = (sshd.listener(), sshd.place());
        let cut = move || {
            let found = writers(listener, &place);
            assert_eq!(found.len(), 2);
            signal("KILL", &found[channel..=channel]);
        };
        let began = moment();
        let refused = server.put(&id, &mut interrupted(bytes.clone(), cut)).unwrap_err();
        assert!(matches!(refused, FileServerError::Away { .. }), "{refused}");
        assert!(moment() - began < 2 * PATIENCE, "at most one time-out");
        assert_eq!(server.data.counts().1, 0, "its session is not used further");
        assert!(matches!(server.open(&id), Err(FileServerError::Absent { .. })));
        assert!(temporaries(&sshd) <= 1);
        assert_eq!(server.put(&id, &mut in_memory(bytes.clone())).unwrap(), Put::Written);
        assert!(whole(&server, &id) == bytes);
    }
    let left = temporaries(&sshd);
    assert_eq!(collect_in_next_life(&sshd), left);
}

#[test]
fn a_long_object_takes_one_session_and_short_ones_are_stored_meanwhile() {
    let sshd = Sshd::start();
    let server = Arc::new(with(&sshd, &sshd.settings(2), Steps::default()));
    server.attach(None, true).unwrap();
    let (id, bytes) = long(12 << 20);
    let (other, small) = object(b"short");
    let beside = Arc::clone(&server);
    let short = move || {
        let began = moment();
        assert_eq!(beside.put(&other, &mut in_memory(small.clone())).unwrap(), Put::Written);
        assert!(moment() - began < PATIENCE);
    };
    assert_eq!(server.put(&id, &mut interrupted(bytes.clone(), short)).unwrap(), Put::Written);
    assert!(whole(&server, &id) == bytes);
    assert_eq!(server.data.counts(), (2, 0));
}
