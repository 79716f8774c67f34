//! The firewall as clients, operators and edge meet it: real rules in real kernels' namespaces, the
//! real helper, real connections. Each story has namespaces of its own and needs root.
#![expect(clippy::unwrap_used, reason = "a story's own steps fail the story when they fail")]
#![expect(clippy::disallowed_methods, reason = "stories wait for real time to pass")]

#[path = "../src/firewall/contract.rs"]
mod contract;
#[path = "firewall/host.rs"]
mod host;

use std::time::{Duration, Instant};

use edge::firewall::message::{Answer, Question};
use edge::firewall::{Ban, Firewall, FirewallError, Reason, Refusal, State};
use host::{ADMIN, ALLOWED, ATTACKER, HOST, Host, OFFICE, PROXY, SIX, ban};
use ipnet::IpNet;

fn apply(host: &Host, confirm: Option<u32>, ssh: Option<&str>) -> Answer {
    host.ask(Question::Apply { confirm, ssh: ssh.map(str::to_owned) })
}

fn confirm(host: &Host, ssh: Option<&str>) -> Answer {
    host.ask(Question::Confirm { ssh: ssh.map(str::to_owned) })
}

fn failed(answer: Answer) -> String {
    match answer {
        Answer::Failed(why) => why,
        other => panic!("{other:?}"),
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn only_the_public_ports_are_open_and_administration_to_administrators() {
    let mut host = Host::start("");
    assert_eq!(host.connect(OFFICE, 80, 1), "ok=1");
    assert_eq!(host.connect(OFFICE, 443, 1), "ok=1");
    assert_eq!(host.connect(OFFICE, 8443, 1), "silent=1", "direct calls are dropped");
    assert_eq!(host.connect(OFFICE, 8080, 1), "silent=1");
    assert_eq!(host.connect(OFFICE, 22, 1), "silent=1");
    assert_eq!(host.connect(ADMIN, 22, 1), "ok=1");
    assert!(host.counter("c_admin") >= 1);
    // Every address of the host is a door, not only the first.
    host.inside(&["ip", "address", "add", "10.9.0.2/16", "dev", "in"]);
    assert_eq!(host.connect_to(OFFICE, "10.9.0.2", 443, 1), "ok=1");
    // IPv6 neighbours find each other although all else is dropped.
    assert_eq!(host.connect(SIX[0], 443, 1), "ok=1");
    assert_eq!(host.connect(SIX[0], 22, 1), "silent=1");
    let neighbours = host.outside(&["ip", "-6", "neighbour", "show"]);
    assert!(neighbours.contains("fd00:9:0:ff00::1"), "{neighbours}");
    assert!(host.outside(&["hping3", "-q", "--icmp", "-c", "1", HOST]).contains(" 0% packet loss"));
    // A lease from a DHCP server passes, QUIC does not.
    let before = host.counter("c_policy");
    let send = |from: u16, to: u16| {
        format!(
            "import socket; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.bind(('{OFFICE}',{from})); s.sendto(b'x',('{HOST}',{to}))"
        )
    };
    host.outside(&["/usr/bin/python3", "-c", &send(67, 68)]);
    assert_eq!(host.counter("c_policy"), before);
    host.outside(&["/usr/bin/python3", "-c", &send(5000, 443)]);
    assert_eq!(host.counter("c_policy"), before + 1);
}

#[test]
fn each_client_has_fifty_connections_and_closed_ones_free_their_place() {
    let mut host = Host::start("");
    assert_eq!(host.connect(ATTACKER, 443, 60), "ok=50 reset=10");
    assert_eq!(host.connect(OFFICE, 443, 50), "ok=50", "others have their own");
    assert_eq!(host.connect(ATTACKER, 80, 1), "reset=1", "both doors count together");
    host.close(ATTACKER, 10);
    // The kernel sweeps some eight ended or refused connections with each new one.
    let mut again = 0;
    until("ten places are free again", || {
        again += usize::from(host.connect(ATTACKER, 443, 1) == "ok=1");
        again == 10
    });
    assert_eq!(host.connect(ATTACKER, 443, 5), "reset=5", "and no more than ten");
    let one_by_one = (0..60).filter(|_| host.connect(ADMIN, 443, 1) == "ok=1").count();
    assert_eq!(one_by_one, 50, "one after another as all at once");
    assert_eq!(host.connect(SIX[0], 443, 30), "ok=30");
    assert_eq!(host.connect(SIX[1], 443, 30), "ok=20 reset=10", "a /64 shares its fifty");
    assert_eq!(host.connect(SIX[2], 443, 10), "ok=10");
    assert_eq!(host.connect(PROXY, 443, 70), "ok=70", "a proxy carries many clients");
    assert_eq!(host.connect(ALLOWED, 443, 70), "ok=70");
    // Rules are loaded again: counts stay.
    assert!(matches!(apply(&host, None, None), Answer::Told(_)));
    assert_eq!(host.connect(ATTACKER, 443, 3), "reset=3");
    // A pentest lease lifts the limit for its network.
    assert_eq!(host.firewall().lift(&[ban("10.9.1.0/24", 60)]).unwrap(), []);
    assert_eq!(host.connect(ATTACKER, 443, 20), "ok=20");
    host.firewall().unlift(&["10.9.1.0/24".parse().unwrap()]).unwrap();
    assert_eq!(host.connect(ATTACKER, 443, 2), "reset=2");
}

#[test]
fn forged_handshakes_lock_nobody_out_and_fill_no_table() {
    let mut host = Host::start("[new_connections]\nper_second = 20\nburst = 60\n");
    // The office's gateway drops what it did not ask for, so no reset betrays the forger.
    let silent = "add table ip gateway; add chain ip gateway out { type filter hook output priority 0; }; \
                  add rule ip gateway out ip saddr 10.9.2.1 tcp flags & rst == rst drop";
    host.outside(&["nft", silent]);
    for flag in ["-S", "-A"] {
        host.outside(&[
            "timeout", "20", "hping3", "-q", "-a", OFFICE, flag, "-p", "443", "-i", "u200", "-c", "3000",
            HOST,
        ]);
    }
    let half_open = host.inside(&["ss", "-Htn", "state", "syn-recv"]).lines().count();
    assert!(half_open > 200, "the flood arrived: {half_open}");
    assert!(host.counter("c_handshake") > 2000);
    let tracked = host.inside(&["conntrack", "-C"]);
    assert!(
        tracked.lines().any(|line| line.trim().parse::<u32>().is_ok_and(|count| count < 50)),
        "{tracked}"
    );
    host.outside(&["nft", "delete table ip gateway"]);
    assert_eq!(host.counter("c_rate"), 0);
    assert_eq!(host.connect(OFFICE, 443, 50), "ok=50");
    // A client that really connects too often waits.
    for _ in 0..4 {
        host.close(OFFICE, 40);
        host.connect(OFFICE, 443, 40);
    }
    assert!(host.counter("c_rate") > 0, "its further handshakes are dropped for a second");
}

#[test]
fn a_ban_stalls_open_connections_and_survives_reload_and_the_helper_s_death() {
    let mut host = Host::start("");
    let mut firewall = host.firewall();
    assert_eq!(host.connect(ATTACKER, 443, 1), "ok=1");
    assert_eq!(host.connect(OFFICE, 443, 1), "ok=1");
    assert_eq!(host.connect(SIX[0], 443, 1), "ok=1");
    let bans = [ban("10.9.1.1/32", 600), ban("10.9.2.0/25", 600), ban("fd00:9::/56", 600)];
    assert_eq!(firewall.ban(&bans).unwrap(), []);
    for source in [ATTACKER, OFFICE, SIX[0]] {
        assert_eq!(host.exchange(source), "silent", "{source}: what was open is stalled");
        assert_eq!(host.connect(source, 443, 1), "silent=1", "{source}: nothing new gets in");
    }
    assert_eq!(host.connect(ADMIN, 443, 1), "ok=1", "others are not concerned");
    assert!(matches!(apply(&host, None, None), Answer::Told(_)));
    assert_eq!(host.connect(ATTACKER, 443, 1), "silent=1", "reloaded rules keep bans");
    host.kill_helper();
    assert_eq!(host.connect(ATTACKER, 443, 1), "silent=1", "the helper's death ends no ban");
    assert!(firewall.ban(&[ban("10.9.9.9/32", 600)]).is_err());
    assert!(matches!(firewall.state(), State::Absent(_)));
    host.start_helper();
    until("edge finds the helper again", || firewall.list().is_ok());
    assert_eq!(firewall.list().unwrap().len(), 3);
    firewall.unban(&bans.map(|ban| ban.network)).unwrap();
    for source in [ATTACKER, OFFICE, SIX[0]] {
        assert_eq!(host.connect(source, 443, 1), "ok=1", "{source} is let in again");
    }
    // A new size makes the table anew; bans are carried over.
    assert_eq!(firewall.ban(&bans).unwrap(), []);
    host.write("[sizes]\nbans = 100\n");
    assert!(matches!(apply(&host, None, None), Answer::Told(_)));
    assert_eq!(firewall.list().unwrap().len(), 3);
    assert_eq!(host.connect(ATTACKER, 443, 1), "silent=1");
    // Somebody flushes everything: it is put back.
    host.inside(&["nft", "flush", "ruleset"]);
    until("the table comes back with its bans", || {
        host.status().loaded && firewall.list().is_ok_and(|bans| bans.len() == 3)
    });
    assert_eq!(host.connect(OFFICE, 22, 1), "silent=1");
}

#[test]
fn the_kernel_through_the_helper_keeps_the_contract() {
    let host = Host::start("");
    contract::holds(host.firewall().as_mut());
}

#[test]
fn a_full_set_evicts_the_soonest_to_expire() {
    let host = Host::start("[sizes]\nbans = 16\n");
    let mut firewall = host.firewall();
    let bans: Vec<_> = (1..=16).map(|n| ban(&format!("192.0.2.{n}/32"), 1000 - n)).collect();
    assert_eq!(firewall.ban(&bans).unwrap(), []);
    // One that the helper knows nothing of takes the last place it counts on.
    firewall.unban(&[bans[0].network]).unwrap();
    host.inside(&["nft", "add element inet edge ban4 { 198.51.100.1 timeout 2000s }"]);
    assert_eq!(firewall.ban(&[ban("192.0.2.100/32", 500), ban("192.0.2.101/32", 500)]).unwrap(), []);
    let listed: Vec<_> = firewall.list().unwrap().iter().map(|ban| ban.network.to_string()).collect();
    assert_eq!(listed.len(), 16, "{listed:?}");
    assert!(listed.contains(&"192.0.2.100/32".to_owned()) && !listed.contains(&"192.0.2.16/32".to_owned()));
    let status = host.status();
    assert!(status.figures.evicted >= 2);
    assert!(status.warnings.iter().any(|what| what.contains("set ban4 holds 16 of 16")), "{status:?}");
}

#[test]
fn who_is_protected_cannot_be_banned_and_a_ban_has_bounds() {
    let host = Host::start("longest_ban = \"1h\"\n");
    let mut firewall = host.firewall();
    std::thread::sleep(Duration::from_millis(100));
    let protected = [
        ban("10.9.5.1/32", 60),
        ban("10.9.5.0/24", 60),
        ban("10.9.4.1/32", 60),
        ban("10.9.3.77/32", 60),
        ban("10.9.6.1/32", 60),
        // The host's own, loopback, and link-local neighbours.
        ban("10.9.0.1/32", 60),
        ban("fd00:9:0:ff00::/64", 60),
        ban("127.0.0.1/32", 60),
        ban("fe80::/64", 60),
    ];
    let refused: Vec<_> =
        protected.iter().map(|ban| Refusal { network: ban.network, reason: Reason::Protected }).collect();
    assert_eq!(firewall.ban(&protected).unwrap(), refused);
    let long = ban("192.0.2.1/32", 3601);
    assert_eq!(
        firewall.ban(&[long, ban("192.0.2.1/32", 3600)]).unwrap(),
        [Refusal { network: long.network, reason: Reason::Time }]
    );
    assert_eq!(firewall.list().unwrap().len(), 1);
}

#[test]
fn another_user_is_refused_and_edge_s_user_may_not_touch_the_rules() {
    let mut host = Host::start("");
    let as_user = |host: &Host, uid: &str, kind: u8| {
        let socket = host.socket().display().to_string();
        let script = format!(
            "import socket\ns=socket.socket(socket.AF_UNIX)\ns.connect({socket:?})\n\
             try: s.sendall(bytes([0,0,0,1,{kind}]))\nexcept OSError: pass\nprint(s.recv(4096))"
        );
        host.inside(&["setpriv", "--reuid", uid, "--clear-groups", "/usr/bin/python3", "-c", &script])
    };
    assert!(as_user(&host, "65533", 3).contains("user 65533 may not ask"));
    let text = std::fs::read_to_string(host.file()).unwrap().replace("\"webapps\"", "\"65533\"");
    std::fs::write(host.file(), text).unwrap();
    host.kill_helper();
    host.start_helper();
    assert!(as_user(&host, "65533", 3).contains("\\x02"), "it may list bans");
    assert!(as_user(&host, "65533", 11).contains("only root may"), "it may not see the rules");
    assert!(as_user(&host, "65533", 12).contains("only root may"), "and not remove them");
    assert!(host.status().loaded);
}

#[test]
fn drift_is_told_by_its_place() {
    let host = Host::start("");
    assert_eq!(host.status().drift, Vec::<String>::new());
    host.firewall().ban(&[ban("10.9.1.1/32", 600)]).unwrap();
    assert_eq!(host.status().drift, Vec::<String>::new(), "bans are no drift");
    host.inside(&["nft", "insert rule inet edge input tcp dport 22 accept"]);
    host.inside(&["nft", "add element inet edge allow4 { 10.9.1.1 }"]);
    host.inside(&["nft", "add chain inet edge own"]);
    assert_eq!(
        host.status().drift,
        ["chain input: 1 more, at rule 1", "set allow4 differs from what was loaded", "chain own is new"]
    );
    host.write("max_connections = 60\n");
    assert!(host.status().warnings.iter().any(|what| what.contains("changed since the rules were loaded")));
}

#[test]
fn without_rules_a_ban_is_refused_as_such_and_the_state_says_so() {
    let host = Host::start("");
    let mut firewall = host.firewall();
    assert_eq!(firewall.state(), State::Works);
    assert_eq!(firewall.ban(&[ban("10.9.1.1/32", 600)]).unwrap(), []);
    assert!(matches!(host.ask(Question::Remove), Answer::Told(_)));
    assert_eq!(firewall.state(), State::NoRules, "the helper answers, the kernel drops nobody");
    let refused = firewall.ban(&[ban("10.9.2.1/32", 600)]).unwrap_err();
    assert!(matches!(refused, FirewallError::NoRules), "{refused}");
    assert!(matches!(firewall.list().unwrap_err(), FirewallError::NoRules));
    assert!(matches!(firewall.clear().unwrap_err(), FirewallError::NoRules));
    assert!(matches!(apply(&host, None, None), Answer::Told(_)));
    assert_eq!(firewall.state(), State::Works);
    assert_eq!(firewall.ban(&[ban("10.9.2.1/32", 600)]).unwrap(), []);
    // A table of the same name that is not ours has no sets of bans: it is put back, too.
    host.inside(&["nft", "delete table inet edge; add table inet edge"]);
    until("the rules are back", || firewall.state() == State::Works);
    assert_eq!(firewall.list().unwrap().len(), 2);
}

#[test]
fn a_helper_that_never_had_rules_says_so() {
    let mut host = Host::start("");
    host.kill_helper();
    host.inside(&["nft", "flush", "ruleset"]);
    std::fs::remove_dir_all(host.folder.path().join("state")).unwrap();
    let text = std::fs::read_to_string(host.file()).unwrap().replace("[\"10.9.3.0/24\"]", "[]");
    std::fs::write(host.file(), text).unwrap();
    host.start_helper();
    assert_eq!(host.firewall().state(), State::NoRules);
}

#[test]
fn a_change_by_hand_is_noticed_without_being_asked() {
    let host = Host::start("");
    let mut firewall = host.firewall();
    let told = |what: &str| until(what, || host.log().contains(what));
    assert_eq!(firewall.ban(&[ban("10.9.1.1/32", 600), ban("10.9.7.0/24", 600)]).unwrap(), []);
    assert_eq!(firewall.lift(&[ban("10.9.8.0/24", 600)]).unwrap(), []);
    std::thread::sleep(Duration::from_millis(2_500));
    assert_eq!(firewall.state(), State::Works, "bans and leases are no change");
    // What opens or closes something, each in its own way.
    let changes = [
        ("insert rule inet edge input tcp dport 22 accept", "chain input: 1 more, at rule 1"),
        ("flush chain inet edge early", "chain early: "),
        ("add element inet edge allow4 { 10.9.1.1 }", "set allow4 differs"),
        ("chain inet edge input { policy accept; }", "chain input: its hook or policy differs"),
        ("add table inet edge { flags dormant; }", "table edge differs"),
    ];
    for (change, what) in changes {
        host.inside(&["nft", change]);
        until(change, || firewall.state() == State::Changed);
        told(what);
        assert_eq!(firewall.ban(&[ban("10.9.2.1/32", 600)]).unwrap(), [], "it takes bans all the same");
        assert!(matches!(apply(&host, None, None), Answer::Told(_)));
        until("as loaded", || firewall.state() == State::Works);
    }
    // Also where a list is gone that the look itself reads.
    host.inside(&["nft", "flush table inet edge; delete set inet edge allow4"]);
    until("no rule left", || firewall.state() == State::Changed);
    assert!(matches!(apply(&host, None, None), Answer::Told(_)));
    until("as loaded", || firewall.state() == State::Works);
    told("`edge firewall apply --confirm 60s` loads them as configured");
    // Where the hand undoes what it did, that is told, too.
    host.inside(&["nft", "add chain inet edge own"]);
    until("a chain", || firewall.state() == State::Changed);
    host.inside(&["nft", "delete chain inet edge own"]);
    until("no chain", || firewall.state() == State::Works);
    told("again as they were loaded");
}

#[test]
fn a_host_without_edge_s_user_is_told_how_to_make_it() {
    let mut host = Host::start("");
    let text = std::fs::read_to_string(host.file()).unwrap().replace("\"webapps\"", "\"no-such-user\"");
    std::fs::write(host.file(), text).unwrap();
    host.kill_helper();
    host.start_helper();
    let what = "write `useradd --system --no-create-home no-such-user`";
    assert!(host.log().contains(what), "{}", host.log());
    let status = host.status();
    assert!(status.loaded, "the rules wait for nobody");
    assert!(status.warnings.iter().any(|told| told.contains(what)), "{status:?}");
}

#[test]
fn a_state_folder_at_a_wrong_path_is_told_and_not_made() {
    let mut host = Host::start("");
    host.kill_helper();
    let wrong = host.folder.path().join("typo/state").display().to_string();
    let right = host.folder.path().join("state").display().to_string();
    let text = std::fs::read_to_string(host.file()).unwrap().replace(&right, &wrong);
    std::fs::write(host.file(), text).unwrap();
    let told = host.helper_fails();
    assert!(told.contains(&wrong) && told.contains("the folder it lies in must be there"), "{told}");
    assert!(!host.folder.path().join("typo").exists());
}

#[test]
fn rules_on_trial_are_kept_only_by_a_new_session() {
    let mut host = Host::start("");
    assert!(failed(confirm(&host, None)).contains("no rules are on trial"));
    let old = Some("10.9.3.1 50000 10.9.0.1 22");
    host.write("admin_ports = [22, 2222]\n");
    assert!(matches!(apply(&host, Some(60), old), Answer::Told(_)));
    assert!(host.status().on_trial_until.is_some());
    assert!(failed(apply(&host, Some(60), old)).contains("on trial"));
    assert!(failed(confirm(&host, old)).contains("the session that loaded the rules"));
    let new = Some("10.9.3.1 50001 10.9.0.1 22");
    assert!(failed(confirm(&host, new)).contains("no new connection of an administrator"));
    assert_eq!(host.connect(OFFICE, 22, 1), "silent=1");
    assert!(failed(confirm(&host, new)).contains("no new connection of an administrator"));
    assert_eq!(host.connect(ADMIN, 22, 1), "ok=1");
    assert!(matches!(confirm(&host, new), Answer::Told(_)));
    assert_eq!(host.status().on_trial_until, None);
    assert!(failed(host.ask(Question::Rollback)).contains("no rules are on trial"));
}

#[test]
fn an_unconfirmed_trial_is_rolled_back_even_over_kill_9() {
    let mut host = Host::start("");
    host.firewall().ban(&[ban("10.9.1.1/32", 600)]).unwrap();
    let wrong = "[https]\nport = 444\n";
    // It expires, long after silence was heard for the second that `connect` listens.
    host.write(wrong);
    assert!(matches!(apply(&host, Some(5), None), Answer::Told(_)));
    assert_eq!(host.connect(OFFICE, 443, 1), "silent=1");
    until("it is rolled back", || host.status().on_trial_until.is_none());
    assert_eq!(host.connect(OFFICE, 443, 1), "ok=1");
    // It expires while the helper is dead.
    assert!(matches!(apply(&host, Some(5), None), Answer::Told(_)));
    host.kill_helper();
    std::thread::sleep(Duration::from_millis(5_100));
    assert_eq!(host.connect(OFFICE, 443, 1), "silent=1");
    host.start_helper();
    assert_eq!(host.connect(OFFICE, 443, 1), "ok=1");
    // The helper dies and is back before the trial is over.
    assert!(matches!(apply(&host, Some(30), None), Answer::Told(_)));
    host.kill_helper();
    host.start_helper();
    assert!(host.status().on_trial_until.is_some(), "the trial goes on");
    assert_eq!(host.connect(OFFICE, 443, 1), "silent=1");
    assert!(matches!(host.ask(Question::Rollback), Answer::Told(_)));
    assert_eq!(host.connect(OFFICE, 443, 1), "ok=1");
    assert_eq!(host.firewall().list().unwrap().len(), 1, "bans outlive it all");
    // A boot: the kernel is empty, the file is still the unconfirmed one, the confirmed rules come.
    host.kill_helper();
    host.inside(&["nft", "flush", "ruleset"]);
    host.start_helper();
    assert_eq!(host.connect(OFFICE, 443, 1), "ok=1");
    assert_eq!(host.connect(OFFICE, 22, 1), "silent=1");
}

#[test]
fn killed_at_any_point_of_a_trial_it_comes_back_to_the_old_rules_with_every_ban() {
    let mut host = Host::start("");
    host.firewall().ban(&[ban("10.9.1.1/32", 600), ban("10.9.7.0/24", 600)]).unwrap();
    // The size makes the table anew, on the way there and back.
    host.write("[https]\nport = 444\n[sizes]\nbans = 5000\n");
    for delay in [0, 4, 8, 16, 24, 32, 48, 64, 96] {
        let socket = host.socket();
        let asking = std::thread::spawn(move || {
            let question = Question::Apply { confirm: Some(1), ssh: None };
            edge::firewall::ask(&socket, Duration::from_secs(5), question).is_ok()
        });
        std::thread::sleep(Duration::from_millis(delay));
        host.kill_helper();
        asking.join().unwrap();
        assert_eq!(host.connect(OFFICE, 22, 1), "silent=1", "after {delay} ms there are rules");
        host.start_helper();
        until("the trial is over", || host.status().on_trial_until.is_none());
        let status = host.status();
        assert_eq!((status.loaded, status.drift), (true, Vec::new()), "after {delay} ms");
        assert_eq!(host.firewall().list().unwrap().len(), 2, "after {delay} ms");
        assert_eq!(host.connect(OFFICE, 443, 1), "ok=1", "after {delay} ms");
        assert_eq!(host.connect(ATTACKER, 443, 1), "silent=1", "after {delay} ms");
    }
}

#[test]
fn nobody_locks_himself_out_and_removing_is_for_good() {
    let mut host = Host::start("");
    let text = std::fs::read_to_string(host.file()).unwrap().replace("[\"10.9.3.0/24\"]", "[]");
    std::fs::write(host.file(), text).unwrap();
    assert!(failed(apply(&host, Some(60), None)).contains("would lock you out"));
    assert_eq!(host.status().on_trial_until, None);
    host.write("max_conections = 1\n");
    assert!(failed(apply(&host, None, None)).contains("did you mean max_connections?"));
    assert!(host.status().loaded);
    host.write("[https]\nto = 8444\n");
    assert!(matches!(apply(&host, None, None), Answer::Told(_)));
    assert_eq!(host.connect(OFFICE, 443, 1), "refused=1", "a door without a listener says so");
    assert!(matches!(host.ask(Question::Remove), Answer::Told(_)));
    std::thread::sleep(Duration::from_millis(1_200));
    assert!(!host.status().loaded, "it is not taken for an accident");
    assert_eq!(host.connect(OFFICE, 8443, 1), "ok=1");
    let error = host.firewall().ban(&[ban("10.9.1.1/32", 60)]).unwrap_err();
    assert!(matches!(error, FirewallError::NoRules), "{error}");
}

#[test]
fn whatever_the_settings_nft_accepts_the_rules() {
    use edge::firewall::ruleset::{body, transaction, whole};
    use edge::firewall::settings::FirewallSettings;
    let host = Host::start("");
    let cases = [
        "",
        "admin_ports = []\n",
        "admin_networks = [\"10.0.0.0/8\", \"10.1.0.0/16\", \"2001:db8::/32\", \"2001:db8:1::/48\"]\n",
        "allow = [\"192.0.2.0/25\", \"192.0.2.128/25\", \"::1/128\"]\ntrusted_proxies = [\"192.0.2.7/32\"]\n",
        "max_connections = 1000000\n[new_connections]\nper_second = 1000000\nburst = 1000000\n",
        "admin_ports = [22, 22, 1]\n[sizes]\nbans = 16\nwide_bans = 16\nclients = 16\n[http]\nport = 1\nto = 2\n[https]\nport = 65535\nto = 65534\n",
    ];
    for case in cases {
        let case = case.replace("= [22, 22, 1]", "= [22, 22, 3]");
        let settings = FirewallSettings::parse(&host.file(), &case).unwrap();
        for text in [whole(&settings), transaction(&body(&settings), true)] {
            let file = host.folder.path().join("rules.nft");
            std::fs::write(&file, text).unwrap();
            host.inside(&["nft", "-c", "-f", file.to_str().unwrap()]);
        }
    }
}

#[test]
fn bans_are_fast() {
    let host = Host::start("");
    let mut firewall = host.firewall();
    let address = |n: u32| IpNet::new(std::net::Ipv4Addr::from(0x2000_0000 + n).into(), 32).unwrap();
    let ban = |n| Ban { network: address(n), remaining: Duration::from_secs(600) };
    let mut times: Vec<_> = (0..500)
        .map(|n| {
            let before = Instant::now();
            assert_eq!(firewall.ban(&[ban(n)]).unwrap(), []);
            before.elapsed()
        })
        .collect();
    times.sort();
    let bans: Vec<_> = (1_000..51_000).map(ban).collect();
    let before = Instant::now();
    assert_eq!(firewall.ban(&bans).unwrap(), []);
    let restored = before.elapsed();
    let before = Instant::now();
    assert_eq!(firewall.list().unwrap().len(), 50_500, "also while the kernel makes room for them");
    let listed = before.elapsed();
    firewall.unban(&bans.iter().map(|ban| ban.network).collect::<Vec<_>>()).unwrap();
    assert_eq!(firewall.list().unwrap().len(), 500);
    eprintln!("one ban: median {:?}; 50,000 bans: {restored:?}; listed: {listed:?}", times[250]);
    // Wide bounds: a busy builder must not fail the story, a process for each ban must.
    assert!(times[250] < Duration::from_millis(5), "{:?}", times[250]);
    assert!(restored < Duration::from_secs(10), "{restored:?}");
}
