//! Logs: those of others that are followed through their rotation, and edge's own, into which
//! clients write what they like.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use harness::netns::Host;
use harness::wait;

use crate::scene::{SOON, Scene, offence};

fn appending(log: &Path) -> File {
    OpenOptions::new().create(true).append(true).open(log).unwrap()
}

#[test]
fn a_followed_log_bans_through_both_ways_of_rotation_and_counts_no_line_twice() {
    let scene = Scene::build(|plan| {
        let folder = plan.folder.join("nginx");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("shop.access.log"), "").unwrap();
        plan.jail_of("nginx", &folder.join("*.access.log"), "max_offences = 2\nban_time = \"1h\"");
    });
    let log = scene.path("nginx/shop.access.log");
    let client = |last: u8| IpAddr::V4(Ipv4Addr::new(10, 64, 9, last));
    let write = |file: &mut File, last: u8| file.write_all(offence(client(last)).as_bytes()).unwrap();
    let read = |lines: f64| {
        scene.wait_metric("edge_offences_total", |offences| offences >= lines);
    };

    // One slip of each before the rotation, and for some the second one after it.
    let mut writer = appending(&log);
    for last in 1..=6 {
        write(&mut writer, last);
    }
    read(6.0);
    assert!(scene.bans().is_empty());
    std::fs::rename(&log, log.with_extension("log.1")).unwrap();
    // Whoever writes has not heard of it yet.
    write(&mut writer, 1);
    let mut fresh = appending(&log);
    write(&mut fresh, 2);
    write(&mut writer, 3);
    for last in 1..=3 {
        scene.wait_ban(client(last));
    }

    // Copied and emptied, while lines come.
    write(&mut fresh, 4);
    scene.wait_ban(client(4));
    std::fs::copy(&log, log.with_extension("log.2")).unwrap();
    File::options().write(true).open(&log).unwrap().set_len(0).unwrap();
    write(&mut fresh, 5);
    scene.wait_ban(client(5));
    scene.wait_in_kernel(client(5), true);

    // A new file that the pattern covers.
    let mut other = appending(&log.with_file_name("mail.access.log"));
    write(&mut other, 7);
    write(&mut other, 7);
    scene.wait_ban(client(7));

    assert!(scene.ban_of(client(6)).is_none(), "its one line was counted twice");
    let banned = scene.bans();
    assert!(banned.iter().all(|ban| ban.jail == "nginx" && ban.offences == 2), "{banned:?}");
    assert_eq!(banned.len(), 6);
    scene.assert_served(Host::Office);
}

#[test]
fn lines_written_while_edge_was_away_are_read_once_when_it_is_back() {
    let mut scene = Scene::build(|plan| {
        let log = plan.folder.join("app.log");
        std::fs::write(&log, "").unwrap();
        plan.jail_of("app", &log, "max_offences = 2\nban_time = \"1h\"");
    });
    let client = |last: u8| IpAddr::V4(Ipv4Addr::new(10, 64, 9, last));
    let mut writer = appending(&scene.path("app.log"));
    let mut write = |last: u8| writer.write_all(offence(client(last)).as_bytes()).unwrap();
    write(1);
    write(2);
    scene.wait_metric("edge_offences_total", |offences| offences > 1.5);
    scene.edge.program.terminate().unwrap();
    write(3);
    write(3);
    write(2);
    scene.restart_edge();
    scene.wait_ban(client(3));
    assert!(scene.ban_of(client(1)).is_none(), "its one line was read twice");
}

/// What a client may fill, and what it fills it with: lines of others' offences in every disguise.
fn forgeries() -> Vec<Vec<u8>> {
    let victim = Host::Office.address();
    let stamp = crate::scene::stamp();
    let line = format!("{victim} - - {stamp} \"GET /../../etc/passwd HTTP/1.1\" 404 1 \"-\" \"-\"");
    let undated = format!("{victim} - - [] \"GET /..%2f..%2fetc/passwd HTTP/1.1\" 400 0 \"-\" \"-\"");
    let nasty: Vec<Vec<u8>> = vec![
        format!("\" 400 0 \"-\" \"-\"\n{line}").into_bytes(),
        format!("\r{line}").into_bytes(),
        format!("\r\n{line}").into_bytes(),
        format!("\" 404 1 \"-\" \"-\" {undated}").into_bytes(),
        undated.clone().into_bytes(),
        format!("\\x0A{line}").into_bytes(),
        format!("\u{2028}{line}\u{85}{line}").into_bytes(),
        format!("\u{1b}[2K\u{1b}[1A{line}\u{1b}]0;x\u{7}").into_bytes(),
        [b"\xff\xfe\0".as_slice(), line.as_bytes()].concat(),
        [vec![b'a'; 100 * 1024], line.into_bytes()].concat(),
    ];
    let mut all = Vec::new();
    for text in &nasty {
        let mut add = |head: &[&[u8]]| all.push(head.concat());
        let end = b"Connection: close\r\n\r\n".as_slice();
        let host = b"Host: www.example.test\r\n".as_slice();
        add(&[text, b" / HTTP/1.1\r\n", host, end]);
        add(&[b"GET /", text, b" HTTP/1.1\r\n", host, end]);
        add(&[b"GET / HTTP/", text, b"\r\n", host, end]);
        add(&[b"GET / HTTP/1.1\r\nHost: ", text, b"\r\n", end]);
        add(&[b"GET / HTTP/1.1\r\n", host, b"Referer: ", text, b"\r\n", end]);
        add(&[b"GET / HTTP/1.1\r\n", host, b"User-Agent: ", text, b"\r\n", end]);
        add(&[b"GET / HTTP/1.1\r\n", host, b"X-Forwarded-For: ", text, b"\r\n", end]);
        add(&[b"GET / HTTP/1.1\r\n", host, b"X-Request-Id: ", text, b"\r\n", end]);
        add(&[b"GET /..%2f..%2fetc/passwd HTTP/1.1\r\n", host, b"User-Agent: ", text, b"\r\n", end]);
    }
    all
}

#[test]
fn whatever_a_client_writes_nobody_but_itself_is_banned_and_each_request_has_one_line() {
    // The log is followed as others' logs are, besides edge's own events.
    let scene = Scene::build(|plan| {
        let log = plan.folder.join("edge/access.log");
        for filter in ["path-traversal", "scanners", "malformed", "sql-injection", "login-failures"] {
            let keys = format!("filter = \"{filter}\"\nlogs = [\"{}\"]\n", log.display());
            plan.jail(
                &format!("file-{filter}"),
                &format!("{keys}max_offences = 1\nban_time = \"1h\"\nbrake = false"),
            );
            plan.jail(filter, "max_offences = 1\nban_time = \"1h\"\nbrake = false");
        }
    });
    // Each from an address of its own, since its sender may well be banned for it.
    let forgeries = forgeries();
    let sender = |index: usize| IpAddr::V4(Ipv4Addr::new(10, 65, 0, u8::try_from(index + 1).unwrap()));
    std::thread::scope(|scope| {
        for part in 0..4 {
            let (scene, forgeries) = (&scene, &forgeries);
            scope.spawn(move || {
                for (index, bytes) in forgeries.iter().enumerate().filter(|(index, _)| index % 4 == part) {
                    let mut raw = scene.raw(Host::Attacker, Some(sender(index))).unwrap();
                    raw.send(bytes).unwrap();
                    raw.read_to_close();
                }
            });
        }
    });
    let lines = wait::until("each has its line", SOON, || {
        let lines = scene.edge.log_lines()?;
        anyhow::ensure!(lines.len() >= forgeries.len(), "{} of {}", lines.len(), forgeries.len());
        Ok(lines)
    })
    .unwrap();
    let raw = std::fs::read(&scene.edge.access_log).unwrap();
    assert!(raw.iter().all(|byte| matches!(byte, b'\n' | b' '..=b'~')), "a byte that is no text");
    let mut seen: Vec<IpAddr> = Vec::new();
    for line in &lines {
        let (client, rest) = line.split_once(' ').unwrap();
        seen.push(client.parse().unwrap_or_else(|_| panic!("{line}")));
        assert!(rest.starts_with("- - [") && line.len() < 16 * 1024, "{line}");
        assert_eq!(rest.matches('"').count(), 6, "{line}");
    }
    seen.sort();
    let expected: Vec<IpAddr> = (0..forgeries.len()).map(sender).collect();
    assert_eq!(seen, expected, "one line each, each its sender's");

    scene.attack(Host::Attacker);
    scene.wait_ban(Host::Attacker.address());
    let banned: Vec<IpAddr> = scene.bans().iter().map(|ban| ban.network.addr()).collect();
    let strangers: Vec<&IpAddr> = banned
        .iter()
        .filter(|address| !expected.contains(address) && **address != Host::Attacker.address())
        .collect();
    assert!(strangers.is_empty(), "banned by others' words: {strangers:?}");
    assert!(banned.len() > 10, "only {} of the forgers are banned", banned.len());
    scene.assert_served(Host::Office);
    for banned in banned.iter().take(30) {
        let why = scene.say(&["why", &banned.to_string()]);
        assert!(why.bytes().all(|byte| matches!(byte, b'\n' | b' '..=b'~')), "{why}");
    }
}
