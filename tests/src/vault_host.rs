//! Two vaults on loopback as an operator would set them up: keys by `vault keys init`, the
//! authority by `vault pki init`, the second vault enrolled with a token. Everything lies in
//! one folder; both use the same two directories as file servers.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use crate::curl::Curl;
use crate::program::{Program, Recipe, run};
use crate::{binaries, plain, ports, wait};

/// The vaults' names; the first owns the numbers' ledger and was set up first.
pub const NAMES: [&str; 2] = ["vault-a", "vault-b"];
/// The file servers' names.
pub const FILE_SERVERS: [&str; 2] = ["paris", "lyon"];
/// How long a program may take until it answers; debug builds on a busy machine are slow.
pub const READY: Duration = Duration::from_secs(60);

/// How a pair differs from the usual one.
#[derive(Debug, Clone, Default)]
pub struct PairPlan {
    /// Another build of vault.
    pub binary: Option<PathBuf>,
    /// A program in front of each vault, made from the vault's folder.
    pub wrapper: Option<fn(&Path) -> Vec<OsString>>,
    /// Further lines for `[storage]`, and sections. `<NAME>` stands for the address of that vault's
    /// broker.
    pub storage: String,
    /// Further lines for `[api]`.
    pub api: String,
    /// Lines for `[broker]` beside its address, if both vaults shall have one.
    pub broker: Option<String>,
    /// Further lines for each `[[file_server]]`, which is a directory without any.
    pub file_servers: [String; 2],
    /// Other names than [`NAMES`].
    pub names: Option<[&'static str; 2]>,
}

/// One vault.
#[derive(Debug)]
pub struct Vault {
    /// As its certificate says it.
    pub name: &'static str,
    /// Its folder: configuration, state, log.
    pub folder: PathBuf,
    /// Its `vault.toml`.
    pub config: PathBuf,
    /// mTLS.
    pub api: SocketAddr,
    /// Health and metrics, in clear.
    pub admin: SocketAddr,
    /// OpenWire, if the plan has a broker.
    pub broker: SocketAddr,
    /// Operators' commands.
    pub control: PathBuf,
    /// The running program, once started.
    pub program: Option<Program>,
    binary: PathBuf,
}

/// A certificate of the vaults' authority, and the authority's own.
#[derive(Debug, Clone)]
pub struct Holder {
    /// Leaf first.
    pub certificate: PathBuf,
    /// PKCS#8.
    pub key: PathBuf,
    /// The authority's.
    pub authority: PathBuf,
}

/// The two vaults and their file servers.
#[derive(Debug)]
pub struct Pair {
    /// In the order of [`NAMES`], or of the plan's own.
    pub vaults: [Vault; 2],
    /// The directories that hold the replicas.
    pub file_servers: [PathBuf; 2],
    /// The escrow's age identity, which no vault has.
    pub escrow: PathBuf,
    folder: PathBuf,
}

impl Pair {
    /// Sets both up in `folder` and starts them; returns when both are ready.
    ///
    /// # Errors
    /// Whatever a command or a program says, with the end of its log.
    pub fn start(folder: &Path, plan: &PairPlan) -> anyhow::Result<Self> {
        let mut pair = Self::set_up(folder, plan)?;
        let [first, second] = &mut pair.vaults;
        first.start(plan)?;
        first.wait_alive()?;
        let token = first.token("vault", "pair", second.name)?;
        second.enrol_from(first, &token)?;
        second.start(plan)?;
        pair.wait_ready()?;
        Ok(pair)
    }

    fn set_up(folder: &Path, plan: &PairPlan) -> anyhow::Result<Self> {
        let binary = plan.binary.clone().map_or_else(|| binaries::find("vault"), Ok)?;
        let escrow = folder.join("escrow.key");
        let file_servers = FILE_SERVERS.map(|name| folder.join(name));
        for file_server in &file_servers {
            std::fs::create_dir_all(file_server)?;
        }
        let names = plan.names.unwrap_or(NAMES);
        let [left, right] = names.map(|name| Vault::place(folder, name, binary.clone()));
        let (left, right) = (left?, right?);
        let recipient = new_keys(&binary, &left.folder.join("storage.key"), &escrow)?;
        std::fs::copy(left.folder.join("storage.key"), right.folder.join("storage.key"))?;
        left.write_config(&right, &file_servers, &recipient, plan)?;
        right.write_config(&left, &file_servers, &recipient, plan)?;
        left.command(&["pki", "init", "--authority", "loopback"])?;
        Ok(Self { vaults: [left, right], file_servers, escrow, folder: folder.to_owned() })
    }

    /// Waits until both vaults are ready and know of each other: then numbers are given.
    ///
    /// # Errors
    /// The deadline; the text says what the vault waits for.
    pub fn wait_ready(&self) -> anyhow::Result<()> {
        self.vaults.iter().try_for_each(|vault| vault.wait_ready().and_then(|()| vault.wait_together()))
    }

    /// Enrols somebody who is no vault: a token of the first vault, and a key that is made in
    /// a folder of the holder's own.
    ///
    /// # Errors
    /// Whatever the command says.
    pub fn enrol(&self, role: &str, owner: &str, name: &str) -> anyhow::Result<Holder> {
        let first = &self.vaults[0];
        let token = first.token(role, owner, name)?;
        let out = self.folder.join(format!("holder-{role}-{owner}-{name}"));
        std::fs::create_dir_all(&out)?;
        run(
            &first.binary,
            &[
                OsString::from("pki"),
                "enrol".into(),
                "--vault".into(),
                first.dial().into(),
                "--token".into(),
                token.into(),
                "--out".into(),
                out.clone().into(),
            ],
        )?
        .well()
        .with_context(|| format!("enrolling {role} {owner} {name}"))?;
        Holder::find(&out)
    }

    /// Every file below both file servers that holds `needle`, as it is or in base64.
    ///
    /// # Errors
    /// A directory that cannot be read.
    pub fn replicas_with(&self, needle: &[u8]) -> anyhow::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for file_server in &self.file_servers {
            for file in files_below(file_server)? {
                let bytes = std::fs::read(&file)?;
                if contains(&bytes, needle) || base64_forms(needle).iter().any(|form| contains(&bytes, form))
                {
                    found.push(file);
                }
            }
        }
        Ok(found)
    }

    /// The replicas of one object, at most one a file server.
    ///
    /// # Errors
    /// A directory that cannot be read.
    pub fn replicas_of(&self, id: &str) -> anyhow::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for file_server in &self.file_servers {
            let files = files_below(file_server)?;
            found.extend(files.into_iter().filter(|file| file.file_name().is_some_and(|name| name == id)));
        }
        Ok(found)
    }
}

impl Holder {
    fn find(folder: &Path) -> anyhow::Result<Self> {
        let files = files_below(folder)?;
        let one = |what: &str, wanted: &dyn Fn(&Path) -> bool| {
            let file = files.iter().find(|file| wanted(file)).cloned();
            file.with_context(|| format!("{}: no {what} in it: {files:?}", folder.display()))
        };
        let has = |file: &Path, end: &str| file.extension().is_some_and(|own| own == end);
        let is_authority = |file: &Path| file.file_stem().is_some_and(|stem| stem == "authority");
        Ok(Self {
            certificate: one("certificate", &|file| has(file, "crt") && !is_authority(file))?,
            key: one("key", &|file| has(file, "key"))?,
            authority: one("authority", &|file| has(file, "crt") && is_authority(file))?,
        })
    }
}

impl Vault {
    fn place(folder: &Path, name: &'static str, binary: PathBuf) -> anyhow::Result<Self> {
        let own = folder.join(name);
        std::fs::create_dir(&own)?;
        // State and keys are nobody else's business, on loopback as elsewhere.
        std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o700))?;
        std::fs::create_dir(own.join("state"))?;
        Ok(Self {
            name,
            config: own.join("vault.toml"),
            control: own.join("control.sock"),
            folder: own,
            api: ports::free()?,
            admin: ports::free()?,
            broker: ports::free()?,
            program: None,
            binary,
        })
    }

    fn write_config(
        &self,
        peer: &Self,
        file_servers: &[PathBuf; 2],
        escrow: &str,
        plan: &PairPlan,
    ) -> anyhow::Result<()> {
        let [left, right] = file_servers;
        let listen = |lines: &String| format!("[broker]\nlisten = \"{}\"\n{lines}\n", self.broker);
        let text = format!(
            r#"name = "{name}"
state = "{state}"

[api]
listen = "{api}"
admin = "{admin}"
control_socket = "{control}"
{more_api}
[pair]
peer = "{peer}"
address = "{peer_address}"

[sequence]
owner = "{owner}"

[storage]
key_file = "{key}"
escrow_recipient = "{escrow}"
retry_every = "1s"
{more_storage}
{broker}
[[file_server]]
name = "{left_name}"
path = "{left}"
{more_left}
[[file_server]]
name = "{right_name}"
path = "{right}"
{more_right}"#,
            name = self.name,
            state = self.folder.join("state").display(),
            api = self.api,
            admin = self.admin,
            control = self.control.display(),
            more_api = plan.api,
            peer = peer.name,
            peer_address = peer.api,
            owner = plan.names.unwrap_or(NAMES)[0],
            key = self.folder.join("storage.key").display(),
            more_storage = plan.storage,
            broker = plan.broker.as_ref().map(listen).unwrap_or_default(),
            left_name = FILE_SERVERS[0],
            left = left.display(),
            right_name = FILE_SERVERS[1],
            right = right.display(),
            more_left = plan.file_servers[0],
            more_right = plan.file_servers[1],
        );
        let placed = [self, peer]
            .into_iter()
            .fold(text, |text, vault| text.replace(&format!("<{}>", vault.name), &vault.broker.to_string()));
        std::fs::write(&self.config, placed).with_context(|| format!("{}", self.config.display()))
    }

    fn start(&mut self, plan: &PairPlan) -> anyhow::Result<()> {
        let arguments: [OsString; 3] = ["serve".into(), "--config".into(), self.config.clone().into()];
        let mut recipe = Recipe::new(self.name, self.binary.clone(), arguments, &self.folder);
        if let Some(wrapper) = plan.wrapper {
            recipe.wrapper = wrapper(&self.folder);
        }
        self.program = Some(Program::start(recipe)?);
        Ok(())
    }

    /// The running program.
    ///
    /// # Errors
    /// It was never started.
    pub fn program(&mut self) -> anyhow::Result<&mut Program> {
        let name = self.name;
        self.program.as_mut().with_context(|| format!("{name} was never started"))
    }

    /// Waits until it answers at all.
    ///
    /// # Errors
    /// The deadline, with the end of its log.
    pub fn wait_alive(&self) -> anyhow::Result<()> {
        self.wait_for("/livez")
    }

    /// Waits until it is ready for work.
    ///
    /// # Errors
    /// The deadline, with the end of its log.
    pub fn wait_ready(&self) -> anyhow::Result<()> {
        self.wait_for("/readyz?verbose")
    }

    /// Waits until it is in session with the other vault. One alone is ready too: for files.
    ///
    /// # Errors
    /// The deadline, with what its status says.
    pub fn wait_together(&self) -> anyhow::Result<()> {
        wait::until(&format!("{} and its peer are together", self.name), READY, || {
            let status = self.control("/v1/status").send()?.expect(&[200])?.json()?;
            let together = status.pointer("/numbers/together").and_then(serde_json::Value::as_bool);
            anyhow::ensure!(together == Some(true), "{}", status.pointer("/numbers").unwrap_or(&status));
            Ok(())
        })
        .with_context(|| self.program.as_ref().map_or_else(String::new, |program| program.log_tail(30)))
    }

    fn wait_for(&self, path: &str) -> anyhow::Result<()> {
        wait::until(&format!("{} answers {path}", self.name), READY, || plain::expect_ok(self.admin, path))
            .with_context(|| self.program.as_ref().map_or_else(String::new, |program| program.log_tail(30)))
            .map(drop)
    }

    /// `NAME=ADDRESS`, as `--vault` wants it.
    #[must_use]
    pub fn dial(&self) -> String {
        format!("{}={}", self.name, self.api)
    }

    /// Runs `vault <words> --config …` and returns its standard output.
    ///
    /// # Errors
    /// What the command said.
    pub fn command(&self, words: &[&str]) -> anyhow::Result<String> {
        let mut arguments: Vec<OsString> = words.iter().map(Into::into).collect();
        arguments.extend(["--config".into(), self.config.clone().into()]);
        run(&self.binary, &arguments)?.well().with_context(|| format!("vault {}", words.join(" ")))
    }

    /// A token for one enrolment.
    ///
    /// # Errors
    /// What the command said.
    pub fn token(&self, role: &str, owner: &str, name: &str) -> anyhow::Result<String> {
        let said = self.command(&["pki", "token", "--role", role, "--owner", owner, "--name", name])?;
        word(&said, "evt1.").with_context(|| format!("vault pki token: no token in: {said}"))
    }

    fn enrol_from(&self, other: &Self, token: &str) -> anyhow::Result<()> {
        self.command(&["pki", "enrol", "--vault", &other.dial(), "--token", token]).map(drop)
    }

    /// A call of its API by that holder, verified by the vault's name.
    #[must_use]
    pub fn call(&self, holder: &Holder, path: &str) -> Curl {
        self.call_without_certificate(holder, path).show(&holder.certificate, &holder.key)
    }

    /// A call of its API by somebody who shows no certificate.
    #[must_use]
    pub fn call_without_certificate(&self, holder: &Holder, path: &str) -> Curl {
        Curl::new(format!("https://{}:{}{path}", self.name, self.api.port()))
            .at(self.api)
            .trust(&holder.authority)
    }

    /// A call over its control socket: an operator on the vault's own host.
    #[must_use]
    pub fn control(&self, path: &str) -> Curl {
        Curl::new(format!("http://vault{path}")).over(&self.control)
    }
}

/// Makes the storage key and the escrow key, and tells the escrow's recipient.
fn new_keys(binary: &Path, file: &Path, escrow: &Path) -> anyhow::Result<String> {
    let words: [OsString; 6] =
        ["keys".into(), "init".into(), "--file".into(), file.into(), "--escrow".into(), escrow.into()];
    let ran = run(binary, &words)?;
    let said = format!("{}{}", ran.out, ran.err);
    ran.well().context("vault keys init")?;
    word(&said, "age1").with_context(|| format!("vault keys init: no recipient in: {said}"))
}

/// The first word of `text` that starts so.
fn word(text: &str, start: &str) -> Option<String> {
    let mut words = text.split(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | ','));
    words.find(|word| word.starts_with(start)).map(str::to_owned)
}

/// Every regular file below `folder`.
///
/// # Errors
/// A directory that cannot be read.
pub fn files_below(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| format!("{}", folder.display()))? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|part| part == needle)
}

/// `needle` as it would stand inside a base64 text, for each of the three places it may start
/// at; the ends that depend on its neighbours are cut off.
fn base64_forms(needle: &[u8]) -> Vec<Vec<u8>> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    (0..3)
        .filter_map(|skip| needle.get(skip..))
        .map(|whole| {
            let groups = whole.chunks_exact(3);
            groups
                .flat_map(|group| {
                    let bits = group.iter().fold(0_usize, |bits, byte| bits << 8 | usize::from(*byte));
                    [18, 12, 6, 0].map(|shift| LETTERS[bits >> shift & 63])
                })
                .collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_needle_is_found_in_base64_wherever_it_starts() {
        // base64 of "x:needle-needle;", "xy:needle-needle;", "xyz:needle-needle;"
        for text in ["eDpuZWVkbGUtbmVlZGxlOw==", "eHk6bmVlZGxlLW5lZWRsZTs=", "eHl6Om5lZWRsZS1uZWVkbGU7"] {
            assert!(
                base64_forms(b"needle-needle").iter().any(|form| contains(text.as_bytes(), form)),
                "{text}"
            );
        }
    }
}
