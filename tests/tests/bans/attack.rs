//! An attacker at work, and everybody else meanwhile.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use harness::edge_host::NAME;
use harness::netns::Host;
use harness::wait;

use crate::scene::{CLIMB, SOON, Scene};

/// From the answer to the last offence to the kernel's set, the asking included.
const AT_ONCE: Duration = Duration::from_secs(1);
/// Bytes of a body that no buffer holds.
const DOWNLOAD: usize = 60_000_000;

#[test]
fn a_hack_attempt_is_banned_within_a_second_and_whatever_it_had_open_is_cut() {
    let scene = Scene::build(|plan| plan.jail("path-traversal", "ban_time = \"1h\""));
    let attacker = Host::Attacker.address();
    let stop = AtomicBool::new(false);
    let office_served = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        // A slow reader: it takes what the two systems hold between them, and no more for now.
        let mut download = scene.raw(Host::Attacker, None).unwrap();
        download.send(format!("GET /bytes/{DOWNLOAD} HTTP/1.1\r\nHost: {NAME}\r\n\r\n").as_bytes()).unwrap();
        assert!(download.read_until(b"\r\n\r\n").starts_with(b"HTTP/1.1 200"));
        let streams = scope.spawn(|| {
            // Once cut, curl would knock anew and wait for an answer.
            let call = scene.call("/hold").http2().arg("--connect-timeout").arg("2");
            scene.lab.inside(Host::Attacker, || call.crowd(5)).unwrap().unwrap()
        });
        let office = scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                scene.assert_served(Host::Office);
                office_served.fetch_add(1, Ordering::SeqCst);
            }
        });
        let live = wait::until("a download and five streams are under way", SOON, || {
            let seen = scene.upstream().seen().len();
            anyhow::ensure!(scene.upstream().held() == 5, "{} held", scene.upstream().held());
            anyhow::ensure!(scene.why(attacker).connections >= 2, "{seen} requests");
            Ok(())
        });
        let before = office_served.load(Ordering::SeqCst);
        assert_eq!(scene.get(Host::Attacker, CLIMB).ok(), Some(400), "one slip is no attack");
        assert!(scene.bans().is_empty());
        // Its answer may be cut off by the ban already.
        let _ = scene.get(Host::Attacker, CLIMB);
        let (found, took) = wait::timed(|| {
            wait::until("in the kernel", SOON, || {
                anyhow::ensure!(scene.in_kernel(attacker), "not yet");
                Ok(())
            })
        });
        let cut = wait::until("all its connections are gone", SOON, || {
            anyhow::ensure!(scene.why(attacker).connections == 0, "{}", scene.why(attacker).connections);
            Ok(())
        });
        scene.upstream().release();
        let (rest, lasted) = wait::timed(|| download.read_to_close().len());
        let streams = streams.join().unwrap();
        let after = wait::until("the office was served before, meanwhile and afterwards", SOON, || {
            let now = office_served.load(Ordering::SeqCst);
            anyhow::ensure!(before > 0 && now > before + 1, "{before}, then {now}");
            Ok(())
        });
        stop.store(true, Ordering::SeqCst);
        office.join().unwrap();
        live.unwrap();
        found.unwrap();
        assert!(took < AT_ONCE, "{took:?}");
        cut.unwrap();
        after.unwrap();
        assert!(rest < DOWNLOAD && lasted < SOON / 2, "the download went on: {rest} bytes, {lasted:?}");
        assert!(streams.iter().all(|stream| stream.status == 0), "streams went on: {streams:?}");
    });
    assert!(scene.is_ignored(Host::Attacker, scene.door()), "its SYN was answered");
    assert!(scene.metric("edge_connections_cut_total") >= 2.0);

    let ban = scene.ban_of(attacker).unwrap();
    assert_eq!((ban.jail.as_str(), ban.offences, ban.until - ban.since), ("path-traversal", 2, 3600));
    assert!(scene.say(&["bans", "list"]).contains("10.77.1.1"), "an operator sees it");
    let why = scene.say(&["why", "10.77.1.1"]);
    for told in
        ["10.77.1.1: banned", "path-traversal", "etc/passwd", "kernel: drops 10.77.1.1 for another", "until "]
    {
        assert!(why.contains(told), "{told:?} is missing: {why}");
    }

    assert!(scene.say(&["bans", "remove", "10.77.1.1"]).starts_with("ended 10.77.1.1"));
    assert!(!scene.in_kernel(attacker));
    scene.assert_served(Host::Attacker);
    assert!(scene.bans().is_empty());
}

#[test]
fn a_ban_ends_by_itself_and_the_next_one_lasts_longer() {
    let keys = "ban_time = \"2s\"\nescalation_factor = 20\nescalation_cap = \"1h\"\nforgiveness = \"1d\"";
    let scene = Scene::build(|plan| plan.jail("path-traversal", keys));
    let attacker = Host::Attacker.address();
    scene.attack(Host::Attacker);
    scene.wait_metric("edge_bans_total", |bans| bans > 0.5);
    scene.wait_served(Host::Attacker);
    scene.wait_metric("edge_bans", |bans| bans < 0.5);
    assert!(!scene.in_kernel(attacker));
    assert!(scene.say(&["why", "10.77.1.1"]).contains("banned once, the last until"));
    scene.attack(Host::Attacker);
    let again = scene.wait_ban(attacker);
    assert_eq!((again.until - again.since, again.times), (40, 2));
    scene.wait_in_kernel(attacker, true);
}

#[test]
fn an_ipv6_neighbour_of_the_same_64_shares_the_ban_and_nobody_else() {
    let scene = Scene::build(|plan| plan.jail("path-traversal", "ban_time = \"1h\""));
    assert_eq!(scene.get6(Host::OtherNeighbour, "/quick").unwrap(), 200);
    scene.attack_with(Host::Neighbour, &scene.call_at(scene.door6(), CLIMB));
    let ban = scene.wait_ban(Host::Neighbour.address6());
    assert_eq!(ban.network.to_string(), "fd77:0:0:4::/64");
    scene.wait_in_kernel(Host::Neighbour.address6(), true);
    assert!(scene.is_ignored(Host::OtherNeighbour, scene.door6()), "the same customer");
    assert_eq!(scene.get6(Host::Stranger, "/quick").unwrap(), 200, "another /64");
    assert_eq!(scene.get6(Host::Office, "/quick").unwrap(), 200, "another /64");
    assert_eq!(scene.get(Host::OtherNeighbour, "/quick").unwrap(), 200, "its IPv4 address did nothing");

    // Neighbours must find each other anew behind the closed door.
    for host in [Host::Edge, Host::Stranger] {
        let flushed = scene.lab.command(host, "ip").args(["-6", "neigh", "flush", "all"]).status().unwrap();
        assert!(flushed.success());
    }
    assert_eq!(scene.get6(Host::Stranger, "/quick").unwrap(), 200, "neighbour discovery");
    scene.say(&["bans", "remove", "fd77:0:0:4::77"]);
    assert_eq!(scene.get6(Host::OtherNeighbour, "/quick").unwrap(), 200);
}
