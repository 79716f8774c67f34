//! Programs that are away, killed and started again, while bans are in force and being made.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use harness::crowd::Crowd;
use harness::netns::Host;
use harness::wait;

use crate::scene::{CLIMB, SOON, Scene, offence};

/// What may pass between two readings of a clock by two programs.
const SECONDS_APART: u64 = 3;
/// How often a program is killed in the midst of it, and how many are banned meanwhile.
const KILLS: u8 = 6;
const CROWD: u8 = 200;

#[test]
fn without_the_helper_bans_hold_in_the_proxy_and_the_kernel_gets_them_when_it_comes() {
    let mut scene = Scene::build(|plan| {
        plan.helper_later = true;
        plan.jail("path-traversal", "ban_time = \"1h\"");
    });
    let attacker = Host::Attacker.address();
    wait::until("the status says so", SOON, || {
        let told = scene.say(&["status"]);
        anyhow::ensure!(told.contains("bans hold in the proxy alone"), "{told}");
        Ok(())
    })
    .unwrap();
    scene.wait_kernel(false);
    scene.attack(Host::Attacker);
    scene.wait_ban(attacker);
    let knock = Crowd::open(&scene.lab, Host::Attacker, None, scene.door(), 1, SOON).unwrap();
    wait::until("its connection is closed at once", SOON, || {
        anyhow::ensure!(knock.alive() == 0, "it is open");
        Ok(())
    })
    .unwrap();
    assert!(scene.get(Host::Attacker, "/quick").is_err());
    scene.assert_served(Host::Office);
    assert!(scene.say(&["why", "10.77.1.1"]).contains("kernel: out of reach"));

    scene.bring_helper();
    scene.wait_kernel(true);
    scene.wait_in_kernel(attacker, true);
    assert!(scene.is_ignored(Host::Attacker, scene.door()));
    scene.assert_served(Host::Office);
    assert!(scene.say(&["status"]).contains("kernel: drops what is banned"));

    // It is killed; what the kernel has stays, and what comes now holds in the proxy.
    scene.kill_helper();
    scene.wait_kernel(false);
    assert!(scene.is_ignored(Host::Attacker, scene.door()));
    scene.attack(Host::Stranger);
    scene.wait_ban(Host::Stranger.address());
    assert!(scene.get(Host::Stranger, "/quick").is_err(), "the proxy knows it");
    assert!(!scene.in_kernel(Host::Stranger.address()));
    assert!(scene.say(&["status"]).contains("bans hold in the proxy alone"));
    scene.assert_served(Host::Office);
    scene.restart_helper();
    scene.wait_in_kernel(Host::Stranger.address(), true);
    scene.wait_kernel(true);
    assert!(scene.in_kernel(attacker), "who was banned before still is");
}

#[test]
fn a_ban_ended_while_the_helper_is_away_is_ended_in_the_kernel_when_it_is_back() {
    let mut scene = Scene::build(|plan| plan.jail("path-traversal", "ban_time = \"1h\""));
    scene.attack(Host::Attacker);
    scene.wait_in_kernel(Host::Attacker.address(), true);
    scene.kill_helper();
    let removed = scene.command(&["bans", "remove", "10.77.1.1"]);
    assert_eq!(removed.code, Some(1), "{} {}", removed.out, removed.err);
    assert!(removed.out.starts_with("ended 10.77.1.1"), "{}", removed.out);
    assert!(removed.err.contains("the kernel was not told that they ended"), "{}", removed.err);
    assert!(scene.in_kernel(Host::Attacker.address()), "nobody could tell the kernel");
    scene.restart_helper();
    scene.wait_in_kernel(Host::Attacker.address(), false);
    assert!(scene.bans().is_empty(), "{:?}", scene.bans());
    scene.wait_served(Host::Attacker);
}

#[test]
fn bans_outlive_a_killed_edge_with_the_time_they_have_left() {
    let mut scene = Scene::build(|plan| {
        plan.jail("path-traversal", "ban_time = \"1h\"\nescalation_factor = 2");
    });
    let (attacker, stranger) = (Host::Attacker.address(), Host::Stranger.address());
    scene.attack(Host::Attacker);
    let before = scene.wait_ban(attacker);
    scene.say(&["bans", "add", "10.77.3.1", "--for", "30m", "--reason", "by hand"]);
    let by_hand = scene.ban_of(Host::Tester.address()).unwrap();
    // Time must pass, or a ban that started anew would look the same.
    wait::until("two seconds of it are over", SOON, || {
        let left = kernel_time_left(&scene, attacker);
        anyhow::ensure!(left < 3598, "{left} s left");
        Ok(())
    })
    .unwrap();

    scene.edge.program.kill().unwrap();
    assert!(scene.is_ignored(Host::Attacker, scene.door()), "edge is away, the kernel is not");
    // Only the kernel hears of this one.
    let element = format!("{{ {stranger} timeout 2h }}");
    let mut nft = scene.lab.command(Host::Edge, "nft");
    assert!(nft.args(["add", "element", "inet", "edge", "ban4", &element]).status().unwrap().success());

    scene.restart_edge();
    scene.wait_kernel(true);
    assert_eq!(scene.ban_of(attacker).unwrap(), before, "neither shorter nor longer");
    assert_eq!(scene.ban_of(Host::Tester.address()).unwrap(), by_hand);
    assert!(kernel_time_left(&scene, attacker) < 3598);
    let adopted = scene.wait_ban(stranger);
    assert_eq!(adopted.jail, "kernel");
    let lasts = adopted.until - adopted.since;
    assert!(lasts <= 7200 && lasts + u64::from(KILLS) * 10 > 7200, "{lasts}");
    assert!(scene.say(&["why", "10.77.1.1"]).contains("etc/passwd"), "the lines outlive it too");

    // An orderly restart, this time.
    scene.edge.program.terminate().unwrap();
    assert!(scene.is_ignored(Host::Attacker, scene.door()));
    scene.restart_edge();
    scene.wait_kernel(true);
    assert_eq!(scene.ban_of(attacker).unwrap(), before);
    assert_eq!(scene.ban_of(stranger).unwrap().until, adopted.until);
    scene.assert_served(Host::Office);
}

/// Whole seconds that the kernel will still drop this address.
fn kernel_time_left(scene: &Scene, address: IpAddr) -> u64 {
    let held = scene.why(address).kernel.unwrap_or_default();
    held.first().map_or(0, |(_, left)| *left)
}

/// Everybody of the crowd's `n`-th street.
fn street(number: u8) -> impl Iterator<Item = IpAddr> {
    (1..=CROWD).map(move |last| IpAddr::V4(Ipv4Addr::new(10, 64, number, last)))
}

/// Writes their offences, as an application does that knows nothing of bans.
fn write_offences(log: &std::path::Path, clients: impl Iterator<Item = IpAddr>) {
    let mut text = String::new();
    clients.for_each(|client| {
        let _ = write!(text, "{}", offence(client));
    });
    let mut file = OpenOptions::new().create(true).append(true).open(log).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// Kills what `kill` names in the midst of bans being made, again and again; then everybody must be
/// banned, in edge and in the kernel, and nobody else.
fn kill_while_bans_are_made(kill: impl Fn(&mut Scene)) {
    let mut scene = Scene::build(|plan| {
        let log = plan.folder.join("app.log");
        std::fs::write(&log, "").unwrap();
        plan.jail_of("app", &log, "max_offences = 1\nban_time = \"1h\"\nbrake = false");
    });
    let log = scene.path("app.log");
    // From here on it is known how far the log has been read: asking why writes down all that waits.
    write_offences(&log, street(KILLS).take(1));
    let first = street(KILLS).next().unwrap();
    scene.wait_ban(first);
    assert!(scene.say(&["why", &first.to_string()]).contains("etc/passwd"));
    for round in 0..KILLS {
        write_offences(&log, street(round));
        // A few milliseconds more in each round, so that every stage of it is hit once.
        std::thread::sleep(Duration::from_millis(u64::from(round) * 4));
        kill(&mut scene);
    }
    let expected: BTreeSet<IpAddr> = (0..KILLS).flat_map(street).chain([first]).collect();
    scene.wait_kernel(true);
    let banned = || -> BTreeSet<IpAddr> { scene.bans().iter().map(|ban| ban.network.addr()).collect() };
    wait::until("all of them are banned", SOON, || {
        anyhow::ensure!(banned() == expected, "{} of {}", banned().len(), expected.len());
        Ok(())
    })
    .map_err(|late| late.context(scene.edge.program.log_tail(30)))
    .unwrap();
    wait::until("all of them are in the kernel", SOON, || {
        let held = scene.kernel_set();
        anyhow::ensure!(held == expected, "{} of {}", held.len(), expected.len());
        Ok(())
    })
    .unwrap();
    scene.assert_served(Host::Office);
    let until: BTreeSet<u64> = scene.bans().iter().map(|ban| ban.until - ban.since).collect();
    assert_eq!(until, BTreeSet::from([3600]), "nobody is banned for longer because a line was read again");
}

#[test]
fn no_ban_is_lost_when_edge_is_killed_while_bans_are_made() {
    kill_while_bans_are_made(|scene| {
        scene.edge.program.kill().unwrap();
        scene.restart_edge();
    });
}

#[test]
fn no_ban_is_lost_when_the_helper_is_killed_while_bans_are_made() {
    kill_while_bans_are_made(|scene| {
        scene.kill_helper();
        scene.restart_helper();
    });
}

#[test]
fn a_helper_that_hangs_holds_up_neither_clients_nor_the_proxys_bans() {
    let scene = Scene::build(|plan| plan.jail("path-traversal", "ban_time = \"1h\""));
    let helper = scene.helper.as_ref().unwrap();
    helper.freeze().unwrap();
    scene.attack(Host::Attacker);
    let banned = scene.wait_ban(Host::Attacker.address());
    assert!(scene.get(Host::Attacker, CLIMB).is_err());
    scene.assert_served(Host::Office);
    scene.wait_kernel(false);
    helper.thaw().unwrap();
    scene.wait_in_kernel(Host::Attacker.address(), true);
    scene.wait_kernel(true);
    let left = kernel_time_left(&scene, Host::Attacker.address());
    let whole = banned.until - banned.since;
    assert!(left <= whole && left + 20 + SECONDS_APART > whole, "{left} of {whole}");
}
