//! A vault pair whose file servers are two SFTP servers, and what an operator would look at to
//! see whether it is well: debts, replicas, leftovers. Harms nothing itself.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::cluster::temporary_folder;
use crate::curl::Curl;
use crate::receipts::Receipt;
use crate::sftp_server::SftpServer;
use crate::vault_host::{FILE_SERVERS, Holder, Pair, PairPlan, files_below};
use crate::wait;

/// How long what is owed may take.
const SETTLED: Duration = Duration::from_secs(90);
/// Short deadlines, room on the tests' small disks, and what is noted is noted at once.
const STORAGE: &str = "file_server_timeout = \"3s\"\nkeep_free = \"1MiB\"\ninventory_every = \"1s\"\n";

/// See the module.
#[derive(Debug)]
pub struct SftpPair {
    // Stopped in this order; the folder goes last.
    /// The two vaults.
    pub pair: Pair,
    /// In the order of [`FILE_SERVERS`].
    pub servers: [SftpServer; 2],
    /// Who uploads and downloads.
    pub erp: Holder,
    /// Where all of it lies.
    pub folder: TempDir,
}

impl SftpPair {
    /// Both vaults and both servers, as an operator would set them up.
    ///
    /// # Errors
    /// Whatever a program says, with the end of its log.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_with(PairPlan::default(), SftpServer::start)
    }

    /// As [`Self::start`], with another plan and other servers; `start` is given the folder for a
    /// server's own files and the place that it serves.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(
        mut plan: PairPlan,
        start: impl Fn(&Path, &Path) -> anyhow::Result<SftpServer>,
    ) -> anyhow::Result<Self> {
        let folder = temporary_folder()?;
        let [first, second] = FILE_SERVERS
            .map(|name| start(&folder.path().join(format!("sshd-{name}")), &folder.path().join(name)));
        let servers = [first?, second?];
        plan.storage.push_str(STORAGE);
        for (at, server) in servers.iter().enumerate() {
            if plan.file_servers[at].is_empty() {
                plan.file_servers[at] = server.config()?;
            }
        }
        let pair = Pair::start(folder.path(), &plan)?;
        let erp = pair.enrol("edge", "erp", "www1")?;
        Ok(Self { pair, servers, erp, folder })
    }

    /// A call of `/v1/files` at one of the vaults.
    #[must_use]
    pub fn files(&self, vault: usize) -> Curl {
        self.pair.vaults[vault].call(&self.erp, "/v1/files")
    }

    /// Uploads a body at one of the vaults, until it is acknowledged.
    ///
    /// # Errors
    /// It is refused for a minute.
    pub fn upload(&self, vault: usize, seed: u64, length: usize) -> anyhow::Result<Receipt> {
        Receipt::insist(&self.files(vault), seed, length)
    }

    /// Reads every file back from both vaults, byte by byte.
    ///
    /// # Errors
    /// The first that is not what was acknowledged.
    pub fn read_back(&self, receipts: &[Receipt]) -> anyhow::Result<()> {
        for vault in [0, 1] {
            let call = self.files(vault);
            receipts.iter().try_for_each(|receipt| {
                let name = self.pair.vaults[vault].name;
                receipt.read_back(&call).map_err(|error| error.context(format!("read from {name}")))
            })?;
        }
        Ok(())
    }

    /// What a vault says of its files.
    ///
    /// # Errors
    /// It does not answer.
    pub fn status(&self, vault: usize) -> anyhow::Result<Value> {
        let answer = self.pair.vaults[vault].control("/v1/status").send()?.expect(&[200])?;
        Ok(answer.json()?["files"].take())
    }

    /// What a vault says of one file server.
    ///
    /// # Errors
    /// It does not answer.
    pub fn server_status(&self, vault: usize, server: usize) -> anyhow::Result<Value> {
        Ok(self.status(vault)?["file_servers"][server].take())
    }

    /// Waits until nothing is owed and nothing is undecided at either vault, both file servers
    /// answer, and both hold a replica of each of `receipts`.
    ///
    /// # Errors
    /// The deadline; the text says what is missing.
    pub fn settled(&self, receipts: &[Receipt]) -> anyhow::Result<()> {
        wait::until("everything is whole on both file servers", SETTLED, || {
            for vault in [0, 1] {
                let status = self.status(vault)?;
                let name = self.pair.vaults[vault].name;
                for key in ["owed", "pending", "removals_owed"] {
                    anyhow::ensure!(status[key] == 0, "{name}: {key}: {status}");
                }
                for server in [0, 1] {
                    let server = &status["file_servers"][server];
                    anyhow::ensure!(server["up"] == true && server["full"] == false, "{name}: {server}");
                }
            }
            for server in &self.servers {
                let there = replicas(server)?;
                let missing: Vec<_> = receipts.iter().filter(|one| !there.contains(&one.id)).collect();
                anyhow::ensure!(missing.is_empty(), "{} lacks {missing:?}", server.place.display());
            }
            Ok(())
        })
    }

    /// Temporary files on the file servers and files in the vaults' spools.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn leftovers(&self) -> anyhow::Result<Vec<String>> {
        let spools = self.pair.vaults.iter().map(|vault| vault.folder.join("state/spool"));
        let temporaries = self.servers.iter().map(|server| server.view().join("tmp"));
        let mut found = Vec::new();
        for folder in spools.chain(temporaries).filter(|folder| folder.exists()) {
            found.extend(files_below(&folder)?.iter().map(|file| file.display().to_string()));
        }
        Ok(found)
    }
}

/// The ids of the replicas that a server holds.
///
/// # Errors
/// A folder that cannot be read.
pub fn replicas(server: &SftpServer) -> anyhow::Result<BTreeSet<String>> {
    let aside = ["tmp", "quarantine", "notes", "marker"];
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(server.view())? {
        let entry = entry?;
        if aside.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        let files = files_below(&entry.path())?;
        found.extend(files.iter().filter_map(|file| Some(file.file_name()?.to_str()?.to_owned())));
    }
    Ok(found)
}
