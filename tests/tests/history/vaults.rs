//! Two real vaults in two namespaces, set up as an operator would, and what can befall them. Knows
//! programs, files and the operator's commands; not what is right.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use harness::curl::Curl;
use harness::program::{Program, Recipe, run};
use harness::{binaries, wait};
use rustls::ClientConfig;
use serde_json::Value;
use shared::tls::Files;

use crate::databases::Databases;
use crate::door::Address;
use crate::network::{Network, Place};

/// The vaults' names; the first owns the numbers at first.
pub(crate) const NAMES: [&str; 2] = ["vault-a", "vault-b"];
/// On whose behalf the callers act.
pub(crate) const OWNER: &str = "erp";
/// How long a vault may take to start, or two to come together; the machine is busy.
const READY: Duration = Duration::from_secs(60);
/// How old the certificates are, in faketime's words; no clock goes back further.
const BIRTH: &str = "-3d";
/// The same in each namespace.
const PORT: u16 = 7443;

/// One of them.
pub(crate) struct Vault {
    place: usize,
    folder: PathBuf,
    config: PathBuf,
    binary: PathBuf,
    program: Option<Program>,
}

/// Both.
pub(crate) struct Vaults {
    pub(crate) each: [Vault; 2],
    /// What the callers show and trust.
    tls: Arc<ClientConfig>,
}

impl Vaults {
    /// Sets both up below `folder` and starts them; returns when they are together.
    ///
    /// # Errors
    /// What a command or a program said.
    pub(crate) fn start(folder: &Path, network: &Network, database: &str) -> anyhow::Result<Self> {
        let binary = binaries::find("vault")?;
        let servers = ["paris", "lyon"].map(|name| folder.join(name));
        servers.iter().try_for_each(std::fs::create_dir)?;
        let [first, second] = [0, 1].map(|place| Vault::place(folder, place, &binary));
        let (mut first, mut second) = (first?, second?);
        let (key, escrow) = (first.folder.join("storage.key"), folder.join("escrow.key"));
        let words: [OsString; 6] = [
            "keys".into(),
            "init".into(),
            "--file".into(),
            key.clone().into(),
            "--escrow".into(),
            escrow.into(),
        ];
        let ran = run(&binary, &words)?;
        let said = format!("{}{}", ran.out, ran.err);
        ran.well().context("vault keys init")?;
        let recipient = word(&said, "age1").context("no recipient")?;
        std::fs::copy(&key, second.folder.join("storage.key"))?;
        first.write_config(&servers, &recipient, database)?;
        second.write_config(&servers, &recipient, database)?;
        // The authority and its certificates are some days old: they are good also where a clock
        // goes back.
        first.set_clock(BIRTH)?;
        let mut words = with_own_clock(&first.folder.join("clock"))?;
        words.push(binary.clone().into());
        words.extend(["pki", "init", "--authority", "history", "--config"].map(Into::into));
        words.push(first.config.clone().into());
        run(Path::new("env"), &words)?.well().context("vault pki init")?;
        first.launch(network)?;
        first.wait_alive()?;
        let token = first.token("vault", "pair", NAMES[1])?;
        network.inside(Place::Vault(1), || {
            second.command(&["pki", "enrol", "--vault", &first.dial(), "--token", &token])
        })??;
        second.launch(network)?;
        let token = first.token("edge", OWNER, "www1")?;
        let own = folder.join("callers");
        std::fs::create_dir(&own)?;
        let words = ["pki", "enrol", "--vault", &first.dial(), "--token", &token, "--out"];
        let words: Vec<OsString> =
            words.into_iter().map(OsString::from).chain([own.clone().into()]).collect();
        network.inside(Place::Callers, || run(&binary, &words)?.well())??;
        first.set_clock("+0")?;
        let tls = Arc::new(shared::tls::client(&files(&own)?, &[b"http/1.1"])?);
        let vaults = Self { each: [first, second], tls };
        vaults.wait_together(READY)?;
        Ok(vaults)
    }

    /// Where the callers find the vaults.
    pub(crate) fn addresses(&self) -> [Address; 2] {
        [0, 1]
            .map(|place| Address { socket: socket(place), tls: Some((NAMES[place], Arc::clone(&self.tls))) })
    }

    /// Waits until numbers are given by both together.
    ///
    /// # Errors
    /// What each says of it at the end.
    pub(crate) fn wait_together(&self, within: Duration) -> anyhow::Result<()> {
        self.each.iter().try_for_each(|vault| {
            wait::until(&format!("{} is together with the other", vault.name()), within, || {
                let status = vault.status()?;
                anyhow::ensure!(status.pointer("/together") == Some(&Value::Bool(true)), "{status}");
                Ok(())
            })
        })
    }
}

impl Vaults {
    /// Nobody asks any more: waits until both have the same, and the copy has it too, if there is one.
    ///
    /// # Errors
    /// What each says of it at the end.
    pub(crate) fn wait_still(&self, databases: &Databases) -> anyhow::Result<()> {
        wait::until("nothing is under way", READY, || {
            let each = [self.each[0].status()?, self.each[1].status()?];
            let ends =
                each.each_ref().map(|status| [status.pointer("/entries"), status.pointer("/final_entries")]);
            let same = ends[0][0].is_some() && ends.iter().flatten().all(|end| *end == ends[0][0]);
            let copied = each.iter().any(|status| {
                status.pointer("/database/phase") == Some(&Value::from("current"))
                    && status.pointer("/database/holds") == ends[0][0]
            });
            anyhow::ensure!(same && (copied || databases.servers.is_empty()), "{each:?}");
            Ok(())
        })
    }
}

impl Vault {
    fn place(folder: &Path, place: usize, binary: &Path) -> anyhow::Result<Self> {
        let own = folder.join(NAMES[place]);
        std::fs::create_dir(&own)?;
        std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o700))?;
        for inner in ["state", "run"] {
            std::fs::create_dir(own.join(inner))?;
        }
        std::fs::write(own.join("clock"), "+0\n")?;
        let config = own.join("vault.toml");
        Ok(Self { place, config, folder: own, binary: binary.to_owned(), program: None })
    }

    pub(crate) fn name(&self) -> &'static str {
        NAMES[self.place]
    }

    fn dial(&self) -> String {
        format!("{}={}", self.name(), socket(self.place))
    }

    fn write_config(&self, servers: &[PathBuf; 2], escrow: &str, database: &str) -> anyhow::Result<()> {
        let text = format!(
            r#"name = "{name}"
state = "{folder}/state"

[api]
listen = "{listen}"
admin = "127.0.0.1:7444"
control_socket = "{folder}/control.sock"

[pair]
peer = "{peer}"
address = "{peer_address}"
beat = "250ms"
silence = "1s"

[sequence]
owner = "{owner}"

{database}
[storage]
key_file = "{folder}/storage.key"
escrow_recipient = "{escrow}"

[[file_server]]
name = "paris"
path = "{paris}"

[[file_server]]
name = "lyon"
path = "{lyon}"
"#,
            name = self.name(),
            folder = self.folder.display(),
            listen = socket(self.place),
            peer = NAMES[1 - self.place],
            peer_address = socket(1 - self.place),
            owner = NAMES[0],
            paris = servers[0].display(),
            lyon = servers[1].display(),
        );
        Ok(std::fs::write(&self.config, text)?)
    }

    fn launch(&mut self, network: &Network) -> anyhow::Result<()> {
        let arguments: [OsString; 3] = ["serve".into(), "--config".into(), self.config.clone().into()];
        let mut recipe = Recipe::new(self.name(), self.binary.clone(), arguments, &self.folder);
        recipe.wrapper = network.wrapper(Place::Vault(self.place));
        recipe.wrapper.push("env".into());
        // As systemd gives it: it outlives the program, not the machine.
        recipe.wrapper.push(format!("RUNTIME_DIRECTORY={}", self.folder.join("run").display()).into());
        recipe.wrapper.extend(with_own_clock(&self.folder.join("clock"))?);
        self.program = Some(Program::start(recipe)?);
        Ok(())
    }

    /// Runs `vault <words> --config …`.
    ///
    /// # Errors
    /// What it said.
    pub(crate) fn command(&self, words: &[&str]) -> anyhow::Result<String> {
        let mut arguments: Vec<OsString> = words.iter().map(OsString::from).collect();
        arguments.extend(["--config".into(), self.config.clone().into()]);
        run(&self.binary, &arguments)?.well().with_context(|| format!("vault {}", words.join(" ")))
    }

    fn token(&self, role: &str, owner: &str, name: &str) -> anyhow::Result<String> {
        let said = self.command(&["pki", "token", "--role", role, "--owner", owner, "--name", name])?;
        word(&said, "evt1.").with_context(|| format!("no token in: {said}"))
    }

    /// The same of a command that needs none.
    ///
    /// # Errors
    /// What it said.
    pub(crate) fn command_without_config(&self, words: &[&str]) -> anyhow::Result<String> {
        run(&self.binary, words)?.well().with_context(|| format!("vault {}", words.join(" ")))
    }

    /// Its journal.
    pub(crate) fn journal_file(&self) -> PathBuf {
        self.folder.join("state/journal.db")
    }

    /// A call over its control socket: an operator on the vault's own host.
    pub(crate) fn control(&self, path: &str) -> Curl {
        Curl::new(format!("http://vault{path}"))
            .over(&self.folder.join("control.sock"))
            .within(Duration::from_secs(5))
    }

    /// What it says of its numbers.
    ///
    /// # Errors
    /// It does not answer.
    pub(crate) fn status(&self) -> anyhow::Result<Value> {
        let status = self.control("/v1/status").send()?.expect(&[200])?.json()?;
        status.pointer("/numbers").cloned().with_context(|| format!("no numbers in {status}"))
    }

    /// Waits until it answers at all.
    ///
    /// # Errors
    /// The end of its log.
    pub(crate) fn wait_alive(&self) -> anyhow::Result<()> {
        wait::until(&format!("{} answers", self.name()), READY, || self.status().map(drop))
            .with_context(|| self.log_tail(30))
    }

    pub(crate) fn log_tail(&self, lines: usize) -> String {
        self.program.as_ref().map_or_else(String::new, |program| program.log_tail(lines))
    }

    // What befalls it.

    /// SIGKILL.
    ///
    /// # Errors
    /// It does not run.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.program()?.kill()
    }

    /// SIGTERM: it ends its life cleanly.
    ///
    /// # Errors
    /// It did not end well, or not in time.
    pub(crate) fn stop(&mut self) -> anyhow::Result<()> {
        let ended = self.program()?.terminate()?;
        anyhow::ensure!(ended.success(), "{}: {ended}\n{}", self.name(), self.log_tail(30));
        Ok(())
    }

    /// Starts it again.
    ///
    /// # Errors
    /// It still runs.
    pub(crate) fn restart(&mut self) -> anyhow::Result<()> {
        self.program()?.restart()
    }

    /// SIGSTOP, or SIGCONT.
    ///
    /// # Errors
    /// It does not run.
    pub(crate) fn freeze(&mut self, frozen: bool) -> anyhow::Result<()> {
        let program = self.program()?;
        if frozen { program.freeze() } else { program.thaw() }
    }

    /// Sets its clock off by that, in faketime's words: `+3d`.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn set_clock(&self, offset: &str) -> anyhow::Result<()> {
        Ok(std::fs::write(self.folder.join("clock"), format!("{offset}\n"))?)
    }

    /// The machine goes down: what was in memory only is gone. It must not run.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn forget_memory(&self) -> anyhow::Result<()> {
        std::fs::remove_dir_all(self.folder.join("run"))?;
        Ok(std::fs::create_dir(self.folder.join("run"))?)
    }

    /// Its journal is lost. It must not run.
    ///
    /// # Errors
    /// The disk, or there was none.
    pub(crate) fn lose_journal(&self) -> anyhow::Result<()> {
        let files = self.journal()?;
        anyhow::ensure!(!files.is_empty(), "{}: there is no journal to lose", self.name());
        Ok(files.iter().try_for_each(std::fs::remove_file)?)
    }

    /// Puts a copy of its journal aside. It must not run.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn copy_journal(&self) -> anyhow::Result<()> {
        let aside = self.folder.join("copy");
        std::fs::create_dir(&aside)?;
        copy(&self.journal()?, &aside)
    }

    /// Puts that copy in the journal's place, and has no copy any more. It must not run.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn bring_copy(&self) -> anyhow::Result<()> {
        let aside = self.folder.join("copy");
        self.lose_journal()?;
        copy(&files_in(&aside)?, &self.folder.join("state"))?;
        Ok(std::fs::remove_dir_all(aside)?)
    }

    fn journal(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut files = files_in(&self.folder.join("state"))?;
        files.retain(|file| {
            file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("journal.db"))
        });
        Ok(files)
    }

    fn program(&mut self) -> anyhow::Result<&mut Program> {
        self.program.as_mut().context("it was never started")
    }
}

fn socket(place: usize) -> SocketAddr {
    SocketAddr::new(Place::Vault(place).address(), PORT)
}

fn files_in(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
}

fn copy(files: &[PathBuf], folder: &Path) -> anyhow::Result<()> {
    for file in files {
        let name = file.file_name().context("a file has a name")?;
        std::fs::copy(file, folder.join(name))?;
    }
    Ok(())
}

fn files(folder: &Path) -> anyhow::Result<Files> {
    let mut found = [None, None, None];
    for path in files_in(folder)? {
        let end = path.extension().and_then(|end| end.to_str()).unwrap_or_default();
        let is_authority = path.file_stem().is_some_and(|stem| stem == "authority");
        match (end, is_authority) {
            ("crt", false) => found[0] = Some(path),
            ("key", false) => found[1] = Some(path),
            ("crt", true) => found[2] = Some(path),
            _ => {}
        }
    }
    let [Some(certificate), Some(key), Some(authority)] = found else {
        anyhow::bail!("{}: not all files are there: {found:?}", folder.display())
    };
    Ok(Files { certificate, key, authority })
}

/// Only the system's clock is wrong; intervals and files' times are right.
fn with_own_clock(clock: &Path) -> anyhow::Result<Vec<OsString>> {
    let library = std::fs::read_dir("/usr/lib")?
        .flatten()
        .map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"))
        .find(|library| library.exists())
        .context("faketime is not installed; run: apt-get install faketime (tests/run does)")?;
    let mut words: Vec<OsString> = vec![format!("LD_PRELOAD={}", library.display()).into()];
    words.push(format!("FAKETIME_TIMESTAMP_FILE={}", clock.display()).into());
    words.extend(["FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1", "NO_FAKE_STAT=1"].map(Into::into));
    Ok(words)
}

/// The first word of `text` that starts so.
fn word(text: &str, start: &str) -> Option<String> {
    let mut words = text.split(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | ','));
    words.find(|word| word.starts_with(start)).map(str::to_owned)
}
