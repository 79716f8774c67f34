//! Stories of a vault pair whose file servers are two SFTP servers.
#![expect(clippy::unwrap_used, reason = "a story's own steps fail the story when they fail")]

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use harness::cluster::temporary_folder;
use harness::program::{Program, Recipe};
use harness::sftp_pair::SftpPair;
use harness::sftp_server::SftpServer;
use harness::vault_host::{FILE_SERVERS, Holder, Pair, PairPlan, Vault};
use harness::wait;
use shared::api::File;

const SOON: Duration = Duration::from_secs(60);

fn servers(folder: &Path) -> [SftpServer; 2] {
    FILE_SERVERS
        .map(|name| SftpServer::start(&folder.join(format!("sshd-{name}")), &folder.join(name)).unwrap())
}

fn plan(servers: &[SftpServer; 2]) -> PairPlan {
    PairPlan {
        file_servers: [servers[0].config().unwrap(), servers[1].config().unwrap()],
        storage: "file_server_timeout = \"3s\"\n".to_owned(),
        ..PairPlan::default()
    }
}

fn upload(vault: &Vault, holder: &Holder, key: &str, body: &[u8]) -> String {
    let mut id = String::new();
    // A vault that has not noticed yet that a server is back says 503, and repeat with the same key.
    wait::until("the upload is kept", SOON, || {
        let answer = vault.call(holder, "/v1/files").key(key).body(body).send()?.expect(&[200, 201])?;
        id = serde_json::from_slice::<File>(&answer.body)?.id;
        Ok(())
    })
    .unwrap();
    id
}

fn two_replicas(pair: &Pair, id: &str) {
    wait::until("two replicas", SOON, || {
        let found = pair.replicas_of(id)?;
        anyhow::ensure!(found.len() == 2, "{found:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn files_are_kept_on_two_sftp_servers_through_the_end_and_the_silence_of_either() {
    let folder = temporary_folder().unwrap();
    let mut servers = servers(folder.path());
    let pair = Pair::start(folder.path(), &plan(&servers)).unwrap();
    let erp = pair.enrol("edge", "erp", "www1").unwrap();
    let [first, second] = &pair.vaults;
    let body = b"kept on two servers ".repeat(50_000);
    let before = upload(first, &erp, "before", &body);
    two_replicas(&pair, &before);

    servers[0].kill().unwrap();
    let without = upload(first, &erp, "without-the-first", &[&body[..], b"1"].concat());
    servers[0].start_again().unwrap();
    two_replicas(&pair, &without);

    servers[1].freeze().unwrap();
    let silent = upload(second, &erp, "while-the-second-is-silent", &[&body[..], b"2"].concat());
    servers[1].thaw().unwrap();
    two_replicas(&pair, &silent);

    for vault in [first, second] {
        for id in [&before, &without, &silent] {
            let path = format!("/v1/files/{id}");
            let answer = vault.call(&erp, &path).send().unwrap().expect(&[200]).unwrap();
            assert!(answer.body.starts_with(&body), "{} reads {id}", vault.name);
        }
    }
    assert!(pair.replicas_with(b"kept on two servers").unwrap().is_empty(), "nothing lies there in clear");
}

#[test]
fn check_says_what_is_wrong_with_an_sftp_server() {
    let folder = temporary_folder().unwrap();
    let servers = servers(folder.path());
    let pair = Pair::start(folder.path(), &plan(&servers)).unwrap();
    let said = pair.vaults[0].command(&["check"]);
    assert!(said.is_ok(), "{said:?}");
    std::fs::write(folder.path().join("sshd-paris/known_hosts"), "").unwrap();
    let said = format!("{:?}", pair.vaults[0].command(&["check"]).unwrap_err());
    assert!(said.contains("file server paris") && said.contains("ssh-keyscan"), "{said}");
}

#[test]
fn a_server_that_is_not_openssh_keeps_files_as_well_and_both_heal_each_other() {
    let start = |folder: &Path, place: &Path| {
        let other = place.ends_with(FILE_SERVERS[1]);
        if other { SftpServer::start_proftpd(folder, place) } else { SftpServer::start(folder, place) }
    };
    let mut house = SftpPair::start_with(PairPlan::default(), start).unwrap();
    let mut receipts: Vec<_> = (1..8).map(|seed| house.upload(0, seed, 400_000).unwrap()).collect();
    house.settled(&receipts).unwrap();
    for victim in [1, 0] {
        house.servers[victim].kill().unwrap();
        for seed in 10..14 {
            receipts.push(house.upload(victim, seed + 10 * victim as u64, 400_000).unwrap());
        }
        house.servers[victim].start_again().unwrap();
        house.settled(&receipts).unwrap();
        let replica = house.servers[victim].replica(&receipts[victim].id);
        let sound = std::fs::read(&replica).unwrap();
        std::fs::write(&replica, &sound[..sound.len() - 1]).unwrap();
        let [first, second] = &house.pair.vaults;
        for vault in [first, second] {
            vault.command(&["file", "scrub"]).unwrap();
        }
        wait::until("the rot is found and healed", SOON, || {
            anyhow::ensure!(std::fs::read(&replica)? == sound);
            Ok(())
        })
        .unwrap();
    }
    house.settled(&receipts).unwrap();
    house.read_back(&receipts).unwrap();
}

/// An agent for both vaults, which lie below `folder`.
struct Agent {
    socket: std::path::PathBuf,
    program: Program,
}

impl Agent {
    fn start(folder: &Path) -> Self {
        let socket = folder.join("agent.sock");
        // A former one that was killed leaves its socket.
        let _ = std::fs::remove_file(&socket);
        let words: [OsString; 3] = ["-D".into(), "-a".into(), socket.clone().into()];
        let program =
            Program::start(Recipe::new("agent", "/usr/bin/ssh-agent".into(), words, folder)).unwrap();
        wait::until("the agent listens", SOON, || Ok(std::os::unix::net::UnixStream::connect(&socket)?))
            .unwrap();
        Self { socket, program }
    }

    fn take(&self, key: &Path) {
        let added = Command::new("ssh-add").arg("-q").arg(key).env("SSH_AUTH_SOCK", &self.socket).status();
        assert!(added.unwrap().success());
    }

    /// What runs in front of a vault that asks it.
    fn wrapper(vault: &Path) -> Vec<OsString> {
        let socket = vault.with_file_name("agent.sock");
        vec!["env".into(), format!("SSH_AUTH_SOCK={}", socket.display()).into()]
    }
}

#[test]
fn a_vault_logs_in_with_the_keys_of_an_agent_and_waits_for_it_when_it_is_away() {
    let agent = std::cell::OnceCell::new();
    let start = |folder: &Path, place: &Path| {
        let server = SftpServer::start(folder, place)?.with_key_in_agent();
        agent.get_or_init(|| Agent::start(place.parent().unwrap())).take(&server.user_key());
        Ok(server)
    };
    let plan = PairPlan { wrapper: Some(Agent::wrapper), ..PairPlan::default() };
    let mut house = SftpPair::start_with(plan, start).unwrap();
    let mut receipts = vec![house.upload(0, 1, 300_000).unwrap()];
    house.settled(&receipts).unwrap();

    let mut agent = agent.into_inner().unwrap();
    agent.program.kill().unwrap();
    let vault = house.pair.vaults[0].program().unwrap();
    vault.terminate().unwrap();
    vault.restart().unwrap();
    for server in [0, 1] {
        wait::until("the reason is told", SOON, || {
            let told = house.server_status(0, server)?;
            let why = told["last_error"].as_str().unwrap_or_default();
            anyhow::ensure!(told["up"] == false && why.contains("agent"), "{told}");
            Ok(())
        })
        .unwrap();
    }
    // Who is logged in stays so.
    receipts.push(house.upload(1, 2, 300_000).unwrap());
    let agent = Agent::start(house.folder.path());
    house.servers.iter().for_each(|server| agent.take(&server.user_key()));
    receipts.push(house.upload(0, 3, 300_000).unwrap());
    house.settled(&receipts).unwrap();
    house.read_back(&receipts).unwrap();
}
