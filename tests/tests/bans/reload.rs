//! Jails that change while edge serves.

use std::io::Write as _;
use std::net::IpAddr;

use harness::netns::Host;
use harness::program::Signal;
use harness::wait;

use crate::scene::{SOON, Scene, offence};

/// HUP, and what edge's log says about it sooner or later.
fn reload(scene: &Scene, told: &str) {
    let before = scene.edge.program.log().matches(told).count();
    scene.edge.program.signal(Signal::HUP).unwrap();
    wait::until(told, SOON, || {
        let now = scene.edge.program.log();
        anyhow::ensure!(now.matches(told).count() > before, "{}", scene.edge.program.log_tail(10));
        Ok(())
    })
    .unwrap();
}

#[test]
fn new_jails_hold_after_hup_and_broken_ones_change_nothing() {
    let mut scene = Scene::build(|plan| {
        std::fs::create_dir(plan.folder.join("jails.d")).unwrap();
        plan.jail("path-traversal", "ban_time = \"1h\"");
    });
    let pid = scene.edge.program.pid();
    scene.attack(Host::Stranger);
    scene.wait_in_kernel(Host::Stranger.address(), true);

    let (jails, log) = (scene.path("jails.d/app.toml"), scene.path("app.log"));
    std::fs::write(&log, "").unwrap();
    let new = |pattern: &str| {
        format!(
            "[[filter]]\nname = \"app\"\nfailregex = ['{pattern}']\n[[jail]]\nname = \"app\"\nfilter = \"app\"\n\
             max_offences = 1\nlogs = [\"{}\"]\n",
            log.display()
        )
    };
    std::fs::write(&jails, new("^<HOST> .*etc/passwd")).unwrap();
    reload(&scene, "jails are in force");
    let client = |last: u8| IpAddr::from([10, 64, 9, last]);
    let mut lines = std::fs::OpenOptions::new().append(true).open(&log).unwrap();
    lines.write_all(offence(client(1)).as_bytes()).unwrap();
    assert_eq!(scene.wait_ban(client(1)).jail, "app");
    scene.wait_in_kernel(client(1), true);
    assert!(scene.in_kernel(Host::Stranger.address()), "what stood, stands");

    // One that cannot be used is told with its place, and the ones of before go on.
    std::fs::write(&jails, new("^<HOST> (")).unwrap();
    reload(&scene, "app.toml:3:14: ");
    assert!(scene.edge.program.log().contains("the jails of before go on"));
    lines.write_all(offence(client(2)).as_bytes()).unwrap();
    assert_eq!(scene.wait_ban(client(2)).jail, "app");
    std::fs::write(&jails, "[[jail]]\nname = \"app\"\nfilter = \"nowhere\"\n").unwrap();
    reload(&scene, "app.toml:3:10: ");

    // Without it, its bans last as they were given; who comes next is banned by the others.
    std::fs::remove_file(&jails).unwrap();
    let text = std::fs::read_to_string(&scene.edge.config).unwrap();
    std::fs::write(&scene.edge.config, text.replace("[bans]\n", "[bans]\nqueue = 1000\n")).unwrap();
    reload(&scene, "bans.queue has changed and needs a restart");
    lines.write_all(offence(client(3)).as_bytes()).unwrap();
    scene.attack(Host::Attacker);
    scene.wait_in_kernel(Host::Attacker.address(), true);
    assert!(scene.ban_of(client(1)).is_some() && scene.ban_of(client(3)).is_none());
    assert_eq!((scene.edge.program.is_running(), scene.edge.program.pid()), (true, pid));
}
