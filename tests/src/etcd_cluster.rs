//! Three members of etcd on loopback, each with its own data folder; clients come by TLS. Knows how
//! they are made, killed and started again, not what is kept in them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;

use crate::browser::Authority;
use crate::program::{Program, Recipe};
use crate::{ports, wait};

/// How long members may take until they agree, on a busy machine.
const READY: Duration = Duration::from_secs(60);

/// The three members.
#[derive(Debug)]
pub struct EtcdCluster {
    /// Who signed their certificates.
    pub authority: PathBuf,
    /// In the order of the file of settings.
    pub members: Vec<Member>,
}

/// One of them.
#[derive(Debug)]
pub struct Member {
    /// Where clients come.
    pub address: SocketAddr,
    /// The running program.
    pub program: Program,
    data: PathBuf,
    recipe: Recipe,
    peer: String,
}

impl EtcdCluster {
    /// Makes a new cluster in `folder` and starts it; returns when it has a leader.
    ///
    /// # Errors
    /// Whatever a program says.
    pub fn start(folder: &Path) -> anyhow::Result<Self> {
        Self::start_with(folder, &[])
    }

    /// As [`Self::start`], with further arguments for each member.
    ///
    /// # Errors
    /// Whatever a program says.
    pub fn start_with(folder: &Path, more: &[&str]) -> anyhow::Result<Self> {
        let folder = folder.join("etcd");
        std::fs::create_dir_all(&folder)?;
        let authority = Authority::new(&folder, "authority")?;
        let pair = authority.issue(&folder, "server", &["127.0.0.1"])?;
        let mut places = Vec::new();
        for number in 1..=3 {
            places.push((format!("member{number}"), ports::free()?, format!("http://{}", ports::free()?)));
        }
        let all: Vec<String> = places.iter().map(|(name, _, peer)| format!("{name}={peer}")).collect();
        let mut members = Vec::new();
        for (name, address, peer) in &places {
            let client = format!("https://{address}");
            let arguments = [
                format!("--name={name}"),
                format!("--data-dir={}", folder.join(name).display()),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--listen-peer-urls={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--initial-cluster={}", all.join(",")),
                "--initial-cluster-state=new".to_owned(),
                format!("--cert-file={}", pair.certificate.display()),
                format!("--key-file={}", pair.key.display()),
            ];
            let arguments = arguments.into_iter().chain(more.iter().map(|more| (*more).to_owned()));
            let recipe = Recipe::new(name, "/usr/bin/etcd".into(), arguments, &folder);
            let data = folder.join(name);
            let program = Program::start(recipe.clone())?;
            members.push(Member { address: *address, program, data, recipe, peer: format!("{name}={peer}") });
        }
        let cluster = Self { authority: authority.certificate, members };
        cluster.wait_leader()?;
        Ok(cluster)
    }

    /// Waits until every member that runs answers for a quorum.
    ///
    /// # Errors
    /// The deadline.
    pub fn wait_leader(&self) -> anyhow::Result<()> {
        wait::until("etcd has a leader", READY, || {
            for member in self.members.iter().filter(|member| member.program.pid().is_some()) {
                self.ask(member, "/v3/kv/range", r#"{"key":"eA=="}"#)?;
            }
            Ok(())
        })
    }

    /// All members end, lose their data and begin anew: another cluster in the same place.
    ///
    /// # Errors
    /// Whatever a program or the disk says.
    pub fn lose_everything(&mut self) -> anyhow::Result<()> {
        for member in &mut self.members {
            member.program.kill()?;
            std::fs::remove_dir_all(&member.data)?;
        }
        for member in &mut self.members {
            member.program.restart()?;
        }
        self.wait_leader()
    }

    /// Keeps a backup of what all members hold, under this name. They are stopped for it.
    ///
    /// # Errors
    /// Whatever a program or the disk says.
    pub fn keep(&mut self, name: &str) -> anyhow::Result<()> {
        self.stopped(|data| copied(data, &data.with_extension(name)))
    }

    /// Puts a backup back into the members' place.
    ///
    /// # Errors
    /// Whatever a program or the disk says.
    pub fn put_back(&mut self, name: &str) -> anyhow::Result<()> {
        self.stopped(|data| {
            std::fs::remove_dir_all(data)?;
            copied(&data.with_extension(name), data)
        })
    }

    fn stopped(&mut self, work: impl Fn(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
        for member in &mut self.members {
            member.program.kill()?;
        }
        for member in &mut self.members {
            work(&member.data)?;
            member.program.restart()?;
        }
        self.wait_leader()
    }

    /// This member loses its data, and begins anew as a cluster of its own.
    ///
    /// # Errors
    /// Whatever a program or the disk says.
    pub fn set_apart(&mut self, member: usize) -> anyhow::Result<()> {
        let Member { program, data, recipe, peer, .. } =
            self.members.get_mut(member).context("no such member")?;
        program.kill()?;
        std::fs::remove_dir_all(data)?;
        let cluster = format!("--initial-cluster={peer}");
        for argument in &mut recipe.arguments {
            if argument.to_string_lossy().starts_with("--initial-cluster=") {
                *argument = cluster.clone().into();
            }
        }
        *program = Program::start(recipe.clone())?;
        self.wait_leader()
    }

    /// Is there any key in the cluster that this member belongs to?
    ///
    /// # Errors
    /// It does not answer.
    pub fn holds_anything(&self, member: usize) -> anyhow::Result<bool> {
        let all = self.say(member, "/v3/kv/range", r#"{"key":"AA==","range_end":"AA==","limit":"1"}"#)?;
        Ok(all.contains("kvs"))
    }

    /// Asks a member over its JSON gateway; tells what it answered.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub fn say(&self, member: usize, path: &str, body: &str) -> anyhow::Result<String> {
        self.ask(self.members.get(member).context("no such member")?, path, body)
    }

    /// Which member leads; its place in the list.
    ///
    /// # Errors
    /// None does.
    pub fn leader(&self) -> anyhow::Result<usize> {
        for (place, member) in self.members.iter().enumerate() {
            let Ok(status) = self.ask(member, "/v3/maintenance/status", "{}") else { continue };
            let status: serde_json::Value = serde_json::from_str(&status)?;
            if status["leader"] == status["header"]["member_id"] {
                return Ok(place);
            }
        }
        anyhow::bail!("no member leads")
    }

    /// `[sequence.database]` of a vault.
    #[must_use]
    pub fn section(&self, role: &str) -> String {
        let hosts: Vec<String> =
            self.members.iter().map(|member| format!("\"{}\"", member.address)).collect();
        format!(
            "[sequence.database]\nkind = \"etcd\"\nrole = \"{role}\"\nhosts = [{}]\nauthority_file = \"{}\"\n",
            hosts.join(", "),
            self.authority.display(),
        )
    }

    fn ask(&self, member: &Member, path: &str, body: &str) -> anyhow::Result<String> {
        let output = Command::new("curl")
            .args(["-s", "--fail-with-body", "-m", "3", "-X", "POST", "-d", body, "--cacert"])
            .arg(&self.authority)
            .arg(format!("https://{}{path}", member.address))
            .stdin(Stdio::null())
            .output()
            .context("curl")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        anyhow::ensure!(output.status.success(), "{} does not answer {path}: {said}", member.address);
        Ok(said)
    }
}

/// A folder with all that is in it.
fn copied(from: &Path, to: &Path) -> anyhow::Result<()> {
    let ran = Command::new("cp").arg("-a").arg(from).arg(to).status().context("cp")?;
    anyhow::ensure!(ran.success(), "{} cannot be copied", from.display());
    Ok(())
}
