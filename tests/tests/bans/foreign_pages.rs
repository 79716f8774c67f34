//! Pages of others, which choose what their visitors' browsers ask edge for.

use std::time::Duration;

use harness::curl::Curl;
use harness::edge_host::NAME;
use harness::netns::Host;
use harness::wait;

use crate::scene::{CLIMB, SOON, Scene};

/// As a browser marks it.
const MARK: &str = "Sec-Fetch-Site";

#[test]
fn a_foreign_page_gets_its_visitors_throttled_at_most_and_an_attacker_behind_them_banned() {
    let scene = Scene::build(|plan| {
        plan.jail("path-traversal", "ban_time = \"1h\"");
        // Whoever is throttled goes on as before, and is refused often.
        plan.jail("too-many-requests", "max_offences = 3\nfind_time = \"10m\"");
    });
    let office = Host::Office.address();
    for site in ["cross-site", "same-site"] {
        let image = scene.call(CLIMB).header(MARK, site).header("Sec-Fetch-Dest", "image");
        assert_eq!(scene.send(Host::Office, &image).unwrap().status, 400);
    }
    let told = scene.wait_visitor(office);
    assert_eq!(told.jail, "path-traversal");
    assert!(scene.bans().is_empty(), "it is no ban");
    let why = scene.say(&["why", &office.to_string()]);
    for told in [": throttled", "cross-site: foreign pages may have asked", "path-traversal", "etc/passwd"] {
        assert!(why.contains(told), "{told:?} is missing: {why}");
    }
    let status = scene.say(&["bans", "status"]);
    assert!(status.contains("1 throttled, no bans: cross-site"), "{status}");

    let answers: Vec<u16> = (0..20).map(|_| scene.get(Host::Office, "/quick").unwrap()).collect();
    let refused = answers.iter().filter(|status| **status == 429).count();
    assert!(refused > 5 && answers.contains(&200), "the throttle bites: {answers:?}");
    // So it does on the other listener.
    let plain = Curl::new(format!("http://{NAME}/")).at(scene.plain_door()).within(SOON);
    let answers: Vec<u16> = (0..5).map(|_| scene.send(Host::Office, &plain).unwrap().status).collect();
    assert!(answers.contains(&429), "{answers:?}");
    // Every tenth refusal counts: whoever asks again and again at once is banned for that.
    wait::until("the office is served", SOON, || {
        std::thread::sleep(Duration::from_millis(700));
        anyhow::ensure!(scene.get(Host::Office, "/quick")? == 200, "still throttled");
        Ok(())
    })
    .unwrap();
    assert_eq!(scene.ban_of(office), None, "its refusals are not held against it");
    assert!(!scene.in_kernel(office));

    // Somebody in that office attacks without a page's help.
    wait::until("nobody waits for the throttle", SOON, || {
        let _ = scene.get(Host::Office, CLIMB);
        anyhow::ensure!(scene.in_kernel(office), "not yet");
        Ok(())
    })
    .unwrap();
    let ban = scene.ban_of(office).unwrap();
    assert_eq!((ban.action.as_str(), ban.times, ban.reason.as_str()), ("ban", 1, ""));
    assert!(scene.is_ignored(Host::Office, scene.door()));
}

// RFC 9113, section 6.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const GO_AWAY: u8 = 7;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[a, b, c, kind, flags, 0, 0, 0, stream], payload].concat()
}

#[test]
fn what_no_browser_can_mark_throttles_at_most_and_an_attack_on_the_protocol_bans() {
    let scene = Scene::build(|plan| plan.jail("malformed", "max_offences = 2"));
    let plain = Curl::new(format!("http://{NAME}/.env")).at(scene.plain_door()).within(SOON);
    for _ in 0..2 {
        assert_eq!(scene.send(Host::Stranger, &plain).unwrap().status, 301);
    }
    scene.wait_visitor(Host::Stranger.address());
    let long = format!("/{}", "a".repeat(100_000));
    for _ in 0..2 {
        assert_eq!(scene.send(Host::Office, &scene.call(&long).arg("--http1.1")).unwrap().status, 414);
    }
    scene.wait_visitor(Host::Office.address());
    for _ in 0..2 {
        // A header block of 16 KiB (RFC 7541, section 5.1) shields nobody who then breaks the protocol.
        let block: Vec<u8> = [0x00, 0x01, b'x', 0x7f, 0xfb, 0x7e].into_iter().chain([b'~'; 16_378]).collect();
        let mut raw = scene.raw_h2(Host::Neighbour).unwrap();
        raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        raw.send(&frame(SETTINGS, 0, 0, &[])).unwrap();
        raw.send(&frame(HEADERS, END_HEADERS, 1, &block)).unwrap();
        raw.send(&frame(DATA, 0, 0, b"of no stream")).unwrap();
        raw.read_until(&[GO_AWAY, 0, 0, 0, 0, 0]);
        let mut raw = scene.raw(Host::Attacker, None).unwrap();
        raw.send(b"GET /\x01 HTTP/1.1\r\n\r\n").unwrap();
        raw.read_until(b" 400 ");
    }
    for host in [Host::Neighbour, Host::Attacker] {
        assert_eq!(scene.wait_ban(host.address()).action, "ban", "{host:?}");
    }
    for host in [Host::Stranger, Host::Office] {
        assert_eq!(scene.ban_of(host.address()), None, "{host:?}");
    }
}

#[test]
fn foreign_pages_count_as_any_or_as_none_where_the_settings_say_so() {
    for (setting, banned) in [("ban", true), ("ignore", false)] {
        let scene = Scene::build(|plan| plan.bans = format!("cross_site = \"{setting}\""));
        let image = scene.call(CLIMB).header(MARK, "cross-site");
        scene.attack_with(Host::Office, &image);
        scene.attack(Host::Attacker);
        assert_eq!(scene.wait_ban(Host::Attacker.address()).action, "ban");
        let office = scene.ban_of(Host::Office.address()).map(|ban| ban.action);
        assert_eq!(office.as_deref(), banned.then_some("ban"), "{setting}");
    }
}
