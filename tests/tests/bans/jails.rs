//! Jails that are held back: the brake, `off`, and penetration tests.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use edge::ban::words::{Answer as Word, LeaseLine, WouldLine};
use harness::crowd::Crowd;
use harness::netns::Host;
use harness::wait;

use crate::scene::{SOON, Scene, offence};

/// What the brake lets pass.
const LEAST: usize = 5;

#[test]
fn a_jail_that_would_ban_too_many_goes_log_only_and_says_so_until_it_is_released() {
    let scene = Scene::build(|plan| {
        let log = plan.folder.join("app.log");
        std::fs::write(&log, "").unwrap();
        plan.jail_of("app", &log, &format!("max_offences = 1\nban_time = \"1h\"\nbrake_least = {LEAST}"));
    });
    let mut log = OpenOptions::new().append(true).open(scene.path("app.log")).unwrap();
    let mut write = |third: u8| {
        let mut text = String::new();
        for last in 1..=30 {
            let _ = write!(text, "{}", offence(format!("10.64.{third}.{last}")));
        }
        log.write_all(text.as_bytes()).unwrap();
    };
    write(1);
    scene.wait_metric("edge_jail_log_only", |jails| jails > 0.5);
    let banned = scene.bans().len();
    assert!((1..=LEAST).contains(&banned), "{banned} banned");
    assert!(scene.say(&["status"]).contains("log-only after too many bans: app"));
    assert!(scene.edge.program.log().contains("jail app banned"), "{}", scene.edge.program.log_tail(10));
    assert!(scene.metric("edge_bans_excused_total") >= 1.0);
    // Other jails go on.
    scene.attack(Host::Attacker);
    scene.wait_ban(Host::Attacker.address());

    scene.say(&["bans", "release", "app"]);
    scene.wait_metric("edge_jail_log_only", |jails| jails < 0.5);
    write(2);
    wait::until("it bans again", SOON, || {
        let again = scene.bans().iter().any(|ban| ban.network.to_string().starts_with("10.64.2."));
        anyhow::ensure!(again, "nobody new");
        Ok(())
    })
    .unwrap();
}

#[test]
fn off_bans_nobody_survives_a_kill_and_arms_itself_again() {
    let mut scene = Scene::build(|plan| plan.jail("path-traversal", "ban_time = \"1h\""));
    scene.attack(Host::Stranger);
    scene.wait_in_kernel(Host::Stranger.address(), true);
    scene.say(&["bans", "off", "--for", "1h"]);
    let until = scene.summary().off_until.unwrap();
    scene.attack(Host::Attacker);
    scene.wait_metric("edge_bans_excused_total", |excused| excused > 0.5);
    assert!(scene.ban_of(Host::Attacker.address()).is_none());
    scene.assert_served(Host::Attacker);
    assert!(scene.is_ignored(Host::Stranger, scene.door()), "bans that stand go on");

    scene.edge.program.kill().unwrap();
    scene.restart_edge();
    assert_eq!(scene.summary().off_until, Some(until));
    assert!(scene.say(&["status"]).contains("OFF until"));
    scene.attack(Host::Attacker);
    scene.wait_metric("edge_bans_excused_total", |excused| excused > 0.5);
    scene.assert_served(Host::Attacker);

    scene.say(&["bans", "off", "--for", "2s"]);
    wait::until("it is armed", SOON, || {
        anyhow::ensure!(scene.summary().off_until.is_none(), "{:?}", scene.summary().off_until);
        Ok(())
    })
    .unwrap();
    scene.attack(Host::Attacker);
    scene.wait_ban(Host::Attacker.address());
    scene.wait_in_kernel(Host::Attacker.address(), true);
}

fn leases(scene: &Scene) -> Vec<LeaseLine> {
    match scene.ask(&["pentest", "status"]) {
        Word::Leases { leases } => leases,
        other => panic!("{other:?}"),
    }
}

fn report(scene: &Scene) -> Vec<WouldLine> {
    match scene.ask(&["pentest", "report"]) {
        Word::Report { would, .. } => would,
        other => panic!("{other:?}"),
    }
}

fn connections_that_stand(scene: &Scene, host: Host) -> usize {
    let crowd = Crowd::open(&scene.lab, host, None, scene.door(), 60, SOON).unwrap();
    // Those that the kernel resets, it resets when the handshake is over.
    let mut calm = 0;
    let mut alive = crowd.alive();
    let _ = wait::until("they stay as they are", Duration::from_secs(5), || {
        calm = if crowd.alive() == alive { calm + 1 } else { 0 };
        alive = crowd.alive();
        anyhow::ensure!(calm > 20, "they come and go");
        Ok(())
    });
    alive
}

#[test]
fn a_tester_with_permission_is_never_banned_nor_limited_and_all_others_are() {
    let mut scene = Scene::build(|plan| {
        plan.jail("path-traversal", "ban_time = \"1h\"");
        plan.sections.push_str("[throttle]\nrate = 10\nburst = 10\n");
    });
    let tester = Host::Tester.address();
    scene.attack(Host::Tester);
    scene.wait_in_kernel(tester, true);
    scene.say(&["pentest", "start", "--network", "10.77.3.1", "--for", "1h", "--ticket", "T-1"]);
    assert!(!scene.in_kernel(tester), "its ban ends when the test begins");
    let attacked = |scene: &Scene, times: usize| {
        scene.attack(Host::Tester);
        wait::until("it is noted", SOON, || {
            let noted = report(scene);
            anyhow::ensure!(noted.len() >= times, "{} noted", noted.len());
            Ok(noted)
        })
        .unwrap()
    };
    let noted = attacked(&scene, 1);
    let first = noted.first().unwrap();
    assert_eq!((first.jail.as_str(), first.network.addr()), ("path-traversal", tester));
    assert!(first.line.contains("etc/passwd"), "{first:?}");
    assert!(scene.ban_of(tester).is_none());
    let call = scene.call("/quick").http1();
    let outcomes = scene.lab.inside(Host::Tester, || call.crowd(40)).unwrap().unwrap();
    assert!(outcomes.iter().all(|outcome| outcome.status == 200), "no rate for it: {outcomes:?}");
    assert_eq!(connections_that_stand(&scene, Host::Tester), 60, "no limit of the kernel for it");
    assert_eq!(connections_that_stand(&scene, Host::Stranger), 50, "others have theirs");
    scene.attack(Host::Attacker);
    scene.wait_in_kernel(Host::Attacker.address(), true);

    // The permission outlives both programs.
    scene.edge.program.kill().unwrap();
    scene.restart_edge();
    scene.wait_kernel(true);
    let before = report(&scene).len();
    attacked(&scene, before + 1);
    assert!(scene.ban_of(tester).is_none());
    scene.assert_served(Host::Tester);
    assert_eq!(connections_that_stand(&scene, Host::Tester), 60);
    scene.kill_helper();
    scene.restart_helper();
    scene.wait_kernel(true);
    assert_eq!(connections_that_stand(&scene, Host::Tester), 60);
    assert!(scene.say(&["why", "10.77.3.1"]).contains("T-1"));

    scene.say(&["pentest", "stop"]);
    assert!(leases(&scene).iter().all(|lease| lease.ended.is_some()));
    scene.attack(Host::Tester);
    scene.wait_in_kernel(tester, true);
}

#[test]
fn a_penetration_test_ends_by_itself_and_its_tester_is_a_client_like_any_other() {
    let scene = Scene::build(|plan| plan.jail("path-traversal", "ban_time = \"1h\""));
    scene.say(&["pentest", "start", "--network", "10.77.3.0/24", "--for", "3s", "--ticket", "T-2"]);
    wait::until("it is over", SOON, || {
        anyhow::ensure!(leases(&scene).iter().all(|lease| lease.ended.is_some()), "it is not");
        Ok(())
    })
    .unwrap();
    scene.attack(Host::Tester);
    let tester: IpAddr = Host::Tester.address();
    scene.wait_ban(tester);
    scene.wait_in_kernel(tester, true);
    let text = scene.say(&["pentest", "report", "--ticket", "T-2"]);
    assert!(text.contains("0 bans would have been made"), "{text}");
    let again = ["pentest", "start", "--network", "10.77.3.1", "--for", "1h", "--ticket", "T-2"];
    assert_eq!(scene.command(&again).code, Some(1), "one ticket, one test");
}
