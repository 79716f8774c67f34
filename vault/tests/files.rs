//! `vault file …` as an operator types it: the real program, its control socket, two directories.
#![expect(clippy::unwrap_used, reason = "a story's own steps fail the story when they fail")]

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

/// A vault that runs; its peer never does, and files need none.
struct Running {
    folder: tempfile::TempDir,
    program: Child,
}

impl Running {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["state", "paris", "lyon"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let key = folder.path().join("key");
        let mut making = Command::new(env!("CARGO_BIN_EXE_vault"));
        making.args(["--json", "keys", "init", "--file"]).arg(&key);
        let made = making.arg("--escrow").arg(folder.path().join("escrow")).output().unwrap();
        let made: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
        let recipient = made["escrow_recipient"].as_str().unwrap();
        let place = folder.path().display();
        let config = format!(
            r#"name = "vault-a"
state = "{place}/state"
[api]
listen = "127.0.0.1:0"
admin = "127.0.0.1:0"
control_socket = "{place}/control.sock"
[pair]
peer = "vault-b"
address = "127.0.0.1:1"
[sequence]
owner = "vault-a"
[storage]
key_file = "{place}/key"
escrow_recipient = "{recipient}"
max_file = "3MiB"
retry_every = "1h"
[[file_server]]
name = "paris"
path = "{place}/paris"
[[file_server]]
name = "lyon"
path = "{place}/lyon"
"#
        );
        std::fs::write(folder.path().join("vault.toml"), config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_vault"));
        command.arg("--config").arg(folder.path().join("vault.toml"));
        let made = command.args(["pki", "init", "--authority", "loopback"]).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        let mut command = Command::new(env!("CARGO_BIN_EXE_vault"));
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let log = [log.try_clone().unwrap(), log];
        let [out, err] = log;
        command.arg("serve").arg("--config").arg(folder.path().join("vault.toml")).stdout(out).stderr(err);
        let mut running = Self { program: command.spawn().unwrap(), folder };
        for _ in 0..600 {
            if UnixStream::connect(running.path("control.sock")).is_ok() {
                return running;
            }
            assert!(running.program.try_wait().unwrap().is_none(), "{}", running.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("it does not start: {}", running.log());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// `vault file <words>` with this standard input.
    fn file(&self, words: &[&str], input: &[u8]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vault"));
        command.arg("file").args(words).arg("--config").arg(self.path("vault.toml"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_owned();
        // A refused upload closes its standard input early.
        let feeding = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().unwrap();
        feeding.join().unwrap();
        output
    }

    /// Its JSON answer.
    fn json(&self, words: &[&str], input: &[u8]) -> Value {
        let output = self.file(&[words, &["--json"]].concat(), input);
        assert_eq!(output.status.code(), Some(0), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Its complaint, and exit code 1.
    fn refused(&self, words: &[&str], input: &[u8]) -> String {
        let output = self.file(words, input);
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

#[test]
fn what_an_operator_puts_is_listed_read_verified_and_removed() {
    let vault = Running::start();
    let text = b"0123456789".repeat(250_000);
    std::fs::write(vault.path("letter.txt"), &text).unwrap();
    let source = vault.path("letter.txt");
    let put = ["put", source.to_str().unwrap(), "--owner", "erp", "--type", "text/plain", "--key", "k"];
    let stored = vault.json(&put, b"");
    assert_eq!((&stored["label"], &stored["owner"]), (&"letter.txt".into(), &"erp".into()));
    assert_eq!((&stored["size"], &stored["replicas"]), (&text.len().into(), &vec!["lyon", "paris"].into()));
    assert_eq!(vault.json(&put, b""), stored, "the same key and bytes give the same file");
    let id = stored["id"].as_str().unwrap();

    let long = "\u{1b}[2Jä".repeat(500);
    let piped = vault.json(&["put", "--owner", "shop", "--label", &long], b"");
    assert_eq!((&piped["label"], &piped["size"]), (&long.clone().into(), &0.into()));
    assert_eq!(vault.json(&["stat", id], b""), stored);
    let listed = vault.json(&["list"], b"");
    assert_eq!(listed.as_array().unwrap().len(), 2);
    assert_eq!(vault.json(&["list", "--owner", "erp"], b""), Value::from(vec![stored.clone()]));
    assert_eq!(vault.json(&["list", "--limit", "1"], b"").as_array().unwrap().len(), 1);
    let shown = vault.file(&["list"], b"").stdout;
    assert!(!shown.contains(&0x1b), "a label moves no cursor");

    let got = vault.file(&["get", id], b"");
    assert!(got.status.success() && got.stdout == text && got.stderr.is_empty(), "no bar without a terminal");
    assert_eq!(vault.file(&["get", id, "--range", "5-14"], b"").stdout, b"5678901234");
    assert_eq!(vault.file(&["get", id, "--range", "-3"], b"").stdout, b"789");
    let copy = vault.path("copy");
    let fetched = vault.json(&["get", id, "--output", copy.to_str().unwrap()], b"");
    assert_eq!((&fetched["bytes"], std::fs::read(&copy).unwrap() == text), (&text.len().into(), true));

    assert!(vault.file(&["verify", id], b"").status.success());
    assert_eq!(vault.json(&["owed"], b""), Value::from(Vec::<u8>::new()));
    let replica = vault.path("paris").join(&id[..2]).join(&id[2..4]).join(id);
    std::fs::remove_file(&replica).unwrap();
    let found = vault.file(&["verify", id], b"");
    let said = String::from_utf8(found.stdout).unwrap();
    assert_eq!(found.status.code(), Some(1));
    assert!(said.contains("paris         absent") && said.contains("lyon          whole"), "{said}");
    let owed = vault.json(&["owed"], b"");
    assert_eq!((&owed[0]["id"], &owed[0]["file_server"]), (&id.into(), &"paris".into()));

    assert!(vault.file(&["remove", id], b"").status.success());
    assert!(vault.refused(&["get", id], b"").contains("deleted"));
    assert_eq!(vault.json(&["list", "--owner", "erp"], b""), Value::from(Vec::<u8>::new()));
}

#[test]
fn what_cannot_be_done_is_said_and_leaves_nothing_behind() {
    let vault = Running::start();
    let id = "0".repeat(64);
    let output = vault.path("out");
    let output = output.to_str().unwrap();
    let folder = vault.folder.path().to_str().unwrap().to_owned();
    let long = "x".repeat(4097);
    let cases: [(&[&str], &str); 9] = [
        (&["get", &id, "--output", output], "404 not_found"),
        (&["get", "x"], "64 lower-case hex digits"),
        (&["verify", &id], "404 not_found"),
        (&["get", &id, "--json"], "--output"),
        (&["put", "/does/not/exist", "--owner", "erp"], "/does/not/exist: cannot be read"),
        (&["put", &folder, "--owner", "erp"], "is a directory"),
        (&["put", "--owner", "a b"], "bad_owner"),
        (&["put", "--owner", "erp", "--label", &long], "bad_label"),
        (&["put", "--owner", "erp", "--type", "x"], "bad_content_type"),
    ];
    for (words, expected) in cases {
        let said = vault.refused(words, b"text");
        assert!(said.contains(expected), "{words:?}: {said}");
    }
    // Four mebibytes where three are allowed, with and without an announced length.
    let large = vec![7; 4 << 20];
    assert!(vault.refused(&["put", "--owner", "erp"], &large).contains("413 too_large"));
    std::fs::write(vault.path("large"), &large).unwrap();
    let said = vault.refused(&["put", vault.path("large").to_str().unwrap(), "--owner", "erp"], b"");
    assert!(said.contains("413 too_large"), "{said}");
    let stored = vault.json(&["put", "--owner", "erp"], b"text");
    let said = vault.refused(&["get", stored["id"].as_str().unwrap(), "--range", "x"], b"");
    assert!(said.contains("--range"), "{said}");
    let left: Vec<_> = std::fs::read_dir(vault.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("out"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(std::fs::read_dir(vault.path("state/spool")).unwrap().count(), 0);
    assert_eq!(vault.file(&["put"], b"").status.code(), Some(2), "wrong usage");
}
