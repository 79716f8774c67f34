//! Listings with requests in flight, and where a server allows none: the same ids as on its disk,
//! or an error.

use super::super::super::directory::Directory;
use super::*;

/// So many ids that look random, and a crowd of them in one folder: more than one answer holds.
fn ids(spread: u32) -> Vec<ObjectId> {
    let random = (0..spread).map(|number| *blake3::hash(&number.to_be_bytes()).as_bytes());
    let crowd = (0..250_u8).map(|number| {
        let mut hash = [number; 32];
        hash[..2].copy_from_slice(&[0xab, 0xcd]);
        hash
    });
    let mut ids: Vec<_> = random.chain(crowd).map(ObjectId::new).collect();
    ids.sort_unstable();
    ids
}

/// Lays empty replicas, and beside them what is none.
fn fill(place: &Path, ids: &[ObjectId]) {
    for id in ids {
        let path = layout::replica_path(place, id);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
    }
    for stranger in ["abcd", "ab/xy", "ab/cde", "ab/00", "zz/zz"] {
        std::fs::create_dir_all(place.join(stranger)).unwrap();
    }
    let misplaced = format!("ac{}", "0".repeat(62));
    for stranger in ["ab/cd/README", &format!("ab/cd/{misplaced}"), "ab/loose"] {
        std::fs::write(place.join(stranger), "").unwrap();
    }
}

/// Whatever is asked, the server answers as its own disk would.
fn agrees_with_the_disk(server: &Sftp, sshd: &Sshd, ids: &[ObjectId]) {
    let place = server.attach(None, true).unwrap();
    let disk = Directory::new("one", &sshd.place(), "vault-a", Steps::default());
    disk.attach(Some(&place), false).unwrap();
    assert!(server.list("", None, usize::MAX).unwrap() == ids, "all of them");
    let some =
        [None, Some(ids[0]), Some(ids[ids.len() / 2]), ids.last().copied(), Some(ObjectId::new([0xab; 32]))];
    for prefix in ["", "a", "ab", "abc", "abcd", "abcd0", "ff", "ab00", "ab01", "00ff", "../", "zz"] {
        for (after, limit) in
            some.iter().flat_map(|after| [0, 1, 7, 250, 100_000].map(|limit| (after, limit)))
        {
            let listed = server.list(prefix, after.as_ref(), limit).unwrap();
            let expected = ids.iter().filter(|id| id.to_string().starts_with(prefix) && Some(**id) > *after);
            let expected: Vec<_> = expected.take(limit).copied().collect();
            assert_eq!(listed, expected, "{prefix} after {after:?}, at most {limit}");
            if limit > 0 {
                assert_eq!(disk.list(prefix, after.as_ref(), limit).unwrap(), expected);
            }
        }
    }
}

#[test]
fn what_is_listed_is_what_lies_there() {
    let sshd = Sshd::start();
    let ids = ids(1200);
    fill(&sshd.place(), &ids);
    let server = sftp(&sshd);
    agrees_with_the_disk(&server, &sshd, &ids);
    assert!(!server.told_slow.load(Ordering::Relaxed));
}

#[test]
fn what_is_listed_by_a_server_that_is_not_openssh_is_what_lies_there() {
    let fixture = Sshd::start();
    let ids = ids(300);
    fill(&fixture.place(), &ids);
    let proftpd = Proftpd::start(&fixture);
    let server = with(&fixture, &proftpd.settings(&fixture, 3), Steps::default());
    agrees_with_the_disk(&server, &fixture, &ids);
    assert!(!server.told_slow.load(Ordering::Relaxed));
}

#[test]
fn a_server_that_allows_one_channel_a_session_keeps_the_contract_and_lists_the_same() {
    let mut sshd = Sshd::start();
    sshd.kill();
    sshd.configure("UsePAM no", "UsePAM no\nMaxSessions 1");
    sshd.run();
    contract::run(&sftp(&sshd), &|| Box::new(sftp(&sshd)), &|id| damage(&sshd, id));
    std::fs::remove_dir_all(sshd.place()).unwrap();
    std::fs::create_dir(sshd.place()).unwrap();
    let ids = ids(150);
    fill(&sshd.place(), &ids);
    for sessions in [1, 3] {
        let server = with(&sshd, &sshd.settings(sessions), Steps::default());
        agrees_with_the_disk(&server, &sshd, &ids);
        assert!(server.told_slow.load(Ordering::Relaxed), "the operator is told");
    }
}

#[test]
fn a_folder_that_cannot_be_listed_is_not_the_whole_servers_trouble() {
    let mut sshd = Sshd::start();
    sshd.kill();
    sshd.configure("UsePAM no", "UsePAM no\nMaxSessions 1");
    sshd.run();
    let server = attached(&sshd);
    // More names than are believed; to SFTP's "failure" it is all the same what failed.
    let crowded = sshd.place().join("ab/cd");
    std::fs::create_dir_all(&crowded).unwrap();
    for number in 0..=1 << 14 {
        std::fs::write(crowded.join(number.to_string()), "").unwrap();
    }
    let refused = server.list("", None, 10).unwrap_err();
    assert!(matches!(refused, FileServerError::Faulty { .. }), "{refused}");
    assert!(refused.to_string().contains("holds 16384 names or more"), "{refused}");
    contract::block(&sshd.place().join("marker"));
    let refused = server.list("", None, 10).unwrap_err();
    assert!(matches!(refused, FileServerError::Away { .. }), "{refused}");
}

#[test]
fn sessions_that_die_while_they_list_cost_an_error_and_never_an_id() {
    let sshd = Sshd::start();
    let ids = ids(1500);
    fill(&sshd.place(), &ids);
    let server = attached(&sshd);
    let (mut whole, mut refused) = (0, 0);
    for round in 0..12_u64 {
        let killer = {
            let listener = sshd.listener();
            move || {
                std::thread::sleep(Duration::from_millis(20 + 15 * round));
                signal("KILL", &super::super::sshd::below(listener));
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(killer);
            match server.list("", None, usize::MAX) {
                Ok(listed) => {
                    assert!(listed == ids, "a listing is whole");
                    whole += 1;
                }
                Err(error) => {
                    // Killed while it logs in, a session looks refused.
                    let away =
                        matches!(error, FileServerError::Away { .. } | FileServerError::NoEntry { .. });
                    assert!(away, "{error}");
                    refused += 1;
                }
            }
        });
    }
    assert!(server.list("", None, usize::MAX).unwrap() == ids);
    println!("{whole} listings were whole, {refused} broke off");
}

#[test]
fn a_server_that_hangs_while_it_lists_costs_one_time_out() {
    let sshd = Sshd::start();
    let ids = ids(1500);
    fill(&sshd.place(), &ids);
    let server = attached(&sshd);
    assert!(server.list("", None, usize::MAX).unwrap() == ids);
    let hung = sshd.sessions();
    let (refused, took) = std::thread::scope(|scope| {
        let listing = scope.spawn(|| {
            loop {
                let began = moment();
                if let Err(error) = server.list("", None, usize::MAX) {
                    return (error, moment() - began);
                }
            }
        });
        std::thread::sleep(Duration::from_millis(300));
        signal("STOP", &hung);
        listing.join().unwrap()
    });
    assert!(matches!(refused, FileServerError::Away { .. }), "{refused}");
    assert!(took >= PATIENCE && took < 3 * PATIENCE, "{took:?}");
    let began = moment();
    assert!(server.list("", None, usize::MAX).unwrap() == ids);
    assert!(moment() - began < PATIENCE, "nobody waits for the hung session");
    signal("CONT", &hung);
}

#[test]
fn reading_and_listing_share_one_session() {
    let sshd = Sshd::start();
    let server = with(&sshd, &sshd.settings(1), Steps::default());
    server.attach(None, true).unwrap();
    let (id, bytes) = object(&noise(3 << 20));
    server.put(&id, &mut in_memory(bytes.clone())).unwrap();
    let mut replica = server.open(&id).unwrap();
    let mut read = Vec::new();
    // In the middle of a file that is read ahead.
    while replica.by_ref().take(300_000).read_to_end(&mut read).unwrap() > 0 {
        assert_eq!(server.list("", None, 10).unwrap(), [id]);
    }
    assert!(read == bytes);
    assert_eq!(server.data.counts(), (1, 0));
}
