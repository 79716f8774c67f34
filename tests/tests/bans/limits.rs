//! How much one client may have at once, and how fast it may ask.

use std::net::IpAddr;
use std::time::Duration;

use harness::crowd::Crowd;
use harness::curl::count;
use harness::netns::Host;
use harness::raw::Raw;
use harness::wait;

use crate::scene::{SOON, Scene};

/// What the kernel lets one client have.
const MOST: usize = 50;
/// What edge leaves it of idle ones.
const MOST_IDLE: usize = 40;
const CROWD: usize = 60;

/// Waits until so many of them stand, and no more can fall: the kernel resets one when its
/// handshake is over.
fn settle(crowds: &[&Crowd], expected: usize) {
    let alive = || crowds.iter().map(|crowd| crowd.alive()).sum::<usize>();
    wait::until(&format!("{expected} stand"), SOON, || {
        anyhow::ensure!(alive() == expected, "{} stand", alive());
        Ok(())
    })
    .unwrap();
}

#[test]
fn of_sixty_connections_of_one_client_fifty_stand_and_others_are_not_concerned() {
    let scene = Scene::build(|_| {});
    let open = |host, source, door, many| Crowd::open(&scene.lab, host, source, door, many, SOON).unwrap();
    let mut office = open(Host::Office, None, scene.door(), CROWD);
    settle(&[&office], MOST);
    scene.assert_served(Host::Stranger);
    let other = Host::Office.v4().get(1).copied().map(IpAddr::V4);
    let colleague = open(Host::Office, other, scene.door(), 10);
    settle(&[&colleague], 10);
    assert!(scene.get(Host::Office, "/quick").is_err(), "one more of the same client is one too many");
    office.close(5);
    scene.wait_served(Host::Office);

    // In IPv6 a /64 is one client.
    let [first, second] = [0, 1].map(|which| Host::Office.v6().get(which).copied().map(IpAddr::V6));
    let some = open(Host::Office, first, scene.door6(), 30);
    settle(&[&some], 30);
    let more = open(Host::Office, second, scene.door6(), 30);
    settle(&[&some, &more], MOST);
    assert_eq!(scene.get6(Host::Stranger, "/quick").unwrap(), 200, "another /64");

    // Who leaves is heard, although others of it have just been refused: nothing waits for a deadline.
    drop((office, colleague, some, more));
    wait::until("edge knows that they have left", SOON / 4, || {
        let left = scene.metric("edge_connections");
        anyhow::ensure!(left < 0.5, "{left} are still open");
        Ok(())
    })
    .unwrap();
}

#[test]
fn idle_connections_above_forty_are_closed_oldest_first_so_that_a_new_one_gets_in() {
    let scene = Scene::build(|_| {});
    // The first has shown itself alive most lately.
    let mut idle: Vec<Raw> = (0..MOST).map(|_| scene.raw(Host::Office, None).unwrap()).collect();
    let first = idle.first_mut().unwrap();
    first.send(b"GET /quick HTTP/1.1\r\nHost: www.example.test\r\n\r\n").unwrap();
    assert!(String::from_utf8_lossy(&first.read_until(b"\r\n\r\n")).starts_with("HTTP/1.1 200"));
    let mut open = Vec::new();
    wait::until("forty are left", SOON, || {
        open = idle.iter_mut().map(Raw::is_open).collect();
        let left = open.iter().filter(|open| **open).count();
        anyhow::ensure!(left == MOST_IDLE, "{left} left");
        Ok(())
    })
    .unwrap();
    assert_eq!(open.first(), Some(&true), "it was used last");
    // Which of two that began to rest at about the same time goes first, edge's threads decide.
    let newer = open.iter().skip(2 * (MOST - MOST_IDLE));
    assert!(newer.clone().all(|open| *open), "{open:?}");
    // As browsers do with a connection that was closed.
    idle.retain_mut(Raw::is_open);
    scene.wait_served(Host::Office);
}

#[test]
fn a_client_above_its_rate_is_told_when_to_come_back_and_others_have_their_own() {
    let scene = Scene::build(|plan| {
        plan.sections.push_str("[throttle]\nrate = 2\nburst = 5\n");
    });
    let call = scene.call("/quick").http1();
    let outcomes = scene.lab.inside(Host::Attacker, || call.crowd(20)).unwrap().unwrap();
    let (served, refused) = (count(&outcomes, 200), count(&outcomes, 429));
    assert_eq!(served + refused, 20, "{outcomes:?}");
    assert!(served >= 5 && refused >= 5, "{served} served");
    for outcome in outcomes.iter().filter(|outcome| outcome.status == 429) {
        assert!((1..=10).contains(&outcome.retry_after.parse::<u64>().unwrap()), "{outcome:?}");
    }
    scene.assert_served(Host::Office);
    scene.wait_served(Host::Attacker);
}

#[test]
fn a_jail_that_throttles_slows_the_offender_down_and_bans_nobody() {
    let scene = Scene::build(|plan| {
        plan.sections.push_str("[throttle]\noffender_rate = 0.2\noffender_burst = 2\n");
        plan.jail("path-traversal", "action = \"throttle\"\nban_time = \"1h\"");
    });
    scene.attack(Host::Attacker);
    let throttled = scene.wait_ban(Host::Attacker.address());
    assert_eq!(throttled.action, "throttle");
    let answers: Vec<u16> = (0..6).map(|_| scene.get(Host::Attacker, "/quick").unwrap()).collect();
    assert!(answers.contains(&200) && answers.contains(&429), "{answers:?}");
    let refused = scene.send(Host::Attacker, &scene.call("/quick").within(Duration::from_secs(5))).unwrap();
    assert!(refused.header("retry-after").is_some_and(|wait| wait.parse::<u64>().is_ok()));
    assert!(!scene.in_kernel(Host::Attacker.address()));
    let office: Vec<u16> = (0..6).map(|_| scene.get(Host::Office, "/quick").unwrap()).collect();
    assert_eq!(office, [200; 6]);
    scene.say(&["bans", "remove", "10.77.1.1"]);
    let freed: Vec<u16> = (0..6).map(|_| scene.get(Host::Attacker, "/quick").unwrap()).collect();
    assert_eq!(freed, [200; 6]);
}
