//! Who can never be banned: by the engine's list, by the kernel's, by being this host itself.

use std::net::IpAddr;

use harness::netns::Host;
use harness::wait;

use crate::scene::{CLIMB, SOON, Scene};

/// A client behind the trusted proxy.
const BEHIND: &str = "203.0.113.9";

#[test]
fn an_attack_through_a_trusted_proxy_bans_the_client_named_there_and_never_the_proxy() {
    let proxy = Host::Neighbour;
    let scene = Scene::build(|plan| {
        plan.jail("path-traversal", "ban_time = \"1h\"");
        plan.clients = format!("trusted_proxies = [\"{}\"]\n", proxy.address());
        plan.firewall = format!("trusted_proxies = [\"{}\"]\n", proxy.address());
    });
    let behind = |client: &str, path: &str| scene.call(path).header("X-Forwarded-For", client);
    scene.attack_with(proxy, &behind(BEHIND, CLIMB));
    let ban = scene.wait_ban(BEHIND.parse().unwrap());
    assert_eq!(ban.jail, "path-traversal");
    let status = |client: &str| scene.send(proxy, &behind(client, "/quick")).unwrap().status;
    assert_eq!(status(BEHIND), 403);
    assert_eq!(status("203.0.113.10"), 200);
    assert!(scene.ban_of(proxy.address()).is_none());
    assert!(!scene.in_kernel(proxy.address()));

    // A proxy that attacks in its own name, or names itself or edge, bans nobody.
    scene.attack(proxy);
    for named in [proxy.address(), Host::Edge.address(), IpAddr::from([127, 0, 0, 1])] {
        scene.attack_with(proxy, &behind(&named.to_string(), CLIMB));
    }
    // What an untrusted client says of itself counts for nothing.
    scene.attack_with(Host::Attacker, &behind("10.77.2.4", CLIMB));
    scene.wait_in_kernel(Host::Attacker.address(), true);
    let mut banned: Vec<IpAddr> = scene.bans().iter().map(|ban| ban.network.addr()).collect();
    banned.sort();
    assert_eq!(banned, [Host::Attacker.address(), BEHIND.parse().unwrap()]);
    scene.assert_served(proxy);
    scene.assert_served(Host::Office);

    scene.say(&["bans", "remove", BEHIND]);
    assert_eq!(status(BEHIND), 200);
}

#[test]
fn whoever_is_on_a_list_of_either_program_is_never_banned() {
    let [by_engine, by_kernel, peer] = [Host::Stranger, Host::OtherNeighbour, Host::Neighbour];
    let scene = Scene::build(|plan| {
        plan.jail("path-traversal", "ban_time = \"1h\"");
        plan.bans = format!("never = [\"{}\"]\npeers = [\"{}\"]\n", by_engine.address(), peer.address());
        plan.firewall = format!("never_ban = [\"{}\"]\nallow = [\"10.77.2.0/24\"]\n", by_kernel.address());
    });
    // The engine knows nothing of the last three; the kernel's own list stands for them.
    for protected in [by_engine, peer, by_kernel, Host::Admin, Host::Office] {
        scene.attack(protected);
        scene.assert_served(protected);
        assert!(!scene.in_kernel(protected.address()), "{protected:?}");
    }
    wait::until("nobody is banned", SOON, || {
        anyhow::ensure!(scene.bans().is_empty(), "{:?}", scene.bans());
        Ok(())
    })
    .unwrap();
    for protected in [by_engine, peer, by_kernel, Host::Admin] {
        let address = protected.address().to_string();
        let refused = scene.command(&["bans", "add", &address]);
        assert_eq!(refused.code, Some(1), "{protected:?}: {}", refused.out);
        assert!(!scene.in_kernel(protected.address()), "{protected:?}");
        scene.assert_served(protected);
    }
    // This host itself, its loopback and its gateway.
    for own in ["10.77.0.1", "127.0.0.1", "10.77.255.254", "fd77::1"] {
        let refused = scene.command(&["bans", "add", own]);
        assert_eq!(refused.code, Some(1), "{own}: {}", refused.out);
    }
    // A ban of a whole network that holds a protected address.
    let wide = scene.command(&["bans", "add", "10.77.6.0/24"]);
    assert_eq!(wide.code, Some(1), "{}", wide.out);
    scene.assert_served(by_engine);
    assert!(scene.say(&["why", "10.77.6.1"]).contains("can never be banned"));
    // And all others still are.
    scene.attack(Host::Attacker);
    scene.wait_in_kernel(Host::Attacker.address(), true);
}

#[test]
fn whoever_is_put_on_the_list_is_free_after_a_restart_in_the_kernel_too() {
    let mut scene = Scene::build(|plan| plan.jail("path-traversal", "ban_time = \"1h\""));
    let stranger = Host::Stranger.address();
    scene.attack(Host::Stranger);
    scene.attack(Host::Attacker);
    scene.wait_in_kernel(stranger, true);
    scene.wait_in_kernel(Host::Attacker.address(), true);
    scene.edge.program.terminate().unwrap();
    let text = std::fs::read_to_string(&scene.edge.config).unwrap();
    let listed = text.replace("[bans]\n", &format!("[bans]\nnever = [\"{stranger}\"]\n"));
    std::fs::write(&scene.edge.config, listed).unwrap();
    scene.restart_edge();
    scene.wait_in_kernel(stranger, false);
    scene.assert_served(Host::Stranger);
    assert!(scene.in_kernel(Host::Attacker.address()), "all others stay banned");
}

#[test]
fn the_vaults_of_the_gateway_are_never_banned() {
    let scene = Scene::build(|plan| {
        let at = |name: &str| plan.folder.join(name).display().to_string();
        let files: String = ["certificate", "key", "authority"]
            .map(|what| format!("{what}_file = \"{}\"\n", at(&format!("{what}.pem"))))
            .concat();
        plan.sections.push_str(&format!(
            "[gateway]\nlisten = \"unix:{}\"\ntickets = \"{}\"\n{files}[[gateway.vault]]\nname = \"vault-a\"\naddress = \"{}:7443\"\n",
            at("gateway.sock"),
            at("tickets.db"),
            Host::Stranger.address()
        ));
        harness::browser::Authority::new(&plan.folder, "vaults")
            .and_then(|authority| authority.issue(&plan.folder, "edge", &["edge-a"]))
            .and_then(|pair| {
                std::fs::copy(pair.certificate, at("certificate.pem"))?;
                std::fs::copy(pair.key, at("key.pem"))?;
                std::fs::copy(plan.folder.join("vaults.crt"), at("authority.pem"))?;
                Ok(())
            })
            .unwrap();
        plan.jail("path-traversal", "ban_time = \"1h\"");
    });
    scene.attack(Host::Stranger);
    scene.attack(Host::Attacker);
    scene.wait_in_kernel(Host::Attacker.address(), true);
    scene.assert_served(Host::Stranger);
    assert!(scene.ban_of(Host::Stranger.address()).is_none());
    assert_eq!(scene.command(&["bans", "add", "10.77.6.1"]).code, Some(1));
}
