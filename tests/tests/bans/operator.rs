//! What an operator tries before it is in force, and what comes along from fail2ban.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::IpAddr;
use std::process::Command;

use edge::firewall::message::Status;
use harness::binaries;
use harness::edge_host::{Edge, EdgePlan, NAME};
use harness::netns::Host;
use harness::program::run;

use crate::scene::{Scene, offence, stamp};

#[test]
fn a_replay_tells_what_a_new_configuration_would_have_done_and_to_how_many() {
    let folder = harness::cluster::temporary_folder().unwrap();
    let plan = |max_offences: u32| EdgePlan {
        upstreams: vec![("neighbour".to_owned(), vec!["127.0.0.1:9".to_owned()])],
        routes: format!("[[route]]\nhost = \"{NAME}\"\nupstream = \"neighbour\"\n"),
        bans: format!(
            "[bans]\nbuiltin = false\nnever = [\"10.64.1.4\"]\nfirewall = \"none\"\njails_folder = \"{}\"\n\
             [[jail]]\nname = \"path-traversal\"\nmax_offences = {max_offences}\n",
            folder.path().join("none").display()
        ),
        ..EdgePlan::default()
    };
    let present = Edge::write(&folder.path().join("present"), &plan(3)).unwrap().config;
    let new = Edge::write(&folder.path().join("new"), &plan(2)).unwrap().config;
    // 20 clients; the first three climb once, twice and three times, the fourth is on the list.
    let mut log = String::new();
    for client in 1..=20_u32 {
        let _ = writeln!(log, "10.64.1.{client} - - {} \"GET / HTTP/1.1\" 200 5 \"-\" \"-\"", stamp());
        for _ in 0..if client <= 3 {
            client
        } else if client == 4 {
            9
        } else {
            0
        } {
            log.push_str(&offence(format!("10.64.1.{client}")));
        }
    }
    let file = folder.path().join("access.log");
    std::fs::write(&file, log).unwrap();
    let words = |json: bool| {
        let mut words =
            vec!["--config".into(), new.clone().into_os_string(), "replay".into(), file.clone().into()];
        words.extend(["--present".into(), present.clone().into_os_string()]);
        words.extend(json.then(|| "--json".into()));
        run(&binaries::find("edge").unwrap(), &words).unwrap().well().unwrap()
    };
    let told: serde_json::Value = serde_json::from_str(&words(true)).unwrap();
    assert_eq!(told["clients"], 20);
    assert_eq!(told["only_new"], serde_json::json!(["10.64.1.2"]));
    assert_eq!(told["only_present"], serde_json::json!([]));
    assert_eq!((&told["new"]["clients_hit"], &told["present"]["clients_hit"]), (&2.into(), &1.into()));
    let text = words(false);
    for part in
        ["10.00 % of all", "5.00 % of all", "banned only by this one: 1", "10.64.1.2", "path-traversal 1x"]
    {
        assert!(text.contains(part), "{part:?} is missing: {text}");
    }
}

#[test]
fn what_fail2ban_had_comes_along_and_bans_from_its_log() {
    let mut scene = Scene::build(|plan| {
        let theirs = plan.folder.join("fail2ban");
        assert!(Command::new("cp").arg("-r").arg("/etc/fail2ban").arg(&theirs).status().unwrap().success());
        let log = plan.folder.join("nginx-access.log");
        std::fs::write(&log, "").unwrap();
        let local = format!(
            "[nginx-botsearch]\nenabled = true\nlogpath = {}\nmaxretry = 2\nbantime = 1h\nfindtime = 10m\n",
            log.display()
        );
        std::fs::write(theirs.join("jail.d/zz-story.local"), local).unwrap();
        std::fs::create_dir(plan.folder.join("jails.d")).unwrap();
        let output = plan.folder.join("jails.d/fail2ban.toml");
        let words =
            ["fail2ban".into(), "import".into(), theirs.into_os_string(), "--output".into(), output.into()];
        let told =
            run::<std::ffi::OsString>(&binaries::find("edge").unwrap(), &words).unwrap().well().unwrap();
        assert!(told.contains("nginx-botsearch"), "{told}");
    });
    let mut log = OpenOptions::new().append(true).open(scene.path("nginx-access.log")).unwrap();
    let client: IpAddr = "10.64.3.7".parse().unwrap();
    for page in ["phpmyadmin/scripts/setup.php", "wp-login.php"] {
        let line = format!("{client} - - {} \"GET /{page} HTTP/1.1\" 404 153 \"-\" \"-\"\n", stamp());
        log.write_all(line.as_bytes()).unwrap();
    }
    let ban = scene.wait_ban(client);
    assert_eq!((ban.jail.as_str(), ban.until - ban.since), ("nginx-botsearch", 3600));
    scene.wait_in_kernel(client, true);
    let listed = scene.say(&["bans", "jails"]);
    let (_, jail) = listed.split_once("nginx-botsearch ").unwrap_or_else(|| panic!("{listed}"));
    assert!(jail.trim_start().starts_with("ban      offences 2, bans 1, in force 1\n"), "{listed}");
    assert!(jail.contains("nginx-access.log: followed"), "{listed}");
    // edge's own ports are free then.
    scene.edge.program.terminate().unwrap();
    let check = scene.command(&["check"]);
    assert_eq!(check.code, Some(0), "{} {}", check.out, check.err);
    assert!(scene.in_kernel(client));
}

#[test]
fn rules_changed_by_hand_are_told_and_rules_removed_by_hand_come_back_with_their_bans() {
    let scene = Scene::build(|plan| plan.jail("path-traversal", "ban_time = \"1h\""));
    scene.attack(Host::Attacker);
    scene.wait_in_kernel(Host::Attacker.address(), true);
    let file = scene.path("firewall/firewall.toml").display().to_string();
    let status = || scene.command(&["firewall", "status", "--firewall-config", &file, "--json"]);
    let good = status();
    assert_eq!(good.code, Some(0), "{} {}", good.out, good.err);
    let told: Status = serde_json::from_str(&good.out).unwrap();
    assert!(told.loaded && told.drift.is_empty() && told.bans == 1, "{told:?}");

    let nft = |words: &[&str]| {
        assert!(scene.lab.command(Host::Edge, "nft").args(words).status().unwrap().success(), "{words:?}");
    };
    nft(&["insert", "rule", "inet", "edge", "input", "tcp", "dport", "23", "accept"]);
    let drifted = status();
    assert_eq!(drifted.code, Some(1));
    assert!(!serde_json::from_str::<Status>(&drifted.out).unwrap().drift.is_empty());
    scene.wait_metric("edge_firewall_drift", |drift| drift > 0.5);
    assert!(scene.say(&["status"]).contains("CHANGED BY HAND: `edge firewall status` says where"));
    scene.assert_served(Host::Office);

    nft(&["flush", "ruleset"]);
    scene.wait_in_kernel(Host::Attacker.address(), true);
    assert!(scene.is_ignored(Host::Attacker, scene.door()));
    scene.assert_served(Host::Office);
    assert_eq!(status().code, Some(0), "as configured again");
    scene.wait_metric("edge_firewall_drift", |drift| drift < 0.5);
    assert!(scene.say(&["status"]).contains("kernel: drops what is banned"));
}

#[test]
fn a_kernel_without_rules_is_said_to_drop_nobody_and_gets_its_bans_with_the_rules() {
    let scene = Scene::build(|plan| plan.jail("path-traversal", "ban_time = \"1h\""));
    let (attacker, stranger) = (Host::Attacker.address(), Host::Stranger.address());
    scene.attack(Host::Attacker);
    scene.wait_in_kernel(attacker, true);
    let file = scene.path("firewall/firewall.toml").display().to_string();
    scene.say(&["firewall", "remove", "--firewall-config", &file]);
    scene.wait_kernel(false);
    for words in [&["status"][..], &["bans", "status"]] {
        let told = scene.say(words);
        assert!(told.contains("kernel: no rules are loaded") && !told.contains("kernel: drops"), "{told}");
    }
    scene.say(&["bans", "add", &stranger.to_string(), "--for", "1h"]);
    scene.say(&["bans", "remove", &attacker.to_string()]);
    assert!(scene.say(&["why", &stranger.to_string()]).contains("kernel: no rules are loaded"));

    scene.say(&["firewall", "apply", "--no-confirm", "--firewall-config", &file]);
    scene.wait_kernel(true);
    scene.wait_in_kernel(stranger, true);
    scene.wait_in_kernel(attacker, false);
    assert!(scene.say(&["status"]).contains("kernel: drops what is banned"));
    let log = scene.edge.program.log_tail(10_000);
    assert_eq!(log.matches("bans: kernel: no rules are loaded").count(), 1, "once, not each second: {log}");
}
