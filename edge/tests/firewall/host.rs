//! A host with a firewall and its neighbours, in network namespaces of one story's own: starts and
//! removes them, asserts nothing about the firewall.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use edge::firewall::message::{Answer, Question, Status};
use edge::firewall::{Ban, Firewall, Kind, Settings, ask, open};
use tempfile::TempDir;

pub(crate) const HOST: &str = "10.9.0.1";
pub(crate) const HOST6: &str = "fd00:9:0:ff00::1";
pub(crate) const ATTACKER: &str = "10.9.1.1";
pub(crate) const OFFICE: &str = "10.9.2.1";
pub(crate) const ADMIN: &str = "10.9.3.1";
pub(crate) const PROXY: &str = "10.9.4.1";
pub(crate) const ALLOWED: &str = "10.9.5.1";
/// Two of one /64, and a third elsewhere.
pub(crate) const SIX: [&str; 3] = ["fd00:9:0:1::1", "fd00:9:0:1::2", "fd00:9:0:2::1"];

const FILE: &str = "admin_networks = [\"10.9.3.0/24\"]\nallow = [\"10.9.5.1/32\"]\n\
                    trusted_proxies = [\"10.9.4.1/32\"]\nnever_ban = [\"10.9.6.0/24\"]\nedge_user = \"webapps\"\n";

static NEXT: AtomicUsize = AtomicUsize::new(0);

pub(crate) struct Host {
    pub inside: String,
    pub outside: String,
    pub folder: TempDir,
    helper: Option<Child>,
    server: Child,
    clients: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Host {
    /// With the helper running and its rules loaded; `extra` is appended to the file.
    pub(crate) fn start(extra: &str) -> Self {
        assert!(
            rustix::process::getuid().is_root(),
            "these stories make network namespaces: run them as root"
        );
        let number = NEXT.fetch_add(1, Ordering::SeqCst);
        let name = |role: &str| format!("efw-{}-{number}-{role}", std::process::id());
        let (inside, outside) = (name("host"), name("net"));
        run("ip", &["netns", "add", &inside]);
        run("ip", &["netns", "add", &outside]);
        run(
            "ip",
            &[
                "link", "add", "out", "netns", &outside, "type", "veth", "peer", "name", "in", "netns",
                &inside,
            ],
        );
        for (space, device, addresses) in [
            (&inside, "in", vec![format!("{HOST}/16"), format!("{HOST6}/48")]),
            (
                &outside,
                "out",
                [ATTACKER, OFFICE, ADMIN, PROXY, ALLOWED]
                    .map(|address| format!("{address}/16"))
                    .into_iter()
                    .chain(SIX.map(|address| format!("{address}/48")))
                    .collect(),
            ),
        ] {
            for address in addresses {
                let mut arguments = vec!["-n", space, "address", "add", &address, "dev", device];
                if address.contains(':') {
                    arguments.push("nodad");
                }
                run("ip", &arguments);
            }
            run("ip", &["-n", space, "link", "set", device, "up"]);
            run("ip", &["-n", space, "link", "set", "lo", "up"]);
        }
        let mut server = python(&inside, include_str!("server.py"));
        let mut ready = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        assert_eq!(ready, "ready\n");
        let mut clients = python(&outside, include_str!("clients.py"));
        let (ask, answers) = (clients.stdin.take().unwrap(), BufReader::new(clients.stdout.take().unwrap()));
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut host = Self { inside, outside, folder, helper: None, server, clients, ask, answers };
        host.write(extra);
        host.start_helper();
        host
    }

    /// Replaces `firewall.toml`.
    pub(crate) fn write(&self, extra: &str) {
        let at = |name: &str| self.folder.path().join(name).display().to_string();
        let own = format!("socket = {:?}\nstate_folder = {:?}\n", at("helper.sock"), at("state"));
        std::fs::write(self.file(), format!("{FILE}{own}{extra}")).unwrap();
        std::fs::set_permissions(self.file(), std::fs::Permissions::from_mode(0o644)).unwrap();
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.folder.path().join("firewall.toml")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("helper.sock")
    }

    /// Starts it and waits until it has done what a start owes, and answers.
    pub(crate) fn start_helper(&mut self) {
        let log =
            std::fs::File::options().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.inside, env!("CARGO_BIN_EXE_edge-firewall"), "--config"]);
        self.helper = Some(command.arg(self.file()).arg("serve").stderr(log).spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(20);
        while !matches!(self.try_ask(Question::Status), Some(Answer::Status(_))) {
            assert!(Instant::now() < deadline, "the helper answers: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts it where it cannot run: what it says.
    pub(crate) fn helper_fails(&self) -> String {
        let words = ["30", "ip", "netns", "exec", &self.inside, env!("CARGO_BIN_EXE_edge-firewall")];
        let mut command = Command::new("timeout");
        let ended = command.args(words).arg("--config").arg(self.file()).arg("serve").output().unwrap();
        assert_eq!(ended.status.code(), Some(1));
        String::from_utf8_lossy(&ended.stderr).into_owned()
    }

    /// `kill -9`.
    pub(crate) fn kill_helper(&mut self) {
        let mut helper = self.helper.take().unwrap();
        helper.kill().unwrap();
        helper.wait().unwrap();
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn firewall(&self) -> Box<dyn Firewall> {
        open(&Settings { kind: Kind::Kernel, socket: self.socket(), timeout: Duration::from_secs(10) })
    }

    pub(crate) fn ask(&self, question: Question) -> Answer {
        self.try_ask(question).unwrap()
    }

    fn try_ask(&self, question: Question) -> Option<Answer> {
        ask(&self.socket(), Duration::from_secs(20), question).ok()
    }

    pub(crate) fn status(&self) -> Status {
        match self.ask(Question::Status) {
            Answer::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    /// What a named counter of the rules has seen.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        let counters = self.status().figures.counters;
        counters.iter().find(|counted| counted.counter == name).unwrap().packets
    }

    /// So many connections at once, held open: `"ok=50 reset=10"`.
    pub(crate) fn connect(&mut self, source: &str, port: u16, count: usize) -> String {
        let target = if source.contains(':') { HOST6 } else { HOST };
        self.connect_to(source, target, port, count)
    }

    pub(crate) fn connect_to(&mut self, source: &str, target: &str, port: u16, count: usize) -> String {
        // Silence is asserted of one; of many each is answered, however busy the machine is.
        let seconds = if count == 1 { 1 } else { 10 };
        self.tell(&format!("open {source} {target} {port} {count} {seconds}"))
    }

    /// Closes the last ones of a source, and waits until the host has seen it.
    pub(crate) fn close(&mut self, source: &str, count: usize) {
        self.tell(&format!("close {source} {count}"));
        std::thread::sleep(Duration::from_millis(200));
    }

    /// Does the first held connection of a source still get an answer?
    pub(crate) fn exchange(&mut self, source: &str) -> String {
        self.tell(&format!("ask {source}"))
    }

    fn tell(&mut self, line: &str) -> String {
        writeln!(self.ask, "{line}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        answer.trim().to_owned()
    }

    /// Runs a program where the host is.
    pub(crate) fn inside(&self, arguments: &[&str]) -> String {
        run("ip", &[&["netns", "exec", &self.inside], arguments].concat())
    }

    /// Runs a program where the clients are.
    pub(crate) fn outside(&self, arguments: &[&str]) -> String {
        run("ip", &[&["netns", "exec", &self.outside], arguments].concat())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for child in
            [self.helper.as_mut(), Some(&mut self.server), Some(&mut self.clients)].into_iter().flatten()
        {
            let _gone = child.kill();
            let _reaped = child.wait();
        }
        for space in [&self.inside, &self.outside] {
            let _gone = Command::new("ip").args(["netns", "delete", space]).status();
        }
    }
}

pub(crate) fn ban(network: &str, seconds: u64) -> Ban {
    Ban { network: network.parse().unwrap(), remaining: Duration::from_secs(seconds) }
}

fn python(space: &str, script: &str) -> Child {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", space, "/usr/bin/python3", "-u", "-c", script]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {told}");
    String::from_utf8_lossy(&output.stdout).into_owned() + &told
}
